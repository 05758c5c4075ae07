//! The tasks: what is measured together, and the rows that come of it.

use anyhow::{Context, Result, ensure};

use crate::{
    alone, bulk, decisions, echo,
    ground::Ground,
    idle, onion_build,
    route::{Route, STREAMS},
    row::Row,
};

/// Something that is measured for one or more rows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Task {
    /// Decisions of the script that is shipped, among many names.
    DefaultScript,
    /// Decisions of a script of many rules.
    FirstSet,
    /// A daemon that does nothing.
    IdleDaemon,
    /// A daemon that begins.
    ColdStart,
    /// Bytes a second over so many streams.
    Bulk(Route, usize),
    /// Round trips of one byte.
    Echo(Route),
    /// The same beside QUIC alone.
    EchoBesideQuinn,
    /// Flows a second.
    NewFlows(Route),
    /// Flows a second through the entrance that asks where to.
    NewFlowsBySocks,
    /// What a byte costs.
    CpuPerGb(Route),
    /// How long a circuit takes to build where links take time.
    OnionBuild,
    /// What a flow costs that does nothing, among as many as a busy node has.
    ManyIdleFlows,
    /// What a flow costs that does nothing.
    IdleFlow(Route),
}

impl Task {
    /// All, in the order in which they are measured.
    pub(crate) fn all() -> Vec<Self> {
        let mut tasks = vec![
            Self::DefaultScript,
            Self::FirstSet,
            Self::IdleDaemon,
            Self::ColdStart,
        ];
        for route in Route::ALL {
            tasks.extend(STREAMS.map(|streams| Self::Bulk(route, streams)));
            tasks.extend([
                Self::Echo(route),
                Self::NewFlows(route),
                Self::CpuPerGb(route),
            ]);
        }
        tasks.extend([
            Self::EchoBesideQuinn,
            Self::NewFlowsBySocks,
            Self::OnionBuild,
            Self::ManyIdleFlows,
        ]);
        // At the end, since all these flows stay open.
        tasks.extend(Route::ALL.map(Self::IdleFlow));
        tasks
    }

    /// The names of its rows.
    pub(crate) fn rows(self) -> Vec<String> {
        match self {
            Self::DefaultScript => ["p50", "p99"]
                .map(|which| format!("{}, {which}", decisions::DEFAULT_SCRIPT))
                .to_vec(),
            Self::FirstSet => vec![decisions::FIRST_SET.to_owned()],
            Self::IdleDaemon => vec![alone::IDLE_DAEMON.to_owned()],
            Self::ColdStart => vec![alone::COLD_START.to_owned()],
            Self::Bulk(route, streams) => bulk::bulk_rows(route, streams),
            Self::Echo(route) => echo::echo_rows(route).to_vec(),
            Self::EchoBesideQuinn => vec![echo::ECHO_BESIDE_QUINN.to_owned()],
            Self::NewFlows(route) => vec![echo::new_flows_row(route)],
            Self::NewFlowsBySocks => vec![echo::NEW_FLOWS_BY_SOCKS.to_owned()],
            Self::CpuPerGb(route) => vec![bulk::cpu_row(route)],
            Self::OnionBuild => onion_build::ROWS.map(str::to_owned).to_vec(),
            Self::ManyIdleFlows => vec![idle::MANY_IDLE_FLOWS.to_owned()],
            Self::IdleFlow(route) => vec![idle::idle_row(route)],
        }
    }

    /// Measures it.
    ///
    /// # Errors
    /// When something does not start, or what is measured fails.
    pub(crate) async fn measure(self, ground: &mut Ground) -> Result<Vec<Row>> {
        let measured = match self {
            Self::DefaultScript => decisions::default_script(),
            Self::FirstSet => decisions::first_set(),
            Self::IdleDaemon => alone::idle_daemon().await,
            Self::ColdStart => alone::cold_start(ground.load()).await,
            Self::Bulk(route, streams) => bulk::bulk(ground, route, streams).await,
            Self::Echo(route) => echo::echo(ground, route).await,
            Self::EchoBesideQuinn => echo::echo_beside_quinn(ground).await,
            Self::NewFlows(route) => echo::new_flows(ground, route).await,
            Self::NewFlowsBySocks => echo::new_flows_by_socks(ground).await,
            Self::CpuPerGb(route) => bulk::cpu_per_gb(ground, route).await,
            Self::OnionBuild => onion_build::measure().await,
            Self::ManyIdleFlows => idle::many_idle_flows(ground).await,
            Self::IdleFlow(route) => idle::idle_flow(ground, route).await,
        };
        let names = self.rows();
        let rows = measured.with_context(|| names.join("; "))?;
        let measured = rows.iter().map(Row::name);
        ensure!(measured.eq(&names), "other rows than {names:?}: {rows:?}");
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let rows: Vec<_> = Task::all().into_iter().flat_map(Task::rows).collect();
        let names: BTreeSet<_> = rows.iter().collect();
        assert_eq!(names.len(), rows.len());
    }
}
