//! What the owner of a channel's sender keeps for it, reads for it, and is told to make durable.

use bytes::Bytes;
use thiserror::Error;

use crate::trunk::{
    chain::{ChannelKey, Halt, History, Position},
    frame::Refusal,
    name::Failure,
};

/// What a sender remembers of a channel, beside its rows from `acked` + 1 to `next_seq` - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderRow {
    /// Which history.
    pub history: History,
    /// The number that the next message gets, from 1 on.
    pub next_seq: u64,
    /// The last message that the receiver acknowledged.
    pub acked: Position,
    /// No message beyond this was ever sent; those that were not may have no number yet.
    pub mark: u64,
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
    /// [`SenderRow::mark`].
    Mark(u64),
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
    pub(super) expected: u64,
    pub(super) got: u64,
}

impl SenderRow {
    /// A channel that nothing was sent on. For one that is opened anew, with the next epoch: the
    /// `kept` messages that are not acknowledged get the numbers from 1 on.
    pub fn new(key: &ChannelKey, history: History, kept: u64) -> Self {
        Self {
            history,
            next_seq: kept.saturating_add(1),
            acked: Position::first(key, &history),
            mark: 0,
            halted: None,
        }
    }
}

impl Row {
    pub(super) fn body(&self) -> &[u8] {
        match &self.content {
            Content::Message(body) => body,
            Content::Gap => &[],
        }
    }

    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        let is_message = self.content != Content::Gap;
        is_message && self.expires_ms.is_some_and(|at| at <= now_ms)
    }

    /// A gap was reported when it became one.
    pub(super) fn handled(&self, refusal: Option<Refusal>) -> Option<Report> {
        let id = self.report.filter(|_| self.content != Content::Gap)?;
        let outcome = match refusal {
            Some(refusal) => Outcome::Refused(refusal.failure),
            None => Outcome::Delivered,
        };
        Some(Report { id, outcome })
    }
}
