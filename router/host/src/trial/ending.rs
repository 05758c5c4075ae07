//! How an event on trial ends, and what it did.

use std::{collections::BTreeMap, io, ops::Range, sync::Arc};

use super::{Actor, Running, Trial};
use crate::{
    blobs::Blobs,
    event::{ErrorCode, Event, Refusal, Reply, Wish},
    guest::{checked, http_answer, words::http_types},
    message::{Parcel, encode},
    operations::Change,
    rows::{Side, principal_key},
    store::Writes,
    transaction::{Effects, Transaction},
    wires::{SocketNews, WireOrder},
};

/// How many bytes names and numbers of one thing have at most that are not counted one by one.
const ABOUT_BYTES: usize = 64;

/// What a handler answers.
#[derive(Debug)]
pub enum Answered {
    /// That it is done; to a request, with this answer.
    Done(Vec<u8>),
    /// To a request that came by HTTP.
    Http(http_types::Response),
    /// A later event answers.
    Later,
    /// No: nothing of it becomes real.
    No(Refusal),
}

/// What an event came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Whether it became real.
    pub is_real: bool,
    /// Whether there is a batch with its rows.
    pub is_written: bool,
    /// What is held of it in memory until it is real.
    pub bytes: usize,
    /// Messages, questions, and fetches of blobs.
    pub parcels: usize,
    /// Connections to others.
    pub connects: usize,
    /// Requests to others.
    pub fetches: usize,
    /// Answers to requests.
    pub answers: BTreeMap<u64, Result<Vec<u8>, Refusal>>,
    /// Facts that were published, and taken back.
    pub facts: usize,
}

impl Trial {
    /// Ends an event.
    ///
    /// # Errors
    /// It wrote rows that are not its principal's, or a question wrote any.
    pub fn end(&mut self, running: Running, answered: Answered) -> Result<Ended, String> {
        let Running {
            who,
            event,
            mut imports,
            ..
        } = running;
        let mut transaction = imports.take_event().ok_or("the event is lost")?;
        let Some(event) = event else {
            let effects = transaction.take_effect().1;
            let ended = weigh(&effects);
            return match ended == Ended::default() {
                true => Ok(ended),
                false => Err(format!("a question did something: {ended:?}")),
            };
        };
        let is_migration = matches!(event, Event::Migrate { .. });
        let blobs = self.plugin.around.blobs.clone();
        let told = told(answered, &event);
        let done = told.and_then(|reply| carry_out(blobs, &mut transaction).map(|()| reply));
        let is_real = done.is_ok();
        self.schema += u32::from(is_migration && is_real);
        let (version, now_ms, most) = (self.version(), self.now_ms, self.operations);
        let actor = self.actors.get_mut(who);
        let actor = actor.ok_or("there is no such principal")?;
        let effects = match done {
            Ok(reply) => {
                let mut effects;
                (actor.memory, effects) = transaction.take_effect();
                actor.succeed(&event, reply, (now_ms, most), &mut effects);
                if event.wakes() {
                    let (home, name) = (actor.home, &actor.name);
                    let writes = &mut effects.writes;
                    actor.memory.woken(home, name, version, writes);
                }
                effects
            }
            Err(refusal) => {
                actor.memory = transaction.undo();
                actor.refuse(&event, refusal, now_ms)
            }
        };
        let ended = self.make_real(who, effects, is_real)?;
        if is_migration {
            self.clear_other_side(who);
        }
        Ok(ended)
    }

