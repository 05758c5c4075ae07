//! A node that stops: what it does for others ends, and nothing new is begun.

use std::sync::Arc;

use futures_util::FutureExt;
use wormholed::Opened;
use wormholes_proto::Reason;
use wormholes_rules::Tunnel;

use crate::support::*;

async fn echoes(opened: &mut Opened, bytes: &[u8]) {
    let send = pipe(opened).writer.write_chunk(bytes.to_vec().into());
    within(send).await.unwrap();
    let mut back = Vec::new();
    while back.len() < bytes.len() {
        let chunk = within(pipe(opened).reader.read_chunk()).await.unwrap();
        back.extend_from_slice(&chunk.expect("more"));
    }
    assert_eq!(back, bytes);
}

#[tokio::test]
async fn a_node_that_stops_finishes_what_it_does_for_others_and_refuses_the_rest() {
    let echo = echo_server().await;
    let (client, late) = (node(91, |_| {}), node(92, |_| {}));
    let server = node(94, |config| {
        exits(config);
        config.services = vec![service("echo", echo)];
    });
    befriend(&[&client, &late, &server]);
    let to = Some(server.network.id());
    let direct = |exit| Tunnel::Direct { to, exit };
    let open = async |asker: &Node, tunnel: &Tunnel| {
        within(asker.network.open(tunnel, &request(echo))).await
    };
    let mut service = open(&client, &direct(false)).await.unwrap();
    let exit = open(&client, &direct(true)).await.unwrap();
    echoes(&mut service, b"before").await;

    let network = Arc::clone(&server.network);
    let mut drained = Box::pin(async move { network.drain().await });
    assert!(
        drained.as_mut().now_or_never().is_none(),
        "nobody is waited for"
    );
    // One that is connected, and one that calls.
    for asker in [&client, &late] {
        for tunnel in [direct(false), direct(true)] {
            let refused = open(asker, &tunnel).await.unwrap_err();
            assert_eq!(refused.reason(), Reason::Busy, "{refused}");
        }
    }
    echoes(&mut service, b"meanwhile").await;
    for last in [service, exit] {
        assert!(
            drained.as_mut().now_or_never().is_none(),
            "it is not waited for"
        );
        assert_eq!(exchange(last, b"last").await.unwrap(), b"last");
    }
    within(drained).await;

    let is_online = || {
        let world = client.network.world();
        let mut nodes = world.nodes().iter();
        nodes.any(|node| node.id == server.network.id() && node.online)
    };
    until("they are connected", is_online).await;
    // Well within the time after which a silent connection counts as lost.
    within(server.network.shutdown()).await;
    until("its peer hears that it is gone", || !is_online()).await;
}
