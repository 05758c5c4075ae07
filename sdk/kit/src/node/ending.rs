//! How an event ends that was refused or broke, and how it becomes real.

use std::{mem, ops::Bound};

use wormholes_plugin::{Error, Plugin, Principal};

use super::{Effects, Node, messages::consume, operations::end_canceled};
use crate::{
    event::{Event, SocketNews, cut},
    faults::Commit,
    mail::Cause,
    manifest::Poison,
    memory::Memory,
    net::Parcel,
    node::Around,
    transaction::Progress,
};

impl<P: Plugin> Node<P> {
    /// The handler said no: the event is consumed, and nothing else.
    pub(super) fn refuse(
        &mut self,
        principal: &Principal,
        event: Event,
        error: Error,
        around: &mut Around,
    ) -> Commit {
        let actor = self.actor(principal);
        let mut memory = actor.memory.clone();
        let mut effects = Effects::default();
        match &event {
            Event::Request(request) => {
                effects.answers.insert(request.id, Err(cut(error)));
            }
            Event::Timer { name, .. } => {
                let timer = memory.timers.remove(name);
                effects.writes = timer.is_some_and(|timer| timer.durable);
            }
            Event::Init(_) | Event::Migrate { .. } => {
                actor.waiting.push_front((event, 0));
                actor.parked = Some(cut(error).message);
                return Commit::Done;
            }
            Event::Http { id, .. } => {
                effects.answers.insert(*id, Err(cut(error)));
            }
            Event::Message { .. }
            | Event::Note { .. }
            | Event::Answer { .. }
            | Event::Fetched { .. } => {
                consume(&event, Some(cut(error)), &mut memory, &mut effects);
            }
            Event::Socket { id, news } => {
                match news {
                    SocketNews::Data(_) => {
                        self.web.cut(*id);
                        self.actor(principal).lose_socket(*id);
                        memory.sockets.remove(id);
                    }
                    SocketNews::Opened(..) => {
                        self.web.cut(*id);
                        memory.sockets.remove(id);
                    }
                    SocketNews::Connected | SocketNews::Writable(_) | SocketNews::Closed(_) => {}
                }
                consume(&event, Some(cut(error)), &mut memory, &mut effects);
            }
            Event::Canceled(id) => end_canceled(*id, &mut memory, &mut effects),
            Event::BlobFetched { id, .. } => {
                effects.writes = memory.blobs.fetches.remove(id).is_some();
            }
            Event::HttpCanceled(_)
            | Event::Datagram { .. }
            | Event::Presence { .. }
            | Event::Usage(_) => {}
        }
        self.commit(principal, memory, effects, around)
    }

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

    /// Makes it real, and lets out what leaves the node.
    pub(super) fn commit(
        &mut self,
        principal: &Principal,
        mut memory: Memory,
        mut effects: Effects,
        around: &mut Around,
    ) -> Commit {
        for (request, answer) in &effects.answers {
            if memory.operations.open.remove(request).is_some() {
                memory.operations.results.insert(*request, answer.clone());
                effects.writes = true;
            }
        }
        let commit = match effects.writes {
            true => around.faults.borrow_mut().commit(),
            false => Commit::Done,
        };
        if commit == Commit::Lost {
            return commit;
        }
        self.counts.commits += u64::from(effects.writes);
        for request in effects.answers.keys() {
            memory.requests.remove(request);
            self.brought.remove(request);
            memory.http.remove(request);
        }
        let channels = mem::take(&mut effects.channels);
        self.mark(principal, channels, mem::take(&mut effects.wanted));
        let actor = self.actor(principal);
        let told = actor.memory.mail.last_note;
        actor.memory = memory;
        let news = (Bound::Excluded(&told), Bound::Unbounded);
        for (number, note) in actor.memory.mail.notes.range(news) {
            let (number, note) = (*number, note.clone());
            actor.waiting.push_back((Event::Note { number, note }, 0));
        }
        if commit == Commit::Silent {
            return commit;
        }
        let mut told = Vec::new();
        for (request, answer) in effects.answers {
            if actor.deadlines.remove(&request).is_some() {
                told.push((request, answer));
            }
        }
        let waits = |(request, _): &(u64, Progress)| actor.deadlines.contains_key(request);
        let progress: Vec<_> = effects.progress.into_iter().filter(waits).collect();
        for (request, answer) in told {
            self.tell(request, answer, around);
        }
        for parcel in effects.parcels {
            self.leave(parcel, around);
        }
        for (request, step) in progress {
            self.progress.entry(request).or_default().push(step);
        }
        commit
    }
}
