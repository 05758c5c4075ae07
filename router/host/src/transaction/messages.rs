//! Messages that an event sends.

use std::collections::BTreeMap;

use wormholes_proto::trunk::ReceiverRow;

use super::{Effects, Limit, ROW_BYTES, Transaction, invalid};
use crate::{
    event::{ErrorCode, Principal, Refusal},
    memory::Memory,
    message::{
        Address, Identity, InRow, Letter, MAX_BODY_BYTES, OutAbout, OutDone, OutHead, OutKey,
        OutRow, Parcel, Place, Way, decode, encode,
    },
    rows::Space,
    store::StoreError,
};

/// Names of users, aliases, roles, labels and isolation keys.
const MAX_NAME_BYTES: usize = 128;

/// What an event sent.
#[derive(Debug, Default)]
pub(super) struct Messages {
    parcels: Vec<Parcel>,
    /// Channels as they are after it.
    heads: BTreeMap<OutKey, OutHead>,
    outbox_bytes: u64,
    questions: usize,
    /// Cursors of channels that begin anew.
    cursors: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// How long a message is kept, and who hears of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keeping {
    pub(crate) expires_ms: Option<u64>,
    pub(crate) report: bool,
}

/// An answer for the plugin, or a fault of the store.
type Told<T> = Result<Result<T, Refusal>, StoreError>;

