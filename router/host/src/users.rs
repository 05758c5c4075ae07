//! The node's users: people whose principals its plugins may have.
//!
//! ```text
//! standing u8: 0 active, 1 removed, 2 purged | added, milliseconds since 1970, u64
//! ```
//! Whoever is removed keeps all rows, and no event runs for him; whoever is purged has none, and his
//! name is never given again: keys are derived from it, and other nodes know it.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::{Mutex, MutexGuard};

use crate::{
    event::{ErrorCode, Refusal},
    letters::DeadLetter,
    rows::{self, Home, letter_keys, principal_key, user_key},
    store::{Snapshot, StoreError, Writes},
};
use wormholes_proto::manifest::is_name;

/// Users of one node, those that were removed and purged among them. The next one is refused.
const MAX_USERS: usize = 10_000;
/// As whom logs and lists name the node itself.
const NODE: &str = "node";

/// A user of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name: a small letter, then small letters, digits and `-`; at most 32.
    pub name: Arc<str>,
    /// When it was added: milliseconds since 1970.
    pub added_unix_ms: u64,
    /// Whether there is such a user now.
    pub standing: Standing,
}

/// Whether a user is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Standing {
    /// He is.
    Active = 0,
    /// He was removed: his rows stay, and nothing runs for him until he is added again.
    Removed = 1,
    /// His rows are gone, and his name is not given again.
    Purged = 2,
}

/// All users of a node.
#[derive(Debug)]
pub(crate) struct Users {
    all: RwLock<BTreeMap<Arc<str>, User>>,
    /// Held by whoever adds or removes one.
    changing: Mutex<()>,
}

impl Users {
    pub(crate) fn read(snapshot: &Snapshot) -> Result<Self, StoreError> {
        let rows = rows::all(snapshot, &user_key(""))?;
        let users = rows
            .iter()
            .filter_map(|(name, row)| User::decode(name, row));
        let users = users.map(|user| (Arc::clone(&user.name), user));
        Ok(Self {
            all: RwLock::new(users.collect()),
            changing: Mutex::new(()),
        })
    }

    /// One change at a time.
    pub(crate) async fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    pub(crate) fn is_active(&self, name: &str) -> bool {
        let user = self.get(name);
        user.is_some_and(|user| user.standing == Standing::Active)
    }

    pub(crate) fn get(&self, name: &str) -> Option<User> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.get(name).cloned()
    }

    pub(crate) fn list(&self) -> Vec<User> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.values().cloned().collect()
    }

    /// Makes a change hold at once.
    pub(crate) fn set(&self, user: User) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(Arc::clone(&user.name), user);
    }

    /// Undoes it.
    pub(crate) fn reset(&self, name: &str, before: Option<User>) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        match before {
            Some(user) => all.insert(name.into(), user),
            None => all.remove(name),
        };
    }

    /// The user that is to be added.
    ///
    /// # Errors
    /// There can be none of that name.
    pub(crate) fn newcomer(&self, name: &str, now_ms: u64) -> Result<User, Refusal> {
        if !is_name(name) || name == NODE {
            let rule = format!(
                "`{name}` is no user's name: a small letter, then small letters, digits and `-`; at \
                 most 32, and not `{NODE}`"
            );
            return Err(Refusal::new(ErrorCode::Invalid, rule));
        }
        let added_unix_ms = match self.get(name) {
            None if self.list().len() >= MAX_USERS => {
                let full = format!("a node has at most {MAX_USERS} users");
                return Err(Refusal::new(ErrorCode::Quota, full));
            }
            None => now_ms,
            Some(user) => match user.standing {
                Standing::Active => {
                    let known = format!("there is a user `{name}`");
                    return Err(Refusal::new(ErrorCode::Invalid, known));
                }
                Standing::Removed => user.added_unix_ms,
                Standing::Purged => {
                    let gone = format!(
                        "a user `{name}` was purged, and others may know that name: choose another"
                    );
                    return Err(Refusal::new(ErrorCode::Invalid, gone));
                }
            },
        };
        Ok(User {
            name: name.into(),
            added_unix_ms,
            standing: Standing::Active,
        })
    }

    /// The user that is to be removed, or purged after that.
    ///
    /// # Errors
    /// There is none of that name.
    pub(crate) fn leaver(&self, name: &str, purge: bool) -> Result<User, Refusal> {
        let standing = if purge {
            Standing::Purged
        } else {
            Standing::Removed
        };
        let user = self.get(name);
        match user {
            Some(user) if (user.standing as u8) < standing as u8 => Ok(User { standing, ..user }),
            // What the disk did not take is purged again.
            Some(user) if purge => Ok(user),
            Some(_) | None => Err(unknown(name)),
        }
    }
}

