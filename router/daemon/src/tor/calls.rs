//! Connections between nodes that go through Tor. TLS of the TCP carrier is written for sockets: it
//! has one end of a pair of them, and what Tor carries is joined with the other.

use std::{collections::HashMap, net::SocketAddr};

use tokio::{
    io::{self, copy_bidirectional},
    net::UnixStream,
};
use tokio_util::sync::CancellationToken;
use wormholes_proto::OnionAddress;
use wormholes_tor::{Stream, TorError};

use super::{Counted, TorFailure};

/// Onion addresses of peers, by what stands for them.
#[derive(Debug, Default)]
pub(super) struct Book(HashMap<SocketAddr, OnionAddress>);

impl Book {
    /// The address that `placeholder` stands for.
    pub(super) fn find(&self, placeholder: &SocketAddr) -> Option<OnionAddress> {
        self.0.get(placeholder).cloned()
    }
}

impl<'a> FromIterator<&'a OnionAddress> for Book {
    fn from_iter<I: IntoIterator<Item = &'a OnionAddress>>(onions: I) -> Self {
        let onions = onions.into_iter();
        Self(
            onions
                .map(|onion| (onion.placeholder(), onion.clone()))
                .collect(),
        )
    }
}

/// Joins `stream` with one end of a pair of sockets, until either ends or `cut` is called; returns
/// the other end.
///
/// # Errors
/// [`TorFailure`] when the system has no more sockets.
pub(super) fn join(
    stream: Stream,
    cut: CancellationToken,
    counted: Counted,
) -> Result<UnixStream, TorFailure> {
    let (near, mut far) =
        UnixStream::pair().map_err(|error| TorError::Other(error.kind().to_string()))?;
    let mut stream = io::join(stream.reader, stream.writer);
    // It ends with either end of the connection, and with Tor: nobody needs to wait for it.
    tokio::spawn(async move {
        let copying = copy_bidirectional(&mut stream, &mut far);
        // How a connection ends, TLS above it tells.
        drop(cut.run_until_cancelled(copying).await);
        drop(counted);
    });
    Ok(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_leads_back_to_its_address() {
        let onion = "a".repeat(55) + "d.onion:4433";
        let onion: OnionAddress = onion.parse().unwrap();
        let book: Book = [&onion].into_iter().collect();
        assert_eq!(book.find(&onion.placeholder()), Some(onion.clone()));
        let mut other = onion.placeholder();
        other.set_port(1);
        assert_eq!(book.find(&other), None);
    }
}
