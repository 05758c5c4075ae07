//! Measures the router against what the machine can do, and prints a row for each figure.
//!
//! The nodes are separate processes of the optimised `wormholed`, and the rivals are processes too;
//! the load's server and each end of the quinn forward are processes of this program. The load's
//! clients and the bare quinn streams run here.

// Futures of arti's are deep.
#![recursion_limit = "256"]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool speaks on its standard streams"
)]

mod alone;
mod arti;
mod bulk;
mod decisions;
mod echo;
mod floors;
mod ground;
mod idle;
mod load;
mod network;
mod onion_build;
mod plugins;
mod process;
mod reference;
mod rival;
mod route;
mod row;
mod table;
mod task;
mod tor;
mod turns;

use std::{env, process::ExitCode};

use anyhow::{Result, bail};
use data_encoding::HEXLOWER;
use tikv_jemallocator::Jemalloc;
use wormholes_tests::raise_file_limit;

use crate::{ground::Ground, reference::FarEnd, table::Table, task::Task};

/// As the daemon allocates: hosts of plugins run in this process.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Idle flows have an end here and one at the load's server, in another process.
const OPEN_FILES: u64 = 15_000;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["router", options @ ..] => router(options).await,
        ["plugins", options @ ..] => plugins(options).await,
        ["tor", options @ ..] => tor(options).await,
        ["load"] => load("127.0.0.1").await,
        ["load", ip] => load(ip).await,
        ["instances"] => instances().await,
        ["arti", target, network @ ..] => arti(target, network).await,
        ["far-end", target] => far_end(target).await,
        ["near-end", address, certificate] => near_end(address, certificate).await,
        _ => Err(anyhow::anyhow!(
            "usage: wormholes-bench router|plugins|tor [--json] [--only TEXT]"
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

/// The rows of the router. Floors that are missed are shown, and fail the command; so do rows that
/// cannot be measured.
async fn router(options: &[&str]) -> Result<ExitCode> {
    let (json, only) = parsed(options)?;
    raise_file_limit(OPEN_FILES)?;
    let wanted = |task: &Task| task.rows().iter().any(|row| row.contains(only));
    let tasks: Vec<Task> = Task::all().into_iter().filter(wanted).collect();
    if tasks.is_empty() {
        bail!("no row's name holds {only:?}");
    }
    let mut ground = Ground::new().await?;
    let mut table = Table::new(only);
    for task in tasks {
        match task.measure(&mut ground).await {
            Ok(measured) => table.add(measured),
            // The others can be measured all the same.
            Err(error) => table.fail(&task.rows(), &error),
        }
    }
    Ok(table.end(json))
}

/// Whether one JSON object is wanted, and which rows.
fn parsed<'a>(options: &[&'a str]) -> Result<(bool, &'a str)> {
    Ok(match options {
        [] => (false, ""),
        ["--json"] => (true, ""),
        ["--only", text] => (false, *text),
        ["--json", "--only", text] => (true, *text),
        _ => bail!("expected [--json] [--only TEXT]"),
    })
}

/// The rows of plugins; as those of the router.
async fn plugins(options: &[&str]) -> Result<ExitCode> {
    let (json, only) = parsed(options)?;
    let mut table = Table::new(only);
    plugins::measure(only, &mut table).await?;
    Ok(table.end(json))
}

/// The rows of Tor; as those of the router.
async fn tor(options: &[&str]) -> Result<ExitCode> {
    let (json, only) = parsed(options)?;
    raise_file_limit(OPEN_FILES)?;
    let mut table = Table::new(only);
    tor::measure(only, &mut table).await?;
    Ok(table.end(json))
}

/// Says where it listens, and takes the load until it is killed.
async fn load(ip: &str) -> Result<ExitCode> {
    raise_file_limit(OPEN_FILES)?;
    println!("{}", load::start_server(ip.parse()?).await?);
    std::future::pending().await
}

/// Says what instances of a plugin and their principals take, in bytes.
async fn instances() -> Result<ExitCode> {
    let (with_instance, resting) = plugins::instances().await?;
    println!("{with_instance} {resting}");
    Ok(ExitCode::SUCCESS)
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

/// Says where it listens, and forwards through Tor until it is killed.
async fn arti(target: &str, network: &[&str]) -> Result<ExitCode> {
    println!("{}", arti::start(target, network).await?);
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
