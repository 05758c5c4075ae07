//! Asks the rules in force, and keeps what they say beside their answer.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt, future::BoxFuture};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;
use wormholes_proto::control::EventBody;
use wormholes_rules::{
    Allowance, Answer, Asked, Conn, Decision, ExitRequest, Level, Message, NodeView, Outcome, Plan,
    Policy, Question, Recording, RelayRequest, RuleEvent, Trace, Verdict, VerdictDecision, World,
};

use super::{Generation, MAX_ERRORS, PolicyHost, ScriptError, deciders::TooMany, lock};
use crate::{gatekeeper::Gatekeeper, log::masked};

/// A script that takes longer than this, a hundred times a common one, holds up what shares its
/// thread.
const SLOW: Duration = Duration::from_millis(2);
/// Rules that were slow once are taken for slow so long: a change of thread for each decision
/// costs less than one slow decision on a thread that flows share.
const SLOW_FOR: Duration = Duration::from_secs(600);

impl PolicyHost {
    /// Asks `rules` how a flow shall travel.
    pub(crate) async fn route(&self, rules: &Arc<Generation>, conn: &Arc<Conn>) -> Decision {
        let world = self.world();
        let asked = Arc::clone(conn);
        let route = move |policy: &Policy| policy.route(&asked, &world, asked.now);
        match self.ask(rules, route).await {
            Ok(mut decision) => {
                self.note("route", &decision.trace);
                let answer = || Answer::Route(decision.outcome.clone());
                let question = Question::Route(Arc::clone(conn));
                self.keep(rules, question, answer, &mut decision.trace);
                decision
            }
            Err(too_many) => Decision {
                outcome: Outcome::Plan(Plan::block(too_many.to_string())),
                trace: Trace::default(),
            },
        }
    }

    /// Asks `rules` something. Rules that were slow are asked beside the runtime; others right
    /// here, since a common answer takes less than a change of thread.
    async fn ask<T: Send + 'static>(
        &self,
        rules: &Arc<Generation>,
        ask: impl FnOnce(&Policy) -> T + Send + 'static,
    ) -> Result<T, TooMany> {
        let (answer, took) = if rules.is_slow() {
            let rules = Arc::clone(rules);
            let ask = move || timed(|| ask(&rules.policy));
            self.deciders.run(ask).await?
        } else {
            timed(|| ask(&rules.policy))
        };
        if took > SLOW {
            rules.was_slow();
        }
        Ok(answer)
    }

    /// Calls the scripts' `init`.
    pub(super) fn init(&self, rules: &Generation) {
        let trace = rules.policy.init(&self.world(), SystemTime::now());
        self.note("init", &trace);
    }

    /// Tells scripts of events until the node is gone. Nobody waits for it: always beside the
    /// runtime.
    pub(crate) async fn tell_events(self: Arc<Self>, mut events: mpsc::Receiver<RuleEvent>) {
        while let Some(event) = events.recv().await {
            let (rules, world) = (self.current(), self.world());
            let tell = move || rules.policy.on_event(&event, &world, SystemTime::now());
            match self.deciders.run(tell).await {
                Ok(trace) => self.note("on_event", &trace),
                Err(TooMany) => self.metrics.rule_events_dropped.inc(),
            }
        }
    }

    /// Asks the rules in force for a plugin, on its own thread: what a handler waits for takes no change
    /// of thread. None: no script has the hook, or all passed.
    pub(crate) fn asked(&self, asked: Asked) -> Option<Verdict> {
        let (world, rules) = (self.world(), self.current());
        let VerdictDecision { verdict, mut trace } = rules.policy.asked(&asked, &world);
        let question = Question::Asked(Box::new(asked));
        self.note(question.hook(), &trace);
        let answer = || Answer::Verdict(verdict.clone());
        self.keep(&rules, question, answer, &mut trace);
        verdict
    }

    async fn verdict(
        &self,
        question: Question,
        ask: impl FnOnce(&Policy, &Arc<World>) -> VerdictDecision + Send + 'static,
    ) -> Verdict {
        let (world, rules) = (self.world(), self.current());
        match self.ask(&rules, move |policy| ask(policy, &world)).await {
            Ok(VerdictDecision { verdict, mut trace }) => {
                self.note(question.hook(), &trace);
                let answer = || Answer::Verdict(verdict.clone());
                self.keep(&rules, question, answer, &mut trace);
                verdict.unwrap_or_else(|| Verdict::Allow(Allowance::default()))
            }
            Err(too_many) => Verdict::Deny(too_many.to_string()),
        }
    }

    /// Keeps a decision for a replay, when decisions are kept.
    fn keep(
        &self,
        rules: &Generation,
        question: Question,
        answer: impl FnOnce() -> Answer,
        trace: &mut Trace,
    ) {
        if let Some(reads) = trace.reads.take() {
            let recording = Recording {
                question,
                reads: *reads,
                answer: answer(),
                rule: trace.rule.clone(),
            };
            self.ring.keep(rules.number, recording);
        }
    }

    /// Counts a run, and passes on what the script said. Its words are its writer's: they are not
    /// masked.
    fn note(&self, hook: &'static str, trace: &Trace) {
        let histogram = self.metrics.decision.with_label_values(&[hook]);
        histogram.observe(trace.took.as_secs_f64());
        for Message { level, text } in &trace.log {
            match level {
                Level::Debug => tracing::debug!(target: "script", hook, "{text}"),
                Level::Info => tracing::info!(target: "script", hook, "{text}"),
                Level::Warn => tracing::warn!(target: "script", hook, "{text}"),
                Level::Error => tracing::error!(target: "script", hook, "{text}"),
            }
        }
        for Message { level, text } in &trace.notifications {
            let level = match level {
                Level::Debug | Level::Info => "info",
                Level::Warn => "warn",
                Level::Error => "error",
            };
            self.events.publish(EventBody::Notify {
                level: level.to_owned(),
                message: Some(text.clone()),
            });
        }
        if let Some(message) = &trace.error {
            self.note_error(hook, message);
        }
    }

    fn note_error(&self, hook: &'static str, message: &str) {
        self.metrics.script_errors.with_label_values(&[hook]).inc();
        self.error_count.fetch_add(1, Relaxed);
        let mut errors = lock(&self.errors);
        let same = |error: &ScriptError| error.hook == hook && error.message == message;
        let before = errors.iter().position(same);
        let before = before.and_then(|index| errors.remove(index));
        errors.truncate(MAX_ERRORS - 1);
        errors.push_front(ScriptError {
            at: SystemTime::now(),
            hook,
            message: message.to_owned(),
            count: 1 + before.as_ref().map_or(0, |error| error.count),
        });
        drop(errors);
        // A script that fails for each flow is warned of once; all of them are counted.
        if before.is_none() {
            tracing::warn!(
                hook,
                at = place(message),
                error = %masked(message),
                "a rule script failed"
            );
        }
    }
}

