//! Users of the node: added, listed, and removed with or without all that plugins keep for them.

use std::{
    io,
    sync::{Arc, mpsc},
};

use tokio::sync::oneshot;

use super::{Host, Shared, blobs::named_by};
use crate::{
    blobs::Named,
    clock::now_ms,
    event::{ErrorCode, Principal, Refusal},
    mail::{Input, Owner},
    memory::read_head,
    principal::Order,
    rows::{self, Home, Space, instance_key, user_key},
    store::{Store, StoreError, Writes},
    users::{self, Standing, User, Users},
};

/// Reads all users, and ends the purges that a crash cut short.
pub(super) fn read(store: &Store) -> Result<Users, StoreError> {
    let snapshot = store.snapshot();
    let users = Users::read(&snapshot)?;
    let mut writes = Writes::default();
    for user in users.list() {
        if user.standing == Standing::Purged {
            purge(store, &user.name, &mut writes)?;
        }
    }
    if !writes.is_empty() {
        // What is read of plugins next is without them; if it fails, the next start does it.
        let (done, durable) = mpsc::channel::<()>();
        store.append_between(store.epoch(), writes, move |_| drop(done));
        let _ = durable.recv();
    }
    Ok(users)
}

impl Host {
    /// Adds a user, or one who was removed: with all that he had then.
    ///
    /// # Errors
    /// There is one of that name, there can be none, or the disk failed.
    pub async fn add_user(&self, name: &str) -> Result<User, Refusal> {
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        self.whole(async move { shared.add_user(&name).await })
            .await
    }

    /// Removes a user: no event runs for him any more, and what he asked is refused. `purge` deletes
    /// all that plugins keep for him, for ever, and his name is not given again; he may be removed
    /// before.
    ///
    /// # Errors
    /// There is none of that name, or the disk failed.
    pub async fn remove_user(&self, name: &str, purge: bool) -> Result<User, Refusal> {
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        self.whole(async move { shared.remove_user(&name, purge).await })
            .await
    }

    /// All users that are here, were removed, or purged, by name.
    pub fn users(&self) -> Vec<User> {
        self.shared.users.list()
    }

    /// Does all of it, though whoever asked leaves meanwhile.
    async fn whole(
        &self,
        change: impl Future<Output = Result<User, Refusal>> + Send + 'static,
    ) -> Result<User, Refusal> {
        let changed = self.shared.threads.spawn(change).await;
        changed.unwrap_or_else(|_| Err(Refusal::new(ErrorCode::Unavailable, "the plugins stop")))
    }
}

impl Shared {
    async fn add_user(self: &Arc<Self>, name: &str) -> Result<User, Refusal> {
        let _alone = self.users.change().await;
        let user = self.users.newcomer(name, now_ms())?;
        let mut writes = Writes::default();
        writes.put(user_key(name), Some(user.encode()));
        if !self.make_durable(writes).await {
            return Err(Refusal::lost());
        }
        self.users.set(user.clone());
        for owner in self.principals_of(name) {
            self.bring_back(owner);
        }
        Ok(user)
    }

    /// Who was here before has timers, and messages that wait.
    pub(super) fn bring_back(self: &Arc<Self>, owner: Owner) {
        match self.wake(owner.home, owner.principal.clone(), &owner.loaded) {
            Ok(_) => self.mail.tell(Input::Back(owner)),
            Err(error) => tracing::debug!(%error, "a user sleeps on"),
        }
    }

