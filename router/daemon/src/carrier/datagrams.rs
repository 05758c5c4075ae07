//! QUIC datagrams on a link, each for the UDP flow whose stream it names. A carrier without them
//! has no lanes, and flows on it send frames.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use quinn::SendDatagramError;
use wormholes_proto::{LANE_HEAD_BYTES, decode_lane, encode_lane};

use crate::{
    counters::Counters,
    pipe::{PipeError, Queue, Room},
};

/// What waits for all flows of one link, whoever floods it.
const MAX_WAITING_BYTES: usize = 4 << 20;

/// The flows of a link that take datagrams: no more than its streams.
#[derive(Debug)]
pub(super) struct Lanes {
    connection: quinn::Connection,
    by_stream: Mutex<HashMap<u64, Arc<Queue>>>,
    room: Arc<Room>,
    counters: Arc<Counters>,
}

/// One flow's datagrams; dropping it ends them.
#[derive(Debug)]
pub(crate) struct Lane {
    lanes: Arc<Lanes>,
    stream: u64,
    queue: Arc<Queue>,
}

impl Lanes {
    pub(super) fn new(connection: quinn::Connection, counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self {
            connection,
            by_stream: Mutex::default(),
            room: Room::new(MAX_WAITING_BYTES),
            counters,
        })
    }

    /// The lane beside `stream`; `None` when the other end takes no datagrams.
    pub(super) fn enter(self: &Arc<Self>, stream: u64) -> Option<Lane> {
        self.connection.max_datagram_size()?;
        let queue = Queue::new(&self.room, &self.counters);
        self.lock().insert(stream, Arc::clone(&queue));
        Some(Lane {
            lanes: Arc::clone(self),
            stream,
            queue,
        })
    }

    fn hand_over(&self, datagram: Bytes) {
        let decoded = decode_lane(datagram).ok();
        let queue = decoded.as_ref();
        let queue = queue.and_then(|(stream, _)| self.lock().get(stream).cloned());
        match (queue, decoded) {
            (Some(queue), Some((_, datagram))) => queue.push(datagram),
            // Late ones of a flow that ended, or nobody's.
            _ => {
                self.counters.dropped.unknown.fetch_add(1, Relaxed);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Queue>>> {
        let by_stream = self.by_stream.lock();
        by_stream.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands datagrams to their flows until the connection is gone; never, where there are none.
/// Cancel-safe.
pub(super) async fn deliver(lanes: Option<&Lanes>) -> quinn::ConnectionError {
    let Some(lanes) = lanes else {
        return std::future::pending().await;
    };
    loop {
        match lanes.connection.read_datagram().await {
            Ok(datagram) => lanes.hand_over(datagram),
            Err(error) => return error,
        }
    }
}

impl Lane {
    /// Whether the path is wide enough for `datagram` now.
    pub(crate) fn fits(&self, datagram: &[u8]) -> bool {
        let max = self.lanes.connection.max_datagram_size();
        max.is_some_and(|max| LANE_HEAD_BYTES + datagram.len() <= max)
    }

    /// Sends `datagram`, or drops it where as much waits already: its sender shall slow down, and
    /// what waited would only come late.
    ///
    /// # Errors
    /// [`PipeError::Broken`] when the connection is gone.
    pub(crate) fn send(&self, datagram: &[u8]) -> Result<(), PipeError> {
        let Lanes {
            connection,
            counters,
            ..
        } = &*self.lanes;
        let whole = encode_lane(self.stream, datagram);
        // Nobody else fills the room meanwhile; quinn would drop the oldest, and count nothing.
        let _alone = self.lanes.lock();
        if connection.datagram_send_buffer_space() < whole.len() {
            counters.dropped.full.fetch_add(1, Relaxed);
            return Ok(());
        }
        match connection.send_datagram(whole) {
            Ok(()) => Ok(()),
            Err(SendDatagramError::ConnectionLost(error)) => {
                Err(PipeError::Broken(error.to_string()))
            }
            // The path became too narrow just now.
            Err(
                SendDatagramError::TooLarge
                | SendDatagramError::UnsupportedByPeer
                | SendDatagramError::Disabled,
            ) => {
                counters.dropped.unsent.fetch_add(1, Relaxed);
                Ok(())
            }
        }
    }

    /// Takes what came, or waits for it. Cancel-safe.
    pub(crate) async fn arrived(&self) -> Vec<Bytes> {
        self.queue.take().await
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.lanes.lock().remove(&self.stream);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wormholes_proto::{CarrierKind, MAX_DATAGRAM_BYTES};

    use super::*;
    use crate::{
        carrier::{Carrier, Link},
        identity::Identity,
        pipe::DatagramPipe,
    };

    struct Node {
        carrier: Carrier,
        link: Link,
        counters: Arc<Counters>,
    }

    impl Node {
        fn quic(&self) -> &quinn::Connection {
            &self.link.lanes().connection
        }
    }

    /// Two nodes with a connection, on 127.67.0.1 and 127.67.0.2.
    async fn pair() -> [Node; 2] {
        let bind = |last: u8| {
            let (identity, counters) = (Identity::throw_away().unwrap(), Arc::default());
            let listen = [([127, 67, 0, last], 0).into()];
            let carrier = Carrier::bind(
                &listen,
                &[CarrierKind::Quic],
                &identity,
                Arc::clone(&counters),
            );
            let carrier = carrier.unwrap();
            (identity.id(), carrier, counters)
        };
        let ((_, caller, counters), (id, called, far_counters)) = (bind(1), bind(2));
        let address = called.listen_addresses()[0];
        let taken = async {
            let incoming = called.accept().await.unwrap();
            called.handshake(incoming, |_| true).await
        };
        let (link, far) = tokio::join!(
            caller.dial(caller.myself(), id, (CarrierKind::Quic, address)),
            taken
        );
        let node = |carrier, link, counters| Node {
            carrier,
            link,
            counters,
        };
        [
            node(caller, link.unwrap(), counters),
            node(called, far.unwrap().unwrap(), far_counters),
        ]
    }

    /// Both ends of a new flow, and what its datagrams come by.
    async fn flow(nodes: &[Node; 2]) -> (DatagramPipe, DatagramPipe) {
        let [near, far] = nodes;
        let mut pipe = near.link.open().await.unwrap();
        // A stream is seen with its first bytes.
        pipe.writer.write_chunk("x".into()).await.unwrap();
        let mut taken = far.link.accept().await.unwrap();
        taken.reader.read_exact(1).await.unwrap();
        (
            DatagramPipe::between_nodes(pipe, &near.counters),
            DatagramPipe::between_nodes(taken, &far.counters),
        )
    }

    /// As serving a link does: takes what comes, for a while.
    async fn while_served<T>(node: &Node, work: impl Future<Output = T>) -> T {
        let served = async {
            tokio::select! {
                done = work => done,
                _stream = node.link.accept() => panic!("no stream is opened"),
            }
        };
        let limit = Duration::from_secs(30);
        tokio::time::timeout(limit, served).await.unwrap()
    }

    #[tokio::test]
    async fn what_the_path_is_wide_enough_for_goes_beside_the_stream() {
        let nodes = pair().await;
        let (mut near, mut far) = flow(&nodes).await;
        for (size, beside) in [(0, 1), (1100, 1), (MAX_DATAGRAM_BYTES, 0)] {
            let before = nodes[0].quic().stats().frame_tx.datagram;
            let sent = Bytes::from(vec![7; size]);
            let way = async {
                near.writer
                    .write_datagrams(std::slice::from_ref(&sent))
                    .await
                    .unwrap();
                far.reader.read_datagrams().await.unwrap()
            };
            assert_eq!(while_served(&nodes[1], way).await, [sent]);
            let after = nodes[0].quic().stats().frame_tx.datagram;
            assert_eq!(after - before, beside, "{size} bytes");
        }
        assert_eq!(
            nodes[1].counters.dropped.by_reason().map(|(_, n)| n),
            [0; 6]
        );
    }

    #[tokio::test]
    async fn more_than_the_path_takes_is_dropped_at_once_and_counted() {
        let nodes = pair().await;
        let (mut near, _far) = flow(&nodes).await;
        let flood = vec![Bytes::from(vec![7; 1100]); 1000];
        near.writer.write_datagrams(&flood).await.unwrap();
        let full = nodes[0].counters.dropped.full.load(Relaxed);
        assert!((1..1000).contains(&full), "{full}");
    }

    #[tokio::test]
    async fn datagrams_for_no_flow_are_counted_and_ended_flows_leave_nothing() {
        let nodes = pair().await;
        let (mut near, far) = flow(&nodes).await;
        drop(far);
        assert!(nodes[1].link.lanes().lock().is_empty());
        near.writer
            .write_datagrams(&[Bytes::from("late")])
            .await
            .unwrap();
        let nonsense = Bytes::from("short");
        nodes[0].quic().send_datagram(nonsense).unwrap();
        let counters = &nodes[1].counters;
        let counted = async {
            while counters.dropped.unknown.load(Relaxed) < 2 {
                tokio::task::yield_now().await;
            }
        };
        while_served(&nodes[1], counted).await;
        drop(near);
        assert!(nodes[0].link.lanes().lock().is_empty());
        nodes[0].carrier.close().await;
    }
}
