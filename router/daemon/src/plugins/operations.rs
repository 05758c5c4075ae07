//! Operations of plugins, for control.

use std::{sync::Arc, time::Duration};

use wormholes_host::{Begun, ErrorCode, Operation, Outcome, Principal, Refusal};
use wormholes_proto::control::{
    OperationInfo, OperationList, OperationStarted, OperationWaitParams, PluginAskParams,
};
use wormholes_rules::World;

use super::{Plugins, json, progress};
use crate::control::{Uploads, plugin_error};

/// An answer holds so many with the longest texts.
const MAX_LISTED: usize = 400;
/// How long a call waits for news of an operation: it is asked again then.
const PATIENCE: Duration = Duration::from_secs(20);

impl Plugins {
    /// Gives a plugin a command that may outlive its asker and the node.
    ///
    /// # Errors
    /// What it refused, or why it could not be asked.
    pub(crate) async fn begin(
        &self,
        params: PluginAskParams,
        around: (&World, &Uploads),
    ) -> Result<OperationStarted, Refusal> {
        let (host, asked) = self.asked(params, around).await?;
        if !asked.command.operation {
            let other = format!(
                "{} is no operation: `plugin.ask` asks it",
                asked.command.name
            );
            return Err(Refusal::new(ErrorCode::Invalid, other));
        }
        let deadline = asked.command.timeout_seconds.map(Duration::from_secs);
        let begun = host.begin(&asked.instance, asked.principal, asked.order, deadline);
        let (answer, operation) = match begun.await? {
            Begun::Done(answer) => (Some(json(&answer)?), None),
            Begun::Operation(operation) => (None, Some(info(*operation, None))),
        };
        Ok(OperationStarted { answer, operation })
    }

    /// Those that go on, and those whose results are kept; of one user, or of all and the node.
    pub(crate) fn operations(&self, user: Option<&str>) -> OperationList {
        let host = self.running();
        let mut operations = host.map(|host| host.operations()).unwrap_or_default();
        if let Some(user) = user {
            let user = Principal::User(user.into());
            operations.retain(|operation| operation.principal == user);
        }
        let more = operations.len().saturating_sub(MAX_LISTED);
        let newest = operations.into_iter().skip(more);
        OperationList {
            operations: newest.map(|operation| info(operation, None)).collect(),
            more: more as u64,
        }
    }

    /// How an operation is, and what it came to.
    ///
    /// # Errors
    /// There is none.
    pub(crate) async fn wait(&self, params: OperationWaitParams) -> Result<OperationInfo, Refusal> {
        let (seen, patience) = match params.seen {
            Some(seen) => (seen, PATIENCE),
            None => (0, Duration::ZERO),
        };
        let host = self.any()?;
        // A node that stops does not wait for those who wait for this.
        let (mut news, stopping) = (host.news(params.operation)?, Arc::downgrade(&host));
        drop(host);
        news.wait(seen, patience).await;
        let host = stopping.upgrade().ok_or_else(stops)?;
        let (operation, outcome) = host.operation(params.operation)?;
        Ok(info(operation, outcome))
    }

    /// Has an operation end.
    ///
    /// # Errors
    /// There is none, or its plugin cannot be told.
    pub(crate) async fn cancel(&self, id: u64) -> Result<OperationInfo, Refusal> {
        let canceled = self.any()?.cancel(id).await?;
        Ok(info(canceled, None))
    }

    /// Forgets an operation that ended.
    ///
    /// # Errors
    /// There is none, or it goes on.
    pub(crate) async fn collect(&self, id: u64) -> Result<OperationInfo, Refusal> {
        let collected = self.any()?.collect(id).await?;
        Ok(info(collected, None))
    }
}

fn stops() -> Refusal {
    Refusal::new(
        ErrorCode::Unavailable,
        "the node stops; the operation goes on when it runs again",
    )
}

fn info(operation: Operation, outcome: Option<Outcome>) -> OperationInfo {
    let (result, error) = match outcome.map(|outcome| outcome.and_then(|answer| json(&answer))) {
        None => (None, None),
        Some(Ok(result)) => (Some(result), None),
        Some(Err(refusal)) => (None, Some(plugin_error(refusal))),
    };
    OperationInfo {
        operation: operation.id,
        instance: operation.instance.to_string(),
        user: match operation.principal {
            Principal::Node => None,
            Principal::User(name) => Some(name.to_string()),
        },
        command: operation.command.to_string(),
        arguments: operation.arguments,
        began_unix_ms: operation.began_unix_ms,
        deadline_unix_ms: operation.deadline_unix_ms,
        progress: progress(operation.percent, operation.said),
        ended_unix_ms: operation.ended_unix_ms,
        changes: operation.changes,
        result,
        error,
    }
}
