//! Cells of a circuit that stands.

use wormholes_proto::{
    OnionKey, StaticKeypair, Suite,
    onion::{
        CellError, CellSize, ClientBuild, ClientOpener, CreateOutcome, DATA_OFFSET, Delivered,
        LARGE_CELL, LastDown, MessageKind, PathHop, SMALL_CELL,
    },
};

use super::{Hop, Input, NOW, build, liar, rng, route_of_last};

/// Slots of a cell.
const SLOTS_BYTES: usize = 128;
/// Type and length of a message.
const HEAD_BYTES: usize = 3;

/// One end of a circuit that opens cells.
enum End {
    Hop(Box<LastDown>),
    Client(ClientOpener),
}

/// What an end may be told next.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Greeting,
    Flow,
    Over,
}

/// Cells under the right keys with whatever in them, to the last hop or to the client; or a cell
/// that is damaged on its way.
pub fn cells(input: &[u8]) {
    let mut input = Input::new(input);
    match input.byte() % 3 {
        0 => told(input, down(), MessageKind::Open),
        1 => told(input, up(), MessageKind::Answer),
        _ => damaged(input),
    }
}

fn told(mut input: Input<'_>, (mut sender, mut end): (liar::Layer, End), greeting: MessageKind) {
    let mut stage = Stage::Greeting;
    while !input.is_empty() {
        let choice = input.byte();
        let size = match choice & 1 {
            0 => CellSize::Small,
            _ => CellSize::Large,
        };
        let class = match choice & 2 {
            0 => size.class(),
            _ => choice >> 2,
        };
        let mut payload = input.piece().to_vec();
        payload.resize(size.bytes() - SLOTS_BYTES, 0);
        let mut cell = sender.cell(class, &payload).unwrap().split_off(1);
        let expected = expected(&payload, greeting, &mut stage);
        let expected = expected.filter(|_| class == size.class());
        if expected.is_none() {
            stage = Stage::Over;
        }
        let opened = end.open(&mut cell);
        assert_eq!(opened, expected.ok_or(CellError));
        if let Ok(message) = opened {
            let data = payload.get(HEAD_BYTES..HEAD_BYTES + message.data.len());
            assert_eq!(cell.get(message.data), data);
        }
    }
}

/// By the diagram in `onion/cell.rs`.
fn expected(payload: &[u8], greeting: MessageKind, stage: &mut Stage) -> Option<Delivered> {
    let ([kind, high, low], data) = payload.split_first_chunk().unwrap();
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    let kind = match kind {
        1 => MessageKind::Open,
        2 => MessageKind::Answer,
        3 => MessageKind::Data,
        4 if len == 0 => MessageKind::End,
        _ => return None,
    };
    *stage = match (*stage, kind) {
        (Stage::Greeting, kind) if kind == greeting => Stage::Flow,
        (Stage::Flow, MessageKind::Data) => Stage::Flow,
        (Stage::Flow, MessageKind::End) => Stage::Over,
        _ => return None,
    };
    (len <= data.len()).then_some(Delivered {
        kind,
        data: DATA_OFFSET..DATA_OFFSET + len,
    })
}

fn damaged(mut input: Input<'_>) {
    let (client, hops, last) = build(2, |_, _| {}).unwrap();
    let (mut sealer, mut opener) = client.split();
    let (mut down, mut up) = hops.into_iter().next().unwrap().split();
    let (mut last_down, mut last_up) = last.split();
    let choice = input.byte();
    let mut cell = match choice & 1 {
        0 => vec![0x5a; SMALL_CELL],
        _ => vec![0x5a; LARGE_CELL],
    };
    let data_len = 100;
    let (is_damaged, delivered) = if choice & 2 == 0 {
        sealer.seal(MessageKind::Open, data_len, &mut cell).unwrap();
        let is_damaged = input.damage(&mut cell);
        let peeled = down.peel(&mut cell);
        assert_eq!(peeled.is_err(), is_damaged, "the first hop sees damage");
        (is_damaged, peeled.and_then(|()| last_down.open(&mut cell)))
    } else {
        last_up
            .seal(MessageKind::Answer, data_len, &mut cell)
            .unwrap();
        let is_damaged = input.damage(&mut cell);
        up.wrap(&mut cell).unwrap();
        (is_damaged, opener.open(&mut cell))
    };
    assert_eq!(delivered.is_err(), is_damaged, "the far end sees damage");
    if let Ok(message) = delivered {
        assert_eq!(cell.get(message.data), Some(&[0x5a; 100][..]));
    }
}

/// A client that seals what it likes, and its hop.
fn down() -> (liar::Layer, End) {
    let mut hop = Hop::new(1);
    let (client, slots) = liar::create(&hop.id, &hop.key(), &route_of_last()).unwrap();
    let CreateOutcome::Last { created, circuit } = hop.take(&slots) else {
        panic!("an honest CREATE is refused");
    };
    let (down, _) = circuit.split();
    (client.created(&created[..]).unwrap(), End::Hop(down.into()))
}

/// A hop that seals what it likes, and its client.
fn up() -> (liar::Layer, End) {
    let keypair = StaticKeypair::from_private([7; 32]).unwrap();
    let hop = PathHop {
        id: Hop::new(1).id,
        address: ([203, 0, 113, 1], 443).into(),
        key: OnionKey {
            key_id: [1; 8],
            suite: Suite::AesGcm,
            public: *keypair.public(),
            expires: NOW,
        },
    };
    let (client, create) = ClientBuild::new(&[hop], &mut rng(0)).unwrap();
    let private = keypair.private();
    let honest = |commitment: &[u8; 15]| {
        let mut status = [0; 16];
        status[1..].copy_from_slice(commitment);
        status
    };
    let answered = liar::answer_create(&hop.id, &hop.key, private, &create.slots, honest);
    let (created, layer) = answered.unwrap();
    let (_, opener) = client.handle_created(&created).unwrap().split();
    (layer, End::Client(opener))
}

impl End {
    fn open(&mut self, cell: &mut [u8]) -> Result<Delivered, CellError> {
        match self {
            Self::Hop(hop) => hop.open(cell),
            Self::Client(client) => client.open(cell),
        }
    }
}
