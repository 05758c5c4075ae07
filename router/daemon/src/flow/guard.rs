//! What no script can lift: names that must never leave in clear, this node's own sockets, and
//! addresses that nobody else may send this node to. Fail closed: a tunnel that could show such a
//! name to an outside resolver, ask the wrong node, come back here, or reach into this node's own
//! neighbourhood on another's word, does not open.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;
use wormholes_proto::{Host, NodeId, Target, Transport, is_special_use, sam::I2pName};
use wormholes_rules::Tunnel;

use crate::network::Network;

/// A tunnel that a script chose and the host forbids.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Forbidden {
    /// Dialled from here, by an exit or by a SOCKS server, the name would reach a resolver.
    #[error("{0} tunnels would show this special-use name to an outside resolver")]
    SpecialUse(&'static str),
    /// I2P has its own names, and this is none of them.
    #[error("i2p tunnels lead to names that end with .i2p, and nowhere else")]
    NotOfI2p,
    /// To an exit the name means the exit itself.
    #[error("localhost is nothing for Tor: it would mean the exit")]
    Localhost,
    /// Looked up, the name would reach a resolver.
    #[error("special-use names are not looked up")]
    Lookup,
    /// Another node gave this address, which is of a kind that nobody dials for others.
    #[error(
        "another node says that the name is at {0} ({1}), which is not dialled from here on its \
         word: let that node dial it"
    )]
    Told(IpAddr, String),
    /// Whoever dials it, the flow would come back, or pass for a local program.
    #[error("the target is a port of this router itself")]
    OwnSocket,
    /// The program at the other end is this daemon.
    #[error("the flow comes from this router itself")]
    Loop,
    /// The name means one node, the tunnel ends at another.
    #[error("the tunnel ends at another node than the name means")]
    OtherNode,
    /// The caller is known by an alias, and this tunnel would show the node.
    #[error("a message under an alias travels by an onion alone: {0} tunnels show the node")]
    ShowsNode(&'static str),
    /// The caller is known by an alias, and whoever is called knows all flows of a kept destination as
    /// one caller's.
    #[error(
        "a message under an alias does not travel from a kept destination, which is known: leave \
         `keep` out of i2p()"
    )]
    KeptDestination,
    /// The name means no node that is known here.
    #[error("no node of that name is known here")]
    UnknownNode,
}

/// Whether `tunnel` may carry a flow to `host`; `node` is the node that a `.wh` name means.
///
/// # Errors
/// [`Forbidden`].
pub(super) fn check(host: &Host, node: Option<NodeId>, tunnel: &Tunnel) -> Result<(), Forbidden> {
    if let Tunnel::I2p { .. } = tunnel {
        let is_of_i2p = I2pName::of(host).is_some();
        return is_of_i2p.then_some(()).ok_or(Forbidden::NotOfI2p);
    }
    let Some(name) = host.name().filter(|name| is_special_use(name)) else {
        return Ok(());
    };
    let Some(end) = service_end(tunnel) else {
        return match tunnel {
            Tunnel::Block { .. } => Ok(()),
            // No exit hears of it: it is a key, which Tor itself finds.
            Tunnel::Tor if name.ends_with(".onion") => Ok(()),
            Tunnel::Direct { .. }
            | Tunnel::Relay { .. }
            | Tunnel::Punch { .. }
            | Tunnel::Onion { .. }
            | Tunnel::Tor
            | Tunnel::I2p { .. }
            | Tunnel::Socks { .. } => Err(Forbidden::SpecialUse(tunnel.kind().as_str())),
        };
    };
    let is_wh = name == "wh" || name.ends_with(".wh");
    match node {
        _ if !is_wh => Ok(()),
        Some(node) if node == end => Ok(()),
        Some(_) => Err(Forbidden::OtherNode),
        None => Err(Forbidden::UnknownNode),
    }
}

