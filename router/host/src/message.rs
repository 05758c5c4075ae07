//! Messages between principals: whom they are for, how they travel, and how they lie in the store.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wormholes_proto::{
    NodeId,
    trunk::{Halt, History, Position},
};

use crate::{
    event::{Principal, Refusal},
    transaction::FetchRow,
};

/// The longest body.
pub(crate) const MAX_BODY_BYTES: usize = wormholes_proto::trunk::MAX_BODY_BYTES;

/// Where a principal is at home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Place {
    /// This node.
    Here,
    /// Another node, by its id.
    Node(NodeId),
    /// Whoever holds this key.
    Alias(NodeId),
}

/// Whom a message is for, or from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Address {
    /// Where.
    pub place: Place,
    /// The instance there.
    #[serde(with = "text")]
    pub plugin: Arc<str>,
    /// Who of its principals.
    pub principal: Principal,
}

/// As whom a principal is known to another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Identity {
    /// As its node.
    Node,
    /// As a key derived for this name.
    Alias(#[serde(with = "text")] Arc<str>),
}

/// What the rules see of a message, and what keeps flows apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Way {
    #[serde(with = "text")]
    pub(crate) role: Arc<str>,
    #[serde(with = "text")]
    pub(crate) label: Arc<str>,
    #[serde(with = "text")]
    pub(crate) isolation: Arc<str>,
}

/// Which of a principal's channels. Durable messages of one are handled in order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct OutKey {
    pub(crate) to: Address,
    #[serde(with = "text")]
    pub(crate) protocol: Arc<str>,
    pub(crate) sender: Identity,
}

/// What a sender knows of a channel. Places count messages over all epochs; a message's number on
/// the wire is its place without `base`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutHead {
    /// Of its rows.
    pub(crate) number: u32,
    /// How often it was opened anew.
    pub(crate) epoch: u64,
    /// The last place before this epoch.
    pub(crate) base: u64,
    /// The place of the next message, from 1 on.
    pub(crate) next: u64,
    /// Bytes of all messages until then.
    pub(crate) bytes: u64,
    /// How those that wait travel.
    pub(crate) way: Way,
}

/// What the receiver has acknowledged of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutDone {
    /// Of this epoch; one of another says only how many bytes are acknowledged.
    pub(crate) epoch: u64,
    /// The last message's place.
    pub(crate) place: u64,
    /// Where the hash chain is there.
    pub(crate) chain: [u8; 32],
    /// Bytes of all messages until there.
    pub(crate) bytes: u64,
    /// No message of this epoch beyond this number was ever sent.
    pub(crate) mark: u64,
    /// Nothing more moves, for this reason's number.
    pub(crate) halted: Option<u8>,
}

/// A message that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OutRow {
    pub(crate) about: OutAbout,
    /// `None`: it expired, and what is left of it is a gap.
    pub(crate) body: Option<Bytes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutAbout {
    /// What all messages of the channel count for, until and with this one.
    pub(crate) total_bytes: u64,
    pub(crate) expires_ms: Option<u64>,
    /// The id under which its sender wants to hear of it.
    pub(crate) report: Option<u64>,
    pub(crate) is_gap: bool,
}

/// From whom a channel comes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct InKey {
    pub(crate) from: Address,
    /// As whom this end is known there.
    pub(crate) own: Identity,
    #[serde(with = "text")]
    pub(crate) protocol: Arc<str>,
}

/// Where a receiver is on a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InRow {
    pub(crate) history: Option<([u8; 16], u64)>,
    pub(crate) position: Option<(u64, [u8; 32])>,
    pub(crate) confirmed: u64,
    pub(crate) halted: Option<u8>,
    pub(crate) is_reopened: bool,
}

/// What a principal is to be told, kept until it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Note {
    /// What became of a message.
    Report { id: u64, fate: Fate },
    /// Nothing more moves on a channel.
    Halted {
        peer: Address,
        own: Identity,
        #[serde(with = "text")]
        protocol: Arc<str>,
        reason: HaltReason,
    },
}

/// What became of a durable message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fate {
    Delivered,
    Refused(Refusal),
    Expired,
}

/// Why a channel was halted, seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum HaltReason {
    WeWentBack,
    TheyWentBack,
    Poison,
    Reopened,
    Other,
}

