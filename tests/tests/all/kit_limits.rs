//! The kit repeats the numbers of the host, which it does not know: read from both, they are the same.

use std::{collections::BTreeMap, ops::Range};

use wormholes_tests::workspace::{self, SourceFile};

/// Below `sdk/`, and below `router/`: `file::CONSTANT`.
const PAIRS: [(&str, &str); 44] = [
    (
        "kit/src/blobs.rs::BLOCK_BYTES",
        "host/src/blobs.rs::BLOCK_BYTES",
    ),
    (
        "kit/src/transaction/blobs.rs::BLOCK_BYTES",
        "host/src/blobs.rs::BLOCK_BYTES",
    ),
    (
        "kit/src/event.rs::MAX_MESSAGE_BYTES",
        "host/src/event.rs::MAX_MESSAGE_BYTES",
    ),
    (
        "kit/src/http.rs::MAX_BODY_BYTES",
        "host/src/http.rs::MAX_HTTP_BODY_BYTES",
    ),
    (
        "kit/src/http.rs::MAX_HEADERS",
        "host/src/http.rs::MAX_HTTP_HEADERS",
    ),
    (
        "kit/src/http.rs::MAX_HEADER_BYTES",
        "host/src/http.rs::MAX_HTTP_HEADER_BYTES",
    ),
    (
        "kit/src/http.rs::MAX_METHOD_BYTES",
        "host/src/transaction/wires.rs::MAX_METHOD_BYTES",
    ),
    (
        "kit/src/http.rs::MAX_URL_BYTES",
        "host/src/transaction/wires.rs::MAX_URL_BYTES",
    ),
    (
        "kit/src/keys.rs::MAX_NAME_BYTES",
        "host/src/keys.rs::MAX_NAME_BYTES",
    ),
    (
        "kit/src/keys.rs::MAX_MESSAGE_BYTES",
        "host/src/keys.rs::MAX_MESSAGE_BYTES",
    ),
    (
        "kit/src/keys.rs::DECAPSULATION_KEY_BYTES",
        "host/src/keys.rs::DECAPSULATION_KEY_BYTES",
    ),
    (
        "kit/src/keys.rs::CIPHERTEXT_BYTES",
        "host/src/keys.rs::CIPHERTEXT_BYTES",
    ),
    (
        "kit/src/manifest.rs::COMMAND_SECONDS",
        "proto/src/control/plugin.rs::COMMAND_SECONDS",
    ),
    ("kit/src/node.rs::TRIES", "host/src/principal.rs::TRIES"),
    (
        "kit/src/node/wires.rs::MAX_READ_BYTES",
        "host/src/wires.rs::MAX_READ_BYTES",
    ),
    (
        "kit/src/transaction.rs::ROW_BYTES",
        "host/src/transaction.rs::ROW_BYTES",
    ),
    (
        "kit/src/transaction.rs::MAX_KEY_BYTES",
        "host/src/transaction/rows.rs::MAX_KEY_BYTES",
    ),
    (
        "kit/src/transaction.rs::MAX_VALUE_BYTES",
        "host/src/transaction/rows.rs::MAX_VALUE_BYTES",
    ),
    (
        "kit/src/rows.rs::MAX_SCAN_ROWS",
        "host/src/transaction/rows.rs::MAX_SCAN_ROWS",
    ),
    (
        "kit/src/rows.rs::MAX_SCAN_BYTES",
        "host/src/transaction/rows.rs::MAX_SCAN_BYTES",
    ),
    (
        "kit/src/transaction.rs::MAX_PAYLOAD_BYTES",
        "host/src/transaction/timers.rs::MAX_PAYLOAD_BYTES",
    ),
    (
        "kit/src/transaction.rs::MAX_TIMER_NAME_BYTES",
        "host/src/transaction/timers.rs::MAX_NAME_BYTES",
    ),
    (
        "kit/src/transaction.rs::MAX_RANDOM_BYTES",
        "host/src/transaction.rs::MAX_RANDOM_BYTES",
    ),
    (
        "kit/src/transaction.rs::MAX_ANSWER_BYTES",
        "host/src/transaction/requests.rs::MAX_ANSWER_BYTES",
    ),
    (
        "kit/src/transaction/blobs.rs::MAX_BLOB_BYTES",
        "proto/src/blob.rs::MAX_BLOB_BYTES",
    ),
    (
        "kit/src/transaction/blobs.rs::MAX_CALL_BYTES",
        "host/src/transaction/blobs.rs::MAX_CALL_BYTES",
    ),
    (
        "kit/src/transaction/blobs.rs::MAX_NAME_BYTES",
        "host/src/transaction/drafts.rs::MAX_NAME_BYTES",
    ),
    (
        "kit/src/transaction/blobs.rs::MAX_LISTED",
        "host/src/transaction/blobs.rs::MAX_LISTED",
    ),
    (
        "kit/src/transaction/blobs.rs::HOLD_BYTES",
        "host/src/transaction/blobs.rs::HOLD_BYTES",
    ),
    (
        "kit/src/transaction/facts.rs::MAX_TTL_MS",
        "host/src/transaction/facts.rs::MAX_TTL_MS",
    ),
    (
        "kit/src/transaction/facts.rs::KEY_BYTES",
        "host/src/transaction/facts.rs::KEY_BYTES",
    ),
    (
        "kit/src/transaction/facts.rs::MAX_QUESTION_BYTES",
        "host/src/rules.rs::MAX_QUESTION_BYTES",
    ),
    (
        "kit/src/transaction/facts.rs::MAX_DEPTH",
        "host/src/rules.rs::MAX_DEPTH",
    ),
    (
        "kit/src/transaction/facts.rs::MAX_TEXT_BYTES",
        "host/src/rules.rs::MAX_TEXT_BYTES",
    ),
    (
        "kit/src/transaction/facts.rs::MAX_ITEMS",
        "host/src/rules.rs::MAX_ITEMS",
    ),
    (
        "kit/src/transaction/facts.rs::MAX_ENTRIES",
        "host/src/rules.rs::MAX_ENTRIES",
    ),
    (
        "kit/src/transaction/messages.rs::MAX_BODY_BYTES",
        "proto/src/trunk/frame.rs::MAX_BODY_BYTES",
    ),
    (
        "kit/src/transaction/messages.rs::MAX_NAME_BYTES",
        "host/src/transaction/messages.rs::MAX_NAME_BYTES",
    ),
    (
        "kit/src/transaction/wires.rs::ROOM_BYTES",
        "host/src/transaction/wires.rs::ROOM_BYTES",
    ),
    (
        "kit/src/transaction/wires.rs::MIN_WRITE_BYTES",
        "host/src/wires.rs::MIN_WRITE_BYTES",
    ),
    (
        "kit/src/transaction/wires.rs::MAX_CREDIT_BYTES",
        "host/src/transaction/wires.rs::MAX_CREDIT_BYTES",
    ),
    (
        "kit/src/transaction/wires.rs::MAX_NAME_BYTES",
        "host/src/transaction/messages.rs::MAX_NAME_BYTES",
    ),
    (
        "kit/src/transaction/wires.rs::MAX_DATAGRAM_BYTES",
        "host/src/transaction/wires.rs::MAX_DATAGRAM_BYTES",
    ),
    (
        "rust/src/blob.rs::READ_BYTES",
        "host/src/transaction/blobs.rs::MAX_CALL_BYTES",
    ),
];

