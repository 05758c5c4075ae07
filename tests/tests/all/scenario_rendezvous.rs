//! A relay among nodes that register, ask for circuits, vanish and come back, over rough links.

use std::{collections::BTreeMap, time::Duration};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wormholes_proto::{
    CircuitId, Expired, NodeId, Reason, Rendezvous, RendezvousLimits, SignedRecord,
};
use wormholes_tests::{
    TestNode,
    sim::{Conditions, Machine, Outbox, SimNet, for_seeds},
};

const SECOND: Duration = Duration::from_secs(1);
const RELAY: usize = 0;
const N_NODES: usize = 8;
const LIMITS: RendezvousLimits = RendezvousLimits {
    max_registered: 4,
    registration: Duration::from_secs(30),
    max_circuits: 6,
    max_circuits_per_peer: 2,
    max_bytes_per_circuit: Some(5000),
    idle: Duration::from_secs(10),
};

#[derive(Debug, Clone)]
enum Message {
    Register(SignedRecord),
    Registered(Result<(), Reason>),
    Relay(NodeId),
    Relayed(Result<CircuitId, Reason>),
    Bytes(CircuitId, u64),
    Close(CircuitId),
}

#[expect(clippy::large_enum_variant, reason = "eight of them")]
enum Place {
    Relay(Relay),
    Node(Node),
}

struct Relay {
    rendezvous: Rendezvous,
    /// Who is at which place: what the carrier's handshake would prove.
    ids: Vec<NodeId>,
    expired: Vec<Expired>,
}

struct Node {
    keys: TestNode,
    /// Renews its registration until told otherwise.
    registers: bool,
    registered: Option<Result<(), Reason>>,
    /// Asks for circuits to random nodes.
    calls: bool,
    others: Vec<NodeId>,
    answers: Vec<Result<CircuitId, Reason>>,
    rng: ChaCha20Rng,
    next: Duration,
}

impl Relay {
    fn id(&self, node: usize) -> NodeId {
        self.ids[node - 1]
    }

    fn handle(&mut self, now: Duration, from: usize, message: Message, out: &mut Outbox<Message>) {
        let peer = self.id(from);
        match message {
            Message::Register(record) => {
                let done = self.rendezvous.handle_register(now, peer, record);
                out.send(from, Message::Registered(done));
            }
            Message::Relay(to) => {
                let circuit = self.rendezvous.handle_relay_request(now, peer, to);
                out.send(from, Message::Relayed(circuit));
            }
            Message::Bytes(circuit, n_bytes) => {
                let _ = self.rendezvous.handle_circuit_bytes(now, circuit, n_bytes);
            }
            Message::Close(circuit) => self.rendezvous.handle_circuit_closed(circuit),
            Message::Registered(_) | Message::Relayed(_) => panic!("not for a relay"),
        }
    }
}

impl Node {
    fn handle_timeout(&mut self, now: Duration, out: &mut Outbox<Message>) {
        self.next = now + 2 * SECOND;
        if self.registers {
            let record = self.keys.signed(now.as_secs()).unwrap();
            out.send(RELAY, Message::Register(record));
        }
        if self.calls {
            let to = self.others[self.rng.random_range(0..self.others.len())];
            out.send(RELAY, Message::Relay(to));
        }
        let open: Vec<_> = self.answers.iter().filter_map(|a| a.ok()).collect();
        if let Some(circuit) = open.last() {
            let message = if self.rng.random_bool(0.3) {
                Message::Close(*circuit)
            } else {
                Message::Bytes(*circuit, self.rng.random_range(1..2000))
            };
            out.send(RELAY, message);
        }
    }
}

impl Machine for Place {
    type Message = Message;

    fn handle_message(
        &mut self,
        now: Duration,
        from: usize,
        message: Message,
        out: &mut Outbox<Message>,
    ) {
        match (self, message) {
            (Self::Relay(relay), message) => relay.handle(now, from, message, out),
            (Self::Node(node), Message::Registered(done)) => node.registered = Some(done),
            (Self::Node(node), Message::Relayed(circuit)) => node.answers.push(circuit),
            (Self::Node(_), message) => panic!("a node got {message:?}"),
        }
    }

    fn handle_timeout(&mut self, now: Duration, out: &mut Outbox<Message>) {
        match self {
            Self::Relay(relay) => {
                while let Some(expired) = relay.rendezvous.poll_expired(now) {
                    relay.expired.push(expired);
                }
            }
            Self::Node(node) => node.handle_timeout(now, out),
        }
    }

    fn poll_timeout(&self) -> Option<Duration> {
        match self {
            Self::Relay(relay) => relay.rendezvous.poll_timeout(),
            Self::Node(node) => Some(node.next),
        }
    }
}

/// The relay at place 0 and quiet nodes at the others.
fn network(seed: u64, link: Conditions) -> SimNet<Place> {
    let keys: Vec<_> = (1..=N_NODES)
        .map(|n| TestNode::new(u8::try_from(n).unwrap()).unwrap())
        .collect();
    let ids: Vec<_> = keys.iter().map(TestNode::id).collect();
    let relay = Place::Relay(Relay {
        rendezvous: Rendezvous::new(LIMITS),
        ids: ids.clone(),
        expired: Vec::new(),
    });
    let nodes = keys.into_iter().zip(0..).map(|(keys, number): (_, u64)| {
        Place::Node(Node {
            keys,
            registers: false,
            registered: None,
            calls: false,
            others: ids.clone(),
            answers: Vec::new(),
            rng: ChaCha20Rng::seed_from_u64(seed ^ number << 32),
            next: Duration::ZERO,
        })
    });
    SimNet::new(seed, std::iter::once(relay).chain(nodes).collect(), link)
}

