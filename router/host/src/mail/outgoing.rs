//! Channels that are sent on.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;
use wormholes_proto::trunk::{
    ChannelKey, ChannelRefusal, ChannelSender, Content, Envelope, Halt, History, Link, Name,
    Outcome, Position, Report, Row, SenderCommit, SenderRow, Wanted,
};

use super::{
    Input, Office, Owner,
    counted::Counted,
    incoming::instance,
    routes::{RouteKey, Standing},
    takes_more,
    trunk::{TrunkId, on_wire},
};
use crate::{
    clock::now_ms,
    loaded::Loaded,
    message::{
        Fate, HaltReason, Identity, Note, OutDone, OutHead, OutKey, OutRow, Place, decode, encode,
    },
    principal::Task,
    rows::{self, Home, Space},
    store::{Snapshot, StoreError, Writes},
};

/// Names a channel: whose, and its number there.
pub(crate) type OutId = (Home, u32);

/// A receiver that refused a channel is asked again after this; twice as long each time, until the
/// second one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// A channel that is sent on.
pub(super) struct Out {
    owner: Owner,
    key: OutKey,
    head: OutHead,
    done: OutDone,
    pub(super) machine: ChannelSender,
    /// Names the machine: commits of an earlier one are nothing to it.
    machine_id: u64,
    /// Commits of the machine that are not durable yet. None takes its place before they are: it would
    /// begin with what they are about to change.
    in_flight: usize,
    /// Another machine is to take its place then; until then it says nothing.
    is_stale: bool,
    pub(super) route: RouteKey,
    /// On which trunk it is.
    link: Option<Link>,
    /// Its receiver refused it: not before then.
    not_before: Option<Instant>,
    refusals: u32,
    counted: Counted,
}

impl Out {
    /// The place of a number in this epoch.
    fn place(&self, seq: u64) -> u64 {
        self.head.base.saturating_add(seq)
    }

    fn waiting_key(&self, place: u64) -> Vec<u8> {
        waiting_key(self.owner.home, self.head.number, place)
    }

    /// Whether something waits, or is not durable yet.
    pub(super) fn waits(&self) -> bool {
        let has_some = self.done.place + 1 < self.head.next || self.done.halted.is_some();
        has_some || self.in_flight > 0
    }

    /// Has those that wait counted.
    fn count(&mut self) {
        let waiting = self.head.next.saturating_sub(1);
        self.counted.set(waiting.saturating_sub(self.done.place));
    }

    /// What the machine tells, on its way to be durable: the rows that it changes.
    fn handle_commit(&mut self, commit: &SenderCommit, snapshot: &Snapshot) -> Writes {
        let mut writes = Writes::default();
        match commit {
            SenderCommit::Acked { position, .. } => {
                self.refusals = 0;
                let first = self.waiting_key(self.done.place + 1);
                let last = self.place(position.seq);
                let total = snapshot.get(&self.waiting_key(last));
                let total = total.ok().flatten().as_deref().and_then(OutRow::decode);
                self.done = OutDone {
                    epoch: self.head.epoch,
                    place: last,
                    chain: position.chain,
                    bytes: total.map_or(self.done.bytes, |row| row.about.total_bytes),
                    ..self.done
                };
                writes.remove_range(Range {
                    start: first,
                    end: self.waiting_key(last + 1),
                });
                self.count();
            }
            SenderCommit::Expired { seqs, .. } => {
                for seq in seqs {
                    let key = self.waiting_key(self.place(*seq));
                    let row = snapshot.get(&key).ok().flatten();
                    if let Some(row) = row.as_deref().and_then(OutRow::decode) {
                        writes.put(key, Some(row.gap().encode()));
                    }
                }
            }
            SenderCommit::Mark(mark) => self.done.mark = *mark,
            SenderCommit::Halted(reason) => {
                self.done.halted = Some(reason.number());
            }
        }
        writes
    }
}

fn waiting_key(home: Home, number: u32, place: u64) -> Vec<u8> {
    let key = [&number.to_be_bytes()[..], &place.to_be_bytes()].concat();
    home.key(Space::Waiting, &key)
}

