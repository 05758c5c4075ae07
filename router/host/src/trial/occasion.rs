//! What happens to a principal on trial.

use std::{net::Ipv4Addr, sync::Arc};

use bytes::Bytes;

use super::Trial;
use crate::{
    blobs::{Blobs, Pin},
    event::{Caller, Command, ErrorCode, Event, Reason, Refusal, Request, Wish},
    http::{HttpRequest, HttpResponse},
    memory::{Memory, Socket},
    transaction::{FetchRow, Offered, ROOM_BYTES},
    wires::{Closing, SocketNews},
};

/// The port that strangers come to.
const PORT: u16 = 80;

/// What happens to a principal. Where it needs something that is open (a question, a connection), the
/// oldest one is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Occasion {
    /// The node started.
    Wake,
    /// Another version of the plugin takes over, whose rows are others.
    Migration,
    /// The first timer is due, whenever that is.
    Timer,
    /// Somebody asks.
    Command {
        /// Answered later, it is an operation.
        for_long: bool,
        /// It brings a blob of these bytes.
        blob: Option<Vec<u8>>,
    },
    /// Somebody asks by HTTP.
    Http,
    /// Nobody waits for a request any more.
    Canceled,
    /// A question is answered.
    Answer(Result<Vec<u8>, Refusal>),
    /// A blob that it fetches is there, if it is one of these bytes.
    Blob(Vec<u8>),
    /// Somebody connects.
    Visit,
    /// Bytes come on a connection, as many as there is credit for.
    Data(Vec<u8>),
    /// What was written to a connection is sent.
    Sent,
    /// A connection ends.
    Closed,
    /// A question that changes nothing.
    Query,
}

impl Trial {
    /// The event, and what the principal remembers when it begins.
    pub(super) fn happens(&mut self, who: usize, occasion: Occasion) -> Option<Event> {
        let limits = Arc::clone(&self.plugin.limits);
        let blobs = self.plugin.around.blobs.clone();
        let memory = &mut self.actors.get_mut(who)?.memory;
        match occasion {
            Occasion::Wake => Some(Event::Init(Reason::Started)),
            Occasion::Migration => Some(Event::Migrate { from: self.schema }),
            Occasion::Timer => {
                self.now_ms = memory.next_timer()?.max(self.now_ms);
                let (name, payload) = memory.due_timer(self.now_ms)?;
                Some(Event::Timer { name, payload })
            }
            Occasion::Command { for_long, blob } => {
                let open = memory.operations.open_count();
                if for_long && open >= limits.operations as usize {
                    return None;
                }
                let mut command = Command::new(Caller::Operator, "command", b"{}");
                command.is_operation = for_long;
                if let (Some(blob), Some(blobs)) = (blob, blobs) {
                    command.blobs = [offered(&blobs, &blob)?].into();
                }
                self.request(who, Wish::Command(command))
            }
            Occasion::Http => {
                let http = HttpRequest {
                    method: "GET".to_owned(),
                    path: "/".to_owned(),
                    query: None,
                    headers: Vec::new(),
                    body: Bytes::new(),
                    remote: Ipv4Addr::LOCALHOST.into(),
                };
                self.request(who, Wish::Http(Arc::new(http)))
            }
            Occasion::Canceled => canceled(memory),
            Occasion::Answer(answer) => answered(memory, answer),
            Occasion::Blob(bytes) => {
                let (id, row) = memory.blob_fetches.first_key_value()?;
                let outcome = fetched(blobs.as_ref(), row, &bytes);
                Some(Event::BlobFetched { id: *id, outcome })
            }
            Occasion::Visit => {
                if memory.sockets.len() >= limits.sockets as usize {
                    return None;
                }
                memory.last_message += 1;
                let id = memory.last_message;
                let socket = Socket::new(format!("tcp-listen:{PORT}").into());
                memory.sockets.insert(id, socket);
                let remote = Ipv4Addr::LOCALHOST.into();
                let news = SocketNews::Opened { port: PORT, remote };
                Some(Event::Socket { id, news })
            }
            Occasion::Data(data) => came(memory, data),
            Occasion::Sent => sent(memory),
            Occasion::Closed => closed(memory),
            // It is no event.
            Occasion::Query => None,
        }
    }

