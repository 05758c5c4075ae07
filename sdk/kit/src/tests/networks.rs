//! How far nodes are from each other, what is lost between them, and nodes that are gone.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;
use wormholes_plugin::{ErrorCode, Principal};

use super::{MANIFEST, NODE, Talker, Two};
use crate::{Counts, Drive, World};

const LATE: &str = "Expired: the plugin did not answer in time";
const ASKED: &str = "asked later by node";

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

/// Asks what is answered later, by who has patience.
fn ask_later(two: &mut Two) {
    let question = json!({ "body": "later", "patience": 600 });
    two.tell(0, "ask", question).unwrap();
    two.pass(1);
}

/// Has the node end and start, as an operator does or by a crash.
fn end(two: &mut Two, crashes: bool) {
    if crashes {
        two.world.crash_before_commit(0);
        let crashed = two.tell(0, "well", json!({})).unwrap_err();
        assert_eq!(crashed.code, ErrorCode::Unavailable);
    } else {
        two.world.at(0).restart();
    }
}

#[test]
fn who_starts_again_has_its_old_questions_canceled_and_keeps_its_new_ones() {
    for crashes in [false, true] {
        let mut two = Two::new(1, "");
        ask_later(&mut two);
        ask_later(&mut two);
        end(&mut two, crashes);
        two.pass(1);
        let before = [ASKED, ASKED, "canceled", "canceled"];
        assert_eq!(two.heard(1), before);
        // There is room for as many as `limits.requests` again.
        ask_later(&mut two);
        ask_later(&mut two);
        two.pass(60);
        assert_eq!(two.heard(1)[4..], [ASKED, ASKED]);
        assert_eq!(
            two.heard(0),
            ["started"],
            "who asked before is told nothing"
        );
    }
}

#[test]
fn who_is_gone_has_its_questions_canceled_when_that_is_noticed() {
    let mut two = Two::new(1, "");
    ask_later(&mut two);
    two.world.at(0).stop();
    two.pass(14);
    assert_eq!(two.heard(1), [ASKED]);
    two.pass(2);
    assert_eq!(two.heard(1), [ASKED, "canceled"]);
    // Who is back before is noticed at once, and its new questions outlive the silence of before.
    two.world.at(0).start_again();
    ask_later(&mut two);
    two.world.at(0).stop();
    two.pass(5);
    assert_eq!(two.heard(1)[2..], [ASKED]);
    two.world.at(0).start_again();
    two.pass(1);
    assert_eq!(two.heard(1)[3..], ["canceled"]);
    ask_later(&mut two);
    two.pass(60);
    assert_eq!(two.heard(1)[4..], [ASKED]);
}

/// What left a node goes on, and is canceled where it comes when its node is known to have ended.
#[test]
fn a_question_that_comes_after_the_end_of_its_node_is_canceled() {
    for stops in [false, true] {
        let mut two = Two::new(1, "");
        let time = Duration::from_secs(60);
        two.world.latency(time, time);
        ask_later(&mut two);
        match stops {
            true => two.world.at(0).stop(),
            false => two.world.at(0).restart(),
        }
        two.pass(28);
        assert_eq!(two.heard(1), [] as [&str; 0]);
        two.pass(2);
        assert_eq!(two.heard(1), [ASKED, "canceled"]);
    }
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

/// Those that no handler decided on, too.
#[test]
fn refusals_are_counted_among_the_answers() {
    let mut two = Two::new(1, "");
    let answers = |two: &mut Two| {
        let counts = two.world.at(1).counts();
        (counts.answers, counts.answer_bytes)
    };
    two.tell(0, "ask", json!({ "user": "nobody" })).unwrap();
    two.pass(1);
    assert_eq!(answers(&mut two), (1, 0));

    ask_later(&mut two);
    ask_later(&mut two);
    assert_eq!(answers(&mut two), (1, 0));
    let ann = Principal::User("ann".into());
    two.world.at(0).add_user("ann");
    let one_more = json!({ "node": two.ids[1], "body": "hello" });
    two.world.at(0).request(&ann, "ask", one_more).unwrap();
    two.pass(1);
    assert_eq!(answers(&mut two), (2, 0));

    // What the trunk's break tells has not travelled.
    let other = MANIFEST.replace("'talk'", "'other'");
    two.world.at(1).update(&other);
    two.pass(1);
    assert_eq!(answers(&mut two), (2, 0));
    two.tell(0, "ask", json!({ "body": "hello" })).unwrap();
    two.pass(1);
    assert_eq!(answers(&mut two), (3, 0));

    let cannot_be_migrated = format!("{MANIFEST}[state]\nschema = 1\n");
    two.world.at(1).update(&cannot_be_migrated);
    assert!(two.world.at(1).parked(&NODE).is_some());
    two.tell(0, "ask", json!({ "body": "hello" })).unwrap();
    two.pass(1);
    assert_eq!(answers(&mut two), (4, 0));

    let heard = two.heard(0);
    let refusals = [&heard[0], &heard[3], &heard[4]].map(|told| told.split(':').nth(1));
    let refusals = refusals.map(Option::unwrap_or_default);
    let why = [
        " there is no such user",
        " the plugin does not speak this protocol",
        " the plugin is parked",
    ];
    assert_eq!(refusals, why);
    let heard = two.world.at(0).query(&ann, "heard", json!({})).unwrap();
    let many = "Unavailable: the plugin has too many requests without an answer; ask again later";
    assert_eq!(heard, json!([many]));
}
