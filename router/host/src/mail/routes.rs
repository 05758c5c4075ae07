//! Routes: which trunk carries what goes to one receiver by one way, and when it is called again.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use rand::Rng as _;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use tokio::time::Instant;
use wormholes_proto::{NodeId, trunk::IdentityKind};

use super::{
    Input, Office, Owner,
    letters::{Errand, Volatile},
    outgoing::OutId,
    trunk::TrunkId,
    wire::{self, Opened, Sign},
};
use crate::{
    event::{ErrorCode, Principal, Refusal},
    keys::Holder,
    loaded::Loaded,
    message::{Identity, OutKey, Parcel, Place, Way},
    network::{Call, CallError},
};

/// A call that failed is tried again after this; twice as long each time, until the second one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(300);
/// After so many failures the pause is the last one, whatever the first is.
const LONGEST: u32 = 16;
/// A trunk without anything to carry is given up after this.
const IDLE: Duration = Duration::from_secs(60);

/// What may share a trunk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RouteKey {
    /// The instance that sends.
    plugin: Arc<str>,
    /// As whom; an alias is one of a principal.
    alias: Option<(Principal, Arc<str>)>,
    to: Place,
    to_plugin: Arc<str>,
    way: Way,
}

/// One receiver by one way.
pub(super) struct Route {
    loaded: Arc<Loaded>,
    state: State,
    failures: u32,
    pub(super) letters: VecDeque<Volatile>,
    pub(super) letter_bytes: usize,
    outs: BTreeSet<OutId>,
}

enum State {
    /// Called again then, if something waits.
    Down(Instant),
    /// Its call began then.
    Calling(u64),
    Up(Standing),
}

/// A trunk that carries a route.
#[derive(Clone, Copy)]
pub(super) struct Standing {
    pub(super) trunk: TrunkId,
    /// When its call began, as the office numbers all: after each trunk with a lower id stood.
    pub(super) called: u64,
}

impl RouteKey {
    pub(super) fn new(node: NodeId, owner: &Owner, key: &OutKey, way: &Way) -> Self {
        let is_here = key.to.place == Place::Node(node);
        Self {
            plugin: Arc::clone(&owner.loaded.name),
            alias: match &key.sender {
                Identity::Node => None,
                Identity::Alias(name) => Some((owner.principal.clone(), Arc::clone(name))),
            },
            to: if is_here { Place::Here } else { key.to.place },
            to_plugin: Arc::clone(&key.to.plugin),
            way: way.clone(),
        }
    }

    pub(super) fn alias(&self) -> Option<&(Principal, Arc<str>)> {
        self.alias.as_ref()
    }
}

impl Route {
    pub(super) fn new(loaded: Arc<Loaded>) -> Self {
        Self {
            loaded,
            state: State::Down(Instant::now()),
            failures: 0,
            letters: VecDeque::new(),
            letter_bytes: 0,
            outs: BTreeSet::new(),
        }
    }

    fn called(&self) -> Option<u64> {
        match self.state {
            State::Down(_) => None,
            State::Calling(called) | State::Up(Standing { called, .. }) => Some(called),
        }
    }

    /// The instance that sends by it.
    pub(super) fn instance(&self) -> u32 {
        self.loaded.number
    }

    pub(super) fn next_letter(&mut self) -> Option<Volatile> {
        let letter = self.letters.pop_front()?;
        self.letter_bytes -= letter.bytes();
        Some(letter)
    }

    fn has_something(&self) -> bool {
        !self.letters.is_empty() || !self.outs.is_empty()
    }

    fn pause(&self) -> Duration {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(LONGEST));
        // Nodes that lost the same peer do not all call it at once.
        let share = rand::rng().random_range(0.75..1.25);
        pause.min(LAST_PAUSE).mul_f64(share)
    }
}

impl Office {
    /// Something leaves a principal.
    pub(super) fn post(&mut self, owner: &Owner, parcel: Parcel) {
        match parcel {
            Parcel::Durable {
                key,
                head,
                place,
                row,
            } => self.enqueue(owner, key, head, place, row),
            Parcel::Post(letter) => self.volatile(owner, letter, None),
            Parcel::Ask {
                id,
                letter,
                deadline_ms,
            } => self.volatile(owner, letter, Some((id, deadline_ms))),
            Parcel::FetchBlob { id, row } => self.begin_fetch(owner, id, *row),
            Parcel::Unfetch { id } => self.end_fetch(owner.home, id),
            Parcel::Reopened {
                peer,
                sends,
                receives,
            } => {
                if receives {
                    self.reopen_in(owner, &peer.back());
                }
                if sends {
                    self.reread(owner, peer);
                }
            }
        }
    }

    /// A channel goes by this route.
    pub(super) fn join(&mut self, key: &RouteKey, loaded: &Arc<Loaded>, out: OutId) {
        let route = self.routes.entry(key.clone());
        let route = route.or_insert_with(|| Route::new(Arc::clone(loaded)));
        route.outs.insert(out);
    }

