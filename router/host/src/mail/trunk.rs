//! Trunks: what goes on one, and what comes from it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::AbortHandle,
    time::Instant,
};
use wormholes_proto::{
    NodeId,
    trunk::{
        Channel, ChannelError, ChannelRefusal, End as ChannelEnd, Envelope, Failure, Frame, Hello,
        IdentityKind, Link, Name, Principal as WirePrincipal, TrunkRefusal,
    },
};

use super::{
    Input, Office, Owner,
    fetches::Came,
    giving::Given,
    incoming::InId,
    outgoing::OutId,
    routes::RouteKey,
    wire::{self, Guest, Opened, Wire},
};
use crate::{
    event::{Content, ErrorCode, Incoming, Principal, Refusal},
    host::Shared,
    loaded::Loaded,
    message::{Address, Identity, InKey, Place},
    network::Pipe,
    principal::Task,
    rows::Home,
};

/// Names a trunk; rises.
pub(crate) type TrunkId = u64;

/// Channels that one trunk carries each way. Overflow: the newcomer is refused as busy.
const MAX_CHANNELS: usize = 4096;
/// Questions of one trunk that are being answered. Overflow: the newcomer is refused.
const MAX_SERVED: usize = 1024;

/// How long a question from another node may be answered, whatever it says.
const MAX_PATIENCE: Duration = Duration::from_secs(600);

/// A trunk that stands.
pub(super) struct Trunk {
    pub(super) wire: End,
    /// The instance at this end.
    pub(super) loaded: Arc<Loaded>,
    /// Who this end is.
    pub(super) own: NodeId,
    /// Who the other end is.
    pub(super) peer: Place,
    pub(super) peer_plugin: Arc<str>,
    /// Whose calls it carries; `None`: the other end opened it.
    pub(super) route: Option<RouteKey>,
    pub(super) outs: HashMap<u32, OutId>,
    pub(super) ins: HashMap<u32, InId>,
    pub(super) asked: HashMap<u64, (Home, u64)>,
    serving: HashMap<u64, AbortHandle>,
    /// Blobs that are wanted from the other end, and those that it wants.
    pub(super) wanted: HashMap<u64, mpsc::UnboundedSender<Came>>,
    pub(super) giving: Given,
    last_channel: u32,
    last_ask: u64,
    last_want: u64,
    /// When something moved last.
    pub(super) used: Instant,
    pub(super) stopped: Stopped,
}

/// What goes on when a trunk takes more.
#[derive(Default)]
pub(super) struct Stopped {
    pub(super) outs: BTreeSet<OutId>,
    /// Those with letters.
    pub(super) routes: BTreeSet<RouteKey>,
}

/// What carries it.
pub(super) enum End {
    Wire(Arc<Wire>),
    /// The other end is here, too.
    Loop(TrunkId),
}

impl Trunk {
    pub(super) fn new(
        wire: End,
        loaded: Arc<Loaded>,
        (own, peer): (NodeId, Place),
        peer_plugin: Arc<str>,
        route: Option<RouteKey>,
    ) -> Self {
        Self {
            wire,
            loaded,
            own,
            peer,
            peer_plugin,
            route,
            outs: HashMap::new(),
            ins: HashMap::new(),
            asked: HashMap::new(),
            serving: HashMap::new(),
            wanted: HashMap::new(),
            giving: Given::new(),
            last_channel: 0,
            last_ask: 0,
            last_want: 0,
            used: Instant::now(),
            stopped: Stopped::default(),
        }
    }

    /// A number for one more channel of ours; `None`: there are too many.
    pub(super) fn next_channel(&mut self, out: OutId) -> Option<u32> {
        // Who writes here is here, and has limits of its own.
        let is_full = self.outs.len() >= MAX_CHANNELS && matches!(self.wire, End::Wire(_));
        if is_full {
            return None;
        }
        self.last_channel = self.last_channel.checked_add(1)?;
        self.outs.insert(self.last_channel, out);
        Some(self.last_channel)
    }

