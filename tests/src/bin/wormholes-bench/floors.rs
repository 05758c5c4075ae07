//! The floors: what rows must reach, or must not pass. `tests/README.md` lists them for people, and
//! a test keeps both lists the same.

use std::fmt;

use crate::{plugins, tor};

/// What one row must reach.
#[derive(Debug, PartialEq)]
pub(crate) struct Floor {
    /// The row's name.
    pub(crate) row: &'static str,
    /// Which way, and how far.
    pub(crate) bound: Bound,
    /// Of what.
    pub(crate) of: Of,
}

/// Where a floor lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    /// More is better.
    AtLeast(f64),
    /// Less is better.
    AtMost(f64),
}

/// What a bound is a number of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// The value of what the row is held against.
    Other(&'static str),
    /// The row's unit.
    Unit(&'static str),
}

/// One floor a row; a row that is not here is for information.
pub(crate) const FLOORS: &[Floor] = &[
    at_least("local direct, 1 stream", 0.9, SING_BOX_DIRECT),
    at_least("local direct, 8 streams", 0.9, SING_BOX_DIRECT),
    at_most("local direct, CPU per GB", 1.5, SING_BOX_DIRECT),
    at_least("service over TCP carrier, 1 stream", 1.0, BEST_OF_TLS),
    at_least("service over TCP carrier, 8 streams", 1.0, BEST_OF_TLS),
    at_least("service over QUIC, 1 stream", 0.6, Of::Other("bare quinn")),
    at_most("service over QUIC, echo p50", 1.3, QUINN_FORWARD),
    at_least("relay over QUIC, 1 stream", 0.45, SERVICE_QUIC),
    at_least("relay over QUIC, 8 streams", 0.45, SERVICE_QUIC),
    at_least("relay over TCP, 1 stream", 0.5, SERVICE_TCP),
    at_least("relay over TCP, 8 streams", 0.5, SERVICE_TCP),
    at_least("onion(1) over QUIC, 1 stream", 0.5, SERVICE_QUIC),
    at_least("onion(1) over QUIC, 8 streams", 0.5, SERVICE_QUIC),
    at_least("onion(1) over TCP, 1 stream", 0.5, SERVICE_TCP),
    at_least("onion(1) over TCP, 8 streams", 0.5, SERVICE_TCP),
    at_least("onion(3) over QUIC, 1 stream", 0.3, SING_BOX_CHAIN),
    at_least("onion(3) over QUIC, 8 streams", 0.3, SING_BOX_CHAIN),
    at_least("onion(3) over TCP, 1 stream", 0.4, SING_BOX_CHAIN),
    at_least("onion(3) over TCP, 8 streams", 0.4, SING_BOX_CHAIN),
    at_most(
        "onion(8) build, 20 ms on each link",
        1.1,
        Of::Other("one round trip over the path"),
    ),
    at_least("new flows a second over QUIC", 0.8, QUINN_FORWARD),
    at_least("new flows a second over TCP", 5000.0, Of::Unit("1/s")),
    at_least("new flows a second, onion(3)", 300.0, Of::Unit("1/s")),
    at_most(
        "rule decision, default script, set of 100,000 domains, p50",
        10.0,
        Of::Unit("us"),
    ),
    at_most(
        "rule decision, default script, set of 100,000 domains, p99",
        100.0,
        Of::Unit("us"),
    ),
    at_most(
        "rule decision, 1,000 sets by first_set",
        3.0,
        Of::Other("ten sets"),
    ),
    at_most(
        "idle flow, client daemon, 10,000 of them",
        20.0,
        Of::Unit("KiB"),
    ),
    at_most("idle daemon, default config", 30.0, Of::Unit("MiB")),
    at_most("cold start to first flow", 300.0, Of::Unit("ms")),
];

/// Those of plugins.
pub(crate) const PLUGIN_FLOORS: &[Floor] = &[
    at_most(plugins::EVENT, 5.0, Of::Unit("us")),
    at_least(
        plugins::DURABLE_EVENTS,
        0.7,
        Of::Other(plugins::DURABLE_EVENTS_OF),
    ),
    at_most(plugins::MESSAGE, 1.0, Of::Other(plugins::MESSAGE_OF)),
    at_most(plugins::DECISION, 2.0, Of::Unit("commits")),
    at_most(plugins::LOAD, 1.0, Of::Unit("ms")),
    at_most(plugins::IDLE, 32.0, Of::Unit("KiB")),
];

/// Those of Tor.
pub(crate) const TOR_FLOORS: &[Floor] = &[
    at_least(tor::BULK, 0.95, Of::Other(tor::BARE_ARTI)),
    at_most(tor::FIRST_BYTE, 1.05, Of::Other(tor::BARE_ARTI)),
    at_least(tor::ONION_QUIC, 5.0, Of::Other(tor::C_TOR_HOPS)),
    at_least(tor::ONION_TCP, 5.0, Of::Other(tor::C_TOR_HOPS)),
    at_most(tor::BUILD, 0.33, Of::Other(tor::C_TOR_HOPS)),
];

const SING_BOX_DIRECT: Of = Of::Other("sing-box direct");
const SING_BOX_CHAIN: Of = Of::Other("sing-box shadowsocks-2022, three hops");
const BEST_OF_TLS: Of = Of::Other("the better of stunnel and sing-box shadowsocks-2022");
const QUINN_FORWARD: Of = Of::Other("quinn forward");
const SERVICE_QUIC: Of = Of::Other("service over QUIC");
const SERVICE_TCP: Of = Of::Other("service over TCP carrier");

const fn at_least(row: &'static str, bound: f64, of: Of) -> Floor {
    let bound = Bound::AtLeast(bound);
    Floor { row, bound, of }
}

const fn at_most(row: &'static str, bound: f64, of: Of) -> Floor {
    let bound = Bound::AtMost(bound);
    Floor { row, bound, of }
}

/// The floor of the row of that name.
pub(crate) fn floor_of(row: &str) -> Option<&'static Floor> {
    let mut floors = FLOORS.iter().chain(PLUGIN_FLOORS).chain(TOR_FLOORS);
    floors.find(|floor| floor.row == row)
}

