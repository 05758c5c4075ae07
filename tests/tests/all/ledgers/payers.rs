//! Payments that are asked of two ledgers, several at once and over kills; and what the books must say
//! of them, known from outside: what was answered stands where the answer said, whatever is killed
//! then, and what a kill left without an answer was paid as a whole or not at all.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use rand::{Rng as _, seq::IndexedRandom as _};
use serde::Deserialize;
use serde_json::json;
use tokio::{sync::watch, task::JoinSet};
use wormholes_tests::{Daemon, RpcError, call};

/// At each node: while one payment is committed others are handled, and wait.
const PAYERS: usize = 4;
/// Transfers of one payment.
const TIMES: [u64; 3] = [1, 8, 32];

/// Several who ask one node to pay the other.
pub(super) struct Payers(JoinSet<Vec<Asked>>);

/// A payment that a node was asked for.
#[derive(Debug)]
pub(super) struct Asked {
    payment: Payment,
    /// The number of its last transfer; `None`: nobody answered.
    last: Option<u64>,
}

/// As many transfers of one amount.
#[derive(Debug, Clone, Copy)]
struct Payment {
    amount: u64,
    times: u64,
}

/// How one direction stands, as a book says it; the digest tells the order.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Sum {
    count: u64,
    amount: u64,
    digest: u64,
}

/// What one node paid the other.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    sum: Sum,
    /// Payments that kills left without an answer.
    pub(super) doubted: usize,
    /// Those among them that were paid.
    pub(super) found: usize,
}

/// One who asks.
struct Payer {
    socket: PathBuf,
    to: String,
    /// Transfers that the node is to be asked for by all its payers, and those that it was.
    due: u64,
    own: Arc<AtomicU64>,
    /// Those of both nodes.
    begun: Arc<watch::Sender<u64>>,
}

impl Payers {
    /// They go on until they began so many transfers, or the node is killed; `begun` counts.
    pub(super) fn start(
        from: &Daemon,
        to: &Daemon,
        due: u64,
        begun: &Arc<watch::Sender<u64>>,
    ) -> Self {
        let own = Arc::<AtomicU64>::default();
        let mut payers = JoinSet::new();
        for _ in 0..PAYERS {
            let payer = Payer {
                socket: from.socket(),
                to: to.id().to_string(),
                due,
                own: Arc::clone(&own),
                begun: Arc::clone(begun),
            };
            payers.spawn(payer.pay());
        }
        Self(payers)
    }

    /// All that was asked, when none goes on; a second time: nothing.
    pub(super) async fn end(&mut self) -> Vec<Asked> {
        let mut all = Vec::new();
        while let Some(asked) = self.0.join_next().await {
            all.extend(asked.unwrap());
        }
        all
    }
}

impl Payer {
    async fn pay(self) -> Vec<Asked> {
        let mut all = Vec::new();
        loop {
            let payment = Payment::draw();
            if self.own.fetch_add(payment.times, Relaxed) >= self.due {
                return all;
            }
            self.begun.send_modify(|begun| *begun += payment.times);
            let last = self.ask(payment).await;
            all.push(Asked { payment, last });
            if last.is_none() {
                return all;
            }
        }
    }

    async fn ask(&self, payment: Payment) -> Option<u64> {
        let Payment { amount, times } = payment;
        let arguments = json!({ "node": self.to, "amount": amount, "times": times });
        let params = json!({ "instance": "ledger", "command": "pay", "arguments": arguments });
        match call(&self.socket, "plugin.ask", params).await {
            Ok(last) => Some(last.as_u64().unwrap()),
            // It lives, and says no: nothing here gives it a reason.
            Err(error) if error.is::<RpcError>() => panic!("{payment:?}: {error:#}"),
            Err(_) => None,
        }
    }
}

impl Payment {
    fn draw() -> Self {
        let mut rng = rand::rng();
        Self {
            // Two of a kill are hardly the same: their order shows.
            amount: rng.random_range(1..1_000_000),
            times: *TIMES.choose(&mut rng).unwrap(),
        }
    }
}

impl Sum {
    /// As the ledger adds them up.
    fn with(mut self, payment: Payment) -> Self {
        for _ in 0..payment.times {
            self.count += 1;
            self.amount += payment.amount;
            for part in [self.count, payment.amount] {
                self.digest = (self.digest ^ part).wrapping_mul(0x0100_0000_01b3);
            }
        }
        self
    }
}

impl Oracle {
    /// What the books must say.
    pub(super) fn sum(&self) -> Sum {
        self.sum
    }

    /// How many transfers that is.
    pub(super) fn count(&self) -> u64 {
        self.sum.count
    }

    /// Takes all that a node was asked since, and what its book says while nobody asks.
    pub(super) fn take(&mut self, asked: Vec<Asked>, book: Sum) {
        let (mut answered, mut doubted) = (Vec::new(), Vec::new());
        for Asked { payment, last } in asked {
            match last {
                Some(last) => answered.push((last, payment)),
                None => doubted.push(payment),
            }
        }
        answered.sort_unstable_by_key(|(last, _)| *last);
        let Some(found) = found(self.sum, &answered, &doubted, book) else {
            let before = self.sum;
            panic!("after {before:?}: {answered:?} and some of {doubted:?} are not {book:?}");
        };
        self.doubted += doubted.len();
        self.found += found;
        self.sum = book;
    }
}

/// How many of the payments in doubt were paid, if some order of some of them makes the book, with what
/// was answered in its place between them.
fn found(sum: Sum, answered: &[(u64, Payment)], doubted: &[Payment], book: Sum) -> Option<usize> {
    if answered.is_empty() && sum == book {
        return Some(0);
    }
    if let Some(((last, payment), later)) = answered.split_first()
        && sum.count + payment.times == *last
    {
        return found(sum.with(*payment), later, doubted, book);
    }
    (0..doubted.len()).find_map(|at| {
        let mut others = doubted.to_vec();
        let sum = sum.with(others.swap_remove(at));
        if sum.count > book.count {
            return None;
        }
        Some(1 + found(sum, answered, &others, book)?)
    })
}

#[test]
fn a_book_that_lost_doubled_or_moved_a_payment_is_not_explained() {
    let pay = |amount, times| Payment { amount, times };
    let [a, b, c] = [pay(5, 1), pay(7, 8), pay(9, 1)];
    let book = |paid: &[Payment]| paid.iter().fold(Sum::default(), |sum, one| sum.with(*one));
    let explained = |paid: &[Payment]| {
        // `a` was answered as the first, `c` as the one behind all of `b`.
        let answered = [(1, a), (10, c)];
        found(Sum::default(), &answered, &[pay(3, 8), b], book(paid))
    };
    assert_eq!(explained(&[a, b, c]), Some(1));
    assert_eq!(explained(&[a, b, c, pay(3, 8)]), Some(2));
    for wrong in [
        &[a, b][..],
        &[a, c],
        &[a, b, c, c],
        &[b, a, c],
        &[a, b, c, b],
    ] {
        assert_eq!(explained(wrong), None, "{wrong:?}");
    }
    let half = [a, pay(7, 4), c];
    assert_eq!(explained(&half), None);
    assert_eq!(found(Sum::default(), &[], &[a], Sum::default()), Some(0));
}
