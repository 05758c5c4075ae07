//! Onion circuits: CREATE at a hop, CREATED at the client, cells at both ends. The circuits are
//! real ones, made anew for each input.

mod cells;

use std::{
    net::{IpAddr, SocketAddr},
    time::{SystemTime, UNIX_EPOCH},
};

use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wormholes_proto::{
    NodeId, OnionKey, Reason, StaticKeypair, Suite, is_dialable,
    onion::{
        BuildError, CREATE_BYTES, CREATED_BYTES, ClientBuild, ClientCircuit, Create, CreateOutcome,
        HopCircuit, LastCircuit, OnionKeys, PathHop,
    },
};

use super::input::Input;
use crate::liar::onion as liar;

pub use cells::cells;

const NOW: SystemTime = UNIX_EPOCH;
const ROUTE_BYTES: usize = 112;
/// Of a route: this hop is the last.
const LAST: u8 = 1;

/// A hop with its keys.
struct Hop {
    id: NodeId,
    keys: OnionKeys,
}

/// A route as it stands in a CREATE.
#[derive(Debug, PartialEq)]
enum Route {
    Last,
    Next(NodeId, SocketAddr, [u8; 8]),
}

/// A route under the right key; or a CREATE that is damaged on its way.
pub fn create(input: &[u8]) {
    let mut input = Input::new(input);
    if input.byte() & 1 == 0 {
        told(input.rest());
    } else {
        let mut hop = Hop::new(1);
        let (_, mut slots) = liar::create(&hop.id, &hop.key(), &route_of_last()).unwrap();
        let is_damaged = input.damage(&mut slots);
        let opened = matches!(hop.take(&slots), CreateOutcome::Last { .. });
        assert_ne!(opened, is_damaged);
    }
}

/// Tells a hop this route.
fn told(route: &[u8]) {
    let mut hop = Hop::new(1);
    let mut route = route.to_vec();
    route.resize(ROUTE_BYTES, 0);
    let (client, slots) = liar::create(&hop.id, &hop.key(), &route).unwrap();
    let read = match hop.take(&slots) {
        CreateOutcome::Stale => panic!("the key is fresh"),
        CreateOutcome::Drop => None,
        CreateOutcome::Last { created, .. } => {
            client.created(&created[..]).unwrap();
            Some(Route::Last)
        }
        CreateOutcome::Forward(forward) => {
            let route = Route::Next(forward.next, forward.address, forward.create.key_id);
            let created = forward.pending.handle_created(&[0; CREATED_BYTES]);
            client.created(&created.unwrap().0).unwrap();
            Some(route)
        }
    };
    assert_eq!(read, expected(&route, &hop.id));
    assert!(matches!(hop.take(&slots), CreateOutcome::Drop), "a replay");
}

