//! Paths over made-up networks, some with too few nodes of a kind.

use std::{
    collections::BTreeSet,
    time::{Duration, UNIX_EPOCH},
};

use super::*;
use crate::testing::{hop_record, rng};

const NOW: SystemTime = UNIX_EPOCH;

fn node(number: u8) -> NodeRecord {
    hop_record(number, NOW + Duration::from_secs(100))
}

fn exit(number: u8, ports: (u16, u16)) -> NodeRecord {
    let mut record = node(number);
    record.roles.exit = true;
    record.exit_ports = vec![ports];
    record
}

fn id(number: u8) -> NodeId {
    NodeId::from_bytes([number; 32])
}

fn request(hops: u8) -> PathRequest {
    PathRequest {
        own: id(0),
        hops,
        via: None,
        to: None,
        friends_only: false,
        last: LastHop::Exit(443),
        suite: Suite::ChaChaPoly,
    }
}

fn candidates(records: &[NodeRecord]) -> Vec<Candidate<'_>> {
    let candidate = |record| Candidate { record, trust: 0 };
    records.iter().map(candidate).collect()
}

fn guards_among(records: &[NodeRecord], seed: u64) -> Guards {
    let mut guards = Guards::new();
    guards.handle_candidates(&candidates(records), id(0), NOW, &mut rng(seed));
    guards
}

/// The numbers of the nodes on a path, with guards drawn from all nodes that do not exit.
fn choose(records: &[NodeRecord], request: &PathRequest, seed: u64) -> Result<Vec<u8>, PathError> {
    let inner: Vec<_> = records
        .iter()
        .filter(|record| !record.roles.exit)
        .cloned()
        .collect();
    let guards = guards_among(&inner, 1);
    let path = choose_path(&candidates(records), request, &guards, NOW, &mut rng(seed))?;
    Ok(path.iter().map(|hop| hop.id.as_bytes()[0]).collect())
}

/// Five hops, and two exits for the web.
fn small_network() -> Vec<NodeRecord> {
    let mut records: Vec<_> = (1..=5).map(node).collect();
    records.extend([exit(6, (1, 1000)), exit(7, (443, 443))]);
    records
}

#[test]
fn paths_of_all_lengths_end_at_an_exit_and_meet_nobody_twice() {
    let records = small_network();
    for hops in 1..=7 {
        for seed in 0..50 {
            let path = choose(&records, &request(hops), seed).unwrap();
            let different: BTreeSet<_> = path.iter().collect();
            assert_eq!(different.len(), usize::from(hops), "{path:?}");
            assert!([6, 7].contains(path.last().unwrap()), "{path:?}");
        }
    }
    let too_long = choose(&records, &request(8), 1);
    assert_eq!(too_long, Err(PathError::TooFewHops(8)));
    for hops in [0, 9] {
        assert_eq!(
            choose(&records, &request(hops), 1),
            Err(PathError::Hops(hops))
        );
    }
}

#[test]
fn every_path_begins_with_the_primary_guard_while_the_rest_varies() {
    let records = small_network();
    let paths: BTreeSet<_> = (0..50)
        .map(|seed| choose(&records, &request(3), seed).unwrap())
        .collect();
    let firsts: BTreeSet<_> = paths.iter().map(|path| path[0]).collect();
    assert_eq!(firsts.len(), 1);
    let middles: BTreeSet<_> = paths.iter().map(|path| path[1]).collect();
    let lasts: BTreeSet<_> = paths.iter().map(|path| path[2]).collect();
    assert!(middles.len() >= 4, "{middles:?}");
    assert_eq!(lasts, BTreeSet::from([6, 7]));
}

#[test]
fn a_spare_guard_steps_in_for_one_that_is_down_or_too_close_to_the_exit() {
    let mut records = small_network();
    let guards = guards_among(&records[..5], 1);
    let order = guards.first_hops(NOW);
    let first = |records: &[NodeRecord], guards: &Guards| {
        let path = choose_path(&candidates(records), &request(3), guards, NOW, &mut rng(2));
        path.unwrap()[0].id
    };
    let mut down = guards.clone();
    down.handle_unreachable(&order[0], NOW);
    assert_eq!(first(&records, &down), order[1]);

    for record in &mut records {
        if record.roles.exit || record.id == order[0] {
            record.family = Some("all one".into());
        }
    }
    assert_eq!(first(&records, &guards), order[1]);
}

