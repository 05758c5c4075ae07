//! What a store promises: in order, durable when it is said, and nothing by halves.

mod child;
mod failures;
mod files;
mod kills;
mod memory;
mod model;
mod pipeline;
mod sealed;

use std::{sync::mpsc::channel, time::Duration};

use super::{BatchId, Lost, Snapshot, Store, Writer, Writes};

/// Who writes, where nobody else does.
const ME: Writer = Writer(1);

/// Far beyond what anything here takes, on a machine that others use too.
const PATIENCE: Duration = Duration::from_secs(60);

fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Writes {
    let mut writes = Writes::default();
    writes.put(key.into(), Some(value.into()));
    writes
}

fn read(store: &Store, key: &str) -> Option<Vec<u8>> {
    store.snapshot().get(key.as_bytes()).unwrap()
}

/// Appends in the store's epoch of now, and waits until it is released.
fn append(store: &Store, writes: Writes) -> Result<(), Lost> {
    let (told, outcome) = channel();
    store.append(ME, store.epoch(), writes, move |outcome| {
        told.send(outcome).unwrap();
    });
    outcome.recv_timeout(PATIENCE).unwrap()
}

/// Waits until the store works again.
fn wait_for(store: &Store) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().build().unwrap();
    let works = async { tokio::time::timeout(PATIENCE, store.lost()).await };
    runtime.block_on(works).unwrap();
}
