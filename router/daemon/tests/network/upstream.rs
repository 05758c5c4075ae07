//! Tunnels through an upstream SOCKS5 server.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use wormholes_proto::{Reason, Target, Transport};
use wormholes_rules::{Tunnel, TunnelKind};

use crate::support::*;

/// A server that answers every request with `reply`, and echoes after a success (RFC 1928).
async fn socks_server(reply: u8) -> (SocketAddr, tokio::sync::mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, requests) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut greeting = [0; 3];
        stream.read_exact(&mut greeting).await.unwrap();
        stream.write_all(&[5, 0]).await.unwrap();
        let mut request = vec![0; 5];
        stream.read_exact(&mut request).await.unwrap();
        let mut rest = vec![0; usize::from(request[4]) + 2];
        stream.read_exact(&mut rest).await.unwrap();
        request.extend(rest);
        sender.send(request).await.unwrap();
        let answer = [5, reply, 0, 1, 0, 0, 0, 0, 0, 0];
        // The first bytes of the flow come with the answer.
        let answer = [&answer[..], if reply == 0 { b"hi " } else { b"" }].concat();
        stream.write_all(&answer).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    });
    (address, requests)
}

#[tokio::test]
async fn an_upstream_server_gets_the_name_unresolved() {
    let (server, mut requests) = socks_server(0).await;
    let client = node(150, |_| {});
    let target: Target = "never.looked.up.example:443".parse().unwrap();
    let tunnel = Tunnel::Socks { server };
    let opened = client
        .network
        .open(&tunnel, &request(target))
        .await
        .unwrap();
    assert_eq!(opened.kind, TunnelKind::Socks);
    assert_eq!(exchange(opened, b"there").await.unwrap(), b"hi there");
    let request = requests.recv().await.unwrap();
    assert_eq!(&request[..5], [5, 1, 0, 3, 23]);
    assert_eq!(&request[5..28], b"never.looked.up.example");
}

#[tokio::test]
async fn refusals_of_an_upstream_server_keep_their_meaning() {
    let client = node(151, |_| {});
    for (reply, reason) in [
        (2, Reason::Denied),
        (3, Reason::NetworkUnreachable),
        (4, Reason::Unreachable),
        (5, Reason::ConnectionRefused),
        (6, Reason::TimedOut),
    ] {
        let (server, _requests) = socks_server(reply).await;
        let target: Target = "a.example:443".parse().unwrap();
        let tunnel = Tunnel::Socks { server };
        let error = client
            .network
            .open(&tunnel, &request(target))
            .await
            .unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
    }
    let own = echo_server().await;
    client.network.protect_socket(Transport::Tcp, own);
    let tunnel = Tunnel::Socks { server: own };
    let error = client
        .network
        .open(&tunnel, &request(own))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::ForbiddenAddress);
}
