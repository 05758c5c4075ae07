//! Blobs as operators see them: handed to a command, and read.

use std::fmt;

use tokio::runtime;
use wormholes_proto::blob::BlobId;

use super::{Host, Shared};
use crate::{
    blobs::{Blobs, Incoming, Named},
    event::{ErrorCode, Principal, Refusal},
    mail::Owner,
    memory::fetches,
    message::decode,
    rows::{self, Home, Space, instance_key, principal_keys},
    store::{Snapshot, Store, StoreError},
    transaction::{DraftRow, HoldRow, Limit, Offered},
};

/// What one call reads.
const MAX_READ_BYTES: usize = 1 << 20;

/// A blob that comes from outside, for a command. Dropped, it is deleted if nobody holds it.
pub struct Upload {
    owner: Owner,
    threads: runtime::Handle,
    state: State,
}

enum State {
    Comes(Box<Incoming>),
    Is(Offered),
    /// The disk failed.
    Broke,
}

impl Host {
    /// Begins a blob for a command of this principal.
    ///
    /// # Errors
    /// There is no such principal, it may hold no blobs, or the disk failed.
    pub async fn upload(&self, instance: &str, principal: Principal) -> Result<Upload, Refusal> {
        let owner = self.shared.owner(instance, principal)?;
        if !owner.loaded.edition().plugin().granted.blobs {
            let none = "the plugin takes no blobs; `blobs = true` must stand in its manifest and in \
                        its grants";
            return Err(Refusal::new(ErrorCode::Denied, none));
        }
        let (blobs, threads) = (self.shared.blobs.clone(), self.shared.threads.clone());
        let begun = threads.spawn_blocking(move || blobs.receive());
        let begun = begun.await.map_err(|_| failed())?;
        let incoming = begun.map_err(|error| broke(&error))?;
        Ok(Upload {
            owner,
            threads,
            state: State::Comes(Box::new(incoming)),
        })
    }

    /// A part of a blob that a principal holds, and how many bytes it has in all; less where it ends
    /// before, and at most 1 MiB.
    ///
    /// # Errors
    /// It does not hold it, or the disk failed.
    pub async fn read_blob(
        &self,
        instance: &str,
        principal: Principal,
        id: BlobId,
        from: u64,
        bytes: usize,
    ) -> Result<(Vec<u8>, u64), Refusal> {
        let owner = self.shared.owner(instance, principal)?;
        // It stays until it is read.
        let pin = self.shared.blobs.pin(id);
        let length = held(&self.shared.store.snapshot(), owner.home, id)?;
        let blobs = self.shared.blobs.clone();
        let bytes = bytes.min(MAX_READ_BYTES);
        let read = move || {
            let _pin = pin;
            blobs.read((id, length), from, bytes)
        };
        let read = self.shared.threads.spawn_blocking(read).await;
        let read = read.map_err(|_| failed())?;
        Ok((read.map_err(|error| broke(&error))?, length))
    }
}

