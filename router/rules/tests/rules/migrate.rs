//! Whether flows that live go over to a direct tunnel, as scripts say it.

use std::{sync::Arc, time::SystemTime};

use wormholes_rules::{Migrate, NodeView, Outcome, Plan, Tunnel, World};

use crate::common::{conn, node, policy, relay, route};

fn plan_of(plan: &str) -> Plan {
    let script = format!("fn route(c) {{ let p = peer(\"bob\"); {plan} }}");
    let outcome = route(&script, "x.example").outcome;
    let Outcome::Plan(plan) = outcome else {
        panic!("{outcome:?}");
    };
    plan
}

fn check(plan: &str, expected: Option<Migrate>) {
    assert_eq!(plan_of(plan).migrate, expected, "{plan}");
}

fn refused(plan: &str, expected: &str) {
    let plan = plan_of(plan);
    let [Tunnel::Block { why }] = &plan.steps[0].tunnels[..] else {
        panic!("{plan:?}");
    };
    assert!(why.contains(expected), "{why}");
}

#[test]
fn a_plan_says_whether_its_flows_go_over() {
    let (streams, nothing) = (Some(Migrate::Streams), Some(Migrate::Nothing));
    check("p.best()", None);
    check("p.best().migrate(\"none\")", nothing);
    check("p.relayed(\"r1\").migrate(\"streams\")", streams);
    let closed = "p.direct().or(p.relayed().migrate(\"streams\")).closed()";
    check(closed, streams);
    let last = "p.best().migrate(\"streams\").or(onion(3).migrate(\"none\"))";
    check(last, nothing);
    check("p.relayed().migrate(\"none\").closed()", nothing);
    let text = plan_of("p.relayed().migrate(\"streams\")").text(&|_| "bob".to_owned());
    assert_eq!(text, "relay to bob; migrates streams");
}

#[test]
fn a_plan_says_nothing_that_it_cannot_keep() {
    let closed = "p.relayed().migrate(\"streams\").closed()";
    refused(closed, "which is weaker");
    let racer = "p.direct().race(p.relayed().migrate(\"none\"))";
    refused(racer, "limits follow race()");
    let other = "let what = \"all\"; p.relayed().migrate(what)";
    refused(other, "migrate() takes");
}

/// What it makes depends on the ways that there are; what it wants does not.
#[test]
fn best_would_rather_be_direct_though_no_direct_way_is_known() {
    let wants = |has_address: bool, script: &str| {
        let bob = Arc::new(NodeView {
            has_address,
            online: false,
            ..(*node("bob", 2)).clone()
        });
        let world = Arc::new(World::new(vec![bob, relay("r1", 30.0)]));
        let policy = policy(&format!("fn route(c) {{ peer(\"bob\"){script} }}"));
        let flow = conn("x.example").into();
        let outcome = policy.route(&flow, &world, SystemTime::UNIX_EPOCH).outcome;
        let Outcome::Plan(plan) = outcome else {
            panic!("{outcome:?}");
        };
        let wants = plan.steps.iter().map(|step| step.marks.rather_direct);
        wants.collect::<Vec<_>>()
    };
    assert_eq!(wants(false, ".best()"), [true]);
    assert_eq!(wants(true, ".best()"), [false, false], "one of them is");
    assert_eq!(wants(false, ".relayed(\"r1\")"), [false]);
    let closed = ".best().migrate(\"streams\").closed()";
    assert_eq!(wants(false, closed), [true], "it is no block");
}
