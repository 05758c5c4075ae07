//! Invites, as text that somebody pasted.

use data_encoding::{Encoding, Specification};
use ring::digest::{SHA256, digest};
use wormholes_proto::{
    INVITE_PREFIX, Invite, MAX_INVITE_NAME_BYTES, MAX_RECORD_ADDRESSES, MAX_RECORD_RELAYS,
};

use super::input::Input;

/// The text; or what is in it, behind a checksum that is right.
pub fn invite(input: &[u8]) {
    let mut input = Input::new(input);
    let text = match input.byte() & 1 {
        0 => String::from_utf8_lossy(input.rest()).into_owned(),
        _ => with_checksum(input.rest()),
    };
    let Ok(invite) = text.parse::<Invite>() else {
        return;
    };
    let joined: String = text.split_whitespace().collect();
    assert_eq!(invite.to_string(), joined, "not the one way to write it");
    assert_eq!(joined.parse(), Ok(invite.clone()));
    assert!((1..=MAX_INVITE_NAME_BYTES).contains(&invite.name().len()));
    assert!(!invite.name().chars().any(char::is_control));
    assert!(invite.addresses().len() <= MAX_RECORD_ADDRESSES);
    assert!(invite.relays().len() <= MAX_RECORD_RELAYS);
}

fn with_checksum(body: &[u8]) -> String {
    let checksum = digest(&SHA256, body);
    let bytes = [body, checksum.as_ref().get(..4).unwrap()].concat();
    format!("{INVITE_PREFIX}{}", z_base_32().encode(&bytes))
}

fn z_base_32() -> Encoding {
    let mut specification = Specification::new();
    specification
        .symbols
        .push_str("ybndrfg8ejkmcpqxot1uwisza345h769");
    specification.encoding().unwrap()
}
