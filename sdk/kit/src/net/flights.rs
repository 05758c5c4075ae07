//! What is on its way, found by its number and by where it goes.

use std::collections::{BTreeMap, BTreeSet};

use super::Flight;

#[derive(Debug, Default)]
pub(crate) struct Flights {
    all: BTreeMap<u64, Flight>,
    /// The numbers of those to each node.
    to: BTreeMap<usize, BTreeSet<u64>>,
    next: u64,
}

impl Flights {
    /// Gives its number.
    pub(super) fn put(&mut self, flight: Flight) -> u64 {
        let number = self.next;
        self.next += 1;
        self.to.entry(flight.to).or_default().insert(number);
        self.all.insert(number, flight);
        number
    }

    pub(crate) fn take(&mut self, number: u64) -> Option<Flight> {
        let flight = self.all.remove(&number)?;
        if let Some(numbers) = self.to.get_mut(&flight.to) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.to.remove(&flight.to);
            }
        }
        Some(flight)
    }

    pub(crate) fn due_ms(&self, number: u64) -> Option<u64> {
        self.all.get(&number).map(|flight| flight.due_ms)
    }

    /// Takes those to a node that are meant.
    pub(super) fn take_to(
        &mut self,
        node: usize,
        is_meant: impl Fn(&Flight) -> bool,
    ) -> Vec<Flight> {
        let numbers = self.to.get(&node).into_iter().flatten().copied();
        let meant = numbers.filter(|number| self.all.get(number).is_some_and(&is_meant));
        let meant: Vec<u64> = meant.collect();
        let taken = meant.into_iter().filter_map(|number| self.take(number));
        taken.collect()
    }
}
