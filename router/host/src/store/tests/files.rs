//! The file: whom it is for, what is refused, and a disk that is full.

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Command, Stdio},
};

use super::{
    ME, Store, append,
    child::{lines, words},
    put, read,
};
use crate::store::{StoreError, StoreOptions};

fn open(path: &Path) -> Result<Store, StoreError> {
    Store::open(path, StoreOptions::default())
}

#[test]
fn a_store_keeps_its_rows_and_its_incarnation_and_counts_its_boots() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugins.redb");
    let store = open(&path).unwrap();
    let incarnation = store.incarnation();
    assert_eq!(store.boot(), 1);
    append(&store, put("key", "value")).unwrap();
    drop(store);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");

    let store = open(&path).unwrap();
    assert_eq!((store.boot(), store.incarnation()), (2, incarnation));
    assert_eq!(read(&store, "key").as_deref(), Some(&b"value"[..]));
    let other = open(&folder.path().join("other.redb")).unwrap();
    assert_ne!(other.incarnation(), incarnation);
}

#[test]
fn a_store_that_others_could_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugins.redb");
    drop(open(&path).unwrap());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let error = open(&path).unwrap_err();
    assert!(error.to_string().contains("chmod 600"), "{error}");
}

#[test]
fn what_is_no_store_is_refused_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugins.redb");
    let private = || fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, "a file of somebody else\n".repeat(1000)).unwrap();
    private();
    let before = fs::read(&path).unwrap();
    let error = open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error:?}");
    assert_eq!(fs::read(&path).unwrap(), before);

    fs::write(&path, "").unwrap();
    let error = open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");

    fs::remove_file(&path).unwrap();
    let database = redb::Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let table = redb::TableDefinition::<u64, u64>::new("theirs");
    transaction.open_table(table).unwrap().insert(1, 1).unwrap();
    transaction.commit().unwrap();
    drop(database);
    private();
    let error = open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error:?}");

    let nowhere = folder.path().join("no folder").join("plugins.redb");
    let error = open(&nowhere).unwrap_err();
    assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
}

/// One byte in page after page: it is refused, or was of no page in use.
#[test]
fn a_damaged_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugins.redb");
    let store = open(&path).unwrap();
    let keys: Vec<_> = (0..40).map(|number| number.to_string()).collect();
    for key in &keys {
        store.append(ME, store.epoch(), put(key.as_str(), vec![7; 1000]), |_| ());
    }
    drop(store);
    let whole = fs::read(&path).unwrap();
    let pages = whole.chunks(4096).enumerate();
    let written = pages.filter(|(_, page)| page.iter().any(|byte| *byte != 0));
    let (mut refused, mut tried) = (0, 0);
    for place in written.map(|(page, _)| page * 4096 + 100) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x55;
        fs::write(&path, bytes).unwrap();
        tried += 1;
        match open(&path) {
            Ok(store) => {
                let is_whole = |key: &String| read(&store, key).unwrap() == [7; 1000];
                assert!(keys.iter().all(is_whole), "{place}");
            }
            Err(StoreError::Damaged { .. } | StoreError::Foreign { .. }) => refused += 1,
            Err(other) => panic!("{place}: {other:?}"),
        }
    }
    assert!(refused > 10, "only {refused} of {tried}");
}

#[test]
fn a_store_that_another_process_has_open_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugins.redb");
    let words = words("hold", &path);
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said = lines(child.stderr.take().unwrap());
    assert_eq!(said.recv().unwrap(), "holds");
    let error = open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Held { .. }), "{error:?}");
    assert!(error.to_string().contains("stop that wormholed"), "{error}");
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(open(&path).unwrap().boot(), 2);
}

#[test]
fn a_store_on_a_full_disk_goes_on_from_what_is_durable() {
    let folder = tempfile::tempdir().unwrap();
    let mount = "mount -t tmpfs -o size=16m tmpfs \"$1\"; shift; exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--mount", "--", "sh", "-ec", mount, "sh"])
        .arg(folder.path())
        .args(words("fill", folder.path()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success(),
        "needs root to mount a small disk: {said}{output:?}"
    );
    assert!(said.contains("went on after"), "{said}");
}
