//! What of an event a recording has, and what one gives again.

use std::sync::Arc;

use super::{Own, ROW_BYTES, Rows, Scan, Transaction};
use crate::{
    event::Refusal,
    message::{OutHead, OutKey, Parcel},
    recording::{Effect, Tape},
    rows::{Space, own_key},
    rules::{Fact, Ruling},
    store::StoreError,
};

/// An answer for the plugin, or a fault of the store.
type Told<T> = Result<Result<T, Refusal>, StoreError>;

impl Transaction {
    /// Where what the host answers goes to, or comes from.
    pub(crate) fn use_tape(&mut self, tape: Tape) {
        self.tape = tape;
    }

    pub(crate) fn take_tape(&mut self) -> Tape {
        std::mem::take(&mut self.tape)
    }

    /// Before a call that no recording holds; false in a replay.
    pub(crate) fn leaves_recording(&mut self) -> bool {
        self.tape.leave()
    }

    /// Bytes that the other principals of the plugin keep.
    pub(crate) fn others_keep(&self) -> u64 {
        self.ground.others_keep
    }

    /// A call whose answer anybody may know.
    pub(crate) fn public_call(
        &mut self,
        ask: impl FnOnce(&mut Self) -> Told<Vec<u8>>,
    ) -> Told<Vec<u8>> {
        if let Some(told) = self.tape.public() {
            return Ok(told);
        }
        let told = ask(self);
        self.tape.keep_public(&told);
        told
    }

    /// A call whose answer comes of a secret key.
    pub(crate) fn hidden_call(
        &mut self,
        ask: impl FnOnce(&mut Self) -> Told<Vec<u8>>,
    ) -> Told<Vec<u8>> {
        if let Some(told) = self.tape.hidden() {
            return Ok(told.map(Option::unwrap_or_default));
        }
        let told = ask(self);
        if let Ok(told) = &told {
            self.tape
                .keep_hidden(told.as_ref().map(|bytes| Some(bytes.len())));
        }
        told
    }

    /// Makes a key.
    pub(crate) fn key_creation(
        &mut self,
        create: impl FnOnce(&mut Self) -> Told<Vec<u8>>,
    ) -> Told<Vec<u8>> {
        let told = self.public_call(create);
        self.sealed_writes.0 += u32::from(matches!(told, Ok(Ok(_))));
        told
    }

    /// Deletes a key, or a sealed row.
    pub(crate) fn sealed_deletion(
        &mut self,
        delete: impl FnOnce(&mut Self) -> Told<()>,
    ) -> Told<()> {
        let told = self.done_call(delete);
        self.sealed_writes.1 += u32::from(matches!(told, Ok(Ok(()))));
        told
    }

    fn done_call(&mut self, ask: impl FnOnce(&mut Self) -> Told<()>) -> Told<()> {
        if let Some(told) = self.tape.done() {
            return Ok(told);
        }
        let told = ask(self);
        self.tape.keep_done(&told);
        told
    }

    pub(crate) fn secret_get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(told) = self.tape.hidden() {
            return Ok(told.unwrap_or_default());
        }
        let row = self.row_get(Own::Secret, key)?;
        self.tape.keep_hidden(Ok(row.as_ref().map(Vec::len)));
        Ok(row)
    }

    pub(crate) fn secret_set(&mut self, key: &[u8], value: Vec<u8>) -> Told<()> {
        let bytes = key.len() + value.len() + ROW_BYTES;
        let plays = matches!(self.tape, Tape::Plays(_));
        let told = self.done_call(|event| event.row_set(Own::Secret, key, value));
        if let Ok(Ok(())) = told {
            self.sealed_writes.0 += 1;
            if plays {
                // It was within the limit then.
                let _ = self.charge(bytes);
            }
        }
        told
    }

    pub(crate) fn secret_delete(&mut self, key: &[u8]) -> Told<()> {
        self.sealed_deletion(|event| event.row_delete(Own::Secret, key))
    }

    pub(crate) fn secret_scan(&mut self, scan: &Scan) -> Result<Rows, StoreError> {
        if let Some(rows) = self.tape.hidden_rows() {
            return Ok(rows);
        }
        let rows = self.row_scan(Own::Secret, scan)?;
        self.tape.keep_hidden_rows(&rows);
        Ok(rows)
    }

    /// What the rules say.
    pub(crate) fn ruling(
        &mut self,
        hook: &str,
        question: &str,
        ask: impl FnOnce() -> Ruling,
    ) -> Ruling {
        if let Some(ruling) = self.tape.ruling(hook, question) {
            return ruling;
        }
        let ruling = ask();
        self.tape.keep_ruling(hook, question, &ruling);
        ruling
    }

    /// A row that others than the principal write was read.
    pub(super) fn note_row(&mut self, space: Space, key: &[u8], value: Option<&[u8]>) {
        self.tape.keep_row(space as u8, key, value);
    }

    /// All that it did, and channels as it leaves them.
    pub(crate) fn effects(&self) -> (Vec<Effect>, Vec<(OutKey, OutHead)>) {
        let mut effects = self.row_effects();
        if self.sealed_writes != (0, 0) {
            let (written, deleted) = self.sealed_writes;
            effects.push(Effect::Sealed { written, deleted });
        }
        let timers = self.timers.iter();
        effects.extend(timers.map(|(name, timer)| Effect::timer(name, timer.as_ref())));
        let parcels = self.messages.parcels().iter();
        effects.extend(parcels.filter_map(message));
        let facts = self.facts.iter();
        effects.extend(facts.map(|((kind, peer), value)| {
            Effect::Fact(Fact {
                kind: Arc::clone(kind),
                peer: *peer,
                value: *value,
            })
        }));
        for (request, answer) in &self.answers {
            let answer = answer.as_ref().map(|body| body[..].into());
            effects.push(Effect::Answer(*request, answer.map_err(Clone::clone)));
        }
        let progress = self.progress.iter();
        effects.extend(progress.map(|step| Effect::Progress(step.clone())));
        let heads = self.messages.heads().iter();
        let heads = heads.map(|(key, head)| (key.clone(), head.clone()));
        (effects, heads.collect())
    }

    fn row_effects(&self) -> Vec<Effect> {
        let own = self.ground.home.key(self.ground.side.space(), &[]);
        let rows = self.rows.rows().filter(|(key, _)| key.starts_with(&own));
        let rows = rows.map(|(key, value)| Effect::Row(own_key(key).into(), value.map(Into::into)));
        let scratch = self.scratch.iter().map(|(key, value)| {
            let value = value.as_deref();
            Effect::Scratch(key[..].into(), value.map(Into::into))
        });
        rows.chain(scratch).collect()
    }
}

fn message(parcel: &Parcel) -> Option<Effect> {
    Some(match parcel.clone() {
        Parcel::Durable {
            key,
            head,
            place,
            row,
        } => Effect::Send {
            key,
            way: head.way,
            place,
            expires_ms: row.about.expires_ms,
            report: row.about.report,
            body: row.body.as_deref().unwrap_or_default().into(),
        },
        Parcel::Post(letter) => Effect::Post {
            key: letter.key,
            way: letter.way,
            body: letter.body[..].into(),
        },
        Parcel::Ask {
            id,
            letter,
            deadline_ms,
        } => Effect::Ask {
            id,
            key: letter.key,
            way: letter.way,
            deadline_ms,
            body: letter.body[..].into(),
        },
        Parcel::Reopened { peer, .. } => Effect::Reopen(peer),
        // No recording holds an event with blobs.
        Parcel::FetchBlob { .. } | Parcel::Unfetch { .. } => return None,
    })
}
