//! Changes of what runs: an instance is loaded, updated, rolled back and removed, while all others run
//! on.
//!
//! ```text
//! update: compiled and checked -> its files kept -> every principal takes it over, beside the version
//!         that runs -> one commit: heads, and which version runs -> the files before the last one go
//! ```

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::{LoadError, Shared, Source};
use crate::{
    edition::{Digest, Edition, Terms, Workshop},
    event::Principal,
    guest::Around,
    lines::PluginLines,
    loaded::{Loaded, TURNS},
    mail::Input,
    message::{decode, encode},
    principal::{Go, Order, TakeOver},
    rows::{instance_key, of_instance, versions_key},
    store::Writes,
    versions::Versions,
};

/// How long an update may take in all: a gigabyte of rows is migrated in less.
const PATIENCE: Duration = Duration::from_secs(600);
/// What the one commit of an update may have: what `init` writes for all principals together. What
/// migrations write was committed before.
const MAX_COMMIT_BYTES: usize = 64 << 20;

/// What a principal is told when all are ready.
type Ready = (Principal, oneshot::Sender<Go>);

impl Shared {
    /// Loads an instance: the version in its files, or the one that ran last if that has to go on.
    pub(super) async fn load(
        self: &Arc<Self>,
        name: &str,
        source: Source,
        terms: Terms,
    ) -> Result<(), LoadError> {
        let source = self.meant(name, source, &terms)?;
        let lines = Arc::new(PluginLines::new());
        let wanted = self.compile(name, source, &terms, &lines).await?;
        let number = self.number(name).await?;
        let digest = wanted.0.digest;
        let versions = self.versions(number)?;
        let versions = versions.filter(|versions| versions.now != digest);
        let ran = match &versions {
            Some(versions) => self.last(name, &versions.now, &terms, &lines).await,
            None => None,
        };
        let (Some(versions), Some(ran)) = (versions, ran) else {
            let (edition, source) = wanted;
            let loaded = Arc::new(Loaded::new(number, edition, &self.store)?);
            self.begin(loaded)?;
            return self.remember(number, digest, name, &source).await;
        };
        let loaded = Arc::new(Loaded::new(number, ran, &self.store)?);
        self.begin(Arc::clone(&loaded))?;
        let version = &wanted.0.manifest.plugin.version;
        if versions.left == Some(digest) && terms.sha256.is_none() {
            tracing::warn!(
                plugin = name,
                left = version,
                "a plugin was rolled back, and its files are of the version that was left: \
                 the version before runs on"
            );
            return Ok(());
        }
        let version = version.clone();
        match self.change(&loaded, wanted, None).await {
            Ok(()) => tracing::info!(plugin = name, version, "a plugin was updated"),
            Err(error) => tracing::error!(
                plugin = name, version, %error,
                "a plugin's new version does not take over: the version before runs on"
            ),
        }
        Ok(())
    }

    /// Has another version of an instance take over. On an error the one that runs, runs on.
    pub(super) async fn update(
        self: &Arc<Self>,
        name: &str,
        source: Source,
        terms: Terms,
    ) -> Result<(), LoadError> {
        let loaded = self
            .find(name)
            .map_err(|_| LoadError::Missing(name.to_owned()))?;
        let _one = changing(&loaded)?;
        if let Some(meant) = terms.sha256.filter(|meant| source.sha256() != *meant) {
            return Err(LoadError::hash(&source, &meant));
        }
        let lines = Arc::clone(&loaded.edition().plugin().lines);
        let wanted = self.compile(name, source, &terms, &lines).await?;
        self.change(&loaded, wanted, None).await
    }

    /// Has the version before take over again, if it reads the same rows.
    pub(super) async fn roll_back(
        self: &Arc<Self>,
        name: &str,
        terms: Terms,
    ) -> Result<(), LoadError> {
        let loaded = self
            .find(name)
            .map_err(|_| LoadError::Missing(name.to_owned()))?;
        let _one = changing(&loaded)?;
        let versions = self.versions(loaded.number)?;
        let before = versions.and_then(|versions| versions.before);
        let before = before.ok_or_else(|| LoadError::NoneBefore(name.to_owned()))?;
        let source = self.kept.read(name, &before).map_err(LoadError::Kept)?;
        if let Some(meant) = terms.sha256.filter(|meant| source.sha256() != *meant) {
            return Err(LoadError::hash(&source, &meant));
        }
        let lines = Arc::clone(&loaded.edition().plugin().lines);
        let wanted = self.compile(name, source, &terms, &lines).await?;
        let (now, then) = (loaded.edition().version().schema, wanted.0.version().schema);
        if now != then {
            return Err(LoadError::OtherSchema { now, then });
        }
        let left = Some(loaded.edition().digest);
        self.change(&loaded, wanted, left).await
    }

