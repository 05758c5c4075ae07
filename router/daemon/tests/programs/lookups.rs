//! `need("ip", plan)`: who looks a name up, what the scripts then see, and what may be dialled on
//! another node's word.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpListener;
use wormholed::NodeOptions;

use crate::{
    name_server::NameServer,
    support::{SOCKS, TestNode, asking, check_echo, echo, until},
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
