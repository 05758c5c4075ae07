//! Onion tunnels over real connections: what works, what each hop can know, what breaks how.

use std::{
    net::Ipv4Addr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, pending},
};
use wormholed::{Config, Gatekeeper, NetworkOptions, OpenError, OpenGate, PipeError};
use wormholes_proto::{Host, NodeId, Reason, Remedy};
use wormholes_rules::{
    Allowance, ExitRequest, NodeView, RelayRequest, RuleEvent, Tunnel, TunnelKind, Verdict,
};

use crate::{name_server::NameServer, support::*};

/// A client, a hub that both it and the hops know, and hops that never heard of the client.
struct Scene {
    client: Node,
    hub: Node,
    hops: Vec<Node>,
    seen: Vec<Arc<Seen>>,
}

fn hop_and_exit(config: &mut Config) {
    config.hop.role = enabled();
    exits(config);
}

/// `first` is the second byte of the client's address; the hub and the hops follow.
async fn scene(first: u8, n_hops: u8, edit: impl Fn(u8, &mut Config)) -> Scene {
    let client = node(first, |_| {});
    let hub = node(first + 1, |_| {});
    let mut hops = Vec::new();
    let mut seen = Vec::new();
    for number in 0..n_hops {
        let witness = Arc::new(Seen::default());
        let options = NetworkOptions {
            name_server: Some(
                NameServer::start(&[Ipv4Addr::new(127, 9, 9, 9)])
                    .await
                    .address,
            ),
            witness: Some(Arc::clone(&witness) as _),
            ..NetworkOptions::default()
        };
        let edit = |config: &mut Config| {
            hop_and_exit(config);
            edit(number, config);
        };
        hops.push(guarded_node(
            first + 2 + number,
            edit,
            Arc::new(OpenGate),
            options,
        ));
        seen.push(witness);
    }
    let scene = Scene {
        client,
        hub,
        hops,
        seen,
    };
    scene.client.network.set_peers(&[peer(&scene.hub)]);
    let mut all: Vec<_> = scene.hops.iter().map(peer).collect();
    all.push(peer(&scene.client));
    scene.hub.network.set_peers(&all);
    for hop in &scene.hops {
        hop.network.set_peers(&[peer(&scene.hub)]);
    }
    scene.informed().await;
    scene
}

impl Scene {
    /// The client knows as many hops as there are.
    async fn informed(&self) {
        let knows = || {
            let world = self.client.network.world();
            world.nodes().iter().filter(|node| node.roles.hop).count() >= self.hops.len()
        };
        within(async {
            while !knows() {
                self.client.network.refresh_records().await;
            }
        })
        .await;
    }

    fn hop(&self, id: NodeId) -> usize {
        self.hops
            .iter()
            .position(|hop| hop.network.id() == id)
            .expect("a hop")
    }
}

fn onion(hops: u8) -> Tunnel {
    Tunnel::Onion {
        hops,
        via: None,
        to: None,
        exit: true,
        friends_only: false,
    }
}

fn onion_to(hops: u8, to: &Node, exit: bool) -> Tunnel {
    Tunnel::Onion {
        hops,
        via: None,
        to: Some(to.network.id()),
        exit,
        friends_only: false,
    }
}

#[tokio::test]
async fn one_to_eight_hops_carry_a_flow_and_none_knows_both_ends() {
    let echo = echo_server().await;
    let scene = scene(80, 8, |_, _| {}).await;
    let mut bytes = noise(300_000);
    bytes[..20].copy_from_slice(b"a very secret phrase");
    for hops in 1..=8 {
        let opened = scene
            .client
            .network
            .open(&onion(hops), &request(echo))
            .await;
        let opened = opened.unwrap_or_else(|error| panic!("{hops} hops: {error}"));
        assert_eq!(
            (opened.kind, opened.path.len()),
            (TunnelKind::Onion, usize::from(hops))
        );
        assert_eq!(
            exchange(opened, &bytes).await.unwrap(),
            bytes,
            "{hops} hops"
        );
    }
    assert!(scene.seen.iter().map(|seen| seen.len()).sum::<usize>() > 2_000_000);
    for (hop, seen) in scene.hops.iter().zip(&scene.seen) {
        assert!(!seen.contains(b"a very secret phrase"));
        assert!(!seen.contains(&bytes[100_000..100_032]));
        let served = hop.network.hop_status().nodes;
        let client = scene.client.network.id();
        assert!(
            served.iter().all(|account| account.id != client),
            "the client gave its name"
        );
    }
}

