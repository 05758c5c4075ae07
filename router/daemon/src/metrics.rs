//! Every number that the daemon counts, declared in one place: `wormholes_<noun>_<unit>[_total]`.
//!
//! Labels come from closed sets (entrance, tunnel kind, outcome, reason); a peer id or a host name
//! never becomes one, since whoever reads metrics must not learn who talks with whom.

use std::sync::{Arc, Mutex, atomic::Ordering::Relaxed};

use prometheus::{
    Encoder, Error, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};
use wormholes_host::{Commit, InstanceReport, Observer};
use wormholes_rules::HOOKS;

use crate::{counters::Counters, flow::Totals, tor::Tor};

mod plugins;
mod serve;
mod tor;

pub use serve::MetricsError;
pub(crate) use serve::MetricsServer;

/// From a local dial (under a millisecond) to Tor-like waits.
const OPEN_BUCKETS_SECONDS: [f64; 13] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];
/// From a bare `direct()` (some microseconds) to the 20 ms at which a script is stopped, and what a busy machine adds.
const DECISION_BUCKETS_SECONDS: [f64; 10] = [
    0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.001, 0.005, 0.02, 0.05,
];
/// From memory (some microseconds of copying) to a disk that is worn out.
const COMMIT_BUCKETS_SECONDS: [f64; 10] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5,
];
/// From two nodes of one city to the end of the wait.
const PUNCH_BUCKETS_SECONDS: [f64; 8] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0];
/// From one event a commit, where little happens, to the most that an open batch holds.
const BATCH_BUCKETS_EVENTS: [f64; 8] = [1.0, 2.0, 5.0, 10.0, 50.0, 250.0, 1000.0, 8192.0];

/// Why no plugin hears of a connection or a request by HTTP.
const HTTP_REFUSALS: [&str; 11] = [
    "body",
    "full",
    "headers",
    "host",
    "late",
    "malformed",
    "path",
    "site",
    "slow",
    "stopping",
    "tls",
];

