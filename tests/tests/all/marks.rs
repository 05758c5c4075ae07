//! Marks of a plan, measured while many flows are at work at once. The programs' user names say
//! which mark a flow gets. What depends on the machine's haste is compared with flows beside it
//! that bear no mark.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use futures_util::future::{join_all, try_join_all};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};
use wormholes_tests::{
    Daemon, EchoServer, Identity, Metrics, Setup, TcpTap, TestNetwork, socks5_ask,
    socks5_connect_as, until,
};

const OUTSIDE: Ipv4Addr = Ipv4Addr::new(127, 50, 0, 1);
const METRICS: &str = "[metrics]\nlisten = \"127.0.0.1:0\"";

#[tokio::test(flavor = "multi_thread")]
async fn no_flow_opens_before_its_delay_nor_much_after() {
    const FLOWS: usize = 16;
    const ROUNDS: usize = 5;
    let delay = Duration::from_millis(400);
    let script = r#"fn route(c) {
        switch c.user {
            "late" => direct().delay("400ms"),
            "load" => direct().bw("20MB/s"),
            _ => direct(),
        }
    }"#;
    let scene = Scene::start(script).await;
    let _load = scene.load("load", 4).await;
    let took = async |user| {
        let opens = (0..FLOWS).map(|_| async {
            let start = Instant::now();
            let _flow = scene.flow(user).await;
            start.elapsed()
        });
        let mut took = join_all(opens).await;
        took.sort_unstable();
        took
    };
    // What else the machine does may hold one round back, not all of them.
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let (late, soon) = tokio::join!(took("late"), took("soon"));
        assert!(late[0] >= delay, "{late:?}");
        rounds.push(late[FLOWS / 2].saturating_sub(soon[FLOWS / 2]));
    }
    let least = rounds.iter().min().unwrap();
    assert!(*least < delay * 5 / 4, "{rounds:?}");
}

/// Quantiles do not heed the few pieces that a busy machine held back; nor do several rounds a
/// while in which it held all of them back.
#[tokio::test(flavor = "multi_thread")]
async fn waits_between_pieces_have_the_shape_of_their_jitter() {
    const ROUNDS: usize = 5;
    let script = r#"fn route(c) {
        if c.user == "none" { direct() } else { direct().jitter(c.user) }
    }"#;
    let scene = Scene::start(script).await;
    let mut unlike = Vec::new();
    for _ in 0..ROUNDS {
        let (exp, uniform, idle) = tokio::join!(
            widths(&scene, "exp 30ms"),
            widths(&scene, "uniform 60ms"),
            widths(&scene, "none")
        );
        match have_the_shape(&exp, &uniform, at(&idle, 0.5)) {
            Ok(()) => return,
            Err(found) => unlike.push(found),
        }
    }
    panic!("{unlike:?}");
}

/// Milliseconds between pieces of flows with a jitter, sorted.
async fn widths(scene: &Scene, jitter: &str) -> Vec<f64> {
    const FLOWS: usize = 16;
    const PIECES: usize = 60;
    let flows = (0..FLOWS).map(|_| async {
        let mut flow = scene.flow(jitter).await;
        let mut widths = Vec::new();
        for _ in 0..PIECES {
            let start = Instant::now();
            echo(&mut flow, &[7; 100]).await;
            widths.push(start.elapsed().as_secs_f64() * 1000.0);
        }
        widths
    });
    let mut widths = join_all(flows).await.concat();
    widths.sort_by(f64::total_cmp);
    widths
}

fn at(widths: &[f64], share: f64) -> f64 {
    widths[(widths.len() as f64 * share) as usize]
}

