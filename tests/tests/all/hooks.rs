//! The hooks beside `route`, each on real daemons: the shipped scripts where they have it.

use std::{fs, net::Ipv4Addr};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wormholes_tests::{Daemon, EchoServer, More, Setup, TestNetwork, socks5_connect, until};

const FRIENDS: &str = include_str!("../../../scripts/friends.rhai");
const DEFAULT: &str = include_str!("../../../scripts/default.rhai");
const EXIT: &str = include_str!("../../../scripts/exit.rhai");
/// The reply code of SOCKS5 for what a rule does not allow.
const NOT_ALLOWED: &str = "refused with reply code 2";

#[tokio::test]
async fn friends_are_let_in_and_strangers_and_those_without_credit_are_not() {
    let echo = EchoServer::start([127, 0, 0, 1].into()).await.unwrap();
    let bob = Setup::new("bob").unwrap().listen("127.84.0.1:0");
    let (carol, eve) = (Setup::new("carol").unwrap(), Setup::new("eve").unwrap());
    let club = Setup::new("club")
        .unwrap()
        .listen("127.85.0.1:0")
        .config("[relay]\nenabled = true")
        .entrances()
        .peer_id("bob", bob.id(), 2, "")
        .peer_id("carol", carol.id(), 2, "")
        .peer_id("eve", eve.id(), 0, "");
    let club = club.script("friends.rhai", FRIENDS).start().await.unwrap();
    let registers = format!(
        "addresses = [\"{}\"]\nregister = true",
        club.listen().unwrap()
    );
    let carol = carol
        .peer_id("club", club.id(), 2, &registers)
        .peer_id("bob", bob.id(), 2, "")
        .service("web", echo.address());
    let by_relay = "fn route(c) { c.node.relayed().timeout(\"9s\").closed() }";
    let bob = bob
        .entrances()
        .peer(&club, 2)
        .peer_id("carol", carol.id(), 2, "via = [\"club\"]")
        .service("web", echo.address())
        .script("by-relay.rhai", by_relay);
    let eve = eve.peer(&club, 2);
    let (carol, bob, eve) = tokio::try_join!(carol.start(), bob.start(), eve.start()).unwrap();

    // accept
    bob.cli(&["ping", "club", "--count", "1"]).unwrap();
    eve.cli(&["ping", "club", "--count", "1"]).unwrap_err();
    let denied = club.log().wait("connection denied").await.unwrap();
    assert!(denied.contains("neither a friend nor"), "{denied}");

    // relay: no plugin publishes credit
    until("carol to be registered", async || {
        let report = club.call("relay", json!({})).await.ok()?;
        let registered = report["registered"].as_array()?;
        registered.contains(&json!("carol")).then_some(())
    })
    .await
    .unwrap();
    let refused = refusal(&bob, "web.carol.wh", 80).await;
    let report = club.call("relay", json!({})).await.unwrap();
    assert_eq!(
        report["refused"],
        json!({ "denied by the node's policy": 1 }),
        "{refused}"
    );

    // route
    let way = socks5_connect(club.entrance("socks5").unwrap(), "web.bob.wh", 80).await;
    drop(way.unwrap());
    let why = club.cli(&["why", "1"]).unwrap();
    assert!(why.contains("friends.rhai:"), "{why}");
    assert_eq!(refusal(&club, "x.example", 80).await, NOT_ALLOWED);
    assert!(club.cli(&["why", "2"]).unwrap().contains("friends only"));
    drop(carol);
}

#[tokio::test]
async fn the_exit_script_dials_open_ports_and_nothing_that_is_listed() {
    // Ports that the script opens are fixed ones: no other run of this test has this address.
    let [high, low] = u16::try_from(std::process::id() % 0xffff)
        .unwrap()
        .to_be_bytes();
    let outside = Ipv4Addr::new(127, 86, high, low.max(1));
    let open = tokio::net::TcpListener::bind((outside, 8448))
        .await
        .unwrap();
    let other = EchoServer::start(outside).await.unwrap();
    let client = Setup::new("client").unwrap().entrances();
    let exit = Setup::new("exit")
        .unwrap()
        .listen("127.87.0.1:0")
        .config("[exit]\nenabled = true\nallow = [\"0.0.0.0/0\"]\nallow_private = true")
        .config("[rules]\nscripts = [\"exit.rhai\"]\nsets = { abuse = \"abuse.txt\" }")
        .name("good.example", outside.into())
        .name("bad.example", outside.into())
        .peer_id("client", client.id(), 2, "");
    fs::write(exit.folder().join("abuse.txt"), "bad.example\n").unwrap();
    let exit = exit.script("exit.rhai", EXIT).start().await.unwrap();
    let through_exit = "fn route(c) { peer(\"exit\").direct().exit().closed() }";
    let client = client.peer(&exit, 2).script("exit.rhai", through_exit);
    let client = client.start().await.unwrap();

    let entrance = client.entrance("socks5").unwrap();
    let flow = socks5_connect(entrance, "good.example", 8448).await;
    let (_carried, from) = open.accept().await.unwrap();
    assert!(from.ip().is_loopback(), "{from}");
    drop(flow.unwrap());
    for (host, port) in [
        ("bad.example", 8448),
        ("good.example", other.address().port()),
    ] {
        assert_eq!(refusal(&client, host, port).await, NOT_ALLOWED, "{host}");
    }
    let report = exit.call("exit", json!({})).await.unwrap();
    assert_eq!(report["total"], json!(3), "{report}");
    assert_eq!(
        report["refused"],
        json!({ "denied by the node's policy": 2 }),
        "{report}"
    );
}

