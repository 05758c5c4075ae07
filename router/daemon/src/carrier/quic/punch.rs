//! Calls by which two nodes open their NATs for each other: both call at once, from the sockets from
//! which they call their relays too, and say much at first, so that something leaves soon after the
//! other end has opened its own.
//!
//! One of the two calls has to be taken. A node that listens nowhere takes it at its sockets for
//! calls, from there and that node alone, and for no longer.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use quinn::{ClientConfig, TransportConfig};
use wormholes_proto::NodeId;

use super::{QuicCarrier, transport};
use crate::carrier::{LinkError, Standing};

/// What is taken for the round trip until it is known. What is not answered is said again after
/// three of them, then after twice as long each time (RFC 9002, section 6.2): after 150, 450 and
/// 1050 ms, 2.25 and 4.65 s, each time in two packets.
const GUESSED_ROUND_TRIP: Duration = Duration::from_millis(50);

/// Sockets that only call take calls while this lives.
#[derive(Debug)]
pub(crate) struct LetIn<'a> {
    quic: &'a QuicCarrier,
    from: Vec<(IpAddr, NodeId)>,
}

/// How calls are made that open a NAT.
pub(super) fn patient_transport() -> TransportConfig {
    let mut config = transport(Standing::Known);
    config.initial_rtt(GUESSED_ROUND_TRIP);
    config
}

impl QuicCarrier {
    /// Calls `id` at `address` while it calls this node. Cancel-safe: dropping it ends the attempt.
    ///
    /// # Errors
    /// [`LinkError`] when nobody answers in time or another node does.
    pub(in crate::carrier) async fn punch(
        &self,
        config: &ClientConfig,
        id: NodeId,
        address: SocketAddr,
    ) -> Result<quinn::Connection, LinkError> {
        let mut config = config.clone();
        config.transport_config(Arc::clone(&self.punching));
        self.dial(&config, false, id, address).await
    }

    /// Takes calls of `id` from these addresses, whatever their port, at sockets that only call.
    pub(in crate::carrier) fn let_in(&self, id: NodeId, from: &[IpAddr]) -> LetIn<'_> {
        let from: Vec<_> = from.iter().map(|ip| (*ip, id)).collect();
        let mut expected = self.expected();
        if expected.is_empty() {
            for bound in &self.dialers {
                bound.endpoint.set_server_config(Some(self.server.clone()));
            }
        }
        expected.extend(&from);
        drop(expected);
        LetIn { quic: self, from }
    }

    /// Whose calls are expected from there.
    pub(super) fn expected_from(&self, ip: IpAddr) -> Vec<NodeId> {
        let ip = ip.to_canonical();
        let expected = self.expected();
        let from_there = expected.iter().filter(|(from, _)| *from == ip);
        from_there.map(|(_, id)| *id).collect()
    }

    /// From where a node at `ip` is called, as far as the socket knows.
    pub(in crate::carrier) fn calling_address(&self, ip: IpAddr) -> Option<SocketAddr> {
        self.dialer(false, ip)?.local_addr().ok()
    }

    fn expected(&self) -> MutexGuard<'_, Vec<(IpAddr, NodeId)>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LetIn<'_> {
    fn drop(&mut self) {
        let mut expected = self.quic.expected();
        for call in &self.from {
            // Others may expect it from there too.
            if let Some(place) = expected.iter().position(|other| other == call) {
                expected.swap_remove(place);
            }
        }
        if expected.is_empty() {
            for bound in &self.quic.dialers {
                bound.endpoint.set_server_config(None);
            }
        }
    }
}
