//! Sealed rows: read as they were written, nowhere on disk, and gone with their slots.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use zeroize::Zeroizing;

use super::{
    append,
    child::{lines, words},
    memory::{Order, memory},
    wait_for,
};
use crate::store::{
    Lost, Overlay, Row, Store, StoreError, StoreOptions, View, Writes,
    sealed::{SEALED_PREFIX, Sealed},
};

const SECRET: [u8; 32] = [9; 32];
const SLOT_BYTES: usize = 64;

fn try_open(path: &Path, secret: [u8; 32]) -> Result<Store, StoreError> {
    let options = StoreOptions {
        secret: Some(Zeroizing::new(secret)),
        ..StoreOptions::default()
    };
    Store::open(path, options)
}

pub(super) fn open(path: &Path) -> Store {
    try_open(path, SECRET).unwrap()
}

/// As a plugin's: with room for a group.
pub(super) fn key(name: &str) -> Vec<u8> {
    [
        &[SEALED_PREFIX, 0, 0, 0, 1, 0, 0, 0, 0, 10],
        name.as_bytes(),
    ]
    .concat()
}

fn put(name: &str, value: &str) -> Writes {
    let mut writes = Writes::default();
    writes.put(key(name), Some(value.as_bytes().to_vec()));
    writes
}

fn delete(name: &str) -> Writes {
    let mut writes = Writes::default();
    writes.put(key(name), None);
    writes
}

pub(super) fn rows(store: &Store, prefix: &[u8], backwards: bool) -> Vec<Row> {
    let (snapshot, own, overlay) = (store.snapshot(), Writes::default(), Overlay::default());
    let view = View::new(&own, &overlay, &snapshot);
    view.scan(prefix, None, backwards, usize::MAX, usize::MAX)
        .unwrap()
}

fn names(rows: &[Row]) -> Vec<String> {
    let name = |(key, _): &Row| String::from_utf8_lossy(&key[10..]).into_owned();
    rows.iter().map(name).collect()
}

fn slots(path: &Path) -> PathBuf {
    path.with_extension("slots")
}

/// Those in use.
pub(super) fn used_slots(path: &Path) -> Vec<Vec<u8>> {
    let file = fs::read(slots(path)).unwrap();
    let slots = file.chunks(SLOT_BYTES).skip(1);
    let used = slots.filter(|slot| slot.iter().any(|byte| *byte != 0));
    used.map(<[u8]>::to_vec).collect()
}

fn has(path: &Path, bytes: &[u8]) -> bool {
    let file = fs::read(path).unwrap();
    file.windows(bytes.len()).any(|part| part == bytes)
}

#[test]
fn sealed_rows_are_read_in_order_and_lie_nowhere_in_clear() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugins.redb");
    let store = open(&path);
    let mut writes = put("ratchet of bob", "root key one");
    writes.put(key("ratchet of ann"), Some(b"root key two".to_vec()));
    writes.put(b"\x10plain".to_vec(), Some(b"is not sealed".to_vec()));
    writes.put(b"\x12behind".to_vec(), Some(b"is not sealed".to_vec()));
    append(&store, writes).unwrap();
    let check = |store: &Store| {
        let found = rows(store, &[SEALED_PREFIX], false);
        assert_eq!(names(&found), ["ratchet of ann", "ratchet of bob"]);
        assert_eq!(found[0].1, b"root key two");
        let one = store.snapshot().get(&key("ratchet of bob")).unwrap();
        assert_eq!(one.as_deref(), Some(&b"root key one"[..]));
        let all = rows(store, &[], false);
        assert_eq!(all.len(), 5, "with the head of the store");
        assert!(all.is_sorted());
        let mut back = rows(store, &[], true);
        back.reverse();
        assert_eq!(back, all);
    };
    check(&store);
    drop(store);
    check(&open(&path));
    for file in [&path, &slots(&path)] {
        for clear in ["ratchet", "root key", " of ann"] {
            assert!(
                !has(file, clear.as_bytes()),
                "{clear} in {}",
                file.display()
            );
        }
    }
    assert!(
        has(&path, b"is not sealed"),
        "the search finds what is there"
    );
    assert!(
        !format!("{:?}", put("ratchet", "root key")).contains("116"),
        "a `t`"
    );
}

#[test]
fn what_is_deleted_or_written_over_loses_its_slot_before_it_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugins.redb");
    let store = open(&path);
    for name in ["a", "b", "c", "d"] {
        append(&store, put(name, "first")).unwrap();
    }
    let before = used_slots(&path);
    let old = store.snapshot();
    let mut writes = put("a", "second");
    writes.remove_range(key("b")..key("d"));
    append(&store, writes).unwrap();
    append(&store, delete("nothing")).unwrap();
    let found = rows(&store, &[SEALED_PREFIX], false);
    assert_eq!(names(&found), ["a", "d"]);
    assert_eq!(found[0].1, b"second");
    let after = used_slots(&path);
    assert_eq!(after.len(), 2);
    let kept = before.iter().filter(|slot| has(&slots(&path), slot));
    assert_eq!(kept.count(), 1, "that of d");
    // Whoever still reads what was durable then may.
    let first = old.get(&key("a")).unwrap();
    assert_eq!(first.as_deref(), Some(&b"first"[..]));
    drop((old, store));
    let store = open(&path);
    assert_eq!(rows(&store, &[SEALED_PREFIX], false), found);
    // Slots are used again.
    append(&store, put("e", "new")).unwrap();
    append(&store, put("f", "new")).unwrap();
    assert_eq!(used_slots(&path).len(), 4);
    let length = fs::metadata(slots(&path)).unwrap().len();
    assert!(length <= 6 * SLOT_BYTES as u64, "{length}");
}

