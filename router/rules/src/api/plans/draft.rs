//! A plan in the making: what its methods change, and the checks that end it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rhai::NativeCallContext;
use wormholes_proto::NodeId;

use crate::{
    decision::Outcome,
    plan::{Marks, Migrate, Plan, Step, Stick, Tunnel, TunnelKind},
    script::call::{ScriptResult, line_of},
};

/// Steps of one plan: more than a person waits for.
const MAX_STEPS: usize = 16;
/// Tunnels that race in one step.
const MAX_RACERS: usize = 4;

/// Flows from one destination are known as one caller's.
pub(super) const KEPT_AND_ISOLATED: &str = "i2p() keeps a destination or isolates, not both: who is \
                                            called knows all flows of a kept one as one caller's";

/// Why a plan refuses what follows it.
pub(crate) const NOT_A_STEP: &str = "pass() and need() are answers of their own, not steps";

/// A plan in the making.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Inner {
    pub(super) steps: Vec<DraftStep>,
    /// How many of the last steps one maker made: `best()` makes several. What follows a maker
    /// holds for all of them.
    pub(super) made: usize,
    /// Whether that maker was `best()`: what it makes depends on the ways that there are.
    pub(super) made_by_best: bool,
    pub(super) closed: bool,
    /// Of the whole plan, as `closed` is.
    pub(super) stick: Option<Duration>,
    pub(super) back_after: Option<u32>,
    pub(super) migrate: Option<Migrate>,
    pub(super) pass: bool,
    pub(super) need_ip: bool,
    /// Where the first maker was called.
    pub(super) line: usize,
}

#[derive(Debug, Clone)]
pub(super) struct DraftStep {
    pub(super) tunnels: Vec<DraftTunnel>,
    pub(super) marks: Marks,
}

/// One tunnel, with what the methods may still change.
#[derive(Debug, Clone)]
pub(super) struct DraftTunnel {
    pub(super) kind: TunnelKind,
    /// What is direct only later, where no connection stands.
    pub(super) punch: bool,
    pub(super) to: Option<NodeId>,
    pub(super) via: Option<NodeId>,
    pub(super) exit: bool,
    pub(super) hops: u8,
    pub(super) friends_only: bool,
    pub(super) server: Option<SocketAddr>,
    pub(super) i2p: I2pSettings,
    pub(super) why: String,
}

/// What `i2p()` was told.
#[derive(Debug, Clone, Default)]
pub(super) struct I2pSettings {
    pub(super) keep: Option<String>,
    pub(super) length: Option<u8>,
    pub(super) quantity: Option<u8>,
}

impl DraftTunnel {
    pub(super) fn new(kind: TunnelKind) -> Self {
        Self {
            kind,
            punch: false,
            to: None,
            via: None,
            exit: false,
            hops: 0,
            friends_only: false,
            server: None,
            i2p: I2pSettings::default(),
            why: String::new(),
        }
    }

    /// Ends at `peer`. What ends elsewhere already was meant to.
    pub(super) fn end_at(&mut self, peer: NodeId) -> Result<(), String> {
        match self.to.replace(peer) {
            Some(before) if before != peer => Err(
                "to() is for a tunnel without an end, and this one ends at a peer already"
                    .to_owned(),
            ),
            _ => Ok(()),
        }
    }

    /// Passes `node` first.
    pub(super) fn begin_at(&mut self, node: NodeId) -> Result<(), String> {
        match self.via.replace(node) {
            Some(before) if before != node => Err(
                "via() is for a tunnel without a first node, and this one has one already"
                    .to_owned(),
            ),
            _ => Ok(()),
        }
    }

