//! A liar that is asked: as service, exit, relay, the end behind a relay, hop, and teller of
//! records.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use anyhow::Result;
use tokio::io::AsyncReadExt;
use wormholes_proto::{
    Answer, Open, Reason, encode_answer, encode_set, onion::CREATED_BYTES, sealed::HELLO_BYTES,
};
use wormholes_tests::{
    Daemon, Metrics, Setup,
    liar::{
        Asked, Cast, Liar, LiarServer, Lie, Message, formats,
        noise::{SEALED_PAYLOAD_BYTES, answer_call},
        onion::answer_create,
    },
    socks5_connect, until,
};

/// What whoever is asked truly says to a flow.
const GREETING: &[u8] = b"hello";
/// Among those that the liar says it exits to.
const PORT: u16 = 9000;
/// A small cell's payload.
const PAYLOAD_BYTES: usize = 384;

/// By host name, each over the liar. No flow gets what was built ahead for another.
const SCRIPT: &str = r#"
fn route(c) {
    let liar = peer("liar");
    let way = c.host.split(".")[0];
    let plan = switch way {
        "service" => liar.direct(),
        "exit" => liar.direct().exit(),
        "relay" => peer("behind").relayed(liar),
        "onion" => onion(1).to(liar).exit().isolate(c.host),
        "name" => if c.ip == () { return need("ip", liar.direct().exit().timeout("3s")) } else { liar.direct() },
        _ => block("not in this test"),
    };
    if c.port == 9001 { plan.timeout("3s").closed() } else { plan.closed() }
}
"#;

/// What a liar says, message by message.
type Parts = Arc<[Part]>;

/// A message as it is told.
#[derive(Debug, Clone)]
struct Part {
    bytes: Vec<u8>,
    lie: Option<Lie>,
}

impl Part {
    /// The same lie, if it is one, about a message that was not known before.
    fn about(&self, message: &Message, cast: Cast) -> Vec<u8> {
        let lie = self.lie.as_ref();
        lie.map_or_else(|| message.bytes(), |lie| lie.again(message, cast))
    }
}

/// A daemon that asks, and a liar that is asked.
pub(super) struct Asking {
    pub(super) client: Daemon,
    pub(super) server: LiarServer,
    /// Said to be reachable through the liar, and none other than it.
    behind: Arc<Liar>,
    flows: AtomicUsize,
}

impl Asking {
    /// On 127.`first`.0.1 and the next ones.
    pub(super) async fn start(first: u8) -> Self {
        let ip = |number| Ipv4Addr::new(127, first + number, 0, 1);
        let server = LiarServer::start(ip(0)).unwrap();
        let behind = Arc::new(Liar::new(ip(1)).unwrap());
        server.react(honest(&server, &behind, Asked::refuse));
        let address = format!("addresses = [\"{}\"]", server.liar().address().unwrap());
        let client = Setup::new("client")
            .unwrap()
            .listen(&format!("{}:0", ip(2)))
            .entrances()
            .config("[metrics]\nlisten = \"127.0.0.1:0\"")
            .peer_id(
                "liar",
                server.liar().id(),
                2,
                &format!("{address}\nregister = true"),
            )
            .peer_id("behind", behind.id(), 2, "via = [\"liar\"]")
            .script("rules.rhai", SCRIPT)
            .start()
            .await
            .unwrap();
        let scene = Self {
            client,
            server,
            behind,
            flows: AtomicUsize::default(),
        };
        scene.knows_all().await;
        scene
    }

    /// Waits until the client has both records.
    async fn knows_all(&self) {
        until("the client to have the liar's records", async || {
            let peers = self
                .client
                .call("peers", serde_json::json!({}))
                .await
                .ok()?;
            let peers = peers.get("peers")?.as_array()?.clone();
            let known = |peer: &&serde_json::Value| peer["roles"]["exit"] == true;
            (peers.iter().filter(known).count() == 2).then_some(())
        })
        .await
        .unwrap();
    }

    pub(super) fn cast(&self) -> Cast {
        Cast {
            liar: self.server.liar().id(),
            target: self.client.id(),
            friend: self.behind.id(),
        }
    }

    /// Reacts so to what flows ask for, and honestly to all else.
    pub(super) fn react<F>(&self, reaction: impl Fn(Asked) -> F + Clone + Send + Sync + 'static)
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.server
            .react(honest(&self.server, &self.behind, reaction));
    }

