//! tests/features.toml maps each feature that works to the tests that show it; those must exist.

use std::collections::BTreeMap;

use serde::Deserialize;
use wormholes_tests::workspace;

/// One numbered feature.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Feature {
    /// What it is, in the words of its source document.
    text: String,
    /// `<file>::<test>`, the file relative to the workspace.
    tests: Vec<String>,
}

#[test]
fn every_feature_is_shown_by_tests_that_exist() {
    let path = workspace::root().join("tests/features.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let features: BTreeMap<String, Feature> = toml::from_str(&text).unwrap();
    assert!(!features.is_empty());
    for (line, feature) in features {
        assert!(!feature.text.is_empty(), "{line} has no text");
        assert!(!feature.tests.is_empty(), "{line} has no tests");
        for test in &feature.tests {
            assert!(exists(test), "{line}: there is no test {test}");
        }
    }
}

/// Whether the file has a function of that name with a test attribute above it.
fn exists(test: &str) -> bool {
    let Some((file, name)) = test.split_once("::") else {
        return false;
    };
    let Ok(text) = std::fs::read_to_string(workspace::root().join(file)) else {
        return false;
    };
    let lines: Vec<_> = text.lines().collect();
    let is_attribute = |line: &&str| {
        let line = line.trim();
        line == "#[test]" || line.starts_with("#[tokio::test")
    };
    lines.iter().enumerate().any(|(at, line)| {
        line.contains(&format!("fn {name}("))
            && lines[at.saturating_sub(3)..at].iter().any(is_attribute)
    })
}
