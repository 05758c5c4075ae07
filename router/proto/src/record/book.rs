//! The records that a node holds: of each node the one with the highest sequence, while it is
//! fresh.
//!
//! Whoever signs is believed about itself, and keys cost nothing: a liar makes as many nodes as it
//! likes. So nobody's word takes another's place:
//!
//! - Some nodes are kept: they have a place whatever comes.
//! - All others are charged to the node that told of them first; what the one that is charged the
//!   most pays for, others that tell of it too take over. Only who is charged less than another takes a place from it, so that a full book
//!   divides itself evenly among those that tell; a network larger than their shares is known in
//!   part.
//! - Of a share the latest comer goes first: who was there before a flood stays. Who has its share
//!   gets a place only for one that it has ceased to tell of.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use super::{MAX_SET_RECORDS, NodeRecord, RecordError, SignedRecord, encode_set, signed_at};
use crate::id::NodeId;

/// A node signs its record anew this often.
pub const RECORD_RENEWAL: Duration = Duration::from_secs(12 * 60 * 60);
/// A record older than that is dropped, and told to nobody: its node missed five renewals.
pub const MAX_RECORD_AGE: Duration = Duration::from_secs(6 * RECORD_RENEWAL.as_secs());
/// A record signed later than so long from now is refused, or its node would never grow old here.
/// Clocks are wrong by hours where time zones are.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(24 * 60 * 60);

/// What was not told for so long is told no more: three sets were fetched without it.
const UNTOLD_AFTER: Duration = Duration::from_secs(15 * 60);

/// Places that may be charged anew to one teller: far below the share of a flood, so that who
/// echoes one never has the largest share.
const MAX_TAKEN_OVER: usize = MAX_SET_RECORDS / 16;

/// Signed records by node id, at most [`MAX_SET_RECORDS`]. Time is the caller's.
#[derive(Debug, Clone, Default)]
pub struct RecordBook {
    places: BTreeMap<NodeId, Place>,
    kept: BTreeSet<NodeId>,
    /// How many places are charged to each node that told of others.
    shares: BTreeMap<NodeId, usize>,
    comers: u64,
}

#[derive(Debug, Clone)]
struct Place {
    record: SignedRecord,
    teller: NodeId,
    /// When `teller` last told of it.
    told: SystemTime,
    /// Counts up with each node that comes.
    came: u64,
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordOutcome {
    /// The first of its node.
    New,
    /// It replaced one with a lower sequence.
    Newer,
    /// One with the same or a higher sequence stays.
    Old,
    /// It is older than [`MAX_RECORD_AGE`].
    Expired,
    /// It was signed more than [`MAX_CLOCK_SKEW`] from now: a clock is wrong, its node's or this
    /// one's.
    Early,
    /// The book is full, and who told of the node has its share of it.
    Full,
}

impl RecordOutcome {
    /// Whether the book knows more than before.
    pub fn is_news(self) -> bool {
        match self {
            Self::New | Self::Newer => true,
            Self::Old | Self::Expired | Self::Early | Self::Full => false,
        }
    }
}

impl RecordBook {
    /// Starts empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names the nodes that always have a place: those that the operator named, and those that
    /// this node depends on.
    pub fn set_kept(&mut self, kept: BTreeSet<NodeId>) {
        self.kept = kept;
        self.shares.clear();
        for (id, place) in &self.places {
            if !self.kept.contains(id) {
                *self.shares.entry(place.teller).or_default() += 1;
            }
        }
    }

    /// Takes a record that `teller` told, unless it is of no use.
    pub fn handle_record(
        &mut self,
        now: SystemTime,
        teller: NodeId,
        record: SignedRecord,
    ) -> RecordOutcome {
        let id = record.id();
        let outcome = self.judge(now, teller, &id, record.record().sequence);
        match outcome {
            RecordOutcome::New => self.add(now, id, teller, record),
            RecordOutcome::Newer => {
                if let Some(place) = self.places.get_mut(&id) {
                    place.record = record;
                }
                self.charge(now, &id, teller);
            }
            RecordOutcome::Old => self.charge(now, &id, teller),
            RecordOutcome::Expired | RecordOutcome::Early | RecordOutcome::Full => {}
        }
        outcome
    }

