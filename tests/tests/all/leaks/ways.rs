//! The ways that flows are told to take, each with where packets may go for it.

use std::fmt::Write;

use wormholes_tests::Setup;

use super::scene::{NODES, Nodes, PROXY};
use crate::watched::AT_HOME;

/// One way, and the client that takes it for all its flows.
pub(super) struct Way {
    /// The client's name.
    pub(super) name: &'static str,
    /// In Rhai.
    plan: &'static str,
    /// More keys of `[node]`.
    keys: &'static str,
    /// To whom packets may go, and by what: those of the first node on each step of the plan.
    first: &'static [(&'static str, Carriers)],
    /// The programs that are served while everybody lives.
    pub(super) serves: &'static [Program],
    /// Those that are served without the exit.
    pub(super) serves_without_exit: &'static [Program],
}

type Carriers = &'static [&'static str];
const QUIC: Carriers = &["udp"];
const TCP: Carriers = &["tcp"];
const BOTH: Carriers = &["udp", "tcp"];

/// What goes on all the time at each client; see `programs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    /// curl at the SOCKS5 entrance.
    Socks,
    /// curl at the HTTP entrance.
    Http,
    /// curl to a name whose address the rules ask for first.
    Asked,
    /// curl to an IPv6 address, where nobody is.
    Sixth,
    /// dig at a UDP entrance, whose target is a name.
    Dig,
    /// Datagrams by UDP ASSOCIATE, to a name.
    Associate,
    /// Tor's RESOLVE.
    Resolve,
}

use Program::{Asked, Associate, Dig, Http, Resolve, Socks};

/// All that come to an end.
pub(super) const ALL: &[Program] = &[Socks, Http, Asked, Dig, Associate, Resolve];

pub(super) const WAYS: [Way; 7] = [
    Way {
        name: "by-relay",
        plan: r#"peer("friend").relayed(relay("relay")).exit().timeout("3s").closed()"#,
        keys: "",
        first: &[("relay", BOTH)],
        serves: ALL,
        serves_without_exit: ALL,
    },
    Way {
        name: "by-onion",
        plan: r#"onion(3).via(peer("hop-1")).to(peer("exit")).exit().timeout("3s").closed()"#,
        keys: "",
        first: &[("hop-1", BOTH)],
        serves: ALL,
        serves_without_exit: &[],
    },
    Way {
        name: "by-quic",
        plan: r#"peer("exit").direct().exit().timeout("3s").closed()"#,
        keys: "carriers = [\"quic\"]",
        first: &[("exit", QUIC)],
        serves: ALL,
        serves_without_exit: &[],
    },
    Way {
        name: "by-tcp",
        plan: r#"peer("exit").direct().exit().timeout("3s").closed()"#,
        keys: "carriers = [\"tcp\"]",
        first: &[("exit", TCP)],
        serves: ALL,
        serves_without_exit: &[],
    },
    Way {
        name: "by-socks",
        plan: r#"socks("9.25.0.1:1080").timeout("3s").closed()"#,
        keys: "",
        first: &[(PROXY, TCP)],
        // A SOCKS server of another is asked for streams only.
        serves: &[Socks, Http],
        serves_without_exit: &[Socks, Http],
    },
    Way {
        name: "blocked",
        plan: r#"block("no way")"#,
        keys: "",
        first: &[],
        serves: &[],
        serves_without_exit: &[],
    },
    Way {
        name: "open",
        plan: r#"peer("exit").direct().exit().timeout("400ms")
            .or(peer("friend").relayed(relay("relay")).exit().timeout("3s"))"#,
        keys: "",
        first: &[("exit", BOTH), ("relay", BOTH)],
        serves: ALL,
        serves_without_exit: ALL,
    },
];

impl Way {
    /// Rules that send everything this way.
    pub(super) fn script(&self) -> String {
        script(self.plan)
    }

    /// The client: it knows the addresses of those that its packets may go to, and of nobody else.
    pub(super) fn set_up(&self, setup: Setup, nodes: &Nodes) -> Setup {
        let mut setup = setup.node(self.keys).script("rules.rhai", &self.script());
        for name in NODES {
            let node = nodes.get(name);
            if self.first.iter().any(|(first, _)| *first == name) {
                setup = setup.peer(node, 2);
            } else {
                setup = setup.peer_id(name, node.id(), 2, "");
            }
        }
        setup
    }

    /// Counts what leaves the client's host: as `right` what goes to the first nodes of the plan, as
    /// `leaked` all else, which is then told apart.
    pub(super) fn counters(&self, nodes: &Nodes) -> String {
        let mut right = String::new();
        for (name, carriers) in self.first {
            let address = nodes.address(name);
            let (ip, port) = (address.ip(), address.port());
            for carrier in *carriers {
                let _infallible = writeln!(
                    right,
                    "ip daddr {ip} {carrier} dport {port} counter name right accept"
                );
            }
            // To whom sends to a socket that a killed program had.
            let _infallible = writeln!(
                right,
                "ip daddr {ip} icmp type destination-unreachable accept"
            );
        }
        let counters = [&["right", "leaked"], &LEAKS[..]].concat();
        let counters = counters
            .iter()
            .map(|name| format!("counter {name} {{ }}\n"));
        format!(
            "table inet leaks {{
                {}
                chain output {{
                    type filter hook output priority 0
                    {AT_HOME}
                    {right}
                    counter name leaked
                    meta l4proto {{ tcp, udp }} th dport 53 counter name names accept
                    meta nfproto ipv6 counter name sixth accept
                    meta l4proto tcp counter name streams accept
                    meta l4proto udp counter name datagrams accept
                    counter name others
                }}
            }}",
            counters.collect::<String>()
        )
    }
}

/// Counters of what must not leave: queries for names, IPv6, and the rest of IPv4 by protocol.
pub(super) const LEAKS: [&str; 5] = ["names", "sixth", "streams", "datagrams", "others"];

/// Rules that send everything by `plan`, and have it look one name up.
pub(super) fn script(plan: &str) -> String {
    format!(
        r#"fn route(c) {{
            if c.host == "asked.example" && c.ip == () {{ return need("ip", {plan}); }}
            {plan}
        }}"#
    )
}
