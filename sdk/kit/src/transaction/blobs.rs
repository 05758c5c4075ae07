//! Blobs that an event writes, reads, holds, releases and fetches.

use std::{ops::Bound, sync::Arc};

use wormholes_plugin::{
    Blob, BlobFetch, Error, ErrorCode, Held, Identity, Place, Principal, Result,
};

use super::{ROW_BYTES, Transaction, quota};
use crate::blobs::{charged, hash};

/// The longest blob of all.
const MAX_BLOB_BYTES: u64 = 1 << 30;
/// What one call reads, and what one takes.
const MAX_CALL_BYTES: usize = 1 << 20;
const MAX_NAME_BYTES: usize = 128;
const MAX_LISTED: usize = 4096;
/// What a row takes that names a blob.
const HOLD_BYTES: usize = 44;
/// What a file counts for at least that an event writes.
const BLOCK_BYTES: usize = 4096;

impl Transaction {
    /// What came of a fetch is told: nothing comes of it any more, and a blob that came is held.
    pub(crate) fn consume_fetch(&mut self, id: u64, came: Option<&Arc<[u8]>>) {
        let fetch = self.memory.blobs.fetches.remove(&id);
        if let (Some(fetch), Some(bytes)) = (fetch, came) {
            let bytes = Arc::clone(bytes);
            self.memory.blobs.hold(*fetch.blob.hash(), bytes);
        }
        self.writes = true;
    }

    pub(super) fn put_blob(&mut self, bytes: &[u8]) -> Result<[u8; 32]> {
        self.check_blobs()?;
        check_call(bytes)?;
        self.check_length(bytes.len())?;
        self.charge(bytes.len().max(BLOCK_BYTES) + ROW_BYTES + HOLD_BYTES)?;
        let name = hash(bytes);
        self.hold_more(name, bytes.into())?;
        self.sealed.insert(name, false);
        Ok(name)
    }

