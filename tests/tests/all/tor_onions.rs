//! Onion services: this router and C tor as hosts and as clients of each other, in a private Tor
//! network. C tor with itself is in the harness's own test.

use std::{fs, net::Ipv4Addr, time::Duration};

use serde_json::json;
use tempfile::TempDir;
use wormholes_tests::{
    Daemon, OnionKey, SITE_GREETING, Site, TorNetwork, curl_in, socks5_ask, there_and_back, until,
    until_within,
};

/// To publish a service, or to find one: seconds; where its introduction points change at once, a minute
/// more, since arti uploads no oftener.
const FOUND: Duration = Duration::from_secs(240);
/// Of a stream on which nothing comes.
const PATIENCE: Duration = Duration::from_secs(30);
const STREAM_BYTES: usize = 2 << 20;
/// Of Tor, at once after a stop.
const RESTARTS: usize = 3;

/// How curl asks.
const PLAIN: &[&str] = &[];
const BY_CONNECT: &[&str] = &["--proxytunnel"];

const BY_TOR: &str = "fn route(c) { tor().timeout(\"20s\").closed() }";

#[tokio::test]
async fn onion_services_of_both_are_reached_from_both_and_move_to_a_new_address() {
    let network = TorNetwork::start().await.unwrap();
    let site = Site::start_in(network.host(), "here", (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let host = network.node("host", "").unwrap();
    let host = host
        .config(&service("web", site.address(), ""))
        .config(&service("echo", network.echo.address(), ""))
        .start();
    let asker = network.node("asker", "").unwrap();
    let asker = asker.script("rules.rhai", BY_TOR).start();
    let (mut host, asker, client, c_onion) = tokio::try_join!(
        host,
        asker,
        network.client(""),
        network.onion_service(network.web.address(), &[]),
    )
    .unwrap();
    let web = host.onion_address("web", "").await.unwrap();
    let echo = host.onion_address("echo", "").await.unwrap();
    let socks = format!("socks5h://{}", asker.entrance("socks5").unwrap());
    let http = format!("http://{}", asker.entrance("http").unwrap());
    for (proxy, onion, more) in [
        (client.proxy(), &web, PLAIN),
        (socks.clone(), &c_onion.address, PLAIN),
        (socks.clone(), &web, PLAIN),
        (http.clone(), &web, BY_CONNECT),
        (http, &web, PLAIN),
    ] {
        shows(&network, &proxy, onion, more).await;
    }
    let entrance = asker.entrance("socks5").unwrap();
    let mut stream = network.host().connect(entrance).unwrap();
    assert_eq!(socks5_ask(&mut stream, &echo, 80).await.unwrap(), 0);
    let echoed = there_and_back(&mut stream, 11, STREAM_BYTES, PATIENCE).await;
    echoed.unwrap();
    drop(stream);

    stays_where_no_new_address_is_to_be_had(&host, &web).await;
    shows(&network, &socks, &web, PLAIN).await;
    host.cli(&["tor", "new-onion", "web"]).unwrap();
    let moved = host.onion_address("web", &web).await.unwrap();
    shows(&network, &socks, &moved, PLAIN).await;
    shows(&network, &client.proxy(), &moved, PLAIN).await;
    let url = format!("http://{web}/");
    let old = curl_in(network.host(), &socks, &url, &[]).await.unwrap();
    assert_ne!(old.exit, 0, "the old address is still served");

    host.stop().await.unwrap();
    host.restart().await.unwrap();
    assert_eq!(
        host.onion_address("web", "").await.unwrap(),
        moved,
        "the key was not kept"
    );
    assert_eq!(host.onion_address("echo", "").await.unwrap(), echo);
    shows(&network, &socks, &moved, PLAIN).await;
    goes_with_tor_and_comes_back(&network, (&host, &asker), &socks, &moved).await;
    assert_eq!(host.onion_address("echo", "").await.unwrap(), echo);
}

#[tokio::test]
async fn a_service_that_asks_for_a_key_is_found_by_those_who_have_it_alone() {
    let network = TorNetwork::start().await.unwrap();
    let site = Site::start_in(network.host(), "here", (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let alice = OnionKey::ALICE;
    let more = format!("onion_clients = {{ alice = {:?} }}", alice.public());
    let host = network.node("host", "").unwrap();
    let host = host.config(&service("web", site.address(), &more)).start();
    let keys = [alice];
    let c_onion = network.onion_service(network.web.address(), &keys);
    let (host, c_onion) = tokio::try_join!(host, c_onion).unwrap();
    let ours = host.onion_address("web", "").await.unwrap();
    let theirs = c_onion.address.clone();

    let authorizations = [alice.secret(&ours), alice.secret(&theirs)];
    let knowing = network.node("knowing", &format!("authorizations = {authorizations:?}"));
    let knowing = knowing.unwrap().script("rules.rhai", BY_TOR).start();
    let ignorant = network.node("ignorant", "").unwrap();
    let ignorant = ignorant.script("rules.rhai", BY_TOR).start();
    let folder = TempDir::with_prefix("wormholes-tor-").unwrap();
    let key = folder.path().join("alice.auth_private");
    fs::write(key, alice.secret(&ours)).unwrap();
    let more = format!("ClientOnionAuthDir {}\n", folder.path().display());
    let (knowing, ignorant, c_knowing, c_ignorant) =
        tokio::try_join!(knowing, ignorant, network.client(&more), network.client("")).unwrap();
    let socks = |node: &Daemon| format!("socks5h://{}", node.entrance("socks5").unwrap());
    shows(&network, &socks(&knowing), &theirs, PLAIN).await;
    shows(&network, &socks(&knowing), &ours, PLAIN).await;
    shows(&network, &c_knowing.proxy(), &ours, PLAIN).await;
    for (proxy, onion) in [
        (socks(&ignorant), &theirs),
        (socks(&ignorant), &ours),
        (c_ignorant.proxy(), &ours),
    ] {
        let url = format!("http://{onion}/");
        let fetched = curl_in(network.host(), &proxy, &url, &["--max-time", "25"]).await;
        assert_ne!(
            fetched.unwrap().exit,
            0,
            "{proxy} found {onion} without a key"
        );
    }
    let why = ignorant.call("why", json!({ "flow": 1 })).await.unwrap();
    let said = why["steps"][0]["error"].as_str().unwrap();
    assert!(said.contains("asks for a key"), "{why}");
}

/// Nobody is served while Tor is stopped; started again, the services are where they were. What arti had of
/// them may not have ended by then: nothing lies between a stop and the next start here.
async fn goes_with_tor_and_comes_back(
    network: &TorNetwork,
    (host, asker): (&Daemon, &Daemon),
    socks: &str,
    web: &str,
) {
    let line = |state: &str| format!("service    web: {web}:80, {state}\n");
    let status = host.cli(&["tor", "status"]).unwrap();
    assert!(status.contains(&line("reachable")), "{status}");
    host.cli(&["tor", "stop"]).unwrap();
    let status = host.cli(&["tor", "status"]).unwrap();
    assert!(status.starts_with("state      stopped\n"), "{status}");
    assert!(status.contains(&line("stopped")), "{status}");
    let url = format!("http://{web}/");
    // It was there a moment ago, within milliseconds.
    let quick = ["--max-time", "15"];
    let gone = curl_in(network.host(), socks, &url, &quick).await.unwrap();
    assert_ne!(gone.exit, 0, "a service is there without Tor");
    for _ in 0..RESTARTS {
        host.call("tor.start", json!({})).await.unwrap();
        until("Tor to be ready again", async || {
            let status = host.call("tor.status", json!({})).await.unwrap();
            (status["state"] == "ready").then_some(())
        })
        .await
        .unwrap();
        host.call("tor.stop", json!({})).await.unwrap();
    }
    host.cli(&["tor", "start"]).unwrap();
    assert_eq!(host.onion_address("web", "").await.unwrap(), web);
    // Who was there before asks for no newer descriptor while he has one: arti keeps it for hours.
    asker.cli(&["tor", "new-identity"]).unwrap();
    shows(network, socks, web, PLAIN).await;
    let failed = host.log().matching("onion service not published");
    assert!(failed.is_empty(), "{failed:?}");
}

/// A file is where the state of the next address would go.
async fn stays_where_no_new_address_is_to_be_had(host: &Daemon, web: &str) {
    let file = host.folder().join("data/tor/state/hss/service_web_2");
    fs::write(&file, "").unwrap();
    let refused = host.cli(&["tor", "new-onion", "web"]).unwrap_err();
    let said = format!("{refused:#}");
    assert!(said.contains("the one before stays"), "{said}");
    let keys = host.folder().join("data/tor/state/keystore/hss");
    assert!(!keys.join("service_web_2").exists(), "of no use to anybody");
    assert!(keys.join("service_web_1").exists());
    assert_eq!(host.onion_address("web", "").await.unwrap(), web);
    fs::remove_file(&file).unwrap();
}

fn service(name: &str, target: std::net::SocketAddr, more: &str) -> String {
    format!(
        "[[service]]\nname = {name:?}\ntarget = \"{target}\"\nmin_trust = 0\nonion = true\n\
         onion_port = 80\n{more}"
    )
}

/// Fetches the front page; where a descriptor is not everywhere yet, again.
async fn shows(network: &TorNetwork, proxy: &str, onion: &str, more: &[&str]) {
    let url = format!("http://{onion}/");
    let what = format!("{url} by {proxy}");
    let shown = until_within(FOUND, &what, async || {
        let fetched = curl_in(network.host(), proxy, &url, more).await.ok()?;
        let page = String::from_utf8_lossy(&fetched.body);
        page.contains(SITE_GREETING).then_some(())
    });
    shown.await.unwrap();
}
