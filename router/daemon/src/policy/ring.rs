//! The last decisions with all that their scripts read: what `script replay` asks for.
//!
//! In memory only, and only as many as `record_decisions` says; 0 keeps none.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use wormholes_rules::Recording;

use super::lock;

/// Memory of one hook's decisions, about. Overflow: its oldest go.
const MAX_BYTES: usize = 16 << 20;

/// Decisions of each hook by itself: who calls an exit pushes out no decision about a flow.
#[derive(Debug)]
pub(super) struct DecisionRing {
    /// Of one hook. Overflow: its oldest goes.
    max: usize,
    inner: Mutex<Inner>,
}

/// One decision that is kept.
#[derive(Debug)]
pub(crate) struct KeptDecision {
    /// Counts decisions from 1.
    pub(crate) number: u64,
    /// When it was made.
    pub(crate) at: SystemTime,
    /// The rules that were in force.
    pub(crate) generation: u64,
    /// The decision.
    pub(crate) recording: Recording,
}

#[derive(Debug, Default)]
struct Inner {
    last_number: u64,
    hooks: BTreeMap<&'static str, Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    decisions: VecDeque<Arc<KeptDecision>>,
    bytes: usize,
}

impl DecisionRing {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            inner: Mutex::default(),
        }
    }

    /// Whether decisions are kept.
    pub(super) fn keeps(&self) -> bool {
        self.max > 0
    }

    /// Keeps a decision.
    pub(super) fn keep(&self, generation: u64, recording: Recording) {
        let mut gone = None;
        let mut inner = lock(&self.inner);
        inner.last_number += 1;
        let number = inner.last_number;
        let kept = inner.hooks.entry(recording.question.hook()).or_default();
        kept.bytes += recording.bytes();
        kept.decisions.push_front(Arc::new(KeptDecision {
            number,
            at: SystemTime::now(),
            generation,
            recording,
        }));
        while kept.decisions.len() > self.max || kept.bytes > MAX_BYTES {
            let Some(oldest) = kept.decisions.pop_back() else {
                return;
            };
            kept.bytes -= oldest.recording.bytes();
            gone = Some(oldest);
        }
        // To drop one takes longer than to keep one: nobody waits for that.
        drop(inner);
        drop(gone);
    }

    /// Those that are kept with lower numbers than `before`, the newest first.
    pub(super) fn before(&self, before: u64) -> Vec<Arc<KeptDecision>> {
        let inner = lock(&self.inner);
        let kept = inner.hooks.values().flat_map(|kept| &kept.decisions);
        let older = kept.filter(|decision| decision.number < before);
        let mut older: Vec<_> = older.cloned().collect();
        drop(inner);
        older.sort_unstable_by_key(|decision| std::cmp::Reverse(decision.number));
        older
    }
}

#[cfg(test)]
mod tests {
    use wormholes_rules::{Answer, Conn, NodeView, Outcome, Question, Reads};

    use super::*;

    fn route(host: String) -> Recording {
        Recording {
            question: Question::Route(Arc::new(Conn::to(host, 443))),
            reads: Reads::default(),
            answer: Answer::Route(Outcome::Pass),
            rule: None,
        }
    }

    fn accept() -> Recording {
        let id = wormholes_proto::NodeId::from_bytes([1; 32]);
        Recording {
            question: Question::Accept {
                node: Arc::new(NodeView::stranger(id, "somebody")),
                now: SystemTime::UNIX_EPOCH,
            },
            answer: Answer::Verdict(None),
            ..route(String::new())
        }
    }

    #[test]
    fn the_oldest_of_a_hook_go_and_those_of_others_stay() {
        let ring = DecisionRing::new(2);
        ring.keep(1, route("a.example".to_owned()));
        for _ in 0..5 {
            ring.keep(1, accept());
        }
        let numbers = |before| {
            let kept = ring.before(before);
            kept.iter().map(|kept| kept.number).collect::<Vec<_>>()
        };
        assert_eq!(numbers(u64::MAX), [6, 5, 1]);
        assert_eq!(numbers(6), [5, 1]);
        assert!(numbers(1).is_empty());
    }

    #[test]
    fn large_decisions_are_fewer() {
        let ring = DecisionRing::new(1_000_000);
        let each = route(String::new()).bytes();
        for _ in 0..=MAX_BYTES / each {
            ring.keep(1, route(String::new()));
        }
        assert_eq!(ring.before(u64::MAX).len(), MAX_BYTES / each);
    }
}
