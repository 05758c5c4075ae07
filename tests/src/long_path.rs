//! A client, and as many hops as an onion may have, each behind a link that takes time: what a
//! circuit costs where round trips do.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use serde_json::{Value, json};

use crate::{
    Daemon, Identity, Setup,
    udp_link::{Conditions, UdpLink},
    wait::until,
};

/// The running nodes and links.
#[derive(Debug)]
pub struct LongPath {
    /// Has a SOCKS5 entrance, and knows all hops.
    pub client: Daemon,
    _relay: Daemon,
    _hops: Vec<Hop>,
}

/// A hop, reached over its link.
#[derive(Debug)]
struct Hop {
    _daemon: Daemon,
    _link: UdpLink,
}

impl LongPath {
    /// How many hops there are. The last one is the exit.
    pub const HOPS: u8 = 8;

    /// Starts it; the client's one script is `script`.
    ///
    /// # Errors
    /// When a node does not start, or the client does not learn of all hops.
    pub async fn start(link_round_trip: Duration, script: &str) -> Result<Self> {
        let numbers = 1..=Self::HOPS;
        let identities = numbers.clone().map(|_| Identity::generate());
        let identities = identities.collect::<Result<Vec<_>>>()?;
        let client = Setup::new("client")?
            .entrances()
            .config("[metrics]\nlisten = \"127.0.0.1:0\"")
            .script("rules.rhai", script);
        let mut relay = Setup::new("relay")?
            .listen("127.70.0.1:0")
            .config("[relay]\nenabled = true")
            .peer_id("client", client.id(), 2, "");
        for (number, identity) in identities.iter().enumerate() {
            relay = relay.peer_id(&format!("hop-{number}"), identity.id(), 1, "");
        }
        let relay = relay.start().await?;
        let conditions = Conditions {
            delay: link_round_trip / 2,
            loss: 0.0,
        };
        let hops = numbers.zip(&identities);
        let hops = hops.map(|(number, identity)| hop(number, identity, &relay, conditions));
        let hops = try_join_all(hops).await?;
        let client = client.peer(&relay, 2).start().await?;
        wait_until_known(&client).await?;
        Ok(Self {
            client,
            _relay: relay,
            _hops: hops,
        })
    }
}

async fn hop(
    number: u8,
    identity: &Identity,
    relay: &Daemon,
    conditions: Conditions,
) -> Result<Hop> {
    let ip = Ipv4Addr::new(127, 70 + number, 0, 1);
    let link = UdpLink::start(IpAddr::V4(ip), conditions, u64::from(number)).await?;
    let exit = "[exit]\nenabled = true\nallow = [\"0.0.0.0/0\"]\nallow_private = true";
    let is_last = number == LongPath::HOPS;
    let daemon = Setup::with_identity(&format!("hop-{number}"), identity)?
        .listen(&format!("{ip}:0"))
        .node(&format!("advertise = [\"{}\"]", link.address()))
        .config("[hop]\nenabled = true")
        .config(if is_last { exit } else { "" })
        .config(&registered_with(relay)?)
        .start()
        .await?;
    link.connect(daemon.listen().context("a hop that listens nowhere")?);
    Ok(Hop {
        _daemon: daemon,
        _link: link,
    })
}

fn registered_with(relay: &Daemon) -> Result<String> {
    let address = relay.listen().context("a relay that listens nowhere")?;
    Ok(format!(
        "[[peer]]\nname = \"relay\"\nid = \"{}\"\naddresses = [\"{address}\"]\nregister = true",
        relay.id()
    ))
}

async fn wait_until_known(client: &Daemon) -> Result<()> {
    until("the client to know all hops", async || {
        let peers = client.call("peers", json!({})).await.ok()?;
        let hop = |peer: &&Value| peer.pointer("/roles/hop") == Some(&json!(true));
        let known = peers.get("peers")?.as_array()?.iter().filter(hop).count();
        (known == usize::from(LongPath::HOPS)).then_some(())
    })
    .await
}
