//! Addresses that a node never dials for others.
//!
//! Pure functions on addresses; names are not known here. The rule above them: resolve, check
//! each address, dial exactly an address that was checked. Forms that carry an IPv4 address inside
//! an IPv6 one are banned as a whole, whatever they carry, because what lies behind them is the
//! translator's choice.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{PoisonError, RwLock},
};

use thiserror::Error;

pub(crate) use wormholes_proto::Transport;

/// Why an address is never dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub(crate) enum Ban {
    /// This machine.
    #[error("loopback address")]
    Loopback,
    /// A private network (RFC 1918, RFC 4193).
    #[error("private address")]
    Private,
    /// One link (RFC 3927, RFC 4291).
    #[error("link-local address")]
    LinkLocal,
    /// Between a provider and its customers (RFC 6598).
    #[error("carrier-grade NAT address")]
    SharedNat,
    /// Where clouds serve credentials.
    #[error("cloud metadata address")]
    Metadata,
    /// Nobody in particular.
    #[error("unspecified address")]
    Unspecified,
    /// Many at once.
    #[error("multicast or broadcast address")]
    Multicast,
    /// Benchmarks, documentation, protocol assignments, future use (RFC 6890).
    #[error("reserved address")]
    Reserved,
    /// An IPv4 address inside an IPv6 one: mapped, compatible, NAT64, 6to4, Teredo, ISATAP.
    #[error("translated address")]
    Translated,
    /// An address and port that this node itself listens at.
    #[error("the node's own address")]
    Own,
}

impl Ban {
    /// Whether `allow_private` of config.toml lifts it: networks that an intranet may mean.
    pub(crate) fn is_private(self) -> bool {
        match self {
            Self::Loopback | Self::Private | Self::LinkLocal | Self::SharedNat => true,
            Self::Metadata
            | Self::Unspecified
            | Self::Multicast
            | Self::Reserved
            | Self::Translated
            | Self::Own => false,
        }
    }
}

/// Says why `ip` is banned for exits; `None` allows it.
pub(crate) fn banned(ip: IpAddr, allow_private: bool) -> Option<Ban> {
    let ban = match ip {
        IpAddr::V4(ip) => banned_v4(ip),
        IpAddr::V6(ip) => banned_v6(ip),
    };
    ban.filter(|ban| !(allow_private && ban.is_private()))
}

fn banned_v4(ip: Ipv4Addr) -> Option<Ban> {
    let ban = match ip.octets() {
        [0, 0, 0, 0] => Ban::Unspecified,
        // Amazon, Google, Azure and others; Alibaba; Oracle.
        [169, 254, 169, 254] | [100, 100, 100, 200] | [192, 0, 0, 192] => Ban::Metadata,
        // Amazon's, for containers and pods.
        [169, 254, 170, 2 | 23] => Ban::Metadata,
        // Azure's wire server.
        [168, 63, 129, 16] => Ban::Metadata,
        [127, ..] => Ban::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Ban::Private,
        [169, 254, ..] => Ban::LinkLocal,
        [100, 64..=127, ..] => Ban::SharedNat,
        [0, ..] | [192, 0, 0, _] | [192, 0, 2, _] | [198, 18..=19, ..] => Ban::Reserved,
        [192, 88, 99, _] => Ban::Translated,
        [198, 51, 100, _] | [203, 0, 113, _] => Ban::Reserved,
        [224..=239, ..] | [255, 255, 255, 255] => Ban::Multicast,
        [240..=255, ..] => Ban::Reserved,
        _ => return None,
    };
    Some(ban)
}

fn banned_v6(ip: Ipv6Addr) -> Option<Ban> {
    let ban = match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Ban::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => Ban::Loopback,
        // Compatible, mapped, and SIIT's translated form (RFC 4291, RFC 2765).
        [0, 0, 0, 0, 0, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => Ban::Translated,
        [0x64, 0xff9b, ..] => Ban::Translated,
        [0x2002, ..] | [0x2001, 0, ..] => Ban::Translated,
        [_, _, _, _, 0 | 0x200, 0x5efe, _, _] => Ban::Translated,
        // Amazon's and Google's metadata servers over IPv6.
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254 | 0x23] | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254] => {
            Ban::Metadata
        }
        [0xfc00..=0xfdff, ..] => Ban::Private,
        [0xfe80..=0xfebf, ..] => Ban::LinkLocal,
        // Site-local, deprecated by RFC 3879, still routed in some places.
        [0xfec0..=0xfeff, ..] => Ban::Private,
        [0xff00..=0xffff, ..] => Ban::Multicast,
        // ORCHID, benchmarks, the other IETF assignments, documentation (RFC 3849, RFC 9637).
        [0x2001, 0x1..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Ban::Reserved,
        // Only 2000::/3 is global unicast.
        [0x2000..=0x3fff, ..] => return None,
        _ => Ban::Reserved,
    };
    Some(ban)
}

