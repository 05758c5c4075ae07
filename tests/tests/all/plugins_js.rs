//! A plugin in JavaScript, from the same ABI, in the real daemon.

use std::{fs, os::unix::fs::symlink, process::Command};

use wormholes_tests::{Setup, binary, run, workspace};

/// As `cargo xtask` installs it.
const TOOL: &str = "tools/componentize-js-0.23.0/node_modules";

#[tokio::test]
async fn a_plugin_in_javascript_counts_over_kill_9() {
    let setup = Setup::new("node").unwrap();
    let folder = setup.folder().join("count");
    let root = workspace::root();
    fs::create_dir(&folder).unwrap();
    for file in ["package.json", "build.mjs", "count.js", "plugin.toml"] {
        fs::copy(root.join("sdk/examples/js").join(file), folder.join(file)).unwrap();
    }
    let daemon = binary("wormholed").unwrap();
    let tool = daemon.ancestors().nth(2).unwrap().join(TOOL);
    assert!(
        tool.exists(),
        "{} is missing: `cargo xtask test` installs it",
        tool.display()
    );
    symlink(tool, folder.join("node_modules")).unwrap();
    let mut build = Command::new("node");
    build
        .arg(folder.join("build.mjs"))
        .arg(root.join("sdk/wit/0.1.0"));
    run(&mut build).unwrap();

    let setup = setup.config(
        "[plugin.count]\nwasm = \"count/count.wasm\"\n\
         grants = { state = true, scratch = true, timers = true, messages = true }",
    );
    let mut daemon = setup.start().await.unwrap();
    assert_eq!(daemon.cli(&["count", "add", "sheep"]).unwrap(), "1\n");
    assert_eq!(daemon.cli(&["count", "add", "sheep"]).unwrap(), "2\n");
    let refused = daemon.cli(&["count", "add", "nobody"]).unwrap_err();
    let refused = format!("{refused:#}");
    assert!(refused.contains("nobody is not counted"), "{refused}");
    daemon.kill().unwrap();
    daemon.restart().await.unwrap();
    assert_eq!(daemon.cli(&["count", "add", "sheep"]).unwrap(), "3\n");
    assert_eq!(daemon.cli(&["count", "show", "sheep"]).unwrap(), "3\n");
    assert_eq!(daemon.cli(&["count", "show", "nobody"]).unwrap(), "0\n");
    assert_eq!(
        daemon.cli(&["plugin", "health", "count"]).unwrap(),
        "well\n"
    );
}
