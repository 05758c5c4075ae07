//! What a client is made of, and how its parts are written: as C tor writes them, so that lines of a
//! torrc can be used as they are.

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use data_encoding::{BASE32_NOPAD, BASE64_NOPAD, HEXUPPER_PERMISSIVE};
use thiserror::Error;
use zeroize::Zeroizing;

/// An identity is the SHA-1 of an RSA key.
const RSA_ID_BYTES: usize = 20;
const KEY_BYTES: usize = 32;
/// Characters of an onion service's name before `.onion`.
const ONION_CHARS: usize = 56;

/// What a client is made of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// Where all of it is kept: guards, keys, what the directory said.
    pub folder: PathBuf,
    /// The network to use; none is the public one.
    pub network: Option<PrivateNetwork>,
    /// Bridge lines of a torrc, without the word `Bridge`; with any, no other relay is called.
    pub bridges: Vec<String>,
    /// Names of pluggable transports, with the programs that speak them.
    pub transports: Vec<(String, PathBuf)>,
    /// Keys for onion services that ask for one.
    pub authorizations: Vec<Authorization>,
}

/// A Tor network of one's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrivateNetwork {
    /// Who votes.
    pub authorities: Vec<Authority>,
    /// Whom to ask first for what they voted.
    pub fallbacks: Vec<Fallback>,
    /// Hand private and local addresses to exits.
    pub allow_private: bool,
}

/// A directory authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// What its votes are signed with.
    pub v3ident: [u8; RSA_ID_BYTES],
    /// Where it serves the directory.
    pub address: SocketAddr,
}

/// A relay that serves the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fallback {
    /// Its OR port.
    pub address: SocketAddr,
    /// Its identities.
    pub rsa_id: [u8; RSA_ID_BYTES],
    /// The newer one.
    pub ed25519_id: [u8; KEY_BYTES],
}

/// The key that one onion service asks this client for.
#[derive(Clone, PartialEq, Eq)]
pub struct Authorization {
    /// Its name, with `.onion`.
    pub service: String,
    /// An X25519 secret.
    pub key: Zeroizing<[u8; KEY_BYTES]>,
}

/// An onion service to host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSettings {
    /// Its keys are kept under this: lower-case letters, digits, `_` and `-`.
    pub nickname: String,
    /// Who finds it, by a name and a key as in C tor's `authorized_clients`; none: whoever knows its
    /// address.
    pub clients: Vec<(String, String)>,
}

/// Text that is none of them.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SettingsError {
    /// An authority.
    #[error(
        "expected the rest of a torrc's DirAuthority line, like \
         \"name orport=5100 v3ident=<40 hex> 192.0.2.1:7100 <40 hex>\""
    )]
    Authority,
    /// A fallback.
    #[error("expected \"192.0.2.1:5100 id=<40 hex> ed25519=<43 characters of base64>\"")]
    Fallback,
    /// A key for an onion service.
    #[error(
        "expected what C tor's .auth_private files hold, \
         \"<56 characters>:descriptor:x25519:<52 characters of base32>\""
    )]
    Authorization,
    /// A client's key.
    #[error(
        "expected what C tor's authorized_clients/*.auth files hold, \
         \"descriptor:x25519:<52 characters of base32>\""
    )]
    ClientKey,
}

impl FromStr for Authority {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (mut v3ident, mut address) = (None, None);
        for word in text.split_whitespace() {
            if let Some(id) = word.strip_prefix("v3ident=") {
                v3ident = hex_id(id);
            } else if let Ok(found) = word.parse() {
                address = Some(found);
            }
        }
        Ok(Self {
            v3ident: v3ident.ok_or(SettingsError::Authority)?,
            address: address.ok_or(SettingsError::Authority)?,
        })
    }
}

impl FromStr for Fallback {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (mut address, mut rsa_id, mut ed25519_id) = (None, None, None);
        for word in text.split_whitespace() {
            if let Some(id) = word.strip_prefix("id=") {
                rsa_id = hex_id(id);
            } else if let Some(id) = word.strip_prefix("ed25519=") {
                let bytes = BASE64_NOPAD
                    .decode(id.trim_end_matches('=').as_bytes())
                    .ok();
                ed25519_id = bytes.and_then(|bytes| bytes.try_into().ok());
            } else {
                address = word.parse().ok();
            }
        }
        Ok(Self {
            address: address.ok_or(SettingsError::Fallback)?,
            rsa_id: rsa_id.ok_or(SettingsError::Fallback)?,
            ed25519_id: ed25519_id.ok_or(SettingsError::Fallback)?,
        })
    }
}

