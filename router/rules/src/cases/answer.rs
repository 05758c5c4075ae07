//! What a hook answered, as cases look at it.

use std::{sync::Arc, time::Duration};

use rhai::{Array, Dynamic, Engine, Map};
use wormholes_proto::NodeId;

use crate::{
    decision::{Decision, Message, Outcome, Trace, VerdictDecision},
    plan::{Jitter, Marks, Migrate, Plan, Step, Stick, Tunnel, TunnelKind},
    script::call::ScriptResult,
    verdict::{Allowance, Verdict},
    view::World,
};

/// The answer of any hook.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    what: What,
    trace: Trace,
    world: Arc<World>,
}

#[derive(Debug, Clone)]
enum What {
    Plan(Plan),
    NeedIp(Plan),
    Pass,
    Allow(Allowance),
    Deny(String),
    Done,
}

impl Answer {
    pub(super) fn of_route(decision: Decision, world: &Arc<World>) -> Self {
        let what = match decision.outcome {
            Outcome::Plan(plan) => What::Plan(plan),
            Outcome::NeedIp(plan) => What::NeedIp(plan),
            // A case says what `c.sni` is, or that it is nothing.
            Outcome::Pass | Outcome::NeedSni => What::Pass,
        };
        Self {
            what,
            trace: decision.trace,
            world: world.clone(),
        }
    }

    pub(super) fn of_verdict(decision: VerdictDecision, world: &Arc<World>) -> Self {
        let what = match decision.verdict {
            Some(Verdict::Allow(allowance)) => What::Allow(allowance),
            Some(Verdict::Deny(why)) => What::Deny(why),
            None => What::Pass,
        };
        Self {
            what,
            trace: decision.trace,
            world: world.clone(),
        }
    }

    pub(super) fn of_trace(trace: Trace) -> Self {
        Self {
            what: What::Done,
            trace,
            world: Arc::default(),
        }
    }

    fn plan(&self) -> Option<&Plan> {
        match &self.what {
            What::Plan(plan) | What::NeedIp(plan) => Some(plan),
            What::Pass | What::Allow(_) | What::Deny(_) | What::Done => None,
        }
    }

    fn stick(&self) -> Option<Stick> {
        self.plan().and_then(|plan| plan.stick)
    }