    /// The word that a script made it by.
    pub(super) fn word(&self) -> &'static str {
        match self.punch {
            true => "punch",
            false => self.kind.as_str(),
        }
    }

    fn finish(self, flow_node: Option<NodeId>) -> Result<Tunnel, String> {
        let Self {
            kind,
            punch,
            to,
            via,
            exit,
            hops,
            friends_only,
            server,
            i2p,
            why,
        } = self;
        if exit && to.is_none() && kind == TunnelKind::Direct {
            return Err("exit() needs the peer that dials: direct().to(peer).exit()".to_owned());
        }
        Ok(match kind {
            TunnelKind::Direct if punch => Tunnel::Punch {
                via,
                to: to.ok_or("punch() needs the peer at its end")?,
                exit,
            },
            TunnelKind::Direct => Tunnel::Direct { to, exit },
            TunnelKind::Relay => Tunnel::Relay {
                via,
                to: to
                    .or(flow_node)
                    .ok_or("relay() needs the peer at its end: relay(via).to(peer)")?,
                exit,
            },
            TunnelKind::Onion => Tunnel::Onion {
                hops,
                via,
                to,
                exit,
                friends_only,
            },
            TunnelKind::I2p => Tunnel::I2p {
                keep: i2p.keep,
                length: i2p.length,
                quantity: i2p.quantity,
            },
            TunnelKind::Socks => Tunnel::Socks {
                server: server.ok_or("socks() needs an address")?,
            },
            TunnelKind::Tor => Tunnel::Tor,
            TunnelKind::Block => Tunnel::Block { why },
        })
    }
}

impl DraftStep {
    /// A mark that a tunnel cannot keep would be a promise that nobody keeps.
    fn check_marks(&self) -> Result<(), String> {
        for tunnel in &self.tunnels {
            let kind = tunnel.kind;
            let has_node = match kind {
                TunnelKind::Relay | TunnelKind::Onion => true,
                TunnelKind::Direct => tunnel.to.is_some(),
                TunnelKind::Socks | TunnelKind::Tor | TunnelKind::I2p | TunnelKind::Block => false,
            };
            if self.marks.carrier.is_some() && !has_node {
                return Err(format!(
                    "{}() goes to no node: there is nothing to carry",
                    tunnel.word()
                ));
            }
            let padded = matches!(kind, TunnelKind::Relay | TunnelKind::Onion);
            if self.marks.pad_bytes.is_some() && !padded {
                return Err(format!(
                    "{}() cannot pad; relay() and onion() can",
                    tunnel.word()
                ));
            }
            if !self.marks.isolate.is_empty() && kind == TunnelKind::Socks {
                return Err("socks() cannot isolate: its server is not told".to_owned());
            }
            if !self.marks.isolate.is_empty() && tunnel.i2p.keep.is_some() {
                return Err(KEPT_AND_ISOLATED.to_owned());
            }
        }
        Ok(())
    }
}

impl Draft {
    /// Where the script made it; 0 when that is not known.
    pub(crate) fn line(&self) -> usize {
        self.inner.line
    }

    /// Whether the next script shall answer.
    pub(crate) fn is_pass(&self) -> bool {
        self.inner.pass
    }

    /// Checks the whole and turns it into what the daemon runs. `flow_node` is the node that the
    /// flow's own name means.
    pub(crate) fn finish(self, flow_node: Option<NodeId>) -> Result<Outcome, String> {
        let inner = Arc::unwrap_or_clone(self.inner);
        if inner.pass {
            return Ok(Outcome::Pass);
        }
        if inner.steps.is_empty() {
            return Err("plan() has no step: add .step(direct()) or the like".to_owned());
        }
        let stick = match (inner.stick, inner.back_after) {
            (Some(time), times) => Some(Stick {
                time,
                back_after: times.unwrap_or(1),
            }),
            (None, Some(_)) => {
                let message = "back_after() is for a plan that sticks: add .stick(\"10m\")";
                return Err(message.to_owned());
            }
            (None, None) => None,
        };
        let steps = inner
            .steps
            .into_iter()
            .map(|step| {
                step.check_marks()?;
                let tunnels = step.tunnels.into_iter();
                Ok(Step {
                    tunnels: tunnels
                        .map(|tunnel| tunnel.finish(flow_node))
                        .collect::<Result<_, String>>()?,
                    marks: step.marks,
                })
            })
            .collect::<Result<_, String>>()?;
        let plan = Plan {
            steps,
            closed: inner.closed,
            stick,
            migrate: inner.migrate,
        };
        plan.check_closed()?;
        Ok(if inner.need_ip {
            Outcome::NeedIp(plan)
        } else {
            Outcome::Plan(plan)
        })
    }