/// What the kit alone has: its clock, its network, and how long it goes on.
const OWN: [&str; 8] = [
    // How long a node is silent before it is gone: of the daemon, not of its host.
    "kit/src/net.rs::GONE_MS",
    "kit/src/net/links.rs::MAX_DELAY_MS",
    "kit/src/net.rs::OUTSIDE",
    "kit/src/net.rs::PAUSE_MS",
    "kit/src/office.rs::REFUSED_MS",
    "kit/src/world.rs::BEGINNING_MS",
    "kit/src/world.rs::MAX_STEPS",
    // As much as a node lets a blob have that says nothing of it, in MiB.
    "rust/src/blob.rs::MAX_BYTES",
];

/// Constants of whole numbers, as `file::NAME`, with the text that they are said to be.
struct Constants(BTreeMap<String, String>);

impl Constants {
    fn below(folder: &str) -> Self {
        let mut constants = BTreeMap::new();
        for file in files(folder) {
            let path = file.path.strip_prefix(folder).unwrap();
            for (_, line) in file.code() {
                let line = line.trim().trim_start_matches("pub ");
                let line = line.trim_start_matches("pub(crate) ");
                let line = line.trim_start_matches("pub(super) ");
                let Some((name, rest)) = line
                    .strip_prefix("const ")
                    .and_then(|constant| constant.split_once(": "))
                else {
                    continue;
                };
                let Some((kind, value)) = rest.split_once(" = ") else {
                    continue;
                };
                if ["usize", "u64", "u32", "u16", "u8"].contains(&kind) {
                    let value = value.trim_end_matches(';').to_owned();
                    constants.insert(format!("{path}::{name}"), value);
                }
            }
        }
        Self(constants)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.value(self.0.get(name)?)
    }