fn have_the_shape(exp: &[f64], uniform: &[f64], idle: f64) -> Result<(), String> {
    for (shape, widths, median, n_95) in [
        ("exp", exp, 30.0 * 2_f64.ln(), 30.0 * 20_f64.ln()),
        ("uniform", uniform, 30.0, 57.0),
    ] {
        // Four standard deviations and the timer's millisecond below; busy machines add, above.
        for (share, wanted) in [(0.5, median), (0.95, n_95)] {
            let found = at(widths, share) - idle;
            if !(wanted * 0.8..wanted * 1.3 + 2.0).contains(&found) {
                return Err(format!("{shape} {share}: {found} ms, {idle} idle"));
            }
        }
    }
    // Of the exponential the 95th percentile is 4.3 medians, of the uniform 1.9.
    let spread = |widths: &[f64]| (at(widths, 0.95) - idle) / (at(widths, 0.5) - idle);
    match (spread(exp), spread(uniform)) {
        (exp, uniform) if exp > 3.0 && uniform < 2.6 => Ok(()),
        spreads => Err(format!("spreads {spreads:?}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_flows_comes_up_to_its_own_ceiling_and_no_further() {
    let scene = Scene::start("fn route(c) { direct().bw(c.user) }").await;
    let flows = (1..=8).map(|number| {
        let scene = &scene;
        async move {
            let ceiling = number * 200_000;
            let flow = scene.flow(&format!("{}kB/s", ceiling / 1000)).await;
            // Two seconds' worth, there and back.
            let start = Instant::now();
            echo_bulk(flow, ceiling).await;
            2.0 / start.elapsed().as_secs_f64()
        }
    });
    let mut shares = join_all(flows).await;
    shares.sort_by(f64::total_cmp);
    assert!(shares[7] < 1.1, "{shares:?}");
    // A machine that is busy for long holds some of them back.
    assert!(shares[4] > 0.9, "{shares:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_moves_its_bytes_to_the_last_and_none_beyond() {
    const FLOWS: usize = 8;
    const LIMIT: usize = 1_000_003;
    let script = format!("fn route(c) {{ direct().bytes({LIMIT}) }}");
    let scene = Scene::start(&script).await;
    let flows = (0..FLOWS).map(|_| async {
        let flow = scene.flow("limited").await;
        let (mut reader, mut writer) = flow.into_split();
        // More than may pass; it ends by being reset.
        let send = async { while writer.write_all(&[7; 10_000]).await.is_ok() {} };
        let receive = async {
            let mut received = 0;
            let mut buffer = vec![0; 1 << 16];
            while let Ok(n_bytes @ 1..) = reader.read(&mut buffer).await {
                received += n_bytes;
            }
            received
        };
        tokio::join!(send, receive).1
    });
    let received = join_all(flows).await;
    assert!(received.iter().all(|bytes| *bytes <= LIMIT), "{received:?}");
    scene.becomes("wormholes_flows_open", 0).await;
    let metrics = Metrics::read(&scene.node).await.unwrap();
    let moved = metrics.sum("wormholes_flow_bytes_total") as usize;
    assert_eq!(moved, FLOWS * LIMIT, "{received:?}");

    // In step nothing is on its way when the flow is cut: who waits gets the last byte.
    let mut flow = scene.flow("limited").await;
    echo(&mut flow, &[7; 500_000]).await;
    flow.write_all(b"12").await.unwrap();
    let mut last = Vec::new();
    let end = flow.read_to_end(&mut last).await;
    assert_eq!((last.as_slice(), end.is_err()), (&b"1"[..], true));
    let why = scene.node.cli(&["why", &(FLOWS + 1).to_string()]).unwrap();
    assert!(why.contains("byte limit reached"), "{why}");
}

/// Seen between the nodes, as the TLS records that the client sends, while other flows of its go the
/// same way without padding. What comes back is no business of the mark: the far side sends it.
#[tokio::test(flavor = "multi_thread")]
async fn records_of_padded_flows_are_multiples_whatever_is_in_them() {
    const FLOWS: usize = 4;
    /// Before each write of a flow, on the TCP carrier.
    const HEAD: usize = 4;
    let pieces: Vec<usize> = (0..30).map(|index| 1 + index * 11).collect();
    let scene = Carried::start().await;
    let (_load, loaded) = scene.load().await;
    let mut open = Vec::new();
    let mut sent = async |user: &'static str, host: &'static str| {
        let flows = (0..FLOWS).map(|_| scene.flow(user, host));
        let mut flows = join_all(flows).await;
        let before = scene.tap.records();
        let talks = flows.iter_mut().map(async |flow| {
            for bytes in &pieces {
                echo(flow, &vec![7; *bytes]).await;
            }
        });
        join_all(talks).await;
        // What ends them shall not be taken for what the next ones say.
        open.push(flows);
        let mut records = scene.tap.records();
        for (connection, before) in records.iter_mut().zip(before) {
            connection.drain(..before.len());
        }
        for place in &loaded {
            records[*place].clear();
        }
        // A ping, a circuit that is built ahead: never so many.
        records.retain(|connection| connection.len() >= pieces.len());
        assert_eq!(records.len(), FLOWS, "{user}: {records:?}");
        records
    };
    let is_multiple = |records: &[usize]| {
        let mut frames = records.iter().map(|record| record - HEAD);
        frames.all(|frame| frame > 0 && frame % 512 == 0)
    };
    for connection in sent("relay", "echo.friend.wh").await {
        assert!(!is_multiple(&connection), "{connection:?}");
    }
    for connection in sent("relay padded", "echo.friend.wh").await {
        assert!(is_multiple(&connection), "{connection:?}");
        assert_eq!(connection.len(), pieces.len());
    }
    for (user, cell) in [("onion", 512), ("onion padded", 16_384)] {
        for connection in sent(user, "127.50.0.1").await {
            let bytes: usize = connection.iter().sum();
            assert_eq!(bytes, pieces.len() * (HEAD + 1 + cell), "{user}");
        }
    }
}

/// The same key leads over the same hops, each flow on a circuit of its own.
#[tokio::test(flavor = "multi_thread")]
async fn flows_of_one_key_share_a_path_and_no_two_flows_share_a_circuit() {
    /// As many circuits are built ahead at most.
    const KEYS: u8 = 16;
    const ALL_KEYS: u8 = 20;
    let network = TestNetwork::start("fn route(c) { onion(3).isolate(c.src) }").await;
    let network = network.unwrap();
    let echo = EchoServer::start(OUTSIDE).await.unwrap();
    let entrance = network.client.entrance("socks5").unwrap();
    let open = async |key: u8| {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 85, 0, key], 0)))?;
        let mut flow = socket.connect(entrance).await?;
        let port = echo.address().port();
        let code = socks5_ask(&mut flow, &OUTSIDE.to_string(), port).await?;
        anyhow::ensure!(code == 0, "reply code {code}");
        Ok(flow)
    };
    let round = || try_join_all((1..=KEYS).map(&open));
    let built = async || {
        let metrics = Metrics::read(&network.client).await.unwrap();
        metrics.get("wormholes_onion_circuits_total{outcome=\"built\"}") as usize
    };
    let keys = usize::from(KEYS);

    let first = round().await.unwrap();
    assert_eq!(built().await, keys, "each key built a circuit");
    let second = round().await.unwrap();
    // The path has proved itself: one more is built for each key, for its next flow.
    until("circuits to be built ahead", async || {
        (built().await == 3 * keys).then_some(())
    })
    .await
    .unwrap();
    // Keys that nobody used take none of those.
    let others = try_join_all((KEYS + 1..=ALL_KEYS).map(&open)).await;
    let others = others.unwrap();
    assert_eq!(built().await, 3 * keys + others.len());

    let mut paths = vec![Vec::new(); ALL_KEYS.into()];
    let flows = json!({"limit": 100});
    let flows = network.client.call("flows", flows).await.unwrap();
    for flow in flows["flows"].as_array().unwrap() {
        let why = json!({"flow": flow["flow"]});
        let why = network.client.call("why", why).await.unwrap();
        paths[key_of(&why) - 1].push(flow["path"].to_string());
    }
    for (index, paths) in paths.iter().enumerate() {
        let wanted = if index < keys { 2 } else { 1 };
        assert!(paths.len() == wanted && paths.iter().all(|path| *path == paths[0]));
    }
    // That all keys draw the same of two paths has one chance in 2^19.
    assert!(paths.iter().any(|path| path[0] != paths[0][0]), "{paths:?}");

    // Those that wait for a flow are at the exit too.
    let at_exit = async |role: &str| active(&network.exit, role).await;
    assert_eq!(at_exit("exit").await, 2 * keys + others.len());
    assert_eq!(at_exit("hop").await, 3 * keys + others.len());
    drop((first, second));
}

