//! What a process has used, from /proc.

use std::fs;

use anyhow::{Context, Result};

/// CPU seconds of the processes together, user and system (proc(5), `stat` fields 14 and 15).
pub(crate) fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    let mut ticks = 0;
    for pid in pids {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
        // The name in parentheses may hold spaces: count from behind it.
        let (_, fields) = stat.rsplit_once(") ").context("no process name in stat")?;
        for field in fields.split(' ').skip(11).take(2) {
            ticks += field.parse::<u64>().with_context(|| path.clone())?;
        }
    }
    Ok(ticks as f64 / ticks_per_second)
}
