//! What cases say: the world that they set up, the hooks that they call, and what they expect.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use rhai::{Array, Dynamic, Engine, EvalAltResult, FnPtr, Map, NativeCallContext};
use wormholes_proto::{NodeId, Roles, ServiceName};

use super::{CaseResult, answer::Answer};
use crate::{
    policy::{Policy, Surroundings},
    script::{self, call::ScriptResult, names::check_asked_hook},
    sets::SetRegistry,
    state::RuleState,
    units,
    view::{Conn, EVENT_KINDS, ExitRequest, NodeView, RelayRequest, RuleEvent, Sni, World},
};

const NO_ENTRANCE: &str = "an entrance is socks5, http, tcp, udp, embed or plugin";

/// When cases begin: Monday, 1 January 2024, noon UTC.
const START: Duration = Duration::from_secs(1_704_110_400);

/// The state of the case that runs, and the results of those before.
#[derive(Debug)]
pub(super) struct Bench {
    file: String,
    policy: Policy,
    nodes: BTreeMap<String, Arc<NodeView>>,
    sets: BTreeMap<String, String>,
    state: Arc<RuleState>,
    now: SystemTime,
    pub(super) results: Vec<CaseResult>,
}

type Shared = Arc<Mutex<Bench>>;

impl Bench {
    pub(super) fn new(file: String, policy: Policy) -> Self {
        Self {
            file,
            policy,
            nodes: BTreeMap::new(),
            sets: BTreeMap::new(),
            state: Arc::default(),
            now: SystemTime::UNIX_EPOCH + START,
            results: Vec::new(),
        }
    }

    fn reset(&mut self) {
        self.nodes.clear();
        self.sets.clear();
        self.state = Arc::default();
        self.now = SystemTime::UNIX_EPOCH + START;
    }

    fn world(&self) -> Arc<World> {
        Arc::new(World::new(self.nodes.values().cloned().collect()))
    }

    /// The script, standing on the sets and the state of this case.
    fn policy(&self) -> ScriptResult<Policy> {
        let mut sets = SetRegistry::default();
        for name in self.policy.sets() {
            sets.load(name, name, "")
                .map_err(|error| error.to_string())?;
        }
        for (name, text) in &self.sets {
            sets.load(name, name, text)
                .map_err(|error| error.to_string())?;
        }
        let facts = self.nodes.values().flat_map(|node| node.facts.keys());
        Ok(self.policy.standing_on(Surroundings {
            sets: sets.into(),
            state: self.state.clone(),
            facts: Arc::new(facts.cloned().collect()),
        }))
    }

    /// A node that the case named before, else a stranger of that name.
    fn node(&self, name: &str) -> Arc<NodeView> {
        let known = self.nodes.get(name).cloned();
        known.unwrap_or_else(|| Arc::new(stranger(name)))
    }

    fn conn(&self, given: Map) -> ScriptResult<Conn> {
        let mut given = Given::new("route", given);
        let host = given
            .text("host")?
            .ok_or("route() wants a host: #{ host: \"x.example\" }")?;
        let link = host
            .strip_suffix(".wh")
            .and_then(|name| name.rsplit_once('.'));
        let service = link.and_then(|(service, _)| ServiceName::parse(service).ok());
        let world = self.world();
        let node = host
            .ends_with(".wh")
            .then(|| world.find(&host).map(|node| node.id));
        let plugin = given.text("plugin")?;
        let conn = Conn {
            id: 1,
            attempt: given.small("attempt", 0)?,
            last_error: given.text("last_error")?,
            entrance: match given.text("entrance")?.as_deref() {
                None if plugin.is_some() => "plugin",
                None | Some("socks5") => "socks5",
                Some("http") => "http",
                Some("tcp") => "tcp",
                Some("udp") => "udp",
                Some("embed") => "embed",
                Some("plugin") => "plugin",
                Some(_) => return Err(NO_ENTRANCE.into()),
            },
            label: given.text("label")?,
            network: given.network()?,
            ip: given.address("ip")?.or_else(|| host.parse().ok()),
            ips: Vec::new(),
            host,
            port: given.small("port", 443)?,
            node: node.flatten(),
            service,
            app_path: given.text("app_path")?,
            app: given.text("app")?,
            uid: given.number("uid")?.and_then(|uid| u32::try_from(uid).ok()),
            user: given.text("user")?,
            plugin,
            role: given.text("role")?,
            src: given.address("src")?,
            rand: given.number("rand")?.unwrap_or(42),
            now: self.now,
            sni: Sni::Read(given.text("sni")?),
            hour: given.small("hour", 12)?,
            weekday: given.small("weekday", 1)?,
        };
        given.finish()?;
        Ok(conn)
    }