#[tokio::test]
async fn hops_that_do_not_exit_pass_on_to_nodes_that_they_never_heard_of() {
    let echo = echo_server().await;
    let client = node(133, |_| {});
    let only_hop = |config: &mut Config| config.hop.role = enabled();
    let hops = [
        node(134, only_hop),
        node(135, only_hop),
        node(136, hop_and_exit),
    ];
    let peers: Vec<_> = hops.iter().map(peer).collect();
    client.network.set_peers(&peers);
    for hop in &hops {
        hop.network.set_peers(&[peer(&client)]);
    }
    let opened = client
        .network
        .open(&onion(3), &request(echo))
        .await
        .unwrap();
    assert_eq!(opened.path[2], hops[2].network.id());
    assert_eq!(exchange(opened, b"passed on").await.unwrap(), b"passed on");
}

#[tokio::test]
async fn half_close_and_refusals_pass_through_all_layers() {
    let late = late_server().await;
    let scene = scene(91, 3, |_, _| {}).await;
    let network = &scene.client.network;
    let opened = network.open(&onion(3), &request(late)).await.unwrap();
    assert_eq!(
        exchange(opened, &noise(70_000)).await.unwrap(),
        b"got 70000"
    );
    let error = network
        .open(&onion(3), &request(closed_port().await))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::ConnectionRefused, "{error}");
    let metadata: wormholes_proto::Target = "169.254.169.254:80".parse().unwrap();
    let error = network
        .open(&onion(3), &request(metadata))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::ForbiddenAddress, "{error}");
    let host = Host::parse("a.example").unwrap();
    let found = network
        .resolve(&onion(3), &request(wormholes_proto::Target::new(host, 0)))
        .await
        .unwrap();
    assert_eq!(found, [Ipv4Addr::new(127, 9, 9, 9)]);
}

#[tokio::test]
async fn a_service_at_the_end_of_an_onion_serves_nobody_in_particular() {
    let echo = echo_server().await;
    let scene = scene(96, 3, move |_, config| {
        let mut open = service("open", echo);
        open.min_trust = 0;
        config.services = vec![open, service("friends", echo)];
    })
    .await;
    let network = &scene.client.network;
    let tunnel = onion_to(3, &scene.hops[1], false);
    let opened = network
        .open(&tunnel, &service_request("open"))
        .await
        .unwrap();
    assert_eq!(opened.path[2], scene.hops[1].network.id());
    assert_eq!(exchange(opened, b"anybody").await.unwrap(), b"anybody");
    let error = network
        .open(&tunnel, &service_request("friends"))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::NoService);
    assert!(error.to_string().contains("`min_trust = 0`"), "{error}");
    // To a friend, by another tunnel, the service may be open.
    assert_eq!(error.kind().remedy, Remedy::OtherTunnel);
}

#[tokio::test]
async fn circuits_are_built_ahead_and_paths_kept_per_isolation_key() {
    let echo = echo_server().await;
    let scene = scene(101, 6, |_, _| {}).await;
    let network = &scene.client.network;
    let built = || network.counters().circuits_built.load(Relaxed);
    let first = network.open(&onion(3), &request(echo)).await.unwrap();
    assert_eq!(built(), 1, "a key that came once may never come again");
    let second = network.open(&onion(3), &request(echo)).await.unwrap();
    until("a spare is built", || built() == 3).await;
    let third = network.open(&onion(3), &request(echo)).await.unwrap();
    for (flow, said) in [(first, b"one"), (second, b"two"), (third, b"six")] {
        assert!(network.guards().contains(&flow.path[0]));
        assert_eq!(exchange(flow, said).await.unwrap(), said);
    }
    until("the next spare is built", || built() == 4).await;
    let mut paths = std::collections::HashSet::new();
    for key in 0..20 {
        let mut other = request(echo);
        other.isolation = format!("key {key}");
        paths.insert(network.open(&onion(3), &other).await.unwrap().path);
    }
    assert_eq!(built(), 24, "each key but the first came once");
    assert!(
        paths.len() > 1,
        "keys of different flows share no path by rule"
    );
    let guards = network.guards();
    assert!(paths.iter().all(|path| guards.contains(&path[0])));
}

