//! The crates, and the walls between them: who may depend on whom, by `cargo metadata`.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use wormholes_tests::workspace;

/// Each crate with the crates of this workspace that it may know.
const ARROWS: &[(&str, &[&str])] = &[
    ("wormholes-proto", &[]),
    ("wormholes-rules", &["wormholes-proto"]),
    ("wormholes-host", &["wormholes-proto"]),
    ("wormholes-tor", &[]),
    (
        "wormholed",
        &[
            "wormholes-host",
            "wormholes-proto",
            "wormholes-rules",
            "wormholes-tor",
        ],
    ),
    ("wormholes-plugin", &[]),
    ("wormholes-plugin-kit", &["wormholes-plugin"]),
    ("wormholes-echo", &["wormholes-plugin"]),
    ("wormholes-ledger", &["wormholes-plugin"]),
    ("wormholes-clerk", &["wormholes-plugin"]),
    ("wormholes-courier", &["wormholes-plugin"]),
    ("wormholes-meter", &["wormholes-plugin"]),
    ("wormholes-porter", &["wormholes-plugin"]),
    ("wormholes-wicked", &["wormholes-plugin"]),
    ("wormholes-cli", &["wormholes-proto", "wormholes-rules"]),
    (
        "wormholes-tests",
        &[
            "wormholed",
            "wormholes-clerk",
            "wormholes-courier",
            "wormholes-echo",
            "wormholes-host",
            "wormholes-ledger",
            "wormholes-plugin",
            "wormholes-plugin-kit",
            "wormholes-porter",
            "wormholes-proto",
            "wormholes-rules",
            "wormholes-tor",
            "wormholes-wicked",
        ],
    ),
    ("wormholes-fuzz", &["wormholes-tests"]),
    ("xtask", &[]),
];

/// Crates that do I/O, tell the time or draw randomness, and so stay out of pure crates.
const IMPURE: &[&str] = &[
    "async-std",
    "getrandom",
    "hickory-resolver",
    "hyper",
    "mio",
    "notify",
    "quinn",
    "rand",
    "reqwest",
    "rustix",
    "rustls",
    "smol",
    "socket2",
    "tokio",
    "tracing-subscriber",
];

/// Crates that open network sockets; the daemon is the one place for them.
const NETWORK: &[&str] = &["hickory-resolver", "hyper", "quinn", "reqwest", "socket2"];

#[test]
fn crates_know_only_those_below_them() {
    let allowed: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    for (name, dependencies) in packages() {
        let known = allowed
            .get(name.as_str())
            .unwrap_or_else(|| panic!("{name} is a new crate: give it its arrows here"));
        for dependency in dependencies.iter().filter(|d| is_ours(d)) {
            let ok = known.contains(&dependency.as_str());
            assert!(ok, "{name} may not depend on {dependency}");
        }
    }
}

#[test]
fn protocol_and_rules_are_pure() {
    let packages = packages();
    for name in ["wormholes-proto", "wormholes-rules"] {
        for dependency in &packages[name] {
            let ok = !IMPURE.contains(&dependency.as_str());
            assert!(ok, "{name} is sans-I/O and may not depend on {dependency}");
        }
    }
}

/// A newcomer finds a crate, and a room of the daemon, by the map in ARCHITECTURE.md.
#[test]
fn the_map_shows_every_crate_and_every_room_of_the_daemon() {
    let read = |path: &str| std::fs::read_to_string(workspace::root().join(path)).unwrap();
    let architecture = read("ARCHITECTURE.md");
    let (_, map) = architecture.split_once("## Map").unwrap();
    let mut blocks = map.split("```").skip(1).step_by(2);
    let (mut folder, mut crates) = ("", BTreeSet::new());
    for line in blocks.next().unwrap().lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let path = format!(
            "{}{name}Cargo.toml",
            if line.starts_with(' ') { folder } else { "" }
        );
        if !line.starts_with(' ') {
            folder = name;
        }
        if name.ends_with('/') && workspace::root().join(&path).exists() {
            crates.insert(path);
        }
    }
    let manifests = workspace::files(&["toml"]).unwrap().into_iter();
    let manifests = manifests.map(|file| file.path);
    let members = manifests.filter(|path| path.ends_with("/Cargo.toml"));
    assert_eq!(crates, members.collect());

    let rooms = blocks.next().unwrap().lines();
    let rooms = rooms.flat_map(|line| line.split("  ").next().unwrap_or_default().split(' '));
    let shown: BTreeSet<&str> = rooms.filter(|room| !room.is_empty()).collect();
    let library = read("router/daemon/src/lib.rs");
    let modules = library.lines();
    let modules = modules.filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
    assert_eq!(shown, modules.collect());
}

#[test]
fn only_the_daemon_opens_network_sockets() {
    for (name, dependencies) in packages() {
        if ["wormholed", "wormholes-tests"].contains(&name.as_str()) {
            continue;
        }
        for dependency in dependencies {
            let ok = !NETWORK.contains(&dependency.as_str());
            assert!(ok, "{name} may not depend on {dependency}");
        }
    }
}

#[test]
fn every_crate_takes_the_lints_and_the_licence_of_the_workspace() {
    for file in workspace::files(&["toml"]).unwrap() {
        let is_member = file.path.ends_with("/Cargo.toml");
        if is_member && file.text.contains("[package]") {
            for line in ["[lints]\nworkspace = true", "license.workspace = true"] {
                assert!(file.text.contains(line), "{} lacks {line:?}", file.path);
            }
        }
    }
}

/// What nobody uses is still fetched, compiled, and trusted.
#[test]
fn every_crate_uses_what_it_depends_on() {
    let sources = workspace::files(&["rs"]).unwrap();
    let manifests = workspace::files(&["toml"]).unwrap();
    for (name, dependencies) in packages() {
        let title = format!("name = \"{name}\"\n");
        let manifest = manifests.iter().find(|file| file.text.contains(&title));
        let folder = manifest.unwrap().path.trim_end_matches("Cargo.toml");
        let code: Vec<_> = sources
            .iter()
            .filter(|file| file.path.starts_with(folder))
            .collect();
        for dependency in dependencies {
            let word = dependency.replace('-', "_");
            let named = [format!("{word}::"), format!("use {word};")];
            let is_used = |text: &str| named.iter().any(|named| text.contains(named));
            let used = code.iter().any(|file| is_used(&file.text));
            assert!(used, "{name} does not use {dependency}");
        }
    }
}

fn is_ours(name: &str) -> bool {
    ARROWS.iter().any(|(ours, _)| *ours == name)
}

/// Every crate of the workspace with the names of its direct dependencies of all kinds.
fn packages() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(workspace::root())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap();
            let names = dependencies.iter().map(|d| text(&d["name"])).collect();
            (text(&package["name"]), names)
        })
        .collect()
}