    /// Has `tell` tell the truth to a flow of this `way`, which passes and is not counted; then each lie
    /// in its part of the truth, to so many flows `at_once`. None of them passes for one that ended
    /// well, and the client counts as many.
    async fn disbelieves<F>(
        &self,
        (way, at_once): (&str, usize),
        truth: &[Message],
        lies: &[(usize, Lie)],
        tell: impl Fn(Asked, Parts) -> F + Clone + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let true_part = |message: &Message| Part {
            bytes: message.bytes(),
            lie: None,
        };
        let truth: Vec<_> = truth.iter().map(true_part).collect();
        let before = Metrics::read(&self.client).await.unwrap();
        let fetched = self.fetch(way, vec![truth.clone()], &tell).await;
        assert_eq!(fetched, [Some(GREETING.to_vec())], "{way}");
        let after = Metrics::read(&self.client).await.unwrap();
        assert_eq!(after.refused_since(&before), Vec::<String>::new(), "{way}");
        for lies in lies.chunks(at_once) {
            let names: Vec<_> = lies.iter().map(|(_, lie)| &lie.name).collect();
            let parts = lies.iter().map(|(part, lie)| {
                let mut parts = truth.clone();
                parts[*part] = Part {
                    bytes: lie.bytes.clone(),
                    lie: Some(lie.clone()),
                };
                parts
            });
            let before = Metrics::read(&self.client).await.unwrap();
            let fetched = self.fetch(way, parts.collect(), &tell).await;
            let passed = fetched
                .iter()
                .filter(|got| got.as_deref() == Some(GREETING))
                .count();
            let may_pass = lies.iter().filter(|(_, lie)| lie.may_pass).count();
            assert!(passed <= may_pass, "{passed} passed: {names:#?}");
            let refused = until("the refusals to be counted", async || {
                let now = Metrics::read(&self.client).await.ok()?;
                (now.refusals() - before.refusals() >= lies.len() - may_pass).then_some(())
            });
            if let Err(error) = refused.await {
                panic!("{error}: {names:#?}");
            }
        }
    }

    /// What flows of this `way` yield until they end well, each told one of these; `None` for one that
    /// does not.
    async fn fetch<F>(
        &self,
        way: &str,
        parts: Vec<Vec<Part>>,
        tell: &(impl Fn(Asked, Parts) -> F + Clone + Send + Sync + 'static),
    ) -> Vec<Option<Vec<u8>>>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let flows = parts.iter().map(|_| self.fetch_one(way));
        let flows = futures_util::future::join_all(flows);
        // A flow that asks again hears the same.
        let left: Vec<Parts> = parts
            .iter()
            .rev()
            .map(|parts| parts.clone().into())
            .collect();
        let (left, tell) = (Arc::new(Mutex::new(left)), tell.clone());
        self.react(move |asked| {
            let mut left = left.lock().unwrap();
            let parts = if left.len() > 1 {
                left.pop()
            } else {
                left.last().cloned()
            };
            tell(asked, parts.unwrap())
        });
        flows.await
    }

    async fn fetch_one(&self, way: &str) -> Option<Vec<u8>> {
        self.fetch_at(way, PORT).await
    }

    /// As a flow whose plan gives up after 3 s.
    pub(super) async fn fetch_impatiently(&self, way: &str) -> Option<Vec<u8>> {
        self.fetch_at(way, PORT + 1).await
    }

    async fn fetch_at(&self, way: &str, port: u16) -> Option<Vec<u8>> {
        let host = format!("{way}.{}.example", self.flows.fetch_add(1, Relaxed));
        let entrance = self.client.entrance("socks5").unwrap();
        let mut stream = socks5_connect(entrance, &host, port).await.ok()?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.ok()?;
        Some(all)
    }

    pub(super) fn is_well(&self) {
        let panics = self.client.log().matching("panicked");
        assert!(panics.is_empty(), "{panics:?}");
    }
}

/// Tells records and takes registrations as it should; `reaction` is for the rest.
fn honest<F>(
    server: &LiarServer,
    behind: &Arc<Liar>,
    reaction: impl Fn(Asked) -> F + Clone + Send + Sync + 'static,
) -> impl Fn(Asked) -> futures_util::future::BoxFuture<'static, Result<()>> + Send + Sync + 'static
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let set = Arc::new(set(server.liar(), behind));
    move |mut asked| {
        let (set, reaction) = (Arc::clone(&set), reaction.clone());
        Box::pin(async move {
            if asked.open == Open::Records {
                asked.grant().await?;
                asked.say(&set).await
            } else if let Open::Register(_) = asked.open {
                asked.grant().await?;
                asked.say(&[]).await
            } else {
                reaction(asked).await
            }
        })
    }
}

/// The records of the liar, and of its other self that is said to be behind it.
fn set(liar: &Liar, behind: &Liar) -> Vec<u8> {
    let record = |of: &Liar| of.signed().unwrap();
    encode_set(&[record(liar), record(behind)])
}

