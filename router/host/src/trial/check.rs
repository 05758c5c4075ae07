//! Whether what a principal on trial remembers, and counts, is what its rows say.

use std::collections::BTreeMap;

use super::{Actor, Trial};
use crate::{
    memory::{Memory, Sealed},
    message::{OutRow, decode},
    operations::OperationRow,
    rows::{Home, Space, own_key},
    transaction::{DraftRow, FetchRow, HoldRow},
};
use wormholes_proto::manifest::Limits;

/// What a message counts for beside its body, and a row in memory beside its key and its value.
const ROW_BYTES: u64 = 64;

/// Ends with what does not hold.
macro_rules! hold {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Err(format!($($what)+));
        }
    };
}

/// All rows of a principal, by what they are for.
struct Rows {
    all: Vec<(Vec<u8>, Vec<u8>)>,
    home: Home,
}

/// What memory and rows must agree on.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    kept_bytes: u64,
    blob_bytes: u64,
    outbox_bytes: u64,
    secrets: u32,
    keys: u32,
}

impl Trial {
    /// Looks at a principal between two events.
    ///
    /// # Errors
    /// What does not hold: its counts are not those of its rows, it has more than its limits give it,
    /// or it would remember something else after a start.
    pub fn check(&self, who: usize) -> Result<(), String> {
        let actor = self.actors.get(who).ok_or("there is no such principal")?;
        let rows = self.rows_of(actor);
        let counted = rows.count(&actor.memory);
        let Sealed { secrets, keys } = actor.memory.sealed;
        let known = Counts {
            kept_bytes: actor.memory.kept_bytes,
            blob_bytes: actor.memory.blob_bytes,
            outbox_bytes: actor.memory.outbox_bytes(),
            secrets,
            keys,
        };
        hold!(
            known == counted,
            "{known:?} is remembered, and there is {counted:?}"
        );
        let other = actor.memory.side.other().space();
        hold!(rows.of(other).next().is_none(), "rows lie on both sides");
        self.check_limits(actor)?;
        if self.files.is_empty() {
            self.check_start(actor)?;
        }
        Ok(())
    }

    fn rows_of(&self, actor: &Actor) -> Rows {
        let prefixes = actor.home.everything().map(|range| range.start);
        let rows = prefixes.map(|prefix| self.rows(&prefix, &actor.memory.overlay));
        Rows {
            all: rows.concat(),
            home: actor.home,
        }
    }

    /// Nothing is above its limit.
    fn check_limits(&self, actor: &Actor) -> Result<(), String> {
        let (memory, limits) = (&actor.memory, &self.plugin.limits);
        let scratch = memory.scratch.iter();
        let scratch = scratch.map(|(key, value)| (key.len() + value.len()) as u64 + ROW_BYTES);
        let scratch: u64 = scratch.sum();
        let known = memory.scratch_bytes;
        hold!(known == scratch, "scratch has {scratch} bytes, not {known}");
        let all = || self.actors.iter().map(|actor| &actor.memory);
        let kept = all().map(|memory| memory.kept_bytes).sum();
        let held = all().map(|memory| memory.blob_bytes).sum();
        let bytes = [
            ("scratch", scratch, limits.scratch_bytes()),
            ("outbox", memory.outbox_bytes(), limits.outbox_bytes()),
            ("state", kept, limits.state_bytes()),
            ("blobs", held, limits.blob_bytes()),
        ];
        for (what, is, most) in bytes {
            hold!(is <= most, "{what}: {is} of {most} bytes");
        }
        check_counts(memory, limits)?;
        if actor.name != crate::Principal::Node {
            let (kept, held) = (memory.kept_bytes, memory.blob_bytes);
            hold!(kept <= limits.user_state_bytes(), "a user keeps {kept}");
            hold!(held <= limits.user_blob_bytes(), "a user holds {held}");
        }
        Ok(())
    }