    pub(super) fn single(context: &NativeCallContext, tunnel: DraftTunnel) -> Self {
        Self::steps(context, vec![tunnel])
    }

    pub(super) fn steps(context: &NativeCallContext, tunnels: Vec<DraftTunnel>) -> Self {
        let steps = tunnels.into_iter().map(|tunnel| DraftStep {
            tunnels: vec![tunnel],
            marks: Marks::default(),
        });
        let steps: Vec<_> = steps.collect();
        Self::from_inner(Inner {
            made: steps.len(),
            steps,
            line: line_of(context),
            ..Inner::default()
        })
    }

    pub(super) fn from_inner(inner: Inner) -> Self {
        Self {
            inner: Arc::new(inner),
        }
    }

    pub(super) fn change(
        &mut self,
        change: impl FnOnce(&mut Inner) -> Result<(), String>,
    ) -> ScriptResult<Self> {
        let mut draft = self.clone();
        let inner = Arc::make_mut(&mut draft.inner);
        if inner.pass {
            return Err("pass() takes no methods".into());
        }
        change(inner)?;
        Ok(draft)
    }

    /// Marks each step of the last maker.
    pub(super) fn mark(
        &mut self,
        mut mark: impl FnMut(&mut Marks) -> Result<(), String>,
    ) -> ScriptResult<Self> {
        self.change(|inner| {
            last_step(inner)?;
            let last = inner.steps.iter_mut().rev().take(inner.made);
            last.map(|step| &mut step.marks).try_for_each(&mut mark)
        })
    }

    /// Changes each tunnel of one maker. Behind `.or(…)` nobody can tell which tunnels are meant.
    pub(super) fn aim(
        &mut self,
        method: &str,
        mut aim: impl FnMut(&mut DraftTunnel) -> Result<(), String>,
    ) -> ScriptResult<Self> {
        self.change(|inner| {
            last_step(inner)?;
            if inner.made != inner.steps.len() {
                return Err(format!(
                    "{method}() follows one tunnel, or best(): write it inside .or(…) and .step(…), \
                     after each tunnel that it is for"
                ));
            }
            let tunnels = inner.steps.iter_mut().flat_map(|step| &mut step.tunnels);
            tunnels.into_iter().try_for_each(&mut aim)
        })
    }

    pub(super) fn then(&mut self, next: &Self) -> ScriptResult<Self> {
        self.change(|inner| {
            if next.inner.pass || next.inner.need_ip {
                return Err(NOT_A_STEP.to_owned());
            }
            inner.steps.extend(next.inner.steps.iter().cloned());
            inner.made = next.inner.made;
            inner.made_by_best = next.inner.made_by_best;
            // One closed part closes the whole: nobody means half of a promise.
            inner.closed |= next.inner.closed;
            // So it is with this one; what is said last goes first.
            inner.stick = next.inner.stick.or(inner.stick);
            inner.back_after = next.inner.back_after.or(inner.back_after);
            inner.migrate = next.inner.migrate.or(inner.migrate);
            if inner.line == 0 {
                inner.line = next.inner.line;
            }
            if inner.steps.len() > MAX_STEPS {
                return Err(format!("a plan has at most {MAX_STEPS} steps"));
            }
            Ok(())
        })
    }

