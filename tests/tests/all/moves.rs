//! What moves: an address of this machine, an address of a peer, a path that dies and tells nobody,
//! and time, while a node sleeps. Flows over QUIC live on where QUIC can; new ones take the next
//! step of their plan within two seconds.

#[path = "moves/suspended.rs"]
mod suspended;

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use rustix::process::Signal;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use wormholes_tests::{
    Daemon, EchoServer, Link, Namespace, Setup, is_soak, run, soak_rounds, socks5_echo, until,
    until_within,
};

/// What a new flow may take at p99 when the first step of its plan leads nowhere.
const LIMIT: Duration = Duration::from_secs(2);
/// The same where others use the machine too, and nearly all of the time is waits for signs of life.
const LIMIT_IN_CI: Duration = Duration::from_secs(4);
/// Each is reached over both carriers: ten paths die at once.
const FRIENDS: usize = 5;
/// On each path one after the other: the first finds a connection that stood, the next ones a dial
/// that runs, or failed.
const FLOWS: usize = 3;
/// How often each thing happens in a soak, so that p99 is a figure.
const RUNS: usize = 100;
/// How long a machine sleeps in a soak; in continuous integration, until others miss it.
const SLEEP: Duration = Duration::from_secs(60);
/// How often in a soak: a minute passes in no other way than by waiting, so that not the sleeps are
/// a hundred but the flows behind them, of which each sleep has 4 times [`AWAKE`].
const SLEEPS: usize = 3;
/// New flows of each kind, all at once, when it wakes.
const AWAKE: usize = 10;

/// From the client to its friends, from it to the relay, and from friends to the relay.
const STRAIGHT: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 73, 1, 1), Ipv4Addr::new(10, 73, 1, 2)];
const STRAIGHT_NETWORK: &str = "10.73.1.0/24";
/// The client's, which has its host to itself.
const PORT: u16 = 4433;
const TO_RELAY: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 73, 2, 1), Ipv4Addr::new(10, 73, 2, 2)];
const FROM_RELAY: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 73, 3, 2), Ipv4Addr::new(10, 73, 3, 1)];

/// The port says what is wanted of the friend that the name names.
const SCRIPT: &str = r#"
fn route(c) {
    let friend = if c.node == () { peer("friend0") } else { c.node };
    let relayed = friend.relayed(relay("relay"));
    switch c.port {
        1 => friend.direct().carrier("quic").or(relayed).closed(),
        2 => friend.direct().carrier("tcp").or(relayed).closed(),
        3 => friend.direct().carrier("quic").closed(),
        4 => relayed.closed(),
        5 => friend.direct().or(relayed).closed(),
        _ => friend.direct().exit().or(direct()).closed(),
    }
}"#;
const OVER_QUIC: u16 = 3;
const RELAYED: u16 = 4;
const ANY: u16 = 5;
const EXIT: u16 = 6;

/// A client, a relay, and friends on one host, each host joined with both others.
struct Scene {
    here: Namespace,
    there: Namespace,
    client: Daemon,
    friends: Vec<Daemon>,
    _relay: Daemon,
    middle: Namespace,
    _echo: EchoServer,
}

impl Scene {
    /// `more` is for the friends' `[node]`; `calls` says whether they know where the client is.
    async fn start(n_friends: usize, more: &str, calls: bool) -> Self {
        let [here, there, middle] = [(); 3].map(|()| Namespace::new().unwrap());
        for (one, other, [first, second]) in [
            (&here, &there, STRAIGHT),
            (&here, &middle, TO_RELAY),
            (&middle, &there, FROM_RELAY),
        ] {
            one.join(other, Link { first, second }).unwrap();
        }
        let echo = EchoServer::start_in(&there).unwrap();
        let client = Setup::new("client").unwrap().in_namespace(&here);
        let client = client.entrances().listen(&format!("0.0.0.0:{PORT}"));
        let client = client.script("rules.rhai", SCRIPT);
        let name = |number: usize| format!("friend{number}");
        let friends: Vec<Setup> = (0..n_friends)
            .map(|number| Setup::new(&name(number)).unwrap())
            .collect();
        let relay = Setup::new("relay").unwrap().in_namespace(&middle);
        let relay = relay.listen("0.0.0.0:0").config("[relay]\nenabled = true");
        let mut relay = relay.peer_id("client", client.id(), 2, "");
        for (number, friend) in friends.iter().enumerate() {
            relay = relay.peer_id(&name(number), friend.id(), 2, "");
        }
        let relay = relay.start().await.unwrap();
        let at = |ip: Ipv4Addr, port: u16| format!("addresses = [\"{ip}:{port}\"]\n");
        let relay_port = relay.listen().unwrap().port();
        let registered = at(FROM_RELAY[0], relay_port) + "register = true";
        let started = friends.into_iter().map(|friend| {
            let friend = friend.in_namespace(&there).listen("0.0.0.0:0").node(more);
            let friend = friend.peer_id("relay", relay.id(), 2, &registered);
            let address = match calls {
                true => at(STRAIGHT[0], PORT),
                false => String::new(),
            };
            let friend = friend.peer_id("client", client.id(), 2, &address);
            let friend = friend.service("echo", echo.address());
            friend.config("[exit]\nenabled = true\nallow = [\"0.0.0.0/0\"]\nallow_private = true")
        });
        let started = join_all(started.map(Setup::start)).await.into_iter();
        let friends: Vec<Daemon> = started.map(Result::unwrap).collect();
        for friend in &friends {
            friend.until_registered().await.unwrap();
        }
        let mut client = client.peer_id("relay", relay.id(), 2, &at(TO_RELAY[1], relay_port));
        for friend in &friends {
            let port = friend.listen().unwrap().port();
            let keys = at(STRAIGHT[1], port) + "via = [\"relay\"]";
            client = client.peer_id(friend.name(), friend.id(), 2, &keys);
        }
        Self {
            client: client.start().await.unwrap(),
            here,
            there,
            friends,
            _relay: relay,
            middle,
            _echo: echo,
        }
    }

