//! The demo, as `cargo xtask demo --json` runs it.

use std::process::Command;

use serde_json::Value;
use wormholes_tests::{binary, output};

#[test]
fn every_row_of_the_demo_is_as_the_script_says() {
    let mut demo = Command::new(binary("wormholes-demo").unwrap());
    let folder = binary("wormholed").unwrap();
    demo.arg("--json")
        .env("WORMHOLES_BIN_DIR", folder.parent().unwrap());
    let output = output(&mut demo).unwrap();
    let progress = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{progress}");
    let text = String::from_utf8(output.stdout).unwrap();
    let result: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(result["ok"], true, "{result}");
    let rows = result["rows"].as_array().unwrap();
    let tunnels: Vec<_> = rows.iter().map(|row| row["tunnel"].as_str()).collect();
    let expected = ["direct", "relay", "onion", "block"].map(Some);
    assert_eq!(tunnels, expected);
    for row in rows {
        assert!(
            row["rule"].as_str().unwrap().starts_with("rules.rhai:"),
            "{row}"
        );
        let is_blocked = row["tunnel"] == "block";
        assert_eq!(row["ttfb_ms"].is_null(), is_blocked, "{row}");
        assert_eq!(row["mb_per_s"].is_null(), is_blocked, "{row}");
    }
    let nodes = |row: &Value| -> Vec<String> {
        let learned = row["learned"].as_object().unwrap();
        learned.keys().cloned().collect()
    };
    assert_eq!(nodes(&rows[0]), ["relay"]);
    assert_eq!(nodes(&rows[1]), ["friend", "relay"]);
    let hops = nodes(&rows[2]);
    assert!(hops.len() == 3 && hops[0] == "exit", "{hops:?}");
    assert!(hops[1..].iter().all(|hop| hop.starts_with("hop-")));
    assert!(nodes(&rows[3]).is_empty(), "{}", rows[3]);
    let learned = rows[2]["learned"].to_string();
    assert!(learned.contains("exit learned the target"), "{learned}");
    assert!(progress.contains("wormholes why"), "{progress}");
}