#[tokio::test]
async fn the_only_hop_is_one_exit_for_all_flows_until_it_is_gone() {
    let echo = echo_server().await;
    let scene = scene(145, 5, |_, _| {}).await;
    let network = &scene.client.network;
    let only = async |keys: std::ops::Range<u8>| {
        let mut only = std::collections::HashSet::new();
        for key in keys {
            let mut request = request(echo);
            request.isolation = format!("key {key}");
            only.insert(network.open(&onion(1), &request).await.unwrap().path);
        }
        assert_eq!(only.len(), 1, "{only:?}");
        only.into_iter().next().unwrap()[0]
    };
    let primary = only(0..20).await;
    scene.hops[scene.hop(primary)].network.shutdown().await;
    let spare = only(20..40).await;
    assert_ne!(primary, spare);
}

#[tokio::test]
async fn flows_travel_over_many_paths_at_the_same_time() {
    let echo = echo_server().await;
    let scene = scene(190, 6, |_, _| {}).await;
    let network = &scene.client.network;
    let flows = (0u8..12).map(|key| async move {
        let mut request = request(echo);
        request.isolation = format!("key {key}");
        within(network.open(&onion(3), &request)).await.unwrap()
    });
    let mut flows = futures_util::future::join_all(flows).await;
    // All are open: each takes its bytes in before any gives them back.
    for (flow, byte) in flows.iter_mut().zip(0u8..) {
        pipe(flow)
            .writer
            .write_chunk(vec![byte].into())
            .await
            .unwrap();
    }
    for (flow, byte) in flows.iter_mut().zip(0u8..12).rev() {
        let back = within(pipe(flow).reader.read_chunk()).await;
        assert_eq!(back, Ok(Some(vec![byte].into())));
    }
    let distinct = |hop: usize| {
        let hops = flows.iter().map(|flow| flow.path[hop]);
        hops.collect::<std::collections::HashSet<_>>().len()
    };
    // One guard for all, by design; behind it the ways part.
    assert_eq!(distinct(0), 1);
    assert!(
        distinct(1) > 1 && distinct(2) > 1,
        "{} {}",
        distinct(1),
        distinct(2)
    );
    let paths: std::collections::HashSet<_> = flows.iter().map(|flow| &flow.path).collect();
    // Of twenty paths; by chance one is once in some hundred runs.
    assert!(paths.len() + 1 >= flows.len(), "no path is taken twice");
    let active = |hop: &Node| hop.network.hop_status().active;
    let busy = scene.hops.iter().filter(|hop| active(hop) > 0).count();
    assert!(busy > 3, "{busy} hops carry something at once");
}

#[tokio::test]
async fn a_hop_that_dies_breaks_the_flow_and_the_next_one_takes_another_path() {
    let echo = echo_server().await;
    let scene = scene(110, 5, |_, _| {}).await;
    let network = &scene.client.network;
    let opened = network.open(&onion(3), &request(echo)).await.unwrap();
    let dead = opened.path[1];
    let mut pipe = opened.into_pipe().unwrap();
    pipe.writer.write_chunk("x".into()).await.unwrap();
    let echoed = within(pipe.reader.read_chunk()).await;
    assert_eq!(echoed, Ok(Some("x".into())));
    scene.hops[scene.hop(dead)].network.shutdown().await;
    let broken = within(pipe.reader.read_chunk()).await.unwrap_err();
    assert!(
        matches!(broken, PipeError::Reset | PipeError::Broken(_)),
        "{broken}"
    );
    let next = within(async {
        loop {
            if let Ok(opened) = network.open(&onion(3), &request(echo)).await {
                return opened;
            }
        }
    })
    .await;
    assert!(!next.path.contains(&dead));
    assert_eq!(exchange(next, b"again").await.unwrap(), b"again");
}

