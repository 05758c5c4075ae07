//! What a running daemon holds: files, tasks, memory, and what it says is open. What no flow holds
//! any more must be gone.

use std::fmt;

use anyhow::{Context, Result};

use crate::{Daemon, metrics::Metrics, size};

/// What a daemon with metrics held at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Vitals {
    /// Open files and sockets.
    pub files: u64,
    /// Tasks of its runtime.
    pub tasks: u64,
    /// Flows of its own programs.
    pub flows: u64,
    /// What it serves to others; circuits that they built ahead and have no flow for, too.
    pub circuits: u64,
    /// Resident memory.
    pub resident_bytes: u64,
}

impl Vitals {
    /// Takes them.
    ///
    /// # Errors
    /// When it has ended, or has no metrics.
    pub async fn of(daemon: &Daemon) -> Result<Self> {
        // Asking takes a connection and a task of its own: the same number each time.
        let metrics = Metrics::read(daemon).await?;
        // Counts are small whole numbers.
        let count = |prefix: &str| metrics.sum(prefix) as u64;
        Ok(Self {
            files: size::open_files(daemon.pid())?,
            tasks: count("wormholes_tasks_alive"),
            flows: count("wormholes_flows_open"),
            circuits: count("wormholes_circuits_open"),
            resident_bytes: daemon.resident_bytes()?,
        })
    }

    /// Those of each daemon, in their order.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub async fn of_all(daemons: &[&Daemon]) -> Result<Vec<Self>> {
        let mut all = Vec::with_capacity(daemons.len());
        for daemon in daemons {
            let vitals = Self::of(daemon).await;
            all.push(vitals.with_context(|| format!("no vitals of {}", daemon.name()))?);
        }
        Ok(all)
    }
}

impl fmt::Display for Vitals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.resident_bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "{} files, {} tasks, {} flows, {} circuits, {mib:.1} MiB",
            self.files, self.tasks, self.flows, self.circuits
        )
    }
}