    fn migrate(&self) -> Option<&'static str> {
        let migrate = self.plan().and_then(|plan| plan.migrate);
        migrate.map(Migrate::as_str)
    }

    fn steps(&self) -> &[Step] {
        self.plan().map_or(&[], |plan| &plan.steps)
    }

    fn tunnels(&self) -> impl Iterator<Item = &Tunnel> {
        self.steps().iter().flat_map(|step| &step.tunnels)
    }

    /// Whether every step ends the flow.
    fn blocks(&self) -> bool {
        matches!(self.what, What::Plan(_))
            && self
                .tunnels()
                .all(|tunnel| tunnel.kind() == TunnelKind::Block)
    }

    /// Whether no step is of this kind. A misspelt one would never be there, whatever the script does.
    fn never(&self, kind: &str) -> ScriptResult<bool> {
        let mut kinds = TunnelKind::ALL.into_iter();
        let Some(kind) = kinds.find(|known| known.as_str() == kind) else {
            let known = TunnelKind::ALL.map(TunnelKind::as_str).join(", ");
            return Err(format!("never() knows {known}, not {kind:?}").into());
        };
        Ok(!self.tunnels().any(|tunnel| tunnel.kind() == kind))
    }

    fn why(&self) -> Dynamic {
        let blocked = self.tunnels().find_map(|tunnel| match tunnel {
            Tunnel::Block { why } => Some(why),
            Tunnel::Direct { .. }
            | Tunnel::Relay { .. }
            | Tunnel::Punch { .. }
            | Tunnel::Onion { .. }
            | Tunnel::Tor
            | Tunnel::I2p { .. }
            | Tunnel::Socks { .. } => None,
        });
        match (&self.what, blocked) {
            (What::Deny(why), _) | (_, Some(why)) => why.as_str().into(),
            _ => Dynamic::UNIT,
        }
    }

    fn step_texts(&self) -> Array {
        let steps = self.steps().iter().map(|step| {
            let racers: Vec<_> = step
                .tunnels
                .iter()
                .map(|racer| self.tunnel_text(racer))
                .collect();
            racers.join(" | ").into()
        });
        steps.collect()
    }

    fn name(&self, id: &NodeId) -> String {
        match self.world.by_id(id) {
            Some(node) => node.name.clone(),
            None => id.to_string(),
        }
    }

    fn limits(&self, allowance: &Allowance) -> Map {
        let bill = allowance.bill.as_ref();
        Map::from([
            ("bw".into(), count(allowance.bandwidth_bytes_per_s)),
            ("bytes".into(), count(allowance.max_bytes)),
            ("for_time".into(), seconds(allowance.max_time)),
            ("idle".into(), seconds(allowance.idle)),
            ("bill".into(), optional(bill.map(|id| self.name(id)))),
        ])
    }

    /// `direct`, `direct bob exit`, `relay bob via r1`, `punch bob`, `onion 3 friends via r1 to bob`, `i2p`,
    /// `i2p keep blog length 2`, …
    fn tunnel_text(&self, tunnel: &Tunnel) -> String {
        let name = |id: &NodeId| self.name(id);
        let part = |word: &str, id: &Option<NodeId>| {
            id.as_ref()
                .map_or(String::new(), |id| format!("{word}{}", name(id)))
        };
        let flag = |set: bool, word: &str| if set { word.to_owned() } else { String::new() };
        match tunnel {
            Tunnel::Direct { to, exit } => {
                format!("direct{}{}", part(" ", to), flag(*exit, " exit"))
            }
            Tunnel::Relay { via, to, exit } | Tunnel::Punch { via, to, exit } => {
                let punches = matches!(tunnel, Tunnel::Punch { .. });
                let word = if punches { "punch" } else { "relay" };
                format!(
                    "{word} {}{}{}",
                    name(to),
                    part(" via ", via),
                    flag(*exit, " exit")
                )
            }
            Tunnel::Onion {
                hops,
                via,
                to,
                exit,
                friends_only,
            } => format!(
                "onion {hops}{}{}{}{}",
                flag(*friends_only, " friends"),
                part(" via ", via),
                part(" to ", to),
                flag(*exit, " exit")
            ),
            Tunnel::I2p {
                keep,
                length,
                quantity,
            } => {
                let keep = keep.as_ref().map(|name| format!(" keep {name}"));
                let length = length.map(|length| format!(" length {length}"));
                let quantity = quantity.map(|quantity| format!(" quantity {quantity}"));
                let parts = [keep, length, quantity];
                parts
                    .into_iter()
                    .flatten()
                    .fold("i2p".to_owned(), |text, part| text + part.as_str())
            }
            Tunnel::Socks { server } => format!("socks {server}"),
            Tunnel::Tor => "tor".to_owned(),
            Tunnel::Block { why } => format!("block {why}").trim_end().to_owned(),
        }
    }
}

pub(super) fn register(engine: &mut Engine) {
    engine
        .register_type_with_name::<Answer>("Answer")
        .register_get("blocks", |answer: &mut Answer| answer.blocks())
        .register_get("passes", |answer: &mut Answer| {
            matches!(answer.what, What::Pass)
        })
        .register_get("needs_ip", |answer: &mut Answer| {
            matches!(answer.what, What::NeedIp(_))
        })
        .register_get("allows", |answer: &mut Answer| {
            matches!(answer.what, What::Allow(_))
        })
        .register_get("denies", |answer: &mut Answer| {
            matches!(answer.what, What::Deny(_))
        })
        .register_get("closed", |answer: &mut Answer| {
            answer.plan().is_some_and(|plan| plan.closed)
        })
        .register_get("stick", |answer: &mut Answer| {
            seconds(answer.stick().map(|stick| stick.time))
        })
        .register_get("back_after", |answer: &mut Answer| {
            count(answer.stick().map(|stick| stick.back_after.into()))
        })
        .register_get("migrate", |answer: &mut Answer| optional(answer.migrate()))
        .register_get("why", |answer: &mut Answer| answer.why());
    register_parts(engine);
}

