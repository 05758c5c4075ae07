//! The life of a flow, from an entrance to its end: [`run`] is the whole of it. [`look_up`] is for
//! programs that want no more than an address.
//!
//! Nothing here resolves a name before the plan says where, and nothing a script says lifts what
//! `guard` forbids.

mod crowds;
mod decide;
mod guard;
mod local;
mod login;
mod open;
mod record;
mod refusal;
mod table;

use std::net::{IpAddr, SocketAddr};

use wormholes_proto::{Target, Transport};

use crate::{node::NodeCore, pipe};

pub use guard::Forbidden;
pub(crate) use local::{LocalEnd, left};
pub(crate) use login::Login;
pub use refusal::Refusal;
pub use table::{Decided, Flow, FlowTable, Moved, Story, Totals, Tried};

/// What an entrance learned about a flow.
#[derive(Debug)]
pub(crate) struct Asked {
    /// `socks5`, `http`, `tcp`, `udp` or `embed`.
    pub(crate) entrance: &'static str,
    /// What it is made of.
    pub(crate) transport: Transport,
    /// The entrance's label in config.toml.
    pub(crate) label: Option<String>,
    /// Whom the program says it is.
    pub(crate) login: Option<Login>,
    /// The connection that the program came on; none for a program that embeds the node.
    pub(crate) ends: Option<Ends>,
    /// Where to.
    pub(crate) target: Target,
}

#[cfg(test)]
impl Asked {
    /// A TCP flow to `target` of which no more is known.
    fn test(target: &str) -> Self {
        Self {
            entrance: "socks5",
            transport: Transport::Tcp,
            label: None,
            login: None,
            ends: None,
            target: target.parse().unwrap(),
        }
    }
}

/// The two ends of a program's connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    /// The program's.
    pub(crate) theirs: SocketAddr,
    /// The entrance's.
    pub(crate) ours: SocketAddr,
}

/// Finds an address of a flow's host, without the flow: through the plan that it would take.
pub(crate) async fn look_up(core: &NodeCore, asked: Asked) -> Result<IpAddr, Refusal> {
    let flow = core.flows.admit(&asked).inspect_err(|refusal| {
        record::turned_away(core, &asked, refusal);
    })?;
    let gone = async {
        match asked.ends {
            Some(ends) => left(ends).await,
            None => std::future::pending().await,
        }
    };
    let found = tokio::select! {
        found = Box::pin(decide::look_up(core, &flow, &asked)) => found,
        () = gone => Err(Refusal::Gone),
        () = core.stop.cancelled() => Err(Refusal::Stopping),
    };
    match &found {
        Ok(_) => record::looked_up(core, &flow),
        Err(refusal) => record::refused(core, &flow, refusal),
    }
    found
}

/// Carries one flow: admit, decide, open with fallbacks, answer, copy, record.
pub(crate) async fn run(core: &NodeCore, asked: Asked, mut local: LocalEnd) {
    let flow = match core.flows.admit(&asked) {
        Ok(flow) => flow,
        Err(refusal) => {
            record::turned_away(core, &asked, &refusal);
            return local.refuse(refusal).await;
        }
    };
    // Boxed: a flow that is open needs no room for how it was opened.
    let route = tokio::select! {
        route = Box::pin(decide::travel(core, &flow, &asked)) => route,
        () = local.gone(asked.ends) => Err(Refusal::Gone),
        () = core.stop.cancelled() => Err(Refusal::Stopping),
    };
    let route = match route {
        Ok(route) => route,
        Err(refusal) => {
            record::refused(core, &flow, &refusal);
            return local.refuse(refusal).await;
        }
    };
    let travelling = record::opened(core, &flow, &route);
    let Some(near) = local.accept(core).await else {
        return travelling.ended(Some(Refusal::Gone.to_string()));
    };
    let end = tokio::select! {
        end = pipe::join(near, route.opened.side, &route.limits, &flow.bytes) => {
            core.network.counters().flow_ended(end.stop.as_ref());
            end.stop.map(|stop| stop.to_string())
        }
        () = core.kill.cancelled() => Some(Refusal::Stopping.to_string()),
    };
    travelling.ended(end);
}
