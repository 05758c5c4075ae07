//! What a decision stands on: the node as it is, with a record of what is read; or a record alone,
//! where what it does not hold is not guessed.
//!
//! A decision reads its own writes of kept values, and each of them else once: other decisions
//! under way change nothing in its midst, and a replay finds what it found.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use rhai::{EvalAltResult, Position};
use wormholes_proto::NodeId;

use super::call::ScriptResult;
use crate::{
    policy::Surroundings,
    recording::{QuotaAsk, QuotaSaid, RateAsk, Reads},
    sets::SetRegistry,
    state::{KeptValue, MAX_KEYS, StateError, check_key, check_value},
    view::{NodeView, World},
};

/// What one decision stands on, whichever of its scripts asks.
#[derive(Debug)]
pub(crate) struct Ground {
    world: Arc<World>,
    from: From,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
enum From {
    /// The node.
    Node(Surroundings),
    /// A recorded decision, and sets that stand in for those that it asked.
    Record(Arc<Reads>, Arc<SetRegistry>),
}

#[derive(Debug, Default)]
struct Inner {
    /// Kept values as this decision sees them, by script and key. Overflow: what is beyond is read
    /// anew each time, and the decision cannot be replayed.
    kept: BTreeMap<(Arc<str>, String), Option<KeptValue>>,
    /// What was read; none: nobody keeps it.
    reads: Option<Box<Reads>>,
    /// How many answers of each rate and quota a replay has used.
    used: BTreeMap<(&'static str, Arc<str>, String), usize>,
    /// What a replay was asked and cannot know.
    missing: Option<String>,
    out_of_time: bool,
    needs_sni: bool,
}

impl Ground {
    /// The node as it is; `reads` records what is read.
    pub(crate) fn of_node(
        surroundings: Surroundings,
        world: Arc<World>,
        reads: Option<Reads>,
    ) -> Self {
        Self {
            world,
            from: From::Node(surroundings),
            inner: Mutex::new(Inner {
                reads: reads.map(Box::new),
                ..Inner::default()
            }),
        }
    }

    /// A recorded decision; the sets in `given` count in place of those that it asked.
    pub(crate) fn of_record(reads: Arc<Reads>, given: Arc<SetRegistry>) -> Self {
        let nodes = reads.nodes.values().cloned().collect();
        Self {
            world: Arc::new(World::new(nodes)),
            from: From::Record(reads, given),
            inner: Mutex::default(),
        }
    }

    /// Takes what was read.
    pub(crate) fn take_reads(&self) -> Option<Box<Reads>> {
        self.lock().reads.take()
    }

    /// What a replay was asked and cannot know.
    pub(crate) fn take_missing(&self) -> Option<String> {
        self.lock().missing.take()
    }

    /// The decision hangs on more than what is recorded.
    pub(crate) fn lose(&self, why: &str) {
        if let Some(reads) = &mut self.lock().reads {
            reads.lose(why);
        }
    }

    /// A script ended because it ran too long, as it may not another time.
    pub(crate) fn out_of_time(&self) {
        self.lose("it ran out of time");
        self.lock().out_of_time = true;
    }

    /// Whether a script did.
    pub(crate) fn ran_out_of_time(&self) -> bool {
        self.lock().out_of_time
    }

    /// A script reads `c.sni`, which nobody read yet: what ends it. Scripts cannot catch that.
    pub(crate) fn needs_sni(&self) -> Box<EvalAltResult> {
        self.lock().needs_sni = true;
        let why = "c.sni is not read yet".into();
        EvalAltResult::ErrorTerminated(why, Position::NONE).into()
    }

    /// Whether a script did.
    pub(crate) fn ended_for_sni(&self) -> bool {
        self.lock().needs_sni
    }

    /// A node that another one names.
    pub(crate) fn by_id(&self, id: &NodeId) -> Option<&Arc<NodeView>> {
        self.world.by_id(id)
    }

