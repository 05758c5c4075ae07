//! Nodes with one plugin, and the time that passes for all of them.

use std::{cell::RefCell, collections::BTreeMap, fmt, rc::Rc, time::Duration};

use serde_json::Value;
use wormholes_plugin::{Error, Level, Plugin, Principal, Result};

use crate::{
    drive::Drive,
    faults::{Faults, Next},
    manifest::Manifest,
    node::{Around, Node, caller, check_length},
    random::Random,
    transaction::Progress,
};

/// When all worlds begin: milliseconds since 1970.
const BEGINNING_MS: u64 = 1_800_000_000_000;
/// What [`Drive::until`] bears before it says that something never comes.
const MAX_STEPS: u32 = 100_000;

/// Nodes with instances of one plugin, in a time of their own. All that is drawn by chance comes from
/// the seed, which is printed when a test fails.
pub struct World<P> {
    seed: u64,
    manifest: Manifest,
    nodes: Vec<Node<P>>,
    around: Around,
}

/// One node of a world.
pub struct At<'a, P> {
    world: &'a mut World<P>,
    number: usize,
}

/// A request that was handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    of: Principal,
    id: u64,
}

impl<P: Plugin> World<P> {
    /// A world with one node, 0. `manifest` is the text of plugin.toml.
    ///
    /// # Panics
    /// When the manifest cannot be read.
    #[expect(clippy::panic, reason = "how a test fails")]
    pub fn new(seed: u64, manifest: &str) -> Self {
        let manifest = match toml::from_str(manifest) {
            Ok(manifest) => manifest,
            Err(error) => panic!("plugin.toml: {error}"),
        };
        let around = Around {
            now_ms: BEGINNING_MS,
            random: Random::new(seed),
            faults: Rc::new(RefCell::new(Faults::default())),
        };
        let mut world = Self {
            seed,
            manifest,
            nodes: Vec::new(),
            around,
        };
        world.add_node();
        world
    }

    /// Adds a node; gives its number.
    pub fn add_node(&mut self) -> usize {
        let mut id = [0; 32];
        id.copy_from_slice(&self.around.random.bytes(32));
        let node = Node::new(id, self.manifest.clone(), &mut self.around);
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// One of the nodes.
    ///
    /// # Panics
    /// When there is none of this number.
    pub fn at(&mut self, number: usize) -> At<'_, P> {
        assert!(number < self.nodes.len(), "there is no node {number}");
        At {
            world: self,
            number,
        }
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.around.now_ms
    }

    /// Lets time pass: timers and deadlines come in their order; what is due at once at several
    /// places, in an order that the seed decides.
    pub fn pass(&mut self, time: Duration) {
        let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let end = self.around.now_ms.saturating_add(time);
        while self.next_due().is_some_and(|due| due <= end) {
            self.step();
        }
        self.around.now_ms = self.around.now_ms.max(end);
    }

    /// Has the host call of this number trap, once; 0 is the next one. Queries are not counted.
    pub fn trap_at(&mut self, host_call: u64) {
        self.expect(Next::Trap(host_call));
    }

    /// Has the node crash before the commit of this number is durable; 0 is the next one.
    pub fn crash_before_commit(&mut self, commit: u64) {
        self.expect(Next::CrashBefore(commit));
    }

    /// Has the node crash when the commit of this number is durable, and nothing has left the node.
    pub fn crash_after_commit(&mut self, commit: u64) {
        self.expect(Next::CrashAfter(commit));
    }

    pub(crate) fn expect(&mut self, next: Next) {
        self.around.faults.borrow_mut().expect(next);
    }

    /// Host calls and commits since the world began.
    pub(crate) fn counted(&self) -> (u64, u64) {
        let faults = self.around.faults.borrow();
        (faults.host_calls, faults.commits)
    }

    /// When something next happens by itself.
    fn next_due(&self) -> Option<u64> {
        let actors = self.nodes.iter().flat_map(|node| node.actors.values());
        actors.filter_map(|actor| actor.next_due()).min()
    }

    /// Lets that happen; whether there was anything.
    fn step(&mut self) -> bool {
        let Some(due) = self.next_due() else {
            return false;
        };
        self.around.now_ms = self.around.now_ms.max(due);
        let nodes = self.nodes.iter().enumerate();
        let all = nodes.flat_map(|(number, node)| {
            let actors = node.actors.iter();
            let due = actors.filter(|(_, actor)| actor.next_due() == Some(due));
            due.map(move |(principal, _)| (number, principal.clone()))
        });
        let all: Vec<_> = all.collect();
        if let Some((number, principal)) = self.around.random.pick(&all)
            && let Some(node) = self.nodes.get_mut(*number)
        {
            node.due(principal, &mut self.around);
        }
        true
    }
}