/// Nodes 1 and 2 are close; a path over both must not be.
/// Or whoever runs an exit beside a primary guard would send its clients to a spare.
#[test]
fn an_exit_that_is_close_to_the_primary_guard_pushes_nobody_off_it() {
    let inner = [node(1), node(2), node(3), node(4)];
    let guards = guards_among(&inner, 1);
    let primary = guards.guards()[0].id();
    let beside = inner.iter().find(|record| record.id == primary).unwrap();
    let mut close = exit(10, (443, 443));
    close.addresses = beside.addresses.clone();
    let mut records = inner.to_vec();
    records.extend([close, exit(11, (443, 443))]);
    for seed in 0..20 {
        let mut rng = rng(seed);
        let path = choose_path(&candidates(&records), &request(3), &guards, NOW, &mut rng).unwrap();
        assert_eq!((path[0].id, path[2].id), (primary, id(11)));
    }
}

fn check_too_close(change: impl Fn(&mut NodeRecord)) {
    let mut records = vec![node(1), node(2), exit(3, (443, 443))];
    for record in &mut records[..2] {
        change(record);
    }
    assert_eq!(
        choose(&records, &request(3), 1),
        Err(PathError::TooFewHops(3))
    );
    let mut named = request(2);
    (named.via, named.to, named.last) = (Some(id(1)), Some(id(2)), LastHop::Services);
    assert_eq!(choose(&records, &named, 1), Err(PathError::TooFewHops(2)));
    records.push(node(4));
    assert_eq!(
        choose(&records, &request(3), 1).map(|path| path.len()),
        Ok(3)
    );
}

#[test]
fn no_two_hops_share_a_family_or_a_network() {
    check_too_close(|record| record.family = Some("acme".into()));
    check_too_close(|record| {
        let last = record.id.as_bytes()[0];
        record.addresses = vec![SocketAddr::from(([10, 9, last, last], 1))];
    });
    check_too_close(|record| {
        let last = u16::from(record.id.as_bytes()[0]);
        let ip = [0x2001, 0xdb8, last, 0, 0, 0, 0, last];
        record.addresses.push(SocketAddr::from((ip, 1)));
    });
    check_too_close(|record| {
        let last = record.id.as_bytes()[0];
        let ip = if last == 1 {
            "10.9.1.1:1"
        } else {
            "[::ffff:10.9.2.2]:1"
        };
        record.addresses.push(ip.parse().unwrap());
    });
}

#[test]
fn different_networks_of_one_provider_are_far_enough() {
    let mut records = small_network();
    for record in &mut records {
        let number = record.id.as_bytes()[0];
        let ip = [0x2001, 0xd00 + u16::from(number), 0, 0, 0, 0, 0, 1];
        record.addresses = vec![SocketAddr::from((ip, 1))];
    }
    assert!(choose(&records, &request(7), 1).is_ok());
}

#[test]
fn named_ends_are_kept_and_checked() {
    let records = small_network();
    let mut named = request(4);
    (named.via, named.to) = (Some(id(2)), Some(id(7)));
    for seed in 0..20 {
        let path = choose(&records, &named, seed).unwrap();
        assert_eq!((path[0], path[3]), (2, 7));
    }
    named.to = Some(id(3));
    assert_eq!(
        choose(&records, &named, 1),
        Err(PathError::NotAnExit(id(3)))
    );
    named.last = LastHop::Services;
    assert!(choose(&records, &named, 1).is_ok());
    named.to = Some(id(99));
    assert_eq!(choose(&records, &named, 1), Err(PathError::NotAHop(id(99))));
    (named.via, named.to) = (Some(id(0)), None);
    assert_eq!(choose(&records, &named, 1), Err(PathError::NotAHop(id(0))));
}

#[test]
fn one_hop_is_the_named_one_or_a_guard_that_fits() {
    let records = small_network();
    let mut one = request(1);
    one.via = Some(id(7));
    assert_eq!(choose(&records, &one, 1), Ok(vec![7]));
    one.to = Some(id(6));
    assert_eq!(choose(&records, &one, 1), Err(PathError::TooFewHops(1)));
    (one.via, one.to) = (None, Some(id(3)));
    one.last = LastHop::Services;
    assert_eq!(choose(&records, &one, 1), Ok(vec![3]));

    let guards = guards_among(&records[5..6], 1);
    for seed in 0..20 {
        let path = choose_path(
            &candidates(&records),
            &request(1),
            &guards,
            NOW,
            &mut rng(seed),
        );
        assert_eq!(path.unwrap()[0].id, id(6));
    }
    let guards = guards_among(&records[5..7], 1);
    let primary = guards.first_hops(NOW)[0];
    for seed in 0..20 {
        let nodes = candidates(&records);
        let path = choose_path(&nodes, &request(1), &guards, NOW, &mut rng(seed));
        assert_eq!(path.unwrap()[0].id, primary);
    }
}

