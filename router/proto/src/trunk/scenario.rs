//! A channel's two ends with durable stores, over trunks that break and nodes that crash, at steps
//! drawn from a seed: none lost, none twice, in order, what is reported is true, also when a plugin
//! fails for good and the channel is opened anew; and an older copy of a store always ends in a halt.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use bytes::Bytes;
use rand_chacha::ChaCha20Rng;
use rand_core::RngCore;

use super::*;
use crate::{id::NodeId, testing::rng};

const STEPS: u32 = 600;
const WINDOW: Window = Window {
    messages: 5,
    bytes: 100,
};

/// What the sender's node has on disk.
#[derive(Clone)]
struct SenderStore {
    row: SenderRow,
    rows: BTreeMap<u64, Row>,
    /// What every message said, by its id.
    said: BTreeMap<u64, Bytes>,
    /// By the message's id.
    reports: BTreeMap<u64, Outcome>,
}

/// What the receiver's node has on disk.
#[derive(Clone, Default)]
struct ReceiverStore {
    row: ReceiverRow,
    refusals: BTreeMap<u64, Failure>,
    /// What was handled under which number of the history; gaps are `None`.
    numbers: BTreeMap<u64, Option<Bytes>>,
    /// What was ever handled, by its id.
    handled: BTreeMap<u64, Bytes>,
    /// All that were ever refused, by their ids.
    refused: BTreeSet<u64>,
}

/// Both nodes, and what is between them.
struct World {
    rng: ChaCha20Rng,
    now_ms: u64,
    n_said: u64,
    trunks: u64,
    is_up: bool,
    /// The receiver's plugin fails at times, and both ends open the channel anew after that.
    has_poison: bool,
    n_reopened: u64,
    sender: ChannelSender,
    sender_store: SenderStore,
    /// Not durable yet.
    enqueued: VecDeque<Row>,
    commits: VecDeque<SenderCommit>,
    receiver: ChannelReceiver,
    receiver_store: ReceiverStore,
    /// Handled, and not durable yet.
    arrivals: VecDeque<Arrival>,
    to_receiver: Wires,
    to_sender: Wires,
}

/// What is on its way on each trunk, `None` that it broke: given up ones are read late.
type Wires = BTreeMap<u64, VecDeque<Option<Frame>>>;

fn key() -> ChannelKey {
    let name = |text| Name::try_from(text).unwrap();
    ChannelKey {
        sender: NodeId::from_bytes([1; 32]),
        receiver: NodeId::from_bytes([2; 32]),
        instance: name("ledger"),
        envelope: Envelope {
            from: Principal::Node,
            to: Principal::User(name("ann")),
            protocol: name("pay"),
        },
    }
}

const HISTORY: History = History {
    incarnation: [7; 16],
    epoch: 0,
};

/// What every message begins with.
fn id(body: &Bytes) -> u64 {
    u64::from_be_bytes(*body.first_chunk().unwrap())
}

fn link(trunk: u64) -> Link {
    Link { trunk, number: 3 }
}

fn put(wires: &mut Wires, trunk: u64, frame: Option<Frame>) {
    wires.entry(trunk).or_default().push_back(frame);
}

/// The next of any trunk.
fn take(wires: &mut Wires, rng: &mut ChaCha20Rng) -> Option<(Link, Option<Frame>)> {
    wires.retain(|_, wire| !wire.is_empty());
    let n_wires = u32::try_from(wires.len()).unwrap();
    let at = rng.next_u32().checked_rem(n_wires)? as usize;
    let (trunk, wire) = wires.iter_mut().nth(at)?;
    Some((link(*trunk), wire.pop_front()?))
}

