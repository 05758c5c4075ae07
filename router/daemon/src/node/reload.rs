//! Puts in force what a running node can take from its config file.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
};

use thiserror::Error;

use super::NodeCore;
use crate::{
    config::{Config, ConfigError, RulesConfig},
    control::config_text,
    policy::{Generation, Granted, LoadError, Scripts},
};

/// What a reload did.
#[derive(Debug, Clone)]
pub struct Reload {
    /// The rules in force; the same as before when nothing changed.
    pub rules: Arc<Generation>,
    /// See [`NodeCore::restart_for`].
    pub restart_for: Vec<String>,
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
    /// Reads the config file again, when there is one, loads the rules with `scripts`, and takes the
    /// peers.
    ///
    /// # Errors
    /// [`ReloadError`]; all stays as it was.
    pub async fn reload(self: &Arc<Self>, scripts: Scripts) -> Result<Reload, ReloadError> {
        self.reload_if(scripts, || true).await
    }

    /// The same, if `is_steady` says, after all files were read, that they stood still meanwhile.
    ///
    /// # Errors
    /// The same, and [`LoadError::Unsteady`].
    pub(crate) async fn reload_if(
        self: &Arc<Self>,
        scripts: Scripts,
        is_steady: impl Fn() -> bool + Send + 'static,
    ) -> Result<Reload, ReloadError> {
        let core = Arc::clone(self);
        tokio::task::spawn_blocking(move || core.reload_blocking(scripts, &is_steady))
            .await
            .unwrap_or(Err(ReloadError::Stopping))
    }

    fn reload_blocking(
        &self,
        scripts: Scripts,
        is_steady: &dyn Fn() -> bool,
    ) -> Result<Reload, ReloadError> {
        let _one_at_a_time = self
            .reloading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(file) = &self.config.file else {
            let peers = self.all_peers();
            let rules = &self.config.rules;
            let rules = self.policy.load(rules, scripts, &peers, is_steady)?;
            return Ok(Reload {
                rules,
                restart_for: Vec::new(),
            });
        };
        let config = Config::load(file);
        if !is_steady() {
            return Err(LoadError::Unsteady.into());
        }
        let config =
            config.inspect_err(|error| tracing::warn!(%error, "the config was not loaded"))?;
        let restart_for = self.waiting(&config);
        if !restart_for.is_empty() {
            tracing::warn!(keys = ?restart_for, "changes that wait for a restart");
        }
        self.set_restart_for(restart_for.clone());
        let rules = RulesConfig {
            record_decisions: self.config.rules.record_decisions,
            ..config.rules
        };
        let peers = self.added.with(&config.peers);
        let rules = self.policy.load(&rules, scripts, &peers, is_steady)?;
        self.set_config_peers(config.peers);
        Ok(Reload { rules, restart_for })
    }

    /// Has all that goes by which plugins run, and as what, follow a change of them.
    pub(crate) async fn follow_plugins(self: &Arc<Self>) {
        let core = Arc::clone(self);
        // A node that stops needs none of it.
        let _ = tokio::task::spawn_blocking(move || core.follow_plugins_blocking()).await;
    }

    fn follow_plugins_blocking(&self) {
        let _one_at_a_time = self
            .reloading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // What is wrong with the file by now, the next reload says.
        if let Some(Ok(config)) = self.config.file.as_deref().map(Config::load) {
            self.set_restart_for(self.waiting(&config));
        }
        let granted = Granted::to(&self.plugin_configs());
        self.policy.grant(granted, &self.all_peers());
    }

    fn waiting(&self, read: &Config) -> Vec<String> {
        let running = Config {
            plugins: self.plugin_configs(),
            ..self.config.clone()
        };
        waiting(&running, read)
    }
}

/// Keys that differ and that only a restart takes: `limits.flows`, or `[[entrance]]` for a list.
fn waiting(running: &Config, read: &Config) -> Vec<String> {
    let sections = [
        ("node", running.node == read.node),
        ("entrance", running.entrances == read.entrances),
        ("service", running.services == read.services),
        ("plugin", running.plugins == read.plugins),
        ("relay", running.relay == read.relay),
        ("hop", running.hop == read.hop),
        ("exit", running.exit == read.exit),
        ("tor", running.tor == read.tor),
        ("i2p", running.i2p == read.i2p),
        ("limits", running.limits == read.limits),
        ("http", running.http == read.http),
        ("control", running.control == read.control),
        ("metrics", running.metrics == read.metrics),
        ("log", running.log == read.log),
    ];
    let (before, after) = (tables(running), tables(read));
    let differing = sections.into_iter().filter(|(_, same)| !same);
    let mut keys: Vec<String> = differing
        .flat_map(|(section, _)| keys(section, &before, &after))
        .collect();
    if running.rules.record_decisions != read.rules.record_decisions {
        keys.push("rules.record_decisions".to_owned());
    }
    keys
}

fn tables(config: &Config) -> toml::Table {
    // The text is of this program's own making; without it the section alone is named.
    config_text(config).parse().unwrap_or_default()
}

/// The keys of a section that differ.
fn keys(section: &str, before: &toml::Table, after: &toml::Table) -> Vec<String> {
    if ["entrance", "service"].contains(&section) {
        return vec![format!("[[{section}]]")];
    }
    // What may be secret in these is not in the text.
    if ["plugin", "tor"].contains(&section) {
        return vec![format!("[{section}]")];
    }
    let table = |tables: &toml::Table| {
        let table = tables.get(section).and_then(toml::Value::as_table);
        table.cloned().unwrap_or_default()
    };
    let (before, after) = (table(before), table(after));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differing = names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name));
    differing.map(|name| format!("{section}.{name}")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::node::Node;

    #[tokio::test]
    async fn what_moves_while_it_is_read_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        let write = |rules: &str| {
            let data = folder.path().join("data");
            let text = format!("[node]\ndata_dir = {data:?}\n[rules]\ndefault = {rules:?}");
            fs::write(&file, text).unwrap();
        };
        write("block");
        let config = Config::load(&file).unwrap();
        let node = Node::start(config).await.unwrap();
        write("direct");
        let moving = node.core.reload_if(Scripts::InForce, || false).await;
        let unsteady = ReloadError::Rules(LoadError::Unsteady).to_string();
        assert_eq!(moving.unwrap_err().to_string(), unsteady);

        let steady = node.core.reload_if(Scripts::InForce, || true).await;
        assert_eq!(steady.unwrap().rules.number, 2);
        node.shutdown().await;
    }
}
