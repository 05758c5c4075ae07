//! Changes of what runs: an instance is loaded, updated, rolled back and removed, while all others run
//! on.
//!
//! ```text
//! update: compiled and checked -> its files kept -> every principal takes it over, beside the version
//!         that runs -> one commit: heads, and which version runs -> the files before the last one go
//! ```

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedMutexGuard, oneshot};

use super::{
    LoadError, Shared,
    blobs::{homes, named_by},
};
use crate::{
    blobs::Named,
    edition::{Digest, Edition, Terms, Workshop},
    event::Principal,
    guest::Around,
    lines::PluginLines,
    loaded::{Loaded, TURNS},
    mail::{Input, Owner},
    message::{decode, encode},
    principal::{Go, Order, TakeOver},
    rows::{instance_key, of_instance, versions_key},
    source::Source,
    store::Writes,
    versions::Versions,
};

/// How long an update may take in all: a gigabyte of rows is migrated in less.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long a start waits for it: a migration that takes longer goes on beside all else.
const START_PATIENCE: Duration = Duration::from_secs(5);
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
            let loaded = Arc::new(Loaded::new(number, edition, &self.store, &self.recordings)?);
            let _one = changing(&loaded)?;
            self.begin(Arc::clone(&loaded))?;
            return self.remember(number, digest, name, source).await;
        };
        let loaded = Arc::new(Loaded::new(number, ran, &self.store, &self.recordings)?);
        // Before anybody finds it.
        let one = changing(&loaded)?;
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
        let (shared, version) = (Arc::clone(self), version.clone());
        let change = async move {
            let _one = one;
            let (changed, plugin) = (shared.change(&loaded, wanted, None).await, &loaded.name);
            match changed {
                Ok(()) => tracing::info!(%plugin, version, "a plugin was updated"),
                Err(error) => tracing::error!(
                    %plugin, version, %error,
                    "a plugin's new version does not take over: the version before runs on"
                ),
            }
        };
        let change = self.threads.spawn(change);
        let _goes_on = tokio::time::timeout(START_PATIENCE, change).await;
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
        let source = self.read_kept(name, before).await?;
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
            let _one = self.numbers.lock().await;
            let number = self.known_number(name)?.ok_or_else(missing)?;
            let (snapshot, mut named) = (self.store.snapshot(), Named::default());
            let homes = homes(&snapshot, number)?;
            for home in &homes {
                named_by(&snapshot, *home, &mut named)?;
            }
            let epoch = snapshot.epoch();
            drop(snapshot);
            let mut writes = Writes::default();
            of_instance(number).for_each(|range| writes.remove_range(range));
            writes.put(instance_key(name), None);
            if !self.make_durable(writes).await {
                return Err(LoadError::Lost);
            }
            self.forget_blobs(&homes, &named, epoch);
            self.forget_kept(name, Vec::new()).await;
            self.forget_recording(name).await;
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
                    blobs: Some(shared.blobs.clone()),
                },
                lines,
                patience: 1,
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
        let compiled = match self.read_kept(name, *digest).await {
            Ok(source) => self.compile(name, source, terms, lines).await,
            Err(error) => Err(error),
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
        loaded.recorder.go_on();
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

    /// This version runs; the one that ran last cannot, or is the same.
    async fn remember(
        self: &Arc<Self>,
        number: u32,
        now: Digest,
        name: &str,
        source: Source,
    ) -> Result<(), LoadError> {
        // Without a copy it runs all the same; only nothing returns to it.
        if let Err(error) = self.keep(name, source).await {
            tracing::warn!(plugin = name, %error, "a plugin's files cannot be kept");
        }
        let known = self.versions(number)?;
        let before = match known {
            Some(known) if known.now == now => return Ok(()),
            Some(known) => Some(known.now),
            None => None,
        };
        let versions = Versions {
            now,
            before,
            left: None,
        };
        let mut writes = Writes::default();
        writes.put(versions_key(number), Some(encode(&versions)));
        if !self.make_durable(writes).await {
            return Err(LoadError::Lost);
        }
        let kept = [Some(now), before].into_iter().flatten();
        self.forget_kept(name, kept.collect()).await;
        Ok(())
    }

    async fn read_kept(self: &Arc<Self>, name: &str, digest: Digest) -> Result<Source, LoadError> {
        let name = name.to_owned();
        let read = self.on_disk(move |shared| shared.kept.read(&name, &digest));
        read.await?.map_err(LoadError::Kept)
    }

    async fn keep(self: &Arc<Self>, name: &str, source: Source) -> Result<(), LoadError> {
        let name = name.to_owned();
        let kept = self.on_disk(move |shared| shared.kept.keep(&name, &source));
        kept.await?.map_err(LoadError::Keep)
    }

    async fn forget_kept(self: &Arc<Self>, name: &str, but: Vec<Digest>) {
        let name = name.to_owned();
        let forgotten = self.on_disk(move |shared| shared.kept.forget_others(&name, &but));
        // What the stop of the node leaves there is forgotten with the next version.
        let _ = forgotten.await;
    }

    /// Files of megabytes are read and written beside all else.
    async fn on_disk<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, LoadError> {
        let shared = Arc::clone(self);
        let done = self.threads.spawn_blocking(move || work(&shared)).await;
        done.map_err(|_| LoadError::Lost)
    }

    /// Has a version take all principals over, or none.
    async fn change(
        self: &Arc<Self>,
        loaded: &Arc<Loaded>,
        (edition, source): (Edition, Source),
        left: Option<Digest>,
    ) -> Result<(), LoadError> {
        self.keep(&loaded.name, source).await?;
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
        let kept = [Some(versions.now), versions.before].into_iter().flatten();
        self.forget_kept(&loaded.name, kept.collect()).await;
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
            // Those that wait hold theirs in memory.
            if bytes > MAX_COMMIT_BYTES {
                return Err(LoadError::TooMuch);
            }
            all.push((principal, go));
        }
        Ok(all)
    }

    /// Makes it real for all of them, in one commit.
    async fn take_over(
        self: &Arc<Self>,
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
        let batch = self.store.append_between(epoch, writes, release);
        if !durable.await.unwrap_or(false) {
            return Err(LoadError::Lost);
        }
        let before = loaded.edition();
        loaded.run(Arc::clone(&edition));
        loaded.unpark();
        // What is on its way to a handler that is not there any more stays with its sender: all
        // trunks are opened anew, and say what the version takes.
        let took_more = before.code.takes_channels()
            && !(edition.code.takes_channels() && before.protocols.is_subset(&edition.protocols));
        if took_more {
            self.forget_mail(loaded.number).await;
        }
        for done in waiting {
            let _ = done.send(batch);
        }
        if took_more || !before.code.takes_messages() {
            self.mail.tell(Input::Loaded(Arc::clone(loaded)));
        }
        self.follow_grant(loaded, before.plugin().granted.users)
            .await;
        Ok(())
    }

    /// Users' principals end where the version is not granted users any more, and begin where it is
    /// by now.
    async fn follow_grant(self: &Arc<Self>, loaded: &Arc<Loaded>, had_users: bool) {
        let has_users = loaded.has_users();
        if has_users == had_users {
            return;
        }
        let _alone = self.users.change().await;
        for principal in loaded.principals() {
            if let Principal::User(name) = &principal
                && self.users.is_active(name)
            {
                let owner = Owner::new(Arc::clone(loaded), principal);
                if has_users {
                    self.bring_back(owner);
                } else {
                    self.retire(&owner).await;
                }
            }
        }
    }

    /// The office drops all that it has of an instance.
    async fn forget_mail(&self, number: u32) {
        let (done, forgotten) = oneshot::channel();
        self.mail.tell(Input::Removed(number, done));
        let _ = forgotten.await;
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
        // The office has heard of all that they still had on its way to the disk, and the disk has
        // all that the office had.
        self.make_durable(Writes::default()).await;
        self.forget_mail(loaded.number).await;
        self.make_durable(Writes::default()).await;
        self.network
            .forget_facts(&loaded.edition().plugin().granted.facts);
    }
}

/// One change of an instance at a time.
fn changing(loaded: &Loaded) -> Result<OwnedMutexGuard<()>, LoadError> {
    let changing = Arc::clone(&loaded.changing).try_lock_owned();
    changing.map_err(|_| LoadError::Busy(loaded.name.to_string()))
}
