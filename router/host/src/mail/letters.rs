//! Letters: posts, questions, and wishes for blobs, which are not kept.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use tokio::sync::mpsc;
use wormholes_proto::{
    blob::BlobId,
    trunk::{BlobFrame, Envelope, Frame, Name, Principal as WirePrincipal, Want as WireWant},
};

use super::{
    Office, Owner,
    fetches::Came,
    routes::{Route, RouteKey},
    takes_more,
    trunk::{Stopped, TrunkId, on_wire},
};
use crate::{
    clock::now_ms,
    event::{ErrorCode, Refusal},
    message::{Identity, Letter, OutKey, Way},
    principal::Task,
    rows::Home,
};

/// Volatile messages that wait for a trunk, and their bytes. Overflow: the newcomer is dropped.
const MAX_LETTERS: usize = 1024;
const MAX_LETTER_BYTES: usize = 1 << 20;
/// All of one instance's, whatever ways it invents for them; and what one takes beside its body.
const MAX_WAITING_BYTES: usize = 32 << 20;
const ABOUT_BYTES: usize = 512;
/// Ways of one instance that a letter may open one more of: each is a call.
const MAX_ROUTES: usize = 8192;
/// Why something does not go.
const LONG_NAME: &str = "a name does not fit on the wire";

/// What is not kept.
pub(super) struct Volatile {
    pub(super) home: Home,
    from: WirePrincipal,
    to: WirePrincipal,
    pub(super) errand: Errand,
}

/// What it is for.
pub(super) enum Errand {
    Post {
        protocol: Name,
        body: Bytes,
    },
    Ask {
        id: u64,
        deadline_ms: u64,
        protocol: Name,
        body: Bytes,
    },
    Want(Want),
}

/// A blob that is wanted.
#[derive(Debug)]
pub(crate) struct Want {
    pub(crate) blob: BlobId,
    /// From which piece on, and how many may be on the way.
    pub(crate) first: u32,
    pub(crate) pieces: u16,
    pub(crate) with_values: bool,
    /// Who wants it: closed when it cannot be wanted now, or the trunk broke.
    pub(crate) frames: mpsc::UnboundedSender<Came>,
}

/// Bytes of letters that wait, by the instances that sent them. Overflow: the newcomer is dropped.
#[derive(Debug, Default)]
pub(super) struct Waiting(HashMap<u32, usize>);

impl Waiting {
    /// Whether there is room for one of so many bytes, which waits by this.
    fn take(&mut self, instance: u32, bytes: usize) -> bool {
        let waits = self.0.entry(instance).or_default();
        let after = *waits + bytes + ABOUT_BYTES;
        let has_room = after <= MAX_WAITING_BYTES;
        if has_room {
            *waits = after;
        }
        has_room
    }

    /// It waits no more.
    pub(super) fn give_back(&mut self, instance: u32, bytes: usize) {
        if let Some(waits) = self.0.get_mut(&instance) {
            *waits = waits.saturating_sub(bytes + ABOUT_BYTES);
        }
    }

    /// None of an instance does.
    pub(super) fn forget(&mut self, instance: u32) {
        self.0.remove(&instance);
    }
}

