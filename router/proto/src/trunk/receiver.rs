//! The receiver's end of a channel: which messages are next, and what is acknowledged.
//!
//! Whatever arrives is handed to the owner in order, with the row that its event's commit has to
//! write. A commit that failed is the end of the machine and of all its trunks, also of those that
//! are given up; a new one begins with what is on disk.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{
    ChannelError,
    chain::{ChannelKey, Halt, History, Link, Position},
    frame::{Ack, Channel, ChannelRefusal, End, Frame, MAX_REFUSALS, Refusal, State, Window},
    name::Failure,
};

/// What a receiver remembers of a channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReceiverRow {
    /// The history of `position`; of a halted channel, the one that was given up. `None`: none yet.
    pub history: Option<History>,
    /// What was handled last; `None`: nothing yet.
    pub position: Option<Position>,
    /// The sender has durably heard of all until here: refusals of that are forgotten in the commit
    /// that writes this.
    pub confirmed: u64,
    /// Nothing more moves, but for `is_reopened`.
    pub halted: Option<Halt>,
    /// It was opened anew here after it halted: a later history may begin. Until then the row, and
    /// the refusals that are kept, are of the one that was given up: its sender may ask for them.
    pub is_reopened: bool,
}

/// A message to handle, or messages that are not to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// What it is.
    pub content: ArrivalContent,
    /// To be written in the commit that handles it, whether the message is refused or not.
    pub row: ReceiverRow,
    /// It is the first of its history: that commit forgets all refusals until now.
    pub is_first: bool,
}

/// What arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArrivalContent {
    /// A message.
    Message(Bytes),
    /// So many messages expired.
    Gap(u16),
}

/// The receiver's end of a channel.
#[derive(Debug)]
pub struct ChannelReceiver {
    key: ChannelKey,
    window: Window,
    /// Durable; but a halt is known here before.
    row: ReceiverRow,
    /// Of the last 256 messages, and not yet with the sender.
    refusals: VecDeque<Refusal>,
    confirmed: u64,
    /// On their way to a commit, at most a window of them.
    pending: VecDeque<Pending>,
    link: ReceiverLink,
    /// The newest that a CHANNEL came from.
    trunk: u64,
    halt_to_commit: bool,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    row: ReceiverRow,
    seq: u64,
    messages: usize,
    bytes: usize,
}

#[derive(Debug, Clone, Copy)]
enum ReceiverLink {
    Down,
    /// STATE goes out when nothing is pending.
    Asked {
        link: Link,
        history: History,
        acked: u64,
    },
    Open {
        link: Link,
        history: History,
        /// Of the last message that arrived.
        position: Position,
        /// The last ACK that went out.
        acked: u64,
    },
    /// CHANNEL_REFUSED goes out.
    Refusing(Link),
    /// HALT goes out.
    Halting(Link, Halt),
}

impl ReceiverRow {
    /// After the channel was opened anew here: any later history may begin.
    #[must_use]
    pub fn reopened(self) -> Self {
        let past = self.history.map(|_| Halt::Reopened);
        Self {
            halted: self.halted.or(past),
            is_reopened: past.is_some(),
            ..self
        }
    }

    fn is_halted(&self) -> bool {
        self.halted.is_some() && !self.is_reopened
    }

    /// Where that history got to.
    fn position_in(&self, history: &History) -> Option<Position> {
        self.position.filter(|_| self.history == Some(*history))
    }

    /// What to answer a sender in this history with, when it has heard how far this end came.
    fn closing(&self, history: &History) -> Option<Halt> {
        let halted = self.halted.filter(|_| self.history == Some(*history));
        halted.map(|reason| self.told(reason))
    }

    fn told(&self, reason: Halt) -> Halt {
        if self.is_reopened {
            Halt::Reopened
        } else {
            reason
        }
    }

    fn seq(&self) -> u64 {
        self.position.map_or(0, |position| position.seq)
    }
}