/// The sockets of this node, which nobody reaches through it: else a flow could loop, or pass for
/// a local program at an entrance.
#[derive(Debug, Default)]
pub(crate) struct OwnSockets {
    sockets: RwLock<Vec<(Transport, SocketAddr)>>,
}

impl OwnSockets {
    /// Adds a socket where this node takes what comes. The list grows with the config, and with the
    /// associations of programs while they last.
    pub(crate) fn add(&self, transport: Transport, socket: SocketAddr) {
        let mut sockets = self.sockets.write().unwrap_or_else(PoisonError::into_inner);
        if !sockets.contains(&(transport, socket)) {
            sockets.push((transport, socket));
        }
    }

    /// Takes a socket out that is closed.
    pub(crate) fn remove(&self, transport: Transport, socket: SocketAddr) {
        let mut sockets = self.sockets.write().unwrap_or_else(PoisonError::into_inner);
        sockets.retain(|own| *own != (transport, socket));
    }

    /// Whether dialling `target` would reach this node. A socket on an unspecified address is at
    /// each address of the machine, so that its port counts on every local address.
    pub(crate) fn contains(&self, transport: Transport, target: SocketAddr) -> bool {
        let ip = target.ip().to_canonical();
        self.sockets
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter(|(own_transport, own)| {
                *own_transport == transport && own.port() == target.port()
            })
            .any(|(_, own)| {
                let own_ip = own.ip().to_canonical();
                own_ip == ip || ip.is_unspecified() || (own_ip.is_unspecified() && is_local(ip))
            })
    }
}