impl Office {
    /// What a plugin's principals have waiting goes on.
    pub(super) fn resume(&mut self, loaded: &Arc<Loaded>) {
        for principal in self.shared.present(loaded) {
            self.come_back(&Owner::new(Arc::clone(loaded), principal));
        }
    }

    /// What a principal has waiting goes on.
    pub(super) fn come_back(&mut self, owner: &Owner) {
        if let Err(error) = self.resume_owner(owner) {
            tracing::error!(%error, "messages wait: the store cannot be read");
        }
    }

    fn resume_owner(&mut self, owner: &Owner) -> Result<(), StoreError> {
        self.resume_fetches(owner)?;
        if !owner.loaded.takes_messages() {
            return Ok(());
        }
        let snapshot = self.store.snapshot();
        for (key, head) in rows::all(&snapshot, &owner.home.key(Space::Channel, &[]))? {
            let (Some(key), Some(head)) = (decode::<OutKey>(&key), decode::<OutHead>(&head)) else {
                continue;
            };
            let done = read_done(&snapshot, owner.home, &head)?;
            if done.place + 1 < head.next {
                self.begin(owner, key, head, done);
            }
        }
        Ok(())
    }

    /// A durable message of a principal.
    pub(super) fn enqueue(
        &mut self,
        owner: &Owner,
        key: OutKey,
        head: OutHead,
        place: u64,
        row: OutRow,
    ) {
        let id = (owner.home, head.number);
        let Some(out) = self.outs.get_mut(&id) else {
            // With all that is durable by now, this message among it.
            return self.reread(owner, key);
        };
        if out.is_stale {
            // It is read with the others.
            return;
        }
        if out.head.epoch != head.epoch {
            return self.reread(owner, key);
        }
        let seq = place - head.base;
        if place < out.head.next {
            // It was read with the others.
            return;
        }
        out.head.next = place + 1;
        out.count();
        if let Err(error) = out.machine.handle_enqueued(wire_row(seq, row)) {
            tracing::error!(%error, "a message's number is not the next one");
            return self.reread(owner, key);
        }
        if out.head.way != head.way {
            // Nothing waited: from now on it goes the other way.
            return self.reread(owner, key);
        }
        self.due_outs.insert(id);
        self.travel(id);
    }

