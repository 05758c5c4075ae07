//! The flows that live, and those of late: what `flows` and `why` show.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use dashmap::DashMap;
use wormholes_proto::{NodeId, Target, Transport, control::FlowState};
use wormholes_rules::{Outcome, RuleRef, Trace, TunnelKind};

use super::{
    Asked, Refusal,
    crowds::{Crowds, Opening},
};
use crate::{config::LimitsConfig, pipe::FlowBytes};

/// A flow, as long as somebody may ask about it.
#[derive(Debug)]
pub struct Flow {
    /// Its number, from 1, never used again.
    pub id: u64,
    /// `socks5`, `http`, `tcp`, `udp`, `embed` or `plugin`.
    pub entrance: &'static str,
    /// What it is made of.
    pub transport: Transport,
    /// Where it goes.
    pub target: Target,
    /// When it was asked for.
    pub asked_at: SystemTime,
    /// The same, to measure with.
    pub asked: Instant,
    /// Bytes moved: up leaves the program.
    pub bytes: FlowBytes,
    story: Mutex<Story>,
}

/// What has become of a flow.
#[derive(Debug, Clone, Default)]
pub struct Story {
    /// How far it is.
    pub state: FlowState,
    /// What the scripts said, in order; empty when nothing is recorded.
    pub decisions: Vec<Decided>,
    /// What was tried, in order; empty when nothing is recorded.
    pub tries: Vec<Tried>,
    /// The kind of tunnel that was tried last, for the flow or for a look-up.
    pub last_tried: Option<TunnelKind>,
    /// How it travels.
    pub tunnel: Option<TunnelKind>,
    /// The nodes that it passes, as far as this node knows them.
    pub path: Vec<NodeId>,
    /// The kind of tunnel that it travelled by before, and the bytes that it had moved then.
    pub moved_from: Option<(TunnelKind, Moved)>,
    /// The rule that decided last; none is the default.
    pub rule: Option<RuleRef>,
    /// The label of the step that it took.
    pub label: Option<String>,
    /// From the request to the open tunnel.
    pub open_took: Option<Duration>,
    /// Why it ended other than well, or why it was refused.
    pub end: Option<String>,
}

/// One answer of the scripts.
#[derive(Debug, Clone)]
pub struct Decided {
    /// `c.attempt`.
    pub attempt: u8,
    /// The rules that were in force.
    pub generation: u64,
    /// The answer.
    pub outcome: Outcome,
    /// How it came about.
    pub trace: Trace,
}

/// One tunnel that was tried.
#[derive(Debug, Clone)]
pub struct Tried {
    /// Which one, as a script would write it.
    pub tunnel: String,
    /// Why it did not open; none when it did.
    pub error: Option<String>,
    /// The node that did not do its part, when it was one.
    pub failed_at: Option<NodeId>,
    /// How long it took.
    pub took: Duration,
}

/// All flows of a node.
#[derive(Debug)]
pub struct FlowTable {
    /// At most `max_open`; more are refused.
    living: DashMap<u64, Arc<Flow>>,
    open: AtomicUsize,
    max_open: usize,
    crowds: Crowds,
    /// At most `max_kept`; the oldest goes.
    kept: Mutex<VecDeque<Arc<Flow>>>,
    max_kept: usize,
    last_id: AtomicU64,
    totals: Mutex<Totals>,
}

/// What has become of all flows since the start.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// Flows that opened, by kind of tunnel.
    pub opened: BTreeMap<TunnelKind, u64>,
    /// Flows that a rule or the host refused.
    pub blocked: u64,
    /// Flows that did not open for any other reason.
    pub failed: u64,
    /// Bytes of flows that opened, by kind of tunnel.
    pub bytes: BTreeMap<TunnelKind, Moved>,
}

/// Bytes that moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Out of programs.
    pub up: u64,
    /// To programs.
    pub down: u64,
}

/// A place in the table, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    flow: Arc<Flow>,
    table: Arc<FlowTable>,
}

impl Flow {
    /// What has become of it.
    pub fn story(&self) -> Story {
        self.lock().clone()
    }

