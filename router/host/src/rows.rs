//! Where things lie in the store: one ordered key space for all plugins.
//!
//! ```text
//! 01 | instance name                                  instance row
//! 02 | instance u32 | user name                       principal number u32; 0 is the node
//! 03 | instance u32 | slot u32                        a dead letter
//! 04 | user name                                      a user of the node
//! 10 | instance u32 | principal u32 | space u8 | key  rows of a principal
//!   space 0  state      the plugin's own rows
//!         1  head       one row: kept bytes u64 | schema u32 | code 8 B, of the version that woke it last
//!         2  timer      name -> due u64 | payload
//!         3  channel    a channel to send on (OutKey) -> OutHead; written by the principal
//!         4  done       its number u32 -> OutDone; written by the mail
//!         5  waiting    its number u32 | place u64 -> OutRow; written by the principal, deleted by the mail
//!         6  cursor     a channel that is received (InKey) -> InRow; by the principal, and halts by the mail
//!         7  refused    length u16 | InKey | number u64 -> Refusal; by the principal
//!         8  note       number u64 -> Note; by the mail, deleted by the principal
//!         9  question   id u64 -> empty: an answer is owed; by the principal
//!        12  operation  id u64 -> OperationRow; by the principal
//!        13  result     id u64 -> what the operation came to; by the principal
//! numbers are big-endian, so that rows of one principal, and of one instance, lie together
//! ```

use std::ops::{ControlFlow, Range};

use crate::store::{Row, Snapshot, Span, StoreError};

const INSTANCE: u8 = 0x01;
const PRINCIPAL: u8 = 0x02;
const LETTER: u8 = 0x03;
const USER: u8 = 0x04;
const ROW: u8 = 0x10;

/// Bytes before the plugin's own key.
const PREFIX_BYTES: usize = 10;

/// The rows of one principal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Home {
    pub(crate) instance: u32,
    pub(crate) principal: u32,
}

/// What a row is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Space {
    State = 0,
    Head = 1,
    Timer = 2,
    Channel = 3,
    Done = 4,
    Waiting = 5,
    Cursor = 6,
    Refused = 7,
    Note = 8,
    Question = 9,
    Operation = 12,
    Result = 13,
}

impl Home {
    /// A row's key.
    pub(crate) fn key(self, space: Space, key: &[u8]) -> Vec<u8> {
        let mut row = Vec::with_capacity(PREFIX_BYTES + key.len());
        row.push(ROW);
        row.extend(self.instance.to_be_bytes());
        row.extend(self.principal.to_be_bytes());
        row.push(space as u8);
        row.extend(key);
        row
    }

    /// All its rows.
    pub(crate) fn all(self) -> Range<Vec<u8>> {
        let of = |space: u8| {
            let mut key = self.key(Space::State, &[]);
            key.pop();
            key.push(space);
            key
        };
        of(0)..of(u8::MAX)
    }
}

/// What the plugin knows of a row's key.
pub(crate) fn own_key(row: &[u8]) -> &[u8] {
    row.get(PREFIX_BYTES..).unwrap_or_default()
}

pub(crate) fn instance_key(name: &str) -> Vec<u8> {
    [&[INSTANCE], name.as_bytes()].concat()
}

/// What the keys of an instance's principals begin with.
pub(crate) fn principal_keys(instance: u32) -> Vec<u8> {
    [&[PRINCIPAL][..], &instance.to_be_bytes()].concat()
}

pub(crate) fn principal_key(instance: u32, name: &str) -> Vec<u8> {
    [&principal_keys(instance)[..], name.as_bytes()].concat()
}

/// What the keys of an instance's dead letters begin with.
pub(crate) fn letter_keys(instance: u32) -> Vec<u8> {
    [&[LETTER][..], &instance.to_be_bytes()].concat()
}

pub(crate) fn letter_key(instance: u32, slot: u32) -> Vec<u8> {
    [&letter_keys(instance)[..], &slot.to_be_bytes()].concat()
}

/// A user's key; of no name, what the keys of all begin with.
pub(crate) fn user_key(name: &str) -> Vec<u8> {
    [&[USER], name.as_bytes()].concat()
}

/// All rows whose keys begin with `prefix`, without it.
pub(crate) fn all(snapshot: &Snapshot, prefix: &[u8]) -> Result<Vec<Row>, StoreError> {
    let mut rows = Vec::new();
    if let Some(span) = Span::new(prefix, None, false) {
        snapshot.scan(&span, &mut |key, value| {
            let own = key.strip_prefix(prefix).unwrap_or(key);
            rows.push((own.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
    }
    Ok(rows)
}