    fn make_real(&mut self, who: usize, effects: Effects, is_real: bool) -> Result<Ended, String> {
        let mut ended = weigh(&effects);
        let Effects {
            writes,
            answers,
            blobs,
            ..
        } = effects;
        if let Some(actor) = self.actors.get(who) {
            let own = actor.home.everything();
            let name = actor.name.to_string();
            let known = principal_key(actor.home.instance, &name);
            let is_own = |key: &[u8]| {
                let holds = |range: &Range<Vec<u8>>| *range.start <= *key && *key < *range.end;
                own.iter().any(holds) || *key == *known
            };
            let other = writes.rows().find(|(key, _)| !is_own(key));
            if let Some((key, _)) = other {
                return Err(format!("a row of somebody else: {key:02x?}"));
            }
        }
        ended.is_real = is_real;
        ended.answers = answers;
        ended.is_written = self.write(who, writes, blobs);
        Ok(ended)
    }

    /// Deletes what a migration left on the side that does not count.
    fn clear_other_side(&mut self, who: usize) {
        if let Some(actor) = self.actors.get(who) {
            let other: Side = actor.memory.side.other();
            let mut writes = Writes::default();
            writes.remove_range(actor.home.all(other.space()));
            self.append(who, writes, Default::default());
        }
        while self.commit() {}
    }
}

/// What a handler's answer is to the host; what does not fit what was asked is nothing.
fn told(answered: Answered, event: &Event) -> Result<Option<Reply>, Refusal> {
    let wish = if let Event::Request(request) = event {
        Some(&request.wish)
    } else {
        None
    };
    Ok(match (answered, wish) {
        (Answered::No(refusal), _) => return Err(refusal),
        (Answered::Done(body), Some(Wish::Command(_))) => Some(Reply::Done(checked(body)?)),
        (Answered::Http(page), Some(Wish::Http(_))) => Some(Reply::Done(http_answer(page)?)),
        (Answered::Later, Some(_)) => Some(Reply::Later),
        _ => None,
    })
}

/// Has files do what the event wants of them.
fn carry_out(blobs: Option<Blobs>, transaction: &mut Transaction) -> Result<(), Refusal> {
    let Some(blobs) = blobs.filter(|_| transaction.has_file_work()) else {
        return Ok(());
    };
    let work = transaction.file_work(&blobs)?;
    let unwritten = |error: io::Error| Refusal::new(ErrorCode::Unavailable, error.to_string());
    transaction.keep_pins(blobs.carry_out(work).map_err(unwritten)?);
    Ok(())
}

impl Actor {
    /// What an actor does with an event whose handler succeeded.
    fn succeed(
        &mut self,
        event: &Event,
        reply: Option<Reply>,
        (now_ms, most): (u64, usize),
        effects: &mut Effects,
    ) {
        let home = self.home;
        match (event, reply) {
            (Event::Request(request), Some(Reply::Done(body))) => {
                effects.answers.entry(request.id).or_insert(Ok(body));
                self.memory.requests.remove(&request.id);
            }
            (Event::Request(request), Some(Reply::Later)) => {
                let begins = !effects.answers.contains_key(&request.id);
                if let Some(command) = request.operation().filter(|_| begins) {
                    let now = (request, command, now_ms);
                    self.memory.begin_operation(home, now, most, effects);
                }
            }
            _ => {}
        }
        self.forget(event);
        if let Event::Canceled { request, .. } = event {
            self.memory.end_canceled(home, *request, now_ms, effects);
        }
    }

    /// The same of an event that is consumed, and nothing else.
    fn refuse(&mut self, event: &Event, refusal: Refusal, now_ms: u64) -> Effects {
        let (home, mut effects) = (self.home, Effects::default());
        // It is tried again, until somebody stops it.
        if event.wakes() {
            return effects;
        }
        self.memory.consume(home, event, &mut effects.writes);
        self.forget(event);
        if let Event::Request(request) = event {
            self.memory.requests.remove(&request.id);
            effects.answers.insert(request.id, Err(refusal));
        } else if let Event::Timer { name, .. } = event {
            let name = Arc::clone(name);
            self.memory.apply_timer(home, name, None, &mut effects);
        } else if let Event::Canceled { request, .. } = event {
            self.memory
                .end_canceled(home, *request, now_ms, &mut effects);
        } else if let Event::BlobFetched { id, .. } = event {
            self.memory.end_fetch(home, *id, &mut effects);
        } else if let Event::Socket { id, news } = event
            && matches!(news, SocketNews::Data(_) | SocketNews::Opened { .. })
        {
            // What comes next would make no sense; or he is not wanted.
            self.memory.sockets.remove(id);
            if self.memory.kept_sockets.contains(id) {
                self.memory.lost_sockets.push(*id);
            }
        }
        effects
    }

