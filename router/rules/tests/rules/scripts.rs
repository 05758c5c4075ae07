//! Every script that is shipped loads and does what its cases say; cases tell what is wrong.

use std::{fs, path::Path};

use wormholes_rules::{ScriptSource, TestReport, run_tests};

fn source(name: &str, text: &str) -> ScriptSource {
    ScriptSource {
        name: name.to_owned(),
        text: text.to_owned(),
    }
}

fn read(path: &Path) -> ScriptSource {
    let name = path.file_name().unwrap().to_string_lossy();
    source(&name, &fs::read_to_string(path).unwrap())
}

fn run(script: &str, cases: &str) -> TestReport {
    run_tests(&source("s.rhai", script), &source("s.test.rhai", cases))
}

#[test]
fn every_shipped_script_passes_its_cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.ends_with(".rhai") || name.ends_with(".test.rhai") {
            continue;
        }
        let report = run_tests(&read(&path), &read(&path.with_extension("test.rhai")));
        assert!(report.passed(), "{report:#?}");
        assert!(report.cases.len() >= 4, "{name} has few cases");
        count += 1;
    }
    assert_eq!(count, 13);
}

#[test]
fn a_failed_case_says_where_and_what() {
    let script = "fn route(c) { if c.port == 22 { direct() } else { onion(3) } }";
    let report = run(
        script,
        r#"test("right", || { expect(route(#{ host: "a.example", port: 22 }).steps, ["direct"]); });
test("wrong", || {
    let d = route(#{ host: "a.example" });
    expect(d.never("direct"));
    expect(d.steps, ["onion 2"]);
});
test("untrue", || {
    expect(route(#{ host: "a.example" }).blocks);
});
test("misspelt", || route(#{ hots: "a.example" }));
"#,
    );
    assert_eq!(report.faults, []);
    let failures: Vec<_> = report
        .cases
        .iter()
        .map(|case| case.failure.as_ref().map(ToString::to_string))
        .collect();
    assert_eq!(failures[0], None);
    assert_eq!(
        failures[1].as_deref(),
        Some("s.test.rhai:5:5: expected [\"onion 2\"], got [\"onion 3\"]")
    );
    assert_eq!(
        failures[2].as_deref(),
        Some("s.test.rhai:8:5: this does not hold")
    );
    assert!(
        failures[3]
            .as_ref()
            .unwrap()
            .contains("route() wants a host"),
        "{failures:?}"
    );
    assert!(!report.passed());
}

#[test]
fn cases_say_which_network_they_are_of() {
    let script = r#"
fn route(c) { if c.network == "udp" { onion(3) } else { direct() } }
fn exit(x) {
    if x.network == () { return deny("look-ups"); }
    if x.network == "udp" { allow() } else { deny("tcp") }
}"#;
    let report = run(
        script,
        r#"test("told apart", || {
    expect(route(#{ host: "a.example", network: "udp" }).steps, ["onion 3"]);
    expect(route(#{ host: "a.example", network: "tcp", entrance: "udp" }).steps, ["direct"]);
    expect(route(#{ host: "a.example" }).steps, ["direct"]);
    expect(exit(#{ ip: "192.0.2.1", network: "udp" }).allows);
    expect(exit(#{ ip: "192.0.2.1" }).why, "tcp");
    expect(exit(#{ ip: "192.0.2.1", port: () }).why, "look-ups");
});
test("misspelt", || route(#{ host: "a.example", network: "upd" }));
"#,
    );
    assert_eq!(report.faults, []);
    let failure = |case: usize| report.cases[case].failure.as_ref().map(ToString::to_string);
    assert_eq!(failure(0), None);
    let misspelt = failure(1).unwrap();
    assert!(misspelt.contains("a network is tcp or udp"), "{misspelt}");
}

#[test]
fn a_kind_of_tunnel_that_there_is_not_is_no_kind_that_never_comes() {
    let report = run(
        r#"fn route(c) { if c.port == 22 { peer("bob").punch() } else { direct() } }"#,
        r#"test("known", || {
    let d = route(#{ host: "a.example" });
    for kind in ["socks", "relay", "onion", "tor", "i2p", "block"] { expect(d.never(kind)); }
    expect(d.never("direct"), false);
});
test("a punch is direct", || {
    peer("bob", #{ relays: ["r1"] });
    let d = route(#{ host: "a.example", port: 22 });
    expect(d.steps, ["punch bob"]);
    expect(d.never("relay"));
    expect(d.never("direct"), false);
});
test("misspelt", || route(#{ host: "a.example" }).never("onoin"));
"#,
    );
    assert_eq!(report.faults, []);
    let failure = |case: usize| report.cases[case].failure.as_ref().map(ToString::to_string);
    assert_eq!(failure(0), None);
    assert_eq!(failure(1), None);
    let misspelt = failure(2).unwrap();
    let expected = "never() knows direct, socks, relay, onion, tor, i2p, block, not \"onoin\"";
    assert!(misspelt.contains(expected), "{misspelt}");
}

#[test]
fn the_mark_of_an_editor_is_no_part_of_a_script() {
    let text = "\u{feff}fn route(c) { pass() }".to_owned();
    let script = ScriptSource::of_file(Path::new("/rules/marked.rhai"), text);
    let expected = source("marked.rhai", "fn route(c) { pass() }");
    assert_eq!(script, expected);
}

#[test]
fn faults_of_either_file_are_told() {
    let good = "fn route(c) { direct() }";
    for (script, cases, expected) in [
        (
            "fn route(c) { geo() }",
            "test(\"x\", || 1);",
            "s.rhai:1:15: `geo` is not in this build",
        ),
        (good, "test(\"x\", || 1)", ""),
        (good, "", "s.test.rhai: there is no test"),
        (
            good,
            "test(\"x\", || sleep(1));",
            "`sleep` is not available",
        ),
        (
            good,
            "test(\"x\", || exepct(true));",
            "did you mean `expect`?",
        ),
        (good, "test(\"x\", || { loop { } });", "s.test.rhai:1:"),
        (good, "let x = ", "s.test.rhai:1:"),
    ] {
        let report = run(script, cases);
        let faults: String = report.faults.iter().map(ToString::to_string).collect();
        assert_eq!(faults.is_empty(), expected.is_empty(), "{cases}: {faults}");
        assert!(faults.contains(expected), "{cases}: {faults}");
    }
}

#[test]
fn the_examples_of_the_readme_work() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/README.md");
    let text = fs::read_to_string(path).unwrap();
    let blocks: Vec<_> = text
        .split("```rhai\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    let [script, cases] = blocks[..] else {
        panic!("{} examples", blocks.len());
    };
    let report = run(script, cases);
    assert!(report.passed(), "{report:#?}");
    assert_eq!(report.cases.len(), 2);
}
