//! Steps that race, and marks that make a flow wait.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    name_server::NameServer,
    support::{SOCKS, TestNode, asking, check_echo, closed_port, echo, greeter, read, until},
};

/// More than a busy machine adds to a wait.
const LATE: Duration = Duration::from_secs(10);
const METRICS: &str = "[metrics]\nlisten = '127.0.0.1:0'\n";

/// An upstream SOCKS server that answers when the test wants.
struct Upstream(TcpListener);

impl Upstream {
    async fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (Self(listener), address)
    }

    /// Takes a connection and hears where it shall lead.
    async fn asked(&self) -> TcpStream {
        let (mut stream, _) = self.0.accept().await.unwrap();
        assert_eq!(read(&mut stream, 3).await, [5, 1, 0]);
        stream.write_all(&[5, 0]).await.unwrap();
        let head = read(&mut stream, 5).await;
        // One byte of the host is read: an IPv4 address's first, or a name's length.
        let host_left = if head[3] == 1 { 3 } else { head[4].into() };
        read(&mut stream, host_left + 2).await;
        stream
    }
}

#[tokio::test]
async fn the_first_to_open_wins_a_race_and_the_others_leave_nothing_behind() {
    let silent = NameServer::start(&[]).await;
    let slow = TestNode::exit("fn exit(x) { allow() }", &silent).await;
    let (loser, loser_address) = Upstream::start().await;
    let (winner, winner_address) = Upstream::start().await;
    let script = format!(
        r#"fn route(c) {{
            peer("slow").direct().exit()
                .race(socks("{loser_address}")).race(socks("{winner_address}")).label("raced")
        }}"#
    );
    let client = TestNode::start(&script, &format!("{SOCKS}{METRICS}")).await;
    client.befriend(&[("slow", &slow)]);
    let program = client.socks("a.example:80");
    let upstreams = async {
        let (mut lost, mut won) = tokio::join!(loser.asked(), winner.asked());
        let at_slow = || slow.node.core().network.exit_status();
        until("the slow exit is at work", || at_slow().active == 1).await;
        won.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])
            .await
            .unwrap();
        // None of those who lost is left waiting, nor has failed by itself.
        assert_eq!(lost.read(&mut [0]).await.unwrap_or(0), 0);
        until("the slow exit is free", || at_slow().active == 0).await;
        assert_eq!(at_slow().refused, []);
        won
    };
    let ((reply, mut program), mut won) = tokio::join!(program, upstreams);
    assert_eq!(reply, 0);
    program.write_all(b"there").await.unwrap();
    assert_eq!(read(&mut won, 5).await, b"there");
    let flows = &client.node.core().flows;
    assert_eq!(
        (flows.open(), client.metric("wormholes_flows_open").await),
        (1, Some(1))
    );
    drop((program, won));
    until("the flow ends", || flows.open() == 0).await;
    assert_eq!(client.metric("wormholes_flows_open").await, Some(0));

    let (story, tries) = client.story(1);
    assert_eq!(
        (story.label.as_deref(), story.path),
        (Some("raced"), vec![])
    );
    let lost = || Some("lost the race".to_owned());
    assert_eq!(
        tries,
        [
            (format!("socks {winner_address}"), None),
            ("direct to slow, which exits".to_owned(), lost()),
            (format!("socks {loser_address}"), lost()),
        ]
    );
}

