//! Messages as principals keep them: the channels that they send on, those that they receive, and
//! what they are to be told. Of a channel one message at a time is on its way.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    rc::Rc,
};

use wormholes_plugin::{Address, Error, Halt, Identity, Outcome, Way};

use crate::table::{Agenda, Set, Table};

/// Which of a principal's channels to send on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OutKey {
    pub(crate) to: Address,
    pub(crate) protocol: String,
    pub(crate) sender: Identity,
}

/// From whom a channel comes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InKey {
    pub(crate) from: Address,
    /// As whom the receiver was written to.
    pub(crate) own: Identity,
    pub(crate) protocol: String,
}

/// How many messages of an epoch, and a hash over them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) seq: u64,
    chain: u64,
}

/// A channel that is sent on. Numbers begin anew with each epoch.
#[derive(Debug, Clone)]
pub(crate) struct Out {
    /// How those that wait travel.
    pub(crate) way: Way,
    pub(crate) epoch: u64,
    /// What the receiver has handled.
    pub(crate) acked: Position,
    /// What comes after that, in the order of their numbers.
    pub(crate) rows: Table<u64, Row>,
    last_row: u64,
    /// What they count for.
    bytes: usize,
    /// All beyond this was surely not handled.
    pub(crate) sent: u64,
    pub(crate) halted: Option<Cause>,
}

/// A message that waits.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// `None`: it expired, and what is left of it is a gap.
    pub(crate) body: Option<Rc<[u8]>>,
    /// What it counts for.
    pub(crate) bytes: usize,
    pub(crate) expires_ms: Option<u64>,
    /// The id under which its sender wants to hear of it.
    pub(crate) report: Option<u64>,
}

/// A channel that is received.
#[derive(Debug, Clone)]
pub(crate) struct In {
    epoch: u64,
    position: Position,
    /// The sender durably knows of all until here.
    confirmed: u64,
    /// Of the message at `position`.
    refusal: Option<Error>,
    halted: Option<Cause>,
    /// A later epoch may begin.
    is_reopened: bool,
}

/// Why a channel was halted, as both ends write it down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    SenderWentBack,
    ReceiverWentBack,
    Poison,
    Reopened,
}

/// What a principal is to be told, kept until it was.
#[derive(Debug, Clone)]
pub(crate) enum Note {
    Report {
        id: u64,
        outcome: Outcome,
    },
    Halted {
        peer: Address,
        own: Identity,
        protocol: String,
        reason: Halt,
    },
}

/// What a message continues.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) epoch: u64,
    pub(crate) after: Position,
    pub(crate) confirmed: u64,
}

/// What both ends of a channel come to when they meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The receiver is there: it goes on.
    Open(Position),
    /// The receiver came so far, and halted.
    Close(Position, Cause),
    Halt(Cause),
    /// The receiver has to reopen it.
    Wait,
    /// The same, and it does not know of a halt yet.
    Reopened,
}

/// All that a principal keeps of messages.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mailbox {
    pub(crate) outs: Table<OutKey, Out>,
    pub(crate) ins: Table<InKey, In>,
    pub(crate) notes: Table<u64, Note>,
    pub(crate) last_note: u64,
    /// Those that something durable may rest on.
    pub(crate) kept_questions: Set<u64>,
    /// Questions without an answer, with their deadlines. A start of the node forgets them.
    pub(crate) questions: Agenda<u64, ()>,
    /// The last id of a message.
    pub(crate) last_message: u64,
}

impl OutKey {
    pub(crate) fn new(to: &Address, protocol: &str, sender: &Identity) -> Self {
        Self {
            to: to.clone(),
            protocol: protocol.to_owned(),
            sender: sender.clone(),
        }
    }
}

impl OutKey {
    /// The channel that comes the other way.
    pub(crate) fn back(&self) -> InKey {
        InKey {
            from: self.to.clone(),
            own: self.sender.clone(),
            protocol: self.protocol.clone(),
        }
    }
}

impl Position {
    fn first(epoch: u64) -> Self {
        Self {
            seq: 0,
            chain: epoch,
        }
    }

    fn next(self, body: Option<&[u8]>) -> Self {
        let seq = self.seq + 1;
        let mut hasher = DefaultHasher::new();
        (self.chain, seq, body).hash(&mut hasher);
        let chain = hasher.finish();
        Self { seq, chain }
    }
}

impl Out {
    pub(crate) fn new(way: Way) -> Self {
        Self {
            way,
            epoch: 0,
            acked: Position::first(0),
            rows: Table::default(),
            last_row: 0,
            bytes: 0,
            sent: 0,
            halted: None,
        }
    }