impl World {
    fn new(seed: u64) -> Self {
        let row = SenderRow::new(&key(), HISTORY, 0);
        Self {
            rng: rng(seed),
            now_ms: 0,
            n_said: 0,
            trunks: 0,
            is_up: false,
            has_poison: false,
            n_reopened: 0,
            sender: ChannelSender::new(key(), row),
            sender_store: SenderStore {
                row,
                rows: BTreeMap::new(),
                said: BTreeMap::new(),
                reports: BTreeMap::new(),
            },
            enqueued: VecDeque::new(),
            commits: VecDeque::new(),
            receiver: ChannelReceiver::new(key(), WINDOW, ReceiverRow::default(), Vec::new()),
            receiver_store: ReceiverStore::default(),
            arrivals: VecDeque::new(),
            to_receiver: Wires::new(),
            to_sender: Wires::new(),
        }
    }

    fn below(&mut self, n: u32) -> u32 {
        self.rng.next_u32() % n
    }

    fn step(&mut self) {
        if self.has_poison && self.below(10) == 0 {
            self.fail_or_reopen();
        }
        match self.below(40) {
            0..4 => self.say(),
            4..24 => self.flow(),
            24..30 => self.commit_sender(),
            30..35 => self.commit_receiver(),
            35 => self.now_ms += 10,
            36 => self.break_trunk(),
            37 if self.below(3) == 0 => self.crash_sender(),
            38 if self.below(3) == 0 => self.crash_receiver(),
            _ => self.connect(),
        }
    }

    fn say(&mut self) {
        let seq = self.sender_store.row.next_seq + self.enqueued.len() as u64;
        self.n_said += 1;
        let mut body = self.n_said.to_be_bytes().to_vec();
        body.resize(8 + self.below(40) as usize, 0);
        let expires = self.below(3) == 0;
        self.enqueued.push_back(Row {
            seq,
            content: Content::Message(body.into()),
            expires_ms: expires.then_some(self.now_ms + 15),
            report: Some(self.n_said),
        });
    }

    /// A frame moves, or more become ready.
    fn flow(&mut self) {
        if let Some(wanted) = self.sender.wants() {
            let rows = self.sender_store.rows.range(wanted.from_seq..);
            let rows = rows.take(wanted.messages).map(|(_, row)| row.clone());
            self.sender.handle_rows(rows).unwrap();
        }
        match self.below(4) {
            0 => {
                if let Some((trunk, frame)) = self.sender.poll_frame(self.now_ms) {
                    let is_marked = |seq| seq <= self.sender_store.row.mark;
                    assert!(!matches!(&frame, Frame::Data { seq, .. } if !is_marked(*seq)));
                    put(&mut self.to_receiver, trunk, Some(frame));
                }
            }
            1 => {
                if let Some((trunk, frame)) = self.receiver.poll_frame() {
                    put(&mut self.to_sender, trunk, Some(frame));
                }
            }
            2 => self.receive(),
            _ => self.hear(),
        }
    }

    fn receive(&mut self) {
        let Some((link, frame)) = take(&mut self.to_receiver, &mut self.rng) else {
            return;
        };
        let receiver = &mut self.receiver;
        let arrival = match frame {
            None => {
                receiver.handle_trunk_down(link);
                None
            }
            Some(Frame::Channel(channel)) => {
                receiver.handle_channel(link, &channel);
                None
            }
            Some(Frame::Data { seq, body, .. }) => receiver.handle_data(link, seq, body).unwrap(),
            Some(Frame::Gap { messages, .. }) => receiver.handle_gap(link, messages).unwrap(),
            Some(Frame::Halt { reason, .. }) => {
                receiver.handle_halt(link, reason);
                None
            }
            Some(other) => panic!("{other:?}"),
        };
        self.arrivals.extend(arrival);
    }

    fn hear(&mut self) {
        let Some((link, frame)) = take(&mut self.to_sender, &mut self.rng) else {
            return;
        };
        match frame {
            Some(Frame::State(state)) => self.sender.handle_state(link, &state).unwrap(),
            Some(Frame::Ack(ack)) => self.sender.handle_ack(link, ack).unwrap(),
            Some(Frame::Halt { reason, .. }) => self.sender.handle_halt(link, reason),
            None | Some(Frame::ChannelRefused { .. }) => self.sender.handle_trunk_down(link),
            Some(other) => panic!("{other:?}"),
        }
    }