impl Bound {
    /// The number.
    pub(crate) fn number(self) -> f64 {
        match self {
            Self::AtLeast(number) | Self::AtMost(number) => number,
        }
    }

    /// Whether `value` is on the right side.
    pub(crate) fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

/// As `tests/README.md` has it.
impl fmt::Display for Floor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.bound {
            Bound::AtLeast(_) => "at least",
            Bound::AtMost(_) => "at most",
        };
        write!(f, "{words} {}", self.bound.number())?;
        match self.of {
            Of::Other(other) => write!(f, " of {other}"),
            Of::Unit(unit) => write!(f, " {unit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use wormholes_tests::workspace;

    use super::*;
    use crate::task::Task;

    #[test]
    fn the_floors_are_those_of_the_readme() {
        let readme = workspace::root().join("tests/README.md");
        let readme = std::fs::read_to_string(readme).unwrap();
        for (heading, floors) in [
            ("the router", FLOORS),
            ("plugins", PLUGIN_FLOORS),
            ("Tor", TOR_FLOORS),
        ] {
            let heading = format!("\n## Floors of {heading}\n");
            let (_, section) = readme.split_once(&heading).unwrap();
            let section = section.split("\n## ").next().unwrap();
            let table = section
                .split("\n\n")
                .find(|part| part.starts_with("| row | floor |"));
            // Behind the heading and its rule.
            let listed: Vec<_> = table.unwrap().lines().skip(2).map(str::to_owned).collect();
            let here = floors.iter();
            let here: Vec<_> = here
                .map(|floor| format!("| {} | {floor} |", floor.row))
                .collect();
            assert_eq!(here, listed);
        }
    }

    #[test]
    fn every_floor_is_under_one_row_that_is_measured() {
        let rows: Vec<_> = Task::all().into_iter().flat_map(Task::rows).collect();
        for floor in FLOORS {
            let under = rows.iter().filter(|row| *row == floor.row).count();
            assert_eq!(under, 1, "{}", floor.row);
        }
        for floor in PLUGIN_FLOORS {
            assert!(plugins::ROWS.contains(&floor.row), "{}", floor.row);
        }
        for floor in TOR_FLOORS {
            assert!(tor::ROWS.contains(&floor.row), "{}", floor.row);
        }
        let floors = FLOORS.iter().chain(PLUGIN_FLOORS).chain(TOR_FLOORS);
        let names: BTreeSet<_> = floors.map(|floor| floor.row).collect();
        let n_floors = FLOORS.len() + PLUGIN_FLOORS.len() + TOR_FLOORS.len();
        assert_eq!(names.len(), n_floors, "a row has two floors");
    }
}
