//! Scripts loaded and asked from outside, as the daemon does it.

use std::time::{Duration, SystemTime};

use wormholes_rules::{
    Allowance, ExitRequest, Jitter, Outcome, Plan, Policy, RelayRequest, RuleEvent, ScriptSource,
    SetRegistry, Sni, Stick, Tunnel, Verdict,
};

use crate::common::{conn, env, id, load, node, policy, route, world};

fn plan_of(script: &str, host: &str) -> Plan {
    let outcome = route(script, host).outcome;
    let Outcome::Plan(plan) = outcome else {
        panic!("{outcome:?}");
    };
    plan
}

fn why_blocked(script: &str) -> String {
    let plan = plan_of(script, "x.example");
    let Tunnel::Block { why } = plan.steps[0].tunnels[0].clone() else {
        panic!("{plan:?}");
    };
    why
}

#[test]
fn a_script_of_ten_lines_decides_by_name() {
    let script = r#"
const OPEN = [80, 443];
fn route(c) {
    if c.host.ends_with(".wh") {
        if c.node == () { return block("unknown peer"); }
        return c.node.best().closed();
    }
    if !global::OPEN.contains(c.port) || !OPEN.contains(c.port) { return block("port"); }
    direct()
        .timeout("3s")
        .or(onion(3).jitter("exp 30ms"))
}"#;
    let decision = route(script, "x.example");
    let rule = decision.trace.rule.unwrap();
    assert_eq!((rule.script.as_str(), rule.line), ("test.rhai", 9));
    let because = decision.trace.because;
    assert!(
        because.contains(&("c.host".into(), "x.example".into())),
        "{because:?}"
    );
    assert!(
        because.contains(&("c.port".into(), "443".into())),
        "{because:?}"
    );
    let plan = plan_of(script, "x.example");
    assert_eq!(plan.steps.len(), 2);
    assert_eq!(plan.steps[0].marks.timeout, Some(Duration::from_secs(3)));
    let mean = Duration::from_millis(30);
    assert_eq!(plan.steps[1].marks.jitter, Some(Jitter::Exp { mean }));
    assert_eq!(plan_of(script, "web.bob.wh").steps.len(), 2);
    assert_eq!(
        plan_of(script, "web.nobody.wh"),
        Plan::block("unknown peer")
    );
}

#[test]
fn the_first_script_that_does_not_pass_answers() {
    let first = "fn route(c) { if c.port == 22 { direct() } else { pass() } }";
    let second = "fn route(c) { if c.host == \"a.example\" { onion(2) } else { pass() } }";
    let policy = load(&[("one.rhai", first), ("two.rhai", second)]);
    let ask = |host: &str| policy.route(&conn(host).into(), &world(), SystemTime::UNIX_EPOCH);
    assert_eq!(ask("a.example").trace.rule.unwrap().script, "two.rhai");
    let passed = ask("b.example");
    assert_eq!((passed.outcome, passed.trace.rule), (Outcome::Pass, None));
    assert_eq!(passed.trace.because.len(), 2, "{:?}", passed.trace.because);
}

#[test]
fn an_error_blocks_and_says_where() {
    for (script, expected) in [
        (
            "fn route(c) {\n let a = [1];\n a[c.port];\n direct() }",
            "test.rhai:3: ",
        ),
        ("\nfn route(c) { 7 }", "test.rhai:2: route() returned i64"),
        ("fn route(c) { plan() }", "no step"),
        ("fn route(c) { relay(\"r1\") }", "returned Peer, not a plan"),
        ("fn route(c) { throw \"mine\" }", "mine"),
        ("fn route(c) { let n = 9; onion(n) }", "1 to 8 hops"),
        ("fn route(c) { direct().exit() }", "exit() needs the peer"),
        (
            "fn route(c) { relay(peer(\"r1\")) }",
            "relay() needs the peer",
        ),
        (
            "fn route(c) { let t = \"soon\"; direct().timeout(t) }",
            "number",
        ),
        (
            "fn route(c) { let whom = \"mars\"; onion(3, #{ from: whom }) }",
            "\"friends\"",
        ),
        ("fn route(c) { c.host.nothing }", "nothing"),
        (
            "fn route(c) { let to = \"example:1080\"; socks(to) }",
            "address",
        ),
        (
            "fn route(c) { set(c.host).has(c.host); direct() }",
            "no set is called",
        ),
    ] {
        let why = why_blocked(script);
        assert!(why.contains(expected), "{script}: {why}");
    }
}

