//! Questions that change nothing: of what is durable, beside events.

use std::{cell::RefCell, rc::Rc};

use wormholes_plugin::{Context, Error, ErrorCode, Plugin, Principal, Result};

use super::{Around, Node, handlers::run};
use crate::{
    event::{Fault, cut},
    memory::Memory,
    random::Random,
    transaction::{Ground, MAX_ANSWER_BYTES, Transaction},
};

impl<P: Plugin> Node<P> {
    /// Asks what changes nothing, of what is durable.
    pub(crate) fn query<T>(
        &self,
        principal: &Principal,
        around: &mut Around,
        ask: impl FnOnce(&P, &Context) -> Result<T>,
    ) -> Result<T> {
        self.check_principal(principal)?;
        let unavailable = |why: String| Err(Error::new(ErrorCode::Unavailable, why));
        let actor = self.actors.get(principal);
        if let Some(why) = actor.and_then(|actor| actor.parked.as_ref()) {
            return unavailable(format!("the plugin is parked: {why}"));
        }
        let mut memory = Memory::default();
        if let Some(actor) = actor {
            let woken_by = actor.memory.woken_by;
            if woken_by.is_some_and(|by| by.schema != self.manifest.state.schema) {
                return unavailable("its rows are of another version yet".to_owned());
            }
            memory.state.clone_from(&actor.memory.state);
            memory.secret.clone_from(&actor.memory.secret);
            memory.keys.clone_from(&actor.memory.keys);
            memory.blobs.held.clone_from(&actor.memory.blobs.held);
        }
        let ground = Ground {
            reads_only: true,
            others_keep: 0,
            others_hold: 0,
            ..self.ground(principal, around)
        };
        let seed = Random::new(around.random.number());
        let faults = Rc::clone(&around.faults);
        let transaction = Transaction::new(ground, memory, seed, faults);
        let transaction = Rc::new(RefCell::new(transaction));
        let cx = Context::new(0, 0, around.now_ms, principal.clone());
        around.faults.borrow_mut().paused = true;
        let told = run(&transaction, || ask(&P::default(), &cx));
        around.faults.borrow_mut().paused = false;
        told.map_err(|fault| match fault {
            Fault::Refused(error) => cut(error),
            Fault::Broke(_) => Error::failed("the plugin failed; see its log"),
        })
    }
}

/// An answer has its limit.
pub(crate) fn check_length(answer: &[u8]) -> Result<()> {
    if answer.len() > MAX_ANSWER_BYTES {
        let long = "the plugin's answer is longer than 1 MiB";
        return Err(Error::new(ErrorCode::Quota, long));
    }
    Ok(())
}
