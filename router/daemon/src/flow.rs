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
mod moving;
mod open;
mod record;
mod refusal;
mod sniff;
mod sticks;
mod table;

use std::{
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
};

use tokio::{sync::oneshot, time::Instant};
use wormholes_proto::{Target, Transport};
use wormholes_rules::Sni;

use self::{crowds::Opening, local::Sniffed, open::Route, table::Place};
use crate::{
    node::NodeCore,
    pipe::{self, MemoryEnd, Pipe},
};

pub use guard::Forbidden;
pub(crate) use local::{LocalEnd, left};
pub(crate) use login::Login;
pub use refusal::Refusal;
pub(crate) use sticks::Sticks;
pub use table::{Decided, Flow, FlowTable, Moved, Story, Totals, Tried};

/// What an entrance learned about a flow.
#[derive(Debug)]
pub(crate) struct Asked {
    /// `socks5`, `http`, `tcp`, `udp`, `embed` or `plugin`.
    pub(crate) entrance: &'static str,
    /// What it is made of.
    pub(crate) transport: Transport,
    /// The entrance's label in config.toml; the plugin's.
    pub(crate) label: Option<String>,
    /// Whom the program says it is.
    pub(crate) login: Option<Login>,
    /// The plugin that it is a trunk of.
    pub(crate) plugin: Option<Caller>,
    /// The connection that the program came on; none for a program that embeds the node, and for
    /// plugins.
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
            plugin: None,
            ends: None,
            target: target.parse().unwrap(),
        }
    }
}

/// A plugin that has a flow opened.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Its instance.
    pub(crate) instance: String,
    /// Its role in what it says.
    pub(crate) role: Option<String>,
    /// Flows of one plugin with different texts share no circuit.
    pub(crate) isolation: String,
    /// Whoever is called must not learn which node calls.
    pub(crate) hides_node: bool,
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

/// Whether the rules let datagrams go to a target directly from here: a socket carries them that is no
/// flow's.
pub(crate) async fn permit(core: &NodeCore, asked: Asked) -> Result<(), Refusal> {
    let flow = core.flows.admit(&asked).inspect_err(|refusal| {
        record::turned_away(core, &asked, refusal);
    })?;
    let permitted = tokio::select! {
        permitted = Box::pin(decide::permit(core, &flow, &asked)) => permitted,
        () = core.stop.cancelled() => Err(Refusal::Stopping),
    };
    match &permitted {
        Ok(()) => record::permitted(core, &flow),
        Err(refusal) => record::refused(core, &flow, refusal),
    }
    permitted
}

/// Opens a flow of this process, which goes on by itself. Dropping the future gives it up. The flow
/// runs where all others do: plugins ask from threads of their own, which have no sockets.
pub(crate) async fn dial(core: Arc<NodeCore>, asked: Asked) -> Result<MemoryEnd, Refusal> {
    let (pipe, stream) = Pipe::memory();
    let (answer, answered) = oneshot::channel();
    let (tasks, runtime) = (core.tasks.clone(), core.runtime.clone());
    let flow = async move {
        run(&core, asked, LocalEnd::Memory { answer, pipe }).await;
    };
    tasks.spawn_on(flow, &runtime);
    answered.await.map_err(|_| Refusal::Stopping)??;
    Ok(stream)
}

/// Carries one flow: admit, decide, open with fallbacks, answer, copy, record.
pub(crate) async fn run(core: &NodeCore, asked: Asked, local: LocalEnd) {
    let flow = match core.flows.admit(&asked) {
        Ok(flow) => flow,
        Err(refusal) => {
            record::turned_away(core, &asked, &refusal);
            return local.refuse(refusal).await;
        }
    };
    // Boxed: a flow that is open needs no room for how it was opened.
    let open = Box::pin(open(core, &flow, &asked, local));
    let (local, mut route, opening) = match open.await {
        Ok(opened) => opened,
        Err((local, refusal)) => {
            record::refused(core, &flow, &refusal);
            if let Some(local) = local {
                local.refuse(refusal).await;
            }
            return;
        }
    };
    let opening = opening.filter(|_| local.is_answered());
    let travelling = record::opened(core, &flow, &route);
    let Some(near) = local.accept(core).await else {
        return travelling.ended(Some(Refusal::Gone.to_string()));
    };
    let moving = moving::along(core, &flow, &mut route);
    // No trunk ends by itself: a stop does not wait for it.
    let cut = match asked.plugin {
        Some(_) => &core.stop,
        None => &core.kill,
    };
    let end = tokio::select! {
        biased;
        end = pipe::join(near, route.opened.side, &route.limits, &flow.bytes) => {
            core.network.counters().flow_ended(end.stop.as_ref());
            end.stop.map(|stop| stop.to_string())
        }
        () = crowds::linger(opening, &flow.bytes) => None,
        () = cut.cancelled() => Some(Refusal::Stopping.to_string()),
        never = moving::beside(moving) => match never {},
    };
    travelling.ended(end);
}

/// Opens a flow; it counts as opening until what comes with it is dropped. An error comes with the
/// program's end, unless that broke.
async fn open<'a>(
    core: &'a NodeCore,
    flow: &'a Place,
    asked: &'a Asked,
    mut local: LocalEnd,
) -> Result<(LocalEnd, Route, Option<Opening<'a>>), (Option<LocalEnd>, Refusal)> {
    let begin = decide::begin(core, flow, asked);
    let begun = waited_for(core, asked, &mut local, pin!(begin)).await;
    let mut trip = match begun {
        Ok(trip) => trip,
        Err(refusal) => return Err((Some(local), refusal)),
    };
    loop {
        let travel = decide::travel(&mut trip);
        let travelled = waited_for(core, asked, &mut local, pin!(travel)).await;
        match travelled {
            Ok(Some(route)) => return Ok((local, route, trip.opening)),
            Ok(None) => {
                trip.opening = None;
                let (answered, sniffed) = sniff(core, local).await.map_err(|gone| (None, gone))?;
                local = answered;
                let begun = sniffed.and_then(|name| Ok((name, flow.begin()?)));
                match begun {
                    Ok((name, opening)) => {
                        Arc::make_mut(&mut trip.conn).sni = Sni::Read(name);
                        trip.opening = Some(opening);
                    }
                    Err(refusal) => return Err((Some(local), refusal)),
                }
            }
            Err(refusal) => return Err((Some(local), refusal)),
        }
    }
}

/// Reads which server the program's TLS names. What it says first is part of where it wants to go,
/// and may take as long as the rest of that.
async fn sniff(core: &NodeCore, local: LocalEnd) -> Result<(LocalEnd, Sniffed), Refusal> {
    let deadline = Instant::now() + core.config.limits.handshake;
    let sniffing = local.answer_and_sniff(deadline);
    let sniffed = core.stop.run_until_cancelled(sniffing).await;
    sniffed.ok_or(Refusal::Stopping)?.ok_or(Refusal::Gone)
}

/// Does `work` for as long as the program waits for it and the node runs. Pinned by the caller, it
/// takes no second room here.
async fn waited_for<T>(
    core: &NodeCore,
    asked: &Asked,
    local: &mut LocalEnd,
    work: Pin<&mut impl Future<Output = Result<T, Refusal>>>,
) -> Result<T, Refusal> {
    // In this order: most is done at once, and the rest then waits for nothing.
    tokio::select! {
        biased;
        done = work => done,
        () = local.gone(asked.ends) => Err(Refusal::Gone),
        () = core.stop.cancelled() => Err(Refusal::Stopping),
    }
}