    pub(super) fn next_ask(&mut self, asker: (Home, u64)) -> u64 {
        self.last_ask += 1;
        self.asked.insert(self.last_ask, asker);
        self.last_ask
    }

    pub(super) fn next_want(&mut self, frames: mpsc::UnboundedSender<Came>) -> u64 {
        self.last_want += 1;
        self.wanted.insert(self.last_want, frames);
        self.last_want
    }

    /// Nothing is on its way, and nothing was for so long.
    pub(super) fn is_idle(&self, now: Instant, since: Duration) -> bool {
        let is_quiet = self.asked.is_empty() && self.serving.is_empty();
        // What nobody waits for any more keeps no trunk.
        let is_wanted = self.wanted.values().any(|frames| !frames.is_closed());
        let has_blobs = is_wanted || !self.giving.is_empty();
        is_quiet && !has_blobs && now.duration_since(self.used) > since
    }

    pub(super) fn from(&self, principal: &WirePrincipal) -> Address {
        Address {
            place: self.peer,
            plugin: Arc::clone(&self.peer_plugin),
            principal: match principal {
                WirePrincipal::Node => Principal::Node,
                WirePrincipal::User(name) => Principal::User(name.as_str().into()),
            },
        }
    }

    /// Whom something is for, if there is such a one.
    pub(super) fn owner(&self, shared: &Shared, to: &WirePrincipal) -> Option<Owner> {
        let principal = match (to, self.alias()) {
            // Behind an alias is one principal, whose name nobody learns.
            (WirePrincipal::Node, Some((principal, _))) => principal.clone(),
            (WirePrincipal::User(_), Some(_)) => return None,
            (WirePrincipal::Node, None) => Principal::Node,
            (WirePrincipal::User(name), None) => Principal::User(name.as_str().into()),
        };
        // Strangers make no users.
        let is_there = shared.check_principal(&self.loaded, &principal).is_ok();
        is_there.then(|| Owner::new(Arc::clone(&self.loaded), principal))
    }

    fn alias(&self) -> Option<&(Principal, Arc<str>)> {
        self.route.as_ref()?.alias()
    }

    /// As whom this end is known at the other one.
    pub(super) fn identity(&self) -> Identity {
        let alias = self.alias().map(|(_, name)| Arc::clone(name));
        alias.map_or(Identity::Node, Identity::Alias)
    }
}

impl Office {
    pub(super) fn send(&mut self, trunk: TrunkId, frame: Frame) {
        let Some(standing) = self.trunks.get_mut(&trunk) else {
            return;
        };
        standing.used = Instant::now();
        match &standing.wire {
            End::Wire(wire) => {
                if !wire.write(&frame) {
                    tracing::debug!("a trunk of a plugin ends: its other end does not read");
                    self.down(trunk);
                }
            }
            End::Loop(other) => self.mail.tell(Input::Frame {
                trunk: *other,
                frame,
                room: None,
            }),
        }
    }

    /// A trunk of ours whose flow and greeting are there.
    pub(super) fn raise(
        &mut self,
        opened: Opened,
        loaded: Arc<Loaded>,
        ends: (NodeId, Place),
        route: Option<RouteKey>,
    ) -> TrunkId {
        let id = self.id();
        let wire = Arc::new(Wire::default());
        let plugin = Arc::clone(&loaded.name);
        let room = Arc::new(Semaphore::new(wire::ROOM_BYTES));
        let run = wire::run(opened, Arc::clone(&wire), id, room, self.mail.clone());
        tokio::spawn(run);
        let trunk = Trunk::new(End::Wire(wire), loaded, ends, plugin, route);
        self.trunks.insert(id, trunk);
        id
    }