impl ChannelReceiver {
    /// Begins with what is durable: the row, and the refusals that are kept, in order.
    pub fn new(key: ChannelKey, window: Window, row: ReceiverRow, refusals: Vec<Refusal>) -> Self {
        Self {
            key,
            window,
            row,
            refusals: refusals.into(),
            confirmed: row.confirmed,
            pending: VecDeque::new(),
            link: ReceiverLink::Down,
            trunk: 0,
            halt_to_commit: false,
        }
    }

    /// CHANNEL. It takes the place of an earlier one. That of an older trunk is read late, and
    /// tells where the sender was: it is dropped.
    pub fn handle_channel(&mut self, link: Link, channel: &Channel) {
        if link.trunk < self.trunk {
            return;
        }
        self.trunk = link.trunk;
        self.link = match self.judge(channel) {
            Verdict::Open => ReceiverLink::Asked {
                link,
                history: channel.history,
                acked: channel.acked,
            },
            Verdict::Wait => ReceiverLink::Refusing(link),
            Verdict::Halt(reason) => ReceiverLink::Halting(link, reason),
        };
    }

    /// The rule in `trunk`, as far as this end can tell.
    fn judge(&mut self, channel: &Channel) -> Verdict {
        let theirs = channel.history;
        let newest = self.newest();
        if let Some(reason) = newest.halted {
            return self.judge_halted(reason, channel);
        }
        let Some(history) = newest.history else {
            return Verdict::Open;
        };
        let is_reopened = theirs.incarnation == history.incarnation && theirs.epoch > history.epoch;
        let reason = match theirs {
            _ if is_reopened && channel.acked == 0 => {
                // Its sender halted it, which this end has not heard.
                self.halt(Halt::Reopened, history);
                return Verdict::Wait;
            }
            _ if is_reopened => Halt::ReceiverWentBack,
            theirs if theirs != history => Halt::SenderWentBack,
            _ if newest.seq() < channel.acked => Halt::ReceiverWentBack,
            _ if self.confirmed > channel.acked => Halt::SenderWentBack,
            _ if newest.seq() >= channel.next_seq => Halt::SenderWentBack,
            _ => return Verdict::Open,
        };
        self.halt(reason, theirs);
        Verdict::Halt(reason)
    }

    /// After `reason`; nothing is pending that is not of what was halted.
    fn judge_halted(&self, reason: Halt, channel: &Channel) -> Verdict {
        let theirs = channel.history;
        let is_later = |past: &History| theirs.may_follow(past);
        // Both ends agree on what was handled.
        let is_sound = matches!(reason, Halt::Poison | Halt::Reopened);
        match self.row.history {
            Some(past) if is_later(&past) && self.row.is_reopened => Verdict::Open,
            Some(past) if is_later(&past) => Verdict::Wait,
            Some(past) if past != theirs || !is_sound => Verdict::Halt(self.row.told(reason)),
            Some(_) if self.confirmed > channel.acked => Verdict::Halt(Halt::SenderWentBack),
            Some(_) => Verdict::Open,
            None => Verdict::Halt(reason),
        }
    }

    /// The row when all that is pending is durable; a halt is known at once.
    fn newest(&self) -> ReceiverRow {
        let pending = self.pending.back().filter(|_| !self.row.is_halted());
        pending.map_or(self.row, |pending| pending.row)
    }

    /// The trunk broke. What is pending goes on.
    pub fn handle_trunk_down(&mut self, from: Link) {
        if self.link() == Some(from) {
            self.link = ReceiverLink::Down;
        }
    }

    /// DATA. `None` when it belongs to an earlier trunk: it is dropped.
    ///
    /// # Errors
    /// [`ChannelError`]: end the trunk.
    pub fn handle_data(
        &mut self,
        link: Link,
        seq: u64,
        body: Bytes,
    ) -> Result<Option<Arrival>, ChannelError> {
        let Some((history, position)) = self.arriving(link)? else {
            return Ok(None);
        };
        let next = position.message(&body);
        if seq != next.seq {
            let (expected, got) = (next.seq, seq);
            return Err(ChannelError::Order { expected, got });
        }
        let bytes = body.len();
        self.arrive(history, next, (1, bytes), ArrivalContent::Message(body))
            .map(Some)
    }

