//! Plugins that come, change and go while the node runs: what config.toml and their folders say by
//! then.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError},
};

use thiserror::Error;
use wormholes_host::{ErrorCode, Host, LoadError, Refusal, Source};
use wormholes_proto::control::PluginInfo;

use super::{
    Door, FOLDER, PluginError, Plugins, door_error, load_error, no_plugin, read, tell_usage, terms,
};
use crate::{
    config::{Config, ConfigError, PluginConfig, http_paths},
    node::NodeCore,
};

/// Nothing changed.
#[derive(Debug, Error)]
pub(crate) enum ChangeError {
    /// The config file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The plugin's files, or what it said.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// No such plugin runs.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The config file has no section for it.
    #[error("config.toml has no section [plugin.{0}]; `wormholes plugin add` makes one")]
    NotNamed(String),
    /// A fact has one publisher, and there is another that has not heard of what config.toml says.
    #[error(
        "facts: `{fact}` is published by `{by}`, which runs; `wormholes plugin update {by}` or \
         `wormholes plugin remove {by}` first"
    )]
    Published {
        /// Which.
        fact: String,
        /// The instance.
        by: String,
    },
    /// One answers at a path, and there is another that has not heard of what config.toml says.
    #[error(
        "http: `{by}`, which runs, answers at `{path}`; `wormholes plugin update {by}` or \
         `wormholes plugin remove {by}` first"
    )]
    Answered {
        /// Which.
        path: String,
        /// The instance.
        by: String,
    },
    /// It would come back at the next start.
    #[error(
        "config.toml still names [plugin.{0}]; take the section out first, as \
         `wormholes plugin remove` does"
    )]
    Named(String),
}

impl Plugins {
    /// Loads an instance that config.toml names by now.
    ///
    /// # Errors
    /// [`ChangeError`] names what to mend.
    pub(crate) async fn add(
        &self,
        core: &Arc<NodeCore>,
        instance: &str,
    ) -> Result<PluginInfo, ChangeError> {
        let _one = self.changing.lock().await;
        let plugin = named(core, instance).await?;
        self.check_grants(&plugin)?;
        let source = read_beside(&plugin).await?;
        let host = self.host_or_open(core).await?;
        let loaded = host.load(instance, source, terms(&plugin)).await;
        loaded.map_err(|error| load_error(&plugin, error))?;
        self.runs(core, &plugin);
        core.follow_plugins().await;
        if let Err(error) = self.follow_doors(core, &host, &plugin).await {
            // It is all there or not at all.
            host.remove(instance, false)
                .await
                .map_err(|error| load_error(&plugin, error))?;
            self.forget(core, instance).await;
            return Err(error.into());
        }
        Ok(self.info(instance)?)
    }

    /// Has the version in an instance's folder take over, under what config.toml says of it by now.
    ///
    /// # Errors
    /// [`ChangeError`] names what to mend; the version that ran, runs on.
    pub(crate) async fn update(
        &self,
        core: &Arc<NodeCore>,
        instance: &str,
    ) -> Result<PluginInfo, ChangeError> {
        let _one = self.changing.lock().await;
        let host = self.host(instance)?;
        let plugin = named(core, instance).await?;
        self.check_grants(&plugin)?;
        let source = read_beside(&plugin).await?;
        let updated = host.update(instance, source, terms(&plugin)).await;
        updated.map_err(|error| load_error(&plugin, error))?;
        let info = self.follow(core, &host, &plugin).await?;
        let version = &info.version;
        tracing::info!(plugin = instance, version, "a plugin was updated");
        Ok(info)
    }

    /// Has the version take over that ran before the last update.
    ///
    /// # Errors
    /// As of [`Self::update`].
    pub(crate) async fn roll_back(
        &self,
        core: &Arc<NodeCore>,
        instance: &str,
    ) -> Result<PluginInfo, ChangeError> {
        let _one = self.changing.lock().await;
        let host = self.host(instance)?;
        let plugin = named(core, instance).await?;
        self.check_grants(&plugin)?;
        let rolled_back = host.roll_back(instance, terms(&plugin)).await;
        rolled_back.map_err(|error| load_error(&plugin, error))?;
        let info = self.follow(core, &host, &plugin).await?;
        let version = &info.version;
        tracing::info!(plugin = instance, version, "a plugin was rolled back");
        Ok(info)
    }

    /// Ends an instance that config.toml names no more; with all that it kept, if `purge`.
    ///
    /// # Errors
    /// [`ChangeError`] says what stands in the way.
    pub(crate) async fn remove(
        &self,
        core: &Arc<NodeCore>,
        instance: &str,
        purge: bool,
    ) -> Result<(), ChangeError> {
        let _one = self.changing.lock().await;
        match named(core, instance).await {
            // A node without a file begins with what it was given.
            Ok(_) if core.config.file.is_some() => {
                return Err(ChangeError::Named(instance.to_owned()));
            }
            Ok(_) | Err(ChangeError::NotNamed(_)) => {}
            Err(error) => return Err(error),
        }
        let Some(host) = self.host_to_remove_from(core, purge).await? else {
            return Err(no_plugin(instance).into());
        };
        let removed = host.remove(instance, purge).await;
        removed.map_err(|error| match is_missing(&error) {
            true => ChangeError::from(no_plugin(instance)),
            false => PluginError::Load {
                name: instance.to_owned(),
                error: Box::new(error),
            }
            .into(),
        })?;
        self.forget(core, instance).await;
        tracing::info!(plugin = instance, purge, "a plugin was removed");
        Ok(())
    }

    /// It is gone.
    async fn forget(&self, core: &Arc<NodeCore>, instance: &str) {
        let known = self.known.lock();
        known
            .unwrap_or_else(PoisonError::into_inner)
            .remove(instance);
        self.doors.close(instance).await;
        core.follow_plugins().await;
    }

