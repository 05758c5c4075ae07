//! A backend in memory whose commits do what the test says.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
};

use super::PATIENCE;
use crate::store::{Backend, Rows, Span, Store, StoreError, Visit, Writes};

pub(super) type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// What becomes of a commit, or of a try to open anew.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    Work,
    Fail,
    /// It says that it failed, and yet all of it is durable.
    FailTooLate,
    Panic,
}

/// Keeps rows in memory; does nothing without an order.
#[derive(Debug)]
pub(super) struct Memory {
    rows: Arc<Mutex<Map>>,
    began: Sender<&'static str>,
    orders: Receiver<Order>,
    broken: Arc<AtomicBool>,
}

/// Steers a `Memory`.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) rows: Arc<Mutex<Map>>,
    began: Receiver<&'static str>,
    orders: Sender<Order>,
    /// Whether snapshots cannot be read.
    pub(super) broken: Arc<AtomicBool>,
}

#[derive(Debug)]
pub(super) struct Frozen {
    rows: Map,
    broken: Arc<AtomicBool>,
}

pub(super) fn memory() -> (Memory, Control) {
    let (began, begins) = channel();
    let (order, orders) = channel();
    let (rows, broken) = (Arc::default(), Arc::default());
    let memory = Memory {
        rows: Arc::clone(&rows),
        began,
        orders,
        broken: Arc::clone(&broken),
    };
    let control = Control {
        rows,
        began: begins,
        orders: order,
        broken,
    };
    (memory, control)
}

pub(super) fn store() -> (Store, Control) {
    let (memory, control) = memory();
    control.order(Order::Work);
    let store = Store::start(Box::new(memory), "memory", None).unwrap();
    control.waits_in("commit");
    (store, control)
}

impl Control {
    pub(super) fn order(&self, order: Order) {
        self.orders.send(order).unwrap();
    }

    /// Waits until the backend was asked for this.
    pub(super) fn waits_in(&self, what: &str) {
        assert_eq!(self.began.recv_timeout(PATIENCE).unwrap(), what);
    }
}

impl Memory {
    fn obey(&mut self, what: &'static str, work: impl FnOnce(&mut Map)) -> Result<(), StoreError> {
        let _ = self.began.send(what);
        let order = self.orders.recv().unwrap_or(Order::Work);
        if matches!(order, Order::Work | Order::FailTooLate) {
            work(&mut self.rows.lock().unwrap());
        }
        match order {
            Order::Work => Ok(()),
            Order::Fail | Order::FailTooLate => Err(broken()),
            Order::Panic => panic!("as ordered"),
        }
    }
}

impl Backend for Memory {
    fn snapshot(&self) -> Result<Box<dyn Rows>, StoreError> {
        Ok(Box::new(Frozen {
            rows: self.rows.lock().unwrap().clone(),
            broken: Arc::clone(&self.broken),
        }))
    }

    fn commit(&mut self, writes: &Writes) -> Result<(), StoreError> {
        self.obey("commit", |rows| apply(rows, writes))
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        let broken = Arc::clone(&self.broken);
        self.obey("reopen", |_| broken.store(false, Ordering::SeqCst))
    }
}

impl Rows for Frozen {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(broken());
        }
        Ok(self.rows.get(key).cloned())
    }

    fn scan(&self, span: &Span, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let mut rows = self.rows.range::<[u8], _>(span.bounds());
        while let Some((key, value)) = if span.is_backwards() {
            rows.next_back()
        } else {
            rows.next()
        } {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// What a commit does, said as simply as possible.
pub(super) fn apply(rows: &mut Map, writes: &Writes) {
    for range in writes.removed() {
        rows.retain(|key, _| !range.contains(key));
    }
    for (key, value) in writes.rows() {
        match value {
            Some(value) => rows.insert(key.to_vec(), value.to_vec()),
            None => rows.remove(key),
        };
    }
}

fn broken() -> StoreError {
    StoreError::Failed("broken as ordered".into())
}
