//! What waits on one channel, as the figures of its plugin count it: as long as the office knows the
//! channel.

use std::sync::Arc;

use crate::loaded::Loaded;

pub(super) struct Counted {
    loaded: Arc<Loaded>,
    messages: u64,
}

impl Counted {
    /// Nothing yet.
    pub(super) fn new(loaded: &Arc<Loaded>) -> Self {
        Self {
            loaded: Arc::clone(loaded),
            messages: 0,
        }
    }

    /// So many wait.
    pub(super) fn set(&mut self, messages: u64) {
        self.loaded.figures.waits(self.messages, messages);
        self.messages = messages;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.set(0);
    }
}