/// The counters of one node; those of plugins are theirs, and are rendered beside these.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Held while a counter catches up: two scrapers at once would raise it twice.
    catching_up: Mutex<()>,
    /// Flows that ended, by `entrance`, `network` (`tcp`, `udp`), `tunnel` (the one tried last, where none opened; `none`
    /// where none was tried) and `outcome`.
    pub(crate) flows: IntCounterVec,
    /// Flows that a relay carried when a direct connection to their peer stood, by `result`: `moved`,
    /// or `failed`, for each connection that they could not go on by.
    pub(crate) flows_moved: IntCounterVec,
    /// Flows that live.
    pub(crate) flows_open: IntGauge,
    /// Payload, by `tunnel` and `direction` (`up` leaves the program).
    flow_bytes: IntCounterVec,
    /// From the decision to an open tunnel, by `tunnel`.
    pub(crate) flow_open: HistogramVec,
    /// Time in scripts, by `hook`.
    pub(crate) decision: HistogramVec,
    /// Errors and limits hit in scripts, by `hook`.
    pub(crate) script_errors: IntCounterVec,
    /// The rules in force.
    pub(crate) policy_generation: IntGauge,
    /// Rules that failed to load.
    pub(crate) policy_load_failures: IntCounter,
    /// Connections at entrances that have not yet said where they go.
    pub(crate) connections_pending: IntGauge,
    /// Connections that entrances refused, by `entrance` and `reason`.
    pub(crate) connections_refused: IntCounterVec,
    /// Requests to plugins by HTTP, by `status` (`2xx`).
    pub(crate) http_requests: IntCounterVec,
    /// Connections and requests that no plugin heard of, by `reason`.
    pub(crate) http_refusals: IntCounterVec,
    /// Connections to the gateway.
    pub(crate) http_connections: IntGauge,
    /// Connections to the control socket that found no seat.
    pub(crate) control_refused: IntCounter,
    /// What was refused of others, by `what` (`handshake`, `link`, `stream`, `record`,
    /// `answer`, `frame`; `call` was sent back to prove its address).
    peer_refusals: IntCounterVec,
    /// Onion circuits of this node's own, by `outcome`.
    onion_circuits: IntCounterVec,
    /// What is served to others, by `role` (`relay`, `hop`, `exit`, `service`).
    circuits_open: IntGaugeVec,
    /// What was served to others since the start, by `role`.
    circuits: IntCounterVec,
    /// What others were refused, by `role` and `reason`.
    circuits_refused: IntCounterVec,
    /// Payload carried for others, by `role`.
    carried_bytes: IntCounterVec,
    /// Datagrams of UDP flows that were dropped here, by `reason`.
    datagrams_dropped: IntCounterVec,
    /// Sessions at an I2P router, by `outcome` (`made`, `failed`; `lost` were made, and ended by it).
    i2p_sessions: IntCounterVec,
    /// Sessions at an I2P router that stand.
    pub(crate) i2p_sessions_open: IntGauge,
    /// Direct paths that were to be made through NATs, by `result` (`direct`, or why there is none).
    punches: IntCounterVec,
    /// How long those took that came to be.
    punch: Histogram,
    /// Tasks of the runtime that the node is on; of a program that embeds it, its own too.
    tasks_alive: IntGauge,
    tor: tor::TorMetrics,
    /// Peers with a standing connection.
    pub(crate) peers_connected: IntGauge,
    /// Round trips to connected peers, by `stat` (`min`, `median`, `max`).
    pub(crate) peer_rtt: GaugeVec,
    /// Events that were not told to scripts because too many waited.
    pub(crate) rule_events_dropped: IntCounter,
    /// What the disk took for a commit of the plugins' store. One holds events of many plugins, so that
    /// nothing of commits has the label `plugin`.
    plugin_commit: Histogram,
    /// Events of one commit.
    plugin_commit_events: Histogram,
    /// Commits that failed, and their events with them.
    plugin_commit_failures: IntCounter,
}

