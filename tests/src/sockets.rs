//! Sockets and their limits: the kernel knows what no config says.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lets this process hold `n_files` files and sockets at once.
///
/// # Errors
/// When the machine's hard limit is lower.
pub fn raise_file_limit(n_files: u64) -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    if maximum.is_some_and(|maximum| maximum < n_files) {
        bail!("the hard limit of open files is {maximum:?}, and {n_files} are needed");
    }
    let wanted = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, wanted).context("cannot raise the limit of open files")
}

/// TCP_LISTEN of the kernel.
const LISTEN: &str = "0A";

/// The bound UDP sockets of a process; an unspecified address is 0.0.0.0.
///
/// # Errors
/// When there is no such process, or it is not ours.
pub fn udp_addresses(pid: u32) -> Result<Vec<SocketAddrV4>> {
    addresses(pid, ["udp", "udp6"], |_| true)
}

/// The TCP sockets on which a process listens.
///
/// # Errors
/// When there is no such process, or it is not ours.
pub fn tcp_listeners(pid: u32) -> Result<Vec<SocketAddrV4>> {
    addresses(pid, ["tcp", "tcp6"], |state| state == LISTEN)
}

fn addresses(
    pid: u32,
    tables: [&str; 2],
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<SocketAddrV4>> {
    let inodes = socket_inodes(pid)?;
    let mut addresses = Vec::new();
    for table in tables {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}"))?;
        for line in text.lines().skip(1) {
            let columns: Vec<_> = line.split_whitespace().collect();
            let [_, local, _, state, _, _, _, _, _, inode, ..] = columns.as_slice() else {
                continue;
            };
            if wanted(state) && inodes.iter().any(|one| one == inode) {
                addresses.extend(address(local));
            }
        }
    }
    Ok(addresses)
}

fn socket_inodes(pid: u32) -> Result<Vec<String>> {
    let folder = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))?;
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    Ok(links
        .filter_map(|link| {
            let text = link.to_str()?;
            Some(text.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect())
}

/// `0100007F:1151`, or 32 digits for IPv6; the kernel prints words in the machine's byte order.
fn address(text: &str) -> Option<SocketAddrV4> {
    let (ip, port) = text.split_once(':')?;
    let last_word = ip.get(ip.len().checked_sub(8)?..)?;
    let ip = Ipv4Addr::from(u32::from_str_radix(last_word, 16).ok()?.to_le_bytes());
    Some(SocketAddrV4::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_sockets_are_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(local) = socket.local_addr().unwrap() else {
            panic!("not IPv4");
        };
        let found = udp_addresses(std::process::id()).unwrap();
        assert!(found.contains(&local), "{found:?}");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = tcp_listeners(std::process::id()).unwrap();
        assert!(found.iter().any(|a| a.port() == port), "{found:?}");
    }
}
