//! Connections between nodes that go through Tor. TLS of the TCP carrier is written for sockets: it
//! has one end of a pair of them, and what Tor carries is joined with the other.

use std::{collections::HashMap, net::SocketAddr};

use tokio::{
    io::{self, AsyncRead, AsyncWrite, copy_bidirectional},
    net::UnixStream,
};
use tokio_util::sync::CancellationToken;
use wormholes_proto::{OnionAddress, tcp::LinkToken};
use wormholes_tor::{Stream, TorError};

use super::TorFailure;

/// Onion addresses of peers, by what stands for them.
#[derive(Debug, Default)]
pub(super) struct Onions(HashMap<SocketAddr, OnionAddress>);

impl Onions {
    /// The address that `placeholder` stands for.
    pub(super) fn find(&self, placeholder: &SocketAddr) -> Option<OnionAddress> {
        self.0.get(placeholder).cloned()
    }
}

impl<'a> FromIterator<&'a OnionAddress> for Onions {
    fn from_iter<I: IntoIterator<Item = &'a OnionAddress>>(onions: I) -> Self {
        let onions = onions.into_iter();
        Self(
            onions
                .map(|onion| (onion.placeholder(), onion.clone()))
                .collect(),
        )
    }
}

/// Connections of this node's own link to a peer may be on one circuit, and nothing else is on it. A link
/// under a throw-away key has its own circuits: by a shared one the peer would know whose it is.
pub(super) fn group(onion: &OnionAddress, throw_away: Option<LinkToken>) -> String {
    let peer = format!("peer {}", onion.host());
    match throw_away {
        None => peer,
        Some(LinkToken(token)) => format!("{peer} {:x}", u128::from_be_bytes(token)),
    }
}

/// Joins `stream` with one end of a pair of sockets, until either ends or `cut` is called; returns
/// the other end. `held` lasts as long.
///
/// # Errors
/// [`TorFailure`] when the system has no more sockets.
pub(super) fn join(
    stream: Stream,
    cut: CancellationToken,
    held: impl Send + 'static,
) -> Result<UnixStream, TorFailure> {
    carry(io::join(stream.reader, stream.writer), cut, held)
}

fn carry(
    mut stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    cut: CancellationToken,
    held: impl Send + 'static,
) -> Result<UnixStream, TorFailure> {
    let (near, mut far) =
        UnixStream::pair().map_err(|error| TorError::Other(error.kind().to_string()))?;
    // It ends with either end of the connection, and with Tor: nobody needs to wait for it.
    tokio::spawn(async move {
        let copying = copy_bidirectional(&mut stream, &mut far);
        // How a connection ends, TLS above it tells.
        drop(cut.run_until_cancelled(copying).await);
        drop(held);
    });
    Ok(near)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        sync::Semaphore,
        time::timeout,
    };

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn what_a_connection_holds_it_holds_to_its_end() {
        for is_cut in [true, false] {
            let (cut, places) = (CancellationToken::new(), Arc::new(Semaphore::new(1)));
            let place = Arc::clone(&places).try_acquire_owned().unwrap();
            let (stream, mut caller) = duplex(64);
            let mut call = carry(stream, cut.clone(), place).unwrap();
            caller.write_all(b"word").await.unwrap();
            call.read_exact(&mut [0; 4]).await.unwrap();
            assert_eq!(places.available_permits(), 0);
            match is_cut {
                true => cut.cancel(),
                false => drop((call, caller)),
            }
            let freed = timeout(SOON, places.acquire()).await;
            drop(freed.expect("its place is taken for ever").unwrap());
        }
    }

    fn onion() -> OnionAddress {
        let onion = "a".repeat(55) + "d.onion:4433";
        onion.parse().unwrap()
    }

    #[test]
    fn links_under_throw_away_keys_share_no_circuit_with_any_other() {
        let onion = onion();
        let [own, one, other] = [None, Some(1), Some(2)].map(|number| {
            let link = number.map(|number| LinkToken([number; 16]));
            assert_eq!(group(&onion, link), group(&onion, link));
            group(&onion, link)
        });
        assert!(own != one && own != other && one != other);
    }

    #[test]
    fn a_placeholder_leads_back_to_its_address() {
        let onion = onion();
        let onions: Onions = [&onion].into_iter().collect();
        assert_eq!(onions.find(&onion.placeholder()), Some(onion.clone()));
        let mut other = onion.placeholder();
        other.set_port(1);
        assert_eq!(onions.find(&other), None);
    }
}
