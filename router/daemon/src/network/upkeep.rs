//! What goes on by itself: peers are connected, and records are kept fresh.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, timeout};

use super::Network;
use crate::records::REFRESH_PERIOD;

/// Peers that are not connected are tried again after this.
const CONNECT_PERIOD: Duration = Duration::from_secs(15);

/// Keeps peers connected.
pub(super) async fn keep_connected(network: Arc<Network>) {
    let mut changed = network.peers_changed.subscribe();
    loop {
        changed.mark_unchanged();
        network.connect_peers().await;
        let _ = timeout(CONNECT_PERIOD, changed.changed()).await;
    }
}

/// Keeps the records of others fresh, and this node's own.
pub(super) async fn keep_records(network: Arc<Network>) {
    let mut changed = network.peers_changed.subscribe();
    let mut refreshed = Instant::now();
    loop {
        changed.mark_unchanged();
        network.keep_places();
        network.records.drop_expired();
        network.hop_keys.rotate();
        network.publish_new_keys();
        if network.records.is_outdated() {
            network.publish();
        }
        let doubted = network.records_doubted.swap(false, Relaxed);
        if doubted || refreshed.elapsed() >= REFRESH_PERIOD {
            network.refresh_records().await;
            refreshed = Instant::now();
        }
        let _ = timeout(CONNECT_PERIOD, changed.changed()).await;
    }
}
