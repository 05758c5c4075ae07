//! What nodes did and sent, counted; and a hash that tells whether two worlds did the same.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    iter::Sum,
    mem,
    ops::Add,
};

use crate::event::Event;

/// What one node did, or all of a world, since the world began. What principals of one node say to each
/// other is not counted as sent. Bytes are those of bodies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Counts {
    /// Events that a handler ran, each try of those that broke.
    pub events: u64,
    /// Commits: what had to be durable.
    pub commits: u64,
    /// Questions.
    pub asks: u64,
    /// Bytes of questions.
    pub ask_bytes: u64,
    /// Posts.
    pub posts: u64,
    /// Bytes of posts.
    pub post_bytes: u64,
    /// Answers to questions of other nodes, refusals among them.
    pub answers: u64,
    /// Bytes of answers.
    pub answer_bytes: u64,
    /// Durable messages, each time that they set out.
    pub messages: u64,
    /// Bytes of durable messages.
    pub message_bytes: u64,
}

impl Counts {
    /// What came since these were counted.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            events: self.events - earlier.events,
            commits: self.commits - earlier.commits,
            asks: self.asks - earlier.asks,
            ask_bytes: self.ask_bytes - earlier.ask_bytes,
            posts: self.posts - earlier.posts,
            post_bytes: self.post_bytes - earlier.post_bytes,
            answers: self.answers - earlier.answers,
            answer_bytes: self.answer_bytes - earlier.answer_bytes,
            messages: self.messages - earlier.messages,
            message_bytes: self.message_bytes - earlier.message_bytes,
        }
    }

    pub(crate) fn ask(&mut self, body: &[u8]) {
        self.asks += 1;
        self.ask_bytes += body.len() as u64;
    }

    pub(crate) fn post(&mut self, body: &[u8]) {
        self.posts += 1;
        self.post_bytes += body.len() as u64;
    }

    pub(crate) fn answer(&mut self, body: &[u8]) {
        self.answers += 1;
        self.answer_bytes += body.len() as u64;
    }

    pub(crate) fn message(&mut self, body: &[u8]) {
        self.messages += 1;
        self.message_bytes += body.len() as u64;
    }
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            events: self.events + other.events,
            commits: self.commits + other.commits,
            asks: self.asks + other.asks,
            ask_bytes: self.ask_bytes + other.ask_bytes,
            posts: self.posts + other.posts,
            post_bytes: self.post_bytes + other.post_bytes,
            answers: self.answers + other.answers,
            answer_bytes: self.answer_bytes + other.answer_bytes,
            messages: self.messages + other.messages,
            message_bytes: self.message_bytes + other.message_bytes,
        }
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Add::add)
    }
}

/// A hash over all events so far: whose, when, of which kind, and what they say.
#[derive(Debug, Default)]
pub(crate) struct Trace(pub(crate) u64);

impl Trace {
    pub(crate) fn add(&mut self, now_ms: u64, node: usize, event: &Event) {
        let mut hasher = DefaultHasher::new();
        (self.0, now_ms, node, mem::discriminant(event)).hash(&mut hasher);
        event.body().hash(&mut hasher);
        self.0 = hasher.finish();
    }
}
