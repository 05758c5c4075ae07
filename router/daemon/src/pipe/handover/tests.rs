//! Sessions between two programs that go over from one connection to another, over both carriers.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UdpSocket,
    sync::{Semaphore, mpsc},
    task::JoinHandle,
    time::{Duration, Instant, timeout},
};
use wormholes_proto::{
    CarrierKind, Transport,
    sealed::{Initiator, OwnEnd, Session, handle_hello},
};

use crate::{
    carrier::{Carrier, CloseCode, CrossingPlace, Link, Standing},
    config::Config,
    identity::Identity,
    pipe::{
        CopyEnd, CopyLimits, CopyStop, DatagramPipe, FlowBytes, Handover, MemoryEnd, Pipe,
        PipeError, Side, copy, join,
    },
    records::OwnRecord,
};

/// A hang is for ever, a machine under load only slow.
const LIMIT: Duration = Duration::from_secs(60);
/// More than fits between two ends.
const BULK_BYTES: usize = 4 << 20;
/// Bytes a second: bulk in both directions takes four.
const SLOW: u64 = 2 << 20;

/// Two nodes.
struct Nodes {
    caller: Carrier,
    called: Arc<Carrier>,
    identity: Identity,
    taken: mpsc::Receiver<Link>,
}

impl Nodes {
    fn start() -> Self {
        let bind = |identity: &Identity| {
            let listen = [([127, 0, 0, 1], 0).into()];
            Carrier::bind(&listen, &CarrierKind::ALL, identity, Arc::default()).unwrap()
        };
        let (own, identity) = (identity(), identity());
        let (caller, called) = (bind(&own), Arc::new(bind(&identity)));
        let (links, taken) = mpsc::channel(8);
        let listener = Arc::clone(&called);
        tokio::spawn(async move {
            while let Some(incoming) = listener.accept().await {
                let (taker, links) = (Arc::clone(&listener), links.clone());
                tokio::spawn(async move {
                    let taken = taker.handshake(incoming, |_| true).await;
                    if let Ok(Some(link)) = taken {
                        link.set_standing(Standing::Known, 8);
                        links.send(link).await.unwrap();
                    }
                });
            }
        });
        Self {
            caller,
            called,
            identity,
            taken,
        }
    }

    /// A connection, as both ends have it.
    async fn connect(&mut self, kind: CarrierKind) -> [Link; 2] {
        let addresses = self.called.listen_addresses();
        let way = (kind, addresses[0]);
        let dialled = self
            .caller
            .dial(self.caller.myself(), self.identity.id(), way);
        let near = dialled.await.unwrap();
        [near, self.taken.recv().await.unwrap()]
    }
}

/// The connection that a flow is on, and the one that it goes over to.
struct Paths {
    before: [Link; 2],
    after: [Link; 2],
    /// The connections end with it.
    _nodes: Nodes,
}

impl Paths {
    async fn start([from, to]: [CarrierKind; 2]) -> Self {
        let mut nodes = Nodes::start();
        Self {
            before: nodes.connect(from).await,
            after: nodes.connect(to).await,
            _nodes: nodes,
        }
    }
}

fn identity() -> Identity {
    Identity::throw_away().unwrap()
}

/// A stream on a connection, as both ends have it.
async fn stream([near, far]: &[Link; 2]) -> [Pipe; 2] {
    let open = async {
        let mut pipe = near.open().await.unwrap();
        pipe.writer.write_chunk("!".into()).await.unwrap();
        pipe
    };
    let take = async {
        let mut pipe = far.accept().await.unwrap();
        pipe.reader.read_exact(1).await.unwrap();
        pipe
    };
    let (near, far) = tokio::join!(open, take);
    [near, far]
}

fn sessions() -> [Session; 2] {
    let ends = [(); 2].map(|()| {
        let identity = identity();
        let record = OwnRecord {
            config: &Config::default(),
            identity: &identity,
            listen: Vec::new(),
            onion_keys: Vec::new(),
            relays: Vec::new(),
        };
        let record = record.sign(0).unwrap();
        (identity, record)
    });
    let own = |end: usize| OwnEnd {
        noise: ends[end].0.noise(),
        record: &ends[end].1,
    };
    let suite = ends[1].1.record().suite;
    let called = Initiator::new(own(0), &ends[1].1, suite, &mut rand::rng());
    let (initiator, hello) = called.unwrap();
    let (far, answer) = handle_hello(own(1), &hello, |_| None, &mut rand::rng()).unwrap();
    [initiator.handle_answer(&answer).unwrap(), far]
}