/// Whether `ip` belongs to this machine: only local addresses can be bound.
pub(crate) fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || std::net::UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<Ban>, expected_with_private: Option<Ban>) {
        let ip = text.parse().unwrap();
        assert_eq!(banned(ip, false), expected, "{text}");
        assert_eq!(
            banned(ip, true),
            expected_with_private,
            "{text} allow_private"
        );
    }

    fn always(ban: Ban, addresses: &[&str]) {
        for text in addresses {
            check(text, Some(ban), Some(ban));
        }
    }

    fn unless_private(ban: Ban, addresses: &[&str]) {
        for text in addresses {
            check(text, Some(ban), None);
        }
    }

    #[test]
    fn local_networks_are_banned_unless_private_ones_are_allowed() {
        unless_private(
            Ban::Loopback,
            &["127.0.0.1", "127.0.0.0", "127.255.255.255", "::1"],
        );
        unless_private(
            Ban::Private,
            &[
                "10.0.0.0",
                "10.255.255.255",
                "172.16.0.1",
                "172.31.255.255",
                "192.168.0.1",
                "192.168.255.255",
                "fc00::",
                "fd12:3456::1",
                "fdff:ffff::1",
                "fec0::1",
                "feff::1",
            ],
        );
        unless_private(
            Ban::LinkLocal,
            &[
                "169.254.0.1",
                "169.254.169.253",
                "169.254.255.255",
                "fe80::1",
                "febf:ffff::1",
            ],
        );
        unless_private(
            Ban::SharedNat,
            &["100.64.0.0", "100.100.100.199", "100.127.255.255"],
        );
    }

    #[test]
    fn what_no_intranet_means_is_always_banned() {
        always(Ban::Unspecified, &["0.0.0.0", "::"]);
        always(
            Ban::Metadata,
            &[
                "169.254.169.254",
                "169.254.170.2",
                "169.254.170.23",
                "100.100.100.200",
                "192.0.0.192",
                "168.63.129.16",
                "fd00:ec2::254",
                "fd00:ec2::23",
                "fd20:ce::254",
            ],
        );
        always(
            Ban::Multicast,
            &[
                "224.0.0.1",
                "239.255.255.250",
                "255.255.255.255",
                "ff02::1",
                "ff0e::1",
                "ffff::",
            ],
        );
        always(
            Ban::Reserved,
            &[
                "0.0.0.1",
                "0.255.255.255",
                "192.0.0.1",
                "192.0.2.1",
                "198.18.0.1",
                "198.19.255.255",
                "198.51.100.7",
                "203.0.113.7",
                "240.0.0.1",
                "255.255.255.254",
                "2001:db8::1",
                "2001:2::1",
                "2001:10::1",
                "2001:20::1",
                "3fff::1",
                "100::1",
                "4000::1",
                "5f00::1",
                "fe00::1",
            ],
        );
    }

    #[test]
    fn every_form_that_hides_an_ipv4_address_is_banned() {
        always(
            Ban::Translated,
            &[
                "::ffff:127.0.0.1",
                "::ffff:10.0.0.1",
                "::ffff:169.254.169.254",
                "::ffff:8.8.8.8",
                "::ffff:7f00:1",
                "::127.0.0.1",
                "::a00:1",
                "::2",
                "::ffff:0:127.0.0.1",
                "64:ff9b::127.0.0.1",
                "64:ff9b::8.8.8.8",
                "64:ff9b::a9fe:a9fe",
                "64:ff9b:1::7f00:1",
                "64:ff9b:1:ffff::10.0.0.1",
                "2002:7f00:1::",
                "2002:a9fe:a9fe::1",
                "2002:808:808::1",
                "2001::1",
                "2001:0:7f00:1::",
                "fe80::5efe:7f00:1",
                "fe80::200:5efe:a00:1",
                "192.88.99.1",
            ],
        );
    }

    #[test]
    fn neighbours_of_banned_blocks_pass() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "169.253.255.255",
            "169.255.0.1",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "192.167.255.255",
            "192.169.0.1",
            "198.17.255.255",
            "198.20.0.0",
            "203.0.112.1",
            "203.0.114.1",
            "223.255.255.255",
            "168.63.129.17",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00::1",
            "2003::1",
        ] {
            check(text, None, None);
        }
    }

    /// Spellings that libc takes for addresses never become one here: they are refused as names.
    #[test]
    fn spellings_of_addresses_are_refused_or_canonical() {
        for text in [
            "2130706433",
            "0x7f000001",
            "0x7f.0.0.1",
            "0177.0.0.1",
            "127.1",
            "127.0.1",
            "017700000001",
            "0",
            "1.2.3.4.5",
            "256.0.0.1",
            "127.0.0.1.0x0",
            "[::1",
            "0x7f.1",
        ] {
            assert!(wormholes_proto::Host::parse(text).is_err(), "{text}");
        }
        for text in [
            "127.0.0.1",
            "[::1]",
            "::1",
            "[::ffff:127.0.0.1]",
            "0:0:0:0:0:0:0:1",
        ] {
            let host = wormholes_proto::Host::parse(text).unwrap();
            let wormholes_proto::Host::Ip(ip) = host else {
                panic!("{text} is an address");
            };
            assert!(banned(ip, false).is_some(), "{text}");
        }
    }

    fn contains(own: &OwnSockets, target: &str) -> bool {
        own.contains(Transport::Tcp, target.parse().unwrap())
    }

    /// Two programs may have the same port, one of TCP and one of UDP.
    #[test]
    fn a_port_of_the_other_transport_is_anybodys() {
        for (mine, other) in [
            (Transport::Tcp, Transport::Udp),
            (Transport::Udp, Transport::Tcp),
        ] {
            let own = OwnSockets::default();
            let socket = "127.0.0.1:4433".parse().unwrap();
            own.add(mine, socket);
            assert!(own.contains(mine, socket));
            assert!(!own.contains(other, socket));
        }
    }

    #[test]
    fn own_sockets_are_found_in_every_form() {
        let own = OwnSockets::default();
        own.add(Transport::Tcp, "127.0.0.1:1080".parse().unwrap());
        own.add(Transport::Tcp, "0.0.0.0:4433".parse().unwrap());
        for target in [
            "127.0.0.1:1080",
            "0.0.0.0:1080",
            "[::]:1080",
            "[::ffff:127.0.0.1]:1080",
            "127.0.0.1:4433",
            "127.9.0.1:4433",
            "[::1]:4433",
        ] {
            assert!(contains(&own, target), "{target}");
        }
        for target in ["127.0.0.1:1081", "127.0.0.2:1080", "192.0.2.1:4433"] {
            assert!(!contains(&own, target), "{target}");
        }
    }
}
