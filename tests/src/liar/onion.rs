//! Onion circuits of one hop, both ends of them, with every byte in the caller's hand.

use anyhow::{Context, Result, anyhow};
use ring::{
    digest,
    hkdf::{HKDF_SHA256, KeyType, Salt},
};
use snow::HandshakeState;
use wormholes_proto::{NodeId, OnionKey, Suite, onion::CREATE_BYTES, onion::CREATED_BYTES};

use super::noise::{CountingKey, builder};

/// One slot of CREATE, and the others.
const SLOT_BYTES: usize = 160;
const SPARE_BYTES: usize = CREATE_BYTES - SLOT_BYTES;
/// One slot of CREATED.
const CREATED_SLOT_BYTES: usize = 64;
/// What a route is told in.
const ROUTE_BYTES: usize = 112;
/// Where a hop keeps `k` in its route.
const STREAM_KEY_AT: usize = 60;
/// The slots of a cell.
const CELL_SLOTS_BYTES: usize = 128;

/// A client that has sent a CREATE to its one hop.
pub struct Building {
    noise: HandshakeState,
    suite: Suite,
}

/// One direction of a circuit of one hop.
#[derive(Debug)]
pub struct Layer {
    tags: CountingKey,
    slots: CountingKey,
    is_up: bool,
    next: u64,
}

/// Makes the slots of a CREATE whose first hop is told `route`; the others are left as they are.
///
/// # Errors
/// When the key has no such form.
pub fn create(
    hop: &NodeId,
    key: &OnionKey,
    route: &[u8],
) -> Result<(Building, [u8; CREATE_BYTES])> {
    let spare = [0x5a; SPARE_BYTES];
    let mut noise = builder("NK", key.suite)?
        .remote_public_key(&key.public)?
        .prologue(&prologue(hop, key, &spare))?
        .build_initiator()?;
    let mut slots = [0x5a; CREATE_BYTES];
    let mut route = route.to_vec();
    // What is left out or too much changes the slot's size; the hop reads one of one size.
    route.resize(ROUTE_BYTES, 0xa5);
    noise.write_message(&route, &mut slots[..SLOT_BYTES])?;
    Ok((
        Building {
            noise,
            suite: key.suite,
        },
        slots,
    ))
}

impl Building {
    /// Takes CREATED; returns the way down.
    ///
    /// # Errors
    /// When it does not hold, or the hop failed.
    pub fn created(mut self, created: &[u8]) -> Result<Layer> {
        let slot = created
            .get(..CREATED_SLOT_BYTES)
            .context("a short CREATED")?;
        let mut status = [0; 16];
        self.noise.read_message(slot, &mut status)?;
        anyhow::ensure!(status[0] == 0, "the hop failed: {}", status[0]);
        let (down, _) = self.noise.dangerously_get_raw_split();
        Layer::new(self.suite, &down, false)
    }
}

/// Answers a CREATE as its last hop. `status` is what the slot says, given the right commitment.
/// Returns CREATED and the way up.
///
/// # Errors
/// When the CREATE is for another key.
pub fn answer_create(
    id: &NodeId,
    key: &OnionKey,
    private: &[u8; 32],
    slots: &[u8; CREATE_BYTES],
    status: impl FnOnce(&[u8; 15]) -> [u8; 16],
) -> Result<([u8; CREATED_BYTES], Layer)> {
    let (slot, spare) = slots.split_first_chunk::<SLOT_BYTES>().context("no slot")?;
    let mut noise = builder("NK", key.suite)?
        .local_private_key(private)?
        .prologue(&prologue(id, key, spare))?
        .build_responder()?;
    let mut route = [0; ROUTE_BYTES];
    noise.read_message(slot, &mut route)?;
    let commitment = digest::digest(
        &digest::SHA256,
        &[&b"wormholes onion 1 created"[..], &[0; CREATED_BYTES]].concat(),
    );
    let commitment = commitment.as_ref().first_chunk().context("no digest")?;
    let mut created = [0; CREATED_BYTES];
    let (slot, rest) = created.split_at_mut(CREATED_SLOT_BYTES);
    noise.write_message(&status(commitment), slot)?;
    let stream_key = route
        .get(STREAM_KEY_AT..STREAM_KEY_AT + 32)
        .context("no key")?;
    CountingKey::new(Suite::ChaChaPoly, stream_key)?.stream(1, rest)?;
    let (_, up) = noise.dangerously_get_raw_split();
    Ok((created, Layer::new(key.suite, &up, true)?))
}

impl Layer {
    fn new(suite: Suite, secret: &[u8; 32], is_up: bool) -> Result<Self> {
        let [tag_info, slot_info] = if is_up {
            ["up tag", "up slots"]
        } else {
            ["down tag", "down slots"]
        };
        Ok(Self {
            tags: CountingKey::new(suite, &expand(secret, tag_info)?)?,
            slots: CountingKey::new(Suite::ChaChaPoly, &expand(secret, slot_info)?)?,
            is_up,
            next: 0,
        })
    }

    /// A cell with this payload, after its class, which is told as it is given.
    ///
    /// # Errors
    /// Never, for payloads of less than gigabytes.
    pub fn cell(&mut self, class: u8, payload: &[u8]) -> Result<Vec<u8>> {
        let mut payload = payload.to_vec();
        let mut slots = [0; CELL_SLOTS_BYTES];
        let with = [&[class][..], &slots].concat();
        let tag = self.tags.seal(&with, &mut payload)?;
        if self.is_up {
            self.slots.stream(self.next, &mut slots)?;
            slots.copy_within(..CELL_SLOTS_BYTES - 16, 16);
        }
        self.next += 1;
        slots[..16].copy_from_slice(&tag);
        Ok([&[class][..], &slots, &payload].concat())
    }
}

fn expand(secret: &[u8; 32], info: &str) -> Result<[u8; 32]> {
    let secret = Salt::new(HKDF_SHA256, b"wormholes onion 1").extract(secret);
    let mut key = [0; 32];
    secret
        .expand(&[info.as_bytes()], KeyBytes)
        .and_then(|okm| okm.fill(&mut key))
        .map_err(|_| anyhow!("no key"))?;
    Ok(key)
}

/// All keys here have 32 bytes.
struct KeyBytes;

impl KeyType for KeyBytes {
    fn len(&self) -> usize {
        32
    }
}

fn prologue(hop: &NodeId, key: &OnionKey, spare: &[u8]) -> Vec<u8> {
    [
        &b"wormholes onion 1\0"[..],
        &[key.suite.number()],
        hop.as_bytes(),
        &key.key_id,
        spare,
    ]
    .concat()
}

impl std::fmt::Debug for Building {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Building").finish_non_exhaustive()
    }
}
