//! How many flows are opening to each target at once, so that a loop over several routers ends.
//!
//! A flow that comes back by way of another router looks like a new one, and none of them opens
//! before the next does: they pile up here. Where programs are answered before anything opens, one
//! that stands counts on until its target says something, or for [`LINGER`]. The first that is too
//! many is refused, and so is all that follows until those that wait are done. Were a place that
//! comes free given away again, each of them would be tried anew by whoever it fails for, and each
//! of those again.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;
use wormholes_proto::Target;

use super::Refusal;
use crate::pipe::FlowBytes;

/// A loop comes round thousands of times meanwhile; of programs that only send, few begin to send to
/// one target.
const LINGER: Duration = Duration::from_secs(2);
/// The first look at whether the target said something; each after it takes twice as long to come.
const FIRST_LOOK: Duration = Duration::from_millis(10);

/// The targets that flows are opening to.
#[derive(Debug)]
pub(super) struct Crowds {
    /// For each target. Overflow rule: the newcomer is refused, as are those after it until none
    /// is opening any more.
    max_opening: usize,
    /// An entry lives while a flow is opening, so that there are no more of them than flows.
    by_target: Mutex<HashMap<Target, Crowd>>,
}

#[derive(Debug, Default)]
struct Crowd {
    opening: usize,
    is_full: bool,
}

/// A flow that is opening, until dropped.
#[derive(Debug)]
pub(super) struct Opening<'a> {
    crowds: &'a Crowds,
    target: &'a Target,
}

impl Crowds {
    pub(super) fn new(max_opening: usize) -> Self {
        Self {
            // Without a place there would be entries that no flow ends.
            max_opening: max_opening.max(1),
            by_target: Mutex::default(),
        }
    }

    /// Counts a flow to `target`.
    ///
    /// # Errors
    /// [`Refusal::Crowded`].
    pub(super) fn enter<'a>(&'a self, target: &'a Target) -> Result<Opening<'a>, Refusal> {
        let mut crowds = self.lock();
        let crowd = crowds.entry(target.clone()).or_default();
        crowd.is_full |= crowd.opening >= self.max_opening;
        if crowd.is_full {
            return Err(Refusal::Crowded(self.max_opening));
        }
        crowd.opening += 1;
        Ok(Opening {
            crowds: self,
            target,
        })
    }

    /// A flow to `target` found no place among all flows: if a loop fills them, it ends here too.
    pub(super) fn close(&self, target: &Target) {
        if let Some(crowd) = self.lock().get_mut(target) {
            crowd.is_full = true;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Target, Crowd>> {
        self.by_target
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Opening<'_> {
    /// Whether others were refused for want of place meanwhile.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match self.crowds.lock().get(self.target) {
            Some(crowd) if crowd.is_full => Err(Refusal::Crowded(self.crowds.max_opening)),
            Some(_) | None => Ok(()),
        }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let mut crowds = self.crowds.lock();
        if let Some(crowd) = crowds.get_mut(self.target) {
            crowd.opening -= 1;
            if crowd.opening == 0 {
                crowds.remove(self.target);
            }
        }
    }
}

/// Lets a flow that stands count on for a while. Never ends.
pub(super) async fn linger(opening: Option<Opening<'_>>, bytes: &FlowBytes) {
    if let Some(opening) = opening {
        let (until, mut pause) = (Instant::now() + LINGER, FIRST_LOOK);
        while bytes.down.load(Relaxed) == 0 && Instant::now() < until {
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        drop(opening);
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(host: &str) -> Target {
        Target::new(wormholes_proto::Host::parse(host).unwrap(), 80)
    }

    #[test]
    fn one_too_many_closes_the_target_until_all_are_done() {
        let (crowds, here, there) = (Crowds::new(2), target("a.example"), target("b.example"));
        let (first, second) = (crowds.enter(&here).unwrap(), crowds.enter(&here).unwrap());
        assert_eq!(first.check(), Ok(()));
        assert_eq!(crowds.enter(&here).unwrap_err(), Refusal::Crowded(2));
        assert_eq!(first.check(), Err(Refusal::Crowded(2)));
        assert!(crowds.enter(&there).is_ok());
        drop(first);
        assert!(crowds.enter(&here).is_err(), "its place was given away");
        drop(second);
        assert!(crowds.enter(&here).is_ok());
        assert!(crowds.lock().is_empty());
    }

    #[test]
    fn a_target_closes_when_the_places_of_all_flows_are_taken() {
        let (crowds, here, there) = (Crowds::new(2), target("a.example"), target("b.example"));
        let opening = crowds.enter(&here).unwrap();
        crowds.close(&here);
        crowds.close(&there);
        assert!(opening.check().is_err() && crowds.enter(&here).is_err());
        assert!(crowds.enter(&there).is_ok());
    }
}
