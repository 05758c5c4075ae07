//! HTTP and connections of a node: what is beyond it, and what its principals hear of that.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, mem,
    net::SocketAddr,
    rc::Rc,
};

use wormholes_plugin::{
    Closing, Connect, Error, ErrorCode, Fetch, HttpRequest, HttpResponse, Plugin, Principal, Result,
};

use super::{Around, Node};
use crate::{
    event::{Event, SocketNews},
    http::{MAX_BODY_BYTES, covers},
    memory::Wire,
    net::Order,
    transaction::{ROOM_BYTES, taken_room},
};

/// What one event brings of a connection.
const MAX_READ_BYTES: usize = 16 << 10;

/// Whoever answers requests by HTTP.
type Server = Rc<dyn Fn(&Fetch) -> Result<HttpResponse>>;

/// What is beyond the nodes: the test.
#[derive(Default)]
pub(crate) struct Web {
    pub(crate) server: Option<Server>,
    pub(crate) lines: BTreeMap<u64, Line>,
    /// Datagrams that left: from which port, and where to.
    pub(crate) cast: Vec<(u16, SocketAddr, Vec<u8>)>,
}

/// The test's end of a connection.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) of: Principal,
    /// `None`: somebody connected to the plugin.
    pub(crate) wanted: Option<Connect>,
    pub(crate) is_open: bool,
    /// What the plugin wrote, and nobody took.
    pub(crate) written: Vec<u8>,
    /// The room that it takes.
    taken: u32,
    /// What waits for credit.
    pub(crate) waiting: VecDeque<u8>,
    credit: usize,
    /// The test is done with it, when all that waits was told.
    pub(crate) ends: bool,
    /// So is the plugin.
    pub(crate) is_closed: bool,
}

impl Line {
    fn new(of: &Principal, wanted: Option<Connect>) -> Self {
        Self {
            of: of.clone(),
            is_open: wanted.is_none(),
            wanted,
            written: Vec::new(),
            taken: 0,
            waiting: VecDeque::new(),
            credit: 0,
            ends: false,
            is_closed: false,
        }
    }
}

impl Web {
    /// The node ended: nothing that was open is.
    pub(crate) fn forget(&mut self) {
        self.lines.clear();
    }

    pub(crate) fn cut(&mut self, id: u64) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.is_closed = true;
        }
    }
}

impl<P: Plugin> Node<P> {
    /// Hands a request by HTTP over; gives its id.
    pub(crate) fn ask_http(
        &mut self,
        around: &mut Around,
        principal: &Principal,
        request: HttpRequest,
    ) -> Result<u64> {
        self.check_http(principal, &request)?;
        self.actor(principal);
        self.drain(principal, around);
        let id = self.next_request;
        let patience = self.manifest.http.patience_ms();
        let limits = self.manifest.limits.clone();
        let open = self.actors.values().map(|actor| actor.memory.http.len());
        let is_full = open.sum::<usize>() >= limits.http;
        let actor = self.actor(principal);
        let unavailable = |why: &str| Err(Error::new(ErrorCode::Unavailable, why));
        if let Some(why) = &actor.parked {
            return unavailable(&format!(
                "the plugin is parked: {why}; see `wormholes plugin list`"
            ));
        }
        if is_full {
            return unavailable("too many requests come at once; ask again later");
        }
        let operations = actor.memory.operations.open.len();
        if actor.memory.requests.len().saturating_sub(operations) >= limits.requests {
            let many = "the plugin has too many requests without an answer; ask again later";
            return unavailable(many);
        }
        let deadline_ms = around.now_ms.saturating_add(patience);
        actor.memory.requests.insert(id);
        actor.memory.http.insert(id);
        actor.deadlines.insert(id, Some(deadline_ms));
        let event = Event::Http {
            id,
            request,
            deadline_ms,
        };
        actor.waiting.push_back((event, 0));
        self.next_request += 1;
        self.drain(principal, around);
        Ok(id)
    }

    /// Whether a request would get here.
    pub(crate) fn check_http(&self, principal: &Principal, request: &HttpRequest) -> Result<()> {
        let paths = &self.manifest.capabilities.http;
        let is_served = covers(paths, &self.manifest.plugin.name, &request.path);
        if !is_served || self.check_principal(principal).is_err() {
            return Err(Error::not_found("nothing is here"));
        }
        let most = self.manifest.http.body_bytes();
        if request.body.len() > most.min(MAX_BODY_BYTES) {
            return Err(Error::new(ErrorCode::Quota, "the body is too long"));
        }
        Ok(())
    }

