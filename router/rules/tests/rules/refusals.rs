//! What is refused when a script is loaded, each fault at its place.

use wormholes_rules::{LACKS_TOR, LoadEnv, Outcome, Policy, ScriptSource};

use crate::common::{env, load_error, policy, route};

/// The script, the line and the column of its fault, and what the message says.
const REFUSED: &[(&str, usize, usize, &str)] = &[
    (
        "fn route(c) {\n  geo()\n}",
        2,
        3,
        "`geo` is not in this build",
    ),
    (
        "fn route(c) {\n  tor(#{ exit_country: \"de\" })\n}",
        2,
        10,
        "this build has no geoip",
    ),
    (
        "fn route(c) {\n  tor(#{ from: \"any\" })\n}",
        2,
        10,
        "tor() knows the option isolate, not from",
    ),
    (
        "fn route(c) {\n  tor().closed().to(peer(\"bob\"))\n}",
        2,
        18,
        "tor() does not end at a peer",
    ),
    (
        "fn route(c) {\n  tor().exit()\n}",
        2,
        9,
        "tor() has no exit()",
    ),
    (
        "fn route(c) {\n  tor().pad(512)\n}",
        2,
        9,
        "tor() cannot pad",
    ),
    (
        "fn accept(p) {\n  allow().address(\"relay-only\")\n}",
        2,
        11,
        "`address` is not in this build",
    ),
    (
        "fn exit(x) {\n  allow().log(\"none\")\n}",
        2,
        11,
        "no `log` in this build",
    ),
    (
        "fn accept(p) {\n  if p.trust > 1 { return allow(); }\n  allow().bw(\"1kB/s\")\n}",
        3,
        11,
        "accept() takes no limits",
    ),
    (
        "fn route(c) {\n  peer(\"bob\").punch(#{ by: 1 })\n}",
        2,
        24,
        "punch() knows the option via, not by",
    ),
    (
        "fn route(c) {\n  peer(\"bob\").punch(#{ via: 1 })\n}",
        2,
        24,
        "punch() takes a relay, or its name",
    ),
    (
        "fn route(c) {\n  direct().migrate(\"flows\")\n}",
        2,
        20,
        "migrate() takes \"streams\" or \"none\"",
    ),
    (
        "fn route(c) {\n  direct().stick(0)\n}",
        2,
        18,
        "longer than nothing",
    ),
    (
        "fn route(c) {\n  direct().stick(\"1h\").back_after(0)\n}",
        2,
        35,
        "back_after() takes 1 to 100",
    ),
    (
        "fn route(c) {\n  direct().tmeout(3)\n}",
        2,
        12,
        "did you mean `timeout`?",
    ),
    (
        "fn route(c) {\n  if c.alpn == () { direct() }\n}",
        2,
        8,
        "the field `alpn` is not",
    ),
    (
        "fn route(c) {\n  if c.prot == 1 { direct() }\n}",
        2,
        8,
        "did you mean `port`?",
    ),
    (
        "fn accept(p) {\n  let t = p.country; allow()\n}",
        2,
        13,
        "the field `country`",
    ),
    (
        "fn route(c) {\n  need(\"ip\")\n}",
        2,
        3,
        "need() wants the plan",
    ),
    (
        "fn route(c) {\n  need(\"sniff\", direct())\n}",
        2,
        8,
        "need(\"sniff\") is not",
    ),
    (
        "\nfn rout(c) { direct() }",
        2,
        4,
        "did you mean the hook `route`?",
    ),
    (
        "\n fn resolve(q) { pass() }",
        2,
        5,
        "the hook `resolve` is not in this build",
    ),
    ("fn route(c, d) { pass() }", 1, 4, "takes 1 argument, not 2"),
    (
        "fn accept(p) {\n  allow().bill(p)\n}",
        2,
        11,
        "accept() takes no limits",
    ),
    ("fn route(c) {\n  eval(\"1\")\n}", 2, 3, "eval"),
    (
        "fn route(c) {\n  sleep(5)\n}",
        2,
        3,
        "`sleep` is not available",
    ),
    (
        "fn route(c) {\n  c.host.replace(\"a\", \"b\")\n}",
        2,
        10,
        "`replace` is not available",
    ),
    ("fn route(c) {\n  print(1)\n}", 2, 3, "print"),
    (
        "fn route(c) {\n  timestamp()\n}",
        2,
        3,
        "`timestamp` is not available",
    ),
    (
        "fn route(c) {\n  let f = Fn(\"sleep\"); f.call(5)\n}",
        2,
        11,
        "`Fn` is not available",
    ),
    (
        "fn route(c) {\n  let f = |x| x + c.port; direct()\n}",
        2,
        11,
        "a closure that uses",
    ),
    (
        "import \"x\" as y;\nfn route(c) { direct() }",
        1,
        1,
        "import",
    ),
    (
        "let x = 1;\nfn route(c) { direct() }",
        1,
        1,
        "only constants",
    ),
    (
        "fn route(c) {\n  set(\"adz\").has(c.host)\n}",
        2,
        7,
        "did you mean \"ads\"?",
    ),
    (
        "fn route(c) {\n  derect()\n}",
        2,
        3,
        "did you mean `direct`?",
    ),
    (
        "fn route(c) {\n  hots\n}",
        2,
        3,
        "no variable is called `hots`",
    ),
    ("fn route(c) { direct( }", 1, 23, ""),
    (
        "fn relay(q) { pass() }\nfn route(c) { relay(peer(\"r1\")) }",
        2,
        15,
        "hides relay(name)",
    ),
    ("fn timeout(c) { 1 }", 1, 4, "is the host's"),
    ("fn route(c) { exit() }", 1, 15, "exit() follows a plan"),
    // What a call of the host's is given.
    (
        "fn route(c) {\n  onion(3, #{ exit_country: \"de\" })\n}",
        2,
        15,
        "options from and isolate, not exit_country",
    ),
    (
        "fn route(c) {\n  onion(3, #{ isolate: c.app, from: \"enemies\" })\n}",
        2,
        31,
        "\"any\" or \"friends\"",
    ),
    ("fn route(c) { onion(9) }", 1, 21, "1 to 8 hops, not 9"),
    ("fn route(c) { onion(-1) }", 1, 21, "1 to 8 hops, not -1"),
    ("fn route(c) { c.node.onion(0) }", 1, 28, "1 to 8 hops"),
    ("fn route(c) { onion(\"3\") }", 1, 21, "a number of hops"),
    ("fn route(c) { onion() }", 1, 15, "onion(hops) or"),
    (
        "fn route(c) { relays(#{ up: true }); pass() }",
        1,
        22,
        "relays(|r| r.up)",
    ),
    (
        "fn route(c) { exits(#{}); pass() }",
        1,
        15,
        "peers(|p| p.is_exit)",
    ),
    (
        "fn route(c) { log(\"x\"); pass() }",
        1,
        15,
        "log(level, text)",
    ),
    (
        "fn route(c) { notify(\"x\"); pass() }",
        1,
        15,
        "notify(level, text)",
    ),
    (
        "fn route(c) { log(\"fatal\", \"x\"); pass() }",
        1,
        19,
        "debug, info, warn or error",
    ),
    (
        "fn route(c) { direct().timeout() }",
        1,
        24,
        "plan.timeout(time)",
    ),
    (
        "fn route(c) { direct().timeout(\"3\") }",
        1,
        32,
        "250ms, 3s, 10m",
    ),
    ("fn route(c) { direct().bw(\"4MB\") }", 1, 27, "4MB/s"),
    ("fn route(c) { onion(3).pad(0) }", 1, 28, "1 to 16384"),
    (
        "fn route(c) { onion(3).jitter(\"gauss 1s\") }",
        1,
        31,
        "a distribution",
    ),
    ("fn route(c) { socks(\"tor\") }", 1, 21, "127.0.0.1:1080"),
    (
        "fn route(c) { if rate(\"k\", 1, \"1w\") { direct() } else { pass() } }",
        1,
        31,
        "250ms, 3s, 10m",
    ),
    (
        "fn route(c) { quota(\"k\", 1, 9, 0); pass() }",
        1,
        32,
        "longer than nothing",
    ),
    (
        "fn exit(x) { allow().idle(\"-2m\") }",
        1,
        27,
        "begin with a number",
    ),
    (
        "fn route(c) { need(\"ip\", pass()) }",
        1,
        26,
        "answers of their own",
    ),
    (
        "fn route(c) { direct().or(pass()) }",
        1,
        27,
        "answers of their own",
    ),
    ("fn route(c) { pass().closed() }", 1, 15, "takes no methods"),
    (
        "fn best_of(a, b) { a }\nfn route(c) { best_of(c.node); pass() }",
        2,
        15,
        "takes 2 arguments, not 1",
    ),
    (
        "fn exit(x) { allow().log(\"counts\") }",
        1,
        22,
        "write log(\"info\", text)",
    ),
    (
        "fn on_event(e) { if e.kind == \"path-down\" { log(\"info\", \"down\"); } }",
        1,
        31,
        "there are peer-up and peer-down",
    ),
    ("fn on_event(e) { e.label }", 1, 20, "no field `label`"),
    ("fn init(r) { r.kind }", 1, 16, "no field `kind`"),
    ("fn x() { this.y }", 1, 10, "`this` is not available"),
];

