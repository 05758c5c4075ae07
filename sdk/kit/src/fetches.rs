//! Blobs that travel between nodes: what of one came stays, so that only the time of its last piece
//! matters, and whether it is given.

use std::sync::Arc;

use wormholes_plugin::{BlobFetch, Error, ErrorCode, Plugin, Principal};

use crate::{event::Event, faults::Leave, mail::OutKey, net::Net, world::World};

/// A fetch: of which node, whose, and its id.
pub(crate) type FetchId = (usize, Principal, u64);

impl<P: Plugin> World<P> {
    /// When something becomes of a fetch.
    pub(crate) fn fetch_due(&self, (number, principal, id): &FetchId) -> Option<u64> {
        let actor = self.nodes.get(*number)?.actors.get(principal)?;
        let fetch = actor.memory.blobs.fetches.get(id)?;
        let told = actor.waiting.iter();
        let mut told = told.map(|(event, _)| event);
        if actor.parked.is_some()
            || told.any(|event| matches!(event, Event::BlobFetched { id: of, .. } if of == id))
        {
            return None;
        }
        let known = (*number, principal.clone(), *id);
        let ready = self.around.net.fetches.get(&known).copied();
        let ready = ready.unwrap_or(self.around.now_ms);
        let ready = self.reach(*number, &fetch.from).is_ok().then_some(ready);
        ready.into_iter().chain(fetch.deadline_ms).min()
    }

    /// A blob sets out, comes, or does not.
    pub(crate) fn bring(&mut self, known: &FetchId) {
        let (number, principal, id) = known;
        let actor = self.nodes.get(*number);
        let actor = actor.and_then(|node| node.actors.get(principal));
        let Some(fetch) = actor.and_then(|it| it.memory.blobs.fetches.get(id).cloned()) else {
            return;
        };
        let now_ms = self.around.now_ms;
        let is_late = fetch.deadline_ms.is_some_and(|at| at <= now_ms);
        let outcome = if is_late {
            Err(Error::new(
                ErrorCode::Expired,
                "the blob did not come in time",
            ))
        } else {
            let Ok(to) = self.reach(*number, &fetch.from) else {
                return;
            };
            if !self.around.net.fetches.contains_key(known) {
                let links = &self.around.net.links;
                let delay_ms = links.delay_ms((*number, to), &mut self.around.random);
                let fetches = &mut self.around.net.fetches;
                fetches.insert(known.clone(), now_ms + delay_ms);
                return;
            }
            if !self.travels(known, to) {
                return;
            }
            match self.given(*number, principal, to, &fetch) {
                // Its plugin rests: it is asked again.
                Err(error) if error.code == ErrorCode::Unavailable => return self.again(known),
                outcome => outcome,
            }
        };
        self.around.net.fetches.remove(known);
        let event = Event::BlobFetched {
            id: *id,
            blob: fetch.blob,
            outcome,
        };
        if let Some(node) = self.nodes.get_mut(*number) {
            node.deliver(principal, event, &mut self.around);
        }
    }

    /// Whether the trunk holds that brings it; a node may crash over it.
    fn travels(&mut self, known: &FetchId, to: usize) -> bool {
        let from = known.0;
        let fault = self.around.faults.borrow_mut().leave();
        let is_far = from != to;
        let breaks = is_far && self.around.net.breaks(&mut self.around.random);
        if matches!(fault, Leave::Never | Leave::Last) {
            if let Some(node) = self.nodes.get_mut(to) {
                node.start(&mut self.around);
            }
            self.again(known);
            return false;
        }
        if breaks || is_far && fault == Leave::Lost {
            self.again(known);
            return false;
        }
        true
    }

    fn again(&mut self, known: &FetchId) {
        let later = self.around.now_ms + Net::pause(&mut self.around.random);
        self.around.net.fetches.insert(known.clone(), later);
    }

    fn given(
        &mut self,
        from: usize,
        principal: &Principal,
        to: usize,
        fetch: &BlobFetch,
    ) -> Result<Arc<[u8]>, Error> {
        let no = || Error::denied("the other end does not give this blob");
        let key = OutKey::new(&fetch.from, "", &fetch.way.sender);
        let seen = self.seen((from, principal), to, &key);
        let giver = self.receiver(from, &fetch.from).ok_or_else(no)?;
        let node = self.nodes.get(to).ok_or_else(no)?;
        let may = node.query(&giver, &mut self.around, |plugin, cx| {
            plugin.may_read(cx, &seen.from, &seen.own, &fetch.blob)
        });
        match may {
            Ok(true) => {}
            Err(error) if error.code == ErrorCode::Unavailable => return Err(error),
            Ok(false) | Err(_) => return Err(no()),
        }
        let actor = node.actors.get(&giver);
        let held = actor.and_then(|actor| actor.memory.blobs.held.get(fetch.blob.hash()));
        let none = || Error::not_found("the plugin does not hold this blob");
        let bytes = Arc::clone(&held.ok_or_else(none)?.bytes);
        if bytes.len() as u64 > fetch.max_bytes {
            let length = bytes.len();
            let long = format!("the blob has {length} bytes, which is more than it may have");
            return Err(Error::new(ErrorCode::Quota, long));
        }
        Ok(bytes)
    }
}
