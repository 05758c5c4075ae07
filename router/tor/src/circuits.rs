//! Which circuits carry the streams of a client. Arti tells it of a stream, not of itself.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arti_client::DataStream;
use tor_linkspec::HasAddrs;
use tor_proto::client::{circuit::PathEntry, stream::ClientStreamCtrl};

use crate::report::Circuit;

/// Circuits without an open stream that are remembered. Overflow rule: the one that was first seen
/// first goes.
const MAX_IDLE: usize = 64;

/// Circuits that carried a stream, the last seen last.
#[derive(Debug, Default)]
pub(crate) struct Circuits(Mutex<VecDeque<Circuit>>);

/// An open stream's place; dropping it says that the stream is over.
#[derive(Debug)]
pub(crate) struct Place {
    circuits: Arc<Circuits>,
    /// None where arti does not tell.
    circuit: Option<String>,
}

impl Circuits {
    /// Counts a stream.
    pub(crate) fn enter(self: &Arc<Self>, stream: &DataStream) -> Place {
        let tunnel = stream.client_stream_ctrl().and_then(|ctrl| ctrl.tunnel());
        let circuit = tunnel.map(|tunnel| {
            let id = tunnel.unique_id().to_string();
            let paths = tunnel.all_paths();
            let hops = paths.iter().flat_map(|path| path.iter());
            self.opened(&id, hops.filter_map(relay).collect());
            id
        });
        Place {
            circuits: Arc::clone(self),
            circuit,
        }
    }

    /// All that are remembered.
    pub(crate) fn all(&self) -> Vec<Circuit> {
        self.lock().iter().cloned().collect()
    }

    fn opened(&self, id: &str, relays: Vec<String>) {
        let mut circuits = self.lock();
        if let Some(circuit) = circuits.iter_mut().find(|circuit| circuit.id == id) {
            circuit.streams += 1;
            circuit.opened += 1;
            return;
        }
        circuits.push_back(Circuit {
            id: id.to_owned(),
            streams: 1,
            opened: 1,
            relays,
        });
    }

    fn ended(&self, id: &str) {
        let mut circuits = self.lock();
        if let Some(circuit) = circuits.iter_mut().find(|circuit| circuit.id == id) {
            circuit.streams = circuit.streams.saturating_sub(1);
        }
        let is_idle = |circuit: &Circuit| circuit.streams == 0;
        if circuits.iter().filter(|circuit| is_idle(circuit)).count() > MAX_IDLE
            && let Some(oldest) = circuits.iter().position(is_idle)
        {
            circuits.remove(oldest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Circuit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(circuit) = &self.circuit {
            self.circuits.ended(circuit);
        }
    }
}

/// Where a hop is, or what arti calls it when it has no address; None when it is no relay but the
/// far end of an onion service's circuit.
fn relay(hop: &PathEntry) -> Option<String> {
    let address = HasAddrs::addrs(hop.as_chan_target()?).next();
    Some(address.map_or_else(|| hop.to_string(), |address| address.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circuits_are_remembered_while_they_carry_and_a_while_after() {
        let circuits = Circuits::default();
        circuits.opened("busy", vec!["a".to_owned()]);
        for number in 0..=MAX_IDLE {
            let id = number.to_string();
            circuits.opened(&id, Vec::new());
            circuits.ended(&id);
        }
        circuits.opened("busy", Vec::new());
        let circuits = circuits.all();
        assert_eq!(circuits.len(), MAX_IDLE + 1, "the first idle one is gone");
        assert_eq!((circuits[0].streams, circuits[0].opened), (2, 2));
        assert_eq!(circuits[0].relays, ["a"]);
        assert_eq!(circuits[1].id, "1");
    }
}
