//! Tor while something fails: each kind of daemon on the way of a flow is killed in the middle of it, no
//! consensus is to be had, the clock is wrong; and a daemon that was built without Tor.

#[path = "tor_failures/without_tor.rs"]
mod without_tor;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::json;
use tokio::process::Child;
use wormholes_tests::{
    Daemon, Namespace, SITE_GREETING, Site, TOR_WEB, TorNetwork, curl_in, output, until_within,
};

use crate::long_fetch::{is_cut, long_fetch};

/// To find another way, on a busy machine; or to publish a service, of which arti uploads what changes once a
/// minute.
const FOUND: Duration = Duration::from_secs(240);
/// Between a flow and a look at when it was asked for, at most.
const LATELY_SECONDS: f64 = 1800.0;
const HOUR_SECONDS: f64 = 3600.0;

/// The user of a flow says whether it may go without Tor.
const SCRIPT: &str = r#"
fn route(c) {
    switch c.user {
        "any" => tor().timeout("3s").or(direct()),
        _ => tor().timeout("15s").closed(),
    }
}
"#;

#[tokio::test]
async fn a_killed_daemon_ends_the_flows_through_it_and_the_next_find_another_way() {
    let mut scene = Scene::start().await;
    scene.hosts_die().await;
    scene.client_dies().await;
    scene.exit_dies().await;
    scene.guard_dies().await;
    scene.network.kill_all().unwrap();
    scene.takes_the_next_step_or_none().await;
}