    /// Begins with what is on disk.
    pub(super) fn reread(&mut self, owner: &Owner, key: OutKey) {
        let read = || -> Result<Option<(OutHead, OutDone)>, StoreError> {
            let snapshot = self.store.snapshot();
            let head = snapshot.get(&owner.home.key(Space::Channel, &encode(&key)))?;
            let Some(head) = head.as_deref().and_then(decode::<OutHead>) else {
                return Ok(None);
            };
            let done = read_done(&snapshot, owner.home, &head)?;
            Ok(Some((head, done)))
        };
        match read() {
            Ok(Some((head, done))) => self.begin(owner, key, head, done),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "a message waits: the store cannot be read"),
        }
    }

    fn begin(&mut self, owner: &Owner, key: OutKey, head: OutHead, done: OutDone) {
        let id = (owner.home, head.number);
        if let Some(out) = self.outs.get_mut(&id)
            && out.in_flight > 0
        {
            out.owner = owner.clone();
            out.is_stale = true;
            return;
        }
        self.forget_out(id);
        let Some((channel, route)) = self.channel_key(owner, &key, &head) else {
            tracing::error!("a channel's names do not fit on the wire");
            return;
        };
        let history = History::new(&channel, &self.store.incarnation(), head.epoch);
        let kept = head.next - 1 - head.base;
        let fresh = SenderRow::new(&channel, history, kept);
        let seq = done.place - head.base;
        let chain = done.chain;
        let row = SenderRow {
            acked: if seq > 0 {
                Position { seq, chain }
            } else {
                fresh.acked
            },
            mark: done.mark,
            halted: done.halted.and_then(Halt::from_number),
            ..fresh
        };
        let mut out = Out {
            owner: owner.clone(),
            machine: ChannelSender::new(channel, row),
            machine_id: self.id(),
            in_flight: 0,
            is_stale: false,
            key,
            head,
            done,
            route: route.clone(),
            link: None,
            not_before: None,
            refusals: 0,
            counted: Counted::new(&owner.loaded),
        };
        out.count();
        self.outs.insert(id, out);
        self.due_outs.insert(id);
        self.join(&route, &owner.loaded, id);
        self.travel(id);
    }

    fn channel_key(
        &self,
        owner: &Owner,
        key: &OutKey,
        head: &OutHead,
    ) -> Option<(ChannelKey, RouteKey)> {
        let route = RouteKey::new(self.node, owner, key, &head.way);
        let receiver = match key.to.place {
            Place::Here => self.node,
            Place::Node(id) | Place::Alias(id) => id,
        };
        let channel = ChannelKey {
            sender: self.identity(&route),
            receiver,
            instance: instance(&key.to.plugin),
            envelope: Envelope {
                from: on_wire(&owner.principal, &key.sender)?,
                to: on_wire(&key.to.principal, &Identity::Node)?,
                protocol: Name::try_from(&*key.protocol).ok()?,
            },
        };
        Some((channel, route))
    }

    /// Has a channel go on by its route.
    fn travel(&mut self, id: OutId) {
        let Some(out) = self.outs.get(&id).filter(|out| out.link.is_none()) else {
            return;
        };
        let route = out.route.clone();
        match self.standing(&route) {
            Some(standing) => self.link(id, standing),
            None => self.use_route(&route),
        }
    }

    /// A trunk of its route stands.
    pub(super) fn link(&mut self, id: OutId, Standing { trunk, called }: Standing) {
        let (Some(out), Some(standing)) = (self.outs.get_mut(&id), self.trunks.get_mut(&trunk))
        else {
            return;
        };
        let now = Instant::now();
        if out.link.is_some() || out.not_before.is_some_and(|at| at > now) {
            return;
        }
        // The receiver drops a CHANNEL of a trunk that it welcomed before the channel's last one.
        let last = self.last_trunks.get(&id).copied();
        if last.is_some_and(|last| last != trunk && last > called) {
            let route = out.route.clone();
            return self.renew(&route, trunk);
        }
        let Some(number) = standing.next_channel(id) else {
            out.not_before = Some(now + FIRST_PAUSE);
            return;
        };
        let link = Link { trunk, number };
        out.link = Some(link);
        out.machine.handle_trunk_up(link);
        self.last_trunks.insert(id, trunk);
        self.due_outs.insert(id);
    }

    /// All that is known of it is on disk.
    pub(super) fn forget_out(&mut self, id: OutId) {
        let Some(out) = self.outs.remove(&id) else {
            return;
        };
        self.leave(&out.route, id);
        if let Some(link) = out.link
            && let Some(trunk) = self.trunks.get_mut(&link.trunk)
        {
            trunk.outs.remove(&link.number);
        }
    }

    /// The disk failed.
    pub(super) fn forget_outs(&mut self) {
        let outs: Vec<_> = self.outs.keys().copied().collect();
        for out in outs {
            self.forget_out(out);
        }
    }

    /// Forgets where channels were that may go by any trunk that stands, or is called.
    pub(super) fn forget_last_trunks(&mut self) {
        let first = self.first_called();
        let matters = |last: TrunkId| first.is_some_and(|called| called < last);
        self.last_trunks
            .retain(|id, last| self.outs.contains_key(id) || matters(*last));
    }

    /// The trunk broke.
    pub(super) fn unlinked(&mut self, id: OutId, from: Link) {
        if let Some(out) = self.outs.get_mut(&id) {
            out.machine.handle_trunk_down(from);
            if out.link == Some(from) {
                out.link = None;
            }
        }
    }

    pub(super) fn channel_refused(&mut self, trunk: TrunkId, number: u32, reason: ChannelRefusal) {
        let standing = self.trunks.get_mut(&trunk);
        let Some(id) = standing.and_then(|trunk| trunk.outs.remove(&number)) else {
            return;
        };
        self.unlinked(id, Link { trunk, number });
        if let Some(out) = self.outs.get_mut(&id) {
            tracing::debug!(%reason, "a receiver does not take a channel now");
            let pause = FIRST_PAUSE.saturating_mul(1 << out.refusals.min(16));
            out.refusals += 1;
            out.not_before = Some(Instant::now() + pause.min(LAST_PAUSE));
        }
    }

    pub(super) fn flush_out(&mut self, id: OutId) {
        let now = now_ms();
        while let Some(out) = self.outs.get_mut(&id).filter(|out| !out.is_stale) {
            if let Some(wanted) = out.machine.wants() {
                match read_rows(&self.store.snapshot(), out, wanted) {
                    Ok(rows) if !rows.is_empty() => {
                        if let Err(error) = out.machine.handle_rows(rows) {
                            tracing::error!(%error, "rows of a channel are out of order");
                            return;
                        }
                        continue;
                    }
                    // It is opened anew, and all is read again; or the rows are damaged.
                    Ok(_) | Err(_) => return,
                }
            }
            if let Some(commit) = out.machine.poll_commit(now) {
                self.commit(id, commit);
                continue;
            }
            let trunk = out.link.map(|link| link.trunk);
            if let Some(trunk) = trunk.filter(|trunk| !takes_more(&self.trunks, *trunk)) {
                if let Some(standing) = self.trunks.get_mut(&trunk) {
                    standing.stopped.outs.insert(id);
                }
                return;
            }
            match out.machine.poll_frame(now) {
                Some((trunk, frame)) => self.send(trunk, frame),
                None => return,
            }
        }
    }

    /// Has what the machine tells made durable.
    fn commit(&mut self, id: OutId, commit: SenderCommit) {
        let notes = self.notes_of(id, &commit);
        let Some(out) = self.outs.get_mut(&id) else {
            return;
        };
        out.in_flight += 1;
        let home = out.owner.home;
        // Nothing waits for room in the window; who is told of it writes, and both are durable at once.
        let is_patient = match &commit {
            SenderCommit::Acked { position, .. } => out.place(position.seq) + 1 == out.head.next,
            SenderCommit::Mark(_) => out.machine.is_below_mark(),
            SenderCommit::Expired { .. } | SenderCommit::Halted(_) => false,
        };
        let mut writes = out.handle_commit(&commit, &self.store.snapshot());
        let done = home.key(Space::Done, &out.head.number.to_be_bytes());
        writes.put(done, Some(encode(&out.done)));
        for (number, note) in &notes {
            let key = home.key(Space::Note, &number.to_be_bytes());
            writes.put(key, Some(encode(note)));
        }
        let owner = out.owner.clone();
        let acknowledged = Input::Acknowledged {
            owner: owner.clone(),
            channel: out.head.number,
            bytes: out.done.bytes,
        };
        let committed = Input::Committed {
            out: id,
            machine_id: out.machine_id,
            commit,
        };
        let (mail, told) = (self.mail.clone(), notes.clone());
        let noted = Input::Noted(owner.clone(), told);
        let release = move |durable: Result<(), crate::store::Lost>| {
            if durable.is_err() {
                return mail.tell(Input::Lost);
            }
            mail.tell(committed);
            mail.tell(acknowledged);
            mail.tell(noted);
        };
        if is_patient {
            self.store
                .append_patiently(home.writer(), self.epoch, writes, release);
        } else {
            self.store
                .append(home.writer(), self.epoch, writes, release);
        }
        // Behind its row: the event that it is told by waits for no commit but its own.
        for (number, note) in notes {
            self.hand_over(&owner, Task::EarlyNote(self.epoch, number, note));
        }
    }

    /// What a commit tells its principal.
    fn notes_of(&mut self, id: OutId, commit: &SenderCommit) -> Vec<(u64, Note)> {
        let halted = |out: &Out, reason: Halt| Note::Halted {
            peer: out.key.to.clone(),
            own: out.key.sender.clone(),
            protocol: Arc::clone(&out.key.protocol),
            reason: HaltReason::of(reason, true),
        };
        let Some(out) = self.outs.get(&id) else {
            return Vec::new();
        };
        let notes: Vec<Note> = match commit {
            SenderCommit::Acked { reports, .. } | SenderCommit::Expired { reports, .. } => {
                reports.iter().map(note).collect()
            }
            SenderCommit::Mark(_) => Vec::new(),
            SenderCommit::Halted(reason) => vec![halted(out, *reason)],
        };
        notes.into_iter().map(|note| (self.note(), note)).collect()
    }

    /// A commit of a channel is durable.
    pub(super) fn committed(&mut self, id: OutId, machine_id: u64, commit: &SenderCommit) {
        let Some(out) = self.outs.get_mut(&id) else {
            return;
        };
        if out.machine_id != machine_id {
            return;
        }
        out.machine.handle_durable(commit);
        out.in_flight -= 1;
        if out.is_stale && out.in_flight == 0 {
            let (owner, key) = (out.owner.clone(), out.key.clone());
            return self.reread(&owner, key);
        }
        self.due_outs.insert(id);
    }

    /// Messages that expire, and channels that their receivers refused.
    pub(super) fn look_at_outs(&mut self) {
        let (now, now_ms) = (Instant::now(), now_ms());
        let mut again = Vec::new();
        for (id, out) in &mut self.outs {
            if out.machine.poll_timeout().is_some_and(|at| at <= now_ms) {
                self.due_outs.insert(*id);
            }
            if out.not_before.is_some_and(|at| at <= now) {
                out.not_before = None;
                again.push(*id);
            }
        }
        for id in again {
            self.travel(id);
        }
    }

    /// Forgets channels with nothing to say.
    pub(super) fn forget_idle(&mut self, outs: impl IntoIterator<Item = OutId>) {
        for id in outs {
            if self.outs.get(&id).is_some_and(|out| !out.waits()) {
                self.forget_out(id);
            }
        }
    }
}

