//! Bad input on streams, sent by a stranger over a real connection.

use std::{net::SocketAddr, sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::Bytes;
use tempfile::TempDir;
use wormholes_proto::{Answer, Open, Reason, encode_open, onion::ClientBuild, onion::PathHop};

use crate::{
    carrier::{Caller, Carrier, Link},
    config::Config,
    counters::Counters,
    gatekeeper::OpenGate,
    identity::Identity,
    network::{Network, NetworkOptions},
    pipe::{Pipe, PipeError},
};

/// A hop, and a stranger's connection to it.
struct Scene {
    hop: Arc<Network>,
    link: Link,
    _carrier: Carrier,
    _dir: TempDir,
}

async fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.node.data_dir = dir.path().join("data");
    config.node.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    config.hop.enabled = true;
    let counters = Arc::new(Counters::default());
    let options = NetworkOptions::default();
    let hop = Network::start(config, options, Arc::new(OpenGate), counters).unwrap();
    let carrier = Carrier::bind(&[], &Identity::throw_away().unwrap()).unwrap();
    let caller = Caller::throw_away().unwrap();
    let address = hop.listen_addresses()[0];
    let link = carrier.dial(&caller, hop.id(), address).await.unwrap();
    Scene {
        hop,
        link,
        _carrier: carrier,
        _dir: dir,
    }
}

impl Scene {
    /// Sends `bytes` on a new stream, ends it, and reads the answer.
    async fn answer(&self, bytes: &[u8]) -> Result<Answer, PipeError> {
        let mut pipe = self.link.open().await.unwrap();
        pipe.writer
            .write_chunk(Bytes::copy_from_slice(bytes))
            .await?;
        pipe.writer.finish().await?;
        let answer = tokio::time::timeout(Duration::from_secs(20), pipe.reader.read_answer());
        answer.await.expect("an answer in time")
    }

    /// A circuit that stands, before its first cell.
    async fn circuit(&self, create: &[u8]) -> Pipe {
        let mut pipe = self.link.open().await.unwrap();
        let create = Bytes::copy_from_slice(create);
        pipe.writer.write_chunk(create).await.unwrap();
        let answer = pipe.reader.read_answer().await.unwrap();
        assert!(matches!(answer, Answer::Accepted(_)), "{answer:?}");
        pipe
    }

    fn path(&self) -> [PathHop; 1] {
        let record = self.hop.own_record();
        [PathHop {
            id: self.hop.id(),
            address: self.hop.listen_addresses()[0],
            key: record.record().onion_keys[0],
        }]
    }

    fn create(&self) -> Vec<u8> {
        let (_, create) = ClientBuild::new(&self.path(), &mut rand::rng()).unwrap();
        encode_open(&Open::Create {
            key_id: create.key_id,
            slots: create.slots,
        })
    }
}

#[tokio::test]
async fn rubbish_is_malformed_and_the_rest_is_denied_to_strangers() {
    let scene = scene().await;
    let rubbish: [&[u8]; 7] = [
        b"",
        b"\x00",
        b"\x00\x00",
        b"\x00\x01\xff",
        b"\x00\x05\x03\x09web",
        b"\xff\xff",
        b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    ];
    for bytes in rubbish {
        let answer = scene.answer(bytes).await;
        assert_eq!(answer, Ok(Answer::Refused(Reason::Malformed)), "{bytes:?}");
    }
    let id = scene.hop.id();
    for open in [
        Open::Exit("1.1.1.1:80".parse().unwrap()),
        Open::Resolve(wormholes_proto::Host::Name("a.example".into())),
        Open::Service(None),
        Open::Relay(id),
        Open::Channel,
        Open::Register(scene.hop.own_record().bytes().to_vec()),
        Open::Relayed,
        Open::Records,
    ] {
        let answer = scene.answer(&encode_open(&open)).await;
        assert_eq!(answer, Ok(Answer::Refused(Reason::Denied)), "{open:?}");
    }
    assert_eq!(scene.hop.counters().streams_refused.load(Relaxed), 15);
}

#[tokio::test]
async fn creates_that_do_not_hold_are_reset_or_stale() {
    let scene = scene().await;
    let create = scene.create();
    let _circuit = scene.circuit(&create).await;
    let replayed = scene.answer(&create).await;
    assert_eq!(replayed, Err(PipeError::Reset));
    for byte in [11, 100, 500, 1290] {
        let mut bent = scene.create();
        bent[byte] ^= 1;
        assert_eq!(
            scene.answer(&bent).await,
            Err(PipeError::Reset),
            "byte {byte}"
        );
    }
    let mut stale = scene.create();
    stale[3] ^= 1;
    assert_eq!(
        scene.answer(&stale).await,
        Ok(Answer::Refused(Reason::StaleKey))
    );
    let refused = scene.hop.counters().hop.refused();
    assert_eq!(refused, [(Reason::StaleKey, 1), (Reason::Handshake, 5)]);
}

#[tokio::test]
async fn cells_that_do_not_hold_end_the_circuit() {
    let scene = scene().await;
    for cell in [&b"\x00"[..], b"\x02", &[0; 513], &[1; 400], &[7; 20_000]] {
        let mut pipe = scene.circuit(&scene.create()).await;
        let chunk = Bytes::copy_from_slice(cell);
        pipe.writer.write_chunk(chunk).await.unwrap();
        let _ = pipe.writer.finish().await;
        let end = tokio::time::timeout(Duration::from_secs(20), pipe.reader.read_chunk());
        assert_eq!(
            end.await.unwrap(),
            Err(PipeError::Reset),
            "{} bytes",
            cell.len()
        );
    }
    let freed = async {
        while scene.hop.hop_status().active > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), freed)
        .await
        .unwrap();
}
