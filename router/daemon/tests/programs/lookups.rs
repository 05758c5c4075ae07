//! `need("ip", plan)`: who looks a name up, what the scripts then see, and what may be dialled on
//! another node's word.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{io::AsyncWriteExt, net::TcpListener};
use wormholed::NodeOptions;
use wormholes_proto::control::FlowState;

use crate::{
    name_server::NameServer,
    support::{SOCKS, TestNode, asking, check_echo, echo, read_all, until},
};

/// Looks names up at the exit, and dials from here what the exit said.
const ASK_THE_EXIT: &str = r#"fn route(c) {
    if c.ip == () { return need("ip", peer("exit").direct().exit()); }
    if c.user == "again" { direct().or(peer("exit").direct().exit()) } else { direct() }
}"#;
const ALLOW_ALL: &str = "fn exit(x) { allow() }";
const PRIVATE: &str = "[exit]\nallow_private = true\n";

async fn client(script: &str, config: &str, options: NodeOptions, exit: &TestNode) -> TestNode {
    let client = TestNode::start_with(script, &format!("{SOCKS}{config}"), options).await;
    client.befriend(&[("exit", exit)]);
    client
}

#[tokio::test]
async fn a_name_is_looked_up_by_the_exit_alone_and_dialled_as_it_said() {
    let target = echo().await;
    let (here, there) = (
        NameServer::start(&[Ipv4Addr::new(127, 9, 9, 9)]).await,
        NameServer::start(&[Ipv4Addr::LOCALHOST]).await,
    );
    let exit = TestNode::exit(ALLOW_ALL, &there).await;
    let script = r#"fn route(c) {
        if c.ip == () { return need("ip", peer("exit").direct().exit()); }
        if c.ip == "127.0.0.1" && c.ips.len == 1 { direct() } else { block(c.ip) }
    }"#;
    let client = client(script, PRIVATE, asking(&here), &exit).await;
    let (reply, mut stream) = client.socks(&format!("a.example:{}", target.port())).await;
    assert_eq!(reply, 0);
    check_echo(&mut stream, b"found").await;

    assert_eq!(here.asked(), [""; 0], "the client asked a name server");
    assert!(!there.asked().is_empty());
    assert!(there.asked().iter().all(|name| name == "a.example"));
    let (story, tries) = client.story(1);
    let look_up = "look-up through direct to exit, which exits";
    let expected = [look_up, "direct"].map(|tunnel| (tunnel.to_owned(), None));
    assert_eq!(tries, expected);
    assert_eq!((story.decisions.len(), story.path), (2, vec![]));
    let read = ("c.ip".to_owned(), "127.0.0.1".to_owned());
    let because = &story.decisions[1].trace.because;
    assert!(because.contains(&read), "{because:?}");
    let served = exit.node.core().network.exit_status();
    assert_eq!(served.opened, 1, "the exit looked up and dialled nothing");
}

/// Tor's RESOLVE: the reply's code, and the address in it.
async fn resolve(node: &TestNode, command: u8, host: &str) -> (u8, Ipv4Addr) {
    let mut stream = node.connect().await;
    let mut request = vec![5, 1, 0, 5, command, 0, 3, u8::try_from(host.len()).unwrap()];
    request.extend(host.as_bytes());
    request.extend([0, 0]);
    stream.write_all(&request).await.unwrap();
    let reply = read_all(&mut stream).await;
    let (&[5, 0, 5, code, 0, 1], address) = reply.split_first_chunk().unwrap() else {
        panic!("{reply:?}");
    };
    let (&address, port) = address.split_first_chunk::<4>().unwrap();
    assert_eq!(port, [0, 0]);
    (code, address.into())
}

#[tokio::test]
async fn a_program_that_asks_for_an_address_gets_it_through_the_plan_of_a_flow() {
    let script = r#"fn route(c) {
        let exit = peer("exit").direct().exit();
        switch c.host {
            "blocked.example" => block("no"),
            "upstream.example" => socks("127.0.0.1:9"),
            "here.example" => direct(),
            "needed.example" => if c.ip == () { need("ip", exit) } else { direct() },
            "needless.example" => if c.ip == () { need("ip", exit) } else { block(c.ip) },
            _ => if c.port == 0 { exit } else { block("it is a question") },
        }
    }"#;
    let (here_is, there_is) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(8, 8, 8, 8));
    let (here, there) = (
        NameServer::start(&[here_is]).await,
        NameServer::start(&[there_is]).await,
    );
    let exit = TestNode::exit(ALLOW_ALL, &there).await;
    let client = client(script, "", asking(&here), &exit).await;
    for (host, expected) in [
        ("a.example", there_is),
        ("needed.example", there_is),
        ("here.example", here_is),
        ("192.0.2.7", Ipv4Addr::new(192, 0, 2, 7)),
    ] {
        assert_eq!(resolve(&client, 0xf0, host).await, (0, expected), "{host}");
    }
    assert!(here.asked().iter().all(|name| name == "here.example"));
    for (host, code) in [
        ("blocked.example", 2),
        ("needless.example", 2),
        ("hidden.onion", 2),
        ("upstream.example", 1),
    ] {
        let refused = (code, Ipv4Addr::UNSPECIFIED);
        assert_eq!(resolve(&client, 0xf0, host).await, refused, "{host}");
    }
    let (story, tries) = client.story(1);
    assert_eq!((story.state, story.end), (FlowState::Ended, None));
    let look_up = "look-up through direct to exit, which exits".to_owned();
    assert_eq!(tries, [(look_up, None)]);
    assert_eq!(client.node.core().flows.open(), 0);

    // RESOLVE_PTR: the reverse.
    let unsupported = (7, Ipv4Addr::UNSPECIFIED);
    assert_eq!(resolve(&client, 0xf1, "8.8.8.8").await, unsupported);
}