impl Metrics {
    /// Declares everything, at zero.
    ///
    /// # Errors
    /// A name is declared twice: a bug that every test finds.
    #[expect(clippy::too_many_lines, reason = "a list, one entry a metric")]
    pub(crate) fn new() -> Result<Arc<Self>, Error> {
        let registry = Registry::new();
        let declare = Declare(&registry);
        declare
            .gauges("build_info", "Version of this build", &["version"])?
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let metrics = Self {
            flows: declare.counters(
                "flows_total",
                "Flows that ended",
                &["entrance", "network", "tunnel", "outcome"],
            )?,
            flows_moved: declare.counters(
                "flows_moved_total",
                "Attempts to move flows from a relay to a direct connection",
                &["result"],
            )?,
            flows_open: declare.gauge("flows_open", "Flows that live")?,
            flow_bytes: declare.counters(
                "flow_bytes_total",
                "Payload of flows in bytes",
                &["tunnel", "direction"],
            )?,
            flow_open: declare.histogram(
                "flow_open_seconds",
                "Time from the decision to an open tunnel",
                &OPEN_BUCKETS_SECONDS,
                "tunnel",
            )?,
            decision: declare.histogram(
                "rule_decision_seconds",
                "Time in rule scripts",
                &DECISION_BUCKETS_SECONDS,
                "hook",
            )?,
            script_errors: declare.counters(
                "script_errors_total",
                "Errors and limits hit in rule scripts",
                &["hook"],
            )?,
            policy_generation: declare
                .gauge("policy_generation", "Number of the rules in force")?,
            policy_load_failures: declare
                .counter("policy_load_failures_total", "Rules that failed to load")?,
            connections_pending: declare.gauge(
                "connections_pending",
                "Connections that have not yet said where they go",
            )?,
            connections_refused: declare.counters(
                "connections_refused_total",
                "Connections that entrances refused",
                &["entrance", "reason"],
            )?,
            http_requests: declare.counters(
                "http_requests_total",
                "Requests to plugins by HTTP",
                &["status"],
            )?,
            http_refusals: declare.counters(
                "http_refusals_total",
                "Connections and requests by HTTP that no plugin heard of",
                &["reason"],
            )?,
            http_connections: declare.gauge(
                "http_connections_open",
                "Connections of those who ask plugins by HTTP",
            )?,
            control_refused: declare.counter(
                "control_connections_refused_total",
                "Connections to the control socket that found no seat",
            )?,
            peer_refusals: declare.counters(
                "peer_refusals_total",
                "What was refused of other nodes",
                &["what"],
            )?,
            onion_circuits: declare.counters(
                "onion_circuits_total",
                "Onion circuits that this node built for itself",
                &["outcome"],
            )?,
            circuits_open: declare.gauges(
                "circuits_open",
                "What is served to other nodes",
                &["role"],
            )?,
            circuits: declare.counters(
                "circuits_total",
                "What was served to other nodes",
                &["role"],
            )?,
            circuits_refused: declare.counters(
                "circuits_refused_total",
                "What other nodes were refused",
                &["role", "reason"],
            )?,
            carried_bytes: declare.counters(
                "carried_bytes_total",
                "Payload carried for other nodes in bytes",
                &["role"],
            )?,
            datagrams_dropped: declare.counters(
                "datagrams_dropped_total",
                "Datagrams of UDP flows that were dropped here",
                &["reason"],
            )?,
            i2p_sessions: declare.counters(
                "i2p_sessions_total",
                "Sessions at the I2P router that were made, failed or were lost",
                &["outcome"],
            )?,
            i2p_sessions_open: declare
                .gauge("i2p_sessions_open", "Sessions at the I2P router that stand")?,
            punches: declare.counters(
                "punches_total",
                "Direct paths that were to be made through NATs",
                &["result"],
            )?,
            punch: declare.histogram_alone(
                "punch_seconds",
                "Time until a direct path stood that was made through NATs",
                &PUNCH_BUCKETS_SECONDS,
            )?,
            tasks_alive: declare.gauge("tasks_alive", "Tasks of the process's runtime")?,
            tor: tor::TorMetrics::declare(&declare)?,
            peers_connected: declare.gauge("peers_connected", "Peers with a connection")?,
            peer_rtt: declare.float_gauges(
                "peer_rtt_seconds",
                "Round trips to connected peers",
                &["stat"],
            )?,
            rule_events_dropped: declare.counter(
                "rule_events_dropped_total",
                "Events that were not told to scripts because too many waited",
            )?,
            plugin_commit: declare.histogram_alone(
                "plugin_commit_seconds",
                "What the disk took for a commit of the store that all plugins share",
                &COMMIT_BUCKETS_SECONDS,
            )?,
            plugin_commit_events: declare.histogram_alone(
                "plugin_commit_events",
                "Events of one commit, of whichever plugins",
                &BATCH_BUCKETS_EVENTS,
            )?,
            plugin_commit_failures: declare.counter(
                "plugin_commit_failures_total",
                "Commits of the plugins' store that failed, with all their events",
            )?,
            registry,
            catching_up: Mutex::default(),
        };
        // A counter that begins with its first error hides that error from `increase()`.
        let hooks = HOOKS.iter().map(|(hook, _)| *hook);
        for hook in hooks.chain(["asked"]) {
            metrics.script_errors.with_label_values(&[hook]);
        }
        for result in ["moved", "failed"] {
            metrics.flows_moved.with_label_values(&[result]);
        }
        for status in ["2xx", "3xx", "4xx", "5xx"] {
            metrics.http_requests.with_label_values(&[status]);
        }
        for reason in HTTP_REFUSALS {
            metrics.http_refusals.with_label_values(&[reason]);
        }
        Ok(Arc::new(metrics))
    }

