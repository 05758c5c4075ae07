//! `wormholes op …`, and plugins' own commands that are operations: begun, shown, left, come back to.

use std::{process, thread};

use serde_json::Value;
use signal_hook::{consts::SIGINT, iterator::Signals};
use wormholes_proto::control::{
    Call, OperationInfo, OperationList, OperationListParams, OperationParams, OperationStarted,
    OperationWaitParams, PluginAskParams,
};

use super::{Context, field, plugins};
use crate::{
    args::OpCommand,
    client::Client,
    error::CliError,
    format,
    output::{Style, Tone},
    progress::Bar,
    table::{Cell, Table},
};

/// As shells say it of a program that Ctrl-C ended.
pub(super) const INTERRUPTED: i32 = 130;

pub(super) fn run(context: &mut Context<'_>, command: OpCommand) -> Result<(), CliError> {
    match command {
        OpCommand::List => {
            let user = context.user.clone();
            context.show(&Call::OpList(OperationListParams { user }), render)
        }
        OpCommand::Attach { operation } => {
            let mut client = context.connect()?;
            check_user(context, &mut client, operation)?;
            attach(context, client, operation)
        }
        OpCommand::Cancel { operation } => {
            let mut client = context.connect()?;
            check_user(context, &mut client, operation)?;
            let call = Call::OpCancel(OperationParams { operation });
            let ended: OperationInfo = client.report(&call)?;
            context
                .output
                .report(&ended, |style| canceled(&ended, style))
        }
    }
}

/// Who says for whom he acts is not taken to another one's operation.
fn check_user(context: &Context<'_>, client: &mut Client, operation: u64) -> Result<(), CliError> {
    let Some(user) = &context.user else {
        return Ok(());
    };
    let call = Call::OpWait(OperationWaitParams {
        operation,
        seen: None,
    });
    let known: OperationInfo = client.report(&call)?;
    if known.user.as_ref() == Some(user) {
        return Ok(());
    }
    Err(CliError::Failed(format!(
        "operation {operation} is not for `{user}`; see `wormholes op list --user {user}`"
    )))
}

/// Begins an operation, and stays until it ends, or leaves it at once.
pub(super) fn begin(
    context: &mut Context<'_>,
    mut client: Client,
    params: PluginAskParams,
    detach: bool,
) -> Result<(), CliError> {
    let started: OperationStarted = client.report(&Call::OpStart(params))?;
    match started {
        OperationStarted {
            operation: Some(operation),
            ..
        } if detach => context.output.report(&operation, |style| {
            let number = operation.operation.to_string();
            field(style, "operation", &number) + "`wormholes op attach` comes back to it\n"
        }),
        OperationStarted {
            operation: Some(operation),
            ..
        } => attach(context, client, operation.operation),
        OperationStarted { answer, .. } => plugins::print(context, &answer.unwrap_or(Value::Null)),
    }
}

/// Shows how far an operation is, then prints what it came to, which nobody needs to keep after that.
fn attach(context: &mut Context<'_>, mut client: Client, operation: u64) -> Result<(), CliError> {
    leave_on_interrupt(operation)?;
    let mut bar = Bar::new(context.output.json);
    let mut seen = None;
    let ended = loop {
        let params = OperationWaitParams { operation, seen };
        let told: OperationInfo = match client.report(&Call::OpWait(params)) {
            Err(CliError::Closed) => return Err(CliError::Left { operation }),
            told => told?,
        };
        if told.ended_unix_ms.is_some() {
            break told;
        }
        bar.show(&told.progress);
        seen = Some(told.changes);
    };
    drop(bar);
    let printed = match ended.error {
        Some(error) => Err(CliError::Rpc(error)),
        None => plugins::print(context, &ended.result.unwrap_or(Value::Null))
            .and_then(|()| Ok(context.output.flush()?)),
    };
    // What could not be printed is kept.
    if !matches!(printed, Err(CliError::Print(_))) {
        // Another one who waited may have been faster.
        let _ = client.call(&Call::OpCollect(OperationParams { operation }));
    }
    printed
}

/// Ctrl-C leaves the operation, and says how to come back.
#[expect(clippy::print_stderr, reason = "the process ends behind it")]
fn leave_on_interrupt(operation: u64) -> Result<(), CliError> {
    let mut signals = Signals::new([SIGINT])?;
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            eprintln!(
                "\nthe operation goes on: `wormholes op attach {operation}` comes back to it, \
                 `wormholes op cancel {operation}` ends it"
            );
            process::exit(INTERRUPTED);
        }
    });
    Ok(())
}

fn canceled(operation: &OperationInfo, style: Style) -> String {
    let number = operation.operation.to_string();
    field(style, &number, "has ended")
}

fn render(list: &OperationList, style: Style) -> String {
    if list.operations.is_empty() {
        return "no operations\n".to_owned();
    }
    let heads = [
        ">OPERATION",
        "PLUGIN",
        "FOR",
        "COMMAND",
        "BEGAN",
        "STATE",
        "~SAYS",
    ];
    let mut table = Table::new(&heads);
    for operation in &list.operations {
        let (state, tone) = match (operation.ended_unix_ms, operation.progress.percent) {
            (Some(_), _) => ("ended".to_owned(), Tone::Good),
            (None, Some(percent)) => (format!("{percent}%"), Tone::Plain),
            (None, None) => ("goes on".to_owned(), Tone::Plain),
        };
        table.row([
            operation.operation.to_string().into(),
            operation.instance.as_str().into(),
            operation.user.as_deref().unwrap_or("node").into(),
            operation.command.as_str().into(),
            format::utc(operation.began_unix_ms).into(),
            Cell::toned(tone, &state),
            operation.progress.text.as_str().into(),
        ]);
    }
    let more = match list.more {
        0 => String::new(),
        more => format!("{more} older ones are not shown\n"),
    };
    table.render(style) + more.as_str()
}
