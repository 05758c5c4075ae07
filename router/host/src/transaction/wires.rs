//! Connections and HTTP requests that an event asks for.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use wormholes_proto::{Host, Target};

use super::{Effects, Ground, Limit, ROW_BYTES, Transaction, invalid, messages::is_text};
use crate::{
    event::{ErrorCode, Principal, Refusal},
    http::{HttpHeader, HttpHeaders, check_body, check_headers},
    memory::{Memory, Socket},
    message::Way,
    network::{Datagram, FetchCall, SocketCall, SocketKind, WireWay},
    rows::Space,
    wires::{WireOrder, taken_room},
};

/// What may wait for the other end of a connection.
pub(crate) const ROOM_BYTES: u32 = 64 << 10;
/// What may wait for the plugin, of one connection.
const MAX_CREDIT_BYTES: u32 = 1 << 20;
/// What fits into one packet on every way that people have.
const MAX_DATAGRAM_BYTES: usize = 1400;
/// The longest URL.
const MAX_URL_BYTES: usize = 4 << 10;
/// The longest method: twice what the longest one that anybody has registered has.
const MAX_METHOD_BYTES: usize = 32;
/// What a row says of a question that was made by HTTP.
const BY_HTTP: u8 = 1;

/// What an event asked for.
#[derive(Debug, Default)]
pub(super) struct Wires {
    orders: Vec<WireOrder>,
    /// Connections as they are after it; `None`: closed.
    sockets: BTreeMap<u64, Option<Socket>>,
}

/// A request, as a plugin says it.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) method: String,
    pub(crate) url: String,
    pub(crate) headers: HttpHeaders,
    pub(crate) body: Vec<u8>,
}

impl Transaction {
    /// A connection; its id.
    pub(crate) fn connect(
        &mut self,
        kind: SocketKind,
        (host, port): (&str, u16),
        way: &Way,
    ) -> Result<u64, Refusal> {
        self.check_writable()?;
        let granted = format!("{}:{port}", kind.as_str());
        self.check_granted(&granted)?;
        let way = self.wire_way(way)?;
        let host = Host::parse(host).map_err(|error| invalid(&error.to_string()))?;
        self.check_sockets()?;
        self.charge(host.to_string().len() + way_bytes(&way) + ROW_BYTES)?;
        let id = self.next_message();
        let socket = Socket::new(granted.into());
        self.wires.sockets.insert(id, Some(socket));
        let target = Target::new(host, port);
        let call = SocketCall { way, kind, target };
        self.wires.orders.push(WireOrder::Connect { id, call });
        Ok(id)
    }

    /// So many more bytes may come.
    pub(crate) fn socket_credit(&mut self, id: u64, bytes: u32) -> Result<(), Refusal> {
        self.check_writable()?;
        self.charge(ROW_BYTES)?;
        let socket = self.socket_mut(id)?;
        let credit = socket.credit.saturating_add(bytes);
        if credit > MAX_CREDIT_BYTES {
            return Err(invalid("1 MiB of credit may be open"));
        }
        socket.credit = credit;
        self.wires.orders.push(WireOrder::Credit { id, bytes });
        Ok(())
    }

    /// Something is to be sent.
    pub(crate) fn socket_write(&mut self, id: u64, data: Vec<u8>) -> Result<(), Refusal> {
        self.check_writable()?;
        let socket = self.socket_mut(id)?;
        if data.is_empty() {
            return Ok(());
        }
        let Some(room) = socket.room.checked_sub(taken_room(&data)) else {
            socket.wants_room = true;
            // It wants to hear of room even if this event is undone.
            if let Some(before) = self.memory.sockets.get_mut(&id) {
                before.wants_room = true;
            }
            return Err(self.hit(Limit::Room));
        };
        self.charge(data.len() + ROW_BYTES)?;
        self.socket_mut(id)?.room = room;
        let data = Bytes::from(data);
        self.wires.orders.push(WireOrder::Write { id, data });
        Ok(())
    }

    /// How much there is room for.
    pub(crate) fn socket_room(&self, id: u64) -> u32 {
        self.socket(id).map_or(0, |socket| socket.room)
    }