    /// Lets the relay's host pass packets on between the two others.
    fn forward(&self) {
        let middle = &self.middle;
        let set = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        run(middle.command("sh").args(["-c", set])).unwrap();
        for (host, to, via) in [
            (&self.here, "default", TO_RELAY[1]),
            (&self.there, "default", FROM_RELAY[0]),
            (middle, "10.73.1.2/32", FROM_RELAY[1]),
        ] {
            let via = via.to_string();
            host.ip(&["route", "add", to, "via", &via]).unwrap();
        }
    }

    /// Gives `host` another address of the same /24.
    fn readdress(host: &Namespace, from: Ipv4Addr, to: Ipv4Addr) {
        let interface = host.interface(from).unwrap();
        // The other way round, the new one would go with the old one.
        for (change, address) in [("del", from), ("add", to)] {
            let address = format!("{address}/24");
            host.ip(&["address", change, &address, "dev", &interface])
                .unwrap();
        }
    }

    /// A flow to a friend's echo, which answered.
    async fn open(&self, friend: usize, port: u16) -> Result<TcpStream, String> {
        self.open_to(&format!("echo.friend{friend}.wh"), port).await
    }

    async fn open_to(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let entrance = self.client.entrance("socks5").unwrap();
        let opened = socks5_echo(&self.here, entrance, host, port);
        opened.await.unwrap()
    }

    /// How many flows were opened by tunnels of this kind.
    async fn opened(&self, kind: &str) -> u64 {
        let status = self.client.call("status", json!({})).await.unwrap();
        status["flows"]["opened"][kind].as_u64().unwrap_or(0)
    }

    /// Waits until a flow goes straight to each friend over each carrier.
    async fn until_straight(&self) {
        let flows = (0..self.friends.len()).flat_map(|friend| [(friend, 1), (friend, 2)]);
        let flows = flows.map(async |(friend, port)| {
            let is_straight = async || {
                let before = self.opened("relay").await;
                self.open(friend, port).await.ok()?;
                (self.opened("relay").await == before).then_some(())
            };
            until("a flow that goes straight", is_straight)
                .await
                .unwrap();
        });
        join_all(flows).await;
    }
}

/// A flow whose bytes come back, piece by piece.
struct Moving {
    pieces: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<(), String>>,
}

impl Moving {
    fn start(mut stream: TcpStream) -> Self {
        let (pieces, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (counter, stopped) = (Arc::clone(&pieces), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            while !stopped.load(Relaxed) {
                let number = counter.load(Relaxed);
                let piece = number.to_be_bytes().repeat(1024);
                let mut back = vec![0; piece.len()];
                let (mut reader, mut writer) = stream.split();
                let both = tokio::try_join!(writer.write_all(&piece), reader.read_exact(&mut back));
                both.map_err(|error| format!("after {number} pieces: {error}"))?;
                if back != piece {
                    return Err(format!("piece {number} came back as another one"));
                }
                counter.fetch_add(1, Relaxed);
            }
            Ok(())
        });
        Self { pieces, stop, task }
    }

    async fn until_more(&self) {
        let before = self.pieces.load(Relaxed);
        let more = async || (self.pieces.load(Relaxed) > before + 1).then_some(());
        until("more pieces to come back", more).await.unwrap();
    }

    async fn end(self) -> Result<(), String> {
        self.stop.store(true, Relaxed);
        self.task.await.unwrap()
    }
}

fn limit() -> Duration {
    if is_soak() { LIMIT } else { LIMIT_IN_CI }
}

