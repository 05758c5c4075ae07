//! Which way packets leave a client's host whose rules name Tor, I2P, or a plan that is closed: counted
//! by its kernel while programs go on asking, `.onion` and `.i2p` names among others, before the node
//! starts, while it runs, reloads, dies and comes back, and when Tor and the I2P router die.
//!
//! Each way has a client and a host of its own. A packet to anybody but those whom the rules allow is an
//! escape, whatever it was for; and a name server that they do allow may not be asked for such names.

#[path = "escapes/programs.rs"]
mod programs;
#[path = "escapes/scene.rs"]
mod scene;
#[path = "escapes/ways.rs"]
mod ways;

use std::time::Duration;

use futures_util::future::join_all;
use wormholes_tests::{Again, until};

use programs::{DATAGRAM_PORT, Program, browser_shows, programs};
use scene::Scene;
use ways::Way;

/// An I2P router makes a session in 20 s or 40 s; the rest is for a busy machine.
const SETTLE: Duration = Duration::from_secs(120);

type Expected = fn(&Way) -> &'static [Program];

#[tokio::test(flavor = "multi_thread")]
async fn no_packet_of_a_flow_by_tor_or_i2p_or_a_closed_plan_leaves_by_another_way() {
    let mut proof = Proof::begin().await;
    proof.settles("before the start", nobody).await;
    proof.scene.start_clients().await;
    proof.settles("while all is well", |way| way.serves).await;
    proof.right_ways_were_taken();
    proof.datagrams_are_refused().await;
    let (all, both) = (|_: &Way| true, &[Program::Onion, Program::I2p]);
    proof.browse(all, both, |way| way.serves).await;
    proof.reload().await;

    proof.scene.i2p.kill(0).unwrap();
    let without_i2p: Expected = |way| way.serves_without_i2p;
    proof.settles("without an I2P router", without_i2p).await;
    let had_i2p = |way: &Way| way.serves.contains(&Program::I2p);
    proof.browse(had_i2p, &[Program::I2p], without_i2p).await;
    proof.scene.kill_clients();
    proof.settles("after kill -9", nobody).await;
    proof.scene.start_clients().await;
    proof.settles("started anew", without_i2p).await;
    proof.scene.tor.kill_all().unwrap();
    let without_both: Expected = |way| way.serves_without_both;
    proof.settles("without Tor and I2P", without_both).await;
    let had_tor = |way: &Way| way.serves.contains(&Program::Onion);
    proof.browse(had_tor, &[Program::Onion], without_both).await;
    proof.no_hidden_name_was_asked();
    proof.escapes_are_counted().await;
}

fn nobody(_: &Way) -> &'static [Program] {
    &[]
}

struct Proof {
    scene: Scene,
    programs: Vec<Again<Program>>,
}

impl Proof {
    async fn begin() -> Self {
        let scene = Scene::start().await;
        let clients = scene.clients.iter();
        let programs = clients.map(|client| {
            programs(
                &client.host,
                client.way.programs,
                &scene.onion.address,
                &scene.i2p_address,
            )
        });
        Self {
            programs: programs.collect(),
            scene,
        }
    }

    /// Waits until at each client those programs are served that `expected` says, and no others, in
    /// turns that began after this call; nothing has escaped then.
    async fn settles(&mut self, when: &str, expected: Expected) {
        let begun = std::time::Instant::now();
        let clients = self.scene.clients.iter().zip(&mut self.programs);
        let settling = clients.map(async |(client, programs)| {
            let (way, expected) = (client.way.name, expected(client.way));
            let late = programs.settle(expected, SETTLE).await;
            let complaint =
                || format!("{way}, {when}: {expected:?} are to be served, not so {late:?}");
            (!late.is_empty()).then(complaint)
        });
        let complaints: Vec<_> = join_all(settling).await.into_iter().flatten().collect();
        eprintln!("{when}: {:?}", begun.elapsed());
        for client in &self.scene.clients {
            assert_eq!(client.counted("escaped"), 0, "{}, {when}", client.way.name);
        }
        assert!(complaints.is_empty(), "{complaints:#?}");
    }

