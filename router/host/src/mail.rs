//! What carries messages between principals: channels, trunks, and the flows below them.
//!
//! One task, the office, owns all of it, and hears of everything by one queue:
//!
//! ```text
//! an event is durable -> parcels -> the channel's sender -> a trunk -> a flow that the rules chose
//! a flow -> a trunk -> the channel's receiver -> the principal -> its event is durable -> ACK
//! ```
//! Principals of this node reach each other by a trunk in memory, whose ends are both here: for them
//! as well, a message is kept until the event that handled it is durable.

mod counted;
mod fetches;
mod giving;
mod incoming;
mod letters;
mod outgoing;
mod removal;
mod routes;
mod trunk;
mod wire;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use wormholes_proto::{
    NodeId,
    trunk::{BlobFrame, Frame, SenderCommit},
};

pub(crate) use self::routes::{alias, public};
use self::{
    fetches::Fetches,
    giving::MAX_GIVING,
    incoming::{In, InId},
    letters::{Asked, Waiting, Want},
    outgoing::{Out, OutId},
    routes::{Route, RouteKey},
    trunk::{Trunk, TrunkId},
    wire::{Hellos, Wire},
};
use crate::{
    blobs::Pin,
    event::{Principal, Refusal},
    host::{Shared, WakeError},
    loaded::Loaded,
    message::{InKey, Note, OutKey, Parcel, Place, Way},
    network::{CallError, Network, Pipe},
    principal::Task,
    rows::Home,
    store::{Lost, Store},
};

/// How often it is looked whether a call is due again, a message expired, or a trunk is idle.
const LOOK: Duration = Duration::from_millis(250);

/// Hands things to the office. Clones hand them to the same one.
#[derive(Debug, Clone)]
pub(crate) struct Mail(mpsc::UnboundedSender<Input>);

/// What the office hears. What comes from other nodes is bounded by what trunks may hold; the rest
/// by the limits of events.
pub(crate) enum Input {
    /// A plugin is loaded, or another version of it: what it has waiting goes on.
    Loaded(Arc<Loaded>),
    /// The instance of this number is gone: nothing of it is kept in memory, and that is told.
    Removed(u32, oneshot::Sender<()>),
    /// A user was removed: nothing of his principal moves any more.
    Gone(Home, oneshot::Sender<()>),
    /// He is there again: what waits goes on.
    Back(Owner),
    /// An event is durable.
    Parcels(Owner, Vec<Parcel>),
    /// An event that handled an arrival is durable.
    Handled {
        channel: InId,
        live: Arc<AtomicBool>,
        refusal: Option<Refusal>,
    },
    /// A principal failed on an arrival for good.
    Poisoned {
        channel: InId,
        live: Arc<AtomicBool>,
    },
    /// A question is answered, or late: nobody waits for it any more.
    AskOver { home: Home, id: u64 },
    /// What was not durable is lost.
    Lost,
    /// A commit of the office's own is durable.
    Committed {
        out: OutId,
        machine_id: u64,
        commit: SenderCommit,
    },
    /// Notes are durable.
    Noted(Owner, Vec<(u64, Note)>),
    /// So much of a channel is acknowledged, durably.
    Acknowledged {
        owner: Owner,
        channel: u32,
        bytes: u64,
    },
    /// A flow came from another node.
    Accepted(Box<dyn Pipe>, Option<NodeId>),
    /// Its opener said who it is, and was welcomed.
    Welcomed(Box<wire::Guest>),
    /// A call of ours.
    Called(RouteKey, Result<Box<wire::Opened>, CallError>),
    /// A frame.
    Frame {
        trunk: TrunkId,
        frame: Frame,
        room: Option<OwnedSemaphorePermit>,
    },
    /// A principal wants a blob.
    Want {
        owner: Owner,
        key: OutKey,
        way: Way,
        want: Box<Want>,
    },
    /// Something is to be said about a blob on a trunk.
    Say { trunk: TrunkId, frame: BlobFrame },
    /// All of a blob was given.
    Gave { trunk: TrunkId, want: u64 },
    /// A blob came, or does not.
    Fetched {
        owner: Owner,
        id: u64,
        outcome: Result<(u64, Pin), Refusal>,
    },
    /// A node can be reached.
    Reached(Place),
    /// A trunk takes more.
    Room(TrunkId),
    /// It broke, or its other end is gone.
    Down(TrunkId),
    /// A question from a trunk is answered.
    Answered {
        trunk: TrunkId,
        ask: u64,
        answer: Result<Bytes, Refusal>,
    },
}

