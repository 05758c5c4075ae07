//! Rows that nobody reads off the disk: a backend over another one, which seals the rows whose keys
//! begin with [`SEALED_PREFIX`] and hands all others on.
//!
//! ```text
//! below      11 | HMAC-SHA-256(names key, the row's key) -> format u8 (1) | slot u32 | sealed
//! sealed     AES-256-GCM-SIV under the key in the slot: length u16 | the row's key | value | tag 16
//! in memory  the row's key -> its slot and the slot's key, in the order of the keys
//! ```
//! A commit first makes new keys durable in free slots, then commits the rows that name them, then
//! overwrites the slots whose rows are gone: so a row that is durable can be read, and one whose
//! deletion is durable cannot, whatever is left of it. After a crash or a failure, slots that no row
//! names are overwritten before anything else; where that fails behind a commit, no other sealed row
//! is committed before it is done.
//!
//! It does not hide how many rows there are, nor how long.

mod index;
mod seal;
mod slots;

use std::{fmt, ops::ControlFlow, path::Path, sync::Arc};

use self::{
    index::{Entry, Index},
    seal::Key,
    slots::Slots,
};
use super::{Backend, Rows, Span, StoreError, Visit, Writes};

/// What the keys of sealed rows begin with, and no others.
pub(crate) const SEALED_PREFIX: u8 = 0x11;
/// The first key behind them.
const BEHIND: u8 = SEALED_PREFIX + 1;
const FORMAT: u8 = 1;

/// A backend whose sealed rows can be read with the keys in its slots alone.
pub(super) struct Sealed {
    below: Box<dyn Backend>,
    slots: Slots,
    names: Key,
    /// As of the last commit.
    index: Arc<Index>,
    /// Slots whose rows are gone, and which are not overwritten yet.
    unwiped: Vec<u32>,
}

struct SealedRows {
    below: Box<dyn Rows>,
    index: Arc<Index>,
}

impl Sealed {
    /// Seals rows over `below`, with the slots in the file `path`, by keys that come of `secret`.
    ///
    /// # Errors
    /// When a row cannot be opened: the slots are missing, damaged, an older copy, or another
    /// secret's.
    pub(super) fn open(
        below: Box<dyn Backend>,
        path: &Path,
        secret: &[u8; 32],
    ) -> Result<Self, StoreError> {
        let secret = Key::from(secret);
        let rows = below.snapshot()?;
        let slots = Slots::open(path, secret.derive(b"slots"), !has_sealed(&*rows)?)?;
        let mut sealed = Self {
            below,
            slots,
            names: secret.derive(b"names"),
            index: Arc::default(),
            unwiped: Vec::new(),
        };
        sealed.load(&*rows)?;
        Ok(sealed)
    }

    /// Opens every row, and overwrites the slots that none names.
    fn load(&mut self, rows: &dyn Rows) -> Result<(), StoreError> {
        let mut index = Index::default();
        let mut named = Vec::new();
        let mut outcome = Ok(());
        if let Some(span) = Span::new(&[SEALED_PREFIX], None, false) {
            rows.scan(&span, &mut |place, row| match self.open_row(place, row) {
                Ok((key, entry)) => {
                    named.push(entry.slot);
                    index.insert(key, entry);
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    outcome = Err(error);
                    ControlFlow::Break(())
                }
            })?;
        }
        outcome?;
        self.slots.keep_only(&named)?;
        self.unwiped.clear();
        self.index = Arc::new(index);
        Ok(())
    }

    fn open_row(&self, place: &[u8], row: &[u8]) -> Result<(Vec<u8>, Entry), StoreError> {
        let slot = slot(row).ok_or_else(|| self.slots.broken("a row is not as it was written"))?;
        let key = self.slots.read(slot)?;
        let opened = unseal(place, row, &key);
        let (name, _) = opened.ok_or_else(|| {
            self.slots
                .broken("the key in a slot is not that of its row")
        })?;
        if self.place(&name) != place {
            return Err(self.slots.broken("a row has the name of another"));
        }
        let place = place.to_vec();
        Ok((name, Entry { place, slot, key }))
    }

    /// Under which key a row lies below.
    fn place(&self, key: &[u8]) -> Vec<u8> {
        [&[SEALED_PREFIX], &self.names.digest(key)[..]].concat()
    }

    /// Adds a row to what is committed below; its slot is not durable yet.
    fn put(
        &mut self,
        key: &[u8],
        value: &[u8],
        index: &mut Index,
        below: &mut Writes,
    ) -> Result<(), StoreError> {
        let (slot, row_key) = self.slots.put()?;
        let place = self.place(key);
        let row = seal(&place, slot, &row_key, key, value)
            .ok_or_else(|| self.slots.broken("a row cannot be sealed"))?;
        below.put(place.clone(), Some(row));
        let entry = Entry {
            place,
            slot,
            key: row_key,
        };
        index.insert(key.to_vec(), entry);
        Ok(())
    }

