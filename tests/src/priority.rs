//! Puts a test that measures before everything else that the machine does.

use std::{fs, io::ErrorKind};

use anyhow::{Context, Result};
use tokio::sync::{Mutex, MutexGuard};

/// Above every process that asked for nothing.
const NICE: i32 = -15;
/// Linux weighs sessions against each other before it looks at the threads in them (sched(7),
/// "The autogroup feature").
const AUTOGROUP: &str = "/proc/self/autogroup";

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// The priority of a test that measures; other tests that want it wait.
#[derive(Debug)]
pub struct Foremost {
    _turn: MutexGuard<'static, ()>,
}

impl Foremost {
    /// Puts this thread, and all that it starts from here on, before the others of this machine.
    /// What is measured among each other stays as it was.
    ///
    /// # Errors
    /// When this is not root.
    pub async fn take() -> Result<Self> {
        let turn = ONE_AT_A_TIME.lock().await;
        set(NICE).context("only root may measure before others")?;
        Ok(Self { _turn: turn })
    }
}

impl Drop for Foremost {
    fn drop(&mut self) {
        // Root may always do what it could before.
        let _ = set(0);
    }
}

fn set(nice: i32) -> Result<()> {
    rustix::process::setpriority_process(None, nice)?;
    match fs::write(AUTOGROUP, nice.to_string()) {
        // A kernel without groups; the session that the machine began with, which is in none.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => {
            Ok(())
        }
        written => Ok(written?),
    }
}
