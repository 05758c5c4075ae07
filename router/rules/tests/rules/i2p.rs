//! Plans by I2P: what `i2p()` takes, what follows it, and nodes that have no router.

use wormholes_rules::{LACKS_I2P, LoadEnv, Outcome, Plan, Policy, ScriptSource, Tunnel};

use crate::common::{env, load_error, route};

/// What a script that returns `plan` decides about a name of I2P.
fn planned(plan: &str) -> Result<Plan, String> {
    let decision = route(&format!("fn route(c) {{ {plan} }}"), "x.i2p");
    match (decision.outcome, decision.trace.error) {
        (_, Some(error)) => Err(error),
        (Outcome::Plan(plan), None) => Ok(plan),
        (Outcome::NeedIp(_) | Outcome::NeedSni | Outcome::Pass, None) => Err("no plan".to_owned()),
    }
}

fn check(plan: &str, text: &str) {
    let planned = planned(plan).unwrap();
    assert_eq!(planned.text(&|_| String::new()), text, "{plan}");
}

#[test]
fn settings_go_into_the_plan() {
    check("i2p()", "i2p");
    check(
        "i2p(#{ length: 0, quantity: 16 })",
        "i2p, 0 hops, 16 tunnels",
    );
    check("i2p(#{ keep: \"blog\" }).closed()", "i2p as blog (closed)");
    check(
        "i2p(#{ isolate: [c.host, c.user] }).timeout(\"90s\")",
        "i2p, timeout 90000 ms, isolated by x.i2p and ",
    );
    check("i2p().isolate(\"k\")", "i2p, isolated by k");
    let plan = planned("let n = 3; i2p(#{ quantity: n })").unwrap();
    let expected = Tunnel::I2p {
        keep: None,
        length: None,
        quantity: Some(3),
    };
    assert_eq!(plan.steps[0].tunnels, [expected]);
}

#[test]
fn settings_that_can_never_be_meant_are_refused_when_the_script_is_loaded() {
    for (call, column, expected) in [
        ("i2p(#{ length: 8 })", 22, "0 to 7 hops"),
        ("i2p(#{ quantity: 0 })", 22, "1 to 16 tunnels"),
        ("i2p(#{ keep: \"A b\" })", 22, "a-z, 0-9 and '-'"),
        ("i2p(#{ keep: 3 })", 22, "a-z, 0-9 and '-'"),
        (
            "i2p(#{ hops: 3 })",
            22,
            "isolate, keep, length and quantity",
        ),
        ("i2p(#{ keep: \"a\", isolate: c.app })", 19, "not both"),
        ("i2p(3)", 19, "i2p(#{ length: 2 })"),
        ("i2p(1, 2)", 15, "i2p() or i2p(settings)"),
    ] {
        let faults = load_error(&format!("fn route(c) {{ {call} }}"));
        let found = (faults[0].line, faults[0].column);
        assert!(faults[0].message.contains(expected), "{call}: {faults:?}");
        assert_eq!(found, (1, column), "{call}: {faults:?}");
    }
}

#[test]
fn settings_that_cannot_be_meant_of_one_flow_block_it() {
    for (plan, expected) in [
        ("let n = 9; i2p(#{ length: n })", "0 to 7 hops"),
        ("i2p(#{ keep: \"a\" }).isolate(\"k\")", "not both"),
        ("i2p().to(peer(\"bob\"))", "does not end at a peer"),
        ("i2p().via(peer(\"bob\"))", "passes no node"),
        ("i2p().exit()", "has no exit"),
        ("i2p().pad(512)", "cannot pad"),
        ("i2p().carrier(\"tcp\")", "nothing to carry"),
    ] {
        let error = planned(plan).unwrap_err();
        assert!(error.contains(expected), "{plan}: {error}");
    }
}

#[test]
fn nothing_weaker_follows_i2p_in_a_closed_plan() {
    for weaker in [
        "direct()",
        "socks(\"127.0.0.1:1080\")",
        "relay(\"r1\").to(peer(\"bob\"))",
        "onion(8)",
    ] {
        let error = planned(&format!("i2p().or({weaker}).closed()")).unwrap_err();
        assert!(error.contains("weaker"), "{weaker}: {error}");
        planned(&format!("{weaker}.or(i2p()).closed()")).unwrap();
    }
    planned("i2p().or(i2p(#{ keep: \"a\" })).or(block(\"no\")).closed()").unwrap();
}

#[test]
fn nothing_of_fewer_hops_follows_in_a_closed_plan() {
    let i2p = |length: u8| format!("i2p(#{{ length: {length} }})");
    let [none, one, three] = [i2p(0), i2p(1), i2p(3)];
    let [none, one, three] = [none.as_str(), one.as_str(), three.as_str()];
    let unsaid = "i2p()";
    for (first, then, expected) in [
        (
            three,
            none,
            "begins with i2p() may not go on with i2p() of no",
        ),
        (three, one, "with i2p() of fewer hops"),
        (unsaid, none, "of no hops"),
        ("tor()", none, "begins with tor() may not go on with i2p()"),
        ("onion(3)", none, "begins with onion() may not go on with"),
    ] {
        let error = planned(&format!("{first}.or({then}).closed()")).unwrap_err();
        assert!(error.contains(expected), "{first}, {then}: {error}");
        planned(&format!("{first}.or({then})")).unwrap();
        let error = planned(&format!("{first}.or(block(\"no\").or({then})).closed()"));
        assert!(error.unwrap_err().contains("hops"), "{first}, {then}");
    }
    for (first, then) in [
        (none, none),
        (none, unsaid),
        (one, three),
        (three, three),
        (three, unsaid),
        (unsaid, one),
        ("tor()", one),
        ("onion(3)", one),
        ("relay(\"r1\").to(peer(\"bob\"))", none),
    ] {
        planned(&format!("{first}.or({then}).closed()")).unwrap();
    }
    let raced = planned(&format!("{three}.race({none}).closed()")).unwrap_err();
    assert!(raced.contains("of no hops"), "{raced}");
}

#[test]
fn a_node_without_a_router_refuses_a_script_that_names_i2p() {
    let source = ScriptSource {
        name: "s.rhai".to_owned(),
        text: "fn route(c) {\n  if c.port == 80 { i2p() } else { direct() }\n}".to_owned(),
    };
    let sources = [source];
    Policy::load(&sources, &env()).unwrap();
    let lacking = LoadEnv {
        lacking: [LACKS_I2P].into(),
        ..env()
    };
    let faults = Policy::load(&sources, &lacking).unwrap_err();
    let [fault] = faults.as_slice() else {
        panic!("{faults:?}");
    };
    assert_eq!((fault.line, fault.column), (2, 21));
    assert!(fault.message.contains("set `sam` in [i2p]"), "{fault}");
}
