//! Nodes with one plugin, and the time that passes for all of them.

mod network;
mod web;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt,
    rc::Rc,
    time::Duration,
};

use serde_json::Value;
use wormholes_plugin::{
    Blob, Caller, Error, ErrorCode, Level, Plugin, Principal, Result, Ruling, Usage,
};

use crate::{
    blobs::hash,
    counts::Trace,
    drive::Drive,
    due::{Due, Queue},
    event::Event,
    faults::{Faults, Next},
    manifest::Manifest,
    memory::Memory,
    net::Net,
    node::{Around, Node, check_length},
    random::Random,
    transaction::Progress,
};

/// When all worlds begin: milliseconds since 1970.
const BEGINNING_MS: u64 = 1_800_000_000_000;
/// What [`Drive::until`] bears for each node before it says that something never comes.
const MAX_STEPS: usize = 100_000;

/// Nodes with instances of one plugin, in a time of their own. All that is drawn by chance comes from
/// the seed, which is printed when a test fails.
pub struct World<P> {
    seed: u64,
    manifest: Rc<Manifest>,
    pub(crate) nodes: Vec<Node<P>>,
    pub(crate) around: Around,
    pub(crate) queue: Queue,
    /// Channels and fetches that wait for another node to be reached.
    pub(crate) stranded: BTreeSet<Due>,
}

/// One node of a world.
pub struct At<'a, P> {
    world: &'a mut World<P>,
    number: usize,
}