#[tokio::test]
async fn no_program_hears_a_private_address_from_an_exit() {
    let none = NameServer::start(&[]).await;
    let lie = NameServer::start(&[Ipv4Addr::LOCALHOST]).await;
    let exit = TestNode::exit(ALLOW_ALL, &lie).await;
    let script = r#"fn route(c) { peer("exit").direct().exit() }"#;
    let client = client(script, "", asking(&none), &exit).await;
    let refused = (2, Ipv4Addr::UNSPECIFIED);
    assert_eq!(resolve(&client, 0xf0, "a.example").await, refused);
}

#[tokio::test]
async fn an_exit_sends_no_flow_into_the_private_networks_of_its_client() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let none = NameServer::start(&[]).await;
    for lie in [
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::new(10, 0, 0, 1),
        Ipv4Addr::new(192, 168, 1, 1),
        Ipv4Addr::new(169, 254, 1, 1),
        Ipv4Addr::new(100, 64, 0, 1),
    ] {
        let exit = TestNode::exit(ALLOW_ALL, &NameServer::start(&[lie]).await).await;
        let client = client(ASK_THE_EXIT, "", asking(&none), &exit).await;
        assert_eq!(
            client.socks(&format!("a.example:{port}")).await.0,
            2,
            "{lie}"
        );
        let (story, tries) = client.story(1);
        let end = story.end.unwrap();
        assert!(end.contains(&format!("is at {lie}")), "{end}");
        assert_eq!(tries.last().unwrap().0, "direct");
    }
    let mut arrived = std::pin::pin!(listener.accept());
    assert!(
        futures_util::poll!(arrived.as_mut()).is_pending(),
        "a flow came in"
    );
}

#[tokio::test]
async fn the_node_that_gave_an_address_may_dial_it_itself() {
    let target = echo().await;
    let names = NameServer::start(&[Ipv4Addr::LOCALHOST]).await;
    let exit = TestNode::exit(ALLOW_ALL, &names).await;
    let script = ASK_THE_EXIT.replace(r#"c.user == "again""#, "true");
    let client = client(&script, "", NodeOptions::default(), &exit).await;
    let (reply, mut stream) = client.socks(&format!("a.example:{}", target.port())).await;
    assert_eq!(reply, 0);
    check_echo(&mut stream, b"inside").await;
    let (story, tries) = client.story(1);
    assert_eq!(story.path, [exit.node.id()]);
    let errors: Vec<_> = tries.iter().map(|(_, error)| error.is_some()).collect();
    assert_eq!(errors, [false, true, false], "{tries:?}");
}

#[tokio::test]
async fn an_exit_asks_its_rules_before_it_tells_an_address() {
    let target: SocketAddr = echo().await;
    let names = NameServer::start(&[Ipv4Addr::LOCALHOST]).await;
    let rules = r#"fn exit(x) {
        if x.port == () && x.host == "open.example" && x.ip == "127.0.0.1" && x.from.trust == 2 {
            allow()
        } else {
            deny("not for " + x.from.name)
        }
    }"#;
    let exit = TestNode::exit(rules, &names).await;
    let client = client(ASK_THE_EXIT, PRIVATE, NodeOptions::default(), &exit).await;
    let port = target.port();
    assert_eq!(client.socks(&format!("open.example:{port}")).await.0, 0);
    assert_eq!(client.socks(&format!("secret.example:{port}")).await.0, 2);
    let (story, tries) = client.story(2);
    assert_eq!((story.decisions.len(), tries.len()), (1, 1), "{tries:?}");
    let counters = &exit.node.core().network.counters().exit;
    let denied = [(wormholes_proto::Reason::Denied, 1)];
    until("the refusal is counted", || counters.refused() == denied).await;
}
