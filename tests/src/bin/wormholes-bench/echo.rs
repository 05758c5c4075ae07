//! Echo: how long one byte takes there and back, and how many flows a second bring theirs back.

use std::time::Duration;

use anyhow::{Result, ensure};
use wormholes_proto::CarrierKind;

use crate::{
    bulk::Subject,
    ground::{Course, Ground},
    load, reference,
    rival::Rival,
    route::{Route, Tunnel},
    row::Row,
    turns::{TIME, in_turns, median, versus},
};

/// How long flows come at a rate that a node must bear by itself, without a rest.
const SUSTAINED: Duration = Duration::from_secs(30);

pub(crate) const ECHO_BESIDE_QUINN: &str = "service over QUIC, echo p50, beside bare quinn";
pub(crate) const NEW_FLOWS_BY_SOCKS: &str = "new flows a second over QUIC, by SOCKS5";

/// What a route's echo and new flows are held against.
fn rival(route: Route) -> Rival {
    match route {
        Route::Direct => Rival::SingBoxDirect,
        Route::Over(CarrierKind::Quic, _) => Rival::QuinnForward,
        Route::Over(CarrierKind::Tcp, _) => Rival::Stunnel,
    }
}

/// The rows of [`echo`].
pub(crate) fn echo_rows(route: Route) -> [String; 2] {
    ["p50", "p99"].map(|which| format!("{}, echo {which}", route.name()))
}

/// How long a byte takes there and back.
pub(crate) async fn echo(ground: &mut Ground, route: Route) -> Result<Vec<Row>> {
    let rival = rival(route);
    let ours = Subject::Course(ground.route(route).await?);
    let theirs = Subject::Course(ground.rival(rival).await?);
    let medians = echoes(&[ours, theirs]).await?;
    let rows = echo_rows(route).into_iter().zip(medians);
    rows.map(|(name, medians)| versus(name, "us", &medians, rival.name()))
        .collect()
}

/// The same against what QUIC alone takes.
pub(crate) async fn echo_beside_quinn(ground: &mut Ground) -> Result<Vec<Row>> {
    let service = Route::Over(CarrierKind::Quic, Tunnel::Service);
    let ours = Subject::Course(ground.route(service).await?);
    let [p50, _] = echoes(&[ours, Subject::BareQuinn]).await?;
    let (name, other) = (ECHO_BESIDE_QUINN.to_owned(), "bare quinn");
    Ok(vec![versus(name, "us", &p50, other)?])
}

/// Microseconds: of each subject p50, and p99.
async fn echoes(subjects: &[Subject]) -> Result<[Vec<f64>; 2]> {
    let echoes = in_turns(subjects, async |subject| match subject {
        Subject::Course(course) => load::echo(&course.way, TIME).await,
        Subject::BareQuinn => reference::quinn_echo(TIME).await,
    });
    let echoes = echoes.await?;
    let medians = |time: fn(&load::Echo) -> Duration| {
        let of_one = |echoes: &Vec<load::Echo>| {
            let micros = echoes.iter().map(|echo| time(echo).as_secs_f64() * 1e6);
            median(&micros.collect::<Vec<_>>())
        };
        echoes.iter().map(of_one).collect()
    };
    Ok([medians(|echo| echo.p50), medians(|echo| echo.p99)])
}

/// The row of [`new_flows`].
pub(crate) fn new_flows_row(route: Route) -> String {
    match route {
        Route::Over(CarrierKind::Quic, Tunnel::Service) => "new flows a second over QUIC".into(),
        Route::Over(CarrierKind::Tcp, Tunnel::Service) => "new flows a second over TCP".into(),
        Route::Over(CarrierKind::Quic, Tunnel::Onion3) => "new flows a second, onion(3)".into(),
        Route::Direct | Route::Over(..) => format!("new flows a second, {}", route.name()),
    }
}

/// Flows that are opened, carry a byte there and back, and are closed.
pub(crate) async fn new_flows(ground: &mut Ground, route: Route) -> Result<Vec<Row>> {
    let course = ground.route(route).await?;
    let name = new_flows_row(route);
    let row = match route {
        Route::Over(CarrierKind::Tcp, Tunnel::Service) => {
            let flows = load::new_flows(&course.way, SUSTAINED).await?;
            Row::alone(name, flows.a_second, "1/s")
        }
        Route::Over(CarrierKind::Quic, Tunnel::Onion3) => {
            let network = ground.network(CarrierKind::Quic).await?;
            let built = network.circuits_built().await?;
            let flows = load::new_flows(&course.way, SUSTAINED).await?;
            let built = network.circuits_built().await? - built;
            // But for one that was built ahead, each flow has its own.
            let all = built + 1.0 >= flows.count as f64;
            ensure!(all, "{} flows on {built} circuits", flows.count);
            Row::alone(name, flows.a_second, "1/s")
        }
        Route::Direct | Route::Over(..) => rate(ground, name, course, rival(route)).await,
    };
    Ok(vec![row?])
}

/// The same through an entrance that asks where to.
pub(crate) async fn new_flows_by_socks(ground: &mut Ground) -> Result<Vec<Row>> {
    let course = ground.network(CarrierKind::Quic).await?.socks_course()?;
    let name = NEW_FLOWS_BY_SOCKS.to_owned();
    Ok(vec![rate(ground, name, course, Rival::QuinnForward).await?])
}

async fn rate(ground: &mut Ground, name: String, course: Course, rival: Rival) -> Result<Row> {
    let courses = [course, ground.rival(rival).await?];
    let rates = in_turns(&courses, async |course| {
        Ok(load::new_flows(&course.way, TIME).await?.a_second)
    });
    let rates: Vec<_> = rates.await?.iter().map(|rates| median(rates)).collect();
    versus(name, "1/s", &rates, rival.name())
}
