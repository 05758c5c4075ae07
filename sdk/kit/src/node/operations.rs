//! Requests that end before they are answered, and operations, which outlive who made them.

use wormholes_plugin::{Error, Plugin, Principal};

use super::{Effects, Node};
use crate::{event::Event, memory::Memory};

impl<P: Plugin> Node<P> {
    /// Has an operation end when its handler was told; false: it is none that goes on.
    pub(crate) fn cancel(&mut self, principal: &Principal, id: u64, why: Error) -> bool {
        let actor = self.actor(principal);
        if !actor.memory.operations.open.contains_key(&id) {
            return false;
        }
        actor.deadlines.remove(&id);
        if actor.memory.requests.remove(&id) {
            actor.memory.operations.canceled.insert(id, why);
            actor.waiting.push_back((Event::Canceled(id), 0));
        }
        true
    }

    /// Nobody waits for this request any more; who began an operation may leave.
    pub(crate) fn give_up(&mut self, principal: &Principal, request: u64) {
        let actor = self.actor(principal);
        if actor.memory.operations.open.contains_key(&request) {
            return;
        }
        actor.deadlines.remove(&request);
        if actor.memory.requests.remove(&request) {
            let canceled = match actor.memory.http.remove(&request) {
                true => Event::HttpCanceled(request),
                false => Event::Canceled(request),
            };
            actor.waiting.push_back((canceled, 0));
        }
    }
}

/// The handler of a canceled operation was told.
pub(super) fn end_canceled(id: u64, memory: &mut Memory, effects: &mut Effects) {
    if let Some(why) = memory.operations.canceled.remove(&id) {
        effects.answers.insert(id, Err(why));
    }
}
