//! One control connection: requests in their order, events between them.

use std::{io, os::fd::AsFd, pin::pin, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::timeout,
};
use wormholes_proto::control::{
    Access, Call, ErrorCode, Event, EventKind, LineBuffer, MAX_REQUEST_BYTES, PluginAskParams,
    PluginProgress, Request, RequestId, RpcError, Subscribed, decode_request, encode_event,
    encode_progress, encode_response,
};

use super::{answer, blobs::Uploads};
use crate::{events::Subscription, node::NodeCore};

/// A client that takes nothing for so long is gone or stuck.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most requests fit.
const READ_BYTES: usize = 4096;

/// A connection and its state.
#[derive(Debug)]
pub(super) struct Connection {
    core: Arc<NodeCore>,
    reader: OwnedReadHalf,
    /// The client says no more, and listens on.
    listener: Option<UnixStream>,
    writer: OwnedWriteHalf,
    lines: LineBuffer,
    subscription: Option<Subscription>,
    uploads: Uploads,
    access: Access,
}

enum Input {
    Read(usize),
    Event(Option<Event>),
}

impl Connection {
    pub(super) fn new(core: Arc<NodeCore>, stream: UnixStream, access: Access) -> Self {
        let (reader, writer) = stream.into_split();
        Self {
            core,
            reader,
            listener: None,
            writer,
            lines: LineBuffer::new(MAX_REQUEST_BYTES),
            subscription: None,
            uploads: Uploads::default(),
            access,
        }
    }

    /// Serves until the client closes, breaks the bounds or stops reading. One that subscribed and
    /// then ends its side gets its events as before.
    pub(super) async fn serve(mut self) -> io::Result<()> {
        let mut chunk = [0; READ_BYTES];
        loop {
            let input = tokio::select! {
                read = self.reader.read(&mut chunk), if self.listener.is_none() => {
                    Input::Read(read?)
                }
                left = left(self.listener.as_ref()) => return left,
                event = next(&mut self.subscription) => Input::Event(event),
            };
            match input {
                Input::Read(0) if self.subscription.is_some() => {
                    self.listener = Some(another(self.reader.as_ref())?);
                }
                Input::Read(0) | Input::Event(None) => return Ok(()),
                Input::Read(count) => {
                    self.lines
                        .handle_input(chunk.get(..count).unwrap_or_default());
                    self.answer_lines().await?;
                }
                Input::Event(Some(event)) => self.tell(event).await?,
            }
        }
    }

    async fn answer_lines(&mut self) -> io::Result<()> {
        loop {
            let line = match self.lines.poll_line() {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(()),
                Err(error) => {
                    // Not closed: who still writes would see a broken pipe, and never the answer.
                    let answer = RpcError::new(ErrorCode::InvalidRequest, error.to_string());
                    self.write(&encode_response(None, &Err(answer))).await?;
                    continue;
                }
            };
            if line.trim_ascii().is_empty() {
                continue;
            }
            let answer = match decode_request(&line) {
                Ok(request) => self.answer(request).await?,
                Err(rejected) => encode_response(rejected.id.as_ref(), &Err(rejected.error)),
            };
            self.write(&answer).await?;
        }
    }

    async fn answer(&mut self, request: Request) -> io::Result<Vec<u8>> {
        let result = match asked_with_progress(&request.call) {
            Some(params) => self.ask(&request.id, params).await?,
            None => self.carry_out(request.call).await,
        };
        Ok(encode_response(Some(&request.id), &result))
    }

    /// Asks a plugin, and tells of its progress until the answer.
    async fn ask(
        &mut self,
        id: &RequestId,
        params: PluginAskParams,
    ) -> io::Result<Result<Value, RpcError>> {
        // What does not fit is left out.
        let (told, mut steps) = mpsc::channel(16);
        let mut write = |step: PluginProgress| {
            let _ = told.try_send(step);
        };
        let (access, core) = (self.access, Arc::clone(&self.core));
        let uploads = self.uploads.clone();
        let mut answer = pin!(carry_out(
            &core,
            (access, &uploads),
            Call::PluginAsk(params),
            &mut write
        ));
        loop {
            tokio::select! {
                biased;
                Some(step) = steps.recv() => self.write(&encode_progress(id, &step)).await?,
                answer = &mut answer => return Ok(answer),
            }
        }
    }

    async fn carry_out(&mut self, call: Call) -> Result<Value, RpcError> {
        if let Call::Subscribe(params) = call {
            return answer::encode(self.subscribe(params.kinds));
        }
        if let Call::Unsubscribe(_) = call {
            self.subscription = None;
            return answer::encode(Subscribed { kinds: Vec::new() });
        }
        let own = (self.access, &self.uploads);
        carry_out(&self.core, own, call, |_| {}).await
    }

    fn subscribe(&mut self, kinds: Vec<EventKind>) -> Subscribed {
        self.subscription = Some(self.core.events.subscribe(kinds.clone()));
        let kinds = if kinds.is_empty() {
            EventKind::ALL.to_vec()
        } else {
            kinds
        };
        Subscribed { kinds }
    }

    async fn tell(&mut self, event: Event) -> io::Result<()> {
        let event = match self.access {
            Access::Operator => event,
            Access::Observer => event.for_observer(),
        };
        self.write(&encode_event(&event)).await
    }

    async fn write(&mut self, line: &[u8]) -> io::Result<()> {
        timeout(WRITE_TIMEOUT, self.writer.write_all(line)).await?
    }
}

/// Carries out a call, if its caller may make it. `told` hears of the progress.
async fn carry_out(
    core: &Arc<NodeCore>,
    (access, uploads): (Access, &Uploads),
    call: Call,
    told: impl FnMut(PluginProgress),
) -> Result<Value, RpcError> {
    if access < call.access() {
        let message = format!("{} is for operators; this uid observes", call.name());
        return Err(RpcError::new(ErrorCode::Denied, message));
    }
    timeout(
        call.answered_within(),
        answer::answer(core, (access, uploads), call, told),
    )
    .await
    .unwrap_or_else(|_| Err(RpcError::new(ErrorCode::Unsettled, "timed out")))
}

/// Waits until the client reads no more either; for ever, while it may still ask. The kernel tells
/// by a hang-up, which counts as a change of what can be written.
async fn left(listener: Option<&UnixStream>) -> io::Result<()> {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    while !listener.ready(Interest::WRITABLE).await?.is_write_closed() {
        // Waits for the next change. What is cleared is this handle's view, not the writer's.
        let _ = listener.try_io(Interest::WRITABLE, || {
            Err::<(), _>(io::ErrorKind::WouldBlock.into())
        });
    }
    Ok(())
}

/// Another handle of the same socket.
fn another(stream: &UnixStream) -> io::Result<UnixStream> {
    UnixStream::from_std(stream.as_fd().try_clone_to_owned()?.into())
}

/// The next event; never, without a subscription.
async fn next(subscription: &mut Option<Subscription>) -> Option<Event> {
    match subscription {
        Some(subscription) => subscription.next().await,
        None => std::future::pending().await,
    }
}

/// What a plugin is asked by somebody who wants to hear how far it is.
fn asked_with_progress(call: &Call) -> Option<PluginAskParams> {
    if let Call::PluginAsk(params) = call
        && params.progress
    {
        return Some(params.clone());
    }
    None
}