/// A copy of what a node keeps.
#[derive(Debug, Clone)]
pub struct Snapshot(BTreeMap<Principal, Memory>);

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
            Ok(manifest) => Rc::new(manifest),
            Err(error) => panic!("plugin.toml: {error}"),
        };
        let around = Around {
            now_ms: BEGINNING_MS,
            random: Random::new(seed),
            trace: Trace::default(),
            net: Net::default(),
            faults: Rc::new(RefCell::new(Faults::default())),
        };
        let mut world = Self {
            seed,
            manifest,
            nodes: Vec::new(),
            around,
            // Numbers of its own: those of the nodes do not depend on how often it is asked.
            queue: Queue::new(Random::new(!seed)),
            stranded: BTreeSet::new(),
        };
        world.add_node();
        world
    }

    /// Adds a node; gives its number.
    pub fn add_node(&mut self) -> usize {
        let mut seed = [0; 32];
        seed.copy_from_slice(&self.around.random.bytes(32));
        let node = Node::new(seed, Rc::clone(&self.manifest), &mut self.around);
        self.nodes.push(node);
        self.find_ways();
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
        while self.step_until(end) {}
        self.around.now_ms = self.around.now_ms.max(end);
    }

    /// Lets time pass until `holds` does.
    ///
    /// # Panics
    /// When it never does.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        for _ in 0..self.most_steps() {
            if holds(self) {
                return;
            }
            if !self.step() {
                break;
            }
        }
        assert!(holds(self), "waited for {what}, and nothing more happens");
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

    /// Has the trunk between two nodes break, and none be opened until [`Self::heal`]: durable
    /// messages wait, posts are lost, and who asked is told
    /// [`Unavailable`](wormholes_plugin::ErrorCode::Unavailable).
    pub fn cut(&mut self, a: usize, b: usize) {
        self.around.net.cut(a, b, self.around.now_ms);
        self.end_requests(a, b);
        self.end_requests(b, a);
    }

    /// Lets trunks between two nodes be opened again.
    pub fn heal(&mut self, a: usize, b: usize) {
        self.around.net.heal(a, b);
        self.find_ways();
    }

    /// So many of a hundred things that travel between nodes break their trunk; default: 0. Some of
    /// them arrive all the same: a durable message goes again, and is not handled again.
    pub fn unsteady(&mut self, percent: u8) {
        self.around.net.breaks_percent = percent;
    }

    fn most_steps(&self) -> usize {
        MAX_STEPS.saturating_mul(self.nodes.len())
    }

    pub(crate) fn expect(&mut self, next: Next) {
        self.around.faults.borrow_mut().expect(next);
    }

    /// Host calls, commits and sends since the world began.
    pub(crate) fn counted(&self) -> (u64, u64, u64) {
        let faults = self.around.faults.borrow();
        (faults.host_calls, faults.commits, faults.sends)
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
        let id = node.ask(around, of, (caller(of), command, body), None)?;
        let of = of.clone();
        Ok(Ticket { of, id })
    }

    /// Has the next request bring a blob of these bytes: an argument of a command, as `@FILE` does.
    pub fn bring(&mut self, bytes: &[u8]) -> Blob {
        let (node, _) = self.both();
        let name = hash(bytes);
        node.offered.insert(name, bytes.into());
        Blob::named(name)
    }

    /// Takes the answer, when it is there. What an operation came to is there over restarts, until
    /// it is taken.
    pub fn answer(&mut self, ticket: &Ticket) -> Option<Result<Value>> {
        let (node, _) = self.both();
        let actor = node.actors.get_mut(&ticket.of);
        let result = actor.and_then(|it| it.memory.operations.results.remove(&ticket.id));
        let answer = result.or_else(|| node.answers.remove(&ticket.id))?;
        node.answers.remove(&ticket.id);
        Some(answer.and_then(|body| value(&body)))
    }

    /// Has an operation end, as `wormholes op cancel`; false: it goes on no more.
    pub fn cancel(&mut self, ticket: &Ticket) -> bool {
        let (node, around) = self.both();
        let canceled = Error::new(ErrorCode::Expired, "it was canceled");
        let goes_on = node.cancel(&ticket.of, ticket.id, canceled);
        node.drain(&ticket.of, around);
        goes_on
    }

    /// What was told of a request on its way.
    pub fn progress(&mut self, ticket: &Ticket) -> Vec<Progress> {
        let (node, _) = self.both();
        node.progress.remove(&ticket.id).unwrap_or_default()
    }

    /// Who asked leaves; an operation goes on.
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
        Rc::make_mut(&mut node.config).insert(key.to_owned(), value.to_string());
    }

    /// What scripts read of a peer now: the value of a fact that is published and not over.
    pub fn fact(&mut self, kind: &str, peer: &[u8; 32]) -> Option<i64> {
        let (node, around) = self.both();
        let actor = node.actors.get(&Principal::Node)?;
        let fact = actor.memory.facts.get(&(kind.to_owned(), *peer));
        let (value, until_ms) = fact?;
        (*until_ms > around.now_ms).then_some(*value)
    }

    /// What the rules of this node answer to questions of a hook, from now on. Until then no script has
    /// the hook.
    pub fn rule(&mut self, hook: &str, rule: impl Fn(&Value) -> Ruling + 'static) {
        let (node, _) = self.both();
        Rc::make_mut(&mut node.rules.0).insert(hook.to_owned(), Rc::new(rule));
    }

    /// A peer connects, or is gone. Told to a plugin that asks for `presence`, and again when the node
    /// starts.
    pub fn presence(&mut self, peer: [u8; 32], online: bool, trust: u8) {
        let (node, around) = self.both();
        match online {
            true => node.online.insert(peer, trust),
            false => node.online.remove(&peer),
        };
        if node.manifest.capabilities.presence {
            let event = Event::Presence {
                peer,
                online,
                trust,
            };
            node.deliver(&Principal::Node, event, around);
        }
    }

    /// Scripts billed this. Told to a plugin that asks for `usage`; a crash of the node loses what was
    /// not handled.
    pub fn usage(&mut self, usage: Vec<Usage>) {
        let (node, around) = self.both();
        if node.manifest.capabilities.usage {
            node.deliver(&Principal::Node, Event::Usage(usage), around);
        }
    }

    /// Starts the node with another version of the plugin, by the text of its plugin.toml. As at a node
    /// that has no copy of the version before: who cannot be migrated is parked.
    ///
    /// # Panics
    /// When the manifest cannot be read.
    #[expect(clippy::panic, reason = "how a test fails")]
    pub fn update(&mut self, manifest: &str) {
        let (node, around) = self.both();
        node.manifest = match toml::from_str(manifest) {
            Ok(manifest) => Rc::new(manifest),
            Err(error) => panic!("plugin.toml: {error}"),
        };
        node.code += 1;
        node.start(around);
        // It may have another name.
        self.world.find_ways();
    }

    /// Its id, as [`Place::Node`](wormholes_plugin::Place::Node) has it.
    pub fn id(&mut self) -> [u8; 32] {
        self.both().0.id
    }

    /// A copy of all that is durable there.
    pub fn snapshot(&mut self) -> Snapshot {
        let actors = self.both().0.actors.iter();
        let memories = actors.map(|(principal, actor)| (principal.clone(), actor.memory.clone()));
        Snapshot(memories.collect())
    }

    /// Ends the node and starts it on an older copy, as an operator does who has lost the disk.
    pub fn restore(&mut self, snapshot: &Snapshot) {
        let (node, around) = self.both();
        node.restore(&snapshot.0, around);
        self.world.find_ways();
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
            node.mark_all(&principal);
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

    fn begin(&mut self, of: &Principal, command: &str, arguments: Value) -> Result<u64> {
        self.ask(of, command, &arguments).map(|ticket| ticket.id)
    }

    fn outcome(&mut self, of: &Principal, operation: u64) -> Option<Result<Value>> {
        let of = of.clone();
        self.answer(&Ticket { of, id: operation })
    }

    fn add_user(&mut self, name: &str) {
        let (node, _) = self.both();
        node.users.insert(name.into());
    }

    fn restart(&mut self) {
        self.start_again();
    }

    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        for _ in 0..self.world.most_steps() {
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

/// Who asks a principal.
fn caller(principal: &Principal) -> Caller {
    match principal {
        Principal::Node => Caller::Operator,
        Principal::User(name) => Caller::User(name.clone()),
    }
}