    /// A script holds `node`, or may at any time, as that of its argument.
    pub(crate) fn holds(&self, node: &Arc<NodeView>) {
        let mut inner = self.lock();
        let Some(reads) = &mut inner.reads else {
            return;
        };
        match self.world.by_id(&node.id) {
            Some(known) if Arc::ptr_eq(known, node) => reads.node(&self.world, node),
            // Of an argument, which is recorded itself.
            _ => reads.relays_of(&self.world, node),
        }
    }

    /// The node that `who` means.
    pub(crate) fn find(&self, who: &str) -> ScriptResult<Option<Arc<NodeView>>> {
        let found = self.world.find(who);
        match &self.from {
            From::Node(_) => {
                if let Some(reads) = &mut self.lock().reads {
                    reads.found(who, found);
                    found.inspect(|node| reads.node(&self.world, node));
                }
                Ok(found.cloned())
            }
            From::Record(reads, _) => match (reads.found.get(who), found) {
                (Some(id), _) => Ok(id.and_then(|id| self.world.by_id(&id)).cloned()),
                (None, Some(node)) => Ok(Some(node.clone())),
                (None, None) => Err(self.unknown(format!("peer(\"{who}\")"))),
            },
        }
    }

    /// Peers, or relays, the nearest first.
    pub(crate) fn listed(&self, is_relay: bool) -> ScriptResult<Vec<Arc<NodeView>>> {
        match &self.from {
            From::Node(_) => {
                let nodes = self.world.nearest(is_relay);
                if let Some(reads) = &mut self.lock().reads {
                    reads.listed(is_relay, nodes);
                }
                Ok(nodes.to_vec())
            }
            From::Record(reads, _) => {
                let (ids, name) = match is_relay {
                    true => (&reads.relays, "relays()"),
                    false => (&reads.peers, "peers()"),
                };
                let ids = ids.as_ref().ok_or_else(|| self.unknown(name.to_owned()))?;
                let nodes = ids.iter().filter_map(|id| self.world.by_id(id));
                Ok(nodes.cloned().collect())
            }
        }
    }

    /// Whether there is a set of this name.
    pub(crate) fn has_set(&self, name: &str) -> ScriptResult<bool> {
        match &self.from {
            From::Node(surroundings) => Ok(surroundings.sets.contains(name)),
            From::Record(reads, given) if given.contains(name) || reads.sets.contains(name) => {
                Ok(true)
            }
            From::Record(..) => Err(self.unknown(format!(
                "the set \"{name}\", which was not there; --set {name}=FILE gives it"
            ))),
        }
    }

    /// Whether a set has a value.
    pub(crate) fn set_has(&self, set: &str, value: &str) -> ScriptResult<bool> {
        match &self.from {
            From::Node(surroundings) => {
                let having = self.having(surroundings, value);
                let sets = &surroundings.sets;
                Ok(having.map_or_else(|| sets.has(set, value), |names| is_among(&names, set)))
            }
            From::Record(_, given) if given.contains(set) => Ok(given.has(set, value)),
            From::Record(reads, _) => match reads.members.get(value) {
                Some(names) => Ok(is_among(names, set)),
                None => Err(self.unknown(format!("set(\"{set}\").has(\"{value}\")"))),
            },
        }
    }

    /// The first set that has a value, by the order of `among`, else by the order of names.
    pub(crate) fn first_set(
        &self,
        value: &str,
        among: Option<&[String]>,
    ) -> ScriptResult<Option<String>> {
        match &self.from {
            From::Node(surroundings) => Ok(match self.having(surroundings, value) {
                Some(names) => first(&names, among),
                None => surroundings.sets.first(value, among).map(str::to_owned),
            }),
            From::Record(reads, given) => {
                let is_given = |name: &String| given.contains(name);
                let names = match reads.members.get(value) {
                    Some(names) => names.as_slice(),
                    None if among.is_some_and(|names| names.iter().all(is_given)) => &[],
                    None => return Err(self.unknown(format!("first_set(\"{value}\")"))),
                };
                let names = names.iter().filter(|name| !is_given(name)).cloned();
                let given = given.having(value).into_iter().map(str::to_owned);
                let mut names: Vec<String> = names.chain(given).collect();
                names.sort_unstable();
                Ok(first(&names, among))
            }
        }
    }