    fn add_node(&mut self, name: &str, given: Map) -> ScriptResult<()> {
        let mut given = Given::new("peer", given);
        let mut node = stranger(name);
        node.is_peer = true;
        node.trust = given.small("trust", 2)?;
        node.online = given.flag("online")?.unwrap_or(false);
        node.rtt_ms = given.float("rtt")?;
        node.loss = given.float("loss")?.unwrap_or(0.0);
        node.load = given.float("load")?.unwrap_or(0.0);
        node.has_address = given.flag("has_address")?.unwrap_or(false);
        node.relays = given
            .names("relays")?
            .iter()
            .map(|name| id_of(name))
            .collect();
        node.roles = Roles {
            relay: given.flag("is_relay")?.unwrap_or(false),
            hop: given.flag("is_hop")?.unwrap_or(false),
            exit: given.flag("is_exit")?.unwrap_or(false),
        };
        node.family = given.text("family")?;
        if let Some(facts) = given.take("facts") {
            let facts = facts
                .try_cast::<Map>()
                .ok_or("facts are a map: #{ credit: 5 }")?;
            for (name, value) in facts {
                let value = value.as_int().map_err(|_| "a fact is a whole number")?;
                node.facts.insert(name.to_string(), value);
            }
        }
        given.finish()?;
        self.nodes.insert(name.to_owned(), Arc::new(node));
        Ok(())
    }
}

/// The fields that a case gave; what is left at the end is a slip.
struct Given {
    function: &'static str,
    fields: Map,
}

impl Given {
    fn new(function: &'static str, fields: Map) -> Self {
        Self { function, fields }
    }

    fn take(&mut self, field: &str) -> Option<Dynamic> {
        self.fields.remove(field).filter(|value| !value.is_unit())
    }

    /// Whether the case says that there is none.
    fn is_none(&self, field: &str) -> bool {
        self.fields.get(field).is_some_and(Dynamic::is_unit)
    }

    fn typed<T>(
        &mut self,
        field: &str,
        what: &str,
        read: impl FnOnce(Dynamic) -> Option<T>,
    ) -> ScriptResult<Option<T>> {
        let Some(value) = self.take(field) else {
            return Ok(None);
        };
        let value = read(value).ok_or_else(|| format!("{field} is {what}"))?;
        Ok(Some(value))
    }

    fn text(&mut self, field: &str) -> ScriptResult<Option<String>> {
        self.typed(field, "a text", |value| value.into_string().ok())
    }

    fn flag(&mut self, field: &str) -> ScriptResult<Option<bool>> {
        self.typed(field, "true or false", |value| value.as_bool().ok())
    }

    fn number(&mut self, field: &str) -> ScriptResult<Option<i64>> {
        self.typed(field, "a whole number", |value| value.as_int().ok())
    }

    fn float(&mut self, field: &str) -> ScriptResult<Option<f64>> {
        self.typed(field, "a number", |value| {
            let whole = value.as_int().ok().and_then(|int| i32::try_from(int).ok());
            whole.map(f64::from).or_else(|| value.as_float().ok())
        })
    }

    fn small<T: TryFrom<i64>>(&mut self, field: &str, default: T) -> ScriptResult<T> {
        let number = self.typed(field, "a small number", |value| {
            T::try_from(value.as_int().ok()?).ok()
        })?;
        Ok(number.unwrap_or(default))
    }

