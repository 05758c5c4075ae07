//! Blobs that an event puts, reads, holds, releases and fetches. What it did with files is done when
//! its handler has succeeded, and is on disk before its rows are.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use wormholes_proto::blob::{BLOB_ID_BYTES, BlobHasher, BlobId, MAX_BLOB_BYTES};

use super::{Effects, Limit, ROW_BYTES, Transaction, drafts::Open, invalid, rows::STEP};
use crate::{
    blobs::{Blobs, FileWork, Pin, charged},
    event::{ErrorCode, Event, Principal, Refusal, Wish},
    memory::Memory,
    message::{OutKey, Parcel, Way, decode, encode},
    rows::{Space, own_key},
    store::StoreError,
};

/// What one call reads, and what one takes: far less than would break the instance.
pub(super) const MAX_CALL_BYTES: usize = 1 << 20;
/// Blobs that one `list` gives.
const MAX_LISTED: usize = 4096;
/// What a row takes that names a blob.
pub(super) const HOLD_BYTES: usize = BLOB_ID_BYTES + 12;

/// An answer for the plugin, or a fault of the store.
type Told<T> = Result<Result<T, Refusal>, StoreError>;

/// A blob that a principal holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HoldRow {
    pub(crate) length: u64,
    /// How often it is held.
    pub(crate) holds: u32,
}

/// A blob that a principal fetches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FetchRow {
    pub(crate) blob: [u8; BLOB_ID_BYTES],
    /// From whom, and as whom.
    pub(crate) key: OutKey,
    pub(crate) way: Way,
    pub(crate) max_bytes: u64,
    pub(crate) deadline_ms: Option<u64>,
}

/// A blob that somebody handed to an event.
#[derive(Debug, Clone)]
pub(crate) struct Offered {
    pub(crate) pin: Pin,
    pub(crate) length: u64,
}

/// What an event did with blobs.
#[derive(Debug, Default)]
pub(super) struct BlobWork {
    /// Of the event: it may hold them.
    offered: BTreeMap<BlobId, u64>,
    /// Which came, or does not.
    fetched: Option<BlobId>,
    /// Written in this event.
    puts: BTreeMap<BlobId, Bytes>,
    pub(super) files: Vec<FileWork>,
    pins: Vec<Pin>,
    /// Whether a row named each before, and whether it does after it.
    named: BTreeMap<BlobId, (bool, bool)>,
    pub(super) bytes: i64,
    fetches: BTreeMap<u64, Option<FetchRow>>,
    pub(super) drafts: BTreeMap<Arc<str>, Open>,
    parcels: Vec<Parcel>,
    /// Files of drafts that are no more.
    pub(super) gone: Vec<u64>,
}

/// What becomes of blobs when an event is real.
#[derive(Debug, Default)]
pub(crate) struct BlobEffects {
    /// By how much more the principal holds.
    pub(crate) bytes: i64,
    /// Kept until the rows are durable.
    pub(crate) pins: Vec<Pin>,
    /// Rows that name blobs: whether each is there.
    pub(crate) named: Vec<(BlobId, bool)>,
    /// Files of fetches and drafts that nobody needs then.
    pub(crate) fetches: Vec<u64>,
    pub(crate) drafts: Vec<u64>,
}

impl FetchRow {
    pub(crate) fn blob(&self) -> BlobId {
        BlobId::from_bytes(self.blob)
    }

    /// What is kept free for it.
    pub(crate) fn reserved(&self) -> i64 {
        signed(charged(self.max_bytes))
    }
}

impl Transaction {
    /// What the event brings of blobs.
    pub(super) fn consume_blobs(&mut self, event: &Event) -> Result<(), StoreError> {
        match event {
            Event::Request(request) => {
                let Wish::Command(command) = &request.wish else {
                    return Ok(());
                };
                let offered = command.blobs.iter();
                self.blobs.offered = offered.map(|it| (it.pin.id(), it.length)).collect();
                self.blobs.pins = command.blobs.iter().map(|it| it.pin.clone()).collect();
            }
            Event::BlobFetched { id, outcome } => {
                let Some(row) = self.memory.blob_fetches.get(id).cloned() else {
                    return Ok(());
                };
                self.blobs.fetched = Some(row.blob());
                // Nothing comes of it any more, whatever the handler says.
                self.blobs.bytes -= row.reserved();
                self.blobs.fetches.insert(*id, None);
                if let Ok((length, pin)) = outcome {
                    self.blobs.pins.push(pin.clone());
                    self.hold_once_more(row.blob(), *length)?;
                }
            }
            Event::Migrate { .. }
            | Event::Init(_)
            | Event::Timer { .. }
            | Event::Canceled { .. }
            | Event::Message(_)
            | Event::Note { .. }
            | Event::Fetched { .. }
            | Event::Socket { .. }
            | Event::Datagram(_)
            | Event::Answer { .. }
            | Event::Presence { .. }
            | Event::Usage(_) => {}
        }
        Ok(())
    }

