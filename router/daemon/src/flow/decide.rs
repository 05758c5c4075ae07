//! Asks the scripts until a plan opens, or no further answer may be asked for.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use rand::Rng;
use wormholes_proto::{Host, Transport};
use wormholes_rules::{Conn, Outcome, Plan, RuleRef, Sni, Tunnel};

use super::{
    Asked, Decided, Ends, Forbidden, Refusal,
    crowds::Opening,
    guard,
    open::{self, Route},
    table::Place,
};
use crate::{config::DefaultRule, names, node::NodeCore, policy::Generation, program::Program};

/// How often an open plan's failure asks the scripts again.
const MAX_RETRIES: u8 = 2;

/// A flow on its way to a tunnel.
#[derive(Debug)]
pub(super) struct Trip<'a> {
    pub(super) core: &'a NodeCore,
    pub(super) flow: &'a Place,
    pub(super) asked: &'a Asked,
    /// It counts as opening as long as this is there: but for the time in which its program is
    /// waited for.
    pub(super) opening: Option<Opening<'a>>,
    /// What the scripts see.
    pub(super) conn: Arc<Conn>,
    /// The addresses in `conn` are another node's word.
    pub(super) told: bool,
    /// A flow keeps the rules that it began with.
    rules: Arc<Generation>,
}

/// A plan and who made it.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) plan: Plan,
    /// None: the default of config.toml.
    pub(super) rule: Option<RuleRef>,
}

/// Decides and opens. None when the scripts need `sni`: with that filled, they are asked again.
pub(super) async fn travel(trip: &mut Trip<'_>) -> Result<Option<Route>, Refusal> {
    loop {
        let Some(choice) = decide(trip).await? else {
            return Ok(None);
        };
        let closed = choice.plan.closed;
        let failure = match open::plan(trip, choice).await {
            Ok(route) => return Ok(Some(route)),
            Err(failure) => failure,
        };
        if closed || failure.is_final || trip.conn.attempt == MAX_RETRIES {
            return Err(failure.refusal);
        }
        trip.opening.as_ref().map_or(Ok(()), Opening::check)?;
        let conn = Arc::make_mut(&mut trip.conn);
        conn.attempt += 1;
        conn.last_error = Some(failure.refusal.to_string());
    }
}

/// Decides, and looks up through the plan, unless the scripts had that done.
pub(super) async fn look_up(
    core: &NodeCore,
    flow: &Place,
    asked: &Asked,
) -> Result<IpAddr, Refusal> {
    let mut trip = begin(core, flow, asked).await?;
    // No TLS comes on this connection; whoever asks will name the same server in it.
    Arc::make_mut(&mut trip.conn).sni = Sni::Read(asked.target.host.name().map(str::to_owned));
    let Some(Choice { plan, .. }) = decide(&mut trip).await? else {
        return Err(Refusal::Blocked("a look-up has no TLS".to_owned()));
    };
    let first = plan.steps.first().and_then(|step| step.tunnels.first());
    if let Some(Tunnel::Block { why }) = first {
        return Err(Refusal::Blocked(why.clone()));
    }
    if trip.conn.ips.is_empty() {
        trip.look_up(&plan).await?;
    }
    if trip.told {
        // The program will ask for the address itself, and nobody knows by then who named it.
        guard::check_told(
            &core.network,
            Transport::Tcp,
            &trip.conn.ips,
            asked.target.port,
        )?;
    }
    let none = || Refusal::Name("it has no address".to_owned());
    trip.conn.ip.ok_or_else(none)
}

/// Decides, and goes no way: whether the first one is to dial from here.
pub(super) async fn permit(core: &NodeCore, flow: &Place, asked: &Asked) -> Result<(), Refusal> {
    let mut trip = begin(core, flow, asked).await?;
    let Some(Choice { plan, .. }) = decide(&mut trip).await? else {
        return Err(Refusal::Blocked("a datagram names no server".to_owned()));
    };
    let first = plan.steps.first().and_then(|step| step.tunnels.first());
    if let Some(Tunnel::Direct {
        to: None,
        exit: false,
    }) = first
    {
        return Ok(());
    }
    if let Some(Tunnel::Block { why }) = first {
        return Err(Refusal::Blocked(why.clone()));
    }
    let other = "from a plugin's own port datagrams go directly or not at all";
    Err(Refusal::Blocked(other.to_owned()))
}

/// The beginning of a flow that may travel.
pub(super) async fn begin<'a>(
    core: &'a NodeCore,
    flow: &'a Place,
    asked: &'a Asked,
) -> Result<Trip<'a>, Refusal> {
    guard::check_own(&core.network, asked.transport, &asked.target)?;
    let rules = core.policy.current();
    Ok(Trip {
        core,
        flow,
        asked,
        opening: Some(flow.begin()?),
        conn: Arc::new(snapshot(core, flow, asked, &rules).await?),
        told: false,
        rules,
    })
}

