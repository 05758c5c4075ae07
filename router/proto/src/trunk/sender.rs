//! The sender's end of a channel: which messages go out, which were handled, which may be given up.
//!
//! The rows are the owner's, on disk; the machine holds those that can be on the way. All that it
//! is told by `handle_rows` and `handle_durable` is durable before. What it wants to become durable
//! it tells by `poll_commit`; a commit that failed is the end of the machine, and a new one begins
//! with what is on disk.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use thiserror::Error;

use super::{
    ChannelError,
    chain::{ChannelKey, Halt, History, Link, Position},
    frame::{Ack, Channel, End, Frame, Refusal, State, Window},
    name::Failure,
};

const MAX_ROWS: usize = Window::MAX.messages as usize;
const MAX_ROW_BYTES: usize = Window::MAX.bytes as usize;
/// Rows whose expiry is being committed.
const MAX_HELD: usize = MAX_ROWS;

/// What a sender remembers of a channel, beside its rows from `acked` + 1 to `next_seq` - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderRow {
    /// Which history.
    pub history: History,
    /// The number that the next message gets, from 1 on.
    pub next_seq: u64,
    /// The last message that the receiver acknowledged.
    pub acked: Position,
    /// Nothing more moves.
    pub halted: Option<Halt>,
}

/// A message that is kept, or what is left of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its number.
    pub seq: u64,
    /// What goes out.
    pub content: Content,
    /// Given up then, if it is sure that nobody handled it; in milliseconds since 1970.
    pub expires_ms: Option<u64>,
    /// The id under which its sender wants to hear what became of it.
    pub report: Option<u64>,
}

/// What goes out for a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The message.
    Message(Bytes),
    /// It expired, and that was committed.
    Gap,
}

/// Rows to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The first one's number.
    pub from_seq: u64,
    /// At most so many.
    pub messages: usize,
    /// None after the one with which their bodies have so many bytes.
    pub bytes: usize,
}

/// What shall become durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SenderCommit {
    /// [`SenderRow::acked`], and the rows until there are deleted.
    Acked {
        /// Until where.
        position: Position,
        /// For the senders of messages.
        reports: Vec<Report>,
    },
    /// These rows become [`Content::Gap`].
    Expired {
        /// Their numbers.
        seqs: Vec<u64>,
        /// For the senders of messages.
        reports: Vec<Report>,
    },
    /// [`SenderRow::halted`]; the plugin is told.
    Halted(Halt),
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Of its row.
    pub id: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// What becomes of a message in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver handled it.
    Delivered,
    /// The receiver handled it, and said no.
    Refused(Failure),
    /// It was given up, and nobody handled it.
    Expired,
}

/// Rows in another order than that of their numbers: a mistake of the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("row {got} came where {expected} is next")]
pub struct RowOrder {
    expected: u64,
    got: u64,
}

/// The sender's end of a channel.
#[derive(Debug)]
pub struct ChannelSender {
    key: ChannelKey,
    row: SenderRow,
    /// From `row.acked` + 1 on, without a hole.
    rows: VecDeque<Row>,
    row_bytes: usize,
    /// What the receiver acknowledged; durable or on its way to be.
    confirmed: Position,
    /// How much of it was polled.
    polled: u64,
    reports: Vec<Report>,
    /// All beyond this was surely not handled. Raised by sending, set by STATE.
    sent: u64,
    /// Their expiry is on its way to be durable: they must not go out.
    held: BTreeSet<u64>,
    link: SenderLink,
    halt_to_commit: Option<Halt>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SenderLink {
    Down,
    /// CHANNEL is to go out.
    Up(Link),
    /// STATE is to come.
    Asked(Link),
    Open(Link, Window),
    /// HALT is to go out.
    Halting(Link),
}

impl SenderRow {
    /// A channel that nothing was sent on. For one that is opened anew, with the next epoch: the
    /// `kept` messages that are not acknowledged get the numbers from 1 on.
    pub fn new(key: &ChannelKey, history: History, kept: u64) -> Self {
        Self {
            history,
            next_seq: kept.saturating_add(1),
            acked: Position::first(key, &history),
            halted: None,
        }
    }
}

impl ChannelSender {
    /// Begins with what is durable. Which rows went out before is not known: none expires before
    /// the receiver's next STATE, but those that are enqueued from here on.
    pub fn new(key: ChannelKey, row: SenderRow) -> Self {
        Self {
            key,
            row,
            rows: VecDeque::new(),
            row_bytes: 0,
            confirmed: row.acked,
            polled: row.acked.seq,
            reports: Vec::new(),
            sent: row.next_seq.saturating_sub(1),
            held: BTreeSet::new(),
            link: SenderLink::Down,
            halt_to_commit: None,
        }
    }