    /// How far it is and how it travels, without what the scripts read.
    pub fn summary(&self) -> Story {
        let story = self.lock();
        Story {
            state: story.state,
            last_tried: story.last_tried,
            tunnel: story.tunnel,
            path: story.path.clone(),
            moved_from: story.moved_from,
            rule: story.rule.clone(),
            label: story.label.clone(),
            open_took: story.open_took,
            end: story.end.clone(),
            decisions: Vec::new(),
            tries: Vec::new(),
        }
    }

    /// How it travels by now.
    pub(super) fn tunnel(&self) -> Option<TunnelKind> {
        self.lock().tunnel
    }

    /// Tells the story on.
    pub(super) fn tell(&self, change: impl FnOnce(&mut Story)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Story> {
        self.story.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Totals {
    /// All bytes, whatever carried them.
    pub fn all_bytes(&self) -> Moved {
        self.bytes
            .values()
            .fold(Moved::default(), |all, bytes| Moved {
                up: all.up + bytes.up,
                down: all.down + bytes.down,
            })
    }

    fn add_bytes(&mut self, flow: &Flow) {
        let story = flow.lock();
        let (Some(kind), from) = (story.tunnel, story.moved_from) else {
            return;
        };
        drop(story);
        let before = from.map_or_else(Moved::default, |(_, before)| before);
        if let Some((kind, _)) = from {
            let moved = self.bytes.entry(kind).or_default();
            moved.up += before.up;
            moved.down += before.down;
        }
        let moved = self.bytes.entry(kind).or_default();
        moved.up += flow.bytes.up.load(Relaxed).saturating_sub(before.up);
        moved.down += flow.bytes.down.load(Relaxed).saturating_sub(before.down);
    }
}

impl FlowTable {
    /// An empty table that remembers `max_kept` flows.
    pub(crate) fn new(limits: &LimitsConfig, max_kept: usize) -> Arc<Self> {
        Arc::new(Self {
            living: DashMap::new(),
            open: AtomicUsize::new(0),
            max_open: limits.flows,
            crowds: Crowds::new(limits.opening_per_target),
            kept: Mutex::default(),
            max_kept,
            last_id: AtomicU64::new(0),
            totals: Mutex::default(),
        })
    }

    /// What has become of all flows; living ones count with the bytes that they moved so far.
    pub fn totals(&self) -> Totals {
        // One lock over both: a flow that ends meanwhile counts once, as ended or as living.
        self.count(|ended| {
            let mut totals = ended.clone();
            for flow in &self.living {
                totals.add_bytes(&flow);
            }
            totals
        })
    }

    /// Changes what is counted.
    pub(super) fn count<T>(&self, change: impl FnOnce(&mut Totals) -> T) -> T {
        change(&mut self.totals.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many flows live.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Flows that live, newest first.
    pub fn living(&self, limit: usize) -> Vec<Arc<Flow>> {
        let flows = self.living.iter().map(|flow| Arc::clone(flow.value()));
        let mut flows: Vec<_> = flows.collect();
        flows.sort_by_key(|flow| std::cmp::Reverse(flow.id));
        flows.truncate(limit);
        flows
    }

    /// A flow that lives or is remembered.
    pub fn find(&self, id: u64) -> Option<Arc<Flow>> {
        if let Some(flow) = self.living.get(&id) {
            return Some(Arc::clone(flow.value()));
        }
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|flow| flow.id == id).cloned()
    }

    /// Whether decisions are recorded.
    pub(super) fn records(&self) -> bool {
        self.max_kept > 0
    }

    /// Remembers `flow`.
    fn keep(&self, flow: Arc<Flow>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = match kept.len() < self.max_kept {
            true => None,
            false => kept.pop_back(),
        };
        kept.push_front(flow);
        // A story takes longer to drop than to keep: nobody waits for that.
        drop(kept);
        drop(oldest);
    }

    /// Takes a place for a flow.
    ///
    /// # Errors
    /// [`Refusal::Busy`].
    pub(super) fn admit(self: &Arc<Self>, asked: &Asked) -> Result<Place, Refusal> {
        let one_more = |open: usize| (open < self.max_open).then_some(open + 1);
        if self.open.fetch_update(Relaxed, Relaxed, one_more).is_err() {
            self.crowds.close(&asked.target);
            return Err(Refusal::Busy);
        }
        let flow = Arc::new(Flow {
            id: 1 + self.last_id.fetch_add(1, Relaxed),
            entrance: asked.entrance,
            transport: asked.transport,
            target: asked.target.clone(),
            asked_at: SystemTime::now(),
            asked: Instant::now(),
            bytes: FlowBytes::default(),
            story: Mutex::default(),
        });
        self.living.insert(flow.id, Arc::clone(&flow));
        if self.records() {
            self.keep(Arc::clone(&flow));
        }
        Ok(Place {
            flow,
            table: Arc::clone(self),
        })
    }
}

impl Place {
    /// Begins to open it.
    ///
    /// # Errors
    /// [`Refusal::Crowded`].
    pub(super) fn begin(&self) -> Result<Opening<'_>, Refusal> {
        self.table.crowds.enter(&self.flow.target)
    }
}

impl std::ops::Deref for Place {
    type Target = Flow;

    fn deref(&self) -> &Flow {
        &self.flow
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.table.count(|totals| {
            totals.add_bytes(&self.flow);
            self.table.living.remove(&self.flow.id);
        });
        self.table.open.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(flows: usize, max_kept: usize) -> Arc<FlowTable> {
        let limits = LimitsConfig {
            flows,
            ..LimitsConfig::default()
        };
        FlowTable::new(&limits, max_kept)
    }

    fn admit(table: &Arc<FlowTable>) -> Result<Place, Refusal> {
        table.admit(&Asked::test("a.example:80"))
    }

    #[test]
    fn places_are_bounded_and_given_back() {
        let table = table(2, 0);
        let first = admit(&table).unwrap();
        let second = admit(&table).unwrap();
        assert_eq!(admit(&table).unwrap_err(), Refusal::Busy);
        assert_eq!(table.living(9).first().unwrap().id, second.id);
        let gone = first.id;
        drop(first);
        assert!(table.find(gone).is_none(), "nothing is recorded");
        assert_eq!((admit(&table).unwrap().id, table.open()), (3, 2));
    }

    #[test]
    fn bytes_count_while_they_move_and_once_when_the_flow_ends() {
        let table = table(9, 0);
        let (opening, open) = (admit(&table).unwrap(), admit(&table).unwrap());
        open.tell(|story| story.tunnel = Some(TunnelKind::Onion));
        open.bytes.moved_up(5);
        open.bytes.moved_down(7);
        let moved = BTreeMap::from([(TunnelKind::Onion, Moved { up: 5, down: 7 })]);
        assert_eq!(table.totals().bytes, moved);
        drop((opening, open));
        assert_eq!(table.totals().bytes, moved);
    }

    #[test]
    fn bytes_of_a_flow_that_moved_count_where_they_moved() {
        let table = table(9, 0);
        let open = admit(&table).unwrap();
        open.bytes.moved_up(5);
        let before = Moved { up: 5, down: 0 };
        open.tell(|story| {
            story.moved_from = Some((TunnelKind::Relay, before));
            story.tunnel = Some(TunnelKind::Direct);
        });
        open.bytes.moved_up(2);
        open.bytes.moved_down(7);
        let after = Moved { up: 2, down: 7 };
        let moved = [(TunnelKind::Relay, before), (TunnelKind::Direct, after)];
        let moved = BTreeMap::from(moved);
        assert_eq!(table.totals().bytes, moved);
        drop(open);
        assert_eq!(table.totals().bytes, moved);
    }

    #[test]
    fn no_byte_is_missed_or_counted_twice_when_flows_end_meanwhile() {
        let table = table(1000, 0);
        let flows: Vec<_> = (0..1000).map(|_| admit(&table).unwrap()).collect();
        for flow in &flows {
            flow.tell(|story| story.tunnel = Some(TunnelKind::Direct));
            flow.bytes.moved_up(1);
        }
        std::thread::scope(|scope| {
            let ending = scope.spawn(|| drop(flows));
            while !ending.is_finished() {
                assert_eq!(table.totals().all_bytes().up, 1000);
            }
        });
    }

    #[test]
    fn the_last_flows_are_remembered() {
        let table = table(9, 2);
        for _ in 0..3 {
            admit(&table)
                .unwrap()
                .tell(|story| story.end = Some("x".to_owned()));
        }
        assert!(table.find(1).is_none());
        assert_eq!(table.find(3).unwrap().story().end.as_deref(), Some("x"));
    }
}
