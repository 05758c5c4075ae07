//! Flows that live while a direct path to their friend opens: those that would rather be direct go
//! over to it whole, and outlive their relay; the others stay, and end with it.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::join_all;
use ring::digest::{Context, SHA256};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use wormholes_tests::{
    Daemon, EchoServer, Link, Metrics, Namespace, Setup, echoes, soak_rounds, socks5_echo, until,
    until_within,
};

/// From the client to its friend, from it to the relay, and from the friend to the relay.
const STRAIGHT: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 79, 1, 1), Ipv4Addr::new(10, 79, 1, 2)];
const STRAIGHT_NETWORK: &str = "10.79.1.0/24";
const TO_RELAY: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 79, 2, 1), Ipv4Addr::new(10, 79, 2, 2)];
const FROM_RELAY: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 79, 3, 2), Ipv4Addr::new(10, 79, 3, 1)];

/// The port says how the flow shall travel.
const SCRIPT: &str = r#"
fn route(c) {
    let friend = c.node;
    let relayed = friend.relayed(relay("relay"));
    switch c.port {
        1 => friend.direct().or(relayed).closed(),
        2 => relayed.migrate("streams"),
        3 => relayed.closed(),
        4 => friend.direct().or(relayed).migrate("none"),
        _ => friend.direct().closed(),
    }
}"#;
const RATHER_DIRECT: u16 = 1;
const ASKS: u16 = 2;
const CLOSED: u16 = 3;
const STAYS: u16 = 4;
const DIRECT: u16 = 5;

const METRICS: &str = "[metrics]\nlisten = \"127.0.0.1:0\"";
const PIECE_BYTES: usize = 16 << 10;
/// A path is missed after 15 s without a word, on either side of a relay.
const MISSED: Duration = Duration::from_secs(60);
/// A peer is dialled again after 15 s, and the dial before may take as long.
const DIALLED: Duration = Duration::from_secs(60);

/// A client, a relay and a friend with an echo on a host each; no direct path at first.
struct Scene {
    here: Namespace,
    client: Daemon,
    relay: Daemon,
    middle: Namespace,
    _friend: Daemon,
    _there: Namespace,
    _echo: EchoServer,
}

impl Scene {
    /// `keys` are for the friend's `[node]`.
    async fn start(keys: &str) -> Self {
        let [here, there, middle] = [(); 3].map(|()| Namespace::new().unwrap());
        for (one, other, [first, second]) in [
            (&here, &there, STRAIGHT),
            (&here, &middle, TO_RELAY),
            (&middle, &there, FROM_RELAY),
        ] {
            one.join(other, Link { first, second }).unwrap();
        }
        here.shut(STRAIGHT_NETWORK).unwrap();
        let echo = EchoServer::start_in(&there).unwrap();
        let client = Setup::new("client").unwrap().in_namespace(&here);
        let client = client.entrances().script("rules.rhai", SCRIPT);
        let friend = Setup::new("friend").unwrap().in_namespace(&there);
        let friend = friend.listen("0.0.0.0:0").node(keys);
        let relay = Setup::new("relay").unwrap().in_namespace(&middle);
        let relay = relay.listen("0.0.0.0:0").config(METRICS);
        let relay = relay.config("[relay]\nenabled = true");
        let relay = relay.peer_id("client", client.id(), 2, "");
        let relay = relay.peer_id("friend", friend.id(), 2, "");
        let relay = relay.start().await.unwrap();
        let at = |ip: Ipv4Addr, port: u16| format!("addresses = [\"{ip}:{port}\"]\n");
        let port = relay.listen().unwrap().port();
        let registered = at(FROM_RELAY[0], port) + "register = true";
        let friend = friend.peer_id("relay", relay.id(), 2, &registered);
        let friend = friend.peer_id("client", client.id(), 2, "");
        let friend = friend.service("echo", echo.address());
        let friend = friend.start().await.unwrap();
        friend.until_registered().await.unwrap();
        let client = client.peer_id("relay", relay.id(), 2, &at(TO_RELAY[1], port));
        let port = friend.listen().unwrap().port();
        let known = at(STRAIGHT[1], port) + "via = [\"relay\"]";
        let client = client.peer_id("friend", friend.id(), 2, &known);
        Self {
            client: client.config(METRICS).start().await.unwrap(),
            here,
            relay,
            middle,
            _friend: friend,
            _there: there,
            _echo: echo,
        }
    }