    /// It does so no more.
    pub(super) fn leave(&mut self, key: &RouteKey, out: OutId) {
        if let Some(route) = self.routes.get_mut(key) {
            route.outs.remove(&out);
        }
    }

    /// What carries a route now.
    pub(super) fn standing(&self, key: &RouteKey) -> Option<Standing> {
        match self.routes.get(key)?.state {
            State::Up(up) if self.trunks.contains_key(&up.trunk) => Some(up),
            State::Up(_) | State::Calling(_) | State::Down(_) => None,
        }
    }

    /// When the first call began of those whose trunks stand, or may do so yet.
    pub(super) fn first_called(&self) -> Option<u64> {
        self.routes.values().filter_map(Route::called).min()
    }

    /// Has the letters of a route sent, or its trunk called.
    pub(super) fn use_route(&mut self, key: &RouteKey) {
        let Some(route) = self.routes.get_mut(key) else {
            return;
        };
        if let State::Up(up) = route.state
            && !self.trunks.contains_key(&up.trunk)
        {
            // The other end had opened it, and nobody told the routes that used it.
            route.state = State::Down(Instant::now());
        }
        match route.state {
            State::Calling(_) => {}
            State::Up(up) => self.fill(key, up.trunk),
            State::Down(at) if at <= Instant::now() && route.has_something() => self.call(key),
            State::Down(_) => {}
        }
    }

    /// Opens the trunk of a route anew.
    pub(super) fn renew(&mut self, key: &RouteKey, trunk: TrunkId) {
        self.down(trunk);
        if let Some(route) = self.routes.get_mut(key) {
            route.state = State::Down(Instant::now());
            self.use_route(key);
        }
    }

    fn call(&mut self, key: &RouteKey) {
        let called = self.id();
        let Some(route) = self.routes.get_mut(key) else {
            return;
        };
        let loaded = Arc::clone(&route.loaded);
        match key.to {
            Place::Here => match self.shared.find(&key.to_plugin) {
                Ok(to) if to.takes_messages() => {
                    let trunk = self.raise_loop(&loaded, &to, key.clone());
                    self.up(key, Standing { trunk, called });
                }
                Ok(_) | Err(_) => self.failed(key, "no plugin of that name takes messages"),
            },
            Place::Alias(_) => {
                let guest = (key.to, Arc::clone(&key.to_plugin));
                match self.guests.get(&guest).copied() {
                    // Called by the other end, and here not before it had its number.
                    Some(trunk) => self.up(
                        key,
                        Standing {
                            trunk,
                            called: trunk,
                        },
                    ),
                    None => self.failed(key, "nobody with that key is connected"),
                }
            }
            Place::Node(node) => {
                route.state = State::Calling(called);
                self.call_node(key, node);
            }
        }
    }

    fn call_node(&self, key: &RouteKey, node: NodeId) {
        let call = Call {
            to: node,
            plugin: key.plugin.to_string(),
            role: key.way.role.to_string(),
            label: key.way.label.to_string(),
            isolation: key.way.isolation.to_string(),
            hides_node: key.alias.is_some(),
        };
        let (network, mail) = (Arc::clone(&self.network), self.mail.clone());
        let (identity, sign) = self.signer(key);
        let key = key.clone();
        tokio::spawn(async move {
            let opened = wire::open(network, call, identity, sign).await;
            mail.tell(Input::Called(key, opened.map(Box::new)));
        });
    }

    /// As whom this end of a route is known.
    pub(super) fn identity(&self, key: &RouteKey) -> NodeId {
        self.alias(key).map_or(self.node, |pair| public(&pair))
    }

    fn alias(&self, key: &RouteKey) -> Option<Ed25519KeyPair> {
        let (principal, name) = key.alias.as_ref()?;
        Some(alias(&*self.network, &key.plugin, principal, name))
    }

    fn signer(&self, key: &RouteKey) -> ((NodeId, IdentityKind), Sign) {
        if let Some(pair) = self.alias(key) {
            let identity = (public(&pair), IdentityKind::Alias);
            let sign = move |message: &[u8]| {
                let mut signature = [0; 64];
                signature.copy_from_slice(pair.sign(message).as_ref());
                signature
            };
            return (identity, Box::new(sign));
        }
        let network = Arc::clone(&self.network);
        let sign = move |message: &[u8]| network.sign(message);
        ((self.node, IdentityKind::Node), Box::new(sign))
    }

    /// What came of a call. Where none can do better until the rules or the config change, none is made
    /// for long.
    pub(super) fn called(&mut self, key: &RouteKey, called: Result<Opened, CallError>) {
        let Some(route) = self.routes.get(key) else {
            return;
        };
        let State::Calling(began) = route.state else {
            return;
        };
        match called {
            Ok(opened) => {
                let ends = (self.identity(key), key.to);
                let loaded = Arc::clone(&route.loaded);
                let trunk = self.raise(opened, loaded, ends, Some(key.clone()));
                self.up(
                    key,
                    Standing {
                        trunk,
                        called: began,
                    },
                );
            }
            Err(error) => {
                tracing::debug!(plugin = %key.plugin, %error, "a node cannot be reached for a plugin");
                if let Some(route) = self.routes.get_mut(key).filter(|_| error.is_final) {
                    route.failures = LONGEST;
                }
                self.failed(key, &error.why);
            }
        }
    }

