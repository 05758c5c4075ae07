//! What the standard library of a wasip2 component imports whether it is used or not: inert, but for
//! standard error, which goes to the log, and random bytes, which come from the event. Files, sockets
//! and clocks are not there: a component that imports them is refused.

use wasmtime::{
    Engine, StoreContextMut,
    component::{
        ComponentType, Lift, Linker, LinkerInstance, Lower, Resource, ResourceType,
        types::ComponentItem,
    },
};

use super::State;

/// Interfaces that may be imported, without their versions.
const INERT: [&str; 16] = [
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
];

/// Standard error.
struct Stream;
/// What waits for it; it is always ready.
struct Pollable;
/// Why a stream failed; none ever does.
struct StreamFault;

#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
#[allow(dead_code, reason = "parts of the type that are never given")]
enum StreamError {
    #[component(name = "last-operation-failed")]
    Failed(Resource<StreamFault>),
    #[component(name = "closed")]
    Closed,
}

type Written<T> = wasmtime::Result<(Result<T, StreamError>,)>;

/// Whether a component may import this interface of WASI.
pub(super) fn is_inert(interface: &str) -> bool {
    let (name, version) = interface.split_once('@').unwrap_or((interface, ""));
    version.starts_with("0.2.") && INERT.contains(&name)
}

/// Defines what a panic and a hash map need, in the versions that a component imports; all else of
/// these interfaces traps when it is called.
pub(super) fn add_to<'a>(
    engine: &Engine,
    linker: &mut Linker<State>,
    imports: impl Iterator<Item = (&'a str, ComponentItem)>,
) -> wasmtime::Result<()> {
    for (import, item) in imports {
        let ComponentItem::ComponentInstance(interface) = item else {
            continue;
        };
        let mut instance = linker.instance(import)?;
        for (name, export) in interface.exports(engine) {
            if let ComponentItem::Resource(_) = export.ty {
                instance.resource(name, resource(name), |_, _| Ok(()))?;
            }
        }
        match import.split('@').next().unwrap_or_default() {
            "wasi:cli/environment" => environment(&mut instance)?,
            "wasi:cli/stderr" => stderr(&mut instance)?,
            "wasi:io/poll" => poll(&mut instance)?,
            "wasi:io/streams" => streams(&mut instance)?,
            "wasi:random/insecure-seed" => seed(&mut instance)?,
            "wasi:random/random" => random(&mut instance)?,
            _ => {}
        }
        for (name, export) in interface.exports(engine) {
            if let ComponentItem::ComponentFunc(_) = export.ty {
                let what = format!("{import}#{name}");
                // An error: it is defined above.
                let _ = instance.func_new(name, move |_, _, _, _| {
                    wasmtime::bail!("{what} is not there for plugins")
                });
            }
        }
    }
    Ok(())
}

/// The same type in each interface that speaks of it. But for standard error, none is ever made.
fn resource(name: &str) -> ResourceType {
    match name {
        "output-stream" => ResourceType::host::<Stream>(),
        "error" => ResourceType::host::<StreamFault>(),
        "pollable" => ResourceType::host::<Pollable>(),
        "input-stream" => ResourceType::host::<u16>(),
        "terminal-input" => ResourceType::host::<u32>(),
        "terminal-output" => ResourceType::host::<u64>(),
        _ => ResourceType::host::<()>(),
    }
}

fn environment(instance: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    instance.func_wrap("get-environment", |_, (): ()| {
        Ok((Vec::<(String, String)>::new(),))
    })?;
    instance.func_wrap("get-arguments", |_, (): ()| Ok((Vec::<String>::new(),)))?;
    instance.func_wrap("initial-cwd", |_, (): ()| Ok((None::<String>,)))
}

fn stderr(instance: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    instance.func_wrap("get-stderr", |_, (): ()| {
        Ok((Resource::<Stream>::new_own(0),))
    })
}

fn streams(instance: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    instance.func_wrap(
        "[method]output-stream.check-write",
        |_, (_,): (Resource<Stream>,)| -> Written<u64> { Ok((Ok(4096),)) },
    )?;
    instance.func_wrap(
        "[method]output-stream.subscribe",
        |_, (_,): (Resource<Stream>,)| Ok((Resource::<Pollable>::new_own(0),)),
    )?;
    for name in [
        "[method]output-stream.write",
        "[method]output-stream.blocking-write-and-flush",
    ] {
        instance.func_wrap(name, write)?;
    }
    for name in [
        "[method]output-stream.flush",
        "[method]output-stream.blocking-flush",
    ] {
        let flush = |_: StoreContextMut<'_, State>, (_,): (Resource<Stream>,)| -> Written<()> {
            Ok((Ok(()),))
        };
        instance.func_wrap(name, flush)?;
    }
    Ok(())
}

fn poll(instance: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    instance.func_wrap(
        "[method]pollable.ready",
        |_, (_,): (Resource<Pollable>,)| Ok((true,)),
    )?;
    instance.func_wrap(
        "[method]pollable.block",
        |_, (_,): (Resource<Pollable>,)| Ok(()),
    )
}

fn write(
    mut store: StoreContextMut<'_, State>,
    (_, bytes): (Resource<Stream>, Vec<u8>),
) -> Written<()> {
    store.data_mut().write_stderr(&bytes);
    Ok((Ok(()),))
}

fn random(instance: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    instance.func_wrap(
        "get-random-bytes",
        |mut store: StoreContextMut<'_, State>, (length,): (u64,)| {
            Ok((store.data_mut().wasi_random(length)?,))
        },
    )
}

fn seed(instance: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    instance.func_wrap(
        "insecure-seed",
        |mut store: StoreContextMut<'_, State>, (): ()| {
            let bytes = store.data_mut().wasi_random(16)?;
            let number = |bytes: &[u8]| {
                let shifted = bytes.iter().map(|byte| u64::from(*byte));
                shifted.fold(0, |number, byte| number << 8 | byte)
            };
            let (high, low) = bytes.split_at(bytes.len() / 2);
            Ok(((number(high), number(low)),))
        },
    )
}