fn runs() -> usize {
    let rounds = soak_rounds(1);
    if is_soak() { rounds.max(RUNS) } else { rounds }
}

fn sleeps() -> usize {
    if is_soak() { SLEEPS } else { 1 }
}

/// Waits until a machine that fell asleep at `since` has slept for long enough.
async fn until_slept(since: Instant) {
    let least = if is_soak() { SLEEP } else { Duration::ZERO };
    let slept = async || (since.elapsed() >= least).then_some(());
    until_within(2 * SLEEP, "a sleep to be over", slept)
        .await
        .unwrap();
}

/// Prints how long flows took, and holds all but one in a hundred against the limit.
fn assert_soon(what: &str, mut took: Vec<Duration>) {
    took.sort();
    let count = took.len();
    let at = |percent: usize| took[(count * percent).div_ceil(100) - 1];
    let (p50, p99, max) = (at(50), at(99), at(100));
    eprintln!("{what}: {count} flows, p50 {p50:?}, p99 {p99:?}, max {max:?}");
    assert!(p99 <= limit(), "{what}: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_flows_leave_a_path_that_died_in_silence_within_two_seconds() {
    let scene = Scene::start(FRIENDS, "", false).await;
    let mut took = [(); FLOWS].map(|()| Vec::new());
    for _ in 0..runs() {
        scene.until_straight().await;
        let before = scene.opened("relay").await;
        scene.here.shut(STRAIGHT_NETWORK).unwrap();
        let paths = (0..FRIENDS).flat_map(|friend| [(friend, 1), (friend, 2)]);
        let paths = paths.map(async |(friend, port)| {
            let mut took = Vec::new();
            for _ in 0..FLOWS {
                let start = Instant::now();
                scene.open(friend, port).await.unwrap();
                took.push(start.elapsed());
            }
            took
        });
        for path in join_all(paths).await {
            for (all, one) in took.iter_mut().zip(path) {
                all.push(one);
            }
        }
        let relayed = scene.opened("relay").await - before;
        assert_eq!(
            relayed,
            (2 * FRIENDS * FLOWS) as u64,
            "all took the next step"
        );
        scene.here.open().unwrap();
    }
    for (flow, took) in took.into_iter().enumerate() {
        assert_soon(&format!("flow {} after a path died", flow + 1), took);
    }
}

/// The client sends from its new address, and the friend follows.
#[tokio::test(flavor = "multi_thread")]
async fn a_flow_over_quic_lives_on_when_the_clients_network_changes() {
    let (mut back, mut took) = (Vec::new(), Vec::new());
    for _ in 0..runs() {
        let scene = Scene::start(1, "", false).await;
        back.push(change_network(&scene, &mut took).await);
    }
    assert_soon("network changed: bytes of an old flow", back);
    assert_soon("network changed", took);
}

/// How long the bytes of a flow stayed away; `took` gets what new ones took.
async fn change_network(scene: &Scene, took: &mut Vec<Duration>) -> Duration {
    scene.until_straight().await;
    let moving = Moving::start(scene.open(0, OVER_QUIC).await.unwrap());
    moving.until_more().await;
    // What went straight by cable now goes by way of the relay's host.
    scene.forward();
    let cable = scene.here.interface(STRAIGHT[0]).unwrap();
    let start = Instant::now();
    for change in [
        &["link", "set", &cable, "down"][..],
        &["address", "flush", "dev", &cable],
    ] {
        scene.here.ip(change).unwrap();
    }
    moving.until_more().await;
    let back = start.elapsed();
    for port in [OVER_QUIC, 2, ANY, RELAYED] {
        let start = Instant::now();
        scene.open(0, port).await.unwrap();
        took.push(start.elapsed());
    }
    moving.end().await.unwrap();
    back
}

/// Over QUIC a registration moves along, over TCP it is made anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_friend_whose_address_changes_is_reached_through_its_relay_within_two_seconds() {
    for carriers in ["carriers = [\"quic\"]", "carriers = [\"tcp\"]"] {
        let mut took = Vec::new();
        for _ in 0..runs() {
            let scene = Scene::start(1, carriers, false).await;
            scene.open(0, RELAYED).await.unwrap();
            let start = Instant::now();
            Scene::readdress(&scene.there, FROM_RELAY[1], Ipv4Addr::new(10, 73, 3, 9));
            let opened = async || scene.open(0, RELAYED).await.ok();
            until("a flow through the relay", opened).await.unwrap();
            took.push(start.elapsed());
        }
        assert_soon(carriers, took);
    }
}