fn read_done(snapshot: &Snapshot, home: Home, head: &OutHead) -> Result<OutDone, StoreError> {
    let row = snapshot.get(&home.key(Space::Done, &head.number.to_be_bytes()))?;
    let done = row.as_deref().and_then(decode::<OutDone>);
    let (place, bytes) = (head.base, done.as_ref().map_or(0, |done| done.bytes));
    let fresh = OutDone {
        epoch: head.epoch,
        place,
        chain: [0; 32],
        bytes,
        mark: 0,
        halted: None,
    };
    Ok(done
        .filter(|done| done.epoch == head.epoch)
        .unwrap_or(fresh))
}

fn read_rows(snapshot: &Snapshot, out: &Out, wanted: Wanted) -> Result<Vec<Row>, StoreError> {
    let mut rows = Vec::new();
    let mut bytes = 0;
    for seq in (wanted.from_seq..).take(wanted.messages) {
        let row = snapshot.get(&out.waiting_key(out.place(seq)))?;
        let Some(row) = row.as_deref().and_then(OutRow::decode) else {
            break;
        };
        bytes += row.body.as_ref().map_or(0, Bytes::len);
        rows.push(wire_row(seq, row));
        if bytes >= wanted.bytes {
            break;
        }
    }
    Ok(rows)
}

fn wire_row(seq: u64, row: OutRow) -> Row {
    Row {
        seq,
        content: row.body.map_or(Content::Gap, Content::Message),
        expires_ms: row.about.expires_ms,
        report: row.about.report,
    }
}

fn note(report: &Report) -> Note {
    Note::Report {
        id: report.id,
        fate: match &report.outcome {
            Outcome::Delivered => Fate::Delivered,
            Outcome::Refused(failure) => Fate::Refused(failure.clone().into()),
            Outcome::Expired => Fate::Expired,
        },
    }
}
