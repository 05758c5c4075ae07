//! Drafts: blobs that events write, one after the other.

use std::mem;

use serde::{Deserialize, Serialize};
use wormholes_proto::blob::{BLOB_ID_BYTES, BlobHasher, BlobId, PIECE_BYTES};

use super::{
    Limit, ROW_BYTES, Transaction,
    blobs::{HOLD_BYTES, MAX_CALL_BYTES, file_bytes, signed, too_much},
    invalid,
};
use crate::{
    blobs::{Blobs, DraftFile, FileWork, charged},
    event::{ErrorCode, Refusal},
    message::{decode, encode},
    rows::{Home, Space},
    store::StoreError,
};

/// Names of drafts.
const MAX_NAME_BYTES: usize = 128;

/// An answer for the plugin, or a fault of the store.
type Told<T> = Result<Result<T, Refusal>, StoreError>;

/// A draft: its file, how many bytes there are, and the values of all its pieces but the last one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DraftRow {
    pub(crate) number: u64,
    pub(crate) length: u64,
    pub(crate) values: Vec<[u8; BLOB_ID_BYTES]>,
}

/// A draft in this event.
#[derive(Debug, Clone)]
pub(super) enum Open {
    /// With what was appended to it.
    Is(DraftRow, Vec<u8>),
    /// It is no more.
    Gone,
}

impl Transaction {
    /// Appends to a draft, which begins with that; how many bytes it has.
    pub(crate) fn draft_append(&mut self, blobs: &Blobs, name: &str, bytes: &[u8]) -> Told<u64> {
        if let Err(refusal) = self.check_blobs().and_then(|()| check_name(name)) {
            return Ok(Err(refusal));
        }
        if bytes.len() > MAX_CALL_BYTES {
            return Ok(Err(too_much()));
        }
        let row = self.draft(name)?.unwrap_or_default();
        let is_new = row.number == 0;
        if is_new && self.open_drafts() >= self.ground.limits.blob_fetches as usize {
            return Ok(Err(self.hit(Limit::BlobFetches)));
        }
        let before = row.length + self.appended(name).len() as u64;
        let length = before + bytes.len() as u64;
        if length > self.ground.limits.one_blob_bytes() {
            return Ok(Err(self.hit(Limit::OneBlob)));
        }
        let had = if is_new { 0 } else { signed(charged(before)) };
        let more = signed(charged(length)) - had;
        // Its row is written once, with all of its values.
        let row_bytes = match self.blobs.drafts.contains_key(name) {
            true => 0,
            false => ROW_BYTES + row.values.len() * BLOB_ID_BYTES,
        };
        let fits = self.check_room(more);
        if let Err(refusal) = fits.and_then(|()| self.charge(bytes.len() + row_bytes)) {
            return Ok(Err(refusal));
        }
        // What is not there fails here, and not when the event is over.
        if let Err(refusal) = tail(blobs, self.ground.home, &row) {
            return Ok(Err(refusal));
        }
        self.blobs.bytes += more;
        let number = if is_new {
            self.next_message()
        } else {
            row.number
        };
        let open = self.blobs.drafts.entry(name.into()).or_insert(Open::Gone);
        match open {
            Open::Is(_, appended) => appended.extend_from_slice(bytes),
            Open::Gone => *open = Open::Is(DraftRow { number, ..row }, bytes.to_vec()),
        }
        Ok(Ok(length))
    }

    /// Ends a draft: it is a blob, which is held once more.
    pub(crate) fn draft_seal(&mut self, blobs: &Blobs, name: &str) -> Told<BlobId> {
        if let Err(refusal) = self.check_blobs() {
            return Ok(Err(refusal));
        }
        let Some(row) = self.draft(name)? else {
            return Ok(Err(no_draft()));
        };
        let appended = self.appended(name).to_vec();
        let length = row.length + appended.len() as u64;
        let home = self.ground.home;
        let hasher = tail(blobs, home, &row).map(|mut hasher| {
            hasher.update(&appended);
            hasher
        });
        let tree = match hasher {
            Ok(hasher) => hasher.finish(),
            Err(refusal) => return Ok(Err(refusal)),
        };
        // Its bytes were counted when they were appended; its file is finished now.
        if let Err(refusal) = self.charge(file_bytes(0) + ROW_BYTES + HOLD_BYTES) {
            return Ok(Err(refusal));
        }
        self.blobs.bytes -= signed(charged(length));
        if let Err(refusal) = self.hold(tree.id(), length)? {
            self.blobs.bytes += signed(charged(length));
            return Ok(Err(refusal));
        }
        let id = tree.id();
        let file = |length| DraftFile {
            home,
            number: row.number,
            length,
        };
        if !appended.is_empty() {
            let append = FileWork::Append(file(row.length), appended);
            self.blobs.files.push(append);
        }
        self.blobs.files.push(FileWork::Seal(file(length), tree));
        self.blobs.drafts.insert(name.into(), Open::Gone);
        self.blobs.gone.push(row.number);
        Ok(Ok(id))
    }

