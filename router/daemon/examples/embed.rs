//! A program that embeds a node: opens one flow through it, and the rules decide how it travels.
//!
//! ```text
//! cargo run -p wormholed --example embed -- config.toml host:port
//! ```
//! Standard input goes to the target, its answer to standard output.

use std::path::Path;

use anyhow::Context;
use tokio::io::{self, AsyncWriteExt};
use wormholed::{Config, Node};

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(run());
    // A read of standard input cannot be cancelled; it must not keep the program.
    runtime.shutdown_background();
    result
}

async fn run() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(config), Some(target)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: embed CONFIG HOST:PORT");
    };
    let config = Config::load(Path::new(&config))?;
    let node = Node::start(config).await.context("starting the node")?;
    let result = talk(&node, &target).await;
    node.shutdown().await;
    result
}

async fn talk(node: &Node, target: &str) -> anyhow::Result<()> {
    let stream = node.dial(target.parse()?).await?;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let send = async {
        io::copy(&mut io::stdin(), &mut writer).await?;
        writer.shutdown().await
    };
    let receive = async {
        let mut out = io::stdout();
        io::copy(&mut reader, &mut out).await?;
        out.flush().await
    };
    tokio::pin!(receive);
    // The target's end is the end, whatever standard input still holds.
    tokio::select! {
        received = &mut receive => received?,
        _sent = send => receive.await?,
    }
    Ok(())
}
