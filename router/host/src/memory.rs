//! What a principal remembers between events, beside its rows in the store.

mod operations;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    ptr,
    sync::{Arc, Weak},
};

use wormholes_proto::NodeId;

pub(crate) use self::operations::Operations;
use crate::{
    event::{Event, Principal, RequestKind},
    message::{Note, OutDone, OutHead, OutKey, decode},
    rows::{self, Home, Side, Space, principal_key},
    store::{Overlay, Snapshot, StoreError, Writes},
    transaction::{Effects, FetchRow, ROOM_BYTES},
    wires::SocketNews,
};

/// A principal's memory: gone when the node stops, or when what it rests on was not made durable.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Its rows that are not durable yet.
    pub(crate) overlay: Overlay,
    pub(crate) scratch: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) scratch_bytes: u64,
    /// Facts that it published, and until when they hold.
    pub(crate) facts: BTreeMap<(Arc<str>, NodeId), u64>,
    pub(crate) timers: BTreeMap<Arc<str>, Timer>,
    /// The same, by time.
    due: BTreeSet<(u64, Arc<str>)>,
    /// Requests without an answer.
    pub(crate) requests: BTreeMap<u64, RequestKind>,
    pub(crate) operations: Operations,
    /// Questions without an answer, with their deadlines.
    pub(crate) questions: BTreeMap<u64, u64>,
    /// The same, by time.
    late: BTreeSet<(u64, u64)>,
    /// Those of them that were made by HTTP, with the bytes of their bodies.
    pub(crate) fetches: BTreeMap<u64, u64>,
    /// Those of them that have a row.
    pub(crate) kept_questions: BTreeSet<u64>,
    /// Connections, as the principal knows them.
    pub(crate) sockets: BTreeMap<u64, Socket>,
    /// Those that have a row, and those of them that are gone with a start.
    pub(crate) kept_sockets: BTreeSet<u64>,
    pub(crate) lost_sockets: Vec<u64>,
    /// Channels to send on.
    pub(crate) channels: BTreeMap<OutKey, OutHead>,
    /// What their receivers have of them, as far as an event looked.
    pub(crate) done: DoneRows,
    /// Bytes of all durable messages that were ever sent.
    pub(crate) sent_bytes: u64,
    /// Those that were acknowledged, by the channel's number.
    done_bytes: BTreeMap<u32, u64>,
    /// All of them.
    all_done_bytes: u64,
    /// The last id of a message.
    pub(crate) last_message: u64,
    /// What it was not told yet.
    pub(crate) notes: Vec<(u64, Note)>,
    /// The last of them when the store was read; none: 0.
    pub(crate) last_note: u64,
    /// What its rows have, keys and values.
    pub(crate) kept_bytes: u64,
    /// What its blobs count for, with what is kept free for those that come.
    pub(crate) blob_bytes: u64,
    /// Blobs that it fetches.
    pub(crate) blob_fetches: BTreeMap<u64, FetchRow>,
    /// Drafts of blobs.
    pub(crate) drafts: BTreeSet<Arc<str>>,
    /// How many of its rows are sealed, by kind.
    pub(crate) sealed: Sealed,
    /// Where they lie.
    pub(crate) side: Side,
    /// Which version of the plugin woke it last; `None`: it was never woken.
    pub(crate) woken_by: Option<Version>,
}

/// Rows about channels that the mail writes, each read once from a snapshot: most events that send see
/// the one that the event before saw.
#[derive(Debug, Default)]
pub(crate) struct DoneRows {
    of: Weak<Snapshot>,
    rows: BTreeMap<u32, Option<Vec<u8>>>,
}

impl DoneRows {
    /// A channel's row in `snapshot`.
    pub(crate) fn get(
        &mut self,
        home: Home,
        number: u32,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Option<&[u8]>, StoreError> {
        if !ptr::eq(self.of.as_ptr(), Arc::as_ptr(snapshot)) {
            self.of = Arc::downgrade(snapshot);
            self.rows.clear();
        }
        let row = match self.rows.entry(number) {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(row) => {
                let key = home.key(Space::Done, &number.to_be_bytes());
                row.insert(snapshot.get(&key)?)
            }
        };
        Ok(row.as_deref())
    }
}

/// A connection, as the principal knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Socket {
    /// What it was granted as.
    pub(crate) port: Arc<str>,
    /// Bytes that may come.
    pub(crate) credit: u32,
    /// Bytes that may be written.
    pub(crate) room: u32,
    /// A write found too little of it.
    pub(crate) wants_room: bool,
}

