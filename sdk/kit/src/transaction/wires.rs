//! HTTP and connections: the node's checks, limits and words.

use std::net::SocketAddr;

use wormholes_plugin::{Connect, Error, Fetch, HttpResponse, Principal, Result, Way};

use super::{ROW_BYTES, Transaction, quota};
use crate::{
    http::{check_fetch, encode},
    memory::Wire,
    net::{Order, Parcel},
};

/// What may wait for the other end of a connection.
pub(crate) const ROOM_BYTES: u32 = 64 << 10;
/// What a write takes of it at least.
const MIN_WRITE_BYTES: u32 = 64;
const MAX_CREDIT_BYTES: u32 = 1 << 20;
const MAX_NAME_BYTES: usize = 128;
const MAX_DATAGRAM_BYTES: usize = 1400;

/// What a write takes of the room, until it is sent.
pub(crate) fn taken_room(data: &[u8]) -> u32 {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    length.max(MIN_WRITE_BYTES)
}

impl Transaction {
    pub(super) fn respond(&mut self, request: u64, response: &HttpResponse) -> Result<()> {
        let answer = encode(response)?;
        self.check_writable()?;
        let waits = self.memory.requests.contains(&request) && self.memory.http.contains(&request);
        if !waits || self.answers.contains_key(&request) {
            let nobody = "nobody waits for an answer to this request";
            return Err(Error::not_found(nobody));
        }
        self.charge(response.body.len() + ROW_BYTES)?;
        self.answers.insert(request, Ok(answer));
        Ok(())
    }

    pub(super) fn fetch(&mut self, wanted: Fetch, deadline_ms: u64) -> Result<u64> {
        self.check_writable()?;
        check_way(&wanted.way)?;
        check_fetch(&wanted)?;
        self.check_questions()?;
        let headers = wanted.headers.iter();
        let headers = headers.map(|(name, value)| name.len() + value.len());
        let about = wanted.method.len() + wanted.url.len() + headers.sum::<usize>();
        self.charge(wanted.body.len() + about + ROW_BYTES)?;
        let id = self.next_message();
        self.memory.mail.questions.insert(id, deadline_ms, ());
        self.memory.fetches.insert(id);
        let of = self.ground.principal.clone();
        self.parcels.push(Parcel::Fetch { of, id, wanted });
        Ok(id)
    }

    pub(super) fn connect(&mut self, wanted: Connect) -> Result<u64> {
        self.check_writable()?;
        let kind = if wanted.tls { "tls" } else { "tcp" };
        let port = format!("{kind}:{}", wanted.port);
        self.check_granted(&port)?;
        check_way(&wanted.way)?;
        // What was written to those that are closed is still sent: they have as many places again.
        let is_closed = |parcel: &&Parcel| {
            let closes = |order: &Order| matches!(order, Order::Close);
            matches!(parcel, Parcel::Socket { order, .. } if closes(order))
        };
        let closed = self.parcels.iter().filter(is_closed).count();
        let most = self.ground.manifest.limits.sockets;
        if self.memory.sockets.len() >= most || closed >= most {
            let many = "too many sockets; raise limits.sockets or close some";
            return Err(quota(many));
        }
        self.charge(wanted.host.len() + ROW_BYTES)?;
        let id = self.next_message();
        let wire = Wire {
            credit: 0,
            room: ROOM_BYTES,
            wants_room: false,
        };
        self.memory.sockets.insert(id, wire);
        self.order(id, Order::Connect(wanted));
        Ok(id)
    }

    pub(super) fn socket_credit(&mut self, id: u64, bytes: u32) -> Result<()> {
        self.check_writable()?;
        self.charge(ROW_BYTES)?;
        let wire = self.wire(id)?;
        let credit = wire.credit.saturating_add(bytes);
        if credit > MAX_CREDIT_BYTES {
            return Err(Error::invalid("1 MiB of credit may be open"));
        }
        wire.credit = credit;
        self.order(id, Order::Credit(bytes));
        Ok(())
    }