#[test]
fn what_is_not_built_is_refused_by_name_line_and_column() {
    for &(script, line, column, expected) in REFUSED {
        let faults = load_error(script);
        let fault = &faults[0];
        assert!(fault.message.contains(expected), "{script}: {faults:?}");
        let place = (fault.line, fault.column);
        assert_eq!(place, (line, column), "{script}: {faults:?}");
    }
}

#[test]
fn all_faults_are_told_at_once_and_unknown_peers_are_warnings() {
    let faults = load_error("fn route(c) { if c.port == 1 { geo() } else { asn() } }");
    assert_eq!(faults.len(), 2, "{faults:?}");
    let faults = load_error("fn route(c) { log(\"x\"); onion(3, #{ asn: 1, carrier: \"tcp\" }) }");
    assert_eq!(faults.len(), 3, "{faults:?}");
    let listed = policy("fn route(c) { first_set(c.host, [\"nope\"]); pass() }");
    assert_eq!(listed.warnings().len(), 1);
    let policy = policy("fn route(c) { peer(\"bobb\").best() }");
    let warning = policy.warnings()[0].to_string();
    assert_eq!(
        warning,
        "test.rhai:1:20: no peer is known as \"bobb\"; did you mean \"bob\"?"
    );
}

#[test]
fn names_that_are_keys_of_the_scripts_own_maps_are_not_taken_for_fields() {
    let script = "fn route(c) { let o = #{ country: 1, net: 2 }; o.net = 3; if o.country == 1 { direct() } else { pass() } }";
    assert!(matches!(
        route(script, "a.example").outcome,
        Outcome::Plan(_)
    ));
}

