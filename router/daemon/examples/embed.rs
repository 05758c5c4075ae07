//! A program that embeds a node: opens one flow through it, and the rules decide how it travels.
//!
//! ```text
//! cargo run -p wormholed --example embed -- config.toml host:port
//! ```
//! Standard input goes to the target, its answer to standard output.

use std::path::Path;

use anyhow::Context;
use wormholed::{Config, Node};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
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
        tokio::io::copy(&mut tokio::io::stdin(), &mut writer).await?;
        tokio::io::AsyncWriteExt::shutdown(&mut writer).await
    };
    let mut out = tokio::io::stdout();
    let receive = tokio::io::copy(&mut reader, &mut out);
    // The target may answer and end before it has read everything.
    let (_, received) = tokio::join!(send, receive);
    received?;
    Ok(tokio::io::AsyncWriteExt::flush(&mut out).await?)
}
