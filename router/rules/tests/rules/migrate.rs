//! Whether flows that live go over to a direct tunnel, as scripts say it.

use wormholes_rules::{Migrate, Outcome, Plan, Tunnel};

use crate::common::route;

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
