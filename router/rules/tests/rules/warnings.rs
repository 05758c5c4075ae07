//! What is odd in a script and yet no fault: told with its line and what to do about it.

use wormholes_rules::{LoadEnv, Policy};

use crate::common::{load, policy};

/// The warnings of a body of `route`, which begins on line 2: `line: message` each.
fn warnings(body: &str) -> Vec<String> {
    let policy = policy(&format!("fn route(c) {{\n{body}\n}}"));
    let warnings = policy.warnings().iter();
    warnings
        .map(|warning| format!("{}: {}", warning.line, warning.message))
        .collect()
}

/// There is one warning, on this line and with these words.
fn one(body: &str, line: usize, words: &str) {
    let found = warnings(body);
    let [warning] = found.as_slice() else {
        panic!("{body}: {found:#?}");
    };
    assert!(
        warning.starts_with(&format!("{line}: ")),
        "{body}: {warning}"
    );
    assert!(warning.contains(words), "{body}: {warning}");
}

fn none(body: &str) {
    assert_eq!(warnings(body), Vec::<String>::new(), "{body}");
}

#[test]
fn what_stands_behind_an_end_is_told() {
    let words = "nothing reaches this: line 2 always ends before it";
    one("return direct();\npass()", 3, words);
    one(
        "if c.port == 80 { return direct(); } else { return block(); }\npass()",
        3,
        words,
    );
    one(
        "if c.port == 80 {\nreturn block();\ntag(\"a\", 1);\n}\npass()",
        4,
        "line 3 always",
    );
    one(
        "for p in peers() {\nbreak;\ntag(\"a\", p);\n}\npass()",
        4,
        "line 3 always",
    );
    none("if c.port == 80 { return direct(); }\npass()");
    none("if c.port == 80 { return direct(); } else if c.port == 81 { return block(); }\npass()");
    none("return pass();");
}

#[test]
fn a_rule_behind_a_wider_one_is_told() {
    let behind = |first: &str, second: &str| {
        format!("if {first} {{ return direct(); }}\nif {second} {{ return block(); }}\npass()")
    };
    let hidden = |first: &str, second: &str| {
        one(
            &behind(first, second),
            3,
            "nothing reaches this rule: line 2 takes all",
        );
        one(
            &format!(
                "if {first} {{ tag(\"a\", 1); }}\nelse if {second} {{ tag(\"a\", 2); }}\npass()"
            ),
            3,
            "nothing reaches this rule: line 2 takes all",
        );
    };
    let seen = |first: &str, second: &str| none(&behind(first, second));
    hidden("c.port == 80", "c.port == 80");
    hidden("c.port == 80", "c.port == 80 && c.is_lan");
    hidden("c.port == 80 || c.is_lan", "c.is_lan");
    hidden(
        "c.port == 80 || c.is_lan",
        "c.user == \"a\" && (c.is_lan || c.port == 80)",
    );
    hidden(
        "set(\"ads\").has(c.host)",
        "set(\"ads\").has(c.host) && c.port > 1",
    );
    hidden(
        "c.host.ends_with(\".example\")",
        "c.host.ends_with(\".a.example\")",
    );
    hidden("c.host.ends_with(\".example\")", "c.host == \"x.example\"");
    hidden("peer(\"bob\") == ()", "peer(\"bob\") == () && c.port == 1");
    seen("c.port == 80", "c.port == 81");
    seen("c.port == 80 && c.is_lan", "c.port == 80");
    seen("c.is_lan", "c.port == 80 || c.is_lan");
    seen(
        "c.host.ends_with(\".a.example\")",
        "c.host.ends_with(\".example\")",
    );
    seen(
        "c.host.ends_with(\".example\")",
        "c.domain.ends_with(\".a.example\")",
    );
    seen("c.host.starts_with(\"a\")", "c.host.ends_with(\"a\")");
    // What may answer otherwise the second time.
    seen("rate(\"k\", 1, \"1m\")", "rate(\"k\", 1, \"1m\")");
    seen("kv_get(\"k\") == 1", "kv_get(\"k\") == 1");
    hidden("c.host.split(\".\").len() == 9 || c.is_lan", "c.is_lan");
    // The first does not end the decision.
    none("if c.is_lan { tag(\"lan\", 1); }\nif c.is_lan { return direct(); }\npass()");
}