    /// Whether a plugin publishes this fact.
    pub(crate) fn has_fact(&self, name: &str) -> bool {
        match &self.from {
            From::Node(surroundings) => surroundings.facts.contains(name),
            From::Record(reads, _) => reads.facts.contains(name),
        }
    }

    /// Refuses a costly field of `c` that was not looked up when the decision was recorded.
    pub(crate) fn check_field(&self, field: &str) -> ScriptResult<()> {
        let From::Record(reads, _) = &self.from else {
            return Ok(());
        };
        let was_looked_up = match field {
            "app" | "app_path" => reads.looked_up.app,
            "uid" => reads.looked_up.app || reads.looked_up.uid,
            _ => true,
        };
        match was_looked_up {
            true => Ok(()),
            false => Err(self.unknown(format!("c.{field}"))),
        }
    }

    /// What `script` keeps under `key`.
    pub(crate) fn get(
        &self,
        now: SystemTime,
        script: &Arc<str>,
        key: &str,
    ) -> ScriptResult<Option<KeptValue>> {
        let place = (Arc::clone(script), key.to_owned());
        if let Some(value) = self.lock().kept.get(&place) {
            return Ok(value.clone());
        }
        let value = match &self.from {
            From::Node(surroundings) => {
                let value = surroundings.state.get(now, script, key);
                if let Some(reads) = &mut self.lock().reads {
                    reads.kept(script, key, value.as_ref());
                }
                value
            }
            From::Record(reads, _) => {
                let state = reads.states.get(&**script);
                let value = state.and_then(|state| state.kept.get(key)).cloned();
                value.ok_or_else(|| self.unknown_of(script, format!("kv_get(\"{key}\")")))?
            }
        };
        self.lock().keep(place, value.clone());
        Ok(value)
    }

    /// Keeps `value` for `script`.
    pub(crate) fn set(
        &self,
        now: SystemTime,
        script: &Arc<str>,
        key: &str,
        value: Option<KeptValue>,
        ttl: Option<Duration>,
    ) -> ScriptResult<()> {
        match &self.from {
            From::Node(surroundings) => {
                let state = &surroundings.state;
                self.told(state.set(now, script, key, value.clone(), ttl))?;
            }
            From::Record(..) => self.told(check_value(key, value.as_ref()))?,
        }
        let lasts = ttl.is_none_or(|ttl| !ttl.is_zero());
        let place = (Arc::clone(script), key.to_owned());
        self.lock().keep(place, value.filter(|_| lasts));
        Ok(())
    }

    /// Takes one from a rate; whether there was one.
    pub(crate) fn rate(
        &self,
        now: SystemTime,
        script: &Arc<str>,
        key: &str,
        ask: RateAsk,
    ) -> ScriptResult<bool> {
        self.told(check_key(key))?;
        match &self.from {
            From::Node(surroundings) => {
                let state = &surroundings.state;
                let fits = self.told(state.rate(now, script, key, ask.limit, ask.window))?;
                if let Some(reads) = &mut self.lock().reads {
                    reads.rate(script, key, ask, fits);
                }
                Ok(fits)
            }
            From::Record(reads, _) => {
                let state = reads.states.get(&**script);
                let asks = state.and_then(|state| state.rates.get(key));
                let question = || format!("rate(\"{key}\", {}, {:?})", ask.limit, ask.window);
                self.next(("rate", script, key), asks, &ask, question)
            }
        }
    }

