//! Nodes that reach nothing but Tor: one that is behind a bridge, and some that are peers by onion
//! addresses alone. Each is on a host of its own, with a wire to the relays.

use std::{
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use wormholes_proto::{Host, Target};
use wormholes_tests::{
    Association, Daemon, EchoServer, Identity, Namespace, SITE_GREETING, Setup, TOR_LOG, TOR_WEB,
    TorNetwork, curl_in, output, socks5_ask, there_and_back, until, until_within,
};

use crate::{
    long_fetch::{is_cut, long_fetch},
    watched::AT_HOME,
};

/// To publish a service, which arti does no oftener than once a minute, to find it, and to open a connection
/// over it.
const FOUND: Duration = Duration::from_secs(240);
const PATIENCE: Duration = Duration::from_secs(30);
/// A cut is told at once; an end that nobody tells of, after a time-out.
const CUT: Duration = Duration::from_secs(60);
const STREAM_BYTES: usize = 1 << 20;
const PIECE_BYTES: usize = 10_000;
const MAX_DATAGRAM_BYTES: usize = 2048;

const BY_TOR: &str = "fn route(c) { tor().timeout(\"30s\").closed() }";
/// The port says how.
const TO_PEERS: &str = r#"
fn route(c) {
    switch c.port {
        81 => c.node.relayed("friend").timeout("60s").closed(),
        82 => onion(1).to(c.node).timeout("30s").closed(),
        _ => c.node.direct().timeout("60s").closed(),
    }
}"#;
const STRAIGHT: (&str, u16) = ("echo.friend.wh", 80);
const BY_FRIEND: (&str, u16) = ("echo.guest.wh", 81);
const FRIEND_AS_HOP: (&str, u16) = ("echo.friend.wh", 82);

/// Authorities and exits: all that there is of the network.
const RELAYS: &str = "{ 9.70.0.1, 9.71.0.1, 9.72.0.1, 9.73.0.1, 9.74.0.1 }";
const BRIDGE: &str = "9.75.0.1";

/// Counts what leaves the host: to `relays`, as nft tells them, and elsewhere.
fn watch(host: &Namespace, relays: &str) {
    // What goes anywhere else comes nowhere, but it leaves.
    host.ip(&["route", "add", "default", "dev", "lo"]).unwrap();
    let sixth = ["-6", "route", "add", "default", "dev", "lo"];
    host.ip(&sixth).unwrap();
    let counters = format!(
        "table inet watched {{
            counter relays {{ }}
            counter other {{ }}
            chain output {{
                type filter hook output priority 0
                {AT_HOME}
                ip daddr {relays} counter name relays accept
                counter name other
            }}
        }}"
    );
    host.nft(&counters).unwrap();
}

fn calls_only_relays(host: &Namespace) {
    assert!(host.counted("relays").unwrap() > 0);
    assert_eq!(host.counted("other").unwrap(), 0, "packets elsewhere");
}

/// The last look at a host: whatever else left it would have been counted.
async fn called_only_relays(host: &Namespace) {
    calls_only_relays(host);
    for (from, to) in [("0.0.0.0:0", "9.9.9.9:53"), ("[::]:0", "[2001:db8::1]:53")] {
        let before = host.counted("other").unwrap();
        let socket = host.udp(from.parse().unwrap()).unwrap();
        socket.send_to(b"astray", to).await.unwrap();
        assert_eq!(host.counted("other").unwrap(), before + 1, "{to}");
    }
}

#[tokio::test]
async fn with_a_bridge_no_packet_goes_to_anybody_else() {
    let network = TorNetwork::start().await.unwrap();
    let mut bridge = network.bridge().await.unwrap();
    let hidden = format!(
        "bridges = [{:?}]\ntransports = {{ obfs4 = \"/usr/bin/obfs4proxy\" }}",
        bridge.obfs4
    );
    let plain = format!("bridges = [{:?}]", bridge.plain);
    let mut nodes = Vec::new();
    for (number, keys) in [(1, hidden), (2, plain)] {
        let host = network.neighbour(number).unwrap();
        watch(&host, BRIDGE);
        let node = Setup::new("client")
            .unwrap()
            .in_namespace(&host)
            .entrances();
        let node = node.config(&network.config(&keys));
        let node = node.script("rules.rhai", BY_TOR).start().await.unwrap();
        nodes.push((host, node));
    }
    for (host, node) in &nodes {
        let fetched = until_within(FOUND, "a page over the bridge", async || {
            fetches(host, node).await.then_some(())
        });
        fetched.await.unwrap();
        calls_only_relays(host);
    }
    let (host, hidden) = &nodes[0];
    transport_dies(&network, host, hidden).await;
    let fetching = nodes
        .iter()
        .enumerate()
        .map(|(number, (host, node))| long_fetch(host, node, (&network.web, TOR_WEB), number));
    let mut fetching = join_all(fetching).await;
    bridge.kill().unwrap();
    for fetch in &mut fetching {
        is_cut(fetch).await;
    }
    for (host, node) in &nodes {
        assert!(!fetches(host, node).await, "a page without the bridge");
        called_only_relays(host).await;
    }
}