    /// Both ends of a trunk in memory; that of `from` comes first.
    pub(super) fn raise_loop(
        &mut self,
        from: &Arc<Loaded>,
        to: &Arc<Loaded>,
        route: RouteKey,
    ) -> TrunkId {
        let (near, far) = (self.id(), self.id());
        let ends = (self.node, Place::Here);
        let name = |loaded: &Arc<Loaded>| Arc::clone(&loaded.name);
        let trunk = Trunk::new(
            End::Loop(far),
            Arc::clone(from),
            ends,
            name(to),
            Some(route),
        );
        self.trunks.insert(near, trunk);
        let trunk = Trunk::new(End::Loop(near), Arc::clone(to), ends, name(from), None);
        self.trunks.insert(far, trunk);
        near
    }

    /// A flow came; who opens a trunk on it is heard beside the office.
    pub(super) fn accept(&self, pipe: Box<dyn Pipe>, peer: Option<NodeId>) {
        let (node, mail, shared) = (self.node, self.mail.clone(), Arc::clone(&self.shared));
        let hellos = Arc::clone(&self.hellos);
        tokio::spawn(async move {
            let judge = |hello: &Hello| {
                let loaded = shared.find(hello.instance.as_str());
                let loaded = loaded.map_err(|_| TrunkRefusal::NoPlugin)?;
                let is_known = hello.kind == IdentityKind::Node && peer == Some(hello.identity);
                if !loaded.takes_messages() {
                    return Err(TrunkRefusal::NoPlugin);
                }
                if !is_known && !loaded.takes_strangers() {
                    return Err(TrunkRefusal::Denied);
                }
                Ok(())
            };
            if let Some(guest) = wire::accept(pipe, node, peer, &hellos, judge).await {
                mail.tell(Input::Welcomed(Box::new(guest)));
            }
        });
    }

    pub(super) fn welcomed(&mut self, guest: Guest) {
        let Guest { hello, opened } = guest;
        let Ok(loaded) = self.shared.find(hello.instance.as_str()) else {
            return;
        };
        let peer = match hello.kind {
            IdentityKind::Node => Place::Node(hello.identity),
            _ => Place::Alias(hello.identity),
        };
        let plugin = Arc::clone(&loaded.name);
        let trunk = self.raise(opened, loaded, (self.node, peer), None);
        self.guests.insert((peer, plugin), trunk);
        self.reached(peer);
    }

    /// The trunk is gone: what it carried waits for another one, or is given up.
    pub(super) fn down(&mut self, id: TrunkId) {
        let Some(trunk) = self.trunks.remove(&id) else {
            return;
        };
        for (number, out) in &trunk.outs {
            let link = Link {
                trunk: id,
                number: *number,
            };
            self.unlinked(*out, link);
        }
        for (number, channel) in &trunk.ins {
            self.let_go(*channel, id, *number);
        }
        let guest = (trunk.peer, Arc::clone(&trunk.loaded.name));
        if self.guests.get(&guest) == Some(&id) {
            self.guests.remove(&guest);
        }
        for (home, ask) in trunk.asked.into_values() {
            let broke = "the trunk to the other node broke";
            self.answer_came(home, ask, Err(Refusal::new(ErrorCode::Unavailable, broke)));
        }
        trunk.serving.into_values().for_each(|task| task.abort());
        match trunk.wire {
            End::Wire(wire) => wire.end(),
            End::Loop(other) => self.down(other),
        }
        if let Some(route) = trunk.route {
            self.route_down(&route, id);
        }
    }

