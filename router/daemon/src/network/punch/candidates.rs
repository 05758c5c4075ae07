//! Where a peer may call this node, and which of a peer's candidates this node dials.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::timeout;
use wormholes_proto::{
    Answer, CarrierKind, MAX_CANDIDATES, Open, Transport, decode_mirrored, is_dialable,
};

use super::{Network, PunchFailure};
use crate::{
    ban::{self, Ban},
    carrier::Link,
    pipe::PipeError,
};

/// Relays that are asked at once from where they see this node: one would do, a second tells whether a
/// NAT gives each another port.
const MAX_MIRRORS: usize = 3;
/// A peer is at one port, or at two, where its NAT has changed it: what names more of one machine is
/// after that machine.
const MAX_OF_IP: usize = 2;
/// A relay that takes longer is left out.
const MIRROR_TIMEOUT: Duration = Duration::from_secs(1);

/// What a peer is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidates {
    /// One to [`MAX_CANDIDATES`].
    pub(crate) addresses: Vec<SocketAddr>,
    /// Relays see this node at the same address and different ports.
    pub(crate) port_changes: bool,
}

impl Network {
    /// Where a peer may call this node: where its relays see it, `relay` before the others, where it is
    /// in its own network, and what its record says; private addresses only to who may be `near`.
    ///
    /// # Errors
    /// [`PunchFailure::NoCandidates`].
    pub(super) async fn candidates(
        &self,
        relay: &Link,
        near: bool,
    ) -> Result<Candidates, PunchFailure> {
        let mut mirrors = vec![relay.clone()];
        let known = self.peers.known();
        let registered = known.iter().filter(|peer| peer.register);
        mirrors.extend(registered.flat_map(|peer| self.peers.links_to(&peer.id)));
        mirrors.retain(|link| link.carrier() == CarrierKind::Quic && !link.goes_through_tor());
        let mut seen = Vec::new();
        mirrors.retain(|link| {
            let is_new = !seen.contains(&link.peer());
            seen.push(link.peer());
            is_new
        });
        mirrors.truncate(MAX_MIRRORS);
        let mirrored = join_all(mirrors.iter().map(|link| self.mirrored(link))).await;
        let mirrored: Vec<SocketAddr> = mirrored.into_iter().flatten().collect();
        let port_changes = do_ports_change(&mirrored);
        let own = mirrors.iter().filter_map(|link| self.own_address(link));
        let record = self.own_record();
        let told = record.record().addresses.iter().copied();
        let all = mirrored.iter().copied().chain(own).chain(told);
        let mut addresses = chosen(all, near);
        addresses.truncate(MAX_CANDIDATES);
        match addresses.is_empty() {
            true => Err(PunchFailure::NoCandidates),
            false => Ok(Candidates {
                addresses,
                port_changes,
            }),
        }
    }

    /// What of a peer's candidates may be dialled: nothing on this machine, nor where it is known to be,
    /// and of private networks only those of a peer that may be `near`.
    pub(super) fn permitted(&self, candidates: Vec<SocketAddr>, near: bool) -> Vec<SocketAddr> {
        let mut candidates = chosen(candidates.into_iter().take(MAX_CANDIDATES), near);
        candidates.retain(|address| {
            !self.own_sockets.contains(Transport::Udp, *address) && !self.is_here(address.ip())
        });
        candidates
    }

    /// From where the other end of `link` sees this node.
    async fn mirrored(&self, link: &Link) -> Option<SocketAddr> {
        if let Some(seen) = link.mirrored() {
            return Some(seen);
        }
        let ask = async {
            let mut pipe = link.open().await.ok()?;
            pipe.writer.send_open(&Open::Mirror).await.ok()?;
            let answer = pipe.reader.read_answer().await;
            let _ = pipe.writer.finish().await;
            let seen = answer.and_then(|answer| match answer {
                Answer::Accepted(body) => decode_mirrored(&body)
                    .map(Some)
                    .map_err(|_| PipeError::Malformed("address")),
                // It is an older one.
                Answer::Refused(_) => Ok(None),
            });
            self.counters.answered(seen).ok()?
        };
        let seen = timeout(MIRROR_TIMEOUT, link.while_alive(ask)).await;
        let seen = seen.ok()?.ok()??;
        link.set_mirrored(seen);
        Some(seen)
    }

    /// From where this node calls the other end of `link`, in its own network.
    fn own_address(&self, link: &Link) -> Option<SocketAddr> {
        let there = link.remote_address();
        let there = SocketAddr::new(there.ip().to_canonical(), there.port());
        let mut own = self.carrier.calling_address(there.ip())?;
        if own.ip().is_unspecified() {
            own.set_ip(address_towards(there)?);
        }
        Some(SocketAddr::new(own.ip().to_canonical(), own.port()))
    }
}

