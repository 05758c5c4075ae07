//! What one event, or one update, may have the host hold, whatever it calls.

use std::sync::Arc;

use tempfile::TempDir;
use wormholes_proto::{NodeId, manifest::Manifest};

use super::{
    Answered, Ended, Imports, Occasion, Running, Setting, Trial,
    words::{blobs, fetch, messages, requests, scratch, sockets, state, timers, types},
};
use crate::recording::Nobody;

/// The principal of the node.
const NODE: usize = 0;

fn trial(limits: &str, folder: Option<&TempDir>) -> Trial {
    let manifest = format!(
        "[plugin]\nname = 'tried'\nversion = '1'\nwasm = 'tried.wasm'\n[capabilities]\nstate = true\n\
         scratch = true\ntimers = true\nblobs = true\nfetch = true\nsockets = ['tcp:80']\n\
         [limits]\n{limits}"
    );
    let manifest = Manifest::parse(&manifest).unwrap();
    let setting = Setting {
        manifest: &manifest,
        node: NodeId::from_bytes([1; 32]),
        network: Arc::new(Nobody),
        blobs: folder.map(|folder| folder.path().join("blobs")),
        users: &[],
    };
    Trial::new(setting).unwrap()
}

fn done() -> Answered {
    Answered::Done(Vec::new())
}

/// An event of these calls.
fn event(trial: &mut Trial, calls: impl FnOnce(&mut Imports)) -> Ended {
    let mut running = trial.begin(NODE, Occasion::Wake).unwrap();
    calls(running.imports());
    let ended = trial.end(running, done()).unwrap();
    trial.check(NODE).unwrap();
    ended
}

fn is_quota<T>(told: wasmtime::Result<Result<T, types::Error>>) -> bool {
    match told.unwrap() {
        Ok(_) => false,
        Err(error) => {
            assert!(matches!(error.code, types::ErrorCode::Quota), "{error:?}");
            true
        }
    }
}

/// Runs steps until one is refused; how many there were.
fn steps(mut step: impl FnMut(&mut Running, u32) -> bool) -> u32 {
    let mut trial = trial("write_kib = 64\nscratch_mib = 1", None);
    let mut running = trial.begin(NODE, Occasion::Migration).unwrap();
    for number in 0..100_u32 {
        let row = number.to_be_bytes().to_vec();
        let written = state::Host::set(running.imports(), b"row".to_vec(), row).unwrap();
        written.unwrap();
        if step(&mut running, number) {
            return number;
        }
        assert!(trial.step(&mut running));
    }
    trial.end_steps(&mut running);
    trial.end(running, done()).unwrap();
    trial.check(NODE).unwrap();
    100
}

#[test]
fn what_steps_of_a_migration_hold_is_bounded_together() {
    // Each step sets 500 timers that nobody has after it.
    let ended = steps(|running, number| {
        (0..500).any(|timer| {
            let name = format!("{number} {timer}");
            let set = timers::Host::set(running.imports(), name.clone(), 0, Vec::new(), false);
            let is_full = is_quota(set);
            let _ = timers::Host::cancel(running.imports(), name).unwrap();
            is_full
        })
    });
    assert!((10..60).contains(&ended), "{ended} steps");
    let ended = steps(|running, _| {
        let value = vec![7; 60 << 10];
        is_quota(scratch::Host::set(
            running.imports(),
            b"same".to_vec(),
            value,
        ))
    });
    assert_eq!(ended, 100, "what is set again is there once");
}

fn request(method: &str, header: usize) -> fetch::Request {
    fetch::Request {
        method: method.to_owned(),
        url: "https://a.example/".to_owned(),
        headers: vec![("a".to_owned(), vec![b'x'; header])],
        body: Vec::new(),
    }
}

fn fetch_way() -> fetch::Way {
    fetch::Way {
        role: String::new(),
        label: String::new(),
        isolation: String::new(),
    }
}

#[test]
fn a_request_to_others_counts_with_all_of_its_words() {
    let mut trial = trial("write_kib = 16", None);
    event(&mut trial, |event| {
        let long = request(&"X".repeat(33), 1);
        let refused = fetch::Host::send(event, long, fetch_way(), 0).unwrap();
        assert!(refused.unwrap_err().message.contains("32 bytes"));
        let send = |event: &mut Imports| {
            let request = request(&"X".repeat(32), 10_000);
            is_quota(fetch::Host::send(event, request, fetch_way(), 0))
        };
        assert!(!send(event));
        assert!(send(event));
    });
}

#[test]
fn connections_that_an_event_closes_keep_their_places() {
    let mut trial = trial("sockets = 3", None);
    let ended = event(&mut trial, |event| {
        let connect = |event: &mut Imports| {
            let way = sockets::Way {
                role: String::new(),
                label: String::new(),
                isolation: String::new(),
            };
            let host = "a.example".to_owned();
            sockets::Host::connect(event, sockets::Kind::Tcp, host, 80, way)
        };
        for _ in 0..3 {
            let id = connect(event).unwrap().unwrap();
            sockets::Host::close(event, id).unwrap().unwrap();
        }
        assert!(is_quota(connect(event)));
    });
    assert_eq!(ended.connects, 3);
}

#[test]
fn each_file_that_an_event_writes_counts_for_a_block() {
    let folder = TempDir::new().unwrap();
    let mut trial = trial("write_kib = 16", Some(&folder));
    event(&mut trial, |event| {
        for byte in 0..3 {
            assert!(!is_quota(blobs::Host::put(event, vec![byte])));
        }
        assert!(is_quota(blobs::Host::put(event, vec![3])));
    });
    event(&mut trial, |event| {
        let seal = |event: &mut Imports| {
            let appended = blobs::Host::append(event, "draft".to_owned(), vec![9]).unwrap();
            assert_eq!(appended.unwrap(), 1);
            is_quota(blobs::Host::seal(event, "draft".to_owned()))
        };
        assert!((0..3).all(|_| !seal(event)));
        assert!(seal(event));
    });
}

#[test]
fn a_fetch_that_its_event_cancels_leaves_nothing() {
    let mut trial = trial("blob_fetches = 1", None);
    let ended = event(&mut trial, |event| {
        for _ in 0..100 {
            let from = types::Address {
                place: types::Place::Here,
                plugin: "other".to_owned(),
                principal: types::Principal::Node,
            };
            let way = messages::Way {
                sender: types::Identity::Node,
                role: String::new(),
                label: String::new(),
                isolation: String::new(),
            };
            let fetched = blobs::Host::fetch(event, vec![1; 32], from, way, 1, None);
            let id = fetched.unwrap().unwrap();
            blobs::Host::cancel(event, id).unwrap().unwrap();
        }
    });
    assert_eq!((ended.parcels, ended.is_written), (0, false));
}

#[test]
fn of_what_an_event_tells_of_an_operation_the_last_is_kept_once() {
    let mut trial = trial("log_kib = 64", None);
    let command = Occasion::Command {
        for_long: true,
        blob: None,
    };
    let running = trial.begin(NODE, command).unwrap();
    let id = running.request().unwrap();
    trial.end(running, Answered::Later).unwrap();
    let text = "x".repeat(30);
    let ended = event(&mut trial, |event| {
        for _ in 0..100 {
            let told = requests::Host::progress(event, id, Some(1), text.clone());
            told.unwrap().unwrap();
        }
    });
    let told = 100 * (text.len() + 64);
    assert!((told..told + 400).contains(&ended.bytes), "{ended:?}");
}
