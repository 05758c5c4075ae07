//! Onion circuits over links that delay, lose, double and reorder: once as they are, and once under
//! a stream that mends that, as QUIC does in production.
//!
//! ```text
//! 0 client  --  1 hop  --  2 hop  --  …  --  n last hop, which echoes
//! ```

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, UNIX_EPOCH},
};

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wormholes_proto::{
    NodeId, Suite,
    onion::{
        CREATED_BYTES, CellError, CellSize, ClientBuild, ClientOpener, ClientSealer, Create,
        CreateOutcome, DATA_OFFSET, Delivered, HopDown, HopPending, HopUp, LastDown, LastUp,
        MAX_HOPS, MessageKind, OnionKeys, PathHop,
    },
};
use wormholes_tests::sim::{Conditions, Machine, Outbox, SimNet, for_seeds};

const CLIENT: usize = 0;
const SECOND: Duration = Duration::from_secs(1);
/// A client that was not answered, or not to the end, tries again after this.
const PATIENCE: Duration = Duration::from_secs(120);
/// What was not acknowledged is sent again after this: more than a round trip of a rough link.
const RESEND: Duration = Duration::from_secs(1);

/// What a stream between two neighbours carries, with the number of the client's attempt.
#[derive(Debug, Clone)]
enum Body {
    Create(Create),
    Created(Box<[u8; CREATED_BYTES]>),
    Cell(Vec<u8>),
    /// The circuit is over.
    Close,
}

type OnCircuit = (u64, Body);

/// What the network carries.
#[derive(Debug, Clone)]
enum Message {
    Datagram(OnCircuit),
    /// A datagram with its number in its stream.
    Segment(u64, OnCircuit),
    /// All segments before this one arrived.
    Ack(u64),
}

/// One end of what is between two neighbours.
#[derive(Default)]
struct Wire {
    /// Mends what the link does; else everything arrives as the link lets it.
    is_stream: bool,
    n_sent: u64,
    unacknowledged: BTreeMap<u64, OnCircuit>,
    resend_at: Option<Duration>,
    n_received: u64,
    early: BTreeMap<u64, OnCircuit>,
}

impl Wire {
    fn send(&mut self, now: Duration, to: usize, body: OnCircuit, out: &mut Outbox<Message>) {
        if !self.is_stream {
            return out.send(to, Message::Datagram(body));
        }
        self.unacknowledged.insert(self.n_sent, body.clone());
        out.send(to, Message::Segment(self.n_sent, body));
        self.n_sent += 1;
        self.resend_at.get_or_insert(now + RESEND);
    }

    fn handle(
        &mut self,
        from: usize,
        message: Message,
        out: &mut Outbox<Message>,
    ) -> Vec<OnCircuit> {
        match message {
            Message::Datagram(body) => return vec![body],
            Message::Segment(number, body) if number >= self.n_received => {
                self.early.insert(number, body);
            }
            Message::Segment(..) => {}
            Message::Ack(next) => {
                self.unacknowledged = self.unacknowledged.split_off(&next);
                return Vec::new();
            }
        }
        let mut in_order = Vec::new();
        while let Some(body) = self.early.remove(&self.n_received) {
            self.n_received += 1;
            in_order.push(body);
        }
        out.send(from, Message::Ack(self.n_received));
        in_order
    }

    fn handle_timeout(&mut self, now: Duration, to: usize, out: &mut Outbox<Message>) {
        if self.resend_at.is_some_and(|at| at <= now) {
            for (number, body) in &self.unacknowledged {
                out.send(to, Message::Segment(*number, body.clone()));
            }
            let is_done = self.unacknowledged.is_empty();
            self.resend_at = (!is_done).then_some(now + RESEND);
        }
    }
}

struct Node {
    place: usize,
    wires: BTreeMap<usize, Wire>,
    part: Part,
    rng: ChaCha20Rng,
}

enum Part {
    Client(Client),
    Hop(Hop),
}

struct Client {
    path: Vec<PathHop>,
    /// What the last hop shall echo.
    data: Vec<Vec<u8>>,
    attempt: u64,
    state: State,
    due: Option<Duration>,
    n_opened: u64,
    n_broken: u64,
}

