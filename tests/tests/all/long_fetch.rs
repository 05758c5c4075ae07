//! A fetch that is under way long enough for something on its way to be killed, and that is cut then.

use std::{process::Stdio, time::Duration};

use tokio::{
    process::{Child, Command},
    time::timeout,
};
use wormholes_tests::{Daemon, Namespace, Site, until_within};

/// To find a way, on a busy machine.
const FOUND: Duration = Duration::from_secs(90);
/// A cut is told at once; an end that nobody tells of, after a time-out of Tor's.
const CUT: Duration = Duration::from_secs(60);
/// A page that takes 50 s at the rate at which it is fetched: what buffers on the way hold of it,
/// some ten MB, comes all the same.
const LONG_PAGE_BYTES: usize = 200_000_000;
const LONG_RATE: &str = "4M";

/// Page `number` of `site`, which is called `name`, fetched from `host` through a node there. It is
/// under way; on a busy machine it may not open at once.
pub(super) async fn long_fetch(
    host: &Namespace,
    node: &Daemon,
    (site, name): (&Site, &str),
    number: usize,
) -> Child {
    let path = format!("/bytes/{}", LONG_PAGE_BYTES + number);
    let proxy = format!("socks5h://{}", node.entrance("socks5").unwrap());
    let url = format!("http://{name}{path}");
    let start = || long_curl(host, &proxy, &url);
    let mut fetch = start();
    until_within(FOUND, &format!("{url} to be under way"), async || {
        if fetch.try_wait().unwrap().is_some() {
            fetch = start();
        }
        let requests = site.requests();
        let found = requests.iter().any(|request| request.path == path);
        found.then_some(())
    })
    .await
    .unwrap();
    fetch
}

fn long_curl(host: &Namespace, proxy: &str, url: &str) -> Child {
    let mut command = host.command("curl");
    command
        .args(["--silent", "--fail", "--noproxy", "", "--proxy", proxy])
        .args(["--limit-rate", LONG_RATE, url])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    Command::from(command).kill_on_drop(true).spawn().unwrap()
}

/// An end in order would look like the page's.
pub(super) async fn is_cut(fetch: &mut Child) {
    let ended = timeout(CUT, fetch.wait()).await;
    let status = ended.expect("the fetch goes on").unwrap();
    assert!(!status.success(), "the fetch ended well");
}