    fn right_ways_were_taken(&self) {
        for client in &self.scene.clients {
            let carries = !client.way.serves.is_empty();
            let taken = client.counted("right") > 0;
            assert!(taken || !carries, "{} took no way", client.way.name);
        }
    }

    /// Who asks by datagrams is told nothing; the node says that it refused.
    async fn datagrams_are_refused(&self) {
        let looking = self.scene.clients.iter().map(async |client| {
            let mut events = client.daemon().events().await.unwrap();
            for name in [&self.scene.onion.address, &self.scene.i2p_address] {
                let target = format!("{name}:{DATAGRAM_PORT}");
                let refused = events.next(|event| {
                    event["kind"] == "flow-refused" && event["target"] == target.as_str()
                });
                let refused = refused.await;
                assert!(refused.is_ok(), "{}: {refused:?}", client.way.name);
            }
        });
        join_all(looking).await;
    }

    /// A browser sends what it is told to its proxy, and knows other ways. At each client whom `asks`
    /// picks it asks for what `programs` ask for, and is shown what is `expected`.
    async fn browse(&self, asks: impl Fn(&Way) -> bool, programs: &[Program], expected: Expected) {
        let clients = self.scene.clients.iter();
        let asking = clients
            .filter(|client| asks(client.way))
            .map(async |client| {
                for program in programs {
                    let host = if *program == Program::I2p {
                        &self.scene.i2p_address
                    } else {
                        &self.scene.onion.address
                    };
                    let shown = browser_shows(&client.host, &format!("http://{host}/")).await;
                    let expected = expected(client.way).contains(program);
                    assert_eq!(shown, expected, "{}: {host} in a browser", client.way.name);
                }
                assert_eq!(
                    client.counted("escaped"),
                    0,
                    "{} with a browser",
                    client.way.name
                );
            });
        join_all(asking).await;
    }

    /// Rules that are good, some that are refused, a config that is, and rules that fail.
    async fn reload(&mut self) {
        self.load(|way| format!("{}// again", way.script), true)
            .await;
        self.load(|_| "fn route(c) { direct(".to_owned(), false)
            .await;
        for client in &self.scene.clients {
            client.break_config().await;
        }
        self.settles("after reloads", |way| way.serves).await;
        self.load(|_| "fn route(c) { throw \"no\" }".to_owned(), true)
            .await;
        self.settles("with rules that fail", nobody).await;
        self.load(|way| way.script.to_owned(), true).await;
    }

    /// Gives each client the rules that `rules` says; they are good or not.
    async fn load(&self, rules: impl Fn(&Way) -> String, good: bool) {
        let clients = self.scene.clients.iter();
        join_all(clients.map(|client| client.load(rules(client.way), good))).await;
    }

    /// Those who may ask, ask for other names alone.
    fn no_hidden_name_was_asked(&self) {
        let asked = self.scene.internet.names.asked();
        assert!(
            asked.contains("web.example"),
            "nothing was asked: {asked:?}"
        );
        let is_hidden = |name: &&String| [".onion", ".i2p"].iter().any(|end| name.ends_with(end));
        let hidden: Vec<_> = asked.iter().filter(is_hidden).collect();
        assert!(hidden.is_empty(), "asked in clear: {hidden:?}");
    }

    /// With rules that let everything out, every client's counter counts that should not have.
    async fn escapes_are_counted(&self) {
        self.load(|_| "fn route(c) { direct() }".to_owned(), true)
            .await;
        for client in self
            .scene
            .clients
            .iter()
            .filter(|client| client.way.is_shut())
        {
            let what = format!("{} to escape", client.way.name);
            let counted = until(&what, async || {
                (client.counted("escaped") > 0).then_some(())
            });
            counted.await.unwrap();
        }
    }
}
