//! Records by gossip: whole signed sets over links that lose, double and reorder, with liars among
//! the nodes. The newest sequence wins everywhere; what nobody signed is believed nowhere.

use std::{
    collections::BTreeMap,
    time::{Duration, UNIX_EPOCH},
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wormholes_proto::{NodeId, RecordBook, RecordSetReader, SignedRecord, encode_set};
use wormholes_tests::{
    TestNode,
    sim::{Conditions, Machine, Outbox, SimNet, for_seeds},
};

const SECOND: Duration = Duration::from_secs(1);
const N_HONEST: usize = 6;
const N_ALL: usize = 8;

/// A node that tells a neighbour each second all that it knows.
struct Gossip {
    keys: TestNode,
    /// Its own newest sequence.
    sequence: u64,
    book: RecordBook,
    /// A liar tells old, forged, cut and invented records instead.
    lies: bool,
    /// Every record that a liar ever heard.
    overheard: Vec<SignedRecord>,
    rng: ChaCha20Rng,
    next: Duration,
}

impl Gossip {
    fn new(node: usize, seed: u64) -> Self {
        let number = u8::try_from(node + 1).unwrap();
        let mut gossip = Self {
            keys: TestNode::new(number).unwrap(),
            sequence: 0,
            book: RecordBook::new(),
            lies: node >= N_HONEST,
            overheard: Vec::new(),
            rng: ChaCha20Rng::seed_from_u64(seed ^ u64::from(number) << 32),
            next: Duration::ZERO,
        };
        gossip.publish();
        gossip
    }

    /// Makes and takes a newer record of its own.
    fn publish(&mut self) {
        self.sequence += 1;
        let record = self.keys.signed(self.sequence).unwrap();
        self.book.handle_record(UNIX_EPOCH, self.keys.id(), record);
    }

    fn known(&self, id: &NodeId) -> Option<u64> {
        self.book.record(id).map(|record| record.sequence)
    }

    /// One of the ways to lie about what was overheard.
    fn lie(&mut self) -> Vec<u8> {
        let Some(old) = self.overheard.get(0..).filter(|all| !all.is_empty()) else {
            return Vec::new();
        };
        let record = old[self.rng.random_range(0..old.len())].clone();
        let mut set = encode_set([&record, &record]);
        match self.rng.random_range(0..4) {
            // An old record, as it was.
            0 => {}
            // A sequence that its node never signed.
            1 => set[2 + 33..2 + 41].copy_from_slice(&u64::MAX.to_be_bytes()),
            2 => {
                let at = self.rng.random_range(0..set.len());
                set[at] ^= 1 << self.rng.random_range(0..8);
            }
            _ => set.truncate(self.rng.random_range(0..set.len())),
        }
        set
    }
}

impl Machine for Gossip {
    type Message = Vec<u8>;

    fn handle_message(
        &mut self,
        now: Duration,
        from: usize,
        set: Vec<u8>,
        _: &mut Outbox<Vec<u8>>,
    ) {
        let teller = NodeId::from_bytes([u8::try_from(from).unwrap(); 32]);
        let mut reader = RecordSetReader::new();
        for chunk in set.chunks(300) {
            reader.handle_bytes(chunk);
            while let Ok(Some(bytes)) = reader.poll_record() {
                // What is not to be believed changes nothing: the test looks at the book.
                let _ = self.book.handle_bytes(UNIX_EPOCH + now, teller, &bytes);
                if self.lies {
                    self.overheard.extend(SignedRecord::decode(&bytes));
                }
            }
        }
    }

    fn handle_timeout(&mut self, now: Duration, out: &mut Outbox<Vec<u8>>) {
        self.next = now + SECOND;
        let set = if self.lies {
            self.lie()
        } else {
            self.book.encode_set(UNIX_EPOCH + now)
        };
        out.send(self.rng.random_range(0..N_ALL), set);
    }

    fn poll_timeout(&self) -> Option<Duration> {
        Some(self.next)
    }
}

fn network(seed: u64) -> SimNet<Gossip> {
    let machines = (0..N_ALL).map(|node| Gossip::new(node, seed)).collect();
    SimNet::new(seed, machines, Conditions::rough())
}

fn honest(net: &SimNet<Gossip>) -> &[Gossip] {
    &net.machines()[..N_HONEST]
}

/// Every honest node knows every honest node's newest record.
fn agree(net: &SimNet<Gossip>) -> bool {
    honest(net).iter().all(|node| {
        let mut others = honest(net).iter();
        others.all(|other| node.known(&other.keys.id()) == Some(other.sequence))
    })
}

/// Nobody believes what was never signed, and nobody goes back to an older record.
fn check(net: &SimNet<Gossip>, seen: &mut BTreeMap<(usize, NodeId), u64>) {
    for (at, node) in net.machines().iter().enumerate() {
        for record in node.book.iter() {
            let record = record.record();
            let mut all = net.machines().iter();
            let owner = all.find(|owner| owner.keys.id() == record.id);
            let signed = owner.expect("an invented node is believed").sequence;
            assert!(record.sequence <= signed, "a forged sequence is believed");
            let newest = seen.entry((at, record.id)).or_default();
            assert!(record.sequence >= *newest, "an older record came back");
            *newest = record.sequence;
        }
    }
}

#[test]
fn the_newest_record_wins_everywhere() {
    for_seeds(10, |seed| {
        let mut net = network(seed);
        let mut seen = BTreeMap::new();
        for round in 0..5 {
            net.command(round % N_HONEST, |node, _, _| node.publish());
            net.run_for(3 * SECOND, |net| check(net, &mut seen));
        }
        let agreed = net.run_until(200 * SECOND, |net| {
            check(net, &mut seen);
            agree(net)
        });
        assert!(agreed, "no agreement after {:?}", net.now());
    })
    .unwrap();
}

#[test]
fn two_halves_agree_after_a_partition() {
    for_seeds(5, |seed| {
        let mut net = network(seed);
        let mut seen = BTreeMap::new();
        assert!(net.run_until(200 * SECOND, agree));
        // A liar on each side.
        net.partition(&[0, 1, 2, 6], &[3, 4, 5, 7]);
        for node in [0, 4, 4] {
            net.command(node, |node, _, _| node.publish());
        }
        net.run_for(60 * SECOND, |net| check(net, &mut seen));
        let id = honest(&net)[4].keys.id();
        assert_eq!(honest(&net)[5].known(&id), Some(3));
        assert_eq!(honest(&net)[0].known(&id), Some(1));
        net.heal();
        let agreed = net.run_until(200 * SECOND, |net| {
            check(net, &mut seen);
            agree(net)
        });
        assert!(agreed, "no agreement after {:?}", net.now());
    })
    .unwrap();
}