impl Transaction {
    /// A durable message; its id.
    pub(crate) fn send(&mut self, mut letter: Letter, keeping: Keeping) -> Told<u64> {
        if let Err(refusal) = self.check_letter(&mut letter) {
            return Ok(Err(refusal));
        }
        let Letter { key, way, body } = letter;
        let (mut head, done) = match self.channel(&key, &way)? {
            Ok(channel) => channel,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let handled = done.as_ref().map_or(0, |done| done.place);
        let waits = handled.saturating_add(1) < head.next;
        if done.is_some_and(|done| done.epoch == head.epoch && done.halted.is_some()) {
            let halted = "the channel is halted; `messages.reopen` begins it anew";
            return Ok(Err(Refusal::new(ErrorCode::Unavailable, halted)));
        }
        if waits && head.way != way {
            let other =
                "messages to this receiver still wait for another way (role, label, isolation)";
            return Ok(Err(Refusal::new(ErrorCode::Unavailable, other)));
        }
        let bytes = (body.len() + ROW_BYTES) as u64;
        let waiting = self.memory.outbox_bytes();
        let waiting = waiting.saturating_add(self.messages.outbox_bytes + bytes);
        if waiting > self.ground.limits.outbox_bytes() {
            return Ok(Err(self.hit(Limit::Outbox)));
        }
        if let Err(refusal) = self.charge(body.len() + ROW_BYTES) {
            return Ok(Err(refusal));
        }
        self.messages.outbox_bytes += bytes;
        let id = self.next_message();
        let place = head.next;
        (head.next, head.way) = (place.saturating_add(1), way);
        head.bytes = head.bytes.saturating_add(bytes);
        self.messages.heads.insert(key.clone(), head.clone());
        let about = OutAbout {
            total_bytes: head.bytes,
            expires_ms: keeping.expires_ms,
            report: keeping.report.then_some(id),
            is_gap: false,
        };
        let row = OutRow {
            about,
            body: Some(body),
        };
        self.messages.parcels.push(Parcel::Durable {
            key,
            head,
            place,
            row,
        });
        Ok(Ok(id))
    }

    /// A message that may be lost.
    pub(crate) fn post(&mut self, mut letter: Letter) -> Result<(), Refusal> {
        self.check_letter(&mut letter)?;
        self.charge(letter.body.len() + ROW_BYTES)?;
        self.messages.parcels.push(Parcel::Post(letter));
        Ok(())
    }

    /// A question; its id.
    pub(crate) fn question(
        &mut self,
        mut letter: Letter,
        deadline_ms: u64,
    ) -> Result<u64, Refusal> {
        self.check_letter(&mut letter)?;
        self.check_questions()?;
        self.charge(letter.body.len() + ROW_BYTES)?;
        self.messages.questions += 1;
        let id = self.next_message();
        self.messages.parcels.push(Parcel::Ask {
            id,
            letter,
            deadline_ms,
        });
        Ok(id)
    }

    /// Whether one more question may be open, whoever it is for.
    pub(super) fn check_questions(&mut self) -> Result<(), Refusal> {
        let own = self.messages.questions + self.wires.fetches();
        if self.memory.questions.len() + own >= self.ground.limits.requests as usize {
            return Err(self.hit(Limit::Questions));
        }
        Ok(())
    }

    /// Durable messages to a receiver that it has not confirmed.
    pub(crate) fn waiting(&mut self, mut key: OutKey) -> Result<u64, StoreError> {
        self.settle(&mut key);
        let Some(OutHead { number, next, .. }) = self.head(&key).cloned() else {
            return Ok(0);
        };
        let done = self.done(number)?.map_or(0, |done| done.place);
        Ok(next.saturating_sub(1).saturating_sub(done))
    }

    /// Channels to and from a peer begin anew, if they are halted.
    pub(crate) fn reopen(&mut self, mut peer: OutKey) -> Told<()> {
        self.settle(&mut peer);
        if let Err(refusal) = self.check_writable().and_then(|()| self.check_key(&peer)) {
            return Ok(Err(refusal));
        }
        if self.messages.parcels.len() >= self.ground.limits.messages as usize {
            return Ok(Err(self.hit(Limit::Messages)));
        }
        let (sends, receives) = (self.reopen_out(&peer)?, self.reopen_in(&peer)?);
        if sends || receives {
            self.messages.parcels.push(Parcel::Reopened {
                peer,
                sends,
                receives,
            });
        }
        Ok(Ok(()))
    }

    fn reopen_out(&mut self, key: &OutKey) -> Result<bool, StoreError> {
        let Some(head) = self.head(key).cloned() else {
            return Ok(false);
        };
        let done = self.done(head.number)?;
        let Some(done) = done.filter(|done| done.epoch == head.epoch && done.halted.is_some())
        else {
            return Ok(false);
        };
        let head = OutHead {
            epoch: head.epoch.saturating_add(1),
            base: done.place,
            ..head
        };
        self.messages.heads.insert(key.clone(), head);
        Ok(true)
    }

    fn reopen_in(&mut self, peer: &OutKey) -> Result<bool, StoreError> {
        let back = encode(&peer.back());
        let key = self.ground.home.key(Space::Cursor, &back);
        let row = self.view().get(&key)?;
        self.note_row(Space::Cursor, &back, row.as_deref());
        let row = row.as_deref().and_then(decode::<InRow>);
        let Some(row) = row.filter(|row| row.halted.is_some() && !row.is_reopened) else {
            return Ok(false);
        };
        let anew = ReceiverRow::from(&row).reopened();
        self.messages
            .cursors
            .insert(key, encode(&InRow::from(&anew)));
        Ok(true)
    }

    /// The channel as this event leaves it, and what its receiver has of it.
    fn channel(&mut self, key: &OutKey, way: &Way) -> Told<(OutHead, Option<OutDone>)> {
        if let Some(head) = self.head(key).cloned() {
            let done = self.done(head.number)?;
            return Ok(Ok((head, done)));
        }
        let number = self.memory.channels.len() + self.new_channels();
        if number >= self.ground.limits.channels as usize {
            return Ok(Err(self.hit(Limit::Channels)));
        }
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Ok((OutHead::new(number, way.clone()), None)))
    }

    fn new_channels(&self) -> usize {
        let heads = self.messages.heads.keys();
        heads
            .filter(|key| !self.memory.channels.contains_key(*key))
            .count()
    }

    fn head(&self, key: &OutKey) -> Option<&OutHead> {
        let own = self.messages.heads.get(key);
        own.or_else(|| self.memory.channels.get(key))
    }

    fn done(&mut self, number: u32) -> Result<Option<OutDone>, StoreError> {
        let home = self.ground.home;
        let row = self.memory.done.get(home, number, &self.snapshot)?;
        self.tape
            .keep_row(Space::Done as u8, &number.to_be_bytes(), row);
        Ok(row.and_then(decode))
    }

    pub(super) fn next_message(&mut self) -> u64 {
        let last = &mut self.memory.last_message;
        *last = last.saturating_add(1);
        *last
    }

    fn check_letter(&mut self, letter: &mut Letter) -> Result<(), Refusal> {
        self.check_writable()?;
        self.settle(&mut letter.key);
        self.check_key(&letter.key)?;
        check_way(&letter.way)?;
        if letter.body.len() > MAX_BODY_BYTES {
            return Err(invalid(
                "a message has at most 1 MiB; send a blob's hash instead",
            ));
        }
        if self.messages.parcels.len() >= self.ground.limits.messages as usize {
            return Err(self.hit(Limit::Messages));
        }
        Ok(())
    }

