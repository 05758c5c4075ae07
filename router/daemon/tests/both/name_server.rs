//! A name server on a port of its own, which remembers what it was asked.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use tokio::net::UdpSocket;

/// What is asked for: the type of the record; all are of the internet (RFC 1035, RFC 3596).
const A: u16 = 1;
const AAAA: u16 = 28;

pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl NameServer {
    /// Answers every A query with the next of `answers`, the last one for ever; without any, never.
    pub(crate) async fn start(answers: &[Ipv4Addr]) -> Self {
        let mut left = answers.to_vec();
        left.reverse();
        Self::serve(move |kind| {
            let next = match left.len() {
                0 => return None,
                _ if kind != A => return Some(Vec::new()),
                1 => left.first().copied(),
                _ => left.pop(),
            };
            Some(next.into_iter().map(IpAddr::from).collect())
        })
        .await
    }

    /// Answers with all addresses of the family that is asked for. No answer ever comes for a
    /// family that is `silent`: 4 or 6.
    #[allow(
        dead_code,
        reason = "only some of the tests that share this file use it"
    )]
    pub(crate) async fn dual(ips: &[&str], silent: Option<u8>) -> Self {
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        Self::serve(move |kind| {
            let wants_v4 = match (kind, silent) {
                (A, Some(4)) | (AAAA, Some(6)) => return None,
                (A, _) => true,
                (AAAA, _) => false,
                _ => return Some(Vec::new()),
            };
            let asked_for = ips.iter().filter(|ip| ip.is_ipv4() == wants_v4);
            Some(asked_for.copied().collect())
        })
        .await
    }

    async fn serve(mut answer: impl FnMut(u16) -> Option<Vec<IpAddr>> + Send + 'static) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut query).await {
                let (name, kind) = question(&query[12..len]);
                seen.lock().unwrap().push(name);
                if let Some(ips) = answer(kind) {
                    let _ = socket.send_to(&reply(&query[..len], &ips), from).await;
                }
            }
        });
        Self { address, asked }
    }

    /// The names that it was asked for so far, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// The name, and the type behind it (RFC 1035, section 4.1.2).
fn question(mut bytes: &[u8]) -> (String, u16) {
    let mut labels = Vec::new();
    while bytes[0] > 0 {
        let (label, rest) = bytes[1..].split_at(bytes[0].into());
        labels.push(String::from_utf8_lossy(label).into_owned());
        bytes = rest;
    }
    (labels.join("."), u16::from_be_bytes([bytes[1], bytes[2]]))
}

/// Answers a query of one question (RFC 1035, section 4.1); TTL 0.
fn reply(query: &[u8], ips: &[IpAddr]) -> Vec<u8> {
    let name_end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 1;
    let count = u8::try_from(ips.len()).unwrap();
    let mut message = query[..2].to_vec();
    message.extend([0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]);
    message.extend(&query[12..name_end + 4]);
    for ip in ips {
        let (kind, octets) = match ip {
            IpAddr::V4(ip) => (A, ip.octets().to_vec()),
            IpAddr::V6(ip) => (AAAA, ip.octets().to_vec()),
        };
        message.extend([0xc0, 12]);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1, 0, 0, 0, 0, 0]);
        message.push(u8::try_from(octets.len()).unwrap());
        message.extend(octets);
    }
    message
}
