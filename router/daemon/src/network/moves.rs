//! Notices that this machine has moved to another network, or slept: then all connections are asked
//! for a sign of life at once, and what shows none is made anew, before the next flow needs it.

use std::{sync::Arc, time::Duration};

use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all, pending},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use super::{Network, changes::Changes};
use crate::clock::since_boot;

/// Between two looks at the clock and the connections.
const TICK: Duration = Duration::from_secs(1);
/// Looks that are so far apart had a sleep between them, or the process was stopped.
const SLEEP: Duration = Duration::from_secs(3);

/// Looks after the connections until the node stops.
pub(super) async fn watch(network: Arc<Network>) {
    let changes = Changes::listen();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked = since_boot();
    // A second change, while the first is looked into, starts it again.
    let mut looking: BoxFuture<'_, ()> = pending().boxed();
    loop {
        let moved = tokio::select! {
            () = changes.next() => true,
            _ = tick.tick() => {
                let last = std::mem::replace(&mut looked, since_boot());
                looked.saturating_sub(last) > SLEEP
            }
            () = looking.as_mut() => {
                looking = pending().boxed();
                continue;
            }
        };
        if moved {
            looking = network.look_around().boxed();
        } else {
            network.peers.look_for_life();
        }
    }
}

impl Network {
    /// Learns which connections still lead anywhere.
    pub(super) async fn look_around(&self) {
        tracing::debug!("moved or slept: connections are probed");
        self.peers.start_afresh();
        let links = self.peers.all_links().into_iter();
        let links: Vec<_> = links.map(|link| (link.acknowledged(), link)).collect();
        self.carrier.probe();
        self.moves.send_modify(|moves| *moves += 1);
        self.peers_changed.send_replace(());
        join_all(links.iter().map(|(before, link)| link.shows_life(*before))).await;
        self.expire_world();
        self.look_for_lost();
    }

    /// Connects anew to peers that were lost, whose records may say where they are by now.
    pub(crate) fn look_for_lost(&self) {
        self.doubt_records();
        self.peers_changed.send_replace(());
    }

    /// Changes when this machine may have moved.
    pub(crate) fn moves(&self) -> watch::Receiver<u64> {
        self.moves.subscribe()
    }
}