#[test]
fn a_rule_behind_one_over_what_changed_since_is_reached() {
    none(
        "let n = 1;\nif n == 1 { return direct(); }\nn = 1;\nif n == 1 { return block(); }\npass()",
    );
    none(
        "let p = c.node;\nif p == () { return pass(); }\nlet p = peer(\"bob\");\nif p == () { return pass(); }\np.best()",
    );
    none(
        "let l = [];\nif l.contains(c.host) { return block(); }\nl.push(c.domain);\nif l.contains(c.host) { return direct(); }\npass()",
    );
    none(
        "let m = #{ a: [] };\nif m.a == [] { return block(); }\nm.a.push(1);\nif m.a == [] { return direct(); }\npass()",
    );
    none(
        "let l = [];\nif l == [] { return block(); }\npush(l, 1);\nif l == [] { return direct(); }\npass()",
    );
    none(
        "let n = 0;\nif n == 1 { return block(); }\nlet m = [1].map(|x| { n += x; n });\nif n == 1 { return direct(); }\npass()",
    );
}

#[test]
fn an_open_plan_for_a_name_that_must_not_leave_is_told() {
    let words = "an open plan for names that must not leave in clear";
    let rule =
        |condition: &str, plan: &str| format!("if {condition} {{\nreturn {plan};\n}}\npass()");
    let open = |condition: &str, plan: &str| one(&rule(condition, plan), 3, words);
    let good = |condition: &str, plan: &str| none(&rule(condition, plan));
    open("c.host.ends_with(\".wh\")", "c.node.best()");
    open("c.host.ends_with(\".onion\")", "onion(3).timeout(\"9s\")");
    open(
        "c.host.ends_with(\".i2p\") && c.port == 80",
        "socks(\"127.0.0.1:4447\")",
    );
    open(
        "c.host.ends_with(\".wh\") || c.is_lan",
        "direct().or(onion(3))",
    );
    open("c.host == \"printer.local\"", "direct()");
    open("c.host.ends_with(\"blog.onion\")", "tor()");
    open("c.host.ends_with(\".wh\")", "relay(\"r1\").to(c.node)");
    open("c.host.ends_with(\".wh\")", "peers()[0].best()");
    good("c.host.ends_with(\".wh\")", "c.node.best().closed()");
    good("c.host.ends_with(\".onion\")", "block(\"no way\")");
    good("c.host.ends_with(\".onion\")", "pass()");
    good("c.host.ends_with(\".example\")", "direct()");
    good("!c.host.ends_with(\".wh\")", "direct()");
    // One closed part closes the whole.
    good(
        "c.host.ends_with(\".wh\")",
        "direct().or(onion(3).closed())",
    );
    good("c.host.ends_with(\".wh\")", "need(\"ip\", onion(3))");
}

const LEAK: &str = "an open plan for names that must not leave in clear";

