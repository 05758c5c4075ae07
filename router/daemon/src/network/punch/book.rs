//! What is remembered of punches: which run, which peers are left alone for how long, and why the
//! last one failed. Time is an argument.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use thiserror::Error;
use tokio::time::Instant;
use wormholes_proto::{NodeId, Reason};

/// After a failure the peer is left alone for so long: a NAT that is in the way stays. Each further
/// failure doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// As long as that: what stands in the way may be gone some day, without this machine having moved.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// One peer has this node dial what it names once in so long.
const SERVE_PERIOD: Duration = Duration::from_secs(10);
/// Punches at once, whichever end asked. Overflow rule: further ones are not begun, or refused as busy;
/// flows go on through relays, and one of the next begins them.
const MAX_AT_ONCE: usize = 8;
/// Those of them that others asked for: some are left for what this node wants itself. Overflow rule: as
/// above.
const MAX_SERVED: usize = 6;

/// Why no direct path came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PunchFailure {
    /// Nothing of this node could be told.
    #[error(
        "no relay says from which address it sees this node over QUIC, and it has none to tell"
    )]
    NoCandidates,
    /// It could not be asked.
    #[error("the peer is not reached through a relay")]
    NoCircuit,
    /// It said no.
    #[error("the peer does not punch: {0}")]
    Refused(Reason),
    /// What it told leads nowhere.
    #[error("the peer names no address that may be dialled")]
    NotDialable,
    /// Nothing came through, and relays see this node at different ports.
    #[error("the NAT here gives each destination another port")]
    PortChanges,
    /// Nothing came through.
    #[error(
        "nothing came through: a NAT on the way gives each destination another port, or UDP is dropped"
    )]
    NoAnswer,
}

/// All punches of a node.
#[derive(Debug, Default)]
pub(crate) struct Punches(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    /// Of peers alone, by config.toml or the command line: there are no more of them.
    tried: HashMap<NodeId, Tried>,
    running: usize,
    /// Of those, what others asked for.
    serving: usize,
}

#[derive(Debug, Default)]
struct Tried {
    /// This node asked for one, which runs.
    asks: bool,
    /// It asked for one, which runs.
    is_served: bool,
    pause: Duration,
    until: Option<Instant>,
    failed: Option<(PunchFailure, Instant)>,
    served: Option<Instant>,
    /// When the last one ended.
    ended: Option<Instant>,
}

/// The right to punch, which ends with the value.
#[derive(Debug)]
pub(crate) struct Run {
    punches: Arc<Punches>,
    peer: NodeId,
    asks: bool,
    began: Instant,
}

/// How the last punch with a peer failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) failure: PunchFailure,
    /// When.
    pub(crate) at: Instant,
    /// It is left alone until then.
    pub(crate) until: Option<Instant>,
}

impl PunchFailure {
    /// The word for it in metrics and reports; none beside these and `direct`.
    pub const CODES: [&str; 6] = [
        "no-candidates",
        "no-circuit",
        "refused",
        "not-dialable",
        "port-changes",
        "no-answer",
    ];

    /// The word for it.
    pub fn code(self) -> &'static str {
        match self {
            Self::NoCandidates => "no-candidates",
            Self::NoCircuit => "no-circuit",
            Self::Refused(_) => "refused",
            Self::NotDialable => "not-dialable",
            Self::PortChanges => "port-changes",
            Self::NoAnswer => "no-answer",
        }
    }
}

impl Punches {
    /// Begins a punch that this node asks for, unless one runs or the peer is left alone.
    pub(crate) fn begin(self: &Arc<Self>, now: Instant, peer: NodeId) -> Option<Run> {
        let mut book = self.book();
        let has_place = book.running < MAX_AT_ONCE;
        let tried = book.tried.entry(peer).or_default();
        let is_left_alone = tried.until.is_some_and(|until| now < until);
        if !has_place || tried.asks || is_left_alone {
            return None;
        }
        tried.asks = true;
        book.running += 1;
        drop(book);
        Some(self.run(now, peer, true))
    }

    /// Begins one that the peer asks for, however the last one went: it may have moved.
    ///
    /// # Errors
    /// [`Reason::Busy`] when it asks too often, what it asked for before still runs, or too many do.
    pub(crate) fn serve(self: &Arc<Self>, now: Instant, peer: NodeId) -> Result<Run, Reason> {
        let mut book = self.book();
        let has_place = book.running < MAX_AT_ONCE && book.serving < MAX_SERVED;
        let tried = book.tried.entry(peer).or_default();
        let served = tried.served;
        let is_early = served.is_some_and(|served| now.duration_since(served) < SERVE_PERIOD);
        if !has_place || is_early || tried.is_served {
            return Err(Reason::Busy);
        }
        tried.served = Some(now);
        tried.is_served = true;
        book.running += 1;
        book.serving += 1;
        drop(book);
        Ok(self.run(now, peer, false))
    }

