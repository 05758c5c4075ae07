//! Plans as scripts build them: makers and methods.

mod draft;
mod i2p;
mod punch;

use std::{net::SocketAddr, time::Duration};

use rhai::{Array, Dynamic, Engine, ImmutableString, Map, NativeCallContext};
use wormholes_proto::{CarrierKind, NodeId, onion::MAX_HOPS};

use self::draft::{DraftTunnel, Inner};
pub(crate) use self::{
    draft::{Draft, NOT_A_STEP},
    i2p::{check_i2p_setting, check_i2p_setting_name, check_i2p_settings},
    punch::{check_punch_option, check_punch_option_name},
};
use crate::{
    api::objects::Peer,
    plan::{Marks, Migrate, TunnelKind},
    script::call::{Call, ScriptResult, cut, line_of},
    units::{self, put},
};

/// Isolation keys of one step.
const MAX_ISOLATION_KEYS: usize = 8;
/// Bytes of a label, an isolation key or the reason of a block.
const MAX_TEXT_BYTES: usize = 256;
/// Relays that `best()` tries one after the other.
const MAX_BEST_RELAYS: usize = 3;
/// Flows that find out whether an earlier step opens again: more would be for ever.
const MAX_CHECKS: u32 = 100;
/// How long `best()` waits for a direct way that no connection stands on, before it tries a relay.
const BEST_DIRECT_TIMEOUT: Duration = Duration::from_secs(4);

pub(crate) fn register(engine: &mut Engine) {
    engine.register_type_with_name::<Draft>("Plan");
    register_makers(engine);
    i2p::register(engine);
    punch::register(engine);
    register_peer_makers(engine);
    register_joins(engine);
    register_aims(engine);
    register_marks(engine);
}

fn register_makers(engine: &mut Engine) {
    engine
        .register_fn("plan", |context: NativeCallContext| {
            Draft::steps(&context, Vec::new())
        })
        .register_fn("pass", |context: NativeCallContext| {
            Draft::from_inner(Inner {
                pass: true,
                line: line_of(&context),
                ..Inner::default()
            })
        })
        .register_fn("direct", |context: NativeCallContext| {
            Draft::single(&context, DraftTunnel::new(TunnelKind::Direct))
        })
        .register_fn("relay", |context: NativeCallContext, via: Peer| {
            Draft::single(&context, relay(Some(via.view.id), None))
        })
        .register_fn("onion", |context: NativeCallContext, hops: i64| {
            onion(&context, hops, &Map::new(), None)
        })
        .register_fn(
            "onion",
            |context: NativeCallContext, hops: i64, options: Map| {
                onion(&context, hops, &options, None)
            },
        )
        .register_fn("socks", |context: NativeCallContext, server: &str| {
            let mut tunnel = DraftTunnel::new(TunnelKind::Socks);
            tunnel.server = Some(socks_server(server)?);
            ScriptResult::Ok(Draft::single(&context, tunnel))
        })
        .register_fn("tor", |context: NativeCallContext| {
            tor(&context, &Map::new())
        })
        .register_fn("tor", |context: NativeCallContext, options: Map| {
            tor(&context, &options)
        })
        .register_fn("block", |context: NativeCallContext| block(&context, ""))
        .register_fn("block", |context: NativeCallContext, why: &str| {
            block(&context, why)
        })
        .register_fn("need", |field: &str, mut plan: Draft| {
            if field != "ip" {
                return Err(
                    format!("need(\"{field}\") does not exist; need(\"ip\", plan) does").into(),
                );
            }
            plan.change(|inner| {
                inner.need_ip = true;
                Ok(())
            })
        });
}

fn register_peer_makers(engine: &mut Engine) {
    engine
        .register_fn("direct", |context: NativeCallContext, peer: Peer| {
            Draft::single(&context, direct(&peer))
        })
        .register_fn("relayed", |context: NativeCallContext, peer: Peer| {
            Draft::single(&context, relay(None, Some(peer.view.id)))
        })
        .register_fn(
            "relayed",
            |context: NativeCallContext, peer: Peer, via: Peer| {
                Draft::single(&context, relay(Some(via.view.id), Some(peer.view.id)))
            },
        )
        .register_fn(
            "relayed",
            |context: NativeCallContext, peer: Peer, via: &str| {
                let via = relay_called(&context, via)?;
                ScriptResult::Ok(Draft::single(
                    &context,
                    relay(Some(via), Some(peer.view.id)),
                ))
            },
        )
        .register_fn(
            "onion",
            |context: NativeCallContext, peer: Peer, hops: i64| {
                onion(&context, hops, &Map::new(), Some(peer.view.id))
            },
        )
        // relay("name") is a node: with an end it becomes a plan.
        .register_fn("to", |context: NativeCallContext, via: Peer, peer: Peer| {
            Draft::single(&context, relay(Some(via.view.id), Some(peer.view.id)))
        })
        .register_fn("best", |context: NativeCallContext, peer: Peer| {
            best(&context, &peer)
        });
}