/// By the diagram in `onion/route.rs`.
fn expected(route: &[u8], own: &NodeId) -> Option<Route> {
    let mut route = Input::new(route);
    let flags = route.byte();
    let id: [u8; 32] = route.bytes(32).try_into().unwrap();
    let family = route.byte();
    let address: [u8; 16] = route.bytes(16).try_into().unwrap();
    let port: [u8; 2] = route.bytes(2).try_into().unwrap();
    let key_id: [u8; 8] = route.bytes(8).try_into().unwrap();
    let _stream_key = route.bytes(32);
    if !is_zero(route.rest()) {
        return None;
    }
    if flags == LAST {
        let rest = [&id[..], &[family], &address, &port, &key_id].concat();
        return is_zero(&rest).then_some(Route::Last);
    }
    let (v4, padding) = address.split_first_chunk::<4>().unwrap();
    let ip = match family {
        4 if is_zero(padding) => IpAddr::from(*v4),
        6 => IpAddr::from(address),
        _ => return None,
    };
    let address = SocketAddr::new(ip, u16::from_be_bytes(port));
    let id = NodeId::from_bytes(id);
    let fits = flags == 0 && is_dialable(&address) && id != *own;
    fits.then_some(Route::Next(id, address, key_id))
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn route_of_last() -> Vec<u8> {
    let mut route = vec![0; ROUTE_BYTES];
    route.splice(..1, [LAST]);
    route
}

/// A CREATED that is damaged between two nodes; or a hop that says what it likes under the right
/// key.
pub fn created(input: &[u8]) {
    let mut input = Input::new(input);
    let choice = input.byte();
    if choice & 1 == 0 {
        let (n_hops, place) = (usize::from(choice >> 1 & 3) + 1, usize::from(choice >> 3));
        let mut is_damaged = false;
        let circuit = build(n_hops, |behind, created| {
            if behind == place % n_hops {
                is_damaged = input.damage(created);
            }
        });
        let error = circuit.map(drop).err();
        assert_eq!(error.is_some(), is_damaged);
        let all_say = error.is_none_or(|error| error.reason == Reason::Handshake);
        assert!(all_say, "damage passes for a word of a hop");
    } else {
        said(input);
    }
}

/// A hop's status, whose commitment is the right one but for the bits of the input.
fn said(mut input: Input<'_>) {
    let keypair = StaticKeypair::from_private([7; 32]).unwrap();
    let hop = PathHop {
        id: NodeId::from_bytes([1; 32]),
        address: ([203, 0, 113, 1], 443).into(),
        key: OnionKey {
            key_id: [1; 8],
            suite: Suite::ChaChaPoly,
            public: *keypair.public(),
            expires: NOW,
        },
    };
    let (client, create) = ClientBuild::new(&[hop], &mut rng(0)).unwrap();
    let number = input.byte();
    let bits = input.bytes(15);
    let (created, _) = liar::answer_create(
        &hop.id,
        &hop.key,
        keypair.private(),
        &create.slots,
        |commitment| {
            let mut status = [number; 16];
            status[1..].copy_from_slice(commitment);
            let told = status[1..].iter_mut().zip(bits);
            told.for_each(|(byte, bits)| *byte ^= bits);
            status
        },
    )
    .unwrap();
    let reason = match number {
        _ if !is_zero(bits) => Some(Reason::Handshake),
        0 => None,
        _ => Some(Reason::from_number(number).unwrap_or(Reason::Handshake)),
    };
    let expected = reason.map(|reason| BuildError { hop: 0, reason });
    assert_eq!(client.handle_created(&created).map(drop).err(), expected);
}

/// A built circuit: the client, the hops on the way, the last hop.
type Built = (ClientCircuit, Vec<HopCircuit>, LastCircuit);

/// Builds a circuit. `touch` has each CREATED in its hands, with the number of the hop that sent
/// it.
fn build(
    n_hops: usize,
    mut touch: impl FnMut(usize, &mut [u8; CREATED_BYTES]),
) -> Result<Built, BuildError> {
    let mut hops: Vec<_> = (1..=n_hops).map(|number| Hop::new(number as u8)).collect();
    let path: Vec<_> = hops.iter().map(Hop::in_path).collect();
    let (client, Create { mut slots, .. }) = ClientBuild::new(&path, &mut rng(0)).unwrap();
    let mut pending = Vec::new();
    for hop in &mut hops {
        match hop.take(&slots) {
            CreateOutcome::Forward(forward) => {
                pending.push(forward.pending);
                slots = forward.create.slots;
            }
            CreateOutcome::Last {
                mut created,
                circuit,
            } => {
                let mut circuits = Vec::new();
                for (behind, pending) in pending.into_iter().enumerate().rev() {
                    touch(behind + 1, &mut created);
                    let (next, circuit) = pending.handle_created(&created).unwrap();
                    circuits.push(circuit);
                    *created = next;
                }
                touch(0, &mut created);
                circuits.reverse();
                let client = client.handle_created(&created)?;
                return Ok((client, circuits, *circuit));
            }
            CreateOutcome::Stale | CreateOutcome::Drop => panic!("an honest CREATE is refused"),
        }
    }
    panic!("no hop is the last")
}

impl Hop {
    fn new(number: u8) -> Self {
        let id = NodeId::from_bytes([number; 32]);
        let keys = OnionKeys::new(id, &[Suite::AesGcm], NOW, &mut rng(number.into()));
        Self {
            id,
            keys: keys.unwrap(),
        }
    }

    fn key(&self) -> OnionKey {
        *self.keys.published().first().unwrap()
    }

    fn in_path(&self) -> PathHop {
        PathHop {
            id: self.id,
            address: ([203, 0, 113, 1], 443).into(),
            key: self.key(),
        }
    }

    fn take(&mut self, slots: &[u8; CREATE_BYTES]) -> CreateOutcome {
        let key_id = self.key().key_id;
        self.keys.handle_create(NOW, &key_id, slots, &mut rng(100))
    }
}

fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}