    /// Lets all be tried at once: this machine has moved.
    pub(crate) fn start_afresh(&self) {
        for tried in self.book().tried.values_mut() {
            tried.pause = Duration::ZERO;
            tried.until = None;
        }
    }

    /// Forgets those who are no peers any more.
    pub(crate) fn keep(&self, is_peer: impl Fn(&NodeId) -> bool) {
        self.book()
            .tried
            .retain(|id, tried| tried.asks || tried.is_served || is_peer(id));
    }

    /// Why the last one failed, if it did.
    pub(crate) fn failed(&self, peer: &NodeId) -> Option<Failed> {
        let book = self.book();
        let tried = book.tried.get(peer)?;
        let (failure, at) = tried.failed?;
        Some(Failed {
            failure,
            at,
            until: tried.until,
        })
    }

    fn run(self: &Arc<Self>, began: Instant, peer: NodeId, asks: bool) -> Run {
        Run {
            punches: Arc::clone(self),
            peer,
            asks,
            began,
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Run {
    /// With whom.
    pub(crate) fn peer(&self) -> NodeId {
        self.peer
    }

    /// Keeps how it ended. Returns whether that is news: where both ends asked at once two run beside
    /// each other, over the same NATs, and are one try. A path is news after a failure.
    pub(crate) fn end(self, now: Instant, ended: Result<(), PunchFailure>) -> bool {
        let mut book = self.punches.book();
        let tried = book.tried.entry(self.peer).or_default();
        let is_told = tried.ended.is_some_and(|other| other > self.began);
        if is_told && (ended.is_err() || tried.failed.is_none()) {
            return false;
        }
        tried.ended = Some(now);
        match ended {
            Ok(()) => {
                tried.pause = Duration::ZERO;
                tried.until = None;
                tried.failed = None;
            }
            Err(failure) => {
                tried.pause = (tried.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
                tried.until = now.checked_add(tried.pause);
                tried.failed = Some((failure, now));
            }
        }
        true
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let mut book = self.punches.book();
        book.running = book.running.saturating_sub(1);
        book.serving = book.serving.saturating_sub(usize::from(!self.asks));
        if let Some(tried) = book.tried.get_mut(&self.peer) {
            match self.asks {
                true => tried.asks = false,
                false => tried.is_served = false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOB: NodeId = NodeId::from_bytes([1; 32]);
    const EVE: NodeId = NodeId::from_bytes([2; 32]);

    fn fails(punches: &Arc<Punches>, now: Instant) {
        let run = punches.begin(now, BOB).expect("it is not left alone");
        assert!(run.end(now, Err(PunchFailure::NoAnswer)));
    }

    #[test]
    fn who_is_not_reached_is_left_alone_for_longer_each_time_until_this_machine_moves() {
        let (punches, mut now) = (Arc::new(Punches::default()), Instant::now());
        let moment = Duration::from_millis(1);
        for seconds in [30, 60, 120, 240, 480, 600, 600] {
            fails(&punches, now);
            let pause = Duration::from_secs(seconds);
            assert!(punches.begin(now + pause - moment, BOB).is_none());
            assert!(
                punches.begin(now, EVE).is_some(),
                "it is another peer's failure"
            );
            let failed = punches.failed(&BOB).unwrap();
            assert_eq!(failed.failure, PunchFailure::NoAnswer);
            assert_eq!((failed.at, failed.until), (now, Some(now + pause)));
            now += pause;
        }
        fails(&punches, now);
        punches.start_afresh();
        fails(&punches, now);
        assert!(
            punches.begin(now + FIRST_PAUSE, BOB).is_some(),
            "it begins anew"
        );
        let run = punches.begin(now + FIRST_PAUSE, BOB).unwrap();
        assert!(run.end(now, Ok(())));
        assert_eq!(punches.failed(&BOB), None);
        assert!(punches.begin(now, BOB).is_some());
    }

    #[test]
    fn a_peer_is_asked_once_at_a_time_and_asks_once_in_ten_seconds() {
        let (punches, now) = (Arc::new(Punches::default()), Instant::now());
        let run = punches.begin(now, BOB).unwrap();
        assert!(punches.begin(now, BOB).is_none());
        let served = punches.serve(now, BOB).expect("both ends may ask at once");
        drop((run, served));
        let soon = now + SERVE_PERIOD - Duration::from_millis(1);
        assert_eq!(punches.serve(soon, BOB).err(), Some(Reason::Busy));
        assert!(punches.serve(soon, EVE).is_ok());
        assert!(punches.serve(now + SERVE_PERIOD, BOB).is_ok());
        fails(&punches, now);
        let later = now + SERVE_PERIOD * 2;
        assert!(punches.serve(later, BOB).is_ok(), "it may have moved");
    }

    #[test]
    fn what_both_ends_ask_for_at_once_is_one_try() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let failure = Err(PunchFailure::NoAnswer);
        for (first, second, is_news) in [
            (failure, failure, false),
            (Ok(()), Ok(()), false),
            (Ok(()), failure, false),
            (failure, Ok(()), true),
        ] {
            let punches = Arc::new(Punches::default());
            let asked = punches.begin(start, BOB).unwrap();
            let served = punches.serve(after(1), BOB).unwrap();
            assert!(asked.end(after(5), first));
            assert_eq!(served.end(after(6), second), is_news);
            let failed = punches.failed(&BOB);
            let is_direct = first.is_ok() || second.is_ok();
            assert_eq!(failed.is_none(), is_direct, "{failed:?}");
            if let Some(failed) = failed {
                assert_eq!(failed.until, Some(after(5) + FIRST_PAUSE));
            }
            let next = punches.serve(after(60), BOB).unwrap();
            assert!(next.end(after(65), failure), "it is another one");
        }
    }

    #[test]
    fn there_are_so_many_at_once_and_no_more() {
        let (punches, now) = (Arc::new(Punches::default()), Instant::now());
        let id = |number: usize| NodeId::from_bytes([u8::try_from(number).unwrap(); 32]);
        let mut runs: Vec<Run> = (0..MAX_AT_ONCE)
            .map(|number| punches.begin(now, id(number)).unwrap())
            .collect();
        assert!(punches.begin(now, id(100)).is_none());
        assert_eq!(punches.serve(now, id(100)).err(), Some(Reason::Busy));
        runs.pop();
        let served = punches.serve(now, id(100)).expect("there is a place");
        assert!(punches.begin(now, id(101)).is_none());
        drop((runs, served));
        assert!(punches.begin(now, id(101)).is_some());
        punches.keep(|peer| *peer == BOB);
        assert!(punches.book().tried.keys().all(|peer| *peer == BOB));
    }

    #[test]
    fn a_peer_has_one_place_and_those_that_ask_leave_some() {
        let (punches, now) = (Arc::new(Punches::default()), Instant::now());
        let served = punches.serve(now, BOB).unwrap();
        let later = now + SERVE_PERIOD;
        assert_eq!(punches.serve(later, BOB).err(), Some(Reason::Busy));
        punches.keep(|_| false);
        assert_eq!(punches.serve(later, BOB).err(), Some(Reason::Busy));
        drop(served);
        let mut runs = vec![punches.serve(later, BOB).unwrap()];
        let id = |number: usize| NodeId::from_bytes([u8::try_from(number).unwrap(); 32]);
        let others = (2..=MAX_SERVED).map(|number| punches.serve(later, id(number)));
        runs.extend(others.map(Result::unwrap));
        assert_eq!(punches.serve(later, id(100)).err(), Some(Reason::Busy));
        let own = (MAX_SERVED..MAX_AT_ONCE).map(|number| punches.begin(later, id(200 + number)));
        let own: Vec<Run> = own
            .map(|run| run.expect("it is left for this node"))
            .collect();
        assert!(punches.begin(later, id(100)).is_none());
        drop(own);
        assert_eq!(punches.serve(later, id(100)).err(), Some(Reason::Busy));
        runs.pop();
        assert!(punches.serve(later, id(100)).is_ok());
    }

    #[test]
    fn every_failure_has_its_code() {
        let refused = PunchFailure::Refused(Reason::Denied);
        let all = [
            PunchFailure::NoCandidates,
            PunchFailure::NoCircuit,
            refused,
            PunchFailure::NotDialable,
            PunchFailure::PortChanges,
            PunchFailure::NoAnswer,
        ];
        assert_eq!(all.map(PunchFailure::code), PunchFailure::CODES);
    }
}
