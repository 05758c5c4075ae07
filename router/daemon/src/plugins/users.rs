//! Users of the node, for control: plugins may have principals for them.

use std::sync::Arc;

use wormholes_host::{ErrorCode, Host, Refusal, Standing, User};
use wormholes_proto::control::{UserInfo, UserList, UserStanding};

use super::Plugins;

impl Plugins {
    /// Adds a user, or one who was removed.
    ///
    /// # Errors
    /// There is one of that name, or there can be none.
    pub(crate) async fn add_user(&self, name: &str) -> Result<UserInfo, Refusal> {
        Ok(info(self.any()?.add_user(name).await?))
    }

    /// Removes a user, with all that plugins keep for him where `purge` says so.
    ///
    /// # Errors
    /// There is none of that name.
    pub(crate) async fn remove_user(&self, name: &str, purge: bool) -> Result<UserInfo, Refusal> {
        Ok(info(self.any()?.remove_user(name, purge).await?))
    }

    /// All users, by name.
    ///
    /// # Errors
    /// There can be none, as no plugin runs.
    pub(crate) fn users(&self) -> Result<UserList, Refusal> {
        let users = self.any()?.users().into_iter();
        Ok(UserList {
            users: users.map(info).collect(),
        })
    }

    /// The host, whichever plugin it is for.
    pub(super) fn any(&self) -> Result<Arc<Host>, Refusal> {
        self.running().ok_or_else(|| {
            let none = "no plugin runs here; [plugin.NAME] in config.toml names one";
            Refusal::new(ErrorCode::NotFound, none)
        })
    }
}

fn info(user: User) -> UserInfo {
    UserInfo {
        name: user.name.to_string(),
        standing: match user.standing {
            Standing::Active => UserStanding::Active,
            Standing::Removed => UserStanding::Removed,
            Standing::Purged => UserStanding::Purged,
        },
        added_unix_ms: user.added_unix_ms,
    }
}