#[tokio::test]
async fn a_restarted_hop_has_new_keys_and_is_found_again() {
    let echo = echo_server().await;
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let client = node(117, |_| {});
    let start = |port: u16| {
        let data_dir = data_dir.clone();
        try_node(118, move |config| {
            hop_and_exit(config);
            config.node.data_dir = data_dir;
            config.node.listen[0].set_port(port);
        })
    };
    let hop = start(0).unwrap();
    befriend(&[&client, &hop]);
    let network = &client.network;
    let opened = network.open(&onion(1), &request(echo)).await.unwrap();
    assert_eq!(exchange(opened, b"one").await.unwrap(), b"one");
    let port = hop.network.listen_addresses()[0].port();
    hop.network.shutdown().await;
    drop(hop);
    let mut restarted = None;
    until("the port is free again", || {
        restarted = start(port).ok();
        restarted.is_some()
    })
    .await;
    let hop = restarted.unwrap();
    hop.network.set_peers(&[peer(&client)]);
    let opened = within(async {
        loop {
            if let Ok(opened) = network.open(&onion(1), &request(echo)).await {
                return opened;
            }
        }
    })
    .await;
    assert_eq!(exchange(opened, b"two").await.unwrap(), b"two");
}

/// Takes connections and serves none of them: a node that froze.
#[derive(Debug)]
struct Frozen;

impl Gatekeeper for Frozen {
    fn accept(&self, _node: Arc<NodeView>) -> BoxFuture<'_, Verdict> {
        pending().boxed()
    }

    fn relay(&self, _request: RelayRequest) -> BoxFuture<'_, Verdict> {
        pending().boxed()
    }

    fn exit(&self, _request: ExitRequest) -> BoxFuture<'_, Verdict> {
        pending().boxed()
    }

    fn event(&self, _event: RuleEvent) {}
}

#[tokio::test]
async fn a_hop_that_keeps_silent_is_given_up_and_nobody_is_blamed() {
    let client = node(137, |_| {});
    let hop = node(138, |config| config.hop.role = enabled());
    let gate = Arc::new(Frozen);
    let silent = guarded_node(139, hop_and_exit, gate, NetworkOptions::default());
    befriend(&[&client, &hop]);
    client.network.add_record(silent.network.own_record());
    hop.network.ping(client.network.id()).await.unwrap();
    client.network.refresh_records().await;
    let mut request = request(closed_port().await);
    request.timeout = Duration::from_secs(3);
    let tunnel = onion_to(2, &silent, true);
    let error = client.network.open(&tunnel, &request).await.unwrap_err();
    // Earlier than the whole time: each path gets a part of it.
    let OpenError::NoCircuit { hops: 2 } = error else {
        panic!("{error}");
    };
    assert_eq!(error.kind().remedy, Remedy::OtherTunnel);
    assert_eq!(error.reason(), Reason::TimedOut);
    let failed = client.network.counters().circuits_failed.load(Relaxed);
    assert!(failed >= 3, "{failed}");
}

