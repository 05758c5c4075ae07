//! Nodes and their peers: alone with each other, and those of config.toml that come, change and go
//! while a daemon runs.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use wormholes_tests::{
    Daemon, EchoServer, Events, Identity, Namespace, Setup, raise_file_limit, socks5_ask,
    socks5_connect,
};

const SCRIPT: &str = r#"fn route(c) {
    if c.host == "echo.bob.wh" { return peer("bob").direct(); }
    peer("carol").direct()
}"#;

const N_FLOWS: u64 = 1000;

/// Ada's config, which says who her peers are; bob and carol know her, and offer an echo.
struct Friends {
    ada: Daemon,
    bob: Daemon,
    carol: Daemon,
    config: String,
    _echo: EchoServer,
}

impl Friends {
    /// Ada knows bob only.
    async fn meet() -> Self {
        let echo = EchoServer::start([127, 0, 0, 1].into()).await.unwrap();
        let ada = Identity::generate().unwrap();
        let friend = async |name: &str| {
            let setup = Setup::new(name).unwrap().listen("127.0.0.1:0");
            let setup = setup.peer_id("ada", ada.id(), 2, "");
            setup.service("echo", echo.address()).start().await.unwrap()
        };
        let (bob, carol) = (friend("bob").await, friend("carol").await);
        let setup = Setup::with_identity("ada", &ada).unwrap().entrances();
        let setup = setup.script("rules.rhai", SCRIPT).peer(&bob, 2);
        let ada = setup.start().await.unwrap();
        let config = std::fs::read_to_string(ada.folder().join("config.toml")).unwrap();
        Self {
            ada,
            bob,
            carol,
            config,
            _echo: echo,
        }
    }

    fn carol(&self, trust: u8) -> String {
        let (id, address) = (self.carol.id(), self.carol.listen().unwrap());
        let keys = format!("id = \"{id}\"\naddresses = [\"{address}\"]\ntrust = {trust}");
        format!("{}\n[[peer]]\nname = \"carol\"\n{keys}\n", self.config)
    }

    /// Writes ada's config and loads it.
    fn load(&self, config: &str) -> Value {
        std::fs::write(self.ada.folder().join("config.toml"), config).unwrap();
        let loaded = self.ada.cli(&["--json", "script", "load"]).unwrap();
        serde_json::from_str(&loaded).unwrap()
    }

    async fn open(&self, host: &str) -> Result<TcpStream, String> {
        let entrance = self.ada.entrance("socks5").unwrap();
        let opened = socks5_connect(entrance, host, 80).await;
        opened.map_err(|error| error.to_string())
    }

    /// What ada says of one she knows.
    fn of(&self, id: &str) -> Value {
        let peers = self.ada.cli(&["--json", "peers"]).unwrap();
        let peers: Value = serde_json::from_str(&peers).unwrap();
        let mut peers = peers["peers"].as_array().unwrap().iter();
        peers.find(|peer| peer["id"] == id).cloned().unwrap()
    }

    /// The next event of this kind about carol; none is about bob meanwhile.
    async fn hears(&self, events: &mut Events, kind: &str) {
        let (bob, carol) = (self.bob.id().to_string(), self.carol.id().to_string());
        let wanted = |event: &Value| {
            assert_ne!(event["id"], bob, "{event}");
            event["kind"] == kind && event["id"] == carol
        };
        events.next(wanted).await.unwrap();
    }
}

async fn echoes(stream: &mut TcpStream) {
    let mut back = [0; 5];
    stream.write_all(b"alive").await.unwrap();
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"alive");
}

#[tokio::test]
async fn a_reload_takes_peers_that_come_change_and_go_and_keeps_the_others_connected() {
    let friends = Friends::meet().await;
    let carol = friends.carol.id().to_string();
    let mut living = friends.open("echo.bob.wh").await.unwrap();
    echoes(&mut living).await;
    assert!(friends.open("echo.carol.wh").await.is_err());
    let mut events = friends.ada.events().await.unwrap();

    let loaded = friends.load(&friends.carol(2));
    assert_eq!(loaded["restart_for"], json!([]), "{loaded}");
    friends.hears(&mut events, "peer-up").await;
    let mut to_carol = friends.open("echo.carol.wh").await.unwrap();
    echoes(&mut to_carol).await;
    assert_eq!(friends.of(&carol)["source"], "config");
    let config = friends.ada.cli(&["config"]).unwrap();
    assert!(config.contains(&carol), "{config}");

    friends.load(&friends.carol(3));
    assert_eq!(friends.of(&carol)["trust"], 3);
    echoes(&mut to_carol).await;

    friends.load(&friends.config);
    friends.hears(&mut events, "peer-down").await;
    assert_eq!(to_carol.read(&mut [0]).await.unwrap_or(0), 0, "it is cut");
    assert!(friends.open("echo.carol.wh").await.is_err());
    let gone = friends.of(&carol);
    assert_eq!(
        (&gone["source"], &gone["trust"]),
        (&"learned".into(), &0.into())
    );
    echoes(&mut living).await;
}

/// Their host has no route to anywhere: whatever they need is there.
#[tokio::test]
async fn two_nodes_need_nobody_else_to_carry_a_thousand_flows() {
    let host = Namespace::new().unwrap();
    let echo = EchoServer::start_in(&host).unwrap();
    let inside = |name: &str| Setup::new(name).unwrap().in_namespace(&host);
    let ada = inside("ada").entrances();
    let ada = ada.script("rules.rhai", SCRIPT);
    let bob = inside("bob").listen("127.0.0.1:0");
    let bob = bob.peer_id("ada", ada.id(), 2, "");
    let bob = bob.service("echo", echo.address()).start().await.unwrap();
    let ada = ada.peer(&bob, 2).start().await.unwrap();
    // Both ends of a flow, here and at the echo.
    raise_file_limit(2 * N_FLOWS + 500).unwrap();
    let entrance = ada.entrance("socks5").unwrap();
    let mut flows = Vec::new();
    for _ in 0..N_FLOWS {
        let mut flow = host.connect(entrance).unwrap();
        assert_eq!(socks5_ask(&mut flow, "echo.bob.wh", 80).await.unwrap(), 0);
        flows.push(flow);
    }
    let status = ada.call("status", json!({})).await.unwrap();
    assert_eq!(status["flows"]["open"], N_FLOWS, "{status}");
    assert_eq!(status["flows"]["opened"]["direct"], N_FLOWS, "{status}");
    assert_eq!(status["peers_known"], 1, "{status}");
    for flow in &mut flows {
        echoes(flow).await;
    }
}

#[tokio::test]
async fn a_config_whose_rules_fail_changes_no_peer() {
    let friends = Friends::meet().await;
    std::fs::write(
        friends.ada.folder().join("rules.rhai"),
        "fn route(c) { brok() }",
    )
    .unwrap();
    let config = friends.ada.folder().join("config.toml");
    std::fs::write(&config, friends.carol(2)).unwrap();
    assert!(friends.ada.cli(&["script", "load"]).is_err());
    let peers = friends.ada.cli(&["peers"]).unwrap();
    assert!(!peers.contains("carol"), "{peers}");
    std::fs::write(&config, "[[peer]]\nname = 'carol'\n").unwrap();
    assert!(friends.ada.cli(&["script", "load"]).is_err());
    let peers = friends.ada.cli(&["peers"]).unwrap();
    assert!(peers.contains("bob"), "{peers}");
}
