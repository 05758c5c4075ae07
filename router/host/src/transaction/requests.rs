//! Requests that an event answers, or tells how far they are.

use serde::{Deserialize, Serialize};

use super::{Limit, ROW_BYTES, Transaction, invalid};
use crate::{
    event::{ErrorCode, Refusal, RequestKind},
    http::HttpResponse,
};

/// The longest answer.
pub(crate) const MAX_ANSWER_BYTES: usize = 1 << 20;

/// How far a request is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The request's id.
    pub request: u64,
    /// 0 to 100.
    pub percent: Option<u8>,
    /// For people.
    pub text: String,
}

impl Transaction {
    pub(crate) fn finish(
        &mut self,
        request: u64,
        answer: Result<Vec<u8>, Refusal>,
    ) -> Result<(), Refusal> {
        if answer
            .as_ref()
            .is_ok_and(|body| body.len() > MAX_ANSWER_BYTES)
        {
            return Err(invalid(
                "an answer has at most 1 MiB; give a blob's hash instead",
            ));
        }
        self.check_waits(request, RequestKind::Command)?;
        let length = answer.as_ref().map_or(0, Vec::len);
        self.charge(length + ROW_BYTES)?;
        // Its result is kept until somebody collects it.
        if length > 0 && self.memory.operations.is_open(request) {
            let kept = self.kept_bytes.saturating_add_unsigned(length as u64);
            if self.keeps_too_much(kept) {
                return Err(self.hit(Limit::State));
            }
            self.kept_bytes = kept;
        }
        self.answers.insert(request, answer);
        Ok(())
    }

    /// Answers a request that came by HTTP.
    pub(crate) fn respond(&mut self, request: u64, response: &HttpResponse) -> Result<(), Refusal> {
        response.check()?;
        self.check_waits(request, RequestKind::Http)?;
        let answer = response.encode();
        self.charge(answer.len() + ROW_BYTES)?;
        self.answers.insert(request, Ok(answer));
        Ok(())
    }

    /// Whether somebody waits for the answer to a request of this kind.
    fn check_waits(&mut self, request: u64, kind: RequestKind) -> Result<(), Refusal> {
        self.check_writable()?;
        let waits = self.memory.requests.get(&request) == Some(&kind);
        if waits && !self.answers.contains_key(&request) {
            return Ok(());
        }
        self.hits.insert(Limit::StrayAnswers);
        let nobody = Limit::StrayAnswers.mend();
        Err(Refusal::new(ErrorCode::NotFound, nobody))
    }

    pub(crate) fn progress(
        &mut self,
        request: u64,
        percent: Option<u8>,
        text: String,
    ) -> Result<(), Refusal> {
        if percent.is_some_and(|percent| percent > 100) {
            return Err(invalid("percent is 0 to 100"));
        }
        self.check_writable()?;
        if !self.memory.requests.contains_key(&request) {
            // Nobody waits for it any more.
            return Ok(());
        }
        self.charge_log(text.len())?;
        let step = Progress {
            request,
            percent,
            text,
        };
        // In a migration the log is charged anew for each step; what was told before is old by then.
        let known = self.progress.iter_mut();
        match known.rev().find(|known| known.request == request) {
            Some(known) if self.runs_steps => *known = step,
            _ => self.progress.push(step),
        }
        Ok(())
    }
}
