//! Plugins and users that go while their messages are on the way, on a real daemon: nothing of them
//! comes back for whoever has their place next.

use std::fs;

use anyhow::Result;
use futures_util::future::join_all;
use serde_json::{Value, json};
use wormholes_tests::{Daemon, Setup, until};

/// Messages of one event each that are on the way then.
const MESSAGES: usize = 20;
const ROUNDS: usize = 8;

/// Has the meter send a message, as a user or as the node, to a user or to the node.
async fn send(daemon: &Daemon, user: Option<&str>, to: Option<&str>) -> Result<Value> {
    let mut arguments = json!({ "node": daemon.id().as_bytes() });
    if let Some(to) = to {
        arguments["user"] = to.into();
    }
    meter(daemon, "send", arguments, user).await
}

async fn meter(
    daemon: &Daemon,
    command: &str,
    arguments: Value,
    user: Option<&str>,
) -> Result<Value> {
    let ask = json!({
        "instance": "meter", "command": command, "arguments": arguments, "user": user,
    });
    daemon.call("plugin.ask", ask).await
}

/// Has messages sent while `leave` is under way: some are refused.
async fn send_while<T>(daemon: &Daemon, user: Option<&str>, leave: impl Future<Output = T>) -> T {
    let sends = join_all((0..MESSAGES).map(|_| send(daemon, user, None)));
    tokio::join!(sends, leave).1
}

/// All that is sent from now on comes, and nothing besides. An event counts, whether it sends or takes.
async fn all_come(daemon: &Daemon, user: Option<&str>) {
    let count = async || meter(daemon, "count", json!({}), user).await.unwrap();
    assert_eq!(count().await, json!(0));
    // What was on its way before comes with the first of them, and is seen with the second.
    for sent in [MESSAGES, 2 * MESSAGES] {
        for _ in 0..MESSAGES {
            send(daemon, user, user).await.unwrap();
        }
        until("all messages", async || {
            (count().await.as_u64()? >= 2 * sent as u64).then_some(())
        })
        .await
        .unwrap();
    }
    assert_eq!(count().await, json!(4 * MESSAGES));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_number_of_a_purged_plugin_gets_nothing_of_it() {
    let setup = Setup::new("node").unwrap().plugin("tests/meter").unwrap();
    let daemon = &setup.start().await.unwrap();
    let config = daemon.folder().join("config.toml");
    let with = fs::read_to_string(&config).unwrap();
    let (without, _) = with.split_once("[plugin.meter]").unwrap();
    for _ in 0..ROUNDS {
        fs::write(&config, without).unwrap();
        let purge = json!({ "instance": "meter", "purge": true });
        let purge = daemon.call("plugin.remove", purge);
        send_while(daemon, None, purge).await.unwrap();
        fs::write(&config, &with).unwrap();
        let add = json!({ "instance": "meter" });
        daemon.call("plugin.add", add).await.unwrap();
        all_come(daemon, None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_number_of_a_purged_user_gets_nothing_of_his() {
    let setup = Setup::new("node").unwrap().plugin("tests/meter").unwrap();
    let mut daemon = setup.start().await.unwrap();
    for round in 0..2 * ROUNDS {
        let name = format!("user-{round}");
        daemon
            .call("user.add", json!({ "name": name }))
            .await
            .unwrap();
        let purge = json!({ "name": name, "purge": true });
        let purge = daemon.call("user.remove", purge);
        let purged = if round % 2 == 0 {
            send_while(&daemon, Some(&name), purge).await
        } else {
            all_come(&daemon, Some(&name)).await;
            purge.await
        };
        purged.unwrap();
        // Numbers of those that are gone are given again after a start.
        daemon.kill().unwrap();
        daemon.restart().await.unwrap();
    }
}
