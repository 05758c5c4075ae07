//! Batches: which event is in which, and when it is released.

use std::{
    future::Future,
    pin::pin,
    sync::mpsc::{Receiver, Sender, channel},
    task::{Context, Poll, Waker},
    time::Instant,
};

use super::{
    Lost, ME, PATIENCE, Store, Writer, Writes,
    memory::{Order, store},
    put, read,
};
use crate::store::{
    BatchId,
    queue::{self, MAX_BYTES_OF_ONE, MAX_EVENTS_OF_ONE, SHARE_BYTES},
};

type Releases = (
    Sender<(u32, Result<(), Lost>)>,
    Receiver<(u32, Result<(), Lost>)>,
);

/// Appends event `number`, whose release says that number.
pub(super) fn event(store: &Store, number: u32, releases: &Releases) -> BatchId {
    let writes = put(number.to_string(), "written");
    append(store, ME, number, writes, releases)
}

/// The same, of a writer, with so many bytes.
fn write(store: &Store, writer: Writer, number: u32, bytes: usize, releases: &Releases) -> BatchId {
    let key = [7_u8];
    let writes = put(key, vec![7; bytes - key.len()]);
    append(store, writer, number, writes, releases)
}

fn append(
    store: &Store,
    writer: Writer,
    number: u32,
    writes: Writes,
    releases: &Releases,
) -> BatchId {
    let told = releases.0.clone();
    store.append(writer, store.epoch(), writes, move |outcome| {
        // A test may end before all of it is durable.
        let _ = told.send((number, outcome));
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
        store.append_patiently(ME, store.epoch(), writes, move |outcome| {
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
    const PIECE_BYTES: usize = SHARE_BYTES;
    let pieces = MAX_BYTES_OF_ONE / PIECE_BYTES;
    for (count, bytes) in [(MAX_EVENTS_OF_ONE, 1), (pieces, PIECE_BYTES)] {
        let (store, control) = store();
        let releases = channel();
        event(&store, 0, &releases);
        control.waits_in("commit");
        let stranger = Writer(9);
        for writer in (2..=5).map(Writer) {
            for _ in 0..count {
                write(&store, writer, 1, bytes, &releases);
            }
            assert!(poll(store.room(writer)).is_ready(), "closed too early");
        }
        assert!(poll(store.room(stranger)).is_ready(), "closed too early");
        write(&store, Writer(2), 1, 1, &releases);
        let mut room = pin!(store.room(stranger));
        let mut own = pin!(store.room(Writer(2)));
        assert!(poll(room.as_mut()).is_pending());
        assert!(poll(own.as_mut()).is_pending());
        control.order(Order::Work);
        control.waits_in("commit");
        assert!(poll(room).is_ready(), "a batch that was taken leaves room");
        assert!(poll(own).is_ready(), "a batch that was taken leaves room");
        control.order(Order::Work);
    }
}

#[test]
fn who_writes_little_waits_for_the_commit_in_flight_alone() {
    let (store, control) = store();
    let releases = channel();
    let (much, little) = (Writer(2), Writer(3));
    event(&store, 0, &releases);
    control.waits_in("commit");
    let large = [1, 2, 3].map(|number| write(&store, much, number, SHARE_BYTES + 1, &releases));
    let first = write(&store, little, 10, 1, &releases);
    assert!(first < large[0] && large[0] < large[1]);
    control.order(Order::Work);
    control.waits_in("commit");
    control.order(Order::Work);
    control.waits_in("commit");
    // The first large one is in flight.
    let second = write(&store, little, 11, 1, &releases);
    assert!(large[0] < second && second < large[1]);
    for _ in 0..4 {
        control.order(Order::Work);
    }
    let all: Vec<_> = releases.1.iter().take(6).collect();
    assert_eq!(all, [0, 10, 1, 11, 2, 3].map(|number| (number, Ok(()))));
}

#[test]
fn a_batch_takes_a_share_of_each_writer_and_each_stays_in_order() {
    let (store, control) = store();
    let releases = channel();
    let (much, little) = (Writer(2), Writer(3));
    event(&store, 0, &releases);
    control.waits_in("commit");
    let batches: Vec<_> = (1..=6)
        .map(|number| write(&store, much, number, SHARE_BYTES / 4, &releases))
        .collect();
    assert!(batches[..4].iter().all(|batch| *batch == batches[0]));
    assert!(batches[4..].iter().all(|batch| *batch == batches[5]));
    assert!(batches[0] < batches[5]);
    assert_eq!(write(&store, little, 10, 1, &releases), batches[0]);
    // Behind its own, though there is a place before them.
    let large = write(&store, little, 11, SHARE_BYTES + 1, &releases);
    let behind = write(&store, little, 12, 1, &releases);
    assert!(batches[5] < large && large < behind);
    for _ in 0..5 {
        control.order(Order::Work);
    }
    let all: Vec<_> = releases.1.iter().take(10).collect();
    let order = [0, 1, 2, 3, 4, 10, 5, 6, 11, 12];
    assert_eq!(all, order.map(|number| (number, Ok(()))));
}

#[test]
fn what_is_no_writers_own_parts_what_came_before_from_what_comes_later() {
    let (store, control) = store();
    let releases = channel();
    event(&store, 0, &releases);
    control.waits_in("commit");
    let large = write(&store, Writer(2), 1, SHARE_BYTES + 1, &releases);
    let told = releases.0.clone();
    let between = store.append_between(store.epoch(), put("all", "written"), move |outcome| {
        told.send((2, outcome)).unwrap();
    });
    let later = write(&store, Writer(3), 3, 1, &releases);
    assert!(large <= between && between < later);
    let told = releases.0.clone();
    store.after(large, move |outcome| told.send((4, outcome)).unwrap());
    for _ in 0..3 {
        control.order(Order::Work);
    }
    let all: Vec<_> = releases.1.iter().take(5).collect();
    assert_eq!(all, [0, 1, 2, 4, 3].map(|number| (number, Ok(()))));
}

#[test]
fn a_writer_is_not_alone_once_another_wrote() {
    let (store, control) = store();
    let releases = channel();
    for _ in 0..3 {
        control.order(Order::Work);
    }
    write(&store, Writer(2), 1, 1, &releases);
    // A wait is no write.
    store.append(Writer(3), store.epoch(), Writes::default(), |_| ());
    assert!(!store.is_shared(Writer(2)) && store.is_shared(Writer(3)));
    write(&store, Writer(3), 2, 1, &releases);
    write(&store, Writer(3), 3, 1, &releases);
    assert!(store.is_shared(Writer(2)) && store.is_shared(Writer(3)));
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
    store.append(ME, store.epoch(), Writes::default(), move |outcome| {
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
