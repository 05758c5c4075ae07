//! How rows are measured: what is compared in turns, and medians held against each other.

use std::{fmt::Debug, time::Duration};

use anyhow::{Context, Result, bail};

use crate::row::Row;

/// How long each single measurement takes.
pub(crate) const TIME: Duration = Duration::from_secs(2);
/// Ours and theirs alternate so often; medians are compared.
const ROUNDS: usize = 3;

/// Ours against theirs.
pub(crate) fn versus(name: String, unit: &'static str, values: &[f64], other: &str) -> Result<Row> {
    let [ours, theirs] = values else {
        bail!("{name} was not measured against {other}");
    };
    Row::against(name, *ours, unit, other, *theirs)
}

/// What is measured of each subject, in turns; the measurements of each together.
pub(crate) async fn in_turns<S: Debug, T>(
    subjects: &[S],
    measure: impl AsyncFn(&S) -> Result<T>,
) -> Result<Vec<Vec<T>>> {
    let mut measured: Vec<Vec<T>> = subjects.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for (subject, measured) in subjects.iter().zip(&mut measured) {
            let measurement = measure(subject).await;
            measured.push(measurement.with_context(|| format!("{subject:?}"))?);
        }
    }
    Ok(measured)
}

/// NaN of nothing, which no floor takes.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
