//! sing-box: a direct forward, which it splices in the kernel; and shadowsocks-2022 over one server
//! or several.

use std::{env, fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result};
use data_encoding::BASE64;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::Running;
use crate::process::{free_addresses, program, start_listener};

/// Where `cargo xtask bench` put it.
const VARIABLE: &str = "WORMHOLES_SING_BOX";
const METHOD: &str = "2022-blake3-aes-128-gcm";

pub(super) async fn direct(load: SocketAddr) -> Result<Running> {
    let folder = TempDir::with_prefix("wormholes-sing-box-")?;
    let [entrance] = free_addresses()?;
    let outbound = json!({"type": "direct"});
    let config = client(entrance, load, &[outbound]);
    let child = start(&folder, entrance, &config).await?;
    Ok(Running::new(entrance, vec![child], folder))
}

/// A client and so many servers, of which the last one dials.
pub(super) async fn shadowsocks<const SERVERS: usize>(load: SocketAddr) -> Result<Running> {
    let folder = TempDir::with_prefix("wormholes-sing-box-")?;
    let [entrance] = free_addresses()?;
    let password = BASE64.encode(&rand::random::<[u8; 16]>());
    let (mut children, mut outbounds) = (Vec::new(), Vec::<Value>::new());
    for address in free_addresses::<SERVERS>()? {
        let config = server(address, &password);
        children.push(start(&folder, address, &config).await?);
        let mut outbound = json!({
            "type": "shadowsocks",
            "tag": format!("hop{}", outbounds.len()),
            "server": address.ip(),
            "server_port": address.port(),
            "method": METHOD,
            "password": password,
        });
        if let (Some(before), Some(outbound)) = (outbounds.last(), outbound.as_object_mut()) {
            let tag = before.get("tag").cloned();
            outbound.extend(tag.map(|tag| ("detour".to_owned(), tag)));
        }
        outbounds.push(outbound);
    }
    // The first is where everything goes.
    outbounds.reverse();
    let config = client(entrance, load, &outbounds);
    children.push(start(&folder, entrance, &config).await?);
    Ok(Running::new(entrance, children, folder))
}

fn client(entrance: SocketAddr, load: SocketAddr, outbounds: &[Value]) -> Value {
    json!({
        "log": {"level": "error"},
        "inbounds": [{
            "type": "direct",
            "listen": entrance.ip(),
            "listen_port": entrance.port(),
            "network": "tcp",
            "override_address": load.ip(),
            "override_port": load.port(),
        }],
        "outbounds": outbounds,
    })
}

fn server(address: SocketAddr, password: &str) -> Value {
    json!({
        "log": {"level": "error"},
        "inbounds": [{
            "type": "shadowsocks",
            "listen": address.ip(),
            "listen_port": address.port(),
            "method": METHOD,
            "password": password,
        }],
        "outbounds": [{"type": "direct"}],
    })
}

async fn start(folder: &TempDir, listens: SocketAddr, config: &Value) -> Result<Child> {
    let file = folder.path().join(format!("{}.json", listens.port()));
    fs::write(&file, config.to_string())?;
    start_listener(command(&file)?, listens, folder.path()).await
}

fn command(config: &Path) -> Result<Command> {
    let sing_box = env::var_os(VARIABLE);
    let sing_box = sing_box.with_context(|| format!("{VARIABLE} does not say where it is"))?;
    let mut command = program(sing_box);
    command.arg("run").arg("--config").arg(config);
    Ok(command)
}