/// What speaks obfs4 beside a node is killed in the middle of a flow, which is cut; for the next one it is
/// there again.
async fn transport_dies(network: &TorNetwork, host: &Namespace, node: &Daemon) {
    let mut fetch = long_fetch(host, node, (&network.web, TOR_WEB), 2).await;
    let killed = transport_of(node).expect("nobody speaks obfs4");
    kill_process(killed, Signal::KILL).unwrap();
    is_cut(&mut fetch).await;
    let fetched = until_within(FOUND, "a page by another transport", async || {
        fetches(host, node).await.then_some(())
    });
    fetched.await.unwrap();
    let next = transport_of(node);
    assert!(next.is_some() && next != Some(killed), "{next:?}");
}

/// The program that speaks obfs4 for a node: a child of its daemon.
fn transport_of(node: &Daemon) -> Option<Pid> {
    let parent = node.pid().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    let found = pids.find(|pid: &i32| {
        // NUMBER (NAME) STATE PARENT ...
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let Some((_, rest)) = stat.split_once(" (obfs4proxy) ") else {
            return false;
        };
        let mut fields = rest.split(' ');
        // A dead one may lie there until somebody asks how it ended.
        fields.next() != Some("Z") && fields.next() == Some(parent.as_str())
    });
    Pid::from_raw(found?)
}

async fn fetches(host: &Namespace, node: &Daemon) -> bool {
    let proxy = format!("socks5h://{}", node.entrance("socks5").unwrap());
    let url = format!("http://{TOR_WEB}/");
    let fetched = curl_in(host, &proxy, &url, &[]).await.unwrap();
    String::from_utf8_lossy(&fetched.body).contains(SITE_GREETING)
}

#[tokio::test]
async fn two_nodes_that_have_nothing_but_onion_addresses_are_peers() {
    let network = TorNetwork::start().await.unwrap();
    let hosts = [1, 2, 3].map(|number| {
        let host = network.neighbour(number).unwrap();
        watch(&host, RELAYS);
        host
    });
    let [near, far, third] = &hosts;
    let echoes = [far, third].map(|host| EchoServer::start_in(host).unwrap());
    let (mut friend, client, guest) = friends(&network, &hosts, &echoes).await;
    let onion = friend.onion_address("peers", "").await.unwrap();
    let at_onion = format!("friend at {onion}:4433: ");
    is_pinged(&client, "friend", &at_onion).await;
    comes_back(near, &client, STRAIGHT).await;
    datagrams_come_back(near, &client).await;
    comes_back(near, &client, BY_FRIEND).await;
    is_no_hop(near, &client).await;
    is_pinged(&client, "friend", &at_onion).await;
    is_pinged(&friend, "client", "client through Tor: ").await;
    shows_the_onion(&client, &onion).await;
    tells_how_tor_is(&friend, &onion);
    drop(guest);

    // It comes back with the address that it had.
    dies_in_the_middle_of_a_flow(near, &client, &mut friend).await;
    friend.restart().await.unwrap();
    assert_eq!(friend.onion_address("peers", "").await.unwrap(), onion);
    rests(near, &client, &friend, &onion).await;
    comes_back(near, &client, STRAIGHT).await;

    client.cli(&["tor", "stop"]).unwrap();
    misses_tor(&client).await;
    let moved = moves(&friend, &client, &onion).await;
    client.cli(&["tor", "start"]).unwrap();
    is_pinged(&client, "friend", &format!("friend at {moved}:4433: ")).await;
    for host in &hosts {
        called_only_relays(host).await;
    }
}

