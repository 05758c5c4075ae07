//! What plugins have to do with scripts: hooks that they ask, facts that they publish, and bills.

use std::{sync::Arc, time::SystemTime};

use serde_json::json;
use wormholes_rules::{
    Answer, Asked, LoadEnv, NodeView, Policy, Question, Recording, RelayRequest, ScriptSource,
    Verdict, VerdictDecision, check_asked_hook, check_fact,
};

use crate::common::{env, id, load, node, policy, world};

const WRITE: &str = r#"
    fn dht_write(w) {
        if w.size > 1000 { return deny("too large"); }
        if "tags" in w && w.tags.contains("spam") { return deny("spam"); }
        if peer(w.from) == () { return pass(); }
        if w.size == 13 { return allow().bill(peer(w.from)); }
        if w.size == 14 { return w.none; }
        allow().bytes(w.size).idle("1m")
    }
"#;

fn asked(record: serde_json::Value) -> Asked {
    Asked {
        plugin: "dht".to_owned(),
        name: "dht_write".to_owned(),
        record: record.as_object().unwrap().clone(),
        now: SystemTime::UNIX_EPOCH,
    }
}

fn ask(policy: &Policy, record: serde_json::Value) -> VerdictDecision {
    policy.asked(&asked(record), &world())
}

fn denied(decision: VerdictDecision) -> String {
    match decision.verdict {
        Some(Verdict::Deny(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_plugin_is_answered_by_the_function_that_it_names() {
    let policy = policy(WRITE);
    let bob = id("bob").to_string();
    let allowed = ask(&policy, json!({ "from": bob, "size": 10 })).verdict;
    let Some(Verdict::Allow(limits)) = allowed else {
        panic!("{allowed:?}");
    };
    assert_eq!(limits.max_bytes, Some(10));
    let stranger = ask(&policy, json!({ "from": "nobody", "size": 1 }));
    assert_eq!(stranger.verdict, None);
    let tags = json!({ "from": bob, "size": 1, "tags": ["a", "spam"] });
    assert_eq!(denied(ask(&policy, tags)), "spam");
    let bill = denied(ask(&policy, json!({ "from": bob, "size": 13 })));
    assert!(bill.contains("nothing is carried here"), "{bill}");
    let failed = ask(&policy, json!({ "from": bob, "size": 14 }));
    assert!(failed.trace.error.is_some());
    assert!(denied(failed).contains("test.rhai:7: "));
    let none = load(&[("other.rhai", "fn accept(p) { allow() }")]);
    assert_eq!(ask(&none, json!({})).verdict, None);
}

#[test]
fn a_question_of_a_plugin_is_replayed() {
    let policy = policy(WRITE);
    let record = json!({ "from": id("bob").to_string(), "size": 10 });
    let mut decision = ask(&policy, record.clone());
    let recording = Recording {
        question: Question::Asked(Box::new(asked(record))),
        reads: *decision.trace.reads.take().unwrap(),
        answer: Answer::Verdict(decision.verdict),
        rule: decision.trace.rule,
    };
    let text = serde_json::to_string(&recording).unwrap();
    let recording: Recording = serde_json::from_str(&text).unwrap();
    assert_eq!(recording.question.about(), "dht asks dht_write");
    let same = policy.replay(&recording, &Arc::default()).unwrap();
    assert_eq!(same.answer, recording.answer);
    let stricter = self::policy(&WRITE.replace("> 1000", "> 9"));
    let other = stricter.replay(&recording, &Arc::default()).unwrap();
    let deny = Verdict::Deny("too large".to_owned());
    assert_eq!(other.answer, Answer::Verdict(Some(deny)));
}

#[test]
fn a_function_that_no_plugin_can_ask_is_refused_by_line() {
    let env = LoadEnv {
        asked_hooks: ["dht_write".to_owned()].into(),
        ..env()
    };
    let faults = |text: &str| {
        let source = ScriptSource {
            name: "test.rhai".to_owned(),
            text: text.to_owned(),
        };
        match Policy::load(&[source], &env) {
            Ok(_) => Vec::new(),
            Err(faults) => faults.iter().map(ToString::to_string).collect(),
        }
    };
    assert!(faults(WRITE).is_empty());
    let two = faults("\nfn dht_write(a, b) { allow() }");
    assert!(two[0].contains("test.rhai:2"), "{two:?}");
    assert!(two[0].contains("takes 1 argument"), "{two:?}");
    let misspelt = faults("\n\nfn dht_wirte(w) { allow() }");
    assert!(misspelt[0].contains("test.rhai:3"), "{misspelt:?}");
    assert!(misspelt[0].contains("`dht_write`"), "{misspelt:?}");
    let helper = "fn dht_writ(w) { w.size > 3 }\nfn dht_write(w) { if dht_writ(w) { deny() } else { pass() } }";
    assert!(faults(helper).is_empty(), "it is called");
}

#[test]
fn names_that_scripts_cannot_use_are_refused() {
    for name in ["credit", "dht_score", "x2"] {
        assert_eq!(check_fact(name), Ok(()));
    }
    for (name, why) in [
        ("trust", "every node has"),
        ("price", "is not in this build"),
        ("Credit", "a small letter"),
        ("", "a small letter"),
        ("while", "a word of the language"),
    ] {
        let said = check_fact(name).unwrap_err();
        assert!(said.contains(why), "{name}: {said}");
    }
    assert_eq!(check_asked_hook("dht_write"), Ok(()));
    for (name, why) in [
        ("route", "the node asks itself"),
        ("resolve", "the node asks itself"),
        ("allow", "is the host's"),
        ("dht-write", "a small letter"),
        ("fn", "a word of the language"),
    ] {
        let said = check_asked_hook(name).unwrap_err();
        assert!(said.contains(why), "{name}: {said}");
    }
}

#[test]
fn relays_and_exits_bill_peers_and_nobody_else() {
    let text = r#"
        fn relay(q) { allow().bytes(5).bill(q.from) }
        fn exit(x) { allow().bill(x.from) }
    "#;
    let billing = policy(text);
    let told = billing.warnings().first().map(ToString::to_string);
    assert!(told.unwrap().contains("grant `usage`"));
    let request = RelayRequest {
        from: node("bob", 2),
        to: node("carol", 2),
        bytes_today: 0,
        now: SystemTime::UNIX_EPOCH,
    };
    let Some(Verdict::Allow(limits)) = billing.relay(&request, &world()).verdict else {
        panic!("it allows");
    };
    assert_eq!((limits.bill, limits.max_bytes), (Some(id("bob")), Some(5)));
    let onion = wormholes_rules::ExitRequest {
        from: None::<Arc<NodeView>>,
        host: "x.example".to_owned(),
        network: Some("tcp"),
        ip: "203.0.113.9".parse().unwrap(),
        port: Some(443),
        bytes_today: 0,
        now: SystemTime::UNIX_EPOCH,
    };
    let why = denied(billing.exit(&onion, &world()));
    assert!(why.contains("is nobody"), "{why}");
    let heard = LoadEnv {
        is_billed: true,
        ..env()
    };
    let source = ScriptSource {
        name: "test.rhai".to_owned(),
        text: text.to_owned(),
    };
    let heard = Policy::load(&[source], &heard).unwrap();
    assert!(heard.warnings().is_empty());
}
