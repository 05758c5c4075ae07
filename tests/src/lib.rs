//! The harness of the tests, the demo and the benches: the simulated network; real daemons in
//! throw-away folders, sites for them to reach, network namespaces, and captured packets.

mod again;
mod association;
mod binaries;
mod burden;
mod capture;
mod client;
mod crowd;
mod daemon;
mod exchange;
mod fickle_disk;
pub mod fuzz;
mod honest;
mod hosted;
mod hosts;
mod i2p_network;
mod identity;
pub mod liar;
mod log;
mod long_path;
mod metrics;
mod name_server;
mod namespace;
mod network;
mod overlay;
mod plugin_host;
mod priority;
mod rounds;
mod rpc;
mod sam_peer;
mod setup;
pub mod sim;
mod site;
mod size;
mod sockets;
mod sshd;
mod tcp_tap;
mod test_node;
mod tor_network;
mod udp_link;
mod vitals;
mod wait;
pub mod workspace;

pub use again::Again;
pub use association::Association;
pub use binaries::{binary, cargo, component, output, run};
pub use burden::Burden;
pub use capture::{Capture, Captured};
pub use client::{
    Fetched, browse, curl, curl_in, echoes, socks5_ask, socks5_ask_as, socks5_connect,
    socks5_connect_as, socks5_echo, socks5_resolve,
};
pub use crowd::Crowd;
pub use daemon::Daemon;
pub use exchange::{Broken, exchange, there_and_back};
pub use fickle_disk::{DiskFailure, FickleDisk};
pub use honest::{HonestFlow, Turns};
pub use hosted::Hosted;
pub use i2p_network::{I2P_NAME, I2pNetwork, I2pTunnels};
pub use identity::Identity;
pub use log::LogLines;
pub use long_path::LongPath;
pub use metrics::{Metrics, refused_since};
pub use name_server::{Answers, NameServer};
pub use namespace::{Link, Namespace};
pub use network::{CLIENT, EXIT, FRIEND, HOPS, More, OUTSIDE, RELAY, SCRIPT_NAME, TestNetwork};
pub use overlay::{Overlay, OverlayWay};
pub use plugin_host::{HostNetwork, PluginHost};
pub use priority::Foremost;
pub use rounds::Rounds;
pub use rpc::{Events, RpcError, call};
pub use sam_peer::SamPeer;
pub use setup::Setup;
pub use site::{EchoServer, SITE_GREETING, Site, SiteRequest};
pub use size::{anonymous_bytes, is_soak, resident_bytes, soak_rounds, soak_time};
pub use sockets::{raise_file_limit, tcp_listeners, udp_addresses};
pub use sshd::SshServer;
pub use tcp_tap::TcpTap;
pub use test_node::TestNode;
pub use tor_network::{
    CircuitAtExit, ExitCells, OnionKey, TOR_ECHO, TOR_LOG, TOR_WEB, TorBridge, TorClient,
    TorNetwork, TorOnion,
};
pub use udp_link::{Conditions, UdpLink};
pub use vitals::Vitals;
pub use wait::{LIMIT, until, until_blocking, until_within};