    fn forget(&mut self, event: &Event) {
        if let Event::Answer { id, .. } | Event::Fetched { id, .. } = event {
            self.memory.kept_questions.remove(id);
        } else if let Event::Socket {
            id,
            news: SocketNews::Closed(_),
        } = event
        {
            self.memory.kept_sockets.remove(id);
        }
    }
}

/// What is held until it is real: each text, each body and each row.
fn weigh(effects: &Effects) -> Ended {
    let mut ended = Ended::default();
    let Effects {
        writes,
        answers,
        progress,
        parcels,
        wires,
        facts,
        changes,
        ..
    } = effects;
    let bodies = answers.values();
    let bodies = bodies.map(|answer| answer.as_ref().map_or_else(text, Vec::len));
    let told = progress.iter().map(|told| ABOUT_BYTES + told.text.len());
    let operations = changes.iter().map(|(_, change)| match change {
        Change::Is(row) => ABOUT_BYTES + encode(&**row).len(),
        Change::Gone => ABOUT_BYTES,
    });
    ended.bytes = writes.bytes()
        + bodies.sum::<usize>()
        + told.sum::<usize>()
        + operations.sum::<usize>()
        + facts.len() * ABOUT_BYTES
        + parcels.iter().map(parcel).sum::<usize>()
        + wires.iter().map(order).sum::<usize>();
    ended.parcels = parcels.len();
    ended.facts = facts.len();
    for order in wires {
        match order {
            WireOrder::Connect { .. } => ended.connects += 1,
            WireOrder::Fetch { .. } => ended.fetches += 1,
            WireOrder::Credit { .. }
            | WireOrder::Write { .. }
            | WireOrder::Close { .. }
            | WireOrder::Datagram(_) => {}
        }
    }
    ended
}

fn text(refusal: &Refusal) -> usize {
    refusal.message.len()
}

fn parcel(parcel: &Parcel) -> usize {
    let about = |key| encode(key).len();
    match parcel {
        Parcel::Durable { key, head, row, .. } => {
            let body = row.body.as_ref().map_or(0, |body| body.len());
            about(key) + encode(head).len() + body
        }
        Parcel::Post(letter) | Parcel::Ask { letter, .. } => {
            about(&letter.key) + encode(&letter.way).len() + letter.body.len()
        }
        Parcel::FetchBlob { row, .. } => encode(&**row).len(),
        Parcel::Reopened { peer, .. } => about(peer),
        Parcel::Unfetch { .. } => ABOUT_BYTES,
    }
}

fn order(order: &WireOrder) -> usize {
    let way = |way: &crate::WireWay| {
        way.plugin.len() + way.role.len() + way.label.len() + way.isolation.len()
    };
    match order {
        WireOrder::Connect { call, .. } => way(&call.way) + call.target.to_string().len(),
        WireOrder::Credit { .. } | WireOrder::Close { .. } => ABOUT_BYTES,
        WireOrder::Write { data, .. } => ABOUT_BYTES + data.len(),
        WireOrder::Datagram(datagram) => ABOUT_BYTES + datagram.data.len(),
        WireOrder::Fetch { call, .. } => {
            let headers = call.headers.iter();
            let headers = headers.map(|(name, value)| ABOUT_BYTES + name.len() + value.len());
            let words = call.method.len() + call.url.len() + call.body.len();
            way(&call.way) + words + headers.sum::<usize>()
        }
    }
}
