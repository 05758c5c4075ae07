//! An invite: one line of text that tells a person's node how to reach another.
//!
//! ```text
//! wormholes-invite:<z-base-32 of INVITE>
//! INVITE     version u8 = 1 | node id 32 | name length u8 (1 to 64) | name | addresses
//!            | relay count u8 (to 4) | each: node id 32 | addresses | checksum 4
//! addresses  count u8 (to 8) | each: kind u8 (4, 6) | 4 B or 16 B | port u16
//! checksum   the first bytes of SHA-256 over all before it
//! ```
//! The checksum finds slips of the hand. It proves nothing: an invite is worth as much as the way
//! that it came. It holds no secret.

use std::{fmt, net::SocketAddr, str::FromStr};

use ring::digest::{SHA256, digest};
use thiserror::Error;

use crate::{
    address::{decode_addresses, decode_list, encode_addresses, is_dialable},
    id::{NodeId, zbase32},
    record::{MAX_RECORD_ADDRESSES, MAX_RECORD_RELAYS},
    wire::{Reader, WireError, Writer},
};

/// What every invite begins with.
pub const INVITE_PREFIX: &str = "wormholes-invite:";
/// Bytes of the name that the inviter suggests for itself.
pub const MAX_INVITE_NAME_BYTES: usize = 64;

const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;
/// More than the largest invite (about 900 bytes) takes in text; longer input is not decoded.
const MAX_TEXT_BYTES: usize = 2048;

/// How to reach a node, from one person to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    id: NodeId,
    name: String,
    addresses: Vec<SocketAddr>,
    relays: Vec<InviteRelay>,
}

/// A relay that the inviting node is registered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InviteRelay {
    /// Its id.
    pub id: NodeId,
    /// Where it can be dialled.
    pub addresses: Vec<SocketAddr>,
}

/// Text that is no invite, or an invite that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InviteError {
    /// Does not begin with [`INVITE_PREFIX`].
    #[error("not an invite: it does not begin with {INVITE_PREFIX}")]
    Prefix,
    /// Too long, or characters that z-base-32 lacks.
    #[error("not an invite: its text is damaged")]
    Text,
    /// A slip of the hand, or a part that is missing.
    #[error("the invite was changed or cut: its checksum does not match")]
    Checksum,
    /// Another build's format.
    #[error("invite of version {0}, this build reads {VERSION}")]
    Version(u8),
    /// Its content breaks the format.
    #[error("malformed invite: {0}")]
    Wire(#[from] WireError),
}

impl Invite {
    /// Checks the bounds: a name of 1 to [`MAX_INVITE_NAME_BYTES`] bytes without control
    /// characters, at most 8 addresses each, at most 4 relays.
    ///
    /// # Errors
    /// [`InviteError::Wire`] names the field.
    pub fn new(
        id: NodeId,
        name: &str,
        addresses: Vec<SocketAddr>,
        relays: Vec<InviteRelay>,
    ) -> Result<Self, InviteError> {
        let fit = |list: &[SocketAddr]| {
            list.len() <= MAX_RECORD_ADDRESSES && list.iter().all(is_dialable)
        };
        let field = if !is_name(name) {
            "name"
        } else if !fit(&addresses) || !relays.iter().all(|relay| fit(&relay.addresses)) {
            "addresses"
        } else if relays.len() > MAX_RECORD_RELAYS {
            "relay count"
        } else {
            return Ok(Self {
                id,
                name: name.to_owned(),
                addresses,
                relays,
            });
        };
        Err(WireError::Invalid(field).into())
    }

    /// Who invites.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// What the inviter calls itself; a suggestion.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it can be dialled.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Relays that reach it.
    pub fn relays(&self) -> &[InviteRelay] {
        &self.relays
    }

    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer
            .u8(VERSION)
            .bytes(self.id.as_bytes())
            .short_bytes(self.name.as_bytes());
        encode_addresses(&self.addresses, &mut writer);
        writer.u8(u8::try_from(self.relays.len()).unwrap_or(u8::MAX));
        for relay in &self.relays {
            writer.bytes(relay.id.as_bytes());
            encode_addresses(&relay.addresses, &mut writer);
        }
        let mut bytes = writer.into_vec();
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, InviteError> {
        let (body, sum) = bytes
            .split_last_chunk::<CHECKSUM_BYTES>()
            .ok_or(InviteError::Checksum)?;
        if *sum != checksum(body) {
            return Err(InviteError::Checksum);
        }
        let mut reader = Reader::new(body);
        let version = reader.u8("version")?;
        if version != VERSION {
            return Err(InviteError::Version(version));
        }
        let id = NodeId::from_bytes(reader.array("node id")?);
        let name = std::str::from_utf8(reader.short_bytes("name")?)
            .map_err(|_| WireError::Invalid("name"))?;
        let addresses = decode_addresses(&mut reader, MAX_RECORD_ADDRESSES)?;
        let relays = decode_list(&mut reader, MAX_RECORD_RELAYS, "relay count", |reader| {
            Ok(InviteRelay {
                id: NodeId::from_bytes(reader.array("relay")?),
                addresses: decode_addresses(reader, MAX_RECORD_ADDRESSES)?,
            })
        })?;
        reader.finish()?;
        Self::new(id, name, addresses, relays)
    }
}

impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{INVITE_PREFIX}{}", zbase32().encode(&self.encode()))
    }
}

impl FromStr for Invite {
    type Err = InviteError;

    /// Reads an invite; white space that came with copying is passed over.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(InviteError::Text);
        }
        let joined: String = text.split_whitespace().collect();
        let encoded = joined
            .strip_prefix(INVITE_PREFIX)
            .ok_or(InviteError::Prefix)?;
        let bytes = zbase32()
            .decode(encoded.as_bytes())
            .map_err(|_| InviteError::Text)?;
        Self::decode(&bytes)
    }
}

/// A name is shown on terminals: no control characters.
fn is_name(text: &str) -> bool {
    (1..=MAX_INVITE_NAME_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = digest(&SHA256, body);
    hash.as_ref()
        .first_chunk()
        .copied()
        .unwrap_or([0; CHECKSUM_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::for_mutations;

    fn invite() -> Invite {
        let relay = InviteRelay {
            id: NodeId::from_bytes([2; 32]),
            addresses: vec!["[2001:db8::1]:4433".parse().unwrap()],
        };
        let addresses = vec!["203.0.113.5:4433".parse().unwrap()];
        Invite::new(NodeId::from_bytes([1; 32]), "Zoë", addresses, vec![relay]).unwrap()
    }

    /// Frozen: people keep invites.
    #[test]
    fn an_invite_keeps_its_text() {
        let text = concat!(
            "wormholes-invite:yryonyebyryonyebyryonyebyryonyebyryonyebyryonyebyryonbn4p9b4sye",
            "r3cy8nbetkryoryonyebyryonyebyryonyebyryonyebyryonyebyryonyebyryobyaoyndpayyyyyyy",
            "yyyyyyyyyyyytnwqy7hs54",
        );
        assert_eq!(invite().to_string(), text);
        assert_eq!(text.parse(), Ok(invite()));
        let wrapped = text.replace("invite:", "invite:\n  ");
        assert_eq!(format!(" {wrapped} \n").parse(), Ok(invite()));
    }

    #[test]
    fn the_largest_invite_fits() {
        let addresses = vec!["[2001:db8::1]:4433".parse().unwrap(); MAX_RECORD_ADDRESSES];
        let relay = InviteRelay {
            id: NodeId::from_bytes([2; 32]),
            addresses: addresses.clone(),
        };
        let (id, name) = (NodeId::from_bytes([1; 32]), "x".repeat(64));
        let relays = vec![relay; MAX_RECORD_RELAYS];
        let invite = Invite::new(id, &name, addresses, relays).unwrap();
        let text = invite.to_string();
        assert!(text.len() <= MAX_TEXT_BYTES, "{}", text.len());
        assert_eq!(text.parse(), Ok(invite));
    }

    #[test]
    fn what_breaks_a_bound_is_not_invited() {
        let id = NodeId::from_bytes([1; 32]);
        let field = |name: &str, addresses: &[&str], n_relays| {
            let addresses: Vec<_> = addresses.iter().map(|a| a.parse().unwrap()).collect();
            let relay = InviteRelay {
                id,
                addresses: Vec::new(),
            };
            Invite::new(id, name, addresses, vec![relay; n_relays]).err()
        };
        let invalid = |field| Some(WireError::Invalid(field).into());
        assert_eq!(field("", &[], 0), invalid("name"));
        assert_eq!(field("a\u{1b}[31m", &[], 0), invalid("name"));
        assert_eq!(field(&"x".repeat(65), &[], 0), invalid("name"));
        assert_eq!(field("x", &["1.2.3.4:0"], 0), invalid("addresses"));
        assert_eq!(field("x", &["1.2.3.4:1"; 9], 0), invalid("addresses"));
        assert_eq!(field("x", &[], 5), invalid("relay count"));
    }

    #[test]
    fn damage_is_named() {
        let parse = |text: &str| text.parse::<Invite>().err();
        let text = invite().to_string();
        assert_eq!(parse("hello"), Some(InviteError::Prefix));
        assert_eq!(parse(&text.replace(':', ":l")), Some(InviteError::Text));
        assert_eq!(parse(&text.repeat(20)), Some(InviteError::Text));
        assert_eq!(parse(INVITE_PREFIX), Some(InviteError::Checksum));
        let mut bytes = invite().encode();
        let body = bytes.len() - CHECKSUM_BYTES;
        bytes[0] = 2;
        let sum = checksum(&bytes[..body]);
        bytes[body..].copy_from_slice(&sum);
        assert_eq!(Invite::decode(&bytes), Err(InviteError::Version(2)));
    }

    #[test]
    fn damaged_invites_are_refused() {
        for_mutations(&invite().encode(), |bytes| {
            assert!(Invite::decode(bytes).is_err());
        });
        for_mutations(invite().to_string().as_bytes(), |bytes| {
            let text = String::from_utf8_lossy(bytes);
            assert!(text.parse::<Invite>().is_err());
        });
    }
}
