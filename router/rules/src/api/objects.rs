//! The arguments of hooks, and nodes: read-only objects whose every read is kept for `why`.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use rhai::{Dynamic, Engine};

use crate::{
    script::call::{Call, ScriptResult},
    view::{Conn, ExitRequest, NodeView, RelayRequest, RuleEvent, Sni},
};

/// Facts that may be asked for without any plugin that publishes them.
const KNOWN_FACTS: [&str; 1] = ["credit"];

/// The argument of a hook.
#[derive(Debug)]
pub(crate) struct Argument<T> {
    pub(crate) view: Arc<T>,
    pub(crate) call: Arc<Call>,
}

impl<T> Clone for Argument<T> {
    fn clone(&self) -> Self {
        Self {
            view: self.view.clone(),
            call: self.call.clone(),
        }
    }
}

/// A node as scripts hold it.
pub(crate) type Peer = Argument<NodeView>;

/// The asker of an onion as scripts hold it: it has the fields of a node, and nothing in them, so
/// that no rule about a node fits the hop that only passed its request on.
#[derive(Debug, Clone)]
pub(crate) struct Nobody;

/// Something whose fields are read by name.
trait Fields: Sized + Clone + Send + Sync + 'static {
    /// How `why` names it.
    fn owner(argument: &Argument<Self>) -> &str;

    /// Whether its value is known where the script runs.
    fn check(_: &Argument<Self>, _field: &str) -> ScriptResult<()> {
        Ok(())
    }
}

impl Fields for Conn {
    fn owner(_: &Argument<Self>) -> &str {
        "c"
    }

    fn check(argument: &Argument<Self>, field: &str) -> ScriptResult<()> {
        if field == "sni" && argument.view.sni == Sni::Unread {
            return Err(argument.call.ground.needs_sni());
        }
        argument.call.ground.check_field(field)
    }
}

impl Fields for RelayRequest {
    fn owner(_: &Argument<Self>) -> &str {
        "q"
    }
}

impl Fields for ExitRequest {
    fn owner(_: &Argument<Self>) -> &str {
        "x"
    }
}

impl Fields for RuleEvent {
    fn owner(_: &Argument<Self>) -> &str {
        "e"
    }
}

impl Fields for NodeView {
    fn owner(argument: &Argument<Self>) -> &str {
        &argument.view.name
    }
}

impl Fields for Nobody {
    fn owner(_: &Argument<Self>) -> &str {
        "nobody"
    }
}

