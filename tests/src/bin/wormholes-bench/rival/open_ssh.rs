//! OpenSSH: a port forward with the cipher that is fastest where processors have AES.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use tempfile::TempDir;
use wormholes_tests::SshServer;

use super::Running;
use crate::process::{free_addresses, program, start_listener};

pub(super) async fn start(load: SocketAddr) -> Result<Running> {
    let folder = TempDir::with_prefix("wormholes-ssh-")?;
    let server = SshServer::start(Ipv4Addr::LOCALHOST)?;
    let [entrance] = free_addresses()?;
    let mut client = program("ssh");
    client
        .args(["-N", "-F", "none", "-c", "aes128-gcm@openssh.com"])
        .args(["-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes"])
        .args(["-o", "StrictHostKeyChecking=no"])
        .args(["-o", "UserKnownHostsFile=/dev/null"])
        .args(["-p", &server.address().port().to_string()])
        .args(["-L", &format!("{entrance}:{load}")])
        .arg("-i")
        .arg(server.user_key())
        .arg(server.address().ip().to_string());
    let client = start_listener(client, entrance, folder.path()).await?;
    Ok(Running::new(entrance, vec![client], (folder, server)))
}
