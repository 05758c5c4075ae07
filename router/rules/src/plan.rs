//! What `route` returns: steps to try in order, with limits and marks.

mod text;

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};
use wormholes_proto::{CarrierKind, NodeId};

/// An ordered set of tunnels. Never empty: a plan that allows nothing is one `Block`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Tried one after the other until one opens.
    pub steps: Vec<Step>,
    /// Nothing may be weaker than the first tunnel, and when all steps fail the flow ends.
    pub closed: bool,
    /// Flows begin with the step that opened last; none: with the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stick: Option<Stick>,
    /// Whether flows that live go over from a relayed tunnel to a direct one; none: where new flows
    /// would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migrate: Option<Migrate>,
}

/// What goes over to a direct tunnel, when one may be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Migrate {
    /// Flows that live.
    Streams,
    /// New flows alone.
    #[serde(rename = "none")]
    Nothing,
}

/// How flows stay with a later step of a plan, when those before it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stick {
    /// For how long.
    pub time: Duration,
    /// How often in a row an earlier step must open then, before all flows begin there again.
    pub back_after: u32,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// One tunnel, or several that race; the first to open wins. Never empty.
    pub tunnels: Vec<Tunnel>,
    /// Limits and marks of this step.
    pub marks: Marks,
}

/// One way to a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Tunnel {
    /// A local dial (`to` is none), or a stream to a peer that offers the service or exits.
    Direct {
        /// The peer; none dials from here.
        to: Option<NodeId>,
        /// The peer dials the target.
        exit: bool,
    },
    /// Noise IK to `to` through a relay.
    Relay {
        /// The relay; none takes one that serves `to`.
        via: Option<NodeId>,
        /// The peer at the other end.
        to: NodeId,
        /// The peer dials the target.
        exit: bool,
    },
    /// Direct where a connection stands; else as through a relay, while both ends make a direct path
    /// through their NATs beside it, for flows that come later.
    Punch {
        /// The relay; none takes one that serves `to`.
        via: Option<NodeId>,
        /// The peer at the other end.
        to: NodeId,
        /// The peer dials the target.
        exit: bool,
    },
    /// Layers of Noise over hops.
    Onion {
        /// How many nodes are passed, 1 to 8, the last included.
        hops: u8,
        /// The first hop; none takes the guard.
        via: Option<NodeId>,
        /// The last hop, which offers the service; none takes any exit.
        to: Option<NodeId>,
        /// With `to`: the last hop dials the target instead of offering a service.
        exit: bool,
        /// Take hops only among friends (trust 2 and more).
        friends_only: bool,
    },
    /// The Tor network: to an onion service, or by an exit, given names unresolved.
    Tor,
    /// A stream of I2P, to a name that its router finds.
    I2p {
        /// The kept destination that it comes from; none takes one that ends with its session.
        keep: Option<String>,
        /// Hops of each I2P tunnel; none takes the config's.
        length: Option<u8>,
        /// I2P tunnels of each direction; none takes the config's.
        quantity: Option<u8>,
    },
    /// An upstream SOCKS5 server, given names unresolved.
    Socks {
        /// Its address.
        server: SocketAddr,
    },
    /// No way: the flow ends.
    Block {
        /// Shown in `why`.
        why: String,
    },
}

/// The kinds of tunnels, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelKind {
    /// Somebody on the path sees both ends.
    Direct,
    /// An upstream SOCKS server: what it does with the flow is not known here.
    Socks,
    /// The relay sees both ends, not the content.
    Relay,
    /// No hop sees both ends.
    Onion,
    /// Nor does one of Tor's relays, among which there is a crowd to hide in.
    Tor,
    /// Nor does anybody in I2P, where there is a crowd too.
    I2p,
    /// The flow ends here: as strong as it gets.
    Block,
}

