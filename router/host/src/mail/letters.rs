//! Letters: posts and questions, which are not kept.

use std::sync::Arc;

use bytes::Bytes;
use wormholes_proto::trunk::{Envelope, Frame, Name};

use super::{
    Office, Owner,
    routes::{Route, RouteKey},
    takes_more,
    trunk::{Stopped, TrunkId, on_wire},
};
use crate::{
    clock::now_ms,
    event::{ErrorCode, Refusal},
    message::{Identity, Letter},
    principal::Task,
    rows::Home,
};

/// Volatile messages that wait for a trunk, and their bytes. Overflow: the newcomer is dropped.
const MAX_LETTERS: usize = 1024;
const MAX_LETTER_BYTES: usize = 1 << 20;

/// What is not kept.
pub(super) struct Volatile {
    pub(super) home: Home,
    envelope: Envelope,
    pub(super) body: Bytes,
    /// A question: its id, and when it is late.
    pub(super) ask: Option<(u64, u64)>,
}

/// A question that left.
pub(super) struct Asked {
    trunk: TrunkId,
    /// Its number there.
    ask: u64,
    deadline_ms: u64,
}

impl Office {
    /// A letter leaves, or a question.
    pub(super) fn volatile(&mut self, owner: &Owner, letter: Letter, ask: Option<(u64, u64)>) {
        let Letter { key, way, body } = letter;
        let envelope = || {
            Some(Envelope {
                from: on_wire(&owner.principal, &key.sender)?,
                to: on_wire(&key.to.principal, &Identity::Node)?,
                protocol: Name::try_from(&*key.protocol).ok()?,
            })
        };
        let refuse = |office: &Self, why: &str| {
            if let Some((id, _)) = ask {
                let refusal = Refusal::new(ErrorCode::Unavailable, why);
                office.tell_answer(owner.home, id, Err(refusal));
            }
        };
        let Some(envelope) = envelope() else {
            return refuse(self, "a name does not fit on the wire");
        };
        let route_key = RouteKey::new(self.node, owner, &key, &way);
        let route = self.routes.entry(route_key.clone());
        let route = route.or_insert_with(|| Route::new(Arc::clone(&owner.loaded)));
        let bytes = route.letter_bytes + body.len();
        if route.letters.len() >= MAX_LETTERS
            || bytes > MAX_LETTER_BYTES && !route.letters.is_empty()
        {
            owner.loaded.figures.dropped();
            return refuse(self, "too many messages wait for a way to that receiver");
        }
        route.letter_bytes = bytes;
        route.letters.push_back(Volatile {
            home: owner.home,
            envelope,
            body,
            ask,
        });
        self.use_route(&route_key);
    }

    /// Sends letters as long as the trunk takes more; the rest waits for that.
    pub(super) fn fill(&mut self, key: &RouteKey, trunk: TrunkId) {
        while self.send_next(key, trunk) {}
        let has_more = self
            .routes
            .get(key)
            .is_some_and(|it| !it.letters.is_empty());
        if has_more && let Some(standing) = self.trunks.get_mut(&trunk) {
            standing.stopped.routes.insert(key.clone());
        }
    }

    fn send_next(&mut self, key: &RouteKey, trunk: TrunkId) -> bool {
        if !takes_more(&self.trunks, trunk) {
            return false;
        }
        let letter = self.routes.get_mut(key).and_then(Route::next_letter);
        letter
            .map(|letter| self.send_letter(trunk, letter))
            .is_some()
    }

    /// A trunk takes more: a letter of each route, the channels, and then all letters, so that
    /// neither waits until the other has nothing to say.
    pub(super) fn room(&mut self, trunk: TrunkId) {
        let Some(standing) = self.trunks.get_mut(&trunk) else {
            return;
        };
        let Stopped { outs, routes } = std::mem::take(&mut standing.stopped);
        for key in &routes {
            self.send_next(key, trunk);
        }
        for out in outs {
            self.flush_out(out);
        }
        for key in &routes {
            self.fill(key, trunk);
        }
    }

    fn send_letter(&mut self, trunk: TrunkId, letter: Volatile) {
        let Volatile {
            home,
            envelope,
            body,
            ask,
        } = letter;
        let Some((id, deadline_ms)) = ask else {
            return self.send(trunk, Frame::Post { envelope, body });
        };
        let left_ms = deadline_ms.saturating_sub(now_ms());
        let Some(standing) = self.trunks.get_mut(&trunk).filter(|_| left_ms > 0) else {
            return self.tell_answer(home, id, Err(Refusal::late()));
        };
        let ask = standing.next_ask((home, id));
        let asked = Asked {
            trunk,
            ask,
            deadline_ms,
        };
        self.asked.insert((home, id), asked);
        self.send(
            trunk,
            Frame::Ask {
                ask,
                envelope,
                left_ms,
                body,
            },
        );
    }

    /// Nobody waits for the answer any more.
    pub(super) fn ask_over(&mut self, home: Home, id: u64) {
        if let Some(Asked { trunk, ask, .. }) = self.asked.remove(&(home, id))
            && let Some(standing) = self.trunks.get_mut(&trunk)
            && standing.asked.remove(&ask).is_some()
        {
            self.send(trunk, Frame::Cancel { ask });
        }
    }

    /// An answer came, or the trunk is gone from which it would.
    pub(super) fn answer_came(&mut self, home: Home, id: u64, answer: Result<Bytes, Refusal>) {
        self.asked.remove(&(home, id));
        self.tell_answer(home, id, answer);
    }

    /// Questions of principals that forgot them.
    pub(super) fn look_at_asked(&mut self) {
        let now_ms = now_ms();
        let late = self.asked.iter().filter(|(_, it)| it.deadline_ms <= now_ms);
        let late: Vec<_> = late.map(|(asker, _)| *asker).collect();
        for (home, id) in late {
            self.ask_over(home, id);
        }
    }

    /// The answer to a question of a principal that is awake: it has the question in memory.
    pub(super) fn tell_answer(&self, home: Home, id: u64, answer: Result<Bytes, Refusal>) {
        if let Some(post) = self.shared.awake(home) {
            post.deliver(Task::Answer { id, answer });
        }
    }
}
