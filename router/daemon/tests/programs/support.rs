//! A node with rules, servers that it can reach, and clients that speak byte by byte.

use std::{net::SocketAddr, time::Duration};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};
use wormholed::{Config, NetworkOptions, Node, NodeOptions, PeerConfig, Story};

use crate::name_server::NameServer;

/// A running node whose files vanish with it.
pub(crate) struct TestNode {
    pub(crate) node: Node,
    pub(crate) dir: TempDir,
}

/// Lets everything go where it wants.
pub(crate) const DIRECT: &str = "fn route(c) { direct() }";

pub(crate) const SOCKS: &str = "[[entrance]]\nkind = 'socks5'\nlisten = '127.0.0.1:0'\n";
pub(crate) const HTTP: &str = "[[entrance]]\nkind = 'http'\nlisten = '127.0.0.1:0'\n";

impl TestNode {
    /// Starts a node with one script and this config beside it.
    pub(crate) async fn start(script: &str, config: &str) -> Self {
        Self::start_with(script, config, NodeOptions::default()).await
    }

    pub(crate) async fn start_with(script: &str, config: &str, options: NodeOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let write = |name, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("rules.rhai", script);
        let config = with_key(config, "[rules]", "scripts = ['rules.rhai']");
        let config = with_key(&config, "[node]", "data_dir = 'data'");
        write("config.toml", &config);
        make_private(&dir.path().join("config.toml"));
        let config = Config::load(&dir.path().join("config.toml")).unwrap();
        let node = Node::start_with(config, options).await.unwrap();
        Self { node, dir }
    }

    /// Starts a node that dials whatever its script lets pass, and asks `names` only.
    pub(crate) async fn exit(script: &str, names: &NameServer) -> Self {
        let config = "[node]\nlisten = ['127.0.0.1:0']\n\
            [exit]\nenabled = true\nallow = ['0.0.0.0/0', '::/0']\nallow_private = true\n";
        Self::start_with(script, config, asking(names)).await
    }

    /// Makes this node know the others by these names, and them this one as `client`.
    pub(crate) fn befriend(&self, others: &[(&str, &Self)]) {
        let peers: Vec<_> = others.iter().map(|(name, node)| node.peer(name)).collect();
        self.node.core().network.set_peers(&peers);
        for (_, node) in others {
            node.node.core().network.set_peers(&[self.peer("client")]);
        }
    }

    fn peer(&self, name: &str) -> PeerConfig {
        PeerConfig {
            name: name.to_owned(),
            id: self.node.id(),
            addresses: self.node.listen_addresses(),
            onions: Vec::new(),
            trust: 2,
            via: Vec::new(),
            register: false,
        }
    }

    /// What has become of a flow, and of each tunnel that was tried for it.
    pub(crate) fn story(&self, flow: u64) -> (Story, Vec<(String, Option<String>)>) {
        let story = self.node.core().flows.find(flow).unwrap().story();
        let tries = story.tries.iter();
        let tries = tries.map(|tried| (tried.tunnel.clone(), tried.error.clone()));
        (story.clone(), tries.collect())
    }

    /// Where the first entrance listens.
    pub(crate) fn entrance(&self) -> SocketAddr {
        self.node.entrance_addresses()[0]
    }

    /// A connection to the first entrance.
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.entrance()).await.unwrap()
    }

    /// A SOCKS client that asks for `target`: the reply code and the connection.
    pub(crate) async fn socks(&self, target: &str) -> (u8, TcpStream) {
        let mut stream = self.connect().await;
        stream.write_all(&[5, 1, 0]).await.unwrap();
        assert_eq!(read(&mut stream, 2).await, [5, 0]);
        let reply = socks_request(&mut stream, target).await;
        (reply, stream)
    }

    /// The value of a metric's line.
    pub(crate) async fn metric(&self, line: &str) -> Option<u64> {
        let address = self.node.metrics_address().unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let text = String::from_utf8(read_all(&mut stream).await).unwrap();
        let value = text.lines().find_map(|found| found.strip_prefix(line));
        value.map(|value| value.trim().parse().unwrap())
    }
}

/// A node that asks `names` and no other name server.
pub(crate) fn asking(names: &NameServer) -> NodeOptions {
    NodeOptions {
        network: NetworkOptions {
            name_server: Some(names.address),
            ..NetworkOptions::default()
        },
        ..NodeOptions::default()
    }
}

/// `config` with one key more in this section.
fn with_key(config: &str, section: &str, key: &str) -> String {
    if config.contains(section) {
        config.replace(section, &format!("{section}\n{key}"))
    } else {
        format!("{config}\n{section}\n{key}\n")
    }
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let mut looks = tokio::time::interval(Duration::from_millis(5));
    let poll = async {
        while !condition() {
            looks.tick().await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(30), poll).await;
    assert!(found.is_ok(), "waited in vain: {what}");
}

/// The next datagram.
pub(crate) async fn hears(socket: &UdpSocket) -> Vec<u8> {
    let mut datagram = vec![0; 1 << 16];
    let heard = tokio::time::timeout(Duration::from_secs(30), socket.recv(&mut datagram)).await;
    datagram.truncate(heard.unwrap().unwrap());
    datagram
}

fn make_private(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Sends a CONNECT after the greeting, and reads the reply.
pub(crate) async fn socks_request(stream: &mut TcpStream, target: &str) -> u8 {
    let (host, port) = target.rsplit_once(':').unwrap();
    let mut request = vec![5, 1, 0, 3, u8::try_from(host.len()).unwrap()];
    request.extend(host.as_bytes());
    request.extend(port.parse::<u16>().unwrap().to_be_bytes());
    stream.write_all(&request).await.unwrap();
    read(stream, 10).await[1]
}

pub(crate) async fn read(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}

/// Everything until the end, however it ends.
pub(crate) async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    bytes
}

/// Answers each connection, once it half-closed, with what it sent, backwards.
pub(crate) async fn echo() -> SocketAddr {
    echo_at("127.0.0.1:0").await
}

/// The same, at this address.
pub(crate) async fn echo_at(address: &str) -> SocketAddr {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = read_all(&mut stream).await;
                bytes.reverse();
                let _ = stream.write_all(&bytes).await;
            });
        }
    });
    address
}

/// Speaks first, like SSH and SMTP, then sends back what comes.
pub(crate) async fn greeter() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(b"hello").await;
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    address
}

/// A port where nobody listens.
pub(crate) async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// Sends `question`, half-closes, and expects it backwards.
pub(crate) async fn check_echo(stream: &mut TcpStream, question: &[u8]) {
    stream.write_all(question).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = read_all(stream).await;
    answer.reverse();
    assert!(
        answer == question,
        "{} of {} bytes",
        answer.len(),
        question.len()
    );
}
