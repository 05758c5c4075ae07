//! The relay's side of a rendezvous: who is registered, and which circuits run between whom.
//!
//! Not here: sockets, the bytes, the rule hook that may say no before this is asked, and rates.
//!
//! ```text
//! called --REGISTER record-> relay        as long as its connection lasts, renewed in time
//! caller --RELAY called ---> relay --RELAYED-> called      a circuit, within the limits
//! ```

use std::{collections::BTreeMap, time::Duration};

use crate::{id::NodeId, record::SignedRecord, stream::Reason};

/// What a relay gives, in all and to each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RendezvousLimits {
    /// Nodes registered at once; more are refused as busy.
    pub max_registered: usize,
    /// A registration that is not renewed for so long ends.
    pub registration: Duration,
    /// Circuits at once; more are refused as busy.
    pub max_circuits: usize,
    /// Circuits at once that one caller opened; more are refused as busy.
    pub max_circuits_per_peer: usize,
    /// A circuit ends after so many bytes, both directions together; `None` is no limit.
    pub max_bytes_per_circuit: Option<u64>,
    /// A circuit on which nothing moves for so long ends.
    pub idle: Duration,
}

/// Names one circuit of a relay; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CircuitId(u64);

/// A relay's registrations and circuits. Times are the caller's monotonic clock, since a
/// start of its choice.
#[derive(Debug)]
pub struct Rendezvous {
    limits: RendezvousLimits,
    registered: BTreeMap<NodeId, Registration>,
    circuits: BTreeMap<CircuitId, Circuit>,
    /// Circuits that each caller has open; no entry is none.
    circuits_by_caller: BTreeMap<NodeId, usize>,
    next_circuit: u64,
}

/// What ended by time. The machine has forgotten it; the caller closes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// The node is no longer reachable here; its circuits go on.
    Registration(NodeId),
    /// Nothing moved on it.
    Circuit(CircuitId),
}

#[derive(Debug)]
struct Registration {
    record: SignedRecord,
    expires: Duration,
}

#[derive(Debug)]
struct Circuit {
    from: NodeId,
    to: NodeId,
    n_bytes: u64,
    expires: Duration,
}

impl Rendezvous {
    /// Starts with nobody registered.
    pub fn new(limits: RendezvousLimits) -> Self {
        Self {
            limits,
            registered: BTreeMap::new(),
            circuits: BTreeMap::new(),
            circuits_by_caller: BTreeMap::new(),
            next_circuit: 0,
        }
    }

    /// Registers `peer`, or renews its registration. An older record than the one it came with
    /// before renews the time and leaves the newer record in place.
    ///
    /// # Errors
    /// [`Reason::Denied`] when the record is another node's; [`Reason::Busy`] when the relay is
    /// full.
    pub fn handle_register(
        &mut self,
        now: Duration,
        peer: NodeId,
        record: SignedRecord,
    ) -> Result<(), Reason> {
        if record.id() != peer {
            return Err(Reason::Denied);
        }
        let expires = now + self.limits.registration;
        if let Some(known) = self.registered.get_mut(&peer) {
            known.expires = expires;
            if record.record().sequence > known.record.record().sequence {
                known.record = record;
            }
            return Ok(());
        }
        if self.registered.len() >= self.limits.max_registered {
            return Err(Reason::Busy);
        }
        let registration = Registration { record, expires };
        self.registered.insert(peer, registration);
        Ok(())
    }

    /// Forgets a peer whose connection is gone; returns its circuits, from it and to it, which the
    /// caller closes.
    pub fn handle_disconnected(&mut self, peer: &NodeId) -> Vec<CircuitId> {
        self.registered.remove(peer);
        let ends = |circuit: &Circuit| circuit.from == *peer || circuit.to == *peer;
        let closed: Vec<_> = self
            .circuits
            .iter()
            .filter_map(|(id, circuit)| ends(circuit).then_some(*id))
            .collect();
        for circuit in &closed {
            self.handle_circuit_closed(*circuit);
        }
        closed
    }

