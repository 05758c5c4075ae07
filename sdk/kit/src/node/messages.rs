//! What a node does for the messages of its principals.

use std::{collections::BTreeMap, mem};

use wormholes_plugin::{Error, ErrorCode, Plugin, Principal, Result};

use super::{Around, Effects, Node};
use crate::{
    due::Due,
    event::{Event, SocketNews},
    faults::Commit,
    mail::Mailbox,
    memory::Memory,
    net::{Asker, Parcel},
};

impl<P: Plugin> Node<P> {
    /// Something for a principal to do.
    pub(crate) fn deliver(&mut self, principal: &Principal, event: Event, around: &mut Around) {
        self.actor(principal).waiting.push_back((event, 0));
        self.drain(principal, around);
    }

    /// Whether there is such a principal: the node, or one of its users, where the plugin asks for them.
    pub(crate) fn check_principal(&self, principal: &Principal) -> Result<()> {
        if self.is_stopped {
            let why = "the node is stopped; start it again";
            return Err(Error::new(ErrorCode::Unavailable, why));
        }
        match principal {
            Principal::Node => Ok(()),
            Principal::User(_) if !self.manifest.capabilities.users => Err(Error::denied(
                "the plugin is for the node alone; `users = true` must stand in its manifest and in \
                 its grants",
            )),
            Principal::User(name) if !self.users.contains(name) => Err(Error::not_found(format!(
                "there is no user `{name}`; `wormholes user add {name}` makes one"
            ))),
            Principal::User(_) => Ok(()),
        }
    }

    /// The same: what comes from others makes none.
    pub(crate) fn knows(&self, principal: &Principal) -> bool {
        self.check_principal(principal).is_ok()
    }

    pub(crate) fn speaks(&self, protocol: &str) -> bool {
        self.manifest.messages.protocols.contains(protocol)
    }

    /// Makes a change of a principal's messages durable; false: the node crashed over it.
    pub(crate) fn keep(
        &mut self,
        principal: &Principal,
        around: &mut Around,
        change: impl FnOnce(&mut Mailbox),
    ) -> bool {
        let mut memory = self.actor(principal).memory.clone();
        change(&mut memory.mail);
        let effects = Effects {
            writes: true,
            ..Effects::default()
        };
        if self.commit(principal, memory, effects, around) != Commit::Done {
            self.start(around);
            return false;
        }
        let boot = self.boot;
        self.drain(principal, around);
        boot == self.boot
    }

    /// A plugin waits for the answer to a request.
    pub(super) fn owe(&mut self, request: u64, asker: Asker, around: &mut Around) {
        around.net.asked.put(&asker, (self.number, request));
        // Its node may have ended while the question was on its way.
        self.marks.add(Due::Asked(asker.node));
        self.askers.insert(request, asker);
    }

    /// The trunk broke by which these were asked: nobody waits for the answers any more.
    pub(crate) fn forget_askers(
        &mut self,
        is_gone: impl Fn(&Asker) -> bool,
        around: &mut Around,
    ) -> Vec<Asker> {
        let askers = mem::take(&mut self.askers).into_iter();
        let (gone, left): (BTreeMap<_, _>, _) = askers.partition(|(_, asker)| is_gone(asker));
        self.askers = left;
        for (request, asker) in &gone {
            around.net.asked.remove(asker, (self.number, *request));
            let actors = self.actors.iter();
            let of = actors.filter(|(_, actor)| actor.deadlines.contains_key(request));
            let of: Vec<_> = of.map(|(principal, _)| principal.clone()).collect();
            of.iter()
                .for_each(|principal| self.give_up(principal, *request));
        }
        gone.into_values().collect()
    }

    /// Says an answer to who waits for it.
    pub(super) fn tell(&mut self, request: u64, answer: Result<Vec<u8>>, around: &mut Around) {
        match self.askers.remove(&request) {
            Some(asker) => {
                around.net.asked.remove(&asker, (self.number, request));
                self.leave(Parcel::Answer { asker, answer }, around);
            }
            None => drop(self.answers.insert(request, answer)),
        }
    }

    pub(super) fn leave(&self, parcel: Parcel, around: &mut Around) {
        let parcels = around.net.parcels.entry(self.number);
        parcels.or_default().push_back(parcel);
        self.marks.add(Due::Parcel(self.number));
    }

    pub(super) fn late_questions(&mut self, principal: &Principal, now_ms: u64) {
        let actor = self.actor(principal);
        for id in actor.late_questions(now_ms) {
            let late = Error::new(ErrorCode::Expired, "the plugin did not answer in time");
            match actor.memory.fetches.contains(&id) {
                true => actor.take_fetched(id, Err(late)),
                false => actor.take_answer(id, Err(late)),
            }
        }
    }
}

/// What is gone when this event is real, whatever its handler says.
pub(super) fn consume(
    event: &Event,
    refusal: Option<Error>,
    memory: &mut Memory,
    effects: &mut Effects,
) {
    let mail = &mut memory.mail;
    match event {
        Event::Message {
            key,
            content,
            delivery: Some((delivery, trip)),
        } => {
            mail.handled(key.clone(), delivery, content, refusal);
            let trip = trip.clone();
            effects.parcels.push(Parcel::Handled { trip });
            effects.writes = true;
        }
        Event::Note { number, .. } => effects.writes |= mail.notes.remove(number).is_some(),
        Event::Answer { id, .. } => effects.writes |= mail.kept_questions.remove(id),
        Event::Fetched { id, .. } => {
            memory.fetches.remove(id);
            effects.writes |= mail.kept_questions.remove(id);
        }
        Event::Socket {
            id,
            news: SocketNews::Closed(_),
        } => effects.writes |= memory.kept_sockets.remove(id),
        Event::Message { delivery: None, .. }
        | Event::Migrate { .. }
        | Event::Init(_)
        | Event::Timer { .. }
        | Event::Request(_)
        | Event::Canceled(_)
        | Event::Http { .. }
        | Event::HttpCanceled(_)
        | Event::Socket { .. }
        | Event::Datagram { .. }
        | Event::Presence { .. }
        | Event::BlobFetched { .. }
        | Event::Usage(_) => {}
    }
}