    /// Which blob the event tells of.
    pub(crate) fn fetched_blob(&self) -> Option<BlobId> {
        self.blobs.fetched
    }

    /// A blob of these bytes, which is held once more.
    pub(crate) fn blob_put(&mut self, bytes: Vec<u8>) -> Told<BlobId> {
        if let Err(refusal) = self.check_blobs() {
            return Ok(Err(refusal));
        }
        if bytes.len() > MAX_CALL_BYTES {
            return Ok(Err(too_much()));
        }
        let length = bytes.len() as u64;
        if length > self.ground.limits.one_blob_bytes() {
            return Ok(Err(self.hit(Limit::OneBlob)));
        }
        if let Err(refusal) = self.charge(file_bytes(bytes.len()) + ROW_BYTES + HOLD_BYTES) {
            return Ok(Err(refusal));
        }
        let mut hasher = BlobHasher::new();
        hasher.update(&bytes);
        let tree = hasher.finish();
        let id = tree.id();
        if let Err(refusal) = self.hold(id, length)? {
            return Ok(Err(refusal));
        }
        let bytes = Bytes::from(bytes);
        self.blobs.puts.insert(id, bytes.clone());
        self.blobs.files.push(FileWork::Put(tree, bytes));
        Ok(Ok(id))
    }

    /// Holds a blob once more that the principal holds, or that the event brought.
    pub(crate) fn blob_hold(&mut self, id: BlobId) -> Told<()> {
        if let Err(refusal) = self.check_blobs() {
            return Ok(Err(refusal));
        }
        let Some(length) = self.blob_length(id)? else {
            return Ok(Err(unknown()));
        };
        if let Err(refusal) = self.charge(ROW_BYTES + HOLD_BYTES) {
            return Ok(Err(refusal));
        }
        self.hold(id, length)
    }

    /// Holds a blob once less; not at all, it is deleted.
    pub(crate) fn blob_release(&mut self, id: BlobId) -> Told<()> {
        if let Err(refusal) = self.check_blobs() {
            return Ok(Err(refusal));
        }
        let Some(row) = self.hold_row(id)? else {
            return Ok(Err(unknown()));
        };
        if let Err(refusal) = self.charge(ROW_BYTES + HOLD_BYTES) {
            return Ok(Err(refusal));
        }
        let holds = row.holds.saturating_sub(1);
        let left = (holds > 0).then_some(HoldRow { holds, ..row });
        self.set_hold(id, Some(row), left);
        Ok(Ok(()))
    }

    /// How many bytes a blob has that the principal holds, or that the event brought.
    pub(crate) fn blob_length(&self, id: BlobId) -> Result<Option<u64>, StoreError> {
        let held = self.hold_row(id)?.map(|row| row.length);
        Ok(held.or_else(|| self.blobs.offered.get(&id).copied()))
    }

    /// A part of such a blob; less where it ends before.
    pub(crate) fn blob_read(
        &self,
        blobs: &Blobs,
        id: BlobId,
        from: u64,
        length: u32,
    ) -> Told<Vec<u8>> {
        let Some(whole) = self.blob_length(id)? else {
            return Ok(Err(unknown()));
        };
        let length = length as usize;
        if length > MAX_CALL_BYTES {
            return Ok(Err(invalid("one call reads at most 1 MiB; read in parts")));
        }
        if let Some(bytes) = self.blobs.puts.get(&id) {
            let from = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
            let to = from.saturating_add(length).min(bytes.len());
            return Ok(Ok(bytes.get(from..to).unwrap_or_default().to_vec()));
        }
        let is_sealed_now =
            |work: &FileWork| matches!(work, FileWork::Seal(_, tree) if tree.id() == id);
        if self.blobs.files.iter().any(is_sealed_now) {
            let later = "this event sealed the blob: a later one can read it";
            return Ok(Err(Refusal::new(ErrorCode::Unavailable, later)));
        }
        Ok(blobs.read((id, whole), from, length).map_err(|error| {
            tracing::warn!(%error, "a blob cannot be read");
            Refusal::new(ErrorCode::Unavailable, "the blob's file cannot be read")
        }))
    }

