//! How long the code of a plugin runs, and what it breaks with.

use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use wasmtime::Trap;

use super::{Fault, engine::TURN};

/// What one turn costs at most. The engine ends a turn after [`TURN`]: one that seems far longer is
/// a machine that was stood still under its guest, whose clocks of threads go on meanwhile.
const LONGEST_TURN: Duration = TURN.saturating_mul(8);

/// Runs `call` for so much processor time, a turn at a time.
pub(super) async fn within<T>(
    budget: Duration,
    call: impl Future<Output = wasmtime::Result<T>>,
) -> Result<T, Fault> {
    let mut call = pin!(call);
    let mut spent = Duration::ZERO;
    poll_fn(|context| {
        let started = thread_time();
        if let Poll::Ready(done) = call.as_mut().poll(context) {
            return Poll::Ready(done.map_err(Fault::from));
        }
        spent += thread_time().saturating_sub(started).min(LONGEST_TURN);
        if spent >= budget {
            return Poll::Ready(Err(Fault::TimedOut(budget)));
        }
        Poll::Pending
    })
    .await
}

/// What the thread has had of a processor.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

impl From<wasmtime::Error> for Fault {
    fn from(error: wasmtime::Error) -> Self {
        if let Some(store) = error.downcast_ref::<crate::store::StoreError>() {
            return Self::Host(store.to_string());
        }
        tracing::debug!(?error, "a plugin's instance broke");
        match error.downcast_ref::<Trap>() {
            Some(trap) => Self::Trapped(trap.to_string()),
            None => Self::Trapped(error.root_cause().to_string()),
        }
    }
}
