//! Changes of this machine's addresses and routes, as the system tells them (rtnetlink(7)). What
//! changed is not read: whoever hears of it looks at its connections.

use std::{
    future::pending,
    io::{self, ErrorKind},
    time::Duration,
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, socket_with,
};
use tokio::net::UnixDatagram;

/// Addresses and routes of IPv4 and IPv6.
const GROUPS: u32 = (libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE) as u32;
/// A new address and its routes come one by one.
const SETTLE: Duration = Duration::from_millis(50);
/// Messages that are one change at most; those beyond are the next one.
const MAX_MESSAGES: usize = 1024;

/// What the system tells; nothing, where it does not let this process listen.
#[derive(Debug)]
pub(super) struct Changes(Option<UnixDatagram>);

impl Changes {
    pub(super) fn listen() -> Self {
        let socket = subscribe().inspect_err(|error| {
            tracing::warn!(%error, "changes of addresses are not heard of; flows notice dead paths");
        });
        Self(socket.ok())
    }

    /// Ends with the next change. Cancel-safe.
    pub(super) async fn next(&self) {
        let Some(socket) = &self.0 else {
            return pending().await;
        };
        if socket.readable().await.is_err() {
            return pending().await;
        }
        tokio::time::sleep(SETTLE).await;
        for _ in 0..MAX_MESSAGES {
            // What is not asked for is cut off. Another error says that more was told than was kept.
            let told = socket.try_recv(&mut [0; 1]);
            if told.is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
                break;
            }
        }
    }
}

/// A socket for datagrams is read alike, whatever its family: this one in the shape that the
/// runtime knows.
fn subscribe() -> io::Result<UnixDatagram> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    UnixDatagram::from_std(socket.into())
}
