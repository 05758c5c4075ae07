//! Records of nodes, and sets of them.

use bytes::Bytes;
use wormholes_proto::{
    MAX_FAMILY_BYTES, MAX_RECORD_ADDRESSES, MAX_RECORD_BYTES, MAX_RECORD_EXIT_PORTS,
    MAX_RECORD_ONION_KEYS, MAX_RECORD_RELAYS, MAX_SET_RECORDS, RecordError, RecordSetError,
    RecordSetReader, SignedRecord, encode_set,
};

use super::input::{Input, pieces};
use crate::TestNode;

/// The version; the id follows.
const ID_AT: usize = 1;

/// A record as it came; or what a node signs whatever it says.
pub fn record(input: &[u8]) {
    let mut input = Input::new(input);
    if input.byte() & 1 == 0 {
        if let Ok(record) = SignedRecord::decode(input.rest()) {
            assert_eq!(record.bytes(), input.rest());
        }
        return;
    }
    let node = TestNode::new(1).unwrap();
    let mut body = input.rest().to_vec();
    if let Some(id) = body.get_mut(ID_AT..ID_AT + 32) {
        id.copy_from_slice(node.id().as_bytes());
    }
    let bytes = node.sign_bytes(&body);
    match SignedRecord::decode(&bytes) {
        Ok(record) => check(&node, &record, &body),
        Err(error) => assert_ne!(error, RecordError::Signature),
    }
}

/// What the record says is what its bytes say, up to what a later build added.
fn check(node: &TestNode, record: &SignedRecord, body: &[u8]) {
    assert!(record.bytes().len() <= MAX_RECORD_BYTES);
    let says = record.record();
    assert!(says.addresses.len() <= MAX_RECORD_ADDRESSES);
    assert!(says.onion_keys.len() <= MAX_RECORD_ONION_KEYS);
    assert!(says.exit_ports.len() <= MAX_RECORD_EXIT_PORTS);
    assert!(says.relays.len() <= MAX_RECORD_RELAYS);
    let family = says.family.as_ref().map_or(0, String::len);
    assert!(family <= MAX_FAMILY_BYTES);
    assert!(says.signed_at() >= std::time::UNIX_EPOCH);
    let again = node.sign(says).unwrap();
    let (said, _) = again.bytes().split_last_chunk::<64>().unwrap();
    assert!(body.starts_with(said), "not the one way to write it");
}

/// Records of a set, which end early when it is none.
type Read = (Vec<Bytes>, Option<RecordSetError>);

/// A set of records.
pub fn record_set(input: &[u8]) {
    let mut input = Input::new(input);
    let piece_bytes = input.byte();
    let sent = input.rest();
    let whole = read([sent].into_iter());
    assert_eq!(whole, read(pieces(sent, piece_bytes)));
    let (records, error) = whole;
    assert!(records.len() <= MAX_SET_RECORDS);
    let mut written = Vec::new();
    for record in &records {
        assert!((1..=MAX_RECORD_BYTES).contains(&record.len()));
        written.extend(u16::try_from(record.len()).unwrap().to_be_bytes());
        written.extend_from_slice(record);
    }
    assert!(sent.starts_with(&written), "records say something else");
    assert_eq!(error.is_none(), written.len() == sent.len());
    let known = records.iter().map(|record| SignedRecord::decode(record));
    if let Ok(known) = known.collect::<Result<Vec<_>, _>>() {
        assert_eq!(encode_set(&known), written);
    }
}

fn read<'a>(sent: impl Iterator<Item = &'a [u8]>) -> Read {
    let mut reader = RecordSetReader::new();
    let mut records = Vec::new();
    for piece in sent {
        reader.handle_bytes(piece);
        loop {
            match reader.poll_record() {
                Ok(Some(record)) => records.push(record),
                Ok(None) => break,
                Err(error) => return (records, Some(error)),
            }
        }
    }
    (records, reader.handle_end().err())
}
