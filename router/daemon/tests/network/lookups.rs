//! Names that a peer looks up for others: whose resolver is asked, and who may ask.

use std::{net::Ipv4Addr, sync::Arc};

use wormholed::{Config, NetworkOptions, OpenError, OpenGate};
use wormholes_proto::{Host, Reason};
use wormholes_rules::Tunnel;

use crate::{name_server::NameServer, support::*};

fn exit_with(number: u8, names: &NameServer, edit: impl FnOnce(&mut Config)) -> Node {
    let options = NetworkOptions {
        name_server: Some(names.address),
        ..NetworkOptions::default()
    };
    let edit = |config: &mut Config| {
        exits(config);
        edit(config);
    };
    guarded_node(number, edit, Arc::new(OpenGate), options)
}

async fn look_up(client: &Node, exit: &Node) -> Result<Vec<std::net::IpAddr>, OpenError> {
    let tunnel = Tunnel::Direct {
        to: Some(exit.network.id()),
        exit: true,
    };
    let host = Host::parse("a.example").unwrap();
    client
        .network
        .resolve(&tunnel, &request(wormholes_proto::Target::new(host, 0)))
        .await
}

#[tokio::test]
async fn names_are_looked_up_at_the_exit() {
    let names = NameServer::start(&[Ipv4Addr::new(127, 9, 9, 9)]).await;
    let (client, exit) = (node(30, |_| {}), exit_with(31, &names, |_| {}));
    befriend(&[&client, &exit]);
    let found = look_up(&client, &exit).await.unwrap();
    assert_eq!(found, [Ipv4Addr::new(127, 9, 9, 9)]);
    assert!(names.asked().iter().all(|name| name == "a.example"));
    until("the exit counts what was asked and told", || {
        exit.network.exit_status().bytes == "a.example".len() as u64 + 6
    })
    .await;
}

#[tokio::test]
async fn an_exit_looks_up_only_what_it_may_dial() {
    let names = NameServer::start(&[Ipv4Addr::new(127, 9, 9, 9)]).await;
    let exit = exit_with(76, &names, |config| {
        config.exit.allow = vec!["192.0.2.0/24:80".parse().unwrap()];
    });
    let client = node(75, |_| {});
    befriend(&[&client, &exit]);
    let refused = look_up(&client, &exit).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::Denied);
}

#[tokio::test]
async fn a_look_up_takes_a_place_until_its_asker_leaves() {
    let silent = NameServer::start(&[]).await;
    let exit = exit_with(78, &silent, |config| {
        config.exit.role.max_circuits_per_peer = 1;
    });
    let client = node(77, |_| {});
    befriend(&[&client, &exit]);
    let (exit_status, refused) = (
        || exit.network.exit_status(),
        || exit.network.counters().exit.refused(),
    );
    let waiting = look_up(&client, &exit);
    let beside = async {
        until("the place is taken", || exit_status().active == 1).await;
        let busy = look_up(&client, &exit).await.unwrap_err();
        assert_eq!(busy.reason(), Reason::Busy);
    };
    tokio::select! {
        found = waiting => panic!("{found:?}"),
        () = beside => {}
    }
    until("the place is free", || exit_status().active == 0).await;
    // Who left is not refused: nobody waited for the name server.
    assert_eq!(refused(), [(Reason::Busy, 1)]);
}