impl User {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let added = self.added_unix_ms.to_be_bytes();
        [&[self.standing as u8][..], &added].concat()
    }

    fn decode(name: &[u8], row: &[u8]) -> Option<Self> {
        let (standing, added) = row.split_first()?;
        Some(Self {
            name: std::str::from_utf8(name).ok()?.into(),
            added_unix_ms: u64::from_be_bytes(added.try_into().ok()?),
            standing: match standing {
                0 => Standing::Active,
                1 => Standing::Removed,
                2 => Standing::Purged,
                _ => return None,
            },
        })
    }
}

pub(crate) fn unknown(name: &str) -> Refusal {
    let missing = format!("there is no user `{name}`; `wormholes user add {name}` makes one");
    Refusal::new(ErrorCode::NotFound, missing)
}

/// Deletes all that a user has in one instance: the rows of his principal, and dead letters. Where
/// they lay.
pub(crate) fn purge(
    snapshot: &Snapshot,
    instance: u32,
    name: &str,
    writes: &mut Writes,
) -> Result<Option<Home>, StoreError> {
    let key = principal_key(instance, name);
    let Some(number) = snapshot.get(&key)? else {
        return Ok(None);
    };
    let number = number.try_into().ok().map(u32::from_be_bytes);
    let home = number.map(|principal| Home {
        instance,
        principal,
    });
    for rows in home.iter().flat_map(|home| home.everything()) {
        writes.remove_range(rows);
    }
    writes.put(key, None);
    let prefix = letter_keys(instance);
    for (slot, row) in rows::all(snapshot, &prefix)? {
        if DeadLetter::decode(&row).is_some_and(|letter| letter.principal == name) {
            writes.put([&prefix[..], &slot].concat(), None);
        }
    }
    Ok(home)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Users {
        Users {
            all: RwLock::default(),
            changing: Mutex::new(()),
        }
    }

    #[test]
    fn a_name_is_given_once_and_never_again_after_a_purge() {
        let users = users();
        for name in ["", "Ann", "node", "a b", "1st"] {
            let refused = users.newcomer(name, 7).unwrap_err();
            assert!(refused.message.contains("no user's name"), "{refused}");
        }
        let ann = users.newcomer("ann", 7).unwrap();
        users.set(ann.clone());
        assert!(users.is_active("ann") && !users.is_active("bob"));
        assert!(users.newcomer("ann", 8).is_err());
        users.set(users.leaver("ann", false).unwrap());
        assert!(!users.is_active("ann") && users.leaver("ann", false).is_err());
        assert_eq!(users.newcomer("ann", 9), Ok(ann), "as he was");
        users.set(users.leaver("ann", true).unwrap());
        assert_eq!(
            users.leaver("ann", true).map(|ann| ann.standing),
            Ok(Standing::Purged)
        );
        let refused = users.newcomer("ann", 9).unwrap_err();
        assert!(refused.message.contains("was purged"), "{refused}");
    }

    #[test]
    fn a_user_is_read_as_he_was_written() {
        let users = users();
        let mut ann = users.newcomer("ann", 1 << 40).unwrap();
        for standing in [Standing::Active, Standing::Removed, Standing::Purged] {
            ann.standing = standing;
            assert_eq!(User::decode(b"ann", &ann.encode()), Some(ann.clone()));
        }
        assert_eq!(User::decode(b"ann", &[9; 9]), None);
        assert_eq!(User::decode(b"ann", &[0; 8]), None);
    }
}
