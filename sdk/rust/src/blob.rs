//! Blobs: bytes that the node keeps in files. Capability `blobs`.

use std::{fmt, str::FromStr, time::Duration};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Address, Context, Error, Identity, Key, Result, Way, host};

/// What a fetch takes that does not say so.
const MAX_BYTES: u64 = 16 << 20;
/// What one call reads.
const READ_BYTES: u32 = 1 << 20;

/// The name of a blob: BLAKE3 of its bytes. In JSON, 64 hexadecimal digits, as a command's argument of
/// kind `blob` brings it; elsewhere its bytes.
///
/// What a principal holds, it can read, as long as it does not [`release`](Self::release) it as often
/// as it was put, sealed, fetched and held.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob([u8; 32]);

/// A blob that the principal holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Which.
    pub blob: Blob,
    /// How many bytes it has.
    pub length: u64,
    /// How often it is held.
    pub holds: u32,
}

/// A blob that is to come from another principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobFetch {
    /// Which.
    pub blob: Blob,
    /// Who has it.
    pub from: Address,
    /// How it travels.
    pub way: Way,
    /// It is given up if it is longer; so much is kept free for it.
    pub max_bytes: u64,
    /// Milliseconds since 1970: given up then.
    pub deadline_ms: Option<u64>,
}

/// What came of a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobFetched {
    /// What [`BlobFetch::begin`] returned.
    pub id: u64,
    /// Which blob.
    pub blob: Blob,
    /// How many bytes it has: it is whole, and held once more. Or why it does not come.
    pub outcome: Result<u64>,
}

/// A blob that is written, over as many events as it takes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Draft(String);

impl Blob {
    /// The blob of this hash.
    pub const fn named(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// BLAKE3 of its bytes.
    pub const fn hash(&self) -> &[u8; 32] {
        &self.0
    }

    /// Holds a blob of these bytes once more, at most 1 MiB; they count for what the event writes.
    ///
    /// # Errors
    /// [`Quota`](crate::ErrorCode::Quota): `limits.one_blob_mib`, or the principal holds too much.
    pub fn put(_: &mut Context, bytes: &[u8]) -> Result<Self> {
        host::with(|host| host.put_blob(bytes)).map(Self)
    }

    /// How many bytes it has; `None`: this principal does not hold it, and the event did not bring it.
    pub fn length(&self, _: &Context) -> Option<u64> {
        host::with(|host| host.blob_length(&self.0))
    }

    /// At most 1 MiB of it, and less where it ends before.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorCode::NotFound): as of [`length`](Self::length).
    pub fn read(&self, _: &Context, offset: u64, length: u32) -> Result<Vec<u8>> {
        host::with(|host| host.read_blob(&self.0, offset, length))
    }

    /// All of it: what does not fit into the plugin's memory ends the event.
    ///
    /// # Errors
    /// As of [`read`](Self::read).
    pub fn read_all(&self, cx: &Context) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            let part = self.read(cx, bytes.len() as u64, READ_BYTES)?;
            if part.is_empty() {
                return Ok(bytes);
            }
            bytes.extend(part);
        }
    }

    /// Holds it once more: what the event brought, or is held.
    ///
    /// # Errors
    /// As of [`read`](Self::read); [`Quota`](crate::ErrorCode::Quota): the principal holds too much.
    pub fn hold(&self, _: &mut Context) -> Result<()> {
        host::with(|host| host.hold_blob(&self.0))
    }

    /// Holds it once less. What nobody holds is deleted.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorCode::NotFound): this principal does not hold it.
    pub fn release(&self, _: &mut Context) -> Result<()> {
        host::with(|host| host.release_blob(&self.0))
    }

    /// The blobs that this principal holds, by their hashes, beyond one; at most 4,096.
    pub fn page(_: &Context, after: Option<&Self>, limit: u32) -> Vec<Held> {
        host::with(|host| host.blobs(after.map(|blob| &blob.0), limit))
    }

    /// To be fetched from a principal that holds it and gives it, at most 16 MiB of it.
    pub fn fetch(&self, from: Address) -> BlobFetch {
        BlobFetch {
            blob: *self,
            from,
            way: Way::default(),
            max_bytes: MAX_BYTES,
            deadline_ms: None,
        }
    }
}

impl BlobFetch {
    /// It is given up if it is longer.
    #[must_use]
    pub fn at_most(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// It is given up after this; else it goes on until it comes, or is canceled.
    #[must_use]
    pub fn within(mut self, cx: &Context, patience: Duration) -> Self {
        self.deadline_ms = Some(cx.later(patience));
        self
    }

    /// Who has it sees this alias instead of the node.
    #[must_use]
    pub fn alias(mut self, name: &str) -> Self {
        self.way.sender = Identity::Alias(name.into());
        self
    }

    /// It travels so, as a message would.
    #[must_use]
    pub fn way(mut self, way: Way) -> Self {
        self.way = way;
        self
    }

    /// Begins, when the event is real; the id of the one
    /// [`Plugin::blob_fetched`](crate::Plugin::blob_fetched).
    ///
    /// # Errors
    /// [`Quota`](crate::ErrorCode::Quota): `limits.one_blob_mib`, `limits.blob_fetches`, or the principal
    /// holds too much.
    pub fn begin(self, _: &mut Context) -> Result<u64> {
        host::with(|host| host.fetch_blob(self))
    }
}

impl Draft {
    /// The draft of this name: 1 to 128 bytes.
    pub fn named(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// Appends at most 1 MiB, which counts for what the event writes; how many bytes there are. The first
    /// ones begin it.
    ///
    /// # Errors
    /// [`Quota`](crate::ErrorCode::Quota): `limits.one_blob_mib`, `limits.blob_fetches`, or the principal
    /// holds too much.
    pub fn append(&self, _: &mut Context, bytes: &[u8]) -> Result<u64> {
        host::with(|host| host.append_draft(&self.0, bytes))
    }

    /// It is a blob, which is held once more, and the draft is no more.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorCode::NotFound): nothing was appended to it.
    pub fn seal(&self, _: &mut Context) -> Result<Blob> {
        host::with(|host| host.seal_draft(&self.0)).map(Blob)
    }

    /// The draft is no more.
    ///
    /// # Errors
    /// As of [`seal`](Self::seal).
    pub fn discard(&self, _: &mut Context) -> Result<()> {
        host::with(|host| host.discard_draft(&self.0))
    }
}

impl Context {
    /// Ends a fetch, of which no event tells then.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorCode::NotFound): what came of it was told.
    pub fn cancel_fetch(&mut self, id: u64) -> Result<()> {
        host::with(|host| host.cancel_fetch(id))
    }
}

impl Key for Blob {
    fn encode(&self, bytes: &mut Vec<u8>) {
        self.0.encode(bytes);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Blob {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::invalid("a blob's name has 64 hexadecimal digits");
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| wrong())?;
        bytes.try_into().map(Self).map_err(|_| wrong())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse()
                .map_err(|error: Error| de::Error::custom(error.message))
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_text_in_json_and_bytes_elsewhere() {
        let blob = Blob::named([0xa5; 32]);
        let text = "a5".repeat(32);
        assert_eq!(serde_json::to_string(&blob).unwrap(), format!("{text:?}"));
        assert_eq!(
            serde_json::from_str::<Blob>(&format!("{text:?}")).unwrap(),
            blob
        );
        let bytes = postcard::to_allocvec(&blob).unwrap();
        assert_eq!(bytes, [0xa5; 32]);
        assert_eq!(postcard::from_bytes::<Blob>(&bytes).unwrap(), blob);
        assert!("a5".parse::<Blob>().is_err());
    }
}