/// One field: its name and how it is read.
type Field<T> = (&'static str, fn(&Argument<T>) -> Dynamic);

/// What `route(c)` may read of `c`.
const CONN: &[Field<Conn>] = &[
    ("id", |c| int(c.view.id)),
    ("attempt", |c| int(u64::from(c.view.attempt))),
    ("last_error", |c| text(c.view.last_error.as_deref())),
    ("entrance", |c| c.view.entrance.into()),
    ("label", |c| text(c.view.label.as_deref())),
    ("network", |c| c.view.network.into()),
    ("host", |c| c.view.host.as_str().into()),
    ("domain", |c| domain(&c.view.host).into()),
    ("ip", |c| address(c.view.ip)),
    ("ips", |c| {
        let ips: rhai::Array = c.view.ips.iter().map(|ip| address(Some(*ip))).collect();
        ips.into()
    }),
    ("port", |c| int(u64::from(c.view.port))),
    ("node", |c| {
        let node = c.view.node.and_then(|id| c.call.ground.by_id(&id).cloned());
        node.map_or(Dynamic::UNIT, |node| peer(&c.call, node))
    }),
    ("service", |c| {
        let service = c.view.service.as_ref();
        text(service.map(wormholes_proto::ServiceName::as_str))
    }),
    ("app", |c| text(c.view.app.as_deref())),
    ("app_path", |c| text(c.view.app_path.as_deref())),
    ("uid", |c| {
        c.view.uid.map_or(Dynamic::UNIT, |uid| int(u64::from(uid)))
    }),
    ("user", |c| text(c.view.user.as_deref())),
    ("plugin", |c| text(c.view.plugin.as_deref())),
    ("role", |c| text(c.view.role.as_deref())),
    ("src", |c| address(c.view.src)),
    ("is_lan", |c| is_lan(&c.view).into()),
    ("sni", |c| match &c.view.sni {
        Sni::Read(name) => text(name.as_deref()),
        Sni::Unread => Dynamic::UNIT,
    }),
    ("rand", |c| c.view.rand.into()),
    ("now", |c| seconds(c.view.now)),
    ("hour", |c| int(u64::from(c.view.hour))),
    ("weekday", |c| int(u64::from(c.view.weekday))),
];

/// What scripts may read of a node.
const NODE: &[Field<NodeView>] = &[
    ("name", |p| p.view.name.as_str().into()),
    ("id", |p| p.view.id.to_string().into()),
    ("trust", |p| int(u64::from(p.view.trust))),
    ("online", |p| p.view.online.into()),
    ("up", |p| p.view.online.into()),
    ("rtt", |p| {
        p.view.rtt_ms.map_or(Dynamic::UNIT, Dynamic::from)
    }),
    ("loss", |p| p.view.loss.into()),
    ("load", |p| p.view.load.into()),
    ("has_address", |p| p.view.has_address.into()),
    ("relays", |p| {
        let relays = p.view.relays.iter();
        let known = relays.filter_map(|id| p.call.ground.by_id(id));
        let relays: rhai::Array = known.map(|node| peer(&p.call, node.clone())).collect();
        relays.into()
    }),
    ("is_relay", |p| p.view.roles.relay.into()),
    ("is_hop", |p| p.view.roles.hop.into()),
    ("is_exit", |p| p.view.roles.exit.into()),
    ("family", |p| text(p.view.family.as_deref())),
];

/// The same fields of nobody.
const NOBODY: &[Field<Nobody>] = &[
    ("name", |_| "".into()),
    ("id", |_| Dynamic::UNIT),
    ("trust", |_| int(0)),
    ("online", |_| false.into()),
    ("up", |_| false.into()),
    ("rtt", |_| Dynamic::UNIT),
    ("loss", |_| 0.0.into()),
    ("load", |_| 0.0.into()),
    ("has_address", |_| false.into()),
    ("relays", |_| rhai::Array::new().into()),
    ("is_relay", |_| false.into()),
    ("is_hop", |_| false.into()),
    ("is_exit", |_| false.into()),
    ("family", |_| Dynamic::UNIT),
];

/// What `relay(q)` may read of `q`.
const RELAY_REQUEST: &[Field<RelayRequest>] = &[
    ("from", |q| peer(&q.call, q.view.from.clone())),
    ("to", |q| peer(&q.call, q.view.to.clone())),
    ("bytes_today", |q| int(q.view.bytes_today)),
    ("now", |q| seconds(q.view.now)),
];

/// What `exit(x)` may read of `x`.
const EXIT_REQUEST: &[Field<ExitRequest>] = &[
    ("from", |x| match &x.view.from {
        Some(from) => peer(&x.call, from.clone()),
        None => nobody(&x.call),
    }),
    ("network", |x| {
        x.view.network.map_or(Dynamic::UNIT, Dynamic::from)
    }),
    ("host", |x| x.view.host.as_str().into()),
    ("domain", |x| domain(&x.view.host).into()),
    ("ip", |x| address(Some(x.view.ip))),
    ("port", |x| {
        let port = x.view.port.map(u64::from);
        port.map_or(Dynamic::UNIT, int)
    }),
    ("bytes_today", |x| int(x.view.bytes_today)),
    ("now", |x| seconds(x.view.now)),
];

/// What `on_event(e)` may read of `e`.
const EVENT: &[Field<RuleEvent>] = &[
    ("kind", |e| e.view.kind.as_str().into()),
    ("peer", |e| {
        let node = e.view.peer.clone();
        node.map_or(Dynamic::UNIT, |node| peer(&e.call, node))
    }),
    ("reason", |e| e.view.reason.as_str().into()),
];

/// The fields that the argument of `hook` has; none when they are an open set.
pub(crate) fn fields_of(hook: &str) -> Option<Vec<&'static str>> {
    fn names<T>(fields: &[Field<T>]) -> Vec<&'static str> {
        fields.iter().map(|(name, _)| *name).collect()
    }
    match hook {
        "route" => Some(names(CONN)),
        "relay" => Some(names(RELAY_REQUEST)),
        "exit" => Some(names(EXIT_REQUEST)),
        "on_event" => Some(names(EVENT)),
        "init" => Some(Vec::new()),
        // Facts are fields of a node too, so that its names are an open set.
        _ => None,
    }
}

