//! All loaded scripts as one policy: the chain of hooks, and what the host may ask of it.

mod asked;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
    sync::Arc,
    time::{Instant, SystemTime},
};

use rhai::{Dynamic, Position};
use serde::{Deserialize, Serialize};

use crate::{
    api::{objects::Argument, plans::Draft, verdicts::DraftVerdict},
    decision::{Decision, Diagnostic, Outcome, RuleRef, Trace, VerdictDecision},
    plan::Plan,
    recording::Reads,
    script::{
        RunError, Script,
        call::{Call, cut},
        ground::Ground,
        hint::nearest,
        lint::{Fault, Found},
        names,
    },
    sets::SetRegistry,
    state::RuleState,
    verdict::{Allowance, Verdict},
    view::{Conn, ExitRequest, NodeView, RelayRequest, RuleEvent, World},
};

/// Bytes of an error that a decision carries.
const MAX_ERROR_BYTES: usize = 512;

/// For [`LoadEnv::lacking`], of a node whose config.toml does not have Tor on.
pub const LACKS_TOR: (&str, &str) = (
    "tor",
    "needs Tor, which is off here: set `enabled = true` in [tor] of the config",
);
/// For [`LoadEnv::lacking`], of a daemon that was built without Tor.
pub const BUILD_LACKS_TOR: (&str, &str) = (
    "tor",
    "needs Tor, and this build has no Tor: take a wormholed with the feature `tor`",
);
/// For [`LoadEnv::lacking`], of a node without an I2P router.
pub const LACKS_I2P: (&str, &str) = (
    "i2p",
    "needs an I2P router, and none is known here: set `sam` in [i2p] of the config to the address \
     at which it takes clients",
);

/// A script as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptSource {
    /// How messages name it; the file's name.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// What scripts stand on beside their arguments.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// The named sets.
    pub sets: Arc<SetRegistry>,
    /// What scripts keep; the same one goes on over reloads.
    pub state: Arc<RuleState>,
    /// Names of facts that plugins may publish about peers.
    pub facts: Arc<BTreeSet<String>>,
}

/// What scripts are checked against when they are loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadEnv {
    /// What they will stand on. A set that a script asks by `set(name)` and that is not here is an
    /// error; in the list of a `first_set` it is a warning and has nothing.
    pub surroundings: Surroundings,
    /// Petnames and ids of known peers. A peer that a script names and that is not here is a
    /// warning: it may become known. None, where no config says: neither peers nor listed sets are
    /// judged.
    pub known_peers: Option<BTreeSet<String>>,
    /// Whether each decision yields what its scripts read, for a replay.
    pub records: bool,
    /// Hooks that plugins may ask, as config.toml grants them.
    pub asked_hooks: BTreeSet<String>,
    /// Whether a plugin is told what scripts bill.
    pub is_billed: bool,
    /// Tunnels that the node does not have, by what makes them, each with why: a script that names one
    /// is refused.
    pub lacking: BTreeMap<&'static str, &'static str>,
}

/// Scripts that are checked and may be asked, in their order. Cheap to share, never changes.
#[derive(Debug)]
pub struct Policy {
    scripts: Vec<Arc<Script>>,
    needs: Needs,
    surroundings: Surroundings,
    /// The names of the sets, for records; none: nothing is recorded.
    recorded_sets: Option<Arc<BTreeSet<String>>>,
    warnings: Vec<Diagnostic>,
}

/// Which costly fields the scripts read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// Some script reads `app` or `app_path`.
    pub app: bool,
    /// Some script reads `uid`.
    pub uid: bool,
}

/// One answer of the chain, before its kind is known.
struct Answer<'a> {
    script: &'a Script,
    result: Result<Dynamic, RunError>,
}