/// The client, which called, cannot know where the friend is by now; the friend does.
#[tokio::test(flavor = "multi_thread")]
async fn a_friend_that_moved_calls_and_is_gone_straight_to_again() {
    let (mut straight, mut took) = (Vec::new(), Vec::new());
    for _ in 0..runs() {
        let scene = Scene::start(1, "", true).await;
        scene.until_straight().await;
        let start = Instant::now();
        Scene::readdress(&scene.there, STRAIGHT[1], Ipv4Addr::new(10, 73, 1, 9));
        until("a flow that goes straight", async || {
            let (before, start) = (scene.opened("relay").await, Instant::now());
            scene.open(0, ANY).await.unwrap();
            took.push(start.elapsed());
            (scene.opened("relay").await == before).then_some(())
        })
        .await
        .unwrap();
        straight.push(start.elapsed());
    }
    let longest = straight.iter().max();
    eprintln!("the friend moved: straight again after {longest:?} at most");
    assert_soon("the friend moved", took);
}

/// The friend's idle time-out decides what lives on. The client is a process that was stopped, as
/// by SIGSTOP or a frozen cgroup, and not a machine that slept: its clock (CLOCK_MONOTONIC) went on,
/// so that all its time-outs are over at once when it goes on, and its kernel took packets for it all
/// the while. No time namespace helps, whose clocks are set before its first process; of a machine
/// whose clock stood still is [`suspended`].
#[tokio::test(flavor = "multi_thread")]
async fn flows_live_through_a_nap_and_new_ones_open_at_once_after_a_long_sleep() {
    let scene = Scene::start(1, "", false).await;
    let friend = &scene.friends[0];
    let sees_client = async |wanted: bool| {
        let peers = friend.call("peers", json!({})).await.ok()?;
        let mut peers = peers["peers"].as_array()?.iter();
        let client = peers.find(|peer| peer["name"] == "client")?;
        (client["online"] == wanted).then_some(())
    };
    let moving = Moving::start(scene.open(0, OVER_QUIC).await.unwrap());
    moving.until_more().await;
    scene.client.signal(Signal::STOP).unwrap();
    until("the client to be missed", async || sees_client(false).await)
        .await
        .unwrap();
    scene.client.signal(Signal::CONT).unwrap();
    moving.until_more().await;
    until("the client to be back", async || sees_client(true).await)
        .await
        .unwrap();
    moving.end().await.unwrap();

    let mut took = Vec::new();
    for _ in 0..sleeps() {
        took.extend(stop_for_long(&scene).await);
    }
    assert_soon("gone on", took);
}

/// How long new flows took once the client went on.
async fn stop_for_long(scene: &Scene) -> Vec<Duration> {
    let moving = Moving::start(scene.open(0, OVER_QUIC).await.unwrap());
    moving.until_more().await;
    let mut events = scene.friends[0].events().await.unwrap();
    let start = Instant::now();
    scene.client.signal(Signal::STOP).unwrap();
    events
        .next(|event| event["kind"] == "peer-down")
        .await
        .unwrap();
    until_slept(start).await;
    let start = Instant::now();
    scene.client.signal(Signal::CONT).unwrap();
    let ports = [OVER_QUIC, 2, RELAYED, ANY].repeat(AWAKE);
    let flows = ports.into_iter().map(async |port| {
        scene.open(0, port).await.unwrap();
        start.elapsed()
    });
    let took = join_all(flows).await;
    moving
        .end()
        .await
        .expect_err("its connection timed out at the friend");
    took
}

/// The friend is alive, and says so; the target takes its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_target_is_not_taken_for_a_dead_path() {
    const TARGET: &str = "10.73.3.77";
    let scene = Scene::start(1, "", false).await;
    let slow = format!(
        "table ip slow {{
            counter asked {{ }}
            chain output {{
                type filter hook output priority 0;
                ip daddr {TARGET} tcp flags syn counter name asked drop
            }}
        }}"
    );
    scene
        .there
        .ip(&["address", "add", &format!("{TARGET}/32"), "dev", "lo"])
        .unwrap();
    scene.there.nft(&slow).unwrap();
    let target = scene
        .there
        .enter(|| Ok(std::net::TcpListener::bind((TARGET, EXIT))?))
        .unwrap();
    let opened = scene.open_to(TARGET, EXIT);
    let late = async {
        until(
            "the target to be asked for longer than a path may be silent",
            async || (scene.there.counted("asked").ok()? >= 4).then_some(()),
        )
        .await
        .unwrap();
        scene.there.nft("delete table ip slow").unwrap();
        let accepted = tokio::task::spawn_blocking(move || {
            let (mut stream, _) = target.accept().unwrap();
            std::io::copy(&mut stream.try_clone().unwrap(), &mut stream)
        });
        accepted.await.unwrap()
    };
    let (opened, _ended) = tokio::join!(async { opened.await.map(drop) }, late);
    opened.unwrap();
    let why = scene.client.call("why", json!({"flow": 1})).await.unwrap();
    assert_eq!(why["path"][0]["name"], "friend0", "{why}");
}
