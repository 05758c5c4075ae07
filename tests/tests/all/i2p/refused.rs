//! What I2P does not carry, and nodes whose router is missing or dead.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use wormholes_tests::{
    Association, Daemon, Identity, SITE_GREETING, Setup, Site, browse, curl, socks5_ask,
};

/// A port that nobody listens at: its listener has gone.
async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    listener.local_addr().unwrap()
}

fn client(router: SocketAddr, script: &str) -> Setup {
    Setup::new("client")
        .unwrap()
        .entrances()
        .script("rules.rhai", script)
        .config(&format!("[i2p]\nsam = \"{router}\"\n"))
}

/// The tunnels that a flow tried, and why each did not open.
async fn steps(node: &Daemon, flow: u64) -> Vec<(String, String)> {
    let why = node.call("why", json!({ "flow": flow })).await.unwrap();
    let text = |step: &Value, key: &str| step[key].as_str().unwrap_or_default().to_owned();
    let steps = why["steps"].as_array().unwrap().iter();
    steps
        .map(|step| (text(step, "tunnel"), text(step, "error")))
        .collect()
}

async fn ask(node: &Daemon, host: &str) -> u8 {
    let entrance = node.entrance("socks5").unwrap();
    let mut stream = TcpStream::connect(entrance).await.unwrap();
    socks5_ask(&mut stream, host, 80).await.unwrap()
}

#[tokio::test]
async fn a_router_that_is_missing_or_dead_is_an_error_and_the_next_step_is_taken() {
    let web = Site::start("the friend's", Ipv4Addr::LOCALHOST, None);
    let web = web.await.unwrap();
    let identity = Identity::generate().unwrap();
    let friend = Setup::new("friend")
        .unwrap()
        .listen("127.84.0.1:0")
        .service("web", web.address())
        .peer_id("client", identity.id(), 2, "");
    let friend = friend.start().await.unwrap();
    // It takes connections, and says nothing.
    let dead = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let script = "fn route(c) { i2p().or(peer(\"friend\").direct()) }";
    for (router, expected, patience) in [
        (nobody().await, "not reached: connection refused", 10),
        (dead.local_addr().unwrap(), "no answer within 5 s", 20),
    ] {
        let client = Setup::with_identity("client", &identity)
            .unwrap()
            .entrances()
            .script("rules.rhai", script)
            .peer(&friend, 2)
            .config(&format!("[i2p]\nsam = \"{router}\"\n"));
        let client = client.start().await.unwrap();
        let begun = Instant::now();
        let proxy = format!("socks5h://{}", client.entrance("socks5").unwrap());
        let fetched = curl(&proxy, "http://site.i2p/", &[]).await.unwrap();
        let body = String::from_utf8_lossy(&fetched.body);
        assert!(body.contains(SITE_GREETING), "{fetched:?}");
        assert!(begun.elapsed() < Duration::from_secs(patience));
        let steps = steps(&client, 1).await;
        let [(i2p, error), (direct, none)] = steps.as_slice() else {
            panic!("{steps:?}");
        };
        assert_eq!((i2p.as_str(), direct.as_str()), ("i2p", "direct to friend"));
        assert!(error.contains(expected), "{error}");
        assert_eq!(none, "");
        let status = client.cli(&["i2p", "status"]).unwrap();
        assert!(status.contains(&format!("{router}: NO, ")), "{status}");
        let mut netcheck = client.cli_command(&["netcheck"]).unwrap();
        let netcheck = netcheck.output().unwrap();
        let said = String::from_utf8_lossy(&netcheck.stdout);
        assert!(!netcheck.status.success(), "{said}");
        assert!(said.contains("start an I2P router"), "{said}");
    }
}

#[tokio::test]
async fn what_is_not_of_i2p_never_goes_there() {
    let router = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let script = "fn route(c) { i2p().closed() }";
    let client = client(router.local_addr().unwrap(), script);
    let client = client.start().await.unwrap();
    let targets = [
        "web.example",
        "127.0.0.1",
        "192.0.2.1",
        "x.onion",
        "printer.local",
    ];
    for (flow, target) in (1..).zip(targets) {
        assert_eq!(ask(&client, target).await, 2, "{target}");
        let steps = steps(&client, flow).await;
        assert!(steps[0].1.contains("end with .i2p"), "{steps:?}");
    }
    let local = (Ipv4Addr::LOCALHOST, 0);
    let entrance = client.entrance("socks5").unwrap();
    let control = TcpStream::connect(entrance).await.unwrap();
    let socket = UdpSocket::bind(local).await.unwrap();
    let association = Association::open(control, socket, None).await.unwrap();
    let target = "site.i2p:53".parse().unwrap();
    let asked = association.ask(&target, b"question");
    let answered = tokio::time::timeout(Duration::from_secs(2), asked).await;
    assert!(answered.is_err(), "{answered:?}");
    let steps = steps(&client, 1 + targets.len() as u64).await;
    assert!(steps[0].1.contains("I2P carries streams"), "{steps:?}");
}

#[tokio::test]
async fn a_script_that_names_i2p_is_refused_where_there_is_no_router() {
    let good = "fn route(c) { direct() }";
    let client = Setup::new("client").unwrap().script("rules.rhai", good);
    let client = client.start().await.unwrap();
    let script = client.folder().join("rules.rhai");
    std::fs::write(script, "fn route(c) {\n  i2p()\n}").unwrap();
    let mut load = client.cli_command(&["script", "load"]).unwrap();
    let refused = load.output().unwrap();
    assert!(!refused.status.success());
    let refused = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.contains("rules.rhai:2:3"), "{refused}");
    assert!(refused.contains("set `sam` in [i2p]"), "{refused}");
    let check = |more: &str| {
        let config = client.folder().join("checked.toml");
        let text = format!("[rules]\nscripts = [\"rules.rhai\"]\n{more}");
        std::fs::write(&config, text).unwrap();
        let config = config.display().to_string();
        let mut check = client.cli_command(&["script", "check", "--config", &config]);
        check.as_mut().unwrap().output().unwrap()
    };
    let without = check("");
    let said = String::from_utf8_lossy(&without.stdout);
    assert!(!without.status.success(), "{said}");
    assert!(said.contains("set `sam` in [i2p]"), "{said}");
    assert!(check("[i2p]\nsam = \"127.0.0.1:7656\"").status.success());
}

#[tokio::test]
async fn a_router_that_speaks_something_else_is_told_as_such() {
    let site = Site::start("no router", Ipv4Addr::LOCALHOST, None);
    let site = site.await.unwrap();
    let client = client(site.address(), "fn route(c) { i2p().closed() }");
    let client = client.start().await.unwrap();
    assert_eq!(ask(&client, "site.i2p").await, 1);
    let steps = steps(&client, 1).await;
    assert!(steps[0].1.contains("it does not speak SAM"), "{steps:?}");
    let page = browse(&format!("http://{}/", site.address()), &[]).await;
    assert_eq!(page.unwrap().status, 200);
}
