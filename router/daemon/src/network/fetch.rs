//! Fetching what peers know of others.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use futures_util::future::join_all;
use tokio::{sync::oneshot, time::Instant};

use super::Network;
use crate::carrier::Link;

impl Network {
    /// Fetches the records of all peers that can be reached; whether anything was new.
    pub async fn refresh_records(self: &Arc<Self>) -> bool {
        self.refresh_records_since(Instant::now()).await
    }

    /// As [`Self::refresh_records`], but for those peers whom somebody asked after `since`.
    pub(crate) async fn refresh_records_since(self: &Arc<Self>, since: Instant) -> bool {
        self.join_connecting().await;
        let known = self.peers.known();
        let mut links = self.peers.links();
        links.retain(|link| known.get(&link.peer()).is_some());
        let fetches = links.iter().map(|link| self.learn_from(link, since));
        join_all(fetches).await.contains(&true)
    }

    /// Fetches the records of a peer, unless that began after `since`, with all others who want
    /// them; whether anything is new. Cancel-safe; a fetch that began goes on.
    pub(crate) async fn learn_from(self: &Arc<Self>, link: &Link, since: Instant) -> bool {
        let turn = match link.fetches().enter(since).await {
            Ok(turn) => turn,
            Err(news) => return news,
        };
        let (network, link) = (Arc::clone(self), link.clone());
        let (tell, told) = oneshot::channel();
        self.spawn(async move {
            let fetch = async {
                let fetched = network.records.fetch(&link, &network.counters).await;
                fetched.unwrap_or(false)
            };
            let news = turn.run(fetch).await;
            if news {
                network.expire_world();
            }
            // Who asked may have left.
            let _ = tell.send(news);
        });
        told.await.unwrap_or(false)
    }

    /// Has records fetched again when peers are next looked after: one of them led nowhere.
    pub(crate) fn doubt_records(&self) {
        self.records_doubted.store(true, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use futures_util::{FutureExt, future::join_all};
    use tokio::time::timeout;
    use wormholes_proto::{Answer, CarrierKind, NodeId, Open, RecordBook, ServiceName, Transport};
    use wormholes_rules::Tunnel;

    use super::{
        super::connect::tests::{LIMIT, network, peer},
        *,
    };
    use crate::{
        carrier::Carrier,
        config::PeerConfig,
        identity::Identity,
        pipe::Pipe,
        tunnel::{OpenError, TunnelRequest},
    };

    const N_FLOWS: usize = 16;
    /// Between two fetches at least.
    const PAUSE: Duration = Duration::from_millis(250);

    /// Somebody who is asked for records, and knows of none.
    struct Teller {
        id: NodeId,
        carrier: Carrier,
        link: Option<Link>,
    }

    impl Teller {
        fn new() -> Self {
            let identity = Identity::throw_away().unwrap();
            let listen = [([127, 0, 0, 1], 0).into()];
            let carrier =
                Carrier::bind(&listen, &[CarrierKind::Quic], &identity, Arc::default()).unwrap();
            Self {
                id: identity.id(),
                carrier,
                link: None,
            }
        }

        /// The next stream on which it is asked for records.
        async fn asked(&mut self) -> Pipe {
            timeout(LIMIT, self.next()).await.expect("a fetch")
        }

        async fn next(&mut self) -> Pipe {
            if self.link.is_none() {
                let call = self.carrier.accept().await.unwrap();
                self.link = self.carrier.handshake(call, |_| true).await.unwrap();
            }
            let mut pipe = self.link.as_ref().unwrap().accept().await.unwrap();
            assert_eq!(pipe.reader.read_open().await, Ok(Open::Records));
            pipe
        }
    }

    async fn answer(mut pipe: Pipe) {
        let set = RecordBook::new().encode_set(SystemTime::now());
        let answer = Answer::Accepted(vec![0]);
        pipe.writer.send_answer(&answer).await.unwrap();
        pipe.writer.write_chunk(set.into()).await.unwrap();
        pipe.writer.finish().await.unwrap();
    }

    /// The client is connected to `teller`, and knows of a friend behind it, and no more of that.
    async fn befriend(client: &Arc<Network>, teller: &mut Teller) -> (Link, Tunnel) {
        let relay = peer(teller.id, Some(teller.carrier.listen_addresses()[0]));
        let friend = PeerConfig {
            via: vec![relay.name.clone()],
            ..peer(NodeId::from_bytes([9; 32]), None)
        };
        let tunnel = Tunnel::Relay {
            via: None,
            to: friend.id,
            exit: false,
        };
        client.set_peers(&[relay, friend]);
        answer(teller.asked().await).await;
        let link = client.peers.link(&teller.id).unwrap();
        let first = timeout(LIMIT, link.fetches().enter(Instant::now()));
        drop(first.await.expect("the answer came"));
        (link, tunnel)
    }

    fn request(patience: Option<Duration>) -> TunnelRequest {
        let target: std::net::SocketAddr = ([127, 0, 0, 1], 1).into();
        TunnelRequest {
            carrier: None,
            transport: Transport::Tcp,
            target: target.into(),
            service: ServiceName::parse("none").ok(),
            isolation: String::new(),
            timeout: LIMIT,
            patience,
        }
    }

    #[tokio::test]
    async fn flows_that_come_together_to_an_unknown_friend_share_one_fetch() {
        let ((_dir, client), mut teller) = (network(), Teller::new());
        // The pause counts from when the answer is there.
        let mut answered = Instant::now();
        let (_link, tunnel) = befriend(&client, &mut teller).await;
        for _ in 0..2 {
            let request = request(None);
            let flows = (0..N_FLOWS).map(|_| client.open(&tunnel, &request));
            let flows = timeout(LIMIT, join_all(flows));
            let tell = async {
                let pipe = teller.asked().await;
                let paused = answered.elapsed();
                answered = Instant::now();
                answer(pipe).await;
                paused
            };
            let (flows, paused) = tokio::join!(flows, tell);
            let flows = flows.expect("one fetch for all");
            assert!(flows.iter().all(Result::is_err), "nobody knows the friend");
            assert!(paused >= PAUSE, "{paused:?}");
        }
    }

    #[tokio::test]
    async fn an_onion_waits_for_records_no_longer_than_the_next_step() {
        let ((_dir, client), mut teller) = (network(), Teller::new());
        let (link, _) = befriend(&client, &mut teller).await;
        let onion = Tunnel::Onion {
            hops: 1,
            via: None,
            to: None,
            exit: true,
            friends_only: false,
        };
        let request = request(Some(PAUSE * 2));
        let since = Instant::now();
        let (hasty, _unanswered) = tokio::join!(client.open(&onion, &request), teller.asked());
        let error = hasty.unwrap_err();
        assert!(matches!(error, OpenError::NoPath(_)), "{error}");
        let fetch = link.fetches().enter(since).now_or_never();
        assert!(fetch.is_none(), "it was waited for: {fetch:?}");
    }

    #[tokio::test]
    async fn a_fetch_goes_on_when_who_asked_has_left() {
        let ((_dir, client), mut teller) = (network(), Teller::new());
        let (link, tunnel) = befriend(&client, &mut teller).await;
        let request = request(Some(PAUSE));
        let since = Instant::now();
        let (hasty, slow) = tokio::join!(client.open(&tunnel, &request), teller.asked());
        assert!(hasty.is_err());
        // Whoever waits as well hears of what the one before asked for.
        let learned = client.learn_from(&link, since);
        let (_, ()) = tokio::join!(timeout(LIMIT, learned), answer(slow));
        let last = link.fetches().enter(since).await;
        assert!(matches!(last, Err(false)), "{last:?}");
    }
}