enum State {
    Building(Box<ClientBuild>),
    Open {
        opener: Box<ClientOpener>,
        n_echoed: usize,
    },
    /// This attempt is over, and another one is due.
    Lost,
    /// All came back.
    Done,
}

struct Hop {
    keys: OnionKeys,
    /// All hops, by place from 1.
    ids: Vec<NodeId>,
    circuits: BTreeMap<u64, Carried>,
    /// CREATEs that came again.
    n_replays: u64,
    /// What the client sends, to hold what comes against.
    data: Vec<Vec<u8>>,
}

enum Carried {
    Building(Box<HopPending>),
    Middle(Box<(HopDown, HopUp)>),
    Last {
        ends: Box<(LastDown, LastUp)>,
        n_received: usize,
    },
    Over,
}

impl Client {
    fn new(path: Vec<PathHop>, data: Vec<Vec<u8>>) -> Self {
        Self {
            path,
            data,
            attempt: 0,
            state: State::Lost,
            due: Some(Duration::ZERO),
            n_opened: 0,
            n_broken: 0,
        }
    }

    fn start(&mut self, now: Duration, rng: &mut ChaCha20Rng) -> Vec<OnCircuit> {
        let (build, create) = ClientBuild::new(&self.path, rng).unwrap();
        let before = self.attempt;
        self.attempt += 1;
        self.state = State::Building(Box::new(build));
        self.due = Some(now + PATIENCE);
        vec![(before, Body::Close), (self.attempt, Body::Create(create))]
    }

    fn handle(&mut self, now: Duration, (circuit, body): OnCircuit) -> Vec<OnCircuit> {
        if circuit != self.attempt {
            return Vec::new();
        }
        let state = std::mem::replace(&mut self.state, State::Lost);
        match (state, body) {
            (State::Building(build), Body::Created(slots)) => {
                let (sealer, opener) = build.handle_created(&slots).unwrap().split();
                self.n_opened += 1;
                self.state = State::Open {
                    opener: Box::new(opener),
                    n_echoed: 0,
                };
                self.all_cells(sealer)
            }
            (State::Open { opener, n_echoed }, Body::Cell(cell)) => {
                match self.take(opener, n_echoed, cell) {
                    Ok(state) => {
                        self.state = state;
                        Vec::new()
                    }
                    Err(CellError) => self.give_up(now),
                }
            }
            (State::Building(_) | State::Open { .. }, Body::Close) => self.give_up(now),
            (state, _) => {
                self.state = state;
                Vec::new()
            }
        }
    }

    /// The client says all at once: the answer to OPEN may take its time.
    fn all_cells(&self, mut sealer: ClientSealer) -> Vec<OnCircuit> {
        let open = (MessageKind::Open, &b"a target"[..]);
        let data = self.data.iter().map(|data| (MessageKind::Data, &data[..]));
        let end = (MessageKind::End, &b""[..]);
        let messages = [open].into_iter().chain(data).chain([end]);
        messages
            .map(|(kind, data)| {
                let mut cell = cell_with(data);
                sealer.seal(kind, data.len(), &mut cell).unwrap();
                (self.attempt, Body::Cell(cell))
            })
            .collect()
    }

    fn take(
        &mut self,
        mut opener: Box<ClientOpener>,
        mut n_echoed: usize,
        mut cell: Vec<u8>,
    ) -> Result<State, CellError> {
        let Delivered { kind, data } = opener.open(&mut cell)?;
        match kind {
            MessageKind::Answer => assert_eq!(&cell[data], b"the answer"),
            MessageKind::Data => {
                assert!(cell[data] == self.data[n_echoed], "other data came back");
                n_echoed += 1;
            }
            MessageKind::End => {
                assert_eq!(n_echoed, self.data.len(), "the end came before all data");
                self.due = None;
                return Ok(State::Done);
            }
            MessageKind::Open => panic!("a last hop opens nothing"),
        }
        Ok(State::Open { opener, n_echoed })
    }

