//! What the fuzzers kept, as ordinary tests: every input goes through its function again.

use std::{
    collections::BTreeSet,
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

use wormholes_tests::{fuzz::TARGETS, workspace};

/// The longest input that libFuzzer is told to make.
const MAX_INPUT_BYTES: u64 = 4096;
/// All inputs together. More of them show no more: they are what `-merge=1` leaves.
const MAX_INPUTS: usize = 400;

#[test]
fn every_input_that_was_kept_holds() {
    let mut broken = Vec::new();
    for (name, check) in TARGETS {
        for path in inputs(name) {
            let input = fs::read(&path).unwrap();
            if catch_unwind(|| check(&input)).is_err() {
                broken.push(path.display().to_string());
            }
        }
    }
    assert!(broken.is_empty(), "these broke:\n{}", broken.join("\n"));
}

#[test]
fn every_target_has_a_program_and_inputs_and_no_other_has() {
    let names = BTreeSet::from(TARGETS.map(|(name, _)| name.to_owned()));
    let stems = |folder: &str| -> BTreeSet<String> {
        let paths = list(&root().join(folder));
        let stems = paths.iter().map(|path| path.file_stem().unwrap());
        stems
            .map(|stem| stem.to_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(stems("targets"), names);
    assert_eq!(stems("corpus"), names);
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for name in &names {
        assert!(!inputs(name).is_empty(), "{name} has no inputs");
        let program = format!("name = \"{name}\"\npath = \"targets/{name}.rs\"");
        assert!(manifest.contains(&program), "{name} is not built");
        let code = fs::read_to_string(root().join(format!("targets/{name}.rs"))).unwrap();
        let call = format!("wormholes_tests::fuzz::{name}(input)");
        assert!(code.contains(&call), "{name} feeds another");
    }
}

#[test]
fn the_corpus_stays_small() {
    let paths: Vec<_> = TARGETS.iter().flat_map(|(name, _)| inputs(name)).collect();
    assert!(paths.len() <= MAX_INPUTS, "{} inputs", paths.len());
    for path in paths {
        let len = fs::metadata(&path).unwrap().len();
        assert!(len <= MAX_INPUT_BYTES, "{}: {len} bytes", path.display());
    }
}

fn inputs(target: &str) -> Vec<PathBuf> {
    list(&root().join("corpus").join(target))
}

fn root() -> PathBuf {
    workspace::root().join("tests/fuzz")
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}