/// Whether every node has this field.
pub(crate) fn is_node_field(name: &str) -> bool {
    NODE.iter().any(|(field, _)| *field == name)
}

/// A node as a value of a script.
pub(crate) fn peer(call: &Arc<Call>, view: Arc<NodeView>) -> Dynamic {
    call.ground.holds(&view);
    let call = call.clone();
    Dynamic::from(Argument { view, call })
}

fn nobody(call: &Arc<Call>) -> Dynamic {
    Dynamic::from(Argument {
        view: Arc::new(Nobody),
        call: call.clone(),
    })
}

pub(crate) fn register(engine: &mut Engine) {
    register_fields(engine, "Conn", CONN);
    register_fields(engine, "Peer", NODE);
    register_fields(engine, "Nobody", NOBODY);
    register_fields(engine, "RelayRequest", RELAY_REQUEST);
    register_fields(engine, "ExitRequest", EXIT_REQUEST);
    register_fields(engine, "Event", EVENT);
    engine
        .register_indexer_get(|peer: &mut Peer, name: &str| {
            fact(peer, name, peer.view.facts.get(name).copied())
        })
        .register_fn("==", |a: Peer, b: Peer| a.view.id == b.view.id)
        .register_fn("!=", |a: Peer, b: Peer| a.view.id != b.view.id)
        .register_fn("to_string", |peer: &mut Peer| peer.view.name.clone())
        .register_indexer_get(|nobody: &mut Argument<Nobody>, name: &str| fact(nobody, name, None))
        // Rhai itself says that values of two types differ.
        .register_fn("==", |_: Argument<Nobody>, _: Argument<Nobody>| false)
        .register_fn("!=", |_: Argument<Nobody>, _: Argument<Nobody>| true)
        .register_fn("to_string", |_: &mut Argument<Nobody>| String::new());
}

fn register_fields<T: Fields>(engine: &mut Engine, name: &str, fields: &'static [Field<T>]) {
    engine.register_type_with_name::<Argument<T>>(name);
    for (field, read) in fields {
        engine.register_get(field, move |argument: &mut Argument<T>| {
            T::check(argument, field)?;
            let value = read(argument);
            argument.call.read(T::owner(argument), field, &value);
            ScriptResult::Ok(value)
        });
    }
}

/// A fact that a plugin published; 0 when none did, so that a script denies what is not vouched for.
fn fact<T: Fields>(node: &Argument<T>, name: &str, value: Option<i64>) -> ScriptResult<Dynamic> {
    let known = || KNOWN_FACTS.contains(&name) || node.call.ground.has_fact(name);
    if value.is_none() && !known() {
        return Err(format!("a peer has no field `{name}`, and no plugin publishes it").into());
    }
    let value = Dynamic::from(value.unwrap_or(0));
    node.call.read(T::owner(node), name, &value);
    Ok(value)
}

fn int(value: u64) -> Dynamic {
    i64::try_from(value).unwrap_or(i64::MAX).into()
}

fn text(value: Option<&str>) -> Dynamic {
    value.map_or(Dynamic::UNIT, Into::into)
}

fn address(ip: Option<IpAddr>) -> Dynamic {
    ip.map_or(Dynamic::UNIT, |ip| ip.to_canonical().to_string().into())
}

fn seconds(time: SystemTime) -> Dynamic {
    int(time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs())
}

/// The registrable domain by the public suffix list; the whole name when it has none.
fn domain(host: &str) -> &str {
    psl::domain_str(host).unwrap_or(host)
}

/// Private, link-local or loopback addresses only: any of them may be dialled. Without one, a name
/// that only the local network knows.
fn is_lan(conn: &Conn) -> bool {
    let literal = || conn.host.parse().ok();
    let mut ips = conn.ips.iter().copied().chain(conn.ip.or_else(literal));
    match ips.next() {
        Some(ip) => is_near(ip) && ips.all(is_near),
        None => {
            let host = conn.host.as_str();
            host == "localhost" || !host.contains('.') || host.ends_with(".local")
        }
    }
}

fn is_near(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_the_fields_of_a_node() {
        let nobody: Vec<&str> = NOBODY.iter().map(|(name, _)| *name).collect();
        let node: Vec<&str> = NODE.iter().map(|(name, _)| *name).collect();
        assert_eq!(nobody, node);
    }
}