    /// It is closed, when all that was written is sent.
    pub(crate) fn socket_close(&mut self, id: u64) -> Result<(), Refusal> {
        self.check_writable()?;
        if self.socket(id).is_some() {
            self.charge(ROW_BYTES)?;
            self.wires.sockets.insert(id, None);
            self.wires.orders.push(WireOrder::Close { id });
        }
        Ok(())
    }

    /// A datagram.
    pub(crate) fn send_to(&mut self, port: u16, to: &str, data: Vec<u8>) -> Result<(), Refusal> {
        self.check_writable()?;
        if self.stamp.principal != Principal::Node {
            let node = "ports are the node's: its principal sends from them";
            return Err(self.denied(node));
        }
        self.check_granted(&format!("udp:{port}"))?;
        let peer = to.parse().ok().filter(|peer: &SocketAddr| peer.port() > 0);
        let peer = peer.ok_or_else(|| invalid("a datagram goes to an address and a port"))?;
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        if data.len() > MAX_DATAGRAM_BYTES {
            return Err(invalid("a datagram has at most 1,400 bytes"));
        }
        if self.wires.datagrams() >= self.ground.limits.messages as usize {
            return Err(self.hit(Limit::Messages));
        }
        self.charge(data.len() + ROW_BYTES)?;
        self.wires.orders.push(WireOrder::Datagram(Datagram {
            plugin: Arc::clone(&self.ground.plugin),
            port,
            peer,
            data: Bytes::from(data),
        }));
        Ok(())
    }

    fn check_granted(&mut self, socket: &str) -> Result<(), Refusal> {
        if self.ground.granted.sockets.contains(socket) {
            return Ok(());
        }
        let rule = format!(
            "`{socket}` is not among the `sockets` that the manifest asks for and config.toml grants"
        );
        Err(self.denied(rule))
    }

    /// A request; its id.
    pub(crate) fn fetch(
        &mut self,
        wanted: Wanted,
        way: &Way,
        deadline_ms: u64,
    ) -> Result<u64, Refusal> {
        self.check_writable()?;
        let Wanted {
            method,
            url,
            headers,
            body,
        } = wanted;
        let way = self.wire_way(way)?;
        let is_method = method.len() <= MAX_METHOD_BYTES
            && http::Method::from_bytes(method.as_bytes()).is_ok()
            && method != "CONNECT";
        if !is_method {
            let rule = "the method is none of HTTP, or has more than 32 bytes";
            return Err(invalid(rule));
        }
        let is_known = url.starts_with("http://") || url.starts_with("https://");
        if !is_known || url.len() > MAX_URL_BYTES {
            return Err(invalid(
                "a URL begins with http:// or https://, and has at most 4 KiB",
            ));
        }
        check_headers(&headers)?;
        check_body(body.len())?;
        self.check_questions()?;
        let waiting = self.memory.fetches.values().sum::<u64>() + self.wires.fetched_bytes();
        if waiting + body.len() as u64 > self.ground.limits.outbox_bytes() {
            return Err(self.hit(Limit::Outbox));
        }
        let about = method.len() + url.len() + header_bytes(&headers) + way_bytes(&way);
        self.charge(body.len() + about + ROW_BYTES)?;
        let id = self.next_message();
        let call = Box::new(FetchCall {
            way,
            method,
            url,
            headers,
            body: Bytes::from(body),
        });
        self.wires.orders.push(WireOrder::Fetch {
            id,
            call,
            deadline_ms,
        });
        Ok(id)
    }

    fn wire_way(&self, way: &Way) -> Result<WireWay, Refusal> {
        let Way {
            role,
            label,
            isolation,
        } = way;
        if [role, label, isolation].iter().any(|text| !is_text(text)) {
            return Err(invalid(
                "role, label and isolation have at most 128 bytes and no control characters",
            ));
        }
        Ok(WireWay {
            plugin: self.ground.plugin.to_string(),
            role: role.to_string(),
            label: label.to_string(),
            // Of different principals, no two flows share anything.
            isolation: format!("{} {isolation}", self.stamp.principal),
        })
    }

    /// Whether one more may be open. What was written to those that the principal closed is still sent, for
    /// a while: they have as many places again.
    fn check_sockets(&mut self) -> Result<(), Refusal> {
        let own = &self.wires.sockets;
        let before = self.memory.sockets.keys();
        let before = before.filter(|id| !own.contains_key(id)).count();
        let open = before + own.values().flatten().count();
        let is_visitor = |id: &u64| {
            let known = self.memory.sockets.get(id);
            known.is_some_and(|socket| socket.is_visitor())
        };
        let closed = own
            .iter()
            .filter(|(id, own)| own.is_none() && !is_visitor(id));
        let closing = closed.count() + self.ground.closing;
        let most = self.ground.limits.sockets as usize;
        if open >= most || closing >= most {
            return Err(self.hit(Limit::Sockets));
        }
        Ok(())
    }