#[test]
fn an_open_plan_is_told_in_whatever_branch_it_is() {
    let leaks = |body: &str, line: usize| one(body, line, LEAK);
    leaks(
        "if c.host.ends_with(\".wh\") {\nc.node.best()\n} else { pass() }",
        3,
    );
    leaks(
        "if c.port == 1 { pass() }\nelse if c.host.ends_with(\".onion\") {\nonion(3)\n} else { pass() }",
        4,
    );
    leaks(
        "if c.port == 1 { pass() } else {\nif c.host == \"x.i2p\" {\ni2p() } else { pass() } }",
        4,
    );
    leaks(
        "if !c.host.ends_with(\".onion\") { pass() } else {\ntor()\n}",
        3,
    );
    leaks("if c.host != \"x.onion\" { return pass(); }\ntor()", 3);
    leaks(
        "{\n{ if c.host.ends_with(\".wh\") {\nc.node.best() } else { pass() } } }",
        4,
    );
    leaks(
        "return if c.host.ends_with(\".wh\") {\nc.node.best()\n} else { pass() };",
        3,
    );
    leaks(
        "if c.host.ends_with(\".wh\") {\nfor p in peers() {\nif p.up { return p.best(); }\n} }\npass()",
        4,
    );
    none(
        "if c.port == 1 { onion(3) } else if c.host.ends_with(\".onion\") { tor().closed() } else { direct() }",
    );
    none("if c.host.ends_with(\".onion\") { block(\"no\") } else { direct() }");
    none("if !c.host.ends_with(\".onion\") { direct() } else { tor().closed() }");
    none("if !c.host.ends_with(\".onion\") { return direct(); }\ntor().closed()");
    none("(if c.host.ends_with(\".wh\") { c.node.best() } else { onion(3) }).closed()");
}

#[test]
fn an_open_plan_is_told_in_the_arm_of_a_switch() {
    let leaks = |body: &str, line: usize| one(body, line, LEAK);
    leaks(
        "switch c.host {\n\"x.onion\" => onion(3),\n_ => pass()\n}",
        3,
    );
    leaks(
        "switch c.host {\n\"a.example\" => direct(),\n\"b.example\" | \"x.wh\" => { tag(\"a\", 1); c.node.best() }\n_ => pass()\n}",
        4,
    );
    leaks(
        "switch c.port {\n80 if c.host.ends_with(\".onion\") => tor(),\n_ => pass()\n}",
        3,
    );
    leaks(
        "let p = switch c.host {\n`x.onion` => onion(3),\n_ => pass()\n};\np",
        3,
    );
    none("switch c.host { \"x.onion\" => tor().closed(), \"y.example\" => direct(), _ => pass() }");
    none("switch c.host { \"x.onion\" => block(\"no\"), _ => direct() }");
    // Text that is no case.
    none("switch c.host { \"y.example\" => direct().label(\"x.onion\"), _ => pass() }");
}

#[test]
fn an_open_plan_is_told_that_a_variable_holds() {
    let leaks = |body: &str, line: usize| one(body, line, LEAK);
    leaks(
        "if c.host.ends_with(\".onion\") {\nlet p = onion(3);\np } else { pass() }",
        3,
    );
    leaks(
        "let p = onion(3);\nif c.host.ends_with(\".onion\") {\nreturn p; }\np",
        4,
    );
    leaks(
        "let p = pass();\nif c.host.ends_with(\".onion\") {\np = onion(3); }\np",
        4,
    );
    leaks(
        "let p = if c.host == \"x.onion\" {\nonion(3) } else { pass() };\np.timeout(\"9s\")",
        3,
    );
    leaks(
        "let p = block();\nif c.host.ends_with(\".wh\") { for q in peers() { if q.up {\np = q.best(); break; } } }\np",
        4,
    );
    none("if c.host.ends_with(\".onion\") { let p = onion(3); return p.closed(); }\npass()");
    none("let p = onion(3);\nif c.host.ends_with(\".onion\") { p = p.closed(); }\np");
    none("let p = pass();\nif c.host == \"x.onion\" { p = onion(3); return p.closed(); }\np");
    none("let p = onion(3);\nif c.host.ends_with(\".onion\") { let p = p.closed(); return p; }\np");
    none(
        "let way = c.node.best();\nif c.host.ends_with(\".wh\") { way = way.or(onion(3)); }\nway.closed()",
    );
    none(
        "let last = onion(3).closed();\nif c.host.ends_with(\".wh\") { return c.node.best().or(last); }\npass()",
    );
}

