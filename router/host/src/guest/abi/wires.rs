//! Connections and HTTP requests to others: the imports that ask for them, and the handlers that hear of
//! them.

use wasmtime::Store;

use super::{
    Answer, State, handlers, told, types,
    wormholes::plugin::{fetch, http_types::Response, sockets},
};
use crate::{
    event::Refusal,
    guest::exports::Handlers,
    http::HttpResponse,
    message::Way,
    network::{Datagram, SocketKind},
    transaction::Wanted,
    wires::{Closing, SocketNews},
};

impl fetch::Host for State {
    fn send(&mut self, request: fetch::Request, way: fetch::Way, deadline_ms: u64) -> Answer<u64> {
        let way = self::way(way.role, way.label, way.isolation);
        let wanted = Wanted {
            method: request.method,
            url: request.url,
            headers: request.headers,
            body: request.body,
        };
        Ok(told(self.unrecorded_event()?.fetch(
            wanted,
            &way,
            deadline_ms,
        )))
    }
}

impl sockets::Host for State {
    fn connect(
        &mut self,
        kind: sockets::Kind,
        host: String,
        port: u16,
        way: sockets::Way,
    ) -> Answer<u64> {
        let kind = match kind {
            sockets::Kind::Tcp => SocketKind::Tcp,
            sockets::Kind::Tls => SocketKind::Tls,
        };
        let way = self::way(way.role, way.label, way.isolation);
        Ok(told(self.unrecorded_event()?.connect(
            kind,
            (&host, port),
            &way,
        )))
    }

    fn credit(&mut self, id: u64, bytes: u32) -> Answer<()> {
        Ok(told(self.unrecorded_event()?.socket_credit(id, bytes)))
    }

    fn write(&mut self, id: u64, data: Vec<u8>) -> Answer<()> {
        Ok(told(self.unrecorded_event()?.socket_write(id, data)))
    }

    fn room(&mut self, id: u64) -> wasmtime::Result<u32> {
        Ok(self.unrecorded_event()?.socket_room(id))
    }

    fn close(&mut self, id: u64) -> Answer<()> {
        Ok(told(self.unrecorded_event()?.socket_close(id)))
    }

    fn send_to(&mut self, port: u16, to: String, data: Vec<u8>) -> Answer<()> {
        Ok(told(self.unrecorded_event()?.send_to(port, &to, data)))
    }
}

/// Hands the answer to a request to its handler.
pub(in crate::guest) async fn call_fetched(
    handlers: &Handlers,
    store: &mut Store<State>,
    (id, answer): (u64, Result<&HttpResponse, &Refusal>),
    stamp: &types::Event,
) -> wasmtime::Result<Result<(), types::Error>> {
    let Some(handler) = &handlers.fetch else {
        return Ok(Err(Refusal::no_handler("on-fetch").into()));
    };
    let answer = match answer {
        Ok(answer) => Ok(Response::from(answer)),
        Err(refusal) => Err(types::Error::from(refusal.clone())),
    };
    handler
        .call_fetched(store, stamp, id, answer.as_ref())
        .await
}

/// Tells the handler what became of a connection.
pub(in crate::guest) async fn call_socket(
    handlers: &Handlers,
    store: &mut Store<State>,
    (id, news): (u64, &SocketNews),
    stamp: &types::Event,
) -> wasmtime::Result<Result<(), types::Error>> {
    let Some(handler) = &handlers.socket else {
        return Ok(Err(Refusal::no_handler("on-socket").into()));
    };
    match news {
        SocketNews::Connected => handler.call_connected(store, stamp, id).await,
        SocketNews::Opened { port, remote } => {
            let remote = remote.to_string();
            handler.call_opened(store, stamp, id, *port, &remote).await
        }
        SocketNews::Data(data) => handler.call_data(store, stamp, id, data).await,
        SocketNews::Writable(room) => handler.call_writable(store, stamp, id, *room).await,
        SocketNews::Closed(why) => handler.call_closed(store, stamp, id, &why.into()).await,
        // No event tells of it.
        SocketNews::Sent(_) => Ok(Ok(())),
    }
}

/// Hands a datagram to its handler.
pub(in crate::guest) async fn call_datagram(
    handlers: &Handlers,
    store: &mut Store<State>,
    datagram: &Datagram,
    stamp: &types::Event,
) -> wasmtime::Result<Result<(), types::Error>> {
    let Some(handler) = &handlers.socket else {
        return Ok(Err(Refusal::no_handler("on-socket").into()));
    };
    let (port, from) = (datagram.port, datagram.peer.to_string());
    handler
        .call_datagram(store, stamp, port, &from, &datagram.data)
        .await
}

fn way(role: String, label: String, isolation: String) -> Way {
    Way {
        role: role.into(),
        label: label.into(),
        isolation: isolation.into(),
    }
}

impl From<&HttpResponse> for Response {
    fn from(response: &HttpResponse) -> Self {
        Self {
            status: response.status,
            headers: response.headers.clone(),
            body: response.body.clone(),
        }
    }
}

impl From<&Closing> for handlers::on_socket::Closing {
    fn from(why: &Closing) -> Self {
        match why {
            Closing::Ended => Self::Ended,
            Closing::Failed(refusal) => Self::Failed(refusal.clone().into()),
            Closing::Broken => Self::Broken,
            Closing::Restarted => Self::Restarted,
            Closing::Lost => Self::Lost,
            Closing::Revoked => Self::Revoked,
        }
    }
}