    fn commit_sender(&mut self) {
        if let Some(row) = self.enqueued.pop_front() {
            let store = &mut self.sender_store;
            store.row.next_seq += 1;
            if let Content::Message(body) = &row.content {
                store.said.insert(id(body), body.clone());
            }
            store.rows.insert(row.seq, row.clone());
            self.sender.handle_enqueued(row).unwrap();
        }
        self.expire_on_disk();
        self.commits.extend(self.sender.poll_commit(self.now_ms));
        if self.below(2) == 0
            && let Some(commit) = self.commits.pop_front()
        {
            self.sender_store.write(&commit);
            self.sender.handle_durable(&commit);
        }
    }

    /// The owner may know of expired rows that the machine does not hold.
    fn expire_on_disk(&mut self) {
        let last = self.sender_store.rows.values().next_back().cloned();
        if let Some(Row {
            seq,
            expires_ms: Some(at),
            content: Content::Message(_),
            report: Some(id),
        }) = last
            && at <= self.now_ms
            && self.sender.expire(seq)
        {
            let outcome = Outcome::Expired;
            let (seqs, reports) = (vec![seq], vec![Report { id, outcome }]);
            self.commits
                .push_back(SenderCommit::Expired { seqs, reports });
        }
    }

    fn commit_receiver(&mut self) {
        if let Some(arrival) = self.arrivals.pop_front() {
            let refusal = (self.below(4) == 0 && arrival.content != ArrivalContent::Gap(1))
                .then(|| Failure::new(ErrorCode::Denied, "no"))
                .filter(|_| matches!(arrival.content, ArrivalContent::Message(_)));
            self.receiver_store.write(&arrival, refusal.as_ref());
            self.receiver.handle_committed(refusal);
        }
        if let Some(row) = self.receiver.poll_commit() {
            self.receiver_store.row = row;
        }
    }

    fn fail_or_reopen(&mut self) {
        match self.below(4) {
            0 if !self.arrivals.is_empty() => {
                self.arrivals.clear();
                self.receiver.handle_poison();
            }
            1 => self.reopen_sender(),
            2 => self.reopen_receiver(),
            _ => {}
        }
    }

    fn reopen_sender(&mut self) {
        let store = &mut self.sender_store;
        if store.row.halted.is_none() {
            return;
        }
        let rows = std::mem::take(&mut store.rows).into_values();
        store.rows = (1..)
            .zip(rows)
            .map(|(seq, row)| (seq, Row { seq, ..row }))
            .collect();
        let epoch = store.row.history.epoch + 1;
        let kept = store.rows.len() as u64;
        store.row = SenderRow::new(&key(), History { epoch, ..HISTORY }, kept);
        self.n_reopened += 1;
        self.crash_sender();
    }

    fn reopen_receiver(&mut self) {
        let row = &mut self.receiver_store.row;
        if row.halted.is_some() && !row.is_reopened {
            *row = row.reopened();
            self.crash_receiver();
        }
    }

    /// The sender gives the trunk up. Of what is on its way, some is read late, and the rest lost.
    fn break_trunk(&mut self) {
        if !self.is_up {
            return;
        }
        self.is_up = false;
        let trunk = self.trunks;
        self.sender.handle_trunk_down(link(trunk));
        for wires in [&mut self.to_receiver, &mut self.to_sender] {
            let wire = wires.entry(trunk).or_default();
            let n_read = self.rng.next_u32() as usize % (wire.len() + 1);
            wire.truncate(n_read);
            wire.push_back(None);
        }
    }

    fn connect(&mut self) {
        if !self.is_up {
            self.is_up = true;
            self.trunks += 1;
            self.sender.handle_trunk_up(link(self.trunks));
        }
    }

    fn crash_sender(&mut self) {
        self.enqueued.clear();
        self.commits.clear();
        self.break_trunk();
        self.sender = ChannelSender::new(key(), self.sender_store.row);
        self.to_sender.clear();
    }