    fn give_up(&mut self, now: Duration) -> Vec<OnCircuit> {
        self.n_broken += 1;
        self.due = Some(now + SECOND);
        vec![(self.attempt, Body::Close)]
    }
}

impl Hop {
    /// What goes to which neighbour.
    fn handle(
        &mut self,
        now: Duration,
        place: usize,
        from: usize,
        (circuit, body): OnCircuit,
        rng: &mut ChaCha20Rng,
    ) -> Vec<(usize, OnCircuit)> {
        let (before, behind) = (place - 1, place + 1);
        let carried = self.circuits.remove(&circuit);
        let (carried, sent) = match (carried, body) {
            (carried, Body::Create(create)) => {
                self.create(now, (before, behind), carried, &create, rng)
            }
            (Some(Carried::Building(pending)), Body::Created(slots)) => {
                let (created, circuit) = pending.handle_created(&slots).unwrap();
                let created = Body::Created(Box::new(created));
                let carried = Carried::Middle(Box::new(circuit.split()));
                (Some(carried), vec![(before, created)])
            }
            (Some(Carried::Middle(mut ends)), Body::Cell(mut cell)) => {
                let (passed, to) = if from == before {
                    (ends.0.peel(&mut cell), behind)
                } else {
                    (ends.1.wrap(&mut cell), before)
                };
                match passed {
                    Ok(()) => (Some(Carried::Middle(ends)), vec![(to, Body::Cell(cell))]),
                    Err(CellError) => over(&[before, behind]),
                }
            }
            (Some(Carried::Last { ends, n_received }), Body::Cell(cell)) => {
                match self.echo(ends, n_received, cell) {
                    Ok((carried, cell)) => (Some(carried), vec![(before, Body::Cell(cell))]),
                    Err(CellError) => over(&[before]),
                }
            }
            (Some(Carried::Middle(_) | Carried::Building(_)), Body::Close) => {
                over(&[if from == before { behind } else { before }])
            }
            (Some(Carried::Last { .. }), Body::Close) => over(&[]),
            // Too early, too late, or of a circuit that is over.
            (carried, _) => (carried, Vec::new()),
        };
        self.circuits
            .extend(carried.map(|carried| (circuit, carried)));
        let sent = sent.into_iter();
        sent.map(|(to, body)| (to, (circuit, body))).collect()
    }

    fn create(
        &mut self,
        now: Duration,
        (before, behind): (usize, usize),
        carried: Option<Carried>,
        create: &Create,
        rng: &mut ChaCha20Rng,
    ) -> (Option<Carried>, Vec<(usize, Body)>) {
        let now = UNIX_EPOCH + now;
        let outcome = self
            .keys
            .handle_create(now, &create.key_id, &create.slots, rng);
        match (outcome, carried) {
            (CreateOutcome::Drop, Some(carried)) => {
                self.n_replays += 1;
                (Some(carried), Vec::new())
            }
            (CreateOutcome::Last { created, circuit }, None) => {
                let ends = Box::new(circuit.split());
                let n_received = 0;
                let carried = Carried::Last { ends, n_received };
                (Some(carried), vec![(before, Body::Created(created))])
            }
            (CreateOutcome::Forward(forward), None) => {
                assert_eq!(
                    forward.next,
                    self.ids[behind - 1],
                    "the next hop is another"
                );
                let carried = Carried::Building(Box::new(forward.pending));
                (Some(carried), vec![(behind, Body::Create(forward.create))])
            }
            (CreateOutcome::Last { .. } | CreateOutcome::Forward(_), Some(_)) => {
                panic!("one CREATE made two circuits")
            }
            (CreateOutcome::Drop | CreateOutcome::Stale, None) | (CreateOutcome::Stale, _) => {
                panic!("an honest CREATE was refused")
            }
        }
    }

