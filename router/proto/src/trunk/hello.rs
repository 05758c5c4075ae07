//! Who opens a trunk, for which plugin, and the proof of it.

use std::time::Duration;

use super::{decoder::FrameError, frame::TrunkRefusal, name::Name};
use crate::{
    id::{NodeId, SIGNATURE_BYTES},
    wire::{Reader, Writer},
};

/// How far the opener's clock may be from the acceptor's, in whole minutes: clocks that people set
/// by hand.
pub const MAX_HELLO_SKEW: Duration = Duration::from_secs(600);

/// Keeps a signature over a HELLO from being one over anything else.
const SIGNATURE_CONTEXT: &[u8] = b"wormholes-trunk-v1";
/// The newest version that is spoken here.
pub const TRUNK_VERSION: u8 = 1;
const MINUTE_MS: u64 = 60_000;

numbered! {
    /// What kind of key the opener shows.
    IdentityKind, "identity kind" {
        /// Its node id.
        #[error("node")]
        Node = 1,
        /// A key by which nobody learns which node it is.
        #[error("alias")]
        Alias = 2,
    }
}

/// The first frame of a trunk. Its signature is for one acceptor; who has seen one within
/// [`MAX_HELLO_SKEW`] could send it again there, which an acceptor sees that keeps the nonces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The newest version that the opener speaks, from 1 on: [`TRUNK_VERSION`].
    pub version: u8,
    /// The plugin's instance, as the acceptor knows it.
    pub instance: Name,
    /// Who opens.
    pub identity: NodeId,
    /// As what.
    pub kind: IdentityKind,
    /// When it was signed, in minutes since 1970, rounded down.
    pub unix_minutes: u32,
    /// Drawn at random.
    pub nonce: [u8; 16],
    /// Of [`Hello::sign`].
    pub signature: [u8; SIGNATURE_BYTES],
}

impl Hello {
    /// Has it signed for `acceptor` by `sign`, which holds the key that is `identity`.
    #[must_use]
    pub fn sign(
        mut self,
        acceptor: &NodeId,
        sign: impl FnOnce(&[u8]) -> [u8; SIGNATURE_BYTES],
    ) -> Self {
        self.signature = sign(&self.signed_message(acceptor));
        self
    }

    /// Whether `identity` opens this trunk to `acceptor`, at most the whole minutes of `max_skew`
    /// from those of `now_ms`, milliseconds since 1970.
    ///
    /// # Errors
    /// What to refuse the trunk with: [`TrunkRefusal::WrongTime`], or [`TrunkRefusal::Denied`] when
    /// the signature is not the identity's, or for another acceptor.
    pub fn verify(
        &self,
        acceptor: &NodeId,
        now_ms: u64,
        max_skew: Duration,
    ) -> Result<(), TrunkRefusal> {
        let skew_minutes = u64::from(self.unix_minutes).abs_diff(now_ms / MINUTE_MS);
        if skew_minutes > max_skew.as_secs() / 60 {
            return Err(TrunkRefusal::WrongTime);
        }
        let message = self.signed_message(acceptor);
        if !self.identity.verifies(&message, &self.signature) {
            return Err(TrunkRefusal::Denied);
        }
        Ok(())
    }

    fn signed_message(&self, acceptor: &NodeId) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(SIGNATURE_CONTEXT).bytes(acceptor.as_bytes());
        self.encode_fields(&mut writer);
        writer.into_vec()
    }

    fn encode_fields(&self, writer: &mut Writer) {
        self.instance.encode(writer.u8(self.version));
        writer
            .bytes(self.identity.as_bytes())
            .u8(self.kind.number())
            .u32(self.unix_minutes)
            .bytes(&self.nonce);
    }

    pub(super) fn encode(&self, writer: &mut Writer) {
        self.encode_fields(writer);
        writer.bytes(&self.signature);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(Self {
            version: decode_version(reader, u8::MAX)?,
            instance: Name::decode(reader, "instance")?,
            identity: NodeId::from_bytes(reader.array("identity")?),
            kind: IdentityKind::decode(reader)?,
            unix_minutes: reader.u32("minute")?,
            nonce: reader.array("nonce")?,
            signature: reader.array("signature")?,
        })
    }
}

/// A version from 1 to `newest`.
pub(super) fn decode_version(reader: &mut Reader<'_>, newest: u8) -> Result<u8, FrameError> {
    let version = reader.u8("version")?;
    if (1..=newest).contains(&version) {
        Ok(version)
    } else {
        Err(FrameError::Version(version))
    }
}
