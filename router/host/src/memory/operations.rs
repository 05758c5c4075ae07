//! What a principal remembers of its operations. All of it is in rows as well; what is told of the
//! progress becomes durable with the next event that writes.

use std::collections::{BTreeMap, BTreeSet};

use super::Memory;
use crate::{
    event::{Command, Refusal, Request},
    message::{decode, encode},
    operations::{Change, EndedRow, KEPT, OperationRow, Outcome},
    rows::{self, Home, Space},
    store::{Snapshot, StoreError, Writes},
    transaction::{Effects, Progress},
};

/// A principal's operations, those that ended and are kept among them.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    all: BTreeMap<u64, OperationRow>,
    /// Those that ended, by time.
    ended: BTreeSet<(u64, u64)>,
    /// Those whose handler is being told that they are canceled, and why they are.
    canceled: BTreeMap<u64, Refusal>,
}

impl Operations {
    /// What the store knows.
    pub(super) fn read(home: Home, snapshot: &Snapshot) -> Result<Self, StoreError> {
        let mut operations = Self::default();
        for (id, row) in rows::all(snapshot, &home.key(Space::Operation, &[]))? {
            if let (Ok(id), Some(row)) = (id.try_into(), decode::<OperationRow>(&row)) {
                let id = u64::from_be_bytes(id);
                if let Some(ended) = row.ended {
                    operations.ended.insert((ended.at_ms, id));
                }
                operations.all.insert(id, row);
            }
        }
        Ok(operations)
    }

    /// Those that go on, with their deadlines.
    pub(crate) fn open(&self) -> impl Iterator<Item = (u64, Option<u64>)> {
        let open = self.all.iter().filter(|(_, row)| row.ended.is_none());
        open.map(|(id, row)| (*id, row.deadline_ms))
    }

    /// All of them, as their rows have them.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (u64, &OperationRow)> {
        self.all.iter().map(|(id, row)| (*id, row))
    }

    /// How many go on.
    pub(crate) fn open_count(&self) -> usize {
        self.all.len() - self.ended.len()
    }

    /// Whether it is one that goes on.
    pub(crate) fn is_open(&self, id: u64) -> bool {
        self.all.get(&id).is_some_and(|row| row.ended.is_none())
    }

    /// The result that is given up next: since when, and whose.
    pub(crate) fn next_stale(&self) -> Option<(u64, u64)> {
        let kept = u64::try_from(KEPT.as_millis()).unwrap_or(u64::MAX);
        let (at_ms, id) = self.ended.first()?;
        Some((at_ms.saturating_add(kept), *id))
    }

    /// Has these go on and no others, of which nothing else is known: for a replay.
    pub(crate) fn pretend(&mut self, open: &BTreeSet<u64>) {
        self.all.retain(|id, _| open.contains(id));
        for id in open {
            self.all.entry(*id).or_insert_with(OperationRow::unknown);
        }
    }

    /// Its handler is told that it is canceled; until then it is open.
    pub(crate) fn cancel(&mut self, id: u64, why: Refusal) {
        self.canceled.insert(id, why);
    }
}

impl Memory {
    /// A request became an operation. Of those that ended, the oldest goes where there are too many.
    pub(crate) fn begin_operation(
        &mut self,
        home: Home,
        (request, command, now_ms): (&Request, &Command, u64),
        most: usize,
        effects: &mut Effects,
    ) {
        let mut row = OperationRow::new(command, request.deadline_ms, now_ms);
        let told = effects.progress.iter();
        told.filter(|told| told.request == request.id)
            .for_each(|told| row.hear(told));
        while self.operations.all.len() >= most
            && let Some((_, oldest)) = self.operations.ended.first().copied()
        {
            self.forget_operation(home, oldest, effects);
        }
        keep(home, request.id, &row, &mut effects.writes);
        effects
            .changes
            .push((request.id, Change::Is(Box::new(row.clone()))));
        self.operations.all.insert(request.id, row);
    }

    /// An operation is so far.
    pub(crate) fn tell_operation(&mut self, home: Home, told: &Progress, effects: &mut Effects) {
        let row = self.operations.all.get_mut(&told.request);
        let Some(row) = row.filter(|row| row.ended.is_none()) else {
            return;
        };
        row.hear(told);
        // What nothing durable rests on may be forgotten with it.
        if !effects.writes.is_empty() {
            keep(home, told.request, row, &mut effects.writes);
        }
        effects
            .changes
            .push((told.request, Change::Is(Box::new(row.clone()))));
    }

    /// An operation ended, if it was one. What its result has is counted by whoever gives it.
    pub(crate) fn end_operation(
        &mut self,
        home: Home,
        (id, outcome): (u64, &Outcome),
        now_ms: u64,
        effects: &mut Effects,
    ) {
        let Some(row) = self.operations.all.get_mut(&id) else {
            return;
        };
        let bytes = outcome.as_ref().map_or(0, |body| body.len() as u64);
        row.ended = Some(EndedRow {
            at_ms: now_ms,
            bytes,
        });
        self.operations.ended.insert((now_ms, id));
        keep(home, id, row, &mut effects.writes);
        let key = home.key(Space::Result, &id.to_be_bytes());
        effects.writes.put(key, Some(encode(outcome)));
        effects
            .changes
            .push((id, Change::Is(Box::new(row.clone()))));
    }

    /// The handler of a canceled operation was told.
    pub(crate) fn end_canceled(&mut self, home: Home, id: u64, now_ms: u64, effects: &mut Effects) {
        if let Some(why) = self.operations.canceled.remove(&id) {
            self.end_operation(home, (id, &Err(why)), now_ms, effects);
        }
    }

    /// Nothing is kept any more of an operation that ended; whether it had.
    pub(crate) fn forget_operation(&mut self, home: Home, id: u64, effects: &mut Effects) -> bool {
        let row = self.operations.all.get(&id);
        let Some(ended) = row.and_then(|row| row.ended) else {
            return false;
        };
        self.operations.all.remove(&id);
        self.operations.ended.remove(&(ended.at_ms, id));
        for space in [Space::Operation, Space::Result] {
            effects.writes.put(home.key(space, &id.to_be_bytes()), None);
        }
        if ended.bytes > 0 {
            self.kept_bytes = self.kept_bytes.saturating_sub(ended.bytes);
            effects.kept_bytes = effects.kept_bytes.saturating_sub_unsigned(ended.bytes);
            self.write_head(home, &mut effects.writes);
        }
        effects.changes.push((id, Change::Gone));
        true
    }
}

fn keep(home: Home, id: u64, row: &OperationRow, writes: &mut Writes) {
    let key = home.key(Space::Operation, &id.to_be_bytes());
    writes.put(key, Some(encode(row)));
}
