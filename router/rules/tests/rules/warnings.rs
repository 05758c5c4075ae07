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
    none(
        "let n = 1;\nif n == 1 { return direct(); }\nn = 1;\nif n == 1 { return block(); }\npass()",
    );
    none(
        "let p = c.node;\nif p == () { return pass(); }\nlet p = peer(\"bob\");\nif p == () { return pass(); }\np.best()",
    );
    // The first does not end the decision.
    none("if c.is_lan { tag(\"lan\", 1); }\nif c.is_lan { return direct(); }\npass()");
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
        "direct().or(onion(3).closed())",
    );
    open("c.host == \"printer.local\"", "direct()");
    good("c.host.ends_with(\".wh\")", "c.node.best().closed()");
    good("c.host.ends_with(\".onion\")", "block(\"no way\")");
    good("c.host.ends_with(\".onion\")", "pass()");
    good("c.host.ends_with(\".example\")", "direct()");
    good("!c.host.ends_with(\".wh\")", "direct()");
    one(
        "if c.host.ends_with(\".wh\") {\nc.node.best()\n} else { pass() }",
        3,
        words,
    );
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