fn register_joins(engine: &mut Engine) {
    engine
        .register_fn("or", |plan: &mut Draft, next: Draft| plan.then(&next))
        .register_fn("step", |plan: &mut Draft, next: Draft| plan.then(&next))
        .register_fn("race", |plan: &mut Draft, other: Draft| plan.race(&other))
        .register_fn("closed", |plan: &mut Draft| {
            plan.change(|inner| {
                inner.closed = true;
                Ok(())
            })
        })
        .register_fn("stick", |plan: &mut Draft, time: Dynamic| {
            plan.change(|inner| put(&mut inner.stick, stick_time(&time)))
        })
        .register_fn("back_after", |plan: &mut Draft, times: i64| {
            plan.change(|inner| put(&mut inner.back_after, back_after(times)))
        })
        .register_fn("migrate", |plan: &mut Draft, what: &str| {
            plan.change(|inner| put(&mut inner.migrate, migrate(what)))
        });
}

fn register_aims(engine: &mut Engine) {
    engine
        .register_fn("to", |plan: &mut Draft, peer: Peer| {
            plan.aim("to", |tunnel| match tunnel.kind {
                TunnelKind::Direct | TunnelKind::Relay | TunnelKind::Onion => {
                    tunnel.end_at(peer.view.id)
                }
                TunnelKind::Tor => check_after_tor("to"),
                TunnelKind::I2p | TunnelKind::Socks | TunnelKind::Block => {
                    Err(format!("{}() does not end at a peer", tunnel.kind.as_str()))
                }
            })
        })
        .register_fn("via", |plan: &mut Draft, peer: Peer| {
            plan.aim("via", |tunnel| match tunnel.kind {
                TunnelKind::Relay | TunnelKind::Onion => tunnel.begin_at(peer.view.id),
                TunnelKind::Tor => check_after_tor("via"),
                TunnelKind::Direct if tunnel.punch => tunnel.begin_at(peer.view.id),
                TunnelKind::Direct => {
                    Err("direct() passes no node: write peer.relayed(via)".to_owned())
                }
                TunnelKind::I2p | TunnelKind::Socks | TunnelKind::Block => {
                    Err(format!("{}() passes no node", tunnel.kind.as_str()))
                }
            })
        })
        .register_fn("exit", |plan: &mut Draft| {
            plan.aim("exit", |tunnel| match tunnel.kind {
                TunnelKind::Direct | TunnelKind::Relay | TunnelKind::Onion => {
                    tunnel.exit = true;
                    Ok(())
                }
                TunnelKind::Tor => check_after_tor("exit"),
                TunnelKind::I2p | TunnelKind::Socks | TunnelKind::Block => {
                    Err(format!("{}() has no exit", tunnel.kind.as_str()))
                }
            })
        });
}

fn register_marks(engine: &mut Engine) {
    engine
        .register_fn("timeout", |plan: &mut Draft, wait: Dynamic| {
            plan.mark(|marks| put(&mut marks.timeout, units::duration(&wait)))
        })
        .register_fn("delay", |plan: &mut Draft, wait: Dynamic| {
            plan.mark(|marks| put(&mut marks.delay, units::duration(&wait)))
        })
        .register_fn("jitter", |plan: &mut Draft, shape: &str| {
            plan.mark(|marks| put(&mut marks.jitter, units::distribution(shape)))
        })
        .register_fn("pad", |plan: &mut Draft, multiple: i64| {
            plan.mark(|marks| {
                marks.pad_bytes = Some(pad_bytes(multiple)?);
                Ok(())
            })
        })
        .register_fn("bw", |plan: &mut Draft, rate: Dynamic| {
            plan.mark(|marks| put(&mut marks.bandwidth_bytes_per_s, units::rate(&rate)))
        })
        .register_fn("bytes", |plan: &mut Draft, size: Dynamic| {
            plan.mark(|marks| put(&mut marks.max_bytes, units::size(&size)))
        })
        .register_fn("carrier", |plan: &mut Draft, name: &str| {
            plan.mark(|marks| {
                let kind = CarrierKind::from_name(name);
                let unknown = || format!("carrier() knows \"quic\" and \"tcp\", not {name:?}");
                marks.carrier = Some(kind.ok_or_else(unknown)?);
                Ok(())
            })
        })
        .register_fn("isolate", |plan: &mut Draft, keys: Dynamic| {
            plan.mark(|marks| {
                marks.isolate = isolation_keys(&keys)?;
                Ok(())
            })
        })
        .register_fn("label", |plan: &mut Draft, label: ImmutableString| {
            plan.mark(|marks| {
                marks.label = Some(cut(label.to_string(), MAX_TEXT_BYTES));
                Ok(())
            })
        });
}

