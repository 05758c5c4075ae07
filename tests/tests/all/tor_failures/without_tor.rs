//! A daemon that was built without the feature `tor`. Much of the tree is compiled a second time for it:
//! only a soak runs this.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use wormholes_tests::{Setup, binary, cargo, output, run};

#[test]
fn a_daemon_without_tor_says_so_to_a_script_that_names_it() {
    let daemon = build();
    let setup = || Setup::new("bare").unwrap().entrances();
    // Nothing else is missing in it.
    let blocked = setup().script("rules.rhai", "fn route(c) { block(\"all\") }");
    let (accepted, said) = check(&daemon, &blocked);
    assert!(accepted, "{said}");
    let script = "fn route(c) {\n    tor().closed()\n}";
    let (accepted, said) = check(&daemon, &setup().script("rules.rhai", script));
    assert!(!accepted, "{said}");
    for words in ["rules.rhai", "this build has no Tor", "feature `tor`"] {
        assert!(said.contains(words), "{words:?} is not in: {said}");
    }
}

fn build() -> PathBuf {
    let folder = binary("wormholed")
        .unwrap()
        .with_file_name("../without-tor");
    let mut build = cargo();
    build
        .args(["build", "--quiet", "--locked", "--package", "wormholed"])
        .args(["--no-default-features", "--target-dir"])
        .arg(&folder);
    run(&mut build).unwrap();
    folder.join("debug/wormholed")
}

/// Whether it takes the config, and what it said.
fn check(daemon: &Path, setup: &Setup) -> (bool, String) {
    let config = setup.write_config().unwrap();
    let mut command = Command::new(daemon);
    command.arg("--check").arg("--config").arg(config);
    let output = output(command.current_dir(setup.folder())).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), said)
}
