//! What a component may import.

use wasmtime::component::types::ComponentItem;
use wormholes_proto::manifest::Capabilities;

use super::{CodeError, wasi};

/// What ABI this is.
const PACKAGE: &str = "wormholes:plugin/";
/// Interfaces that every plugin may import.
const FREE: [&str; 4] = ["types", "http-types", "requests", "system"];

/// The interface's name, if it is one of ours: `state` of `wormholes:plugin/state@0.1.0`.
pub(super) fn own_interface(name: &str) -> Option<&str> {
    let (interface, _) = name.strip_prefix(PACKAGE)?.split_once('@')?;
    Some(interface)
}

/// # Errors
/// It needs a grant that is not there, or nobody has it.
pub(super) fn check_import(
    engine: &wasmtime::Engine,
    name: &str,
    item: &ComponentItem,
    granted: &Capabilities,
) -> Result<(), CodeError> {
    let unknown = || CodeError::Unknown(name.to_owned());
    let ComponentItem::ComponentInstance(instance) = item else {
        return Err(unknown());
    };
    let Some(interface) = own_interface(name) else {
        return wasi::is_inert(name).then_some(()).ok_or_else(unknown);
    };
    if FREE.contains(&interface) {
        return Ok(());
    }
    let (capability, is_granted) = granted.for_interface(interface).ok_or_else(unknown)?;
    // Words that another interface borrows give nothing.
    let mut exports = instance.exports(engine);
    let gives = exports.any(|(_, export)| !matches!(export.ty, ComponentItem::Type(_)));
    if is_granted || !gives {
        return Ok(());
    }
    Err(CodeError::NotGranted {
        interface: interface.to_owned(),
        capability,
    })
}