    /// Opens a circuit from a peer to a registered node.
    ///
    /// # Errors
    /// [`Reason::NoNode`] when `to` is not registered; [`Reason::Denied`] for a circuit to oneself;
    /// [`Reason::Busy`] at a limit.
    pub fn handle_relay_request(
        &mut self,
        now: Duration,
        from: NodeId,
        to: NodeId,
    ) -> Result<CircuitId, Reason> {
        if from == to {
            return Err(Reason::Denied);
        }
        if !self.registered.contains_key(&to) {
            return Err(Reason::NoNode);
        }
        let is_full = self.circuits.len() >= self.limits.max_circuits
            || self.n_circuits_from(&from) >= self.limits.max_circuits_per_peer;
        if is_full {
            return Err(Reason::Busy);
        }
        let id = CircuitId(self.next_circuit);
        self.next_circuit += 1;
        let circuit = Circuit {
            from,
            to,
            n_bytes: 0,
            expires: now + self.limits.idle,
        };
        self.circuits.insert(id, circuit);
        *self.circuits_by_caller.entry(from).or_default() += 1;
        Ok(id)
    }

    /// Counts bytes that moved on a circuit, in either direction.
    ///
    /// # Errors
    /// [`Reason::Busy`] when its bytes are used up and [`Reason::NoNode`] when it is not open: the
    /// caller closes it.
    pub fn handle_circuit_bytes(
        &mut self,
        now: Duration,
        circuit: CircuitId,
        n_bytes: u64,
    ) -> Result<(), Reason> {
        let state = self.circuits.get_mut(&circuit).ok_or(Reason::NoNode)?;
        state.expires = now + self.limits.idle;
        state.n_bytes = state.n_bytes.saturating_add(n_bytes);
        let max_bytes = self.limits.max_bytes_per_circuit.unwrap_or(u64::MAX);
        if state.n_bytes > max_bytes {
            self.handle_circuit_closed(circuit);
            return Err(Reason::Busy);
        }
        Ok(())
    }

    /// Forgets a circuit; one that is not open is nobody's loss.
    pub fn handle_circuit_closed(&mut self, circuit: CircuitId) {
        let Some(circuit) = self.circuits.remove(&circuit) else {
            return;
        };
        if let Some(count) = self.circuits_by_caller.get_mut(&circuit.from) {
            *count -= 1;
            if *count == 0 {
                self.circuits_by_caller.remove(&circuit.from);
            }
        }
    }

    /// The next thing that ended by `now`; to be called until `None`.
    pub fn poll_expired(&mut self, now: Duration) -> Option<Expired> {
        let circuit = self
            .circuits
            .iter()
            .find(|(_, circuit)| circuit.expires <= now)
            .map(|(id, _)| *id);
        if let Some(circuit) = circuit {
            self.handle_circuit_closed(circuit);
            return Some(Expired::Circuit(circuit));
        }
        let peer = self
            .registered
            .iter()
            .find(|(_, registration)| registration.expires <= now)
            .map(|(id, _)| *id)?;
        self.registered.remove(&peer);
        Some(Expired::Registration(peer))
    }

