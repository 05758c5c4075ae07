//! What scripts ask the host: nodes, sets, kept values, rates, quotas, samples; and what they tell
//! it: log lines, notifications, tags.

use std::sync::Arc;

use rhai::{Array, Dynamic, Engine, FnPtr, ImmutableString, NativeCallContext};

use crate::{
    api::objects::{self, Peer},
    decision::Level,
    recording::{QuotaAsk, QuotaSaid, RateAsk},
    script::call::{Call, ScriptResult},
    state::KeptValue,
    units,
};

/// A named set as scripts hold it.
#[derive(Debug, Clone)]
struct SetHandle {
    name: Arc<str>,
    call: Arc<Call>,
}

pub(crate) fn register(engine: &mut Engine) {
    engine.register_type_with_name::<SetHandle>("Set");
    register_nodes(engine);
    register_sets(engine);
    register_kept(engine);
    register_counters(engine);
    register_reports(engine);
}

fn register_nodes(engine: &mut Engine) {
    for name in ["peer", "relay"] {
        engine
            .register_fn(name, move |context: NativeCallContext, who: &str| {
                node(&context, name, who)
            })
            // What `kv_get` gives when there is nothing.
            .register_fn(name, |(): ()| ());
    }
    for (name, is_relay) in [("peers", false), ("relays", true)] {
        engine
            .register_fn(name, move |context: NativeCallContext| {
                listed(&context, is_relay)
            })
            .register_fn(name, move |context: NativeCallContext, keep: FnPtr| {
                let mut kept = Array::new();
                for node in listed(&context, is_relay)? {
                    if keep.call_within_context::<bool>(&context, (node.clone(),))? {
                        kept.push(node);
                    }
                }
                ScriptResult::Ok(kept)
            });
    }
}

fn register_sets(engine: &mut Engine) {
    engine
        .register_fn("set", |context: NativeCallContext, name: &str| {
            let call = Call::of(&context)?;
            if !call.ground.has_set(name)? {
                return Err(format!("no set is called {name}").into());
            }
            let name = name.into();
            ScriptResult::Ok(SetHandle { name, call })
        })
        .register_fn("has", |set: &mut SetHandle, value: &str| {
            let has = set.call.ground.set_has(&set.name, value)?;
            let question = format!("set(\"{}\").has(\"{value}\")", set.name);
            set.call.answered(question, &has.into());
            ScriptResult::Ok(has)
        })
        .register_fn("has", |_: &mut SetHandle, (): ()| false)
        .register_fn("first_set", |context: NativeCallContext, value: &str| {
            first_set(&context, value, None)
        })
        .register_fn(
            "first_set",
            |context: NativeCallContext, value: &str, among: Array| {
                let among = among
                    .into_iter()
                    .map(Dynamic::into_string)
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|found| format!("first_set() takes a list of names, not {found}"))?;
                first_set(&context, value, Some(&among))
            },
        );
}

fn register_kept(engine: &mut Engine) {
    engine
        .register_fn("kv_get", |context: NativeCallContext, key: &str| {
            let call = Call::of(&context)?;
            let kept = call.ground.get(call.now, &call.script, key)?;
            let value = kept.map_or(Dynamic::UNIT, from_kept);
            call.answered(format!("kv_get(\"{key}\")"), &value);
            ScriptResult::Ok(value)
        })
        .register_fn(
            "kv_set",
            |context: NativeCallContext, key: &str, value: Dynamic| {
                keep(&context, key, value, None)
            },
        )
        .register_fn(
            "kv_set",
            |context: NativeCallContext, key: &str, value: Dynamic, ttl: Dynamic| {
                keep(&context, key, value, Some(&ttl))
            },
        );
}

fn register_counters(engine: &mut Engine) {
    engine
        .register_fn(
            "rate",
            |context: NativeCallContext, key: &str, limit: i64, window: Dynamic| {
                let call = Call::of(&context)?;
                let window = units::window(&window)?;
                let limit = u32::try_from(limit).unwrap_or(0);
                let ask = RateAsk { limit, window };
                let fits = call.ground.rate(call.now, &call.script, key, ask)?;
                call.answered(format!("rate(\"{key}\", {limit})"), &fits.into());
                ScriptResult::Ok(fits)
            },
        )
        .register_fn(
            "quota",
            |context: NativeCallContext, key: &str, amount: i64, limit: i64, window: Dynamic| {
                let call = Call::of(&context)?;
                let window = units::window(&window)?;
                let amount = u64::try_from(amount).map_err(|_| "an amount is not negative")?;
                let limit = u64::try_from(limit).unwrap_or(0);
                let ask = QuotaAsk::Take {
                    amount,
                    limit,
                    window,
                };
                let said = call.ground.quota(call.now, &call.script, key, ask)?;
                let fits = said == QuotaSaid::Fits(true);
                call.answered(format!("quota(\"{key}\", {amount}, {limit})"), &fits.into());
                ScriptResult::Ok(fits)
            },
        )
        .register_fn("quota", |context: NativeCallContext, key: &str| {
            let call = Call::of(&context)?;
            let said = call
                .ground
                .quota(call.now, &call.script, key, QuotaAsk::Used)?;
            let used = match said {
                QuotaSaid::Used(used) => used,
                QuotaSaid::Fits(_) => 0,
            };
            let used = Dynamic::from(i64::try_from(used).unwrap_or(i64::MAX));
            call.answered(format!("quota(\"{key}\")"), &used);
            ScriptResult::Ok(used)
        })
        .register_fn("sample", |shape: &str, random: i64| sample(shape, random))
        .register_fn("hash", hash);
}

