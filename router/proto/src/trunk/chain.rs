//! What both ends of a channel agree on: the hash chain over its messages (diagram in `trunk`).

use ring::digest::{Context, Digest, SHA256, digest};

use super::name::{Envelope, Name};
use crate::{id::NodeId, wire::Writer};

const CONTEXT: &[u8] = b"wormholes-channel-v1";
const INCARNATION_CONTEXT: &[u8] = b"wormholes-incarnation-v1";
const MESSAGE: u8 = 0;
const GAP: u8 = 1;

/// Between whom a channel is, and about what. A node has one channel of each key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ChannelKey {
    /// The sender: a node id, or an alias.
    pub sender: NodeId,
    /// The receiver: a node id, or an alias.
    pub receiver: NodeId,
    /// The plugin's instance, as the nodes know it.
    pub instance: Name,
    /// The principals and the protocol.
    pub envelope: Envelope,
}

/// Which trunk, and which of its channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Link {
    /// The owner's number for the trunk: higher than that of each trunk that was welcomed before.
    pub trunk: u64,
    /// The sender's number for the channel there.
    pub number: u32,
}

/// Which of a channel's histories; numbers begin anew with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct History {
    /// Of the sender's store, for this channel alone.
    pub incarnation: [u8; 16],
    /// How often the sender opened the channel anew.
    pub epoch: u64,
}

/// A place in a history, and what was said until then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// The number of the last message or gap; 0 before the first.
    pub seq: u64,
    /// The hash over all until there.
    pub chain: [u8; 32],
}

numbered! {
    /// Why nothing more moves on a channel until both ends opened it anew.
    Halt, "halt reason" {
        /// The sender's store has forgotten what the receiver remembers.
        #[error("the sender went back")]
        SenderWentBack = 1,
        /// The receiver's store has forgotten what the sender remembers.
        #[error("the receiver went back")]
        ReceiverWentBack = 2,
        /// The receiver's plugin failed on a message for good.
        #[error("the receiver's plugin failed on a message")]
        Poison = 3,
        /// The other end opened the channel anew, and this one has not yet.
        #[error("the other end opened the channel anew")]
        Reopened = 4,
    } or Unknown
}

impl ChannelKey {
    fn encode(&self, writer: &mut Writer) {
        writer.bytes(self.sender.as_bytes());
        self.envelope.from.encode(writer);
        writer.bytes(self.receiver.as_bytes());
        self.envelope.to.encode(writer);
        self.instance.encode(writer);
        self.envelope.protocol.encode(writer);
    }
}

impl History {
    /// Of a channel of the store that drew `incarnation` at random when it was made. What goes out
    /// is derived from that: it tells nobody which channels are of one store.
    pub fn new(key: &ChannelKey, incarnation: &[u8; 16], epoch: u64) -> Self {
        let mut writer = Writer::new();
        key.encode(writer.bytes(INCARNATION_CONTEXT).bytes(incarnation));
        Self {
            incarnation: first_bytes(&digest(&SHA256, &writer.into_vec())),
            epoch,
        }
    }

    /// Whether the sender may begin with this one after `past` was given up.
    pub(super) fn may_follow(&self, past: &Self) -> bool {
        self.incarnation != past.incarnation || self.epoch > past.epoch
    }
}

impl Position {
    /// Before the first message.
    pub fn first(key: &ChannelKey, history: &History) -> Self {
        let mut writer = Writer::new();
        key.encode(writer.bytes(CONTEXT).bytes(&history.incarnation));
        writer.u64(history.epoch);
        let hash = digest(&SHA256, &writer.into_vec());
        Self {
            seq: 0,
            chain: first_bytes(&hash),
        }
    }

    /// After the next message.
    #[must_use]
    pub fn message(&self, body: &[u8]) -> Self {
        self.next(MESSAGE, body)
    }

    /// After one message more that is not to come.
    #[must_use]
    pub fn gap(&self) -> Self {
        self.next(GAP, &[])
    }

    fn next(&self, kind: u8, body: &[u8]) -> Self {
        // No sender gets there: a sequence is counted up by one for each message.
        let seq = self.seq.saturating_add(1);
        let mut hash = Context::new(&SHA256);
        hash.update(&self.chain);
        hash.update(&[kind]);
        hash.update(&seq.to_be_bytes());
        hash.update(body);
        Self {
            seq,
            chain: first_bytes(&hash.finish()),
        }
    }
}

fn first_bytes<const N: usize>(hash: &Digest) -> [u8; N] {
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().zip(hash.as_ref()) {
        *to = *from;
    }
    bytes
}
