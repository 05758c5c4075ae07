//! Blobs: the imports that hold, write, read and fetch them, and the exports that hear of them.

use super::{
    Exports, Held as HeldPlugin,
    bindings::{
        exports::wormholes::plugin::on_blob,
        wormholes::plugin::{blobs, types},
    },
    told,
};
use crate::{
    Error, Result,
    blob::{Blob, BlobFetch, BlobFetched, Held},
};

pub(super) fn put(bytes: &[u8]) -> Result<[u8; 32]> {
    hash(blobs::put(bytes))
}

pub(super) fn append(draft: &str, bytes: &[u8]) -> Result<u64> {
    blobs::append(draft, bytes).map_err(Error::from)
}

pub(super) fn seal(draft: &str) -> Result<[u8; 32]> {
    hash(blobs::seal(draft))
}

pub(super) fn discard(draft: &str) -> Result<()> {
    blobs::discard(draft).map_err(Error::from)
}

pub(super) fn length(blob: &[u8; 32]) -> Option<u64> {
    blobs::length(blob)
}

pub(super) fn read(blob: &[u8; 32], offset: u64, length: u32) -> Result<Vec<u8>> {
    blobs::read(blob, offset, length).map_err(Error::from)
}

pub(super) fn hold(blob: &[u8; 32]) -> Result<()> {
    blobs::hold(blob).map_err(Error::from)
}

pub(super) fn release(blob: &[u8; 32]) -> Result<()> {
    blobs::release(blob).map_err(Error::from)
}

pub(super) fn page(after: Option<&[u8; 32]>, limit: u32) -> Vec<Held> {
    let held = blobs::scan(after.map(<[u8; 32]>::as_slice), limit).into_iter();
    let held = held.map(|held| Held {
        blob: Blob::named(held.hash.try_into().unwrap_or_default()),
        length: held.length,
        holds: held.holds,
    });
    held.collect()
}

pub(super) fn fetch(fetch: BlobFetch) -> Result<u64> {
    let (from, way) = (fetch.from.into(), fetch.way.into());
    let begun = blobs::fetch(
        fetch.blob.hash(),
        &from,
        &way,
        fetch.max_bytes,
        fetch.deadline_ms,
    );
    begun.map_err(Error::from)
}

pub(super) fn cancel(id: u64) -> Result<()> {
    blobs::cancel(id).map_err(Error::from)
}

fn hash(told: std::result::Result<Vec<u8>, types::Error>) -> Result<[u8; 32]> {
    let bytes = told.map_err(Error::from)?;
    let other = |_| Error::failed("the node gave another length; build for its ABI");
    bytes.try_into().map_err(other)
}

impl<P: HeldPlugin> on_blob::Guest for Exports<P> {
    fn may_read(
        event: types::Event,
        asker: types::Address,
        own: types::Identity,
        hash: Vec<u8>,
    ) -> std::result::Result<bool, types::Error> {
        told(P::with(|plugin| {
            let blob = Blob::named(hash.try_into().unwrap_or_default());
            plugin.may_read(&event.into(), &asker.into(), &own.into(), &blob)
        }))
    }

    fn fetched(
        event: types::Event,
        id: u64,
        hash: Vec<u8>,
        outcome: std::result::Result<u64, types::Error>,
    ) -> std::result::Result<(), types::Error> {
        let fetched = BlobFetched {
            id,
            blob: Blob::named(hash.try_into().unwrap_or_default()),
            outcome: outcome.map_err(Error::from),
        };
        told(P::with(|plugin| {
            plugin.blob_fetched(&mut event.into(), fetched)
        }))
    }
}
