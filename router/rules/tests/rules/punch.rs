//! `punch()`: what it makes, and what it does not take.

use wormholes_rules::{Outcome, Plan, Tunnel};

use crate::common::{id, route};

fn plan_of(script: &str) -> Plan {
    let outcome = route(script, "x.example").outcome;
    let Outcome::Plan(plan) = outcome else {
        panic!("{outcome:?}");
    };
    plan
}

fn why_blocked(script: &str) -> String {
    let plan = plan_of(script);
    let Tunnel::Block { why } = plan.steps[0].tunnels[0].clone() else {
        panic!("{plan:?}");
    };
    why
}

#[test]
fn a_punch_is_a_relayed_tunnel_that_is_to_become_direct() {
    let punch = |made: &str| {
        let plan = format!("fn route(c) {{ let p = peer(\"bob\"); {made} }}");
        let plan = plan_of(&plan);
        let [step] = &plan.steps[..] else {
            panic!("{plan:?}");
        };
        step.tunnels[0].clone()
    };
    let tunnel = |via: Option<&str>, exit| Tunnel::Punch {
        via: via.map(id),
        to: id("bob"),
        exit,
    };
    assert_eq!(punch("p.punch()"), tunnel(None, false));
    assert_eq!(punch("p.punch(#{}).exit()"), tunnel(None, true));
    for made in [
        "p.punch(#{ via: \"r1\" })",
        "p.punch(#{ via: relay(\"r1\") })",
        "p.punch().via(peer(\"r1\"))",
    ] {
        assert_eq!(punch(made), tunnel(Some("r1"), false), "{made}");
    }
    let text = |made: &str| punch(made).text(&|_| "x".to_owned());
    assert_eq!(text("p.punch(#{ via: \"r1\" })"), "punch to x via x");
    let why = |made: &str| why_blocked(&format!("fn route(c) {{ let p = peer(\"bob\"); {made} }}"));
    assert!(why("p.punch().pad(512)").contains("punch() cannot pad"));
    assert!(why("let r = \"r9\"; p.punch(#{ via: r })").contains("no relay is called r9"));
}

/// A flow that finds no connection may be what makes one, by whichever relay it goes.
#[test]
fn the_best_way_through_a_relay_punches() {
    let plan = plan_of("fn route(c) { peer(\"carol\").best().closed() }");
    let punches = |tunnel: &Tunnel| matches!(tunnel, Tunnel::Punch { .. });
    let last = plan.steps.last().unwrap();
    assert!(last.tunnels.iter().all(punches), "{plan:?}");
    let relays = |tunnel: &Tunnel| matches!(tunnel, Tunnel::Relay { .. });
    let mut tunnels = plan.steps.iter().flat_map(|step| &step.tunnels);
    assert!(!tunnels.any(relays), "{plan:?}");
}