/// Whose messages they are.
#[derive(Clone)]
pub(crate) struct Owner {
    pub(crate) loaded: Arc<Loaded>,
    pub(crate) principal: Principal,
    pub(crate) home: Home,
}

/// What the commit that handles an arrival has to hold, and how the office hears of it.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// The channel's cursor.
    pub(crate) key: Vec<u8>,
    pub(crate) row: Vec<u8>,
    /// Refusals that nobody needs any more.
    pub(crate) forgotten: Vec<Vec<u8>>,
    /// Where a refusal is kept until its sender heard of it.
    pub(crate) refusal: Vec<u8>,
    pub(crate) channel: InId,
    /// False: the channel was halted, or begins anew, and this must not be handled.
    pub(crate) live: Arc<AtomicBool>,
    /// Of the store: in another one, it comes again.
    pub(crate) epoch: u64,
}

/// The task.
struct Office {
    shared: Arc<Shared>,
    network: Arc<dyn Network>,
    node: NodeId,
    store: Store,
    mail: Mail,
    /// Of the store: what machines know is of this epoch.
    epoch: u64,
    next_id: u64,
    next_note: u64,
    trunks: HashMap<TrunkId, Trunk>,
    routes: HashMap<RouteKey, Route>,
    /// Letters of these routes.
    waiting: Waiting,
    outs: HashMap<OutId, Out>,
    ins: HashMap<InId, In>,
    in_ids: HashMap<(Home, InKey), InId>,
    /// How many channels each principal has received or has open, once it was counted.
    cursors: HashMap<Home, usize>,
    /// Questions that left, and where they went.
    asked: HashMap<(Home, u64), Asked>,
    fetches: Fetches,
    /// Places for blobs that are given.
    giving: Arc<Semaphore>,
    /// Trunks that others opened, by who they are and the instance.
    guests: HashMap<(Place, Arc<str>), TrunkId>,
    hellos: Arc<Hellos>,
    /// On which trunk each channel was last, while one that was called before could carry it.
    last_trunks: HashMap<OutId, TrunkId>,
    /// Channels that may have something to do.
    due_outs: BTreeSet<OutId>,
    due_ins: BTreeSet<InId>,
}

impl Mail {
    /// The office's queue.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Input>) {
        let (inputs, received) = mpsc::unbounded_channel();
        (Self(inputs), received)
    }

    /// The office is there as long as the host is.
    pub(crate) fn tell(&self, input: Input) {
        let _ = self.0.send(input);
    }
}

/// Runs the office until the host ends.
pub(crate) async fn run(
    shared: Arc<Shared>,
    network: Arc<dyn Network>,
    mail: Mail,
    mut inputs: mpsc::UnboundedReceiver<Input>,
) {
    let store = shared.store.clone();
    let mut office = Office {
        node: shared.node,
        epoch: store.epoch(),
        next_id: 1,
        next_note: u64::from(store.boot()) << 32,
        shared,
        network,
        store,
        mail,
        trunks: HashMap::new(),
        routes: HashMap::new(),
        waiting: Waiting::default(),
        outs: HashMap::new(),
        ins: HashMap::new(),
        in_ids: HashMap::new(),
        cursors: HashMap::new(),
        asked: HashMap::new(),
        fetches: Fetches::new(),
        giving: Arc::new(Semaphore::new(MAX_GIVING)),
        guests: HashMap::new(),
        hellos: Arc::default(),
        last_trunks: HashMap::new(),
        due_outs: BTreeSet::new(),
        due_ins: BTreeSet::new(),
    };
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let is_idle = office.routes.is_empty() && office.outs.is_empty();
        let input = tokio::select! {
            input = inputs.recv() => input,
            _ = look.tick(), if !is_idle => {
                office.look();
                None
            }
        };
        office.catch_up().await;
        let mut next = input;
        while let Some(input) = next {
            if matches!(input, Input::Lost) {
                office.store.lost().await;
                office.catch_up().await;
            }
            office.hear(input);
            next = inputs.try_recv().ok();
        }
        office.flush();
    }
}

