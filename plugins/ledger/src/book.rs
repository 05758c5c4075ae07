//! The books: what is paid to a node, what comes from it, and when nothing more may. Pure: it is given what
//! is known and says what is to be sent and kept; nothing here asks the node for anything.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wormholes_plugin::{Error, Halt, Result};

/// What one event may send.
const MAX_TIMES: u64 = 256;

/// One amount on its way.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Transfer {
    /// From 1, for each sender and receiver.
    number: u64,
    amount: u64,
}

/// What both directions with a node have come to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    paid: Sum,
    received: Sum,
    /// Why nothing moves any more.
    halted: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Sum {
    count: u64,
    amount: u64,
    /// Differs when the order does.
    digest: u64,
}

/// All of it, for who reads it.
#[derive(Debug, Serialize)]
pub(crate) struct Book {
    pub(crate) balance: i64,
    pub(crate) confirmed: u64,
    pub(crate) refused: u64,
    /// By the hexadecimal digits of their ids.
    pub(crate) peers: BTreeMap<String, Peer>,
}

impl Peer {
    /// Pays the amount so often: what is to be sent, and the balance after it.
    pub(crate) fn pay(
        &mut self,
        amount: u64,
        times: u64,
        mut balance: i64,
    ) -> Result<(Vec<Transfer>, i64)> {
        if amount == 0 || !(1..=MAX_TIMES).contains(&times) {
            return Err(Error::invalid(
                "an amount is at least 1, and --times 1 to 256",
            ));
        }
        if let Some(why) = &self.halted {
            return Err(Error::denied(format!("{why}; `resume` begins anew")));
        }
        let mut transfers = Vec::new();
        for _ in 0..times {
            let transfer = Transfer {
                number: self.paid.count + 1,
                amount,
            };
            self.paid.add(&transfer);
            balance = changed(balance, amount, -1)?;
            transfers.push(transfer);
        }
        Ok((transfers, balance))
    }

    /// Takes what came; the balance after it.
    pub(crate) fn receive(&mut self, transfer: &Transfer, balance: i64) -> Result<i64> {
        let next = self.received.count + 1;
        if transfer.number != next {
            let number = transfer.number;
            return Err(Error::failed(format!(
                "transfer {number} came where {next} is next"
            )));
        }
        self.received.add(transfer);
        changed(balance, transfer.amount, 1)
    }

    /// Nothing moves any more.
    pub(crate) fn halt(&mut self, reason: Halt) {
        let why = match reason {
            Halt::WeWentBack => "this node runs an older copy of its store",
            Halt::TheyWentBack => "the other node runs an older copy of its store",
            Halt::Poison => "the receiver failed on a transfer",
            Halt::Reopened => "the other node began anew",
            Halt::Other => "the other node says so",
        };
        self.halted = Some(why.to_owned());
    }

    /// Somebody looked at both books, and wants to go on.
    pub(crate) fn resume(&mut self) {
        self.halted = None;
    }

    /// How many transfers came.
    pub(crate) fn received_count(&self) -> u64 {
        self.received.count
    }

    /// How many were paid.
    pub(crate) fn paid_count(&self) -> u64 {
        self.paid.count
    }
}

impl Sum {
    fn add(&mut self, transfer: &Transfer) {
        self.count = transfer.number;
        self.amount = self.amount.wrapping_add(transfer.amount);
        for part in [transfer.number, transfer.amount] {
            // FNV-1a over eight bytes at once: to compare two books, not to withstand anybody.
            self.digest = (self.digest ^ part).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

fn changed(balance: i64, amount: u64, sign: i64) -> Result<i64> {
    let change = i64::try_from(amount)
        .ok()
        .and_then(|amount| amount.checked_mul(sign));
    let balance = change.and_then(|change| balance.checked_add(change));
    balance.ok_or_else(|| Error::invalid("no book holds so large an amount"))
}

#[cfg(test)]
mod tests {
    use wormholes_plugin::ErrorCode;

    use super::*;

    #[test]
    fn what_one_pays_the_other_receives_and_both_sums_agree() {
        let (mut ann, mut bob) = (Peer::default(), Peer::default());
        let (first, balance) = ann.pay(5, 2, 0).unwrap();
        let (last, balance) = ann.pay(7, 1, balance).unwrap();
        assert_eq!((balance, ann.paid_count()), (-17, 3));
        let mut received = 0;
        for transfer in first.iter().chain(&last) {
            received = bob.receive(transfer, received).unwrap();
        }
        assert_eq!((received, bob.received_count()), (17, 3));
        assert_eq!(ann.paid, bob.received);
    }

    #[test]
    fn a_transfer_that_is_lost_doubled_or_late_is_no_part_of_the_book() {
        let (mut ann, mut bob) = (Peer::default(), Peer::default());
        let (transfers, _) = ann.pay(5, 2, 0).unwrap();
        let late = bob.clone().receive(&transfers[1], 0);
        assert_eq!(late.unwrap_err().code, ErrorCode::Failed);
        bob.receive(&transfers[0], 0).unwrap();
        let twice = bob.receive(&transfers[0], 5).unwrap_err();
        assert_eq!(twice.message, "transfer 1 came where 2 is next");
    }

    #[test]
    fn who_is_halted_pays_nothing_until_somebody_resumes() {
        let mut peer = Peer::default();
        peer.halt(Halt::WeWentBack);
        assert_eq!(peer.pay(5, 1, 0).unwrap_err().code, ErrorCode::Denied);
        peer.resume();
        assert_eq!(peer.pay(5, 1, 0).unwrap().1, -5);
    }

    #[test]
    fn amounts_that_no_book_holds_are_refused() {
        for (amount, times) in [(0, 1), (1, 0), (1, 257), (u64::MAX, 1), (1 << 62, 3)] {
            let refused = Peer::default().pay(amount, times, 0).unwrap_err();
            assert_eq!(refused.code, ErrorCode::Invalid, "{amount} {times}");
        }
    }
}
