//! How an event of a principal ends: what it did becomes real, or is given up.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use tokio::sync::mpsc;

use crate::{
    blobs::Pin,
    clock::now_ms,
    edition::Edition,
    event::{Content, ErrorCode, Event, Principal, Refusal, Reply},
    guest::{Fault, Outcome, Plugin},
    letters::DeadLetter,
    mail::{Input, Owner},
    message::{Parcel, encode},
    rows::Home,
    store::Lost,
    transaction::{BlobEffects, Effects, Limit, Progress},
    wires::SocketNews,
};
use wormholes_proto::manifest::Poison;

use super::{Actor, Asker, TRIES};

impl Actor {
    pub(super) fn succeed(&mut self, event: &Event, (told, mut effects): (Outcome, Effects)) {
        let mut began = None;
        match (event, told) {
            (Event::Request(request), Outcome::Replied(Reply::Done(body))) => {
                // A handler that finished it by itself has answered; this comes too late.
                effects.answers.entry(request.id).or_insert(Ok(body));
                self.memory.requests.remove(&request.id);
            }
            (Event::Request(request), Outcome::Replied(Reply::Later)) => {
                let begins = !effects.answers.contains_key(&request.id);
                if let Some(command) = request.operation().filter(|_| begins) {
                    let most = self.edition.manifest.limits.operations as usize;
                    let now = (request, command, now_ms());
                    self.memory
                        .begin_operation(self.home, now, most, &mut effects);
                    began = self.forget_asker(request.id);
                    let deadline = request.deadline_ms.map(|at| (at, request.id));
                    self.deadlines.extend(deadline);
                }
            }
            _ => {}
        }
        match event {
            Event::Migrate { .. } | Event::Init(_) => {
                let (version, writes) = (self.edition.version(), &mut effects.writes);
                self.memory.woken(self.home, &self.name, version, writes);
            }
            Event::Answer { id, .. } | Event::Fetched { id, .. } => {
                self.memory.kept_questions.remove(id);
            }
            Event::Socket {
                id,
                news: SocketNews::Closed(_),
            } => {
                self.memory.kept_sockets.remove(id);
            }
            Event::Canceled { request, .. } => {
                self.memory
                    .end_canceled(self.home, *request, now_ms(), &mut effects);
            }
            Event::Usage(used) => effects.usage = Some(Arc::clone(used)),
            Event::Timer { .. }
            | Event::Request(_)
            | Event::Message(_)
            | Event::Note { .. }
            | Event::BlobFetched { .. }
            | Event::Socket { .. }
            | Event::Datagram(_)
            | Event::Presence { .. } => {}
        }
        self.make_real_with(effects, handled(event, None), began);
    }

    /// The handler said no: the event is consumed, and nothing else.
    pub(super) fn refuse(&mut self, event: Event, refusal: Refusal) {
        self.consume(event, refusal, Effects::default());
    }

    fn consume(&mut self, event: Event, refusal: Refusal, mut effects: Effects) {
        self.memory.consume(self.home, &event, &mut effects.writes);
        let mut said = None;
        match &event {
            Event::Request(request) => {
                self.memory.requests.remove(&request.id);
                effects.answers.insert(request.id, Err(refusal));
            }
            Event::Timer { name, .. } => {
                self.note_timer_gone(name);
                self.memory
                    .apply_timer(self.home, Arc::clone(name), None, &mut effects);
            }
            // What was not woken, or cannot read its rows, must not go on.
            Event::Init(_) | Event::Migrate { .. } => {
                return self.park(event, refusal.to_string());
            }
            Event::Message(incoming) => {
                // Nobody sent a gap.
                if let (Some(delivery), Content::Message(_)) =
                    (&incoming.delivery, &incoming.content)
                {
                    let key = delivery.refusal.clone();
                    effects.writes.put(key, Some(encode(&refusal)));
                    said = Some(refusal);
                }
            }
            Event::Answer { id, .. } | Event::Fetched { id, .. } => {
                self.memory.kept_questions.remove(id);
            }
            Event::Socket { id, news } => match news {
                SocketNews::Closed(_) => {
                    self.memory.kept_sockets.remove(id);
                }
                SocketNews::Data(_) => self.lose_socket(*id),
                SocketNews::Opened { .. } => self.turn_away(*id),
                SocketNews::Connected | SocketNews::Sent(_) | SocketNews::Writable(_) => {}
            },
            Event::Usage(used) => effects.usage = Some(Arc::clone(used)),
            Event::Canceled { request, .. } => {
                self.memory
                    .end_canceled(self.home, *request, now_ms(), &mut effects);
            }
            Event::BlobFetched { id, .. } => {
                self.memory.end_fetch(self.home, *id, &mut effects);
            }
            Event::Note { .. } | Event::Datagram(_) | Event::Presence { .. } => {}
        }
        self.make_real(effects, handled(&event, said));
    }

