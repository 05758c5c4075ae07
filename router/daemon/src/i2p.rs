//! I2P, by the router that the operator runs: sessions at it, the streams that leave from them, and
//! services that are published there.
//!
//! A session is a destination with tunnels of its own; who is called knows a caller by it. So flows
//! that share no circuit elsewhere share no session here. A router takes some 20 seconds to make one:
//! some are made ahead, and flows take those. The router's own part, finding names and peers, is left
//! to it: names go to it as they are.

mod client;
mod error;
mod keys;
mod making;
mod pool;
mod publish;
mod report;
mod session;

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::net::TcpStream;
use wormholes_proto::{
    ServiceName,
    sam::{I2pName, SamError, SamRefusal, SamRequest, SamState, TunnelSettings},
};

pub use error::I2pError;

use self::{
    client::Talk,
    keys::KeyFolder,
    pool::{Found, Pool},
    publish::{Places, Published},
    session::{AskedStream, InUse},
};
use crate::{config::I2pConfig, network::Network, pipe::Pipe};

/// A program that ended its side waits for an answer so long, from when it heard something last.
const ASKER_SILENCE: Duration = Duration::from_secs(10);

/// What this node has of I2P.
#[derive(Debug)]
pub(crate) struct I2p {
    router: SocketAddr,
    pool: Pool,
    keys: KeyFolder,
    published: Published,
    /// For streams of callers.
    places: Places,
}

/// Whose session it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    /// All who keep the destination of this name.
    Kept(ServiceName),
    /// Flows with this isolation key.
    Flows(String),
}

/// Tunnels as a plan wants them; what it says nothing of is the config's.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WantedTunnels {
    pub(crate) length: Option<u8>,
    pub(crate) quantity: Option<u8>,
}

/// A stream that stands.
struct Stream {
    connection: TcpStream,
    /// What came with the router's answer.
    ahead: Bytes,
}

/// Has all begin that goes on by itself: sessions are made ahead, and services are published.
pub(crate) fn begin(network: &Arc<Network>) {
    network.spawn(making::keep(Arc::clone(network)));
    let services = network.config().services.iter();
    for service in services.filter(|service| service.i2p) {
        network.spawn(publish::publish(Arc::clone(network), service.clone()));
    }
}

impl I2p {
    /// None where config.toml names no router.
    pub(crate) fn new(config: &I2pConfig, data_dir: &Path) -> Option<Self> {
        Some(Self {
            router: config.sam?,
            pool: Pool::new(config),
            keys: KeyFolder::below(data_dir),
            published: Published::default(),
            places: Places::new(config.max_streams),
        })
    }

    /// Where the router takes clients.
    pub(crate) fn router(&self) -> SocketAddr {
        self.router
    }

    /// Opens a stream to `name`. Dropping the future gives it up; a session that was being made for
    /// it goes on, for the next one.
    ///
    /// # Errors
    /// [`I2pError`].
    pub(crate) async fn connect(
        &self,
        network: &Arc<Network>,
        (owner, wanted): (Owner, WantedTunnels),
        (name, port): (&I2pName, u16),
    ) -> Result<Pipe, I2pError> {
        let mut may_be_stale = true;
        loop {
            let session = self.session(network, &owner, wanted).await?;
            let request = SamRequest::Connect {
                session: session.id().clone(),
                to: name.clone(),
                port,
            };
            match self.ask(request).await {
                Ok(stream) => {
                    let Stream { connection, ahead } = stream;
                    let held = Box::new(AskedStream::new(session, &owner));
                    return Ok(Pipe::tcp_held(connection, ahead, ASKER_SILENCE, held));
                }
                // The router began anew, and its end of the session's connection is not noticed yet.
                Err(I2pError::Sam(SamError::Refused(SamRefusal::InvalidId))) if may_be_stale => {
                    may_be_stale = false;
                    session.end();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A session; it is in use until what comes back is dropped.
    async fn session(
        &self,
        network: &Arc<Network>,
        owner: &Owner,
        wanted: WantedTunnels,
    ) -> Result<InUse, I2pError> {
        let mut made = match self.pool.find(owner, wanted)? {
            Found::Ready(session) => return Ok(session),
            Found::Making(made) => made,
            Found::Place(place, made) => {
                network.spawn(making::make_for(Arc::clone(network), place));
                made
            }
        };
        let made = made.wait_for(Option::is_some).await;
        let made = made.map_err(|_| I2pError::Stopping)?;
        let made = made.clone().unwrap_or(Err(I2pError::Stopping));
        made.map(InUse::new)
    }

    /// A stream, as `request` asks for one.
    async fn ask(&self, request: SamRequest) -> Result<Stream, I2pError> {
        let mut talk = Talk::begin(self.router, request).await?;
        match talk.answer().await? {
            SamState::Connected => Ok(talk.into_stream()),
            SamState::NeedMore
            | SamState::Waiting
            | SamState::Greeted
            | SamState::Found
            | SamState::Session(_)
            | SamState::Called(_)
            | SamState::Failed(_) => Err(I2pError::Sam(SamError::Malformed("no stream"))),
        }
    }
}

impl WantedTunnels {
    fn settled(self, default: TunnelSettings) -> TunnelSettings {
        TunnelSettings {
            length: self.length.unwrap_or(default.length),
            quantity: self.quantity.unwrap_or(default.quantity),
        }
    }
}