    fn socket(&self, id: u64) -> Option<&Socket> {
        match self.wires.sockets.get(&id) {
            Some(own) => own.as_ref(),
            None => self.memory.sockets.get(&id),
        }
    }

    fn socket_mut(&mut self, id: u64) -> Result<&mut Socket, Refusal> {
        let closed = || Refusal::new(ErrorCode::NotFound, "the socket is closed");
        let before = self.socket(id).cloned().ok_or_else(closed)?;
        let own = self.wires.sockets.entry(id).or_insert(Some(before));
        own.as_mut().ok_or_else(closed)
    }
}

impl Wires {
    /// Requests that it made.
    pub(super) fn fetches(&self) -> usize {
        let fetches = |order: &&WireOrder| matches!(order, WireOrder::Fetch { .. });
        self.orders.iter().filter(fetches).count()
    }

    /// What their bodies have.
    fn fetched_bytes(&self) -> u64 {
        self.orders.iter().map(WireOrder::body_bytes).sum()
    }

    /// What all of it takes in memory.
    pub(super) fn held(&self) -> usize {
        let orders = self.orders.iter().map(|order| match order {
            WireOrder::Write { data, .. } => data.len(),
            WireOrder::Datagram(datagram) => datagram.data.len(),
            WireOrder::Fetch { call, .. } => {
                let about = call.method.len() + call.url.len() + header_bytes(&call.headers);
                about + call.body.len() + way_bytes(&call.way)
            }
            WireOrder::Connect { call, .. } => way_bytes(&call.way),
            WireOrder::Credit { .. } | WireOrder::Close { .. } => 0,
        });
        let orders = orders.map(|bytes| bytes + ROW_BYTES);
        orders.sum::<usize>() + self.sockets.len() * ROW_BYTES
    }

    /// Datagrams that it sends.
    fn datagrams(&self) -> usize {
        let datagrams = |order: &&WireOrder| matches!(order, WireOrder::Datagram(_));
        self.orders.iter().filter(datagrams).count()
    }

    /// Makes what was asked for real in memory, and in what becomes durable.
    pub(super) fn take_effect(
        self,
        ground: &Ground,
        is_kept: bool,
        memory: &mut Memory,
        effects: &mut Effects,
    ) {
        let home = ground.home;
        for (id, socket) in self.sockets {
            match socket {
                Some(socket) => drop(memory.sockets.insert(id, socket)),
                None => {
                    memory.sockets.remove(&id);
                    if memory.kept_sockets.remove(&id) {
                        let row = home.key(Space::Socket, &id.to_be_bytes());
                        effects.writes.put(row, None);
                    }
                }
            }
        }
        let is_durable = is_kept || !effects.writes.is_empty();
        for order in &self.orders {
            if let WireOrder::Fetch {
                id, deadline_ms, ..
            } = order
            {
                memory.ask(*id, *deadline_ms);
                memory.fetches.insert(*id, order.body_bytes());
                // What nothing durable rests on may be forgotten with it.
                if is_durable {
                    let row = home.key(Space::Question, &id.to_be_bytes());
                    effects.writes.put(row, Some(vec![BY_HTTP]));
                    memory.kept_questions.insert(*id);
                }
            }
        }
        if is_durable {
            let (sockets, kept) = (&memory.sockets, &mut memory.kept_sockets);
            for id in sockets.keys().filter(|id| !kept.contains(id)) {
                let row = home.key(Space::Socket, &id.to_be_bytes());
                effects.writes.put(row, Some(Vec::new()));
            }
            kept.extend(sockets.keys());
        }
        effects.wires = self.orders;
    }
}

fn way_bytes(way: &WireWay) -> usize {
    way.plugin.len() + way.role.len() + way.label.len() + way.isolation.len()
}

fn header_bytes(headers: &[HttpHeader]) -> usize {
    let bytes = headers.iter().map(|(name, value)| name.len() + value.len());
    bytes.sum()
}
