//! Sizes: of processes, and of tests that run longer in a soak.

use anyhow::{Context, Result};

/// Rounds for a test that has a size: `in_ci`, times the factor of `cargo xtask soak`.
pub fn soak_rounds(in_ci: usize) -> usize {
    let factor = std::env::var("WORMHOLES_SOAK").ok();
    in_ci * factor.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Resident memory of a process.
///
/// # Errors
/// When there is no such process.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("cannot read the size of process {pid}"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok())
        .context("no VmRSS")?;
    Ok(kib * 1024)
}