#[test]
fn a_tunnel_that_the_node_lacks_is_refused_by_name_and_line() {
    let script = "fn route(c) {\n  if c.port == 25 { return block(\"mail\"); }\n  tor()\n}";
    let source = ScriptSource {
        name: "test.rhai".to_owned(),
        text: script.to_owned(),
    };
    let lacking = LoadEnv {
        lacking: [LACKS_TOR].into(),
        ..env()
    };
    let faults = Policy::load(std::slice::from_ref(&source), &lacking).unwrap_err();
    let [fault] = faults.as_slice() else {
        panic!("{faults:?}");
    };
    let expected = "test.rhai:3:3: tor() needs Tor, which is off here";
    assert!(fault.to_string().starts_with(expected), "{fault}");
    assert!(Policy::load(&[source], &env()).is_ok(), "who has it may");
}

#[test]
fn tor_is_as_strong_as_i2p_and_stronger_than_an_onion() {
    let refused = |plan: &str| {
        let decision = route(&format!("fn route(c) {{ {plan} }}"), "a.example");
        decision.trace.error
    };
    assert_eq!(refused("tor().or(block(\"no\")).closed()"), None);
    assert_eq!(refused("onion(3).or(tor()).closed()"), None);
    assert_eq!(refused("tor().or(i2p()).closed()"), None);
    assert_eq!(refused("i2p().or(tor()).closed()"), None);
    assert_eq!(
        refused("tor(#{ isolate: [c.app, c.user] }).timeout(\"90s\")"),
        None
    );
    let weaker = refused("tor().or(onion(3)).closed()").unwrap();
    assert!(weaker.contains("onion, which is weaker"), "{weaker}");
    let aimed = refused("let plan = tor(); plan.to(peer(\"bob\"))").unwrap();
    assert!(aimed.contains("tor() does not end at a peer"), "{aimed}");
}
