//! What happens by itself: what leaves a node, what travels, and both ends of a channel when they meet.

mod next;
mod wires;

use std::collections::VecDeque;

use wormholes_plugin::{
    Address, Caller, Error, ErrorCode, Identity, Letter, Outcome, Place, Plugin, Principal, Result,
};

use crate::{
    counts::Counts,
    event::Event,
    mail::{Cause, Delivery, InKey, Note, OutKey, Position, Verdict},
    net::{Asker, ChannelId, GONE_MS, Guest, Net, Parcel, What, alias_key},
    world::World,
};

/// A receiver that does not take a channel is asked again after this.
const REFUSED_MS: u64 = 60_000;

impl<P: Plugin> World<P> {
    /// Which node an address is at.
    pub(crate) fn reach(
        &self,
        from: usize,
        to: &Address,
    ) -> std::result::Result<usize, &'static str> {
        let net = &self.around.net;
        let number = match to.place {
            Place::Here => Some(from),
            Place::Node(id) => net.number(&id),
            // Behind an alias is one principal, whose name nobody learns.
            Place::Alias(_) if to.principal != Principal::Node => {
                return Err("there is no such user");
            }
            Place::Alias(key) => {
                let guest = net.guests.get(&(from, key)).map(|guest| guest.node);
                return guest.ok_or("nobody with that key is connected");
            }
        };
        let number = number.filter(|number| !net.is_cut(from, *number));
        let number = number.filter(|number| !self.is_stopped(*number));
        let number = number.ok_or("the node cannot be reached")?;
        let node = self.nodes.get(number);
        let is_there = node.is_some_and(|node| node.manifest.plugin.name == *to.plugin);
        is_there
            .then_some(number)
            .ok_or("no plugin of that name takes messages")
    }

    pub(crate) fn is_stopped(&self, number: usize) -> bool {
        self.nodes.get(number).is_some_and(|node| node.is_stopped)
    }

    /// When it is known that nobody is at an address.
    fn known_ms(&self, to: &Address) -> u64 {
        let number = match &to.place {
            Place::Node(id) => self.around.net.number(id),
            Place::Here | Place::Alias(_) => None,
        };
        let is_gone = number.is_some_and(|number| self.is_stopped(number));
        let notice_ms = if is_gone { GONE_MS } else { 0 };
        self.around.now_ms + notice_ms
    }

    /// Who of a node's principals an address means.
    pub(crate) fn receiver(&self, from: usize, to: &Address) -> Option<Principal> {
        match to.place {
            Place::Here | Place::Node(_) => Some(to.principal.clone()),
            Place::Alias(key) => {
                let guest = self.around.net.guests.get(&(from, key));
                guest.map(|guest| guest.principal.clone())
            }
        }
    }

    /// As whom a receiver sees a principal, and is seen itself.
    pub(crate) fn seen(&mut self, from: (usize, &Principal), to: usize, key: &OutKey) -> InKey {
        let (from, principal) = from;
        let mut sender = principal.clone();
        let net = &mut self.around.net;
        let node = net.ids.get(from).copied().unwrap_or_default();
        let (mut own, mut is_met) = (Identity::Node, true);
        let place = match (&key.sender, key.to.place) {
            (_, Place::Here) => Place::Here,
            (Identity::Alias(name), Place::Node(_)) => {
                let key = alias_key(&node, principal, name);
                let guest = Guest {
                    node: from,
                    principal: principal.clone(),
                    name: name.clone(),
                };
                is_met = net.guests.insert((to, key), guest).is_some();
                // Nobody learns who of a node's principals it is.
                sender = Principal::Node;
                Place::Alias(key)
            }
            (Identity::Alias(_) | Identity::Node, Place::Alias(key)) => {
                let guest = net.guests.get(&(from, key));
                own = guest.map_or(own, |guest| Identity::Alias(guest.name.clone()));
                Place::Node(node)
            }
            (Identity::Node, Place::Node(_)) => Place::Node(node),
        };
        let from = Address {
            place,
            plugin: key.to.plugin.clone(),
            principal: sender,
        };
        if !is_met {
            self.find_ways();
        }
        let protocol = key.protocol.clone();
        InKey {
            from,
            own,
            protocol,
        }
    }

    /// Lets something leave a node, unless the node crashes over it.
    fn launch(&mut self, from: usize, to: usize, what: What) {
        let fault = self.around.faults.borrow_mut().leave();
        let around = &mut self.around;
        let luck = (around.now_ms, &mut around.random);
        around.net.launch((from, to), what, fault, luck);
        self.crash_if(from, fault);
    }

    /// Lets the next of what leaves a node leave it; false: nothing does.
    pub(crate) fn send_next(&mut self, from: usize) -> bool {
        let waits = self.around.net.parcels.get(&from);
        let waits = waits.is_some_and(|waiting| !waiting.is_empty());
        if waits {
            self.send_parcel(from);
        }
        waits
    }

    fn send_parcel(&mut self, from: usize) {
        let waiting = self.around.net.parcels.get_mut(&from);
        match waiting.and_then(VecDeque::pop_front) {
            Some(Parcel::Letter { of, letter, ask }) => self.send_letter(from, &of, letter, ask),
            Some(Parcel::Handled { trip }) => {
                let to = trip.channel.0;
                self.launch(from, to, What::Handled(trip));
            }
            Some(Parcel::Answer { asker, answer }) => self.send_answer(from, asker, answer),
            Some(Parcel::Fetch { of, id, wanted }) => self.fetch(from, of, id, &wanted),
            Some(Parcel::Socket { of, id, order }) => self.order(from, &of, id, order),
            Some(Parcel::Datagram { port, to, data }) => self.cast(from, (port, to, data)),
            None => {}
        }
    }

    /// Counts what one node sends to another.
    fn count(&mut self, from: usize, to: usize, sent: impl FnOnce(&mut Counts)) {
        if let Some(node) = self.nodes.get_mut(from).filter(|_| from != to) {
            sent(&mut node.counts);
        }
    }

    fn send_answer(&mut self, from: usize, asker: Asker, answer: Result<Vec<u8>>) {
        let to = asker.node;
        self.count(from, to, |counts| {
            counts.answer(answer.as_deref().unwrap_or_default());
        });
        self.launch(from, to, What::Answer { asker, answer });
    }

    fn send_letter(
        &mut self,
        from: usize,
        of: &Principal,
        letter: Letter,
        ask: Option<(u64, u64)>,
    ) {
        let boot = self.nodes.get(from).map_or(0, |node| node.boot);
        let ask = ask.map(|(id, deadline_ms)| {
            let asker = Asker {
                node: from,
                boot,
                principal: of.clone(),
                id,
            };
            (asker, deadline_ms)
        });
        if letter.to.place != Place::Here
            && let Some(node) = self.nodes.get_mut(from)
        {
            match &ask {
                Some(_) => node.counts.ask(&letter.body),
                None => node.counts.post(&letter.body),
            }
        }
        let to = match self.reach(from, &letter.to) {
            Ok(to) => to,
            Err(why) => {
                if let Some((asker, _)) = ask {
                    let known_ms = self.known_ms(&letter.to);
                    let answer = Err(Error::new(ErrorCode::Unavailable, why));
                    self.around.net.tell(asker, answer, known_ms);
                }
                return;
            }
        };
        let out = OutKey::new(&letter.to, &letter.protocol, &letter.way.sender);
        let Some(receiver) = self.receiver(from, &letter.to) else {
            return;
        };
        let what = What::Letter {
            to: receiver,
            key: self.seen((from, of), to, &out),
            body: letter.body,
            ask,
        };
        self.launch(from, to, what);
    }

    /// Something arrives.
    fn arrive(&mut self, number: u64) {
        let Some(flight) = self.around.net.flights.take(number) else {
            return;
        };
        let node = self.nodes.get_mut(flight.to);
        let Some(node) = node.filter(|node| !node.is_stopped) else {
            return;
        };
        match flight.what {
            What::Message {
                to,
                key,
                content,
                delivery,
                trip,
            } => {
                // What comes from an earlier trunk is dropped.
                if self.around.net.is_newest(&trip) {
                    let delivery = Some((delivery, trip));
                    let event = Event::Message {
                        key,
                        content,
                        delivery,
                    };
                    node.deliver(&to, event, &mut self.around);
                }
            }
            What::Handled(trip) => self.around.net.done(&trip),
            What::Letter {
                to,
                key,
                body,
                ask: None,
            } => {
                if node.knows(&to) && node.speaks(&key.protocol) {
                    let event = Event::Message {
                        key,
                        content: Ok(body),
                        delivery: None,
                    };
                    node.deliver(&to, event, &mut self.around);
                }
            }
            What::Letter {
                to,
                key,
                body,
                ask: Some(asker),
            } => self.serve(flight.to, &to, (key, body), asker),
            What::Fetched { asker, answer } => {
                node.actor(&asker.principal).take_fetched(asker.id, answer);
                node.drain(&asker.principal, &mut self.around);
            }
            What::Answer { asker, answer } => {
                node.actor(&asker.principal).take_answer(asker.id, answer);
                node.drain(&asker.principal, &mut self.around);
            }
        }
    }

    /// A question arrives.
    fn serve(
        &mut self,
        at: usize,
        to: &Principal,
        (key, body): (InKey, Vec<u8>),
        (asker, deadline_ms): (Asker, u64),
    ) {
        let Some(node) = self
            .nodes
            .get_mut(at)
            .filter(|_| deadline_ms > self.around.now_ms)
        else {
            return;
        };
        let told = if !node.speaks(&key.protocol) {
            Err(Error::not_found("the plugin does not speak this protocol"))
        } else if !node.knows(to) {
            Err(Error::not_found("there is no such user"))
        } else {
            let InKey {
                from,
                own,
                protocol,
            } = key;
            let caller = Caller::Plugin { from, own };
            let asking = Some((asker.clone(), deadline_ms));
            node.ask(&mut self.around, to, (caller, &protocol, body), asking)
        };
        if let Err(error) = told {
            self.send_answer(at, asker, Err(error));
        }
    }

    /// The trunk broke by which one node was asked by another.
    pub(crate) fn end_requests(&mut self, at: usize, from: usize) {
        if at == from {
            return;
        }
        for asker in self.cancel_asked(at, |asker| asker.node == from) {
            let broke = Error::new(ErrorCode::Unavailable, "the trunk to the other node broke");
            self.around.net.tell(asker, Err(broke), self.around.now_ms);
        }
    }

    /// A node ended, and others know it: who answers what it asked before is told, and nobody else.
    fn end_asked(&mut self, from: usize) {
        let asked = &self.around.net.asked;
        let Some(boot) = asked.oldest_boot(from) else {
            return;
        };
        for at in asked.at(from, boot) {
            self.cancel_asked(at, |asker| (asker.node, asker.boot) == (from, boot));
        }
    }

    /// Ends requests that other nodes made at one; who waited for their answers.
    fn cancel_asked(&mut self, at: usize, is_gone: impl Fn(&Asker) -> bool) -> Vec<Asker> {
        let Some(node) = self.nodes.get_mut(at) else {
            return Vec::new();
        };
        let gone = node.forget_askers(is_gone, &mut self.around);
        let principals: Vec<_> = node.actors.keys().cloned().collect();
        for principal in principals {
            node.drain(&principal, &mut self.around);
        }
        gone
    }

    /// Both ends of a channel meet, and its next message sets out.
    fn visit(&mut self, channel: &ChannelId) {
        let (from, principal, key) = channel;
        if self.expire(channel) {
            return;
        }
        let Ok(to) = self.reach(*from, &key.to) else {
            return;
        };
        let in_key = self.seen((*from, principal), to, key);
        let Some(verdict) = self.meet(channel, to, &in_key) else {
            let later = self.around.now_ms + REFUSED_MS;
            return self.around.net.wait(channel, to, later);
        };
        let later = self.around.now_ms + Net::pause(&mut self.around.random);
        match verdict {
            Verdict::Open(position) => {
                if self.learn(channel, to, &in_key, position) && !self.expire(channel) {
                    self.set_out(channel, to, in_key, position, later);
                }
            }
            Verdict::Close(position, cause) => {
                if self.learn(channel, to, &in_key, position) {
                    self.halt_out(channel, cause);
                }
            }
            Verdict::Halt(cause) => {
                if self.halt_in(channel, to, &in_key, cause) {
                    self.halt_out(channel, cause);
                }
            }
            Verdict::Wait => self.around.net.wait(channel, to, later),
            Verdict::Reopened => {
                self.halt_in(channel, to, &in_key, Cause::Reopened);
                self.around.net.wait(channel, to, later);
            }
        }
    }

    /// What both ends remember, held against each other; `None`: the receiver does not take the
    /// channel, or is still at its last message.
    fn meet(&self, channel: &ChannelId, to: usize, in_key: &InKey) -> Option<Verdict> {
        let (from, principal, key) = channel;
        let node = self.nodes.get(to)?;
        let of = self.receiver(*from, &key.to)?;
        let receiver = node.actors.get(&of);
        if !node.knows(&of) || !node.speaks(&key.protocol) {
            return None;
        }
        let waiting = receiver.map(|actor| actor.waiting.iter());
        let mut waiting = waiting.into_iter().flatten();
        let is_pending = waiting.any(|(event, _)| {
            matches!(event, Event::Message { key, delivery: Some(_), .. } if key == in_key)
        });
        let sender = self.nodes.get(*from)?.actors.get(principal)?;
        let out = sender.memory.mail.outs.get(key)?;
        let row = receiver.and_then(|actor| actor.memory.mail.ins.get(in_key));
        (!is_pending).then(|| out.meet(row))
    }

    /// The sender hears how far the receiver came; false: its node crashed.
    fn learn(&mut self, channel: &ChannelId, to: usize, in_key: &InKey, until: Position) -> bool {
        let (from, principal, key) = channel;
        let of = self.receiver(*from, &key.to);
        let node = self.nodes.get(to);
        let receiver = node.and_then(|node| node.actors.get(&of?));
        let row = receiver.and_then(|actor| actor.memory.mail.ins.get(in_key));
        let refusal = row.and_then(|row| row.refusal()).cloned();
        let Some(node) = self.nodes.get_mut(*from) else {
            return false;
        };
        let Some(out) = node.actor(principal).memory.mail.outs.get_mut(key) else {
            return false;
        };
        if until.seq == out.acked.seq {
            out.sent = until.seq;
            return true;
        }
        node.keep(principal, &mut self.around, |mail| {
            let out = mail.outs.get_mut(key);
            let notes = out.map(|out| out.acknowledge(until, refusal.as_ref()));
            notes.into_iter().flatten().for_each(|note| mail.tell(note));
        })
    }

    /// Gives up what is late and was surely not handled; whether there was anything.
    fn expire(&mut self, channel: &ChannelId) -> bool {
        let (from, principal, key) = channel;
        let now_ms = self.around.now_ms;
        let Some(node) = self.nodes.get_mut(*from) else {
            return false;
        };
        let out = node.actor(principal).memory.mail.outs.get(key);
        let due = out.and_then(|out| out.next_expiry());
        let is_due = due.is_some_and(|due| due <= now_ms);
        if is_due {
            node.keep(principal, &mut self.around, |mail| {
                let ids = mail.outs.get_mut(key).map(|out| out.expire(now_ms));
                for id in ids.into_iter().flatten() {
                    let outcome = Outcome::Expired;
                    mail.tell(Note::Report { id, outcome });
                }
            });
        }
        is_due
    }

    fn set_out(
        &mut self,
        channel: &ChannelId,
        to: usize,
        in_key: InKey,
        after: Position,
        later: u64,
    ) {
        let (from, principal, key) = channel;
        let Some(receiver) = self.receiver(*from, &key.to) else {
            return;
        };
        let Some(node) = self.nodes.get_mut(*from) else {
            return;
        };
        let Some(out) = node.actor(principal).memory.mail.outs.get_mut(key) else {
            return;
        };
        // What was learned may have had the plugin do something.
        if out.acked != after || out.halted.is_some() {
            return;
        }
        let content = match out.next() {
            Some(content) => content.map(<[u8]>::to_vec),
            None => return,
        };
        out.sent = after.seq + content.as_ref().map_or_else(|gaps| *gaps, |_| 1);
        let delivery = Delivery {
            epoch: out.epoch,
            after,
            confirmed: after.seq,
        };
        let body = content.as_deref().unwrap_or_default();
        self.count(*from, to, |counts| counts.message(body));
        let trip = self.around.net.set_out(channel, to, later);
        let what = What::Message {
            to: receiver,
            key: in_key,
            content,
            delivery,
            trip,
        };
        self.launch(*from, to, what);
    }

    /// False: the sender's node crashed.
    fn halt_out(&mut self, channel: &ChannelId, cause: Cause) -> bool {
        let (from, principal, key): (_, _, &OutKey) = (channel.0, &channel.1, &channel.2);
        let node = self.nodes.get_mut(from);
        node.is_some_and(|node| {
            node.keep(principal, &mut self.around, |mail| {
                mail.halt_out(key, cause)
            })
        })
    }

    /// False: the receiver's node crashed.
    fn halt_in(&mut self, channel: &ChannelId, to: usize, in_key: &InKey, cause: Cause) -> bool {
        let (from, principal, key) = channel;
        let sender = self
            .nodes
            .get(*from)
            .and_then(|node| node.actors.get(principal));
        let out = sender.and_then(|actor| actor.memory.mail.outs.get(key));
        // The one that is given up.
        let epoch = out
            .map(|out| out.epoch)
            .filter(|_| cause != Cause::Reopened);
        let receiver = self.receiver(*from, &key.to);
        let (Some(node), Some(receiver)) = (self.nodes.get_mut(to), &receiver) else {
            return false;
        };
        if node.actor(receiver).memory.mail.is_halted(in_key) {
            return true;
        }
        node.keep(receiver, &mut self.around, |mail| {
            mail.halt_in(in_key, epoch, cause)
        })
    }
}
