//! Nodes in a row, and a hook on every link between them.

use std::{
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use wormholes_proto::{
    NodeId, Reason, Suite,
    onion::{
        BuildError, CREATE_BYTES, CREATED_BYTES, CellError, CellSize, ClientBuild, ClientOpener,
        ClientSealer, Create, CreateOutcome, DATA_OFFSET, HopDown, HopUp, LastCircuit, LastDown,
        LastUp, MessageKind, OnionKeys, PathHop,
    },
};

/// When the nodes start.
pub(crate) const FIRST_DAY: SystemTime = UNIX_EPOCH;

/// A message on the link between a hop and the one before it, or the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// CREATE to this hop.
    Create(usize),
    /// CREATED from this hop.
    Created(usize),
    /// A cell to this hop.
    Down(usize),
    /// A cell from this hop.
    Up(usize),
}

/// Sees and may change what passes.
pub(crate) type Hook<'h> = &'h mut dyn FnMut(Link, &mut [u8]);

/// The nodes of a path.
pub(crate) struct OnionNet {
    nodes: Vec<OnionKeys>,
    ids: Vec<NodeId>,
    now: SystemTime,
    /// What each hop of the last build was told: next node, its address, its key id.
    pub(crate) told: Vec<Option<(NodeId, SocketAddr, [u8; 8])>>,
    /// This hop refuses any CREATE with this reason.
    pub(crate) refuse_at: Option<(usize, Reason)>,
    /// The randomness of all.
    pub(crate) rng: ChaCha20Rng,
    hops: Vec<(HopDown, HopUp)>,
    last: Option<Box<LastCircuit>>,
}

/// A circuit with all its parties.
pub(crate) struct Circuit {
    pub(crate) sealer: ClientSealer,
    pub(crate) opener: ClientOpener,
    /// All hops but the last, the first hop's first.
    pub(crate) hops: Vec<(HopDown, HopUp)>,
    pub(crate) last: (LastDown, LastUp),
}

/// A hook that changes nothing.
pub(crate) fn honest(_: Link, _: &mut [u8]) {}

impl Link {
    /// The hop at the far end of the link, seen from the client.
    pub(crate) fn hop(self) -> usize {
        match self {
            Self::Create(hop) | Self::Created(hop) | Self::Down(hop) | Self::Up(hop) => hop,
        }
    }
}

impl OnionNet {
    /// `n_hops` nodes; the suites are dealt out in turn.
    pub(crate) fn new(n_hops: usize, suites: &[Suite], seed: u64) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let ids: Vec<_> = (1..=u8::try_from(n_hops).unwrap())
            .map(|number| NodeId::from_bytes([number; 32]))
            .collect();
        let nodes = ids
            .iter()
            .zip(suites.iter().cycle())
            .map(|(id, suite)| OnionKeys::new(*id, &[*suite], FIRST_DAY, &mut rng).unwrap())
            .collect();
        Self {
            nodes,
            ids,
            now: FIRST_DAY,
            told: vec![None; n_hops],
            refuse_at: None,
            rng,
            hops: Vec::new(),
            last: None,
        }
    }

    /// The way over all nodes with their present keys.
    pub(crate) fn path(&self) -> Vec<PathHop> {
        let hop = |(number, (id, node)): (u8, (&NodeId, &OnionKeys))| PathHop {
            id: *id,
            address: SocketAddr::from(([127, number, 0, 1], 4433)),
            key: node.published()[0],
        };
        (1..)
            .zip(self.ids.iter().zip(&self.nodes))
            .map(hop)
            .collect()
    }

    /// Moves the clock, and has all nodes rotate their keys.
    pub(crate) fn advance(&mut self, now: SystemTime) {
        self.now = now;
        for node in &mut self.nodes {
            assert!(node.poll_timeout().is_some_and(|due| due <= now));
            node.handle_timeout(now, &mut self.rng).unwrap();
        }
    }

    /// Builds a circuit over all nodes and sends the greetings.
    pub(crate) fn build(&mut self, hook: Hook<'_>) -> Result<Circuit, BuildError> {
        self.build_on(&self.path(), hook)
    }

    /// Builds a circuit on `path` and sends the greetings.
    pub(crate) fn build_on(
        &mut self,
        path: &[PathHop],
        hook: Hook<'_>,
    ) -> Result<Circuit, BuildError> {
        let mut circuit = self.build_silent(path, hook)?;
        circuit.greet(hook).unwrap();
        Ok(circuit)
    }

    /// A circuit on which nothing was said.
    pub(crate) fn build_without_greeting(&mut self) -> Circuit {
        self.build_silent(&self.path(), &mut honest).unwrap()
    }

    fn build_silent(&mut self, path: &[PathHop], hook: Hook<'_>) -> Result<Circuit, BuildError> {
        let (client, create) = ClientBuild::new(path, &mut self.rng).unwrap();
        self.hops.clear();
        let created = self
            .create(0, create, hook)
            .map_err(|reason| BuildError { hop: 0, reason })?;
        let (sealer, opener) = client.handle_created(&created)?.split();
        // The last hop answered first.
        let mut hops = std::mem::take(&mut self.hops);
        hops.reverse();
        let last = self.last.take().unwrap().split();
        Ok(Circuit {
            sealer,
            opener,
            hops,
            last,
        })
    }

    /// One node opens a CREATE.
    pub(crate) fn handle_create(
        &mut self,
        hop: usize,
        key_id: [u8; 8],
        slots: &[u8; CREATE_BYTES],
    ) -> CreateOutcome {
        self.nodes[hop].handle_create(self.now, &key_id, slots, &mut self.rng)
    }

    /// What hop number `hop` answers, with all hops behind it at work.
    fn create(
        &mut self,
        hop: usize,
        mut create: Create,
        hook: Hook<'_>,
    ) -> Result<[u8; CREATED_BYTES], Reason> {
        if let Some((failing, reason)) = self.refuse_at
            && failing == hop
        {
            return Err(reason);
        }
        hook(Link::Create(hop), &mut create.slots[..]);
        let outcome = self.handle_create(hop, create.key_id, &create.slots);
        let mut created = match outcome {
            CreateOutcome::Stale => return Err(Reason::StaleKey),
            CreateOutcome::Drop => return Err(Reason::Handshake),
            CreateOutcome::Last { created, circuit } => {
                self.told[hop] = None;
                self.last = Some(circuit);
                *created
            }
            CreateOutcome::Forward(forward) => {
                let key_id = forward.create.key_id;
                self.told[hop] = Some((forward.next, forward.address, key_id));
                match self.create(hop + 1, forward.create, hook) {
                    Err(reason) => forward.pending.handle_failure(reason).unwrap(),
                    Ok(behind) => {
                        let (created, circuit) = forward.pending.handle_created(&behind).unwrap();
                        self.hops.push(circuit.split());
                        created
                    }
                }
            }
        };
        hook(Link::Created(hop), &mut created);
        Ok(created)
    }
}

