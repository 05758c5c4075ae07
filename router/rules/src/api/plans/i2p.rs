//! `i2p()`: a stream of I2P, and its settings.

use rhai::{Dynamic, Engine, ImmutableString, Map, NativeCallContext};
use wormholes_proto::{
    ServiceName,
    sam::{MAX_TUNNEL_LENGTH, MAX_TUNNEL_QUANTITY},
};

use super::{
    draft::{Draft, DraftTunnel, KEPT_AND_ISOLATED},
    isolation_keys,
};
use crate::{
    plan::{Marks, TunnelKind},
    script::call::ScriptResult,
};

pub(super) fn register(engine: &mut Engine) {
    engine
        .register_fn("i2p", |context: NativeCallContext| {
            i2p(&context, &Map::new())
        })
        .register_fn("i2p", |context: NativeCallContext, settings: Map| {
            i2p(&context, &settings)
        });
}

fn i2p(context: &NativeCallContext, settings: &Map) -> ScriptResult<Draft> {
    check_i2p_settings(settings.keys().map(|key| key.as_str()))?;
    let mut tunnel = DraftTunnel::new(TunnelKind::I2p);
    let mut marks = Marks::default();
    for (key, value) in settings {
        check_i2p_setting(key, value)?;
        match key.as_str() {
            "isolate" => marks.isolate = isolation_keys(value)?,
            "keep" => tunnel.i2p.keep = Some(value.to_string()),
            "length" => tunnel.i2p.length = small(value),
            _ => tunnel.i2p.quantity = small(value),
        }
    }
    let mut draft = Draft::single(context, tunnel);
    draft.mark(|fresh| {
        fresh.clone_from(&marks);
        Ok(())
    })
}

/// Whether `i2p()` takes settings of these names together.
pub(crate) fn check_i2p_settings<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let excluding = names.filter(|name| matches!(*name, "keep" | "isolate"));
    match excluding.count() {
        0 | 1 => Ok(()),
        _ => Err(KEPT_AND_ISOLATED.to_owned()),
    }
}

/// Whether `i2p()` has a setting of this name.
pub(crate) fn check_i2p_setting_name(name: &str) -> Result<(), String> {
    match name {
        "isolate" | "keep" | "length" | "quantity" => Ok(()),
        _ => Err(format!(
            "i2p() knows the settings isolate, keep, length and quantity, not {name}"
        )),
    }
}

/// Whether `i2p()` has a setting of this name, and takes this value for it.
pub(crate) fn check_i2p_setting(name: &str, value: &Dynamic) -> Result<(), String> {
    check_i2p_setting_name(name)?;
    let within = |low: u8, high: u8| small(value).is_some_and(|it| (low..=high).contains(&it));
    match name {
        "isolate" => isolation_keys(value).map(drop),
        "keep" if is_kept_name(value) => Ok(()),
        "keep" => Err(
            "i2p() keeps a destination by a name of 1 to 63 characters of a-z, 0-9 and '-'"
                .to_owned(),
        ),
        "length" if within(0, MAX_TUNNEL_LENGTH) => Ok(()),
        "length" => Err(format!(
            "i2p() takes a length of 0 to {MAX_TUNNEL_LENGTH} hops"
        )),
        _ if within(1, MAX_TUNNEL_QUANTITY) => Ok(()),
        _ => Err(format!(
            "i2p() takes a quantity of 1 to {MAX_TUNNEL_QUANTITY} tunnels"
        )),
    }
}

/// As of services: a published one has the kept destination of its name.
fn is_kept_name(value: &Dynamic) -> bool {
    value
        .read_lock::<ImmutableString>()
        .is_some_and(|name| ServiceName::parse(&name).is_ok())
}

fn small(value: &Dynamic) -> Option<u8> {
    value
        .as_int()
        .ok()
        .and_then(|number| number.try_into().ok())
}
