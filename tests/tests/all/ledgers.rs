//! Two daemons whose ledgers pay each other over a real link, under a rule script: whatever is
//! killed, no amount is lost, doubled or late, and both books say the same.

#[path = "ledgers/payers.rs"]
mod payers;

use std::sync::Arc;

use anyhow::Result;
use data_encoding::HEXLOWER;
use rand::Rng as _;
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};
use wormholes_proto::NodeId;
use wormholes_tests::{
    Daemon, LIMIT, More, SCRIPT_NAME, Setup, TestNetwork, is_soak, soak_rounds, until, until_within,
};

use self::payers::{Oracle, Payers, Sum};

/// Trunks of the ledger go straight to the peer; nothing else goes anywhere.
const RULES: &str = r#"
    fn route(c) {
        if c.entrance == "plugin" && c.plugin == "ledger" { return c.node.direct().closed(); }
        block("only the ledger talks")
    }
"#;

/// Kills in continuous integration; thirty times as many in a soak.
const KILLS: usize = 20;
/// Messages each way, at least.
const MESSAGES: usize = 10_000;
/// Where that is more: so many for each kill, so that there are always some on their way.
const BESIDE_A_KILL: usize = 100;

struct Pair {
    daemons: [Daemon; 2],
}

impl Pair {
    async fn start(octet: u8, carriers: &str) -> Self {
        let setup = |name: &str, host: u8| {
            let listen = format!("127.{octet}.0.{host}:0");
            let setup = Setup::new(name).unwrap().listen(&listen);
            let setup = setup.node(&format!("carriers = [{carriers}]"));
            setup.script("rules.rhai", RULES)
        };
        let (ann, bob) = (setup("ann", 1), setup("bob", 2));
        let ann_id = ann.id();
        let bob = bob.peer_id("ann", ann_id, 3, "");
        let bob = bob.plugin("plugins/ledger").unwrap().start().await.unwrap();
        let ann = ann.peer(&bob, 3).plugin("plugins/ledger").unwrap();
        let ann = ann.start().await.unwrap();
        Self {
            daemons: [ann, bob],
        }
    }

    /// Asks one to pay the other.
    async fn pay(&self, who: usize, times: usize) -> Result<Value> {
        let other = self.daemons[1 - who].id().to_string();
        let arguments = json!({ "node": other, "amount": 1, "times": times });
        ask(&self.daemons[who], "pay", arguments).await
    }

    /// Both pay until each was asked for `due` transfers in all. One may be killed at any moment of
    /// that, with payments in its handler, in its commit and behind it, and messages and reports of the
    /// other in the same commits; the other one pays on while it is away.
    async fn pay_on(&mut self, due: u64, killed: Option<usize>, oracles: &mut [Oracle; 2]) {
        let left = [0, 1].map(|who| due.saturating_sub(oracles[who].count()));
        let begun = Arc::new(watch::Sender::new(0));
        let [ann, bob] = &self.daemons;
        let mut payers = [
            Payers::start(ann, bob, left[0], &begun),
            Payers::start(bob, ann, left[1], &begun),
        ];
        let mut asked = [Vec::new(), Vec::new()];
        if let Some(who) = killed {
            let moment = rand::rng().random_range(0..=left[0] + left[1]);
            let mut begun = begun.subscribe();
            let came = timeout(LIMIT, begun.wait_for(|begun| *begun >= moment)).await;
            drop(came.expect("the payers stand still"));
            self.daemons[who].kill().unwrap();
            // Before it is back: else they would go on.
            asked[who] = payers[who].end().await;
            self.daemons[who].restart().await.unwrap();
        }
        for (who, mut asked) in asked.into_iter().enumerate() {
            asked.extend(payers[who].end().await);
            let other = self.daemons[1 - who].id();
            let book = until("a book", async || book(&self.daemons[who]).await);
            let book = book.await.unwrap();
            oracles[who].take(asked, sum(&side(&book, other)["paid"]));
        }
    }

    async fn kill(&mut self, who: usize) {
        self.daemons[who].kill().unwrap();
        self.daemons[who].restart().await.unwrap();
    }

    /// Both books, when nothing is on its way any more.
    async fn settled(&self) -> [Value; 2] {
        until_within(LIMIT * 4, "both books agree", async || {
            let [ann, bob] = &self.daemons;
            let books = [book(ann).await?, book(bob).await?];
            let agree = |from: usize| {
                let to = 1 - from;
                let paid = &side(&books[from], self.daemons[to].id())["paid"];
                let received = &side(&books[to], self.daemons[from].id())["received"];
                let confirmed = &books[from]["confirmed"];
                // Nothing was ever paid: no row.
                (paid == received && confirmed == &paid["count"]) || paid.is_null()
            };
            (agree(0) && agree(1)).then_some(books)
        })
        .await
        .unwrap()
    }
}

fn side(book: &Value, node: NodeId) -> &Value {
    &book["peers"][HEXLOWER.encode(node.as_bytes())]
}

fn sum(direction: &Value) -> Sum {
    // Nothing was ever paid: no row.
    Option::deserialize(direction).unwrap().unwrap_or_default()
}

async fn ask(daemon: &Daemon, command: &str, arguments: Value) -> Result<Value> {
    let params = json!({ "instance": "ledger", "command": command, "arguments": arguments });
    daemon.call("plugin.ask", params).await
}