    /// A message waits behind the others.
    pub(crate) fn push(&mut self, row: Row) {
        self.last_row += 1;
        self.bytes += row.bytes;
        self.rows.insert(self.last_row, row);
    }

    /// Begins anew with what waits, if it was halted; whether it was.
    pub(crate) fn reopen(&mut self) -> bool {
        let was_halted = self.halted.take().is_some();
        if was_halted {
            self.epoch += 1;
            self.acked = Position::first(self.epoch);
            self.sent = 0;
        }
        was_halted
    }

    /// What goes out next: a body, or so many gaps.
    pub(crate) fn next(&self) -> Option<Result<&[u8], u64>> {
        let gaps = self.rows.values().take_while(|row| row.body.is_none());
        match self.rows.first()?.1.body.as_deref() {
            Some(body) => Some(Ok(body)),
            None => Some(Err(gaps.fold(0, |count, _| count + 1))),
        }
    }

    /// When a message expires next that was surely not handled.
    pub(crate) fn next_expiry(&self) -> Option<u64> {
        self.unsent().filter_map(|row| row.expires_ms).min()
    }

    /// Turns what expired into gaps; the ids of those to report.
    pub(crate) fn expire(&mut self, now_ms: u64) -> Vec<u64> {
        let is_late = |row: &Row| row.is_message() && row.expires_ms.is_some_and(|at| at <= now_ms);
        let rows = self.rows.iter().skip(self.sent_rows());
        let late = rows.filter(|(_, row)| is_late(row));
        let late: Vec<u64> = late.map(|(number, _)| *number).collect();
        let mut ids = Vec::new();
        for number in late {
            if let Some(row) = self.rows.get_mut(&number) {
                row.body = None;
                ids.extend(row.report.take());
            }
        }
        ids
    }

    fn unsent(&self) -> impl Iterator<Item = &Row> {
        let rows = self.rows.values().skip(self.sent_rows());
        rows.filter(|row| row.is_message())
    }

    fn sent_rows(&self) -> usize {
        usize::try_from(self.sent.saturating_sub(self.acked.seq)).unwrap_or(usize::MAX)
    }

    /// Both ends know that so much was handled: what to report.
    pub(crate) fn acknowledge(&mut self, until: Position, refusal: Option<&Error>) -> Vec<Note> {
        let mut notes = Vec::new();
        while self.acked.seq < until.seq
            && let Some(row) = self.rows.remove_first()
        {
            self.bytes -= row.bytes;
            self.acked = self.acked.next(row.body.as_deref());
            let refusal = refusal.filter(|_| self.acked.seq == until.seq);
            let outcome =
                refusal.map_or(Outcome::Delivered, |error| Outcome::Refused(error.clone()));
            notes.extend(row.report.map(|id| Note::Report { id, outcome }));
        }
        self.sent = until.seq;
        notes
    }

    /// How the sender's end, and what the receiver's remembers, go together.
    pub(crate) fn meet(&self, row: Option<&In>) -> Verdict {
        let first = Position::first(self.epoch);
        let Some(row) = row else {
            return self.compare(first).into();
        };
        let (is_same, is_later) = (self.epoch == row.epoch, self.epoch > row.epoch);
        if let Some(cause) = row.halted {
            let told = if row.is_reopened {
                Cause::Reopened
            } else {
                cause
            };
            // Both ends agree on what was handled.
            let is_sound = matches!(cause, Cause::Poison | Cause::Reopened);
            return match self.compare(row.position) {
                _ if is_later && row.is_reopened => self.compare(first).into(),
                _ if is_later => Verdict::Wait,
                _ if !(is_same && is_sound) => Verdict::Halt(told),
                Ok(position) => Verdict::Close(position, told),
                Err(cause) => Verdict::Halt(cause),
            };
        }
        match self.acked.seq {
            0 if is_later => Verdict::Reopened,
            _ if is_later => Verdict::Halt(Cause::ReceiverWentBack),
            acked if !is_same || row.confirmed > acked => Verdict::Halt(Cause::SenderWentBack),
            _ => self.compare(row.position).into(),
        }
    }

    /// Whether that is where the receiver can be.
    fn compare(&self, theirs: Position) -> Result<Position, Cause> {
        let mut ours = self.acked;
        for row in self.rows.values().take(self.sent_rows()) {
            if ours.seq < theirs.seq {
                ours = ours.next(row.body.as_deref());
            }
        }
        match theirs {
            _ if theirs.seq < self.acked.seq => Err(Cause::ReceiverWentBack),
            _ if theirs != ours => Err(Cause::SenderWentBack),
            _ => Ok(theirs),
        }
    }
}