    /// The blobs that the principal holds, in the order of their names.
    pub(crate) fn blob_list(
        &self,
        after: Option<BlobId>,
        limit: u32,
    ) -> Result<Vec<(BlobId, HoldRow)>, StoreError> {
        let home = self.ground.home;
        let after = after.map(|id| home.key(Space::Blob, id.as_bytes()));
        let limit = (limit as usize).min(MAX_LISTED);
        let prefix = home.key(Space::Blob, &[]);
        let rows = self
            .view()
            .scan(&prefix, after.as_deref(), false, limit, usize::MAX)?;
        let held = rows.iter().filter_map(|(key, row)| {
            let id = own_key(key).try_into().ok()?;
            Some((BlobId::from_bytes(id), decode(row)?))
        });
        Ok(held.collect())
    }

    /// Has a blob fetched; the id of the event that tells what came of it.
    pub(crate) fn blob_fetch(
        &mut self,
        blob: BlobId,
        (key, way): (OutKey, Way),
        max_bytes: u64,
        deadline_ms: Option<u64>,
    ) -> Result<u64, Refusal> {
        self.check_blobs()?;
        let key = self.check_giver(key, &way)?;
        if max_bytes > self.ground.limits.one_blob_bytes().min(MAX_BLOB_BYTES) {
            return Err(self.hit(Limit::OneBlob));
        }
        let own = self.blobs.fetches.iter();
        let new = own.clone().filter(|(_, row)| row.is_some()).count();
        let gone =
            own.filter(|(id, row)| row.is_none() && self.memory.blob_fetches.contains_key(*id));
        let open = (self.memory.blob_fetches.len() + new).saturating_sub(gone.count());
        if open >= self.ground.limits.blob_fetches as usize {
            return Err(self.hit(Limit::BlobFetches));
        }
        let row = FetchRow {
            blob: *blob.as_bytes(),
            key,
            way,
            max_bytes,
            deadline_ms,
        };
        self.check_room(row.reserved())?;
        self.charge(ROW_BYTES + encode(&row).len())?;
        self.blobs.bytes += row.reserved();
        let id = self.next_message();
        self.blobs.fetches.insert(id, Some(row.clone()));
        self.blobs.parcels.push(Parcel::FetchBlob {
            id,
            row: Box::new(row),
        });
        Ok(id)
    }

    /// Ends a fetch, of which no event tells then.
    pub(crate) fn blob_cancel(&mut self, id: u64) -> Result<(), Refusal> {
        self.check_blobs()?;
        let row = match self.blobs.fetches.get(&id) {
            Some(own) => own.clone(),
            None => self.memory.blob_fetches.get(&id).cloned(),
        };
        let Some(row) = row else {
            let none = "there is no such fetch, or what came of it was told";
            return Err(Refusal::new(ErrorCode::NotFound, none));
        };
        self.charge(ROW_BYTES)?;
        self.blobs.bytes -= row.reserved();
        self.blobs.fetches.insert(id, None);
        let parcels = &mut self.blobs.parcels;
        let before = parcels.len();
        parcels.retain(|parcel| !matches!(parcel, Parcel::FetchBlob { id: of, .. } if *of == id));
        // One that this event began, nobody knows of.
        if parcels.len() == before {
            parcels.push(Parcel::Unfetch { id });
        }
        Ok(())
    }

    /// Whether files have something to do.
    pub(crate) fn has_file_work(&self) -> bool {
        !self.blobs.files.is_empty() || !self.blobs.drafts.is_empty()
    }

    /// Files that are on disk stay until the event is real.
    pub(crate) fn keep_pins(&mut self, pins: Vec<Pin>) {
        self.blobs.pins.extend(pins);
    }

    pub(super) fn check_blobs(&self) -> Result<(), Refusal> {
        self.check_writable()?;
        if self.runs_steps {
            return Err(Refusal::new(ErrorCode::Denied, STEP));
        }
        Ok(())
    }

