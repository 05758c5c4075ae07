//! Notices that this machine has moved to another network, or slept: then all connections are asked
//! for a sign of life at once, and what shows none is made anew, before the next flow needs it.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};

use super::{Network, changes::Changes};
use crate::{carrier::Link, clock::since_boot};

/// Between two looks at the clock and the connections.
const TICK: Duration = Duration::from_secs(1);
/// Looks that are so far apart had a sleep between them, or the process was stopped.
const SLEEP: Duration = Duration::from_secs(3);

/// A change comes in many messages: those within so long are one look's.
const FLOCK: Duration = Duration::from_millis(250);
/// What changes during a look has another one begin beside it, so that neither the new network nor
/// what is lost already waits. On a network that changes without end what comes next waits for one
/// of these to end: up to five seconds, where paths are that long.
const MAX_LOOKS: usize = 2;
/// A look takes so long at least, whatever there is to be looked at.
const SHORTEST_LOOK: Duration = Duration::from_secs(1);

/// Looks after the connections until the node stops.
pub(super) async fn watch(network: Arc<Network>) {
    let moved = Notify::new();
    tokio::join!(
        notice(&network, &moved),
        look_into(&moved, || network.look_around())
    );
}

/// Tells of each move and sleep.
async fn notice(network: &Network, moved: &Notify) {
    let changes = Changes::listen();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked = since_boot();
    loop {
        tokio::select! {
            () = changes.next() => moved.notify_one(),
            _ = tick.tick() => {
                let last = std::mem::replace(&mut looked, since_boot());
                if looked.saturating_sub(last) > SLEEP {
                    moved.notify_one();
                } else {
                    for link in network.all_links() {
                        link.look_for_life();
                    }
                }
            }
        }
    }
}

/// Has a look at each move, or one at several when they come too fast; each look is had to its end.
async fn look_into<F: Future<Output = ()>>(moved: &Notify, look: impl Fn() -> F) {
    let mut looks = FuturesUnordered::new();
    let mut next = Instant::now();
    loop {
        let has_moved = async {
            sleep_until(next).await;
            moved.notified().await;
        };
        tokio::select! {
            () = has_moved, if looks.len() < MAX_LOOKS => {
                looks.push(async { tokio::join!(look(), sleep(SHORTEST_LOOK)) });
                next = Instant::now() + FLOCK;
            }
            Some(_) = looks.next() => {}
        }
    }
}

impl Network {
    /// Learns which connections still lead anywhere.
    pub(super) async fn look_around(&self) {
        tracing::debug!("moved or slept: connections are probed");
        self.peers.start_afresh();
        self.onion.start_afresh();
        for link in self.all_links() {
            link.forget_mirrored();
        }
        self.punches.start_afresh();
        // Through Tor a sign of life takes its time, and all others would wait for it: such a link times out
        // hardly later by itself.
        let links = self.all_links().into_iter();
        let links = links.filter(|link| !link.goes_through_tor());
        let links: Vec<_> = links.map(|link| (link.acknowledged(), link)).collect();
        self.carrier.probe();
        self.moves.send_modify(|moves| *moves += 1);
        self.peers_changed.send_replace(());
        join_all(links.iter().map(|(before, link)| link.shows_life(*before))).await;
        self.expire_world();
        self.look_for_lost();
    }

    /// All connections that are not closed, those to the first hops of onions included.
    fn all_links(&self) -> Vec<Link> {
        let mut links = self.peers.all_links();
        links.extend(self.onion.links());
        links
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use tokio::{sync::Semaphore, time::timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_network_that_changes_without_end_is_looked_at_to_the_end() {
        let (moved, begun, ended) = (Notify::new(), AtomicUsize::new(0), AtomicUsize::new(0));
        let look = || async {
            begun.fetch_add(1, Relaxed);
            sleep(SHORTEST_LOOK).await;
            ended.fetch_add(1, Relaxed);
        };
        let storm = async {
            let mut gusts = interval(Duration::from_millis(20));
            while ended.load(Relaxed) < 2 * MAX_LOOKS {
                gusts.tick().await;
                moved.notify_one();
            }
        };
        tokio::select! {
            () = look_into(&moved, look) => {}
            storm = timeout(LIMIT, storm) => storm.expect("looks that end"),
        }
        let [begun, ended] = [begun, ended].map(AtomicUsize::into_inner);
        assert!(begun <= ended + MAX_LOOKS, "{begun} begun, {ended} ended");
    }

    #[tokio::test]
    async fn what_changes_during_a_look_has_another_one() {
        let (moved, begun, ends) = (Notify::new(), Notify::new(), Semaphore::new(0));
        let look = || async {
            begun.notify_one();
            ends.acquire().await.unwrap().forget();
        };
        let several = async {
            for _ in 0..MAX_LOOKS {
                moved.notify_one();
                begun.notified().await;
            }
            // There is no place for one more before another has ended.
            moved.notify_one();
            ends.add_permits(1);
            begun.notified().await;
        };
        tokio::select! {
            () = look_into(&moved, look) => {}
            several = timeout(LIMIT, several) => several.expect("another look"),
        }
    }
}