/// A flow between two programs over a sealed session.
struct Flow {
    near: MemoryEnd,
    far: MemoryEnd,
    handovers: [Handover; 2],
    ends: [JoinHandle<CopyEnd>; 2],
}

/// A flow on the first of two connections.
async fn begin(way: [CarrierKind; 2]) -> (Paths, Flow) {
    let paths = Paths::start(way).await;
    let flow = Flow::between(stream(&paths.before).await);
    (paths, flow)
}

impl Flow {
    /// Over a stream, or over two that are joined.
    fn between([near_stream, far_stream]: [Pipe; 2]) -> Self {
        let [near_session, far_session] = sessions();
        let seal = |pipe: Pipe, session: Session| {
            let sealed = pipe.sealed(session.id, session.sealer, session.opener);
            let mut pipe = sealed.unwrap();
            let handover = pipe.take_handover().unwrap();
            (pipe, handover)
        };
        let (near_pipe, near_handover) = seal(near_stream, near_session);
        let (far_pipe, far_handover) = seal(far_stream, far_session);
        let ((near_program, near), (far_program, far)) = (Pipe::memory(), Pipe::memory());
        let join = |one: Pipe, other: Pipe| {
            tokio::spawn(async move {
                let (limits, bytes) = (CopyLimits::default(), FlowBytes::default());
                copy(one, other, &limits, &bytes).await
            })
        };
        Self {
            near,
            far,
            handovers: [near_handover, far_handover],
            ends: [join(near_program, near_pipe), join(far_pipe, far_program)],
        }
    }
}

/// Bytes that repeat nowhere near.
fn bulk(len: usize) -> Vec<u8> {
    let numbers = (0_u32..).flat_map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes());
    numbers.take(len).collect()
}

/// Sends `bytes` both ways at once, and compares.
async fn exchange(near: &mut MemoryEnd, far: &mut MemoryEnd, bytes: &[u8]) {
    let both = async |end: &mut MemoryEnd| {
        let (mut reader, mut writer) = tokio::io::split(end);
        let mut read = vec![0; bytes.len()];
        let (written, came) = tokio::join!(writer.write_all(bytes), reader.read_exact(&mut read));
        written.unwrap();
        came.unwrap();
        assert!(read == bytes, "other bytes came");
    };
    let moved = timeout(LIMIT, async { tokio::join!(both(near), both(far)) });
    moved.await.expect("bytes move");
}

/// The one place of `places`.
fn place_of(places: &Arc<Semaphore>) -> CrossingPlace {
    CrossingPlace::one_of(places).unwrap()
}

fn place() -> CrossingPlace {
    place_of(&Arc::new(Semaphore::new(1)))
}

/// Has both ends go over, and waits until they have.
async fn go_over(handovers: [Handover; 2], other: [Pipe; 2]) {
    handovers.iter().for_each(Handover::expect_stream);
    let [near, far] = handovers;
    let [near_pipe, far_pipe] = other;
    let (near, far) = tokio::join!(near.give(near_pipe, place()), far.give(far_pipe, place()));
    let crossed = async { tokio::join!(near.done(), far.done()) };
    let crossed = timeout(LIMIT, crossed).await.expect("they go over");
    assert_eq!(crossed, (true, true));
}

async fn ended(ends: [JoinHandle<CopyEnd>; 2]) -> [Option<CopyStop>; 2] {
    let [near, far] = ends;
    let both = timeout(LIMIT, async { tokio::join!(near, far) });
    let (near, far) = both.await.expect("the flow ends");
    [near.unwrap().stop, far.unwrap().stop]
}

