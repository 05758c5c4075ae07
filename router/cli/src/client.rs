//! The client's end of the control socket: one call after the other.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::DeserializeOwned;
use serde_json::Value;
use wormholes_proto::control::{
    Call, Incoming, MAX_RESPONSE_BYTES, PluginProgress, decode_incoming, encode_request,
};

use crate::error::CliError;

/// Where packages and the default config put the socket.
const USUAL_SOCKETS: [&str; 2] = [
    "/run/wormholes/control.sock",
    "/var/lib/wormholes/control.sock",
];
/// For the answer's way, beyond what the daemon takes for it.
const GRACE: Duration = Duration::from_secs(10);

/// A connection to the daemon.
#[derive(Debug)]
pub(crate) struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    next_id: i64,
}

impl Client {
    /// Connects to `socket`, else to what `WORMHOLES_SOCKET` names, else to the first of the usual
    /// ones that answers.
    ///
    /// # Errors
    /// [`CliError::NotRunning`] or [`CliError::SocketDenied`].
    pub(crate) fn connect(socket: Option<&Path>) -> Result<Self, CliError> {
        let named = std::env::var_os("WORMHOLES_SOCKET").filter(|path| !path.is_empty());
        let candidates = match socket.or(named.as_deref().map(Path::new)) {
            Some(path) => vec![path],
            None => USUAL_SOCKETS.iter().map(Path::new).collect(),
        };
        let mut silent = Vec::new();
        let mut failed = None;
        for path in candidates {
            match UnixStream::connect(path) {
                Ok(stream) => return Ok(Self::new(path, stream)),
                Err(source) if is_silence(&source) => silent.push(path.to_owned()),
                Err(source) => failed = failed.or(Some(connect_error(path, source))),
            }
        }
        // That one may not ask is worth more than that nobody listens elsewhere.
        Err(failed.unwrap_or(CliError::NotRunning { paths: silent }))
    }

    fn new(path: &Path, stream: UnixStream) -> Self {
        Self {
            path: path.to_owned(),
            stream: BufReader::new(stream),
            next_id: 1,
        }
    }

    /// Calls and waits for the answer.
    pub(crate) fn call(&mut self, call: &Call) -> Result<Value, CliError> {
        self.call_with(call, |_| {})
    }

    /// The same; `told` hears of the progress, where the call asks for it.
    pub(crate) fn call_with(
        &mut self,
        call: &Call,
        told: impl FnMut(&PluginProgress),
    ) -> Result<Value, CliError> {
        let id = self.next_id;
        self.next_id += 1;
        self.set_timeout(Some(call.answered_within() + GRACE))?;
        let written = self.stream.get_mut().write_all(&encode_request(id, call));
        // A daemon that is full says so and closes before it reads: its words count, not the pipe.
        let answer = self.read_answer(told);
        match (written, answer) {
            (Err(source), Err(_)) => Err(self.broken(source)),
            (_, answer) => answer,
        }
    }

    /// Calls and reads the answer as `T`.
    pub(crate) fn report<T: DeserializeOwned>(&mut self, call: &Call) -> Result<T, CliError> {
        serde_json::from_value(self.call(call)?).map_err(CliError::Answer)
    }

    /// The next event of a subscription, however long it takes; none when the daemon is gone.
    pub(crate) fn event(&mut self) -> Result<Option<Value>, CliError> {
        self.set_timeout(None)?;
        loop {
            let Some(line) = self.line()? else {
                return Ok(None);
            };
            if let Incoming::Event(event) = decode_incoming(&line).map_err(CliError::Rpc)? {
                return Ok(Some(event));
            }
        }
    }

    fn read_answer(&mut self, mut told: impl FnMut(&PluginProgress)) -> Result<Value, CliError> {
        loop {
            let line = self.line()?.ok_or(CliError::Closed)?;
            match decode_incoming(&line).map_err(CliError::Rpc)? {
                Incoming::Response { result, .. } => return result.map_err(CliError::Rpc),
                Incoming::Event(_) => {}
                Incoming::Progress(progress) => told(&progress),
            }
        }
    }

    fn line(&mut self) -> Result<Option<Vec<u8>>, CliError> {
        let mut line = Vec::new();
        let bound = MAX_RESPONSE_BYTES as u64 + 1;
        let read = (&mut self.stream).take(bound).read_until(b'\n', &mut line);
        match read {
            Ok(0) => Ok(None),
            Ok(_) if line.ends_with(b"\n") => Ok(Some(line)),
            Ok(_) => Err(CliError::Closed),
            Err(source) if source.kind() == io::ErrorKind::ConnectionReset => Err(CliError::Closed),
            Err(source) => Err(self.broken(source)),
        }
    }

    fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), CliError> {
        let stream = self.stream.get_ref();
        stream
            .set_read_timeout(timeout)
            .map_err(|source| self.broken(source))
    }

    fn broken(&self, source: io::Error) -> CliError {
        CliError::Socket {
            path: self.path.clone(),
            source,
        }
    }
}

/// Nobody listens.
fn is_silence(source: &io::Error) -> bool {
    [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&source.kind())
}

fn connect_error(path: &Path, source: io::Error) -> CliError {
    let path = path.to_owned();
    if source.kind() == io::ErrorKind::PermissionDenied {
        CliError::SocketDenied { path }
    } else {
        CliError::Socket { path, source }
    }
}