    /// Sums, shifts, and the names of other constants.
    fn value(&self, text: &str) -> Option<u64> {
        if let Some((left, right)) = text.split_once(" + ") {
            return Some(self.value(left)? + self.value(right)?);
        }
        if let Some((left, right)) = text.split_once(" << ") {
            return Some(self.value(left)? << self.value(right)?);
        }
        let text = text.trim_matches(['(', ')']);
        text.replace('_', "").parse().ok().or_else(|| {
            let ends = format!("::{text}");
            let mut named = self.0.iter().filter(|(name, _)| name.ends_with(&ends));
            let (_, value) = named.next()?;
            self.value(value)
        })
    }
}

fn files(folder: &str) -> impl Iterator<Item = SourceFile> {
    let files = workspace::files(&["rs"]).unwrap().into_iter();
    let is_test = |path: &str| path.ends_with("tests.rs") || path.contains("/tests/");
    files.filter(move |file| file.path.starts_with(folder) && !is_test(&file.path))
}

#[test]
fn every_number_of_the_kit_is_the_hosts() {
    let (sdk, router) = (Constants::below("sdk/"), Constants::below("router/"));
    let paired: BTreeMap<&str, &str> = PAIRS.into_iter().collect();
    let ours = ["kit/", "rust/"];
    let names = sdk.0.keys().map(String::as_str);
    let names = names.filter(|name| ours.iter().any(|folder| name.starts_with(folder)));
    for name in names {
        if OWN.contains(&name) {
            continue;
        }
        let theirs = paired.get(name);
        let theirs = theirs.unwrap_or_else(|| panic!("{name}: which number of the host is it?"));
        let (own, number) = (sdk.number(name), router.number(theirs));
        assert!(
            own.is_some() && own == number,
            "{name} {own:?}, {theirs} {number:?}"
        );
    }
    for name in PAIRS.iter().map(|(name, _)| *name).chain(OWN) {
        assert!(sdk.0.contains_key(name), "there is no {name}");
    }
}

/// The lines of `impl Default for TYPE`, as `name` and `value`.
fn defaults(file: &str, kind: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(workspace::root().join(file)).unwrap();
    let from = text.find(&format!("impl Default for {kind} ")).unwrap();
    let begin = from + text[from..].find("Self {").unwrap();
    let end = begin + text[begin..].find('}').unwrap();
    let lines: Range<usize> = begin..end;
    let lines = text[lines].lines();
    let pairs = lines.filter_map(|line| line.trim().trim_end_matches(',').split_once(": "));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn what_a_manifest_does_not_say_is_the_same_in_the_kit() {
    let router = Constants::below("router/");
    for (kind, file) in [
        ("Limits", "router/proto/src/manifest/limits.rs"),
        ("Http", "router/proto/src/manifest/wires.rs"),
        ("Instance", "router/proto/src/manifest.rs"),
    ] {
        let (kit, node) = (
            defaults("sdk/kit/src/manifest.rs", kind),
            defaults(file, kind),
        );
        assert!(!kit.is_empty(), "{kind}");
        for (name, value) in kit {
            let theirs = node.get(&name);
            let theirs = theirs.unwrap_or_else(|| panic!("{kind} has no {name}"));
            let same = *theirs == value || router.value(theirs) == router.value(&value);
            assert!(same, "{kind}.{name}: {value}, and {theirs} in a node");
        }
    }
}