/// Whether an exit of Tor may be asked for `host`: names that mean this machine would mean the exit there.
/// Addresses of that kind Tor refuses by itself.
///
/// # Errors
/// [`Forbidden::Localhost`].
pub(super) fn check_localhost(
    network: &Network,
    host: &Host,
    tunnel: &Tunnel,
) -> Result<(), Forbidden> {
    let private = network.config().tor.network.as_ref();
    if private.is_some_and(|network| network.allow_private) {
        return Ok(());
    }
    match tunnel {
        Tunnel::Tor if host.name().is_some_and(is_localhost) => Err(Forbidden::Localhost),
        // I2P leads to its own names alone; what another node dials, its ban list is for.
        Tunnel::Tor
        | Tunnel::Direct { .. }
        | Tunnel::Relay { .. }
        | Tunnel::Punch { .. }
        | Tunnel::Onion { .. }
        | Tunnel::I2p { .. }
        | Tunnel::Socks { .. }
        | Tunnel::Block { .. } => Ok(()),
    }
}

/// Names that mean whoever looks them up (RFC 6761, section 6.3).
fn is_localhost(name: &str) -> bool {
    // A program that embeds a node may make a `Host::Name` without `Host::parse`.
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// Whether `tunnel` keeps to itself which node opens it.
///
/// # Errors
/// [`Forbidden::ShowsNode`], [`Forbidden::KeptDestination`].
pub(super) fn check_hides(tunnel: &Tunnel) -> Result<(), Forbidden> {
    match tunnel {
        Tunnel::Onion { .. }
        | Tunnel::Tor
        | Tunnel::I2p { keep: None, .. }
        | Tunnel::Block { .. } => Ok(()),
        Tunnel::I2p { keep: Some(_), .. } => Err(Forbidden::KeptDestination),
        Tunnel::Direct { .. }
        | Tunnel::Relay { .. }
        | Tunnel::Punch { .. }
        | Tunnel::Socks { .. } => Err(Forbidden::ShowsNode(tunnel.kind().as_str())),
    }
}

/// Whether `target` is none of this node's own sockets. A name says nothing: where it leads is for
/// the end of the tunnel to find out.
///
/// # Errors
/// [`Forbidden::OwnSocket`].
pub(super) fn check_own(
    network: &Network,
    transport: Transport,
    target: &Target,
) -> Result<(), Forbidden> {
    match target.host {
        Host::Ip(ip) => {
            let address = SocketAddr::new(ip, target.port);
            let own = network.own_sockets().contains(transport, address);
            if own {
                Err(Forbidden::OwnSocket)
            } else {
                Ok(())
            }
        }
        Host::Name(_) => Ok(()),
    }
}

/// Whether `host` may be looked up, wherever.
///
/// # Errors
/// [`Forbidden::Lookup`].
pub(super) fn check_lookup(host: &Host) -> Result<(), Forbidden> {
    match host.name() {
        Some(name) if is_special_use(name) => Err(Forbidden::Lookup),
        Some(_) | None => Ok(()),
    }
}

/// Whether addresses that another node gave may be dialled from here. One that may not spoils all:
/// the scripts decided on the whole answer, and an honest exit of the open internet names none.
///
/// # Errors
/// [`Forbidden::Told`].
pub(super) fn check_told(
    network: &Network,
    transport: Transport,
    ips: &[IpAddr],
    port: u16,
) -> Result<(), Forbidden> {
    let allow_private = network.config().exit.allow_private;
    ips.iter().try_for_each(|ip| {
        network
            .check_ban(transport, SocketAddr::new(*ip, port), allow_private)
            .map_err(|ban| Forbidden::Told(*ip, ban.to_string()))
    })
}

/// The node whose service the tunnel ends at; none when somebody dials the target.
pub(super) fn service_end(tunnel: &Tunnel) -> Option<NodeId> {
    match tunnel {
        Tunnel::Direct { to, exit: false }
        | Tunnel::Onion {
            to, exit: false, ..
        } => *to,
        Tunnel::Relay {
            to, exit: false, ..
        }
        | Tunnel::Punch {
            to, exit: false, ..
        } => Some(*to),
        Tunnel::Direct { exit: true, .. }
        | Tunnel::Relay { exit: true, .. }
        | Tunnel::Punch { exit: true, .. }
        | Tunnel::Onion { exit: true, .. }
        | Tunnel::I2p { .. }
        | Tunnel::Socks { .. }
        | Tunnel::Tor
        | Tunnel::Block { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        config::Config, counters::Counters, gatekeeper::OpenGate, network::NetworkOptions,
    };

    const BOB: NodeId = NodeId::from_bytes([1; 32]);
    const EVE: NodeId = NodeId::from_bytes([2; 32]);

    fn tunnels(to: Option<NodeId>, exit: bool) -> Vec<Tunnel> {
        let onion = Tunnel::Onion {
            hops: 3,
            via: None,
            to,
            exit,
            friends_only: false,
        };
        let mut tunnels = vec![Tunnel::Direct { to, exit }, onion];
        if let Some(to) = to {
            tunnels.push(Tunnel::Relay {
                via: None,
                to,
                exit,
            });
            tunnels.push(Tunnel::Punch {
                via: None,
                to,
                exit,
            });
        }
        tunnels
    }

    fn check_all(name: &str, tunnels: &[Tunnel], expected: &Result<(), Forbidden>) {
        let host = Host::parse(name).unwrap();
        let node = (name == "web.bob.wh").then_some(BOB);
        for tunnel in tunnels {
            let mut found = check(&host, node, tunnel);
            if let Err(Forbidden::SpecialUse(kind)) = &mut found {
                *kind = "";
            }
            assert_eq!(&found, expected, "{name} by {tunnel:?}");
        }
    }

    #[test]
    fn special_use_names_are_never_dialled_outside() {
        let outside = Err(Forbidden::SpecialUse(""));
        let socks = Tunnel::Socks {
            server: "127.0.0.1:9050".parse().unwrap(),
        };
        for name in [
            "x.onion",
            "a.i2p",
            "printer.local",
            "db.internal",
            "web.bob.wh",
            "tv.home.arpa",
        ] {
            check_all(name, &tunnels(None, false), &outside);
            check_all(name, &tunnels(None, true), &outside);
            check_all(name, &tunnels(Some(BOB), true), &outside);
            check_all(name, std::slice::from_ref(&socks), &outside);
            check_all(name, &[Tunnel::Block { why: String::new() }], &Ok(()));
        }
        check_all("x.onion", &[Tunnel::Tor], &Ok(()));
        for name in [
            "a.i2p",
            "onion",
            "web.bob.wh",
            "printer.local",
            "xonion.internal",
        ] {
            check_all(name, &[Tunnel::Tor], &outside);
        }
        check_all("a.example", &tunnels(None, false), &Ok(()));
        check_all("127.0.0.1", &tunnels(None, true), &Ok(()));
    }

    #[test]
    fn i2p_leads_to_its_own_names_and_nowhere_else() {
        let i2p = Tunnel::I2p {
            keep: None,
            length: None,
            quantity: None,
        };
        let i2p = std::slice::from_ref(&i2p);
        check_all("site.i2p", i2p, &Ok(()));
        check_all("abc.b32.i2p", i2p, &Ok(()));
        for name in [
            "a.example",
            "x.onion",
            "web.bob.wh",
            "printer.local",
            "localhost",
            "i2p",
            "192.0.2.1",
            "127.0.0.1",
            "::1",
        ] {
            check_all(name, i2p, &Err(Forbidden::NotOfI2p));
        }
    }

    #[test]
    fn a_message_under_an_alias_leaves_by_nothing_that_is_known_as_this_nodes() {
        let i2p = |keep: Option<&str>| Tunnel::I2p {
            keep: keep.map(str::to_owned),
            length: None,
            quantity: None,
        };
        let kept = check_hides(&i2p(Some("blog")));
        assert_eq!(kept, Err(Forbidden::KeptDestination));
        for hiding in [i2p(None), Tunnel::Tor] {
            assert_eq!(check_hides(&hiding), Ok(()), "{hiding:?}");
        }
        for tunnel in tunnels(Some(BOB), false) {
            let kind = tunnel.kind().as_str();
            let shows = Err(Forbidden::ShowsNode(kind));
            let expected = if kind == "onion" { Ok(()) } else { shows };
            assert_eq!(check_hides(&tunnel), expected, "{tunnel:?}");
        }
    }

    #[test]
    fn special_use_names_are_never_looked_up() {
        let check = |name: &str| check_lookup(&Host::parse(name).unwrap());
        assert_eq!(check("x.onion"), Err(Forbidden::Lookup));
        assert_eq!(check("bob.wh"), Err(Forbidden::Lookup));
        assert_eq!(check("a.example"), Ok(()));
        assert_eq!(check("192.0.2.1"), Ok(()));
    }

    #[test]
    fn a_wh_name_reaches_its_own_node_only() {
        check_all("web.bob.wh", &tunnels(Some(BOB), false), &Ok(()));
        check_all(
            "web.bob.wh",
            &tunnels(Some(EVE), false),
            &Err(Forbidden::OtherNode),
        );
        check_all(
            "web.carol.wh",
            &tunnels(Some(EVE), false),
            &Err(Forbidden::UnknownNode),
        );
        check_all("x.onion", &tunnels(Some(EVE), false), &Ok(()));
    }

    #[tokio::test]
    async fn no_exit_of_tor_is_asked_for_localhost_unless_it_may_be() {
        for allow_private in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let mut config = Config::default();
            config.node.data_dir = dir.path().join("data");
            config.tor.network = Some(wormholes_tor::PrivateNetwork {
                allow_private,
                ..Default::default()
            });
            let (options, gate) = (NetworkOptions::default(), Arc::new(OpenGate));
            let network = Network::start(config, options, gate, Arc::default()).unwrap();
            let check = |name: &str, tunnel: &Tunnel| {
                check_localhost(&network, &Host::Name(name.to_owned()), tunnel)
            };
            let forbidden = match allow_private {
                true => Ok(()),
                false => Err(Forbidden::Localhost),
            };
            for name in ["localhost", "a.localhost", "a.b.localhost", "A.LocalHost."] {
                assert_eq!(check(name, &Tunnel::Tor), forbidden, "{name}");
                for tunnel in tunnels(Some(BOB), true) {
                    assert_eq!(check(name, &tunnel), Ok(()), "{name}");
                }
            }
            for name in ["localhost.example", "notlocalhost", "a.example"] {
                assert_eq!(check(name, &Tunnel::Tor), Ok(()), "{name}");
            }
            network.shutdown().await;
        }
    }

    /// Whether a node with this setting would dial `ips` on another's word.
    async fn told(allow_private: bool, ips: &[&str]) -> Result<(), Forbidden> {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.data_dir = dir.path().join("data");
        config.exit.allow_private = allow_private;
        let (options, counters) = (NetworkOptions::default(), Arc::<Counters>::default());
        let network = Network::start(config, options, Arc::new(OpenGate), counters).unwrap();
        network.protect_socket(Transport::Tcp, "8.8.4.4:80".parse().unwrap());
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let checked = check_told(&network, Transport::Tcp, &ips, 80);
        network.shutdown().await;
        checked
    }

    #[tokio::test]
    async fn one_address_of_the_ban_list_spoils_what_another_node_said() {
        let public = ["1.1.1.1", "2606:4700::1111"];
        assert_eq!(told(false, &public).await, Ok(()));
        for (bad, why, is_private) in [
            ("127.0.0.1", "loopback address", true),
            ("192.168.1.1", "private address", true),
            ("fd12::1", "private address", true),
            ("fe80::1", "link-local address", true),
            ("169.254.169.254", "cloud metadata address", false),
            ("::ffff:10.0.0.1", "translated address", false),
            ("0.0.0.0", "unspecified address", false),
            ("8.8.4.4", "the node's own address", false),
        ] {
            let forbidden = Err(Forbidden::Told(bad.parse().unwrap(), why.to_owned()));
            for answer in [&[bad, public[0]][..], &[public[0], bad], &[bad]] {
                assert_eq!(told(false, answer).await, forbidden, "{answer:?}");
            }
            let lifted = if is_private { Ok(()) } else { forbidden };
            assert_eq!(told(true, &[bad]).await, lifted, "{bad}");
        }
    }
}
