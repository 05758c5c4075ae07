//! What a world of many nodes is like: how far they are from each other, what is lost between them, and
//! nodes that are gone.

use std::{rc::Rc, time::Duration};

use wormholes_plugin::Plugin;

use super::{At, World};
use crate::{
    counts::Counts,
    net::{Links, millis},
};

impl<P: Plugin> World<P> {
    /// Gives each pair of nodes a round trip of its own, which the seed draws between two figures, all
    /// alike: the mean is in their middle. Until then each journey takes another time, up to 100 ms.
    pub fn latency(&mut self, min: Duration, max: Duration) {
        self.around.net.links = Links::Between {
            min_ms: millis(min),
            max_ms: millis(max),
            seed: self.around.random.number(),
        };
    }

    /// Has a function say what a round trip between two nodes takes, by their numbers, of which the smaller
    /// comes first.
    pub fn links(&mut self, round_trip: impl Fn(usize, usize) -> Duration + 'static) {
        self.around.net.links = Links::By(Rc::new(round_trip));
    }

    /// So many of a hundred posts, questions and answers between nodes are lost, and nobody is told;
    /// default: 0. Who asked hears [`Expired`](wormholes_plugin::ErrorCode::Expired) at the end of its
    /// patience. Durable messages are not lost: [`Self::unsteady`] has them go again.
    pub fn lossy(&mut self, percent: u8) {
        self.around.net.loses_percent = percent;
    }

    /// Stops so many of a hundred nodes that run, at once, as [`At::stop`] does; which ones, the seed
    /// decides. Gives their numbers.
    pub fn stop_percent(&mut self, percent: u8) -> Vec<usize> {
        let nodes = self.nodes.iter().enumerate();
        let running = nodes.filter(|(_, node)| !node.is_stopped);
        let mut running: Vec<usize> = running.map(|(number, _)| number).collect();
        let count = running.len() * usize::from(percent.min(100)) / 100;
        let mut stopped = Vec::with_capacity(count);
        while stopped.len() < count {
            let at = self.around.random.of(0..running.len() as u64);
            let number = running.swap_remove(usize::try_from(at).unwrap_or_default());
            self.at(number).stop();
            stopped.push(number);
        }
        stopped
    }

    /// What all nodes did and sent since the world began.
    pub fn counts(&self) -> Counts {
        self.nodes.iter().map(|node| node.counts).sum()
    }

    /// A hash over all events so far: two worlds of one build that did the same have the same.
    pub fn trace(&self) -> u64 {
        self.around.trace.0
    }
}

impl<P: Plugin> At<'_, P> {
    /// Has the machine of the node be gone: nothing runs there, and what is on its way to it, or was asked
    /// there, is lost. Others notice by its silence: who asks it is told
    /// [`Unavailable`](wormholes_plugin::ErrorCode::Unavailable) after 15 s, or
    /// [`Expired`](wormholes_plugin::ErrorCode::Expired) before, when its patience ends; durable messages
    /// wait. What it asked others goes on there until then, and is
    /// [`canceled`](Plugin::canceled) after the same 15 s, or as soon as it is started again. What the
    /// test asks of it is refused. A node that ends by [`restart`](crate::Drive::restart), or crashes, is
    /// back at once and knows nothing of trunks from before: there others are told at once, and what it
    /// asked them is canceled.
    pub fn stop(&mut self) {
        let (node, around) = self.both();
        node.stop(around);
    }

    /// Starts the node again, on what was committed; one that runs is started anew.
    pub fn start_again(&mut self) {
        let (node, around) = self.both();
        node.start(around);
        self.world.find_ways();
    }

    /// Whether it was not stopped.
    pub fn runs(&mut self) -> bool {
        !self.both().0.is_stopped
    }

    /// What it did and sent since the world began.
    pub fn counts(&mut self) -> Counts {
        self.both().0.counts
    }
}
