//! The ways that flows are told to take, each with where packets may go for it.

use super::programs::Program::{
    self, Associate, Connect, Dig, I2p, Onion, Resolve, ResolveHidden, Web,
};
use crate::watched::AT_HOME;

/// One way, and the client that takes it.
pub(super) struct Way {
    /// The client's name.
    pub(super) name: &'static str,
    pub(super) script: &'static str,
    /// Whom it may send to.
    pub(super) right: &'static [Right],
    /// What goes on at it all the time.
    pub(super) programs: &'static [Program],
    /// Those that are served while everybody lives, without an I2P router, and without Tor either.
    pub(super) serves: &'static [Program],
    pub(super) serves_without_i2p: &'static [Program],
    pub(super) serves_without_both: &'static [Program],
}

/// Whom a client may send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    /// Tor's relays, at their OR ports.
    Tor,
    /// Its I2P router, by SAM.
    I2p,
    /// The upstream proxy, which is not there.
    Proxy,
    /// The web server and the name server, for flows that the rules send straight there.
    Internet,
}

const ALL: &[Right] = &[Right::Tor, Right::I2p, Right::Internet];
/// What is asked where the rules send some flows straight: not by dig, whose datagrams hold what they
/// are told to hold.
const ASKED: &[Program] = &[Web, Onion, I2p, ResolveHidden, Associate];

pub(super) const WAYS: [Way; 6] = [
    Way {
        name: "by-tor",
        script: r#"fn route(c) { tor().timeout("6s").closed() }"#,
        right: &[Right::Tor],
        programs: &[
            Web,
            Onion,
            Connect,
            Resolve,
            ResolveHidden,
            I2p,
            Dig,
            Associate,
        ],
        serves: &[Web, Onion, Connect, Resolve],
        serves_without_i2p: &[Web, Onion, Connect, Resolve],
        serves_without_both: &[],
    },
    Way {
        name: "by-i2p",
        script: r#"fn route(c) { i2p().timeout("8s").closed() }"#,
        right: &[Right::I2p],
        programs: &[I2p, Web, Onion, ResolveHidden, Dig, Associate],
        serves: &[I2p],
        serves_without_i2p: &[],
        serves_without_both: &[],
    },
    Way {
        name: "closed",
        script: r#"fn route(c) { socks("9.8.7.2:1080").timeout("2s").closed() }"#,
        right: &[Right::Proxy],
        programs: &[Web, Onion, I2p, Connect, ResolveHidden, Dig, Associate],
        serves: &[],
        serves_without_i2p: &[],
        serves_without_both: &[],
    },
    Way {
        name: "by-name",
        script: r#"
fn route(c) {
    if c.host.ends_with(".onion") { return tor().timeout("6s").closed(); }
    if c.host.ends_with(".i2p") { return i2p().timeout("8s").closed(); }
    direct()
}"#,
        right: ALL,
        programs: ASKED,
        serves: &[Web, Onion, I2p],
        serves_without_i2p: &[Web, Onion],
        serves_without_both: &[Web],
    },
    // The mistakes show when such a name is asked for, and not before.
    Way {
        name: "mistaken",
        script: r#"
fn route(c) {
    let groups = ["one"];
    if c.host.ends_with(".onion") { return tor(#{ isolate: groups[1] }).closed(); }
    if c.host.ends_with(".i2p") { return i2p(#{ isolate: groups[1] }).closed(); }
    direct()
}"#,
        right: ALL,
        programs: ASKED,
        serves: &[Web],
        serves_without_i2p: &[Web],
        serves_without_both: &[Web],
    },
    Way {
        name: "forgetful",
        script: "fn route(c) { direct() }",
        right: ALL,
        programs: ASKED,
        serves: &[Web],
        serves_without_i2p: &[Web],
        serves_without_both: &[Web],
    },
];

impl Way {
    pub(super) fn has(&self, right: Right) -> bool {
        self.right.contains(&right)
    }

    /// Whether nothing may go straight to the internet.
    pub(super) fn is_shut(&self) -> bool {
        !self.has(Right::Internet)
    }

    /// Counts what leaves the client's host: as `right` what goes to whom it may, as `escaped` all else.
    pub(super) fn counters(&self) -> String {
        let right = self.right.iter().map(|right| {
            let to = right.packets();
            format!("{to} counter name right accept\n")
        });
        // To whom answers a program that was killed.
        let told = if self.is_shut() {
            ""
        } else {
            "ip daddr 9.8.7.1 icmp type destination-unreachable accept"
        };
        format!(
            "table inet escapes {{
                counter right {{ }}
                counter escaped {{ }}
                chain output {{
                    type filter hook output priority 0
                    {AT_HOME}
                    {}
                    {told}
                    counter name escaped
                }}
            }}",
            right.collect::<String>()
        )
    }
}

impl Right {
    /// As nft tells them.
    fn packets(self) -> &'static str {
        match self {
            Self::Tor => "ip daddr 9.64.0.0/12 tcp dport 5100",
            Self::I2p => "ip daddr 45.15.7.1 tcp dport 7656",
            Self::Proxy => "ip daddr 9.8.7.2 tcp dport 1080",
            Self::Internet => "ip daddr 9.8.7.1 meta l4proto { tcp, udp } th dport { 53, 80 }",
        }
    }
}