#[test]
fn what_no_node_does_is_named() {
    let records = small_network();
    let mut ssh = request(3);
    ssh.last = LastHop::Exit(22_222);
    assert_eq!(choose(&records, &ssh, 1), Err(PathError::NoExit));
    ssh.last = LastHop::Resolve;
    assert!(choose(&records, &ssh, 1).is_ok());
    let no_guards = choose_path(
        &candidates(&records),
        &request(3),
        &Guards::new(),
        NOW,
        &mut rng(1),
    );
    assert_eq!(no_guards, Err(PathError::NoGuard));
    assert_eq!(choose(&[], &request(1), 1), Err(PathError::NoExit));
}

#[test]
fn nodes_that_cannot_be_hops_are_left_out() {
    let check = |change: &dyn Fn(&mut NodeRecord)| {
        let mut records = small_network();
        change(&mut records[1]);
        for seed in 0..30 {
            let path = choose(&records, &request(6), seed).unwrap();
            assert!(!path.contains(&2), "{path:?}");
        }
        let mut to = request(3);
        (to.to, to.last) = (Some(id(2)), LastHop::Services);
        assert_eq!(choose(&records, &to, 1), Err(PathError::NotAHop(id(2))));
    };
    check(&|record| record.roles.hop = false);
    check(&|record| record.addresses.clear());
    check(&|record| record.onion_keys.clear());
    check(&|record| {
        for key in &mut record.onion_keys {
            key.expires = NOW;
        }
    });
}

#[test]
fn only_friends_are_taken_when_asked() {
    let records = small_network();
    let mut candidates = candidates(&records);
    for friend in [1, 3, 6] {
        candidates[friend - 1].trust = 2;
    }
    let guards = guards_among(&records, 1);
    let mut friends = request(3);
    friends.friends_only = true;
    for seed in 0..30 {
        let path = choose_path(&candidates, &friends, &guards, NOW, &mut rng(seed)).unwrap();
        let path: BTreeSet<_> = path.iter().map(|hop| hop.id).collect();
        assert_eq!(path, BTreeSet::from([id(1), id(3), id(6)]));
    }
    friends.to = Some(id(7));
    let path = choose_path(&candidates, &friends, &guards, NOW, &mut rng(1)).unwrap();
    assert_eq!(path[2].id, id(7), "who is named needs not be a friend");
}

#[test]
fn the_wanted_suite_is_taken_where_it_is_offered() {
    let mut records = small_network();
    let path = |records: &[NodeRecord]| {
        let guards = guards_among(records, 1);
        choose_path(&candidates(records), &request(7), &guards, NOW, &mut rng(1)).unwrap()
    };
    let suites: BTreeSet<_> = path(&records).iter().map(|hop| hop.key.suite).collect();
    assert_eq!(suites, BTreeSet::from([Suite::ChaChaPoly]));
    records[0].onion_keys.truncate(1);
    let other = path(&records).iter().find(|hop| hop.id == id(1)).copied();
    assert_eq!(other.map(|hop| hop.key.suite), Some(Suite::AesGcm));
}

#[test]
fn a_hopeless_search_over_thousands_of_nodes_ends() {
    let mut records: Vec<_> = (0..4000_u16)
        .map(|number| {
            let mut record = node(1);
            let [a, b] = number.to_be_bytes();
            let mut bytes = [9; 32];
            (bytes[0], bytes[1]) = (a, b);
            record.id = NodeId::from_bytes(bytes);
            // Each is far from half of the others, but only three families exist.
            record.family = Some((number % 3).to_string());
            record.addresses = vec![SocketAddr::from(([b, a, 0, 1], 1))];
            record
        })
        .collect();
    records.push(exit(200, (443, 443)));
    assert_eq!(
        choose(&records, &request(8), 1),
        Err(PathError::TooFewHops(8))
    );
}