    /// When [`Rendezvous::poll_expired`] has something next; `None`: never, as things stand.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let circuits = self.circuits.values().map(|circuit| circuit.expires);
        let registered = self.registered.values().map(|peer| peer.expires);
        circuits.chain(registered).min()
    }

    /// The records of all who are registered, by id.
    pub fn records(&self) -> impl Iterator<Item = &SignedRecord> {
        self.registered.values().map(|peer| &peer.record)
    }

    /// The record that a registered node came with.
    pub fn record(&self, id: &NodeId) -> Option<&SignedRecord> {
        self.registered.get(id).map(|peer| &peer.record)
    }

    /// How many circuits are open.
    pub fn n_circuits(&self) -> usize {
        self.circuits.len()
    }

    /// How many circuits `peer` has opened.
    pub fn n_circuits_from(&self, peer: &NodeId) -> usize {
        self.circuits_by_caller
            .get(peer)
            .copied()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestNode;

    const MINUTE: Duration = Duration::from_secs(60);

    /// A relay with room for two nodes, three circuits and two of them per caller, and a time.
    fn relay() -> (Rendezvous, Duration) {
        let limits = RendezvousLimits {
            max_registered: 2,
            registration: 10 * MINUTE,
            max_circuits: 3,
            max_circuits_per_peer: 2,
            max_bytes_per_circuit: Some(1000),
            idle: MINUTE,
        };
        (Rendezvous::new(limits), Duration::ZERO)
    }

    fn register(relay: &mut Rendezvous, now: Duration, number: u8) -> Result<(), Reason> {
        let node = TestNode::new(number);
        relay.handle_register(now, node.id(), node.signed(1))
    }

    fn id(number: u8) -> NodeId {
        TestNode::new(number).id()
    }

    #[test]
    fn only_the_node_itself_registers_and_only_while_there_is_room() {
        let (mut relay, now) = relay();
        let forged = relay.handle_register(now, id(1), TestNode::new(2).signed(1));
        assert_eq!(forged, Err(Reason::Denied));
        assert_eq!(register(&mut relay, now, 1), Ok(()));
        assert_eq!(register(&mut relay, now, 2), Ok(()));
        assert_eq!(register(&mut relay, now, 3), Err(Reason::Busy));
        assert_eq!(register(&mut relay, now, 2), Ok(()));
        assert!(relay.handle_disconnected(&id(1)).is_empty());
        assert_eq!(register(&mut relay, now, 3), Ok(()));
        assert_eq!(relay.records().count(), 2);
    }

    #[test]
    fn renewing_never_brings_an_older_record_back() {
        let (mut relay, now) = relay();
        let node = TestNode::new(1);
        for (sequence, served) in [(5, 5), (4, 5), (6, 6)] {
            let renewed = relay.handle_register(now, node.id(), node.signed(sequence));
            assert_eq!(renewed, Ok(()));
            let record = relay.record(&node.id()).unwrap();
            assert_eq!(record.record().sequence, served);
        }
    }

    #[test]
    fn circuits_have_caps_in_all_and_per_caller() {
        let (mut relay, now) = relay();
        let missing = relay.handle_relay_request(now, id(3), id(1));
        assert_eq!(missing, Err(Reason::NoNode));
        register(&mut relay, now, 1).unwrap();
        let own = relay.handle_relay_request(now, id(1), id(1));
        assert_eq!(own, Err(Reason::Denied));
        let first = relay.handle_relay_request(now, id(3), id(1)).unwrap();
        let second = relay.handle_relay_request(now, id(3), id(1)).unwrap();
        assert_ne!(first, second);
        let third = relay.handle_relay_request(now, id(3), id(1));
        assert_eq!(third, Err(Reason::Busy));
        assert!(relay.handle_relay_request(now, id(4), id(1)).is_ok());
        let fourth = relay.handle_relay_request(now, id(5), id(1));
        assert_eq!(fourth, Err(Reason::Busy));
        relay.handle_circuit_closed(first);
        relay.handle_circuit_closed(first);
        assert_eq!((relay.n_circuits(), relay.n_circuits_from(&id(3))), (2, 1));
        assert_eq!(relay.handle_disconnected(&id(1)).len(), 2);
        assert_eq!((relay.n_circuits(), relay.n_circuits_from(&id(3))), (0, 0));
    }

    #[test]
    fn a_circuit_ends_when_its_bytes_are_used_up() {
        let (mut relay, now) = relay();
        register(&mut relay, now, 1).unwrap();
        let circuit = relay.handle_relay_request(now, id(3), id(1)).unwrap();
        assert_eq!(relay.handle_circuit_bytes(now, circuit, 1000), Ok(()));
        let over = relay.handle_circuit_bytes(now, circuit, 1);
        assert_eq!(over, Err(Reason::Busy));
        let closed = relay.handle_circuit_bytes(now, circuit, 1);
        assert_eq!(closed, Err(Reason::NoNode));
        assert_eq!(relay.n_circuits(), 0);
    }

    #[test]
    fn what_is_not_renewed_or_used_ends_by_time() {
        let (mut relay, now) = relay();
        assert_eq!(relay.poll_timeout(), None);
        register(&mut relay, now, 1).unwrap();
        let circuit = relay.handle_relay_request(now, id(3), id(1)).unwrap();
        let half = now + MINUTE / 2;
        relay.handle_circuit_bytes(half, circuit, 1).unwrap();
        assert_eq!(relay.poll_expired(now + MINUTE), None);
        assert_eq!(relay.poll_timeout(), Some(half + MINUTE));
        let end = half + MINUTE;
        assert_eq!(relay.poll_expired(end), Some(Expired::Circuit(circuit)));
        assert_eq!(relay.poll_expired(end), None);
        let end = now + 10 * MINUTE;
        assert_eq!(relay.poll_timeout(), Some(end));
        assert_eq!(relay.poll_expired(end), Some(Expired::Registration(id(1))));
        assert_eq!(relay.poll_expired(end), None);
        assert_eq!(relay.records().count(), 0);
    }
}
