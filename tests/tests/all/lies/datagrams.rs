//! A friend with a UDP flow that lies in what carries its datagrams.

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use tokio::net::UdpSocket;
use wormholes_proto::{Open, Transport, decode_lane, encode_lane, encode_open};
use wormholes_tests::{Metrics, refused_since, until};

use super::Scene;

const UNKNOWN: &str = "wormholes_datagrams_dropped_total{reason=\"unknown\"}";

/// Sends each datagram back.
async fn echo() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut datagram = vec![0; 1 << 16];
        while let Ok((len, from)) = socket.recv_from(&mut datagram).await {
            let _ = socket.send_to(&datagram[..len], from).await;
        }
    });
    address
}

/// A flow to `target` over the node that is lied to.
async fn flow(friend: &Connection, target: SocketAddr) -> (SendStream, RecvStream) {
    let (mut send, mut receive) = friend.open_bi().await.unwrap();
    let open = encode_open(&Open::Exit(Transport::Udp, target.into()));
    send.write_all(&open).await.unwrap();
    let mut answer = [0; 3];
    receive.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, [0, 1, 0], "accepted");
    (send, receive)
}

/// A datagram there and back beside the stream of number `stream`.
async fn check_echo(friend: &Connection, stream: u64, data: &'static [u8]) {
    friend.send_datagram(encode_lane(stream, data)).unwrap();
    let back = decode_lane(friend.read_datagram().await.unwrap());
    assert_eq!(back, Ok((stream, Bytes::from_static(data))));
}

#[tokio::test]
async fn datagrams_that_lie_end_no_flow_but_their_own() {
    let scene = Scene::start(176).await;
    let friend = scene.call(&scene.liar).await;
    let echo = echo().await;
    let honest = scene.takes(flow(&friend, echo)).await;
    let stream = u64::from(honest.0.id());
    check_echo(&friend, stream, b"true").await;
    for lie in [
        &b"\xff\xff"[..],
        b"\xff\xe4too long by one",
        b"\0\x05cut",
        b"\0",
    ] {
        let before = Metrics::read(&scene.target).await.unwrap();
        let (mut send, mut receive) = flow(&friend, echo).await;
        send.write_all(lie).await.unwrap();
        send.finish().unwrap();
        let counted = refused_since(&scene.target, &before).await.unwrap();
        assert_eq!(counted, ["wormholes_peer_refusals_total{what=\"frame\"}"]);
        let cut = receive.read_to_end(1).await;
        assert!(cut.is_err(), "{lie:?} had a good end");
    }
    for lie in [
        &b""[..],
        b"short",
        &encode_lane(u64::MAX, b"no such stream"),
        &encode_lane(stream + 400, b"no such stream yet"),
    ] {
        let lie = Bytes::copy_from_slice(lie);
        friend.send_datagram(lie).unwrap();
    }
    let counted = until("each to be counted", async || {
        let metrics = Metrics::read(&scene.target).await.ok()?;
        (metrics.get(UNKNOWN) >= 4.0).then(|| metrics.get(UNKNOWN))
    });
    assert!((counted.await.unwrap() - 4.0).abs() < 0.5);
    check_echo(&friend, stream, b"still true").await;
    scene.is_well().await;
}
