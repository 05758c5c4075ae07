//! A request that two routers send to each other.

use std::{fs, net::SocketAddr};

use serde_json::json;
use wormholes_tests::{Daemon, EchoServer, Setup, socks5_connect, until};

/// Everything goes on to the other router, except to this port.
fn on_to(other: SocketAddr, direct_port: u16) -> String {
    format!(
        "fn route(c) {{ if c.port == {direct_port} {{ direct() }} else {{ socks(\"{other}\") }} }}"
    )
}

#[tokio::test]
async fn a_loop_over_two_routers_ends_by_itself() {
    let echo = EchoServer::start([127, 84, 0, 1].into()).await.unwrap();
    let port = echo.address().port();
    let router = |name: &str, script: &str| {
        let setup = Setup::new(name).unwrap().entrances();
        setup.script("rules.rhai", script).start()
    };
    let one = router("one", "fn route(c) { block(\"\") }").await.unwrap();
    let entrance = one.entrance("socks5").unwrap();
    let other = router("other", &on_to(entrance, port)).await.unwrap();
    let script = on_to(other.entrance("socks5").unwrap(), port);
    fs::write(one.folder().join("rules.rhai"), script).unwrap();
    one.call("script.load", json!({})).await.unwrap();

    let refused = socks5_connect(entrance, "a.example", 80).await.unwrap_err();
    assert_eq!(refused.to_string(), "refused with reply code 1");
    for router in [&one, &other] {
        until("all its flows to end", async || {
            (open(router).await == 0).then_some(())
        })
        .await
        .unwrap();
        // 256 came round; each that the other router tried again was turned away at the door.
        let failed = status(router).await["flows"]["failed"].as_u64().unwrap();
        assert!((256..2000).contains(&failed), "{failed}");
    }
    let why = one.call("why", json!({ "flow": 1 })).await.unwrap();
    let end = why["end"].as_str().unwrap();
    assert!(
        end.contains("is there a loop") && end.contains("opening_per_target"),
        "{end}"
    );

    let target = echo.address().ip().to_string();
    let flow = socks5_connect(entrance, &target, port).await;
    assert!(flow.is_ok(), "{flow:?}");
    assert_eq!(open(&one).await, 1);
}

async fn status(router: &Daemon) -> serde_json::Value {
    router.call("status", json!({})).await.unwrap()
}

async fn open(router: &Daemon) -> u64 {
    status(router).await["flows"]["open"].as_u64().unwrap()
}