    /// Nobody waits for this request any more; its handler is told if it is still at it. Who began an
    /// operation may leave.
    pub(super) fn give_up(&mut self, request: u64, told: Option<Refusal>) {
        let is_operation = self.memory.operations.is_open(request);
        // Who asked may notice it first.
        let deadline = self.askers.get(&request).and_then(|(at, _)| *at);
        let is_late =
            told.as_ref() == Some(&Refusal::late()) || deadline.is_some_and(|at| at <= now_ms());
        match (self.forget_asker(request), &told) {
            (Some(asker), Some(refusal)) => asker.say(Err(refusal.clone())),
            (_, None) if is_operation => return,
            _ => {}
        }
        if let Some(kind) = self.memory.requests.remove(&request) {
            if is_late {
                self.loaded.figures.hits(&[Limit::Unanswered]);
            }
            if let Some(why) = told.filter(|_| is_operation) {
                self.memory.operations.cancel(request, why);
            }
            self.first.push_back((Event::Canceled { request, kind }, 0));
        }
    }

    pub(super) fn forget_asker(&mut self, request: u64) -> Option<Asker> {
        let (deadline, asker) = self.askers.remove(&request)?;
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, request));
        }
        Some(asker)
    }

    /// No event runs until an operator says so; this one is the first then.
    pub(super) fn park(&mut self, event: Event, why: String) {
        let plugin = &self.loaded.name;
        tracing::error!(%plugin, kind = %event.kind(), why, "a plugin is parked");
        self.first.push_front((event, 0));
        self.health.park(why);
    }

    /// The instance broke: the event is tried again, and given up in the end.
    pub(super) fn broke(&mut self, event: Event, attempt: u32, fault: &Fault) {
        let plugin = &self.loaded.name;
        tracing::warn!(%plugin, kind = %event.kind(), attempt, %fault, "a plugin broke");
        self.health.broke(fault);
        if attempt + 1 < TRIES {
            self.first.push_front((event, attempt + 1));
            return;
        }
        self.loaded.figures.gave_up();
        let failed = Refusal::new(ErrorCode::Failed, "the plugin failed; see its log");
        match (self.edition.manifest.instance.poison, &event) {
            // Who asked is told, and may ask again.
            (Poison::Halt, Event::Request(_)) => {
                self.refuse(event, failed);
                self.health.park(fault.to_string());
            }
            // What is behind it on its channel must not be handled before it.
            (Poison::Halt, Event::Message(incoming)) => {
                if let Some(delivery) = &incoming.delivery {
                    delivery.live.store(false, Ordering::Release);
                    let poisoned = Input::Poisoned {
                        channel: delivery.channel,
                        live: Arc::clone(&delivery.live),
                    };
                    // Behind what was handled before it.
                    let office = self.office.clone();
                    self.store
                        .after(self.last_batch, move |_| office.tell(poisoned));
                }
            }
            (Poison::Halt, _) => self.park(event, fault.to_string()),
            (Poison::Skip, _) => self.skip(event, failed, fault),
        }
    }

    /// The event is dropped, into the list of dead letters.
    fn skip(&mut self, event: Event, told: Refusal, fault: &Fault) {
        let mut effects = Effects::default();
        let letter = DeadLetter::new(&event, &self.name, fault.to_string(), now_ms());
        if let Some(letter) = letter {
            self.loaded.letters.write(letter, &mut effects.writes);
        }
        self.consume(event, told, effects);
    }

    /// Hands over what an event did; it leaves the node when it is durable.
    pub(super) fn make_real(&mut self, effects: Effects, handled: Option<Input>) {
        self.make_real_with(effects, handled, None);
    }

    /// The same; `began` is who asked for an operation that began.
    fn make_real_with(&mut self, effects: Effects, handled: Option<Input>, began: Option<Asker>) {
        let Effects {
            writes,
            kept_bytes,
            answers,
            progress,
            parcels,
            wires,
            facts,
            usage,
            changes,
            blobs,
        } = effects;
        self.note_ended(&changes);
        let mail = self.parcels(parcels).into_iter().chain(handled);
        let (mail, office) = (mail.collect::<Vec<_>>(), self.office.clone());
        let began = began.map(|asker| (asker, Ok(Reply::Later)));
        let mut answers = self.asked(answers);
        answers.extend(began);
        let progress = self.heard_by(progress);
        self.count(kept_bytes, blobs.bytes);
        let plugin = Arc::clone(self.edition.plugin());
        let wires = self.ready(wires);
        // A release that held the store would end it on the thread that commits.
        let is_current = self.is_current();
        let (loaded, home, principal) = (Arc::clone(&self.loaded), self.home, self.name.clone());
        let release = move |durable: Result<(), Lost>| {
            if durable.is_ok() {
                if let Some(network) = &plugin.around.network
                    && !facts.is_empty()
                {
                    network.publish(facts);
                }
                for (told, step) in progress {
                    let _ = told.try_send(step);
                }
                for (operation, change) in changes {
                    loaded.board.apply((home, &principal), operation, change);
                }
                mail.into_iter().for_each(|input| office.tell(input));
                settle(&plugin, home, blobs);
                wires.go();
            } else {
                if let Some(used) = usage {
                    loaded.news.untold(&used);
                }
                keep(&plugin, is_current, &blobs.pins);
                office.tell(Input::Lost);
            }
            for (asker, answer) in answers {
                asker.say(durable.map_err(|_| Refusal::lost()).and(answer));
            }
        };
        if writes.is_empty() {
            self.store.after(self.last_batch, release);
        } else {
            self.keep_pace(&writes);
            let overlay = writes.clone();
            let by = self.home.writer();
            self.last_batch = self.store.append(by, self.epoch, writes, release);
            self.memory.overlay.write(self.last_batch, overlay);
        }
    }

    /// Whether the store was not opened anew since it knew what this principal knows.
    pub(super) fn is_current(&self) -> bool {
        self.store.epoch() == self.epoch
    }

    /// Counts by how much its rows and its blobs grew.
    fn count(&self, kept_bytes: i64, blob_bytes: i64) {
        let (figures, memory) = (&self.loaded.figures, &self.memory);
        let kept_before = memory.kept_bytes.saturating_add_signed(-kept_bytes);
        figures.keeps(kept_before, memory.kept_bytes);
        let held_before = memory.blob_bytes.saturating_add_signed(-blob_bytes);
        figures.holds(held_before, memory.blob_bytes);
    }

    /// Who hears how far a request is.
    fn heard_by(&self, progress: Vec<Progress>) -> Vec<(mpsc::Sender<Progress>, Progress)> {
        let heard_by = progress.into_iter().filter_map(|step| {
            let (_, asker) = self.askers.get(&step.request)?;
            Some((asker.progress.clone()?, step))
        });
        heard_by.collect()
    }

    /// Who is told.
    fn asked(
        &mut self,
        answers: BTreeMap<u64, Result<Vec<u8>, Refusal>>,
    ) -> Vec<(Asker, Result<Reply, Refusal>)> {
        let answers = answers.into_iter().filter_map(|(request, answer)| {
            let answer = answer.map(Reply::Done);
            Some((self.forget_asker(request)?, answer))
        });
        answers.collect()
    }

    /// Scripts read nothing more of what this principal published and does not remember.
    pub(super) fn forget_facts(&self) {
        let plugin = self.edition.plugin();
        if let Some(network) = &plugin.around.network
            && self.name == Principal::Node
        {
            network.forget_facts(&plugin.granted.facts);
        }
    }

    /// Scripts read nothing more of what another version may not publish.
    pub(super) fn keep_facts(&mut self, edition: &Edition) {
        let (before, granted) = (self.edition.plugin(), &edition.plugin().granted.facts);
        self.memory
            .facts
            .retain(|(kind, _), _| granted.contains(&**kind));
        if let Some(network) = &before.around.network
            && self.name == Principal::Node
        {
            network.forget_facts(&(&before.granted.facts - granted));
        }
    }

    /// What leaves the node, for the office.
    fn parcels(&self, parcels: Vec<Parcel>) -> Option<Input> {
        self.keep_rates(parcels.iter().map(Parcel::body_bytes));
        let owner = || Owner {
            loaded: Arc::clone(&self.loaded),
            principal: self.name.clone(),
            home: self.home,
        };
        (!parcels.is_empty()).then(|| Input::Parcels(owner(), parcels))
    }
}

/// Files follow what is durable.
fn settle(plugin: &Plugin, home: Home, effects: BlobEffects) {
    let Some(files) = &plugin.around.blobs else {
        return;
    };
    // Those that are named by now need no pin.
    files.changed(effects.named);
    let (fetches, drafts) = (effects.fetches.into_iter(), effects.drafts.into_iter());
    fetches.for_each(|id| files.forget_fetch(home, id));
    drafts.for_each(|number| files.forget_draft(home, number));
}

/// What an event wrote may be durable though the store failed on it.
pub(super) fn keep(plugin: &Plugin, is_current: bool, pins: &[Pin]) {
    if let Some(files) = &plugin.around.blobs
        && is_current
    {
        files.keep_until_counted(pins);
    }
}

/// What the office hears when an event that handled a message is durable.
fn handled(event: &Event, refusal: Option<Refusal>) -> Option<Input> {
    let Event::Message(incoming) = event else {
        return None;
    };
    let delivery = incoming.delivery.as_ref()?;
    Some(Input::Handled {
        channel: delivery.channel,
        live: Arc::clone(&delivery.live),
        refusal,
    })
}