/// Nothing ever comes of the bootstrap, and nothing but flows through Tor feels it.
#[tokio::test]
async fn without_a_consensus_flows_wait_their_time_and_take_the_next_step_or_none() {
    let network = TorNetwork::without_consensus().unwrap();
    let client = network.node("client", "").unwrap();
    let client = client.script("rules.rhai", SCRIPT).start().await.unwrap();
    let scene = Scene { network, client };
    scene.takes_the_next_step_or_none().await;
    let status = scene.client.call("tor.status", json!({})).await.unwrap();
    assert_eq!(status["state"], "starting", "{status}");
    assert!(status["progress_percent"].as_u64() < Some(100), "{status}");
    let why = scene
        .client
        .call("why", json!({ "flow": 1 }))
        .await
        .unwrap();
    let said = why["steps"][0]["error"].as_str().unwrap();
    assert!(said.contains("not ready within"), "{why}");
    let netcheck = output(&mut scene.client.cli_command(&["netcheck"]).unwrap()).unwrap();
    let said = String::from_utf8_lossy(&netcheck.stdout);
    assert!(!netcheck.status.success(), "{said}");
    for part in [" % of its way into the network", "`bridges` in [tor]"] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

/// Certificates and the consensus say when they hold; two hours are within what Tor bears. An onion service
/// is published by the fast clock: arti counts what it uploads from the beginning of a day of the network's,
/// at which a slow one may not be yet.
#[tokio::test]
async fn a_clock_that_is_two_hours_off_keeps_no_flow_from_tor() {
    let network = TorNetwork::start().await.unwrap();
    let site = Site::start_in(network.host(), "here", (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let setup = |name: &str| {
        let node = network.node(name, "").unwrap();
        node.script("rules.rhai", SCRIPT)
    };
    let late = setup("late").clock("+2h").config(&web_service(&site));
    let (early, late, right, onion) = tokio::try_join!(
        setup("early").clock("-2h").start(),
        late.start(),
        setup("right").start(),
        network.onion_service(network.web.address(), &[]),
    )
    .unwrap();
    for (node, hours) in [(&early, -2.0), (&late, 2.0), (&right, 0.0)] {
        for host in [TOR_WEB, &onion.address] {
            until_shown(network.host(), node, host).await;
        }
        clock_is_off(node, hours).await;
    }
    let ours = late.onion_address("web", "").await.unwrap();
    until_shown(network.host(), &right, &ours).await;
}

/// By when its first flow was asked for, as it says itself: else nothing would be off.
async fn clock_is_off(node: &Daemon, hours: f64) {
    let why = node.call("why", json!({ "flow": 1 })).await.unwrap();
    let asked = Duration::from_millis(why["at_unix_ms"].as_u64().unwrap());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let off = asked.as_secs_f64() - now.as_secs_f64();
    let wrong = (off - hours * HOUR_SECONDS).abs();
    assert!(wrong < LATELY_SECONDS, "{}: {off} s", node.name());
}

struct Scene {
    network: TorNetwork,
    client: Daemon,
}

impl Scene {
    async fn start() -> Self {
        let network = TorNetwork::start().await.unwrap();
        let client = network.node("client", "").unwrap();
        let client = client.script("rules.rhai", SCRIPT).start().await.unwrap();
        Self { network, client }
    }

    /// Who hosts an onion service: C tor, and this router.
    async fn hosts_die(&mut self) {
        let local = (Ipv4Addr::LOCALHOST, 0).into();
        let site = Site::start_in(self.network.host(), "here", local).unwrap();
        let host = self.network.node("host", "").unwrap();
        let host = host.config(&web_service(&site));
        let c_host = self.network.onion_service(site.address(), &[]);
        let (mut host, mut c_host) = tokio::try_join!(host.start(), c_host).unwrap();
        let theirs = c_host.address.clone();
        let mut fetch = self.long_fetch(&site, &theirs, 1).await;
        c_host.kill().unwrap();
        is_cut(&mut fetch).await;

        let ours = host.onion_address("web", "").await.unwrap();
        let mut fetch = self.long_fetch(&site, &ours, 2).await;
        host.kill().unwrap();
        is_cut(&mut fetch).await;
    }

    async fn client_dies(&mut self) {
        let mut fetch = self.long_fetch(&self.network.web, TOR_WEB, 3).await;
        self.client.kill().unwrap();
        is_cut(&mut fetch).await;
        self.client.restart().await.unwrap();
        until_shown(self.network.host(), &self.client, TOR_WEB).await;
    }

    async fn exit_dies(&mut self) {
        let mut fetch = self.long_fetch(&self.network.web, TOR_WEB, 4).await;
        let requests = self.network.web.requests();
        let exit = requests.last().unwrap().from.ip();
        self.network.kill(exit).unwrap();
        is_cut(&mut fetch).await;
        until_shown(self.network.host(), &self.client, TOR_WEB).await;
        let requests = self.network.web.requests();
        assert_ne!(requests.last().unwrap().from.ip(), exit);
    }

    async fn guard_dies(&mut self) {
        let mut fetch = self.long_fetch(&self.network.web, TOR_WEB, 5).await;
        let circuits = self.client.call("tor.circuits", json!({})).await.unwrap();
        let mut circuits = circuits["circuits"].as_array().unwrap().iter();
        let in_use = circuits.find(|circuit| circuit["streams"].as_u64() > Some(0));
        let guard: SocketAddr = in_use.unwrap()["relays"][0]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        self.network.kill(guard.ip()).unwrap();
        is_cut(&mut fetch).await;
        until_shown(self.network.host(), &self.client, TOR_WEB).await;
    }

    /// There is no way through Tor.
    async fn takes_the_next_step_or_none(&self) {
        let before = self.network.web.requests().len();
        let entrance = self.client.entrance("socks5").unwrap();
        let url = format!("http://{}/", self.network.web.address());
        for (user, is_open) in [("any", true), ("none", false)] {
            let proxy = format!("socks5h://{user}:x@{entrance}");
            let fetched = curl_in(self.network.host(), &proxy, &url, &[])
                .await
                .unwrap();
            let page = String::from_utf8_lossy(&fetched.body).into_owned();
            assert_eq!(
                page.contains(SITE_GREETING),
                is_open,
                "{user}: {}",
                fetched.error
            );
        }
        // The one that came was sent straight from this host.
        let requests = self.network.web.requests();
        let came: Vec<IpAddr> = requests
            .iter()
            .skip(before)
            .map(|one| one.from.ip())
            .collect();
        assert_eq!(came, [self.network.web.address().ip()]);
    }

    async fn long_fetch(&self, site: &Site, name: &str, number: usize) -> Child {
        long_fetch(self.network.host(), &self.client, (site, name), number).await
    }
}

/// A site as an onion service.
fn web_service(site: &Site) -> String {
    format!(
        "[[service]]\nname = \"web\"\ntarget = \"{}\"\nmin_trust = 0\nonion = true\n\
         onion_port = 80",
        site.address()
    )
}

/// Fetches the front page, again and again.
async fn until_shown(host: &Namespace, client: &Daemon, from: &str) {
    let proxy = format!("socks5h://{}", client.entrance("socks5").unwrap());
    let url = format!("http://{from}/");
    let wanted = format!("{url} through Tor");
    let shown = until_within(FOUND, &wanted, async || {
        let fetched = curl_in(host, &proxy, &url, &[]).await.ok()?;
        let page = String::from_utf8_lossy(&fetched.body);
        page.contains(SITE_GREETING).then_some(())
    });
    shown.await.unwrap();
}