#[test]
fn a_closed_plan_holds_nothing_weaker_than_its_first_tunnel() {
    let check = |plan: &str, expected: Option<&str>| {
        let script = format!("fn route(c) {{ let p = peer(\"bob\"); {plan} }}");
        let decision = route(&script, "x.example");
        let error = decision.trace.error;
        match expected {
            None => assert_eq!(error, None, "{plan}"),
            Some(text) => assert!(error.as_ref().unwrap().contains(text), "{plan}: {error:?}"),
        }
    };
    check("onion(3).or(direct())", None);
    check("onion(3).or(direct()).closed()", Some("weaker"));
    check("onion(3).closed().or(direct())", Some("weaker"));
    check("onion(3).or(onion(4)).closed()", None);
    check("onion(3).or(onion(1)).closed()", Some("of fewer hops"));
    check(
        "onion(3, #{ from: \"friends\" }).or(onion(3)).closed()",
        Some("leaves the friends"),
    );
    check(
        "p.direct().or(p.relayed()).or(onion(2).to(p)).closed()",
        None,
    );
    check("p.relayed().or(p.direct()).closed()", Some("weaker"));
    // What it is to become shows the peer this node's address.
    check("p.relayed().or(p.punch()).closed()", Some("weaker"));
    check("p.punch().or(p.relayed()).or(onion(3)).closed()", None);
    check("p.direct().race(p.punch()).closed()", None);
    check(
        "p.relayed().or(socks(\"127.0.0.1:1080\")).closed()",
        Some("weaker"),
    );
    check("relay(\"r1\").to(p).or(onion(1)).closed()", None);
    check("p.direct().race(p.relayed())", None);
    check("p.direct().race(p.relayed()).closed()", Some("one kind"));
    check("p.direct().race(direct()).closed()", None);
    check("onion(3).or(block(\"no\")).closed()", None);
    check(
        "direct().race(p.relayed().timeout(\"3s\"))",
        Some("limits follow race()"),
    );
    check(
        "plan().step(p.direct()).step(p.relayed(\"r1\").bw(\"1MB/s\")).closed()",
        None,
    );
}

#[test]
fn a_plan_sticks_as_a_whole() {
    let script = |plan: &str| format!("fn route(c) {{ let p = peer(\"bob\"); {plan} }}");
    let check = |plan: &str, seconds: u64, back_after: u32| {
        let stick = Stick {
            time: Duration::from_secs(seconds),
            back_after,
        };
        let plan = plan_of(&script(plan), "x.example");
        assert_eq!(plan.stick, Some(stick), "{plan:?}");
    };
    check("p.best().or(onion(3)).stick(\"10m\").back_after(2)", 600, 2);
    check("onion(3).stick(60).closed()", 60, 1);
    check("p.direct().or(onion(3).stick(\"1m\").back_after(3))", 60, 3);
    check("p.direct().stick(\"1h\").or(onion(3).stick(\"1m\"))", 60, 1);
    let refused = |plan: &str, expected: &str| {
        let why = why_blocked(&script(plan));
        assert!(why.contains(expected), "{plan}: {why}");
    };
    refused("p.direct().back_after(2)", "add .stick");
    refused("p.direct().race(direct().stick(9))", "limits follow race()");
    let text =
        plan_of(&script("onion(3).or(onion(2)).stick(9)"), "x.example").text(&|_| String::new());
    assert_eq!(
        text,
        "onion(3), else onion(2); sticks for 9000 ms, back after 1"
    );
}