impl Office {
    fn hear(&mut self, input: Input) {
        match input {
            Input::Loaded(loaded) => {
                self.resume(&loaded);
                // Others may have called it before.
                self.reached(Place::Here);
            }
            Input::Removed(instance, done) => {
                self.forget_instance(instance);
                let _ = done.send(());
            }
            Input::Gone(home, done) => {
                self.forget_principal(home);
                // Whoever removes the user may have left.
                let _ = done.send(());
            }
            Input::Back(owner) => self.come_back(&owner),
            Input::Parcels(owner, parcels) => {
                for parcel in parcels {
                    self.post(&owner, parcel);
                }
            }
            Input::Handled {
                channel,
                live,
                refusal,
            } => self.handled(channel, &live, refusal),
            Input::Poisoned { channel, live } => self.poisoned(channel, &live),
            Input::AskOver { home, id } => self.ask_over(home, id),
            // The epoch was looked at.
            Input::Lost => {}
            Input::Committed {
                out,
                machine_id,
                commit,
            } => self.committed(out, machine_id, &commit),
            Input::Noted(owner, notes) => {
                for (number, note) in notes {
                    self.hand_over(&owner, Task::Note(number, note));
                }
            }
            Input::Acknowledged {
                owner,
                channel,
                bytes,
            } => self.hand_over(&owner, Task::Acknowledged { channel, bytes }),
            Input::Accepted(pipe, peer) => self.accept(pipe, peer),
            Input::Welcomed(guest) => self.welcomed(*guest),
            Input::Want {
                owner,
                key,
                way,
                want,
            } => self.want(&owner, &key, &way, *want),
            Input::Say { trunk, frame } => self.said(trunk, frame),
            Input::Gave { trunk, want } => self.gave(trunk, want),
            Input::Fetched { owner, id, outcome } => self.fetched(&owner, id, outcome),
            Input::Called(key, called) => self.called(&key, called.map(|opened| *opened)),
            Input::Reached(place) => self.reached(place),
            Input::Frame { trunk, frame, room } => self.frame(trunk, frame, room),
            Input::Room(trunk) => self.room(trunk),
            Input::Down(trunk) => self.down(trunk),
            Input::Answered { trunk, ask, answer } => self.answered(trunk, ask, answer),
        }
    }

    /// Begins anew after a failure of the store.
    async fn catch_up(&mut self) {
        if self.epoch != self.store.epoch() {
            self.begin_anew().await;
        }
    }

    /// What waits for nothing but its turn.
    fn flush(&mut self) {
        loop {
            if let Some(out) = self.due_outs.pop_first() {
                self.flush_out(out);
            } else if let Some(channel) = self.due_ins.pop_first() {
                self.flush_in(channel);
            } else {
                return;
            }
        }
    }

    /// The disk failed: all that the machines know may be undone. Trunks break, and everything is
    /// read again.
    async fn begin_anew(&mut self) {
        self.store.lost().await;
        self.epoch = self.store.epoch();
        self.forget_outs();
        for channel in self.ins.values() {
            channel.kill();
        }
        self.ins.clear();
        self.in_ids.clear();
        self.cursors.clear();
        let trunks: Vec<_> = self.trunks.keys().copied().collect();
        for trunk in trunks {
            self.down(trunk);
        }
        self.end_fetches(|_| true);
        for loaded in self.shared.all() {
            self.resume(&loaded);
        }
    }

    /// Hands something to a principal, which is woken for it.
    fn hand_over(&self, owner: &Owner, task: Task) {
        match self
            .shared
            .wake(owner.home, owner.principal.clone(), &owner.loaded)
        {
            Ok(post) => post.deliver(task),
            // Removed meanwhile.
            Err(WakeError::NoUser(_)) => {}
            // The store is opened anew, and all is read again.
            Err(WakeError::Store(error)) => {
                tracing::error!(%error, "a message waits: the store cannot be read");
            }
        }
    }

    /// Drops all that is known of a principal's channels.
    fn forget_principal(&mut self, home: Home) {
        let outs = self.outs.keys().filter(|(of, _)| *of == home);
        let outs: Vec<_> = outs.copied().collect();
        for out in outs {
            self.forget_out(out);
        }
        self.forget_ins_of(home);
        self.end_fetches(|of| of == home);
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn note(&mut self) -> u64 {
        self.next_note += 1;
        self.next_note
    }

    /// What happens when a commit of the office's own is durable.
    fn after(&self, input: Input) -> impl FnOnce(Result<(), Lost>) + Send + 'static {
        let mail = self.mail.clone();
        move |durable| mail.tell(durable.map_or(Input::Lost, |()| input))
    }
}

impl Owner {
    /// Whom this principal of a plugin is at home.
    pub(crate) fn new(loaded: Arc<Loaded>, principal: Principal) -> Self {
        let home = loaded.home(&principal);
        Self {
            loaded,
            principal,
            home,
        }
    }
}

/// Whether a trunk to that end takes more.
fn takes_more(trunks: &HashMap<TrunkId, Trunk>, id: TrunkId) -> bool {
    trunks.get(&id).is_some_and(|trunk| match &trunk.wire {
        trunk::End::Wire(wire) => Wire::takes_more(wire),
        trunk::End::Loop(_) => true,
    })
}