impl<P: Plugin> At<'_, P> {
    /// Hands a request over, and waits for nothing.
    ///
    /// # Errors
    /// The principal is parked, or has too many open requests.
    pub fn ask(&mut self, of: &Principal, command: &str, arguments: &Value) -> Result<Ticket> {
        let body = arguments.to_string().into_bytes();
        let (node, around) = self.both();
        let id = node.ask(around, of, command, body)?;
        let of = of.clone();
        Ok(Ticket { of, id })
    }

    /// Takes the answer, when it is there.
    pub fn answer(&mut self, ticket: &Ticket) -> Option<Result<Value>> {
        let (node, _) = self.both();
        let answer = node.answers.remove(&ticket.id)?;
        Some(answer.and_then(|body| value(&body)))
    }

    /// What was told of a request on its way.
    pub fn progress(&mut self, ticket: &Ticket) -> Vec<Progress> {
        let (node, _) = self.both();
        node.progress.remove(&ticket.id).unwrap_or_default()
    }

    /// Who asked leaves.
    pub fn leave(&mut self, ticket: &Ticket) {
        let (node, around) = self.both();
        node.give_up(&ticket.of, ticket.id);
        node.drain(&ticket.of, around);
    }

    /// Whether all is well: the plugin's own words.
    ///
    /// # Errors
    /// What is wrong.
    pub fn health(&mut self) -> Result<String> {
        let (node, around) = self.both();
        node.query(&Principal::Node, around, |plugin, cx| plugin.health(cx))
    }

    /// Sets a value of `[plugin.NAME] config`, for the events from now on.
    pub fn config(&mut self, key: &str, value: &Value) {
        let (node, _) = self.both();
        node.config.insert(key.to_owned(), value.to_string());
    }

    /// Starts the node with another version of the plugin, by the text of its plugin.toml.
    ///
    /// # Panics
    /// When the manifest cannot be read.
    #[expect(clippy::panic, reason = "how a test fails")]
    pub fn update(&mut self, manifest: &str) {
        let (node, around) = self.both();
        node.manifest = match toml::from_str(manifest) {
            Ok(manifest) => manifest,
            Err(error) => panic!("plugin.toml: {error}"),
        };
        node.code += 1;
        node.start(around);
    }

    /// Why a principal is parked.
    pub fn parked(&mut self, of: &Principal) -> Option<String> {
        let (node, _) = self.both();
        node.actors.get(of)?.parked.clone()
    }

    /// Has parked principals try again, as `wormholes plugin start`.
    pub fn start(&mut self) {
        let (node, around) = self.both();
        let parked: Vec<_> = node.actors.keys().cloned().collect();
        for principal in parked {
            node.actor(&principal).parked = None;
            node.drain(&principal, around);
        }
    }

    /// Lines of the log since the world began.
    pub fn log(&mut self) -> &[(Level, String)] {
        &self.both().0.log
    }

    #[expect(clippy::indexing_slicing, reason = "`World::at` looked")]
    fn both(&mut self) -> (&mut Node<P>, &mut Around) {
        let World { nodes, around, .. } = &mut *self.world;
        (&mut nodes[self.number], around)
    }
}

impl<P: Plugin> Drive for At<'_, P> {
    fn request(&mut self, of: &Principal, command: &str, arguments: Value) -> Result<Value> {
        let ticket = self.ask(of, command, &arguments)?;
        loop {
            if let Some(answer) = self.answer(&ticket) {
                return answer;
            }
            // Its deadline comes in the end.
            if !self.world.step() {
                return Err(Error::failed("nobody answers: a fault of the kit"));
            }
        }
    }

    fn query(&mut self, of: &Principal, command: &str, arguments: Value) -> Result<Value> {
        let body = arguments.to_string().into_bytes();
        let (node, around) = self.both();
        let answer = node.query(of, around, |plugin, cx| {
            let answer = plugin.query(cx, &caller(of), command, &body)?;
            check_length(&answer).map(|()| answer)
        });
        answer.and_then(|body| value(&body))
    }

    fn restart(&mut self) {
        let (node, around) = self.both();
        node.start(around);
    }

    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        for _ in 0..MAX_STEPS {
            if holds(self) {
                return;
            }
            if !self.world.step() {
                break;
            }
        }
        assert!(holds(self), "waited for {what}, and nothing more happens");
    }
}

fn value(body: &[u8]) -> Result<Value> {
    serde_json::from_slice(body)
        .map_err(|error| Error::failed(format!("the plugin's answer is no JSON: {error}")))
}

impl<P> Drop for World<P> {
    #[expect(clippy::print_stderr, reason = "what a failing test says")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the world's seed was {}", self.seed);
        }
    }
}

impl<P> fmt::Debug for World<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: BTreeMap<_, _> = self.nodes.iter().map(|node| node.id).enumerate().collect();
        f.debug_struct("World")
            .field("seed", &self.seed)
            .field("now_ms", &self.around.now_ms)
            .field("nodes", &nodes)
            .finish_non_exhaustive()
    }
}

impl<P> fmt::Debug for At<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("At")
            .field("node", &self.number)
            .finish_non_exhaustive()
    }
}
