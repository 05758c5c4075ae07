//! Timers that an event sets and cancels.

use std::sync::Arc;

use super::{Limit, ROW_BYTES, Transaction, invalid};
use crate::{event::Refusal, memory::Timer};

/// The longest payload of a timer: all that are open are in memory.
const MAX_PAYLOAD_BYTES: usize = 4 << 10;
/// Names of timers.
const MAX_NAME_BYTES: usize = 128;

impl Transaction {
    pub(crate) fn timer_set(
        &mut self,
        name: &str,
        at_ms: u64,
        payload: Vec<u8>,
        durable: bool,
    ) -> Result<(), Refusal> {
        self.check_writable()?;
        check_name(name)?;
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(invalid(
                "a timer's payload has at most 4 KiB; keep more in a row",
            ));
        }
        let is_new = self.timer(name).is_none();
        if is_new && self.open_timers >= self.ground.limits.timers as usize {
            return Err(self.hit(Limit::Timers));
        }
        self.charge(name.len() + payload.len() + ROW_BYTES)?;
        let timer = Timer {
            // One that is due at once comes after what waits.
            due_ms: at_ms.max(self.stamp.now_ms.saturating_add(1)),
            payload: payload.into(),
            durable,
        };
        self.timers.insert(name.into(), Some(timer));
        self.open_timers += usize::from(is_new);
        Ok(())
    }

    pub(crate) fn timer_cancel(&mut self, name: &str) -> Result<(), Refusal> {
        self.check_writable()?;
        check_name(name)?;
        self.remove_timer(name.into());
        Ok(())
    }

    pub(crate) fn timer_due(&self, name: &str) -> Option<u64> {
        self.timer(name).map(|timer| timer.due_ms)
    }

    fn timer(&self, name: &str) -> Option<&Timer> {
        match self.timers.get(name) {
            Some(own) => own.as_ref(),
            None => self.memory.timers.get(name),
        }
    }

    pub(super) fn remove_timer(&mut self, name: Arc<str>) {
        if self.timer(&name).is_some() {
            self.timers.insert(name, None);
            self.open_timers -= 1;
        }
    }
}

fn check_name(name: &str) -> Result<(), Refusal> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(invalid("a timer's name has 1 to 128 bytes"));
    }
    Ok(())
}