    /// GAP. `None` when it belongs to an earlier trunk: it is dropped.
    ///
    /// # Errors
    /// [`ChannelError`]: end the trunk.
    pub fn handle_gap(
        &mut self,
        link: Link,
        messages: u16,
    ) -> Result<Option<Arrival>, ChannelError> {
        let Some((history, position)) = self.arriving(link)? else {
            return Ok(None);
        };
        if messages > self.window.messages {
            return Err(ChannelError::Window);
        }
        let position = (0..messages).fold(position, |position, _| position.gap());
        let size = (usize::from(messages), 0);
        self.arrive(history, position, size, ArrivalContent::Gap(messages))
            .map(Some)
    }

    fn arriving(&self, from: Link) -> Result<Option<(History, Position)>, ChannelError> {
        match self.link {
            ReceiverLink::Open {
                link,
                history,
                position,
                ..
            } if link == from && self.row.closing(&history).is_none() => {
                Ok(Some((history, position)))
            }
            ReceiverLink::Asked { link, .. } if link == from => Err(ChannelError::NotOpen),
            ReceiverLink::Open { .. }
            | ReceiverLink::Asked { .. }
            | ReceiverLink::Down
            | ReceiverLink::Refusing(_)
            | ReceiverLink::Halting(..) => Ok(None),
        }
    }

    fn arrive(
        &mut self,
        history: History,
        next: Position,
        (messages, bytes): (usize, usize),
        content: ArrivalContent,
    ) -> Result<Arrival, ChannelError> {
        let pending = self.pending.iter();
        let sizes = pending.fold((0, 0), |(n, b), p| (n + p.messages, b + p.bytes));
        let last = (sizes.0 + messages).saturating_sub(1);
        if !self.window.has_room(last, sizes.1, bytes) {
            return Err(ChannelError::Window);
        }
        let is_first = self.newest().history != Some(history);
        if is_first {
            self.confirmed = 0;
            self.refusals.clear();
        }
        // The sender sends no more than 256 beyond what it has durably.
        self.confirm(next.seq.saturating_sub(MAX_REFUSALS as u64));
        let row = ReceiverRow {
            history: Some(history),
            position: Some(next),
            confirmed: self.confirmed,
            halted: None,
            is_reopened: false,
        };
        self.pending.push_back(Pending {
            row,
            seq: next.seq,
            messages,
            bytes,
        });
        if let ReceiverLink::Open { position, .. } = &mut self.link {
            *position = next;
        }
        Ok(Arrival {
            content,
            row,
            is_first,
        })
    }

    fn confirm(&mut self, seq: u64) {
        self.confirmed = self.confirmed.max(seq);
        let confirmed = self.confirmed;
        self.refusals.retain(|refusal| refusal.seq > confirmed);
    }

    /// The commit that handled the next arrival is durable, with `refusal` if it was refused.
    pub fn handle_committed(&mut self, refusal: Option<Failure>) {
        let Some(pending) = self.pending.pop_front() else {
            return;
        };
        let halted = self.row.is_halted().then_some(self.row);
        self.row = pending.row;
        if let Some(ReceiverRow {
            history, halted, ..
        }) = halted
        {
            (self.row.history, self.row.halted) = (history, halted);
        }
        let seq = pending.seq;
        self.refusals
            .extend(refusal.map(|failure| Refusal { seq, failure }));
    }

    /// The plugin failed on the next arrival for good: of that and what came after it nothing will
    /// be committed. The sender hears how far this end came, then of the halt.
    pub fn handle_poison(&mut self) {
        let failed = self.pending.front().map_or(self.row, |pending| pending.row);
        self.pending.clear();
        if let Some(history) = failed.history {
            self.halt(Halt::Poison, history);
        }
    }

