//! Why a program does not get its flow, and how each entrance says so.

use hyper::StatusCode;
use thiserror::Error;
use wormholes_proto::{Reason, SocksReply};

use super::guard::Forbidden;
use crate::tunnel::OpenError;

/// Why a flow does not open.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// All places for flows are taken.
    #[error("the router is at its limit of flows")]
    Busy,
    /// As many flows to the target as this were opening at once.
    #[error(
        "more than {0} flows to this target were opening at once: is there a loop over another \
         proxy? If not, raise `opening_per_target` in [limits] of config.toml"
    )]
    Crowded(usize),
    /// The router stops.
    #[error("the router stops")]
    Stopping,
    /// Nobody waits for it any more.
    #[error("the program went away")]
    Gone,
    /// A script, or the default, said so.
    #[error("blocked: {0}")]
    Blocked(String),
    /// A script chose what the host forbids.
    #[error("forbidden: {0}")]
    Forbidden(#[from] Forbidden),
    /// The name means nothing.
    #[error("no such name: {0}")]
    Name(String),
    /// The target refused the connection.
    #[error("connection refused by the target")]
    ConnectionRefused,
    /// No way leads to the target's network.
    #[error("network unreachable")]
    NetworkUnreachable,
    /// The target does not answer.
    #[error("host unreachable: {0}")]
    HostUnreachable(String),
    /// It took too long.
    #[error("timed out")]
    TimedOut,
    /// A tunnel failed.
    #[error("{0}")]
    Failed(String),
}

impl From<&OpenError> for Refusal {
    fn from(error: &OpenError) -> Self {
        let text = error.to_string();
        match (error, error.reason()) {
            (OpenError::Blocked(why), _) => Self::Blocked(why.clone()),
            (_, Reason::Denied | Reason::ForbiddenAddress) => Self::Blocked(text),
            (_, Reason::NameNotFound | Reason::NoService | Reason::NoNode) => Self::Name(text),
            (_, Reason::ConnectionRefused) => Self::ConnectionRefused,
            (_, Reason::NetworkUnreachable) => Self::NetworkUnreachable,
            (_, Reason::Unreachable) => Self::HostUnreachable(text),
            (_, Reason::TimedOut) => Self::TimedOut,
            (
                _,
                Reason::Malformed
                | Reason::Unsupported
                | Reason::Busy
                | Reason::StaleKey
                | Reason::Handshake,
            ) => Self::Failed(text),
        }
    }
}

impl Refusal {
    /// The word for it in metrics.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Busy | Self::Stopping => "busy",
            Self::Crowded(_) => "crowded",
            Self::Gone => "gone",
            Self::Blocked(_) | Self::Forbidden(_) => "blocked",
            Self::Name(_) => "name",
            Self::ConnectionRefused => "refused",
            Self::NetworkUnreachable | Self::HostUnreachable(_) => "unreachable",
            Self::TimedOut => "timeout",
            Self::Failed(_) => "failed",
        }
    }

    /// The reply of a SOCKS5 entrance (RFC 1928, section 6).
    pub(crate) fn socks_reply(&self) -> SocksReply {
        match self {
            Self::Blocked(_) | Self::Forbidden(_) => SocksReply::NotAllowed,
            Self::Name(_) | Self::HostUnreachable(_) => SocksReply::HostUnreachable,
            Self::ConnectionRefused => SocksReply::ConnectionRefused,
            Self::NetworkUnreachable => SocksReply::NetworkUnreachable,
            Self::TimedOut => SocksReply::TtlExpired,
            Self::Busy | Self::Crowded(_) | Self::Stopping | Self::Gone | Self::Failed(_) => {
                SocksReply::GeneralFailure
            }
        }
    }

    /// The status of an HTTP entrance (RFC 9110, section 15).
    pub(crate) fn http_status(&self) -> StatusCode {
        match self {
            Self::Busy | Self::Crowded(_) | Self::Stopping | Self::Gone => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Blocked(_) | Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::Name(_)
            | Self::ConnectionRefused
            | Self::NetworkUnreachable
            | Self::HostUnreachable(_)
            | Self::Failed(_) => StatusCode::BAD_GATEWAY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dial::DialError, names::NodeName};

    fn check(error: &OpenError, outcome: &str, reply: SocksReply, status: u16) {
        let refusal = Refusal::from(error);
        let found = (
            refusal.outcome(),
            refusal.socks_reply(),
            refusal.http_status().as_u16(),
        );
        assert_eq!(found, (outcome, reply, status), "{error}");
    }

    #[test]
    fn each_failure_has_its_answer_at_every_entrance() {
        use SocksReply::{
            ConnectionRefused, GeneralFailure, HostUnreachable, NetworkUnreachable, NotAllowed,
            TtlExpired,
        };
        let dial = |error| OpenError::Dial(error);
        let node = NodeName {
            id: wormholes_proto::NodeId::from_bytes([1; 32]),
            petname: None,
        };
        let refused = |reason| OpenError::Refused {
            node: node.clone(),
            reason,
        };
        let blocked = OpenError::Blocked("no".to_owned());
        check(&blocked, "blocked", NotAllowed, 403);
        check(&dial(DialError::SpecialUse), "blocked", NotAllowed, 403);
        check(&refused(Reason::Denied), "blocked", NotAllowed, 403);
        check(&dial(DialError::NameNotFound), "name", HostUnreachable, 502);
        check(&refused(Reason::NoService), "name", HostUnreachable, 502);
        check(&dial(DialError::Refused), "refused", ConnectionRefused, 502);
        check(
            &dial(DialError::NetworkUnreachable),
            "unreachable",
            NetworkUnreachable,
            502,
        );
        check(
            &refused(Reason::NetworkUnreachable),
            "unreachable",
            NetworkUnreachable,
            502,
        );
        check(
            &dial(DialError::NoZone),
            "unreachable",
            HostUnreachable,
            502,
        );
        check(
            &refused(Reason::Unreachable),
            "unreachable",
            HostUnreachable,
            502,
        );
        let hop = |reason| OpenError::Hop {
            node: node.clone(),
            reason,
        };
        check(&hop(Reason::Denied), "unreachable", HostUnreachable, 502);
        check(&hop(Reason::Busy), "failed", GeneralFailure, 502);
        let silent = OpenError::NoCircuit { hops: 3 };
        check(&silent, "timeout", TtlExpired, 504);
        check(&dial(DialError::TimedOut), "timeout", TtlExpired, 504);
        check(&refused(Reason::Busy), "failed", GeneralFailure, 502);
        assert_eq!(Refusal::Busy.http_status().as_u16(), 503);
    }
}
