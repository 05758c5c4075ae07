//! What `accept`, `relay` and `exit` return.

use std::time::Duration;

use serde::Serialize;

/// Yes with limits, or no.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Allowed, within these limits; config.toml's own still hold.
    Allow(Allowance),
    /// Refused; the reason is shown to the operator, never to the asker.
    Deny(String),
}

/// Limits of an allowance. `None` is: no limit beyond config.toml.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Allowance {
    /// Bytes a second.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Ends after so many bytes.
    pub max_bytes: Option<u64>,
    /// Ends after this time.
    pub max_time: Option<Duration>,
    /// Ends when nothing moved for so long.
    pub idle: Option<Duration>,
}

impl Allowance {
    /// Keeps to both: of each limit the narrower one.
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
            ..Allowance::default()
        };
        let both = Allowance {
            bandwidth_bytes_per_s: Some(3),
            max_bytes: Some(5),
            max_time: None,
            idle: Some(Duration::from_secs(1)),
        };
        assert_eq!(one.narrowed(&other), both);
        assert_eq!(other.narrowed(&one), both);
    }
}
