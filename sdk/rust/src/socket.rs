//! Connections to others.

use crate::{Context, Error, Result, Way, host, way::travels};

/// A connection to be [opened](Self::open).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// Whether the node does TLS, and the server has to show a certificate for the host.
    pub tls: bool,
    /// A name or an address.
    pub host: String,
    /// One that the manifest names, as `tcp:6667` or `tls:6697`.
    pub port: u16,
    /// How it travels. Nobody sees the sender in it.
    pub way: Way,
}

/// A connection, by its id: it can be kept in rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Socket(pub u64);

/// Why a connection is none any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closing {
    /// The other end is done.
    Ended,
    /// It did not open: a rule forbids it, or nobody answers.
    Failed(Error),
    /// It broke.
    Broken,
    /// The node started anew, or forgot what was not durable after a disk error.
    Restarted,
    /// A handler failed on data of it: what comes then would make no sense.
    Lost,
    /// Another version of the plugin may not have it.
    Revoked,
}

impl Connect {
    /// Bytes as they are.
    pub fn tcp(host: &str, port: u16) -> Self {
        Self {
            tls: false,
            host: host.to_owned(),
            port,
            way: Way::default(),
        }
    }

    /// Bytes inside TLS.
    pub fn tls(host: &str, port: u16) -> Self {
        Self {
            tls: true,
            ..Self::tcp(host, port)
        }
    }

    /// Opens it when the event is real; [`Plugin::connected`](crate::Plugin::connected) or
    /// [`closed`](crate::Plugin::closed) says what came of it.
    ///
    /// # Errors
    /// [`Denied`](crate::ErrorCode::Denied): the port is not granted;
    /// [`Quota`](crate::ErrorCode::Quota): `limits.sockets`.
    pub fn open(self, _: &mut Context) -> Result<Socket> {
        host::with(|host| host.connect(self)).map(Socket)
    }
}

travels!(Connect, "It shares no circuit with flows of another key.");

impl Socket {
    /// Lets so many more bytes come; 1 MiB at most may be open. Nothing comes without it.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorCode::Invalid): it is too much;
    /// [`NotFound`](crate::ErrorCode::NotFound): it is closed.
    pub fn credit(self, _: &mut Context, bytes: u32) -> Result<()> {
        host::with(|host| host.socket_credit(self.0, bytes))
    }

    /// Sends when the event is real.
    ///
    /// # Errors
    /// [`Quota`](crate::ErrorCode::Quota): more than there is [room](Self::room) for;
    /// [`Plugin::writable`](crate::Plugin::writable) tells when there is more.
    /// [`NotFound`](crate::ErrorCode::NotFound): it is closed.
    pub fn write(self, _: &mut Context, data: &[u8]) -> Result<()> {
        host::with(|host| host.socket_write(self.0, data))
    }

    /// How much there is room for: 64 KiB, less what is on its way.
    pub fn room(self, _: &Context) -> u32 {
        host::with(|host| host.socket_room(self.0))
    }

    /// Closes it, when all that was written is sent. Nothing more is told of it; closed twice is no
    /// error.
    ///
    /// # Errors
    /// [`Quota`](crate::ErrorCode::Quota): a limit of the event.
    pub fn close(self, _: &mut Context) -> Result<()> {
        host::with(|host| host.socket_close(self.0))
    }
}