    /// `tcp` unless it says otherwise.
    fn network(&mut self) -> ScriptResult<&'static str> {
        match self.text("network")?.as_deref() {
            None | Some("tcp") => Ok("tcp"),
            Some("udp") => Ok("udp"),
            Some(_) => Err("a network is tcp or udp".into()),
        }
    }

    fn address(&mut self, field: &str) -> ScriptResult<Option<IpAddr>> {
        self.typed(field, "an address", |value| {
            value.into_string().ok()?.parse().ok()
        })
    }

    fn names(&mut self, field: &str) -> ScriptResult<Vec<String>> {
        let names = self.typed(field, "a list of names", |value| {
            let list = value.try_cast::<Array>()?;
            list.into_iter()
                .map(|name| name.into_string().ok())
                .collect()
        })?;
        Ok(names.unwrap_or_default())
    }

    fn finish(self) -> ScriptResult<()> {
        match self.fields.keys().next() {
            Some(left) => Err(format!("{}() knows no `{left}`", self.function).into()),
            None => Ok(()),
        }
    }
}

pub(super) fn register(engine: &mut Engine, bench: &Shared) {
    register_world(engine, bench);
    register_hooks(engine, bench);
    let shared = bench.clone();
    engine
        .register_fn(
            "test",
            move |context: NativeCallContext, name: &str, body: FnPtr| {
                case(&context, &shared, name, &body)
            },
        )
        .register_fn("expect", |holds: bool| match holds {
            true => ScriptResult::Ok(()),
            false => Err("this does not hold".into()),
        })
        .register_fn("expect", |found: Dynamic, wanted: Dynamic| {
            expect_equal(&found, &wanted)
        });
}

fn register_world(engine: &mut Engine, bench: &Shared) {
    let shared = bench.clone();
    engine.register_fn("set", move |name: &str, entries: Array| {
        let lines: Vec<String> = entries.iter().map(Dynamic::to_string).collect();
        lock(&shared).sets.insert(name.to_owned(), lines.join("\n"));
    });
    for function in ["peer", "relay"] {
        let shared = bench.clone();
        engine.register_fn(function, move |name: &str, mut given: Map| {
            if function == "relay" {
                given.insert("is_relay".into(), true.into());
            }
            lock(&shared).add_node(name, given)
        });
    }
    let shared = bench.clone();
    engine.register_fn("later", move |time: Dynamic| {
        lock(&shared).now += units::duration(&time)?;
        ScriptResult::Ok(())
    });
}

fn register_hooks(engine: &mut Engine, bench: &Shared) {
    let shared = bench.clone();
    engine.register_fn("route", move |given: Map| {
        let bench = lock(&shared);
        let (conn, world) = (Arc::new(bench.conn(given)?), bench.world());
        let decision = bench.policy()?.route(&conn, &world, bench.now);
        ScriptResult::Ok(Answer::of_route(decision, &world))
    });
    let shared = bench.clone();
    engine.register_fn("accept", move |name: &str| {
        let bench = lock(&shared);
        let world = bench.world();
        let verdict = bench.policy()?.accept(&bench.node(name), &world, bench.now);
        ScriptResult::Ok(Answer::of_verdict(verdict, &world))
    });
    let shared = bench.clone();
    engine.register_fn("relay", move |given: Map| {
        let bench = lock(&shared);
        let mut given = Given::new("relay", given);
        let request = RelayRequest {
            from: bench.node(&given.text("from")?.unwrap_or_default()),
            to: bench.node(&given.text("to")?.unwrap_or_default()),
            bytes_today: given.small("bytes_today", 0)?,
            now: bench.now,
        };
        given.finish()?;
        let world = bench.world();
        let verdict = bench.policy()?.relay(&request, &world);
        ScriptResult::Ok(Answer::of_verdict(verdict, &world))
    });
    let shared = bench.clone();
    engine.register_fn("exit", move |given: Map| {
        let bench = lock(&shared);
        let mut given = Given::new("exit", given);
        let ip = given.address("ip")?.ok_or("exit() wants an ip")?;
        let (is_lookup, is_onion) = (given.is_none("port"), given.is_none("from"));
        let from = given.text("from")?.unwrap_or_default();
        let network = given.network()?;
        let request = ExitRequest {
            network: (!is_lookup).then_some(network),
            from: (!is_onion).then(|| bench.node(&from)),
            host: given.text("host")?.unwrap_or_else(|| ip.to_string()),
            ip,
            port: Some(given.small("port", 443)?).filter(|_| !is_lookup),
            bytes_today: given.small("bytes_today", 0)?,
            now: bench.now,
        };
        given.finish()?;
        let world = bench.world();
        let verdict = bench.policy()?.exit(&request, &world);
        ScriptResult::Ok(Answer::of_verdict(verdict, &world))
    });
    let shared = bench.clone();
    engine.register_fn("ask", move |hook: &str, record: Map| {
        let bench = lock(&shared);
        check_asked_hook(hook)?;
        let world = bench.world();
        let verdict = bench.policy()?.asked_with(hook, record, &world, bench.now);
        ScriptResult::Ok(Answer::of_verdict(verdict, &world))
    });
    register_events(engine, bench);
}