    /// Drops a draft.
    pub(crate) fn draft_discard(&mut self, name: &str) -> Told<()> {
        if let Err(refusal) = self.check_blobs() {
            return Ok(Err(refusal));
        }
        let Some(row) = self.draft(name)? else {
            return Ok(Err(no_draft()));
        };
        if let Err(refusal) = self.charge(ROW_BYTES) {
            return Ok(Err(refusal));
        }
        let length = row.length + self.appended(name).len() as u64;
        self.blobs.bytes -= signed(charged(length));
        self.blobs.drafts.insert(name.into(), Open::Gone);
        self.blobs.gone.push(row.number);
        Ok(Ok(()))
    }

    /// What files have to do before the event is real.
    ///
    /// # Errors
    /// A draft cannot be read.
    pub(crate) fn file_work(&mut self, blobs: &Blobs) -> Result<Vec<FileWork>, Refusal> {
        let mut work = mem::take(&mut self.blobs.files);
        let home = self.ground.home;
        for (name, draft) in &mut self.blobs.drafts {
            let key = home.key(Space::Draft, name.as_bytes());
            let Open::Is(row, appended) = draft else {
                if self.memory.drafts.contains(name) {
                    self.rows.put(key, None);
                }
                continue;
            };
            let mut hasher = tail(blobs, home, row)?;
            hasher.update(appended);
            let file = DraftFile {
                home,
                number: row.number,
                length: row.length,
            };
            work.push(FileWork::Append(file, mem::take(appended)));
            row.length = hasher.length();
            row.values = hasher.values().to_vec();
            self.rows.put(key, Some(encode(row)));
        }
        Ok(work)
    }

    /// A draft as this event leaves it, but for what it appended.
    fn draft(&self, name: &str) -> Result<Option<DraftRow>, StoreError> {
        match self.blobs.drafts.get(name) {
            Some(Open::Is(row, _)) => return Ok(Some(row.clone())),
            Some(Open::Gone) => return Ok(None),
            None => {}
        }
        let key = self.ground.home.key(Space::Draft, name.as_bytes());
        Ok(self.view().get(&key)?.as_deref().and_then(decode))
    }

    fn appended(&self, name: &str) -> &[u8] {
        match self.blobs.drafts.get(name) {
            Some(Open::Is(_, appended)) => appended,
            Some(Open::Gone) | None => &[],
        }
    }

    fn open_drafts(&self) -> usize {
        let own = self.blobs.drafts.iter();
        let (new, gone) = own.fold((0, 0), |(new, gone), (name, draft)| {
            let was = self.memory.drafts.contains(name);
            match draft {
                Open::Is(..) => (new + usize::from(!was), gone),
                Open::Gone => (new, gone + usize::from(was)),
            }
        });
        (self.memory.drafts.len() + new).saturating_sub(gone)
    }
}

/// Goes on behind what is on disk of a draft.
fn tail(blobs: &Blobs, home: Home, row: &DraftRow) -> Result<BlobHasher, Refusal> {
    let mut hasher = BlobHasher::resume(&row.values);
    let file = DraftFile {
        home,
        number: row.number,
        length: row.length,
    };
    let read = blobs.read_draft(&file, (row.values.len() * PIECE_BYTES) as u64);
    let read = read.map_err(|error| {
        tracing::warn!(%error, "a draft cannot be read");
        Refusal::new(
            ErrorCode::Unavailable,
            "the draft's file cannot be read; discard it",
        )
    })?;
    hasher.update(&read);
    Ok(hasher)
}

fn check_name(name: &str) -> Result<(), Refusal> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(invalid("a draft's name has 1 to 128 bytes"));
    }
    Ok(())
}

fn no_draft() -> Refusal {
    Refusal::new(ErrorCode::NotFound, "there is no draft of this name")
}
