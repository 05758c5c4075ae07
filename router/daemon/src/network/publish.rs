//! This node's own record, as it is told to others.

use std::sync::atomic::Ordering::Relaxed;

use super::{Network, relays_in};
use crate::records::OwnRecord;

impl Network {
    /// Makes this node's record anew; relays hear of it at once, others when they ask.
    pub(super) fn publish(&self) {
        let record = OwnRecord {
            config: &self.config,
            identity: &self.identity,
            listen: self.carrier.listen_addresses(),
            onion_keys: self.hop_keys.published(),
            relays: relays_in(self.peers.known().iter()),
        };
        match record.sign(self.records.last_own_sequence()) {
            Ok(record) => self.records.set_own(record),
            Err(error) => tracing::warn!(%error, "cannot renew this node's record"),
        }
    }

    /// Tells others of onion keys that are new.
    pub(crate) fn publish_new_keys(&self) {
        let revision = self.hop_keys.revision();
        if self.published_keys.swap(revision, Relaxed) != revision {
            self.publish();
        }
    }
}
