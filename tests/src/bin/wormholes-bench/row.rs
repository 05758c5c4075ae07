//! A row: what was measured, against what, and where it stands to its floor.

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::floors::{Floor, Of, floor_of};

/// One line of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// What is measured.
    name: String,
    /// Its value.
    value: f64,
    /// The unit of both values.
    unit: &'static str,
    /// What it is held against, with its value.
    against: Option<Against>,
    /// `value` by the other's value.
    ratio: Option<f64>,
    /// What the ratio, or without one the value, must reach; or must not pass, where less is
    /// better.
    floor: Option<f64>,
    /// Whether it does; true where there is no floor.
    ok: bool,
}

/// What a row is held against.
#[derive(Debug, Serialize)]
struct Against {
    name: String,
    value: f64,
}

impl Row {
    /// A row by itself.
    ///
    /// # Errors
    /// When its floor is one of another unit, or holds it against something.
    pub(crate) fn alone(name: impl Into<String>, value: f64, unit: &'static str) -> Result<Self> {
        Self::new(name.into(), value, unit, None)
    }

    /// A row that is held against something in the same unit.
    ///
    /// # Errors
    /// When its floor holds it against something else.
    pub(crate) fn against(
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        other: impl Into<String>,
        other_value: f64,
    ) -> Result<Self> {
        let other = Against {
            name: other.into(),
            value: other_value,
        };
        Self::new(name.into(), value, unit, Some(other))
    }

    fn new(name: String, value: f64, unit: &'static str, against: Option<Against>) -> Result<Self> {
        let floor = floor_of(&name);
        let measured = against.as_ref().map(|other| other.name.as_str());
        if let Some(floor) = floor {
            let same = match floor.of {
                Of::Other(other) => measured == Some(other),
                Of::Unit(of) => measured.is_none() && of == unit,
            };
            ensure!(same, "{name} in {unit} against {measured:?}: {floor}");
        }
        let ratio = against.as_ref().map(|other| value / other.value);
        let held = ratio.unwrap_or(value);
        Ok(Self {
            name,
            value,
            unit,
            against,
            ratio,
            floor: floor.map(|floor| floor.bound.number()),
            ok: floor.is_none_or(|floor| floor.bound.holds(held)),
        })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the floor is reached.
    pub(crate) fn ok(&self) -> bool {
        self.ok
    }

    /// The row as a line of a Markdown table.
    pub(crate) fn line(&self) -> String {
        let against = self.against.as_ref();
        let against = against.map(|other| format!("{} {}", other.name, figure(other.value)));
        let against = against.unwrap_or_default();
        let ratio = self.ratio.map_or_else(String::new, |r| format!("{r:.2}"));
        let floor = match floor_of(&self.name) {
            None => String::new(),
            Some(Floor { bound, .. }) if self.ok => format!("{} ok", bound.number()),
            Some(Floor { bound, .. }) => format!("{} MISSED", bound.number()),
        };
        let (name, value, unit) = (&self.name, figure(self.value), self.unit);
        format!("| {name} | {value} {unit} | {against} | {ratio} | {floor} |")
    }
}

/// With the digits that say something.
fn figure(value: f64) -> String {
    let decimals = match value {
        ..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}
