//! stunnel: two ends with TLS 1.3 between them, with the cipher that is fastest where processors
//! have AES.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::Result;
use data_encoding::BASE64;
use tempfile::TempDir;
use tokio::process::Child;

use super::Running;
use crate::process::{free_addresses, program, start_listener};

/// Of a line of PEM (RFC 7468, section 2).
const LINE_BYTES: usize = 64;

pub(super) async fn start(load: SocketAddr) -> Result<Running> {
    let folder = TempDir::with_prefix("wormholes-stunnel-")?;
    let key = rcgen::generate_simple_self_signed(vec!["stunnel".to_owned()])?;
    let key = [
        pem("CERTIFICATE", key.cert.der()),
        pem("PRIVATE KEY", &key.signing_key.serialize_der()),
    ];
    fs::write(folder.path().join("cert.pem"), key.concat())?;
    let [near, far] = free_addresses()?;
    let server = "cert = cert.pem";
    let children = vec![
        end(folder.path(), far, load, server).await?,
        end(folder.path(), near, far, "client = yes").await?,
    ];
    Ok(Running::new(near, children, folder))
}

async fn end(folder: &Path, from: SocketAddr, to: SocketAddr, side: &str) -> Result<Child> {
    let file = folder.join(format!("{}.conf", from.port()));
    let config = format!(
        "foreground = yes\npid =\nsyslog = no\ndebug = err\n\
         socket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n\
         [forward]\n{side}\naccept = {from}\nconnect = {to}\nsslVersion = TLSv1.3\n\
         ciphersuites = TLS_AES_128_GCM_SHA256\n"
    );
    fs::write(&file, config)?;
    let mut command = program("stunnel");
    command.arg(&file).current_dir(folder);
    start_listener(command, from, folder).await
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let lines = text.as_bytes().chunks(LINE_BYTES);
    let lines: String = lines
        .map(|line| format!("{}\n", String::from_utf8_lossy(line)))
        .collect();
    format!("-----BEGIN {label}-----\n{lines}-----END {label}-----\n")
}