    fn request(&mut self, who: usize, wish: Wish) -> Option<Event> {
        let memory = &mut self.actors.get_mut(who)?.memory;
        let operations = memory.operations.open_count();
        let waiting = memory.requests.len().saturating_sub(operations);
        if waiting >= self.plugin.limits.requests as usize {
            return None;
        }
        self.last_request += 1;
        let request = Request {
            id: self.last_request,
            wish,
            deadline_ms: None,
        };
        memory.requests.insert(request.id, request.kind());
        Some(Event::Request(request))
    }
}

fn canceled(memory: &mut Memory) -> Option<Event> {
    let (request, kind) = memory.requests.pop_first()?;
    if memory.operations.is_open(request) {
        memory.operations.cancel(request, Refusal::canceled());
    }
    Some(Event::Canceled { request, kind })
}

fn answered(memory: &mut Memory, answer: Result<Vec<u8>, Refusal>) -> Option<Event> {
    let (id, _) = memory.questions.first_key_value()?;
    let id = *id;
    if !memory.answered(id) {
        return None;
    }
    if memory.fetches.remove(&id).is_none() {
        let answer = answer.map(Bytes::from);
        return Some(Event::Answer { id, answer });
    }
    let response = |body| HttpResponse {
        status: 200,
        headers: Vec::new(),
        body,
    };
    let answer = answer.map(|body| Arc::new(response(body)));
    Some(Event::Fetched { id, answer })
}

fn came(memory: &mut Memory, mut data: Vec<u8>) -> Option<Event> {
    let mut socket = memory.sockets.first_entry()?;
    let id = *socket.key();
    let socket = socket.get_mut();
    data.truncate(socket.credit as usize);
    // Nothing is read without credit.
    let bytes = u32::try_from(data.len()).ok().filter(|bytes| *bytes > 0)?;
    socket.credit = socket.credit.saturating_sub(bytes);
    let news = SocketNews::Data(Bytes::from(data));
    Some(Event::Socket { id, news })
}

fn sent(memory: &mut Memory) -> Option<Event> {
    let mut socket = memory.sockets.first_entry()?;
    let id = *socket.key();
    let socket = socket.get_mut();
    socket.room = ROOM_BYTES;
    let is_told = std::mem::take(&mut socket.wants_room);
    let news = SocketNews::Writable(ROOM_BYTES);
    is_told.then_some(Event::Socket { id, news })
}

fn closed(memory: &mut Memory) -> Option<Event> {
    let (id, why) = match memory.lost_sockets.pop() {
        Some(id) => (id, Closing::Restarted),
        None => (memory.sockets.pop_first()?.0, Closing::Ended),
    };
    let news = SocketNews::Closed(why);
    Some(Event::Socket { id, news })
}

fn offered(blobs: &Blobs, bytes: &[u8]) -> Option<Offered> {
    let mut incoming = blobs.receive().ok()?;
    incoming.append(bytes).ok()?;
    let (length, pin) = incoming.finish().ok()?;
    Some(Offered { pin, length })
}

fn fetched(blobs: Option<&Blobs>, row: &FetchRow, bytes: &[u8]) -> Result<(u64, Pin), Refusal> {
    let other = || Refusal::new(ErrorCode::NotFound, "it does not come");
    let Offered { pin, length } = blobs
        .and_then(|blobs| offered(blobs, bytes))
        .ok_or_else(other)?;
    let is_wanted = pin.id() == row.blob() && length <= row.max_bytes;
    is_wanted.then_some((length, pin)).ok_or_else(other)
}
