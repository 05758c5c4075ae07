//! The example program that embeds a node.

use std::{path::PathBuf, process::Stdio};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    process::{Child, Command},
    time::timeout,
};
use wormholes_tests::{LIMIT, binary, cargo, run};

/// The example, opening a flow to a listener; its folder goes with this.
struct Embedding {
    program: Child,
    listener: TcpListener,
    _folder: TempDir,
}

#[tokio::test]
async fn the_example_program_opens_a_flow() {
    let mut embedding = Embedding::start().await;
    let mut input = embedding.program.stdin.take().unwrap();
    input.write_all(b"example").await.unwrap();
    drop(input);
    let (mut stream, _) = embedding.listener.accept().await.unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"example");
    stream.write_all(b"elpmaxe").await.unwrap();
    drop(stream);
    embedding.ends_with(b"elpmaxe").await;
}

#[tokio::test]
async fn the_example_program_ends_with_its_target_while_input_stays_open() {
    let mut embedding = Embedding::start().await;
    let _open = embedding.program.stdin.take();
    let (mut stream, _) = embedding.listener.accept().await.unwrap();
    stream.write_all(b"bye").await.unwrap();
    drop(stream);
    embedding.ends_with(b"bye").await;
}

impl Embedding {
    async fn start() -> Self {
        let folder = TempDir::with_prefix("wormholes-embed-").unwrap();
        let config = folder.path().join("config.toml");
        let text = "[node]\ndata_dir = 'data'\n[rules]\ndefault = 'direct'\n";
        std::fs::write(&config, text).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap().to_string();
        let program = Command::new(example())
            .args([config.as_os_str(), target.as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            program,
            listener,
            _folder: folder,
        }
    }

    async fn ends_with(self, output: &[u8]) {
        let ended = timeout(LIMIT, self.program.wait_with_output()).await;
        let ended = ended.expect("the example still runs").unwrap();
        assert!(ended.status.success());
        assert_eq!(ended.stdout, output);
    }
}

/// The example, built with the features that the programs have.
fn example() -> PathBuf {
    run(cargo().args(["build", "--quiet", "--workspace", "--example", "embed"])).unwrap();
    let daemon = binary("wormholed").unwrap();
    daemon.parent().unwrap().join("examples/embed")
}
