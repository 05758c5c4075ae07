//! The same types in a build without arti: nobody can make one.

use std::{
    convert::Infallible,
    io,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{FutureExt, future::BoxFuture, stream::BoxStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    error::TorError,
    report::{Circuit, HostStatus, Progress},
    settings::{HostSettings, Settings},
};

/// A client; there is none.
#[derive(Debug)]
pub struct Client(Infallible);

/// An onion service that is hosted here; there is none.
#[derive(Debug)]
pub struct Hosted(Infallible);

/// A stream that somebody wants; there is none.
#[derive(Debug)]
pub struct Request(Infallible);

/// A stream through Tor; there is none.
#[derive(Debug)]
pub struct Stream {
    /// What comes in.
    pub reader: StreamReader,
    /// What goes out.
    pub writer: StreamWriter,
}

/// What comes in; nothing does.
#[derive(Debug)]
pub struct StreamReader(Infallible);

/// What goes out; nothing does.
#[derive(Debug)]
pub struct StreamWriter(Infallible);

/// Whether `line` is a bridge line: nobody here can tell.
///
/// # Errors
/// None.
pub fn check_bridge(_: &str) -> Result<(), String> {
    Ok(())
}

impl Client {
    /// Makes none.
    ///
    /// # Errors
    /// [`TorError::Absent`].
    pub fn create(_: &Settings) -> BoxFuture<'_, Result<Self, TorError>> {
        async { Err(TorError::Absent) }.boxed()
    }

    /// Gets into the network.
    ///
    /// # Errors
    /// None: there is no client.
    pub fn bootstrap(&self) -> BoxFuture<'static, Result<(), TorError>> {
        match self.0 {}
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        match self.0 {}
    }

    /// How far it is, whenever that changed.
    pub fn watch(&self) -> BoxStream<'static, Progress> {
        match self.0 {}
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// None: there is no client.
    pub fn connect(
        &self,
        _: &str,
        _: u16,
        _: &str,
    ) -> BoxFuture<'static, Result<Stream, TorError>> {
        match self.0 {}
    }

    /// Has an exit look a name up.
    ///
    /// # Errors
    /// None: there is no client.
    pub fn resolve(&self, _: &str, _: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, TorError>> {
        match self.0 {}
    }

    /// Streams from now on share no circuit with those before.
    pub fn take_new_identity(&self) {
        match self.0 {}
    }

    /// The circuits that carry streams of this client.
    pub fn circuits(&self) -> Vec<Circuit> {
        match self.0 {}
    }

    /// Publishes an onion service.
    ///
    /// # Errors
    /// None: there is no client.
    pub fn host(&self, _: &HostSettings) -> Result<Hosted, TorError> {
        match self.0 {}
    }

    /// Does nothing by itself until it is woken.
    pub fn rest(&self) {
        match self.0 {}
    }

    /// Goes on after a rest.
    pub fn wake(&self) {
        match self.0 {}
    }
}

impl Hosted {
    /// What others call it by.
    pub fn address(&self) -> &str {
        match self.0 {}
    }

    /// Whether others find it.
    pub fn watch(&self) -> BoxStream<'static, HostStatus> {
        match self.0 {}
    }

    /// The next stream that somebody wants.
    #[expect(clippy::unused_async, reason = "as where there is one")]
    pub async fn next(&mut self) -> Option<Request> {
        match self.0 {}
    }
}

impl Request {
    /// At which of its ports the service is called.
    pub fn port(&self) -> u16 {
        match self.0 {}
    }

    /// Takes it.
    ///
    /// # Errors
    /// None: there is no request.
    pub fn accept(self) -> BoxFuture<'static, Result<Stream, TorError>> {
        match self.0 {}
    }

    /// Sends the caller away.
    pub fn refuse(self) -> BoxFuture<'static, ()> {
        match self.0 {}
    }
}

impl AsyncRead for StreamReader {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.0 {}
    }
}

impl AsyncWrite for StreamWriter {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        match self.0 {}
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0 {}
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0 {}
    }
}