#[tokio::test]
async fn a_hop_that_is_not_reached_is_named_and_ends_no_plan() {
    let client = node(141, |_| {});
    let hop = node(142, |config| config.hop.role = enabled());
    let dead = node(143, hop_and_exit);
    befriend(&[&client, &hop]);
    client.network.add_record(dead.network.own_record());
    client.network.ping(hop.network.id()).await.unwrap();
    client.network.refresh_records().await;
    dead.network.shutdown().await;
    let request = request(closed_port().await);
    let tunnel = onion_to(2, &dead, true);
    let error = client.network.open(&tunnel, &request).await.unwrap_err();
    // Nobody asked the dead one: it is the hop before that says so.
    let (dead_id, hop_id) = (dead.network.id().to_string(), hop.network.id().to_string());
    let expected = format!(
        "onion hop {}…: not reached, says node142 ({}…) before it",
        &dead_id[..8],
        &hop_id[..8]
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(error.node(), Some(dead.network.id()));
    assert_eq!(error.kind().remedy, Remedy::OtherTunnel);
    let refused = hop.network.counters().hop.refused();
    assert_eq!(refused.first().unwrap().0, Reason::Unreachable);
}

#[tokio::test]
async fn the_record_of_a_hop_that_nobody_named_leads_to_no_place_nearby() {
    // All peers are on loopback: another private network is none of theirs.
    for (told, dialled) in [("192.168.77.1:4433", false), ("127.196.0.1:4433", true)] {
        let client = node(197, |_| {});
        let hub = node(198, |_| {});
        let hop = node(199, |config| {
            hop_and_exit(config);
            config.node.advertise = vec![told.parse().unwrap()];
        });
        client.network.set_peers(&[peer(&hub)]);
        client.network.add_record(hop.network.own_record());
        let tunnel = onion_to(1, &hop, true);
        let request = request(closed_port().await);
        let opened = within(client.network.open(&tunnel, &request)).await;
        let error = opened.unwrap_err();
        let forbidden = matches!(
            error,
            OpenError::Hop {
                reason: Reason::ForbiddenAddress,
                ..
            }
        );
        assert_eq!(forbidden, !dialled, "{told}: {error}");
    }
}

#[tokio::test]
async fn a_hop_calls_the_next_for_nobody_who_left() {
    let socket = std::net::UdpSocket::bind("127.147.0.1:0").unwrap();
    let silent = socket.local_addr().unwrap();
    let is_found_there = |number, config: &mut Config| {
        if number == 1 {
            config.node.advertise = vec![silent];
        }
    };
    let scene = scene(140, 2, is_found_there).await;
    let [first, last] = scene.hops.as_slice() else {
        panic!("two hops");
    };
    let tunnel = Tunnel::Onion {
        hops: 2,
        via: Some(first.network.id()),
        to: Some(last.network.id()),
        exit: true,
        friends_only: false,
    };
    let request = request(closed_port().await);
    let at_work = || first.network.hop_status().active > 0;
    tokio::select! {
        opened = scene.client.network.open(&tunnel, &request) => panic!("{opened:?}"),
        () = until("the first hop calls the next", at_work) => {}
    }
    until("the first hop is free", || !at_work()).await;
    // Nobody waited for the silent hop's time to be over.
    assert_eq!(first.network.counters().hop.refused(), []);
}

/// Lets friends in only.
#[derive(Debug)]
struct FriendsOnly;

impl Gatekeeper for FriendsOnly {
    fn accept(&self, node: Arc<NodeView>) -> BoxFuture<'_, Verdict> {
        said(if node.trust >= 2 {
            Verdict::Allow(Allowance::default())
        } else {
            Verdict::Deny("stranger".to_owned())
        })
    }

    fn relay(&self, _request: RelayRequest) -> BoxFuture<'_, Verdict> {
        said(Verdict::Deny("no".to_owned()))
    }

    fn exit(&self, _request: ExitRequest) -> BoxFuture<'_, Verdict> {
        said(Verdict::Allow(Allowance::default()))
    }

    fn event(&self, _event: RuleEvent) {}
}

#[tokio::test]
async fn a_hop_that_demands_a_friend_learns_who_calls() {
    let echo = echo_server().await;
    let client = node(121, |_| {});
    let hop = guarded_node(
        122,
        hop_and_exit,
        Arc::new(FriendsOnly),
        NetworkOptions::default(),
    );
    befriend(&[&client, &hop]);
    let opened = client.network.open(&onion(1), &request(echo)).await;
    let answer = exchange(opened.unwrap(), b"friend").await.unwrap();
    assert_eq!(answer, b"friend");
    let served = hop.network.hop_status().nodes;
    assert_eq!(served[0].id, client.network.id());

    // It is nobody's friend here any more: no door opens by this node's own name.
    client.network.set_peers(&[]);
    let refused = client.network.open(&onion(1), &request(echo)).await;
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("denied"), "{why}");
}

#[tokio::test]
async fn without_hops_there_is_no_path_and_the_error_says_so() {
    let echo = echo_server().await;
    let client = node(124, |_| {});
    let plain = node(125, exits);
    befriend(&[&client, &plain]);
    let error = client
        .network
        .open(&onion(3), &request(echo))
        .await
        .unwrap_err();
    assert!(error.to_string().starts_with("no onion path: "), "{error}");
    let named = onion_to(3, &plain, true);
    let error = client
        .network
        .open(&named, &request(echo))
        .await
        .unwrap_err();
    assert!(error.to_string().starts_with("no onion path: "), "{error}");
}
