//! Channels that are received.

use std::{
    collections::{BTreeSet, HashMap, VecDeque, hash_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::OwnedSemaphorePermit;
use wormholes_proto::{
    NodeId,
    trunk::{
        Arrival, ArrivalContent, Channel, ChannelError, ChannelKey, ChannelReceiver,
        ChannelRefusal, Frame, Halt, Link, Name, ReceiverRow, Refusal as WireRefusal, Window,
    },
};

use super::{Delivery, Input, Office, Owner, trunk::TrunkId};
use crate::{
    event::{Content, Incoming, Refusal},
    message::{HaltReason, InKey, InRow, Note, Place, decode, encode},
    principal::Task,
    rows::{self, Home, Space},
    store::{StoreError, Writes},
};

/// Names a channel that is received; rises.
pub(crate) type InId = u64;

/// What may be on the way on a channel before it is handled.
const WINDOW: Window = Window {
    messages: 256,
    bytes: 256 << 10,
};

/// A channel that is received.
pub(super) struct In {
    owner: Owner,
    key: InKey,
    machine: ChannelReceiver,
    /// What its arrivals carry.
    live: Arc<AtomicBool>,
    /// The numbers of arrivals that are not handled yet.
    pending: VecDeque<u64>,
    /// Its number on each trunk where it is open.
    numbers: HashMap<TrunkId, u32>,
    /// The numbers of refusals that are kept.
    refused: BTreeSet<u64>,
    /// Whether its cursor has a row.
    has_row: bool,
}

impl In {
    /// What is on its way to an event must not be handled.
    pub(super) fn kill(&self) {
        self.live.store(false, Ordering::Release);
    }

    fn refusal_key(&self, seq: u64) -> Vec<u8> {
        let mut key = refusals_of(&self.owner, &self.key);
        key.extend(seq.to_be_bytes());
        key
    }

    /// Forgets refusals up to a number: the keys of their rows.
    fn forget_refusals(&mut self, until: u64) -> Vec<Vec<u8>> {
        let mut forgotten = Vec::new();
        while let Some(seq) = self.refused.first().copied().filter(|seq| *seq <= until) {
            self.refused.pop_first();
            forgotten.push(self.refusal_key(seq));
        }
        forgotten
    }
}

impl Office {
    /// Opens the channel from there.
    ///
    /// # Errors
    /// It cannot be read, or there are too many.
    pub(super) fn open_in(
        &mut self,
        trunk: TrunkId,
        owner: Owner,
        key: InKey,
        channel: &Channel,
    ) -> Result<InId, ChannelRefusal> {
        let own = self.trunks.get(&trunk).map(|trunk| trunk.own);
        let own = own.ok_or(ChannelRefusal::Busy)?;
        let id = match self.in_ids.get(&(owner.home, key.clone())) {
            Some(id) => *id,
            None => self.make_in(own, owner, key, channel)?,
        };
        let number = channel.number;
        let opened = self.ins.get_mut(&id).ok_or(ChannelRefusal::Busy)?;
        let before = opened.numbers.insert(trunk, number);
        opened
            .machine
            .handle_channel(Link { trunk, number }, channel);
        if let (Some(before), Some(trunk)) = (before, self.trunks.get_mut(&trunk)) {
            trunk.ins.remove(&before);
        }
        Ok(id)
    }

    fn make_in(
        &mut self,
        own: NodeId,
        owner: Owner,
        key: InKey,
        channel: &Channel,
    ) -> Result<InId, ChannelRefusal> {
        let edition = owner.loaded.edition();
        let (home, limit) = (owner.home, edition.manifest.limits.channels as usize);
        let busy = |error: StoreError| {
            tracing::debug!(%error, "a channel cannot be read");
            ChannelRefusal::Busy
        };
        let opened = self
            .read_in(own, owner, key.clone(), channel)
            .map_err(busy)?;
        if !opened.has_row {
            let cursors = self.cursors(home).map_err(busy)?;
            if *cursors >= limit {
                return Err(ChannelRefusal::Busy);
            }
            *cursors += 1;
        }
        let id = self.id();
        self.ins.insert(id, opened);
        self.in_ids.insert((home, key), id);
        Ok(id)
    }

    /// Channels that a principal has received, and those that are open without a row. Their rows are
    /// counted once: whoever opens many shall not have them read for each.
    fn cursors(&mut self, home: Home) -> Result<&mut usize, StoreError> {
        Ok(match self.cursors.entry(home) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let rows = rows::all(&self.store.snapshot(), &home.key(Space::Cursor, &[]))?;
                unknown.insert(rows.len())
            }
        })
    }

    fn read_in(
        &self,
        own: NodeId,
        owner: Owner,
        key: InKey,
        channel: &Channel,
    ) -> Result<In, StoreError> {
        let snapshot = self.store.snapshot();
        let row = snapshot.get(&owner.home.key(Space::Cursor, &encode(&key)))?;
        let has_row = row.is_some();
        let row = row.as_deref().and_then(decode::<InRow>).unwrap_or_default();
        let kept = rows::all(&snapshot, &refusals_of(&owner, &key))?;
        let kept: Vec<WireRefusal> = kept
            .into_iter()
            .filter_map(|(seq, refusal)| {
                Some(WireRefusal {
                    seq: u64::from_be_bytes(seq.try_into().ok()?),
                    failure: decode::<Refusal>(&refusal)?.into(),
                })
            })
            .collect();
        let sender = match key.from.place {
            Place::Here => self.node,
            Place::Node(id) | Place::Alias(id) => id,
        };
        let channel_key = ChannelKey {
            sender,
            receiver: own,
            instance: instance(&owner.loaded.name),
            envelope: channel.envelope.clone(),
        };
        let refused = kept.iter().map(|refusal| refusal.seq).collect();
        Ok(In {
            machine: ChannelReceiver::new(channel_key, WINDOW, ReceiverRow::from(&row), kept),
            owner,
            key,
            live: Arc::new(AtomicBool::new(true)),
            pending: VecDeque::new(),
            numbers: HashMap::new(),
            refused,
            has_row,
        })
    }

    /// Something arrived on a channel: the principal has it next.
    pub(super) fn arrive(
        &mut self,
        trunk: TrunkId,
        number: u32,
        room: Option<OwnedSemaphorePermit>,
        hear: impl FnOnce(&mut ChannelReceiver, Link) -> Result<Option<Arrival>, ChannelError>,
    ) -> Result<(), ChannelError> {
        let Some(id) = self.in_of(trunk, number) else {
            return Ok(());
        };
        let Some(channel) = self.ins.get_mut(&id) else {
            return Ok(());
        };
        let Some(arrival) = hear(&mut channel.machine, Link { trunk, number })? else {
            return Ok(());
        };
        let seq = arrival.row.position.map_or(0, |position| position.seq);
        channel.pending.push_back(seq);
        channel.has_row = true;
        let forgotten = channel.forget_refusals(match arrival.is_first {
            true => u64::MAX,
            false => arrival.row.confirmed,
        });
        let cursor = channel.owner.home.key(Space::Cursor, &encode(&channel.key));
        let delivery = Delivery {
            key: cursor,
            row: encode(&InRow::from(&arrival.row)),
            forgotten,
            refusal: channel.refusal_key(seq),
            channel: id,
            live: Arc::clone(&channel.live),
            epoch: self.epoch,
        };
        let incoming = Incoming {
            from: channel.key.from.clone(),
            own: channel.key.own.clone(),
            protocol: Arc::clone(&channel.key.protocol),
            content: match arrival.content {
                ArrivalContent::Message(body) => Content::Message(body),
                ArrivalContent::Gap(messages) => Content::Gap(messages),
            },
            delivery: Some(delivery),
            _room: room,
        };
        let owner = channel.owner.clone();
        self.hand_over(&owner, Task::Message(Arc::new(incoming)));
        Ok(())
    }

    fn in_of(&self, trunk: TrunkId, number: u32) -> Option<InId> {
        self.trunks.get(&trunk)?.ins.get(&number).copied()
    }

    /// An arrival was handled, durably.
    pub(super) fn handled(&mut self, id: InId, live: &Arc<AtomicBool>, refusal: Option<Refusal>) {
        let Some(channel) = self.ins.get_mut(&id) else {
            return;
        };
        if !Arc::ptr_eq(live, &channel.live) {
            return;
        }
        let seq = channel.pending.pop_front();
        channel.refused.extend(seq.filter(|_| refusal.is_some()));
        channel.machine.handle_committed(refusal.map(Into::into));
        self.due_ins.insert(id);
    }

    /// The plugin failed on an arrival for good, and its manifest says to halt.
    pub(super) fn poisoned(&mut self, id: InId, live: &Arc<AtomicBool>) {
        let Some(channel) = self.ins.get_mut(&id) else {
            return;
        };
        if !Arc::ptr_eq(live, &channel.live) {
            return;
        }
        channel.kill();
        channel.live = Arc::new(AtomicBool::new(true));
        channel.pending.clear();
        channel.machine.handle_poison();
        self.due_ins.insert(id);
    }

    /// The channel's sender says that nothing more moves.
    pub(super) fn halted_by_sender(&mut self, trunk: TrunkId, number: u32, reason: Halt) {
        if let Some(id) = self.in_of(trunk, number)
            && let Some(channel) = self.ins.get_mut(&id)
        {
            channel.machine.handle_halt(Link { trunk, number }, reason);
            self.due_ins.insert(id);
        }
    }

    /// The trunk broke.
    pub(super) fn let_go(&mut self, id: InId, trunk: TrunkId, number: u32) {
        if let Some(channel) = self.ins.get_mut(&id) {
            channel.machine.handle_trunk_down(Link { trunk, number });
            // It may have another number there by now.
            if channel.numbers.get(&trunk) == Some(&number) {
                channel.numbers.remove(&trunk);
            }
            self.due_ins.insert(id);
        }
    }

    /// A principal began the channels with a peer anew: what it decided is on disk.
    pub(super) fn reopen_in(&mut self, owner: &Owner, key: &InKey) {
        let id = self.in_ids.remove(&(owner.home, key.clone()));
        if let Some(channel) = id.and_then(|id| self.ins.remove(&id)) {
            self.refuse(&channel, ChannelRefusal::Busy);
        }
    }

    /// What was known of a channel is forgotten: its sender hears it wherever he has opened it, and
    /// asks again.
    fn refuse(&mut self, channel: &In, reason: ChannelRefusal) {
        channel.kill();
        for (trunk, number) in &channel.numbers {
            if let Some(standing) = self.trunks.get_mut(trunk) {
                standing.ins.remove(number);
            }
            let number = *number;
            self.send(*trunk, Frame::ChannelRefused { number, reason });
        }
    }

    /// An instance receives nothing any more.
    pub(super) fn forget_ins(&mut self, instance: u32) {
        let is_its = |channel: &In| channel.owner.home.instance == instance;
        for channel in self.ins.values().filter(|channel| is_its(channel)) {
            channel.kill();
        }
        self.ins.retain(|_, channel| !is_its(channel));
        self.in_ids.retain(|(home, _), _| home.instance != instance);
    }

    /// A principal is gone: whoever sends to it hears of it.
    pub(super) fn forget_ins_of(&mut self, home: Home) {
        self.cursors.remove(&home);
        let of = self.in_ids.extract_if(|(of, _), _| *of == home);
        let ids: Vec<_> = of.map(|(_, id)| id).collect();
        for id in ids {
            if let Some(channel) = self.ins.remove(&id) {
                self.refuse(&channel, ChannelRefusal::NoPrincipal);
            }
        }
    }

    pub(super) fn flush_in(&mut self, id: InId) {
        while let Some(channel) = self.ins.get_mut(&id) {
            if let Some(row) = channel.machine.poll_commit() {
                self.commit_halt(id, row);
                continue;
            }
            if let Some((trunk, frame)) = channel.machine.poll_frame() {
                if let Frame::ChannelRefused { number, .. } | Frame::Halt { number, .. } = frame {
                    self.close_in(id, trunk, number);
                }
                self.send(trunk, frame);
                continue;
            }
            // All that it knows is on disk.
            if channel.numbers.is_empty() && channel.pending.is_empty() {
                let known = (channel.owner.home, channel.key.clone());
                if let Some(cursors) = self.cursors.get_mut(&known.0).filter(|_| !channel.has_row) {
                    *cursors -= 1;
                }
                self.ins.remove(&id);
                self.in_ids.remove(&known);
            }
            return;
        }
    }

    /// Nothing more of it comes on this trunk under that number.
    fn close_in(&mut self, id: InId, trunk: TrunkId, number: u32) {
        if let Some(standing) = self.trunks.get_mut(&trunk) {
            standing.ins.remove(&number);
        }
        if let Some(channel) = self.ins.get_mut(&id) {
            channel.numbers.remove(&trunk);
        }
    }

    /// The channel is halted: that becomes durable, and the principal is told.
    fn commit_halt(&mut self, id: InId, row: ReceiverRow) {
        let number = self.note();
        let Some(channel) = self.ins.get_mut(&id) else {
            return;
        };
        if row.position.is_none() && row.halted != Some(Halt::Poison) {
            // There is no past to go on from, and nothing to forget.
            return;
        }
        channel.has_row = true;
        let owner = channel.owner.clone();
        let mut writes = Writes::default();
        let cursor = owner.home.key(Space::Cursor, &encode(&channel.key));
        writes.put(cursor, Some(encode(&InRow::from(&row))));
        let mut notes = Vec::new();
        if let Some(halt) = row.halted.filter(|_| !row.is_reopened) {
            let note = Note::Halted {
                peer: channel.key.from.clone(),
                own: channel.key.own.clone(),
                protocol: Arc::clone(&channel.key.protocol),
                reason: HaltReason::of(halt, false),
            };
            let key = owner.home.key(Space::Note, &number.to_be_bytes());
            writes.put(key, Some(encode(&note)));
            notes.push((number, note));
        }
        let by = owner.home.writer();
        let after = self.after(Input::Noted(owner, notes));
        self.store.append(by, self.epoch, writes, after);
    }
}

/// Where refusals of a channel are kept until their sender heard of them.
fn refusals_of(owner: &Owner, key: &InKey) -> Vec<u8> {
    let key = encode(key);
    let length = u16::try_from(key.len()).unwrap_or(u16::MAX);
    let key = [&length.to_be_bytes()[..], &key].concat();
    owner.home.key(Space::Refused, &key)
}

/// An instance's name on the wire.
#[expect(
    clippy::expect_used,
    reason = "`is_name` holds for every instance, and is narrower"
)]
pub(super) fn instance(name: &str) -> Name {
    Name::try_from(name).expect("an instance has a name")
}