impl ScriptSource {
    /// What was read from `path`, which names it.
    pub fn of_file(path: &Path, text: String) -> Self {
        // Editors of Windows begin a text with a mark that is none of it.
        let text = match text.strip_prefix('\u{feff}') {
            Some(rest) => rest.to_owned(),
            None => text,
        };
        let name = path.file_name().unwrap_or(path.as_os_str());
        Self {
            name: name.to_string_lossy().into_owned(),
            text,
        }
    }

    /// `fault` with this script's name.
    pub(crate) fn fault(&self, fault: Fault) -> Diagnostic {
        Diagnostic {
            script: self.name.clone(),
            line: fault.position.line().unwrap_or(0),
            column: fault.position.position().unwrap_or(0),
            message: fault.message,
        }
    }
}

impl Policy {
    /// Compiles and checks `sources`; runs nothing.
    ///
    /// # Errors
    /// Every fault of every script, each with its place and what to write instead.
    pub fn load(sources: &[ScriptSource], env: &LoadEnv) -> Result<Self, Vec<Diagnostic>> {
        let mut scripts = Vec::new();
        let mut errors = Vec::new();
        let mut warnings = Vec::new();
        // Scripts that never pass: what they have a hook for, none behind them is asked.
        let mut last_words: Vec<Arc<Script>> = Vec::new();
        for source in sources {
            match Script::compile(&source.name, &source.text) {
                Ok((script, found)) => {
                    let script = Arc::new(script);
                    let sets = &env.surroundings.sets;
                    errors.extend(unknown_sets(source, &found.sets, sets));
                    errors.extend(lacking_tunnels(source, &found, &env.lacking));
                    errors.extend(asked::faults(source, &script, &found, &env.asked_hooks));
                    if let Some(peers) = &env.known_peers {
                        warnings.extend(asked::unheard(source, &found, env.is_billed));
                        warnings.extend(unknown_sets(source, &found.listed_sets, sets));
                        warnings.extend(unknown_peers(source, &found, peers));
                    }
                    let smells = found.warnings.into_iter();
                    warnings.extend(smells.map(|smell| source.fault(smell)));
                    warnings.extend(unasked(source, &script, &last_words, &env.asked_hooks));
                    if !found.passes {
                        last_words.push(Arc::clone(&script));
                    }
                    scripts.push(script);
                }
                Err(faults) => {
                    errors.extend(faults.into_iter().map(|fault| source.fault(fault)));
                }
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            needs: Needs::of(&scripts),
            scripts,
            surroundings: env.surroundings.clone(),
            recorded_sets: env.records.then(|| {
                let names = env.surroundings.sets.names();
                Arc::new(names.map(str::to_owned).collect())
            }),
            warnings,
        })
    }