    /// Ends an instance; its rows stay for the next of its name, unless all of it shall go.
    pub(super) async fn remove(self: &Arc<Self>, name: &str, purge: bool) -> Result<(), LoadError> {
        let missing = || LoadError::Missing(name.to_owned());
        match self.find(name) {
            Ok(loaded) => {
                let _one = changing(&loaded)?;
                self.end(&loaded).await;
            }
            Err(_) if purge => {}
            Err(_) => return Err(missing()),
        }
        if purge {
            let number = self.known_number(name)?.ok_or_else(missing)?;
            let mut writes = Writes::default();
            of_instance(number).for_each(|range| writes.remove_range(range));
            writes.put(instance_key(name), None);
            if !self.make_durable(writes).await {
                return Err(LoadError::Lost);
            }
            self.kept.forget_others(name, &[]);
        }
        Ok(())
    }

    /// The files that were meant: where config.toml pins a component that the folder does not hold,
    /// the kept one.
    fn meant(&self, name: &str, source: Source, terms: &Terms) -> Result<Source, LoadError> {
        let pinned = terms.sha256.filter(|meant| source.sha256() != *meant);
        let Some(meant) = pinned else {
            return Ok(source);
        };
        let kept = self.kept.pinned(name, &meant);
        let kept = kept.ok_or_else(|| LoadError::hash(&source, &meant))?;
        tracing::warn!(
            plugin = name,
            "config.toml pins another component than the folder holds: the one that was kept runs"
        );
        Ok(kept)
    }

    /// Seconds, for components of many megabytes: beside all else.
    async fn compile(
        self: &Arc<Self>,
        name: &str,
        source: Source,
        terms: &Terms,
        lines: &Arc<PluginLines>,
    ) -> Result<(Edition, Source), LoadError> {
        let (shared, name) = (Arc::clone(self), name.to_owned());
        let (terms, lines) = (terms.clone(), Arc::clone(lines));
        let compile = move || {
            let workshop = Workshop {
                engine: Arc::clone(&shared.engine),
                cache: Some(&shared.cache),
                around: Around {
                    node: shared.node,
                    network: Some(Arc::clone(&shared.network)),
                },
                lines,
            };
            Edition::compile(workshop, &name, &source, terms).map(|edition| (edition, source))
        };
        let compiled = self.threads.spawn_blocking(compile).await;
        compiled.map_err(|_| LoadError::Lost)?
    }

    /// The version that ran last, if it can run again.
    async fn last(
        self: &Arc<Self>,
        name: &str,
        digest: &Digest,
        terms: &Terms,
        lines: &Arc<PluginLines>,
    ) -> Option<Edition> {
        let compiled = match self.kept.read(name, digest) {
            Ok(source) => self.compile(name, source, terms, lines).await,
            Err(error) => Err(LoadError::Kept(error)),
        };
        match compiled {
            Ok((edition, _)) => Some(edition),
            Err(error) => {
                tracing::warn!(plugin = name, %error, "the version that ran last cannot run again");
                None
            }
        }
    }

    /// Wakes the principals of an instance.
    fn begin(self: &Arc<Self>, loaded: Arc<Loaded>) -> Result<(), LoadError> {
        self.insert(Arc::clone(&loaded))?;
        // Whoever has timers must be awake; the node itself always is.
        for principal in self.present(&loaded) {
            self.wake_if_there(principal, &loaded)?;
        }
        self.mail.tell(Input::Loaded(loaded));
        Ok(())
    }

    /// Which versions of an instance there are.
    pub(super) fn versions(&self, number: u32) -> Result<Option<Versions>, LoadError> {
        let row = self.store.snapshot().get(&versions_key(number))?;
        Ok(row.as_deref().and_then(decode))
    }

    /// This version runs without another one before it.
    async fn remember(
        &self,
        number: u32,
        now: Digest,
        name: &str,
        source: &Source,
    ) -> Result<(), LoadError> {
        // Without a copy it runs all the same; only nothing returns to it.
        if let Err(error) = self.kept.keep(name, source) {
            tracing::warn!(plugin = name, %error, "a plugin's files cannot be kept");
        }
        let known = self.versions(number)?;
        if known.is_some_and(|known| known.now == now) {
            return Ok(());
        }
        let versions = Versions {
            now,
            before: None,
            left: None,
        };
        let mut writes = Writes::default();
        writes.put(versions_key(number), Some(encode(&versions)));
        let is_durable = self.make_durable(writes).await;
        self.kept.forget_others(name, &[now]);
        is_durable.then_some(()).ok_or(LoadError::Lost)
    }

