//! A request that two routers send to each other.

use std::{fs, net::SocketAddr};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wormholes_tests::{Daemon, EchoServer, Setup, socks5_connect, until};

/// Two routers, each of which sends everything on to the other, except to the echo.
struct Loop {
    echo: EchoServer,
    one: Daemon,
    other: Daemon,
    entrance: SocketAddr,
}

impl Loop {
    /// `first` is what their scripts do before.
    async fn start(first: &str) -> Self {
        let echo = EchoServer::start([127, 84, 0, 1].into()).await.unwrap();
        let port = echo.address().port();
        let on_to = |other: SocketAddr| {
            format!(
                "fn route(c) {{
                    if c.port == {port} {{ return direct(); }}
                    {first}
                    socks(\"{other}\")
                }}"
            )
        };
        let router = |name: &str, script: &str| {
            let setup = Setup::new(name).unwrap().entrances();
            setup.script("rules.rhai", script).start()
        };
        let one = router("one", "fn route(c) { block(\"\") }").await.unwrap();
        let entrance = one.entrance("socks5").unwrap();
        let other = router("other", &on_to(entrance)).await.unwrap();
        let script = on_to(other.entrance("socks5").unwrap());
        fs::write(one.folder().join("rules.rhai"), script).unwrap();
        one.call("script.load", json!({})).await.unwrap();
        Self {
            echo,
            one,
            other,
            entrance,
        }
    }

    /// All flows end, and others are carried as before. Gives how many each router refused.
    async fn ends(&self) -> [u64; 2] {
        for router in [&self.one, &self.other] {
            until("all its flows to end", async || {
                (open(router).await == 0).then_some(())
            })
            .await
            .unwrap();
        }
        let (target, port) = (self.echo.address().ip(), self.echo.address().port());
        let flow = socks5_connect(self.entrance, &target.to_string(), port).await;
        assert!(flow.is_ok(), "{flow:?}");
        assert_eq!(open(&self.one).await, 1);
        [failed(&self.one).await, failed(&self.other).await]
    }
}

#[tokio::test]
async fn a_loop_over_two_routers_ends_by_itself() {
    let looped = Loop::start("").await;
    let refused = socks5_connect(looped.entrance, "a.example", 80).await;
    let refused = refused.unwrap_err().to_string();
    assert_eq!(refused, "refused with reply code 1");
    // 256 came round; each that the other router tried again was turned away at the door.
    for failed in looped.ends().await {
        assert!((256..2000).contains(&failed), "{failed}");
    }
    let end = end_of(&looped.one, 1).await;
    assert!(says_so(&end), "{end}");
}

/// Each router tells the other that the flow is open, before it is.
#[tokio::test]
async fn a_loop_of_flows_that_are_answered_early_ends_by_itself() {
    let looped = Loop::start("if c.sni == \"never.example\" { return block(); }").await;
    let mut flow = socks5_connect(looped.entrance, "a.example", 80)
        .await
        .unwrap();
    flow.write_all(b"round and round").await.unwrap();
    let end = flow.read_to_end(&mut Vec::new()).await;
    assert!(end.is_err(), "{end:?}");
    let failed = looped.ends().await;
    // The last one, and those that the other router tried in its place.
    let failed = failed.iter().sum::<u64>();
    assert!((1..20).contains(&failed), "{failed}");
    let last = [
        end_of(&looped.one, 257).await,
        end_of(&looped.other, 257).await,
    ];
    assert!(last.iter().any(|end| says_so(end)), "{last:?}");
}

fn says_so(end: &str) -> bool {
    end.contains("is there a loop") && end.contains("opening_per_target")
}

async fn end_of(router: &Daemon, flow: u64) -> String {
    let why = router.call("why", json!({ "flow": flow })).await;
    let why = why.unwrap_or_default();
    why["end"].as_str().unwrap_or_default().to_owned()
}

async fn status(router: &Daemon) -> Value {
    router.call("status", json!({})).await.unwrap()
}

async fn open(router: &Daemon) -> u64 {
    status(router).await["flows"]["open"].as_u64().unwrap()
}

async fn failed(router: &Daemon) -> u64 {
    status(router).await["flows"]["failed"].as_u64().unwrap()
}
