//! Bad input on streams, sent by a stranger over a real connection.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tempfile::TempDir;
use wormholes_proto::CarrierKind;
use wormholes_proto::{
    Answer, NodeId, NodeRecord, Open, Reason, Roles, SignedRecord, Suite, encode_open,
    onion::{BuildError, CREATED_BYTES, ClientBuild, Create, PathHop},
    sealed::SessionId,
};

use crate::{
    ban::{Ban, Transport},
    carrier::{Caller, Carrier, Link, Standing},
    config::{Config, PeerConfig},
    counters::Counters,
    gatekeeper::OpenGate,
    identity::Identity,
    network::{Network, NetworkOptions},
    peers::ConnectError,
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
    scene_with(|_| {}).await
}

async fn scene_with(edit: impl FnOnce(&mut Config)) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.node.data_dir = dir.path().join("data");
    config.node.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    config.hop.role.enabled = true;
    edit(&mut config);
    let counters = Arc::new(Counters::default());
    let options = NetworkOptions::default();
    let hop = Network::start(config, options, Arc::new(OpenGate), counters).unwrap();
    let carrier = {
        let identity = Identity::throw_away().unwrap();
        Carrier::bind(&[], &CarrierKind::ALL, &identity, Arc::default()).unwrap()
    };
    let caller = Caller::throw_away().unwrap();
    let address = hop.listen_addresses()[0];
    let kind = hop.carrier().kinds()[0];
    let link = carrier
        .dial(&caller, hop.id(), (kind, address))
        .await
        .unwrap();
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
        encode_create(create)
    }

    /// Has the hop pass a circuit on to `next` at `address`: how that failed, by its word.
    async fn pass_on(&self, next: NodeId, address: SocketAddr) -> BuildError {
        let [hop] = self.path();
        let behind = PathHop {
            id: next,
            address,
            key: hop.key,
        };
        self.build(behind).await.unwrap_err()
    }

    /// Has the hop pass a circuit on.
    async fn build(&self, behind: PathHop) -> Result<(), BuildError> {
        let [hop] = self.path();
        let (build, create) = ClientBuild::new(&[hop, behind], &mut rand::rng()).unwrap();
        let answer = self.answer(&encode_create(create)).await;
        let Ok(Answer::Accepted(created)) = answer else {
            panic!("{answer:?}");
        };
        let created: [u8; CREATED_BYTES] = created.try_into().unwrap();
        build.handle_created(&created).map(drop)
    }

    /// Whether a packet comes to `socket` at `address` when the hop is to pass a circuit on there;
    /// else it says that it is forbidden to.
    async fn dials(&self, next: NodeId, address: SocketAddr, socket: &UdpSocket) -> bool {
        let came = async {
            let mut looks = tokio::time::interval(Duration::from_millis(5));
            while socket.recv_from(&mut [0; 2048]).is_err() {
                looks.tick().await;
            }
        };
        tokio::select! {
            error = self.pass_on(next, address) => {
                assert_eq!(error.reason, Reason::ForbiddenAddress);
                false
            }
            () = came => true,
        }
    }
}

fn encode_create(create: Create) -> Vec<u8> {
    encode_open(&Open::Create {
        key_id: create.key_id,
        slots: create.slots,
    })
}

/// A socket on loopback at which nobody answers.
fn silent_socket() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.65.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

fn now_ms() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    since.as_millis().try_into().unwrap()
}

/// Somebody's record with these addresses.
fn record_at(addresses: Vec<SocketAddr>) -> SignedRecord {
    let identity = Identity::throw_away().unwrap();
    let record = NodeRecord {
        id: identity.id(),
        sequence: now_ms(),
        addresses,
        noise_key: [1; 32],
        suite: Suite::AesGcm,
        onion_keys: Vec::new(),
        roles: Roles::default(),
        exit_ports: Vec::new(),
        family: None,
        relays: Vec::new(),
    };
    record.sign(|message| identity.sign(message)).unwrap()
}

/// Told to everybody, dialled by nobody here.
const PUBLIC: &str = "1.1.1.1:4433";