#[test]
fn slots_that_are_older_damaged_missing_or_anothers_are_an_error_and_never_wrong_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugins.redb");
    let store = open(&path);
    append(&store, put("a", "first")).unwrap();
    let old_slots = fs::read(slots(&path)).unwrap();
    drop(store);
    let old_rows = fs::read(&path).unwrap();
    let store = open(&path);
    append(&store, put("a", "second")).unwrap();
    append(&store, put("b", "third")).unwrap();
    drop(store);
    let (new_slots, new_rows) = (fs::read(slots(&path)).unwrap(), fs::read(&path).unwrap());
    let refused = |what: &str, secret: [u8; 32]| {
        let error = try_open(&path, secret).unwrap_err();
        assert!(
            matches!(error, StoreError::Sealed { .. }),
            "{what}: {error:?}"
        );
        let said = error.to_string();
        assert!(
            said.contains("identity.key") && said.contains("plugins.slots"),
            "{said}"
        );
    };
    fs::write(slots(&path), &old_slots).unwrap();
    refused("older slots", SECRET);
    fs::write(slots(&path), &new_slots).unwrap();
    fs::write(&path, &old_rows).unwrap();
    refused("older rows", SECRET);
    fs::write(&path, &new_rows).unwrap();
    refused("another node", [8; 32]);
    for bit in (0..new_slots.len() * 8).step_by(37) {
        let mut damaged = new_slots.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        fs::write(slots(&path), &damaged).unwrap();
        match try_open(&path, SECRET) {
            Ok(store) => assert_eq!(
                rows(&store, &[SEALED_PREFIX], false).len(),
                2,
                "a free slot"
            ),
            Err(StoreError::Sealed { .. }) => {}
            Err(other) => panic!("bit {bit}: {other:?}"),
        }
    }
    for length in [0, 1, SLOT_BYTES, 2 * SLOT_BYTES] {
        fs::write(slots(&path), &new_slots[..length]).unwrap();
        refused("cut", SECRET);
    }
    fs::write(slots(&path), &new_slots).unwrap();
    let aside = folder.path().join("aside");
    fs::rename(slots(&path), &aside).unwrap();
    refused("missing", SECRET);
    assert!(
        !slots(&path).exists(),
        "none is made for rows that need theirs"
    );
    fs::rename(&aside, slots(&path)).unwrap();
    assert_eq!(rows(&open(&path), &[SEALED_PREFIX], false).len(), 2);
}

/// More in a soak.
const STEPS_IN_CI: usize = 50;
const ROUNDS_IN_CI: usize = 4;

#[test]
fn a_commit_that_fails_at_any_step_loses_no_row_and_leaves_no_slot() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugins.redb");
    let (backend, control) = memory();
    let sealed = Sealed::open(Box::new(backend), &slots(&path), &SECRET).unwrap();
    control.order(Order::Work);
    let store = Store::start(Box::new(sealed), "memory", None).unwrap();
    control.waits_in("commit");
    let mut model = BTreeMap::new();
    let mut random = StdRng::seed_from_u64(7);
    for step in 0..STEPS_IN_CI * factor() {
        let (name, value) = (random.random_range(0..12).to_string(), step.to_string());
        let is_put = random.random_range(0..3) > 0;
        let writes = if is_put {
            put(&name, &value)
        } else {
            delete(&name)
        };
        let order = [
            Order::Work,
            Order::Work,
            Order::Fail,
            Order::FailTooLate,
            Order::Panic,
        ];
        let order = order[random.random_range(0..order.len())];
        control.order(order);
        if !matches!(order, Order::Work) {
            control.order(Order::Work);
        }
        let outcome = append(&store, writes);
        control.waits_in("commit");
        match order {
            Order::Work => assert_eq!(outcome, Ok(())),
            Order::Fail | Order::FailTooLate | Order::Panic => {
                assert_eq!(outcome, Err(Lost));
                control.waits_in("reopen");
                wait_for(&store);
            }
        }
        if matches!(order, Order::Work | Order::FailTooLate) {
            match is_put {
                true => model.insert(key(&name), value.into_bytes()),
                false => model.remove(&key(&name)),
            };
        }
        let found: BTreeMap<_, _> = rows(&store, &[SEALED_PREFIX], false).into_iter().collect();
        assert_eq!(found, model, "step {step}: {order:?}");
        assert_eq!(
            used_slots(&path).len(),
            model.len(),
            "step {step}: {order:?}"
        );
    }
}

/// How many times more a soak does: 1 without.
fn factor() -> usize {
    let factor = std::env::var("WORMHOLES_SOAK").ok();
    factor.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// A child writes rows over and over, and says what is durable.
#[test]
fn secrets_that_were_committed_survive_kill_9_and_those_deleted_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugins.redb");
    for round in 0..ROUNDS_IN_CI * factor() {
        let words = words("seal", &path);
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = lines(child.stderr.take().unwrap());
        let after = 1 + round * 37 % 100;
        let last = said.iter().take(after).last().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let last = said
            .iter()
            .filter(|line| line.parse::<u64>().is_ok())
            .last()
            .unwrap_or(last);
        let last: u64 = last.parse().unwrap();
        let store = open(&path);
        let found = rows(&store, &[SEALED_PREFIX], false);
        // What was not said may be there, too.
        let step = store.snapshot().get(&key("step")).unwrap().unwrap();
        let step: u64 = String::from_utf8(step).unwrap().parse().unwrap();
        assert!(step >= last, "{last} was said, {step} is there");
        let wanted = [format!("row {step}"), "step".to_owned()];
        assert_eq!(names(&found), wanted, "each step deletes the row before");
        assert_eq!(used_slots(&path).len(), 2);
        drop(store);
        assert!(!has(&path, b"row 1"));
    }
}
