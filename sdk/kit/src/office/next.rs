//! What happens next, and when.

use std::mem;

use wormholes_plugin::Plugin;

use crate::{due::Due, net::ChannelId, world::World};

impl<P: Plugin> World<P> {
    /// Lets what is due first happen; whether there was anything.
    pub(crate) fn step(&mut self) -> bool {
        self.step_until(u64::MAX)
    }

    /// Lets it happen unless it is later than that; whether there was anything.
    pub(crate) fn step_until(&mut self, end_ms: u64) -> bool {
        let first = self.first_due();
        let Some((due_ms, who)) = first.filter(|(due_ms, _)| *due_ms <= end_ms) else {
            return false;
        };
        self.around.now_ms = self.around.now_ms.max(due_ms);
        // Whatever else it has to do at this instant has its turn among the others.
        self.queue.put(who.clone(), None);
        match &who {
            Due::Principal(number, principal) => {
                if let Some(node) = self.nodes.get_mut(*number) {
                    node.due(principal, &mut self.around);
                }
            }
            Due::Parcel(number) => self.send_parcel(*number),
            Due::Channel(channel) => self.visit(channel),
            Due::Flight(number) => self.arrive(*number),
            Due::Fetch(fetch) => self.bring(fetch),
            Due::Asked(number) => self.end_asked(*number),
        }
        self.around.net.marks.add(who);
        true
    }

    /// Who is next, and when.
    fn first_due(&mut self) -> Option<(u64, Due)> {
        for who in self.around.net.marks.take() {
            self.reckon(who);
        }
        loop {
            let (due_ms, who) = self.queue.first()?;
            let who = who.clone();
            if self.due(&who).is_some_and(|at| at <= due_ms) {
                return Some((due_ms, who));
            }
            self.reckon(who);
        }
    }

    /// Looks anew when somebody is due.
    fn reckon(&mut self, who: Due) {
        if self.is_stranded(&who) {
            self.stranded.insert(who.clone());
        }
        let due = self.due(&who);
        let due = due.map(|due_ms| due_ms.max(self.around.now_ms));
        self.queue.put(who, due);
    }

    /// Ways may be open that were not.
    pub(crate) fn find_ways(&mut self) {
        for who in mem::take(&mut self.stranded) {
            self.around.net.marks.add(who);
        }
    }

    /// Whether somebody waits for another node to be reached.
    fn is_stranded(&self, who: &Due) -> bool {
        match who {
            Due::Channel(channel) => {
                let (number, _, key) = &**channel;
                self.reach(*number, &key.to).is_err()
            }
            Due::Fetch(fetch) => {
                let (number, principal, id) = &**fetch;
                let node = self.nodes.get(*number);
                let actor = node.and_then(|node| node.actors.get(principal));
                let wanted = actor.and_then(|actor| actor.memory.blobs.fetches.get(id));
                wanted.is_some_and(|wanted| self.reach(*number, &wanted.from).is_err())
            }
            Due::Principal(..) | Due::Parcel(_) | Due::Flight(_) | Due::Asked(_) => false,
        }
    }

    fn due(&self, who: &Due) -> Option<u64> {
        if who.at().is_some_and(|number| self.is_stopped(number)) {
            return None;
        }
        match who {
            Due::Principal(number, principal) => {
                let node = self.nodes.get(*number)?;
                node.actors.get(principal)?.next_due()
            }
            Due::Parcel(number) => {
                let waiting = self.around.net.parcels.get(number)?;
                (!waiting.is_empty()).then_some(self.around.now_ms)
            }
            Due::Channel(channel) => self.channel_due(channel),
            Due::Flight(number) => self.around.net.flights.due_ms(*number),
            Due::Fetch(fetch) => self.fetch_due(fetch),
            Due::Asked(number) => {
                let boot = self.around.net.asked.oldest_boot(*number)?;
                self.nodes.get(*number)?.over_ms(boot)
            }
        }
    }

    /// When a channel has a message to send, or to give up.
    fn channel_due(&self, channel: &ChannelId) -> Option<u64> {
        let (number, principal, key) = channel;
        let actor = self.nodes.get(*number)?.actors.get(principal)?;
        let out = actor.memory.mail.outs.get(key)?;
        if out.halted.is_some() || out.rows.is_empty() {
            return None;
        }
        let ready = self.around.net.ready_ms(channel);
        let ready = ready.filter(|_| self.reach(*number, &key.to).is_ok());
        ready.into_iter().chain(out.next_expiry()).min()
    }
}
