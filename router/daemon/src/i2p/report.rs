//! What `i2p.status`, `status` and `netcheck` tell.

use wormholes_proto::{
    control::{I2pReport, I2pServiceInfo, I2pSessionInfo, I2pSummary},
    sam::{Destination, SamRequest},
};

use super::{I2p, I2pError, Owner, client::Talk, pool::Listed};
use crate::config::Config;

/// What is said of a service that was not tried so far.
const NOT_YET: &str = "its session is being made";

impl I2p {
    /// Whether the router is there, and speaks.
    ///
    /// # Errors
    /// [`I2pError`], within seconds.
    pub(crate) async fn greet(&self) -> Result<(), I2pError> {
        let greeted = Talk::begin(self.router, SamRequest::Greeting).await;
        greeted.map(drop)
    }

    /// In one line.
    pub(crate) fn summary(&self) -> I2pSummary {
        let listed = self.pool.list();
        let ready = listed.iter().filter_map(|listed| listed.session.as_ref());
        I2pSummary {
            ready: ready.clone().count(),
            users: ready.map(|session| session.users()).sum(),
            making: listed.iter().filter(|it| it.session.is_none()).count(),
        }
    }

    /// All of it; destinations only for those who may see them.
    pub(crate) async fn report(&self, config: &Config, shows_all: bool) -> I2pReport {
        let published = config.services.iter().filter(|service| service.i2p);
        let services = published.map(|service| {
            let state = self.published.get(&service.name);
            let state = state.unwrap_or_else(|| Err(NOT_YET.to_owned()));
            I2pServiceInfo {
                name: service.name.to_string(),
                address: state.as_ref().ok().filter(|_| shows_all).map(short),
                error: state.err(),
            }
        });
        let services = services.collect();
        let mut sessions: Vec<_> = self
            .pool
            .list()
            .iter()
            .map(|it| info(it, shows_all))
            .collect();
        sessions
            .sort_by(|one, other| (&one.used_by, &one.kept).cmp(&(&other.used_by, &other.kept)));
        let greeted = self.greet().await;
        I2pReport {
            router: Some(self.router),
            error: greeted.err().map(|error| error.to_string()),
            services,
            sessions,
            max_sessions: config.i2p.sessions,
        }
    }
}

fn info(listed: &Listed, shows_all: bool) -> I2pSessionInfo {
    let session = listed.session.as_ref();
    let (used_by, kept) = match &listed.owner {
        Some(Owner::Kept(name)) => ("kept", Some(name.to_string())),
        Some(Owner::Flows(_)) => ("flows", None),
        None => ("spare", None),
    };
    I2pSessionInfo {
        used_by: used_by.to_owned(),
        kept,
        ready: session.is_some(),
        address: session
            .filter(|_| shows_all)
            .map(|session| short(session.destination())),
        users: session.map_or(0, |session| session.users()),
        length: session.map(|session| session.tunnels().length),
        quantity: session.map(|session| session.tunnels().quantity),
        idle_seconds: session.map_or(0, |session| session.idle().as_secs()),
    }
}

fn short(destination: &Destination) -> String {
    destination.short_name().to_owned()
}
