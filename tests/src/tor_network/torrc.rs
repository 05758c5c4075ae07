//! What the network's tors are told.

use std::{fmt::Write as _, net::Ipv4Addr, path::Path};

use tempfile::TempDir;

use super::process;

pub(super) const OR_PORT: u16 = 5100;
pub(super) const DIR_PORT: u16 = 7100;
pub(super) const OBFS4_PORT: u16 = 5200;

/// Of every tor.
pub(super) fn common(folder: &TempDir, authorities: impl Iterator<Item = String>) -> String {
    format!(
        "TestingTorNetwork 1\nDataDirectory {}\nControlSocket {}\n\
         Log notice stdout\nSafeLogging 0\nShutdownWaitLength 0\nAvoidDiskWrites 1\n\
         GeoIPFile /dev/null\nGeoIPv6File /dev/null\n{}",
        process::data(folder.path()).display(),
        process::control(folder.path()).display(),
        authorities.collect::<String>()
    )
}

/// Of what others pass through.
pub(super) fn relay(ip: Ipv4Addr) -> String {
    format!(
        "Address {ip}\nORPort {ip}:{OR_PORT} IPv4Only\nSocksPort 0\nAssumeReachable 1\n\
         ContactInfo test\n"
    )
}

/// By control: an authority votes within five seconds, and again until it agrees with the others.
pub(super) const VOTE: &str = "SETCONF TestingV3AuthInitialVotingInterval=5";

/// Authorities vote when they are told to: what the first vote does not know, they would not know for
/// an hour.
///
/// Once they agree, authorities vote as seldom as in the public network, so that nothing changes while
/// a test runs. `directories` alone are where onion services are looked up: whoever keeps no directory
/// takes none of them.
pub(super) fn authority(ip: Ipv4Addr, directories: &str) -> String {
    format!(
        "AuthoritativeDirectory 1\nV3AuthoritativeDirectory 1\nDirPort {ip}:{DIR_PORT}\n\
         ExitRelay 0\nExitPolicy reject *:*\n\
         V3AuthVotingInterval 3600\nV3AuthVoteDelay 4\nV3AuthDistDelay 4\nV3AuthNIntervalsValid 3\n\
         TestingV3AuthInitialVotingInterval 1800\nTestingV3AuthInitialVoteDelay 2\n\
         TestingV3AuthInitialDistDelay 2\n\
         TestingDirAuthVoteExit *\nTestingDirAuthVoteGuard *\n\
         TestingDirAuthVoteHSDir {directories}\nTestingDirAuthVoteHSDirIsStrict 1\n\
         TestingMinExitFlagThreshold 0\nTestingMinFastFlagThreshold 0\nAuthDirMaxServersPerAddr 0\n"
    )
}

/// Exits keep no directory: clients would ask them before they have it themselves, and wait; and an
/// exit that is a client's guard could not be the end of its paths. A policy for some addresses alone
/// would be summed up as one for none.
pub(super) fn exit(ip: Ipv4Addr, resolver: &Path) -> String {
    format!(
        "DirCache 0\nExitRelay 1\nExitPolicyRejectPrivate 0\nExitPolicy accept *:*\n\
         OutboundBindAddressExit {ip}\nServerDNSDetectHijacking 0\nServerDNSAllowBrokenConfig 1\n\
         ServerDNSResolvConfFile {}\nTestingEnableCellStatsEvent 1\n",
        resolver.display()
    )
}

/// A relay that nobody is told of, which obfs4proxy hides.
pub(super) fn bridge(ip: Ipv4Addr) -> String {
    format!(
        "BridgeRelay 1\nPublishServerDescriptor 0\nExitRelay 0\nExitPolicy reject *:*\n\
         ExtORPort auto\nServerTransportPlugin obfs4 exec /usr/bin/obfs4proxy\n\
         ServerTransportListenAddr obfs4 {ip}:{OBFS4_PORT}\n"
    )
}

/// Of a client that has a bridge, by its line.
#[cfg(test)]
pub(super) fn bridged(line: &str) -> String {
    format!("UseBridges 1\nBridge {line}\nClientTransportPlugin obfs4 exec /usr/bin/obfs4proxy\n")
}

/// Of who hosts an onion service; what it does for it is logged, so that one sees when it is up.
pub(super) fn onion_service(folder: &Path, target: std::net::SocketAddr) -> String {
    let mut text = "Log [rend]info stdout\n".to_owned();
    let folder = folder.display();
    let _infallible = write!(
        text,
        "HiddenServiceDir {folder}\nHiddenServicePort 80 {target}\n"
    );
    text
}
