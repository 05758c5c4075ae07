//! Why a program does not get its flow, and how each entrance says so.
//!
//! ```text
//! what happened                                          outcome      SOCKS5  HTTP
//! a rule forbids it, here or where the tunnel ends,
//!   or the host does, below all rules                    blocked      2       403
//! the name, the service or the node does not exist       name         4       502
//! the target refused                                     refused      5       502
//! no way leads to the target's network                   unreachable  3       502
//! no way leads to its host, or nobody finds the name;
//!   a node with the service is not reached               unreachable  4       502
//! the target, or the tunnel as a whole, took too long    timeout      6       504
//! the way failed and nobody asked the target: a peer
//!   that exits, a relay, a hop, an upstream proxy        failed       1       502
//! a limit here                                           busy         1       503
//! too many flows to the target are opening               crowded      1       503
//! ```
//! What speaks of the target is its own word, or that of whoever dialled it: a program that hears 5
//! from a dead proxy takes its server for down.

use hyper::StatusCode;
use thiserror::Error;
use wormholes_proto::{NodeId, Reason, SocksReply};
use wormholes_rules::Tunnel;

use super::guard::{self, Forbidden};
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
    /// No way leads to the target's host.
    #[error("host unreachable: {0}")]
    HostUnreachable(String),
    /// It took too long.
    #[error("timed out")]
    TimedOut,
    /// The tunnel failed before anybody asked the target.
    #[error("{0}")]
    Failed(String),
}

impl Refusal {
    /// Whether the rules or the host said so: it stays so as long as they do.
    pub(crate) fn is_ruling(&self) -> bool {
        match self {
            Self::Blocked(_) | Self::Forbidden(_) => true,
            Self::Busy
            | Self::Crowded(_)
            | Self::Stopping
            | Self::Gone
            | Self::Name(_)
            | Self::ConnectionRefused
            | Self::NetworkUnreachable
            | Self::HostUnreachable(_)
            | Self::TimedOut
            | Self::Failed(_) => false,
        }
    }

    /// What a program is told when `tunnel` does not open.
    pub(super) fn of_open(error: &OpenError, tunnel: &Tunnel) -> Self {
        if !failed_on_the_way(error, tunnel) {
            return Self::said(error);
        }
        // Who offers the service is the host that was asked for.
        match (guard::service_end(tunnel), error.reason()) {
            (Some(_), Reason::TimedOut) => Self::TimedOut,
            (Some(_), _) => Self::HostUnreachable(error.to_string()),
            (None, _) => Self::Failed(error.to_string()),
        }
    }

    /// What a program is told when its target's name is not found through `tunnel`.
    pub(super) fn of_lookup(error: &OpenError, tunnel: &Tunnel) -> Self {
        if failed_on_the_way(error, tunnel) {
            Self::Failed(error.to_string())
        } else {
            Self::said(error)
        }
    }