    /// This node has one name.
    fn settle(&self, key: &mut OutKey) {
        if key.to.place == Place::Node(self.ground.node) {
            key.to.place = Place::Here;
        }
    }

    fn check_key(&self, key: &OutKey) -> Result<(), Refusal> {
        if !self.ground.protocols.contains(&*key.protocol) {
            return Err(invalid(
                "the plugin does not speak this protocol; name it in `messages.protocols` of its \
                 manifest",
            ));
        }
        self.check_address(key)
    }

    /// Who a blob is fetched from, and by which way.
    pub(super) fn check_giver(&self, mut key: OutKey, way: &Way) -> Result<OutKey, Refusal> {
        self.settle(&mut key);
        self.check_address(&key)?;
        check_way(way)?;
        Ok(key)
    }

    fn check_address(&self, key: &OutKey) -> Result<(), Refusal> {
        let Address {
            place,
            principal,
            plugin,
        } = &key.to;
        let is_user = match principal {
            Principal::Node => true,
            Principal::User(name) => !name.is_empty() && is_text(name),
        };
        if !is_user || plugin.is_empty() || !is_text(plugin) {
            return Err(invalid(
                "names have 1 to 128 bytes and no control characters",
            ));
        }
        if *place != Place::Here && **plugin != *self.ground.plugin {
            return Err(invalid(
                "at another node only the instance of the same name can be written to",
            ));
        }
        if let Identity::Alias(name) = &key.sender
            && (name.is_empty() || !is_text(name) || !matches!(place, Place::Node(_)))
        {
            return Err(invalid(
                "an alias has 1 to 128 bytes, no control characters, and writes to nodes",
            ));
        }
        Ok(())
    }
}

impl Messages {
    /// In the order in which they were sent.
    pub(super) fn parcels(&self) -> &[Parcel] {
        &self.parcels
    }

    /// What they take in memory.
    pub(super) fn held(&self) -> usize {
        let bodies = self.parcels.iter().map(Parcel::body_bytes);
        bodies.map(|bytes| bytes + ROW_BYTES).sum()
    }

    /// Channels as they are after it.
    pub(super) fn heads(&self) -> &BTreeMap<OutKey, OutHead> {
        &self.heads
    }

    /// Makes what was sent real in memory, and in what becomes durable.
    pub(super) fn take_effect(
        self,
        ground: &super::Ground,
        is_kept: bool,
        memory: &mut Memory,
        effects: &mut Effects,
    ) {
        let home = ground.home;
        for (key, row) in self.cursors {
            effects.writes.put(key, Some(row));
        }
        for parcel in &self.parcels {
            if let Parcel::Durable {
                head, place, row, ..
            } = parcel
            {
                let at = [&head.number.to_be_bytes()[..], &place.to_be_bytes()].concat();
                effects
                    .writes
                    .put(home.key(Space::Waiting, &at), Some(row.encode()));
            }
        }
        for (key, head) in self.heads {
            let row = home.key(Space::Channel, &encode(&key));
            effects.writes.put(row, Some(encode(&head)));
            memory.channels.insert(key, head);
        }
        memory.sent_bytes += self.outbox_bytes;
        let is_durable = is_kept || !effects.writes.is_empty();
        for parcel in &self.parcels {
            if let Parcel::Ask {
                id, deadline_ms, ..
            } = parcel
            {
                memory.ask(*id, *deadline_ms);
                // What nothing durable rests on may be forgotten with it.
                if is_durable {
                    let row = home.key(Space::Question, &id.to_be_bytes());
                    effects.writes.put(row, Some(Vec::new()));
                    memory.kept_questions.insert(*id);
                }
            }
        }
        effects.parcels.extend(self.parcels);
    }
}

fn check_way(way: &Way) -> Result<(), Refusal> {
    let Way {
        role,
        label,
        isolation,
    } = way;
    if [role, label, isolation].iter().any(|text| !is_text(text)) {
        return Err(invalid(
            "role, label and isolation have at most 128 bytes and no control characters",
        ));
    }
    Ok(())
}

/// Whether it may stand in a role, a label or an isolation key.
pub(super) fn is_text(text: &str) -> bool {
    text.len() <= MAX_NAME_BYTES && !text.chars().any(char::is_control)
}