    pub(super) fn socket_write(&mut self, id: u64, data: &[u8]) -> Result<()> {
        self.check_writable()?;
        let wire = self.wire(id)?;
        if data.is_empty() {
            return Ok(());
        }
        let Some(room) = wire.room.checked_sub(taken_room(data)) else {
            wire.wants_room = true;
            self.wants_room.insert(id);
            let full = "the other end does not take so much at once; `writable` tells when there is \
                        room";
            return Err(quota(full));
        };
        self.charge(data.len() + ROW_BYTES)?;
        self.wire(id)?.room = room;
        self.order(id, Order::Write(data.to_vec()));
        Ok(())
    }

    pub(super) fn socket_room(&self, id: u64) -> u32 {
        self.memory.sockets.get(&id).map_or(0, |wire| wire.room)
    }

    pub(super) fn socket_close(&mut self, id: u64) -> Result<()> {
        self.check_writable()?;
        if self.memory.sockets.contains_key(&id) {
            self.charge(ROW_BYTES)?;
            self.memory.sockets.remove(&id);
            self.writes |= self.memory.kept_sockets.remove(&id);
            self.order(id, Order::Close);
        }
        Ok(())
    }

    pub(super) fn send_to(&mut self, port: u16, to: SocketAddr, data: &[u8]) -> Result<()> {
        self.check_writable()?;
        if self.ground.principal != Principal::Node {
            let node = "ports are the node's: its principal sends from them";
            return Err(Error::denied(node));
        }
        self.check_granted(&format!("udp:{port}"))?;
        if to.port() == 0 {
            return Err(Error::invalid("a datagram goes to an address and a port"));
        }
        if data.len() > MAX_DATAGRAM_BYTES {
            return Err(Error::invalid("a datagram has at most 1,400 bytes"));
        }
        let datagrams = self.parcels.iter();
        let datagrams = datagrams.filter(|it| matches!(it, Parcel::Datagram { .. }));
        if datagrams.count() >= self.ground.manifest.limits.messages {
            let much = "one event sends too much; raise limits.messages or send in parts";
            return Err(quota(much));
        }
        self.charge(data.len() + ROW_BYTES)?;
        let data = data.to_vec();
        self.parcels.push(Parcel::Datagram { port, to, data });
        Ok(())
    }

    fn check_granted(&self, socket: &str) -> Result<()> {
        if self.ground.manifest.capabilities.sockets.contains(socket) {
            return Ok(());
        }
        Err(Error::denied(format!(
            "`{socket}` is not among the `sockets` that the manifest asks for and config.toml grants"
        )))
    }

    fn wire(&mut self, id: u64) -> Result<&mut Wire> {
        let wire = self.memory.sockets.get_mut(&id);
        wire.ok_or_else(|| Error::not_found("the socket is closed"))
    }

    fn order(&mut self, id: u64, order: Order) {
        let of = self.ground.principal.clone();
        self.parcels.push(Parcel::Socket { of, id, order });
    }

    /// Connections that something durable may rest on are not forgotten with the node.
    pub(crate) fn keep_wires(&mut self) {
        if self.writes {
            let fetched = self.parcels.iter().filter_map(|parcel| match parcel {
                Parcel::Fetch { id, .. } => Some(*id),
                Parcel::Letter { .. }
                | Parcel::Handled { .. }
                | Parcel::Answer { .. }
                | Parcel::Socket { .. }
                | Parcel::Datagram { .. } => None,
            });
            self.memory.mail.kept_questions.extend(fetched);
            let sockets = self.memory.sockets.keys().copied();
            self.memory.kept_sockets.extend(sockets);
        }
    }
}

fn check_way(way: &Way) -> Result<()> {
    let is_text =
        |text: &String| text.len() <= MAX_NAME_BYTES && !text.chars().any(char::is_control);
    if ![&way.role, &way.label, &way.isolation]
        .into_iter()
        .all(is_text)
    {
        let rule = "role, label and isolation have at most 128 bytes and no control characters";
        return Err(Error::invalid(rule));
    }
    Ok(())
}