#[test]
fn what_follows_best_holds_for_all_its_ways() {
    let plan = plan_of(
        "fn route(c) { onion(2).or(peer(\"bob\").best().exit().bw(1000)).timeout(\"3s\") }",
        "x.example",
    );
    let exits = |tunnel: &Tunnel| match tunnel {
        Tunnel::Direct { exit, .. } | Tunnel::Relay { exit, .. } | Tunnel::Punch { exit, .. } => {
            *exit
        }
        Tunnel::Onion { .. }
        | Tunnel::Tor
        | Tunnel::I2p { .. }
        | Tunnel::Socks { .. }
        | Tunnel::Block { .. } => false,
    };
    let ways: Vec<_> = plan
        .steps
        .iter()
        .map(|step| {
            let marks = &step.marks;
            let exits = step.tunnels.iter().all(exits);
            (exits, marks.bandwidth_bytes_per_s, marks.timeout)
        })
        .collect();
    let best = (true, Some(1000), Some(Duration::from_secs(3)));
    assert_eq!(ways, [(false, None, None), best, best]);
}

#[test]
fn an_aim_that_could_mean_several_tunnels_is_refused() {
    let check = |plan: &str, expected: &str| {
        let script = "let p = peer(\"bob\"); let q = peer(\"carol\"); let r = peer(\"r2\");";
        let why = why_blocked(&format!("fn route(c) {{ {script} {plan} }}"));
        assert!(why.contains(expected), "{plan}: {why}");
    };
    check("p.direct().or(p.relayed()).exit()", "exit() follows one");
    check("plan().step(onion(3)).step(onion(2)).to(p)", "to() follows");
    check("onion(3).or(p.best()).via(r)", "via() follows one");
    check("p.best().to(q)", "ends at a peer already");
    check("p.relayed(\"r1\").via(r)", "has one already");
    check("p.best().race(q.direct())", "best() may be several");
    // Here it is one.
    check("q.best().race(p.direct())", "best() may be several");
    check("p.direct().race(q.best())", "best() may be several");
    check("plan().exit()", "add .step(…) first");
}

#[test]
fn what_is_done_with_nothing_is_told_in_plain_words() {
    let check = |plan: &str, expected: &str| {
        let why = why_blocked(&format!("fn route(c) {{ let p = c.node; {plan} }}"));
        assert!(why.contains(expected), "{plan}: {why}");
        assert!(why.contains("ask `== ()` first"), "{plan}: {why}");
    };
    check("p.direct()", "`direct` was given ()");
    check("direct().to(p)", "`to` was given ()");
    check("p.relayed(\"r1\")", "`relayed` was given ()");
    check("if p.trust > 1 { direct() }", "`trust` was asked of ()");
    check("c.port + c.user", "`+` was given ()");
}

#[test]
fn need_ip_carries_its_plan() {
    let script = "fn route(c) { if c.ip == () { return need(\"ip\", onion(3)); } direct() }";
    let decision = route(script, "x.example");
    assert!(matches!(decision.outcome, Outcome::NeedIp(_)));
    let mut with_ip = conn("x.example");
    with_ip.ip = Some([192, 0, 2, 1].into());
    let decision = policy(script).route(&with_ip.into(), &world(), SystemTime::UNIX_EPOCH);
    assert!(matches!(decision.outcome, Outcome::Plan(_)));
}