#[test]
fn an_open_plan_is_told_that_a_function_of_the_script_makes() {
    let with = |body: &str| {
        let script = format!(
            "fn hidden() {{ onion(3) }}\nfn ever(n) {{ if n > 9 {{ direct() }} else {{ ever(n + 1) }} }}\n\
             fn route(c) {{ {body} }}"
        );
        let policy = policy(&script);
        let warnings = policy.warnings().iter();
        warnings.map(|warning| warning.line).collect::<Vec<_>>()
    };
    let special = "c.host.ends_with(\".onion\")";
    let one = [1];
    assert_eq!(
        with(&format!("if {special} {{ hidden() }} else {{ pass() }}")),
        one
    );
    assert_eq!(
        with(&format!("if {special} {{ return ever(0); }} pass()")),
        [2]
    );
    let none = Vec::<usize>::new();
    assert_eq!(
        with(&format!(
            "if {special} {{ return hidden().closed(); }} pass()"
        )),
        none
    );
    assert_eq!(
        with(&format!("if {special} {{ return block(); }} hidden()")),
        none
    );
}

#[test]
fn a_label_or_set_that_is_called_like_such_a_name_is_none() {
    let leaks = |body: &str, line: usize| one(body, line, LEAK);
    let rule = |condition: &str| format!("if {condition} {{\nreturn direct();\n}}\npass()");
    none(&rule("c.label == \"internal\""));
    none(&rule("\"internal\" == c.user"));
    none(&rule("c.entrance == \"onion\" || c.service == \"local\""));
    none(&rule("(c.user ?? \"\") == \"bob.internal\""));
    none(&rule("c.user.ends_with(\".local\")"));
    none(&rule("!(c.plugin != \"i2p\")"));
    none(&rule("first_set(c.host) == \"onion\""));
    none("if c.label != \"onion\" { return pass(); }\nonion(3)");
    none("switch c.label { \"onion\" => onion(3), \"i2p\" => i2p(), _ => direct() }");
    none("switch c.label { \"x.onion\" => onion(3), _ => direct() }");
    none("switch first_set(c.host) { \"onion\" => onion(3), _ => direct() }");
    none("let way = c.label;\nswitch way { \"onion\" => onion(3), _ => direct() }");
    for host in [
        "c.host == \"internal\"",
        "\"x.local\" == c.sni",
        "(c.sni ?? c.host) == \"internal\"",
        "c.domain == \"x.onion\"",
        "c.domain.ends_with(\".i2p\")",
        "c.host.split(\".\")[-1] == \"onion\"",
        "c.host.to_lower() == \"x.onion\"",
        "!(c.host != \"x.onion\")",
    ] {
        leaks(&rule(host), 3);
    }
    // What a variable holds is not known: a dot speaks for a name.
    leaks(
        "let name = c.host;\nif name == \"x.onion\" {\nreturn onion(3); }\npass()",
        4,
    );
    leaks(
        "let name = c.host;\nswitch name {\n\"x.onion\" => onion(3),\n_ => pass() }",
        4,
    );
    leaks(
        "switch c.host.split(\".\").pop() {\n\"onion\" => onion(3),\n_ => pass()\n}",
        3,
    );
}

/// The lines with warnings of a script.
fn lines(script: &str) -> Vec<usize> {
    let policy = policy(script);
    let warnings = policy.warnings().iter();
    warnings.map(|warning| warning.line).collect()
}

