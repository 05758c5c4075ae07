//! The demo: a network of real nodes, real requests, and what each node in between learned.
//!
//! Everything in the table was seen: the rule and the tunnel by the client's control socket, the
//! figures by curl, what was learned by captured packets, the nodes' own debug logs and their
//! control sockets. The exit status is 0 only when every row is as the script says.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a demo speaks on its standard streams"
)]

mod learned;
mod quiet;
mod row;
mod table;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use wormholes_tests::TestNetwork;

use row::{CASES, Row};

/// Shows the router at work on a network of real processes.
#[derive(Debug, Parser)]
struct Arguments {
    /// Print one JSON object on the last line of standard output.
    #[arg(long)]
    json: bool,
    /// Leave the network up until Ctrl-C and print commands to play with it.
    #[arg(long)]
    stay: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<bool> {
    eprintln!("starting a client, a relay, a friend behind it, and four hops");
    let script = wormholes_tests::workspace::root().join("scripts/demo.rhai");
    let script = std::fs::read_to_string(&script).context("cannot read scripts/demo.rhai")?;
    let network = TestNetwork::start(&script).await?;
    let mut rows = Vec::new();
    for case in &CASES {
        eprintln!("asking for {}", case.name);
        rows.push(row::ask(&network, case).await?);
    }
    let ok = rows.iter().all(|row| row.ok);
    eprintln!("{}", table::render(&rows));
    if !ok {
        for node in network.nodes() {
            eprintln!("---- log of {} ----\n{}", node.name(), node.log().last(30));
        }
    }
    why(&network, &rows)?;
    if arguments.stay {
        stay(&network).await?;
    }
    if arguments.json {
        println!("{}", serde_json::json!({"ok": ok, "rows": rows}));
    }
    Ok(ok)
}

/// `wormholes why` for the flow that went through the onion.
fn why(network: &TestNetwork, rows: &[Row]) -> Result<()> {
    let onion = rows.iter().find(|row| row.tunnel == "onion");
    if let Some(flow) = onion.map(|row| row.flow.to_string()) {
        eprintln!("$ wormholes why {flow}");
        eprintln!("{}", network.client.cli(&["why", &flow])?);
    }
    Ok(())
}

async fn stay(network: &TestNetwork) -> Result<()> {
    let entrance = network.client.entrance("socks5")?;
    let bin = wormholes_tests::binary("wormholes")?;
    let socket = network.client.socket();
    eprintln!("The network stays up until Ctrl-C. Try:");
    eprintln!(
        "  curl --proxy socks5h://{entrance} {}",
        network.outside_url("/")
    );
    eprintln!("  curl --proxy socks5h://{entrance} http://web.friend.wh/");
    eprintln!("  curl --proxy socks5h://{entrance} http://wiki.relay.wh/");
    for words in ["status", "peers", "flows", "events"] {
        eprintln!("  {} --socket {} {words}", bin.display(), socket.display());
    }
    for node in network.nodes() {
        eprintln!("  # {}: {}", node.name(), node.folder().display());
    }
    tokio::signal::ctrl_c().await?;
    Ok(())
}