#[test]
fn a_name_in_tls_is_asked_for_where_a_script_reads_it() {
    let script = "fn route(c) {
        if c.port != 443 { return block(\"port\"); }
        try { if c.sni == \"x.example\" { return direct(); } } catch { return direct(); }
        onion(3)
    }";
    let ask = |port, sni| {
        let mut conn = conn("192.0.2.1");
        (conn.port, conn.sni) = (port, sni);
        policy(script).route(&conn.into(), &world(), SystemTime::UNIX_EPOCH)
    };
    let unread = ask(443, Sni::Unread);
    assert_eq!(unread.outcome, Outcome::NeedSni);
    assert_eq!(unread.trace.rule, None, "no rule has answered");
    assert_eq!(unread.trace.error, None);
    let elsewhere = ask(80, Sni::Unread);
    assert!(matches!(elsewhere.outcome, Outcome::Plan(_)), "not read");
    let tunnel = |name: Option<&str>| {
        let decision = ask(443, Sni::Read(name.map(str::to_owned)));
        let Outcome::Plan(plan) = decision.outcome else {
            panic!("{:?}", decision.outcome);
        };
        plan.steps[0].tunnels[0].kind().as_str()
    };
    assert_eq!(tunnel(Some("x.example")), "direct");
    assert_eq!(tunnel(Some("y.example")), "onion");
    assert_eq!(tunnel(None), "onion");
}

#[test]
fn a_thousand_rules_are_as_many_sets_and_one_question() {
    const RULES: usize = 1000;
    let mut env = env();
    let mut sets = SetRegistry::default();
    let names: Vec<_> = (0..RULES).map(|rule| format!("rule-{rule:03}")).collect();
    for (rule, name) in names.iter().enumerate() {
        let entries = format!("site-{rule}.example\nshared.example\n");
        sets.load(name, "rules.txt", &entries).unwrap();
    }
    env.surroundings.sets = sets.into();
    let script = r#"
        fn route(c) {
            let rule = first_set(c.host);
            if rule == () { return pass(); }
            if rule < "rule-500" { direct().label(rule) } else { onion(3).label(rule) }
        }"#;
    let source = ScriptSource {
        name: "thousand.rhai".to_owned(),
        text: script.to_owned(),
    };
    let policy = Policy::load(&[source], &env).unwrap();
    let decide = |host: &str| policy.route(&conn(host).into(), &world(), SystemTime::UNIX_EPOCH);
    for (rule, name) in names.iter().enumerate() {
        let Outcome::Plan(plan) = decide(&format!("www.site-{rule}.example")).outcome else {
            panic!("{name} takes its site");
        };
        let step = &plan.steps[0];
        assert_eq!(step.marks.label.as_ref(), Some(name));
        let is_direct = matches!(step.tunnels[0], Tunnel::Direct { .. });
        assert_eq!(is_direct, rule < 500, "{name}");
    }
    let shared = decide("shared.example").trace.because;
    let first = (
        "first_set(\"shared.example\")".to_owned(),
        "rule-000".to_owned(),
    );
    assert!(shared.contains(&first), "{shared:?}");
    assert_eq!(decide("elsewhere.example").outcome, Outcome::Pass);
}

#[test]
fn a_name_is_on_the_lan_when_all_its_addresses_are() {
    let policy = policy("fn route(c) { if c.is_lan { direct() } else { block(\"far\") } }");
    let check = |ips: &[&str], near: bool| {
        let mut conn = conn("x.example");
        conn.ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        conn.ip = conn.ips.first().copied();
        let decision = policy.route(&conn.into(), &world(), SystemTime::UNIX_EPOCH);
        let Outcome::Plan(plan) = decision.outcome else {
            panic!("{:?}", decision.outcome);
        };
        let tunnel = &plan.steps[0].tunnels[0];
        let is_direct = matches!(tunnel, Tunnel::Direct { .. });
        assert_eq!(is_direct, near, "{ips:?}");
    };
    check(&["fd12::1", "192.168.1.1"], true);
    check(&["10.0.0.1"], true);
    check(&["fd12::1", "1.1.1.1"], false);
    check(&["2a00::1", "192.168.1.1"], false);
    check(&[], false);
}

#[test]
fn marks_that_a_tunnel_cannot_keep_block_the_flow() {
    let check = |plan: &str, expected: &str| {
        let why = why_blocked(&format!("fn route(c) {{ let p = peer(\"bob\"); {plan} }}"));
        assert!(why.contains(expected), "{plan}: {why}");
    };
    check("direct().pad(512)", "direct() cannot pad");
    check("p.direct().exit().pad(512)", "direct() cannot pad");
    check("onion(3).race(direct()).pad(512)", "direct() cannot pad");
    check(
        "onion(3).pad(512).or(socks(\"127.0.0.1:9\").pad(512))",
        "socks() cannot pad",
    );
    check(
        "socks(\"127.0.0.1:9\").isolate(c.user)",
        "socks() cannot isolate",
    );
    let plan = plan_of(
        "fn route(c) { onion(3).pad(512).isolate(1).or(direct()) }",
        "x.example",
    );
    assert_eq!(plan.steps[0].marks.pad_bytes, Some(512));
}

#[test]
fn limits_of_accept_that_a_helper_adds_deny() {
    let policy = policy("fn slow(v) { v.bw(1000) }\nfn accept(p) { slow(allow()) }");
    let verdict = policy.accept(&node("bob", 2), &world(), SystemTime::UNIX_EPOCH);
    let Some(Verdict::Deny(why)) = verdict.verdict else {
        panic!("{verdict:?}");
    };
    assert!(why.contains("takes no limits"), "{why}");
}

#[test]
fn a_verdict_that_is_none_denies_and_names_the_hook() {
    let policy = policy("const A = 1;\n\nfn accept(p) { A }");
    let verdict = policy.accept(&node("bob", 2), &world(), SystemTime::UNIX_EPOCH);
    let Some(Verdict::Deny(why)) = verdict.verdict else {
        panic!("{verdict:?}");
    };
    assert!(why.starts_with("test.rhai:3: accept() returned"), "{why}");
    assert_eq!(verdict.trace.rule.unwrap().line, 3);
}

/// What is said of bob is not said of whoever comes through an onion whose last hop but one he is.
#[test]
fn an_onions_asker_is_nobody() {
    let mut bob = (*node("bob", 2)).clone();
    bob.facts.extend([("credit".to_owned(), 5)]);
    let request = |from| ExitRequest {
        network: Some("tcp"),
        from,
        host: "x.example".into(),
        ip: [192, 0, 2, 1].into(),
        port: Some(443),
        bytes_today: 0,
        now: SystemTime::UNIX_EPOCH,
    };
    let bob = request(Some(bob.into()));
    let nobody = request(None);
    for of_bob in [
        r#"x.from.name == "bob""#,
        r#"x.from == peer("bob")"#,
        r#"peer("bob") == x.from"#,
        "x.from.id != ()",
        "x.from.trust >= 1",
        "x.from.credit > 0",
        "x.from.online",
        "x.from.rtt != ()",
        "x.from.has_address",
        "!x.from.relays.is_empty()",
        r#"x.from.to_string() == "bob""#,
    ] {
        let script =
            format!("fn exit(x) {{ if {of_bob} {{ allow() }} else {{ deny(\"not bob\") }} }}");
        let policy = policy(&script);
        let verdict = |request| policy.exit(request, &world()).verdict;
        assert!(matches!(verdict(&bob), Some(Verdict::Allow(_))), "{of_bob}");
        assert_eq!(
            verdict(&nobody),
            Some(Verdict::Deny("not bob".into())),
            "{of_bob}"
        );
    }
    let script = "fn exit(x) { if x.from == x.from { allow() } else { deny(\"nobody\") } }";
    let denied = policy(script).exit(&nobody, &world()).verdict;
    assert_eq!(
        denied,
        Some(Verdict::Deny("nobody".into())),
        "two of them may be two"
    );
}

#[test]
fn verdicts_carry_limits() {
    let policy = policy(
        r#"
fn accept(p) { if p.trust >= 2 { allow() } else { deny("no friend") } }
fn relay(q) {
    if q.from.credit <= 0 { return deny("no credit"); }
    allow().bytes(min(q.from.credit * 1000000, 500000000)).for_time("30m")
}
fn exit(x) {
    if !rate("x:" + x.from.id, 2, "1m") { return deny("slow down"); }
    allow().bw("1MB/s").idle("2m")
}"#,
    );
    let (now, world) = (SystemTime::UNIX_EPOCH, world());
    let bob = node("bob", 2);
    let allowed = policy.accept(&bob, &world, now).verdict;
    assert_eq!(allowed, Some(Verdict::Allow(Allowance::default())));
    let denied = policy.accept(&node("eve", 0), &world, now).verdict;
    assert_eq!(denied, Some(Verdict::Deny("no friend".into())));
    let request = |credit| {
        let mut from = (*bob).clone();
        from.facts.extend([("credit".to_owned(), credit)]);
        RelayRequest {
            from: from.into(),
            to: node("carol", 2),
            bytes_today: 0,
            now,
        }
    };
    let denied = policy.relay(&request(0), &world).verdict;
    assert_eq!(denied, Some(Verdict::Deny("no credit".into())));
    let Some(Verdict::Allow(allowed)) = policy.relay(&request(3), &world).verdict else {
        panic!("credit is there");
    };
    assert_eq!(allowed.max_bytes, Some(3_000_000));
    let exit = ExitRequest {
        network: Some("tcp"),
        from: Some(bob),
        host: "x.example".into(),
        ip: [192, 0, 2, 1].into(),
        port: Some(443),
        bytes_today: 0,
        now,
    };
    let verdicts: Vec<_> = (0..3).map(|_| policy.exit(&exit, &world).verdict).collect();
    let Some(Verdict::Allow(allowed)) = &verdicts[0] else {
        panic!("the first is allowed");
    };
    assert_eq!(allowed.idle, Some(Duration::from_secs(120)));
    assert_eq!(verdicts[2], Some(Verdict::Deny("slow down".into())));
}

#[test]
fn nodes_are_found_by_name_id_and_link_and_compared() {
    let script = format!(
        r#"fn route(c) {{
    let b = peer("bob");
    if b != peer("{}") || b != peer("web.bob.wh") || peer("nobody") != () || b == peer("r1") {{
        return block("lookup");
    }}
    let up = relays(|r| r.up && r.name != c.host);
    up.sort(|a, b| a.rtt < b.rtt);
    if up.len != 2 || up[0].name != "r2" {{ return block("relays"); }}
    b.relayed(up[0]).label(`via ${{up[0].name}}`)
}}"#,
        id("bob")
    );
    let plan = plan_of(&script, "x.example");
    let (via, to) = (Some(id("r2")), id("bob"));
    assert_eq!(
        plan.steps[0].tunnels,
        [Tunnel::Relay {
            via,
            to,
            exit: false
        }]
    );
    assert_eq!(plan.steps[0].marks.label.as_deref(), Some("via r2"));
}

