//! Views against a naive model: all rows in one map.

use std::sync::Weak;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    BatchId, Snapshot, Writes,
    memory::{Map, Order, apply, memory},
};
use crate::store::{Backend, Overlay, Row, View, disk::Disk};

const SEEDS: u64 = 200;
const STEPS: usize = 60;

#[test]
fn a_view_shows_what_one_map_of_all_rows_would() {
    for seed in 0..SEEDS {
        let (backend, control) = memory();
        for _ in 0..STEPS {
            control.order(Order::Work);
        }
        Trial::new(Box::new(backend), seed).run();
    }
}

#[test]
fn a_view_of_a_file_shows_what_one_map_of_all_rows_would() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::open(&folder.path().join("plugins.redb"), 1 << 20).unwrap();
    Trial::new(Box::new(disk), 1).run();
}

/// A principal that writes, and batches that become durable behind it.
struct Trial {
    seed: u64,
    random: StdRng,
    backend: Box<dyn Backend>,
    durable: BatchId,
    waiting: Vec<(BatchId, Writes)>,
    overlay: Overlay,
    own: Writes,
    model: Map,
}

impl Trial {
    fn new(backend: Box<dyn Backend>, seed: u64) -> Self {
        Self {
            seed,
            random: StdRng::seed_from_u64(seed),
            backend,
            durable: BatchId {
                epoch: 1,
                number: 0,
            },
            waiting: Vec::new(),
            overlay: Overlay::default(),
            own: Writes::default(),
            model: Map::new(),
        }
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            match self.random.random_range(0..10) {
                0..=4 => self.write(),
                5 => self.remove_range(),
                6 | 7 => self.end_event(),
                _ => self.become_durable(),
            }
            self.compare();
        }
    }

    fn write(&mut self) {
        let (key, value) = (self.key(), self.key());
        let value = self.random.random_bool(0.7).then_some(value);
        match &value {
            Some(value) => self.model.insert(key.clone(), value.clone()),
            None => self.model.remove(&key),
        };
        self.own.put(key, value);
    }

    fn remove_range(&mut self) {
        let range = self.key()..self.key();
        self.model.retain(|key, _| !range.contains(key));
        self.own.remove_range(range);
    }

    fn end_event(&mut self) {
        let writes = std::mem::take(&mut self.own);
        let newest = self
            .waiting
            .last()
            .map_or(self.durable, |(batch, _)| *batch);
        match self.waiting.last_mut() {
            // Two events of one batch.
            Some((batch, open)) if self.random.random_bool(0.5) => {
                open.extend(writes.clone());
                self.overlay.write(*batch, writes);
            }
            Some(_) | None => {
                self.overlay.write(newest.next(), writes.clone());
                self.waiting.push((newest.next(), writes));
            }
        }
    }

    fn become_durable(&mut self) {
        if !self.waiting.is_empty() {
            let (batch, writes) = self.waiting.remove(0);
            self.backend.commit(&writes).unwrap();
            self.durable = batch;
        }
        // A principal may prune later than it could.
        if self.random.random_bool(0.5) {
            self.overlay.prune(self.durable);
        }
    }

    fn compare(&mut self) {
        let rows = self.backend.snapshot().unwrap();
        let snapshot = Snapshot::new(self.durable, rows, Weak::new());
        let (key, prefix) = (self.key(), self.key());
        let after = self.random.random_bool(0.5).then(|| self.key());
        let backwards = self.random.random_bool(0.5);
        let limit = self.random.random_range(0..6);
        let max_bytes = self.random.random_range(0..12);
        let view = View::new(&self.own, &self.overlay, &snapshot);
        let seed = self.seed;
        assert_eq!(
            view.get(&key).unwrap(),
            self.model.get(&key).cloned(),
            "seed {seed}"
        );
        let everything = view.scan(&[], None, false, usize::MAX, usize::MAX).unwrap();
        assert!(everything.into_iter().eq(self.model.clone()), "seed {seed}");
        let found = view.scan(&prefix, after.as_deref(), backwards, limit, max_bytes);
        let expected = self.scan(&prefix, after.as_deref(), backwards, limit, max_bytes);
        let asked = (&prefix, after, backwards, limit, max_bytes);
        assert_eq!(found.unwrap(), expected, "seed {seed}, {asked:?}");
    }

    fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        backwards: bool,
        limit: usize,
        max_bytes: usize,
    ) -> Vec<Row> {
        let rows = self.model.clone().into_iter();
        let mut rows: Vec<_> = rows.filter(|(key, _)| key.starts_with(prefix)).collect();
        if backwards {
            rows.reverse();
        }
        rows.retain(|(key, _)| {
            after.is_none_or(|after| {
                if backwards {
                    &key[..] < after
                } else {
                    &key[..] > after
                }
            })
        });
        rows.truncate(limit);
        let mut bytes = 0;
        let fits = rows.iter().take_while(|(key, value)| {
            bytes += key.len() + value.len();
            bytes <= max_bytes
        });
        let fits = fits.count().max(1);
        rows.truncate(fits);
        rows
    }

    /// Few bytes, so that keys meet; the largest has no successor.
    fn key(&mut self) -> Vec<u8> {
        let length = self.random.random_range(0..4);
        let bytes = [0, 1, 254, 255];
        (0..length)
            .map(|_| bytes[self.random.random_range(0..4)])
            .collect()
    }
}

/// The model itself must not lean on what it checks.
#[test]
fn a_range_deletes_what_was_put_before_it_and_not_what_is_put_after() {
    let mut writes = super::put("b", "before");
    writes.remove_range(b"a".to_vec()..b"c".to_vec());
    writes.put(b"bb".to_vec(), Some(b"after".to_vec()));
    let mut rows = Map::from([(b"a".to_vec(), vec![]), (b"c".to_vec(), vec![])]);
    apply(&mut rows, &writes);
    assert!(rows.into_keys().eq([b"bb".to_vec(), b"c".to_vec()]));
}