    /// Which rows to read; `None`: enough are here.
    pub fn wants(&self) -> Option<Wanted> {
        let from_seq = self.loaded() + 1;
        let end = self.held.range(from_seq..).next();
        let left = end.unwrap_or(&self.row.next_seq).saturating_sub(from_seq);
        let room = MAX_ROWS.saturating_sub(self.rows.len());
        let messages = room.min(usize::try_from(left).unwrap_or(room));
        let bytes = MAX_ROW_BYTES.saturating_sub(self.row_bytes);
        let is_room = messages > 0 && bytes > 0 && self.row.halted.is_none();
        is_room.then_some(Wanted {
            from_seq,
            messages,
            bytes,
        })
    }

    /// Takes rows as they are on disk when it is called; what finds no room is wanted again.
    ///
    /// # Errors
    /// [`RowOrder`]: they do not follow those that are here.
    pub fn handle_rows(&mut self, rows: impl IntoIterator<Item = Row>) -> Result<(), RowOrder> {
        for row in rows {
            if self.wants().is_none() {
                break;
            }
            let expected = self.loaded() + 1;
            check_order(expected, row.seq)?;
            self.row_bytes += row.body().len();
            self.rows.push_back(row);
        }
        Ok(())
    }

    /// A new message is durable.
    ///
    /// # Errors
    /// [`RowOrder`]: its number is not the next one.
    pub fn handle_enqueued(&mut self, row: Row) -> Result<(), RowOrder> {
        check_order(self.row.next_seq, row.seq)?;
        let follows = self.loaded() + 1 == row.seq;
        self.row.next_seq += 1;
        if follows {
            self.handle_rows([row])?;
        }
        Ok(())
    }

    /// A trunk to the receiver is up, which was opened after the channel's last one was given up.
    /// The channel's number was not used on it.
    pub fn handle_trunk_up(&mut self, link: Link) {
        self.link = SenderLink::Up(link);
    }

    /// The trunk broke or is given up, or the receiver refused the channel.
    pub fn handle_trunk_down(&mut self, from: Link) {
        if self.link() == Some(from) {
            self.link = SenderLink::Down;
        }
    }

    /// STATE. One of an earlier trunk is dropped.
    ///
    /// # Errors
    /// [`ChannelError::Unasked`]: end the trunk.
    pub fn handle_state(&mut self, from: Link, state: &State) -> Result<(), ChannelError> {
        if !self.has_asked(from) {
            return Ok(());
        }
        let SenderLink::Asked(link) = self.link else {
            return Err(ChannelError::Unasked);
        };
        match self.who_went_back(state.position) {
            Some(reason) => self.halt(reason),
            None => {
                self.sent = state.position.map_or(0, |position| position.seq);
                self.link = SenderLink::Open(link, state.window);
            }
        }
        Ok(())
    }

    /// The rule in `trunk`.
    fn who_went_back(&self, theirs: Option<Position>) -> Option<Halt> {
        let cursor = theirs.map_or(0, |position| position.seq);
        if cursor < self.confirmed.seq {
            return Some(Halt::ReceiverWentBack);
        }
        if cursor > self.sent.min(self.loaded()) {
            return Some(Halt::SenderWentBack);
        }
        let ours = self.position_at(cursor);
        let agrees = theirs.is_none_or(|theirs| theirs == ours);
        (!agrees).then_some(Halt::SenderWentBack)
    }

    /// ACK. One of an earlier trunk is dropped.
    ///
    /// # Errors
    /// [`ChannelError`]: end the trunk.
    pub fn handle_ack(&mut self, from: Link, ack: Ack) -> Result<(), ChannelError> {
        if !self.has_asked(from) {
            return Ok(());
        }
        let SenderLink::Open(..) = self.link else {
            return Err(ChannelError::Unasked);
        };
        if !(self.confirmed.seq..=self.sent).contains(&ack.seq) {
            return Err(ChannelError::Ack(ack.seq));
        }
        self.check_refusals(&ack)?;
        let mut refusals = ack.refusals.into_iter().peekable();
        let mut reports = Vec::new();
        for row in self.rows_between(self.confirmed.seq, ack.seq) {
            while refusals.next_if(|refusal| refusal.seq < row.seq).is_some() {}
            let refusal = refusals.next_if(|refusal| refusal.seq == row.seq);
            reports.extend(row.handled(refusal));
        }
        self.confirmed = self.position_at(ack.seq);
        self.reports.extend(reports);
        Ok(())
    }