/// Each pair of carriers, from the one before to the one after.
fn ways() -> Vec<[CarrierKind; 2]> {
    let all = CarrierKind::ALL.into_iter();
    all.flat_map(|from| CarrierKind::ALL.map(|to| [from, to]))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_session_goes_over_and_outlives_the_connection_before() {
    let bytes = bulk(BULK_BYTES);
    for way in ways() {
        let (paths, mut flow) = begin(way).await;
        let other = stream(&paths.after).await;
        let busy = exchange(&mut flow.near, &mut flow.far, &bytes);
        tokio::join!(busy, go_over(flow.handovers, other));
        paths.before[0].close(CloseCode::Done);
        paths.before[1].close(CloseCode::Done);
        exchange(&mut flow.near, &mut flow.far, &bytes).await;
        flow.near.shutdown().await.unwrap();
        flow.far.shutdown().await.unwrap();
        assert_eq!(ended(flow.ends).await, [None, None], "{way:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_in_which_nothing_moves_goes_over() {
    for way in ways() {
        let (paths, mut flow) = begin(way).await;
        go_over(flow.handovers, stream(&paths.after).await).await;
        paths.before[0].close(CloseCode::Done);
        exchange(&mut flow.near, &mut flow.far, b"still there").await;
        flow.near.shutdown().await.unwrap();
        flow.far.shutdown().await.unwrap();
        assert_eq!(ended(flow.ends).await, [None, None], "{way:?}");
    }
}

/// What has ended needs no other stream; what goes on does.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_which_one_half_has_ended_goes_over() {
    for way in ways() {
        let (paths, mut flow) = begin(way).await;
        flow.near.write_all(b"question").await.unwrap();
        flow.near.shutdown().await.unwrap();
        let mut question = String::new();
        let asked = timeout(LIMIT, flow.far.read_to_string(&mut question)).await;
        asked.expect("the end comes").unwrap();
        assert_eq!(question, "question");
        go_over(flow.handovers, stream(&paths.after).await).await;
        paths.before[0].close(CloseCode::Done);
        let bytes = bulk(BULK_BYTES);
        let (near, far) = (&mut flow.near, &mut flow.far);
        let answer = async {
            far.write_all(&bytes).await.unwrap();
            far.shutdown().await.unwrap();
        };
        let mut answered = Vec::new();
        let both = async { tokio::join!(answer, near.read_to_end(&mut answered)) };
        let (_, read) = timeout(LIMIT, both).await.expect("the answer comes");
        read.unwrap();
        assert!(answered == bytes, "other bytes came");
        assert_eq!(ended(flow.ends).await, [None, None], "{way:?}");
    }
}

/// It is whole or it breaks: never does it end in order, and too early.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_connection_dies_while_it_goes_over_is_whole_or_breaks() {
    let bytes = bulk(BULK_BYTES);
    for way in ways() {
        let (paths, flow) = begin(way).await;
        let (mut near, mut far) = (flow.near, flow.far);
        let [near_handover, far_handover] = flow.handovers;
        near_handover.expect_stream();
        far_handover.expect_stream();
        exchange(&mut near, &mut far, b"begun").await;
        let [near_pipe, far_pipe] = stream(&paths.after).await;
        let send = async {
            if near.write_all(&bytes).await.is_ok() {
                let _ = near.shutdown().await;
            }
        };
        let mut came = Vec::new();
        let receive = far.read_to_end(&mut came);
        let give = async {
            let near_crossing = near_handover.give(near_pipe, place());
            let far_crossing = far_handover.give(far_pipe, place());
            let _crossing = tokio::join!(near_crossing, far_crossing);
            paths.before[0].close(CloseCode::Done);
        };
        let all = async { tokio::join!(send, receive, give) };
        let (_, read, _) = timeout(LIMIT, all).await.expect("no end hangs");
        drop((near, far));
        let [_, far_stop] = ended(flow.ends).await;
        assert!(bytes.starts_with(&came), "{way:?}");
        if far_stop.is_none() {
            read.unwrap();
            assert!(came == bytes, "{way:?}: it ended too early");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_goes_over_though_nobody_agreed_breaks_the_flow() {
    let (paths, flow) = begin([CarrierKind::Quic; 2]).await;
    let [near_handover, far_handover] = flow.handovers;
    let [near_pipe, _far_pipe] = stream(&paths.after).await;
    let crossing = near_handover.give(near_pipe, place()).await;
    let [_, far_stop] = ended(flow.ends).await;
    let breach = PipeError::Malformed("sealed frame");
    assert_eq!(far_stop, Some(CopyStop::Near(breach)));
    // It may have learned before it was there.
    let done = timeout(LIMIT, crossing.done()).await;
    done.expect("nobody waits for it any more");
    drop(far_handover);
}

/// Of a flow whose stream before was waited for too long.
fn late() -> Option<CopyStop> {
    let late = "the stream before does not end, though the rest comes on another";
    Some(CopyStop::Near(PipeError::Broken(late.to_owned())))
}

/// What comes on the other stream would fill the connection's window as long as nobody reads it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_before_that_does_not_end_in_time_breaks_the_flow() {
    for way in ways() {
        let (paths, flow) = begin(way).await;
        let [near_handover, mut far_handover] = flow.handovers;
        let [near_end, far_end] = flow.ends;
        near_handover.expect_stream();
        far_handover.expect_stream();
        far_handover.patience.quiet = Duration::from_millis(50);
        let [_near_pipe, far_pipe] = stream(&paths.after).await;
        let places = Arc::new(Semaphore::new(1));
        let crossing = far_handover.give(far_pipe, place_of(&places)).await;
        // The near end was never told: its MOVE does not come.
        let far_end = timeout(LIMIT, far_end).await.expect("the flow ends");
        assert_eq!(far_end.unwrap().stop, late(), "{way:?}");
        let done = timeout(LIMIT, crossing.done()).await;
        done.expect("nobody waits for it any more");
        assert_eq!(places.available_permits(), 1, "{way:?}");
        drop(near_handover);
        let near_end = timeout(LIMIT, near_end).await.expect("the flow ends");
        assert!(near_end.unwrap().stop.is_some(), "{way:?}");
    }
}

/// A flow of which `bytes` wait in both directions, before a relay that lets [`SLOW`] pass.
async fn begin_slow(paths: &Paths, bytes: &[u8]) -> Flow {
    let [near, arrived] = stream(&paths.before).await;
    let [leaving, far] = stream(&paths.before).await;
    let mut flow = Flow::between([near, far]);
    // One of them fits into a stream, so that it waits for nobody.
    let (near, far) = (&mut flow.near, &mut flow.far);
    let both = async { tokio::join!(near.write_all(bytes), far.write_all(bytes)) };
    let (near, far) = timeout(LIMIT, both).await.expect("there is room");
    near.and(far).unwrap();
    tokio::spawn(async move {
        let limits = CopyLimits {
            bandwidth_bytes_per_s: Some(SLOW),
            ..CopyLimits::default()
        };
        copy(arrived, leaving, &limits, &FlowBytes::default()).await
    });
    flow
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_before_that_is_slow_is_waited_for_while_it_brings_something() {
    let bytes = bulk(BULK_BYTES);
    let paths = Paths::start([CarrierKind::Quic; 2]).await;
    let mut flow = begin_slow(&paths, &bytes).await;
    let quiet = Duration::from_secs(2);
    for handover in &mut flow.handovers {
        handover.patience.quiet = quiet;
    }
    let read = async |end: &mut MemoryEnd| {
        let mut read = vec![0; bytes.len()];
        end.read_exact(&mut read).await.unwrap();
        assert!(read == bytes, "other bytes came");
    };
    let start = Instant::now();
    let crossed = go_over(flow.handovers, stream(&paths.after).await);
    let (near, far) = (&mut flow.near, &mut flow.far);
    let all = async { tokio::join!(crossed, read(near), read(far)) };
    timeout(LIMIT, all).await.expect("all comes");
    assert!(start.elapsed() > quiet, "it was not slow");
    paths.before[0].close(CloseCode::Done);
    exchange(&mut flow.near, &mut flow.far, b"still there").await;
    flow.near.shutdown().await.unwrap();
    flow.far.shutdown().await.unwrap();
    assert_eq!(ended(flow.ends).await, [None, None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_before_that_goes_on_bringing_something_is_not_waited_for_without_end() {
    let paths = Paths::start([CarrierKind::Quic; 2]).await;
    let flow = begin_slow(&paths, &bulk(BULK_BYTES)).await;
    let [near_handover, mut far_handover] = flow.handovers;
    far_handover.patience.in_all = Duration::from_millis(300);
    let mut far = flow.far;
    let read = tokio::spawn(async move { far.read_to_end(&mut Vec::new()).await });
    let [near_pipe, far_pipe] = stream(&paths.after).await;
    near_handover.expect_stream();
    far_handover.expect_stream();
    let near = near_handover.give(near_pipe, place());
    let far = far_handover.give(far_pipe, place());
    let _crossing = tokio::join!(near, far);
    let [_near_end, far_end] = flow.ends;
    let far_end = timeout(LIMIT, far_end).await.expect("the flow ends");
    assert_eq!(far_end.unwrap().stop, late());
    let read = timeout(LIMIT, read).await.expect("the program is told");
    assert!(read.unwrap().is_ok_and(|came| came < BULK_BYTES));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_keeps_its_place_until_both_directions_have_gone_over() {
    let (paths, flow) = begin([CarrierKind::Quic; 2]).await;
    let [near_handover, far_handover] = flow.handovers;
    near_handover.expect_stream();
    far_handover.expect_stream();
    let [near_pipe, far_pipe] = stream(&paths.after).await;
    let places = Arc::new(Semaphore::new(1));
    let near = near_handover.give(near_pipe, place_of(&places)).await;
    assert_eq!(places.available_permits(), 0, "the far end has not begun");
    let far = far_handover.give(far_pipe, place()).await;
    let crossed = timeout(LIMIT, async { tokio::join!(near.done(), far.done()) });
    assert_eq!(crossed.await.expect("they go over"), (true, true));
    assert_eq!(places.available_permits(), 1);
}

#[tokio::test]
async fn a_connection_has_places_for_few_sessions_at_once() {
    let mut nodes = Nodes::start();
    let [link, _far] = nodes.connect(CarrierKind::Quic).await;
    let own = [link.own_crossing().await, link.own_crossing().await];
    assert!(own.iter().all(Option::is_some));
    let third = timeout(Duration::ZERO, link.own_crossing()).await;
    assert!(third.is_err(), "it waits");
    let other = link.other_crossing();
    assert!(other.is_some(), "the other end finds one");
    assert!(link.clone().other_crossing().is_none());
    drop((own, other));
    let others = [(); 3].map(|()| link.other_crossing());
    assert!(others.iter().all(Option::is_some));
    assert!(link.other_crossing().is_none());
    let own = timeout(Duration::ZERO, link.own_crossing()).await;
    assert!(own.is_err(), "it waits");
    drop(others);
    let own = timeout(LIMIT, link.own_crossing()).await;
    assert!(own.expect("a place is free").is_some());
}

/// Two UDP sockets that are connected to each other.
async fn sockets() -> [UdpSocket; 2] {
    let bind = || UdpSocket::bind("127.0.0.1:0");
    let (one, other) = (bind().await.unwrap(), bind().await.unwrap());
    one.connect(other.local_addr().unwrap()).await.unwrap();
    other.connect(one.local_addr().unwrap()).await.unwrap();
    [one, other]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_of_datagrams_goes_over_too() {
    for way in ways() {
        let paths = Paths::start(way).await;
        let [near_stream, far_stream] = stream(&paths.before).await;
        let [near_session, far_session] = sessions();
        let counters = Arc::default();
        let side = |pipe: Pipe, session: Session| {
            let sealed = pipe.sealed(session.id, session.sealer, session.opener);
            let mut side = Side::between_nodes(sealed.unwrap(), Transport::Udp, &counters);
            let handover = side.take_handover().unwrap();
            (side, handover)
        };
        let (near_side, near_handover) = side(near_stream, near_session);
        let (far_side, far_handover) = side(far_stream, far_session);
        let ([program, near], [far, target]) = (sockets().await, sockets().await);
        let socket = |socket| Side::Datagrams(DatagramPipe::socket(socket, &counters));
        let (near, far) = (socket(near), socket(far));
        let flow = async |one: Side, other: Side| {
            let (limits, bytes) = (CopyLimits::default(), FlowBytes::default());
            join(one, other, &limits, &bytes).await
        };
        let flows = async { tokio::join!(flow(near, near_side), flow(far_side, far)) };
        let talk = async || {
            let mut heard = [0; 16];
            program.send(b"question").await.unwrap();
            assert_eq!(target.recv(&mut heard).await.unwrap(), 8);
            target.send(b"answer").await.unwrap();
            assert_eq!(program.recv(&mut heard).await.unwrap(), 6);
        };
        let all = async {
            talk().await;
            go_over([near_handover, far_handover], stream(&paths.after).await).await;
            paths.before[0].close(CloseCode::Done);
            talk().await;
        };
        tokio::select! {
            done = timeout(LIMIT, all) => done.expect("datagrams move"),
            ends = flows => panic!("{way:?}: {ends:?}"),
        }
    }
}
