//! A liar behind the node: a relay's or hop's question to it is answered with lies.

use std::{net::Ipv4Addr, sync::Arc};

use quinn::Connection;
use wormholes_proto::{Answer, Open, SignedRecord, encode_open, onion::CREATED_BYTES};
use wormholes_tests::{
    Daemon, Metrics, Setup,
    liar::{Asked, Cast, Liar, LiarServer, Lie, Told, ask, formats, onion::create, tell},
    refused_since,
};

/// A node that carries, somebody who asks it to, and a liar that is asked.
struct Carrying {
    node: Daemon,
    asker: Connection,
    server: LiarServer,
    cast: Cast,
}

impl Carrying {
    async fn start(first: u8) -> Self {
        let ip = |number| Ipv4Addr::new(127, first + number, 0, 1);
        let server = LiarServer::start(ip(0)).unwrap();
        let asker = Liar::new(ip(1)).unwrap();
        let node = Setup::new("node")
            .unwrap()
            .listen(&format!("{}:0", ip(2)))
            .config("[metrics]\nlisten = \"127.0.0.1:0\"")
            .config("[relay]\nenabled = true\n[hop]\nenabled = true")
            .peer_id("asker", asker.id(), 2, "")
            .peer_id("liar", server.liar().id(), 2, "")
            .start()
            .await
            .unwrap();
        let call = server.liar().call(node.listen().unwrap()).await.unwrap();
        let own = server.liar().signed().unwrap();
        let register = encode_open(&Open::Register(own.bytes().to_vec()));
        let told = ask(&call, &register).await.unwrap();
        assert!(matches!(told, Told::Accepted(..)), "{told:?}");
        server.adopt(call);
        Self {
            cast: Cast {
                liar: server.liar().id(),
                target: node.id(),
                friend: asker.id(),
            },
            asker: asker.call(node.listen().unwrap()).await.unwrap(),
            node,
            server,
        }
    }

    /// Answers what the node carries to the liar with this, and this after it.
    fn answer(&self, answer: Vec<u8>, after: Vec<u8>) {
        let said: Arc<[u8]> = [answer, after].concat().into();
        self.server.react(move |asked: Asked| {
            let said = Arc::clone(&said);
            async move {
                if let Open::Relayed | Open::Create { .. } = asked.open {
                    asked.say(&said).await
                } else {
                    asked.refuse().await
                }
            }
        });
    }

    /// Has the node ask the liar: it counts the lie.
    async fn counts(&self, lie: &Lie, open: &[u8]) -> Told {
        let before = Metrics::read(&self.node).await.unwrap();
        let told = tell(&self.asker, open).await.unwrap();
        if !lie.may_pass
            && let Err(error) = refused_since(&self.node, &before).await
        {
            panic!("{}: {told:?}, but {error}", lie.name);
        }
        told
    }

    /// As [`Self::counts`]; and the asker is refused.
    async fn refuses(&self, lie: &Lie, open: &[u8]) {
        let told = self.counts(lie, open).await;
        let got = matches!(told, Told::Accepted(..));
        assert!(!got || lie.may_pass, "{}: {told:?}", lie.name);
    }

    async fn node_record(&self) -> SignedRecord {
        let told = ask(&self.asker, &encode_open(&Open::Records))
            .await
            .unwrap();
        let Told::Accepted(_, set) = told else {
            panic!("{told:?}");
        };
        super::records_in(&set)
            .find(|record| record.id() == self.node.id())
            .unwrap()
    }

    fn is_well(&self) {
        let panics = self.node.log().matching("panicked");
        assert!(panics.is_empty(), "{panics:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registered_node_that_lies_is_not_relayed_to() {
    let scene = Carrying::start(144).await;
    let truth = formats::answer(&Answer::Accepted(Vec::new()));
    let open = encode_open(&Open::Relay(scene.cast.liar));
    scene.answer(truth.bytes(), Vec::new());
    let told = ask(&scene.asker, &open).await.unwrap();
    assert!(matches!(told, Told::Accepted(..)), "{told:?}");
    for lie in truth.lies(scene.cast) {
        scene.answer(lie.bytes.clone(), Vec::new());
        scene.refuses(&lie, &open).await;
    }
    scene.is_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_next_hop_that_lies_is_told_of_and_its_cells_end() {
    let scene = Carrying::start(148).await;
    let hop = scene.node_record().await;
    let key = hop.record().onion_keys[0];
    let liar = scene.server.liar();
    let address = liar.address().unwrap();
    let (next, next_key) = (liar.id(), liar.onion_key());
    let route = formats::route(next.as_bytes(), address, &next_key.key_id, &[3; 32]).bytes();
    let open = || {
        let (_, slots) = create(&hop.id(), &key, &route).unwrap();
        encode_open(&Open::Create {
            key_id: key.key_id,
            slots: Box::new(slots),
        })
    };
    let truth = formats::answer(&Answer::Accepted(vec![7; CREATED_BYTES]));
    let cell = formats::sealed_cell(&[0; 513]);
    scene.answer(truth.bytes(), cell.bytes());
    let told = ask(&scene.asker, &open()).await.unwrap();
    let Told::Accepted(_, cells) = &told else {
        panic!("{told:?}");
    };
    assert_eq!(cells.len(), 513);
    for lie in truth.lies(scene.cast) {
        // What is in it only the client can read.
        let inside = lie.name.contains("body") && lie.bytes.len() == truth.bytes().len();
        if !inside {
            scene.answer(lie.bytes.clone(), Vec::new());
            scene.counts(&lie, &open()).await;
        }
    }
    for lie in cell.lies(scene.cast) {
        // So it is with what a cell holds; its size is everybody's.
        if !lie.bytes.is_empty()
            && (lie.name.contains("class") || lie.bytes.len() != cell.bytes().len())
        {
            scene.answer(truth.bytes(), lie.bytes.clone());
            scene.counts(&lie, &open()).await;
        }
    }
    scene.is_well();
}