#[tokio::test]
async fn a_hop_passes_on_to_no_banned_address() {
    let public = |config: &mut Config| config.node.advertise = vec![PUBLIC.parse().unwrap()];
    let scene = scene_with(public).await;
    let (socket, silent) = silent_socket();
    let own = scene.hop.listen_addresses()[0];
    let mut banned = vec![silent, own];
    banned.extend(
        [
            "10.0.0.1:4433",
            "172.16.0.1:4433",
            "192.168.1.1:53",
            "169.254.1.1:4433",
            "169.254.169.254:80",
            "100.64.0.1:4433",
            "198.18.0.1:4433",
            "240.0.0.1:4433",
            "[::1]:4433",
            "[fe80::1]:4433",
            "[fd00:ec2::254]:80",
            "[fc00::1]:4433",
            "[64:ff9b::a00:1]:4433",
            "[2002:a00:1::1]:4433",
        ]
        .map(|address| address.parse::<SocketAddr>().unwrap()),
    );
    let forbidden = BuildError {
        hop: 1,
        reason: Reason::ForbiddenAddress,
    };
    for address in &banned {
        // The client's word, and a record that others passed on.
        let stranger = NodeId::from_bytes([9; 32]);
        assert_eq!(
            scene.pass_on(stranger, *address).await,
            forbidden,
            "{address}"
        );
        let record = record_at(vec![*address, silent]);
        let id = record.id();
        scene.hop.add_record(record);
        let public = PUBLIC.parse().unwrap();
        assert_eq!(scene.pass_on(id, public).await, forbidden, "{address}");
    }
    let refused = scene.hop.counters().hop.refused();
    let times = 2 * banned.len() as u64;
    assert_eq!(refused, [(Reason::ForbiddenAddress, times)]);
    let nothing = socket.recv_from(&mut [0; 2048]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_hop_passes_on_to_private_addresses_where_it_lives_or_is_told_to() {
    let at = |addresses: &[&str], allow_private| {
        let advertise = addresses.iter().map(|address| address.parse().unwrap());
        let advertise: Vec<SocketAddr> = advertise.collect();
        scene_with(move |config| {
            config.node.advertise = advertise;
            config.hop.allow_private = allow_private;
        })
    };
    for (told, allow_private, dials) in [
        (&[][..], false, true),
        (&["127.0.0.1:1", "10.0.0.1:1"], false, true),
        (&["127.0.0.1:1", PUBLIC], false, false),
        (&["10.0.0.1:1"], false, false),
        (&[PUBLIC], true, true),
    ] {
        let scene = at(told, allow_private).await;
        let (socket, silent) = silent_socket();
        let dialled = scene
            .dials(NodeId::from_bytes([9; 32]), silent, &socket)
            .await;
        assert_eq!(dialled, dials, "at {told:?}, allow_private {allow_private}");
    }
}

#[tokio::test]
async fn a_hop_passes_on_to_private_addresses_that_its_config_names() {
    let public = |config: &mut Config| config.node.advertise = vec![PUBLIC.parse().unwrap()];
    let scene = scene_with(public).await;
    let (socket, silent) = silent_socket();
    let record = record_at(vec![silent]);
    let mut peer = PeerConfig {
        name: "neighbour".to_owned(),
        id: record.id(),
        addresses: Vec::new(),
        onions: Vec::new(),
        trust: 2,
        via: Vec::new(),
        register: false,
    };
    scene.hop.add_record(record);
    scene.hop.set_peers(std::slice::from_ref(&peer));
    assert!(!scene.dials(peer.id, silent, &socket).await, "its own word");
    peer.addresses = vec![silent];
    scene.hop.set_peers(std::slice::from_ref(&peer));
    // It is dialled, and nobody is there.
    let failed = scene.pass_on(peer.id, silent).await;
    assert_eq!(failed.reason, Reason::Unreachable);
}

/// A stranger that names a wrong address for a node keeps nobody from it.
#[tokio::test]
async fn a_wrong_address_denies_a_node_to_nobody_else() {
    let (scene, behind) = (scene().await, scene().await);
    let [behind] = behind.path();
    // At the hop itself's neighbour somebody else answers; at the socket, nobody.
    let other = self::scene().await;
    let wrong = other.hop.listen_addresses()[0];
    let failed = scene.pass_on(behind.id, wrong).await;
    assert_eq!(failed.reason, Reason::Unreachable);
    let (_socket, silent) = silent_socket();
    tokio::select! {
        failed = scene.pass_on(behind.id, silent) => panic!("sooner: {failed:?}"),
        built = scene.build(behind) => assert_eq!(built, Ok(())),
    }
}

/// What strangers may have dialled is not all that this node may dial.
#[tokio::test]
async fn a_node_that_circuits_do_not_reach_is_dialled_by_this_node_at_once() {
    let scene = scene_with(|config| config.node.carriers = vec![CarrierKind::Tcp]).await;
    let refusing = std::net::TcpListener::bind("127.65.0.1:0").unwrap();
    let record = record_at(vec![refusing.local_addr().unwrap()]);
    drop(refusing);
    let (id, address) = (record.id(), record.record().addresses[0]);
    scene.hop.add_record(record);
    let failed = scene.pass_on(id, address).await;
    assert_eq!(failed.reason, Reason::Unreachable);
    let failed = scene.hop.ping(id).await.unwrap_err();
    assert!(matches!(failed, ConnectError::Link(_)), "{failed}");
    let failed = scene.hop.ping(id).await.unwrap_err();
    assert!(matches!(failed, ConnectError::BackingOff(_)), "{failed}");
}

#[tokio::test]
async fn nothing_is_dialled_where_this_node_is_reached_behind_a_nat() {
    let public = |config: &mut Config| config.node.advertise = vec![PUBLIC.parse().unwrap()];
    let scene = scene_with(public).await;
    for address in ["1.1.1.1:4433", "1.1.1.1:80"] {
        let address = address.parse().unwrap();
        for transport in [Transport::Tcp, Transport::Udp] {
            let checked = |allow_private| scene.hop.check_ban(transport, address, allow_private);
            assert_eq!(checked(false), Err(Ban::Own));
            assert_eq!(checked(true), Ok(()));
        }
        let stranger = NodeId::from_bytes([9; 32]);
        let failed = scene.pass_on(stranger, address).await;
        assert_eq!(failed.reason, Reason::ForbiddenAddress);
    }
    let other = "1.1.1.2:80".parse().unwrap();
    assert_eq!(scene.hop.check_ban(Transport::Tcp, other, false), Ok(()));
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
        Open::Exit(Transport::Tcp, "1.1.1.1:80".parse().unwrap()),
        Open::Resolve(wormholes_proto::Host::Name("a.example".into())),
        Open::Service(Transport::Tcp, None),
        Open::Relay(id),
        Open::Channel,
        Open::Register(scene.hop.own_record().bytes().to_vec()),
        Open::Relayed,
        Open::Records,
        Open::Mirror,
        Open::Punch(vec!["1.1.1.1:4433".parse().unwrap()]),
        Open::Move(SessionId::from_bytes([6; 16])),
    ] {
        let answer = scene.answer(&encode_open(&open)).await;
        assert_eq!(answer, Ok(Answer::Refused(Reason::Denied)), "{open:?}");
    }
    assert_eq!(scene.hop.counters().streams_refused.load(Relaxed), 18);
}

/// What is beyond shall be refused, and not wait.
#[tokio::test]
async fn a_link_has_streams_for_all_circuits_that_another_hop_may_have() {
    const N_CIRCUITS: usize = 100;
    let scene = scene_with(|config| {
        config.hop.role.max_circuits = N_CIRCUITS * 2;
        config.hop.role.max_circuits_per_peer = 1;
    })
    .await;
    let begin = async || {
        let mut pipe = scene.link.open().await.unwrap();
        // Half a request: the hop waits for the rest, and the stream stays open.
        let sent = pipe.writer.write_chunk(Bytes::from_static(b"\x00"));
        sent.await.unwrap();
        pipe
    };
    let mut first = begin().await;
    let all = Standing::Stranger.streams(N_CIRCUITS);
    let begun = futures_util::future::join_all((1..all).map(|_| begin()));
    tokio::select! {
        biased;
        end = first.reader.read_chunk() => panic!("others waited for its end: {end:?}"),
        _ = begun => {}
    }
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

#[tokio::test]
async fn only_where_this_node_listens_is_its_own() {
    let scene = scene().await;
    let own = scene.hop.own_sockets();
    let calling = scene.hop.carrier().calling_addresses();
    assert!(!calling.is_empty());
    for socket in calling {
        assert!(!own.contains(Transport::Udp, socket), "{socket}");
    }
    for socket in scene.hop.listen_addresses() {
        assert!(own.contains(Transport::Udp, socket), "{socket}");
        assert!(own.contains(Transport::Tcp, socket), "{socket}");
    }
}