#[test]
fn scripts_remember_log_and_tag() {
    let policy = policy(
        r#"
fn init(r) { kv_set("seen", 0); }
fn route(c) {
    let n = kv_get("seen") + 1;
    kv_set("seen", n, "10m");
    log("info", "flow " + n);
    tag("count", n);
    direct()
}
fn on_event(e) { if e.kind == "peer-down" { notify("warn", e.peer.name + ": " + e.reason); } }"#,
    );
    let (now, world) = (SystemTime::UNIX_EPOCH, world());
    assert_eq!(policy.init(&world, now).error, None);
    policy.route(&conn("a.example").into(), &world, now);
    let trace = policy.route(&conn("a.example").into(), &world, now).trace;
    assert_eq!(trace.tags, [("count".to_owned(), "2".to_owned())]);
    assert_eq!(trace.log[0].text, "flow 2");
    let event = RuleEvent {
        kind: "peer-down".into(),
        peer: Some(node("bob", 2)),
        reason: "gone".into(),
    };
    let trace = policy.on_event(&event, &world, now);
    assert_eq!(trace.notifications[0].text, "bob: gone");
}

#[test]
fn costly_fields_are_looked_up_only_when_named() {
    let needs = policy("fn route(c) { if c.uid == 0 { block() } else { direct() } }").needs();
    assert!(needs.uid && !needs.app);
    let needs = policy("fn route(c) { let f = relays(|r| r.name == c.app); direct() }").needs();
    assert!(needs.app && !needs.uid);
}
