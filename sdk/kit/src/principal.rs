//! One principal at one node: what it remembers, and what waits for it.

use std::collections::{BTreeMap, VecDeque};

use wormholes_plugin::{
    BlobFetched, Closing, Context, HttpReply, HttpResponse, Incoming, Plugin, Reason, Reply,
    Result, Socket,
};

use crate::{
    event::{Event, SocketNews},
    http::encode,
    mail::Note,
    memory::{Memory, Version},
};

pub(crate) struct Actor<P> {
    pub(crate) memory: Memory,
    /// With the events that it ran.
    pub(crate) instance: Option<(P, u32)>,
    /// With how often each was tried.
    pub(crate) waiting: VecDeque<(Event, u32)>,
    /// When those who ask leave, by request; those of operations never have to.
    pub(crate) deadlines: BTreeMap<u64, Option<u64>>,
    pub(crate) next_event: u64,
    /// Why no event runs.
    pub(crate) parked: Option<String>,
}

impl<P> Actor<P> {
    /// Begins with its wake-up.
    pub(crate) fn new(mut memory: Memory, version: Version, first_event: u64) -> Self {
        memory.mail.last_message = memory.mail.last_message.max(first_event);
        let mut waiting = VecDeque::new();
        let waking = match memory.woken_by {
            None => Event::Init(Reason::Created),
            Some(by) if by == version => Event::Init(Reason::Started),
            Some(by) if by.schema == version.schema => Event::Init(Reason::Updated),
            Some(by) => Event::Migrate { from: by.schema },
        };
        waiting.push_back((waking, 0));
        for (number, note) in memory.mail.notes.iter() {
            let (number, note) = (*number, note.clone());
            waiting.push_back((Event::Note { number, note }, 0));
        }
        for id in memory.kept_sockets.iter() {
            let news = SocketNews::Closed(Closing::Restarted);
            waiting.push_back((Event::Socket { id: *id, news }, 0));
        }
        let open = memory.operations.open.iter();
        Self {
            deadlines: open.map(|(id, deadline)| (*id, *deadline)).collect(),
            memory,
            instance: None,
            waiting,
            next_event: first_event,
            parked: None,
        }
    }

    /// When it next has something to do by itself.
    pub(crate) fn next_due(&self) -> Option<u64> {
        let timer = self.memory.timers.first().map(|(due_ms, _)| due_ms);
        let timer = timer.filter(|_| self.parked.is_none());
        let deadline = self.deadlines.values().flatten().min().copied();
        let question = self.memory.mail.questions.first();
        let question = question.map(|(due_ms, _)| due_ms);
        timer.into_iter().chain(deadline).chain(question).min()
    }

    /// The requests whose time is over.
    pub(crate) fn late(&self, now_ms: u64) -> Vec<u64> {
        let deadlines = self.deadlines.iter();
        let late = deadlines.filter(|(_, at)| at.is_some_and(|at| at <= now_ms));
        late.map(|(request, _)| *request).collect()
    }

    /// The questions whose time is over.
    pub(crate) fn late_questions(&self, now_ms: u64) -> Vec<u64> {
        self.memory.mail.questions.late(now_ms)
    }

    /// A question has one answer: the first that comes.
    pub(crate) fn take_answer(&mut self, id: u64, answer: Result<Vec<u8>>) {
        if self.memory.mail.questions.remove(&id).is_some() {
            self.waiting.push_back((Event::Answer { id, answer }, 0));
        }
    }

    /// So has a request by HTTP.
    pub(crate) fn take_fetched(&mut self, id: u64, answer: Result<HttpResponse>) {
        if self.memory.mail.questions.remove(&id).is_some() {
            self.waiting.push_back((Event::Fetched { id, answer }, 0));
        }
    }

    /// A handler did not take a part of what came: the rest would make no sense to it.
    pub(crate) fn lose_socket(&mut self, id: u64) {
        self.hear_socket(id, SocketNews::Closed(Closing::Lost));
    }

