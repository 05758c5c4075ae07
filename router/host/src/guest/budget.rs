//! How long the code of a plugin runs, and what it breaks with.

use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use wasmtime::Trap;

use super::{Fault, engine::TURN};

/// Runs `call` for so much processor time, a turn at a time. The first turn, which is the only one of
/// most events, counts as one whole turn, or an eighth of a small budget: no clock is read for it.
/// Another turn alone costs half of the budget at most: a virtual machine that is stood still counts
/// that as the time of its threads. What really runs too long does so in the next turn as well.
pub(super) async fn within<T>(
    budget: Duration,
    call: impl Future<Output = wasmtime::Result<T>>,
) -> Result<T, Fault> {
    let mut call = pin!(call);
    let mut spent = Duration::ZERO;
    poll_fn(|context| {
        let started = (!spent.is_zero()).then(thread_time);
        if let Poll::Ready(done) = call.as_mut().poll(context) {
            return Poll::Ready(done.map_err(Fault::from));
        }
        let first = TURN.min(budget / 8);
        let took = started.map_or(first, |started| thread_time().saturating_sub(started));
        spent += took.min(budget / 2 + Duration::from_nanos(1));
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

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_millis(4);

    /// Is done after so many turns, each of which takes more than the budget.
    async fn long_turns(turns: u32) -> Result<(), Fault> {
        let mut done = 0;
        let call = poll_fn(|context| {
            if done == turns {
                return Poll::Ready(Ok(()));
            }
            let started = thread_time();
            while thread_time() - started <= BUDGET {}
            done += 1;
            context.waker().wake_by_ref();
            Poll::Pending
        });
        within(BUDGET, call).await
    }

    #[tokio::test]
    async fn one_turn_that_seems_long_breaks_nothing_and_two_do() {
        // Before them is the first, which nobody measures.
        assert!(long_turns(1 + 1).await.is_ok());
        let fault = long_turns(1 + 2).await;
        assert!(matches!(fault, Err(Fault::TimedOut(BUDGET))), "{fault:?}");
    }
}