impl Socket {
    /// One on which nothing moved, granted as this.
    pub(crate) fn new(port: Arc<str>) -> Self {
        Self {
            port,
            credit: 0,
            room: ROOM_BYTES,
            wants_room: false,
        }
    }

    /// Whether somebody connected to a port of the plugin.
    pub(crate) fn is_visitor(&self) -> bool {
        self.port.contains("-listen:")
    }
}

/// How many rows are secrets, and keys that were created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) secrets: u32,
    pub(crate) keys: u32,
}

/// A version of a plugin, as its rows remember it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) schema: u32,
    /// How the component's digest begins.
    pub(crate) code: [u8; 8],
}

/// An open timer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Timer {
    pub(crate) due_ms: u64,
    pub(crate) payload: Arc<[u8]>,
    /// Survives the node.
    pub(crate) durable: bool,
}

impl Memory {
    /// What the store knows of a principal.
    pub(crate) fn read(home: Home, snapshot: &Snapshot) -> Result<Self, StoreError> {
        let mut memory = Self::default();
        if let Some(head) = snapshot.get(&home.key(Space::Head, &[]))? {
            memory.read_head(&head);
        }
        let prefix = home.key(Space::Timer, &[]);
        for (name, row) in rows::all(snapshot, &prefix)? {
            if let (Ok(name), Some(timer)) = (std::str::from_utf8(&name), Timer::decode(&row)) {
                memory.due.insert((timer.due_ms, name.into()));
                memory.timers.insert(name.into(), timer);
            }
        }
        memory.operations = Operations::read(home, snapshot)?;
        let open = memory.operations.open();
        let open = open.map(|(id, _)| (id, RequestKind::Command));
        memory.requests.extend(open);
        memory.read_messages(home, snapshot)?;
        memory.read_blobs(home, snapshot)?;
        Ok(memory)
    }

    fn read_messages(&mut self, home: Home, snapshot: &Snapshot) -> Result<(), StoreError> {
        for (key, row) in rows::all(snapshot, &home.key(Space::Channel, &[]))? {
            if let (Some(key), Some(head)) = (decode::<OutKey>(&key), decode::<OutHead>(&row)) {
                self.sent_bytes += head.bytes;
                self.channels.insert(key, head);
            }
        }
        for (number, row) in rows::all(snapshot, &home.key(Space::Done, &[]))? {
            if let (Ok(number), Some(done)) = (number.try_into(), decode::<OutDone>(&row)) {
                self.acknowledged(u32::from_be_bytes(number), done.bytes);
            }
        }
        for (number, row) in rows::all(snapshot, &home.key(Space::Note, &[]))? {
            if let (Ok(number), Some(note)) = (number.try_into(), decode::<Note>(&row)) {
                self.last_note = u64::from_be_bytes(number);
                self.notes.push((self.last_note, note));
            }
        }
        for (id, _) in rows::all(snapshot, &home.key(Space::Socket, &[]))? {
            if let Ok(id) = id.try_into().map(u64::from_be_bytes) {
                self.kept_sockets.insert(id);
                self.lost_sockets.push(id);
            }
        }
        for (id, row) in rows::all(snapshot, &home.key(Space::Question, &[]))? {
            if let Ok(id) = id.try_into().map(u64::from_be_bytes) {
                if !row.is_empty() {
                    self.fetches.insert(id, 0);
                }
                // Whoever was asked does not know it any more: it is late at once.
                self.ask(id, 0);
                self.kept_questions.insert(id);
            }
        }
        Ok(())
    }

    fn read_blobs(&mut self, home: Home, snapshot: &Snapshot) -> Result<(), StoreError> {
        self.blob_fetches = fetches(home, snapshot)?;
        for (name, _) in rows::all(snapshot, &home.key(Space::Draft, &[]))? {
            if let Ok(name) = std::str::from_utf8(&name) {
                self.drafts.insert(name.into());
            }
        }
        Ok(())
    }