/// The friend lets nobody in who has a name, and offers one service to all.
#[tokio::test]
async fn the_default_script_falls_back_to_an_onion_that_the_friend_offers() {
    let echo = EchoServer::start([127, 0, 0, 1].into()).await.unwrap();
    let shy = Setup::new("shy").unwrap().listen("127.89.0.1:0");
    let more = format!(
        "[[peer]]\nname = \"shy\"\nid = \"{}\"\ntrust = 2\nvia = [\"relay\"]",
        shy.id()
    );
    let more = More {
        client: &more,
        ..More::default()
    };
    let mut network = TestNetwork::start_with(DEFAULT, more).await.unwrap();
    let (client, relay) = (&mut network.client, &network.relay);
    let registers = format!(
        "addresses = [\"{}\"]\nregister = true",
        relay.listen().unwrap()
    );
    let denies = "fn accept(p) { if p.name == \"client\" { deny(\"by onion\") } else { pass() } }";
    let shy = shy
        .config("[hop]\nenabled = true")
        .service("drop", echo.address())
        .config("min_trust = 0")
        .service("private", echo.address())
        .peer_id("relay", relay.id(), 2, &registers)
        .peer_id("client", client.id(), 2, "")
        .script("denies.rhai", denies);
    let shy = shy.start().await.unwrap();
    let invite = shy.cli(&["peer", "invite"]).unwrap();
    relay.cli(&["peer", "add", invite.trim()]).unwrap();
    shy.log().wait("registered with the relay").await.unwrap();
    // A client that came earlier would look again only after a while.
    client.stop().await.unwrap();
    client.restart().await.unwrap();
    until("the client to know the friend as a hop", async || {
        let peers = client.call("peers", json!({})).await.ok()?;
        let mut peers = peers.get("peers")?.as_array()?.iter();
        peers
            .any(|peer| peer["name"] == "shy" && peer["roles"]["hop"] == true)
            .then_some(())
    })
    .await
    .unwrap();

    let entrance = client.entrance("socks5").unwrap();
    let mut flow = socks5_connect(entrance, "drop.shy.wh", 80).await.unwrap();
    flow.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    flow.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
    let why = client.cli(&["why", "1"]).unwrap();
    assert!(why.contains("onion(3) to shy: opened"), "{why}");
    refusal(client, "private.shy.wh", 80).await;
    let why = client.cli(&["why", "2"]).unwrap();
    assert!(
        why.contains("needs a service with `min_trust = 0`"),
        "{why}"
    );
}

/// Who is denied learns it a round trip after it was connected, and tries again and again.
#[tokio::test]
async fn scripts_hear_of_their_start_and_of_peers_but_not_of_one_that_denies() {
    const DENY: &str = "fn accept(p) { deny(\"not yet\") }";
    const ALLOW: &str = "fn accept(p) { allow() }";
    const TELL: &str = r#"
        fn init(r) { log("info", "told of init"); }
        fn on_event(e) { log("info", `told of ${e.kind} of ${e.peer.name} for ${e.reason}.`); }
    "#;
    let client = Setup::new("client").unwrap();
    let server = Setup::new("server").unwrap().listen("127.88.0.1:0");
    let server = server.peer_id("client", client.id(), 2, "");
    let mut server = server.script("rules.rhai", DENY).start().await.unwrap();
    let client = client.peer(&server, 2).script("tell.rhai", TELL);
    let client = client.start().await.unwrap();
    client.log().wait("told of init").await.unwrap();
    for _ in 0..3 {
        client.cli(&["ping", "server", "--count", "1"]).unwrap_err();
    }
    fs::write(server.folder().join("rules.rhai"), ALLOW).unwrap();
    server.cli(&["script", "load"]).unwrap();
    until("the client to be let in", async || {
        client.cli(&["ping", "server", "--count", "1"]).ok()
    })
    .await
    .unwrap();
    client.log().wait("told of peer-up").await.unwrap();
    server.stop().await.unwrap();
    client.log().wait("told of peer-down").await.unwrap();
    let told = client.log().matching("told of peer");
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(
        told[0].contains("told of peer-up of server for ."),
        "{told:#?}"
    );
    assert!(
        told[1].contains("told of peer-down of server for "),
        "{told:#?}"
    );
    let status = client.call("status", json!({})).await.unwrap();
    assert_eq!(status["scripts"]["errors"], json!(0), "{status}");
}

async fn refusal(node: &Daemon, host: &str, port: u16) -> String {
    let entrance = node.entrance("socks5").unwrap();
    let refused = socks5_connect(entrance, host, port).await;
    refused.unwrap_err().to_string()
}
