//! Somebody between two friends who drops what goes to the one's address, thins out the rest, and
//! on machines that no name server answers.

use std::net::Ipv4Addr;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use wormholes_tests::{Daemon, EchoServer, Link, Namespace, Setup, socks5_ask};

const SCRIPT: &str = r#"
fn route(c) {
    let friend = peer("friend");
    if c.host != "echo.friend.wh" { return direct().timeout("1s").closed(); }
    friend.direct().timeout("3s").or(friend.relayed(relay("relay"))).closed()
}"#;

/// What leaves for any name server.
const COUNT_LOOKUPS: &str = "table inet lookups {
    counter asked { }
    chain output {
        type filter hook output priority 0;
        udp dport 53 counter name asked
        tcp dport 53 counter name asked
    }
}";
/// The friend's address is dead, and a tenth of all other datagrams is lost.
const CENSOR: &str = "table inet censor {
    counter blocked { }
    counter thinned { }
    chain output {
        type filter hook output priority 1;
        ip daddr 10.71.3.2 counter name blocked drop
        meta l4proto udp numgen random mod 10 == 0 counter name thinned drop
    }
    chain input {
        type filter hook input priority 1;
        ip saddr 10.71.3.2 drop
    }
}";

/// RFC 1928, section 6.
const SUCCEEDED: u8 = 0;

/// Three hosts, each joined with both others.
struct Hosts {
    client: Namespace,
    relay: Namespace,
    friend: Namespace,
}

impl Hosts {
    fn joined() -> Self {
        let [client, relay, friend] = [(); 3].map(|()| Namespace::new().unwrap());
        let wire = |net: u8| Link {
            first: Ipv4Addr::new(10, 71, net, 1),
            second: Ipv4Addr::new(10, 71, net, 2),
        };
        client.join(&relay, wire(1)).unwrap();
        relay.join(&friend, wire(2)).unwrap();
        client.join(&friend, wire(3)).unwrap();
        for host in [&client, &relay, &friend] {
            host.nft(COUNT_LOOKUPS).unwrap();
        }
        Self {
            client,
            relay,
            friend,
        }
    }

    fn lookups(&self) -> u64 {
        let hosts = [&self.client, &self.relay, &self.friend].into_iter();
        hosts.map(|host| host.counted("asked").unwrap()).sum()
    }
}

fn setup(name: &str, host: &Namespace) -> Setup {
    let setup = Setup::new(name).unwrap().in_namespace(host);
    // The relay's machine: it is there, and answers nobody who asks for names.
    setup.name_server([10, 71, 1, 2].into())
}

/// Where others dial a node that listens everywhere.
fn at(address: [u8; 4], node: &Daemon) -> String {
    let port = node.listen().unwrap().port();
    format!("addresses = [\"{}:{port}\"]", Ipv4Addr::from(address))
}

/// Opens a flow to the friend's echo, moves bytes, and says which way it took.
async fn way(host: &Namespace, client: &Daemon, flow: u64) -> (String, Value) {
    let mut stream = ask(host, client, "echo.friend.wh").await.unwrap();
    let sent: Vec<u8> = (0..64 * 1024_u32).flat_map(u32::to_be_bytes).collect();
    let mut back = vec![0; sent.len()];
    let (mut reader, mut writer) = stream.split();
    let (read, written) = tokio::join!(reader.read_exact(&mut back), writer.write_all(&sent));
    written.and(read.map(drop)).unwrap();
    assert!(back == sent, "the bytes are others");
    let why = client.cli(&["--json", "why", &flow.to_string()]).unwrap();
    let why: Value = serde_json::from_str(&why).unwrap();
    (why["tunnel"].as_str().unwrap().to_owned(), why)
}

async fn ask(host: &Namespace, client: &Daemon, name: &str) -> Result<TcpStream, u8> {
    let mut stream = host.connect(client.entrance("socks5").unwrap()).unwrap();
    match socks5_ask(&mut stream, name, 80).await.unwrap() {
        SUCCEEDED => Ok(stream),
        reply => Err(reply),
    }
}

#[tokio::test]
async fn friends_meet_without_name_servers_though_addresses_are_blocked_and_datagrams_lost() {
    let hosts = Hosts::joined();
    let client = setup("client", &hosts.client).entrances();
    let friend = setup("friend", &hosts.friend).listen("0.0.0.0:0");
    let relay = setup("relay", &hosts.relay).listen("0.0.0.0:0");
    let relay = relay.config("[relay]\nenabled = true");
    let relay = relay.peer_id("client", client.id(), 2, "");
    let relay = relay.peer_id("friend", friend.id(), 2, "");
    let relay = relay.start().await.unwrap();
    let registered = format!("{}\nregister = true", at([10, 71, 2, 1], &relay));
    let friend = friend.peer_id("relay", relay.id(), 2, &registered);
    let friend = friend.peer_id("client", client.id(), 2, "");
    let echo = EchoServer::start_in(&hosts.friend).unwrap();
    let friend = friend.service("echo", echo.address());
    let friend = friend.start().await.unwrap();
    let known = format!("{}\nvia = [\"relay\"]", at([10, 71, 3, 2], &friend));
    let client = client.script("rules.rhai", SCRIPT);
    let client = client.peer_id("relay", relay.id(), 2, &at([10, 71, 1, 2], &relay));
    let client = client.peer_id("friend", friend.id(), 2, &known);
    let client = client.start().await.unwrap();

    let (tunnel, why) = way(&hosts.client, &client, 1).await;
    assert_eq!(tunnel, "direct", "{why}");
    hosts.client.nft(CENSOR).unwrap();
    let (tunnel, why) = way(&hosts.client, &client, 2).await;
    assert_eq!(tunnel, "relay", "{why}");
    assert_eq!(why["path"][0]["name"], "relay", "{why}");
    assert!(hosts.client.counted("blocked").unwrap() > 0);
    for flow in 3.. {
        if hosts.client.counted("thinned").unwrap() > 0 {
            break;
        }
        assert!(flow < 100, "nothing is thinned out");
        let (tunnel, why) = way(&hosts.client, &client, flow).await;
        assert_eq!(tunnel, "relay", "{why}");
    }

    assert_eq!(hosts.lookups(), 0, "somebody asked for a name");
    assert!(ask(&hosts.client, &client, "a.example").await.is_err());
    assert!(hosts.lookups() > 0, "nothing is counted");
}
