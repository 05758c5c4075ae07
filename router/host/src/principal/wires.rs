//! What becomes of a principal's connections, and of the HTTP requests that it made.

use std::{mem, sync::Arc};

use super::Actor;
use crate::{
    edition::Edition,
    event::{ErrorCode, Event, Refusal},
    memory::Socket,
    transaction::{Limit, ROOM_BYTES},
    wires::{Closing, Ready, SocketNews, Visitor, WireOrder},
};

impl Actor {
    /// What an event asked for, to be carried out when it is durable.
    pub(super) fn ready(&mut self, orders: Vec<WireOrder>) -> Ready {
        let network = self.edition.plugin().around.network.clone();
        let fetches = Arc::clone(&self.loaded.fetches);
        self.keep_rates(orders.iter().filter_map(WireOrder::leaving_bytes));
        self.wires
            .prepare(orders, self.inbox.reports(), network, fetches)
    }

    /// The answer to a request, if nothing was told of it yet.
    pub(super) async fn take_fetched(&mut self, id: u64) {
        // The next request has its turn when this one is handled.
        let Some((answer, _turn)) = self.wires.fetched(id) else {
            return;
        };
        if self.memory.answered(id) {
            self.memory.fetches.remove(&id);
            self.handle(Event::Fetched { id, answer }, 0).await;
        }
    }

    /// Nothing more comes of a request.
    fn end_fetch(&mut self, id: u64, why: Refusal) {
        drop(self.wires.fetched(id));
        if self.memory.answered(id) {
            self.memory.fetches.remove(&id);
            let answer = Err(why);
            self.first.push_back((Event::Fetched { id, answer }, 0));
        }
    }

    /// No answer came to a question in time.
    pub(super) fn take_late(&mut self, id: u64) {
        match self.memory.fetches.contains_key(&id) {
            true => self.end_fetch(id, Refusal::late()),
            false => self.take_answer(id, Err(Refusal::late())),
        }
    }

    /// Something became of a connection, if the principal still has it.
    pub(super) async fn hear_socket(&mut self, id: u64, news: SocketNews) {
        let Some(socket) = self.memory.sockets.get_mut(&id) else {
            return;
        };
        let news = match news {
            SocketNews::Sent(bytes) => {
                socket.room = socket.room.saturating_add(bytes).min(ROOM_BYTES);
                if !socket.wants_room || socket.room < ROOM_BYTES / 2 {
                    return;
                }
                socket.wants_room = false;
                SocketNews::Writable(socket.room)
            }
            SocketNews::Data(data) => {
                let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
                socket.credit = socket.credit.saturating_sub(bytes);
                SocketNews::Data(data)
            }
            SocketNews::Closed(why) => {
                self.forget_socket(id);
                SocketNews::Closed(why)
            }
            news
            @ (SocketNews::Connected | SocketNews::Opened { .. } | SocketNews::Writable(_)) => news,
        };
        self.handle(Event::Socket { id, news }, 0).await;
    }

    /// Somebody connected to a port of the plugin.
    pub(super) async fn receive(&mut self, visitor: Visitor) {
        let most = self.edition.manifest.limits.sockets as usize;
        if self.memory.sockets.len() >= most {
            return self.loaded.figures.hits(&[Limit::Sockets]);
        }
        let Visitor {
            kind,
            port,
            remote,
            pipe,
        } = visitor;
        self.memory.last_message += 1;
        let id = self.memory.last_message;
        let socket = Socket::new(kind.door(port).into());
        self.memory.sockets.insert(id, socket);
        self.wires.take(id, pipe, self.inbox.reports());
        let news = SocketNews::Opened { port, remote };
        self.handle(Event::Socket { id, news }, 0).await;
    }

    /// A handler did not take a part of what came: the rest would make no sense to it.
    pub(super) fn lose_socket(&mut self, id: u64) {
        if self.memory.sockets.contains_key(&id) {
            self.close_socket(id, Closing::Lost);
        }
    }

    /// Connections and requests that another version may not have are ended.
    pub(super) fn keep_wires(&mut self, edition: &Edition) {
        let granted = &edition.plugin().granted.sockets;
        let sockets = self.memory.sockets.iter();
        let revoked = sockets.filter(|(_, socket)| !granted.contains(&*socket.port));
        let revoked: Vec<_> = revoked.map(|(id, _)| *id).collect();
        for id in revoked {
            self.close_socket(id, Closing::Revoked);
        }
        if !edition.plugin().granted.fetch {
            let rule = "`fetch` is not among what config.toml grants any more";
            self.end_fetches(&Refusal::new(ErrorCode::Denied, rule));
        }
    }

    /// No event runs until an operator says so: nothing goes on meanwhile, and the plugin is told when
    /// it does.
    pub(super) fn cut_wires(&mut self) {
        let sockets: Vec<_> = self.memory.sockets.keys().copied().collect();
        for id in sockets {
            self.close_socket(id, Closing::Restarted);
        }
        let stopped = "the plugin was stopped before an answer came";
        self.end_fetches(&Refusal::new(ErrorCode::Unavailable, stopped));
    }

    fn end_fetches(&mut self, why: &Refusal) {
        let fetches: Vec<_> = self.memory.fetches.keys().copied().collect();
        for id in fetches {
            self.end_fetch(id, why.clone());
        }
    }

    /// Those that a start ended, or the disk.
    pub(super) fn tell_lost_sockets(&mut self) {
        for id in mem::take(&mut self.memory.lost_sockets) {
            let news = SocketNews::Closed(Closing::Restarted);
            self.first.push_back((Event::Socket { id, news }, 0));
        }
    }

    /// The plugin does not want it, and hears nothing more of it.
    pub(super) fn turn_away(&mut self, id: u64) {
        self.forget_socket(id);
    }

    fn close_socket(&mut self, id: u64, why: Closing) {
        self.forget_socket(id);
        let news = SocketNews::Closed(why);
        self.first.push_back((Event::Socket { id, news }, 0));
    }

    /// Its row goes with the event that tells of its end.
    fn forget_socket(&mut self, id: u64) {
        self.memory.sockets.remove(&id);
        self.wires.cut(id);
    }
}
