//! Messages in the kit: ledgers that pay each other whatever befalls them, held against an oracle
//! outside; and the same scenario between two hosts.

use std::{fs, sync::Arc};

use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use wormholes_ledger::Ledger;
use wormholes_plugin::{ErrorCode, Principal};
use wormholes_plugin_kit::{Drive, Random, World, check, every_fault};
use wormholes_tests::{HostNetwork, PluginHost, until_blocking, workspace};

fn manifest() -> String {
    fs::read_to_string(workspace::root().join("plugins/ledger/plugin.toml")).unwrap()
}

/// Two nodes with a ledger.
trait Pair {
    fn id(&mut self, at: usize) -> String;
    /// `None`: the node ended before it answered.
    fn ask(&mut self, at: usize, command: &str, arguments: Value) -> Option<Value>;
    fn book(&mut self, at: usize) -> Value;
    fn restart(&mut self, at: usize);
    fn until(&mut self, what: &str, holds: impl FnMut(&mut Self) -> bool);
}

impl Pair for World<Ledger> {
    fn id(&mut self, at: usize) -> String {
        HEXLOWER.encode(&self.at(at).id())
    }

    fn ask(&mut self, at: usize, command: &str, arguments: Value) -> Option<Value> {
        match self.at(at).request(&Principal::Node, command, arguments) {
            Ok(answer) => Some(answer),
            Err(error) => {
                assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
                None
            }
        }
    }

    fn book(&mut self, at: usize) -> Value {
        let book = self.at(at).query(&Principal::Node, "book", json!({}));
        book.unwrap()
    }

    fn restart(&mut self, at: usize) {
        self.at(at).restart();
    }

    fn until(&mut self, what: &str, holds: impl FnMut(&mut Self) -> bool) {
        World::until(self, what, holds);
    }
}

struct Hosts {
    runtime: Runtime,
    hosts: [PluginHost; 2],
}

impl Hosts {
    fn new() -> Self {
        let (runtime, net) = (Runtime::new().unwrap(), Arc::<HostNetwork>::default());
        let hosts = [(); 2].map(|()| {
            let host = PluginHost::new(&net, "plugins/ledger");
            runtime.block_on(host).unwrap()
        });
        Self { runtime, hosts }
    }
}

impl Pair for Hosts {
    fn id(&mut self, at: usize) -> String {
        self.hosts[at].hex()
    }

    fn ask(&mut self, at: usize, command: &str, arguments: Value) -> Option<Value> {
        let asked = self.hosts[at].ask(command, arguments);
        Some(self.runtime.block_on(asked).unwrap())
    }

    fn book(&mut self, at: usize) -> Value {
        let book = self.hosts[at].query("book");
        self.runtime.block_on(book).unwrap()
    }

    fn restart(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        self.runtime.block_on(async {
            host.close().await.unwrap();
            host.open(None).await.unwrap();
        });
    }

    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        until_blocking(what, || holds(self)).unwrap();
    }
}

/// What was paid, by who paid it, as the books have to say it.
#[derive(Default)]
struct Oracle([Vec<u64>; 2]);

impl Oracle {
    /// Pays; who was not answered looks, and does not pay again.
    fn pay(&mut self, pair: &mut impl Pair, from: usize, amount: u64, times: usize) {
        let to = pair.id(1 - from);
        let arguments = json!({ "node": to, "amount": amount, "times": times });
        let answer = pair.ask(from, "pay", arguments);
        let paid = &mut self.0[from];
        let count = match answer {
            Some(count) => count,
            None => pair.book(from)["peers"][&to]["paid"]["count"].clone(),
        };
        let count = usize::try_from(count.as_u64().unwrap_or(0)).unwrap();
        assert!([paid.len(), paid.len() + times].contains(&count), "{count}");
        paid.resize(count, amount);
    }

    /// As a book counts a direction: the digest tells the order.
    fn sum(&self, from: usize) -> Value {
        let amounts = self.0[from].iter();
        let numbered = (1..).zip(amounts);
        let digest = numbered.fold(0_u64, |digest, (number, amount)| {
            let add = |digest: u64, part: u64| (digest ^ part).wrapping_mul(0x0100_0000_01b3);
            add(add(digest, number), *amount)
        });
        let (count, amount) = (self.0[from].len(), self.0[from].iter().sum::<u64>());
        json!({ "count": count, "amount": amount, "digest": digest })
    }

    fn agrees(&self, pair: &mut impl Pair) -> bool {
        let ids = [pair.id(0), pair.id(1)];
        let books = [pair.book(0), pair.book(1)];
        (0..2).all(|from| {
            let (ours, theirs) = (&books[from], &books[1 - from]);
            assert_eq!(ours["refused"], 0, "{ours:#}");
            if self.0[from].is_empty() {
                return true;
            }
            let sides = [
                &ours["peers"][&ids[1 - from]]["paid"],
                &theirs["peers"][&ids[from]]["received"],
            ];
            sides == [&self.sum(from); 2] && ours["confirmed"] == self.0[from].len()
        })
    }

    fn settle(&self, pair: &mut impl Pair) {
        pair.until("both books agree", |pair| self.agrees(pair));
        let balances = [0, 1].map(|at| pair.book(at)["balance"].as_i64().unwrap());
        assert_eq!(balances[0] + balances[1], 0);
    }
}