    /// What config.toml said of those that run.
    pub(crate) fn configs(&self) -> Vec<PluginConfig> {
        let known = self.known.lock();
        let known = known.unwrap_or_else(PoisonError::into_inner);
        known.values().cloned().collect()
    }

    /// Whether nobody else publishes what this one is to publish, or answers where it is to: the file cannot tell who runs on
    /// with what it said before.
    fn check_grants(&self, plugin: &PluginConfig) -> Result<(), ChangeError> {
        let others = self.configs().into_iter();
        let taken = others.filter(|other| other.name != plugin.name);
        let mut taken = taken.flat_map(|other| {
            let both = &other.grants.facts & &plugin.grants.facts;
            both.into_iter().map(move |fact| (fact, other.name.clone()))
        });
        if let Some((fact, by)) = taken.next() {
            return Err(ChangeError::Published { fact, by });
        }
        let wanted = http_paths(&plugin.name, &plugin.grants);
        for other in self.configs() {
            let paths = http_paths(&other.name, &other.grants);
            let path = paths.into_iter().find(|path| wanted.contains(path));
            if let Some(path) = path.filter(|_| other.name != plugin.name) {
                let by = other.name;
                return Err(ChangeError::Answered { path, by });
            }
        }
        Ok(())
    }

    /// Another version of it runs: a port that does not open takes nothing of that back.
    async fn follow(
        &self,
        core: &Arc<NodeCore>,
        host: &Arc<Host>,
        plugin: &PluginConfig,
    ) -> Result<PluginInfo, ChangeError> {
        self.runs(core, plugin);
        core.follow_plugins().await;
        let followed = self.follow_doors(core, host, plugin).await;
        let mut info = self.info(&plugin.name)?;
        if let Err(error) = followed {
            tracing::warn!(%error, "a port of a plugin is not open");
            info.why = Some(error.to_string());
        }
        Ok(info)
    }

    /// It listens as config.toml says.
    async fn follow_doors(
        &self,
        core: &Arc<NodeCore>,
        host: &Arc<Host>,
        plugin: &PluginConfig,
    ) -> Result<(), PluginError> {
        let followed = self.doors.follow(core, host, plugin).await;
        followed.map_err(|error| door_error(plugin, error))
    }

    /// It runs as config.toml says.
    pub(super) fn runs(&self, core: &NodeCore, plugin: &PluginConfig) {
        if plugin.grants.usage {
            core.network.usage().hear();
        }
        // Those that it was told already are no news.
        core.network.tell_presence();
        let known = self.known.lock();
        let mut known = known.unwrap_or_else(PoisonError::into_inner);
        known.insert(plugin.name.clone(), plugin.clone());
    }

    pub(super) fn use_host(&self, core: &NodeCore, host: Host) -> Arc<Host> {
        let host = Arc::new(host);
        core.network.answer_trunks(Door(Arc::downgrade(&host)));
        let told = tell_usage(Arc::downgrade(&host), Arc::clone(&core.network));
        core.network.spawn(told);
        core.network.tell_presence();
        let mut running = self.host.write().unwrap_or_else(PoisonError::into_inner);
        *running = Some(Arc::clone(&host));
        host
    }

    /// A node without plugins has no host yet.
    async fn host_or_open(&self, core: &Arc<NodeCore>) -> Result<Arc<Host>, ChangeError> {
        if let Some(host) = self.running() {
            return Ok(host);
        }
        let its = Arc::clone(core);
        let opened = tokio::task::spawn_blocking(move || open(&its)).await;
        Ok(self.use_host(core, opened.map_err(|_| stops())??))
    }

    /// None where nothing can be removed: a store is not made for that.
    async fn host_to_remove_from(
        &self,
        core: &Arc<NodeCore>,
        purge: bool,
    ) -> Result<Option<Arc<Host>>, ChangeError> {
        let is_kept = || folder(core).exists();
        match self.running() {
            None if purge && is_kept() => self.host_or_open(core).await.map(Some),
            running => Ok(running),
        }
    }
}

/// Opens the host of a node: reads and writes the disk.
pub(super) fn open(core: &Arc<NodeCore>) -> Result<Host, PluginError> {
    Ok(Host::open(
        &folder(core),
        core.network.id(),
        core.host_network(),
        Some(core.metrics.observer()),
    )?)
}

fn folder(core: &NodeCore) -> PathBuf {
    core.config.node.data_dir.join(FOLDER)
}

/// Reads a plugin's files: megabytes, and from wherever config.toml says.
async fn read_beside(plugin: &PluginConfig) -> Result<Source, ChangeError> {
    let plugin = plugin.clone();
    let read = tokio::task::spawn_blocking(move || read(&plugin)).await;
    Ok(read.map_err(|_| stops())??)
}

fn is_missing(error: &LoadError) -> bool {
    matches!(error, LoadError::Missing(_))
}

fn stops() -> Refusal {
    Refusal::new(ErrorCode::Unavailable, "the node stops")
}

/// What config.toml says of an instance by now.
async fn named(core: &Arc<NodeCore>, instance: &str) -> Result<PluginConfig, ChangeError> {
    let plugins = match core.config.file.clone() {
        Some(file) => {
            let read = tokio::task::spawn_blocking(move || Config::load(&file)).await;
            read.map_err(|_| stops())??.plugins
        }
        None => core.config.plugins.clone(),
    };
    let mut plugins = plugins.into_iter();
    let named = plugins.find(|plugin| plugin.name == instance);
    named.ok_or_else(|| ChangeError::NotNamed(instance.to_owned()))
}