impl Volatile {
    pub(super) fn bytes(&self) -> usize {
        match &self.errand {
            Errand::Post { body, .. } | Errand::Ask { body, .. } => body.len(),
            Errand::Want(_) => 0,
        }
    }
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
        let sent = match Name::try_from(&*key.protocol) {
            Ok(protocol) => {
                let errand = match ask {
                    Some((id, deadline_ms)) => Errand::Ask {
                        id,
                        deadline_ms,
                        protocol,
                        body,
                    },
                    None => Errand::Post { protocol, body },
                };
                self.go(owner, (&key, &way), errand)
            }
            Err(_) => Err(LONG_NAME),
        };
        if let (Err(why), Some((id, _))) = (sent, ask) {
            let refusal = Refusal::new(ErrorCode::Unavailable, why);
            self.tell_answer(owner.home, id, Err(refusal));
        }
    }

    /// A blob is wanted.
    pub(super) fn want(&mut self, owner: &Owner, key: &OutKey, way: &Way, want: Want) {
        if want.frames.is_closed() {
            // Its fetch ended meanwhile.
            return;
        }
        // If it does not fit, whoever wants it hears that this is gone, and wants it again.
        let _ = self.go(owner, (key, way), Errand::Want(want));
    }

    /// Puts something on its way.
    ///
    /// # Errors
    /// Why it does not go.
    fn go(
        &mut self,
        owner: &Owner,
        (key, way): (&OutKey, &Way),
        errand: Errand,
    ) -> Result<(), &'static str> {
        let from = on_wire(&owner.principal, &key.sender);
        let to = on_wire(&key.to.principal, &Identity::Node);
        let (Some(from), Some(to)) = (from, to) else {
            return Err(LONG_NAME);
        };
        let route_key = RouteKey::new(self.node, owner, key, way);
        let instance = owner.loaded.number;
        if !self.routes.contains_key(&route_key) && self.routes_of(instance) >= MAX_ROUTES {
            owner.loaded.figures.dropped();
            return Err("too many receivers and ways are in use at once");
        }
        let route = self.routes.entry(route_key.clone());
        let route = route.or_insert_with(|| Route::new(Arc::clone(&owner.loaded)));
        let letter = Volatile {
            home: owner.home,
            from,
            to,
            errand,
        };
        let bytes = route.letter_bytes + letter.bytes();
        let is_full = route.letters.len() >= MAX_LETTERS
            || bytes > MAX_LETTER_BYTES && !route.letters.is_empty();
        if is_full || !self.waiting.take(instance, letter.bytes()) {
            owner.loaded.figures.dropped();
            return Err("too many messages wait for a way to that receiver");
        }
        route.letter_bytes = bytes;
        route.letters.push_back(letter);
        self.use_route(&route_key);
        Ok(())
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
        let Some(route) = self.routes.get_mut(key) else {
            return false;
        };
        let (instance, letter) = (route.instance(), route.next_letter());
        let Some(letter) = letter else {
            return false;
        };
        self.waiting.give_back(instance, letter.bytes());
        self.send_letter(trunk, letter);
        true
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
            from,
            to,
            errand,
        } = letter;
        let envelope = |protocol| Envelope {
            from: from.clone(),
            to: to.clone(),
            protocol,
        };
        match errand {
            Errand::Post { protocol, body } => {
                let envelope = envelope(protocol);
                self.send(trunk, Frame::Post { envelope, body });
            }
            Errand::Ask {
                id,
                deadline_ms,
                protocol,
                body,
            } => {
                let envelope = envelope(protocol);
                self.send_question(trunk, (home, id), deadline_ms, (envelope, body));
            }
            Errand::Want(want) => self.send_want(trunk, (from, to), want),
        }
    }

    fn send_question(
        &mut self,
        trunk: TrunkId,
        (home, id): (Home, u64),
        deadline_ms: u64,
        (envelope, body): (Envelope, Bytes),
    ) {
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

    fn send_want(
        &mut self,
        trunk: TrunkId,
        (from, to): (WirePrincipal, WirePrincipal),
        want: Want,
    ) {
        let Some(standing) = self.trunks.get_mut(&trunk) else {
            return;
        };
        let number = standing.next_want(want.frames.clone());
        let wanted = WireWant {
            want: number,
            from,
            to,
            blob: want.blob,
            first: want.first,
            pieces: want.pieces,
            with_values: want.with_values,
        };
        self.send(trunk, Frame::Blob(BlobFrame::Want(Box::new(wanted))));
        let begun = Came {
            trunk,
            want: number,
            frame: None,
            room: None,
        };
        if want.frames.send(begun).is_err() {
            // Nobody wants it any more.
            self.said(trunk, BlobFrame::Unwant { want: number });
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_of_an_instance_have_an_end_whatever_ways_they_go() {
        let mut waiting = Waiting::default();
        let mut count = 0;
        while waiting.take(1, MAX_LETTER_BYTES) {
            count += 1;
        }
        assert!(count * MAX_LETTER_BYTES <= MAX_WAITING_BYTES);
        assert!(waiting.take(2, MAX_LETTER_BYTES), "others have their own");
        waiting.give_back(1, MAX_LETTER_BYTES);
        assert!(waiting.take(1, MAX_LETTER_BYTES));
        assert!(!waiting.take(1, MAX_LETTER_BYTES));
        waiting.forget(1);
        assert!((0..count).all(|_| waiting.take(1, MAX_LETTER_BYTES)));
    }
}