impl Generation {
    fn is_slow(&self) -> bool {
        let now = self.loaded.elapsed().as_millis();
        now < u128::from(self.slow_until_ms.load(Relaxed))
    }

    fn was_slow(&self) {
        let until = (self.loaded.elapsed() + SLOW_FOR).as_millis();
        let until = u64::try_from(until).unwrap_or(u64::MAX);
        self.slow_until_ms.store(until, Relaxed);
    }
}

/// What `ask` returns, and how long it had a processor: on a machine with other work a quick script
/// may wait longer than it runs, and takes nobody's thread meanwhile.
fn timed<T>(ask: impl FnOnce() -> T) -> (T, Duration) {
    let clock = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default();
    let start = clock();
    let answer = ask();
    (answer, clock().saturating_sub(start))
}

/// Script and line of an error. The rest may name the target: `parse_int(c.host)`.
fn place(message: &str) -> &str {
    let end = message.find(": ").unwrap_or(0);
    message.get(..end).unwrap_or_default()
}

impl Gatekeeper for PolicyHost {
    fn accept(&self, node: Arc<NodeView>) -> BoxFuture<'_, Verdict> {
        let now = SystemTime::now();
        let question = Question::Accept {
            node: Arc::clone(&node),
            now,
        };
        let ask = move |policy: &Policy, world: &_| policy.accept(&node, world, now);
        self.verdict(question, ask).boxed()
    }

    fn relay(&self, request: RelayRequest) -> BoxFuture<'_, Verdict> {
        let question = Question::Relay(Box::new(request.clone()));
        let ask = move |policy: &Policy, world: &_| policy.relay(&request, world);
        self.verdict(question, ask).boxed()
    }

    fn exit(&self, request: ExitRequest) -> BoxFuture<'_, Verdict> {
        let question = Question::Exit(Box::new(request.clone()));
        let ask = move |policy: &Policy, world: &_| policy.exit(&request, world);
        self.verdict(question, ask).boxed()
    }

    fn event(&self, event: RuleEvent) {
        if let Some(peer) = &event.peer {
            let (name, id) = (peer.name.clone(), peer.id);
            match event.kind.as_str() {
                "peer-up" => self.events.publish(EventBody::PeerUp { peer: name, id }),
                "peer-down" => self.events.publish(EventBody::PeerDown {
                    peer: name,
                    id,
                    reason: event.reason.clone(),
                }),
                _ => {}
            }
        }
        if self.rule_events.try_send(event).is_err() {
            self.metrics.rule_events_dropped.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Instant};

    use super::*;

    /// Keeps a processor busy until `time` is over.
    fn work(time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {}
    }

    #[test]
    fn waiting_for_a_processor_makes_no_script_slow() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let other = thread::spawn(move || {
            work(5 * SLOW);
            sender.send(())
        });
        let (waited, took) = timed(|| receiver.recv());
        assert!(waited.is_ok() && took < SLOW, "{took:?}");
        other.join().unwrap().unwrap();

        // So long that it gets its part of a busy machine.
        let ((), took) = timed(|| work(100 * SLOW));
        assert!(took > SLOW, "{took:?}");
    }

    #[test]
    fn the_place_of_an_error_says_nothing_of_the_flow() {
        assert_eq!(place("a.rhai:3: no number: x.example"), "a.rhai:3");
        assert_eq!(place("x.example"), "");
    }
}