    /// HALT of the channel's sender.
    pub fn handle_halt(&mut self, from: Link, reason: Halt) {
        let history = match self.link {
            ReceiverLink::Open { link, history, .. }
            | ReceiverLink::Asked { link, history, .. }
                if link == from =>
            {
                history
            }
            ReceiverLink::Open { .. }
            | ReceiverLink::Asked { .. }
            | ReceiverLink::Down
            | ReceiverLink::Refusing(_)
            | ReceiverLink::Halting(..) => return,
        };
        // What is opened anew stays so.
        if self.row.closing(&history).is_none() {
            self.halt(reason, history);
        }
        self.link = ReceiverLink::Down;
    }

    fn halt(&mut self, reason: Halt, history: History) {
        if !self.row.is_halted() {
            let position = self.row.position_in(&history);
            self.row = ReceiverRow {
                history: Some(history),
                position,
                confirmed: position.map_or(0, |_| self.row.confirmed),
                halted: Some(reason),
                is_reopened: false,
            };
            self.halt_to_commit = true;
        }
    }

    /// A row to make durable, since the channel was halted; the plugin is told.
    pub fn poll_commit(&mut self) -> Option<ReceiverRow> {
        let is_due = self.halt_to_commit && self.pending.is_empty();
        is_due.then(|| {
            self.halt_to_commit = false;
            self.row
        })
    }

    /// The next frame to send, and where.
    pub fn poll_frame(&mut self) -> Option<(u64, Frame)> {
        match self.link {
            ReceiverLink::Asked {
                link,
                history,
                acked,
            } if self.pending.is_empty() => Some(self.state(link, history, acked)),
            ReceiverLink::Open {
                link,
                history,
                acked,
                ..
            } => {
                let ack = self.ack(link, &history, acked);
                ack.or_else(|| self.close(link, &history))
            }
            ReceiverLink::Down | ReceiverLink::Asked { .. } => None,
            ReceiverLink::Refusing(Link { trunk, number }) => {
                self.link = ReceiverLink::Down;
                let reason = ChannelRefusal::Halted;
                Some((trunk, Frame::ChannelRefused { number, reason }))
            }
            ReceiverLink::Halting(Link { trunk, number }, reason) => {
                self.link = ReceiverLink::Down;
                let by = End::Receiver;
                Some((trunk, Frame::Halt { number, by, reason }))
            }
        }
    }

    fn state(&mut self, link: Link, history: History, acked: u64) -> (u64, Frame) {
        let position = self.row.position_in(&history);
        if position.is_some() {
            self.confirm(acked);
        }
        self.link = ReceiverLink::Open {
            link,
            history,
            position: position.unwrap_or_else(|| Position::first(&self.key, &history)),
            acked,
        };
        let state = State {
            number: link.number,
            window: self.window,
            position,
        };
        (link.trunk, Frame::State(state))
    }

    fn ack(&mut self, link: Link, history: &History, last: u64) -> Option<(u64, Frame)> {
        let seq = self.row.position_in(history)?.seq;
        if seq <= last {
            return None;
        }
        if let ReceiverLink::Open { acked, .. } = &mut self.link {
            *acked = seq;
        }
        let refusals = self.refusals.iter().filter(|refusal| refusal.seq > last);
        let ack = Ack {
            number: link.number,
            seq,
            refusals: refusals.cloned().collect(),
        };
        Some((link.trunk, Frame::Ack(ack)))
    }

    /// HALT, after the sender has heard how far this end came.
    fn close(&mut self, link: Link, history: &History) -> Option<(u64, Frame)> {
        let reason = self.row.closing(history)?;
        self.link = ReceiverLink::Down;
        let (number, by) = (link.number, End::Receiver);
        Some((link.trunk, Frame::Halt { number, by, reason }))
    }

    fn link(&self) -> Option<Link> {
        match self.link {
            ReceiverLink::Asked { link, .. }
            | ReceiverLink::Open { link, .. }
            | ReceiverLink::Refusing(link)
            | ReceiverLink::Halting(link, _) => Some(link),
            ReceiverLink::Down => None,
        }
    }
}

/// What becomes of a CHANNEL.
#[derive(Debug)]
enum Verdict {
    Open,
    Wait,
    Halt(Halt),
}
