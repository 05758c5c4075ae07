//! How many control connections there may be. Observers cannot crowd out operators.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use wormholes_proto::control::Access;

/// Of one observing uid: a few dashboards and a shell.
const MAX_PER_OBSERVER: usize = 16;
/// Of all observers.
const MAX_OBSERVERS: usize = 48;
/// Of all operators, beside the observers' seats.
const MAX_OPERATORS: usize = 32;

/// Seats taken, by uid. Full: the newcomer is refused.
#[derive(Debug, Clone, Default)]
pub(super) struct Seats(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    operators: usize,
    observers: HashMap<u32, usize>,
}

/// One connection's seat, free again when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    uid: u32,
    access: Access,
}

impl Seats {
    /// A seat, if there is one.
    pub(super) fn take(&self, uid: u32, access: Access) -> Option<Seat> {
        self.with(|taken| taken.take(uid, access)).then(|| Seat {
            seats: self.clone(),
            uid,
            access,
        })
    }

    fn with<R>(&self, act: impl FnOnce(&mut Taken) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Taken {
    fn take(&mut self, uid: u32, access: Access) -> bool {
        match access {
            Access::Operator => {
                let free = self.operators < MAX_OPERATORS;
                self.operators += usize::from(free);
                free
            }
            Access::Observer => {
                let own = self.observers.get(&uid).copied().unwrap_or_default();
                let all: usize = self.observers.values().sum();
                let free = own < MAX_PER_OBSERVER && all < MAX_OBSERVERS;
                if free {
                    self.observers.insert(uid, own + 1);
                }
                free
            }
        }
    }

    fn release(&mut self, uid: u32, access: Access) {
        match access {
            Access::Operator => self.operators = self.operators.saturating_sub(1),
            Access::Observer => {
                let left = self.observers.remove(&uid).unwrap_or_default();
                if left > 1 {
                    self.observers.insert(uid, left - 1);
                }
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats
            .with(|taken| taken.release(self.uid, self.access));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(seats: &Seats, uid: u32, access: Access) -> Vec<Seat> {
        std::iter::from_fn(|| seats.take(uid, access)).collect()
    }

    #[test]
    fn observers_leave_seats_for_operators_and_for_each_other() {
        let seats = Seats::default();
        let taken: Vec<Vec<Seat>> = (1..=4)
            .map(|uid| fill(&seats, uid, Access::Observer))
            .collect();
        let sizes: Vec<usize> = taken.iter().map(Vec::len).collect();
        assert_eq!(sizes, [16, 16, 16, 0]);
        assert_eq!(fill(&seats, 0, Access::Operator).len(), MAX_OPERATORS);
        drop(taken);
        assert_eq!(fill(&seats, 4, Access::Observer).len(), MAX_PER_OBSERVER);
        assert!(seats.with(|taken| taken.observers.is_empty()));
    }
}
