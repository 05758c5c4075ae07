//! Batches: which event is in which, and when it is released.

use std::{
    future::Future,
    pin::pin,
    sync::mpsc::{Receiver, Sender, channel},
    task::{Context, Poll, Waker},
    time::Instant,
};

use super::{
    Lost, PATIENCE, Store, Writes,
    memory::{Order, store},
    put, read,
};
use crate::store::{
    BatchId,
    queue::{self, MAX_BYTES, MAX_EVENTS},
};

type Releases = (
    Sender<(u32, Result<(), Lost>)>,
    Receiver<(u32, Result<(), Lost>)>,
);

/// Appends event `number`, whose release says that number.
pub(super) fn event(store: &Store, number: u32, releases: &Releases) -> BatchId {
    let told = releases.0.clone();
    let writes = put(number.to_string(), "written");
    store.append(store.epoch(), writes, move |outcome| {
        told.send((number, outcome)).unwrap();
    })
}

#[test]
fn releases_come_in_the_order_of_the_appends_while_the_next_batch_fills() {
    let (store, control) = store();
    let releases = channel();
    let first = event(&store, 0, &releases);
    control.waits_in("commit");
    // In flight: what comes now is in the next batch, all of it in one.
    let second: Vec<_> = (1..=3)
        .map(|number| event(&store, number, &releases))
        .collect();
    assert!(
        second
            .iter()
            .all(|batch| *batch == second[0] && *batch > first)
    );
    let told = releases.0.clone();
    store.after(first, move |outcome| told.send((100, outcome)).unwrap());
    let told = releases.0.clone();
    store.after(second[0], move |outcome| told.send((101, outcome)).unwrap());
    assert!(
        releases.1.try_recv().is_err(),
        "released before it was durable"
    );

    control.order(Order::Work);
    assert_eq!(releases.1.recv_timeout(PATIENCE).unwrap(), (0, Ok(())));
    assert_eq!(releases.1.recv_timeout(PATIENCE).unwrap(), (100, Ok(())));
    control.waits_in("commit");
    assert!(
        releases.1.try_recv().is_err(),
        "released before it was durable"
    );
    control.order(Order::Work);
    let rest: Vec<_> = releases.1.iter().take(4).collect();
    assert_eq!(rest, [1, 2, 3, 101].map(|number| (number, Ok(()))));
    assert_eq!(store.snapshot().batch(), second[0]);

    // Long durable: at once, on this thread. The thread that commits may be about to say so.
    let (told, outcome) = channel();
    store.after(first, move |durable| told.send(durable).unwrap());
    assert_eq!(outcome.recv_timeout(PATIENCE), Ok(Ok(())));
}

#[test]
fn what_nobody_waits_for_is_committed_with_the_next_one_or_alone_in_the_end() {
    let (store, control) = store();
    let releases = channel();
    let patient = |number: u32| {
        let told = releases.0.clone();
        let writes = put(number.to_string(), "written");
        store.append_patiently(store.epoch(), writes, move |outcome| {
            told.send((number, outcome)).unwrap();
        })
    };
    event(&store, 0, &releases);
    control.waits_in("commit");
    assert_eq!(patient(1), event(&store, 2, &releases));
    control.order(Order::Work);
    control.waits_in("commit");
    control.order(Order::Work);
    let all: Vec<_> = releases.1.iter().take(3).collect();
    assert_eq!(all, [0, 1, 2].map(|number| (number, Ok(()))));

    let appended = Instant::now();
    patient(3);
    control.waits_in("commit");
    assert!(
        appended.elapsed() >= queue::PATIENCE,
        "nobody could join it"
    );
    // The end waits for nobody.
    control.order(Order::Work);
    control.order(Order::Work);
    patient(4);
    drop(store);
    assert!(control.rows.lock().unwrap().contains_key(&b"4"[..]));
}

#[test]
fn snapshots_show_what_is_durable_and_never_change() {
    let (store, control) = store();
    let releases = channel();
    let before = store.snapshot();
    event(&store, 1, &releases);
    control.waits_in("commit");
    assert_eq!(read(&store, "1"), None, "shown while it was in flight");
    control.order(Order::Work);
    releases.1.recv_timeout(PATIENCE).unwrap().1.unwrap();
    assert_eq!(read(&store, "1").as_deref(), Some(&b"written"[..]));
    assert_eq!(before.get(b"1").unwrap(), None);
    assert!(before.batch() < store.snapshot().batch());
}

#[test]
fn there_is_no_room_beyond_so_many_events_or_bytes() {
    let heavy = vec![0; MAX_BYTES];
    for (count, value) in [(MAX_EVENTS + 1, Vec::new()), (2, heavy)] {
        let (store, control) = store();
        let releases = channel();
        event(&store, 0, &releases);
        control.waits_in("commit");
        for number in 1..count {
            store.append(
                store.epoch(),
                put(number.to_string(), value.clone()),
                |_| (),
            );
        }
        if count == 2 {
            // A batch that is just not over its bytes takes another.
            store.append(store.epoch(), Writes::default(), |_| ());
        } else {
            assert!(poll(store.room()).is_ready(), "closed too early");
            store.append(store.epoch(), Writes::default(), |_| ());
        }
        let mut room = pin!(store.room());
        assert!(poll(room.as_mut()).is_pending());
        control.order(Order::Work);
        control.waits_in("commit");
        assert!(poll(room).is_ready(), "a batch that was taken leaves room");
        control.order(Order::Work);
    }
}

#[test]
fn the_last_clone_commits_what_is_open_before_it_is_gone() {
    let (store, control) = store();
    let releases = channel();
    event(&store, 1, &releases);
    control.waits_in("commit");
    event(&store, 2, &releases);
    let clone = store.clone();
    let told = releases.0.clone();
    // Dropped by the thread that commits.
    store.append(store.epoch(), Writes::default(), move |outcome| {
        drop(clone);
        told.send((3, outcome)).unwrap();
    });
    control.order(Order::Work);
    control.order(Order::Work);
    drop(store);
    let all: Vec<_> = releases.1.iter().take(3).collect();
    assert_eq!(all, [1, 2, 3].map(|number| (number, Ok(()))));
    assert!(control.rows.lock().unwrap().contains_key(&b"2"[..]));
}

pub(super) fn poll<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}