    fn commit_sealed(&mut self, writes: &Writes) -> Result<(), StoreError> {
        let mut index = Index::clone(&self.index);
        let (mut below, mut gone) = (Writes::default(), Vec::new());
        // If that is still impossible, so is the commit: the file is opened anew.
        self.wipe()?;
        for range in writes.removed() {
            let before = range.start.clone()..range.end.clone().min(vec![SEALED_PREFIX]);
            let behind = range.start.clone().max(vec![BEHIND])..range.end.clone();
            below.remove_range(before);
            below.remove_range(behind);
            for entry in index.remove_range(range) {
                below.put(entry.place.clone(), None);
                gone.push(entry);
            }
        }
        for (key, value) in writes.rows() {
            if key.first() != Some(&SEALED_PREFIX) {
                below.put(key.to_vec(), value.map(<[u8]>::to_vec));
                continue;
            }
            gone.extend(index.remove(key));
            below.put(self.place(key), None);
            if let Some(value) = value {
                self.put(key, value, &mut index, &mut below)?;
            }
        }
        self.slots.sync()?;
        self.below.commit(&below)?;
        self.index = Arc::new(index);
        self.unwiped.extend(gone.iter().map(|entry| entry.slot));
        // The rows are committed: whoever wrote them must not hear that they are not.
        if let Err(error) = self.wipe() {
            tracing::error!(%error, "keys of deleted secret rows are not overwritten yet");
        }
        Ok(())
    }

    fn wipe(&mut self) -> Result<(), StoreError> {
        self.slots.wipe(self.unwiped.iter().copied())?;
        self.slots.sync()?;
        self.unwiped.clear();
        Ok(())
    }
}

impl Backend for Sealed {
    fn snapshot(&self) -> Result<Box<dyn Rows>, StoreError> {
        Ok(Box::new(SealedRows {
            below: self.below.snapshot()?,
            index: Arc::clone(&self.index),
        }))
    }

    fn commit(&mut self, writes: &Writes) -> Result<(), StoreError> {
        if writes.touches(&[SEALED_PREFIX], &[BEHIND]) {
            self.commit_sealed(writes)
        } else {
            self.below.commit(writes)
        }
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        self.below.reopen()?;
        let rows = self.below.snapshot()?;
        self.slots.reopen(!has_sealed(&*rows)?)?;
        self.load(&*rows)
    }
}

impl SealedRows {
    fn value(&self, entry: &Entry) -> Result<Vec<u8>, StoreError> {
        let row = self.below.get(&entry.place)?;
        let opened = row.and_then(|row| unseal(&entry.place, &row, &entry.key));
        opened
            .map(|(_, value)| value)
            .ok_or_else(|| StoreError::Damaged {
                what: "a sealed row is not as it was written".to_owned(),
            })
    }

    fn scan_sealed(
        &self,
        span: &Span,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, StoreError> {
        for (key, entry) in self.index.rows(span) {
            if visit(key, &self.value(entry)?).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn scan_below(
        &self,
        span: &Span,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, StoreError> {
        let mut flow = ControlFlow::Continue(());
        self.below.scan(span, &mut |key, value| {
            flow = visit(key, value);
            flow
        })?;
        Ok(flow)
    }
}

impl Rows for SealedRows {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if key.first() != Some(&SEALED_PREFIX) {
            return self.below.get(key);
        }
        self.index
            .get(key)
            .map(|entry| self.value(entry))
            .transpose()
    }

    fn scan(&self, span: &Span, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let (first, behind) = (&[SEALED_PREFIX][..], &[BEHIND][..]);
        let mut parts = [
            (false, span.clip(&[], Some(first))),
            (true, span.clip(first, Some(behind))),
            (false, span.clip(behind, None)),
        ];
        if span.is_backwards() {
            parts.reverse();
        }
        for (is_sealed, part) in parts {
            let Some(part) = part else {
                continue;
            };
            let flow = if is_sealed {
                self.scan_sealed(&part, visit)?
            } else {
                self.scan_below(&part, visit)?
            };
            if flow.is_break() {
                break;
            }
        }
        Ok(())
    }
}

fn has_sealed(rows: &dyn Rows) -> Result<bool, StoreError> {
    let mut has_one = false;
    if let Some(span) = Span::new(&[SEALED_PREFIX], None, false) {
        rows.scan(&span, &mut |_, _| {
            has_one = true;
            ControlFlow::Break(())
        })?;
    }
    Ok(has_one)
}

/// `None`: the key is longer than any key of a row.
fn seal(place: &[u8], slot: u32, row_key: &Key, key: &[u8], value: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(key.len()).ok()?;
    let content = [&length.to_be_bytes()[..], key, value].concat();
    let sealed = row_key.seal_once(place, content)?;
    Some([&[FORMAT][..], &slot.to_be_bytes(), &sealed].concat())
}

/// The slot that a row names.
fn slot(row: &[u8]) -> Option<u32> {
    let (format, rest) = row.split_first()?;
    let (slot, _) = rest.split_first_chunk()?;
    (*format == FORMAT).then(|| u32::from_be_bytes(*slot))
}

/// A row's key and value.
fn unseal(place: &[u8], row: &[u8], row_key: &Key) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut content = row_key.open_once(place, row.get(5..)?.to_vec())?;
    let (length, rest) = content.split_first_chunk()?;
    let (name, _) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
    let name = name.to_vec();
    let value = content.split_off(2 + name.len());
    Some((name, value))
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed")
            .field("below", &self.below)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SealedRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedRows").finish_non_exhaustive()
    }
}