fn register_events(engine: &mut Engine, bench: &Shared) {
    let shared = bench.clone();
    engine.register_fn("init", move || {
        let bench = lock(&shared);
        let trace = bench.policy()?.init(&bench.world(), bench.now);
        ScriptResult::Ok(Answer::of_trace(trace))
    });
    let shared = bench.clone();
    engine.register_fn("event", move |given: Map| {
        let bench = lock(&shared);
        let mut given = Given::new("event", given);
        let kind = given.text("kind")?.unwrap_or_default();
        if !EVENT_KINDS.contains(&kind.as_str()) {
            return Err(format!("event() wants a kind: {}", EVENT_KINDS.join(" or ")).into());
        }
        let event = RuleEvent {
            kind,
            peer: given.text("peer")?.map(|name| bench.node(&name)),
            reason: given.text("reason")?.unwrap_or_default(),
        };
        given.finish()?;
        let trace = bench.policy()?.on_event(&event, &bench.world(), bench.now);
        ScriptResult::Ok(Answer::of_trace(trace))
    });
}

/// Runs one case. What fails ends the case, not those after it; a limit ends all.
fn case(
    context: &NativeCallContext,
    shared: &Shared,
    name: &str,
    body: &FnPtr,
) -> ScriptResult<()> {
    lock(shared).reset();
    let start = Instant::now();
    let result = body.call_within_context::<Dynamic>(context, ());
    let mut bench = lock(shared);
    let failure = result.as_ref().err();
    let failure = failure.map(|error| script::run_error(error).fault_of(&bench.file));
    bench.results.push(CaseResult {
        name: name.to_owned(),
        failure,
        took_us: u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX),
    });
    match result {
        Err(error) if is_limit(&error) => Err(error),
        _ => Ok(()),
    }
}

fn is_limit(error: &EvalAltResult) -> bool {
    error.unwrap_inner().is_system_exception()
}

fn expect_equal(found: &Dynamic, wanted: &Dynamic) -> ScriptResult<()> {
    let same = found.type_name() == wanted.type_name() && found.to_string() == wanted.to_string();
    if same {
        return Ok(());
    }
    Err(format!("expected {}, got {}", shown(wanted), shown(found)).into())
}

fn shown(value: &Dynamic) -> String {
    if value.is_unit() {
        "()".to_owned()
    } else if value.is_string() {
        format!("\"{value}\"")
    } else {
        value.to_string()
    }
}

fn stranger(name: &str) -> NodeView {
    NodeView::stranger(id_of(name), name)
}

/// An id that is the same wherever a case writes the name.
fn id_of(name: &str) -> NodeId {
    let mut bytes = [0_u8; 32];
    for (index, byte) in name.bytes().enumerate() {
        if let Some(cell) = bytes.get_mut(index % 32) {
            *cell = byte.wrapping_add(cell.wrapping_mul(31));
        }
    }
    NodeId::from_bytes(bytes)
}

/// A case that panicked left nothing half done: it is reset before the next.
fn lock(shared: &Shared) -> MutexGuard<'_, Bench> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
