//! What plugins did, as families of metrics.
//!
//! The host counts per instance, and an instance may go: nothing is copied into counters of the
//! registry, which would outlive it. The label is `plugin`, the name of config.toml, since Prometheus
//! itself calls the node `instance`. Commits are not here: plugins share them, so that their metrics have no
//! such label.

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};
use wormholes_host::{Condition, Counts, Ending, EventKind, HANDLER_BOUNDS, InstanceReport, Limit};

/// Words for [`Condition`].
const CONDITIONS: [&str; 4] = ["running", "paused", "parked", "stopped"];

/// All of them; none without plugins.
pub(super) fn families(plugins: &[InstanceReport]) -> Vec<MetricFamily> {
    let each = |metrics: fn(&InstanceReport) -> Vec<Metric>| {
        plugins.iter().flat_map(metrics).collect::<Vec<_>>()
    };
    let families = [
        counters(
            "events_total",
            "Events that handlers were given, by kind and outcome",
            each(events),
        ),
        counters(
            "queries_total",
            "Questions that plugins were asked, by outcome",
            each(queries),
        ),
        counters(
            "given_up_events_total",
            "Events that broke the plugin too often",
            each(given_up),
        ),
        counters(
            "dead_letters_dropped_total",
            "Given-up events that left the list because there were too many",
            each(dropped_letters),
        ),
        counters(
            "dropped_messages_total",
            "Messages that may be lost, and were for want of room or of a way",
            each(dropped_messages),
        ),
        counters(
            "limit_hits_total",
            "Events and requests that ran into a limit",
            each(limits),
        ),
        family(
            "handler_seconds",
            "Time in handlers of events",
            MetricType::HISTOGRAM,
            each(handlers),
        ),
        gauges(
            "state_bytes",
            "What plugins keep, keys and values",
            each(state),
        ),
        gauges(
            "condition",
            "1 for the condition that the plugin is in, 0 for the others",
            each(conditions),
        ),
    ];
    let families = families.into_iter();
    let families = families.chain(of_what_waits(plugins));
    let families = families.chain(of_blobs(plugins));
    // The encoder takes an empty one for an error.
    families
        .filter(|family| !family.get_metric().is_empty())
        .collect()
}

fn of_what_waits(plugins: &[InstanceReport]) -> [MetricFamily; 3] {
    [
        gauges(
            "waiting_events",
            "Events that wait for their turn",
            plugins.iter().flat_map(waiting).collect(),
        ),
        gauges(
            "waiting_messages",
            "Durable messages that their receivers have not confirmed",
            plugins.iter().flat_map(waiting_messages).collect(),
        ),
        gauges(
            "open_operations",
            "Operations of the command line that go on",
            plugins.iter().flat_map(open_operations).collect(),
        ),
    ]
}

fn of_blobs(plugins: &[InstanceReport]) -> [MetricFamily; 2] {
    [
        gauges(
            "blob_bytes",
            "What the blobs of plugins count for, with those that come",
            plugins.iter().flat_map(blobs).collect(),
        ),
        counters(
            "blob_moved_bytes_total",
            "Bytes of blobs from and to other nodes",
            plugins.iter().flat_map(blobs_moved).collect(),
        ),
    ]
}

fn events(plugin: &InstanceReport) -> Vec<Metric> {
    let counted = &plugin.counts.events;
    let kinds = counted.keys().map(|(kind, _)| *kind);
    let mut kinds: Vec<_> = kinds.collect();
    kinds.dedup();
    // A counter that begins with its first trap hides that trap from `increase()`.
    let pairs = kinds
        .into_iter()
        .flat_map(|kind| Ending::ALL.map(|ending| (kind, ending)));
    let metric = |pair: (EventKind, Ending)| {
        let (kind, outcome) = (pair.0.to_string(), pair.1.to_string());
        let count = counted.get(&pair).copied().unwrap_or_default();
        counter(plugin, &[("kind", &kind), ("outcome", &outcome)], count)
    };
    pairs.map(metric).collect()
}

fn queries(plugin: &InstanceReport) -> Vec<Metric> {
    let counted = &plugin.counts.queries;
    let metric = |ending: Ending| {
        let count = counted.get(&ending).copied().unwrap_or_default();
        counter(plugin, &[("outcome", &ending.to_string())], count)
    };
    Ending::ALL.map(metric).into()
}

