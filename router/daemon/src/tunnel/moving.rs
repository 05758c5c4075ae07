//! Asks the far end of a relayed session to go on by a direct connection. The session's bytes stay
//! sealed as they were.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::timeout;
use wormholes_proto::{
    Open,
    sealed::{GO, SessionId},
};

use super::{OpenError, ask_on};
use crate::{carrier::Link, network::Network, pipe::Pipe};

/// What takes longer fails, and the flow stays where it is: nobody waits for it.
const LIMIT: Duration = Duration::from_secs(10);

/// A stream on `link` for the rest of `session`: with its return both ends use it. Dropping the
/// future before changes nothing.
///
/// # Errors
/// [`OpenError`] when the session stays where it is.
pub(crate) async fn ask_to_move(
    network: &Arc<Network>,
    link: &Link,
    session: SessionId,
) -> Result<Pipe, OpenError> {
    let node = link.peer();
    let named = || network.named(node);
    let asked = async {
        let opened = link.open().await;
        let mut pipe = opened.map_err(|source| OpenError::Connect {
            node: named(),
            source: source.into(),
        })?;
        ask_on(network, &mut pipe, node, &Open::Move(session)).await?;
        let go = pipe.writer.write_chunk(Bytes::from_static(&[GO])).await;
        go.map_err(|source| OpenError::Broken {
            node: named(),
            source,
        })?;
        Ok(pipe)
    };
    match timeout(LIMIT, link.while_alive(asked)).await {
        Ok(Ok(moved)) => moved,
        Ok(Err(silent)) => Err(OpenError::Connect {
            node: named(),
            source: silent.into(),
        }),
        Err(_) => Err(OpenError::TimedOut(LIMIT)),
    }
}