    /// Takes an encoded record that `teller` told. One that the book would not take anyway is not
    /// verified, which is what makes whole sets, told again and again, cheap.
    ///
    /// # Errors
    /// [`RecordError`] when it is not to be believed.
    pub fn handle_bytes(
        &mut self,
        now: SystemTime,
        teller: NodeId,
        bytes: &[u8],
    ) -> Result<RecordOutcome, RecordError> {
        let (id, sequence) = SignedRecord::peek(bytes)?;
        let outcome = self.judge(now, teller, &id, sequence);
        match outcome {
            RecordOutcome::New | RecordOutcome::Newer => {
                let record = SignedRecord::decode(bytes)?;
                return Ok(self.handle_record(now, teller, record));
            }
            RecordOutcome::Old => self.charge(now, &id, teller),
            RecordOutcome::Expired | RecordOutcome::Early | RecordOutcome::Full => {}
        }
        Ok(outcome)
    }

    /// Drops what is older than [`MAX_RECORD_AGE`]. To be called every few minutes.
    pub fn handle_timeout(&mut self, now: SystemTime) {
        let expired = self
            .places
            .iter()
            .filter(|(_, place)| place.is_expired(now));
        let expired: Vec<NodeId> = expired.map(|(id, _)| *id).collect();
        for id in expired {
            self.remove(&id);
        }
    }

    fn judge(&self, now: SystemTime, teller: NodeId, id: &NodeId, sequence: u64) -> RecordOutcome {
        let signed = signed_at(sequence);
        if signed
            .duration_since(now)
            .is_ok_and(|ahead| ahead > MAX_CLOCK_SKEW)
        {
            return RecordOutcome::Early;
        }
        if is_expired(signed, now) {
            return RecordOutcome::Expired;
        }
        match self.places.get(id) {
            Some(known) if known.record.record().sequence >= sequence => RecordOutcome::Old,
            Some(_) => RecordOutcome::Newer,
            None if self.places.len() < MAX_SET_RECORDS => RecordOutcome::New,
            None if self.gives_way(now, teller, id).is_some() => RecordOutcome::New,
            None => RecordOutcome::Full,
        }
    }

    /// Whose place in a full book `id` gets, which `teller` tells of.
    fn gives_way(&self, now: SystemTime, teller: NodeId, id: &NodeId) -> Option<NodeId> {
        let largest = self.shares.iter().max_by_key(|(_, charged)| **charged);
        let (most, charged) = largest.map(|(most, charged)| (*most, *charged))?;
        let found = if self.kept.contains(id) || self.share(&teller) + 1 < charged {
            self.charged_to(most).max_by_key(|(_, place)| place.came)
        } else {
            let untold = |place: &Place| {
                let since = now.duration_since(place.told);
                since.is_ok_and(|since| since > UNTOLD_AFTER)
            };
            self.charged_to(teller).find(|(_, place)| untold(place))
        };
        found.map(|(id, _)| *id)
    }

    fn charged_to(&self, teller: NodeId) -> impl Iterator<Item = (&NodeId, &Place)> {
        let places = self.places.iter();
        places.filter(move |(id, place)| place.teller == teller && !self.kept.contains(id))
    }

    fn add(&mut self, now: SystemTime, id: NodeId, teller: NodeId, record: SignedRecord) {
        if self.places.len() >= MAX_SET_RECORDS
            && let Some(gone) = self.gives_way(now, teller, &id)
        {
            self.remove(&gone);
        }
        self.comers += 1;
        let place = Place {
            record,
            teller,
            told: now,
            came: self.comers,
        };
        self.places.insert(id, place);
        if !self.kept.contains(&id) {
            *self.shares.entry(teller).or_default() += 1;
        }
    }

    /// Charges a known node to `teller`, which tells of it too, when the one that is charged the
    /// most pays for it. Small shares stay as they are: who echoes a flood, and tells of others
    /// beside, shall not take these into the share that gives way.
    fn charge(&mut self, now: SystemTime, id: &NodeId, teller: NodeId) {
        let (kept, less) = (self.kept.contains(id), self.share(&teller));
        let most = self.shares.values().copied().max().unwrap_or(0);
        let Some(place) = self.places.get_mut(id) else {
            return;
        };
        if place.teller == teller {
            place.told = now;
            return;
        }
        let charged = self.shares.entry(place.teller).or_default();
        if !kept && *charged == most && less + 1 < *charged && less < MAX_TAKEN_OVER {
            *charged -= 1;
            (place.teller, place.told) = (teller, now);
            *self.shares.entry(teller).or_default() += 1;
        }
    }

    fn share(&self, teller: &NodeId) -> usize {
        self.shares.get(teller).copied().unwrap_or(0)
    }

    fn remove(&mut self, id: &NodeId) {
        let Some(place) = self.places.remove(id) else {
            return;
        };
        if self.kept.contains(id) {
            return;
        }
        if let Some(charged) = self.shares.get_mut(&place.teller) {
            *charged -= 1;
            if *charged == 0 {
                self.shares.remove(&place.teller);
            }
        }
    }