    /// All is durable: a start would find the same.
    fn check_start(&self, actor: &Actor) -> Result<(), String> {
        let read = Memory::read(actor.home, &self.shelf.snapshot());
        let read = read.map_err(|error| error.to_string())?;
        let memory = &actor.memory;
        let timers = memory.timers.iter().filter(|(_, timer)| timer.durable);
        let timers: BTreeMap<_, _> = timers
            .map(|(name, timer)| (name.clone(), timer.clone()))
            .collect();
        hold!(
            read.timers == timers,
            "timers: {:?}, not {timers:?}",
            read.timers
        );
        let next = |timers: &BTreeMap<_, crate::memory::Timer>| {
            timers.values().map(|timer| timer.due_ms).min()
        };
        hold!(
            memory.next_timer() == next(&memory.timers),
            "another timer is due first"
        );
        hold!(read.channels == memory.channels, "channels differ");
        hold!(read.blob_fetches == memory.blob_fetches, "fetches differ");
        hold!(read.drafts == memory.drafts, "drafts differ");
        hold!(read.side == memory.side, "the rows lie on another side");
        hold!(read.woken_by == memory.woken_by, "another version woke it");
        hold!(read.sealed == memory.sealed, "{:?} is sealed", read.sealed);
        let operations = |memory: &Memory| memory.operations.open().collect::<Vec<_>>();
        hold!(operations(&read) == operations(memory), "operations differ");
        let (stale, stale_now) = (read.operations.next_stale(), memory.operations.next_stale());
        hold!(stale == stale_now, "another result is stale first");
        let asked = &memory.kept_questions;
        hold!(
            read.kept_questions == *asked,
            "{:?} are owed, not {asked:?}",
            read.kept_questions
        );
        let sockets = &memory.kept_sockets;
        hold!(
            read.kept_sockets == *sockets,
            "{:?} are kept, not {sockets:?}",
            read.kept_sockets
        );
        Ok(())
    }
}

fn check_counts(memory: &Memory, limits: &Limits) -> Result<(), String> {
    let counts = [
        ("timers", memory.timers.len(), limits.timers),
        ("facts", memory.facts.len(), limits.facts),
        ("questions", memory.questions.len(), limits.requests),
        ("channels", memory.channels.len(), limits.channels),
        ("sockets", memory.sockets.len(), limits.sockets),
        ("fetches", memory.blob_fetches.len(), limits.blob_fetches),
        ("drafts", memory.drafts.len(), limits.blob_fetches),
        (
            "operations",
            memory.operations.open_count(),
            limits.operations,
        ),
        ("secrets", memory.sealed.secrets as usize, limits.secrets),
        ("keys", memory.sealed.keys as usize, limits.keys),
    ];
    for (what, is, most) in counts {
        hold!(is <= most as usize, "{is} {what} of {most}");
    }
    Ok(())
}

impl Rows {
    /// Those of a space: the plugin's part of their keys, and their values.
    fn of(&self, space: Space) -> impl Iterator<Item = (&[u8], &[u8])> {
        let prefix = self.home.key(space, &[]);
        let rows = self.all.iter();
        let rows = rows.filter(move |(key, _)| key.starts_with(&prefix));
        rows.map(|(key, value)| (own_key(key), value.as_slice()))
    }

    fn decoded<T: serde::de::DeserializeOwned>(&self, space: Space) -> impl Iterator<Item = T> {
        self.of(space).filter_map(|(_, row)| decode::<T>(row))
    }

    fn count(&self, memory: &Memory) -> Counts {
        let own = [memory.side.space(), Space::Secret, Space::Key];
        let rows = own.iter().flat_map(|space| self.of(*space));
        let rows = rows.map(|(key, value)| (key.len() + value.len()) as u64);
        let results = self.decoded::<OperationRow>(Space::Operation);
        let results = results.filter_map(|row| row.ended.map(|ended| ended.bytes));
        let held = self.decoded::<HoldRow>(Space::Blob);
        let held = held.map(|row| crate::blobs::charged(row.length));
        let drafts = self.decoded::<DraftRow>(Space::Draft);
        let drafts = drafts.map(|row| crate::blobs::charged(row.length));
        let fetched = self.decoded::<FetchRow>(Space::Fetch);
        let fetched = fetched.map(|row| crate::blobs::charged(row.max_bytes));
        let waiting = self
            .of(Space::Waiting)
            .filter_map(|(_, row)| OutRow::decode(row));
        let waiting = waiting.map(|row| row.body.map_or(0, |body| body.len() as u64) + ROW_BYTES);
        let number = |space| u32::try_from(self.of(space).count()).unwrap_or(u32::MAX);
        Counts {
            kept_bytes: rows.sum::<u64>() + results.sum::<u64>(),
            blob_bytes: held.chain(drafts).chain(fetched).sum(),
            outbox_bytes: waiting.sum(),
            secrets: number(Space::Secret),
            keys: number(Space::Key),
        }
    }
}
