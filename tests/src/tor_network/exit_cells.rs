//! Which circuits the exits' own counts say that a flow came over: nothing that the client says of
//! itself. C tor tells once a second how many cells each circuit of a relay brought back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Result, ensure};
use tokio::task::JoinHandle;

use super::process::{Control, TorProcess};
use crate::wait::until;

/// A circuit, as the exit names it at which it is: the exit's number, the connection towards the
/// client, and the circuit's number there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CircuitAtExit {
    exit: usize,
    connection: String,
    number: String,
}

/// The counts; dropped, nobody counts any more.
#[derive(Debug)]
pub struct ExitCells {
    seen: Arc<Mutex<Seen>>,
    /// What was there when it was asked last.
    before: BTreeMap<CircuitAtExit, u64>,
    readers: Vec<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Seen {
    cells: BTreeMap<CircuitAtExit, u64>,
    /// Those that go on to another relay: exits are passed, too.
    passing: BTreeSet<CircuitAtExit>,
}

impl ExitCells {
    pub(super) async fn watch<'a>(exits: impl Iterator<Item = &'a TorProcess>) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut readers = Vec::new();
        for (exit, process) in exits.enumerate() {
            let mut control = process.control().await?;
            control.ask("SETEVENTS CELL_STATS").await?;
            readers.push(tokio::spawn(read(control, exit, seen.clone())));
        }
        Ok(Self {
            seen,
            before: BTreeMap::new(),
            readers,
        })
    }

    /// Waits until a circuit that ends at an exit has brought back `n_cells` more than when this was
    /// asked last; which one.
    ///
    /// # Errors
    /// When none does, or more than one.
    pub async fn next_circuit(&mut self, n_cells: u64) -> Result<CircuitAtExit> {
        let found = until("an exit to count the cells of a circuit", async || {
            let now = self.counts();
            let grown = now.iter().filter(|(circuit, cells)| {
                let before = self.before.get(*circuit).copied().unwrap_or_default();
                *cells - before >= n_cells
            });
            let grown: Vec<_> = grown.map(|(circuit, _)| circuit.clone()).collect();
            (!grown.is_empty()).then_some((grown, now))
        });
        let (mut grown, now) = found.await?;
        self.before = now;
        ensure!(grown.len() == 1, "one flow came over {grown:?}");
        Ok(grown.remove(0))
    }

    fn counts(&self) -> BTreeMap<CircuitAtExit, u64> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let ends_here = seen.cells.iter();
        let ends_here = ends_here.filter(|(circuit, _)| !seen.passing.contains(circuit));
        ends_here
            .map(|(circuit, cells)| (circuit.clone(), *cells))
            .collect()
    }
}

impl Drop for ExitCells {
    fn drop(&mut self) {
        self.readers.iter().for_each(JoinHandle::abort);
    }
}

async fn read(mut control: Control, exit: usize, seen: Arc<Mutex<Seen>>) -> Result<()> {
    loop {
        let line = control.next().await?;
        let Some(said) = line.strip_prefix("650 CELL_STATS ") else {
            continue;
        };
        let fields: BTreeMap<_, _> = said
            .split(' ')
            .filter_map(|word| word.split_once('='))
            .collect();
        // Of what goes away from the client alone there is a line without them.
        let (Some(number), Some(connection)) =
            (fields.get("InboundQueue"), fields.get("InboundConn"))
        else {
            continue;
        };
        let circuit = CircuitAtExit {
            exit,
            connection: (*connection).to_owned(),
            number: (*number).to_owned(),
        };
        // InboundRemoved=relay:12,created2:1
        let removed = fields.get("InboundRemoved").copied().unwrap_or_default();
        let cells = removed
            .split(',')
            .find_map(|kind| kind.strip_prefix("relay:"));
        let cells: u64 = cells.map_or(Ok(0), str::parse::<u64>)?;
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        if fields.contains_key("OutboundQueue") {
            seen.passing.insert(circuit.clone());
        }
        *seen.cells.entry(circuit).or_default() += cells;
    }
}