fn world(seed: u64) -> World<Ledger> {
    let mut world = World::new(seed, &manifest());
    world.add_node();
    world
}

/// Each pays the other while either ends and starts again, and one asks what the other has.
fn scenario(pair: &mut impl Pair) {
    let mut oracle = Oracle::default();
    oracle.pay(pair, 0, 5, 3);
    oracle.pay(pair, 1, 7, 2);
    pair.restart(1);
    oracle.pay(pair, 0, 2, 1);
    pair.restart(0);
    oracle.settle(pair);
    let other = pair.id(1);
    let asked = pair.ask(0, "ask", json!({ "node": other }));
    assert_eq!(asked, Some(json!(4)));
}

#[test]
fn ledgers_pay_each_other_in_the_kit_as_between_hosts() {
    scenario(&mut world(1));
    scenario(&mut Hosts::new());
}

#[derive(Debug, Clone)]
enum Step {
    Pay(usize, u64, usize),
    Restart(usize),
    CrashBefore(u64),
    CrashAfter(u64),
    Cut,
    Heal,
    Pass(u64),
}

fn draw(random: &mut Random) -> Vec<Step> {
    let step = |random: &mut Random| {
        let who = usize::from(random.of(0..2) == 1);
        match random.of(0..12) {
            0 => Step::Restart(who),
            1 => Step::CrashBefore(random.of(0..8)),
            2 => Step::CrashAfter(random.of(0..8)),
            3 => Step::Cut,
            4 => Step::Heal,
            5..8 => Step::Pass(random.of(1..500)),
            _ => Step::Pay(who, random.of(1..1000), [1, 3, 9][usize::from(who == 1)]),
        }
    };
    (0..30).map(|_| step(random)).collect()
}

#[test]
fn books_agree_whatever_breaks_and_crashes() {
    check(100, draw, |seed, steps| {
        let mut world = world(seed);
        world.unsteady(20);
        let mut oracle = Oracle::default();
        for step in steps {
            match *step {
                Step::Pay(from, amount, times) => oracle.pay(&mut world, from, amount, times),
                Step::Restart(at) => world.at(at).restart(),
                Step::CrashBefore(commit) => world.crash_before_commit(commit),
                Step::CrashAfter(commit) => world.crash_after_commit(commit),
                Step::Cut => world.cut(0, 1),
                Step::Heal => world.heal(0, 1),
                Step::Pass(ms) => world.pass(std::time::Duration::from_millis(ms)),
            }
        }
        world.heal(0, 1);
        oracle.settle(&mut world);
    });
}

#[test]
fn no_single_fault_has_an_amount_lost_or_doubled() {
    every_fault::<Ledger>(&manifest(), |world| {
        world.add_node();
        let mut oracle = Oracle::default();
        oracle.pay(world, 0, 5, 2);
        oracle.pay(world, 1, 7, 1);
        oracle.settle(world);
        let other = Pair::id(world, 1);
        if let Some(count) = world.ask(0, "ask", json!({ "node": other })) {
            assert_eq!(count, oracle.0[0].len());
        }
    });
}

/// As `an_older_copy_of_a_store_halts_the_channel_and_both_ends_say_so` shows it of the host.
#[test]
fn an_older_copy_halts_the_channel_in_the_kit() {
    let (ours, theirs) = (
        "this node runs an older copy of its store",
        "the other node runs an older copy of its store",
    );
    for (older, expected) in [(0, [ours, theirs]), (1, [theirs, ours])] {
        let mut world = world(older);
        let older = usize::try_from(older).unwrap();
        let mut oracle = Oracle::default();
        oracle.pay(&mut world, 0, 5, 3);
        oracle.settle(&mut world);
        let copy = world.at(older).snapshot();
        oracle.pay(&mut world, 0, 5, 4);
        oracle.settle(&mut world);
        world.at(older).restore(&copy);
        let ids = [Pair::id(&mut world, 0), Pair::id(&mut world, 1)];
        let pay = json!({ "node": ids[1], "amount": 6 });
        assert!(world.ask(0, "pay", pay.clone()).is_some());
        world.until("both are told", |world| {
            let halted = |at: usize| world.book(at)["peers"][&ids[1 - at]]["halted"].clone();
            [0, 1].map(halted) == expected.map(Value::from)
        });
        let refused = world.at(0).request(&Principal::Node, "pay", pay);
        assert_eq!(refused.unwrap_err().code, ErrorCode::Denied);
        for at in [0, 1] {
            world.ask(at, "resume", json!({ "node": ids[1 - at] }));
        }
        // What waited is sent again; its number is not the one that the other book has next.
        world.until("it is refused", |world| world.book(0)["refused"] == 1);
    }
}

#[test]
fn a_message_to_oneself_takes_the_same_way_in_the_kit() {
    let mut world = World::<Ledger>::new(1, &manifest());
    let own = Pair::id(&mut world, 0);
    let paid = world.ask(0, "pay", json!({ "node": own, "amount": 1, "times": 2 }));
    assert_eq!(paid, Some(json!(2)));
    // The ledger has accounts of nodes alone: its own no is told to it.
    world.until("it is told", |world| world.book(0)["refused"] == 2);
}