    /// Nothing comes of a fetch.
    pub(crate) fn end_fetch(&mut self, home: Home, id: u64, effects: &mut Effects) {
        let Some(row) = self.blob_fetches.remove(&id) else {
            return;
        };
        let reserved = row.reserved();
        effects.blobs.bytes -= reserved;
        effects.blobs.named.push((row.blob(), false));
        effects.blobs.fetches.push(id);
        self.blob_bytes = self.blob_bytes.saturating_add_signed(-reserved);
        effects
            .writes
            .put(home.key(Space::Fetch, &id.to_be_bytes()), None);
        self.write_head(home, &mut effects.writes);
    }

    /// Durable messages that wait.
    pub(crate) fn outbox_bytes(&self) -> u64 {
        self.sent_bytes.saturating_sub(self.all_done_bytes)
    }

    /// So many bytes of a channel's messages are acknowledged, since it was made.
    pub(crate) fn acknowledged(&mut self, channel: u32, bytes: u64) {
        let done = self.done_bytes.entry(channel).or_default();
        self.all_done_bytes += bytes.saturating_sub(*done);
        *done = bytes.max(*done);
    }

    /// What is gone from the store when this event is real, whatever its handler says.
    pub(crate) fn consume(&self, home: Home, event: &Event, writes: &mut Writes) {
        match event {
            Event::Message(incoming) => {
                if let Some(delivery) = &incoming.delivery {
                    for key in &delivery.forgotten {
                        writes.put(key.clone(), None);
                    }
                    writes.put(delivery.key.clone(), Some(delivery.row.clone()));
                }
            }
            Event::Note { number, .. } => {
                writes.put(home.key(Space::Note, &number.to_be_bytes()), None);
            }
            Event::Socket {
                id,
                news: SocketNews::Closed(_),
            } if self.kept_sockets.contains(id) => {
                writes.put(home.key(Space::Socket, &id.to_be_bytes()), None);
            }
            Event::Answer { id, .. } | Event::Fetched { id, .. }
                if self.kept_questions.contains(id) =>
            {
                writes.put(home.key(Space::Question, &id.to_be_bytes()), None);
            }
            Event::Answer { .. }
            | Event::Fetched { .. }
            | Event::Socket { .. }
            | Event::Datagram(_)
            | Event::Migrate { .. }
            | Event::Init(_)
            | Event::Timer { .. }
            | Event::Request(_)
            | Event::Canceled { .. }
            | Event::Presence { .. }
            | Event::BlobFetched { .. }
            | Event::Usage(_) => {}
        }
    }

    /// A question left.
    pub(crate) fn ask(&mut self, id: u64, deadline_ms: u64) {
        self.questions.insert(id, deadline_ms);
        self.late.insert((deadline_ms, id));
    }

    /// Its answer came; false when it came before.
    pub(crate) fn answered(&mut self, id: u64) -> bool {
        let Some(deadline) = self.questions.remove(&id) else {
            return false;
        };
        self.late.remove(&(deadline, id))
    }

    /// The question that is late first, and since when.
    pub(crate) fn first_late(&self) -> Option<(u64, u64)> {
        self.late.first().copied()
    }

    /// The first timer that is due.
    pub(crate) fn due_timer(&self, now_ms: u64) -> Option<(Arc<str>, Arc<[u8]>)> {
        let (due, name) = self.due.first()?;
        let timer = self.timers.get(name)?;
        (*due <= now_ms).then(|| (Arc::clone(name), Arc::clone(&timer.payload)))
    }

