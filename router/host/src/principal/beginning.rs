//! How an event of a principal begins: in an instance, over what the principal remembers.

use std::{mem, sync::Arc, time::Instant};

use rand::RngCore as _;

use super::Actor;
use crate::{
    clock::now_ms,
    edition::Edition,
    event::{Event, Stamp},
    figures::Ending,
    guest::{Fault, Instance},
    rows::Side,
    transaction::{Ground, Transaction},
};

impl Actor {
    pub(super) async fn instantiate(&self, event: &Event) -> Result<Instance, Fault> {
        let started = Instant::now();
        let instance = self.edition.code.instantiate().await;
        if instance.is_err() {
            let ending = Ending::of(&instance);
            let figures = &self.loaded.figures;
            figures.handled(event.kind(), ending, started.elapsed());
        }
        instance
    }

    pub(super) fn begin(&mut self, event: &Event, attempt: u32) -> Result<Box<Transaction>, Fault> {
        let (edition, side) = (Arc::clone(&self.edition), self.memory.side);
        let mut transaction = self.transaction(&edition, side, attempt);
        match transaction.consume(event) {
            Ok(()) => Ok(transaction),
            Err(error) => {
                self.memory = transaction.undo();
                self.track = None;
                Err(Fault::Host(error.to_string()))
            }
        }
    }

    /// Takes what the principal remembers into a transaction of this version, with its rows on this
    /// side.
    pub(super) fn transaction(
        &mut self,
        edition: &Edition,
        side: Side,
        attempt: u32,
    ) -> Box<Transaction> {
        let snapshot = self.store.snapshot();
        let mut memory = mem::take(&mut self.memory);
        memory.overlay.prune(snapshot.batch());
        let ground = Ground {
            home: self.home,
            side,
            limits: Arc::clone(&edition.plugin().limits),
            others_keep: self
                .loaded
                .figures
                .kept_bytes()
                .saturating_sub(memory.kept_bytes),
            others_hold: self
                .loaded
                .figures
                .held_bytes()
                .saturating_sub(memory.blob_bytes),
            protocols: Arc::clone(&edition.protocols),
            granted: Arc::clone(&edition.plugin().granted),
            plugin: Arc::clone(&self.loaded.name),
            node: edition.plugin().around.node,
            closing: self.wires.closing(),
        };
        Transaction::new(self.stamp(attempt), ground, snapshot, memory)
    }

    pub(super) fn stamp(&mut self, attempt: u32) -> Stamp {
        let mut seed = [0; 32];
        rand::rng().fill_bytes(&mut seed);
        self.next_event += 1;
        Stamp {
            id: self.next_event,
            attempt,
            now_ms: now_ms(),
            principal: self.name.clone(),
            seed,
        }
    }
}
