//! Network namespaces: several hosts on one machine, joined by pairs of virtual wires.
//!
//! Needs root. A namespace ends with its value, and its wires with it.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsFd,
    panic::resume_unwind,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::binaries::run;

/// Tells apart the namespaces of one process; the process id tells processes apart.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A host.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

/// The two ends of a wire: addresses in one /24, the first on the first host.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// On the first host.
    pub first: Ipv4Addr,
    /// On the second host.
    pub second: Ipv4Addr,
}

impl Namespace {
    /// Makes a host with loopback up and nothing else.
    ///
    /// # Errors
    /// When this is not root.
    pub fn new() -> Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("wh{}n{number}", std::process::id());
        ip(&["netns", "add", &name])?;
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Its name for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` in it.
    ///
    /// # Errors
    /// When that fails.
    pub fn ip(&self, words: &[&str]) -> Result<()> {
        let mut all = vec!["-n", &self.name];
        all.extend(words);
        ip(&all)
    }

    /// The interface that has this address.
    ///
    /// # Errors
    /// When none has.
    pub fn interface(&self, address: Ipv4Addr) -> Result<String> {
        let to = address.to_string();
        let listed = run(self
            .command("ip")
            .args(["-o", "address", "show", "to", &to]))?;
        // NUMBER: NAME inet ADDRESS ...
        let name = listed.split_whitespace().nth(1);
        Ok(name.context("no such address")?.to_owned())
    }

    /// Runs `nft` in it with these rules.
    ///
    /// # Errors
    /// When they are not accepted.
    pub fn nft(&self, rules: &str) -> Result<()> {
        run(self.command("nft").arg(rules)).map(drop)
    }

    /// Lets nothing pass to this network, or from it, and tells nobody; until [`Self::open`].
    ///
    /// # Errors
    /// When the rules are not accepted.
    pub fn shut(&self, network: &str) -> Result<()> {
        self.nft(&format!(
            "table ip shut {{
                chain output {{
                    type filter hook output priority 0;
                    ip daddr {network} drop
                }}
                chain input {{
                    type filter hook input priority 0;
                    ip saddr {network} drop
                }}
            }}"
        ))
    }

    /// Lets pass again what [`Self::shut`] does not.
    ///
    /// # Errors
    /// When nothing is shut.
    pub fn open(&self) -> Result<()> {
        self.nft("delete table ip shut")
    }

    /// How many packets the counter of this name has seen.
    ///
    /// # Errors
    /// When no rule made it.
    pub fn counted(&self, counter: &str) -> Result<u64> {
        Ok(self.counter(counter)?.0)
    }

    /// How many bytes the counter of this name has seen.
    ///
    /// # Errors
    /// When no rule made it.
    pub fn counted_bytes(&self, counter: &str) -> Result<u64> {
        Ok(self.counter(counter)?.1)
    }

    fn counter(&self, counter: &str) -> Result<(u64, u64)> {
        let listed = run(self.command("nft").args(["list", "counters"]))?;
        let words: Vec<&str> = listed.split_whitespace().collect();
        // counter NAME { packets NUMBER bytes NUMBER }
        let found = words.windows(7).find_map(|words| match words {
            ["counter", name, "{", "packets", packets, "bytes", bytes] if *name == counter => {
                Some((packets, bytes))
            }
            _ => None,
        });
        let (packets, bytes) = found.context("no such counter")?;
        Ok((packets.parse()?, bytes.parse()?))
    }

    /// Connects from it.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(&self, address: SocketAddr) -> Result<tokio::net::TcpStream> {
        let stream = self.enter(|| Ok(TcpStream::connect(address)?))?;
        stream.set_nonblocking(true)?;
        Ok(tokio::net::TcpStream::from_std(stream)?)
    }

    /// A UDP socket in it.
    ///
    /// # Errors
    /// When the address cannot be taken.
    pub fn udp(&self, address: SocketAddr) -> Result<tokio::net::UdpSocket> {
        let socket = self.enter(|| Ok(std::net::UdpSocket::bind(address)?))?;
        socket.set_nonblocking(true)?;
        Ok(tokio::net::UdpSocket::from_std(socket)?)
    }

    /// A program that will run in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Does something in it: sockets that are made there stay there.
    ///
    /// # Errors
    /// When it cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let here = File::open(format!("/run/netns/{}", self.name))?;
        let enter = || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(here.as_fd(), network)?;
            work()
        };
        // Which namespace it is in belongs to a thread, and ends with it.
        let done = thread::scope(|scope| scope.spawn(enter).join());
        done.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Joins it to another host by a wire, over which it reaches `network`.
    ///
    /// # Errors
    /// When an address is taken, or it has a way there.
    pub fn reach(&self, other: &Self, link: Link, network: &str) -> Result<()> {
        self.join(other, link)?;
        self.ip(&["route", "add", network, "via", &link.second.to_string()])
    }

    /// Joins two hosts by a wire.
    ///
    /// # Errors
    /// When an address is taken.
    pub fn join(&self, other: &Self, link: Link) -> Result<()> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Interface names have at most 15 characters.
        let near = format!("w{}a{number}", std::process::id() % 100_000);
        let far = format!("w{}b{number}", std::process::id() % 100_000);
        ip(&[
            "link",
            "add",
            &near,
            "netns",
            &self.name,
            "type",
            "veth",
            "peer",
            "name",
            &far,
            "netns",
            &other.name,
        ])?;
        for (host, interface, address) in [(self, &near, link.first), (other, &far, link.second)] {
            host.ip(&["address", "add", &format!("{address}/24"), "dev", interface])?;
            host.ip(&["link", "set", interface, "up"])?;
        }
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _gone_already = ip(&["netns", "delete", &self.name]);
    }
}

fn ip(words: &[&str]) -> Result<()> {
    run(Command::new("ip").args(words)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_hosts_reach_each_other() {
        let (a, b) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let link = Link {
            first: [192, 168, 77, 1].into(),
            second: [192, 168, 77, 2].into(),
        };
        a.join(&b, link).unwrap();
        let routes = run(a.command("ip").args(["route", "get", "192.168.77.2"])).unwrap();
        assert!(routes.contains("src 192.168.77.1"), "{routes}");
        b.nft("table ip filter {\nchain input {\ntype filter hook input priority 0;\n}\n}\n")
            .unwrap();
    }
}