impl Trip<'_> {
    /// Looks the target's name up through `plan`, for the scripts to see.
    async fn look_up(&mut self, plan: &Plan) -> Result<(), Refusal> {
        guard::check_lookup(&self.asked.target.host)?;
        let found = open::lookup(self, plan).await?;
        self.told = found.told;
        let conn = Arc::make_mut(&mut self.conn);
        conn.ip = found.ips.first().copied();
        conn.ips = found.ips;
        Ok(())
    }
}

/// Asks the scripts; looks the name up once when they need its address. None when they need `sni`.
async fn decide(trip: &mut Trip<'_>) -> Result<Option<Choice>, Refusal> {
    loop {
        let rules = &trip.rules;
        let decision = trip.core.policy.route(rules, &trip.conn).await;
        let rule = decision.trace.rule.clone();
        let decided = trip.core.flows.records().then(|| Decided {
            attempt: trip.conn.attempt,
            generation: rules.number,
            outcome: decision.outcome.clone(),
            trace: decision.trace,
        });
        trip.flow.tell(|story| {
            story.rule.clone_from(&rule);
            story.decisions.extend(decided);
        });
        match decision.outcome {
            Outcome::Plan(plan) => return Ok(Some(Choice { plan, rule })),
            Outcome::Pass => return by_default(rules.default).map(Some),
            Outcome::NeedSni => return Ok(None),
            Outcome::NeedIp(_) if !trip.conn.ips.is_empty() => {
                let why = "a script asked twice for the address".to_owned();
                return Err(Refusal::Blocked(why));
            }
            Outcome::NeedIp(plan) => trip.look_up(&plan).await?,
        }
    }
}

fn by_default(default: DefaultRule) -> Result<Choice, Refusal> {
    match default {
        DefaultRule::Block => Err(Refusal::Blocked("no rule allows it".to_owned())),
        DefaultRule::Direct => {
            let direct = Tunnel::Direct {
                to: None,
                exit: false,
            };
            // Closed: asking the scripts again would yield the default again.
            let plan = Plan {
                closed: true,
                ..Plan::single(direct)
            };
            Ok(Choice { plan, rule: None })
        }
    }
}

/// What the scripts see of the flow.
async fn snapshot(
    core: &NodeCore,
    flow: &Place,
    asked: &Asked,
    rules: &Generation,
) -> Result<Conn, Refusal> {
    let host = &asked.target.host;
    let world = core.network.world();
    let named = names::resolve(host.name().unwrap_or_default(), &world)
        .map_err(|error| Refusal::Name(error.to_string()))?;
    let program = program(core, asked, rules).await?;
    let ip = match host {
        Host::Ip(ip) => Some(*ip),
        Host::Name(_) => None,
    };
    let clock = Clock::read();
    Ok(Conn {
        id: flow.id,
        attempt: 0,
        last_error: None,
        entrance: asked.entrance,
        label: asked.label.clone(),
        network: asked.transport.as_str(),
        host: host.to_string(),
        ip,
        ips: ip.into_iter().collect(),
        port: asked.target.port,
        node: named.as_ref().and_then(|named| named.node),
        service: named.and_then(|named| named.service),
        app: program.app(),
        app_path: program.path.map(|path| path.display().to_string()),
        uid: program.uid,
        user: asked.login.as_ref().map(|login| login.user().to_owned()),
        plugin: asked.plugin.as_ref().map(|plugin| plugin.instance.clone()),
        role: asked.plugin.as_ref().and_then(|plugin| plugin.role.clone()),
        src: asked.ends.map(|ends| ends.theirs.ip()),
        rand: rand::rng().random_range(0..=i64::MAX),
        now: clock.now,
        sni: Sni::Unread,
        hour: clock.hour,
        weekday: clock.weekday,
    })
}

/// The program behind the connection, as far as a script wants to know.
async fn program(core: &NodeCore, asked: &Asked, rules: &Generation) -> Result<Program, Refusal> {
    let needs = rules.needs;
    let Some(Ends { theirs, ours }) = asked.ends.filter(|_| needs.app || needs.uid) else {
        return Ok(Program::default());
    };
    let programs = core.programs.clone();
    let transport = asked.transport;
    let find = move || programs.find(transport, theirs, ours, needs.app);
    // A look at /proc takes milliseconds; a socket's user alone does not.
    let found = if needs.app {
        tokio::task::spawn_blocking(find).await.ok().flatten()
    } else {
        find()
    };
    let program = found.unwrap_or_default();
    if core.owns_process && program.pid == Some(std::process::id()) {
        return Err(Forbidden::Loop.into());
    }
    Ok(program)
}

/// The time as scripts see it.
struct Clock {
    now: SystemTime,
    hour: u8,
    weekday: u8,
}

impl Clock {
    fn read() -> Self {
        let local = jiff::Zoned::now();
        Self {
            now: SystemTime::now(),
            hour: local.hour().unsigned_abs(),
            weekday: local.weekday().to_monday_one_offset().unsigned_abs(),
        }
    }
}