#[tokio::test(flavor = "multi_thread")]
async fn services_and_exits_that_lie_are_not_believed() {
    let scene = Asking::start(120).await;
    for way in ["service", "exit"] {
        let tell = |mut asked: Asked, answer: Parts| async move {
            asked.send.write_all(&answer[0].bytes).await?;
            asked.say(GREETING).await
        };
        let truth = formats::answer(&Answer::Accepted(Vec::new()));
        let refusal = formats::answer(&Answer::Refused(Reason::Busy));
        let lies = [truth.lies(scene.cast()), refusal.lies(scene.cast())].concat();
        let lies: Vec<_> = lies.into_iter().map(|lie| (0, lie)).collect();
        scene.disbelieves((way, 1), &[truth], &lies, tell).await;
    }
    scene.is_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_and_ends_behind_them_that_lie_are_not_believed() {
    let scene = Asking::start(124).await;
    let signed = scene.behind.signed().unwrap();
    let whole = |record: &[u8]| formats::sealed_record("payload", record, SEALED_PAYLOAD_BYTES);
    let answer = formats::answer(&Answer::Accepted(Vec::new()));
    let truth = [
        answer.clone(),
        whole(signed.bytes()),
        formats::frame(1, &answer.bytes(), 3),
        formats::data_frame(GREETING),
        formats::frame(2, &[], 0),
    ];
    let mut lies = lies_in(&truth, scene.cast());
    let record = formats::record(&scene.behind.record().unwrap());
    let records = record.lies(scene.cast()).into_iter();
    let signed = |lie: Lie| lie.inside(|body| whole(&scene.behind.sign_record(&body)).bytes());
    lies.extend(records.map(|lie| (1, signed(lie))));
    let inside = |lie: Lie| lie.inside(|answer| formats::frame(1, &answer, 0).bytes());
    lies.extend(
        answer
            .lies(scene.cast())
            .into_iter()
            .map(|lie| (2, inside(lie))),
    );

    let behind = Arc::clone(&scene.behind);
    let tell = move |mut asked: Asked, parts: Parts| {
        let behind = Arc::clone(&behind);
        async move {
            asked.send.write_all(&parts[0].bytes).await?;
            let mut hello = vec![0; HELLO_BYTES];
            asked.receive.read_exact(&mut hello).await?;
            let own = behind.noise().private();
            let (answer, mut frames) = answer_call(own, &behind.id(), &hello, &parts[1].bytes)?;
            asked.send.write_all(&answer).await?;
            for plain in &parts[2..] {
                asked.send.write_all(&frames.seal(&plain.bytes)?).await?;
            }
            asked.say(&[]).await
        }
    };
    // Records are fetched again after each that failed, which takes two seconds.
    let host = ("relay", 25);
    scene.disbelieves(host, &truth, &lies, tell).await;
    scene.is_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn hops_that_lie_are_not_believed() {
    let scene = Asking::start(128).await;
    let truth = [
        formats::answer(&Answer::Accepted(vec![0; CREATED_BYTES])),
        formats::status(&[0; 15]),
        formats::cell(
            2,
            &encode_answer(&Answer::Accepted(Vec::new())),
            PAYLOAD_BYTES,
        ),
        formats::data_cell(GREETING, PAYLOAD_BYTES),
        formats::cell(4, &[], PAYLOAD_BYTES),
    ];
    let cast = scene.cast();
    let mut lies = lies_in(&truth, cast);
    let answer = formats::answer(&Answer::Accepted(Vec::new()));
    let inside = |lie: Lie| lie.inside(|answer| formats::cell(2, &answer, PAYLOAD_BYTES).bytes());
    lies.extend(answer.lies(cast).into_iter().map(|lie| (2, inside(lie))));

    // A slot has one size: nothing can stand behind its status.
    lies.retain(|(part, lie)| *part != 1 || lie.bytes.len() <= truth[1].bytes().len());

    let liar = Arc::clone(scene.server.liar());
    let tell = move |mut asked: Asked, parts: Parts| {
        let liar = Arc::clone(&liar);
        async move {
            let Open::Create { slots, .. } = &asked.open else {
                return asked.say(&[]).await;
            };
            let status = |commitment: &[u8; 15]| {
                let mut status = parts[1].about(&formats::status(commitment), cast);
                status.resize(16, 0xa5);
                status.try_into().unwrap()
            };
            let (id, key) = (liar.id(), liar.onion_key());
            let private = liar.onion_private();
            let (created, mut up) = answer_create(&id, &key, private, slots, status)?;
            let answer = formats::answer(&Answer::Accepted(created.to_vec()));
            asked.send.write_all(&parts[0].about(&answer, cast)).await?;
            for payload in &parts[2..] {
                asked.send.write_all(&up.cell(0, &payload.bytes)?).await?;
            }
            asked.say(&[]).await
        }
    };
    scene.disbelieves(("onion", 1), &truth, &lies, tell).await;
    scene.is_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn exits_that_lie_about_names_are_not_believed() {
    let scene = Asking::start(132).await;
    let truth = formats::resolved(&["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]);
    let lies = lies_in(std::slice::from_ref(&truth), scene.cast());
    let tell = |mut asked: Asked, parts: Parts| async move {
        if matches!(asked.open, Open::Resolve(_)) {
            return asked.say(&parts[0].bytes).await;
        }
        asked.grant().await?;
        asked.say(GREETING).await
    };
    scene.disbelieves(("name", 1), &[truth], &lies, tell).await;
    scene.is_well();
}

/// Each lie about each of the messages, with the number of the message.
fn lies_in(messages: &[Message], cast: Cast) -> Vec<(usize, Lie)> {
    let numbered = messages.iter().enumerate();
    let lies = |(number, message): (usize, &Message)| {
        let lies = message.lies(cast).into_iter();
        lies.map(|lie| (number, lie)).collect::<Vec<_>>()
    };
    numbered.flat_map(lies).collect()
}