    /// Whether the manifest says that it is a query.
    pub(crate) fn is_http_query(&self, request: &HttpRequest) -> bool {
        let queries = &self.manifest.http.queries;
        let reads = ["GET", "HEAD"].contains(&request.method.as_str());
        reads && covers(queries, &self.manifest.plugin.name, &request.path)
    }

    /// What whoever is beyond the nodes says to a request.
    pub(crate) fn fetched(&self, wanted: &Fetch) -> Result<HttpResponse> {
        match &self.web.server {
            Some(server) => server(wanted),
            None => Err(Error::new(ErrorCode::Unavailable, "nobody answers there")),
        }
    }

    /// Somebody connects to a port of the plugin; `None`: it does not listen there, or has too many
    /// connections.
    pub(crate) fn visit(&mut self, port: u16, remote: &str) -> Option<u64> {
        let doors = [format!("tcp-listen:{port}"), format!("tls-listen:{port}")];
        let granted = &self.manifest.capabilities.sockets;
        let is_granted = doors.iter().any(|door| granted.contains(door));
        let most = self.manifest.limits.sockets;
        let of = Principal::Node;
        let actor = self.actor(&of);
        if !is_granted || actor.parked.is_some() || actor.memory.sockets.len() >= most {
            return None;
        }
        actor.memory.mail.last_message += 1;
        let id = actor.memory.mail.last_message;
        let wire = Wire {
            credit: 0,
            room: ROOM_BYTES,
            wants_room: false,
        };
        actor.memory.sockets.insert(id, wire);
        actor.hear_socket(id, SocketNews::Opened(port, remote.to_owned()));
        self.web.lines.insert(id, Line::new(&of, None));
        Some(id)
    }

    /// A principal wants something of a connection.
    pub(crate) fn order(&mut self, of: &Principal, id: u64, order: Order) {
        if let Order::Connect(wanted) = order {
            self.web.lines.insert(id, Line::new(of, Some(wanted)));
            return;
        }
        let Some(line) = self.web.lines.get_mut(&id) else {
            return;
        };
        match order {
            Order::Connect(_) => {}
            Order::Credit(bytes) => line.credit += bytes as usize,
            Order::Write(data) => {
                line.taken = line.taken.saturating_add(taken_room(&data));
                line.written.extend(data);
            }
            Order::Close => line.is_closed = true,
        }
        self.flow(id);
    }

    /// A connection breaks.
    pub(crate) fn break_line(&mut self, of: &Principal, id: u64) {
        self.web.cut(id);
        let broken = SocketNews::Closed(Closing::Broken);
        self.actor(of).hear_socket(id, broken);
    }

    /// Tells of what came, as far as there is credit.
    pub(crate) fn flow(&mut self, id: u64) {
        let Some(line) = self.web.lines.get_mut(&id) else {
            return;
        };
        if !line.is_open || line.is_closed {
            return;
        }
        let mut news = Vec::new();
        while !line.waiting.is_empty() && line.credit > 0 {
            let bytes = line.waiting.len().min(line.credit).min(MAX_READ_BYTES);
            line.credit -= bytes;
            news.push(SocketNews::Data(line.waiting.drain(..bytes).collect()));
        }
        if line.ends && line.waiting.is_empty() {
            line.is_closed = true;
            news.push(SocketNews::Closed(Closing::Ended));
        }
        let of = line.of.clone();
        let actor = self.actor(&of);
        for news in news {
            actor.hear_socket(id, news);
        }
    }

    /// Takes what a plugin wrote: there is room for it again.
    pub(crate) fn take_written(&mut self, id: u64) -> Vec<u8> {
        let Some(line) = self.web.lines.get_mut(&id) else {
            return Vec::new();
        };
        let (of, written) = (line.of.clone(), mem::take(&mut line.written));
        let bytes = mem::take(&mut line.taken);
        let actor = self.actor(&of);
        if let Some(wire) = actor.memory.sockets.get_mut(&id) {
            wire.room = wire.room.saturating_add(bytes).min(ROOM_BYTES);
            if wire.wants_room && wire.room >= ROOM_BYTES / 2 {
                wire.wants_room = false;
                let room = wire.room;
                actor.hear_socket(id, SocketNews::Writable(room));
            }
        }
        written
    }
}

impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Web")
            .field("lines", &self.lines)
            .finish_non_exhaustive()
    }
}
