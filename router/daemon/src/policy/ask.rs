//! Asks the rules in force, and keeps what they say beside their answer.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, SystemTime},
};

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;
use wormholes_proto::control::EventBody;
use wormholes_rules::{
    Allowance, Conn, Decision, ExitRequest, Level, Message, NodeView, Outcome, Plan, RelayRequest,
    RuleEvent, Trace, Verdict, VerdictDecision,
};

use super::{Generation, MAX_ERRORS, PolicyHost, ScriptError, lock};
use crate::{gatekeeper::Gatekeeper, log::masked};

/// A script that takes longer than this, a hundred times a common one, holds up what shares its
/// thread.
const SLOW: Duration = Duration::from_millis(2);
/// Rules that were slow once are taken for slow so long.
const SLOW_FOR: Duration = Duration::from_secs(10);

/// Slow scripts leave half of the machine to the flows that live.
pub(super) fn slow_places() -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).max(1)
}

impl PolicyHost {
    /// Asks `rules` how a flow shall travel. Rules that were slow are asked beside the runtime,
    /// few at a time; others right here, since a common answer takes less than a change of thread.
    pub(crate) async fn route(&self, rules: &Arc<Generation>, conn: &Conn) -> Decision {
        let world = self.world();
        let (decision, took) = if rules.is_slow() {
            let _place = self.slow_places.acquire().await;
            let (rules, conn) = (Arc::clone(rules), conn.clone());
            let ask = move || timed(|| rules.policy.route(&conn, &world, conn.now));
            tokio::task::spawn_blocking(ask)
                .await
                .unwrap_or_else(|_| (stopping(), Duration::ZERO))
        } else {
            timed(|| rules.policy.route(conn, &world, conn.now))
        };
        if took > SLOW {
            rules.was_slow();
        }
        self.note("route", &decision.trace);
        decision
    }

    /// Calls the scripts' `init`.
    pub(super) fn init(&self, rules: &Generation) {
        let trace = rules.policy.init(&self.world(), SystemTime::now());
        self.note("init", &trace);
    }

    /// Tells scripts of events until the node is gone.
    pub(crate) async fn tell_events(self: Arc<Self>, mut events: mpsc::Receiver<RuleEvent>) {
        while let Some(event) = events.recv().await {
            let this = Arc::clone(&self);
            let tell = move || {
                let rules = this.current();
                let trace = rules
                    .policy
                    .on_event(&event, &this.world(), SystemTime::now());
                this.note("on_event", &trace);
            };
            if tokio::task::spawn_blocking(tell).await.is_err() {
                return;
            }
        }
    }

    fn verdict(&self, hook: &'static str, decision: VerdictDecision) -> Verdict {
        self.note(hook, &decision.trace);
        let verdict = decision.verdict;
        verdict.unwrap_or_else(|| Verdict::Allow(Allowance::default()))
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

fn stopping() -> Decision {
    Decision {
        outcome: Outcome::Plan(Plan::block("the router stops")),
        trace: Trace::default(),
    }
}

impl Gatekeeper for PolicyHost {
    fn accept(&self, node: &NodeView) -> Verdict {
        let node = Arc::new(node.clone());
        let policy = &self.current().policy;
        self.verdict(
            "accept",
            policy.accept(&node, &self.world(), SystemTime::now()),
        )
    }

    fn relay(&self, request: &RelayRequest) -> Verdict {
        let policy = &self.current().policy;
        self.verdict("relay", policy.relay(request, &self.world()))
    }

    fn exit(&self, request: &ExitRequest) -> Verdict {
        let policy = &self.current().policy;
        self.verdict("exit", policy.exit(request, &self.world()))
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
    use std::time::Instant;

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
