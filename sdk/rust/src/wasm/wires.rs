//! HTTP and connections: the imports that ask, and the exports that are asked and told.

use std::net::SocketAddr;

use super::{
    Exports, Held,
    bindings::{
        exports::wormholes::plugin::{on_fetch, on_http, on_http_query, on_socket},
        wormholes::plugin::{fetch, http, http_types, sockets, types},
    },
    told,
};
use crate::{Closing, Connect, Error, Fetch, HttpReply, HttpRequest, HttpResponse, Result, Socket};

type Told<T> = std::result::Result<T, types::Error>;

pub(super) fn respond(request: u64, response: HttpResponse) -> Result<()> {
    http::finish(request, &response.into()).map_err(Error::from)
}

pub(super) fn send(wanted: Fetch, deadline_ms: u64) -> Result<u64> {
    let Fetch {
        method,
        url,
        headers,
        body,
        way,
    } = wanted;
    let request = fetch::Request {
        method,
        url,
        headers,
        body,
    };
    let way = fetch::Way {
        role: way.role,
        label: way.label,
        isolation: way.isolation,
    };
    fetch::send(&request, &way, deadline_ms).map_err(Error::from)
}

pub(super) fn connect(wanted: Connect) -> Result<u64> {
    let kind = match wanted.tls {
        true => sockets::Kind::Tls,
        false => sockets::Kind::Tcp,
    };
    let way = sockets::Way {
        role: wanted.way.role,
        label: wanted.way.label,
        isolation: wanted.way.isolation,
    };
    sockets::connect(kind, &wanted.host, wanted.port, &way).map_err(Error::from)
}

pub(super) fn credit(socket: u64, bytes: u32) -> Result<()> {
    sockets::credit(socket, bytes).map_err(Error::from)
}

pub(super) fn write(socket: u64, data: &[u8]) -> Result<()> {
    sockets::write(socket, data).map_err(Error::from)
}

pub(super) fn room(socket: u64) -> u32 {
    sockets::room(socket)
}

pub(super) fn close(socket: u64) -> Result<()> {
    sockets::close(socket).map_err(Error::from)
}

pub(super) fn send_to(port: u16, to: SocketAddr, data: &[u8]) -> Result<()> {
    sockets::send_to(port, &to.to_string(), data).map_err(Error::from)
}

impl<P: Held> on_http::Guest for Exports<P> {
    fn handle(
        event: types::Event,
        id: u64,
        request: on_http::Request,
        deadline_ms: u64,
    ) -> Told<on_http::Reply> {
        let reply = told(P::with(|plugin| {
            plugin.http(&mut event.into(), id, request.into(), deadline_ms)
        }))?;
        Ok(match reply {
            HttpReply::Done(response) => on_http::Reply::Done(response.into()),
            HttpReply::Later => on_http::Reply::Later,
        })
    }

    fn canceled(event: types::Event, id: u64) -> Told<()> {
        told(P::with(|plugin| {
            plugin.http_canceled(&mut event.into(), id)
        }))
    }
}

impl<P: Held> on_http_query::Guest for Exports<P> {
    fn query(event: types::Event, request: on_http::Request) -> Told<http_types::Response> {
        let request = request.into();
        let response = told(P::with(|plugin| plugin.http_query(&event.into(), &request)))?;
        Ok(response.into())
    }
}

impl<P: Held> on_fetch::Guest for Exports<P> {
    fn fetched(event: types::Event, id: u64, answer: Told<http_types::Response>) -> Told<()> {
        let answer = answer.map(HttpResponse::from).map_err(Error::from);
        told(P::with(|plugin| {
            plugin.fetched(&mut event.into(), id, answer)
        }))
    }
}

impl<P: Held> on_socket::Guest for Exports<P> {
    fn connected(event: types::Event, id: u64) -> Told<()> {
        told(P::with(|plugin| {
            plugin.connected(&mut event.into(), Socket(id))
        }))
    }

    fn opened(event: types::Event, id: u64, port: u16, remote: String) -> Told<()> {
        told(P::with(|plugin| {
            plugin.opened(&mut event.into(), Socket(id), port, &remote)
        }))
    }

    fn data(event: types::Event, id: u64, data: Vec<u8>) -> Told<()> {
        told(P::with(|plugin| {
            plugin.data(&mut event.into(), Socket(id), &data)
        }))
    }

    fn writable(event: types::Event, id: u64, room: u32) -> Told<()> {
        told(P::with(|plugin| {
            plugin.writable(&mut event.into(), Socket(id), room)
        }))
    }

    fn datagram(event: types::Event, port: u16, from: String, data: Vec<u8>) -> Told<()> {
        // The node says an address.
        let from = from
            .parse()
            .map_err(|_| Error::invalid("the sender has no address"))?;
        told(P::with(|plugin| {
            plugin.datagram(&mut event.into(), port, from, &data)
        }))
    }

    fn closed(event: types::Event, id: u64, why: on_socket::Closing) -> Told<()> {
        let why = match why {
            on_socket::Closing::Ended => Closing::Ended,
            on_socket::Closing::Failed(error) => Closing::Failed(error.into()),
            on_socket::Closing::Broken => Closing::Broken,
            on_socket::Closing::Restarted => Closing::Restarted,
            on_socket::Closing::Lost => Closing::Lost,
            on_socket::Closing::Revoked => Closing::Revoked,
        };
        told(P::with(|plugin| {
            plugin.closed(&mut event.into(), Socket(id), why)
        }))
    }
}

impl From<on_http::Request> for HttpRequest {
    fn from(request: on_http::Request) -> Self {
        Self {
            method: request.method,
            path: request.path,
            query: request.query,
            headers: request.headers,
            body: request.body,
            remote: request.remote,
        }
    }
}

impl From<HttpResponse> for http_types::Response {
    fn from(response: HttpResponse) -> Self {
        Self {
            status: response.status,
            headers: response.headers,
            body: response.body,
        }
    }
}

impl From<http_types::Response> for HttpResponse {
    fn from(response: http_types::Response) -> Self {
        Self {
            status: response.status,
            headers: response.headers,
            body: response.body,
        }
    }
}
