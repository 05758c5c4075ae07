//! Who asks, as the rules of an exit are told.

use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use wormholed::{Gatekeeper, NetworkOptions};
use wormholes_proto::NodeId;
use wormholes_rules::{Allowance, ExitRequest, NodeView, RelayRequest, RuleEvent, Tunnel, Verdict};

use crate::support::*;

/// Lets all pass, and keeps who asked the exit.
#[derive(Debug, Default)]
struct Askers(Mutex<Vec<Option<NodeId>>>);

impl Gatekeeper for Askers {
    fn accept(&self, _node: Arc<NodeView>) -> BoxFuture<'_, Verdict> {
        said(Verdict::Allow(Allowance::default()))
    }

    fn relay(&self, _request: RelayRequest) -> BoxFuture<'_, Verdict> {
        said(Verdict::Deny("no relay".to_owned()))
    }

    fn exit(&self, request: ExitRequest) -> BoxFuture<'_, Verdict> {
        let from = request.from.as_ref().map(|from| from.id);
        self.0.lock().unwrap().push(from);
        said(Verdict::Allow(Allowance::default()))
    }

    fn event(&self, _event: RuleEvent) {}
}

#[tokio::test]
async fn an_exit_takes_no_onion_for_the_hop_before() {
    let echo = echo_server().await;
    let client = node(161, |_| {});
    let hop = node(162, |config| config.hop.role = enabled());
    let askers = Arc::new(Askers::default());
    let edit = |config: &mut wormholed::Config| {
        config.hop.role = enabled();
        exits(config);
    };
    let exit = guarded_node(
        163,
        edit,
        Arc::clone(&askers) as _,
        NetworkOptions::default(),
    );
    befriend(&[&client, &hop, &exit]);
    client.network.refresh_records().await;
    let through_the_hop = Tunnel::Onion {
        hops: 2,
        via: Some(hop.network.id()),
        to: Some(exit.network.id()),
        exit: true,
        friends_only: false,
    };
    let by_itself = Tunnel::Direct {
        to: Some(exit.network.id()),
        exit: true,
    };
    for (node, tunnel, bytes) in [
        (&client, through_the_hop, &b"nobody"[..]),
        (&hop, by_itself, b"the hop"),
    ] {
        let opened = node.network.open(&tunnel, &request(echo)).await.unwrap();
        assert_eq!(exchange(opened, bytes).await.unwrap(), bytes);
    }
    let asked = askers.0.lock().unwrap().clone();
    assert_eq!(asked, [None, Some(hop.network.id())]);
}
