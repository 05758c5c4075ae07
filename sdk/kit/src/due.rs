//! What happens next by itself: all that has a time, in its order; what is due at the same instant, in
//! one that the seed decides.
//!
//! Whoever changes what something waits for marks it, and marks are looked at before the next step: so a
//! step costs what it touches, however many nodes there are. That something is due later than was
//! said, or never, is found out when it would be its turn.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use wormholes_plugin::Principal;

use crate::{fetches::FetchId, net::ChannelId, random::Random};

/// Who has something to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// By a timer or a deadline.
    Principal(usize, Principal),
    /// A node that something is to leave.
    Parcel(usize),
    Channel(Box<ChannelId>),
    Flight(u64),
    Fetch(Box<FetchId>),
    /// Those who answer a node that ended.
    Asked(usize),
}

/// Those whose time may have come nearer since the last step.
#[derive(Debug, Clone, Default)]
pub(crate) struct Marks(Rc<RefCell<Vec<Due>>>);

/// All that are due, in their order.
#[derive(Debug)]
pub(crate) struct Queue {
    /// When, and a number that decides among those of one instant.
    order: BTreeSet<(u64, u64, Due)>,
    places: BTreeMap<Due, (u64, u64)>,
    random: Random,
}

impl Due {
    /// The node that does it.
    pub(crate) fn at(&self) -> Option<usize> {
        match self {
            Self::Principal(number, _) | Self::Parcel(number) => Some(*number),
            Self::Channel(channel) => Some(channel.0),
            Self::Fetch(fetch) => Some(fetch.0),
            Self::Flight(_) | Self::Asked(_) => None,
        }
    }
}

impl Marks {
    pub(crate) fn add(&self, who: Due) {
        let mut marks = self.0.borrow_mut();
        // One event marks its principal again and again.
        if marks.last() != Some(&who) {
            marks.push(who);
        }
    }

    pub(crate) fn take(&self) -> Vec<Due> {
        self.0.take()
    }
}

impl Queue {
    pub(crate) fn new(random: Random) -> Self {
        Self {
            order: BTreeSet::new(),
            places: BTreeMap::new(),
            random,
        }
    }

    /// Says when somebody is due; `None`: never.
    pub(crate) fn put(&mut self, who: Due, due_ms: Option<u64>) {
        let place = self.places.get(&who).copied();
        if place.map(|(due_ms, _)| due_ms) == due_ms {
            return;
        }
        if let Some((due_ms, tie)) = place {
            self.order.remove(&(due_ms, tie, who.clone()));
        }
        if let Some(due_ms) = due_ms {
            let tie = self.random.number();
            self.places.insert(who.clone(), (due_ms, tie));
            self.order.insert((due_ms, tie, who));
        } else {
            self.places.remove(&who);
        }
    }

    /// Who is first, and when.
    pub(crate) fn first(&self) -> Option<(u64, &Due)> {
        let (due_ms, _, who) = self.order.first()?;
        Some((*due_ms, who))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(queue: &mut Queue) -> Vec<(u64, Due)> {
        let mut order = Vec::new();
        while let Some((due_ms, who)) = queue.first() {
            let who = who.clone();
            order.push((due_ms, who.clone()));
            queue.put(who, None);
        }
        order
    }

    #[test]
    fn what_is_due_comes_in_its_order_and_once() {
        let mut queue = Queue::new(Random::new(1));
        for (number, due_ms) in [(1, 30), (2, 10), (3, 20), (1, 5), (2, 40)] {
            queue.put(Due::Flight(number), Some(due_ms));
        }
        queue.put(Due::Flight(3), None);
        queue.put(Due::Flight(4), None);
        let expected = [(5, Due::Flight(1)), (40, Due::Flight(2))];
        assert_eq!(drain(&mut queue), expected);
    }

    #[test]
    fn the_seed_decides_among_those_of_one_instant() {
        let order = |seed: u64| {
            let mut queue = Queue::new(Random::new(seed));
            for number in 0..8 {
                queue.put(Due::Flight(number), Some(7));
            }
            drain(&mut queue)
        };
        assert_eq!(order(1), order(1));
        let orders: BTreeSet<_> = (0..20).map(order).collect();
        assert!(orders.len() > 15, "{} of 20 differ", orders.len());
    }
}
