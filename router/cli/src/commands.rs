//! What each command does: ask, then show. How a report looks is a pure function beside it.

mod blobs;
mod bugreport;
pub(crate) mod completions;
mod consent;
mod events;
mod explain;
mod flows;
mod i2p;
mod network;
mod node;
mod offline;
mod operations;
mod peers;
mod plugin_change;
mod plugin_inspect;
mod plugin_new;
mod plugin_record;
mod plugin_replay;
mod plugin_run;
mod plugins;
mod replay;
mod roles;
mod script;
mod status;
mod tor;
mod users;

use std::path::{Path, PathBuf};

use clap::CommandFactory;
use serde::{Serialize, de::DeserializeOwned};
use wormholes_proto::control::{Call, FlowParams, FlowsParams, NoParams};

use crate::{
    args::{Args, Command, I2pCommand, OpArgs},
    client::Client,
    error::CliError,
    format,
    output::{Output, Style, Tone},
};

/// The daemon, connected to when it is first needed, and where to print.
#[derive(Debug)]
struct Context<'a> {
    socket: Option<PathBuf>,
    /// For whom a plugin is asked.
    user: Option<String>,
    output: &'a mut Output,
}

/// Does what was typed.
pub(crate) fn run(args: Args, output: &mut Output) -> Result<(), CliError> {
    let mut context = Context {
        socket: args.socket,
        user: args.user,
        output,
    };
    let is_for_users = matches!(args.command, Command::Instance(_) | Command::Op(_));
    if context.user.is_some() && !is_for_users {
        return Err(CliError::Usage {
            message: "--user goes with a plugin's own command, and with `op`".to_owned(),
            mend: "leave it out".to_owned(),
        });
    }
    match args.command {
        Command::Status => context.show(&Call::Status(NoParams {}), status::render),
        Command::Peers => context.show(&Call::Peers(NoParams {}), peers::render),
        Command::Peer(command) => peers::run(&mut context, command),
        Command::Flows { limit } => {
            let limit = Some(limit);
            context.show(&Call::Flows(FlowsParams { limit }), flows::render)
        }
        Command::Why { flow } => context.show(&Call::Why(FlowParams { flow }), explain::render),
        Command::Ping { peer, count } => network::ping(&mut context, &peer, count),
        Command::Netcheck => network::netcheck(&mut context),
        Command::Script(command) => script::run(&mut context, command),
        Command::Relay => context.show(&Call::Relay(NoParams {}), roles::render),
        Command::Hop => context.show(&Call::Hop(NoParams {}), roles::render),
        Command::Exit => context.show(&Call::Exit(NoParams {}), roles::render),
        Command::Tor(command) => tor::run(&mut context, command),
        Command::I2p(I2pCommand::Status) => {
            context.show(&Call::I2pStatus(NoParams {}), i2p::render)
        }
        Command::Plugin(command) => plugins::run(&mut context, command),
        Command::Op(OpArgs { user, command }) => {
            context.user = user.or(context.user);
            operations::run(&mut context, command)
        }
        Command::User(command) => users::run(&mut context, command),
        Command::Instance(words) => plugins::ask(&mut context, &words),
        Command::Key => context.show(&Call::Key(NoParams {}), node::render_key),
        Command::Config => node::config(&mut context),
        Command::Events { kinds } => events::run(&mut context, kinds),
        Command::Bugreport { output: file } => bugreport::run(&mut context, file.as_deref()),
        Command::Completions { shell } => completions::script(context.output, shell),
        Command::Manual { folder } => manual(&folder),
    }
}

impl Context<'_> {
    fn connect(&self) -> Result<Client, CliError> {
        Client::connect(self.socket.as_deref())
    }

    /// Asks once and shows the answer.
    fn show<T: Serialize + DeserializeOwned>(
        &mut self,
        call: &Call,
        render: fn(&T, Style) -> String,
    ) -> Result<(), CliError> {
        let report: T = self.connect()?.report(call)?;
        self.output.report(&report, |style| render(&report, style))
    }

    /// Says which keys of the config file hold other values than those in force.
    fn note_waiting(&mut self, keys: &[String]) -> Result<(), CliError> {
        if keys.is_empty() {
            return Ok(());
        }
        let keys = keys.join(", ");
        let note = format!("changed in config.toml, and waiting for a restart: {keys}");
        self.output.notes(&[note])
    }
}

fn manual(folder: &Path) -> Result<(), CliError> {
    let written = clap_mangen::generate_to(Args::command(), folder);
    written.map_err(|error| CliError::File {
        path: folder.to_owned(),
        message: error.to_string(),
    })
}

/// What the name of a field takes, with the space behind it.
const NAME_COLUMNS: usize = 11;

/// A name and a value on a line of the screen.
fn field(style: Style, name: &str, value: &str) -> String {
    format!("{}{}\n", name_of(style, name), format::clean(value))
}

/// The name of a field, which may come from a plugin, and at least one space.
fn name_of(style: Style, name: &str) -> String {
    const NAME: usize = NAME_COLUMNS - 1;
    let name = format!("{:<NAME$} ", format::clean(name));
    style.paint(Tone::Head, &name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stands_behind_a_name_of_any_length() {
        let style = Style::default();
        assert_eq!(field(style, "state", "on"), "state      on\n");
        assert_eq!(field(style, "operations", "2"), "operations 2\n");
        assert_eq!(field(style, "an-operation", "2"), "an-operation 2\n");
        let hash = "1f".repeat(32);
        let held = field(style, &hash, "[300000,1]");
        assert_eq!(held, format!("{hash} [300000,1]\n"));
        assert_eq!(field(style, "a\u{1b}[2J", ""), "a\u{fffd}[2J      \n");
    }
}
