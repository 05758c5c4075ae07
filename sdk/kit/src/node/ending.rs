//! Events that break their plugin for the last time.

use wormholes_plugin::{Error, Plugin, Principal};

use super::{Around, Effects, Node};
use crate::{event::Event, faults::Commit, mail::Cause, manifest::Poison, net::Parcel};

impl<P: Plugin> Node<P> {
    /// It broke for the last time.
    pub(super) fn give_up_event(
        &mut self,
        principal: &Principal,
        event: Event,
        why: String,
        around: &mut Around,
    ) -> Commit {
        let failed = Error::failed("the plugin failed; see its log");
        match (self.manifest.instance.poison, &event) {
            (Poison::Halt, Event::Request(_) | Event::Http { .. }) => {
                let commit = self.refuse(principal, event, failed, around);
                self.actor(principal).parked = Some(why);
                commit
            }
            // What is behind it on its channel must not be handled before it.
            (Poison::Halt, Event::Message { key, delivery, .. }) => {
                let mut memory = self.actor(principal).memory.clone();
                let mut effects = Effects::default();
                if let Some((delivery, trip)) = delivery {
                    let epoch = Some(delivery.epoch);
                    memory.mail.halt_in(key, epoch, Cause::Poison);
                    let trip = trip.clone();
                    effects.parcels.push(Parcel::Handled { trip });
                    effects.writes = true;
                }
                self.commit(principal, memory, effects, around)
            }
            (Poison::Halt, _) => {
                let actor = self.actor(principal);
                actor.waiting.push_front((event, 0));
                actor.parked = Some(why);
                Commit::Done
            }
            (Poison::Skip, _) => self.refuse(principal, event, failed, around),
        }
    }
}
