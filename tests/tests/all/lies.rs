//! A peer that lies in every field of every message, to a real daemon: refused, counted, survived.
//!
//! The fields and the lies about them are in the harness (`liar`); here is what is said to whom.
//! Each lie is told beside the same message told truly, which must be taken.

#[path = "lies/answers.rs"]
mod answers;
#[path = "lies/carried.rs"]
mod carried;
#[path = "lies/datagrams.rs"]
mod datagrams;
#[path = "lies/identity.rs"]
mod identity;
#[path = "lies/onion.rs"]
mod onion;
#[path = "lies/opens.rs"]
mod opens;
#[path = "lies/records.rs"]
mod records;
#[path = "lies/sealed.rs"]
mod sealed;
#[path = "lies/silence.rs"]
mod silence;
#[path = "lies/storm.rs"]
mod storm;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
};

use quinn::Connection;
use wormholes_proto::{
    NodeId, Open, RecordSetReader, ServiceName, SignedRecord, Transport, encode_open,
};
use wormholes_tests::{
    Daemon, EchoServer, Identity, Metrics, Setup,
    liar::{Cast, Liar, Lie, Told, tell},
    refused_since, until,
};

/// What all lies together may cost while they last.
const MAX_GROWTH_BYTES: u64 = 64 << 20;

/// A node that does everything for others, a friend of it, and liars.
struct Scene {
    target: Daemon,
    /// Registered with the target, and a hop.
    friend: Daemon,
    /// In the target's config, which also wants to be reached through it.
    liar: Liar,
    /// Not in the target's config.
    stranger: Liar,
    echo: EchoServer,
}

impl Scene {
    /// All on addresses 127.`first`.0.1 and the next ones.
    async fn start(first: u8) -> Self {
        let ip = |number| Ipv4Addr::new(127, first + number, 0, 1);
        let echo = EchoServer::start(Ipv4Addr::LOCALHOST).await.unwrap();
        let (liar, stranger) = (Liar::new(ip(1)).unwrap(), Liar::new(ip(2)).unwrap());
        let friend = Identity::generate().unwrap();
        let known = format!(
            "addresses = [\"{}\"]\nregister = true",
            liar.address().unwrap()
        );
        let target = Setup::new("target")
            .unwrap()
            .listen(&format!("{}:0", ip(0)))
            .entrances()
            .config("[metrics]\nlisten = \"127.0.0.1:0\"")
            .config("[relay]\nenabled = true\n[hop]\nenabled = true")
            .config(
                "[exit]\nenabled = true\nallow = [\"0.0.0.0/0\", \"::/0\"]\nallow_private = true",
            )
            .service("web", echo.address())
            .name("host.example", Ipv4Addr::LOCALHOST.into())
            .peer_id("liar", liar.id(), 2, &known)
            .peer_id("friend", friend.id(), 2, "")
            .script("direct.rhai", "fn route(c) { direct() }")
            .start()
            .await
            .unwrap();
        let address = format!("addresses = [\"{}\"]", target.listen().unwrap());
        let friend = Setup::with_identity("friend", &friend)
            .unwrap()
            .listen(&format!("{}:0", ip(3)))
            .config("[hop]\nenabled = true")
            .peer_id(
                "target",
                target.id(),
                2,
                &format!("{address}\nregister = true"),
            )
            .start()
            .await
            .unwrap();
        target.log().wait("registered").await.unwrap();
        Self {
            target,
            friend,
            liar,
            stranger,
            echo,
        }
    }

    fn cast(&self) -> Cast {
        Cast {
            liar: self.liar.id(),
            target: self.target.id(),
            friend: self.friend.id(),
        }
    }

    async fn call(&self, liar: &Liar) -> Connection {
        liar.call(self.target.listen().unwrap()).await.unwrap()
    }

    /// The record of `id`, as the target hands it out.
    async fn record_of(&self, id: NodeId) -> SignedRecord {
        let connection = self.call(&self.liar).await;
        until("a record", async || {
            let told = tell(&connection, &encode_open(&Open::Records)).await;
            let Ok(Told::Accepted(_, set)) = told else {
                return None;
            };
            records_in(&set).find(|record| record.id() == id)
        })
        .await
        .unwrap()
    }

    /// A request that the target serves.
    fn service() -> Open {
        Open::Service(Transport::Tcp, ServiceName::parse("web").ok())
    }

    /// Has `say` tell each lie, and waits until the target has counted it as refused.
    async fn counts(&self, lies: Vec<Lie>, mut say: impl AsyncFnMut(&Lie)) {
        assert!(!lies.is_empty());
        let mut counted = BTreeSet::new();
        for lie in lies {
            let before = Metrics::read(&self.target).await.unwrap();
            say(&lie).await;
            if lie.may_pass {
                continue;
            }
            match refused_since(&self.target, &before).await {
                Ok(names) => counted.extend(names),
                Err(error) => panic!("{}: {error}", lie.name),
            }
        }
        eprintln!("counted by {counted:#?}");
    }

    /// As [`Self::counts`]; and the liar does not get what it asked for.
    async fn refuses(&self, lies: Vec<Lie>, mut say: impl AsyncFnMut(&Lie) -> Told) {
        let say = async |lie: &Lie| {
            let told = say(lie).await;
            let got = matches!(told, Told::Accepted(..));
            assert!(!got || lie.may_pass, "{}: {told:?}", lie.name);
        };
        self.counts(lies, say).await;
    }

    /// What `say` says is true: nothing of it is refused.
    async fn takes<T>(&self, say: impl Future<Output = T>) -> T {
        let before = Metrics::read(&self.target).await.unwrap();
        let said = say.await;
        let after = Metrics::read(&self.target).await.unwrap();
        assert_eq!(after.refused_since(&before), Vec::<String>::new());
        said
    }

    /// After all the lies: nothing panicked, and honest programs are served.
    async fn is_well(&self) {
        let panics = self.target.log().matching("panicked");
        assert!(panics.is_empty(), "{panics:?}");
        let entrance = self.target.entrance("socks5").unwrap();
        let target: SocketAddr = self.echo.address();
        let flow = wormholes_tests::HonestFlow::open(entrance, target).await;
        flow.unwrap().trips(3).await.unwrap();
    }
}

/// The records of a set.
fn records_in(set: &[u8]) -> impl Iterator<Item = SignedRecord> {
    let mut reader = RecordSetReader::new();
    reader.handle_bytes(set);
    let records = std::iter::from_fn(move || reader.poll_record().unwrap());
    records.map(|record| SignedRecord::decode(&record).unwrap())
}
