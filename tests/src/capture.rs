//! Packets on loopback as the kernel carried them, searched for what must not be in them.
//!
//! Needs CAP_NET_RAW. Only IPv4 TCP and UDP are looked at: UDP is what nodes speak among each other,
//! and TCP is where the markers do appear, so that not finding them means something. Each packet is searched for every
//! marker and then forgotten, so that a capture of any length stays small. The kernel shows a
//! packet on loopback twice, once going and once coming: counts are of both.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use memchr::memmem;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with,
    sockopt::set_socket_recv_buffer_size_force,
};

/// ETH_P_IP in network order, as packet(7) wants it.
const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
/// RFC 768.
const UDP_HEADER_BYTES: usize = 8;
/// Offloaded packets on loopback reach 64 KiB.
const MAX_PACKET_BYTES: usize = 70_000;
/// A bulk transfer on loopback outruns a reader for moments.
const RECEIVE_BUFFER_BYTES: usize = 64 << 20;
/// A full buffer may have lost the packet that ends the capture: it is sent again after this.
const NEXT_END: Duration = Duration::from_millis(50);
/// A reader that has not come to the end by then will not.
const LONGEST_END: Duration = Duration::from_secs(30);

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    markers: Vec<Vec<u8>>,
    /// A packet to itself is the last that is read: what came before it has been.
    end: UdpSocket,
    seen: Arc<Mutex<Seen>>,
    /// Tells when the reader has come to the end.
    reader: Option<mpsc::Receiver<()>>,
}

type Seen = BTreeMap<Ends, Traffic>;

/// From where to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Ends {
    is_udp: bool,
    from: SocketAddrV4,
    to: SocketAddrV4,
}

/// Packets between two ends.
#[derive(Debug, Clone, Default)]
struct Traffic {
    packets: u64,
    /// Without the headers of UDP and below.
    largest_bytes: usize,
    found: Vec<u64>,
}

/// What a capture saw.
#[derive(Debug, Clone)]
pub struct Captured {
    markers: Vec<Vec<u8>>,
    seen: Seen,
}

impl Capture {
    /// Starts to look for `markers` in all that loopback carries.
    ///
    /// # Errors
    /// When the kernel does not allow it.
    pub fn start(markers: &[&[u8]]) -> Result<Self> {
        let socket =
            open().context("cannot capture packets: run this as root, or with CAP_NET_RAW")?;
        let end = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let last = end.local_addr()?;
        let seen = Arc::new(Mutex::new(Seen::new()));
        let markers: Vec<Vec<u8>> = markers.iter().map(|marker| marker.to_vec()).collect();
        let reader = {
            let (seen, markers) = (seen.clone(), markers.clone());
            let (finished, reader) = mpsc::channel();
            thread::spawn(move || {
                read(&socket, &markers, last, &seen);
                let _nobody_waits = finished.send(());
            });
            reader
        };
        Ok(Self {
            markers,
            end,
            seen,
            reader: Some(reader),
        })
    }

    /// What was seen so far.
    pub fn so_far(&self) -> Captured {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        Captured {
            markers: self.markers.clone(),
            seen: seen.clone(),
        }
    }

    /// Stops, and gives what was seen.
    pub fn finish(mut self) -> Captured {
        self.end();
        self.so_far()
    }

