//! What `accept`, `relay`, `exit` and the hooks that plugins ask return.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use wormholes_proto::NodeId;

/// Yes with limits, or no.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Allowed, within these limits; config.toml's own still hold.
    Allow(Allowance),
    /// Refused; the reason is shown to the operator, never to the asker.
    Deny(String),
}

/// Limits of an allowance. `None` is: no limit beyond config.toml.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Allowance {
    /// Bytes a second.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Ends after so many bytes.
    pub max_bytes: Option<u64>,
    /// Ends after this time.
    pub max_time: Option<Duration>,
    /// Ends when nothing moved for so long.
    pub idle: Option<Duration>,
    /// Whom the bytes are counted for; plugins that are granted `usage` are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bill: Option<NodeId>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allowance = match self {
            Self::Deny(why) => return write!(f, "deny: {why}"),
            Self::Allow(allowance) => allowance,
        };
        f.write_str("allow")?;
        let counts = [
            (allowance.bandwidth_bytes_per_s, "bytes/s"),
            (allowance.max_bytes, "bytes"),
        ];
        for (count, unit) in counts {
            if let Some(count) = count {
                write!(f, ", at most {count} {unit}")?;
            }
        }
        let times = [("for", allowance.max_time), ("idle", allowance.idle)];
        for (name, time) in times {
            if let Some(time) = time {
                write!(f, ", {name} {} ms", time.as_millis())?;
            }
        }
        match &allowance.bill {
            Some(peer) => write!(f, ", billed to {peer}"),
            None => Ok(()),
        }
    }
}

impl Allowance {
    /// Keeps to both: of each limit the narrower one; the first that bills says whom.
    #[must_use]
    pub fn narrowed(&self, other: &Self) -> Self {
        fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
            one.into_iter().chain(other).min()
        }
        Self {
            bandwidth_bytes_per_s: least(self.bandwidth_bytes_per_s, other.bandwidth_bytes_per_s),
            max_bytes: least(self.max_bytes, other.max_bytes),
            max_time: least(self.max_time, other.max_time),
            idle: least(self.idle, other.idle),
            bill: self.bill.or(other.bill),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_allowances_each_limit_is_the_narrower_one() {
        let one = Allowance {
            bandwidth_bytes_per_s: Some(9),
            max_bytes: Some(5),
            ..Allowance::default()
        };
        let other = Allowance {
            bandwidth_bytes_per_s: Some(3),
            idle: Some(Duration::from_secs(1)),
            bill: Some(NodeId::from_bytes([7; 32])),
            ..Allowance::default()
        };
        let both = Allowance {
            bandwidth_bytes_per_s: Some(3),
            max_bytes: Some(5),
            max_time: None,
            idle: Some(Duration::from_secs(1)),
            bill: Some(NodeId::from_bytes([7; 32])),
        };
        assert_eq!(one.narrowed(&other), both);
        assert_eq!(other.narrowed(&one), both);
    }
}