fn register_reports(engine: &mut Engine) {
    engine
        .register_fn(
            "log",
            |context: NativeCallContext, level: &str, text: ImmutableString| {
                Call::of(&context)?.log(self::level(level)?, &text);
                ScriptResult::Ok(())
            },
        )
        .register_fn(
            "notify",
            |context: NativeCallContext, level: &str, text: ImmutableString| {
                Call::of(&context)?.notify(self::level(level)?, &text);
                ScriptResult::Ok(())
            },
        )
        .register_fn(
            "tag",
            |context: NativeCallContext, key: &str, value: Dynamic| {
                Call::of(&context)?.tag(key, &value);
                ScriptResult::Ok(())
            },
        )
        .register_fn("before", |text: &str, end: &str| {
            ImmutableString::from(text.split_once(end).map_or(text, |cut| cut.0))
        })
        .register_fn("after", |text: &str, start: &str| {
            ImmutableString::from(text.split_once(start).map_or("", |cut| cut.1))
        });
}

/// The node that `who` means, or `()`.
fn node(context: &NativeCallContext, function: &str, who: &str) -> ScriptResult<Dynamic> {
    let call = Call::of(context)?;
    let found = call.ground.find(who)?;
    let value = found.map_or(Dynamic::UNIT, |view| objects::peer(&call, view));
    call.answered(format!("{function}(\"{who}\")"), &value);
    Ok(value)
}

fn listed(context: &NativeCallContext, is_relay: bool) -> ScriptResult<Array> {
    let call = Call::of(context)?;
    let nodes = call.ground.listed(is_relay)?.into_iter();
    Ok(nodes.map(|node| objects::peer(&call, node)).collect())
}

fn first_set(
    context: &NativeCallContext,
    value: &str,
    among: Option<&[String]>,
) -> ScriptResult<Dynamic> {
    let call = Call::of(context)?;
    let found = call.ground.first_set(value, among)?;
    let found = found.map_or(Dynamic::UNIT, Into::into);
    call.answered(format!("first_set(\"{value}\")"), &found);
    Ok(found)
}

fn keep(
    context: &NativeCallContext,
    key: &str,
    value: Dynamic,
    ttl: Option<&Dynamic>,
) -> ScriptResult<()> {
    let call = Call::of(context)?;
    let ttl = ttl.map(units::duration).transpose()?;
    let value = to_kept(value)?;
    call.ground.set(call.now, &call.script, key, value, ttl)
}

fn from_kept(value: KeptValue) -> Dynamic {
    match value {
        KeptValue::Bool(value) => value.into(),
        KeptValue::Int(value) => value.into(),
        KeptValue::Float(value) => value.into(),
        KeptValue::Text(value) => value.into(),
    }
}

fn to_kept(value: Dynamic) -> ScriptResult<Option<KeptValue>> {
    if value.is_unit() {
        return Ok(None);
    }
    let kept = value
        .as_bool()
        .map(KeptValue::Bool)
        .or_else(|_| value.as_int().map(KeptValue::Int))
        .or_else(|_| value.as_float().map(KeptValue::Float));
    match kept {
        Ok(kept) => Ok(Some(kept)),
        Err(_) => match value.into_string() {
            Ok(text) => Ok(Some(KeptValue::Text(text))),
            Err(found) => {
                Err(format!("kv_set() keeps text, numbers and true or false, not {found}").into())
            }
        },
    }
}

/// How grave a message is, as scripts write it.
pub(crate) fn level(text: &str) -> Result<Level, String> {
    match text {
        "debug" => Ok(Level::Debug),
        "info" => Ok(Level::Info),
        "warn" => Ok(Level::Warn),
        "error" => Ok(Level::Error),
        _ => Err(format!(
            "`{text}` is not a level: write debug, info, warn or error"
        )),
    }
}

/// Seconds, drawn from a distribution with the given random bits: the same bits, the same answer.
fn sample(shape: &str, random: i64) -> ScriptResult<f64> {
    /// 2^53, the integers that a float holds.
    const STEPS: i64 = 1 << 53;
    #[expect(clippy::cast_precision_loss, reason = "both are at most 2^53")]
    let uniform = (random.rem_euclid(STEPS)) as f64 / STEPS as f64;
    Ok(units::distribution(shape)?.wait(uniform).as_secs_f64())
}

/// FNV-1a, 63 bits: the same on every machine and in every version.
fn hash(text: &str) -> i64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    i64::try_from(hash >> 1).unwrap_or(i64::MAX)
}

/// How `why` shows a node.
pub(crate) fn node_name(value: &Dynamic) -> Option<String> {
    value.read_lock::<Peer>().map(|peer| peer.view.name.clone())
}
