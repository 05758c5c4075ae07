//! A name server on a port of its own, which remembers what it was asked.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use tokio::net::UdpSocket;

/// The type of a query for IPv4 addresses, and the class of the internet.
const A_IN: [u8; 4] = [0, 1, 0, 1];

pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl NameServer {
    /// Answers every A query with the next of `answers`, the last one for ever; without any, never.
    pub(crate) async fn start(answers: &[Ipv4Addr]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (mut left, seen) = (answers.to_vec(), Arc::clone(&asked));
        left.reverse();
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut query).await {
                let (name, kind) = question(&query[12..len]);
                seen.lock().unwrap().push(name);
                if left.is_empty() {
                    continue;
                }
                let answer = match left.len() {
                    _ if kind != A_IN => None,
                    1 => left.first().copied(),
                    _ => left.pop(),
                };
                let _ = socket.send_to(&reply(&query[..len], answer), from).await;
            }
        });
        Self { address, asked }
    }

    /// The names that it was asked for so far, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// The name, and type and class behind it (RFC 1035, section 4.1.2).
fn question(mut bytes: &[u8]) -> (String, [u8; 4]) {
    let mut labels = Vec::new();
    while bytes[0] > 0 {
        let (label, rest) = bytes[1..].split_at(bytes[0].into());
        labels.push(String::from_utf8_lossy(label).into_owned());
        bytes = rest;
    }
    (labels.join("."), bytes[1..5].try_into().unwrap())
}

/// Answers a query of one question (RFC 1035, section 4.1); TTL 0.
fn reply(query: &[u8], answer: Option<Ipv4Addr>) -> Vec<u8> {
    let name_end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 1;
    let mut message = query[..2].to_vec();
    message.extend([0x81, 0x80, 0, 1, 0, u8::from(answer.is_some()), 0, 0, 0, 0]);
    message.extend(&query[12..name_end + 4]);
    if let Some(ip) = answer {
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        message.extend(ip.octets());
    }
    message
}
