//! From a file to a [`Config`]: reading it, its mode, and what is wrong with it.

use std::{
    fmt, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::{Config, read, sections};

/// Ten thousand peers fit; a larger file is the wrong one.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// A config that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {cause}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The file is larger than any config.
    #[error("{} is larger than {MAX_FILE_BYTES} bytes", .0.display())]
    Size(PathBuf),
    /// The file holds secrets, and others may read it.
    #[error(
        "{path} holds passwords, keys or bridges, and others may read it: chmod 600 {path}",
        path = .0.display()
    )]
    Mode(PathBuf),
    /// The file's content is wrong.
    #[error("{}", list(.path, .problems))]
    Content {
        /// Which file.
        path: PathBuf,
        /// In order of line, at least one.
        problems: Vec<Problem>,
    },
}

/// One mistake in a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub message: String,
}

impl Config {
    /// Reads a file. Relative paths in it start at its folder.
    ///
    /// # Errors
    /// [`ConfigError`]; all mistakes of the content at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |cause| ConfigError::Read {
            path: path.to_owned(),
            cause,
        };
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(unreadable(std::io::Error::other("it is no regular file")));
        }
        if metadata.len() > MAX_FILE_BYTES {
            return Err(ConfigError::Size(path.to_owned()));
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let path = std::path::absolute(path).map_err(unreadable)?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let mut config = Self::parse(&text, folder).map_err(|problems| ConfigError::Content {
            path: path.clone(),
            problems,
        })?;
        if config.has_secrets() && metadata.mode() & 0o077 != 0 {
            return Err(ConfigError::Mode(path));
        }
        config.file = Some(path);
        Ok(config)
    }

    /// Reads a text. Relative paths in it start at `folder`.
    ///
    /// # Errors
    /// All mistakes, in order of line.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Vec<Problem>> {
        let root = read::parse(text).map_err(|problem| vec![problem])?;
        let document = read::Document::new(text);
        let config = sections::config(&document, root.get_ref(), folder);
        let problems = document.into_problems();
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(problems)
        }
    }

    /// Passwords, keys for onion services, and bridges, which only those shall know who go by them.
    fn has_secrets(&self) -> bool {
        let has_users = self.entrances.iter().any(|it| !it.users.is_empty());
        has_users || !self.tor.authorizations.is_empty() || !self.tor.bridges.is_empty()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.message)
    }
}

fn list(path: &Path, problems: &[Problem]) -> String {
    let lines = problems
        .iter()
        .map(|problem| format!("{}:{problem}", path.display()));
    lines.collect::<Vec<_>>().join("\n")
}