    /// A flow to the friend's echo, which answered.
    async fn open(&self, port: u16) -> Result<TcpStream, String> {
        let entrance = self.client.entrance("socks5").unwrap();
        let opened = socks5_echo(&self.here, entrance, "echo.friend.wh", port);
        opened.await.unwrap()
    }

    async fn open_busy(&self, port: u16, n_flows: usize) -> Vec<Busy> {
        let flows = (0..n_flows).map(async |_| Busy::start(self.open(port).await.unwrap()));
        let flows = join_all(flows).await;
        join_all(flows.iter().map(Busy::until_more)).await;
        flows
    }

    /// Has packets pass, and waits until a connection came about by it.
    async fn open_path(&self) {
        self.here.open().unwrap();
        let is_direct = async || self.open(DIRECT).await.ok().map(drop);
        until_within(DIALLED, "a flow that goes straight", is_direct)
            .await
            .unwrap();
    }

    /// How many flows live, by the kind of their tunnel.
    async fn tunnels(&self) -> BTreeMap<String, usize> {
        let flows = self.client.call("flows", json!({})).await.unwrap();
        let mut tunnels = BTreeMap::new();
        for flow in flows["flows"].as_array().unwrap() {
            let tunnel = flow["tunnel"].as_str().unwrap_or("none");
            *tunnels.entry(tunnel.to_owned()).or_default() += 1;
        }
        tunnels
    }

    async fn until_tunnels(&self, expected: &[(&str, usize)]) {
        let expected = expected
            .iter()
            .map(|(kind, count)| ((*kind).to_owned(), *count));
        let expected: BTreeMap<String, usize> = expected.collect();
        let mut last = BTreeMap::new();
        let as_expected = async || {
            last = self.tunnels().await;
            (last == expected).then_some(())
        };
        let met = until("flows to be where they belong", as_expected).await;
        assert!(met.is_ok(), "{last:?} in place of {expected:?}");
    }

    /// Circuits that the relay carries.
    async fn circuits(&self) -> usize {
        let metrics = Metrics::read_in(&self.middle, &self.relay).await.unwrap();
        metrics.get("wormholes_circuits_open{role=\"relay\"}") as usize
    }

    async fn moved(&self, result: &str) -> usize {
        let metrics = Metrics::read_in(&self.here, &self.client).await.unwrap();
        metrics.get(&format!(
            "wormholes_flows_moved_total{{result=\"{result}\"}}"
        )) as usize
    }
}

/// A flow that is full in both directions.
struct Busy {
    there: Arc<AtomicU64>,
    back: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<(), String>>,
}

impl Busy {
    fn start(stream: TcpStream) -> Self {
        let (there, back) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let stop = Arc::<AtomicBool>::default();
        let (left, came, stopped) = (Arc::clone(&there), Arc::clone(&back), Arc::clone(&stop));
        let (mut reader, mut writer) = stream.into_split();
        let send = async move {
            let mut sent = Context::new(&SHA256);
            for number in 0_u64.. {
                if stopped.load(Relaxed) {
                    break;
                }
                let piece = number.to_be_bytes().repeat(PIECE_BYTES / 8);
                sent.update(&piece);
                writer.write_all(&piece).await?;
                left.fetch_add(piece.len() as u64, Relaxed);
            }
            writer.shutdown().await?;
            Ok::<_, std::io::Error>(sent.finish())
        };
        let receive = async move {
            let mut heard = Context::new(&SHA256);
            let mut piece = vec![0; PIECE_BYTES];
            loop {
                let read = reader.read(&mut piece).await?;
                if read == 0 {
                    return Ok::<_, std::io::Error>(heard.finish());
                }
                heard.update(&piece[..read]);
                came.fetch_add(read as u64, Relaxed);
            }
        };
        let task = tokio::spawn(async move {
            let both = tokio::try_join!(send, receive);
            let (sent, heard) = both.map_err(|error| format!("cut: {error}"))?;
            match sent.as_ref() == heard.as_ref() {
                true => Ok(()),
                false => Err("it ended in order with other bytes".to_owned()),
            }
        });
        Self {
            there,
            back,
            stop,
            task,
        }
    }

