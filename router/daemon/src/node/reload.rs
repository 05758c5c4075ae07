//! Puts in force what a running node can take from its config file.

use std::sync::Arc;

use thiserror::Error;

use super::NodeCore;
use crate::{
    config::{Config, ConfigError, RulesConfig},
    policy::{Generation, LoadError},
};

/// What a reload did.
#[derive(Debug, Clone)]
pub struct Reload {
    /// The rules in force; the same as before when nothing changed.
    pub rules: Arc<Generation>,
    /// Sections of the config that changed and wait for a restart.
    pub restart_for: Vec<&'static str>,
}

/// A reload that changed nothing.
#[derive(Debug, Error)]
pub enum ReloadError {
    /// The config file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The rules.
    #[error(transparent)]
    Rules(#[from] LoadError),
    /// The node stops.
    #[error("the router stops")]
    Stopping,
}

impl NodeCore {
    /// Reads the config file again, when there is one, and loads the rules.
    ///
    /// # Errors
    /// [`ReloadError`]; all stays as it was.
    pub async fn reload(self: &Arc<Self>) -> Result<Reload, ReloadError> {
        let core = Arc::clone(self);
        tokio::task::spawn_blocking(move || core.reload_blocking())
            .await
            .unwrap_or(Err(ReloadError::Stopping))
    }

    fn reload_blocking(&self) -> Result<Reload, ReloadError> {
        let Some(file) = &self.config.file else {
            let rules = self.policy.load(&self.config.rules)?;
            return Ok(Reload {
                rules,
                restart_for: Vec::new(),
            });
        };
        let config = Config::load(file)
            .inspect_err(|error| tracing::warn!(%error, "the config was not loaded"))?;
        let restart_for = changed(&self.config, &config);
        if !restart_for.is_empty() {
            tracing::warn!(sections = ?restart_for, "changes that wait for a restart");
        }
        let rules = self.policy.load(&config.rules)?;
        Ok(Reload { rules, restart_for })
    }
}

/// Sections that differ in what only a restart takes.
fn changed(running: &Config, read: &Config) -> Vec<&'static str> {
    let restart_part = |rules: &RulesConfig| rules.record_decisions;
    let sections = [
        ("node", running.node == read.node),
        ("peer", running.peers == read.peers),
        ("entrance", running.entrances == read.entrances),
        ("service", running.services == read.services),
        (
            "rules",
            restart_part(&running.rules) == restart_part(&read.rules),
        ),
        ("relay", running.relay == read.relay),
        ("hop", running.hop == read.hop),
        ("exit", running.exit == read.exit),
        ("limits", running.limits == read.limits),
        ("control", running.control == read.control),
        ("metrics", running.metrics == read.metrics),
        ("log", running.log == read.log),
    ];
    let differing = sections.into_iter().filter(|(_, same)| !same);
    differing.map(|(name, _)| name).collect()
}
