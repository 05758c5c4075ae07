//! The time of a host that somebody tries a plugin in.

use std::time::Duration;

use tokio::sync::oneshot;

use super::Host;
use crate::{
    clock,
    event::{ErrorCode, Refusal},
    principal::Task,
};

/// How far it is moved at once: a year.
const MOST: Duration = Duration::from_secs(366 * 24 * 3600);
/// A timer that sets itself anew is due so often, and is left then.
const MAX_ROUNDS: usize = 100_000;

impl Host {
    /// Moves the time of all hosts of this process forward, and waits until what is due by then has
    /// run. Only where [`let_time_move`](crate::let_time_move) was called.
    ///
    /// # Errors
    /// It was not; or it is moved too far.
    pub async fn advance(&self, time: Duration) -> Result<(), Refusal> {
        if time > MOST {
            let far = "the time is moved by a year at most";
            return Err(Refusal::new(ErrorCode::Invalid, far));
        }
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        if !clock::advance(ms) {
            let real =
                "the time of this node is everybody's; `wormholes plugin run` has one to move";
            return Err(Refusal::new(ErrorCode::Denied, real));
        }
        for _ in 0..MAX_ROUNDS {
            let posts: Vec<_> = self.shared.actors().values().cloned().collect();
            let mut is_due = false;
            for post in posts {
                let (told, heard) = oneshot::channel();
                // One that has ended has nothing due.
                let sent = post.tasks().send(Box::new(Task::Look(told))).await;
                is_due |= sent.is_ok() && heard.await.unwrap_or(false);
            }
            if !is_due {
                break;
            }
        }
        Ok(())
    }
}