impl From<Result<Position, Cause>> for Verdict {
    fn from(compared: Result<Position, Cause>) -> Self {
        compared.map_or_else(Self::Halt, Self::Open)
    }
}

impl Row {
    fn is_message(&self) -> bool {
        self.body.is_some()
    }
}

impl In {
    fn first(epoch: u64) -> Self {
        Self {
            epoch,
            position: Position::first(epoch),
            confirmed: 0,
            refusal: None,
            halted: None,
            is_reopened: false,
        }
    }

    pub(crate) fn refusal(&self) -> Option<&Error> {
        self.refusal.as_ref()
    }

    /// Lets a later epoch begin, if it was halted; whether it was.
    pub(crate) fn reopen(&mut self) -> bool {
        let was_halted = self.halted.is_some() && !self.is_reopened;
        self.is_reopened |= was_halted;
        was_halted
    }

    /// Where it is in an epoch; `None`: nothing of it may be handled.
    fn position_in(&self, epoch: u64) -> Option<Position> {
        match self.halted {
            None => (epoch == self.epoch).then_some(self.position),
            Some(_) => (epoch > self.epoch && self.is_reopened).then(|| Position::first(epoch)),
        }
    }
}

impl Mailbox {
    /// What a start of the node leaves.
    pub(crate) fn forget(&mut self) {
        // Whoever was asked does not know it any more: it is late at once.
        self.questions = Agenda::default();
        for id in self.kept_questions.iter() {
            self.questions.insert(*id, 0, ());
        }
    }

    /// Bytes of all durable messages that wait.
    pub(crate) fn outbox_bytes(&self) -> usize {
        self.outs.values().map(|out| out.bytes).sum()
    }

    pub(crate) fn tell(&mut self, note: Note) {
        self.last_note += 1;
        self.notes.insert(self.last_note, note);
    }

    /// Whether a message is the next one: what was handled is not handled again.
    pub(crate) fn is_next(&self, key: &InKey, delivery: &Delivery) -> bool {
        let first = Some(Position::first(delivery.epoch));
        let row = self.ins.get(key);
        let at = row.map_or(first, |row| row.position_in(delivery.epoch));
        at == Some(delivery.after)
    }

    /// A message, or gaps, are handled.
    pub(crate) fn handled(
        &mut self,
        key: InKey,
        delivery: &Delivery,
        content: &Result<Vec<u8>, u64>,
        refusal: Option<Error>,
    ) {
        let position = match content {
            Ok(body) => delivery.after.next(Some(body)),
            Err(gaps) => (0..*gaps).fold(delivery.after, |position, _| position.next(None)),
        };
        let row = In {
            position,
            confirmed: delivery.confirmed,
            refusal,
            ..In::first(delivery.epoch)
        };
        self.ins.insert(key, row);
    }

    /// Halts a channel that is received, and has its principal told.
    pub(crate) fn halt_in(&mut self, key: &InKey, epoch: Option<u64>, cause: Cause) {
        let row = self.ins.get(key).cloned();
        let epoch = epoch.or(row.as_ref().map(|row| row.epoch)).unwrap_or(0);
        let row = row.filter(|row| row.epoch == epoch);
        let row = row.unwrap_or_else(|| In::first(epoch));
        let halted = In {
            halted: Some(cause),
            is_reopened: false,
            ..row
        };
        self.ins.insert(key.clone(), halted);
        self.tell(Note::Halted {
            peer: key.from.clone(),
            own: key.own.clone(),
            protocol: key.protocol.clone(),
            reason: cause.told(false),
        });
    }

    /// Halts a channel that is sent on, and has its principal told.
    pub(crate) fn halt_out(&mut self, key: &OutKey, cause: Cause) {
        if let Some(out) = self.outs.get_mut(key) {
            out.halted = Some(cause);
        }
        self.tell(Note::Halted {
            peer: key.to.clone(),
            own: key.sender.clone(),
            protocol: key.protocol.clone(),
            reason: cause.told(true),
        });
    }

    /// Whether nothing more is taken from there, or until it is opened anew.
    pub(crate) fn is_halted(&self, key: &InKey) -> bool {
        self.ins.get(key).is_some_and(|row| row.halted.is_some())
    }
}

impl Cause {
    /// What it means for the channel's sender, or for its receiver.
    fn told(self, is_sender: bool) -> Halt {
        match (self, is_sender) {
            (Self::SenderWentBack, true) | (Self::ReceiverWentBack, false) => Halt::WeWentBack,
            (Self::SenderWentBack, false) | (Self::ReceiverWentBack, true) => Halt::TheyWentBack,
            (Self::Poison, _) => Halt::Poison,
            (Self::Reopened, _) => Halt::Reopened,
        }
    }
}
