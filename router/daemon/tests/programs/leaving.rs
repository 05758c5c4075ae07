//! Programs that leave while their flow is being opened, and those that only seem to.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpSocket, TcpStream},
};

use crate::support::{DIRECT, HTTP, SOCKS, TestNode, read, read_all};

/// A target that takes nobody in until it is told to: its queue is full, so that the system drops
/// what asks for a connection, and that asks again after a second.
struct Slow {
    listener: TcpListener,
    address: SocketAddr,
    _first: TcpStream,
}

impl Slow {
    async fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        // Linux has room for one more than is asked for.
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let first = TcpStream::connect(address).await.unwrap();
        Self {
            listener,
            address,
            _first: first,
        }
    }

    /// The connection that waited.
    async fn let_in(&self) -> TcpStream {
        self.listener.accept().await.unwrap();
        self.listener.accept().await.unwrap().0
    }
}

/// Each kind of entrance, and what a program says there to get to the target.
fn entrances(target: SocketAddr) -> [(String, Vec<u8>); 4] {
    let tcp = format!("[[entrance]]\nkind = 'tcp'\nlisten = '127.0.0.1:0'\ntarget = '{target}'\n");
    let mut socks = vec![5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1];
    socks.extend(target.port().to_be_bytes());
    let connect = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n");
    let get = format!("GET http://{target}/ HTTP/1.1\r\nhost: {target}\r\n\r\n");
    [
        (SOCKS.to_owned(), socks),
        (HTTP.to_owned(), connect.into()),
        (HTTP.to_owned(), get.into()),
        (tcp, Vec::new()),
    ]
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let mut looks = tokio::time::interval(Duration::from_millis(5));
    let look = async {
        while !condition() {
            looks.tick().await;
        }
    };
    let patience = Duration::from_secs(30);
    assert!(tokio::time::timeout(patience, look).await.is_ok(), "{what}");
}

/// How a program goes.
#[derive(Debug, Clone, Copy)]
enum Leave {
    Close,
    CloseAfter(&'static [u8]),
    ResetAfter(&'static [u8]),
}

#[tokio::test]
async fn a_program_that_leaves_ends_the_opening_of_its_flow() {
    let slow = Slow::start().await;
    for (config, says) in entrances(slow.address) {
        let node = TestNode::start(DIRECT, &config).await;
        let flows = &node.node.core().flows;
        let ways = [
            Leave::Close,
            Leave::CloseAfter(b"early"),
            Leave::ResetAfter(b"early"),
        ];
        for (leave, flow) in ways.into_iter().zip(1..) {
            let mut stream = node.connect().await;
            stream.write_all(&says).await.unwrap();
            until("the flow is being opened", || flows.open() == 1).await;
            if let Leave::CloseAfter(early) | Leave::ResetAfter(early) = leave {
                stream.write_all(early).await.unwrap();
            }
            if let Leave::ResetAfter(_) = leave {
                reset(stream);
            } else {
                drop(stream);
            }
            until("its place is free", || flows.open() == 0).await;
            // A dial that nobody gave up would have another end.
            let story = flows.find(flow).unwrap().story();
            let end = story.end.as_deref();
            assert_eq!(end, Some("the program went away"), "{leave:?}: {config}");
        }
    }
}

#[tokio::test]
async fn a_program_that_ends_what_it_sends_still_gets_its_answer() {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate";
    let n_entrances = entrances(([127, 0, 0, 1], 1).into()).len();
    for early in [&b""[..], b"early"] {
        for entrance in 0..n_entrances {
            let slow = Slow::start().await;
            let (config, says) = &entrances(slow.address)[entrance];
            let is_get = says.starts_with(b"GET");
            let node = TestNode::start(DIRECT, config).await;
            let mut stream = node.connect().await;
            stream.write_all(&[says, early].concat()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut target = slow.let_in().await;
            if is_get {
                assert_eq!(read(&mut target, 5).await, b"GET /");
            } else {
                assert_eq!(read_all(&mut target).await, early, "{config}");
            }
            target.write_all(ANSWER).await.unwrap();
            drop(target);
            let got = read_all(&mut stream).await;
            assert!(got.ends_with(b"late"), "{config}: {got:?}");
        }
    }
}

#[tokio::test]
async fn a_program_that_leaves_a_silent_target_ends_its_flow() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let node = TestNode::start(DIRECT, HTTP).await;
    let mut stream = node.connect().await;
    let get = format!("GET http://{target}/ HTTP/1.1\r\nhost: {target}\r\n\r\n");
    stream.write_all(get.as_bytes()).await.unwrap();
    let (mut target, _) = listener.accept().await.unwrap();
    let part = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npart";
    target.write_all(part).await.unwrap();
    read(&mut stream, part.len()).await;
    drop(stream);
    until("the flow ends", || node.node.core().flows.open() == 0).await;
}

fn reset(stream: TcpStream) {
    let socket = socket2::SockRef::from(&stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}