    pub(super) fn frame(&mut self, id: TrunkId, frame: Frame, room: Option<OwnedSemaphorePermit>) {
        let Some(trunk) = self.trunks.get_mut(&id) else {
            return;
        };
        trunk.used = Instant::now();
        let heard = match frame {
            Frame::Channel(channel) => self.channel(id, &channel),
            Frame::Data { number, seq, body } => self.arrive(id, number, room, |machine, link| {
                machine.handle_data(link, seq, body)
            }),
            Frame::Gap { number, messages } => self.arrive(id, number, room, |machine, link| {
                machine.handle_gap(link, messages)
            }),
            Frame::State(state) => self.with_out(id, state.number, |machine, link| {
                machine.handle_state(link, &state)
            }),
            Frame::Ack(ack) => self.with_out(id, ack.number, |machine, link| {
                machine.handle_ack(link, ack)
            }),
            Frame::ChannelRefused { number, reason } => {
                return self.channel_refused(id, number, reason);
            }
            Frame::Halt {
                number,
                by: ChannelEnd::Receiver,
                reason,
            } => self.with_out(id, number, |machine, link| {
                machine.handle_halt(link, reason);
                Ok(())
            }),
            Frame::Halt {
                number,
                by: ChannelEnd::Sender,
                reason,
            } => return self.halted_by_sender(id, number, reason),
            Frame::Post { envelope, body } => return self.posted(id, &envelope, body, room),
            Frame::Ask {
                ask,
                envelope,
                left_ms,
                body,
            } => return self.serve(id, ask, &envelope, left_ms, &body, room),
            Frame::Answer { ask, answer } => {
                if let Some((home, id)) = trunk.asked.remove(&ask) {
                    self.answer_came(home, id, answer.map_err(Refusal::from));
                }
                return;
            }
            Frame::Cancel { ask } => {
                if let Some(task) = trunk.serving.remove(&ask) {
                    task.abort();
                }
                return;
            }
            Frame::Blob(frame) => self.blob_frame(id, frame, room),
            // The decoder lets none through behind the greeting.
            Frame::Hello(_) | Frame::Welcome { .. } | Frame::Refused(_) => Ok(()),
        };
        if let Err(error) = heard {
            tracing::debug!(%error, "a trunk of a plugin ends");
            self.down(id);
        }
    }

    /// A sender's machine hears something.
    fn with_out(
        &mut self,
        trunk: TrunkId,
        number: u32,
        hear: impl FnOnce(&mut wormholes_proto::trunk::ChannelSender, Link) -> Result<(), ChannelError>,
    ) -> Result<(), ChannelError> {
        let standing = self.trunks.get(&trunk);
        let Some(id) = standing.and_then(|trunk| trunk.outs.get(&number).copied()) else {
            return Ok(());
        };
        let Some(out) = self.outs.get_mut(&id) else {
            return Ok(());
        };
        self.due_outs.insert(id);
        hear(&mut out.machine, Link { trunk, number })
    }

    /// Somebody opens a channel.
    fn channel(&mut self, id: TrunkId, channel: &Channel) -> Result<(), ChannelError> {
        let number = channel.number;
        let Some(trunk) = self.trunks.get(&id) else {
            return Ok(());
        };
        if trunk.ins.contains_key(&number) {
            return Err(ChannelError::Unasked);
        }
        let opened = if trunk.ins.len() >= MAX_CHANNELS && matches!(trunk.wire, End::Wire(_)) {
            Err(ChannelRefusal::Busy)
        } else if !trunk
            .loaded
            .takes_channel(channel.envelope.protocol.as_str())
        {
            Err(ChannelRefusal::NoProtocol)
        } else if let Some(owner) = trunk.owner(&self.shared, &channel.envelope.to) {
            let key = InKey {
                from: trunk.from(&channel.envelope.from),
                own: trunk.identity(),
                protocol: channel.envelope.protocol.as_str().into(),
            };
            self.open_in(id, owner, key, channel)
        } else {
            Err(ChannelRefusal::NoPrincipal)
        };
        match opened {
            Ok(opened) => {
                if let Some(trunk) = self.trunks.get_mut(&id) {
                    trunk.ins.insert(number, opened);
                }
                self.due_ins.insert(opened);
            }
            Err(reason) => self.send(id, Frame::ChannelRefused { number, reason }),
        }
        Ok(())
    }

