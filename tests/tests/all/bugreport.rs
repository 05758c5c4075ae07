//! `wormholes bugreport`: useful to whoever reads it, and telling nothing that is theirs who send it.

use std::{fs, net::Ipv4Addr, os::unix::fs::PermissionsExt, path::Path, process::Command};

use data_encoding::{BASE32, BASE64, BASE64URL_NOPAD, Encoding, HEXLOWER, HEXUPPER, Specification};
use serde_json::Value;
use wormholes_tests::{Daemon, Identity, Setup, Site, binary, curl, output, socks5_connect};

/// Texts that a person wrote somewhere, each in one place.
const PLANTED: &[&str] = &[
    "nodename-plum",
    "family-quince",
    "petname-pear",
    "user-medlar",
    "hunter2-damson",
    "label-sloe",
    "service-fig",
    "setname-lemon",
    "domain-in-a-set.example",
    "scriptname-lime",
    "instance-fennel",
    "logged-grape",
    "tagged-melon",
    "blocked-because-peach",
    "target-apple.example",
    "failed-banana.example",
    "thrown-cherry",
    "192.0.2.77",
    "203.0.113.88",
    "198.51.100.0",
    "127.66.0.1",
    "127.67.0.1",
    "127.68.0.1",
    "0123456789ABCDEF0123456789ABCDEF01234567",
    "client-sorrel",
    "ZPRRMIV6DV6SJFL7SFBSVLJ5VUNPGCDFEVZ7M23LTLVTCCXJQBKA",
];

/// Logs, tags, and reads a set on each decision; one of its targets is an error.
const SCRIPT: &str = r#"
// comment-in-a-script-kiwi
fn route(c) {
    log("warn", "logged-grape " + c.host);
    tag("tagged-melon", c.host);
    if set("setname-lemon").has(c.host) { return block("blocked-because-peach"); }
    if c.host == "failed-banana.example" { throw "thrown-cherry " + c.host; }
    direct()
}
"#;

const CONFIG: &str = r#"
[[entrance]]
kind = "socks5"
listen = "127.66.0.1:0"
label = "label-sloe"
[[entrance]]
kind = "http"
listen = "127.67.0.1:0"
users = { user-medlar = "hunter2-damson" }
[[service]]
name = "service-fig"
target = "192.0.2.77:7777"
min_trust = 0
onion = true
onion_clients = { client-sorrel = "descriptor:x25519:ZPRRMIV6DV6SJFL7SFBSVLJ5VUNPGCDFEVZ7M23LTLVTCCXJQBKA" }
[tor]
enabled = true
bridges = ["127.68.0.1:1 0123456789ABCDEF0123456789ABCDEF01234567"]
[exit]
enabled = true
allow = ["198.51.100.0/24:4444"]
[metrics]
listen = "127.0.0.1:0"
[rules]
scripts = ["scriptname-lime.rhai"]
sets = { setname-lemon = "set.txt" }
record_decisions = 100
"#;

async fn node(peer: &Identity) -> Daemon {
    let setup = Setup::new("nodename-plum").unwrap();
    let folder = setup.folder().to_owned();
    fs::write(folder.join("set.txt"), "domain-in-a-set.example\n").unwrap();
    let more = "addresses = [\"203.0.113.88:4433\"]\nregister = true";
    let setup = setup
        .node("family = \"family-quince\"")
        .listen("127.66.0.1:0")
        .config(CONFIG)
        .peer_id("petname-pear", peer.id(), 2, more)
        .script("scriptname-lime.rhai", SCRIPT);
    let setup = setup.plugin("plugins/echo").unwrap().config(
        "[plugin.instance-fennel]\nwasm = \"echo/wormholes_echo.wasm\"\n\
         grants = { state = true, scratch = true, timers = true }",
    );
    setup
        .name("target-apple.example", Ipv4Addr::LOCALHOST.into())
        .start()
        .await
        .unwrap()
}

/// A life in which each of the planted texts is used.
async fn live(node: &Daemon) {
    let site = Site::start("near", Ipv4Addr::LOCALHOST, None)
        .await
        .unwrap();
    let entrance = node.entrance("socks5").unwrap();
    let url = format!("http://target-apple.example:{}/", site.address().port());
    let fetched = curl(&format!("socks5h://{entrance}"), &url, &[])
        .await
        .unwrap();
    assert_eq!(fetched.status, 200, "{fetched:?}");
    for host in ["domain-in-a-set.example", "failed-banana.example"] {
        assert!(socks5_connect(entrance, host, 80).await.is_err());
    }
    let proxy = node.entrance("http").unwrap();
    let login = format!("http://user-medlar:hunter2-damson@{proxy}");
    assert_eq!(curl(&login, &url, &[]).await.unwrap().status, 200);
    node.cli(&["instance-fennel", "say", "hello"]).unwrap();
    // The log of the harness masks nothing.
    for said in ["thrown-cherry", "logged-grape", "target-apple"] {
        node.log().wait(said).await.unwrap();
    }
}