    /// Takes the round trips of all connected peers, in seconds.
    pub(crate) fn set_peers(&self, mut rtts: Vec<f64>) {
        self.peers_connected
            .set(i64::try_from(rtts.len()).unwrap_or(i64::MAX));
        rtts.sort_by(f64::total_cmp);
        let stats = [
            ("min", rtts.first()),
            ("median", rtts.get(rtts.len() / 2)),
            ("max", rtts.last()),
        ];
        for (stat, value) in stats {
            let gauge = self.peer_rtt.with_label_values(&[stat]);
            gauge.set(value.copied().unwrap_or(0.0));
        }
    }

    /// Takes how many tasks live.
    pub(crate) fn set_tasks(&self, tasks: usize) {
        self.tasks_alive
            .set(i64::try_from(tasks).unwrap_or(i64::MAX));
    }

    /// Takes what flows moved since the last time.
    pub(crate) fn set_flows(&self, totals: &Totals) {
        for (kind, moved) in &totals.bytes {
            for (direction, bytes) in [("up", moved.up), ("down", moved.down)] {
                self.catch_up(&self.flow_bytes, &[kind.as_str(), direction], bytes);
            }
        }
    }

    /// Takes what the network counted since the last time.
    pub(crate) fn set_network(&self, counters: &Counters) {
        for (what, count) in [
            ("call", &counters.calls_sent_back),
            ("handshake", &counters.handshakes_failed),
            ("link", &counters.links_refused),
            ("stream", &counters.streams_refused),
            ("record", &counters.records_refused),
            ("answer", &counters.answers_refused),
            ("frame", &counters.frames_refused),
        ] {
            self.catch_up(&self.peer_refusals, &[what], count.load(Relaxed));
        }
        for (outcome, count) in [
            ("built", &counters.circuits_built),
            ("failed", &counters.circuits_failed),
        ] {
            self.catch_up(&self.onion_circuits, &[outcome], count.load(Relaxed));
        }
        for (outcome, count) in [
            ("made", &counters.i2p.sessions_made),
            ("failed", &counters.i2p.sessions_failed),
            ("lost", &counters.i2p.sessions_lost),
        ] {
            self.catch_up(&self.i2p_sessions, &[outcome], count.load(Relaxed));
        }
        for (result, count) in counters.punches.by_result() {
            self.catch_up(&self.punches, &[result], count);
        }
        for took in counters.punches.take_times() {
            self.punch.observe(took.as_secs_f64());
        }
        for (reason, count) in counters.dropped.by_reason() {
            self.catch_up(&self.datagrams_dropped, &[reason], count);
        }
        for (role, counters) in [
            ("relay", &counters.relay),
            ("hop", &counters.hop),
            ("exit", &counters.exit),
            ("service", &counters.service),
        ] {
            let active = i64::try_from(counters.active.load(Relaxed)).unwrap_or(i64::MAX);
            self.circuits_open.with_label_values(&[role]).set(active);
            self.catch_up(&self.circuits, &[role], counters.opened.load(Relaxed));
            self.catch_up(&self.carried_bytes, &[role], counters.bytes.load(Relaxed));
            for (reason, count) in counters.refused() {
                let reason = reason.to_string();
                self.catch_up(&self.circuits_refused, &[role, &reason], count);
            }
        }
    }

    /// Takes how it stands with Tor, and what it counted since the last time.
    pub(crate) fn set_tor(&self, tor: &Tor) {
        self.tor.set(tor);
        for (direction, count) in tor.counts().by_direction() {
            self.catch_up(&self.tor.streams, &[direction], count);
        }
        let _alone = self.catching_up.lock();
        let (before, now) = (self.tor.identities.get(), tor.identities() - 1);
        self.tor.identities.inc_by(now.saturating_sub(before));
    }

    /// Raises a counter to `count`, which is counted elsewhere and never falls.
    fn catch_up(&self, counters: &IntCounterVec, labels: &[&str], count: u64) {
        let counter = counters.with_label_values(labels);
        let _alone = self.catching_up.lock();
        counter.inc_by(count.saturating_sub(counter.get()));
    }

