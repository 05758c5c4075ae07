//! Whether the other end has left the stream that a direction is on, whichever that is by then. What
//! waits for it holds on to no stream that the direction has gone from.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures_util::{FutureExt, future::BoxFuture};

#[derive(Default)]
pub(super) struct Leaving(Mutex<State>);

#[derive(Default)]
struct State {
    /// Ends when the other end has left the stream; none: nobody asked so far.
    left: Option<BoxFuture<'static, ()>>,
    /// Who waits for that: one, as each direction of a copy has one.
    waiting: Option<Waker>,
}

impl Leaving {
    /// From now on it is about the stream that `left` is about.
    pub(super) fn follow(&self, left: BoxFuture<'static, ()>) {
        let mut state = self.lock();
        let before = state.left.replace(left);
        let waiting = state.waiting.take();
        drop(state);
        // It may hold the last of a stream.
        drop(before);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }

    /// Ends when the other end has left.
    pub(super) fn left(self: Arc<Self>) -> BoxFuture<'static, ()> {
        poll_fn(move |context| self.poll_left(context)).boxed()
    }

    fn poll_left(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        state.waiting = Some(context.waker().clone());
        match &mut state.left {
            Some(left) => left.as_mut().poll(context),
            None => Poll::Pending,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn it_is_about_the_stream_that_the_direction_is_on() {
        let leaving = Arc::new(Leaving::default());
        leaving.follow(pending().boxed());
        let mut left = Arc::clone(&leaving).left();
        let mut context = Context::from_waker(Waker::noop());
        assert!(left.as_mut().poll(&mut context).is_pending());
        let waits = tokio::spawn(left);
        tokio::task::yield_now().await;
        leaving.follow(ready(()).boxed());
        waits.await.unwrap();
    }

    #[tokio::test]
    async fn what_it_was_about_before_is_let_go() {
        let leaving = Leaving::default();
        let held = Arc::new(());
        let holds = Arc::clone(&held);
        leaving.follow(
            async move {
                pending::<()>().await;
                drop(holds);
            }
            .boxed(),
        );
        assert_eq!(Arc::strong_count(&held), 2);
        leaving.follow(pending().boxed());
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
