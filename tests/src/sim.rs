//! A network that exists only in a program: machines without I/O, links with conditions, a clock
//! that jumps to what comes next, and one seeded generator. The same seed gives the same run.
//!
//! ```text
//! machine.handle_*  ->  Outbox  ->  link: lost? doubled? how late?  ->  queue by time
//!        ^                                                               |
//!        +--------------------------- deliver ---------------------------+
//! ```
//! What it is not: a model of congestion or bandwidth. A message is of any size and type.

mod link;
mod seed;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;

pub use link::Conditions;
pub use seed::for_seeds;

/// Messages on their way at once; a scenario that has more runs away, and the newest are lost.
const MAX_IN_FLIGHT: usize = 100_000;

/// Events at one moment; a machine whose time-out does not move on has more.
const MAX_EVENTS_AT_ONCE: usize = 100_000;

/// A machine at one place of the network. Nodes are named by their index.
pub trait Machine {
    /// What travels.
    type Message: Clone;

    /// Takes a message that arrived.
    fn handle_message(
        &mut self,
        now: Duration,
        from: usize,
        message: Self::Message,
        out: &mut Outbox<Self::Message>,
    );

    /// Does what is due: called when the clock reaches [`Machine::poll_timeout`], which must then
    /// move on.
    fn handle_timeout(&mut self, now: Duration, out: &mut Outbox<Self::Message>);

    /// When [`Machine::handle_timeout`] has something to do; `None`: never, as things stand.
    fn poll_timeout(&self) -> Option<Duration>;
}

/// What a machine sends in one call.
#[derive(Debug)]
pub struct Outbox<M> {
    messages: Vec<(usize, M)>,
}

/// The machines and what is between them.
pub struct SimNet<M: Machine> {
    machines: Vec<M>,
    now: Duration,
    rng: ChaCha20Rng,
    default_link: Conditions,
    links: BTreeMap<(usize, usize), Conditions>,
    cut: BTreeSet<(usize, usize)>,
    /// By time of arrival, then by order of sending.
    in_flight: BTreeMap<(Duration, u64), Delivery<M::Message>>,
    n_sent: u64,
    /// Events since the clock last moved.
    n_events_now: usize,
    /// When the last message of an ordered link arrives.
    last_arrival: BTreeMap<(usize, usize), Duration>,
}

struct Delivery<M> {
    from: usize,
    to: usize,
    message: M,
}

impl<M> Outbox<M> {
    /// Sends to a node.
    pub fn send(&mut self, to: usize, message: M) {
        self.messages.push((to, message));
    }
}

impl<M: Machine> SimNet<M> {
    /// Puts the machines onto a network where every link is `default_link`.
    pub fn new(seed: u64, machines: Vec<M>, default_link: Conditions) -> Self {
        Self {
            machines,
            now: Duration::ZERO,
            rng: ChaCha20Rng::seed_from_u64(seed),
            default_link,
            links: BTreeMap::new(),
            cut: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            n_sent: 0,
            n_events_now: 0,
            last_arrival: BTreeMap::new(),
        }
    }

    /// The virtual clock: time since the start.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// All machines, by index.
    pub fn machines(&self) -> &[M] {
        &self.machines
    }

    /// Lets a machine do something of its own accord, and sends what it says. Nothing happens when
    /// there is no such machine.
    pub fn command(
        &mut self,
        node: usize,
        act: impl FnOnce(&mut M, Duration, &mut Outbox<M::Message>),
    ) {
        let mut out = Outbox {
            messages: Vec::new(),
        };
        if let Some(machine) = self.machines.get_mut(node) {
            act(machine, self.now, &mut out);
        }
        for (to, message) in out.messages {
            self.send(node, to, message);
        }
    }

    /// Sets the conditions between two nodes, both ways.
    pub fn set_link(&mut self, a: usize, b: usize, conditions: Conditions) {
        self.links.insert((a, b), conditions.clone());
        self.links.insert((b, a), conditions);
    }

    /// Cuts every link between a node of `left` and one of `right`; what is on its way is lost.
    pub fn partition(&mut self, left: &[usize], right: &[usize]) {
        for (a, b) in left
            .iter()
            .flat_map(|a| right.iter().map(move |b| (*a, *b)))
        {
            self.cut.insert((a, b));
            self.cut.insert((b, a));
        }
    }

    /// Mends all that [`SimNet::partition`] cut.
    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Runs until `condition` holds, which is asked before each event, and at the end. False when
    /// `limit` of virtual time passed, or nothing is left to happen, before it did.
    #[must_use]
    pub fn run_until(&mut self, limit: Duration, mut condition: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + limit;
        loop {
            if condition(self) {
                return true;
            }
            if !self.step(end) {
                self.now = end;
                return condition(self);
            }
        }
    }

    /// Runs for so long, asking `check` before each event.
    pub fn run_for(&mut self, time: Duration, mut check: impl FnMut(&Self)) {
        let _ = self.run_until(time, |net| {
            check(net);
            false
        });
    }

    /// The next event up to `end`; false when there is none.
    fn step(&mut self, end: Duration) -> bool {
        let timeouts = self.machines.iter().enumerate();
        let timeout = timeouts
            .filter_map(|(node, machine)| Some((machine.poll_timeout()?, node)))
            .min();
        let arrival = self.in_flight.first_key_value().map(|(key, _)| key.0);
        match (timeout, arrival) {
            (Some((at, node)), arrival) if arrival.is_none_or(|arrival| at <= arrival) => {
                self.advance(at, end) && {
                    self.command(node, |machine, now, out| machine.handle_timeout(now, out));
                    true
                }
            }
            (_, Some(at)) => self.advance(at, end) && self.deliver(),
            (_, None) => false,
        }
    }

    /// Moves the clock forward unless that is beyond `end`.
    ///
    /// # Panics
    /// When time stands still: the machine under test is broken.
    fn advance(&mut self, at: Duration, end: Duration) -> bool {
        if at > end {
            return false;
        }
        self.n_events_now = if at > self.now {
            0
        } else {
            self.n_events_now + 1
        };
        let now = self.now;
        let stands_still = self.n_events_now > MAX_EVENTS_AT_ONCE;
        assert!(!stands_still, "time stands still at {now:?}");
        self.now = self.now.max(at);
        true
    }

    fn deliver(&mut self) -> bool {
        let Some((_, delivery)) = self.in_flight.pop_first() else {
            return false;
        };
        let Delivery { from, to, message } = delivery;
        if !self.cut.contains(&(from, to)) {
            self.command(to, |machine, now, out| {
                machine.handle_message(now, from, message, out);
            });
        }
        true
    }

    fn send(&mut self, from: usize, to: usize, message: M::Message) {
        if self.cut.contains(&(from, to)) {
            return;
        }
        let link = self.links.get(&(from, to)).unwrap_or(&self.default_link);
        let is_ordered = link.is_ordered;
        for delay in link.delays(&mut self.rng) {
            let mut at = self.now + delay;
            if is_ordered {
                let last = self.last_arrival.entry((from, to)).or_insert(at);
                at = at.max(*last);
                *last = at;
            }
            if self.in_flight.len() < MAX_IN_FLIGHT {
                let message = message.clone();
                let delivery = Delivery { from, to, message };
                self.in_flight.insert((at, self.n_sent), delivery);
                self.n_sent += 1;
            }
        }
    }
}

impl<M: Machine> std::fmt::Debug for SimNet<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimNet")
            .field("now", &self.now)
            .field("machines", &self.machines.len())
            .field("in_flight", &self.in_flight.len())
            .finish_non_exhaustive()
    }
}