    /// Counts what the plugins' store commits.
    pub(crate) fn observer(self: &Arc<Self>) -> Observer {
        let metrics = Arc::clone(self);
        Box::new(move |commit: &Commit| {
            metrics.plugin_commit.observe(commit.took.as_secs_f64());
            // A batch has some thousands at most.
            metrics.plugin_commit_events.observe(commit.events as f64);
            if !commit.is_durable {
                metrics.plugin_commit_failures.inc();
            }
        })
    }

    /// The Prometheus text format, with what these plugins did.
    ///
    /// # Errors
    /// The encoder failed: a bug.
    pub(crate) fn render(&self, plugins: &[InstanceReport]) -> Result<Vec<u8>, Error> {
        let mut families = self.registry.gather();
        families.extend(plugins::families(plugins));
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }
}

/// Registers as it makes.
struct Declare<'a>(&'a Registry);

impl Declare<'_> {
    fn register<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, Error> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        self.register(IntCounter::with_opts(opts(name, help))?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
        self.register(IntCounterVec::new(opts(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, Error> {
        self.register(IntGauge::with_opts(opts(name, help))?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, Error> {
        self.register(IntGaugeVec::new(opts(name, help), labels)?)
    }

    fn float_gauge(&self, name: &str, help: &str) -> Result<Gauge, Error> {
        self.register(Gauge::with_opts(opts(name, help))?)
    }

    fn float_gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, Error> {
        self.register(GaugeVec::new(opts(name, help), labels)?)
    }

    fn histogram_alone(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, Error> {
        let options = HistogramOpts {
            common_opts: opts(name, help),
            buckets: buckets.to_vec(),
        };
        self.register(Histogram::with_opts(options)?)
    }

    fn histogram(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
        label: &str,
    ) -> Result<HistogramVec, Error> {
        let options = HistogramOpts {
            common_opts: opts(name, help),
            buckets: buckets.to_vec(),
        };
        self.register(HistogramVec::new(options, &[label])?)
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("wormholes_{name}"), help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_rendered() {
        let metrics = Metrics::new().unwrap();
        metrics
            .flows
            .with_label_values(&["socks5", "udp", "direct", "ok"])
            .inc();
        metrics.set_peers(vec![0.03, 0.01, 0.02]);
        let text = String::from_utf8(metrics.render(&[]).unwrap()).unwrap();
        for line in [
            r#"wormholes_flows_total{entrance="socks5",network="udp",outcome="ok",tunnel="direct"} 1"#,
            r#"wormholes_peer_rtt_seconds{stat="median"} 0.02"#,
            "wormholes_peers_connected 3",
            r#"wormholes_script_errors_total{hook="route"} 0"#,
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn tor_is_counted_where_it_is_off_too() {
        let metrics = Metrics::new().unwrap();
        metrics.set_tor(&Tor::new(&crate::config::Config::default()));
        let text = String::from_utf8(metrics.render(&[]).unwrap()).unwrap();
        for line in [
            "wormholes_tor_ready 0",
            "wormholes_tor_bootstrap_ratio 0",
            r#"wormholes_tor_streams_total{direction="out"} 0"#,
            r#"wormholes_tor_streams_total{direction="in"} 0"#,
            "wormholes_tor_new_identities_total 0",
            "wormholes_tor_services_reachable 0",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn two_scrapers_at_once_count_nothing_twice() {
        const LAST: u64 = 20_000;
        let (metrics, counters) = (Metrics::new().unwrap(), Counters::default());
        let scrape = || {
            while counters.relay.bytes.fetch_add(1, Relaxed) < LAST {
                metrics.set_network(&counters);
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(scrape);
            scope.spawn(scrape);
        });
        metrics.set_network(&counters);
        let carried = metrics.carried_bytes.with_label_values(&["relay"]).get();
        assert_eq!(carried, counters.relay.bytes.load(Relaxed));
    }
}