    /// When the next one is.
    pub(crate) fn next_timer(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Writes a row of `scratch`; none deletes it.
    pub(crate) fn set_scratch(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        match value {
            Some(value) => self.scratch.insert(key, value),
            None => self.scratch.remove(&key),
        };
    }

    /// The principal was woken by this version.
    pub(crate) fn woken(&mut self, home: Home, name: &Principal, by: Version, writes: &mut Writes) {
        if self.woken_by.replace(by) == Some(by) {
            return;
        }
        self.write_head(home, writes);
        if let Principal::User(name) = name {
            let number = home.principal.to_be_bytes().to_vec();
            writes.put(principal_key(home.instance, name), Some(number));
        }
    }

    /// Sets, moves or cancels a timer.
    pub(crate) fn apply_timer(
        &mut self,
        home: Home,
        name: Arc<str>,
        timer: Option<Timer>,
        effects: &mut Effects,
    ) {
        let before = self.timers.get(&name);
        let was_durable = before.is_some_and(|timer| timer.durable);
        if let Some(timer) = before {
            self.due.remove(&(timer.due_ms, Arc::clone(&name)));
        }
        let key = home.key(Space::Timer, name.as_bytes());
        match timer {
            Some(timer) => {
                if timer.durable {
                    effects.writes.put(key, Some(timer.encode()));
                } else if was_durable {
                    effects.writes.put(key, None);
                }
                self.due.insert((timer.due_ms, Arc::clone(&name)));
                self.timers.insert(name, timer);
            }
            None => {
                if was_durable {
                    effects.writes.put(key, None);
                }
                self.timers.remove(&name);
            }
        }
    }

    /// Keeps what the store must know of the principal, once it was woken.
    pub(crate) fn write_head(&self, home: Home, writes: &mut Writes) {
        if let Some(Version { schema, code }) = self.woken_by {
            let kept = self.kept_bytes.to_be_bytes();
            let Sealed { secrets, keys } = self.sealed;
            let sealed = [secrets.to_be_bytes(), keys.to_be_bytes()].concat();
            let (side, blobs) = ([self.side as u8], self.blob_bytes.to_be_bytes());
            let head = [
                &kept[..],
                &schema.to_be_bytes(),
                &code,
                &sealed,
                &side,
                &blobs,
            ]
            .concat();
            writes.put(home.key(Space::Head, &[]), Some(head));
        }
    }

    /// Takes what the store knows of the principal.
    fn read_head(&mut self, head: &[u8]) {
        if let Some(head) = read_head(head) {
            (self.kept_bytes, self.side) = (head.kept_bytes, head.side);
            self.blob_bytes = head.blob_bytes;
            (self.woken_by, self.sealed) = (Some(head.woken_by), head.sealed);
        }
    }
}

/// What a head row says.
pub(crate) struct Head {
    /// What all rows have.
    pub(crate) kept_bytes: u64,
    /// The version that woke the principal last.
    pub(crate) woken_by: Version,
    /// Where its own rows lie.
    pub(crate) side: Side,
    /// How many of them are sealed.
    pub(crate) sealed: Sealed,
    /// What its blobs count for.
    pub(crate) blob_bytes: u64,
}

/// What a head row says.
pub(crate) fn read_head(head: &[u8]) -> Option<Head> {
    let (kept, rest) = head.split_first_chunk()?;
    let (schema, rest) = rest.split_first_chunk()?;
    let (code, rest) = rest.split_first_chunk()?;
    let (sealed, side, blob_bytes) = match rest {
        // Of a principal that was woken before there were any.
        [] => (Sealed::default(), Side::First, 0),
        _ => {
            let (secrets, rest) = rest.split_first_chunk()?;
            let (keys, rest) = rest.split_first_chunk()?;
            let (side, blobs) = match rest {
                [] | [0] => (Side::First, &[][..]),
                [0, blobs @ ..] => (Side::First, blobs),
                [1, blobs @ ..] => (Side::Second, blobs),
                _ => return None,
            };
            let blob_bytes = match blobs {
                [] => 0,
                _ => u64::from_be_bytes(blobs.try_into().ok()?),
            };
            let sealed = Sealed {
                secrets: u32::from_be_bytes(*secrets),
                keys: u32::from_be_bytes(*keys),
            };
            (sealed, side, blob_bytes)
        }
    };
    Some(Head {
        kept_bytes: u64::from_be_bytes(*kept),
        woken_by: Version {
            schema: u32::from_be_bytes(*schema),
            code: *code,
        },
        side,
        sealed,
        blob_bytes,
    })
}

/// The blobs that a principal fetches.
pub(crate) fn fetches(
    home: Home,
    snapshot: &Snapshot,
) -> Result<BTreeMap<u64, FetchRow>, StoreError> {
    let rows = rows::all(snapshot, &home.key(Space::Fetch, &[]))?;
    let fetches = rows.into_iter().filter_map(|(id, row)| {
        let id = u64::from_be_bytes(id.try_into().ok()?);
        Some((id, decode(&row)?))
    });
    Ok(fetches.collect())
}

impl Timer {
    fn encode(&self) -> Vec<u8> {
        [&self.due_ms.to_be_bytes()[..], &self.payload].concat()
    }

    fn decode(row: &[u8]) -> Option<Self> {
        let (due, payload) = row.split_first_chunk()?;
        Some(Self {
            due_ms: u64::from_be_bytes(*due),
            payload: payload.into(),
            durable: true,
        })
    }
}
