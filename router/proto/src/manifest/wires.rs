//! What a manifest says of HTTP and of sockets: paths below which a plugin answers, and ports that it
//! connects to.

use std::{collections::BTreeSet, time::Duration};

use serde::Deserialize;

use super::{
    Capabilities, MAX_COMMAND_SECONDS, MAX_WORDS, Manifest, ManifestError, limits::bytes, value,
};

/// What a plugin may connect by, and be connected to.
const SOCKET_KINDS: [&str; 5] = ["tcp", "tls", "tcp-listen", "tls-listen", "udp"];

/// The longest path of HTTP that a plugin names.
const MAX_PATH_BYTES: usize = 128;
/// What an event is handed at most, as of messages.
const MAX_BODY_KIB: u64 = 1024;

/// How a plugin answers HTTP requests.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// `GET` and `HEAD` below these paths are queries; at most 16.
    pub queries: BTreeSet<String>,
    /// The longest body that it takes; default 1,024, which is the most.
    pub body_kib: u64,
    /// How long an answer may take; default 30, at most 110.
    pub timeout_seconds: u64,
}

impl Manifest {
    /// Checks paths of HTTP, and ports of sockets.
    pub(super) fn check_wires(&self) -> Result<(), ManifestError> {
        let Capabilities { http, sockets, .. } = &self.capabilities;
        for (key, paths) in [
            ("capabilities.http", http),
            ("http.queries", &self.http.queries),
        ] {
            if paths.len() > MAX_WORDS || !paths.iter().all(|path| is_http_path(path)) {
                let rule = "has at most 16 paths, as \"/blog\" or \"/\": of letters, digits, `-`, `_`, \
                            `.` and `/`, without an empty, `.` or `..` part, and with no `/` at the end";
                return Err(value(key, rule));
            }
        }
        if sockets.len() > MAX_WORDS || !sockets.iter().all(|socket| is_socket(socket)) {
            let rule = "has at most 16 ports, as \"tcp:6667\", \"tls:6697\", \"tcp-listen:6667\" or \"udp:6881\"";
            return Err(value("capabilities.sockets", rule));
        }
        if !(1..=MAX_BODY_KIB).contains(&self.http.body_kib) {
            return Err(value("http.body_kib", "must be 1 to 1,024"));
        }
        if !(1..=MAX_COMMAND_SECONDS).contains(&self.http.timeout_seconds) {
            return Err(value("http.timeout_seconds", "must be 1 to 110"));
        }
        Ok(())
    }
}

impl Http {
    /// The longest body that it takes.
    pub fn body_bytes(&self) -> usize {
        bytes(self.body_kib << 10)
    }

    /// How long an answer may take.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            queries: BTreeSet::new(),
            body_kib: MAX_BODY_KIB,
            timeout_seconds: 30,
        }
    }
}

/// Whether a plugin may answer below it: no two texts mean one path, and none looks like a user's.
fn is_http_path(path: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_part =
        |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(is_plain);
    let parts = path.strip_prefix('/');
    let are_parts = parts.is_some_and(|parts| parts.is_empty() || parts.split('/').all(is_part));
    are_parts && path.len() <= MAX_PATH_BYTES
}

/// Whether it is a kind of socket and a port, written as they are compared.
fn is_socket(socket: &str) -> bool {
    let Some((kind, port)) = socket.split_once(':') else {
        return false;
    };
    let number = port.parse::<u16>().unwrap_or_default();
    SOCKET_KINDS.contains(&kind) && number > 0 && number.to_string() == port
}