/// Peers on these hosts, in the order of the hosts: a client, a friend that publishes its onion address, and
/// a guest that is registered with the friend, and reached through it alone. The latter two have a service
/// each.
async fn friends(
    network: &TorNetwork,
    [near, far, third]: &[Namespace; 3],
    [echo, other]: &[EchoServer; 2],
) -> (Daemon, Daemon, Daemon) {
    let [client, guest] = [(); 2].map(|()| Identity::generate().unwrap());
    let friend = Setup::new("friend").unwrap().in_namespace(far);
    let datagrams = echo_datagrams(far);
    let friend = friend
        .config(&network.config("peers = true\npeers_port = 4433"))
        .config(TOR_LOG)
        .config("[relay]\nenabled = true")
        .peer_id("client", client.id(), 2, "")
        .peer_id("guest", guest.id(), 2, "")
        .service("echo", echo.address())
        .config(&format!(
            "[[service]]\nname = \"echo\"\ntarget = \"{datagrams}\"\nnetwork = \"udp\""
        ))
        .start()
        .await
        .unwrap();
    let addresses = format!(
        "addresses = [\"{}:4433\"]",
        friend.onion_address("peers", "").await.unwrap()
    );
    let setup = |name: &str, identity: &Identity, host: &Namespace| {
        let setup = Setup::with_identity(name, identity).unwrap();
        setup.in_namespace(host).config(&network.config(""))
    };
    let registered = format!("{addresses}\nregister = true");
    let guest_setup = setup("guest", &guest, third)
        .service("echo", other.address())
        .peer_id("friend", friend.id(), 2, &registered)
        .peer_id("client", client.id(), 2, "");
    let client_setup = setup("client", &client, near)
        .entrances()
        .script("rules.rhai", TO_PEERS)
        .peer_id("friend", friend.id(), 2, &addresses)
        .peer_id("guest", guest.id(), 2, "via = [\"friend\"]");
    let (client, guest) = tokio::try_join!(client_setup.start(), guest_setup.start()).unwrap();
    until_within(FOUND, "a guest to be registered", async || {
        let status = guest.call("status", json!({})).await.ok()?;
        (status["relays"][0]["registered"] == true).then_some(())
    })
    .await
    .unwrap();
    (friend, client, guest)
}