    fn crash_receiver(&mut self) {
        self.arrivals.clear();
        let store = &self.receiver_store;
        let refusals = store.refusals.iter().map(|(seq, failure)| Refusal {
            seq: *seq,
            failure: failure.clone(),
        });
        self.receiver = ChannelReceiver::new(key(), WINDOW, store.row, refusals.collect());
        self.break_trunk();
        self.to_receiver.clear();
    }

    /// No more is said and nothing breaks, until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..20_000 {
            self.connect();
            self.flow();
            self.commit_sender();
            self.commit_receiver();
            if self.has_poison {
                self.reopen_sender();
                self.reopen_receiver();
            }
        }
    }

    /// Says other messages than before, and forgets which of them were sent.
    fn give_numbers_twice(&mut self) {
        for _ in 0..40 {
            self.say();
            self.commit_sender();
        }
        self.crash_sender();
    }

    /// Whether the receiver handled what the sender never said, or took for a gap what it keeps.
    fn sender_has_forgotten(&self) -> bool {
        let SenderStore { row, rows, .. } = &self.sender_store;
        let is_kept = |seq| rows.get(seq).is_some_and(|row| row.content != Content::Gap);
        let mut handled = self.receiver_store.numbers.iter();
        let confirmed = self.receiver_store.row.confirmed;
        row.acked.seq < confirmed
            || handled.any(|(seq, body)| *seq >= row.next_seq || (body.is_none() && is_kept(seq)))
    }

    fn halts(&self) -> (Option<Halt>, Option<Halt>) {
        let ReceiverRow {
            halted,
            is_reopened,
            ..
        } = self.receiver_store.row;
        (
            self.sender_store.row.halted,
            halted.filter(|_| !is_reopened),
        )
    }

    /// Everything that was said was handled, or is a gap that was reported; and reports are true.
    fn assert_whole(&self) {
        let (sent, received) = (&self.sender_store, &self.receiver_store);
        assert!(sent.rows.is_empty(), "these are left: {:?}", sent.rows);
        for (id, body) in &sent.said {
            let expected = match &sent.reports[id] {
                Outcome::Expired => None,
                Outcome::Delivered | Outcome::Refused(_) => Some(body),
            };
            assert_eq!(received.handled.get(id), expected, "message {id}");
            let is_refused = matches!(sent.reports[id], Outcome::Refused(_));
            assert_eq!(received.refused.contains(id), is_refused, "message {id}");
        }
        assert!(received.handled.keys().all(|id| sent.said.contains_key(id)));
    }
}

impl SenderStore {
    fn write(&mut self, commit: &SenderCommit) {
        match commit {
            SenderCommit::Acked { position, reports } => {
                self.row.acked = *position;
                self.rows.retain(|seq, _| *seq > position.seq);
                self.report(reports);
            }
            SenderCommit::Expired { seqs, reports } => {
                for seq in seqs {
                    self.rows.get_mut(seq).unwrap().content = Content::Gap;
                }
                self.report(reports);
            }
            SenderCommit::Mark(mark) => self.row.mark = *mark,
            SenderCommit::Halted(reason) => self.row.halted = Some(*reason),
        }
    }

    fn report(&mut self, reports: &[Report]) {
        for report in reports {
            let before = self.reports.insert(report.id, report.outcome.clone());
            assert_eq!(before, None, "{report:?} is the second");
        }
    }
}

impl ReceiverStore {
    fn write(&mut self, arrival: &Arrival, refusal: Option<&Failure>) {
        if arrival.is_first {
            self.numbers.clear();
            self.refusals.clear();
        }
        let first = self.numbers.len() as u64 + 1;
        let last = arrival.row.position.unwrap().seq;
        self.row = arrival.row;
        self.refusals.retain(|seq, _| *seq > arrival.row.confirmed);
        let ArrivalContent::Message(body) = &arrival.content else {
            self.numbers.extend((first..=last).map(|seq| (seq, None)));
            return;
        };
        assert_eq!(self.numbers.insert(last, Some(body.clone())), None);
        let last_id = self.handled.keys().next_back();
        assert!(
            last_id.is_none_or(|last| *last < id(body)),
            "twice, or out of turn"
        );
        self.handled.insert(id(body), body.clone());
        if let Some(failure) = refusal {
            self.refusals.insert(last, failure.clone());
            self.refused.insert(id(body));
        }
    }
}