    pub(super) fn append_draft(&mut self, name: &str, bytes: &[u8]) -> Result<u64> {
        self.check_blobs()?;
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(Error::invalid("a draft's name has 1 to 128 bytes"));
        }
        check_call(bytes)?;
        let drafts = &self.memory.blobs.drafts;
        let before = drafts.get(name).map(Vec::len);
        if before.is_none() && drafts.len() >= self.ground.manifest.limits.blob_fetches {
            return Err(many());
        }
        let length = before.unwrap_or_default() + bytes.len();
        self.check_length(length)?;
        let had = before.map_or(0, |before| charged(before as u64));
        self.check_holds(charged(length as u64) - had)?;
        self.charge(bytes.len() + ROW_BYTES)?;
        let drafts = &mut self.memory.blobs.drafts;
        let mut draft = drafts.remove(name).unwrap_or_default();
        draft.extend_from_slice(bytes);
        drafts.insert(name.to_owned(), draft);
        self.writes = true;
        Ok(length as u64)
    }

    pub(super) fn seal_draft(&mut self, name: &str) -> Result<[u8; 32]> {
        self.check_blobs()?;
        let draft = self.memory.blobs.drafts.get(name).ok_or_else(no_draft)?;
        let sealed = hash(draft);
        self.charge(BLOCK_BYTES + ROW_BYTES + HOLD_BYTES)?;
        let Some(bytes) = self.memory.blobs.drafts.remove(name) else {
            return Err(no_draft());
        };
        self.hold_more(sealed, bytes.into())?;
        self.sealed.entry(sealed).or_insert(true);
        Ok(sealed)
    }

    pub(super) fn discard_draft(&mut self, name: &str) -> Result<()> {
        self.check_blobs()?;
        self.charge(ROW_BYTES)?;
        let draft = self.memory.blobs.drafts.remove(name);
        self.writes = true;
        draft.map(drop).ok_or_else(no_draft)
    }

    /// The bytes of a blob that the principal holds, or that the event brought.
    pub(super) fn blob(&self, blob: &[u8; 32]) -> Option<Arc<[u8]>> {
        let held = self.memory.blobs.held.get(blob);
        let held = held.map(|hold| Arc::clone(&hold.bytes));
        held.or_else(|| self.ground.offered.get(blob).cloned())
    }

    pub(super) fn read_blob(&self, blob: &[u8; 32], offset: u64, length: u32) -> Result<Vec<u8>> {
        let bytes = self.blob(blob).ok_or_else(unknown)?;
        let length = length as usize;
        if length > MAX_CALL_BYTES {
            let long = "one call reads at most 1 MiB; read in parts";
            return Err(Error::invalid(long));
        }
        if self.sealed.get(blob) == Some(&true) {
            let later = "this event sealed the blob: a later one can read it";
            return Err(Error::new(ErrorCode::Unavailable, later));
        }
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let to = from.saturating_add(length).min(bytes.len());
        Ok(bytes.get(from..to).unwrap_or_default().to_vec())
    }

    pub(super) fn hold_blob(&mut self, blob: &[u8; 32]) -> Result<()> {
        self.check_blobs()?;
        let bytes = self.blob(blob).ok_or_else(unknown)?;
        self.charge(ROW_BYTES + HOLD_BYTES)?;
        self.hold_more(*blob, bytes)
    }

    pub(super) fn release_blob(&mut self, blob: &[u8; 32]) -> Result<()> {
        self.check_blobs()?;
        self.charge(ROW_BYTES + HOLD_BYTES)?;
        let hold = self.memory.blobs.held.get_mut(blob).ok_or_else(unknown)?;
        hold.holds -= 1;
        if hold.holds == 0 {
            self.memory.blobs.held.remove(blob);
        }
        self.writes = true;
        Ok(())
    }

    pub(super) fn list_blobs(&self, after: Option<&[u8; 32]>, limit: u32) -> Vec<Held> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let held = self.memory.blobs.held.range((from, Bound::Unbounded));
        let held = held.map(|(name, hold)| Held {
            blob: Blob::named(*name),
            length: hold.bytes.len() as u64,
            holds: hold.holds,
        });
        held.take((limit as usize).min(MAX_LISTED)).collect()
    }

    pub(super) fn fetch_blob(&mut self, mut fetch: BlobFetch) -> Result<u64> {
        self.check_blobs()?;
        // This node has one name.
        if fetch.from.place == Place::Node(self.ground.node_id) {
            fetch.from.place = Place::Here;
        }
        if fetch.from.place != Place::Here
            && *fetch.from.plugin != *self.ground.manifest.plugin.name
        {
            let other = "at another node only the instance of the same name can be written to";
            return Err(Error::invalid(other));
        }
        let is_far = matches!(fetch.from.place, Place::Node(_));
        if matches!(fetch.way.sender, Identity::Alias(_)) && !is_far {
            let alias = "an alias has 1 to 128 bytes, no control characters, and writes to nodes";
            return Err(Error::invalid(alias));
        }
        if fetch.max_bytes
            > self
                .ground
                .manifest
                .limits
                .one_blob_bytes()
                .min(MAX_BLOB_BYTES)
        {
            return Err(long());
        }
        if self.memory.blobs.fetches.len() >= self.ground.manifest.limits.blob_fetches {
            return Err(many());
        }
        self.check_holds(charged(fetch.max_bytes))?;
        self.charge(ROW_BYTES + HOLD_BYTES)?;
        self.memory.mail.last_message += 1;
        let id = self.memory.mail.last_message;
        self.memory.blobs.fetches.insert(id, fetch);
        self.wanted.push(id);
        self.writes = true;
        Ok(id)
    }

    pub(super) fn cancel_fetch(&mut self, id: u64) -> Result<()> {
        self.check_blobs()?;
        self.charge(ROW_BYTES)?;
        self.writes = true;
        let none = || Error::not_found("there is no such fetch, or what came of it was told");
        let fetch = self.memory.blobs.fetches.remove(&id);
        fetch.map(drop).ok_or_else(none)
    }

    fn check_blobs(&self) -> Result<()> {
        self.check_writable()?;
        self.check_no_step()
    }

    fn check_length(&self, length: usize) -> Result<()> {
        let is_long = length as u64 > self.ground.manifest.limits.one_blob_bytes();
        if is_long { Err(long()) } else { Ok(()) }
    }

    fn hold_more(&mut self, name: [u8; 32], bytes: Arc<[u8]>) -> Result<()> {
        if !self.memory.blobs.held.contains_key(&name) {
            self.check_holds(charged(bytes.len() as u64))?;
        }
        self.memory.blobs.hold(name, bytes);
        self.writes = true;
        Ok(())
    }

    /// Whether the principal may hold so much more.
    fn check_holds(&self, more: u64) -> Result<()> {
        let limits = &self.ground.manifest.limits;
        let own = self.memory.blobs.bytes().saturating_add(more);
        let is_user = self.ground.principal != Principal::Node;
        let is_full = is_user && own > limits.user_blob_bytes()
            || own.saturating_add(self.ground.others_hold) > limits.blob_bytes();
        if more > 0 && is_full {
            return Err(quota(
                "the plugin holds too much; raise limits.blob_mib or limits.user_blob_mib, or \
                 release blobs",
            ));
        }
        Ok(())
    }
}

fn check_call(bytes: &[u8]) -> Result<()> {
    if bytes.len() > MAX_CALL_BYTES {
        let long = "one call takes at most 1 MiB; append more of it to a draft";
        return Err(Error::invalid(long));
    }
    Ok(())
}

fn long() -> Error {
    quota("the blob is too long; raise limits.one_blob_mib")
}

fn many() -> Error {
    quota("too many blobs are fetched or written at once; raise limits.blob_fetches or wait")
}

fn no_draft() -> Error {
    Error::not_found("there is no draft of this name")
}

fn unknown() -> Error {
    Error::not_found("this principal does not hold the blob, and the event did not bring it")
}
