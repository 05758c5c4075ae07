//! `peer.punch()`: through a relay for now, and direct as soon as the two ends have made a way through
//! their NATs. It counts as direct: the peer learns where this node is.

use rhai::{Dynamic, Engine, ImmutableString, Map, NativeCallContext};
use wormholes_proto::NodeId;

use super::{
    draft::{Draft, DraftTunnel},
    relay_called,
};
use crate::{api::objects::Peer, plan::TunnelKind, script::call::ScriptResult};

pub(super) fn register(engine: &mut Engine) {
    engine
        .register_fn("punch", |context: NativeCallContext, peer: Peer| {
            Draft::single(&context, tunnel(&peer, None))
        })
        .register_fn(
            "punch",
            |context: NativeCallContext, peer: Peer, options: Map| {
                let mut via = None;
                for (key, value) in &options {
                    check_punch_option(key, value)?;
                    via = Some(relay_of(&context, value)?);
                }
                ScriptResult::Ok(Draft::single(&context, tunnel(&peer, via)))
            },
        );
}

/// A tunnel that ends at `peer`, through `via` or any relay of the peer's.
pub(super) fn tunnel(peer: &Peer, via: Option<NodeId>) -> DraftTunnel {
    let mut tunnel = DraftTunnel::new(TunnelKind::Direct);
    tunnel.punch = true;
    tunnel.via = via;
    tunnel.to = Some(peer.view.id);
    tunnel
}

/// Whether `punch()` has an option of this name.
pub(crate) fn check_punch_option_name(name: &str) -> Result<(), String> {
    match name {
        "via" => Ok(()),
        _ => Err(format!("punch() knows the option via, not {name}")),
    }
}

/// Whether `punch()` has an option of this name, and takes this value for it.
pub(crate) fn check_punch_option(name: &str, value: &Dynamic) -> Result<(), String> {
    check_punch_option_name(name)?;
    match value.is::<Peer>() || value.is::<ImmutableString>() {
        true => Ok(()),
        false => Err("punch() takes a relay, or its name: punch(#{ via: \"r1\" })".to_owned()),
    }
}

fn relay_of(context: &NativeCallContext, value: &Dynamic) -> ScriptResult<NodeId> {
    if let Some(relay) = value.read_lock::<Peer>() {
        return Ok(relay.view.id);
    }
    let name = value.read_lock::<ImmutableString>();
    relay_called(context, name.as_deref().map_or("", ImmutableString::as_str))
}
