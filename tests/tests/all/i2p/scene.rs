//! A node that publishes, a node that calls, and their routers, on one host.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::net::TcpStream;
use wormholes_tests::{
    Daemon, EchoServer, I2pNetwork, Setup, Site, output, socks5_ask_as, until, until_within,
};

/// A session takes a router 20 s or 40 s; one that it has an end left of, twice as long and more.
pub(super) const PATIENCE: Duration = Duration::from_secs(240);

/// At this port, a user who is told apart by keys has another one.
pub(super) const BLUE_PORT: u16 = 82;

const SCRIPT: &str = r#"fn route(c) {
    let rest = block("no other way");
    if c.user == "keyed" {
        let key = if c.port == 82 { "blue" } else { "red" };
        let plan = i2p(#{ isolate: key, length: 0, quantity: 1 });
        return plan.timeout("150s").or(rest).closed();
    }
    if c.user == "keeper" { return i2p(#{ keep: "caller" }).timeout("150s").or(rest).closed(); }
    if c.user == "long" {
        return i2p(#{ length: 2, quantity: 3 }).timeout("150s").or(rest).closed();
    }
    if c.user == "none" {
        return i2p(#{ length: 0, quantity: 1 }).timeout("150s").or(rest).closed();
    }
    if c.user == "bare" { return i2p().timeout("150s").closed(); }
    i2p().timeout("150s").or(rest).closed()
}"#;
/// Who is told apart by the script, or by default.
const USERS: [&str; 7] = ["ann", "bob", "keeper", "long", "none", "bare", "keyed"];
/// Where the site is.
const SITE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// Tunnels that are made quickly. i2pd publishes nothing for minutes where all tunnels that lead in stand
/// before the first that leads out: with four of each that is rare.
const LENGTH: u8 = 1;
const QUANTITY: u8 = 4;

pub(super) struct Scene {
    pub(super) publisher: Daemon,
    pub(super) caller: Daemon,
    _site: Site,
    _echo: EchoServer,
    /// The last to go.
    pub(super) network: I2pNetwork,
}

impl Scene {
    pub(super) async fn start() -> Self {
        let network = I2pNetwork::start().await.unwrap();
        let host = network.host();
        let site = Site::start_in(host, "the blog", SITE).unwrap();
        let echo = EchoServer::start_in(host).unwrap();
        let service = |name: &str, target: SocketAddr| {
            format!(
                "[[service]]\nname = {name:?}\ntarget = \"{target}\"\nmin_trust = 0\ni2p = true\n"
            )
        };
        let publisher = Setup::new("publisher")
            .unwrap()
            .in_namespace(host)
            .config(&service("blog", site.address()))
            .config(&service("echo", echo.address()))
            .config(&section(network.sam(0), 0));
        let caller = Setup::new("caller")
            .unwrap()
            .in_namespace(host)
            .entrances()
            .script("rules.rhai", SCRIPT)
            .config(&section(network.sam(1), 1));
        let (publisher, caller) = tokio::try_join!(publisher.start(), caller.start()).unwrap();
        Self {
            publisher,
            caller,
            _site: site,
            _echo: echo,
            network,
        }
    }

    /// Has the caller make the session of each user, all at once. A destination that was published a
    /// moment ago is not found by every router yet.
    pub(super) async fn make_sessions(&self, target: &str) {
        let opening = USERS.map(|user| async move {
            let opened = until_within(PATIENCE, "a stream by I2P", async || {
                (self.ask(user, target, 80).await == 0).then_some(())
            });
            opened.await.unwrap();
        });
        futures_util::future::join_all(opening).await;
    }

    /// The answer of the caller's entrance to a user who asks for a target.
    pub(super) async fn ask(&self, user: &str, target: &str, port: u16) -> u8 {
        self.try_open(user, target, port).await.1
    }

    /// A stream that a user of the caller's entrance opens.
    pub(super) async fn open(&self, user: &str, target: &str, port: u16) -> TcpStream {
        let (stream, reply) = self.try_open(user, target, port).await;
        assert_eq!(reply, 0, "{target} for {user}");
        stream
    }

    async fn try_open(&self, user: &str, target: &str, port: u16) -> (TcpStream, u8) {
        let entrance = self.caller.entrance("socks5").unwrap();
        let mut stream = self.network.host().connect(entrance).unwrap();
        let reply = socks5_ask_as(user, &mut stream, target, port).await;
        (stream, reply.unwrap())
    }

    /// What curl fetches through the caller's entrance, as ann.
    pub(super) async fn fetch(&self, url: &str) -> String {
        let entrance = self.caller.entrance("socks5").unwrap();
        let mut curl = self.network.host().command("curl");
        curl.args(["--silent", "--show-error", "--max-time", "25"])
            .args([
                "--noproxy",
                "",
                "--proxy",
                &format!("socks5h://ann:x@{entrance}"),
            ])
            .arg(url);
        let fetched = tokio::task::spawn_blocking(move || output(&mut curl)).await;
        let fetched = fetched.unwrap().unwrap();
        String::from_utf8_lossy(&fetched.stdout).into_owned()
    }

    /// How many connections the site has.
    pub(super) fn visitors(&self) -> usize {
        let mut ss = self.network.host().command("ss");
        let port = format!(":{}", SITE.port());
        ss.args(["-Htn", "state", "established", "sport", "=", &port]);
        let listed = output(&mut ss).unwrap();
        assert!(listed.status.success(), "{listed:?}");
        String::from_utf8_lossy(&listed.stdout).lines().count()
    }

    /// Waits until a page is served: routers and nodes that came back find each other again.
    pub(super) async fn until_served(&self, url: &str) {
        let served = until_within(PATIENCE, "a page by I2P", async || {
            (!self.fetch(url).await.is_empty()).then_some(())
        });
        served.await.unwrap();
    }
}

/// Where a node's router is.
fn section(sam: SocketAddr, spares: usize) -> String {
    format!("[i2p]\nsam = \"{sam}\"\nlength = {LENGTH}\nquantity = {QUANTITY}\nspares = {spares}\n")
}

async fn status(node: &Daemon) -> Value {
    node.call("i2p.status", json!({})).await.unwrap()
}

/// The destination of a published service, once there is one.
pub(super) async fn published(node: &Daemon, service: &str) -> String {
    let what = format!("{service} to be published");
    let published = until_within(PATIENCE, &what, async || address(node, service).await);
    published.await.unwrap()
}

/// Waits until a service is published no longer.
pub(super) async fn unpublished(node: &Daemon, service: &str) {
    let what = format!("{service} to be published no longer");
    let gone = until(&what, async || {
        address(node, service).await.is_none().then_some(())
    });
    gone.await.unwrap();
}

async fn address(node: &Daemon, service: &str) -> Option<String> {
    let status = status(node).await;
    let mut services = status["services"].as_array().unwrap().iter();
    let found = services.find(|found| found["name"] == service).unwrap();
    found["address"].as_str().map(str::to_owned)
}

/// The destination of the session that was made ahead with the config's tunnels, once there is one, and
/// not this one.
pub(super) async fn spare(node: &Daemon, but: &str) -> String {
    let is_spare = |session: &Value| {
        let tunnels = (session["length"].as_u64(), session["quantity"].as_u64());
        session["used_by"] == "spare" && tunnels == (Some(LENGTH.into()), Some(QUANTITY.into()))
    };
    let made = until_within(PATIENCE, "a session to be made ahead", async || {
        let spares = addresses(&status(node).await, is_spare);
        spares.into_iter().find(|spare| spare != but)
    });
    made.await.unwrap()
}

/// The destinations of a node's sessions.
pub(super) async fn sessions(node: &Daemon) -> Vec<String> {
    addresses(&status(node).await, |_| true)
}

/// Those of destinations that are kept.
pub(super) async fn kept_sessions(node: &Daemon) -> Vec<String> {
    addresses(&status(node).await, |session| session["used_by"] == "kept")
}

fn addresses(status: &Value, wanted: impl Fn(&Value) -> bool) -> Vec<String> {
    let sessions = status["sessions"].as_array().unwrap().iter();
    let wanted = sessions.filter(|session| wanted(session));
    let addresses = wanted.filter_map(|session| session["address"].as_str());
    addresses.map(str::to_owned).collect()
}
