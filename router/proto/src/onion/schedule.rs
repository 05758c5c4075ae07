//! Keys of a circuit, and the ciphers that run on them.
//!
//! ```text
//! Noise NK, after both messages: (down, up) = Split()          Noise, section 5.2
//! for each direction, with HKDF-SHA256 (RFC 5869), salt "wormholes onion 1":
//!   tag key  = HKDF(secret, info "down tag" or "up tag")       AEAD of the payload
//!   slot key = HKDF(secret, info "down slots" or "up slots")   ChaCha20 over the slots
//! nonce of both: 4 zero bytes | cell counter u64, from 0 in each direction
//! stream(key, nonce): ChaCha20 from block 1, as RFC 8439, section 2.8, encrypts
//! ```
//! Streams come out of ring's AEAD, whose tag is thrown away: one fast implementation serves all,
//! in unoptimised builds too, where a generic one is fifteen times slower.

use ring::{
    aead::{self, Aad, LessSafeKey, UnboundKey},
    error::Unspecified,
    hkdf,
};
use zeroize::Zeroizing;

use crate::{
    noise::{HandshakeError, TAG_BYTES},
    suite::{Suite, counter_nonce},
};

use super::{
    cell::{CellError, CellSize},
    slots::{SLOTS_BYTES, Slots},
};

/// Keeps keys of this protocol and version from being keys of another.
const SALT: &[u8] = b"wormholes onion 1";

/// Cells of one direction of a circuit: 64 TiB of large ones, which no flow comes near. Up to there
/// the chance to tell AES-GCM from random stays below 2^-44 (NIST SP 800-38D; RFC 8446, section
/// 5.5, reckons alike).
const MAX_CELLS: u64 = 1 << 32;

/// A direction along a circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the client.
    Down,
    /// To the client.
    Up,
}

/// What one hop and the client share for one direction.
pub(super) struct LayerKeys {
    tag_key: LessSafeKey,
    slot_key: StreamKey,
}

/// A key whose ChaCha20 stream is XORed over bytes.
pub(super) struct StreamKey(LessSafeKey);

/// Numbers the cells of one direction, and refuses all after an error: a circuit that broke once
/// stays closed.
#[derive(Debug, Default)]
pub(super) struct CellCounter {
    next: u64,
}

/// Both directions of one layer from a finished handshake.
pub(super) fn layer_keys(
    suite: Suite,
    noise: &mut snow::HandshakeState,
) -> Result<(LayerKeys, LayerKeys), HandshakeError> {
    let (down, up) = noise.dangerously_get_raw_split();
    let (down, up) = (Zeroizing::new(down), Zeroizing::new(up));
    Ok((
        LayerKeys::derive(suite, &down, Direction::Down)?,
        LayerKeys::derive(suite, &up, Direction::Up)?,
    ))
}

impl StreamKey {
    pub(super) fn new(key: &[u8; 32]) -> Result<Self, HandshakeError> {
        UnboundKey::new(&aead::CHACHA20_POLY1305, key)
            .map(|key| Self(LessSafeKey::new(key)))
            .map_err(|Unspecified| HandshakeError)
    }

    /// XORs `bytes` with the stream of `nonce`.
    pub(super) fn apply(&self, nonce: u64, bytes: &mut [u8]) -> Result<(), HandshakeError> {
        self.0
            .seal_in_place_separate_tag(counter_nonce(nonce), Aad::empty(), bytes)
            .map(|_| ())
            .map_err(|Unspecified| HandshakeError)
    }

    /// The stream of `nonce` for all slots of a cell.
    pub(super) fn slots(&self, nonce: u64) -> Result<Slots, CellError> {
        let mut bytes = [0; SLOTS_BYTES];
        self.apply(nonce, &mut bytes)
            .map_err(|HandshakeError| CellError)?;
        Ok(Slots::from_bytes(&bytes))
    }
}

impl LayerKeys {
    pub(super) fn derive(
        suite: Suite,
        secret: &[u8; 32],
        direction: Direction,
    ) -> Result<Self, HandshakeError> {
        let (tag_info, slot_info): (&[u8], &[u8]) = match direction {
            Direction::Down => (b"down tag", b"down slots"),
            Direction::Up => (b"up tag", b"up slots"),
        };
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(secret);
        let tag_key = UnboundKey::new(suite.aead(), &*expand(&secret, tag_info)?)
            .map_err(|Unspecified| HandshakeError)?;
        Ok(Self {
            tag_key: LessSafeKey::new(tag_key),
            slot_key: StreamKey::new(&*expand(&secret, slot_info)?)?,
        })
    }