/// Those that are candidates, each once, and no more than [`MAX_OF_IP`] of one machine.
fn chosen(addresses: impl Iterator<Item = SocketAddr>, near: bool) -> Vec<SocketAddr> {
    let mut chosen: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        let of_ip = chosen.iter().filter(|other| other.ip() == address.ip());
        let has_place = of_ip.count() < MAX_OF_IP;
        if has_place && is_candidate(&address, near) && !chosen.contains(&address) {
            chosen.push(address);
        }
    }
    chosen
}

/// Whether a node of the internet may be there, or one of a private network, if it may be `near`. A
/// peer's word leads to nothing on this machine, nor to one link alone.
fn is_candidate(address: &SocketAddr, near: bool) -> bool {
    let ban = ban::banned(address.ip(), false);
    let is_near = matches!(ban, Some(Ban::Private | Ban::SharedNat));
    is_dialable(address) && (ban.is_none() || (near && is_near))
}

/// Whether one address of this node is seen with several ports.
fn do_ports_change(seen: &[SocketAddr]) -> bool {
    let differs =
        |one: &SocketAddr, other: &SocketAddr| one.ip() == other.ip() && one.port() != other.port();
    seen.iter()
        .any(|one| seen.iter().any(|other| differs(one, other)))
}

/// From which address the system would send there. Nothing is sent.
fn address_towards(there: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match there {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(there).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::connect::tests::network_with;

    #[test]
    fn candidates_are_where_a_node_of_the_internet_or_of_a_private_network_may_be() {
        let check = |text: &str, expected: bool, expected_near: bool| {
            let address = text.parse().unwrap();
            assert_eq!(is_candidate(&address, false), expected, "{text}");
            assert_eq!(is_candidate(&address, true), expected_near, "{text} near");
        };
        for text in ["1.1.1.1:4433", "[2a00::1]:4433"] {
            check(text, true, true);
        }
        for text in [
            "192.168.1.7:4433",
            "10.0.0.1:4433",
            "172.16.0.1:4433",
            "100.64.0.1:1",
            "[fd12::1]:4433",
        ] {
            check(text, false, true);
        }
        for text in [
            "127.0.0.1:4433",
            "0.0.0.0:4433",
            "1.1.1.1:0",
            "169.254.1.1:4433",
            "169.254.169.254:80",
            "224.0.0.1:4433",
            "255.255.255.255:4433",
            "203.0.113.5:4433",
            "[::1]:4433",
            "[fe80::1]:4433",
            "[ff02::1]:4433",
            "[64:ff9b::a00:1]:4433",
            "[100::1:2:3:4]:4433",
        ] {
            check(text, false, false);
        }
    }

    #[test]
    fn of_one_machine_two_ports_are_called_and_each_once() {
        let parse = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let all = parse(&[
            "1.1.1.1:1",
            "1.1.1.1:1",
            "10.0.0.1:1",
            "1.1.1.1:2",
            "1.1.1.1:3",
            "[2a00::1]:1",
        ]);
        let expected = parse(&["1.1.1.1:1", "1.1.1.1:2", "[2a00::1]:1"]);
        assert_eq!(chosen(all.into_iter(), false), expected);
    }

    #[tokio::test]
    async fn nothing_where_this_machine_is_known_to_be_is_called() {
        let (_dir, network) = network_with(|config| {
            config.node.advertise = vec!["1.1.1.1:4433".parse().unwrap()];
        });
        let texts = ["1.1.1.1:53", "1.1.1.2:53"];
        let [own, other] = texts.map(|text| text.parse::<SocketAddr>().unwrap());
        assert_eq!(network.permitted(vec![own, other], false), [other]);
        network.shutdown().await;
    }

    #[test]
    fn a_port_changes_where_one_address_has_several() {
        let seen = |texts: &[&str]| {
            let seen: Vec<_> = texts.iter().map(|text| text.parse().unwrap()).collect();
            do_ports_change(&seen)
        };
        assert!(!seen(&[]));
        assert!(!seen(&["1.1.1.1:1", "1.1.1.1:1", "[2a00::1]:2"]));
        assert!(seen(&["1.1.1.1:1", "1.1.1.1:2"]));
        assert!(!seen(&["1.1.1.1:1", "1.1.1.2:2"]), "two ways out");
    }

    #[test]
    fn the_own_address_towards_a_place_is_one_of_this_machine() {
        let here = address_towards("127.0.0.1:9".parse().unwrap());
        assert_eq!(here, Some(Ipv4Addr::LOCALHOST.into()));
    }
}
