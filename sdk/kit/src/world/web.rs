//! What a test is to the plugins of a world beside its nodes: browsers, servers, and the other ends of
//! connections.

use std::{net::SocketAddr, rc::Rc};

use wormholes_plugin::{
    Closing, Connect, Error, ErrorCode, Fetch, HttpRequest, HttpResponse, Plugin, Principal,
    Result, Socket,
};

use super::{At, Ticket};
use crate::{
    event::{Event, SocketNews},
    http::{check_response, decode},
};

impl<P: Plugin> At<'_, P> {
    /// Makes a request by HTTP to a principal, and waits for the answer. What a node's gateway refuses
    /// is an error, and so is what the plugin refuses: a node would answer 404, 503 and the like.
    ///
    /// # Errors
    /// What the plugin refused, or why it could not be asked.
    pub fn http(&mut self, of: &Principal, request: HttpRequest) -> Result<HttpResponse> {
        let (node, around) = self.both();
        if node.is_http_query(&request) {
            node.check_http(of, &request)?;
            return node.query(of, around, |plugin, cx| {
                let response = plugin.http_query(cx, &request)?;
                check_response(&response).map(|()| response)
            });
        }
        let ticket = self.ask_http(of, request)?;
        loop {
            if let Some(answer) = self.http_answer(&ticket) {
                return answer;
            }
            // Its deadline comes in the end.
            if !self.world.step() {
                return Err(Error::failed("nobody answers: a fault of the kit"));
            }
        }
    }

    /// Hands a request by HTTP over, and waits for nothing. [`Self::leave`] is a client that leaves.
    ///
    /// # Errors
    /// No such path is served, the principal is parked, or has too many open requests.
    pub fn ask_http(&mut self, of: &Principal, request: HttpRequest) -> Result<Ticket> {
        let (node, around) = self.both();
        let id = node.ask_http(around, of, request)?;
        let of = of.clone();
        Ok(Ticket { of, id })
    }

    /// Takes the answer to a request by HTTP, when it is there.
    pub fn http_answer(&mut self, ticket: &Ticket) -> Option<Result<HttpResponse>> {
        let answer = self.both().0.answers.remove(&ticket.id)?;
        Some(answer.and_then(|answer| decode(&answer)))
    }

    /// Answers the requests that plugins of this node make by HTTP, from now on. Until then nobody does.
    pub fn serve(&mut self, server: impl Fn(&Fetch) -> Result<HttpResponse> + 'static) {
        self.both().0.web.server = Some(Rc::new(server));
    }

    /// The connections to others that plugins of this node have open, or want, and where they lead.
    pub fn sockets(&mut self) -> Vec<(Socket, Connect)> {
        self.settle();
        let lines = self.both().0.web.lines.iter();
        let open = lines.filter(|(_, line)| !line.is_closed);
        let open = open.filter_map(|(id, line)| Some((Socket(*id), line.wanted.clone()?)));
        open.collect()
    }

    /// Connects to a port that the plugin listens at; `None`: it does not, has too many connections, or
    /// does not want this one.
    pub fn visit(&mut self, port: u16, remote: &str) -> Option<Socket> {
        self.settle();
        let (node, around) = self.both();
        node.drain(&Principal::Node, around);
        let id = node.visit(port, remote)?;
        node.drain(&Principal::Node, around);
        self.settle();
        let line = self.both().0.web.lines.get(&id)?;
        (!line.is_closed).then_some(Socket(id))
    }

    /// Lets a connection stand that a plugin wants.
    pub fn accept(&mut self, socket: Socket) {
        self.tell_socket(socket, |line| {
            line.is_open = true;
            Some(SocketNews::Connected)
        });
    }

    /// Lets none stand.
    pub fn refuse(&mut self, socket: Socket, why: &str) {
        let why = Error::new(ErrorCode::Unavailable, why);
        self.tell_socket(socket, |line| {
            line.is_closed = true;
            Some(SocketNews::Closed(Closing::Failed(why)))
        });
    }

    /// Sends something to a plugin; it is told of as much as it gives credit for.
    pub fn send(&mut self, socket: Socket, data: &[u8]) {
        self.tell_socket(socket, |line| {
            line.waiting.extend(data);
            None
        });
    }

    /// Is done with a connection, when all that was sent is told.
    pub fn hang_up(&mut self, socket: Socket) {
        self.tell_socket(socket, |line| {
            line.ends = true;
            None
        });
    }

    /// Breaks a connection: what was sent and not told is lost.
    pub fn cut_socket(&mut self, socket: Socket) {
        self.tell_socket(socket, |line| {
            line.is_closed = true;
            Some(SocketNews::Closed(Closing::Broken))
        });
    }

    /// Takes what a plugin wrote: there is room for as much again. Of a connection that it closed, too.
    pub fn written(&mut self, socket: Socket) -> Vec<u8> {
        self.settle();
        let (node, around) = self.both();
        let written = node.take_written(socket.0);
        let of = node.web.lines.get(&socket.0).map(|line| line.of.clone());
        if let Some(of) = of {
            node.drain(&of, around);
        }
        written
    }

    /// Sends a datagram to a port of the plugin's own; false: it has none of that number.
    pub fn datagram(&mut self, port: u16, from: SocketAddr, data: &[u8]) -> bool {
        let (node, around) = self.both();
        let granted = &node.manifest.capabilities.sockets;
        let is_granted = granted.contains(&format!("udp:{port}"));
        if is_granted {
            let data = data.to_vec();
            let event = Event::Datagram { port, from, data };
            node.deliver(&Principal::Node, event, around);
        }
        is_granted
    }

    /// Takes the datagrams that plugins of this node sent: from which port, and where to.
    pub fn datagrams(&mut self) -> Vec<(u16, SocketAddr, Vec<u8>)> {
        self.settle();
        std::mem::take(&mut self.both().0.web.cast)
    }

    fn tell_socket(
        &mut self,
        socket: Socket,
        tell: impl FnOnce(&mut crate::node::Line) -> Option<SocketNews>,
    ) {
        self.settle();
        let (node, around) = self.both();
        let Some(line) = node.web.lines.get_mut(&socket.0) else {
            return;
        };
        if line.is_closed {
            return;
        }
        let (of, news) = (line.of.clone(), tell(line));
        if let Some(news) = news {
            node.actor(&of).hear_socket(socket.0, news);
        }
        node.flow(socket.0);
        node.drain(&of, around);
        self.settle();
    }

    /// What plugins of this node asked for is done.
    fn settle(&mut self) {
        while self.world.send_next(self.number) {}
    }
}