/// Limits and marks on a step. `None` is: no limit, no mark.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Marks {
    /// How long opening may take; the daemon's default is 15 s, an onion's 30 s, Tor's and I2P's 60 s.
    pub timeout: Option<Duration>,
    /// Wait before opening.
    pub delay: Option<Duration>,
    /// Wait at random before each piece that is sent.
    pub jitter: Option<Jitter>,
    /// What is sent is padded to multiples of so many bytes.
    pub pad_bytes: Option<u32>,
    /// Both directions together, bytes a second.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// The flow ends after so many bytes, both directions together.
    pub max_bytes: Option<u64>,
    /// Flows with different keys share no circuit.
    pub isolate: Vec<String>,
    /// Shown in `flows` and `why`.
    pub label: Option<String>,
    /// What carries the connection to the first node; none takes any.
    pub carrier: Option<CarrierKind>,
}

/// A distribution of waits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "distribution", rename_all = "lowercase")]
pub enum Jitter {
    /// Between nothing and `max`, all alike.
    Uniform {
        /// The longest wait.
        max: Duration,
    },
    /// Exponential; cut off at ten times the mean.
    Exp {
        /// The mean wait.
        mean: Duration,
    },
}

impl Tunnel {
    /// Which kind of tunnel this is.
    pub fn kind(&self) -> TunnelKind {
        match self {
            // It is no stronger than what it is to become.
            Self::Direct { .. } | Self::Punch { .. } => TunnelKind::Direct,
            Self::Socks { .. } => TunnelKind::Socks,
            Self::Relay { .. } => TunnelKind::Relay,
            Self::Onion { .. } => TunnelKind::Onion,
            Self::Tor => TunnelKind::Tor,
            Self::I2p { .. } => TunnelKind::I2p,
            Self::Block { .. } => TunnelKind::Block,
        }
    }
}

impl Jitter {
    /// The wait that `uniform`, drawn from 0 to below 1, stands for.
    pub fn wait(self, uniform: f64) -> Duration {
        match self {
            Self::Uniform { max } => max.mul_f64(uniform),
            // The inverse of the distribution function; 1 - x is never 0.
            Self::Exp { mean } => mean.mul_f64((-(1.0 - uniform).ln()).min(10.0)),
        }
    }
}

impl Migrate {
    /// The word for it in scripts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Streams => "streams",
            Self::Nothing => "none",
        }
    }
}

impl TunnelKind {
    /// Each kind, weakest first.
    pub const ALL: [Self; 7] = [
        Self::Direct,
        Self::Socks,
        Self::Relay,
        Self::Onion,
        Self::Tor,
        Self::I2p,
        Self::Block,
    ];

    /// Whether it may not follow `first` in a closed plan.
    pub fn is_weaker_than(self, first: Self) -> bool {
        self.rank() < first.rank()
    }

    /// Its place in the order of strength. Tor and I2P share one: either may stand in for the other.
    fn rank(self) -> u8 {
        match self {
            Self::Direct => 0,
            Self::Socks => 1,
            Self::Relay => 2,
            Self::Onion => 3,
            Self::Tor | Self::I2p => 4,
            Self::Block => 5,
        }
    }

    /// The word for it in scripts, metrics and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Socks => "socks",
            Self::Relay => "relay",
            Self::Onion => "onion",
            Self::Tor => "tor",
            Self::I2p => "i2p",
            Self::Block => "block",
        }
    }
}

impl Plan {
    /// A plan that ends the flow.
    pub fn block(why: impl Into<String>) -> Self {
        Self::single(Tunnel::Block { why: why.into() })
    }

    /// A plan of one tunnel.
    pub fn single(tunnel: Tunnel) -> Self {
        Self {
            steps: vec![Step {
                tunnels: vec![tunnel],
                marks: Marks::default(),
            }],
            closed: false,
            stick: None,
            migrate: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_stays_within_its_distribution() {
        let second = Duration::from_secs(1);
        let (uniform, exp) = (
            Jitter::Uniform { max: second },
            Jitter::Exp { mean: second },
        );
        assert_eq!(
            (uniform.wait(0.0), exp.wait(0.0)),
            (Duration::ZERO, Duration::ZERO)
        );
        assert_eq!(uniform.wait(0.5), second / 2);
        assert_eq!(exp.wait(1.0 - (-1.0_f64).exp()).as_millis(), 1000);
        let almost_one = 1.0 - f64::EPSILON;
        assert!(uniform.wait(almost_one) <= second);
        assert_eq!(exp.wait(almost_one), second * 10, "cut off");
    }
}
