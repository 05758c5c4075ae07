//! Bare arti: a plain copy loop between TCP and arti's streams, in a process of its own.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, anyhow};
use arti_client::{
    TorClient, TorClientConfig,
    config::{TorClientConfigBuilder, dir},
};
use futures_util::FutureExt;
use tempfile::TempDir;
use tokio::{io::copy_bidirectional, net::TcpListener};
use wormholes_tor::{Authority, Fallback};

/// Forwards each connection to the returned address through Tor to `target`, until the runtime ends. The
/// network is that of these authorities, as lines of a torrc, and fallbacks, as config.toml has them.
pub(crate) async fn start(target: &str, network: &[&str]) -> Result<SocketAddr> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let installed = provider.install_default();
    installed.map_err(|_| anyhow!("this process has a provider for rustls"))?;
    let folder = TempDir::with_prefix("wormholes-arti-")?;
    let client = TorClient::create_bootstrapped(config(network, &folder)?);
    let client = client.boxed().await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let target = target.to_owned();
    tokio::spawn(async move {
        let _open = folder;
        while let Ok((mut stream, _)) = listener.accept().await {
            let (client, target) = (client.clone(), target.clone());
            let forward = async move {
                stream.set_nodelay(true)?;
                let mut through = client.connect(target.as_str()).await?;
                copy_bidirectional(&mut stream, &mut through).await?;
                anyhow::Ok(())
            };
            tokio::spawn(forward.boxed());
        }
    });
    Ok(address)
}

fn config(network: &[&str], folder: &TempDir) -> Result<TorClientConfig> {
    let path = |name: &str| folder.path().join(name);
    let mut builder = TorClientConfigBuilder::from_directories(path("state"), path("cache"));
    let mut authorities = dir::AuthorityContacts::builder();
    // Those of the public network are there until they are taken out.
    authorities.v3idents().clear();
    authorities.uploads().clear();
    authorities.downloads().clear();
    authorities.votes().clear();
    let mut fallbacks = Vec::new();
    for line in network {
        if line.contains("v3ident=") {
            let authority: Authority = line.parse()?;
            authorities.v3idents().push(authority.v3ident.into());
            authorities.uploads().push(vec![authority.address]);
            authorities.downloads().push(vec![authority.address]);
            authorities.votes().push(vec![authority.address]);
        } else {
            let fallback: Fallback = line.parse()?;
            let mut relay = dir::FallbackDir::builder();
            relay
                .rsa_identity(fallback.rsa_id.into())
                .ed_identity(fallback.ed25519_id.into())
                .orports()
                .push(fallback.address);
            fallbacks.push(relay);
        }
    }
    *builder.tor_network().authorities() = authorities;
    builder.tor_network().set_fallback_caches(fallbacks);
    builder
        .path_rules()
        .ipv4_subnet_family_prefix(33)
        .ipv6_subnet_family_prefix(129);
    Ok(builder.build()?)
}
