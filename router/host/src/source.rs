//! A plugin's files, and what names them.

use std::{fmt, path::PathBuf};

use ring::digest::{Context, SHA256, digest};

use crate::edition::Digest;

/// A plugin's files, read. Each is hashed once: components have megabytes.
#[derive(Clone)]
pub struct Source {
    /// `plugin.toml`, for messages.
    pub(crate) path: PathBuf,
    /// What it says.
    pub(crate) manifest: String,
    /// The component that it names.
    pub(crate) wasm: Vec<u8>,
    sha256: [u8; 32],
}

impl Source {
    /// The manifest, with the path that messages name, and the component.
    pub fn new(path: PathBuf, manifest: String, wasm: Vec<u8>) -> Self {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest(&SHA256, &wasm).as_ref());
        Self {
            path,
            manifest,
            wasm,
            sha256,
        }
    }

    /// Of the component, as `sha256sum` prints it and config.toml pins it.
    pub(crate) fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// Of both files: SHA-256 of the component's SHA-256 and the manifest.
    pub(crate) fn digest(&self) -> Digest {
        let mut digest = Context::new(&SHA256);
        digest.update(&self.sha256);
        digest.update(self.manifest.as_bytes());
        let mut bytes = Digest::default();
        bytes.copy_from_slice(digest.finish().as_ref());
        bytes
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Source").field(&self.path).finish()
    }
}