    /// Holds a blob once more, if there is room for it.
    pub(super) fn hold(&mut self, id: BlobId, length: u64) -> Told<()> {
        if self.hold_row(id)?.is_none()
            && let Err(refusal) = self.check_room(signed(charged(length)))
        {
            return Ok(Err(refusal));
        }
        self.hold_once_more(id, length)?;
        Ok(Ok(()))
    }

    fn hold_once_more(&mut self, id: BlobId, length: u64) -> Result<(), StoreError> {
        let before = self.hold_row(id)?;
        let holds = before.map_or(0, |row| row.holds).saturating_add(1);
        self.set_hold(id, before, Some(HoldRow { length, holds }));
        Ok(())
    }

    fn hold_row(&self, id: BlobId) -> Result<Option<HoldRow>, StoreError> {
        let key = self.ground.home.key(Space::Blob, id.as_bytes());
        Ok(self.view().get(&key)?.as_deref().and_then(decode))
    }

    fn set_hold(&mut self, id: BlobId, before: Option<HoldRow>, after: Option<HoldRow>) {
        let size = |row: Option<HoldRow>| row.map_or(0, |row| signed(charged(row.length)));
        self.blobs.bytes += size(after) - size(before);
        let named = self.blobs.named.entry(id);
        named.or_insert((before.is_some(), false)).1 = after.is_some();
        let key = self.ground.home.key(Space::Blob, id.as_bytes());
        self.rows.put(key, after.map(|row| encode(&row)));
    }

    /// Whether the principal may hold so much more.
    pub(super) fn check_room(&mut self, more: i64) -> Result<(), Refusal> {
        let change = self.blobs.bytes.saturating_add(more);
        let own = self.memory.blob_bytes.saturating_add_signed(change);
        let limits = &self.ground.limits;
        let is_user = self.stamp.principal != Principal::Node;
        let is_full = is_user && own > limits.user_blob_bytes()
            || own.saturating_add(self.ground.others_hold) > limits.blob_bytes();
        if more > 0 && is_full {
            return Err(self.hit(Limit::Blobs));
        }
        Ok(())
    }
}

impl BlobWork {
    /// Makes what was done real in memory, and in what becomes durable.
    pub(super) fn take_effect(
        self,
        ground: &super::Ground,
        memory: &mut Memory,
        effects: &mut Effects,
    ) {
        let home = ground.home;
        for (id, row) in self.fetches {
            let key = home.key(Space::Fetch, &id.to_be_bytes());
            let before = match &row {
                Some(row) => memory.blob_fetches.insert(id, row.clone()),
                None => memory.blob_fetches.remove(&id),
            };
            match (&before, &row) {
                (None, Some(row)) => effects.blobs.named.push((row.blob(), true)),
                (Some(before), None) => {
                    effects.blobs.named.push((before.blob(), false));
                    effects.blobs.fetches.push(id);
                }
                // It came and went in this event.
                (None, None) | (Some(_), Some(_)) => continue,
            }
            effects.writes.put(key, row.as_ref().map(encode));
        }
        for (name, draft) in self.drafts {
            match draft {
                Open::Is(..) => memory.drafts.insert(name),
                Open::Gone => memory.drafts.remove(&name),
            };
        }
        let named = self.named.into_iter();
        let changed = named.filter(|(_, (was, is))| was != is);
        effects
            .blobs
            .named
            .extend(changed.map(|(id, (_, is))| (id, is)));
        effects.blobs.drafts = self.gone;
        effects.blobs.pins = self.pins;
        effects.blobs.bytes = self.bytes;
        memory.blob_bytes = memory.blob_bytes.saturating_add_signed(self.bytes);
        effects.parcels.extend(self.parcels);
    }

    /// Whether the principal holds more or less by it.
    pub(super) fn changes_bytes(&self) -> bool {
        self.bytes != 0
    }
}

pub(super) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// What a file that is written counts for: a block at least, since each is a wait for the disk, however
/// short it is.
pub(super) fn file_bytes(length: usize) -> usize {
    length.max(usize::try_from(charged(0)).unwrap_or(usize::MAX))
}

pub(super) fn too_much() -> Refusal {
    invalid("one call takes at most 1 MiB; append more of it to a draft")
}

fn unknown() -> Refusal {
    let unknown = "this principal does not hold the blob, and the event did not bring it";
    Refusal::new(ErrorCode::NotFound, unknown)
}