/// What leaves the node when an event is real, in the order in which it was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Parcel {
    /// A durable message, which is written by now.
    Durable {
        key: OutKey,
        head: OutHead,
        place: u64,
        row: OutRow,
    },
    Post(Letter),
    Ask {
        id: u64,
        letter: Letter,
        deadline_ms: u64,
    },
    /// A blob is to be fetched.
    FetchBlob {
        id: u64,
        row: Box<FetchRow>,
    },
    /// It is to be fetched no more.
    Unfetch {
        id: u64,
    },
    /// Channels to or from a peer begin anew.
    Reopened {
        peer: OutKey,
        sends: bool,
        receives: bool,
    },
}

/// A volatile message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) key: OutKey,
    pub(crate) way: Way,
    pub(crate) body: Bytes,
}

impl Parcel {
    /// What its body has.
    pub(crate) fn body_bytes(&self) -> usize {
        match self {
            Self::Durable { row, .. } => row.body.as_ref().map_or(0, Bytes::len),
            Self::Post(letter) | Self::Ask { letter, .. } => letter.body.len(),
            Self::FetchBlob { .. } | Self::Unfetch { .. } | Self::Reopened { .. } => 0,
        }
    }
}

impl OutKey {
    /// The channel that comes the other way.
    pub(crate) fn back(&self) -> InKey {
        InKey {
            from: self.to.clone(),
            own: self.sender.clone(),
            protocol: Arc::clone(&self.protocol),
        }
    }
}

impl OutHead {
    /// A channel that nothing was sent on.
    pub(crate) fn new(number: u32, way: Way) -> Self {
        Self {
            number,
            epoch: 0,
            base: 0,
            next: 1,
            bytes: 0,
            way,
        }
    }
}

impl OutRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut row = encode(&self.about);
        row.extend_from_slice(self.body.as_deref().unwrap_or_default());
        row
    }

    pub(crate) fn decode(row: &[u8]) -> Option<Self> {
        let (about, body) = postcard::take_from_bytes::<OutAbout>(row).ok()?;
        let body = (!about.is_gap).then(|| Bytes::copy_from_slice(body));
        Some(Self { about, body })
    }

    /// What is left of it when it expired.
    pub(crate) fn gap(&self) -> Self {
        let about = OutAbout {
            is_gap: true,
            report: None,
            ..self.about
        };
        Self { about, body: None }
    }
}

impl From<&wormholes_proto::trunk::ReceiverRow> for InRow {
    fn from(row: &wormholes_proto::trunk::ReceiverRow) -> Self {
        Self {
            history: row
                .history
                .map(|history| (history.incarnation, history.epoch)),
            position: row.position.map(|position| (position.seq, position.chain)),
            confirmed: row.confirmed,
            halted: row.halted.map(Halt::number),
            is_reopened: row.is_reopened,
        }
    }
}

impl From<&InRow> for wormholes_proto::trunk::ReceiverRow {
    fn from(row: &InRow) -> Self {
        Self {
            history: row
                .history
                .map(|(incarnation, epoch)| History { incarnation, epoch }),
            position: row.position.map(|(seq, chain)| Position { seq, chain }),
            confirmed: row.confirmed,
            halted: row.halted.and_then(Halt::from_number),
            is_reopened: row.is_reopened,
        }
    }
}

impl HaltReason {
    /// What a reason of the wire means for the channel's sender, or for its receiver.
    pub(crate) fn of(halt: Halt, is_sender: bool) -> Self {
        match (halt, is_sender) {
            (Halt::SenderWentBack, true) | (Halt::ReceiverWentBack, false) => Self::WeWentBack,
            (Halt::SenderWentBack, false) | (Halt::ReceiverWentBack, true) => Self::TheyWentBack,
            (Halt::Poison, _) => Self::Poison,
            (Halt::Reopened, _) => Self::Reopened,
            (Halt::Unknown(_), _) => Self::Other,
        }
    }
}

/// A row's value.
#[expect(
    clippy::expect_used,
    reason = "memory takes everything, and no row has a map without a length"
)]
pub(crate) fn encode<T: Serialize>(row: &T) -> Vec<u8> {
    postcard::to_allocvec(row).expect("a row is written to memory")
}

/// A row's value; `None`: it is damaged.
pub(crate) fn decode<T: DeserializeOwned>(row: &[u8]) -> Option<T> {
    postcard::from_bytes(row).ok()
}

/// A shared text, as itself.
pub(crate) mod text {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<str>, D::Error> {
        String::deserialize(deserializer).map(Arc::from)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here => f.write_str("here"),
            Self::Node(id) | Self::Alias(id) => id.fmt(f),
        }
    }
}