    /// Those that the last ACK had already may come again.
    fn check_refusals(&self, ack: &Ack) -> Result<(), ChannelError> {
        let mut last = self.row.acked.seq;
        for Refusal { seq, .. } in &ack.refusals {
            let is_old = *seq <= self.row.acked.seq;
            if !is_old && (*seq <= last || *seq > ack.seq || self.is_gap(*seq)) {
                return Err(ChannelError::Refusal(*seq));
            }
            last = last.max(*seq);
        }
        Ok(())
    }

    /// HALT of the channel's receiver. One of an earlier trunk is dropped.
    pub fn handle_halt(&mut self, from: Link, reason: Halt) {
        if self.has_asked(from) {
            self.halt(reason);
            self.link = SenderLink::Down;
        }
    }

    /// Begins to give up a message that the owner found expired on disk: it makes
    /// [`SenderCommit::Expired`] with its number durable, the numbers in order. False when it may have been handled, is a gap, or too many are under way.
    #[must_use]
    pub fn expire(&mut self, seq: u64) -> bool {
        let is_kept = seq > self.sent && seq < self.row.next_seq && self.row.halted.is_none();
        is_kept && !self.is_gap(seq) && self.held.len() < MAX_HELD && self.held.insert(seq)
    }

    /// What `poll_commit` told is durable.
    pub fn handle_durable(&mut self, commit: &SenderCommit) {
        match commit {
            SenderCommit::Acked { position, .. } => {
                let is_acked = |row: &mut Row| row.seq <= position.seq;
                while let Some(row) = self.rows.pop_front_if(is_acked) {
                    self.row_bytes -= row.body().len();
                }
                self.row.acked = *position;
            }
            SenderCommit::Expired { seqs, .. } => {
                for row in &mut self.rows {
                    if seqs.binary_search(&row.seq).is_ok() {
                        self.row_bytes -= row.body().len();
                        row.content = Content::Gap;
                    }
                }
                self.held.retain(|seq| seqs.binary_search(seq).is_err());
            }
            SenderCommit::Halted(_) => {}
        }
    }

    /// The next thing to make durable. Messages expire here at `now_ms`, milliseconds since 1970.
    pub fn poll_commit(&mut self, now_ms: u64) -> Option<SenderCommit> {
        if self.confirmed.seq > self.polled {
            self.polled = self.confirmed.seq;
            return Some(SenderCommit::Acked {
                position: self.confirmed,
                reports: std::mem::take(&mut self.reports),
            });
        }
        if let Some(reason) = self.halt_to_commit.take() {
            return Some(SenderCommit::Halted(reason));
        }
        let due = self.rows.iter().filter(|row| row.is_due(now_ms));
        let due: Vec<(u64, Option<u64>)> = due.map(|row| (row.seq, row.report)).collect();
        let due: Vec<_> = due
            .into_iter()
            .filter(|(seq, _)| self.expire(*seq))
            .collect();
        let reports = due.iter().filter_map(|(_, id)| *id).map(|id| Report {
            id,
            outcome: Outcome::Expired,
        });
        (!due.is_empty()).then(|| SenderCommit::Expired {
            seqs: due.iter().map(|(seq, _)| *seq).collect(),
            reports: reports.collect(),
        })
    }

    /// When a message here expires next, in milliseconds since 1970: poll then.
    pub fn poll_timeout(&self) -> Option<u64> {
        let rows = self.rows.iter();
        let free = rows.filter(|row| row.seq > self.sent && !self.held.contains(&row.seq));
        free.filter(|row| row.content != Content::Gap)
            .filter_map(|row| row.expires_ms)
            .min()
    }

    /// The next frame to send, and on which trunk. Asked for only when the trunk takes it: it
    /// counts as sent.
    pub fn poll_frame(&mut self, now_ms: u64) -> Option<(u64, Frame)> {
        let trunk = self.link()?.trunk;
        let frame = match self.link {
            SenderLink::Down | SenderLink::Asked(_) => None,
            SenderLink::Up(link) => self.open(link),
            SenderLink::Open(link, window) => self.next(link.number, window, now_ms),
            SenderLink::Halting(Link { number, .. }) => {
                self.link = SenderLink::Down;
                self.row.halted.map(|reason| Frame::Halt {
                    number,
                    by: End::Sender,
                    reason,
                })
            }
        };
        frame.map(|frame| (trunk, frame))
    }

