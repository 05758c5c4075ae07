//! A name server that answers as it is told to, and differently from time to time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use tokio::task::JoinHandle;

/// Type A and class IN, type AAAA and class IN (RFC 1035, section 3.2; RFC 3596, section 2.1).
const A: [u8; 4] = [0, 1, 0, 1];
const AAAA: [u8; 4] = [0, 28, 0, 1];
const HEADER_BYTES: usize = 12;

/// What each name has for one query after the other; the last answer stays.
pub type Answers = BTreeMap<String, Vec<Vec<IpAddr>>>;

/// A running name server; it ends with this.
#[derive(Debug)]
pub struct NameServer {
    asked: Arc<Mutex<BTreeSet<String>>>,
    task: JoinHandle<()>,
}

impl NameServer {
    /// Answers at `socket`. Nothing it says may be kept: its times to live are 0.
    ///
    /// # Errors
    /// When the socket is of no use.
    pub fn start(socket: UdpSocket, mut answers: Answers) -> Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        let asked = Arc::<Mutex<BTreeSet<String>>>::default();
        let seen = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut query).await {
                let query = query.get(..len).unwrap_or_default();
                if let Some((name, ..)) = query.get(HEADER_BYTES..).and_then(question) {
                    seen.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(name);
                }
                if let Some(reply) = reply(query, &mut answers) {
                    // Who asked may be gone.
                    let _ = socket.send_to(&reply, from).await;
                }
            }
        });
        Ok(Self { asked, task })
    }

    /// The names that it was asked for, in lower case.
    pub fn asked(&self) -> BTreeSet<String> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.clone()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The reply to a query of one question. A name's next answer is taken by its next query for the
/// family that the answer has; one for the other family finds none and takes none.
fn reply(query: &[u8], answers: &mut Answers) -> Option<Vec<u8>> {
    let (name, kind, question_bytes) = question(query.get(HEADER_BYTES..)?)?;
    let of_kind = |ip: &IpAddr| match ip {
        IpAddr::V4(_) => kind == A,
        IpAddr::V6(_) => kind == AAAA,
    };
    let mut found = Vec::new();
    if let Some(left) = answers.get_mut(&name) {
        found = left.first()?.iter().copied().filter(of_kind).collect();
        if !found.is_empty() && left.len() > 1 {
            left.remove(0);
        }
    }
    let mut message = query.get(..2)?.to_vec();
    message.extend([0x81, 0x80, 0, 1, 0, u8::try_from(found.len()).ok()?]);
    message.extend([0; 4]);
    message.extend(query.get(HEADER_BYTES..HEADER_BYTES + question_bytes)?);
    for ip in found {
        // The name is that of the question; the time to live is 0.
        message.extend([0xc0, 12]);
        message.extend(kind);
        message.extend([0; 4]);
        let address = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        message.extend([0, u8::try_from(address.len()).ok()?]);
        message.extend(address);
    }
    Some(message)
}

/// Name, type and class, and how many bytes they take (RFC 1035, section 4.1.2).
fn question(bytes: &[u8]) -> Option<(String, [u8; 4], usize)> {
    let mut labels = Vec::new();
    let mut at = 0;
    loop {
        let len = usize::from(*bytes.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        let label = bytes.get(at..at + len)?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += len;
    }
    let kind = bytes.get(at..at + 4)?.try_into().ok()?;
    Some((labels.join("."), kind, at + 4))
}