    /// Waits until all that has left by now came back, and more.
    async fn until_more(&self) {
        let all = self.there.load(Relaxed);
        let more = async || (self.back.load(Relaxed) > all).then_some(());
        until("more bytes to come back", more).await.unwrap();
    }

    /// Says no more, and hears all.
    async fn end(self) -> Result<(), String> {
        self.stop.store(true, Relaxed);
        let ended = timeout(MISSED, self.task).await;
        ended.expect("the flow ends").unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn living_flows_go_over_to_a_direct_path_and_outlive_their_relay() {
    for keys in ["carriers = [\"quic\"]", "carriers = [\"tcp\"]"] {
        let mut scene = Scene::start(keys).await;
        let n_busy = soak_rounds(4);
        let mut busy = scene.open_busy(RATHER_DIRECT, n_busy).await;
        busy.extend(scene.open_busy(ASKS, 1).await);
        let mut idle = scene.open(RATHER_DIRECT).await.unwrap();
        let n_moving = busy.len() + 1;
        let mut staying = scene.open_busy(CLOSED, 1).await;
        staying.extend(scene.open_busy(STAYS, 1).await);
        scene.until_tunnels(&[("relay", n_moving + 2)]).await;
        scene.open_path().await;
        scene
            .until_tunnels(&[("direct", n_moving), ("relay", 2)])
            .await;
        let left = async || (scene.circuits().await == 2).then_some(());
        until("the relay to carry only who stays", left)
            .await
            .unwrap();
        assert_eq!(scene.moved("moved").await, n_moving, "{keys}");
        // What comes back left after the last that the relay had.
        echoes(&mut idle).await.unwrap();
        join_all(busy.iter().map(Busy::until_more)).await;
        scene.relay.kill().unwrap();
        for flow in staying {
            let error = flow.end().await.expect_err("it went by the relay");
            assert!(error.starts_with("cut"), "{keys}: {error}");
        }
        echoes(&mut idle).await.unwrap();
        join_all(busy.iter().map(Busy::until_more)).await;
        for flow in busy {
            flow.end().await.unwrap();
        }
    }
}

/// Each flow is whole, or is cut where it was; none ends in order with less.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_dies_while_flows_go_over_ends_those_that_it_still_has() {
    for round in 0..soak_rounds(1) {
        let mut scene = Scene::start("").await;
        let flows = scene.open_busy(RATHER_DIRECT, 8).await;
        scene.here.open().unwrap();
        // Later in each round.
        let n_moved = 1 + round % flows.len();
        let begun = async || (scene.moved("moved").await >= n_moved).then_some(());
        until_within(DIALLED, "a flow to go over", begun)
            .await
            .unwrap();
        scene.relay.kill().unwrap();
        for flow in flows {
            if let Err(error) = flow.end().await {
                assert!(error.starts_with("cut"), "{error}");
            }
        }
        scene.until_tunnels(&[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_is_told_by_which_tunnel_a_flow_goes_on() {
    let scene = Scene::start("").await;
    let mut events = scene.client.events().await.unwrap();
    let mut flow = scene.open(RATHER_DIRECT).await.unwrap();
    scene.open_path().await;
    scene.until_tunnels(&[("direct", 1)]).await;
    let moved = events.next(|event| event["kind"] == "flow-moved").await;
    let moved = moved.unwrap();
    assert_eq!(
        (&moved["from"], &moved["tunnel"]),
        (&json!("relay"), &json!("direct"))
    );
    let flows = scene.client.call("flows", json!({})).await.unwrap();
    let path = flows["flows"][0]["path"].as_array().unwrap();
    assert_eq!(path.len(), 1, "{flows}");
    assert_eq!(path[0]["name"], "friend", "{flows}");
    let why = scene
        .client
        .call("why", json!({ "flow": moved["flow"] }))
        .await;
    let why = why.unwrap();
    let opened = why["steps"].as_array().unwrap().last().unwrap();
    assert!(
        opened["tunnel"].as_str().unwrap().starts_with("relay"),
        "{why}"
    );
    echoes(&mut flow).await.unwrap();
    let status = scene.client.call("status", json!({})).await.unwrap();
    assert_eq!(status["flows"]["opened"]["relay"], 1, "{status}");
}