/// A node that dials, and what it dials.
struct Scene {
    node: Daemon,
    echo: EchoServer,
}

impl Scene {
    async fn start(script: &str) -> Self {
        let setup = Setup::new("client").unwrap().entrances().config(METRICS);
        Self {
            node: setup.script("rules.rhai", script).start().await.unwrap(),
            echo: EchoServer::start(Ipv4Addr::LOCALHOST).await.unwrap(),
        }
    }

    async fn flow(&self, user: &str) -> TcpStream {
        let entrance = self.node.entrance("socks5").unwrap();
        let port = self.echo.address().port();
        let flow = socks5_connect_as(user, entrance, "127.0.0.1", port).await;
        flow.unwrap()
    }

    /// Flows that are at work as long as this lives.
    async fn load(&self, user: &str, n_flows: usize) -> JoinSet<()> {
        let flows = join_all((0..n_flows).map(|_| self.flow(user))).await;
        flows.into_iter().map(busy).collect()
    }

    async fn becomes(&self, name: &str, value: usize) {
        until(&format!("{name} to become {value}"), async || {
            let metrics = Metrics::read(&self.node).await.ok()?;
            (metrics.get(name) as usize == value).then_some(())
        })
        .await
        .unwrap();
    }
}

/// A client and its friend, who meet at a relay that peels and exits too. All that the client
/// sends goes over TCP through the tap.
struct Carried {
    client: Daemon,
    _relay: Daemon,
    _friend: Daemon,
    echo: EchoServer,
    tap: TcpTap,
}