fn block(context: &NativeCallContext, why: &str) -> Draft {
    let mut tunnel = DraftTunnel::new(TunnelKind::Block);
    tunnel.why = cut(why.to_owned(), MAX_TEXT_BYTES);
    Draft::single(context, tunnel)
}

fn direct(peer: &Peer) -> DraftTunnel {
    let mut tunnel = DraftTunnel::new(TunnelKind::Direct);
    tunnel.to = Some(peer.view.id);
    tunnel
}

fn relay(via: Option<NodeId>, to: Option<NodeId>) -> DraftTunnel {
    let mut tunnel = DraftTunnel::new(TunnelKind::Relay);
    tunnel.via = via;
    tunnel.to = to;
    tunnel
}

fn relay_called(context: &NativeCallContext, name: &str) -> ScriptResult<NodeId> {
    let relay = Call::of(context)?.ground.find(name)?;
    Ok(relay
        .ok_or_else(|| format!("no relay is called {name}"))?
        .id)
}

fn onion(
    context: &NativeCallContext,
    hops: i64,
    options: &Map,
    to: Option<NodeId>,
) -> ScriptResult<Draft> {
    let mut tunnel = DraftTunnel::new(TunnelKind::Onion);
    tunnel.to = to;
    tunnel.hops = hop_count(hops)?;
    let mut marks = Marks::default();
    for (key, value) in options {
        check_onion_option(key, value)?;
        match key.as_str() {
            "isolate" => marks.isolate = isolation_keys(value)?,
            _ => tunnel.friends_only = is_text(value, "friends"),
        }
    }
    let mut draft = Draft::single(context, tunnel);
    draft.mark(|fresh| {
        fresh.clone_from(&marks);
        Ok(())
    })
}

fn tor(context: &NativeCallContext, options: &Map) -> ScriptResult<Draft> {
    let mut isolate = Vec::new();
    for (key, value) in options {
        check_tor_option(key, value)?;
        isolate = isolation_keys(value)?;
    }
    let mut draft = Draft::single(context, DraftTunnel::new(TunnelKind::Tor));
    draft.mark(|marks| {
        marks.isolate.clone_from(&isolate);
        Ok(())
    })
}

/// Whether `tor()` has an option of this name.
pub(crate) fn check_tor_option_name(name: &str) -> Result<(), String> {
    match name {
        "isolate" => Ok(()),
        "exit_country" => Err(
            "tor() cannot keep to exit_country: this build has no geoip, which knows where exits are"
                .to_owned(),
        ),
        _ => Err(format!("tor() knows the option isolate, not {name}")),
    }
}

/// Whether `tor()` has an option of this name, and takes this value for it.
pub(crate) fn check_tor_option(name: &str, value: &Dynamic) -> Result<(), String> {
    check_tor_option_name(name)?;
    isolation_keys(value).map(drop)
}

/// Whether `method` may follow `tor()`, as far as that depends on Tor.
pub(crate) fn check_after_tor(method: &str) -> Result<(), String> {
    Err(match method {
        "to" => "tor() does not end at a peer: one whose [[peer]] has an onion address is reached \
                 through it by peer.direct() or best()"
            .to_owned(),
        "via" => "tor() passes no node: Tor chooses its relays itself".to_owned(),
        "exit" => "tor() has no exit() to ask for: one of Tor's exits dials the target".to_owned(),
        "carrier" => "tor() goes to no node: there is nothing to carry".to_owned(),
        "pad" => "tor() cannot pad; relay() and onion() can".to_owned(),
        _ => return Ok(()),
    })
}

/// Hops of an onion, as scripts give them.
pub(crate) fn hop_count(hops: i64) -> Result<u8, String> {
    u8::try_from(hops)
        .ok()
        .filter(|hops| (1..=MAX_HOPS).contains(&usize::from(*hops)))
        .ok_or_else(|| format!("onion() takes 1 to {MAX_HOPS} hops, not {hops}"))
}

