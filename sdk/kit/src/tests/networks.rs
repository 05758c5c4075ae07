//! How far nodes are from each other, what is lost between them, and nodes that are gone.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;
use wormholes_plugin::ErrorCode;

use super::{MANIFEST, NODE, Talker, Two};
use crate::{Counts, Drive, World};

const LATE: &str = "Expired: the plugin did not answer in time";

#[test]
fn a_pair_of_nodes_has_its_round_trip() {
    let time = Duration::from_millis(200);
    for by_function in [false, true] {
        let mut two = Two::new(1, "");
        match by_function {
            false => two.world.latency(time, time),
            true => two.world.links(move |_, _| time),
        }
        two.tell(0, "ask", json!({ "body": "hello" })).unwrap();
        two.world.pass(Duration::from_millis(199));
        assert_eq!(two.heard(0), [] as [&str; 0]);
        two.world.pass(Duration::from_millis(1));
        assert_eq!(two.heard(0), ["answer hello"]);
    }
}

#[test]
fn what_is_lost_without_a_word_ends_with_the_patience() {
    let mut two = Two::new(1, "");
    two.world.lossy(100);
    two.tell(0, "ask", json!({ "body": "hello" })).unwrap();
    two.tell(0, "post", json!({ "body": "hello" })).unwrap();
    two.say(0, "kept");
    two.pass(9);
    assert_eq!(two.heard(1), ["kept from node"]);
    let mut heard = two.heard(0);
    heard.sort();
    assert_eq!(heard, [LATE, "delivered"]);
    two.world.lossy(0);
    two.tell(0, "ask", json!({ "body": "hello" })).unwrap();
    two.pass(1);
    assert_eq!(two.heard(0)[2..], ["answer hello"]);
}

#[test]
fn who_is_gone_is_noticed_by_silence() {
    let mut two = Two::new(1, "");
    let patient = |body: &str| json!({ "body": body, "patience": 60 });
    two.tell(0, "ask", patient("later")).unwrap();
    two.pass(1);
    two.world.at(1).stop();
    two.tell(0, "ask", json!({ "body": "hello" })).unwrap();
    two.say(0, "kept");
    two.pass(14);
    assert_eq!(two.heard(0), [LATE]);
    two.tell(0, "ask", patient("hello")).unwrap();
    two.pass(14);
    let broke = "Unavailable: the trunk to the other node broke";
    assert_eq!(two.heard(0), [LATE, broke]);
    two.pass(2);
    let away = "Unavailable: the node cannot be reached";
    assert_eq!(two.heard(0), [LATE, broke, away]);

    let refused = two.tell(1, "well", json!({})).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unavailable);
    let refused = two.world.at(1).query(&NODE, "heard", json!({}));
    assert_eq!(refused.unwrap_err().code, ErrorCode::Unavailable);
    assert!(!two.world.at(1).runs() && two.world.at(0).runs());
    two.world.at(1).start_again();
    two.pass(5);
    let heard = ["asked later by node", "started", "kept from node"];
    assert_eq!(two.heard(1), heard);
    assert_eq!(two.heard(0).split_off(3), ["delivered"]);
}

/// What a node asked before it was gone is answered to nobody.
#[test]
fn who_comes_back_hears_of_nothing_from_before() {
    let mut two = Two::new(1, "");
    two.tell(0, "ask", json!({ "body": "hello" })).unwrap();
    two.world.pass(Duration::from_millis(1));
    two.world.at(0).stop();
    two.pass(20);
    assert_eq!(two.heard(1), ["asked hello by node"]);
    two.world.at(0).start_again();
    two.pass(20);
    assert_eq!(two.heard(0), ["started"]);
}

#[test]
fn a_part_of_the_nodes_is_gone_at_once() {
    let mut world = World::<Talker>::new(3, MANIFEST);
    for _ in 1..10 {
        world.add_node();
    }
    let gone: BTreeSet<usize> = world.stop_percent(50).into_iter().collect();
    let running = |world: &mut World<Talker>| -> BTreeSet<usize> {
        (0..10).filter(|number| world.at(*number).runs()).collect()
    };
    let left = running(&mut world);
    assert_eq!((gone.len(), left.len()), (5, 5));
    assert!(gone.is_disjoint(&left));
    let rest: BTreeSet<usize> = world.stop_percent(100).into_iter().collect();
    assert_eq!(rest, left);
    assert_eq!(running(&mut world).len(), 0);
}

#[test]
fn what_is_sent_and_committed_is_counted() {
    let mut two = Two::new(1, "");
    let begun = two.world.counts();
    two.tell(0, "ask", json!({ "body": "later" })).unwrap();
    two.tell(0, "ask", json!({ "body": "hello" })).unwrap();
    two.tell(0, "post", json!({ "body": "one" })).unwrap();
    let here = json!({ "here": true, "body": "me" });
    two.tell(0, "post", here).unwrap();
    two.say(0, "kept");
    two.pass(9);
    let (asker, asked) = (two.world.at(0).counts(), two.world.at(1).counts());
    assert_eq!((asker.asks, asker.ask_bytes), (2, 10));
    assert_eq!((asker.posts, asker.post_bytes), (1, 3));
    assert_eq!((asker.messages, asker.message_bytes), (1, 4));
    assert_eq!((asker.answers, asked.asks, asked.posts), (0, 0, 0));
    // One of them says that it is late.
    assert_eq!((asked.answers, asked.answer_bytes), (2, 5));
    let all = two.world.counts();
    assert_eq!(all, asker + asked);
    assert!(all.since(begun).commits > 0);
    assert_eq!(all.since(all), Counts::default());
}