fn given_up(plugin: &InstanceReport) -> Vec<Metric> {
    vec![counter(plugin, &[], plugin.counts.given_up)]
}

fn dropped_letters(plugin: &InstanceReport) -> Vec<Metric> {
    vec![counter(plugin, &[], plugin.dropped_letters)]
}

fn dropped_messages(plugin: &InstanceReport) -> Vec<Metric> {
    vec![counter(plugin, &[], plugin.counts.dropped)]
}

fn limits(plugin: &InstanceReport) -> Vec<Metric> {
    let counted = &plugin.counts.limits;
    let metric = |limit: Limit| {
        let count = counted.get(&limit).copied().unwrap_or_default();
        counter(plugin, &[("limit", &limit.to_string())], count)
    };
    Limit::ALL.map(metric).into()
}

fn handlers(plugin: &InstanceReport) -> Vec<Metric> {
    let Counts {
        handler_times,
        handler_time,
        ..
    } = &plugin.counts;
    let mut count = 0;
    let buckets = HANDLER_BOUNDS.iter().zip(handler_times);
    let buckets = buckets.map(|(bound, events)| {
        count += events;
        let mut bucket = Bucket::default();
        bucket.set_cumulative_count(count);
        bucket.set_upper_bound(bound.as_secs_f64());
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(handler_times.iter().sum());
    histogram.set_sample_sum(handler_time.as_secs_f64());
    let mut metric = labelled(plugin, &[]);
    metric.set_histogram(histogram);
    vec![metric]
}

fn waiting(plugin: &InstanceReport) -> Vec<Metric> {
    vec![gauge(plugin, &[], plugin.waiting as f64)]
}

fn waiting_messages(plugin: &InstanceReport) -> Vec<Metric> {
    vec![gauge(plugin, &[], plugin.waiting_messages as f64)]
}

fn open_operations(plugin: &InstanceReport) -> Vec<Metric> {
    vec![gauge(plugin, &[], plugin.open_operations as f64)]
}

fn state(plugin: &InstanceReport) -> Vec<Metric> {
    vec![gauge(plugin, &[], plugin.kept_bytes as f64)]
}

fn blobs(plugin: &InstanceReport) -> Vec<Metric> {
    vec![gauge(plugin, &[], plugin.blob_bytes as f64)]
}

fn blobs_moved(plugin: &InstanceReport) -> Vec<Metric> {
    let counts = &plugin.counts;
    let ways = [("in", counts.blob_bytes_in), ("out", counts.blob_bytes_out)];
    let metric = |(way, bytes)| counter(plugin, &[("direction", way)], bytes);
    ways.map(metric).into()
}

fn conditions(plugin: &InstanceReport) -> Vec<Metric> {
    let is = match plugin.condition {
        Condition::Running => "running",
        Condition::Paused => "paused",
        Condition::Parked(_) => "parked",
        Condition::Stopped => "stopped",
    };
    let metric = |condition| {
        let value = f64::from(u8::from(condition == is));
        gauge(plugin, &[("condition", condition)], value)
    };
    CONDITIONS.map(metric).into()
}

fn counters(name: &str, help: &str, metrics: Vec<Metric>) -> MetricFamily {
    family(name, help, MetricType::COUNTER, metrics)
}

fn gauges(name: &str, help: &str, metrics: Vec<Metric>) -> MetricFamily {
    family(name, help, MetricType::GAUGE, metrics)
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(format!("wormholes_plugin_{name}"));
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn counter(plugin: &InstanceReport, labels: &[(&str, &str)], count: u64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(count as f64);
    let mut metric = labelled(plugin, labels);
    metric.set_counter(counter);
    metric
}

fn gauge(plugin: &InstanceReport, labels: &[(&str, &str)], value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = labelled(plugin, labels);
    metric.set_gauge(gauge);
    metric
}

fn labelled(plugin: &InstanceReport, labels: &[(&str, &str)]) -> Metric {
    let own = [("plugin", &*plugin.name)];
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    Metric::from_label(own.iter().chain(labels).map(pair).collect())
}
