//! A node with rules, servers that it can reach, and clients that speak byte by byte.

use std::net::SocketAddr;

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use wormholed::{Config, Node, NodeOptions};

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
        let config = if config.contains("[rules]") {
            config.replace("[rules]", "[rules]\nscripts = ['rules.rhai']")
        } else {
            format!("{config}\n[rules]\nscripts = ['rules.rhai']\n")
        };
        write(
            "config.toml",
            &format!("{config}\n[node]\ndata_dir = 'data'\n"),
        );
        make_private(&dir.path().join("config.toml"));
        let config = Config::load(&dir.path().join("config.toml")).unwrap();
        let node = Node::start_with(config, options).await.unwrap();
        Self { node, dir }
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
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
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
