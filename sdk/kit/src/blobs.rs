//! Blobs of a principal: what it holds, writes and fetches.

use std::sync::Arc;

use wormholes_plugin::BlobFetch;

use crate::table::Table;

/// What a blob counts for: whole blocks of this size.
const BLOCK_BYTES: u64 = 4096;

/// All of it is on disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Blobs {
    pub(crate) held: Table<[u8; 32], Hold>,
    pub(crate) drafts: Table<String, Vec<u8>>,
    pub(crate) fetches: Table<u64, BlobFetch>,
}

/// A blob, and how often it is held.
#[derive(Debug, Clone)]
pub(crate) struct Hold {
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) holds: u32,
}

impl Blobs {
    /// What all of them count for.
    pub(crate) fn bytes(&self) -> u64 {
        let held = self.held.values().map(|hold| hold.bytes.len() as u64);
        let drafts = self.drafts.values().map(|draft| draft.len() as u64);
        let fetches = self.fetches.values().map(|fetch| fetch.max_bytes);
        held.chain(drafts).chain(fetches).map(charged).sum()
    }

    pub(crate) fn hold(&mut self, hash: [u8; 32], bytes: Arc<[u8]>) {
        if let Some(hold) = self.held.get_mut(&hash) {
            hold.holds += 1;
        } else {
            self.held.insert(hash, Hold { bytes, holds: 1 });
        }
    }
}

/// What a blob of this length counts for.
pub(crate) fn charged(length: u64) -> u64 {
    length
        .max(1)
        .div_ceil(BLOCK_BYTES)
        .saturating_mul(BLOCK_BYTES)
}

/// BLAKE3.
pub(crate) fn hash(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}