    /// A halted channel is opened too, so that the receiver hears of it.
    fn open(&mut self, link: Link) -> Option<Frame> {
        let has_some = self.confirmed.seq + 1 < self.row.next_seq;
        self.link = match self.row.halted {
            Some(_) => SenderLink::Halting(link),
            None if has_some && self.wants().is_none() => SenderLink::Asked(link),
            None => return None,
        };
        Some(Frame::Channel(Box::new(Channel {
            number: link.number,
            envelope: self.key.envelope.clone(),
            history: self.row.history,
            next_seq: self.row.next_seq,
            acked: self.row.acked.seq,
        })))
    }

    fn next(&mut self, number: u32, window: Window, now_ms: u64) -> Option<Frame> {
        let unacked = self.rows_between(self.row.acked.seq, self.sent);
        let (messages, bytes) = unacked.fold((0, 0), |(n, b), row| (n + 1, b + row.body().len()));
        let row = self.rows.get(messages)?;
        if self.held.contains(&row.seq) || row.is_due(now_ms) {
            return None;
        }
        if !window.has_room(messages, bytes, row.body().len()) {
            return None;
        }
        let frame = match &row.content {
            Content::Message(body) => Frame::Data {
                number,
                seq: row.seq,
                body: body.clone(),
            },
            Content::Gap => {
                let room = usize::from(window.messages) - messages;
                let rows = self.rows.iter().skip(messages).take(room);
                let gaps = rows.take_while(|row| row.content == Content::Gap).count();
                let messages = u16::try_from(gaps).unwrap_or(window.messages);
                Frame::Gap { number, messages }
            }
        };
        self.sent += if let Frame::Gap { messages, .. } = frame {
            messages.into()
        } else {
            1
        };
        Some(frame)
    }

    /// Nothing more moves.
    fn halt(&mut self, reason: Halt) {
        if self.row.halted.is_none() {
            self.row.halted = Some(reason);
            self.halt_to_commit = Some(reason);
        }
        self.link = match self.link() {
            Some(link) => SenderLink::Halting(link),
            None => SenderLink::Down,
        };
    }

    /// Whether CHANNEL went out there, and nothing ended the channel since.
    fn has_asked(&self, from: Link) -> bool {
        let has_asked = matches!(self.link, SenderLink::Asked(_) | SenderLink::Open(..));
        has_asked && self.link() == Some(from)
    }

    fn link(&self) -> Option<Link> {
        match self.link {
            SenderLink::Down => None,
            SenderLink::Up(link)
            | SenderLink::Asked(link)
            | SenderLink::Open(link, _)
            | SenderLink::Halting(link) => Some(link),
        }
    }

    /// The number of the last row here.
    fn loaded(&self) -> u64 {
        self.row.acked.seq + self.rows.len() as u64
    }

    fn rows_between(&self, after: u64, until: u64) -> impl Iterator<Item = &Row> {
        let rows = self.rows.iter();
        rows.skip_while(move |row| row.seq <= after)
            .take_while(move |row| row.seq <= until)
    }

    fn is_gap(&self, seq: u64) -> bool {
        let mut rows = self.rows_between(seq.saturating_sub(1), seq);
        rows.any(|row| row.content == Content::Gap)
    }

    /// At a row that is here, or at `confirmed`.
    fn position_at(&self, seq: u64) -> Position {
        let rows = self.rows_between(self.confirmed.seq, seq);
        rows.fold(self.confirmed, |position, row| match &row.content {
            Content::Message(body) => position.message(body),
            Content::Gap => position.gap(),
        })
    }
}

impl Row {
    fn body(&self) -> &[u8] {
        match &self.content {
            Content::Message(body) => body,
            Content::Gap => &[],
        }
    }

    fn is_due(&self, now_ms: u64) -> bool {
        let is_message = self.content != Content::Gap;
        is_message && self.expires_ms.is_some_and(|at| at <= now_ms)
    }

    /// A gap was reported when it became one.
    fn handled(&self, refusal: Option<Refusal>) -> Option<Report> {
        let id = self.report.filter(|_| self.content != Content::Gap)?;
        let outcome = match refusal {
            Some(refusal) => Outcome::Refused(refusal.failure),
            None => Outcome::Delivered,
        };
        Some(Report { id, outcome })
    }
}

fn check_order(expected: u64, got: u64) -> Result<(), RowOrder> {
    if expected == got {
        Ok(())
    } else {
        Err(RowOrder { expected, got })
    }
}
