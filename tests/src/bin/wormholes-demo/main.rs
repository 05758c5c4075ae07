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
mod tor;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use wormholes_tests::{Capture, TestNetwork};

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
    /// Show Tor and I2P instead, in private networks of their own.
    #[arg(long, conflicts_with_all = ["stay", "script"])]
    tor: bool,
    /// The client's script, in place of scripts/demo.rhai, which the rows are held against.
    #[arg(long, hide = true)]
    script: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            if arguments.json {
                let error = format!("{error:#}");
                println!(
                    "{}",
                    serde_json::json!({"ok": false, "rows": [], "error": error})
                );
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.tor {
        return run_tor(arguments.json).await;
    }
    let (network, rows) = tokio::select! {
        shown = show(arguments) => shown?,
        stopped = stop_asked() => {
            stopped?;
            bail!("stopped before the end");
        }
    };
    let ok = rows.iter().all(|row| row.ok);
    let table = table::render(&rows);
    let why = why(&network, &rows)?;
    if arguments.json {
        eprintln!("{table}\n{why}");
    } else {
        println!("{table}\n{why}");
    }
    if !ok {
        for node in network.nodes() {
            eprintln!("---- log of {} ----\n{}", node.name(), node.log().last(30));
        }
    }
    if arguments.stay {
        stay(&network).await?;
    }
    if arguments.json {
        println!("{}", serde_json::json!({"ok": ok, "rows": rows}));
    }
    Ok(ok)
}

/// The rows of `--tor`.
async fn run_tor(json: bool) -> Result<bool> {
    let rows = tokio::select! {
        shown = tor::show() => shown?,
        stopped = stop_asked() => {
            stopped?;
            bail!("stopped before the end");
        }
    };
    let ok = rows.iter().all(|row| row.ok);
    let table = table::render(&rows);
    if json {
        eprintln!("{table}");
        println!("{}", serde_json::json!({"ok": ok, "rows": rows}));
    } else {
        println!("{table}");
    }
    Ok(ok)
}

/// Starts the network and asks for each name.
async fn show(arguments: &Arguments) -> Result<(TestNetwork, Vec<Row>)> {
    Capture::start(&[]).context("the demo shows what others see on the wire")?;
    eprintln!("starting a client, a relay, a friend behind it, and four hops");
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let promised = read(&wormholes_tests::workspace::root().join("scripts/demo.rhai"))?;
    let network = match &arguments.script {
        Some(path) => TestNetwork::start(&read(path)?).await?,
        None => TestNetwork::start(&promised).await?,
    };
    let mut rows = Vec::new();
    for case in &CASES {
        eprintln!("asking for {}", case.name);
        rows.push(row::ask(&network, &promised, case).await?);
    }
    Ok((network, rows))
}

/// Ctrl-C, being told to end, or a terminal that is closed: what was started is ended, and its
/// folders removed, on the way out.
async fn stop_asked() -> Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminated.recv() => {}
        _ = hung_up.recv() => {}
    }
    Ok(())
}

/// `wormholes why` for the flow that went through the onion.
fn why(network: &TestNetwork, rows: &[Row]) -> Result<String> {
    let Some(onion) = rows.iter().find(|row| row.tunnel == "onion") else {
        return Ok(String::new());
    };
    let flow = onion.flow.to_string();
    let said = network.client.cli(&["why", &flow])?;
    Ok(format!("$ wormholes why {flow}\n{said}"))
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
    stop_asked().await
}
