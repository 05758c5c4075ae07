//! Rivals: what the rows are held against. Each takes TCP connections and forwards them to the
//! load's server, as an entrance does; the quinn forward is this program's own (`reference`).

mod open_ssh;
mod sing_box;
mod stunnel;

use std::{fmt::Debug, net::SocketAddr};

use anyhow::{Context, Result};
use tokio::process::Child;

use crate::{ground::Course, load::Way, process::start_this};

/// A program by others, in the way that it is run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rival {
    /// One process that forwards, in the kernel where it can.
    SingBoxDirect,
    /// Two ends with AES-128-GCM between them.
    SingBoxShadowsocks,
    /// The same over three servers, each layer in the one before.
    SingBoxChain,
    /// Two ends with TLS 1.3 between them, AES-128-GCM.
    Stunnel,
    /// A port forward with AES-128-GCM.
    OpenSsh,
    /// A plain copy loop over QUIC.
    QuinnForward,
}

/// A rival that runs, and ends with this.
#[derive(Debug)]
pub(crate) struct Running {
    /// The way through it, and its processes on that way.
    pub(crate) course: Course,
    _children: Vec<Child>,
    _stands_on: Box<dyn Debug + Send>,
}

impl Rival {
    /// As rows call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SingBoxDirect => "sing-box direct",
            Self::SingBoxShadowsocks => "sing-box shadowsocks-2022",
            Self::SingBoxChain => "sing-box shadowsocks-2022, three hops",
            Self::Stunnel => "stunnel",
            Self::OpenSsh => "OpenSSH aes128-gcm",
            Self::QuinnForward => "quinn forward",
        }
    }

    /// Starts it towards the load's server.
    ///
    /// # Errors
    /// When it is missing or does not start; `cargo xtask bench` installs all.
    pub(crate) async fn start(self, load: SocketAddr) -> Result<Running> {
        let started = match self {
            Self::SingBoxDirect => sing_box::direct(load).await,
            Self::SingBoxShadowsocks => sing_box::shadowsocks::<1>(load).await,
            Self::SingBoxChain => sing_box::shadowsocks::<3>(load).await,
            Self::Stunnel => stunnel::start(load).await,
            Self::OpenSsh => open_ssh::start(load).await,
            Self::QuinnForward => quinn_forward(load).await,
        };
        started.with_context(|| format!("{} does not start", self.name()))
    }
}

impl Running {
    /// `stands_on` is what must not end before it.
    fn new(
        entrance: SocketAddr,
        children: Vec<Child>,
        stands_on: impl Debug + Send + 'static,
    ) -> Self {
        let pids = children.iter().filter_map(Child::id).collect();
        Self {
            course: Course {
                way: Way::tcp(entrance),
                pids,
            },
            _children: children,
            _stands_on: Box::new(stands_on),
        }
    }
}

async fn quinn_forward(load: SocketAddr) -> Result<Running> {
    let (far, said) = start_this(&["far-end", &load.to_string()]).await?;
    let (address, certificate) = said.split_once(' ').context("no certificate")?;
    let (near, said) = start_this(&["near-end", address, certificate]).await?;
    Ok(Running::new(said.parse()?, vec![far, near], ()))
}