    /// What is odd but no error: names of peers and of listed sets that are not known, rules that
    /// nothing reaches, open plans for names that must not leave in clear.
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.warnings
    }

    /// Which costly fields the scripts read.
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// Asks how a flow shall travel. A script that fails blocks it.
    pub fn route(&self, conn: &Arc<Conn>, world: &Arc<World>, now: SystemTime) -> Decision {
        let ground = self.ground(world);
        if let Some(node) = conn.node.and_then(|id| world.by_id(&id)) {
            ground.holds(node);
        }
        self.route_on(&ground, conn, now)
    }

    /// Asks whether a peer may connect.
    pub fn accept(
        &self,
        node: &Arc<NodeView>,
        world: &Arc<World>,
        now: SystemTime,
    ) -> VerdictDecision {
        let ground = self.ground(world);
        ground.holds(node);
        self.verdict_on(&ground, "accept", node, now)
    }

    /// Asks whether to carry traffic between two nodes.
    pub fn relay(&self, request: &RelayRequest, world: &Arc<World>) -> VerdictDecision {
        let ground = self.ground(world);
        ground.holds(&request.from);
        ground.holds(&request.to);
        let asked = Arc::new(request.clone());
        self.verdict_on(&ground, "relay", &asked, request.now)
    }

    /// Asks whether to dial a target for somebody.
    pub fn exit(&self, request: &ExitRequest, world: &Arc<World>) -> VerdictDecision {
        let ground = self.ground(world);
        request.from.iter().for_each(|from| ground.holds(from));
        let asked = Arc::new(request.clone());
        self.verdict_on(&ground, "exit", &asked, request.now)
    }

    /// Calls every `init`; call it once when the policy takes over.
    pub fn init(&self, world: &Arc<World>, now: SystemTime) -> Trace {
        let event = RuleEvent {
            kind: "init".to_owned(),
            peer: None,
            reason: String::new(),
        };
        self.tell("init", event, world, now)
    }

    /// Tells every `on_event` of `event`.
    pub fn on_event(&self, event: &RuleEvent, world: &Arc<World>, now: SystemTime) -> Trace {
        self.tell("on_event", event.clone(), world, now)
    }

    /// The same scripts on other ground.
    pub(crate) fn standing_on(&self, surroundings: Surroundings) -> Self {
        Self {
            scripts: self.scripts.clone(),
            needs: self.needs,
            surroundings,
            recorded_sets: None,
            warnings: Vec::new(),
        }
    }

    /// The names of the sets that the scripts stand on.
    pub(crate) fn sets(&self) -> impl Iterator<Item = &str> {
        self.surroundings.sets.names()
    }

    /// Asks `route` of scripts that stand on `ground`.
    pub(crate) fn route_on(
        &self,
        ground: &Arc<Ground>,
        conn: &Arc<Conn>,
        now: SystemTime,
    ) -> Decision {
        let start = Instant::now();
        let mut trace = Trace::default();
        let answer = self.ask("route", argument_of(conn), ground, now, &mut trace);
        let outcome = match answer {
            Some(_) if ground.ended_for_sni() => Outcome::NeedSni,
            Some(answer) => plan_of(answer, conn, &mut trace),
            None => Outcome::Pass,
        };
        trace.reads = ground.take_reads();
        trace.took = start.elapsed();
        Decision { outcome, trace }
    }

    /// Asks another hook of scripts that stand on `ground`.
    pub(crate) fn verdict_on<T: fmt::Debug + Send + Sync + 'static>(
        &self,
        ground: &Arc<Ground>,
        hook: &str,
        view: &Arc<T>,
        now: SystemTime,
    ) -> VerdictDecision {
        self.verdict_with(ground, hook, argument_of(view), now)
    }

    fn verdict_with(
        &self,
        ground: &Arc<Ground>,
        hook: &str,
        argument: impl Fn(&Arc<Call>) -> Dynamic,
        now: SystemTime,
    ) -> VerdictDecision {
        let start = Instant::now();
        let mut trace = Trace::default();
        let verdict = self
            .ask(hook, argument, ground, now, &mut trace)
            .map(|answer| verdict_of(hook, answer, &mut trace));
        trace.reads = ground.take_reads();
        trace.took = start.elapsed();
        VerdictDecision { verdict, trace }
    }

    /// The node as it is.
    fn ground(&self, world: &Arc<World>) -> Arc<Ground> {
        let surroundings = self.surroundings.clone();
        let reads = self.recorded_sets.as_ref();
        let reads = reads.map(|sets| Reads::new(self.needs, sets, &surroundings.facts));
        Arc::new(Ground::of_node(surroundings, world.clone(), reads))
    }

    fn tell(&self, hook: &str, event: RuleEvent, world: &Arc<World>, now: SystemTime) -> Trace {
        let start = Instant::now();
        let mut trace = Trace::default();
        let event = Arc::new(event);
        let surroundings = self.surroundings.clone();
        let ground = Arc::new(Ground::of_node(surroundings, world.clone(), None));
        for script in self.having(hook) {
            let call = Arc::new(Call::new(script.name.clone(), ground.clone(), now));
            let argument = argument_of(&event)(&call);
            let result = script.run(hook, argument, call.clone());
            absorb(&mut trace, &call);
            if let Err(error) = result {
                trace.error = Some(error_text(&script.name, &error));
            }
        }
        trace.took = start.elapsed();
        trace
    }

    /// The first answer other than `pass()`.
    fn ask<'a>(
        &'a self,
        hook: &'a str,
        argument: impl Fn(&Arc<Call>) -> Dynamic,
        ground: &Arc<Ground>,
        now: SystemTime,
        trace: &mut Trace,
    ) -> Option<Answer<'a>> {
        for script in self.having(hook) {
            let call = Arc::new(Call::new(script.name.clone(), ground.clone(), now));
            let result = script.run(hook, argument(&call), call.clone());
            absorb(trace, &call);
            if result.as_ref().is_err_and(RunError::is_out_of_time) {
                ground.out_of_time();
            }
            let passed = result.as_ref().is_ok_and(|value| {
                value
                    .read_lock::<Draft>()
                    .is_some_and(|plan| plan.is_pass())
            });
            if !passed {
                return Some(Answer { script, result });
            }
        }
        None
    }

    fn having<'a>(&'a self, hook: &'a str) -> impl Iterator<Item = &'a Script> {
        let scripts = self.scripts.iter().map(Arc::as_ref);
        scripts.filter(move |script| script.has(hook))
    }
}