    async fn remove_user(self: &Arc<Self>, name: &str, purge: bool) -> Result<User, Refusal> {
        let _alone = self.users.change().await;
        let before = self.users.get(name);
        let user = self.users.leaver(name, purge)?;
        // From here on nobody wakes him.
        self.users.set(user.clone());
        let principals = self.principals_of(name);
        for owner in &principals {
            self.retire(owner).await;
        }
        let forgotten = match purge {
            true => self.forget_recordings().await,
            false => Ok(()),
        };
        // Durable behind all that his events wrote.
        let mut writes = Writes::default();
        writes.put(user_key(name), Some(user.encode()));
        if forgotten.is_err() || !self.make_durable(writes).await {
            self.users.reset(name, before);
            for owner in principals
                .into_iter()
                .filter(|_| self.users.is_active(name))
            {
                self.bring_back(owner);
            }
            let why = forgotten.err().map(|error| recordings_stay(&error));
            return Err(why.unwrap_or_else(Refusal::lost));
        }
        if purge {
            self.purge(name, &principals).await?;
        }
        Ok(user)
    }

    /// What instances that are loaded know of a user.
    fn principals_of(&self, name: &str) -> Vec<Owner> {
        let principal = Principal::User(name.into());
        let all = self.all().into_iter();
        let those = all.filter(|loaded| loaded.principals().contains(&principal));
        those
            .map(|loaded| Owner::new(loaded, principal.clone()))
            .collect()
    }

    /// Ends a principal: its actor, when its event has ended, and what the office has of it.
    pub(super) async fn retire(&self, owner: &Owner) {
        let post = self.actors().remove(&owner.home);
        if let Some(post) = post {
            let (done, retired) = oneshot::channel();
            // An actor that ended by a fault takes nothing.
            let _ = post.order(Order::Retire(done)).await;
            let _ = retired.await;
        }
        // The office has heard of all that his events did.
        self.make_durable(Writes::default()).await;
        let (done, forgotten) = oneshot::channel();
        self.mail.tell(Input::Gone(owner.home, done));
        let _ = forgotten.await;
        owner.loaded.retire(&owner.principal, None);
    }

    /// Deletes what is kept for a user, in one commit.
    async fn purge(&self, name: &str, principals: &[Owner]) -> Result<(), Refusal> {
        let unreadable = |error: StoreError| {
            let why = format!("the store cannot be read: {error}");
            Refusal::new(ErrorCode::Unavailable, why)
        };
        let kept = |home: Home| -> Result<(u64, u64), StoreError> {
            let head = self.store.snapshot().get(&home.key(Space::Head, &[]))?;
            let head = head.as_deref().and_then(read_head);
            Ok(head.map_or((0, 0), |head| (head.kept_bytes, head.blob_bytes)))
        };
        let mut bytes = Vec::new();
        for owner in principals {
            bytes.push((owner, kept(owner.home).map_err(unreadable)?));
        }
        let (mut writes, epoch) = (Writes::default(), self.store.epoch());
        let homes = purge(&self.store, name, &mut writes).map_err(unreadable)?;
        let mut named = Named::default();
        for home in &homes {
            named_by(&self.store.snapshot(), *home, &mut named).map_err(unreadable)?;
        }
        // If it fails, the next start ends it.
        if !writes.is_empty() && !self.make_durable(writes).await {
            return Err(Refusal::lost());
        }
        self.forget_blobs(&homes, &named, epoch);
        for (owner, bytes) in bytes {
            owner.loaded.retire(&owner.principal, Some(bytes));
        }
        Ok(())
    }
}

/// Nothing of him may stay; what was recorded of others cannot be told apart.
fn recordings_stay(error: &io::Error) -> Refusal {
    let why = format!("recordings of plugins cannot be deleted: {error}");
    Refusal::new(ErrorCode::Failed, why)
}

/// Deletes all that is kept for a user, by instances that are loaded and those that are not; where it
/// lay.
fn purge(store: &Store, name: &str, writes: &mut Writes) -> Result<Vec<Home>, StoreError> {
    let (snapshot, mut homes) = (store.snapshot(), Vec::new());
    for (_, number) in rows::all(&snapshot, &instance_key(""))? {
        if let Ok(number) = number.try_into() {
            let instance = u32::from_be_bytes(number);
            homes.extend(users::purge(&snapshot, instance, name, writes)?);
        }
    }
    Ok(homes)
}