    /// The newest record of a node.
    pub fn get(&self, id: &NodeId) -> Option<&SignedRecord> {
        self.places.get(id).map(|place| &place.record)
    }

    /// What the newest record of a node says.
    pub fn record(&self, id: &NodeId) -> Option<&NodeRecord> {
        self.get(id).map(SignedRecord::record)
    }

    /// All records, by id.
    pub fn iter(&self) -> impl Iterator<Item = &SignedRecord> {
        self.places.values().map(|place| &place.record)
    }

    /// How many nodes have a record here.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// All records that are fresh, as one set.
    pub fn encode_set(&self, now: SystemTime) -> Vec<u8> {
        let fresh = self.places.values().filter(|place| !place.is_expired(now));
        encode_set(fresh.map(|place| &place.record))
    }
}

impl Place {
    fn is_expired(&self, now: SystemTime) -> bool {
        is_expired(self.record.record().signed_at(), now)
    }
}

fn is_expired(signed: SystemTime, now: SystemTime) -> bool {
    now.duration_since(signed)
        .is_ok_and(|age| age > MAX_RECORD_AGE)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::testing::TestNode;

    const NOW: SystemTime = UNIX_EPOCH;

    fn sequence_of(book: &RecordBook, node: &TestNode) -> Option<u64> {
        book.record(&node.id()).map(|record| record.sequence)
    }

    fn teller(number: u8) -> NodeId {
        NodeId::from_bytes([number; 32])
    }

    /// Invents nodes, as if `teller` had told of them, until the book takes no more.
    fn flood(book: &mut RecordBook, teller: NodeId, count: u64) {
        let record = TestNode::new(1).signed(1);
        for number in 0..count {
            let mut id = *teller.as_bytes();
            id[..8].copy_from_slice(&number.to_be_bytes());
            let id = NodeId::from_bytes(id);
            if book.judge(NOW, teller, &id, 1) == RecordOutcome::New {
                book.add(NOW, id, teller, record.clone());
            }
        }
    }

    #[test]
    fn the_highest_sequence_stays() {
        let (node, mut book) = (TestNode::new(1), RecordBook::new());
        for (sequence, outcome) in [
            (5, RecordOutcome::New),
            (4, RecordOutcome::Old),
            (5, RecordOutcome::Old),
            (9, RecordOutcome::Newer),
        ] {
            let record = node.signed(sequence);
            assert_eq!(book.handle_record(NOW, teller(7), record), outcome);
        }
        assert_eq!(sequence_of(&book, &node), Some(9));
    }

    #[test]
    fn a_forged_record_changes_nothing() {
        let (node, mut book) = (TestNode::new(1), RecordBook::new());
        let take = |book: &mut RecordBook, bytes: &[u8]| book.handle_bytes(NOW, teller(7), bytes);
        book.handle_record(NOW, teller(7), node.signed(5));
        let mut forged = node.signed(6).bytes().to_vec();
        // The last byte of the sequence.
        forged[40] = 7;
        assert_eq!(take(&mut book, &forged), Err(RecordError::Signature));
        assert_eq!(sequence_of(&book, &node), Some(5));
        let same = take(&mut book, node.signed(5).bytes());
        assert_eq!(same, Ok(RecordOutcome::Old));
        let newer = take(&mut book, node.signed(6).bytes());
        assert_eq!(newer, Ok(RecordOutcome::Newer));
    }

    #[test]
    fn a_flood_takes_the_place_of_nobody_else() {
        let (kept, honest, late) = (TestNode::new(1), TestNode::new(2), TestNode::new(3));
        let (liar, friend) = (teller(8), teller(9));
        let mut book = RecordBook::new();
        book.set_kept([kept.id()].into());
        flood(&mut book, liar, 5000);
        assert_eq!(book.len(), MAX_SET_RECORDS);
        let told = book.handle_record(NOW, liar, honest.signed(1));
        assert_eq!(
            told,
            RecordOutcome::Full,
            "the liar has more than its share"
        );
        let told = book.handle_bytes(NOW, friend, honest.signed(1).bytes());
        assert_eq!(told, Ok(RecordOutcome::New));
        let told = book.handle_record(NOW, liar, kept.signed(1));
        assert_eq!(told, RecordOutcome::New, "whoever tells of it");
        let told = book.handle_record(NOW, friend, late.signed(1));
        assert_eq!(told, RecordOutcome::New);
        assert_eq!(book.len(), MAX_SET_RECORDS);
        flood(&mut book, liar, 5000);
        for node in [&kept, &honest, &late] {
            assert_eq!(sequence_of(&book, node), Some(1));
        }
    }

    #[test]
    fn who_was_there_before_a_flood_stays_and_two_floods_share() {
        let honest = TestNode::new(2);
        let mut book = RecordBook::new();
        // A liar that tells the truth first; then another of its kind.
        book.handle_record(NOW, teller(8), honest.signed(1));
        flood(&mut book, teller(8), 5000);
        flood(&mut book, teller(9), 5000);
        assert_eq!(sequence_of(&book, &honest), Some(1));
        let half = MAX_SET_RECORDS / 2;
        assert_eq!(
            (book.share(&teller(8)), book.share(&teller(9))),
            (half, half)
        );
    }

    #[test]
    fn who_echoes_a_flood_draws_nobody_into_it() {
        let honest: Vec<TestNode> = (2..10).map(TestNode::new).collect();
        let (liar, hub, echo) = (teller(8), teller(9), teller(10));
        let mut book = RecordBook::new();
        flood(&mut book, liar, 5000);
        for node in &honest {
            book.handle_record(NOW, hub, node.signed(1));
        }
        let all: Vec<NodeId> = book.places.keys().copied().collect();
        for id in &all {
            book.charge(NOW, id, echo);
        }
        assert_eq!(book.share(&hub), honest.len());
        flood(&mut book, liar, 5000);
        assert!(
            honest
                .iter()
                .all(|node| sequence_of(&book, node) == Some(1))
        );
    }

    #[test]
    fn who_has_its_share_replaces_what_it_tells_of_no_more() {
        let (honest, late) = (TestNode::new(2), TestNode::new(3));
        let mut book = RecordBook::new();
        flood(&mut book, teller(8), 5000);
        let again = NOW + UNTOLD_AFTER;
        let tell = |book: &mut RecordBook, now, node: &TestNode| {
            book.handle_record(now, teller(8), node.signed(1))
        };
        assert_eq!(tell(&mut book, again, &honest), RecordOutcome::Full);
        let first = *book.places.keys().next().unwrap();
        book.charge(again, &first, teller(8));
        let later = again + Duration::from_millis(1);
        assert_eq!(tell(&mut book, later, &honest), RecordOutcome::New);
        assert_eq!(book.len(), MAX_SET_RECORDS);
        assert!(book.get(&first).is_some(), "it was told again");
        let shares = book.share(&teller(8));
        assert_eq!(
            (shares, tell(&mut book, again, &late)),
            (MAX_SET_RECORDS, RecordOutcome::Full)
        );
    }

    #[test]
    fn a_node_that_two_tell_of_is_charged_to_the_smaller_share() {
        let honest = TestNode::new(2);
        let mut book = RecordBook::new();
        flood(&mut book, teller(8), 100);
        book.handle_record(NOW, teller(8), honest.signed(1));
        assert_eq!(book.share(&teller(8)), 101);
        book.handle_bytes(NOW, teller(9), honest.signed(1).bytes())
            .unwrap();
        assert_eq!((book.share(&teller(8)), book.share(&teller(9))), (100, 1));
        book.set_kept([honest.id()].into());
        assert_eq!((book.share(&teller(8)), book.share(&teller(9))), (100, 0));
    }

    #[test]
    fn records_age_and_old_ones_are_told_to_nobody() {
        let (node, mut book) = (TestNode::new(1), RecordBook::new());
        let day = Duration::from_secs(24 * 60 * 60);
        let signed = NOW + 10 * day;
        let sequence = u64::try_from((10 * day).as_millis()).unwrap();
        let record = node.signed(sequence);
        let take = |book: &mut RecordBook, now| book.handle_record(now, teller(7), record.clone());
        assert_eq!(take(&mut book, signed - MAX_CLOCK_SKEW), RecordOutcome::New);
        let last = signed + MAX_RECORD_AGE;
        book.handle_timeout(last);
        assert!(!book.encode_set(last).is_empty());
        let over = last + Duration::from_millis(1);
        assert!(book.encode_set(over).is_empty());
        book.handle_timeout(over);
        assert!(book.is_empty() && book.shares.is_empty());
        assert_eq!(take(&mut book, over), RecordOutcome::Expired);
        let early = signed - MAX_CLOCK_SKEW - Duration::from_millis(1);
        assert_eq!(take(&mut book, early), RecordOutcome::Early);
        let never = book.handle_record(over, teller(7), node.signed(u64::MAX));
        assert_eq!(never, RecordOutcome::Early);
    }
}
