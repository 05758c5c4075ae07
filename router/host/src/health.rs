//! A principal that breaks again and again waits, longer each time, and is parked in the end.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use crate::event::{ErrorCode, Refusal};

/// So many breaks within [`WINDOW`] are borne.
const BORNE: usize = 5;
const WINDOW: Duration = Duration::from_secs(60);
/// The first pause; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// After so many pauses, 63 seconds in all, the plugin is parked.
const PAUSES: u32 = 6;
/// Who ran so long since the last pause begins with the first one again.
const CALM: Duration = Duration::from_secs(600);

/// How a principal of a plugin is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Events run.
    Running,
    /// It broke too often: events wait for some seconds.
    Paused,
    /// It breaks whatever it is given, or must not go on: no event runs until an operator starts it
    /// again.
    Parked(String),
    /// An operator stopped it: no event runs until an operator starts it again.
    Stopped,
}

/// What decides it.
#[derive(Debug)]
pub(crate) struct Health {
    breaks: Mutex<Breaks>,
    pause: watch::Sender<Pause>,
}

#[derive(Debug, Default)]
struct Breaks {
    recent: VecDeque<Instant>,
    pauses: u32,
    paused_until: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pause {
    None,
    Until(Instant),
    Parked(String),
    Stopped,
}

impl Health {
    pub(crate) fn new() -> Self {
        Self {
            breaks: Mutex::default(),
            pause: watch::Sender::new(Pause::None),
        }
    }

    /// Waits while it is paused.
    pub(crate) async fn pass(&self) {
        if *self.pause.borrow() == Pause::None {
            return;
        }
        let mut pause = self.pause.subscribe();
        loop {
            let now = pause.borrow_and_update().clone();
            match now {
                Pause::None | Pause::Parked(_) | Pause::Stopped => return,
                Pause::Until(end) => {
                    if tokio::time::timeout_at(end, pause.changed()).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// What who asks is told, when no event may run.
    pub(crate) fn closed(&self) -> Option<Refusal> {
        let why = match &*self.pause.borrow() {
            Pause::Parked(why) => {
                format!("the plugin is parked: {why}; see `wormholes plugin list`")
            }
            Pause::Stopped => {
                "the plugin is stopped; `wormholes plugin start` has it go on".to_owned()
            }
            Pause::None | Pause::Until(_) => return None,
        };
        Some(Refusal::new(ErrorCode::Unavailable, why))
    }

    /// Waits until an operator starts it again.
    pub(crate) async fn started(&self) {
        let mut pause = self.pause.subscribe();
        // Nobody is left to start it when that fails.
        let _ = pause
            .wait_for(|pause| !matches!(pause, Pause::Parked(_) | Pause::Stopped))
            .await;
    }

    /// Waits until no event may run.
    pub(crate) async fn closes(&self) {
        let mut pause = self.pause.subscribe();
        // Nobody is left to stop it when that fails.
        let _ = pause
            .wait_for(|pause| matches!(pause, Pause::Parked(_) | Pause::Stopped))
            .await;
    }

    /// It must not go on.
    pub(crate) fn park(&self, why: String) {
        self.change(Pause::Parked(why));
    }

    /// An operator does not want it to go on.
    pub(crate) fn stop(&self) {
        self.pause.send_replace(Pause::Stopped);
    }

    /// Whatever happens to an event that still runs, who is stopped stays so.
    fn change(&self, pause: Pause) {
        self.pause.send_if_modified(|now| {
            let may_change = *now != Pause::Stopped;
            if may_change {
                *now = pause;
            }
            may_change
        });
    }

    /// An instance broke.
    pub(crate) fn broke(&self, why: &dyn std::fmt::Display) {
        let now = Instant::now();
        let mut breaks = self.lock();
        breaks.recent.push_back(now);
        breaks.recent.retain(|at| now.duration_since(*at) < WINDOW);
        if breaks.recent.len() <= BORNE {
            return;
        }
        breaks.recent.clear();
        if breaks
            .paused_until
            .is_some_and(|end| now.duration_since(end) > CALM)
        {
            breaks.pauses = 0;
        }
        let pause = if breaks.pauses >= PAUSES {
            Pause::Parked(why.to_string())
        } else {
            let end = now + FIRST_PAUSE * (1 << breaks.pauses);
            breaks.paused_until = Some(end);
            Pause::Until(end)
        };
        breaks.pauses += 1;
        self.change(pause);
    }

    /// An operator says that all is well again.
    pub(crate) fn start(&self) {
        *self.lock() = Breaks::default();
        self.pause.send_replace(Pause::None);
    }

    pub(crate) fn condition(&self) -> Condition {
        match &*self.pause.borrow() {
            Pause::Until(end) if *end > Instant::now() => Condition::Paused,
            Pause::None | Pause::Until(_) => Condition::Running,
            Pause::Parked(why) => Condition::Parked(why.clone()),
            Pause::Stopped => Condition::Stopped,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Breaks> {
        self.breaks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn breaks(health: &Health, times: usize) {
        for _ in 0..times {
            health.broke(&"trap");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_plugin_that_breaks_too_often_waits_and_is_parked_in_the_end() {
        let health = Health::new();
        breaks(&health, BORNE);
        assert_eq!(health.condition(), Condition::Running);
        breaks(&health, 1);
        let before = Instant::now();
        assert_eq!(health.condition(), Condition::Paused);
        health.pass().await;
        assert_eq!(before.elapsed().as_secs(), 1);
        for pause in 1..PAUSES {
            breaks(&health, BORNE + 1);
            let before = Instant::now();
            health.pass().await;
            assert_eq!(before.elapsed().as_secs(), 1 << pause);
        }
        breaks(&health, BORNE + 1);
        assert_eq!(health.condition(), Condition::Parked("trap".to_owned()));
        assert!(health.started().now_or_never().is_none());
        health.start();
        health.started().await;
        assert_eq!(health.condition(), Condition::Running);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_stopped_stays_so_whatever_its_last_event_does() {
        let health = Health::new();
        health.stop();
        breaks(&health, BORNE + 1);
        health.park("trap".to_owned());
        assert_eq!(health.condition(), Condition::Stopped);
        assert!(health.closed().is_some() && health.started().now_or_never().is_none());
        health.start();
        assert_eq!(
            (health.condition(), health.closed()),
            (Condition::Running, None)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_that_lie_apart_park_nobody() {
        let health = Health::new();
        for _ in 0..2 * PAUSES {
            breaks(&health, BORNE + 1);
            assert_eq!(health.condition(), Condition::Paused);
            tokio::time::advance(2 * CALM).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn breaks_that_lie_apart_are_borne() {
        let health = Health::new();
        for _ in 0..100 {
            breaks(&health, 1);
            tokio::time::advance(WINDOW / 2).await;
        }
        assert_eq!(health.condition(), Condition::Running);
    }
}
