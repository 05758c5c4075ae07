//! Which way packets leave a client's host, counted by its kernel while programs go on trying:
//! before the node starts, while it runs, reloads, dies and comes back, and when other nodes die.
//!
//! Each way has a client and a host of its own, so that a packet to anybody but the first nodes of
//! its plan is a leak, whatever it was for. Queries for names count by themselves: a name server is
//! configured, answers, and may not be asked.

#[path = "leaks/programs.rs"]
mod programs;
#[path = "leaks/scene.rs"]
mod scene;
#[path = "leaks/ways.rs"]
mod ways;

use std::{net::SocketAddr, time::Duration};

use futures_util::future::join_all;
use tokio::time::timeout;
use wormholes_tests::{Again, until};

use super::watched::SOCKS;
use programs::{curl, programs};
use scene::{Client, Scene};
use ways::{ALL, LEAKS, Program, Way, script};

/// Clients leave nodes that did not answer alone for up to 10 s; the rest is for a busy machine.
const SETTLE: Duration = Duration::from_secs(90);
const RELOADS: usize = 3;
/// A page that takes twenty seconds at the rate at which it is fetched; what the kernel holds of it
/// when its sender dies, some.
const LONG_PAGE_BYTES: usize = 40_000_000;
const LONG_RATE: &str = "2M";

#[tokio::test(flavor = "multi_thread")]
async fn no_packet_of_a_flow_leaves_by_another_way_than_its_plan_says() {
    let mut proof = Proof::begin().await;
    proof.settles("before the start", nobody).await;
    proof.scene.start_clients().await;
    proof.settles("while all is well", everybody).await;
    proof.right_ways_were_taken();
    proof.reload().await;
    proof.crash().await;
    proof.scene.start_clients().await;
    proof.settles("after the crash", everybody).await;

    proof.scene.nodes.swallow("exit");
    let without_exit = |way: &Way| way.serves_without_exit;
    proof.settles("without the exit", without_exit).await;
    proof.scene.nodes.kill();
    proof.settles("without any other node", nobody).await;
    proof.scene.kill_clients();
    proof.scene.start_clients().await;
    proof.settles("started without others", nobody).await;
    proof.leaks_are_counted().await;
}

fn nobody(_: &Way) -> &'static [Program] {
    &[]
}

fn everybody(way: &Way) -> &'static [Program] {
    way.serves
}

struct Proof {
    scene: Scene,
    programs: Vec<Again<Program>>,
}

impl Proof {
    async fn begin() -> Self {
        let begun = std::time::Instant::now();
        let scene = Scene::start().await;
        eprintln!("scene: {:?}", begun.elapsed());
        let clients = scene.clients.iter();
        Self {
            programs: clients.map(|client| programs(&client.host)).collect(),
            scene,
        }
    }

    /// Waits until at each client those programs are served that `expected` says, and no others, in
    /// turns that began after this call; nothing has leaked then.
    async fn settles(&mut self, when: &str, expected: impl Fn(&Way) -> &'static [Program]) {
        let complaints = self.settle(when, expected).await;
        for client in &self.scene.clients {
            if client.counted("leaked") > 0 {
                let leaks = LEAKS.map(|counter| (counter, client.counted(counter)));
                panic!("{} leaked {leaks:?}, {when}", client.way.name);
            }
        }
        assert!(complaints.is_empty(), "{complaints:#?}");
    }

    /// Waits for the same, and says where it did not come.
    async fn settle(
        &mut self,
        when: &str,
        expected: impl Fn(&Way) -> &'static [Program],
    ) -> Vec<String> {
        let begun = std::time::Instant::now();
        let clients = self.scene.clients.iter().zip(&mut self.programs);
        let settling = clients.map(async |(client, programs)| {
            let expected = expected(client.way);
            let late = programs.settle(expected, SETTLE).await;
            let name = client.way.name;
            let complaint =
                || format!("{name}, {when}: {expected:?} are to be served, not so {late:?}");
            (!late.is_empty()).then(complaint)
        });
        let complaints = join_all(settling).await;
        eprintln!("{when}: {:?}", begun.elapsed());
        complaints.into_iter().flatten().collect()
    }

