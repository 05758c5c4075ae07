//! Names to addresses: the hosts file, else both families from the name servers at once.

use std::{
    net::{IpAddr, SocketAddr},
    pin::pin,
    time::Duration,
};

use futures_util::future::{Either, select};
use hickory_resolver::{
    Hosts, IntoName, Name, TokioResolver,
    config::{NameServerConfigGroup, ResolveHosts, ResolverConfig},
    name_server::TokioConnectionProvider,
    proto::{
        op::Query,
        rr::{RData, RecordType},
    },
};
use wormholes_proto::{Host, MAX_RESOLVED_ADDRESSES, Target, is_special_use};

use super::DialError;

/// How long the slower family may hold up the faster one (RFC 8305, section 3). What comes later
/// is left out: rules and bans judge an answer as a whole.
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// Looks names up.
#[derive(Debug)]
pub(crate) struct Resolver {
    hosts: Hosts,
    servers: Option<TokioResolver>,
}

impl Resolver {
    /// Asks the servers of /etc/resolv.conf, or only `server` when it is given.
    pub(crate) fn new(server: Option<SocketAddr>) -> Self {
        let provider = TokioConnectionProvider::default;
        let builder = match server {
            Some(server) => {
                let group =
                    NameServerConfigGroup::from_ips_clear(&[server.ip()], server.port(), true);
                let config = ResolverConfig::from_parts(None, Vec::new(), group);
                Ok(TokioResolver::builder_with_config(config, provider()))
            }
            None => TokioResolver::builder_tokio(),
        };
        let servers = match builder {
            Ok(mut builder) => {
                let options = builder.options_mut();
                // A name means the same for every program: no search domains.
                options.ndots = 0;
                options.num_concurrent_reqs = 2;
                // A name that stands there for one family is not asked for in the other.
                options.use_hosts_file = ResolveHosts::Never;
                Some(builder.build())
            }
            Err(error) => {
                tracing::warn!(%error, "names cannot be looked up from this node");
                None
            }
        };
        let hosts = Hosts::from_system().unwrap_or_default();
        Self { hosts, servers }
    }

    /// All addresses of `host` in the order in which to dial them, at most as many as an answer
    /// carries; a literal is its own. Never asks for names of special use.
    ///
    /// # Errors
    /// [`DialError`] when there are none.
    pub(crate) async fn lookup(&self, host: &Host) -> Result<Vec<IpAddr>, DialError> {
        let name = match host {
            Host::Ip(ip) => return Ok(vec![*ip]),
            Host::Name(name) => name,
        };
        if is_special_use(name) {
            return Err(DialError::SpecialUse);
        }
        // The final dot: the name is whole.
        let name = format!("{name}.").into_name();
        let name = name.map_err(|_| DialError::NameNotFound)?;
        let mut found = self.in_hosts(&name);
        if found.is_empty() {
            found = self.ask(&name).await?;
        }
        if found.is_empty() {
            return Err(DialError::NameNotFound);
        }
        Ok(by_turns(found))
    }

    /// All socket addresses of `target`.
    ///
    /// # Errors
    /// [`DialError`] when there are none.
    pub(crate) async fn resolve(&self, target: &Target) -> Result<Vec<SocketAddr>, DialError> {
        let addresses = self.lookup(&target.host).await?;
        let with_port = |ip| SocketAddr::new(ip, target.port);
        Ok(addresses.into_iter().map(with_port).collect())
    }

    fn in_hosts(&self, name: &Name) -> Vec<IpAddr> {
        let families = [RecordType::AAAA, RecordType::A].into_iter();
        let queries = families.map(|family| Query::query(name.clone(), family));
        let found = queries.filter_map(|query| self.hosts.lookup_static_host(&query));
        found
            .flat_map(|found| found.into_iter().filter_map(|data| data.ip_addr()))
            .collect()
    }

    /// What the name servers say; one family is as good as both.
    async fn ask(&self, name: &Name) -> Result<Vec<IpAddr>, DialError> {
        let Some(servers) = &self.servers else {
            let why = "no name server is configured";
            return Err(DialError::Resolver(why.to_owned()));
        };
        let (v6, v4) = (
            pin!(family(servers, name, RecordType::AAAA)),
            pin!(family(servers, name, RecordType::A)),
        );
        let (first, other) = match select(v6, v4).await {
            Either::Left(answered) | Either::Right(answered) => answered,
        };
        let second = if first.as_ref().is_ok_and(|found| !found.is_empty()) {
            let late = tokio::time::timeout(RESOLUTION_DELAY, other).await;
            late.unwrap_or(Ok(Vec::new()))
        } else {
            other.await
        };
        match (first, second) {
            (Ok(found), Ok(more)) => Ok([found, more].concat()),
            (Ok(found), Err(_)) | (Err(_), Ok(found)) if !found.is_empty() => Ok(found),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }
}

/// The addresses of one family; none is no error.
async fn family(
    servers: &TokioResolver,
    name: &Name,
    family: RecordType,
) -> Result<Vec<IpAddr>, DialError> {
    match servers.lookup(name.clone(), family).await {
        Ok(found) => Ok(found.iter().filter_map(RData::ip_addr).collect()),
        Err(error) if error.is_no_records_found() => Ok(Vec::new()),
        Err(error) => Err(DialError::Resolver(error.to_string())),
    }
}

/// IPv6 first, then the families by turns (RFC 8305, section 4): one that is dead costs one wait.
fn by_turns(found: Vec<IpAddr>) -> Vec<IpAddr> {
    let (v6, v4): (Vec<_>, Vec<_>) = found.into_iter().partition(IpAddr::is_ipv6);
    let turns = (0..v6.len().max(v4.len())).flat_map(|turn| [v6.get(turn), v4.get(turn)]);
    turns
        .flatten()
        .copied()
        .take(MAX_RESOLVED_ADDRESSES)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn special_names_are_never_asked_for() {
        let resolver = Resolver::new(Some("127.0.0.1:9".parse().unwrap()));
        for name in ["x.onion", "a.wh", "printer.local"] {
            let host = Host::parse(name).unwrap();
            let error = resolver.lookup(&host).await.unwrap_err();
            assert!(matches!(error, DialError::SpecialUse), "{name}: {error}");
        }
    }

    #[test]
    fn families_take_turns_and_the_newer_one_begins() {
        let check = |found: &[&str], expected: &[&str]| {
            let ips = |texts: &[&str]| -> Vec<IpAddr> {
                texts.iter().map(|text| text.parse().unwrap()).collect()
            };
            assert_eq!(by_turns(ips(found)), ips(expected));
        };
        check(&["1.1.1.1", "1.1.1.2"], &["1.1.1.1", "1.1.1.2"]);
        check(
            &["1.1.1.1", "1.1.1.2", "1.1.1.3", "2a00::1", "2a00::2"],
            &["2a00::1", "1.1.1.1", "2a00::2", "1.1.1.2", "1.1.1.3"],
        );
        let many = vec![IpAddr::from([1, 1, 1, 1]); 99];
        assert_eq!(by_turns(many).len(), MAX_RESOLVED_ADDRESSES);
    }
}