impl Carried {
    async fn start() -> Self {
        let script = r#"fn route(c) {
            let relayed = peer("friend").relayed().carrier("tcp");
            let onion = onion(1).to(peer("relay")).exit().carrier("tcp");
            switch c.user {
                "relay" => relayed,
                "relay padded" => relayed.pad(512),
                "onion" => onion,
                "onion padded" => onion.pad(4096),
            }
        }"#;
        let tap = TcpTap::start([127, 88, 0, 1].into()).await.unwrap();
        let echo = EchoServer::start(OUTSIDE).await.unwrap();
        let [client, relay, friend] =
            ["client", "relay", "friend"].map(|_| Identity::generate().unwrap());
        let via = "via = [\"relay\"]";
        let relay = Setup::with_identity("relay", &relay)
            .unwrap()
            .listen("127.87.0.1:0")
            .node(&format!("advertise = [\"{}\"]", tap.address()))
            .config("[relay]\nenabled = true\n[hop]\nenabled = true\n[exit]\nenabled = true")
            .config("allow = [\"0.0.0.0/0\"]\nallow_private = true")
            .peer_id("client", client.id(), 2, "")
            .peer_id("friend", friend.id(), 2, "");
        let relay = relay.start().await.unwrap();
        tap.connect(relay.listen().unwrap());
        let at = |address: SocketAddr| format!("addresses = [\"{address}\"]\nregister = true");
        let friend = Setup::with_identity("friend", &friend)
            .unwrap()
            .service("echo", echo.address())
            .peer_id("relay", relay.id(), 2, &at(relay.listen().unwrap()))
            .peer_id("client", client.id(), 2, via);
        let friend = friend.start().await.unwrap();
        friend.until_registered().await.unwrap();
        let client = Setup::with_identity("client", &client)
            .unwrap()
            .entrances()
            .script("rules.rhai", script)
            .peer_id("relay", relay.id(), 2, &at(tap.address()))
            .peer_id("friend", friend.id(), 2, via);
        let client = client.start().await.unwrap();
        client.until_registered().await.unwrap();
        Self {
            client,
            _relay: relay,
            _friend: friend,
            echo,
            tap,
        }
    }

    async fn flow(&self, user: &str, host: &str) -> TcpStream {
        let entrance = self.client.entrance("socks5").unwrap();
        let port = self.echo.address().port();
        let flow = socks5_connect_as(user, entrance, host, port).await;
        flow.unwrap()
    }

    /// Flows that are at work as long as this lives, and which connections are theirs: those on
    /// which so much went as nobody else says before the test begins.
    async fn load(&self) -> (JoinSet<()>, Vec<usize>) {
        const FLOWS: usize = 4;
        const MANY_BYTES: usize = 1_000_000;
        let flows = (0..FLOWS).map(|_| self.flow("relay", "echo.friend.wh"));
        let mut flows = join_all(flows).await;
        let talks = flows.iter_mut().map(async |flow| {
            echo(flow, &vec![7; MANY_BYTES]).await;
        });
        join_all(talks).await;
        let sums = self.tap.records().into_iter().enumerate();
        let sums = sums.map(|(place, records)| (place, records.iter().sum::<usize>()));
        let loaded = sums.filter(|(_, bytes)| *bytes > MANY_BYTES);
        let loaded: Vec<usize> = loaded.map(|(place, _)| place).collect();
        assert_eq!(loaded.len(), FLOWS);
        (flows.into_iter().map(busy).collect(), loaded)
    }
}

/// Keeps a flow at work.
async fn busy(mut flow: TcpStream) {
    loop {
        echo(&mut flow, &[7; 50_000]).await;
    }
}

/// Sends and gets it back.
async fn echo(flow: &mut TcpStream, bytes: &[u8]) {
    let mut back = vec![0; bytes.len()];
    let (mut reader, mut writer) = flow.split();
    let (sent, read) = tokio::join!(writer.write_all(bytes), reader.read_exact(&mut back));
    sent.unwrap();
    read.unwrap();
    assert!(back == bytes);
}

async fn echo_bulk(mut flow: TcpStream, n_bytes: usize) {
    echo(&mut flow, &vec![7; n_bytes]).await;
}

/// The last number of the address that a flow came from.
fn key_of(why: &serde_json::Value) -> usize {
    let because = why["decisions"][0]["because"].to_string();
    let (_, after) = because.split_once("127.85.0.").unwrap();
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

/// How many circuits a node serves in a role.
async fn active(node: &Daemon, role: &str) -> usize {
    let status = node.call("status", json!({})).await.unwrap();
    let active = status.pointer(&format!("/roles/{role}/active"));
    active.unwrap().as_u64().unwrap() as usize
}
