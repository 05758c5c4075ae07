//! Waiting for a condition: the one place where tests look at the clock again and again.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Long enough for a busy machine of two cores; a condition that takes longer does not come.
pub const LIMIT: Duration = Duration::from_secs(30);

/// The first pause between two looks; each is twice the one before, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Looks until `look` gives something.
///
/// # Errors
/// When it gave nothing within [`LIMIT`]; the error names `what` was awaited.
pub async fn until<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    until_within(LIMIT, what, look).await
}

/// As [`until`], for what may take longer.
///
/// # Errors
/// When it gave nothing within `limit`.
pub async fn until_within<T>(
    limit: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// As [`until`], on a thread that runs nothing else.
///
/// # Errors
/// When it did not hold within [`LIMIT`].
pub fn until_blocking(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        if Instant::now() > deadline {
            bail!("waited {} s for {what}", LIMIT.as_secs());
        }
        thread::sleep(LONGEST_PAUSE);
    }
    Ok(())
}