    /// A message that may be lost.
    fn posted(
        &mut self,
        id: TrunkId,
        envelope: &Envelope,
        body: Bytes,
        room: Option<OwnedSemaphorePermit>,
    ) {
        let Some(trunk) = self.trunks.get(&id) else {
            return;
        };
        let speaks = trunk.loaded.speaks(envelope.protocol.as_str());
        let owner = trunk.owner(&self.shared, &envelope.to);
        let Some(owner) = owner.filter(|_| speaks) else {
            return;
        };
        let incoming = Incoming {
            from: trunk.from(&envelope.from),
            own: trunk.identity(),
            protocol: envelope.protocol.as_str().into(),
            content: Content::Message(body),
            delivery: None,
            _room: room,
        };
        let Ok(post) = self.shared.wake(owner.home, owner.principal, &owner.loaded) else {
            return;
        };
        let most = owner.loaded.edition().manifest.limits.waiting;
        if post.offer(Task::Message(Arc::new(incoming)), most).is_err() {
            owner.loaded.figures.dropped();
        }
    }

    /// A question: the principal's answer comes back on the same trunk.
    fn serve(
        &mut self,
        id: TrunkId,
        ask: u64,
        envelope: &Envelope,
        left_ms: u64,
        body: &Bytes,
        room: Option<OwnedSemaphorePermit>,
    ) {
        let Some(trunk) = self.trunks.get_mut(&id) else {
            return;
        };
        if trunk.serving.contains_key(&ask) {
            tracing::debug!(
                ask,
                "a trunk of a plugin ends: two questions have one number"
            );
            return self.down(id);
        }
        let no = |code, why: &str| Err(Refusal::new(code, why));
        let answer = if trunk.serving.len() >= MAX_SERVED {
            no(
                ErrorCode::Unavailable,
                "too many questions wait for an answer",
            )
        } else if !trunk.loaded.speaks(envelope.protocol.as_str()) {
            no(
                ErrorCode::NotFound,
                "the plugin does not speak this protocol",
            )
        } else if let Some(owner) = trunk.owner(&self.shared, &envelope.to) {
            let from = (trunk.from(&envelope.from), trunk.identity());
            let patience = Duration::from_millis(left_ms).min(MAX_PATIENCE);
            self.shared
                .ask(&owner, from, envelope.protocol.as_str(), body, patience)
        } else {
            no(ErrorCode::NotFound, "there is no such user")
        };
        match answer {
            Ok(pending) => {
                let mail = self.mail.clone();
                let task = tokio::spawn(async move {
                    let _room = room;
                    let answer = pending.answer().await.map(Bytes::from);
                    mail.tell(Input::Answered {
                        trunk: id,
                        ask,
                        answer,
                    });
                });
                trunk.serving.insert(ask, task.abort_handle());
            }
            Err(refusal) => self.send(id, answer_frame(ask, Err(refusal))),
        }
    }

    pub(super) fn answered(&mut self, id: TrunkId, ask: u64, answer: Result<Bytes, Refusal>) {
        let trunk = self.trunks.get_mut(&id);
        if trunk.and_then(|trunk| trunk.serving.remove(&ask)).is_some() {
            self.send(id, answer_frame(ask, answer));
        }
    }
}

fn answer_frame(ask: u64, answer: Result<Bytes, Refusal>) -> Frame {
    let answer = answer.map_err(Failure::from);
    Frame::Answer { ask, answer }
}

/// A principal as it is written on messages; `None`: no name on the wire is so long. Behind an alias
/// nobody learns who of a node's users it is.
pub(super) fn on_wire(principal: &Principal, known_as: &Identity) -> Option<WirePrincipal> {
    Some(match (principal, known_as) {
        (Principal::Node, _) | (_, Identity::Alias(_)) => WirePrincipal::Node,
        (Principal::User(name), Identity::Node) => {
            WirePrincipal::User(Name::try_from(&**name).ok()?)
        }
    })
}
