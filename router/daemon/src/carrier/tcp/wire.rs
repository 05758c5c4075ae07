//! What the bytes of a connection go over: a socket of the system's TCP, or one end of a pair whose
//! other end a stream through Tor is joined with. TLS above tells them not apart.

use std::{
    io,
    mem::MaybeUninit,
    net::{Ipv6Addr, Shutdown, SocketAddr},
};

use socket2::SockRef;
use tokio::{
    io::Interest,
    net::{TcpStream, UnixStream},
};

use crate::pipe::keep_alive;

/// Whoever comes through Tor comes from here: of all of them nobody knows more. They share what one
/// address may take.
pub(crate) const FROM_TOR: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0)),
    0,
);

/// A connection without TLS.
#[derive(Debug)]
pub(crate) enum Wire {
    /// Over the internet.
    Tcp(TcpStream),
    /// Through Tor.
    Tor(UnixStream),
}

impl From<TcpStream> for Wire {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl Wire {
    /// Small messages go at once, and an end that vanished is missed; Tor sees to it where it carries.
    pub(super) fn tune(&self) {
        if let Self::Tcp(stream) = self {
            // Without it they only go later.
            let _ = stream.set_nodelay(true);
            keep_alive(stream);
        }
    }

    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(buffer),
            Self::Tor(stream) => stream.try_read(buffer),
        }
    }

    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Tor(stream) => stream.try_write(bytes),
        }
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Tor(stream) => stream.readable().await,
        }
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Tor(stream) => stream.writable().await,
        }
    }

    /// Ends when it has broken, or something has come, which stays to be read. Cancel-safe.
    pub(super) async fn stirred(&self) {
        // What an error says, a read says again.
        match self {
            Self::Tcp(stream) => drop(stream.peek(&mut [0]).await),
            Self::Tor(stream) => {
                let peek = || SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]);
                drop(stream.async_io(Interest::READABLE, peek).await);
            }
        }
    }

    /// Breaks it off: whoever reads or writes at either end learns of it.
    pub(super) fn shut(&self) {
        let _ = match self {
            Self::Tcp(stream) => SockRef::from(stream).shutdown(Shutdown::Both),
            Self::Tor(stream) => SockRef::from(stream).shutdown(Shutdown::Both),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{io::AsyncWriteExt, time::timeout};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_look_at_what_came_through_tor_takes_nothing_of_it() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let near = Wire::Tor(near);
        let mut buffer = [0; 8];
        let nothing = near.try_read(&mut buffer).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        assert!(
            timeout(Duration::from_millis(20), near.stirred())
                .await
                .is_err()
        );
        far.write_all(b"word").await.unwrap();
        timeout(SOON, near.stirred()).await.unwrap();
        timeout(SOON, near.stirred()).await.unwrap();
        assert_eq!(near.try_read(&mut buffer).unwrap(), 4);
        near.shut();
        timeout(SOON, near.stirred()).await.unwrap();
    }
}
