//! What a daemon counts, read as Prometheus reads it.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{Daemon, namespace::Namespace, wait::until};

/// Families that count what was refused or failed.
const REFUSALS: &[&str] = &[
    "wormholes_peer_refusals_total",
    "wormholes_circuits_refused_total",
    "wormholes_onion_circuits_total{outcome=\"failed\"}",
];

/// Each sample by its name with labels.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads them.
    ///
    /// # Errors
    /// When the daemon has no metrics, or is gone.
    pub async fn read(daemon: &Daemon) -> Result<Self> {
        Self::read_at(daemon.metrics().context("no metrics")?).await
    }

    /// As [`Self::read`], of a daemon on another host.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub async fn read_in(host: &Namespace, daemon: &Daemon) -> Result<Self> {
        let address = daemon.metrics().context("no metrics")?;
        Self::read_from(host.connect(address)?).await
    }

    async fn read_at(address: SocketAddr) -> Result<Self> {
        Self::read_from(TcpStream::connect(address).await?).await
    }

    async fn read_from(mut stream: TcpStream) -> Result<Self> {
        let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Ok(Self(samples.collect()))
    }

    /// One sample; what was never counted is 0.
    pub fn get(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// All samples whose name, labels included, begins like this.
    pub fn sum(&self, prefix: &str) -> f64 {
        let samples = self.0.iter().filter(|(name, _)| name.starts_with(prefix));
        samples.map(|(_, value)| value).sum()
    }

    /// How much was refused in all.
    pub fn refusals(&self) -> usize {
        let counts = |name: &str| REFUSALS.iter().any(|family| name.starts_with(family));
        let refusals = self.0.iter().filter(|(name, _)| counts(name));
        // Counts of a test are small whole numbers.
        refusals.map(|(_, value)| *value as usize).sum()
    }

    /// What was refused, by name, that was not refused `before`.
    pub fn refused_since(&self, before: &Self) -> Vec<String> {
        let refusals = self.0.iter().filter(|(name, value)| {
            let counts = REFUSALS.iter().any(|family| name.starts_with(family));
            counts && **value > before.get(name)
        });
        refusals.map(|(name, _)| name.clone()).collect()
    }
}

/// Waits until `daemon` has counted a refusal that was not counted `before`; returns which.
///
/// # Errors
/// When it counts none.
pub async fn refused_since(daemon: &Daemon, before: &Metrics) -> Result<Vec<String>> {
    until("a refusal to be counted", async || {
        let now = Metrics::read(daemon).await.ok()?;
        let refused = now.refused_since(before);
        (!refused.is_empty()).then_some(refused)
    })
    .await
}