    fn up(&mut self, key: &RouteKey, standing: Standing) {
        let Some(route) = self.routes.get_mut(key) else {
            return;
        };
        (route.state, route.failures) = (State::Up(standing), 0);
        let outs: Vec<_> = route.outs.iter().copied().collect();
        for out in outs {
            self.link(out, standing);
        }
        self.use_route(key);
    }

    fn failed(&mut self, key: &RouteKey, why: &str) {
        let Some(route) = self.routes.get_mut(key) else {
            return;
        };
        route.state = State::Down(Instant::now() + route.pause());
        route.failures = route.failures.saturating_add(1);
        let letters = std::mem::take(&mut route.letters);
        route.letter_bytes = 0;
        let loaded = Arc::clone(&route.loaded);
        for letter in letters {
            self.waiting.give_back(loaded.number, letter.bytes());
            match letter.errand {
                Errand::Ask { id, .. } => {
                    let refusal = Refusal::new(ErrorCode::Unavailable, why);
                    self.tell_answer(letter.home, id, Err(refusal));
                }
                Errand::Post { .. } => loaded.figures.dropped(),
                // Whoever wants it hears that this is gone.
                Errand::Want(_) => {}
            }
        }
    }

    /// The trunk of a route broke.
    pub(super) fn route_down(&mut self, key: &RouteKey, trunk: TrunkId) {
        if let Some(route) = self.routes.get_mut(key)
            && matches!(route.state, State::Up(up) if up.trunk == trunk)
        {
            route.state = State::Down(Instant::now() + route.pause());
            route.failures = route.failures.saturating_add(1);
        }
    }

    /// An instance has no routes any more.
    pub(super) fn forget_routes(&mut self, instance: u32) {
        self.routes.retain(|_, route| route.instance() != instance);
        self.waiting.forget(instance);
    }

    /// How many an instance has.
    pub(super) fn routes_of(&self, instance: u32) -> usize {
        let routes = self.routes.values();
        routes.filter(|route| route.instance() == instance).count()
    }

    /// Somebody is connected: what waits for him is sent.
    pub(crate) fn reached(&mut self, peer: Place) {
        let keys: Vec<_> = self
            .routes
            .keys()
            .filter(|key| key.to == peer)
            .cloned()
            .collect();
        for key in keys {
            if let Some(route) = self.routes.get_mut(&key)
                && let State::Down(at) = &mut route.state
            {
                *at = Instant::now();
            }
            self.use_route(&key);
        }
    }

    /// What is due again, and what nobody needs any more.
    pub(super) fn look(&mut self) {
        self.look_at_outs();
        self.look_at_asked();
        let now = Instant::now();
        let keys: Vec<_> = self.routes.keys().cloned().collect();
        let routes = keys.len();
        for key in keys {
            self.use_route(&key);
            self.rest(&key, now);
        }
        if self.routes.len() < routes {
            self.forget_last_trunks();
        }
    }

    /// Gives a route up that carries nothing.
    fn rest(&mut self, key: &RouteKey, now: Instant) {
        let Some(route) = self.routes.get(key) else {
            return;
        };
        let trunk = match route.state {
            State::Calling(_) => return,
            State::Down(_) => None,
            State::Up(up) => Some(up.trunk),
        };
        let standing = trunk.and_then(|trunk| self.trunks.get(&trunk));
        let is_busy = standing.is_some_and(|standing| !standing.is_idle(now, IDLE));
        if is_busy || !route.letters.is_empty() {
            return;
        }
        self.forget_idle(route.outs.clone());
        if self.routes.get(key).is_none_or(Route::has_something) {
            return;
        }
        self.routes.remove(key);
        let is_ours = |trunk: &TrunkId| self.trunks.get(trunk).is_some_and(|it| it.route.is_some());
        if let Some(trunk) = trunk.filter(is_ours) {
            self.down(trunk);
        }
    }
}

/// The key pair of an alias: the same for as long as the node has its identity.
pub(crate) fn alias(
    network: &dyn crate::network::Network,
    plugin: &str,
    principal: &Principal,
    name: &str,
) -> Ed25519KeyPair {
    let holder = Holder {
        network,
        instance: plugin,
        principal,
    };
    let seed = holder.alias_seed(name);
    #[expect(clippy::expect_used, reason = "every seed of 32 bytes is a key")]
    Ed25519KeyPair::from_seed_unchecked(&*seed).expect("a seed has 32 bytes")
}

pub(crate) fn public(pair: &Ed25519KeyPair) -> NodeId {
    let mut key = [0; 32];
    key.copy_from_slice(pair.public_key().as_ref());
    NodeId::from_bytes(key)
}
