//! A recorded decision, asked again of other scripts.

use std::sync::Arc;

use thiserror::Error;

use crate::{
    decision::{Decision, Outcome, Trace, VerdictDecision},
    policy::Policy,
    recording::{Answer, Question, Recording},
    script::ground::Ground,
    sets::SetRegistry,
};

/// What these scripts would have answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Replayed {
    /// The answer.
    pub answer: Answer,
    /// How it comes about.
    pub trace: Trace,
}

/// Why nobody can tell what these scripts would have answered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotRecorded {
    /// The recording is not whole.
    #[error("the recorded decision is not whole: {0}")]
    Lost(String),
    /// A script asked what the recorded ones did not.
    #[error("not recorded: {0}")]
    Read(String),
    /// How long a script runs hangs on the machine.
    #[error("the script ran out of time here")]
    OutOfTime,
}

impl Policy {
    /// Asks the recorded question again, on the ground of what was read then. Sets in `given` count
    /// in place of those that the decision asked. Nothing that the node holds is seen or changed.
    ///
    /// # Errors
    /// [`NotRecorded`]: the answer hangs on something that was not read then. It is not guessed.
    pub fn replay(
        &self,
        recording: &Recording,
        given: &Arc<SetRegistry>,
    ) -> Result<Replayed, NotRecorded> {
        if let Some(why) = &recording.reads.lost {
            return Err(NotRecorded::Lost(why.clone()));
        }
        let reads = Arc::new(recording.reads.clone());
        let ground = Arc::new(Ground::of_record(reads, Arc::clone(given)));
        let replayed = self.ask_again(&recording.question, &ground);
        if let Some(question) = ground.take_missing() {
            return Err(NotRecorded::Read(question));
        }
        let need_sni = Answer::Route(Outcome::NeedSni);
        if replayed.answer == need_sni && recording.answer != need_sni {
            return Err(NotRecorded::Read("c.sni".to_owned()));
        }
        if ground.ran_out_of_time() {
            return Err(NotRecorded::OutOfTime);
        }
        Ok(replayed)
    }

    fn ask_again(&self, question: &Question, ground: &Arc<Ground>) -> Replayed {
        let verdict = |decision: VerdictDecision| Replayed {
            answer: Answer::Verdict(decision.verdict),
            trace: decision.trace,
        };
        match question {
            Question::Route(conn) => {
                let Decision { outcome, trace } = self.route_on(ground, conn, conn.now);
                let answer = Answer::Route(outcome);
                Replayed { answer, trace }
            }
            Question::Accept { node, now } => {
                verdict(self.verdict_on(ground, "accept", node, *now))
            }
            Question::Relay(request) => {
                let now = request.now;
                verdict(self.verdict_on(ground, "relay", &shared(&**request), now))
            }
            Question::Exit(request) => {
                let now = request.now;
                verdict(self.verdict_on(ground, "exit", &shared(&**request), now))
            }
            Question::Asked(asked) => verdict(self.asked_on(ground, asked)),
        }
    }
}

fn shared<T: Clone>(value: &T) -> Arc<T> {
    Arc::new(value.clone())
}
