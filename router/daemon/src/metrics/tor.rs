//! What is counted of Tor. Whatever it is of, it is counted elsewhere, and read when somebody looks.

use prometheus::{Error, Gauge, IntCounter, IntCounterVec, IntGauge};
use wormholes_tor::HostState;

use super::Declare;
use crate::tor::{Phase, Tor};

/// The metrics, declared.
#[derive(Debug)]
pub(super) struct TorMetrics {
    /// 1 when flows may go.
    ready: IntGauge,
    /// 0 to 1 of the way into the network.
    bootstrap: Gauge,
    /// Streams that are open.
    streams_open: IntGauge,
    /// Streams, by `direction` (`out`, and `in` to onion services here).
    pub(super) streams: IntCounterVec,
    /// Identities after the first.
    pub(super) identities: IntCounter,
    /// Onion services here that others find.
    services_reachable: IntGauge,
}

impl TorMetrics {
    pub(super) fn declare(declare: &Declare<'_>) -> Result<Self, Error> {
        Ok(Self {
            ready: declare.gauge("tor_ready", "1 when flows may go through Tor")?,
            bootstrap: declare.float_gauge(
                "tor_bootstrap_ratio",
                "How far Tor is on its way into the network",
            )?,
            streams_open: declare.gauge("tor_streams_open", "Streams through Tor that are open")?,
            streams: declare.counters(
                "tor_streams_total",
                "Streams through Tor",
                &["direction"],
            )?,
            identities: declare.counter(
                "tor_new_identities_total",
                "Identities that were taken in the place of others",
            )?,
            services_reachable: declare.gauge(
                "tor_services_reachable",
                "Onion services of this node that others find",
            )?,
        })
    }

    /// Takes what may rise and fall.
    pub(super) fn set(&self, tor: &Tor) {
        let standing = tor.standing();
        let is_ready = standing.phase == Phase::Ready;
        self.ready.set(i64::from(is_ready));
        let fraction = match is_ready {
            true => 1.0,
            false => f64::from(standing.progress.fraction),
        };
        self.bootstrap.set(fraction);
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.streams_open.set(count(tor.counts().open()));
        let hosted = tor.hosted().into_iter();
        let reachable = hosted.filter(|it| it.state == HostState::Reachable);
        self.services_reachable.set(count(reachable.count()));
    }
}