    /// What was said of the target.
    fn said(error: &OpenError) -> Self {
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

/// Whether nobody came to say anything of the target.
fn failed_on_the_way(error: &OpenError, tunnel: &Tunnel) -> bool {
    let is_end = |node: NodeId| end(tunnel).is_none_or(|end| end == node);
    match error {
        // A door that is shut at the end of the way is its last word.
        OpenError::Connect { node, source } => {
            !(is_end(node.id) && source.reason() == Reason::Denied)
        }
        // Else it is a relay that speaks.
        OpenError::Refused { node, .. } => !is_end(node.id),
        OpenError::Upstream { source, .. } => source.word().is_none(),
        OpenError::Tor(failure) => !failure.is_of_target(),
        OpenError::I2p { source, .. } => source.word().is_none(),
        OpenError::Hop { .. }
        | OpenError::Broken { .. }
        | OpenError::NoPath(_)
        | OpenError::NoWay(_) => true,
        OpenError::Blocked(_)
        | OpenError::Dial(_)
        | OpenError::NoServiceForStrangers { .. }
        | OpenError::NoCircuit { .. }
        | OpenError::TimedOut(_) => false,
    }
}

/// The node that the tunnel ends at, where the plan names it.
fn end(tunnel: &Tunnel) -> Option<NodeId> {
    match tunnel {
        Tunnel::Direct { to, .. } | Tunnel::Onion { to, .. } => *to,
        Tunnel::Relay { to, .. } | Tunnel::Punch { to, .. } => Some(*to),
        Tunnel::Tor | Tunnel::I2p { .. } | Tunnel::Socks { .. } | Tunnel::Block { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use wormholes_proto::{
        SocksClientError,
        sam::{SamError, SamRefusal},
    };
    use wormholes_tor::TorError;

    use super::*;
    use crate::{
        ban::Ban, carrier::LinkError, dial::DialError, i2p::I2pError, names::NodeName,
        peers::ConnectError, pipe::PipeError, tor::TorFailure, tunnel::UpstreamError,
    };

    const PEER: NodeId = NodeId::from_bytes([1; 32]);
    const RELAY: NodeId = NodeId::from_bytes([2; 32]);

    /// Outcome, SOCKS reply, HTTP status: the rows of the table above.
    type Row = (&'static str, u8, u16);
    const BLOCKED: Row = ("blocked", 2, 403);
    const NAME: Row = ("name", 4, 502);
    const REFUSED: Row = ("refused", 5, 502);
    const NETWORK: Row = ("unreachable", 3, 502);
    const HOST: Row = ("unreachable", 4, 502);
    const TIME: Row = ("timeout", 6, 504);
    const WAY: Row = ("failed", 1, 502);

    fn name(id: NodeId) -> NodeName {
        NodeName { id, petname: None }
    }

    fn direct(to: Option<NodeId>, exit: bool) -> Tunnel {
        Tunnel::Direct { to, exit }
    }

    fn relay(exit: bool) -> Tunnel {
        Tunnel::Relay {
            via: Some(RELAY),
            to: PEER,
            exit,
        }
    }

    fn onion(to: Option<NodeId>, exit: bool) -> Tunnel {
        Tunnel::Onion {
            hops: 3,
            via: None,
            to,
            exit,
            friends_only: false,
        }
    }

    fn row(refusal: &Refusal) -> Row {
        let reply = refusal.socks_reply() as u8;
        (refusal.outcome(), reply, refusal.http_status().as_u16())
    }

    fn check(tunnels: &[Tunnel], error: &OpenError, expected: Row) {
        for tunnel in tunnels {
            let refusal = Refusal::of_open(error, tunnel);
            assert_eq!(row(&refusal), expected, "{tunnel:?}: {error}");
        }
    }

    #[test]
    fn what_is_said_of_the_target_reaches_the_program() {
        for (dial, expected) in [
            (DialError::SpecialUse, BLOCKED),
            (Ban::Own.into(), BLOCKED),
            (DialError::NameNotFound, NAME),
            (DialError::Refused, REFUSED),
            (DialError::NetworkUnreachable, NETWORK),
            (DialError::Unreachable, HOST),
            (DialError::NoZone, HOST),
            (DialError::Resolver("no answer".to_owned()), HOST),
            (DialError::TimedOut, TIME),
            (DialError::System(std::io::ErrorKind::Other), WAY),
        ] {
            check(&[direct(None, false)], &OpenError::Dial(dial), expected);
        }
        let ends = [direct(Some(PEER), true), relay(true), onion(None, false)];
        let services = [
            direct(Some(PEER), false),
            relay(false),
            onion(Some(PEER), false),
        ];
        for (reason, expected) in [
            (Reason::Denied, BLOCKED),
            (Reason::ForbiddenAddress, BLOCKED),
            (Reason::NameNotFound, NAME),
            (Reason::NoService, NAME),
            (Reason::ConnectionRefused, REFUSED),
            (Reason::NetworkUnreachable, NETWORK),
            (Reason::Unreachable, HOST),
            (Reason::TimedOut, TIME),
            (Reason::Busy, WAY),
            (Reason::Unsupported, WAY),
            (Reason::Handshake, WAY),
        ] {
            let node = name(PEER);
            let refused = OpenError::Refused { node, reason };
            check(&ends, &refused, expected);
            check(&services, &refused, expected);
        }
        let node = name(PEER);
        check(&services, &OpenError::NoServiceForStrangers { node }, NAME);
        let blocked = OpenError::Blocked("no".to_owned());
        check(&[Tunnel::Block { why: String::new() }], &blocked, BLOCKED);
    }

    #[test]
    fn a_way_that_fails_says_nothing_of_the_target_unless_the_node_is_the_target() {
        let connect = |id, source| OpenError::Connect {
            node: name(id),
            source,
        };
        let closed = || ConnectError::Link(LinkError::Closed(Reason::Denied));
        let silent = || {
            let address = ([127, 0, 0, 1], 1).into();
            ConnectError::Link(LinkError::NoAnswer { address })
        };
        let node = || name(RELAY);
        let exits = [
            direct(Some(PEER), true),
            relay(true),
            onion(Some(PEER), true),
        ];
        let services = [
            direct(Some(PEER), false),
            relay(false),
            onion(Some(PEER), false),
        ];
        for (error, behind_an_exit, of_a_service) in [
            (connect(PEER, ConnectError::NoAddress), WAY, HOST),
            (connect(PEER, silent()), WAY, TIME),
            // The door of the tunnel's end, and of somebody on the way.
            (connect(PEER, closed()), BLOCKED, BLOCKED),
            (connect(RELAY, closed()), WAY, HOST),
            (
                OpenError::Refused {
                    node: node(),
                    reason: Reason::Denied,
                },
                WAY,
                HOST,
            ),
            (
                OpenError::Hop {
                    node: node(),
                    witness: None,
                    reason: Reason::Denied,
                },
                WAY,
                HOST,
            ),
            (
                OpenError::Broken {
                    node: node(),
                    source: PipeError::Cut,
                },
                WAY,
                HOST,
            ),
            (OpenError::NoPath("no hops".to_owned()), WAY, HOST),
            (OpenError::NoWay("no relay"), WAY, HOST),
            (OpenError::NoCircuit { hops: 3 }, TIME, TIME),
            (OpenError::TimedOut(std::time::Duration::ZERO), TIME, TIME),
        ] {
            check(&exits, &error, behind_an_exit);
            check(&services, &error, of_a_service);
        }
    }

    #[test]
    fn tor_speaks_of_the_target_or_of_itself() {
        for (failure, expected) in [
            (TorFailure::Stopped, WAY),
            (TorFailure::Tor(TorError::NoExit), WAY),
            (TorFailure::Tor(TorError::Refused), REFUSED),
            (TorFailure::Tor(TorError::NameNotFound), NAME),
            (TorFailure::Tor(TorError::NoService), HOST),
            (TorFailure::Tor(TorError::PrivateAddress), BLOCKED),
            (TorFailure::Tor(TorError::TimedOut), TIME),
        ] {
            check(&[Tunnel::Tor], &OpenError::Tor(failure), expected);
        }
    }

    #[test]
    fn an_upstream_proxy_speaks_of_the_target_only_in_its_answer() {
        let check = |source, expected| {
            let server = ([127, 0, 0, 1], 9).into();
            let error = OpenError::Upstream { server, source };
            check(&[Tunnel::Socks { server }], &error, expected);
        };
        for down in [DialError::Refused, DialError::TimedOut] {
            check(UpstreamError::NotReached(down), WAY);
        }
        check(UpstreamError::HungUp, WAY);
        check(UpstreamError::Answer(SocksClientError::Password), WAY);
        for (reply, expected) in [
            (SocksReply::GeneralFailure, WAY),
            (SocksReply::NotAllowed, BLOCKED),
            (SocksReply::NetworkUnreachable, NETWORK),
            (SocksReply::HostUnreachable, HOST),
            (SocksReply::ConnectionRefused, REFUSED),
            (SocksReply::TtlExpired, TIME),
            (SocksReply::AddressTypeNotSupported, WAY),
        ] {
            let answer = SocksClientError::Refused(reply);
            check(UpstreamError::Answer(answer), expected);
        }
    }

    #[test]
    fn an_i2p_router_speaks_of_the_target_in_some_of_its_refusals_only() {
        let check = |source, expected| {
            let router = ([127, 0, 0, 1], 7656).into();
            let error = OpenError::I2p { router, source };
            let tunnel = Tunnel::I2p {
                keep: None,
                length: None,
                quantity: None,
            };
            check(&[tunnel], &error, expected);
        };
        let refused = |refusal| I2pError::Sam(SamError::Refused(refusal));
        check(I2pError::NotReached(DialError::Refused), WAY);
        check(I2pError::HungUp, WAY);
        check(I2pError::Full(1), WAY);
        check(refused(SamRefusal::InvalidId), WAY);
        check(refused(SamRefusal::Other(String::new())), WAY);
        check(refused(SamRefusal::CannotReachPeer), HOST);
        check(refused(SamRefusal::InvalidKey), NAME);
        check(refused(SamRefusal::TimedOut), TIME);
    }

    #[test]
    fn a_look_up_that_nobody_answered_says_nothing_of_the_node_it_went_to() {
        let node = name(PEER);
        let error = OpenError::Connect {
            node,
            source: ConnectError::NoAddress,
        };
        let tunnel = direct(Some(PEER), false);
        assert_eq!(row(&Refusal::of_lookup(&error, &tunnel)), WAY);
        let unknown = OpenError::Dial(DialError::NameNotFound);
        assert_eq!(
            row(&Refusal::of_lookup(&unknown, &direct(None, false))),
            NAME
        );
    }

    #[test]
    fn limits_here_are_told_from_failures_elsewhere() {
        assert_eq!(row(&Refusal::Busy), ("busy", 1, 503));
        assert_eq!(row(&Refusal::Crowded(1)), ("crowded", 1, 503));
    }
}
