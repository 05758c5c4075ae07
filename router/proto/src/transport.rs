//! What carries the bytes of a flow between a program, or a target, and the node beside it.

use crate::wire::{Reader, WireError, Writer};

/// TCP or UDP. A port number of one says nothing about the other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Transport {
    /// A stream of bytes.
    #[default]
    Tcp,
    /// Datagrams, each by itself.
    Udp,
}

impl Transport {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The word for it in config, scripts and reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|transport| transport.as_str() == word)
    }

    /// The number of IP's header, and of this protocol's.
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    pub(crate) fn encode(self, writer: &mut Writer) {
        writer.u8(self.number());
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let number = reader.u8("transport")?;
        Self::ALL
            .into_iter()
            .find(|transport| transport.number() == number)
            .ok_or(WireError::Invalid("transport"))
    }
}