#[tokio::test]
async fn who_fails_in_a_race_leaves_it_to_the_others() {
    let closed = closed_port().await;
    let script = format!(r#"fn route(c) {{ socks("{closed}").race(direct()) }}"#);
    let node = TestNode::start(&script, SOCKS).await;
    let (reply, mut stream) = node.socks(&echo().await.to_string()).await;
    assert_eq!(reply, 0);
    check_echo(&mut stream, b"the other").await;
    let (_, tries) = node.story(1);
    let won: Vec<_> = tries.iter().filter(|(_, error)| error.is_none()).collect();
    assert_eq!(won, [&("direct".to_owned(), None)]);
    assert_eq!(tries.len(), 2, "{tries:?}");
}

#[tokio::test]
async fn when_all_who_race_fail_the_next_step_is_taken() {
    let (one, other) = (closed_port().await, closed_port().await);
    let script = format!(r#"fn route(c) {{ socks("{one}").race(socks("{other}")).or(direct()) }}"#);
    let node = TestNode::start(&script, SOCKS).await;
    let (reply, mut stream) = node.socks(&echo().await.to_string()).await;
    assert_eq!(reply, 0);
    check_echo(&mut stream, b"the next").await;
    let (story, tries) = node.story(1);
    assert_eq!(story.decisions.len(), 1, "the scripts are not asked again");
    let opened: Vec<_> = tries.iter().map(|(_, error)| error.is_none()).collect();
    assert_eq!(opened, [false, false, true], "{tries:?}");
}

#[tokio::test]
async fn a_failure_that_no_tunnel_mends_ends_the_plan_though_another_racer_fails_later() {
    let (rude, rude_address) = Upstream::start().await;
    let (_never, never_address) = Upstream::start().await;
    let script = format!(
        r#"fn route(c) {{ direct().race(socks("{rude_address}")).or(socks("{never_address}")) }}"#
    );
    let names = NameServer::start(&[Ipv4Addr::LOCALHOST]).await;
    let node = TestNode::start_with(&script, SOCKS, asking(&names)).await;
    // The local dial is refused soon: no flow leads to the node's own entrance.
    let own = format!("own.example:{}", node.entrance().port());
    let hang_up = async { drop(rude.asked().await) };
    let ((reply, _), ()) = tokio::join!(node.socks(&own), hang_up);
    assert_eq!(reply, 2);
    let (_, tries) = node.story(1);
    let tried: Vec<_> = tries.iter().map(|(tunnel, _)| tunnel.as_str()).collect();
    assert_eq!(tried, ["direct", &format!("socks {rude_address}")]);
}

/// The tunnels that were tried for a flow.
fn tried(client: &TestNode, flow: u64) -> Vec<String> {
    let (_, tries) = client.story(flow);
    tries.into_iter().map(|(tunnel, _)| tunnel).collect()
}

#[tokio::test]
async fn flows_of_a_plan_that_sticks_begin_with_the_way_that_opened() {
    let names = NameServer::start(&[]).await;
    let gone = TestNode::exit("fn exit(x) { allow() }", &names).await;
    let script = r#"fn route(c) { peer("gone").direct().exit().or(direct()).stick("1h") }"#;
    let client = TestNode::start(script, SOCKS).await;
    client.befriend(&[("gone", &gone)]);
    gone.node.shutdown().await;
    for _ in 0..2 {
        assert_eq!(client.socks(&echo().await.to_string()).await.0, 0);
    }
    let way = "direct to gone, which exits";
    assert_eq!(tried(&client, 1), [way, "direct"]);
    assert_eq!(tried(&client, 2), ["direct"], "to another target");
}

#[tokio::test]
async fn what_a_target_refuses_makes_a_plan_stick_for_that_target_alone() {
    let (upstream, address) = Upstream::start().await;
    let script = format!(r#"fn route(c) {{ socks("{address}").or(direct()).stick("1h") }}"#);
    let client = TestNode::start(&script, SOCKS).await;
    let (one, other) = (echo().await.to_string(), echo().await.to_string());
    let refused_to = async |target: &str| {
        let refuse = async {
            let refusal = [5, 5, 0, 1, 0, 0, 0, 0, 0, 0];
            upstream.asked().await.write_all(&refusal).await.unwrap();
        };
        let ((reply, _), ()) = tokio::join!(client.socks(target), refuse);
        assert_eq!(reply, 0);
    };
    refused_to(&one).await;
    assert_eq!(client.socks(&one).await.0, 0);
    refused_to(&other).await;
    let socks = format!("socks {address}");
    assert_eq!(tried(&client, 1), [socks.as_str(), "direct"]);
    assert_eq!(tried(&client, 2), ["direct"]);
    assert_eq!(tried(&client, 3), [socks.as_str(), "direct"]);
}

#[tokio::test]
async fn a_step_waits_for_its_delay_which_is_none_of_its_timeout() {
    let closed = closed_port().await;
    let script = format!(
        r#"fn route(c) {{ socks("{closed}").or(direct().delay("1200ms").timeout("1s")) }}"#
    );
    let node = TestNode::start(&script, SOCKS).await;
    let target = echo().await.to_string();
    let start = Instant::now();
    let (reply, mut stream) = node.socks(&target).await;
    let took = start.elapsed();
    assert_eq!(reply, 0);
    let delay = Duration::from_millis(1200);
    assert!((delay..delay + LATE).contains(&took), "{took:?}");
    check_echo(&mut stream, b"late").await;
    let (story, _) = node.story(1);
    assert!(story.open_took.unwrap() >= delay, "{:?}", story.open_took);
    let [first, second] = story.tries.as_slice() else {
        panic!("{:?}", story.tries);
    };
    assert!(
        first.took < delay && second.took < delay,
        "{:?}",
        story.tries
    );
}

#[tokio::test]
async fn a_look_up_waits_for_the_delay_of_its_step() {
    let script = r#"fn route(c) {
        if c.ip == () { return need("ip", direct().delay("300ms")); }
        direct()
    }"#;
    let node = TestNode::start(script, SOCKS).await;
    let port = echo().await.port();
    let start = Instant::now();
    assert_eq!(node.socks(&format!("localhost:{port}")).await.0, 0);
    let (took, delay) = (start.elapsed(), Duration::from_millis(300));
    assert!((delay..delay + LATE).contains(&took), "{took:?}");
}

#[tokio::test]
async fn jitter_holds_back_each_piece_that_is_sent() {
    const PIECES: u32 = 60;
    let longest = Duration::from_millis(20);
    let node = TestNode::start(r#"fn route(c) { direct().jitter("uniform 20ms") }"#, SOCKS).await;
    let (_, mut stream) = node.socks(&greeter().await.to_string()).await;
    assert_eq!(read(&mut stream, 5).await, b"hello");
    let start = Instant::now();
    for _ in 0..PIECES {
        stream.write_all(b"piece").await.unwrap();
        assert_eq!(read(&mut stream, 5).await, b"piece");
    }
    let took = start.elapsed();
    // Half of it is expected; less than a quarter is six standard deviations away.
    let least = longest * PIECES / 4;
    assert!((least..longest * PIECES + LATE).contains(&took), "{took:?}");
}