/// Runs with many seeds; a failure prints its own. At least 20 of them must have met what
/// the test is about, which `run` returns.
#[expect(clippy::print_stderr, reason = "the test runner shows it on failure")]
fn for_seeds(run: impl Fn(u64) -> bool) {
    let mut n_met = 0;
    for seed in 0..300 {
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(met) => n_met += u32::from(met),
            Err(panic) => {
                eprintln!("failed with seed {seed}");
                resume_unwind(panic);
            }
        }
    }
    assert!(n_met >= 20, "{n_met} of 300 seeds met it");
}

#[test]
fn messages_are_handled_once_and_in_order_over_crashes_and_broken_trunks() {
    for_seeds(|seed| {
        let mut world = World::new(seed);
        (0..STEPS).for_each(|_| world.step());
        world.settle();
        assert_eq!(world.halts(), (None, None));
        world.assert_whole();
        let outcomes: Vec<_> = world.sender_store.reports.values().collect();
        let is_refused = |outcome: &&Outcome| matches!(outcome, Outcome::Refused(_));
        outcomes.contains(&&Outcome::Expired) && outcomes.iter().any(is_refused)
    });
}

#[test]
fn messages_are_handled_once_and_in_order_over_failures_of_the_receivers_plugin() {
    for_seeds(|seed| {
        let mut world = World::new(seed);
        world.has_poison = true;
        (0..2 * STEPS).for_each(|_| world.step());
        world.settle();
        assert_eq!(world.halts(), (None, None));
        world.assert_whole();
        world.n_reopened > 1
    });
}

#[test]
fn an_older_copy_of_the_senders_store_halts_both_ends() {
    let went_back = Some(Halt::SenderWentBack);
    for_seeds(|seed| {
        let mut world = World::new(seed);
        (0..STEPS).for_each(|_| world.step());
        let copy = world.sender_store.clone();
        (0..seed % 200).for_each(|_| world.step());
        if seed % 3 == 0 {
            world.settle();
        }
        world.sender_store = copy;
        let is_older = world.sender_has_forgotten();
        world.crash_sender();
        if seed % 2 == 0 {
            world.give_numbers_twice();
        }
        (0..STEPS).for_each(|_| world.step());
        world.settle();
        if is_older {
            assert_eq!(world.halts(), (went_back, went_back));
        } else if world.halts() == (None, None) {
            world.assert_whole();
        } else {
            // What the receiver has heard was not durable.
            assert_eq!(world.halts(), (went_back, went_back));
        }
        is_older
    });
}

#[test]
fn an_older_copy_of_the_receivers_store_halts_both_ends() {
    let went_back = Some(Halt::ReceiverWentBack);
    for_seeds(|seed| {
        let mut world = World::new(seed);
        (0..STEPS).for_each(|_| world.step());
        let copy = world.receiver_store.clone();
        (0..seed % 200).for_each(|_| world.step());
        if seed % 3 == 0 {
            world.settle();
        }
        world.receiver_store = copy;
        let known = world.receiver_store.row.position;
        let is_older = known.map_or(0, |known| known.seq) < world.sender_store.row.acked.seq;
        world.crash_receiver();
        (0..STEPS).for_each(|_| world.step());
        world.settle();
        if is_older {
            assert_eq!(world.halts(), (went_back, went_back));
        } else if world.halts() == (None, None) {
            world.assert_whole();
        } else {
            // An acknowledgement was not durable, but had come.
            assert_eq!(world.halts(), (went_back, went_back));
        }
        is_older
    });
}
