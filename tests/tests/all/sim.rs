//! The simulated network itself: what a scenario may rely on.

use std::time::Duration;

use wormholes_tests::sim::{Conditions, Machine, Outbox, SimNet, for_seeds};

const SECOND: Duration = Duration::from_secs(1);

/// Sends a number each second, and keeps what it hears.
#[derive(Debug, Default)]
struct Talker {
    other: usize,
    next: Duration,
    n_sent: u32,
    heard: Vec<(Duration, u32)>,
}

impl Machine for Talker {
    type Message = u32;

    fn handle_message(&mut self, now: Duration, _: usize, message: u32, _: &mut Outbox<u32>) {
        self.heard.push((now, message));
    }

    fn handle_timeout(&mut self, now: Duration, out: &mut Outbox<u32>) {
        out.send(self.other, self.n_sent);
        self.n_sent += 1;
        self.next = now + SECOND;
    }

    fn poll_timeout(&self) -> Option<Duration> {
        Some(self.next)
    }
}

fn talkers(seed: u64, link: Conditions) -> SimNet<Talker> {
    let talker = |other| Talker {
        other,
        ..Talker::default()
    };
    SimNet::new(seed, vec![talker(1), talker(0)], link)
}

fn heard(net: &SimNet<Talker>) -> Vec<u32> {
    let (_, numbers): (Vec<_>, Vec<_>) = net.machines()[1].heard.iter().copied().unzip();
    numbers
}

#[test]
fn a_seed_repeats_a_run_and_another_does_not() {
    let run = |seed| {
        let mut net = talkers(seed, Conditions::rough());
        net.run_for(100 * SECOND, |_| {});
        let [a, b] = net.machines() else {
            panic!("two talkers")
        };
        (a.heard.clone(), b.heard.clone())
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn rough_links_lose_double_and_reorder() {
    let link = Conditions {
        jitter: 3 * SECOND,
        ..Conditions::rough()
    };
    let mut net = talkers(7, link);
    net.run_for(1000 * SECOND, |_| {});
    let heard = heard(&net);
    let mut sorted = heard.clone();
    sorted.sort_unstable();
    assert_ne!(heard, sorted, "reordered");
    sorted.dedup();
    assert!(sorted.len() < heard.len(), "doubled");
    assert!((600..800).contains(&sorted.len()), "lost");
}

#[test]
fn streams_keep_order_whatever_the_jitter() {
    for_seeds(5, |seed| {
        let link = Conditions {
            jitter: 5 * SECOND,
            ..Conditions::stream(SECOND)
        };
        let mut net = talkers(seed, link);
        net.run_for(100 * SECOND, |_| {});
        let expected: Vec<_> = (0..heard(&net).len() as u32).collect();
        assert_eq!(heard(&net), expected);
        assert!(expected.len() > 90);
    })
    .unwrap();
}

#[test]
fn nothing_passes_a_partition_and_time_goes_on() {
    let mut net = talkers(1, Conditions::stream(SECOND / 2));
    net.run_for(10 * SECOND, |_| {});
    let before = heard(&net).len();
    net.partition(&[0], &[1]);
    net.run_for(10 * SECOND, |_| {});
    assert_eq!(heard(&net).len(), before);
    net.heal();
    assert!(net.run_until(10 * SECOND, |net| heard(net).len() > before));
    assert!(net.now() > 20 * SECOND);
}