impl Needs {
    fn of(scripts: &[Arc<Script>]) -> Self {
        let reads = |field: &str| scripts.iter().any(|script| script.fields.contains(field));
        Self {
            app: reads("app") || reads("app_path"),
            uid: reads("uid"),
        }
    }
}

/// What a hook is handed, in each call by itself.
fn argument_of<T: fmt::Debug + Send + Sync + 'static>(
    view: &Arc<T>,
) -> impl Fn(&Arc<Call>) -> Dynamic {
    |call| {
        Dynamic::from(Argument {
            view: Arc::clone(view),
            call: Arc::clone(call),
        })
    }
}

fn plan_of(answer: Answer<'_>, conn: &Conn, trace: &mut Trace) -> Outcome {
    let Answer { script, result } = answer;
    let outcome = result.and_then(|value| {
        let found = script.type_name(&value);
        let draft = value.try_cast::<Draft>().ok_or_else(|| {
            let message = format!("route() returned {found}, not a plan; end with pass()");
            RunError::on_line(script.line_of_hook("route"), message)
        })?;
        let line = draft.line();
        trace.rule = Some(rule(&script.name, line));
        draft
            .finish(conn.node)
            .map_err(|message| RunError::on_line(line, message))
    });
    outcome.unwrap_or_else(|error| {
        trace.rule = Some(rule(&script.name, error.line));
        trace.error = Some(error_text(&script.name, &error));
        Outcome::Plan(Plan::block(error_text(&script.name, &error)))
    })
}

fn verdict_of(hook: &str, answer: Answer<'_>, trace: &mut Trace) -> Verdict {
    let Answer { script, result } = answer;
    let verdict = result.and_then(|value| {
        let found = script.type_name(&value);
        value.try_cast::<DraftVerdict>().ok_or_else(|| {
            let message = format!("{hook}() returned {found}; end with allow(), deny() or pass()");
            RunError::on_line(script.line_of_hook(hook), message)
        })
    });
    let verdict = verdict.and_then(|draft| match &draft.verdict {
        Verdict::Allow(limits) if hook == "accept" && *limits != Allowance::default() => {
            Err(RunError::on_line(draft.line, names::NO_LIMITS))
        }
        Verdict::Allow(limits) if limits.bill.is_some() && !names::carries(hook) => {
            Err(RunError::on_line(draft.line, names::NO_BILL))
        }
        Verdict::Allow(_) | Verdict::Deny(_) => Ok(draft),
    });
    match verdict {
        Ok(draft) => {
            trace.rule = Some(rule(&script.name, draft.line));
            draft.verdict
        }
        Err(error) => {
            trace.rule = Some(rule(&script.name, error.line));
            trace.error = Some(error_text(&script.name, &error));
            Verdict::Deny(error_text(&script.name, &error))
        }
    }
}

