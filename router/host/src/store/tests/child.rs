//! This test program run again, as a process of its own that can be killed, or run out of disk.

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    path::Path,
    sync::mpsc::{Receiver, channel},
};

use super::{Lost, ME, Store, append, put, sealed, wait_for};
use crate::store::StoreOptions;

const TASK: &str = "WORMHOLES_STORE_CHILD";
/// As many as one batch may have, and more than fit into one commit's time.
const IN_FLIGHT: usize = 64;

/// The words that run a task of a child on the store at `path`.
pub(super) fn words(task: &str, path: &Path) -> Vec<OsString> {
    let (_, module) = module_path!().split_once("::").unwrap();
    let test = format!("{module}::a_child_does_what_its_parent_asks");
    let mut variable = OsString::from(format!("{TASK}={task} "));
    variable.push(path);
    let program = env::current_exe().unwrap();
    vec![
        "env".into(),
        variable,
        program.into(),
        test.into(),
        "--exact".into(),
        "--nocapture".into(),
    ]
}

/// Without a parent there is nothing to do.
#[test]
fn a_child_does_what_its_parent_asks() {
    let Ok(asked) = env::var(TASK) else {
        return;
    };
    let (task, path) = asked.split_once(' ').unwrap();
    match task {
        "hold" => hold(Path::new(path)),
        "write" => write(Path::new(path)),
        "fill" => fill(Path::new(path)),
        "seal" => seal(Path::new(path)),
        other => panic!("no such task: {other}"),
    }
}

/// The harness has standard output.
fn say(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

fn open(path: &Path) -> Store {
    Store::open(path, StoreOptions::default()).unwrap()
}

/// Has the store open until its standard input ends.
fn hold(path: &Path) {
    let _store = open(path);
    say("holds");
    io::stdin().read_line(&mut String::new()).unwrap();
}

/// Appends events of two rows each without end, and says which are released.
fn write(path: &Path) {
    let store = open(path);
    let (told, released) = channel();
    for number in 1_u32.. {
        if number as usize > IN_FLIGHT {
            released.recv().unwrap();
        }
        let told = told.clone();
        let name = u64::from(store.boot()) << 32 | u64::from(number);
        let mut writes = put([b"a", &name.to_be_bytes()[..]].concat(), [7; 64]);
        writes.put([b"b", &name.to_be_bytes()[..]].concat(), Some(vec![7; 64]));
        store.append(ME, store.epoch(), writes, move |outcome| {
            outcome.unwrap();
            say(&name.to_string());
            let _ = told.send(());
        });
    }
}

/// Writes a secret and deletes the one before without end, and says which is durable.
fn seal(path: &Path) {
    let store = sealed::open(path);
    let last = store.snapshot().get(&sealed::key("step")).unwrap();
    let last = last.map_or(0, |step| String::from_utf8(step).unwrap().parse().unwrap());
    for step in last + 1_u64.. {
        let mut writes = put(sealed::key(&format!("row {step}")), [7; 64]);
        writes.put(sealed::key(&format!("row {}", step - 1)), None);
        writes.put(sealed::key("step"), Some(step.to_string().into_bytes()));
        append(&store, writes).unwrap();
        say(&step.to_string());
    }
}

/// Writes until the disk is full, makes room, and goes on.
fn fill(folder: &Path) {
    let (ballast, path) = (folder.join("ballast"), folder.join("plugins.redb"));
    std::fs::write(&ballast, vec![1; 6 << 20]).unwrap();
    let store = open(&path);
    let mut durable = Vec::new();
    let lost = loop {
        let key = format!("row {}", durable.len());
        match append(&store, put(key.clone(), vec![7; 256 << 10])) {
            Ok(()) => durable.push(key),
            Err(Lost) => break key,
        }
        assert!(durable.len() < 100, "the disk is never full");
    };
    assert!(!durable.is_empty());
    std::fs::remove_file(ballast).unwrap();
    wait_for(&store);
    append(&store, put("later", "written")).unwrap();
    let check = |store: &Store| {
        let snapshot = store.snapshot();
        for key in durable.iter().map(String::as_str).chain(["later"]) {
            assert!(
                snapshot.get(key.as_bytes()).unwrap().is_some(),
                "{key} is gone"
            );
        }
        assert_eq!(snapshot.get(lost.as_bytes()).unwrap(), None);
    };
    check(&store);
    drop(store);
    check(&open(&path));
    say(&format!("went on after {} rows", durable.len()));
}

/// The lines of a channel until it is closed.
pub(super) fn lines(output: impl io::Read + Send + 'static) -> Receiver<String> {
    let (told, lines) = channel();
    std::thread::spawn(move || {
        for line in io::BufRead::lines(io::BufReader::new(output)) {
            if line.is_ok_and(|line| told.send(line).is_err()) {
                return;
            }
        }
    });
    lines
}
