//! What plugins and rule scripts have to do with each other: facts that scripts read, questions that
//! scripts answer, and traffic that they billed.

use std::{sync::LazyLock, time::Duration};

use data_encoding::{Encoding, Specification};
use serde::Serialize;

use crate::{Context, Error, Result, host};

/// What the rule scripts say to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    /// No script has the hook, or all passed: the plugin's own default holds.
    None,
    /// Yes, within limits.
    Allow(Allowance),
    /// No; why, for people. A script that failed says so too.
    Deny(String),
}

/// What a script set with `allow()`; `None`: nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowance {
    /// `.bw(…)`
    pub bytes_per_second: Option<u64>,
    /// `.bytes(…)`
    pub max_bytes: Option<u64>,
    /// `.for_time(…)`
    pub max_time: Option<Duration>,
    /// `.idle(…)`
    pub idle: Option<Duration>,
}

/// What was done for somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Ciphertext between two nodes, as `relay(q)` allowed it.
    Relay,
    /// What targets were sent and sent back, as `exit(x)` allowed it.
    Exit,
}

/// Bytes of one peer and one service since it was told of before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Whom the script billed.
    pub peer: [u8; 32],
    /// What for.
    pub service: Service,
    /// From whoever asked for it.
    pub bytes_in: u64,
    /// To whoever asked for it.
    pub bytes_out: u64,
    /// From when: milliseconds since 1970.
    pub since_ms: u64,
    /// To when.
    pub until_ms: u64,
}

impl Ruling {
    /// Whether it is a yes; `otherwise` where the scripts leave it to the plugin.
    pub fn allows_or(&self, otherwise: bool) -> bool {
        match self {
            Self::None => otherwise,
            Self::Allow(_) => true,
            Self::Deny(_) => false,
        }
    }

    /// The limits of a yes; those of `otherwise` where the scripts leave it to the plugin.
    ///
    /// # Errors
    /// [`Denied`](crate::ErrorCode::Denied): they said no, and why.
    pub fn within_or(self, otherwise: Allowance) -> Result<Allowance> {
        match self {
            Self::None => Ok(otherwise),
            Self::Allow(allowance) => Ok(allowance),
            Self::Deny(why) => Err(Error::denied(why)),
        }
    }
}

impl Context {
    /// Publishes a fact about a peer, in the place of the one before: scripts read it as `p.kind`, at
    /// most a second after this event. It lasts for `ttl`, 1 ms to a day, and until the node stops:
    /// publish it anew in [`init`](crate::Plugin::init). It costs no disk.
    ///
    /// # Errors
    /// [`Denied`](crate::ErrorCode::Denied): not granted, or the principal is a user;
    /// [`Quota`](crate::ErrorCode::Quota): `limits.facts`; [`Invalid`](crate::ErrorCode::Invalid): the time.
    pub fn set_fact(
        &mut self,
        kind: &str,
        peer: &[u8; 32],
        value: i64,
        ttl: Duration,
    ) -> Result<()> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        host::with(|host| host.set_fact(kind, peer, value, ttl_ms))
    }

    /// Takes a fact back; none is no error.
    ///
    /// # Errors
    /// [`Denied`](crate::ErrorCode::Denied): as for [`set_fact`](Self::set_fact).
    pub fn clear_fact(&mut self, kind: &str, peer: &[u8; 32]) -> Result<()> {
        host::with(|host| host.clear_fact(kind, peer))
    }

    /// Asks the rule scripts in force, at once. `question` is what the hook is handed: an object in
    /// JSON of at most 16 KiB, eight levels deep. Scripts find a node by its name: [`node_name`].
    ///
    /// # Errors
    /// [`Denied`](crate::ErrorCode::Denied): not granted; [`Invalid`](crate::ErrorCode::Invalid): the
    /// question.
    pub fn ask_rules<T: Serialize>(&self, hook: &str, question: &T) -> Result<Ruling> {
        let question = serde_json::to_string(question);
        let question = question.map_err(|error| Error::invalid(error.to_string()))?;
        host::with(|host| host.ask_rules(hook, &question))
    }
}

/// A node's id as people and scripts write it, in 52 characters: `peer(w.from)` finds it.
pub fn node_name(id: &[u8; 32]) -> String {
    #[expect(
        clippy::expect_used,
        reason = "the alphabet is a constant, and a test uses it"
    )]
    static ZBASE32: LazyLock<Encoding> = LazyLock::new(|| {
        let mut spec = Specification::new();
        spec.symbols.push_str("ybndrfg8ejkmcpqxot1uwisza345h769");
        spec.encoding().expect("32 letters are an alphabet")
    });
    ZBASE32.encode(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_as_the_node_names_it() {
        assert_eq!(node_name(&[0; 32]), "y".repeat(52));
        assert_eq!(node_name(&[0xff; 32]), format!("{}o", "9".repeat(51)));
    }
}
