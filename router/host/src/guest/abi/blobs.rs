//! Blobs: the imports that hold, write, read and fetch them, and the handlers that hear of them.

use wasmtime::Store;
use wormholes_proto::blob::BlobId;

use super::{
    Answer, State, handlers,
    messages::address,
    told, types,
    wormholes::plugin::blobs::{Blob, Hash, Host, Way as GivenWay},
};
use crate::{
    blobs::{Blobs, Pin},
    event::{ErrorCode, Refusal},
    guest::exports::Handlers,
    message::{Address, Identity, OutKey, Way},
    transaction::Transaction,
};

impl State {
    /// The event that runs, and the files of the node around it.
    fn holds(&mut self) -> wasmtime::Result<(&mut Transaction, Blobs)> {
        self.unrecorded_event()?;
        let blobs = self.plugin.around.blobs.clone();
        let blobs = blobs.ok_or_else(|| wasmtime::Error::msg("there is no node"))?;
        Ok((self.unrecorded_event()?, blobs))
    }
}

/// Ends with the refusal of a call, if it names no blob.
macro_rules! named {
    ($hash:expr) => {
        match named($hash) {
            Ok(id) => id,
            Err(refusal) => return Ok(told(Err(refusal))),
        }
    };
}

impl Host for State {
    fn put(&mut self, bytes: Vec<u8>) -> Answer<Hash> {
        Ok(told(self.unrecorded_event()?.blob_put(bytes)?.map(name)))
    }

    fn append(&mut self, draft: String, bytes: Vec<u8>) -> Answer<u64> {
        let (event, blobs) = self.holds()?;
        Ok(told(event.draft_append(&blobs, &draft, &bytes)?))
    }

    fn seal(&mut self, draft: String) -> Answer<Hash> {
        let (event, blobs) = self.holds()?;
        Ok(told(event.draft_seal(&blobs, &draft)?.map(name)))
    }

    fn discard(&mut self, draft: String) -> Answer<()> {
        Ok(told(self.unrecorded_event()?.draft_discard(&draft)?))
    }

    fn length(&mut self, hash: Hash) -> wasmtime::Result<Option<u64>> {
        let event = self.unrecorded_event()?;
        Ok(match named(hash) {
            Ok(id) => event.blob_length(id)?,
            Err(_) => None,
        })
    }

    fn read(&mut self, hash: Hash, offset: u64, length: u32) -> Answer<Vec<u8>> {
        let id = named!(hash);
        let (event, blobs) = self.holds()?;
        Ok(told(event.blob_read(&blobs, id, offset, length)?))
    }

    fn hold(&mut self, hash: Hash) -> Answer<()> {
        let id = named!(hash);
        Ok(told(self.unrecorded_event()?.blob_hold(id)?))
    }

    fn release(&mut self, hash: Hash) -> Answer<()> {
        let id = named!(hash);
        Ok(told(self.unrecorded_event()?.blob_release(id)?))
    }

    fn scan(&mut self, after: Option<Hash>, limit: u32) -> wasmtime::Result<Vec<Blob>> {
        let after = after.map(named).transpose();
        let Ok(after) = after else {
            return Ok(Vec::new());
        };
        let held = self.unrecorded_event()?.blob_list(after, limit)?;
        let held = held.into_iter().map(|(id, row)| Blob {
            hash: name(id),
            length: row.length,
            holds: row.holds,
        });
        Ok(held.collect())
    }

    fn fetch(
        &mut self,
        hash: Hash,
        from: types::Address,
        way: GivenWay,
        max_bytes: u64,
        deadline_ms: Option<u64>,
    ) -> Answer<u64> {
        let id = named!(hash);
        let to = match address(from) {
            Ok(to) => to,
            Err(refusal) => return Ok(told(Err(refusal))),
        };
        let key = OutKey {
            to,
            protocol: "".into(),
            sender: match way.sender {
                types::Identity::Node => Identity::Node,
                types::Identity::Alias(name) => Identity::Alias(name.into()),
            },
        };
        let way = Way {
            role: way.role.into(),
            label: way.label.into(),
            isolation: way.isolation.into(),
        };
        let event = self.unrecorded_event()?;
        Ok(told(event.blob_fetch(
            id,
            (key, way),
            max_bytes,
            deadline_ms,
        )))
    }

    fn cancel(&mut self, id: u64) -> Answer<()> {
        Ok(told(self.unrecorded_event()?.blob_cancel(id)))
    }
}

/// Asks whether somebody may have a blob.
pub(in crate::guest) async fn call_may_read(
    handler: &handlers::on_blob::Guest,
    store: &mut Store<State>,
    stamp: &types::Event,
    (from, own): (&Address, &Identity),
    blob: BlobId,
) -> wasmtime::Result<Result<bool, types::Error>> {
    let (from, own) = (from.into(), own.into());
    handler
        .call_may_read(store, stamp, &from, &own, &name(blob))
        .await
}

/// Tells what came of a fetch.
pub(in crate::guest) async fn call_blob_fetched(
    handlers: &Handlers,
    store: &mut Store<State>,
    (id, outcome): (u64, Result<&(u64, Pin), &Refusal>),
    stamp: &types::Event,
) -> wasmtime::Result<Result<(), types::Error>> {
    let Some(handler) = &handlers.blob else {
        return Ok(Err(Refusal::no_handler("on-blob").into()));
    };
    let event = store.data().transaction.as_deref();
    let blob = event.and_then(Transaction::fetched_blob);
    let blob = blob.map(name).unwrap_or_default();
    let outcome = outcome.map(|(length, _)| *length);
    let outcome = outcome.map_err(|refusal| types::Error::from(refusal.clone()));
    handler
        .call_fetched(store, stamp, id, &blob, outcome.as_ref().copied())
        .await
}

/// # Errors
/// It names no blob.
fn named(hash: Hash) -> Result<BlobId, Refusal> {
    let bytes = hash.try_into();
    let short = |_| Refusal::new(ErrorCode::Invalid, "a blob's hash has 32 bytes");
    bytes.map(BlobId::from_bytes).map_err(short)
}

fn name(id: BlobId) -> Hash {
    id.as_bytes().to_vec()
}