/// Whether `onion()` has an option of this name.
pub(crate) fn check_onion_option_name(name: &str) -> Result<(), String> {
    match name {
        "from" | "isolate" => Ok(()),
        _ => Err(format!(
            "onion() knows the options from and isolate, not {name}"
        )),
    }
}

/// Whether `onion()` has an option of this name, and takes this value for it.
pub(crate) fn check_onion_option(name: &str, value: &Dynamic) -> Result<(), String> {
    check_onion_option_name(name)?;
    match name {
        "isolate" => isolation_keys(value).map(drop),
        _ if is_text(value, "friends") || is_text(value, "any") => Ok(()),
        _ => Err("onion() takes hops from: \"any\" or \"friends\"".to_owned()),
    }
}

/// What padding fills up to, as scripts give it.
pub(crate) fn pad_bytes(multiple: i64) -> Result<u32, String> {
    let multiple = u32::try_from(multiple).ok();
    let multiple = multiple.filter(|multiple| (1..=16_384).contains(multiple));
    multiple.ok_or_else(|| "pad() takes 1 to 16384 bytes".to_owned())
}

/// How long a plan sticks, as scripts give it.
pub(crate) fn stick_time(time: &Dynamic) -> Result<Duration, String> {
    match units::duration(time)? {
        Duration::ZERO => Err("stick() takes a time longer than nothing: \"10m\"".to_owned()),
        time => Ok(time),
    }
}

/// How often an earlier step must open before a plan goes back to it, as scripts give it.
pub(crate) fn back_after(times: i64) -> Result<u32, String> {
    let times = u32::try_from(times).ok();
    let times = times.filter(|times| (1..=MAX_CHECKS).contains(times));
    times.ok_or_else(|| format!("back_after() takes 1 to {MAX_CHECKS}"))
}

/// What goes over to a direct tunnel, as scripts give it.
pub(crate) fn migrate(what: &str) -> Result<Migrate, String> {
    let all = [Migrate::Streams, Migrate::Nothing];
    let found = all.into_iter().find(|migrate| migrate.as_str() == what);
    found.ok_or_else(|| "migrate() takes \"streams\" or \"none\"".to_owned())
}

/// The address of an upstream proxy, as scripts give it.
pub(crate) fn socks_server(server: &str) -> Result<SocketAddr, String> {
    server
        .parse()
        .map_err(|_| format!("`{server}` is not the address of a server: write 127.0.0.1:1080"))
}

fn is_text(value: &Dynamic, wanted: &str) -> bool {
    value
        .read_lock::<ImmutableString>()
        .is_some_and(|text| *text == wanted)
}

/// Direct when there is a way, then through the peer's relays, until a direct path was punched.
fn best(context: &NativeCallContext, peer: &Peer) -> ScriptResult<Draft> {
    let view = &peer.view;
    let mut ways = Vec::new();
    if view.has_address || view.online {
        ways.push(direct(peer));
    }
    let mut relays = view.relays.clone();
    let ground = &peer.call.ground;
    relays.sort_by_key(|id| !ground.by_id(id).is_some_and(|relay| relay.online));
    relays.truncate(MAX_BEST_RELAYS);
    ways.extend(relays.iter().map(|via| punch::tunnel(peer, Some(*via))));
    if ways.is_empty() {
        ways.push(punch::tunnel(peer, None));
    }
    let mut draft = Draft::steps(context, ways);
    let wait = !view.online && draft.inner.steps.len() > 1;
    draft.change(|inner| {
        inner.made_by_best = true;
        if let Some(step) = inner.steps.first_mut().filter(|_| wait && view.has_address) {
            step.marks.timeout = Some(BEST_DIRECT_TIMEOUT);
        }
        Ok(())
    })
}

/// One key or a list of keys; what is not there counts as the empty key.
fn isolation_keys(keys: &Dynamic) -> Result<Vec<String>, String> {
    let key = |key: &Dynamic| match key.is_unit() {
        true => String::new(),
        false => cut(key.to_string(), MAX_TEXT_BYTES),
    };
    match keys.read_lock::<Array>() {
        Some(list) if list.len() > MAX_ISOLATION_KEYS => {
            Err(format!("isolate() takes at most {MAX_ISOLATION_KEYS} keys"))
        }
        Some(list) => Ok(list.iter().map(key).collect()),
        None => Ok(vec![key(keys)]),
    }
}
