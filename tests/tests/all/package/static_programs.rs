//! The programs that are linked statically. Every crate is compiled a second time for them, which
//! takes minutes: only a soak runs this.

use std::{
    fs,
    net::Ipv4Addr,
    process::{Command, Stdio},
};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wormholes_tests::{EchoServer, Namespace, run, socks5_ask, until};

use super::{Running, dist};

/// Nothing else is in the folder that is their root: no library, no shell, no /proc.
#[tokio::test]
async fn programs_run_where_there_is_nothing_else() {
    let folder = TempDir::with_prefix("wormholes-static-").unwrap();
    let archive = dist(&["--static"], &folder);
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--strip-components=1", "--file"]);
    run(tar.arg(archive).arg("--directory").arg(&root)).unwrap();
    let host = Namespace::new().unwrap();
    let inside = |program: &str| {
        let mut command = host.command("chroot");
        command.arg(&root).arg(program);
        command
    };
    let tested = run(inside("/wormholes").args(["script", "test", "/scripts/default.rhai"]));
    assert!(tested.unwrap().contains(" passed"));

    // Nobody builds a plugin there, but where they can it is beside the programs.
    assert!(root.join("share/wormholes/sdk/rust/Cargo.toml").is_file());

    let config = "[node]\ndata_dir = 'data'\n[rules]\ndefault = 'direct'\n\
        [[entrance]]\nkind = 'socks5'\nlisten = '127.0.0.1:1080'\n";
    fs::write(root.join("node.toml"), config).unwrap();
    let mut daemon = inside("/wormholed");
    daemon
        .args(["--config", "/node.toml"])
        .stderr(Stdio::null());
    let _daemon = Running(daemon.spawn().unwrap());
    let status = ["--socket", "/data/control.sock", "status"];
    until("the daemon to answer", async || {
        run(inside("/wormholes").args(status)).ok()
    })
    .await
    .unwrap();
    let echo = EchoServer::start_in(&host).unwrap();
    let mut flow = host.connect((Ipv4Addr::LOCALHOST, 1080).into()).unwrap();
    let target = echo.address();
    let reply = socks5_ask(&mut flow, &target.ip().to_string(), target.port()).await;
    assert_eq!(reply.unwrap(), 0);
    flow.write_all(b"static").await.unwrap();
    let mut back = [0; 6];
    flow.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"static");
}
