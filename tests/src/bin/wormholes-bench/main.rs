//! Measures the router against what the machine can do, and prints a row for each figure.
//!
//! The nodes are separate processes of the optimised `wormholed`; the load and the bare quinn
//! stream run here, and each end of the quinn forward in a process of this program.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool speaks on its standard streams"
)]

mod decisions;
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
use data_encoding::HEXLOWER;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{
    load::Way,
    network::Network,
    reference::FarEnd,
    rows::{Row, Selection},
};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["router", options @ ..] => router(options).await,
        ["far-end", target] => far_end(target).await,
        ["near-end", address, certificate] => near_end(address, certificate).await,
        _ => Err(anyhow::anyhow!(
            "usage: wormholes-bench router [--json] [--only TEXT]"
        )),
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
async fn router(options: &[&str]) -> Result<ExitCode> {
    let (json, selection) = match options {
        [] => (false, Selection::All),
        ["--json"] => (true, Selection::All),
        ["--only", text] => (false, Selection::Holding((*text).to_owned())),
        ["--json", "--only", text] => (true, Selection::Holding((*text).to_owned())),
        _ => bail!("expected [--json] [--only TEXT]"),
    };
    let server = load::start_server().await?;
    let network = Network::start(server).await?;
    let (_processes, forward) = start_forward(server).await?;
    let mut rows = Vec::new();
    eprintln!("{}", rows::heading());
    rows::measure(&network, &forward, &Way::Tcp(server), &selection, |row| {
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

/// Starts the quinn forward to `target`: a process for each end, which ends with this one.
async fn start_forward(target: SocketAddr) -> Result<([Child; 2], Way)> {
    let (far, said) = start(&["far-end", &target.to_string()]).await?;
    let (address, certificate) = said.split_once(' ').context("no certificate")?;
    let (near, said) = start(&["near-end", address, certificate]).await?;
    Ok(([far, near], Way::Tcp(said.parse()?)))
}

/// Starts this program again, and reads the first line that it says.
async fn start(words: &[&str]) -> Result<(Child, String)> {
    let mut child = Command::new(env::current_exe()?)
        .args(words)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = child.stdout.take().context("no output")?;
    let said = BufReader::new(output).lines().next_line().await?;
    let said = said.with_context(|| format!("{words:?} ended"))?;
    Ok((child, said))
}

/// Says where it listens and with which certificate, and forwards until it is killed.
async fn far_end(target: &str) -> Result<ExitCode> {
    let FarEnd {
        address,
        certificate,
    } = reference::start_far_end(target.parse()?)?;
    println!("{address} {}", HEXLOWER.encode(&certificate));
    std::future::pending().await
}

/// Says where it listens, and forwards until it is killed.
async fn near_end(address: &str, certificate: &str) -> Result<ExitCode> {
    let far = FarEnd {
        address: address.parse()?,
        certificate: HEXLOWER.decode(certificate.as_bytes())?.into(),
    };
    println!("{}", reference::start_near_end(&far).await?);
    std::future::pending().await
}
