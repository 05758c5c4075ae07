//! Bulk: bytes a second over a route, and what they cost.

use anyhow::{Context, Result};
use wormholes_proto::CarrierKind;

use crate::{
    ground::{Course, Ground},
    load::{self, Way},
    process::cpu_seconds,
    reference,
    rival::Rival,
    route::{Route, Tunnel},
    row::Row,
    turns::{TIME, in_turns, median, versus},
};

/// What a route's bulk is held against.
#[derive(Debug, Clone, Copy)]
enum Other {
    Route(Route),
    Rival(Rival),
    /// Streams of quinn with nothing at their ends.
    BareQuinn,
    /// Connections to the load's server with nothing between.
    RawTcp,
}

/// What bytes are sent over.
#[derive(Debug)]
pub(crate) enum Subject {
    Course(Course),
    BareQuinn,
}

impl Other {
    fn name(self) -> &'static str {
        match self {
            Self::Route(route) => route.name(),
            Self::Rival(rival) => rival.name(),
            Self::BareQuinn => "bare quinn",
            Self::RawTcp => "raw TCP",
        }
    }

    async fn subject(self, ground: &mut Ground) -> Result<Subject> {
        Ok(Subject::Course(match self {
            Self::Route(route) => ground.route(route).await?,
            Self::Rival(rival) => ground.rival(rival).await?,
            Self::BareQuinn => return Ok(Subject::BareQuinn),
            Self::RawTcp => Course {
                way: Way::tcp(ground.load()),
                pids: Vec::new(),
            },
        }))
    }
}

/// What a route's bulk is measured beside, and how many of these, the first ones, it is held
/// against: the best of them counts.
fn others(route: Route) -> (&'static [Other], usize) {
    use CarrierKind::{Quic, Tcp};
    use Tunnel::{Onion1, Onion3, Relay, Service};
    const SERVICE_QUIC: &[Other] = &[Other::Route(Route::Over(Quic, Service))];
    const SERVICE_TCP: &[Other] = &[Other::Route(Route::Over(Tcp, Service))];
    match route {
        Route::Direct => (&[Other::Rival(Rival::SingBoxDirect), Other::RawTcp], 1),
        Route::Over(Quic, Service) => (&[Other::BareQuinn], 1),
        Route::Over(Tcp, Service) => (
            &[
                Other::Rival(Rival::Stunnel),
                Other::Rival(Rival::SingBoxShadowsocks),
                Other::Rival(Rival::OpenSsh),
            ],
            2,
        ),
        Route::Over(Quic, Relay | Onion1) => (SERVICE_QUIC, 1),
        Route::Over(Tcp, Relay | Onion1) => (SERVICE_TCP, 1),
        Route::Over(Quic | Tcp, Onion3) => (&[Other::Rival(Rival::SingBoxChain)], 1),
    }
}

/// Those of [`others`] that have a row of their own: one alone that a row is held against is
/// in that row.
fn shown(others: &[Other], n_against: usize) -> &[Other] {
    match (n_against, others) {
        (1, [_, shown @ ..]) => shown,
        _ => others,
    }
}

/// The rows of [`bulk`].
pub(crate) fn bulk_rows(route: Route, streams: usize) -> Vec<String> {
    let plural = if streams == 1 { "" } else { "s" };
    let name = format!("{}, {streams} stream{plural}", route.name());
    let (others, n_against) = others(route);
    let shown = shown(others, n_against).iter();
    let beside: Vec<_> = shown
        .map(|other| format!("{name}, beside {}", other.name()))
        .collect();
    std::iter::once(name).chain(beside).collect()
}

/// Bytes a second.
pub(crate) async fn bulk(ground: &mut Ground, route: Route, streams: usize) -> Result<Vec<Row>> {
    let (others, n_against) = others(route);
    let mut subjects = vec![Subject::Course(ground.route(route).await?)];
    for other in others {
        subjects.push(other.subject(ground).await?);
    }
    let rates = in_turns(&subjects, async |subject| match subject {
        Subject::Course(course) => load::bulk(&course.way, streams, TIME).await,
        Subject::BareQuinn => reference::quinn_bulk(streams, TIME).await,
    });
    let mut rates = rates.await?.into_iter().map(|rates| median(&rates) / 1e6);
    let ours = rates.next().context("nothing was measured")?;
    let theirs: Vec<(&str, f64)> = others.iter().map(|o| o.name()).zip(rates).collect();
    let (best, _) = theirs.split_at_checked(n_against).context("no other")?;
    let best = match best {
        [(name, rate)] => ((*name).to_owned(), *rate),
        several => {
            let names: Vec<_> = several.iter().map(|(name, _)| *name).collect();
            let rates = several.iter().map(|(_, rate)| *rate);
            let name = format!("the better of {}", names.join(" and "));
            (name, rates.fold(0.0, f64::max))
        }
    };
    let shown = theirs
        .iter()
        .skip(theirs.len() - shown(others, n_against).len());
    let shown = shown.map(|(name, rate)| ((*name).to_owned(), *rate));
    let rows = bulk_rows(route, streams).into_iter();
    rows.zip(std::iter::once(best).chain(shown))
        .map(|(row, (name, rate))| Row::against(row, ours, "MB/s", name, rate))
        .collect()
}

/// The row of [`cpu_per_gb`].
pub(crate) fn cpu_row(route: Route) -> String {
    format!("{}, CPU per GB", route.name())
}

/// CPU of all processes on the way, for a gigabyte over one stream.
pub(crate) async fn cpu_per_gb(ground: &mut Ground, route: Route) -> Result<Vec<Row>> {
    let mut courses = vec![ground.route(route).await?];
    let rival = (route == Route::Direct).then_some(Rival::SingBoxDirect);
    if let Some(rival) = rival {
        courses.push(ground.rival(rival).await?);
    }
    let costs = in_turns(&courses, async |course| {
        let before = cpu_seconds(&course.pids)?;
        let rate = load::bulk(&course.way, 1, TIME).await?;
        let gigabytes = rate * TIME.as_secs_f64() / 1e9;
        Ok((cpu_seconds(&course.pids)? - before) / gigabytes)
    });
    let costs: Vec<_> = costs.await?.iter().map(|costs| median(costs)).collect();
    let name = cpu_row(route);
    let row = match rival {
        Some(rival) => versus(name, "s", &costs, rival.name()),
        None => Row::alone(name, *costs.first().context("no cost")?, "s"),
    };
    Ok(vec![row?])
}
