//! The routes: each kind of tunnel that is measured, over each carrier.

use wormholes_proto::{CarrierKind, Host, Target};

/// How many streams bulk is sent over.
pub(crate) const STREAMS: [usize; 2] = [1, 8];

/// A kind of tunnel, with what carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// A local dial.
    Direct,
    /// To a peer.
    Over(CarrierKind, Tunnel),
}

/// A tunnel to a service of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tunnel {
    /// Straight there.
    Service,
    /// Through a relay.
    Relay,
    /// Over one hop, the peer itself.
    Onion1,
    /// Over three hops, of which the peer is the last.
    Onion3,
}

impl Tunnel {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Service, Self::Relay, Self::Onion1, Self::Onion3];

    /// The label of its entrance, which the script decides by.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Relay => "relay",
            Self::Onion1 => "onion1",
            Self::Onion3 => "onion3",
        }
    }

    /// The service of the node that it leads to.
    pub(crate) fn target(self) -> Target {
        let node = match self {
            Self::Service | Self::Onion1 | Self::Onion3 => "server",
            Self::Relay => "friend",
        };
        Target::new(Host::Name(format!("load.{node}.wh")), 80)
    }
}

impl Route {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 9] = [
        Self::Direct,
        Self::Over(CarrierKind::Tcp, Tunnel::Service),
        Self::Over(CarrierKind::Quic, Tunnel::Service),
        Self::Over(CarrierKind::Quic, Tunnel::Relay),
        Self::Over(CarrierKind::Tcp, Tunnel::Relay),
        Self::Over(CarrierKind::Quic, Tunnel::Onion1),
        Self::Over(CarrierKind::Tcp, Tunnel::Onion1),
        Self::Over(CarrierKind::Quic, Tunnel::Onion3),
        Self::Over(CarrierKind::Tcp, Tunnel::Onion3),
    ];

    /// As rows call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "local direct",
            Self::Over(CarrierKind::Quic, Tunnel::Service) => "service over QUIC",
            Self::Over(CarrierKind::Tcp, Tunnel::Service) => "service over TCP carrier",
            Self::Over(CarrierKind::Quic, Tunnel::Relay) => "relay over QUIC",
            Self::Over(CarrierKind::Tcp, Tunnel::Relay) => "relay over TCP",
            Self::Over(CarrierKind::Quic, Tunnel::Onion1) => "onion(1) over QUIC",
            Self::Over(CarrierKind::Tcp, Tunnel::Onion1) => "onion(1) over TCP",
            Self::Over(CarrierKind::Quic, Tunnel::Onion3) => "onion(3) over QUIC",
            Self::Over(CarrierKind::Tcp, Tunnel::Onion3) => "onion(3) over TCP",
        }
    }
}
