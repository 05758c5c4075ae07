//! Where the messages of channels are, found by either end.

use std::collections::{BTreeMap, BTreeSet};

use super::ChannelId;

/// Where a channel's message is.
#[derive(Debug)]
pub(super) struct Tour {
    pub(super) to: usize,
    pub(super) trip: u64,
    pub(super) is_away: bool,
    pub(super) not_before_ms: u64,
}

#[derive(Debug, Default)]
pub(super) struct Tours {
    /// By the node that sends.
    from: BTreeMap<usize, BTreeMap<ChannelId, Tour>>,
    /// By the node that receives.
    to: BTreeMap<usize, BTreeSet<ChannelId>>,
}

impl Tours {
    pub(super) fn get(&self, channel: &ChannelId) -> Option<&Tour> {
        self.from.get(&channel.0)?.get(channel)
    }

    pub(super) fn get_mut(&mut self, channel: &ChannelId) -> Option<&mut Tour> {
        self.from.get_mut(&channel.0)?.get_mut(channel)
    }

    pub(super) fn put(&mut self, channel: &ChannelId, tour: Tour) {
        let to = tour.to;
        let tours = self.from.entry(channel.0).or_default();
        let before = tours.insert(channel.clone(), tour);
        if let Some(before) = before.filter(|before| before.to != to) {
            self.forget_to(before.to, channel);
        }
        self.to.entry(to).or_default().insert(channel.clone());
    }

    /// A node knows of none of its own any more.
    pub(super) fn forget_from(&mut self, node: usize) {
        for (channel, tour) in self.from.remove(&node).into_iter().flatten() {
            self.forget_to(tour.to, &channel);
        }
    }

    fn forget_to(&mut self, node: usize, channel: &ChannelId) {
        if let Some(channels) = self.to.get_mut(&node) {
            channels.remove(channel);
            if channels.is_empty() {
                self.to.remove(&node);
            }
        }
    }

    /// Channels to a node.
    pub(super) fn to(&self, node: usize) -> Vec<ChannelId> {
        self.to.get(&node).into_iter().flatten().cloned().collect()
    }
}