#[tokio::test]
async fn a_bug_report_tells_no_secret_name_target_or_address_in_any_writing() {
    let peer = Identity::generate().unwrap();
    let node = node(&peer).await;
    live(&node).await;
    let mut secrets: Vec<Vec<u8>> = PLANTED
        .iter()
        .map(|text| text.as_bytes().to_vec())
        .collect();
    secrets.push(b"comment-in-a-script-kiwi".to_vec());
    secrets.push(
        node.folder()
            .file_name()
            .unwrap()
            .as_encoded_bytes()
            .to_vec(),
    );
    for id in [node.id(), peer.id()] {
        secrets.push(id.to_string().as_bytes()[..8].to_vec());
        secrets.push(id.as_bytes().to_vec());
    }
    let key = node.call("key", serde_json::json!({})).await.unwrap();
    secrets.push(key["noise_key"].as_str().unwrap().as_bytes().to_vec());
    let data = node.folder().join("data");
    // The seed within its wrapping (RFC 8410).
    secrets.push(fs::read(data.join("identity.key")).unwrap()[16..48].to_vec());
    secrets.extend(files(&data));

    for words in [&["bugreport"][..], &["--json", "bugreport"]] {
        let report = node.cli(words).unwrap();
        for secret in &secrets {
            for written in writings(secret) {
                let shown = String::from_utf8_lossy(&written);
                assert!(!contains(&report, &written), "{shown} in {report}");
            }
        }
    }
}

#[tokio::test]
async fn a_bug_report_tells_what_is_needed_to_mend_something() {
    let node = node(&Identity::generate().unwrap()).await;
    live(&node).await;
    let file = node.folder().join("report.txt");
    let words = ["bugreport", "--output", "report.txt"];
    node.cli(&words).unwrap();
    let report = fs::read_to_string(&file).unwrap();
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    for part in [
        concat!("wormholed ", env!("CARGO_PKG_VERSION")),
        " kB of memory",
        "entrance[0].kind = \"socks5\"",
        "entrance[0].label = \"[hidden]\"",
        "entrance[1].users = \"[1 hidden]\"",
        "entrance[1].listen = \"[IPv4, loopback]\"",
        "limits.drain_seconds = 30",
        "\ndraining = false",
        "scripts.errors = 1",
        "scripts.last_errors[0].hook = \"route\"",
        "scripts.last_errors[0].line = 7",
        "peers[0].addresses = [\"[IPv4]\"]",
        "exit.enabled = true",
        "tor.state = \"starting\"",
        "tor.bridges = 1",
        "tor.services[0].name = \"[hidden]\"",
        "tor.services[0].state = \"stopped\"",
        "wormholes_script_errors_total{hook=\"route\"} 1",
        "INFO wormholed: node started id=[hidden] listen=[hidden] entrances=[hidden]",
        "WARN script: [hidden] hook=route",
    ] {
        assert!(report.contains(part), "{part} in {report}");
    }
    let again = output(&mut node.cli_command(&words).unwrap()).unwrap();
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert_eq!(again.status.code(), Some(1), "{said}");
    assert!(
        said.contains("report.txt: File exists") && said.contains("new file"),
        "{said}"
    );
    let report: Value = serde_json::from_str(&node.cli(&["--json", "bugreport"]).unwrap()).unwrap();
    assert_eq!(report["daemon"]["status"]["scripts"]["errors"], 1);
}

#[test]
fn a_bug_report_of_a_daemon_that_does_not_run_tells_of_the_machine() {
    let mut cli = Command::new(binary("wormholes").unwrap());
    let made = output(cli.args(["--socket", "none.sock", "bugreport"])).unwrap();
    let (report, note) = (
        String::from_utf8(made.stdout),
        String::from_utf8(made.stderr),
    );
    let (report, note) = (report.unwrap(), note.unwrap());
    assert_eq!(made.status.code(), Some(0), "{note}");
    assert!(
        report.contains("\n== wormholed is not running\n"),
        "{report}"
    );
    assert!(
        report.contains(concat!("wormholes ", env!("CARGO_PKG_VERSION"))),
        "{report}"
    );
    let is_not_running =
        "note: wormholed is not running: nothing answers at none.sock\nnote: start it";
    assert!(note.starts_with(is_not_running), "{note}");
}

/// What is in the files of a folder, as a whole and line by line.
fn files(folder: &Path) -> Vec<Vec<u8>> {
    let mut contents = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let bytes = fs::read(path).unwrap();
            contents.extend(bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec));
            contents.push(bytes);
        }
    }
    // A shorter line, a brace or so, is found anywhere.
    contents.retain(|content| content.len() >= 8);
    assert!(!contents.is_empty(), "the daemon keeps no secret");
    contents
}

/// A text as it may stand in another.
fn writings(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut base32 = Specification::new();
    base32.symbols.push_str("ybndrfg8ejkmcpqxot1uwisza345h769");
    let z_base_32 = base32.encoding().unwrap();
    let whole = |encoding: &Encoding| encoding.encode(secret).into_bytes();
    let mut written = vec![secret.to_vec(), secret.to_ascii_uppercase()];
    written.extend([&HEXLOWER, &HEXUPPER, &BASE32, &z_base_32].map(whole));
    // As a part of something larger: what stands before it shifts its letters.
    for encoding in [&BASE64, &BASE64URL_NOPAD] {
        for before in 0..3 {
            let shifted = [&vec![0; before], secret].concat();
            let text = encoding.encode(&shifted).into_bytes();
            // The first and last letters hold bits of what stands beside.
            let (start, end) = (before.min(1) * 4, shifted.len() / 3 * 4);
            written.push(text[start..end].to_vec());
        }
    }
    written
}

fn contains(report: &str, needle: &[u8]) -> bool {
    memchr::memmem::find(report.as_bytes(), needle).is_some()
}
