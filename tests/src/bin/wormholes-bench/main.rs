//! Measures the router against what the machine can do, and prints a row for each figure.
//!
//! The nodes are separate processes of the optimised `wormholed`; the load and the bare quinn
//! stream run here, and the quinn forward in a second process of this program.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool speaks on its standard streams"
)]

mod load;
mod network;
mod process;
mod reference;
mod rows;

use std::{
    env,
    net::SocketAddr,
    process::{ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{load::Way, network::Network, rows::Row};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["router"] => router(false).await,
        ["router", "--json"] => router(true).await,
        ["forward", target] => forward(target).await,
        _ => Err(anyhow::anyhow!("usage: wormholes-bench router [--json]")),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The rows of the router. Floors that are missed are shown, and fail the command.
async fn router(json: bool) -> Result<ExitCode> {
    let server = load::start_server().await?;
    let network = Network::start(server).await?;
    let (_process, forward) = start_forward(server).await?;
    let mut rows = Vec::new();
    eprintln!("{}", rows::heading());
    rows::measure(&network, &forward, &Way::Tcp(server), |row| {
        eprintln!("{}", row.line());
        rows.push(row);
    })
    .await?;
    if json {
        println!("{}", json!({ "rows": rows }));
    }
    Ok(if rows.iter().all(Row::ok) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Starts the quinn forward to `target` as a process of its own, which ends with this one.
async fn start_forward(target: SocketAddr) -> Result<(Child, Way)> {
    let mut child = Command::new(env::current_exe()?)
        .args(["forward", &target.to_string()])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = child.stdout.take().context("no output")?;
    let Some(line) = BufReader::new(output).lines().next_line().await? else {
        bail!("the quinn forward ended");
    };
    Ok((child, Way::Tcp(line.parse()?)))
}

/// The second process: prints its address and forwards until it is killed.
async fn forward(target: &str) -> Result<ExitCode> {
    println!("{}", reference::start_forward(target.parse()?).await?);
    std::future::pending().await
}