fn rule(script: &Arc<str>, line: usize) -> RuleRef {
    RuleRef {
        script: script.to_string(),
        line,
    }
}

fn error_text(script: &str, error: &RunError) -> String {
    let text = format!("{script}:{}: {}", error.line, error.message);
    cut(text, MAX_ERROR_BYTES)
}

fn absorb(trace: &mut Trace, call: &Call) {
    let record = call.take_record();
    trace.because.extend(record.because);
    trace.tags.extend(record.tags);
    trace.log.extend(record.log);
    trace.notifications.extend(record.notifications);
}

/// Sets that `source` names and cannot do without; none when it does not compile.
pub fn named_sets(source: &ScriptSource) -> BTreeSet<String> {
    let found = Script::compile(&source.name, &source.text).map(|(_, found)| found.sets);
    let sets = found.unwrap_or_default().into_iter();
    sets.map(|(name, _)| name).collect()
}

fn unknown_sets<'a>(
    source: &'a ScriptSource,
    named: &'a [(String, Position)],
    sets: &'a SetRegistry,
) -> impl Iterator<Item = Diagnostic> + 'a {
    let unknown = named.iter().filter(|(name, _)| !sets.contains(name));
    unknown.map(move |(name, position)| {
        let hint = match nearest(name, sets.names()) {
            Some(near) => format!("; did you mean \"{near}\"?"),
            None => "; name its file in [rules] sets of the config".to_owned(),
        };
        let message = format!("no set is called \"{name}\"{hint}");
        let position = *position;
        source.fault(Fault { position, message })
    })
}

/// Tunnels that `source` names and the node does not have.
fn lacking_tunnels<'a>(
    source: &'a ScriptSource,
    found: &'a Found,
    lacking: &'a BTreeMap<&'static str, &'static str>,
) -> impl Iterator<Item = Diagnostic> + 'a {
    found.tunnels.iter().filter_map(move |(name, position)| {
        let why = lacking.get(name.as_str())?;
        let message = format!("{name}() {why}");
        let position = *position;
        Some(source.fault(Fault { position, message }))
    })
}

/// Hooks of `script` that nobody asks, since one before it always answers.
fn unasked<'a>(
    source: &'a ScriptSource,
    script: &'a Script,
    last_words: &'a [Arc<Script>],
    asked: &'a BTreeSet<String>,
) -> impl Iterator<Item = Diagnostic> + 'a {
    const ANSWERING: [&str; 4] = ["route", "accept", "relay", "exit"];
    let hooks = ANSWERING
        .into_iter()
        .chain(asked.iter().map(String::as_str));
    let hooks = hooks.filter(|hook| script.has(hook));
    hooks.filter_map(move |hook| {
        let before = last_words.iter().find(|before| before.has(hook))?;
        Some(Diagnostic {
            script: source.name.clone(),
            line: script.line_of_hook(hook),
            column: 0,
            message: format!(
                "nothing asks this `{hook}`: that of {}, before it, never passes; end that one \
                 with pass(), or remove this one",
                before.name
            ),
        })
    })
}

fn unknown_peers<'a>(
    source: &'a ScriptSource,
    found: &'a Found,
    known: &'a BTreeSet<String>,
) -> impl Iterator<Item = Diagnostic> + 'a {
    let unknown = found.peers.iter().filter(|(name, _)| !known.contains(name));
    unknown.map(move |(name, position)| {
        let hint = match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => format!("; did you mean \"{near}\"?"),
            None => String::new(),
        };
        let message = format!("no peer is known as \"{name}\"{hint}");
        let position = *position;
        source.fault(Fault { position, message })
    })
}