    /// Has a version take all principals over, or none.
    async fn change(
        self: &Arc<Self>,
        loaded: &Arc<Loaded>,
        (edition, source): (Edition, Source),
        left: Option<Digest>,
    ) -> Result<(), LoadError> {
        self.kept
            .keep(&loaded.name, &source)
            .map_err(LoadError::Keep)?;
        let before = loaded.edition().digest;
        let versions = Versions {
            now: edition.digest,
            // Other grants or another config for the same files are no other version.
            before: match self.versions(loaded.number)? {
                Some(known) if before == edition.digest => known.before,
                _ => Some(before),
            },
            left,
        };
        let edition = Arc::new(edition);
        // All that was not ready by then goes on as it was, when what it waits for is dropped.
        let epoch = self.store.epoch();
        let ready = tokio::time::timeout(PATIENCE, self.prepare(loaded, &edition)).await;
        let ready = ready.map_err(|_| LoadError::Late)??;
        self.take_over(loaded, edition, epoch, &versions, ready)
            .await?;
        let kept = [Some(versions.now), versions.before];
        let kept: Vec<_> = kept.into_iter().flatten().collect();
        self.kept.forget_others(&loaded.name, &kept);
        Ok(())
    }

    /// Has every principal do what the version needs to take it over.
    async fn prepare(
        &self,
        loaded: &Arc<Loaded>,
        edition: &Arc<Edition>,
    ) -> Result<Vec<Ready>, LoadError> {
        let mut asked = Vec::new();
        for principal in self.present(loaded) {
            let Some(post) = self.wake_if_there(principal.clone(), loaded)? else {
                continue;
            };
            let ((ready, is_ready), (go, told)) = (oneshot::channel(), oneshot::channel());
            let order = TakeOver {
                edition: Arc::clone(edition),
                ready,
                go: told,
            };
            if !post.order(Order::TakeOver(order)).await {
                return Err(LoadError::Lost);
            }
            asked.push((principal, is_ready, go));
        }
        let (mut all, mut bytes) = (Vec::new(), 0);
        for (principal, is_ready, go) in asked {
            let part = is_ready.await.map_err(|_| LoadError::Lost)?;
            bytes += part.map_err(|why| LoadError::Refused {
                principal: principal.to_string(),
                why,
            })?;
            all.push((principal, go));
        }
        if bytes > MAX_COMMIT_BYTES {
            return Err(LoadError::TooMuch);
        }
        Ok(all)
    }

    /// Makes it real for all of them, in one commit.
    async fn take_over(
        &self,
        loaded: &Arc<Loaded>,
        edition: Arc<Edition>,
        epoch: u64,
        versions: &Versions,
        ready: Vec<Ready>,
    ) -> Result<(), LoadError> {
        let mut writes = Writes::default();
        writes.put(versions_key(loaded.number), Some(encode(versions)));
        let mut waiting = Vec::new();
        for (_, go) in ready {
            let ((part, written), (done, is_done)) = (oneshot::channel(), oneshot::channel());
            let told = go.send(Go {
                part,
                done: is_done,
            });
            told.map_err(|_| LoadError::Lost)?;
            writes.extend(written.await.map_err(|_| LoadError::Lost)?);
            waiting.push(done);
        }
        // Questions read rows and code that belong together.
        let _quiet = loaded.queries.acquire_many(TURNS).await;
        let (released, durable) = oneshot::channel();
        let release = move |outcome: Result<_, _>| {
            let _ = released.send(outcome.is_ok());
        };
        let batch = self.store.append(epoch, writes, release);
        if !durable.await.unwrap_or(false) {
            return Err(LoadError::Lost);
        }
        let is_new = !loaded.takes_messages() && edition.code.takes_messages();
        loaded.run(edition);
        loaded.unpark();
        for done in waiting {
            let _ = done.send(batch);
        }
        if is_new {
            self.mail.tell(Input::Loaded(Arc::clone(loaded)));
        }
        Ok(())
    }

    /// Ends all principals of an instance; what they were at is undone.
    async fn end(&self, loaded: &Arc<Loaded>) {
        loaded.go();
        self.leave(&loaded.name);
        let posts = self.take_posts(loaded.number);
        for post in posts {
            let (end, ended) = oneshot::channel();
            if post.order(Order::End(end)).await {
                let _ = ended.await;
            }
        }
        let (done, forgotten) = oneshot::channel();
        self.mail.tell(Input::Removed(loaded.number, done));
        let _ = forgotten.await;
        // Behind all that they still had on its way to the disk.
        self.make_durable(Writes::default()).await;
    }
}

/// One change of an instance at a time.
fn changing(loaded: &Loaded) -> Result<tokio::sync::MutexGuard<'_, ()>, LoadError> {
    let changing = loaded.changing.try_lock();
    changing.map_err(|_| LoadError::Busy(loaded.name.to_string()))
}
