//! Answers to requests, and how far they are.

use wormholes_plugin::{Error, Result, host::Space};

use super::{MAX_ANSWER_BYTES, Progress, ROW_BYTES, Transaction};
use crate::event::cut;

impl Transaction {
    pub(super) fn finish(&mut self, request: u64, answer: Result<Vec<u8>>) -> Result<()> {
        let length = answer.as_ref().map_or(0, Vec::len);
        if length > MAX_ANSWER_BYTES {
            let long = "an answer has at most 1 MiB; give a blob's hash instead";
            return Err(Error::invalid(long));
        }
        let waits = self.memory.requests.contains(&request) && !self.memory.http.contains(&request);
        if !waits || self.answers.contains_key(&request) {
            let nobody = "nobody waits for an answer to this request";
            return Err(Error::not_found(nobody));
        }
        self.charge(length + ROW_BYTES)?;
        if self.memory.operations.open.contains_key(&request) && length > 0 {
            self.check_room(Space::State, length)?;
        }
        self.answers.insert(request, answer.map_err(cut));
        Ok(())
    }

    pub(super) fn progress(&mut self, request: u64, percent: Option<u8>, text: &str) -> Result<()> {
        if percent.is_some_and(|percent| percent > 100) {
            return Err(Error::invalid("percent is 0 to 100"));
        }
        self.check_writable()?;
        if !self.memory.requests.contains(&request) {
            return Ok(());
        }
        self.charge_log(text.len())?;
        let text = text.to_owned();
        self.progress.push((request, Progress { percent, text }));
        Ok(())
    }
}
