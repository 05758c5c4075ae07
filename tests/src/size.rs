//! Sizes: of processes, and of tests that run longer in a soak.

use std::time::Duration;

use anyhow::{Context, Result};

/// Rounds for a test that has a size: `in_ci`, times the factor of `cargo xtask soak`.
pub fn soak_rounds(in_ci: usize) -> usize {
    let factor = std::env::var("WORMHOLES_SOAK").ok();
    in_ci * factor.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// How long a test lasts that is of one length in continuous integration, and in a soak as long as
/// `cargo xtask soak --minutes` says.
pub fn soak_time(in_ci: Duration) -> Duration {
    let minutes = std::env::var("WORMHOLES_SOAK_MINUTES").ok();
    let minutes = minutes.and_then(|text| text.parse().ok());
    minutes.map_or(in_ci, |minutes: u64| Duration::from_secs(60 * minutes))
}

/// Whether this is a soak, on a machine that does nothing else: there waits are held to what is
/// promised, in continuous integration to what shows that something is wrong.
pub fn is_soak() -> bool {
    std::env::var_os("WORMHOLES_SOAK").is_some()
}

/// How many files and sockets a process has open.
///
/// # Errors
/// When there is no such process, or it is not ours.
pub(crate) fn open_files(pid: u32) -> Result<u64> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let open = open.with_context(|| format!("cannot count the files of process {pid}"))?;
    Ok(open.count() as u64)
}

/// Resident memory of a process.
///
/// # Errors
/// When there is no such process.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    status_bytes(pid, "VmRSS:")
}

/// The part of it that belongs to no file, and that nothing shares.
///
/// # Errors
/// When there is no such process.
pub fn anonymous_bytes(pid: u32) -> Result<u64> {
    status_bytes(pid, "RssAnon:")
}

fn status_bytes(pid: u32, name: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("cannot read the size of process {pid}"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok())
        .with_context(|| format!("no {name}"))?;
    Ok(kib * 1024)
}
