//! The sender's end of a channel: which messages go out, which were handled, which may be given up.
//!
//! The rows are the owner's, on disk; the machine holds those that can be on the way. All that it
//! is told by `handle_rows` and `handle_durable` is durable before. What it wants to become durable
//! it tells by `poll_commit`; a commit that failed is the end of the machine, and a new one begins
//! with what is on disk.

mod rows;

use std::collections::{BTreeSet, VecDeque};

pub use self::rows::{Content, Outcome, Report, Row, RowOrder, SenderCommit, SenderRow, Wanted};
use super::{
    ChannelError,
    chain::{ChannelKey, Halt, Link, Position},
    frame::{Ack, Channel, End, Frame, Refusal, State, Window},
};

const MAX_ROWS: usize = Window::MAX.messages as usize;
const MAX_ROW_BYTES: usize = Window::MAX.bytes as usize;
/// Rows whose expiry is being committed.
const MAX_HELD: usize = MAX_ROWS;
/// How far the mark is set beyond what was sent: as much as can be on the way, so that nothing
/// waits for it but the first message on a trunk.
const MARK_AHEAD: u64 = MAX_ROWS as u64;

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
    /// [`SenderRow::mark`], on its way to be durable.
    next_mark: Option<u64>,
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

impl ChannelSender {
    /// Begins with what is durable. Which rows until the mark went out is not known: none of them
    /// expires before the receiver's next STATE.
    pub fn new(key: ChannelKey, row: SenderRow) -> Self {
        Self {
            key,
            row,
            rows: VecDeque::new(),
            row_bytes: 0,
            confirmed: row.acked,
            polled: row.acked.seq,
            reports: Vec::new(),
            sent: row.mark.min(row.next_seq.saturating_sub(1)),
            held: BTreeSet::new(),
            link: SenderLink::Down,
            next_mark: None,
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

    /// A trunk to the receiver is up, whose opening began after the channel's last one stood.
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
            SenderCommit::Mark(mark) => {
                self.row.mark = *mark;
                self.next_mark = None;
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
        self.poll_mark().or_else(|| self.poll_expired(now_ms))
    }

    /// Ahead of what is sent while the channel is open, and back to it when there is no trunk: what
    /// is enqueued then may expire, also after a crash.
    fn poll_mark(&mut self) -> Option<SenderCommit> {
        if self.next_mark.is_some() || self.row.halted.is_some() {
            return None;
        }
        let left = self.row.mark.saturating_sub(self.sent);
        let is_more = self.sent + 1 < self.row.next_seq;
        self.next_mark = match self.link {
            SenderLink::Open(..) if is_more && left <= MARK_AHEAD / 2 => {
                Some(self.sent + MARK_AHEAD)
            }
            SenderLink::Down if left > 0 => Some(self.sent),
            SenderLink::Open(..)
            | SenderLink::Down
            | SenderLink::Up(_)
            | SenderLink::Asked(_)
            | SenderLink::Halting(_) => None,
        };
        self.next_mark.map(SenderCommit::Mark)
    }

    /// Whether nothing waits for the mark that is on its way to be durable.
    pub fn is_below_mark(&self) -> bool {
        self.marked() > 0
    }

    /// How many more may go out, whichever mark is durable.
    fn marked(&self) -> u64 {
        let mark = self.next_mark.unwrap_or(self.row.mark).min(self.row.mark);
        mark.saturating_sub(self.sent)
    }

    fn poll_expired(&mut self, now_ms: u64) -> Option<SenderCommit> {
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

    /// When a message here expires next, in milliseconds since 1970: poll then. `None` also while
    /// none can be given up: the channel is halted, or too many are under way.
    pub fn poll_timeout(&self) -> Option<u64> {
        if self.row.halted.is_some() || self.held.len() >= MAX_HELD {
            return None;
        }
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
        if self.held.contains(&row.seq) || row.is_due(now_ms) || self.marked() == 0 {
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
                let marked = usize::try_from(self.marked()).unwrap_or(usize::MAX);
                let room = marked.min(usize::from(window.messages) - messages);
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

fn check_order(expected: u64, got: u64) -> Result<(), RowOrder> {
    if expected == got {
        Ok(())
    } else {
        Err(RowOrder { expected, got })
    }
}
