//! A hop that is sent where it must not go: a record that everybody passes on names banned
//! addresses, and the kernel counts what leaves for them.

use std::net::Ipv4Addr;

use serde_json::json;
use wormholes_tests::{Link, Namespace, Setup, socks5_ask};

/// Where the hops are: no private address.
const HOPS_AT: Ipv4Addr = Ipv4Addr::new(9, 8, 7, 1);
const CLIENT_AT: Ipv4Addr = Ipv4Addr::new(9, 8, 7, 2);

/// No other traffic goes to port 4445.
const LIES: &str = r#"advertise = [
    "10.0.0.1:4445", "192.168.0.1:4445", "100.64.0.1:4445", "169.254.169.254:4445",
    "127.0.0.1:4445", "[fd00::1]:4445", "[fe80::1]:4445", "[64:ff9b::a00:1]:4445",
]"#;
const COUNT: &str = "table inet hops {
    counter sent { }
    chain output {
        type filter hook output priority 0;
        udp dport 4445 counter name sent
    }
}";

/// RFC 1928, section 6.
const SUCCEEDED: u8 = 0;

const SCRIPT: &str = r#"
fn route(c) {
    onion(2).via(peer(c.label)).to(peer("liar")).exit().timeout("9s").closed()
}"#;

#[tokio::test]
async fn a_hop_sends_nothing_to_the_banned_addresses_of_a_record() {
    let (hops, clients) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    let link = Link {
        first: HOPS_AT,
        second: CLIENT_AT,
    };
    hops.join(&clients, link).unwrap();
    let out = CLIENT_AT.to_string();
    hops.ip(&["route", "add", "default", "via", &out]).unwrap();
    hops.nft(COUNT).unwrap();
    let mut client = Setup::new("client")
        .unwrap()
        .in_namespace(&clients)
        .script("rules.rhai", SCRIPT);
    for label in ["strict", "lax"] {
        client = client.config(&format!(
            "[[entrance]]\nkind = \"socks5\"\nlisten = \"127.0.0.1:0\"\nlabel = {label:?}"
        ));
    }
    let id = client.id();
    let hop = |name: &str, allow_private: bool| {
        let role = format!("[hop]\nenabled = true\nallow_private = {allow_private}");
        let setup = Setup::new(name).unwrap().in_namespace(&hops);
        let setup = setup.listen(&format!("{HOPS_AT}:0")).config(&role);
        setup.peer_id("client", id, 2, "").start()
    };
    let strict = hop("strict", false).await.unwrap();
    let lax = hop("lax", true).await.unwrap();
    let liar = Setup::new("liar").unwrap().in_namespace(&clients);
    let liar = liar
        .listen("127.0.0.1:0")
        .node(LIES)
        .config("[hop]\nenabled = true\n[exit]\nenabled = true\nallow = [\"0.0.0.0/0\"]")
        .peer_id("client", id, 2, "")
        .start()
        .await
        .unwrap();
    for peer in [&strict, &lax, &liar] {
        client = client.peer(peer, 2);
    }
    let client = client.start().await.unwrap();

    let ask = async |label: &str| {
        let entrance = client.entrance(label).unwrap();
        let mut stream = clients.connect(entrance).unwrap();
        let reply = socks5_ask(&mut stream, "9.9.9.9", 80).await.unwrap();
        assert_ne!(reply, SUCCEEDED, "{label}");
        hops.counted("sent").unwrap()
    };
    assert_eq!(ask("strict").await, 0, "the hop dialled a banned address");
    let report = strict.call("hop", json!({})).await.unwrap();
    let forbidden = report["refused"]["forbidden address"].as_u64();
    assert!(forbidden > Some(0), "{report}");
    assert!(ask("lax").await > 0, "nothing is counted");
}