    pub(super) fn race(&mut self, other: &Self) -> ScriptResult<Self> {
        self.change(|inner| {
            // Refused where there is but one way too, or it would fail when another comes up.
            if inner.made_by_best || other.inner.made_by_best {
                return Err("one tunnel races another, and best() may be several".to_owned());
            }
            let [racer] = other.inner.steps.as_slice() else {
                return Err("race() takes a plan of one step".to_owned());
            };
            let other = &other.inner;
            let sticks = other.stick.is_some() || other.back_after.is_some();
            if racer.marks != Marks::default() || sticks || other.migrate.is_some() {
                return Err("limits follow race(): they hold for all that race".to_owned());
            }
            inner.closed |= other.closed;
            let step = last_step(inner)?;
            step.tunnels.extend(racer.tunnels.iter().cloned());
            if step.tunnels.len() > MAX_RACERS {
                return Err(format!("at most {MAX_RACERS} tunnels race"));
            }
            Ok(())
        })
    }
}

impl Plan {
    /// In a closed plan nothing is weaker than the first tunnel, and only equals race.
    fn check_closed(&self) -> Result<(), String> {
        let Some(step) = self.steps.first() else {
            return Ok(());
        };
        let Some(first) = step.tunnels.first() else {
            return Ok(());
        };
        if !self.closed {
            return Ok(());
        }
        let asked = first;
        let first = asked.kind();
        let is_weaker = TunnelKind::Direct.is_weaker_than(first);
        if self.migrate == Some(Migrate::Streams) && is_weaker {
            return Err(format!(
                "a closed plan that begins with {} may not go over to direct, which is weaker: \
                 leave out migrate(\"streams\")",
                first.as_str()
            ));
        }
        for step in &self.steps {
            if let Some(weaker) = step.tunnels.iter().find_map(|one| one.weakness(asked)) {
                return Err(format!(
                    "a closed plan that begins with {}() may not go on with {weaker}",
                    first.as_str()
                ));
            }
            let kinds = step.tunnels.iter().map(Tunnel::kind);
            if let Some(weaker) = kinds.clone().find(|kind| kind.is_weaker_than(first)) {
                return Err(format!(
                    "a closed plan that begins with {} may not go on with {}, which is weaker",
                    first.as_str(),
                    weaker.as_str()
                ));
            }
            if kinds.clone().min() != kinds.max() {
                return Err("in a closed plan only tunnels of one kind race".to_owned());
            }
        }
        Ok(())
    }
}

impl Tunnel {
    /// What this one lacks of the one that was asked for, as far as their kinds do not tell.
    fn weakness(&self, asked: &Self) -> Option<&'static str> {
        match self {
            Self::Onion {
                hops, friends_only, ..
            } => onion_weakness(*hops, *friends_only, asked),
            Self::I2p { length, .. } => i2p_weakness((*length)?, asked),
            Self::Direct { .. }
            | Self::Relay { .. }
            | Self::Punch { .. }
            | Self::Socks { .. }
            | Self::Tor
            | Self::Block { .. } => None,
        }
    }
}

fn onion_weakness(hops: u8, friends_only: bool, asked: &Tunnel) -> Option<&'static str> {
    let Tunnel::Onion {
        hops: wanted,
        friends_only: among_friends,
        ..
    } = asked
    else {
        return None;
    };
    if hops < *wanted {
        return Some("one of fewer hops");
    }
    (*among_friends && !friends_only).then_some("one that leaves the friends")
}

/// I2P tunnels of no hops show the router beside this node to whoever is called.
fn i2p_weakness(length: u8, asked: &Tunnel) -> Option<&'static str> {
    let wanted = match asked {
        // The config says how many, which is not known here.
        Tunnel::I2p { length, .. } => length.unwrap_or(1),
        Tunnel::Onion { .. } | Tunnel::Tor => 1,
        Tunnel::Direct { .. }
        | Tunnel::Relay { .. }
        | Tunnel::Punch { .. }
        | Tunnel::Socks { .. }
        | Tunnel::Block { .. } => 0,
    };
    match length {
        0 if wanted > 0 => Some("i2p() of no hops, which hides nothing"),
        _ if length < wanted => Some("i2p() of fewer hops"),
        _ => None,
    }
}

fn last_step(inner: &mut Inner) -> Result<&mut DraftStep, String> {
    inner
        .steps
        .last_mut()
        .ok_or_else(|| "this follows a step: add .step(…) first".to_owned())
}