    /// The last hop's answer to a cell.
    fn echo(
        &self,
        mut ends: Box<(LastDown, LastUp)>,
        mut n_received: usize,
        mut cell: Vec<u8>,
    ) -> Result<(Carried, Vec<u8>), CellError> {
        let Delivered { kind, data } = ends.0.open(&mut cell)?;
        let (kind, data) = match kind {
            MessageKind::Open => (MessageKind::Answer, b"the answer".to_vec()),
            MessageKind::Data => {
                assert!(
                    cell[data.clone()] == self.data[n_received],
                    "other data came"
                );
                n_received += 1;
                (MessageKind::Data, cell[data].to_vec())
            }
            MessageKind::End => (MessageKind::End, Vec::new()),
            MessageKind::Answer => panic!("a client answers nothing"),
        };
        let mut cell = cell_with(&data);
        ends.1.seal(kind, data.len(), &mut cell).unwrap();
        Ok((Carried::Last { ends, n_received }, cell))
    }
}

/// The circuit ends, and these neighbours hear of it.
fn over(neighbours: &[usize]) -> (Option<Carried>, Vec<(usize, Body)>) {
    let told = neighbours.iter().map(|to| (*to, Body::Close));
    (Some(Carried::Over), told.collect())
}

fn cell_with(data: &[u8]) -> Vec<u8> {
    let fits = data.len() <= CellSize::Small.max_data_bytes();
    let size = if fits {
        CellSize::Small
    } else {
        CellSize::Large
    };
    let mut cell = vec![0xee; size.bytes()];
    cell[DATA_OFFSET..][..data.len()].copy_from_slice(data);
    cell
}

impl Node {
    fn send_all(
        &mut self,
        now: Duration,
        sent: impl IntoIterator<Item = (usize, OnCircuit)>,
        out: &mut Outbox<Message>,
    ) {
        for (to, body) in sent {
            // A last hop has nobody behind it.
            if let Some(wire) = self.wires.get_mut(&to) {
                wire.send(now, to, body, out);
            }
        }
    }

    fn client(&self) -> &Client {
        match &self.part {
            Part::Client(client) => client,
            Part::Hop(_) => panic!("no client"),
        }
    }
}

impl Machine for Node {
    type Message = Message;

    fn handle_message(
        &mut self,
        now: Duration,
        from: usize,
        message: Message,
        out: &mut Outbox<Message>,
    ) {
        let wire = self.wires.get_mut(&from).unwrap();
        for body in wire.handle(from, message, out) {
            let sent = match &mut self.part {
                Part::Client(client) => to_first_hop(client.handle(now, body)),
                Part::Hop(hop) => hop.handle(now, self.place, from, body, &mut self.rng),
            };
            self.send_all(now, sent, out);
        }
    }

    fn handle_timeout(&mut self, now: Duration, out: &mut Outbox<Message>) {
        for (to, wire) in &mut self.wires {
            wire.handle_timeout(now, *to, out);
        }
        if let Part::Client(client) = &mut self.part
            && client.due.is_some_and(|due| due <= now)
        {
            let sent = to_first_hop(client.start(now, &mut self.rng));
            self.send_all(now, sent, out);
        }
    }

    fn poll_timeout(&self) -> Option<Duration> {
        let resends = self.wires.values().filter_map(|wire| wire.resend_at);
        let due = match &self.part {
            Part::Client(client) => client.due,
            Part::Hop(_) => None,
        };
        resends.chain(due).min()
    }
}

fn to_first_hop(sent: Vec<OnCircuit>) -> Vec<(usize, OnCircuit)> {
    sent.into_iter().map(|body| (CLIENT + 1, body)).collect()
}

/// Data for one cell of either size.
fn piece(rng: &mut ChaCha20Rng) -> Vec<u8> {
    let mut data = vec![0; rng.random_range(1..=CellSize::Large.max_data_bytes())];
    if rng.random_bool(0.5) {
        data.truncate(CellSize::Small.max_data_bytes());
    }
    rng.fill_bytes(&mut data);
    data
}

