//! Operations of a principal: they go on after a start, end, and are forgotten.

use std::mem;

use tokio::sync::oneshot;

use super::{Actor, Task};
use crate::{event::Refusal, operations::Change, transaction::Effects};

impl Actor {
    /// Those that the store knows go on: their ids are what they were.
    pub(super) fn resume_operations(&mut self) {
        let open = self.memory.operations.open();
        let deadlines = open.filter_map(|(id, deadline)| Some((deadline?, id)));
        self.deadlines.extend(deadlines);
    }

    /// A commit changes operations: the deadlines of those that end are over.
    pub(super) fn note_ended(&mut self, changes: &[(u64, Change)]) {
        for (id, change) in changes {
            if let Change::Is(row) = change
                && let (Some(deadline), Some(_)) = (row.deadline_ms, row.ended)
            {
                self.deadlines.remove(&(deadline, *id));
            }
        }
    }

    /// Results that nobody collected for a day go.
    pub(super) fn forget_stale(&mut self, now_ms: u64) {
        while let Some((stale_ms, operation)) = self.memory.operations.next_stale()
            && stale_ms <= now_ms
        {
            self.collect(operation);
        }
    }

    /// Nobody needs the result of an operation any more.
    pub(super) fn collect(&mut self, operation: u64) {
        let mut effects = Effects::default();
        if self
            .memory
            .forget_operation(self.home, operation, &mut effects)
        {
            self.make_real(effects, None);
        }
    }

    /// Ends: whoever waits is told why.
    pub(super) async fn retire(mut self, done: oneshot::Sender<()>) {
        for (_, asker) in mem::take(&mut self.askers).into_values() {
            asker.say(Err(Refusal::removed()));
        }
        self.inbox.tasks.close();
        while let Some(task) = self.inbox.tasks.recv().await {
            if let Task::Request(_, asker) = *task {
                asker.say(Err(Refusal::removed()));
            }
        }
        drop(self);
        // Whoever removes the user may have left.
        let _ = done.send(());
    }
}