impl FromStr for Authorization {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (service, key) = text.split_once(':').ok_or(SettingsError::Authorization)?;
        let is_name = service.len() == ONION_CHARS
            && BASE32_NOPAD
                .decode(service.to_ascii_uppercase().as_bytes())
                .is_ok();
        let key = x25519(key).filter(|_| is_name);
        Ok(Self {
            service: format!("{}.onion", service.to_ascii_lowercase()),
            key: key.ok_or(SettingsError::Authorization)?,
        })
    }
}

/// Nobody shall read the key in a log.
impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authorization(…)")
    }
}

/// Whether `text` is the public key of a client of an onion service.
///
/// # Errors
/// [`SettingsError::ClientKey`].
pub fn check_client_key(text: &str) -> Result<(), SettingsError> {
    x25519(text).map(drop).ok_or(SettingsError::ClientKey)
}

fn hex_id(text: &str) -> Option<[u8; RSA_ID_BYTES]> {
    let bytes = HEXUPPER_PERMISSIVE.decode(text.as_bytes()).ok()?;
    bytes.try_into().ok()
}

/// The key in `descriptor:x25519:<base32>`.
fn x25519(text: &str) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let key = text.strip_prefix("descriptor:x25519:")?;
    let key = Zeroizing::new(key.to_ascii_uppercase());
    let bytes = Zeroizing::new(BASE32_NOPAD.decode(key.as_bytes()).ok()?);
    let bytes: [u8; KEY_BYTES] = bytes.as_slice().try_into().ok()?;
    Some(Zeroizing::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789ABCDEF01234567";

    #[test]
    fn an_authority_is_a_line_of_a_torrc() {
        let line = format!("auth0 orport=5100 v3ident={ID} 9.70.0.1:7100 {ID}");
        let authority: Authority = line.parse().unwrap();
        assert_eq!(authority.address, "9.70.0.1:7100".parse().unwrap());
        assert_eq!(authority.v3ident[..2], [0x01, 0x23]);
        // As C tor itself writes fingerprints.
        let spaced = line.replace(" 0123456789abcdef", " 0123 4567 89ab cdef ");
        assert_eq!(spaced.parse(), Ok(authority));
        for bad in [
            "",
            "auth0 9.70.0.1:7100",
            "v3ident=12 9.70.0.1:7100",
            &format!("v3ident={ID}"),
        ] {
            assert_eq!(
                bad.parse::<Authority>(),
                Err(SettingsError::Authority),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_fallback_has_an_address_and_two_identities() {
        let key = BASE64_NOPAD.encode(&[7; 32]);
        let line = format!("9.70.0.1:5100 id={ID} ed25519={key}");
        let fallback: Fallback = line.parse().unwrap();
        assert_eq!(
            (fallback.ed25519_id, fallback.address.port()),
            ([7; 32], 5100)
        );
        assert_eq!(
            format!("{line}=").parse(),
            Ok(fallback),
            "padding is no matter"
        );
        for bad in [
            "",
            "9.70.0.1:5100",
            &line.replace("id=0", "id="),
            &line.replace("9.", "x."),
        ] {
            assert_eq!(
                bad.parse::<Fallback>(),
                Err(SettingsError::Fallback),
                "{bad}"
            );
        }
    }

    #[test]
    fn keys_of_onion_services_are_as_c_tor_has_them_and_never_shown() {
        let (service, key) = ("a".repeat(56), BASE32_NOPAD.encode(&[9; 32]));
        let line = format!("{service}:descriptor:x25519:{key}");
        let parsed: Authorization = line.parse().unwrap();
        assert_eq!(parsed.service, format!("{service}.onion"));
        assert_eq!(*parsed.key, [9; 32]);
        assert_eq!(format!("{parsed:?}"), "Authorization(…)");
        let small = line.to_ascii_lowercase();
        assert_eq!(small.parse(), Ok(parsed));
        for bad in [
            "",
            "a:b",
            &line[1..],
            &line[..line.len() - 1],
            &line.replace("x25519", "rsa"),
        ] {
            let error = bad.parse::<Authorization>();
            assert_eq!(error, Err(SettingsError::Authorization), "{bad}");
        }
        assert!(check_client_key(&format!("descriptor:x25519:{key}")).is_ok());
        assert!(check_client_key(&key).is_err());
    }
}