fn register_parts(engine: &mut Engine) {
    engine
        .register_get("steps", |answer: &mut Answer| answer.step_texts())
        .register_get("marks", |answer: &mut Answer| -> Array {
            answer
                .steps()
                .iter()
                .map(|step| marks(&step.marks).into())
                .collect()
        })
        .register_get("limits", |answer: &mut Answer| match &answer.what {
            What::Allow(allowance) => answer.limits(allowance).into(),
            What::Plan(_) | What::NeedIp(_) | What::Pass | What::Deny(_) | What::Done => {
                Dynamic::UNIT
            }
        })
        .register_get("error", |answer: &mut Answer| {
            answer
                .trace
                .error
                .clone()
                .map_or(Dynamic::UNIT, Dynamic::from)
        })
        .register_get("line", |answer: &mut Answer| {
            let line = answer.trace.rule.as_ref().map(|rule| rule.line);
            line.and_then(|line| i64::try_from(line).ok()).unwrap_or(0)
        })
        .register_get("tags", |answer: &mut Answer| -> Map {
            let tags = answer.trace.tags.iter();
            tags.map(|(key, value)| (key.as_str().into(), value.as_str().into()))
                .collect()
        })
        .register_get("log", |answer: &mut Answer| texts(&answer.trace.log))
        .register_get("notified", |answer: &mut Answer| {
            texts(&answer.trace.notifications)
        })
        .register_fn("never", |answer: &mut Answer, kind: &str| {
            answer.never(kind)
        })
        // What the script found when it read `field`; () when it did not.
        .register_fn("read", |answer: &mut Answer, field: &str| {
            let read = answer.trace.because.iter().find(|(key, _)| key == field);
            read.map_or(Dynamic::UNIT, |(_, value)| value.as_str().into())
        });
}

fn texts(messages: &[Message]) -> Array {
    messages
        .iter()
        .map(|message| message.text.as_str().into())
        .collect()
}

fn marks(marks: &Marks) -> Map {
    let isolate: Array = marks
        .isolate
        .iter()
        .map(|key| key.as_str().into())
        .collect();
    let jitter = marks.jitter.map(|jitter| match jitter {
        Jitter::Uniform { max } => format!("uniform {}ms", max.as_millis()),
        Jitter::Exp { mean } => format!("exp {}ms", mean.as_millis()),
    });
    Map::from([
        ("timeout".into(), seconds(marks.timeout)),
        ("delay".into(), seconds(marks.delay)),
        ("jitter".into(), optional(jitter)),
        ("pad".into(), optional(marks.pad_bytes.map(i64::from))),
        ("bw".into(), count(marks.bandwidth_bytes_per_s)),
        ("bytes".into(), count(marks.max_bytes)),
        ("isolate".into(), isolate.into()),
        ("label".into(), optional(marks.label.clone())),
        (
            "carrier".into(),
            optional(marks.carrier.map(|kind| kind.as_str().to_owned())),
        ),
    ])
}

/// Whole seconds as a whole number, as people write them.
fn seconds(time: Option<Duration>) -> Dynamic {
    match time {
        Some(time) if time.subsec_nanos() == 0 => count(Some(time.as_secs())),
        Some(time) => time.as_secs_f64().into(),
        None => Dynamic::UNIT,
    }
}

fn count(value: Option<u64>) -> Dynamic {
    optional(value.and_then(|value| i64::try_from(value).ok()))
}

fn optional<T: Into<Dynamic>>(value: Option<T>) -> Dynamic {
    value.map_or(Dynamic::UNIT, Into::into)
}
