//! `--tor`: a private Tor network and a private I2P network, a flow through each of what they offer, and
//! one that a mistake in the script keeps closed.
//!
//! ```text
//! client's host ===== Tor's host: relays, a site behind exits, onion services of C tor and of a node
//!              ====== I2P's host: routers, a node that publishes a site as a destination
//! ```
//! The client's host has wires to these two and a name for the site that would lead straight to it: what
//! goes another way than the script says would arrive.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wormholes_tests::{
    Daemon, Fetched, I2pNetwork, Link, Namespace, SITE_GREETING, Setup, Site, TOR_WEB, TorNetwork,
    TorOnion, curl_in, until_within,
};

use crate::row::{Row, last_decision, rule, tunnel};

/// A name whose rule has a mistake in it.
const MISTAKE: &str = "mistake.example";
const SCRIPT: &str = r#"
fn route(c) {
    if c.host == "mistake.example" {
        let groups = ["alone"];
        return tor(#{ isolate: groups[1] }).closed();
    }
    if c.host.ends_with(".i2p") { return i2p().timeout("120s").closed(); }
    tor().timeout("60s").closed()
}
"#;
/// Tor shows some megabytes a second, I2P less.
const BULK_BYTES: usize = 2 << 20;
/// An I2P router takes 20 s for a session; all takes longer on a busy machine.
const FOUND: Duration = Duration::from_secs(180);

/// The wire between the client's host and Tor's, as [`TorNetwork::neighbour`] lays the first.
const CLIENT_AT: Ipv4Addr = Ipv4Addr::new(9, 40, 1, 1);
const TOR_AT: Ipv4Addr = Ipv4Addr::new(9, 40, 1, 2);

/// The wire to I2P's host.
const TO_I2P: Link = Link {
    first: Ipv4Addr::new(9, 45, 1, 1),
    second: Ipv4Addr::new(9, 45, 1, 2),
};

/// Who answers, and what is expected of the way there.
struct Case {
    what: &'static str,
    host: String,
    tunnel: &'static str,
}

/// All that runs.
struct Stage {
    tor: TorNetwork,
    _i2p: I2pNetwork,
    _onion: TorOnion,
    _hosts: [Daemon; 2],
    /// Behind the services of this router's nodes.
    sites: [Site; 2],
    client: Daemon,
    host: Namespace,
    cases: Vec<Case>,
}

/// Starts everything and asks for each name.
pub(crate) async fn show() -> Result<Vec<Row>> {
    eprintln!("starting five relays of Tor and seven routers of I2P");
    let stage = Stage::start().await?;
    let mut rows = Vec::new();
    for case in &stage.cases {
        eprintln!("asking for {}: {}", case.what, case.host);
        rows.push(stage.ask(case).await?);
    }
    Ok(rows)
}

/// What is asked for, and which tunnel leads there.
async fn cases(onion: &TorOnion, here: &Daemon, there: &Daemon) -> Result<Vec<Case>> {
    let case = |what, host: &str, tunnel| Case {
        what,
        host: host.to_owned(),
        tunnel,
    };
    Ok(vec![
        case("a site behind a Tor exit", TOR_WEB, "tor"),
        case("an onion service of C tor", &onion.address, "tor"),
        case(
            "an onion service of a node",
            &published(here, "tor.status").await?,
            "tor",
        ),
        case(
            "a destination of I2P",
            &published(there, "i2p.status").await?,
            "i2p",
        ),
        case("a name whose rule has a mistake", MISTAKE, "block"),
    ])
}

impl Stage {
    async fn start() -> Result<Self> {
        let (tor, i2p) = tokio::try_join!(TorNetwork::start(), I2pNetwork::start())?;
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let by_tor = Site::start_in(tor.host(), "here", local)?;
        let by_i2p = Site::start_in(i2p.host(), "over I2P", local)?;
        let service = |site: &Site, keys: &str| {
            let target = site.address();
            format!("[[service]]\nname = \"web\"\ntarget = \"{target}\"\nmin_trust = 0\n{keys}")
        };
        let onion_keys = "onion = true\nonion_port = 80";
        let here = tor.node("here", "")?.config(&service(&by_tor, onion_keys));
        let there = Setup::new("there")?.in_namespace(i2p.host());
        let there = there
            .config(&format!("[i2p]\nsam = \"{}\"", i2p.sam(1)))
            .config(&service(&by_i2p, "i2p = true"));
        let host = tor.neighbour(1)?;
        host.reach(i2p.host(), TO_I2P, "45.0.0.0/8")?;
        let site = tor.web.address();
        // A way straight to the site, which no plan takes.
        let (to, via) = (site.ip().to_string(), TOR_AT.to_string());
        host.ip(&["route", "add", &to, "via", &via])?;
        let client = Setup::new("client")?.in_namespace(&host);
        let client = client
            .entrances()
            .name(MISTAKE, site.ip())
            .config(&tor.config(""))
            .config(&format!("[i2p]\nsam = \"{}\"", i2p.sam(0)))
            .script("rules.rhai", SCRIPT);
        eprintln!("starting a client, two nodes that publish a site each, and C tor with another");
        let (here, there, client, onion) = tokio::try_join!(
            here.start(),
            there.start(),
            client.start(),
            tor.onion_service(site, &[]),
        )?;
        let cases = cases(&onion, &here, &there).await?;
        Ok(Self {
            tor,
            _i2p: i2p,
            _onion: onion,
            _hosts: [here, there],
            sites: [by_tor, by_i2p],
            client,
            host,
            cases,
        })
    }

    async fn ask(&self, case: &Case) -> Result<Row> {
        let is_open = case.tunnel != "block";
        let url = format!("http://{}/", case.host);
        let (front, why) = if is_open {
            // What was published a moment ago is not found everywhere.
            let what = format!("{} to be found", case.what);
            let found = until_within(FOUND, &what, async || {
                let asked = self.fetch(&url).await.ok()?;
                greets(&asked.0).then_some(asked)
            });
            found.await?
        } else {
            self.fetch(&url).await?
        };
        let bulk = match is_open {
            true => Some(self.fetch(&format!("{url}bytes/{BULK_BYTES}")).await?.0),
            false => None,
        };
        let wrong = self.complaints(case, &front, bulk.as_ref(), &why);
        Ok(Row {
            name: case.host.clone(),
            rule: rule(&why),
            tunnel: tunnel(&why),
            ok: wrong.is_empty(),
            ttfb_ms: bulk.as_ref().map(|_| front.first_byte.as_secs_f64() * 1e3),
            mb_per_s: bulk.map(|bulk| bulk.bytes_per_s / 1e6),
            learned: self.learned(case, &why),
            wrong,
            flow: why.get("flow").and_then(Value::as_u64).unwrap_or(0),
        })
    }

    /// Fetches it, and has the node tell what it did.
    async fn fetch(&self, url: &str) -> Result<(Fetched, Value)> {
        let proxy = format!("socks5h://{}", self.client.entrance("socks5")?);
        let mut events = self.client.events().await?;
        let fetched = curl_in(&self.host, &proxy, url, &[]).await?;
        let decided = |event: &Value| {
            let kind = event.get("kind").and_then(Value::as_str);
            ["flow-opened", "flow-refused"].map(Some).contains(&kind)
        };
        let event = events.next(decided).await;
        let event = event.with_context(|| format!("no event about {url}: {}", fetched.error))?;
        let flow = json!({ "flow": event.get("flow") });
        Ok((fetched, self.client.call("why", flow).await?))
    }

    /// Whom each site saw.
    fn learned(&self, case: &Case, why: &Value) -> BTreeMap<String, Vec<String>> {
        let mut learned = BTreeMap::new();
        let sites = [&self.tor.web].into_iter().chain(&self.sites);
        for request in sites.flat_map(Site::requests) {
            if request.host == case.host {
                let seen = format!("asked by {}", request.from.ip());
                learned.insert("site".to_owned(), vec![seen]);
            }
        }
        let error = last_decision(why).and_then(|decision| decision.get("error")?.as_str());
        if let Some(error) = error {
            learned.insert("script".to_owned(), vec![error.to_owned()]);
        }
        learned
    }

    /// How what happened differs from what the script says.
    fn complaints(
        &self,
        case: &Case,
        front: &Fetched,
        bulk: Option<&Fetched>,
        why: &Value,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        if tunnel(why) != case.tunnel {
            wrong.push(format!("took {}, not {}", tunnel(why), case.tunnel));
        }
        if greets(front) == (case.tunnel == "block") {
            wrong.push(format!("curl: exit {}, {}", front.exit, front.error));
        }
        if let Some(bulk) = bulk.filter(|bulk| bulk.body.len() != BULK_BYTES) {
            wrong.push(format!("{} of {BULK_BYTES} bytes came", bulk.body.len()));
        }
        // By an exit, or by the node that publishes the site: from the client's host by no way.
        let requests = self.tor.web.requests().into_iter();
        let straight = requests.filter(|request| request.from.ip() == CLIENT_AT);
        let straight = straight.count();
        if straight > 0 {
            wrong.push(format!("{straight} requests went straight to the site"));
        }
        wrong
    }
}

fn greets(fetched: &Fetched) -> bool {
    String::from_utf8_lossy(&fetched.body).contains(SITE_GREETING)
}

/// The address of a node's one service, once it is up.
async fn published(node: &Daemon, status: &str) -> Result<String> {
    let what = format!("{status} to have an address");
    until_within(FOUND, &what, async || {
        let status = node.call(status, json!({})).await.ok()?;
        let service = status.get("services")?.get(0)?;
        let is_up = service
            .get("state")
            .is_none_or(|state| state == "reachable");
        let address = service.get("address")?.as_str()?;
        is_up.then(|| address.to_owned())
    })
    .await
}