impl Circuit {
    fn greet(&mut self, hook: Hook<'_>) -> Result<(), CellError> {
        let size = CellSize::Small;
        self.down(MessageKind::Open, size, b"GET secret.example", hook)?;
        self.up(MessageKind::Answer, size, b"the answer", hook)?;
        Ok(())
    }

    /// Sends data to the last hop and returns what it got.
    pub(crate) fn send_down(
        &mut self,
        size: CellSize,
        data: &[u8],
        hook: Hook<'_>,
    ) -> Result<Vec<u8>, CellError> {
        self.down(MessageKind::Data, size, data, hook)
    }

    /// Sends data to the client and returns what it got.
    pub(crate) fn send_up(
        &mut self,
        size: CellSize,
        data: &[u8],
        hook: Hook<'_>,
    ) -> Result<Vec<u8>, CellError> {
        self.up(MessageKind::Data, size, data, hook)
    }

    /// Ends the way down.
    pub(crate) fn end_down(&mut self) -> Result<(), CellError> {
        self.down(MessageKind::End, CellSize::Small, b"", &mut honest)?;
        Ok(())
    }

    /// Ends both ways.
    pub(crate) fn end_both(&mut self) -> Result<(), CellError> {
        self.end_down()?;
        self.up(MessageKind::End, CellSize::Small, b"", &mut honest)?;
        Ok(())
    }

    /// A small cell as the client sends it.
    pub(crate) fn seal_down(&mut self, data: &[u8]) -> Vec<u8> {
        let mut cell = cell_with(CellSize::Small, data);
        self.sealer
            .seal(MessageKind::Data, data.len(), &mut cell)
            .unwrap();
        cell
    }

    /// A small cell as the client gets it.
    pub(crate) fn seal_up(&mut self, data: &[u8]) -> Vec<u8> {
        let mut cell = cell_with(CellSize::Small, data);
        let sealed = self.last.1.seal(MessageKind::Data, data.len(), &mut cell);
        sealed.unwrap();
        for (_, up) in self.hops.iter_mut().rev() {
            up.wrap(&mut cell).unwrap();
        }
        cell
    }

    fn down(
        &mut self,
        kind: MessageKind,
        size: CellSize,
        data: &[u8],
        hook: Hook<'_>,
    ) -> Result<Vec<u8>, CellError> {
        let mut cell = cell_with(size, data);
        self.sealer.seal(kind, data.len(), &mut cell)?;
        for (hop, (down, _)) in self.hops.iter_mut().enumerate() {
            hook(Link::Down(hop), &mut cell);
            down.peel(&mut cell)?;
        }
        hook(Link::Down(self.hops.len()), &mut cell);
        let delivered = self.last.0.open(&mut cell)?;
        assert_eq!(delivered.kind, kind);
        Ok(cell[delivered.data].to_vec())
    }

    fn up(
        &mut self,
        kind: MessageKind,
        size: CellSize,
        data: &[u8],
        hook: Hook<'_>,
    ) -> Result<Vec<u8>, CellError> {
        let mut cell = cell_with(size, data);
        self.last.1.seal(kind, data.len(), &mut cell)?;
        hook(Link::Up(self.hops.len()), &mut cell);
        for (hop, (_, up)) in self.hops.iter_mut().enumerate().rev() {
            up.wrap(&mut cell)?;
            hook(Link::Up(hop), &mut cell);
        }
        let delivered = self.opener.open(&mut cell)?;
        assert_eq!(delivered.kind, kind);
        Ok(cell[delivered.data].to_vec())
    }
}

fn cell_with(size: CellSize, data: &[u8]) -> Vec<u8> {
    let mut cell = vec![0xee; size.bytes()];
    cell[DATA_OFFSET..][..data.len()].copy_from_slice(data);
    cell
}
