//! Commits that fail: who is told, and how it goes on.

use std::sync::{atomic::Ordering, mpsc::channel};

use super::{
    BatchId, Lost, ME, append,
    memory::{Order, store},
    pipeline::{event, poll},
    put, read, wait_for,
};

#[test]
fn a_failed_commit_loses_itself_and_all_behind_it_in_order() {
    for failure in [Order::Fail, Order::FailTooLate, Order::Panic] {
        let (store, control) = store();
        let releases = channel();
        let epoch = store.epoch();
        let failed = event(&store, 1, &releases);
        control.waits_in("commit");
        let open = event(&store, 2, &releases);
        let told = releases.0.clone();
        store.after(failed, move |outcome| told.send((100, outcome)).unwrap());
        control.order(failure);
        control.waits_in("reopen");
        let lost: Vec<_> = releases.1.try_iter().collect();
        assert_eq!(lost, [1, 100, 2].map(|number| (number, Err(Lost))));

        // Nothing is taken until it works, and nothing runs.
        assert_eq!(append(&store, put("3", "too early")), Err(Lost));
        assert!(poll(store.room(ME)).is_pending());
        assert!(poll(store.lost()).is_pending());
        for _ in 0..3 {
            control.order(Order::Fail);
            control.waits_in("reopen");
        }
        control.order(Order::Work);
        wait_for(&store);
        assert_eq!(store.epoch(), epoch + 1);
        assert_eq!(store.snapshot().epoch(), epoch + 1);
        let is_there = matches!(failure, Order::FailTooLate);
        assert_eq!(read(&store, "1").is_some(), is_there, "{failure:?}");

        // Who read in the old epoch has nothing to say in the new one, and learns nothing of it.
        let (told, outcome) = channel();
        let first = told.clone();
        store.append(ME, epoch, put("4", "stale"), move |lost| {
            first.send(lost).unwrap()
        });
        assert_eq!(outcome.try_recv(), Ok(Err(Lost)));
        for batch in [failed, open] {
            let told = told.clone();
            store.after(batch, move |lost| told.send(lost).unwrap());
            assert_eq!(outcome.try_recv(), Ok(Err(Lost)));
        }
        control.order(Order::Work);
        assert_eq!(append(&store, put("5", "new")), Ok(()));
        assert_eq!(read(&store, "5").as_deref(), Some(&b"new"[..]));
        assert_eq!(
            [read(&store, "2"), read(&store, "3"), read(&store, "4")],
            [None, None, None]
        );
        let newest: BatchId = store.snapshot().batch();
        assert!(newest > open);
    }
}

#[test]
fn who_looks_after_a_failure_sees_what_is_there_before_anybody_goes_on() {
    for failure in [Order::Fail, Order::FailTooLate] {
        let (store, control) = store();
        let (told, seen) = channel();
        store.when_reopened(move |snapshot| {
            let row = snapshot.get(b"1").unwrap();
            told.send((snapshot.epoch(), row.is_some())).unwrap();
        });
        let releases = channel();
        let epoch = store.epoch();
        event(&store, 1, &releases);
        control.waits_in("commit");
        control.order(failure);
        control.waits_in("reopen");
        assert!(seen.try_recv().is_err());
        control.order(Order::Work);
        wait_for(&store);
        let is_there = matches!(failure, Order::FailTooLate);
        assert_eq!(seen.try_recv(), Ok((epoch + 1, is_there)), "{failure:?}");
    }
}

#[test]
fn a_snapshot_that_cannot_be_read_has_the_store_opened_anew() {
    let (store, control) = store();
    let epoch = store.epoch();
    control.broken.store(true, Ordering::SeqCst);
    assert!(store.snapshot().get(b"any").is_err());
    assert!(poll(store.lost()).is_pending());
    control.waits_in("reopen");
    control.order(Order::Work);
    wait_for(&store);
    assert_eq!(read(&store, "any"), None);
    assert_eq!(store.epoch(), epoch + 1);
}

#[test]
fn a_release_that_panics_holds_up_no_other() {
    let (store, control) = store();
    control.order(Order::Work);
    control.order(Order::Work);
    store.append(ME, store.epoch(), put("1", "written"), |_| {
        panic!("as ordered")
    });
    assert_eq!(append(&store, put("2", "written")), Ok(()));
}

#[test]
fn another_store_in_its_place_is_not_taken() {
    let (store, control) = store();
    let releases = channel();
    event(&store, 1, &releases);
    control.waits_in("commit");
    let head = control.rows.lock().unwrap().remove(&b"\0"[..]);
    control.order(Order::Fail);
    control.waits_in("reopen");
    control.order(Order::Work);
    control.waits_in("reopen");
    assert!(
        poll(store.lost()).is_pending(),
        "goes on with a store of nobody"
    );
    control
        .rows
        .lock()
        .unwrap()
        .extend(head.map(|head| (vec![0], head)));
    control.order(Order::Work);
    wait_for(&store);
}