    /// Asks a quota.
    pub(crate) fn quota(
        &self,
        now: SystemTime,
        script: &Arc<str>,
        key: &str,
        ask: QuotaAsk,
    ) -> ScriptResult<QuotaSaid> {
        match &self.from {
            From::Node(surroundings) => {
                let state = &surroundings.state;
                let said = match ask {
                    QuotaAsk::Take {
                        amount,
                        limit,
                        window,
                    } => {
                        let fits = state.quota(now, script, key, amount, limit, window);
                        QuotaSaid::Fits(self.told(fits)?)
                    }
                    QuotaAsk::Used => QuotaSaid::Used(state.quota_used(now, script, key)),
                };
                if let Some(reads) = &mut self.lock().reads {
                    reads.quota(script, key, ask, said);
                }
                Ok(said)
            }
            From::Record(reads, _) => {
                if let QuotaAsk::Take { .. } = ask {
                    self.told(check_key(key))?;
                }
                let state = reads.states.get(&**script);
                let asks = state.and_then(|state| state.quotas.get(key));
                let question = || match ask {
                    QuotaAsk::Take { amount, limit, .. } => {
                        format!("quota(\"{key}\", {amount}, {limit})")
                    }
                    QuotaAsk::Used => format!("quota(\"{key}\")"),
                };
                self.next(("quota", script, key), asks, &ask, question)
            }
        }
    }

    /// The sets that have `value`, as they are recorded; none where nothing is.
    fn having(&self, surroundings: &Surroundings, value: &str) -> Option<Vec<String>> {
        let mut inner = self.lock();
        let reads = inner.reads.as_mut()?;
        if let Some(names) = reads.members.get(value) {
            return Some(names.clone());
        }
        let names = surroundings.sets.having(value);
        reads.members(value, &names);
        Some(names.into_iter().map(str::to_owned).collect())
    }

    /// The recorded answer to the next question of a counter. What it says hangs on all that it was
    /// asked before: other questions than the recorded ones have no answer.
    fn next<A: PartialEq, S: Copy>(
        &self,
        (kind, script, key): (&'static str, &Arc<str>, &str),
        asks: Option<&Vec<(A, S)>>,
        ask: &A,
        question: impl FnOnce() -> String,
    ) -> ScriptResult<S> {
        let mut inner = self.lock();
        let used = inner.used.entry((kind, Arc::clone(script), key.to_owned()));
        let used = used.or_default();
        let next = asks.and_then(|asks| asks.get(*used));
        *used += 1;
        if let Some((_, said)) = next.filter(|(asked, _)| asked == ask) {
            return Ok(*said);
        }
        drop(inner);
        Err(self.unknown_of(script, question()))
    }

    /// An error of the state, as scripts see it. That too many scripts keep something is no part of
    /// what is recorded.
    fn told<T>(&self, result: Result<T, StateError>) -> ScriptResult<T> {
        if let Err(StateError::Scripts) = result {
            self.lose("too many scripts kept something");
        }
        Ok(result.map_err(|error| error.to_string())?)
    }

    /// Something of `script`'s own state.
    fn unknown_of(&self, script: &Arc<str>, question: String) -> Box<EvalAltResult> {
        let From::Record(reads, _) = &self.from else {
            return self.unknown(question);
        };
        // What scripts keep goes by their names.
        if reads.states.contains_key(&**script) || reads.states.is_empty() {
            return self.unknown(question);
        }
        let names: Vec<&str> = reads.states.keys().map(String::as_str).collect();
        let names = names.join(" and ");
        self.unknown(format!(
            "{question} of {script}; call the file {names} to give it what that script kept"
        ))
    }

    /// Ends the run: no script can catch this.
    fn unknown(&self, question: String) -> Box<EvalAltResult> {
        let mut inner = self.lock();
        inner.missing.get_or_insert(question);
        Box::new(EvalAltResult::ErrorTerminated(
            "not recorded".into(),
            Position::NONE,
        ))
    }

    /// Every change is one insertion: a panic elsewhere leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn keep(&mut self, place: (Arc<str>, String), value: Option<KeptValue>) {
        if self.kept.len() < MAX_KEYS || self.kept.contains_key(&place) {
            self.kept.insert(place, value);
        } else if let Some(reads) = &mut self.reads {
            reads.lose("it read and kept more values than a script may keep");
        }
    }
}

fn is_among(names: &[String], set: &str) -> bool {
    names.iter().any(|name| name == set)
}

/// Of sets in the order of names, the first by the order of `among`.
fn first(names: &[String], among: Option<&[String]>) -> Option<String> {
    match among {
        Some(among) => among.iter().find(|name| names.contains(name)).cloned(),
        None => names.first().cloned(),
    }
}