    fn end(&mut self) {
        let Some(reader) = self.reader.take() else {
            return;
        };
        let started = Instant::now();
        let own = self.end.local_addr();
        while started.elapsed() < LONGEST_END {
            let _full = own.as_ref().map(|own| self.end.send_to(b"end", own));
            if reader.recv_timeout(NEXT_END) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

impl Captured {
    /// How many UDP packets from or to this address and port there were.
    pub fn packets_at(&self, address: SocketAddrV4) -> u64 {
        self.udp_at(address)
            .map(|(_, traffic)| traffic.packets)
            .sum()
    }

    /// The payload of the largest UDP packet from or to this address and port; 0 without any.
    pub fn largest_at(&self, address: SocketAddrV4) -> usize {
        let sizes = self.udp_at(address);
        let sizes = sizes.map(|(_, traffic)| traffic.largest_bytes);
        sizes.max().unwrap_or(0)
    }

    /// How many UDP packets from or to this address and port have `marker` in them.
    pub fn found_at(&self, marker: &[u8], address: SocketAddrV4) -> u64 {
        let found = self.udp_at(address).map(|(_, traffic)| traffic);
        self.count(marker, found)
    }

    /// How many TCP packets have `marker` in them: those between a program and its entrance, and
    /// between a node and the target.
    pub fn found_over_tcp(&self, marker: &[u8]) -> u64 {
        let tcp = self.seen.iter().filter(|(ends, _)| !ends.is_udp);
        self.count(marker, tcp.map(|(_, traffic)| traffic))
    }

    /// The addresses and ports that exchanged UDP packets with this one.
    pub fn neighbours(&self, address: SocketAddrV4) -> Vec<SocketAddrV4> {
        let mut found: Vec<_> = self
            .udp_at(address)
            .map(|(ends, _)| {
                if ends.from == address {
                    ends.to
                } else {
                    ends.from
                }
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    fn count<'a>(&self, marker: &[u8], traffic: impl Iterator<Item = &'a Traffic>) -> u64 {
        let index = self.markers.iter().position(|one| one == marker);
        let found = |traffic: &Traffic| traffic.found.get(index?).copied();
        traffic.filter_map(found).sum()
    }

    fn udp_at(&self, address: SocketAddrV4) -> impl Iterator<Item = (&Ends, &Traffic)> {
        let is_at = move |ends: &Ends| ends.from == address || ends.to == address;
        self.seen
            .iter()
            .filter(move |(ends, _)| ends.is_udp && is_at(ends))
    }
}

fn open() -> rustix::io::Result<OwnedFd> {
    let protocol = std::num::NonZeroU32::new(ETH_P_IP).map(Protocol::from_raw);
    let socket = socket_with(
        AddressFamily::PACKET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        protocol,
    )?;
    set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES)?;
    Ok(socket)
}

/// Reads until a packet goes to `last`.
fn read(socket: &OwnedFd, markers: &[Vec<u8>], last: SocketAddr, seen: &Mutex<Seen>) {
    let mut buffer = vec![0; MAX_PACKET_BYTES];
    loop {
        match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((n_bytes, _)) => {
                let packet = buffer.get(..n_bytes).unwrap_or_default();
                let Some((ends, payload_bytes)) = ends(packet) else {
                    continue;
                };
                if ends.is_udp && SocketAddr::V4(ends.to) == last {
                    return;
                }
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                note(packet, ends, payload_bytes, markers, &mut seen);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

fn note(packet: &[u8], ends: Ends, payload_bytes: usize, markers: &[Vec<u8>], seen: &mut Seen) {
    let traffic = seen.entry(ends).or_insert_with(|| Traffic {
        found: vec![0; markers.len()],
        ..Traffic::default()
    });
    traffic.packets += 1;
    traffic.largest_bytes = traffic.largest_bytes.max(payload_bytes);
    for (found, marker) in traffic.found.iter_mut().zip(markers) {
        *found += u64::from(memmem::find(packet, marker).is_some());
    }
}

/// The ends of an IPv4 packet (RFC 791) with TCP (6) or UDP (17) in it, and how much follows a
/// UDP header.
fn ends(packet: &[u8]) -> Option<(Ends, usize)> {
    let header_bytes = usize::from(packet.first()? & 0x0f) * 4;
    let protocol = *packet.get(9)?;
    if packet.first()? >> 4 != 4 || ![6, 17].contains(&protocol) {
        return None;
    }
    let address = |at: usize| {
        let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    let port = |at: usize| {
        let bytes: [u8; 2] = packet.get(at..at + 2)?.try_into().ok()?;
        Some(u16::from_be_bytes(bytes))
    };
    let ends = Ends {
        is_udp: protocol == 17,
        from: SocketAddrV4::new(address(12)?, port(header_bytes)?),
        to: SocketAddrV4::new(address(16)?, port(header_bytes + 2)?),
    };
    let payload_bytes = packet.len().saturating_sub(header_bytes + UDP_HEADER_BYTES);
    Some((ends, payload_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looking proves nothing unless it finds what is there.
    #[test]
    fn a_marker_that_is_sent_is_found() {
        let marker = b"a marker that no other test sends";
        let capture = Capture::start(&[marker, b"another"]).unwrap();
        let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(to) = receiver.local_addr().unwrap() else {
            panic!("not IPv4");
        };
        sender
            .send_to(&[b"aaa", &marker[..], b"zzz"].concat(), to)
            .unwrap();
        let captured = capture.finish();
        assert!(captured.packets_at(to) >= 1);
        assert_eq!(captured.largest_at(to), marker.len() + 6);
        assert!(captured.found_at(marker, to) >= 1);
        assert_eq!(captured.found_at(b"another", to), 0);
        assert_eq!(captured.neighbours(to).len(), 1);
    }
}
