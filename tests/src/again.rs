//! Programs that nobody tells when a node starts, dies or changes its rules: they go on, turn after
//! turn.

use std::{fmt::Debug, time::Duration};

use anyhow::Result;
use futures_util::future::join_all;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};

/// Programs begin again at this pace, and leave the machine to the others.
const PACE: Duration = Duration::from_millis(500);

/// Programs, each of which begins again when it has ended; dropped, they end.
#[derive(Debug)]
pub struct Again<P> {
    running: Vec<Running<P>>,
}

#[derive(Debug)]
struct Running<P> {
    program: P,
    turns: watch::Receiver<Turn>,
    task: JoinHandle<()>,
}

/// What came of the latest turn.
#[derive(Debug, Clone, Copy, Default)]
struct Turn {
    number: usize,
    served: bool,
}

impl<P: Copy + Debug + PartialEq + Send + 'static> Again<P> {
    /// Starts them, whether or not anybody listens; an error of `run` is a turn that was not served.
    pub fn start<F>(programs: &[P], run: impl Fn(P) -> F + Clone + Send + 'static) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let running = programs.iter().map(|&program| {
            let (sender, turns) = watch::channel(Turn::default());
            let run = run.clone();
            let task = tokio::spawn(async move {
                let mut pace = interval(PACE);
                pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
                for number in 1.. {
                    pace.tick().await;
                    let served = run(program).await.is_ok();
                    sender.send_replace(Turn { number, served });
                }
            });
            Running {
                program,
                turns,
                task,
            }
        });
        Self {
            running: running.collect(),
        }
    }

    /// Waits until each of `expected` was served, and each other was not, in a turn that began after
    /// this call; those for which that did not come within `limit`.
    pub async fn settle(&mut self, expected: &[P], limit: Duration) -> Vec<P> {
        let settling = self.running.iter_mut().map(async |running| {
            let wanted = expected.contains(&running.program);
            // The one that is under way began before.
            let next = running.turns.borrow().number + 2;
            let settles = |turn: &Turn| turn.number >= next && turn.served == wanted;
            let settled = timeout(limit, running.turns.wait_for(settles)).await;
            settled.is_err().then_some(running.program)
        });
        join_all(settling).await.into_iter().flatten().collect()
    }
}

impl<P> Drop for Running<P> {
    fn drop(&mut self) {
        self.task.abort();
    }
}
