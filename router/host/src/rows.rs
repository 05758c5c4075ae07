//! Where things lie in the store: one ordered key space for all plugins.
//!
//! ```text
//! 01 | instance name                                  instance row
//! 02 | instance u32 | user name                       principal number u32; 0 is the node
//! 03 | instance u32 | slot u32                        a dead letter
//! 04 | instance u32                                   which version of the plugin runs: Versions
//! 05 | user name                                      a user of the node
//! 10 | instance u32 | principal u32 | space u8 | key  rows of a principal
//!   space 0  first      the plugin's own rows, on the side that the head names
//!         1  head       one row: kept bytes u64 | schema u32 | code 8 B, of the version that woke it last
//!                       | secrets u32 | keys u32: how many rows of these there are | side u8
//!                       | what its blobs count for u64
//!         2  timer      name -> due u64 | payload
//!         3  channel    a channel to send on (OutKey) -> OutHead; written by the principal
//!         4  done       its number u32 -> OutDone; written by the mail
//!         5  waiting    its number u32 | place u64 -> OutRow; written by the principal, deleted by the mail
//!         6  cursor     a channel that is received (InKey) -> InRow; by the principal, and halts by the mail
//!         7  refused    length u16 | InKey | number u64 -> Refusal; by the principal
//!         8  note       number u64 -> Note; by the mail, deleted by the principal
//!         9  question   id u64 -> empty, or 1 of HTTP: an answer is owed; by the principal
//!         12 operation  id u64 -> OperationRow; by the principal
//!         13 result     id u64 -> what the operation came to; by the principal
//!         14 second     as first. What lies on the side that the head does not name, counts for nothing:
//!                       a migration that has not ended, or one that has
//!         15 blob       a blob's name -> HoldRow; by the principal
//!         16 fetch      id u64 -> FetchRow: a blob that it fetches; by the principal
//!         17 draft      a name -> DraftRow: a blob that it writes; by the principal
//!         18 socket     id u64 -> empty: its plugin is to hear that it is closed; by the principal
//! 11 | instance u32 | principal u32 | space u8 | key  its rows that are sealed on disk, as `store` says
//!   space 10 secret     the plugin's own rows
//!         11 key        a name -> a key that was created
//! numbers are big-endian, so that rows of one principal, and of one instance, lie together
//! ```

use std::ops::{ControlFlow, Range};

use crate::store::{Row, SEALED_PREFIX, Snapshot, Span, StoreError, Writer};

const INSTANCE: u8 = 0x01;
const PRINCIPAL: u8 = 0x02;
const LETTER: u8 = 0x03;
const VERSIONS: u8 = 0x04;
const USER: u8 = 0x05;
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
    First = 0,
    Head = 1,
    Timer = 2,
    Channel = 3,
    Done = 4,
    Waiting = 5,
    Cursor = 6,
    Refused = 7,
    Note = 8,
    Question = 9,
    Secret = 10,
    Key = 11,
    Operation = 12,
    Result = 13,
    Second = 14,
    Blob = 15,
    Fetch = 16,
    Draft = 17,
    Socket = 18,
}

/// Where a principal's own rows lie. A migration writes them anew on the other side, in as many
/// commits as it takes, and one row says in the end which side counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Side {
    #[default]
    First = 0,
    Second = 1,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    pub(crate) fn space(self) -> Space {
        match self {
            Self::First => Space::First,
            Self::Second => Space::Second,
        }
    }
}

impl Home {
    /// The instance: all of its principals share what it may write.
    pub(crate) fn writer(self) -> Writer {
        Writer(self.instance)
    }

    /// A row's key.
    pub(crate) fn key(self, space: Space, key: &[u8]) -> Vec<u8> {
        let mut row = Vec::with_capacity(PREFIX_BYTES + key.len());
        row.push(space.prefix());
        row.extend(self.instance.to_be_bytes());
        row.extend(self.principal.to_be_bytes());
        row.push(space as u8);
        row.extend(key);
        row
    }

    /// The keys of all rows in a space.
    pub(crate) fn all(self, space: Space) -> Range<Vec<u8>> {
        let start = self.key(space, &[]);
        let mut end = start.clone();
        // No space has the last number.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        Range { start, end }
    }

    /// The keys of all its rows.
    pub(crate) fn everything(self) -> [Range<Vec<u8>>; 2] {
        [ROW, SEALED_PREFIX].map(|prefix| {
            let mut start = vec![prefix];
            start.extend(self.instance.to_be_bytes());
            start.extend(self.principal.to_be_bytes());
            // No space has the last number.
            let end = [&start[..], &[u8::MAX]].concat();
            Range { start, end }
        })
    }
}

impl Space {
    fn prefix(self) -> u8 {
        if matches!(self, Self::Secret | Self::Key) {
            SEALED_PREFIX
        } else {
            ROW
        }
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

/// Where it is kept which version of an instance runs.
pub(crate) fn versions_key(instance: u32) -> Vec<u8> {
    [&[VERSIONS][..], &instance.to_be_bytes()].concat()
}

/// The keys of all that is kept of an instance but its name.
pub(crate) fn of_instance(instance: u32) -> impl Iterator<Item = Range<Vec<u8>>> {
    let range = move |kind: u8| {
        let key = |number: u32| [&[kind][..], &number.to_be_bytes()].concat();
        let start = key(instance);
        // Behind the last instance comes what is of another kind.
        let end = match instance.checked_add(1) {
            Some(next) => key(next),
            None => vec![kind + 1],
        };
        Range { start, end }
    };
    [PRINCIPAL, LETTER, VERSIONS, ROW, SEALED_PREFIX]
        .into_iter()
        .map(range)
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
