//! Whom a program says it is: a user of the entrance where it has users, else only a label that
//! keeps flows apart.

use std::{collections::BTreeMap, fmt};

use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};
use zeroize::Zeroizing;

use crate::config::Secret;

/// Bytes of a password's digest in an isolation key: enough that two never meet by chance.
const DIGEST_BYTES: usize = 8;

/// User name and password of a SOCKS or HTTP client.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    user: String,
    password: Zeroizing<String>,
}

impl Login {
    /// What the client sent.
    pub(crate) fn new(user: &str, password: &str) -> Self {
        Self {
            user: user.to_owned(),
            password: Zeroizing::new(password.to_owned()),
        }
    }

    /// The user name.
    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    /// Whether `users` has the user with this password.
    pub(crate) fn is_one_of(&self, users: &BTreeMap<String, Secret>) -> bool {
        let secret = users.get(&self.user);
        secret.is_some_and(|secret| secret.matches(self.password.as_bytes()))
    }

    /// Flows of different logins share no circuit; the password itself does not appear.
    pub(super) fn isolation(&self) -> String {
        let digest = digest(&SHA256, self.password.as_bytes());
        let short = digest.as_ref().get(..DIGEST_BYTES).unwrap_or_default();
        format!("{}:{}", self.user, HEXLOWER.encode(short))
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_keep_flows_apart_and_stay_out_of_sight() {
        let alice = Login::new("alice", "one");
        assert_ne!(alice.isolation(), Login::new("alice", "two").isolation());
        assert!(!format!("{alice:?} {}", alice.isolation()).contains("one"));
        let users = BTreeMap::from([("alice".to_owned(), Secret::new("one"))]);
        assert!(alice.is_one_of(&users));
        assert!(!Login::new("alice", "two").is_one_of(&users));
        assert!(!Login::new("bob", "one").is_one_of(&users));
    }
}
