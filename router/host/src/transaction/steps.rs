//! Several steps as one transaction: the rows of each are durable before the next one begins, on a side
//! that nobody reads, and all else is kept here until the last one is real.

use std::{mem, sync::Arc};

use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

use super::{Limit, ROW_BYTES, Transaction};
use crate::{
    event::{Refusal, Stamp},
    store::{Snapshot, Writes},
};

impl Transaction {
    /// Whether steps run, whose rows are durable before all of it is real.
    pub(crate) fn run_steps(&mut self, do_run: bool) {
        self.runs_steps = do_run;
    }

    /// Ends one step of several: takes the rows that it wrote, which nobody reads before the last step
    /// is real. All else stays here.
    pub(crate) fn end_step(&mut self) -> Writes {
        self.held_bytes = self.held();
        (self.written_bytes, self.beside_bytes) = (0, 0);
        self.logged_bytes = 0;
        mem::take(&mut self.rows)
    }

    /// Begins the next step, once the rows of the last one are in `snapshot`.
    pub(crate) fn begin_step(&mut self, stamp: Stamp, snapshot: Arc<Snapshot>) {
        self.random = ChaCha20Rng::from_seed(stamp.seed);
        (self.stamp, self.snapshot) = (stamp, snapshot);
    }

    /// What it holds in memory, keys and values.
    pub(crate) fn bytes(&self) -> usize {
        self.held_bytes + self.written_bytes
    }

    /// Has it write so much more beside its own rows. Of many steps, too, that is held until the last
    /// one is real: as much as `scratch` may have, and one event.
    pub(super) fn charge(&mut self, bytes: usize) -> Result<(), Refusal> {
        let limits = &self.ground.limits;
        let scratch = usize::try_from(limits.scratch_bytes()).unwrap_or(usize::MAX);
        let most = scratch.saturating_add(limits.write_bytes());
        let beside = self.beside_bytes + bytes;
        if self.held_bytes + beside > most {
            return Err(self.hit(Limit::Write));
        }
        self.charge_row(bytes)?;
        self.beside_bytes = beside;
        Ok(())
    }

    /// Has it write so much more.
    pub(super) fn charge_row(&mut self, bytes: usize) -> Result<(), Refusal> {
        let written = self.written_bytes + bytes;
        if written > self.ground.limits.write_bytes() {
            return Err(self.hit(Limit::Write));
        }
        self.written_bytes = written;
        Ok(())
    }

    /// What it holds but for rows. What one step sets and another one sets again is there once.
    fn held(&self) -> usize {
        let scratch = self.scratch.iter();
        let scratch = scratch.map(|(key, row)| key.len() + row.as_ref().map_or(0, Vec::len));
        let timers = self.timers.iter().map(|(name, timer)| {
            let payload = timer.as_ref().map_or(0, |timer| timer.payload.len());
            name.len() + payload
        });
        let facts = self.facts.keys().map(|(kind, _)| kind.len());
        let answers = self.answers.values();
        let answers = answers.map(|answer| answer.as_ref().map_or(0, Vec::len));
        let parts = scratch.chain(timers).chain(facts).chain(answers);
        let parts = parts.map(|bytes| bytes + ROW_BYTES);
        parts.sum::<usize>() + self.messages.held() + self.wires.held()
    }
}