impl Upload {
    /// How many bytes came.
    pub fn length(&self) -> u64 {
        match &self.state {
            State::Comes(incoming) => incoming.length(),
            State::Is(offered) => offered.length,
            State::Broke => 0,
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// It would be too long, it ended, or the disk failed.
    pub async fn append(&mut self, bytes: Vec<u8>) -> Result<(), Refusal> {
        let most = self.owner.loaded.edition().manifest.limits.one_blob_bytes();
        if self.length().saturating_add(bytes.len() as u64) > most {
            self.owner.loaded.figures.hits(&[Limit::OneBlob]);
            return Err(Refusal::new(ErrorCode::Quota, Limit::OneBlob.mend()));
        }
        let mut incoming = self.take()?;
        let threads = self.threads.clone();
        let append = move || {
            let appended = incoming.append(&bytes);
            appended.map(|()| incoming)
        };
        let appended = threads.spawn_blocking(append).await.map_err(|_| failed())?;
        self.state = State::Comes(appended.map_err(|error| broke(&error))?);
        Ok(())
    }

    /// All bytes came: its name.
    ///
    /// # Errors
    /// It ended before, or the disk failed.
    pub async fn finish(&mut self) -> Result<BlobId, Refusal> {
        let incoming = self.take()?;
        let threads = self.threads.clone();
        let finished = threads.spawn_blocking(move || incoming.finish());
        let finished = finished.await.map_err(|_| failed())?;
        let (length, pin) = finished.map_err(|error| broke(&error))?;
        let id = pin.id();
        self.state = State::Is(Offered { pin, length });
        Ok(id)
    }

    /// Its name, once all bytes came.
    pub fn id(&self) -> Option<BlobId> {
        self.offered().map(|offered| offered.pin.id())
    }

    /// Whether it is for a command of this principal.
    pub fn is_for(&self, instance: &str, principal: &Principal) -> bool {
        &*self.owner.loaded.name == instance && self.owner.principal == *principal
    }

    pub(super) fn offered(&self) -> Option<Offered> {
        match &self.state {
            State::Is(offered) => Some(offered.clone()),
            State::Comes(_) | State::Broke => None,
        }
    }

    fn take(&mut self) -> Result<Box<Incoming>, Refusal> {
        match std::mem::replace(&mut self.state, State::Broke) {
            State::Comes(incoming) => Ok(incoming),
            state @ (State::Is(_) | State::Broke) => {
                self.state = state;
                let over = "the blob takes no more bytes";
                Err(Refusal::new(ErrorCode::Invalid, over))
            }
        }
    }
}

/// How many bytes a blob has that a principal holds, durably.
pub(crate) fn held(snapshot: &Snapshot, home: Home, id: BlobId) -> Result<u64, Refusal> {
    let row = snapshot.get(&home.key(Space::Blob, id.as_bytes()));
    let row = row.map_err(super::unreadable)?;
    let row = row.as_deref().and_then(decode::<HoldRow>);
    let none = || Refusal::new(ErrorCode::NotFound, "the plugin does not hold this blob");
    row.map(|row| row.length).ok_or_else(none)
}

/// All that rows of plugins name.
pub(super) fn named(snapshot: &Snapshot) -> Result<Named, StoreError> {
    let mut named = Named::default();
    for (_, number) in rows::all(snapshot, &instance_key(""))? {
        if let Ok(number) = number.try_into() {
            for home in homes(snapshot, u32::from_be_bytes(number))? {
                named_by(snapshot, home, &mut named)?;
            }
        }
    }
    Ok(named)
}

/// After a failure the store may have rows that were told to be lost: what they name stays.
pub(super) fn count_when_reopened(store: &Store, blobs: Blobs) {
    store.when_reopened(move |snapshot| match named(snapshot) {
        Ok(named) => blobs.count(&named.blobs),
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(
                error,
                "blobs cannot be counted; what is too many goes at a start"
            );
        }
    });
}

/// The principals of an instance that were woken once.
pub(super) fn homes(snapshot: &Snapshot, instance: u32) -> Result<Vec<Home>, StoreError> {
    let users = rows::all(snapshot, &principal_keys(instance))?.into_iter();
    let users = users.filter_map(|(_, number)| Some(u32::from_be_bytes(number.try_into().ok()?)));
    let home = |principal| Home {
        instance,
        principal,
    };
    Ok([0].into_iter().chain(users).map(home).collect())
}

/// All that rows of a principal name.
pub(super) fn named_by(
    snapshot: &Snapshot,
    home: Home,
    named: &mut Named,
) -> Result<(), StoreError> {
    for (id, _) in rows::all(snapshot, &home.key(Space::Blob, &[]))? {
        named.blobs.extend(id.try_into().map(BlobId::from_bytes));
    }
    for (id, row) in fetches(home, snapshot)? {
        named.blobs.push(row.blob());
        named.fetches.push((home, id));
    }
    for (_, row) in rows::all(snapshot, &home.key(Space::Draft, &[]))? {
        let row = decode::<DraftRow>(&row);
        named.drafts.extend(row.map(|row| (home, row.number)));
    }
    Ok(())
}

impl Shared {
    /// The rows of these principals are gone since that epoch of the store, and with them what they
    /// named.
    pub(super) fn forget_blobs(&self, homes: &[Home], named: &Named, epoch: u64) {
        // In a later one it was counted without them.
        if self.store.epoch() == epoch {
            let gone = named.blobs.iter().map(|id| (*id, false));
            self.blobs.changed(gone);
        }
        for home in homes {
            self.blobs.forget_home(*home);
        }
    }
}

fn broke(error: &std::io::Error) -> Refusal {
    tracing::warn!(%error, "the disk failed on a blob");
    failed()
}

fn failed() -> Refusal {
    Refusal::new(ErrorCode::Unavailable, "the blob cannot be written or read")
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").finish_non_exhaustive()
    }
}
