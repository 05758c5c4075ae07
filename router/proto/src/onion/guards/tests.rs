//! Guards through months of comings and goings.

use super::*;
use crate::{
    record::NodeRecord,
    testing::{hop_record, rng},
};

const OWN: NodeId = NodeId::from_bytes([0; 32]);

fn node(number: u8) -> NodeRecord {
    hop_record(number, days(10_000))
}

fn days(n: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(n * DAY.as_secs())
}

fn offer(guards: &mut Guards, records: &[NodeRecord], now: SystemTime, seed: u64) -> bool {
    let candidates: Vec<_> = records
        .iter()
        .map(|record| Candidate { record, trust: 0 })
        .collect();
    guards.handle_candidates(&candidates, OWN, now, &mut rng(seed))
}

fn ids(guards: &Guards) -> Vec<NodeId> {
    guards.guards().iter().map(Guard::id).collect()
}

fn many() -> Vec<NodeRecord> {
    (1..=20).map(node).collect()
}

#[test]
fn three_are_drawn_once_and_stay() {
    let mut guards = Guards::new();
    assert!(offer(&mut guards, &many(), days(0), 1));
    let first = ids(&guards);
    assert_eq!(first.len(), 3);
    for day in 1..60 {
        assert!(!offer(&mut guards, &many(), days(day), day));
        assert_eq!(ids(&guards), first);
    }
    let mut others = Guards::new();
    offer(&mut others, &many(), days(0), 2);
    assert_ne!(ids(&others), first);
}

#[test]
fn each_is_let_go_after_60_to_120_days() {
    let mut ends = std::collections::BTreeSet::new();
    for seed in 0..30 {
        let mut guards = Guards::new();
        offer(&mut guards, &many(), days(5), seed);
        for guard in guards.guards() {
            assert!((days(65)..days(125)).contains(&guard.until()));
            ends.insert(guard.until());
        }
        let before = ids(&guards);
        assert!(offer(&mut guards, &many(), days(126), seed + 100));
        assert_eq!(guards.guards().len(), 3);
        assert_ne!(ids(&guards), before);
    }
    assert!(ends.len() > 80);
}

#[test]
fn one_that_is_away_is_awaited_for_a_week() {
    let mut guards = Guards::new();
    offer(&mut guards, &many(), days(0), 1);
    let first = ids(&guards);
    let without: Vec<_> = many()
        .into_iter()
        .filter(|record| record.id != first[0])
        .collect();
    assert!(
        offer(&mut guards, &without, days(1), 2),
        "noted for the disk"
    );
    assert!(!offer(&mut guards, &without, days(7), 3));
    assert_eq!(ids(&guards), first);
    offer(&mut guards, &many(), days(7), 4);
    offer(&mut guards, &without, days(8), 5);
    assert_eq!(ids(&guards), first, "its week began anew");
    offer(&mut guards, &without, days(15), 6);
    assert_eq!(ids(&guards)[..2], first[1..]);
    assert_eq!(guards.guards().len(), 3);
}

#[test]
fn one_that_failed_stands_back_for_a_minute_and_goes_after_a_week() {
    let mut guards = Guards::new();
    offer(&mut guards, &many(), days(0), 1);
    let [a, b, c] = ids(&guards).try_into().unwrap();
    assert_eq!(guards.first_hops(days(0)), [a, b, c]);
    guards.handle_unreachable(&a, days(0));
    assert_eq!(guards.first_hops(days(0)), [b, c, a]);
    let soon = days(0) + Duration::from_secs(59);
    assert_eq!(guards.first_hops(soon), [b, c, a]);
    assert_eq!(guards.first_hops(soon + Duration::from_secs(1)), [a, b, c]);
    guards.handle_unreachable(&a, days(6));
    guards.handle_reached(&a);
    offer(&mut guards, &many(), days(8), 2);
    assert_eq!(ids(&guards), [a, b, c], "reached in between");
    guards.handle_unreachable(&a, days(8));
    guards.handle_unreachable(&a, days(14));
    offer(&mut guards, &many(), days(15), 3);
    assert_eq!(ids(&guards)[..2], [b, c]);
}

#[test]
fn one_that_refuses_stands_back_for_a_minute_and_stays() {
    let mut guards = Guards::new();
    offer(&mut guards, &many(), days(0), 1);
    let before = ids(&guards);
    for day in 0..30 {
        guards.handle_refused(&before[0], days(day));
        let last = guards.first_hops(days(day)).last().copied();
        assert_eq!(last, Some(before[0]));
        offer(&mut guards, &many(), days(day), 2);
    }
    assert_eq!(guards.first_hops(days(29) + RETRY_AFTER), before);
}

#[test]
fn failures_of_other_nodes_change_nothing() {
    let mut guards = Guards::new();
    offer(&mut guards, &many(), days(0), 1);
    let before = guards.clone();
    for record in many() {
        if !ids(&guards).contains(&record.id) {
            guards.handle_unreachable(&record.id, days(1));
        }
    }
    assert_eq!(guards, before);
}

#[test]
fn guards_are_far_from_each_other_and_never_this_node() {
    for seed in 0..30 {
        let mut records = many();
        for record in &mut records[..15] {
            record.family = Some("one".into());
        }
        records.push(node(0));
        let mut guards = Guards::new();
        offer(&mut guards, &records, days(0), seed);
        let in_family = |id: &NodeId| (1..=15).contains(&id.as_bytes()[0]);
        assert!(ids(&guards).iter().filter(|id| in_family(id)).count() <= 1);
        assert!(!ids(&guards).contains(&OWN));
    }
}

#[test]
fn the_state_survives_the_disk() {
    let mut guards = Guards::new();
    offer(&mut guards, &many(), days(0), 1);
    let text = serde_json::to_string(&guards).unwrap();
    let read: Guards = serde_json::from_str(&text).unwrap();
    assert_eq!(read, guards);
}

#[test]
fn a_state_with_too_many_guards_or_endless_ones_is_mended() {
    let mut guards = Guards::new();
    for seed in 0..3 {
        let mut more = Guards::new();
        offer(&mut more, &many()[seed * 3..seed * 3 + 3], days(0), 1);
        guards.guards.append(&mut more.guards);
    }
    assert_eq!(guards.first_hops(days(0)).len(), 3);
    guards.guards[0].until_seconds = u64::MAX;
    let endless = guards.guards[0].id;
    assert!(offer(&mut guards, &many(), days(0), 2));
    assert_eq!(guards.guards().len(), 3);
    assert!(
        !guards
            .guards()
            .iter()
            .any(|guard| guard.until() > days(120))
    );
    assert_ne!(ids(&guards)[0], endless);
}