async fn book(daemon: &Daemon) -> Option<Value> {
    ask(daemon, "book", json!({})).await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_ledgers_agree_though_either_daemon_is_killed_again_and_again() {
    let mut pair = Pair::start(83, r#""quic", "tcp""#).await;
    let mut oracles = <[Oracle; 2]>::default();
    let kills = soak_rounds(KILLS);
    let messages = MESSAGES.max(kills * BESIDE_A_KILL);
    // In the last round nobody is killed, and who is behind catches up.
    for round in 0..=kills {
        let due = messages * (round + 1) / (kills + 1);
        let killed = (round < kills).then(|| rand::rng().random_range(0..2));
        pair.pay_on(due as u64, killed, &mut oracles).await;
    }
    let books = pair.settled().await;
    for (from, oracle) in oracles.iter().enumerate() {
        let (payer, receiver) = (&pair.daemons[from], &pair.daemons[1 - from]);
        let of_payer = side(&books[from], receiver.id());
        let of_receiver = side(&books[1 - from], payer.id());
        let said = [sum(&of_payer["paid"]), sum(&of_receiver["received"])];
        assert_eq!(said, [oracle.sum(); 2], "as it is known from outside");
        assert!(oracle.count() >= messages as u64, "{}", oracle.count());
        assert_eq!(books[from]["refused"], 0);
        assert!(of_payer["halted"].is_null(), "{of_payer:#}");
    }
    let balance = |book: &Value| book["balance"].as_i64().unwrap();
    assert_eq!(balance(&books[0]) + balance(&books[1]), 0);
    let doubted: usize = oracles.iter().map(|oracle| oracle.doubted).sum();
    assert!(doubted > 0, "no kill fell into a payment");
    if is_soak() {
        let counts = [0, 1].map(|from| oracles[from].count());
        let found: usize = oracles.iter().map(|oracle| oracle.found).sum();
        eprintln!(
            "{kills} kills, {counts:?} messages; {doubted} payments without an answer, {found} of \
             them paid"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ledgers_agree_where_nodes_speak_tcp_alone() {
    let pair = Pair::start(96, r#""tcp""#).await;
    pair.pay(0, 10).await.unwrap();
    pair.pay(1, 10).await.unwrap();
    pair.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rules_decide_how_a_plugins_messages_travel() {
    let mut pair = Pair::start(84, r#""quic", "tcp""#).await;
    let paid = pair.daemons[0].cli(&["ledger", "pay", "bob", "5", "--times", "3"]);
    assert_eq!(paid.unwrap(), "3\n");
    pair.settled().await;
    let asked = pair.daemons[0].cli(&["ledger", "ask", "bob"]).unwrap();
    assert_eq!(asked, "3\n", "bob's own answer");
    let flows = pair.daemons[0].cli(&["flows", "--json"]).unwrap();
    assert!(flows.contains("wormholes-trunk"), "{flows}");
    // Who is no longer let through waits, and nothing is lost.
    let rules = pair.daemons[0].folder().join("rules.rhai");
    std::fs::write(&rules, "fn route(c) { block(\"quiet\") }").unwrap();
    pair.daemons[0].cli(&["script", "load"]).unwrap();
    pair.kill(1).await;
    pair.daemons[0].cli(&["ledger", "pay", "bob", "5"]).unwrap();
    until("the rules say no", async || {
        (!pair.daemons[0].log().matching("quiet").is_empty()).then_some(())
    })
    .await
    .unwrap();
    let [ann, bob] = &pair.daemons;
    let received = book(bob).await.unwrap();
    assert_eq!(side(&received, ann.id())["received"]["count"], 3);
    std::fs::write(&rules, RULES).unwrap();
    ann.cli(&["script", "load"]).unwrap();
    let books = pair.settled().await;
    assert_eq!(
        side(&books[1], pair.daemons[0].id())["received"]["count"],
        4
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_under_an_alias_travels_by_an_onion_alone() {
    let more = More {
        plugin: Some("tests/meter"),
        exits_plugin: Some("tests/meter"),
        ..More::default()
    };
    let relayed = "fn route(c) { c.node.best().closed() }";
    let network = TestNetwork::start_with(relayed, more).await.unwrap();
    let (client, exit) = (&network.client, &network.exit);
    let ask = async |daemon: &Daemon, command: &str, arguments: Value| {
        let params = json!({ "instance": "meter", "command": command, "arguments": arguments });
        daemon.call("plugin.ask", params).await
    };
    let node = exit.id().as_bytes().to_vec();
    let told = ask(client, "tell", json!({ "node": node, "alias": "shop" }));
    let tell = async {
        until("the rule is not followed", async || {
            let said = "travels by an onion alone";
            (!client.log().matching(said).is_empty()).then_some(())
        })
        .await
        .unwrap();
        let rules = client.folder().join(SCRIPT_NAME);
        std::fs::write(&rules, "fn route(c) { c.node.onion(2).closed() }").unwrap();
        client.cli(&["script", "load"]).unwrap();
    };
    let (told, ()) = tokio::join!(told, tell);
    assert_eq!(told.unwrap(), "handled");
    let key = ask(client, "alias", json!({ "name": "shop" }))
        .await
        .unwrap();
    let last = ask(exit, "last", json!({})).await.unwrap();
    assert_eq!(last[0], json!({ "Alias": key }));
    let id = client.id().to_string();
    let shown: Vec<_> = exit.log().matching(&id);
    assert!(shown.is_empty(), "{shown:#?}");
}