    /// The key stream for the slots of cell `counter`.
    pub(super) fn slot_stream(&self, counter: u64) -> Result<Slots, CellError> {
        self.slot_key.slots(counter)
    }

    /// Encrypts the payload of a cell; the tag commits to `slots` too.
    pub(super) fn seal(
        &self,
        counter: u64,
        size: CellSize,
        slots: Slots,
        payload: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], CellError> {
        let nonce = counter_nonce(counter);
        self.tag_key
            .seal_in_place_separate_tag(nonce, associated_data(size, slots), payload)
            .ok()
            .and_then(|tag| tag.as_ref().try_into().ok())
            .ok_or(CellError)
    }

    /// Checks the tag over payload and `slots`, and decrypts the payload.
    pub(super) fn open(
        &self,
        counter: u64,
        size: CellSize,
        tag: [u8; TAG_BYTES],
        slots: Slots,
        payload: &mut [u8],
    ) -> Result<(), CellError> {
        let nonce = counter_nonce(counter);
        self.tag_key
            .open_in_place_separate_tag(
                nonce,
                associated_data(size, slots),
                tag.into(),
                payload,
                0..,
            )
            .map(|_| ())
            .map_err(|Unspecified| CellError)
    }
}

impl CellCounter {
    /// The number of the next cell.
    pub(super) fn take(&mut self) -> Result<u64, CellError> {
        let counter = self.next;
        if counter >= MAX_CELLS {
            return Err(CellError);
        }
        self.next += 1;
        Ok(counter)
    }

    /// Refuses all cells from here on when `result` is an error.
    pub(super) fn close_on_error<T>(
        &mut self,
        result: Result<T, CellError>,
    ) -> Result<T, CellError> {
        if result.is_err() {
            self.next = MAX_CELLS;
        }
        result
    }
}

fn expand(secret: &hkdf::Prk, info: &[u8]) -> Result<Zeroizing<[u8; 32]>, HandshakeError> {
    let mut key = Zeroizing::new([0; 32]);
    secret
        .expand(&[info], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut key[..]))
        .map_err(|Unspecified| HandshakeError)?;
    Ok(key)
}

fn associated_data(size: CellSize, slots: Slots) -> Aad<[u8; SLOTS_BYTES + 1]> {
    let mut bytes = [size.class(); SLOTS_BYTES + 1];
    if let Some(tail) = bytes.last_chunk_mut() {
        slots.write_to(tail);
    }
    Aad::from(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8439, section 2.4.2: key 0 to 31, nonce 0 0 0 0 0 0 0 4a 0 0 0 0, stream from block 1.
    #[test]
    fn the_stream_is_that_of_the_rfc() {
        let key = StreamKey::new(&std::array::from_fn(|i| u8::try_from(i).unwrap())).unwrap();
        let mut bytes = *b"Ladies and Gentl";
        key.apply(0x4a << 32, &mut bytes).unwrap();
        let hex = data_encoding::HEXLOWER.encode(&bytes);
        assert_eq!(hex, "6e2e359a2568f98041ba0728dd0d6981");
    }

    #[test]
    fn directions_and_suites_share_no_key() {
        let seal = |suite, direction| {
            let keys = LayerKeys::derive(suite, &[7; 32], direction).unwrap();
            let tag = keys
                .seal(0, CellSize::Small, Slots::ZERO, &mut [0; 8])
                .unwrap();
            (tag, keys.slot_stream(0).unwrap())
        };
        let down = seal(Suite::AesGcm, Direction::Down);
        let up = seal(Suite::AesGcm, Direction::Up);
        assert_ne!(down.0, up.0);
        assert_ne!(down.1, up.1);
        assert_ne!(down.0, seal(Suite::ChaChaPoly, Direction::Down).0);
    }

    #[test]
    fn a_counter_that_met_an_error_gives_no_number() {
        let mut counter = CellCounter::default();
        assert_eq!(counter.take(), Ok(0));
        assert_eq!(counter.take(), Ok(1));
        let broken: Result<(), _> = counter.close_on_error(Err(CellError));
        assert_eq!(broken, Err(CellError));
        assert_eq!(counter.take(), Err(CellError));
    }

    #[test]
    fn the_last_number_is_the_limit() {
        let mut counter = CellCounter {
            next: MAX_CELLS - 1,
        };
        assert_eq!(counter.take(), Ok(MAX_CELLS - 1));
        assert_eq!(counter.take(), Err(CellError));
    }
}