    /// Something became of a connection, if the principal still has it.
    pub(crate) fn hear_socket(&mut self, id: u64, news: SocketNews) {
        let Some(wire) = self.memory.sockets.get_mut(&id) else {
            return;
        };
        match &news {
            SocketNews::Data(data) => {
                let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
                wire.credit = wire.credit.saturating_sub(bytes);
            }
            SocketNews::Closed(_) => {
                self.memory.sockets.remove(&id);
            }
            SocketNews::Connected | SocketNews::Opened(..) | SocketNews::Writable(_) => {}
        }
        self.waiting.push_back((Event::Socket { id, news }, 0));
    }

    /// The timer that is due.
    pub(crate) fn due_timer(&self, now_ms: u64) -> Option<Event> {
        let (due_ms, name) = self.memory.timers.first()?;
        let name = name.clone();
        let payload = self.memory.timers.get(&name)?.payload.clone();
        (due_ms <= now_ms).then_some(Event::Timer { name, payload })
    }
}

fn encoded(reply: HttpReply) -> Result<Reply> {
    match reply {
        HttpReply::Done(response) => encode(&response).map(Reply::Done),
        HttpReply::Later => Ok(Reply::Later),
    }
}

/// Has the plugin handle an event; what it replies, if that is a request.
pub(crate) fn call<P: Plugin>(
    plugin: &mut P,
    cx: &mut Context,
    event: &Event,
) -> Result<Option<Reply>> {
    match event {
        Event::Migrate { from } => plugin.migrate(cx, *from).map(drop)?,
        Event::Init(reason) => plugin.init(cx, *reason)?,
        Event::Timer { name, payload } => plugin.timer(cx, name, payload)?,
        Event::Request(request) => return plugin.request(cx, request.clone()).map(Some),
        Event::Canceled(request) => plugin.canceled(cx, *request)?,
        Event::Http {
            id,
            request,
            deadline_ms,
        } => {
            let reply = plugin.http(cx, *id, request.clone(), *deadline_ms)?;
            return encoded(reply).map(Some);
        }
        Event::HttpCanceled(request) => plugin.http_canceled(cx, *request)?,
        Event::Fetched { id, answer } => plugin.fetched(cx, *id, answer.clone())?,
        Event::Datagram { port, from, data } => plugin.datagram(cx, *port, *from, data)?,
        Event::Socket { id, news } => tell(plugin, cx, Socket(*id), news)?,
        Event::Message {
            key,
            content,
            delivery,
        } => match content {
            Ok(body) => {
                let message = Incoming {
                    from: key.from.clone(),
                    own: key.own.clone(),
                    protocol: key.protocol.clone(),
                    durable: delivery.is_some(),
                    body: body.clone(),
                };
                plugin.message(cx, message)?;
            }
            Err(messages) => plugin.gap(cx, &key.from, &key.own, &key.protocol, *messages)?,
        },
        Event::Note { note, .. } => match note {
            Note::Report { id, outcome } => plugin.report(cx, *id, outcome.clone())?,
            Note::Halted {
                peer,
                own,
                protocol,
                reason,
            } => plugin.halted(cx, peer, own, protocol, *reason)?,
        },
        Event::Answer { id, answer } => plugin.answer(cx, *id, answer.clone())?,
        Event::Presence {
            peer,
            online,
            trust,
        } => plugin.presence(cx, *peer, *online, *trust)?,
        Event::Usage(usage) => plugin.usage(cx, usage.clone())?,
        Event::BlobFetched { id, blob, outcome } => {
            let outcome = outcome.clone().map(|bytes| bytes.len() as u64);
            let (id, blob) = (*id, *blob);
            plugin.blob_fetched(cx, BlobFetched { id, blob, outcome })?;
        }
    }
    Ok(None)
}

/// Has the plugin hear what became of a connection.
fn tell<P: Plugin>(
    plugin: &mut P,
    cx: &mut Context,
    socket: Socket,
    news: &SocketNews,
) -> Result<()> {
    match news {
        SocketNews::Connected => plugin.connected(cx, socket),
        SocketNews::Opened(port, remote) => plugin.opened(cx, socket, *port, remote),
        SocketNews::Data(data) => plugin.data(cx, socket, data),
        SocketNews::Writable(room) => plugin.writable(cx, socket, *room),
        SocketNews::Closed(why) => plugin.closed(cx, socket, why.clone()),
    }
}
