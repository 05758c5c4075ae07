//! A process that is killed while it writes keeps what it said it had.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Stdio},
};

use super::{
    Store, Writes,
    child::{lines, words},
};
use crate::store::{Overlay, StoreOptions, View};

/// More in a soak: its factor is in `WORMHOLES_SOAK`.
const ROUNDS_IN_CI: usize = 4;

#[test]
fn what_was_released_is_there_after_kill_9_and_nothing_by_halves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugins.redb");
    let factor = std::env::var("WORMHOLES_SOAK").ok();
    let factor: usize = factor.and_then(|text| text.parse().ok()).unwrap_or(1);
    for round in 0..ROUNDS_IN_CI * factor {
        let released = write_until_killed(&path, 1 + round * 97 % 1000);
        let last = *released.last().unwrap();
        assert!(released.iter().is_sorted(), "released out of order");
        let found = check(&path);
        // In order: with the last one all before it are there. What was not said may be, too.
        let boot = u32::try_from(last >> 32).unwrap();
        assert!(
            u64::from(found[&boot]) >= last & u64::from(u32::MAX),
            "{last} is gone"
        );
    }
}

/// Runs a child until it has said so many; all that it said.
fn write_until_killed(path: &Path, after: usize) -> Vec<u64> {
    let words = words("write", path);
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said = lines(child.stderr.take().unwrap());
    let number = |line: String| -> u64 { line.parse().unwrap_or_else(|_| panic!("{line}")) };
    let mut released: Vec<u64> = said.iter().take(after).map(number).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    // The last line may have been cut off.
    let rest = said.iter().map_while(|line| line.parse::<u64>().ok());
    released.extend(rest);
    released
}

/// The last event of each boot; all before it must be whole.
fn check(path: &Path) -> BTreeMap<u32, u32> {
    let store = Store::open(path, StoreOptions::default()).unwrap();
    let (snapshot, own, overlay) = (store.snapshot(), Writes::default(), Overlay::default());
    let view = View::new(&own, &overlay, &snapshot);
    let all = |prefix: &[u8]| {
        let rows = view.scan(prefix, None, false, usize::MAX, usize::MAX);
        let rows = rows.unwrap().into_iter();
        rows.map(|(key, value)| (key[1..].to_vec(), value))
            .collect::<Vec<_>>()
    };
    let rows = all(b"a");
    assert_eq!(rows, all(b"b"), "half an event");
    let mut last = BTreeMap::new();
    for (key, _) in rows {
        let name = u64::from_be_bytes(key.try_into().unwrap());
        let (boot, number) = ((name >> 32) as u32, name as u32);
        let before = last.insert(boot, number).unwrap_or(0);
        assert_eq!(number, before + 1, "a later one is there, this one is not");
    }
    last
}