/// A client and 1 to 8 hops in a row; the client begins at once.
fn row(seed: u64, is_stream: bool, links: Conditions) -> SimNet<Node> {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let n_hops = 1 + (seed as usize) % MAX_HOPS;
    let ids: Vec<_> = (1..=n_hops)
        .map(|place| NodeId::from_bytes([place as u8; 32]))
        .collect();
    let suite = |place: usize| [Suite::AesGcm, Suite::ChaChaPoly][place % 2];
    let keys: Vec<_> = (1..)
        .zip(&ids)
        .map(|(place, id)| OnionKeys::new(*id, &[suite(place)], UNIX_EPOCH, &mut rng).unwrap())
        .collect();
    let hops = (1..).zip(ids.iter().zip(&keys));
    let path = hops.map(|(place, (id, keys))| PathHop {
        id: *id,
        address: SocketAddr::from(([127, place, 0, 1], 4433)),
        key: keys.published()[0],
    });
    let data: Vec<_> = (0..30).map(|_| piece(&mut rng)).collect();
    let client = Client::new(path.collect(), data.clone());
    let hop = |keys| Hop {
        keys,
        ids: ids.clone(),
        circuits: BTreeMap::new(),
        n_replays: 0,
        data: data.clone(),
    };
    let hops = keys.into_iter().map(|keys| Part::Hop(hop(keys)));
    let parts = std::iter::once(Part::Client(client)).chain(hops);
    let nodes = parts.enumerate().map(|(place, part)| {
        let neighbours = [
            place.checked_sub(1),
            Some(place + 1).filter(|next| *next <= n_hops),
        ];
        let wire = || Wire {
            is_stream,
            ..Wire::default()
        };
        Node {
            place,
            wires: neighbours
                .into_iter()
                .flatten()
                .map(|to| (to, wire()))
                .collect(),
            part,
            rng: ChaCha20Rng::seed_from_u64(seed ^ (place as u64) << 32),
        }
    });
    SimNet::new(seed, nodes.collect(), links)
}

fn is_done(net: &SimNet<Node>) -> bool {
    matches!(net.machines()[CLIENT].client().state, State::Done)
}

#[test]
fn a_stream_over_rough_links_carries_a_circuit_whole() {
    for_seeds(24, |seed| {
        let mut net = row(seed, true, Conditions::rough());
        assert!(net.run_until(PATIENCE, is_done), "not all came back");
        let client = net.machines()[CLIENT].client();
        assert_eq!((client.attempt, client.n_broken), (1, 0));
    })
    .unwrap();
}

#[test]
fn a_circuit_outlives_a_cut_of_its_path() {
    for_seeds(24, |seed| {
        let mut net = row(seed, true, Conditions::rough());
        let opened = |net: &SimNet<Node>| net.machines()[CLIENT].client().n_opened > 0;
        assert!(net.run_until(PATIENCE / 2, opened), "not built");
        let n_links = net.machines().len() - 1;
        let place = (seed as usize / MAX_HOPS) % n_links;
        net.partition(&[place], &[place + 1]);
        net.run_for(10 * SECOND, |_| {});
        assert!(!is_done(&net), "nothing was cut");
        net.heal();
        assert!(net.run_until(PATIENCE, is_done), "not all came back");
        assert_eq!(net.machines()[CLIENT].client().attempt, 1);
    })
    .unwrap();
}

/// The layers alone forgive nothing: a cell that is lost, comes twice or out of turn ends the
/// circuit, and neither end ever takes other data than were sent; a CREATE makes one circuit.
#[test]
fn rough_links_break_a_bare_circuit_and_forge_nothing() {
    let (mut n_opened, mut n_broken, mut n_replays) = (0, 0, 0);
    for_seeds(24, |seed| {
        let mut net = row(seed, false, Conditions::rough());
        net.run_for(40 * PATIENCE, |_| {});
        for node in net.machines() {
            match &node.part {
                Part::Client(client) => {
                    n_opened += client.n_opened;
                    n_broken += client.n_broken;
                }
                Part::Hop(hop) => n_replays += hop.n_replays,
            }
        }
    })
    .unwrap();
    if std::env::var_os("WORMHOLES_SEED").is_none() {
        assert!(n_opened > 20, "{n_opened} circuits were built");
        assert!(n_broken > 20, "{n_broken} circuits were broken");
        assert!(n_replays > 20, "{n_replays} CREATEs came twice");
    }
}