fn relay(net: &SimNet<Place>) -> &Relay {
    match &net.machines()[RELAY] {
        Place::Relay(relay) => relay,
        Place::Node(_) => panic!("place 0 is the relay's"),
    }
}

fn node(net: &SimNet<Place>, place: usize) -> &Node {
    match &net.machines()[place] {
        Place::Node(node) => node,
        Place::Relay(_) => panic!("no node there"),
    }
}

fn set(net: &mut SimNet<Place>, places: &[usize], change: impl Fn(&mut Node)) {
    for place in places {
        net.command(*place, |place, _, _| match place {
            Place::Node(node) => change(node),
            Place::Relay(_) => panic!("no node there"),
        });
    }
}

fn is_registered(net: &SimNet<Place>, place: usize) -> bool {
    let id = node(net, place).keys.id();
    relay(net).rendezvous.record(&id).is_some()
}

/// No limit is passed, and the counts agree.
fn check(net: &SimNet<Place>) {
    let rendezvous = &relay(net).rendezvous;
    assert!(rendezvous.records().count() <= LIMITS.max_registered);
    assert!(rendezvous.n_circuits() <= LIMITS.max_circuits);
    let counts = relay(net)
        .ids
        .iter()
        .map(|id| rendezvous.n_circuits_from(id));
    let counts: Vec<_> = counts.collect();
    assert!(counts.iter().all(|n| *n <= LIMITS.max_circuits_per_peer));
    assert_eq!(counts.iter().sum::<usize>(), rendezvous.n_circuits());
}

#[test]
fn limits_hold_under_random_use() {
    for_seeds(20, |seed| {
        let mut net = network(seed, Conditions::rough());
        let all: Vec<_> = (1..=N_NODES).collect();
        set(&mut net, &all, |node| {
            node.registers = true;
            node.calls = true;
        });
        net.run_for(300 * SECOND, check);
        let mut reasons = BTreeMap::new();
        for place in all {
            for answer in &node(&net, place).answers {
                let text = answer.map_or_else(|reason| reason.to_string(), |_| String::new());
                *reasons.entry(text).or_insert(0) += 1;
            }
        }
        let granted = reasons.get("").copied().unwrap_or(0);
        let busy = reasons.get(&Reason::Busy.to_string()).copied();
        assert!(granted > 20 && busy.is_some(), "{reasons:?}");
    })
    .unwrap();
}

#[test]
fn the_relay_is_full_for_a_fifth_node_until_one_leaves() {
    let mut net = network(1, Conditions::stream(SECOND / 10));
    set(&mut net, &[1, 2, 3, 4], |node| node.registers = true);
    assert!(net.run_until(5 * SECOND, |net| (1..5).all(|n| is_registered(net, n))));
    set(&mut net, &[5], |node| node.registers = true);
    assert!(net.run_until(5 * SECOND, |net| {
        node(net, 5).registered == Some(Err(Reason::Busy))
    }));
    set(&mut net, &[2], |node| node.registers = false);
    assert!(net.run_until(2 * LIMITS.registration, |net| is_registered(net, 5)));
    assert!(!is_registered(&net, 2));
}

#[test]
fn a_node_behind_a_partition_expires_and_comes_back() {
    for_seeds(10, |seed| {
        let mut net = network(seed, Conditions::rough());
        set(&mut net, &[1, 2], |node| node.registers = true);
        assert!(net.run_until(30 * SECOND, |net| is_registered(net, 1)
            && is_registered(net, 2)));
        let id = node(&net, 1).keys.id();
        net.partition(&[1], &[RELAY]);
        let cut = net.now();
        assert!(net.run_until(2 * LIMITS.registration, |net| !is_registered(net, 1)));
        assert!(net.now() <= cut + LIMITS.registration + SECOND);
        assert!(relay(&net).expired.contains(&Expired::Registration(id)));
        // Others no longer reach it, and are told.
        set(&mut net, &[3], |node| {
            node.calls = true;
            node.others = vec![id];
        });
        let told = Err(Reason::NoNode);
        assert!(net.run_until(30 * SECOND, |net| {
            node(net, 3).answers.last() == Some(&told)
        }));
        net.heal();
        assert!(net.run_until(60 * SECOND, |net| {
            node(net, 3).answers.last().is_some_and(Result::is_ok)
        }));
        assert!(is_registered(&net, 2), "the other was there all the time");
    })
    .unwrap();
}

#[test]
fn a_circuit_on_which_nothing_moves_ends() {
    let mut net = network(1, Conditions::stream(SECOND / 10));
    set(&mut net, &[1], |node| node.registers = true);
    assert!(net.run_until(5 * SECOND, |net| is_registered(net, 1)));
    let to = node(&net, 1).keys.id();
    net.command(2, |_, _, out| out.send(RELAY, Message::Relay(to)));
    assert!(net.run_until(SECOND, |net| relay(net).rendezvous.n_circuits() == 1));
    // The relay loses sight of the caller, whose close never comes.
    net.partition(&[2], &[RELAY]);
    assert!(net.run_until(
        LIMITS.idle + SECOND,
        |net| relay(net).rendezvous.n_circuits() == 0
    ));
    assert!(is_registered(&net, 1));
}