    fn right_ways_were_taken(&self) {
        for client in &self.scene.clients {
            let counted = client.counted("right");
            let carries = !client.way.serves.is_empty();
            assert_eq!(counted > 0, carries, "{}: {counted}", client.way.name);
        }
    }

    /// Rules and configs that are good, and some that are refused, while flows come; then rules
    /// that fail.
    async fn reload(&mut self) {
        for turn in 0..RELOADS {
            let again = |client: &Client| format!("{}// {turn}", client.way.script());
            self.load(again, true).await;
            self.load(|_| "fn route(c) { direct(".to_owned(), false)
                .await;
            self.load(again, true).await;
            join_all(self.scene.clients.iter().map(Client::break_config)).await;
        }
        self.settles("after reloads", everybody).await;
        self.load(|_| "fn route(c) { throw \"no\" }".to_owned(), true)
            .await;
        self.settles("with rules that fail", nobody).await;
        self.load(|client| client.way.script(), true).await;
    }

    /// Gives each client the rules that `rules` says; they are good or not.
    async fn load(&self, rules: impl Fn(&Client) -> String, good: bool) {
        let clients = self.scene.clients.iter();
        join_all(clients.map(|client| client.load(rules(client), good))).await;
    }

    /// kill -9 of every client in the middle of a fetch: it ends with an error, and so does what
    /// comes then.
    async fn crash(&mut self) {
        let proxy = format!("socks5h://127.0.0.1:{SOCKS}");
        let clients = self.scene.clients.iter();
        let carrying = clients.filter(|client| client.way.serves.contains(&Program::Socks));
        // Of each client, a page of another size.
        let fetch = |(number, client): (usize, &Client)| {
            let page = format!("/bytes/{}", LONG_PAGE_BYTES + number);
            let url = format!("http://web.example{page}");
            let mut command = curl(&client.host, &proxy, &url, &["--limit-rate", LONG_RATE]);
            let fetch = command.stdout(std::process::Stdio::null()).spawn();
            (fetch.unwrap(), page)
        };
        let carrying: Vec<_> = carrying.enumerate().collect();
        let mut fetches: Vec<_> = carrying.iter().copied().map(fetch).collect();
        until("all fetches to be under way", async || {
            let requests = self.scene.internet.web.requests();
            let mut all = true;
            for ((under_way, page), client) in fetches.iter_mut().zip(&carrying) {
                // On a busy machine a tunnel may take too long to open.
                if under_way.try_wait().unwrap().is_some() {
                    *under_way = fetch(*client).0;
                }
                all &= requests.iter().any(|request| request.path == *page);
            }
            all.then_some(())
        })
        .await
        .unwrap();
        self.scene.kill_clients();
        for (mut fetch, _) in fetches {
            let status = timeout(SETTLE, fetch.wait()).await.unwrap().unwrap();
            assert!(!status.success(), "a fetch ended well");
        }
        self.settles("after kill -9", nobody).await;
    }

    /// With rules that let everything out, and a datagram that the kernel refuses, every counter
    /// counts.
    async fn leaks_are_counted(&mut self) {
        self.load(|_| script("direct()"), true).await;
        let complaints = self
            .settle("with rules that let everything out", |_| ALL)
            .await;
        assert!(complaints.is_empty(), "{complaints:#?}");
        for (number, client) in (0..).zip(&self.scene.clients) {
            let closed = SocketAddr::from(([9, 50, number, 1], 9));
            let socket = self.scene.internet.host.udp(([0, 0, 0, 0], 0).into());
            socket.unwrap().send_to(b"nobody", closed).await.unwrap();
            for counter in LEAKS {
                let what = format!("{counter} of {}", client.way.name);
                let counted = until(&what, async || (client.counted(counter) > 0).then_some(()));
                counted.await.unwrap();
            }
        }
    }
}