/// Where datagrams are sent back to whoever they are from.
fn echo_datagrams(host: &Namespace) -> SocketAddr {
    let socket = host.udp((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    // It ends with the test.
    tokio::spawn(async move {
        let mut datagram = [0; MAX_DATAGRAM_BYTES];
        while let Ok((len, from)) = socket.recv_from(&mut datagram).await {
            let _he_is_gone = socket.send_to(&datagram[..len], from).await;
        }
    });
    address
}

/// A datagram goes to the friend's service of that kind, and comes back.
async fn datagrams_come_back(near: &Namespace, client: &Daemon) {
    let control = near.connect(client.entrance("socks5").unwrap()).unwrap();
    let socket = near.udp((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let association = Association::open(control, socket, None).await.unwrap();
    let (name, port) = STRAIGHT;
    let service = Target::new(Host::parse(name).unwrap(), port);
    let echoed = until_within(FOUND, "a datagram over Tor", async || {
        let asked = timeout(PATIENCE, association.ask(&service, b"to and fro")).await;
        asked.ok()?.ok()
    });
    assert_eq!(echoed.await.unwrap(), b"to and fro");
}

/// Others call a hop at an address that its record names, which a node does not have that is at an onion
/// address alone; a flow is told so.
async fn is_no_hop(near: &Namespace, client: &Daemon) {
    let mut events = client.events().await.unwrap();
    let mut stream = near.connect(client.entrance("socks5").unwrap()).unwrap();
    let (name, port) = FRIEND_AS_HOP;
    assert_ne!(socks5_ask(&mut stream, name, port).await.unwrap(), 0);
    let refused = events.next(|event| event["kind"] == "flow-refused").await;
    let flow = json!({ "flow": refused.unwrap()["flow"] });
    let why = client.call("why", flow).await.unwrap();
    let said = why["steps"][0]["error"].as_str().unwrap();
    assert!(said.contains("is not known as a hop"), "{why}");
}

/// Kills the friend while a flow to it is in full swing, which is cut: an end in order would look like the
/// service's own.
async fn dies_in_the_middle_of_a_flow(near: &Namespace, client: &Daemon, friend: &mut Daemon) {
    let mut stream = comes_back(near, client, STRAIGHT).await;
    let (mut reader, mut writer) = stream.split();
    let sent = async {
        loop {
            if let Err(error) = writer.write_all(&[7; PIECE_BYTES]).await {
                return error.kind();
            }
        }
    };
    let received = async {
        let mut piece = vec![0; PIECE_BYTES];
        reader.read_exact(&mut piece).await.unwrap();
        friend.kill().unwrap();
        loop {
            match reader.read(&mut piece).await {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(error.kind()),
            }
        }
    };
    let ended = timeout(CUT, async { tokio::join!(sent, received) }).await;
    let (sent, received) = ended.expect("the flow goes on");
    // The system tells one of them, and the other that all is over.
    let kinds = [Some(sent), received];
    assert!(
        kinds.contains(&Some(ErrorKind::ConnectionReset)),
        "{kinds:?}"
    );
}

/// Tor is stopped at the friend, which cuts what stands, and started again at once: others find it where it
/// was.
async fn rests(near: &Namespace, client: &Daemon, friend: &Daemon, onion: &str) {
    let mut stream = comes_back(near, client, STRAIGHT).await;
    let stopped = friend.cli(&["tor", "stop"]).unwrap();
    assert!(stopped.contains(":4433, stopped\n"), "{stopped}");
    friend.cli(&["tor", "start"]).unwrap();
    let seen = timeout(CUT, stream.read(&mut [0; 1])).await;
    let seen = seen.expect("the flow stands");
    assert!(seen.is_err(), "the flow seemed to end well: {seen:?}");
    assert_eq!(friend.onion_address("peers", "").await.unwrap(), onion);
    let failed = friend.log().matching("onion service not published");
    assert!(failed.is_empty(), "{failed:?}");
}

/// Where Tor is what lacks, a ping says so, and so do the checks.
async fn misses_tor(client: &Daemon) {
    let told = until("a ping to miss Tor", async || {
        let said = output_of(client, &["ping", "friend", "--count", "1"]).stderr;
        let said = String::from_utf8_lossy(&said);
        said.contains("`wormholes tor start`").then_some(())
    });
    told.await.unwrap();
    let checks = output_of(client, &["netcheck"]).stdout;
    let checks = String::from_utf8_lossy(&checks).into_owned();
    assert!(
        checks.contains("tor network: `wormholes tor start`"),
        "{checks}"
    );
}

/// Gives the friend another address, and has the client know it.
async fn moves(friend: &Daemon, client: &Daemon, onion: &str) -> String {
    let said = friend.cli(&["tor", "new-onion", "peers"]).unwrap();
    let moved = friend.onion_address("peers", "").await.unwrap();
    assert_ne!(moved, onion);
    assert!(said.contains(&format!("peers: {moved}:4433")), "{said}");
    let file = client.folder().join("config.toml");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(&file, config.replace(onion, &moved)).unwrap();
    client.call("script.load", json!({})).await.unwrap();
    moved
}

/// What stands for the address inside is shown nowhere.
async fn shows_the_onion(client: &Daemon, onion: &str) {
    for words in ["peers", "netcheck"] {
        let said = client.cli(&[words]).unwrap();
        assert!(said.contains(&format!("{onion}:4433")), "{words}: {said}");
        assert!(!said.contains("[100:"), "{words}: {said}");
    }
    let peers = client.call("peers", json!({})).await.unwrap();
    let friends = peers["peers"].as_array().unwrap().iter();
    let known: Vec<&Value> = friends.filter(|peer| peer["name"] == "friend").collect();
    assert_eq!(known.len(), 1, "{peers}");
    assert_eq!(
        (&known[0]["online"], &known[0]["carrier"]),
        (&json!(true), &json!("tcp"))
    );
}

/// A ping says this; while they find each other, the next one does.
async fn is_pinged(node: &Daemon, peer: &str, told: &str) {
    let pinged = until_within(FOUND, told, async || {
        let said = node.cli(&["ping", peer, "--count", "1"]).ok()?;
        said.starts_with(told).then_some(())
    });
    pinged.await.unwrap();
}

/// The checks say it; a bug report too, but not where the node is.
fn tells_how_tor_is(friend: &Daemon, onion: &str) {
    let checks = friend.cli(&["netcheck"]).unwrap();
    for part in ["through Tor, ", "ready; ", "others find it"] {
        assert!(checks.contains(part), "{part} in {checks}");
    }
    let report = friend.cli(&["bugreport"]).unwrap();
    for part in ["state = \"ready\"", "services[0].state = \"reachable\""] {
        assert!(
            report.contains(&format!("\ntor.{part}")),
            "{part} in {report}"
        );
    }
    let name = onion.trim_end_matches(".onion");
    assert!(!report.contains(name), "{report}");
}

/// What a command says, whether it succeeds or not.
fn output_of(node: &Daemon, words: &[&str]) -> std::process::Output {
    output(&mut node.cli_command(words).unwrap()).unwrap()
}

/// A flow to a service brings back what it is given, and stands; while they find each other, the next one
/// does.
async fn comes_back(host: &Namespace, client: &Daemon, (name, port): (&str, u16)) -> TcpStream {
    let entrance = client.entrance("socks5").unwrap();
    let what = format!("an echo of {name} over Tor");
    let echoed = until_within(FOUND, &what, async || {
        let mut stream = host.connect(entrance).unwrap();
        let reply = socks5_ask(&mut stream, name, port).await.ok()?;
        (reply == 0).then_some(stream)
    });
    let mut stream = echoed.await.unwrap();
    let echoed = there_and_back(&mut stream, 13, STREAM_BYTES, PATIENCE).await;
    echoed.unwrap();
    stream
}