#[test]
fn an_open_plan_is_told_that_goes_through_a_function_of_the_script() {
    let with = |answer: &str| {
        lines(&format!(
            "fn slow(p) {{ p.timeout(\"20s\") }}\nfn shut(p) {{ p.closed() }}\nfn other(n, p) {{ if n > 1 {{ slow(p) }} else {{ tag(\"n\", n); p }} }}\n\
             fn route(c) {{\nif c.host.ends_with(\".onion\") {{\n{answer} }}\npass() }}"
        ))
    };
    let none = Vec::<usize>::new();
    assert_eq!(with("return slow(onion(3));"), [6]);
    assert_eq!(with("let p = onion(3);\nreturn other(1, p);"), [6]);
    // What it answered before, to others, is no answer.
    assert_eq!(
        with(
            "if c.port == 1 { return slow(block()); }\nif c.port == 2 { return slow(tor()); }\nreturn slow(onion(3));"
        ),
        [7, 8]
    );
    assert_eq!(with("return slow(onion(3).closed());"), none);
    assert_eq!(with("return slow(onion(3)).closed();"), none);
    assert_eq!(with("return shut(onion(3));"), none);
    // The function itself asks for the name.
    let asks = |plan: &str| {
        lines(&format!(
            "fn pick(host, p) {{\nif host.ends_with(\".onion\") {{\nreturn p; }}\npass() }}\n\
             fn route(c) {{ pick(c.host, {plan}) }}"
        ))
    };
    assert_eq!(asks("onion(3)"), [3]);
    assert_eq!(asks("onion(3).closed()"), none);
}

#[test]
fn functions_are_followed_within_a_bound() {
    let with = |calls: usize| {
        let calls = "again(p); ".repeat(calls);
        lines(&format!(
            "fn again(p) {{ {calls} }}\nfn hidden() {{ onion(3) }}\n\
             fn route(c) {{ again(onion(3)); if c.host.ends_with(\".wh\") {{ return hidden(); }} pass() }}"
        ))
    };
    assert_eq!(with(2), [2]);
    assert_eq!(with(80), Vec::<usize>::new());
}

#[test]
fn what_a_function_answers_is_not_kept_where_it_is_known_in_part() {
    let with = |functions: &str, first: &str, then: &str| {
        lines(&format!(
            "fn route(c) {{ if c.host.ends_with(\".wh\") {{ if c.port == 1 {{ return {first}; }} return {then}; }} pass() }}\n\
             {functions}"
        ))
    };
    // From the first it is too deep to be seen.
    let deep =
        "fn one() { two() }\nfn two() { three() }\nfn three() { four() }\nfn four() {\nonion(3) }";
    assert_eq!(with(deep, "one()", "three()"), [6]);
    let ring = "fn ping(n) { if n > 9 { return pong(n); }\nonion(3) }\nfn pong(n) { ping(n + 1) }";
    assert_eq!(with(ring, "ping(0).closed()", "pong(0)"), [3]);
}

#[test]
fn a_hook_behind_one_that_always_answers_is_told() {
    let warnings = |first: &str| {
        let policy = load(&[
            ("first.rhai", first),
            ("second.rhai", "\nfn route(c) { pass() }"),
        ]);
        policy
            .warnings()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let [warning] = &warnings("fn route(c) { direct() }")[..] else {
        panic!("one warning");
    };
    assert!(
        warning.starts_with("second.rhai:2: nothing asks this `route`"),
        "{warning}"
    );
    assert!(
        warning.contains("first.rhai, before it, never passes"),
        "{warning}"
    );
    assert!(warnings("fn route(c) { if c.is_lan { direct() } else { pass() } }").is_empty());
    assert!(warnings("fn exit(x) { allow() }").is_empty());
}

#[test]
fn the_shipped_scripts_are_not_warned_of() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.ends_with(".rhai") || name.ends_with(".test.rhai") {
            continue;
        }
        let source =
            wormholes_rules::ScriptSource::of_file(&path, std::fs::read_to_string(&path).unwrap());
        let mut env = LoadEnv::default();
        let mut sets = wormholes_rules::SetRegistry::default();
        for set in wormholes_rules::named_sets(&source) {
            sets.load(&set, "", "").unwrap();
        }
        env.surroundings.sets = sets.into();
        let policy = Policy::load(&[source], &env).unwrap();
        assert!(
            policy.warnings().is_empty(),
            "{name}: {:?}",
            policy.warnings()
        );
    }
}
