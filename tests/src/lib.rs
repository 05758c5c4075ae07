//! The harness of the tests, the demo and the benches: the simulated network; real daemons in
//! throw-away folders, sites for them to reach, network namespaces, and captured packets.

mod binaries;
mod burden;
mod capture;
mod client;
mod daemon;
mod honest;
mod hosts;
mod identity;
mod log;
mod name_server;
mod namespace;
mod network;
mod priority;
mod rpc;
mod setup;
pub mod sim;
mod site;
mod size;
mod sockets;
mod sshd;
mod test_node;
mod udp_link;
mod wait;
pub mod workspace;

pub use binaries::{binary, cargo, output, run};
pub use burden::Burden;
pub use capture::{Capture, Captured};
pub use client::{Fetched, curl, socks5_ask, socks5_connect};
pub use daemon::Daemon;
pub use honest::{HonestFlow, Turns};
pub use identity::Identity;
pub use log::LogLines;
pub use name_server::{Answers, NameServer};
pub use namespace::{Link, Namespace};
pub use network::{CLIENT, EXIT, FRIEND, HOPS, More, OUTSIDE, RELAY, SCRIPT_NAME, TestNetwork};
pub use priority::Foremost;
pub use rpc::{Events, RpcError, call};
pub use setup::Setup;
pub use site::{EchoServer, SITE_GREETING, Site, SiteRequest};
pub use size::{resident_bytes, soak_rounds};
pub use sockets::{raise_file_limit, tcp_listeners, udp_addresses};
pub use sshd::SshServer;
pub use test_node::TestNode;
pub use udp_link::{Conditions, UdpLink};
pub use wait::{LIMIT, until};
