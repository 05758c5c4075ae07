//! What can be typed.

use std::{ffi::OsString, path::PathBuf};

use clap::{
    ArgGroup, Parser, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use clap_complete::Shell;
use wormholes_proto::control::EventKind;

/// See and steer a running wormholed.
#[derive(Debug, Parser)]
#[command(
    name = "wormholes",
    version,
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage, 3 the daemon is not running, \
                  4 denied; of `script replay` also 5 and 6, see there."
)]
pub(crate) struct Args {
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// The daemon's control socket [default: $WORMHOLES_SOCKET, else
    /// /run/wormholes/control.sock or /var/lib/wormholes/control.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// For this user of the node: with a plugin's own command, and with `op`
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Args {
    /// What was typed; else what is wrong with it, and whether that is told to a program.
    pub(crate) fn of_process() -> Result<Self, (clap::Error, bool)> {
        Self::try_parse().map_err(|error| {
            let mut words = std::env::args_os().take_while(|word| word != "--");
            (error, words.any(|word| word == "--json"))
        })
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What the node is and does, on one screen
    Status,
    /// All nodes that this one knows
    Peers,
    /// Add, invite or remove a peer
    #[command(subcommand)]
    Peer(PeerCommand),
    /// Open flows, newest first
    Flows {
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 100,
              value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Why a flow went as it did: the rule, what it read, the tunnels tried
    Why {
        /// The number that `flows` and `events` show
        #[arg(value_parser = flow_number)]
        flow: u64,
    },
    /// Measure the round trip to a peer, straight, at its onion address or through a relay
    Ping {
        /// Petname, node id, or the beginning of one
        peer: String,
        /// How often, a second apart
        #[arg(long, short, value_name = "N", default_value_t = 4,
              value_parser = clap::value_parser!(u32).range(1..=10_000))]
        count: u32,
    },
    /// What of the configured network can be reached, and why not
    Netcheck,
    /// Check, test, load, roll back and replay rule scripts
    #[command(subcommand)]
    Script(ScriptCommand),
    /// The role of carrying others' ciphertext
    Relay,
    /// The role of peeling onion layers
    Hop,
    /// The role of dialling targets for others
    Exit,
    /// Tor: start and stop it, take a new identity, give onion services new addresses
    #[command(subcommand)]
    Tor(TorCommand),
    /// What this node has of I2P
    #[command(subcommand)]
    I2p(I2pCommand),
    /// The plugins that run here; `wormholes NAME --help` shows what one of them offers
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// What plugins are at that outlives the command that began it, and the node
    Op(OpArgs),
    /// The people on this node whom plugins keep apart
    #[command(subcommand)]
    User(UserCommand),
    /// A plugin's own command
    #[command(external_subcommand)]
    Instance(Vec<OsString>),
    /// The node's public keys
    Key,
    /// The config in force, without secrets
    Config,
    /// Print events as they happen, until interrupted
    Events {
        /// Only these kinds, with commas between
        #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = event_kinds())]
        kinds: Vec<EventKind>,
    },
    /// What a report of a bug needs: versions, the config, status, metrics and the last log lines,
    /// without names, targets, addresses and secrets
    Bugreport {
        /// Write it to this new file [default: standard output]
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Print completions for a shell, which ask for what plugins of the running node offer
    Completions {
        /// For which
        shell: Shell,
    },
    /// Write manual pages, one a command; for who makes packages
    #[command(hide = true)]
    Manual {
        /// A folder
        folder: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum I2pCommand {
    /// The I2P router, the sessions at it, and the services published there
    Status,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PeerCommand {
    /// Add a peer by the invite that it printed
    Add {
        /// What `wormholes peer invite` printed there
        invite: String,
        /// What to call it here [default: the name in the invite]
        #[arg(long)]
        name: Option<String>,
        /// 0 stranger, 1 friend of a friend, 2 friend, 3 own device
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=3))]
        trust: u8,
    },
    /// Print an invite to this node, for `wormholes peer add` on another
    Invite,
    /// Remove a peer that was added by invite
    Remove {
        /// Petname, node id, or the beginning of one
        peer: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TorCommand {
    /// How far it is, and the onion services of this node with their addresses
    Status,
    /// Start it after it was stopped, or failed
    Start,
    /// Stop it, and cut what goes through it, until it is started again
    Stop,
    /// Have connections from now on share no circuit with those before
    NewIdentity,
    /// Give an onion service another address; nobody finds it at the one before any more
    NewOnion {
        /// As `tor status` shows it; `peers` is the address at which peers of this node connect
        service: String,
    },
    /// Circuits that carry connections of this node, and up to 64 that did
    Circuits,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PluginCommand {
    /// Make a folder with a plugin in Rust to begin with; needs no daemon
    New {
        /// A new folder, which bears the plugin's name
        #[arg(value_name = "PATH")]
        folder: PathBuf,
        /// The folder `sdk` of a checkout [default: that of the checkout around, else the one that was
        /// installed with this program]
        #[arg(long, value_name = "PATH")]
        sdk: Option<PathBuf>,
    },
    /// The plugins that run here, and how they are
    List,
    /// What a plugin is and asks for, before it is trusted; needs no daemon
    Inspect {
        /// Where its plugin.toml and its component are
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
    },
    /// Name a plugin in config.toml, its component pinned, and load it at once
    Add {
        /// Where its plugin.toml and its component are, and stay
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
        /// What to call the instance [default: the plugin's name]
        #[arg(long)]
        name: Option<String>,
        /// Grant this of what it asks for; several times for several [default: all that it asks for]
        #[arg(long = "grant", value_name = "CAPABILITY")]
        grants: Vec<String>,
        /// Grant it without being asked
        #[arg(long, short)]
        yes: bool,
    },
    /// Have the version that is in the plugin's folder by now take over; on an error the one that
    /// runs goes on
    Update {
        /// Its name in config.toml
        instance: String,
        /// Pin this component in config.toml
        #[arg(long, value_name = "SHA256")]
        sha256: Option<String>,
    },
    /// Have the version before the last update take over again
    Rollback {
        /// Its name in config.toml
        instance: String,
        /// Pin this component in config.toml
        #[arg(long, value_name = "SHA256")]
        sha256: Option<String>,
    },
    /// End a plugin and take its section out of config.toml; what it keeps stays
    Remove {
        /// Its name in config.toml
        instance: String,
        /// Delete all that it keeps, too
        #[arg(long)]
        purge: bool,
        /// Delete it without being asked
        #[arg(long, short)]
        yes: bool,
    },
    /// What a plugin says of itself
    Health {
        /// Its name in config.toml
        instance: String,
    },
    /// Have a plugin that was parked or stopped go on
    Start {
        /// Its name in config.toml
        instance: String,
    },
    /// Have no event of a plugin begin until it is started again, or the node is
    Stop {
        /// Its name in config.toml
        instance: String,
    },
    /// What a plugin said last: its log and its standard error
    Log {
        /// Its name in config.toml
        instance: String,
        /// Print further lines as they come, until interrupted; with --json, an object a line
        #[arg(long, short)]
        follow: bool,
    },
    /// Events that a plugin broke over three times and that were given up: the last 100
    Dead {
        /// Its name in config.toml
        instance: String,
        /// Delete them
        #[arg(long)]
        clear: bool,
    },
    /// Record what a plugin's events are given and do, for `plugin replay`; without ON or OFF, say how
    /// the recording is
    #[command(
        after_help = "A recording holds what requests, messages, rows and the plugin's config say, and no \
                      secret rows and keys. The oldest events go first; it goes on when the node starts \
                      anew."
    )]
    Record {
        /// Its name in config.toml
        instance: String,
        /// `on` begins anew, `off` keeps what was recorded, `forget` deletes it
        #[arg(value_enum)]
        action: Option<RecordWord>,
        /// With `on`: keep so many MiB [default: 64]
        #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1024))]
        mib: Option<u64>,
        /// Write what was recorded to a new file that only its owner reads
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
    },
    /// Run a recording again, and show where an event does something else; needs no daemon
    #[command(
        after_help = "Exit status: 0 all events do the same, 1 some do not, 6 none that can be told, but \
                      some cannot: they used secrets, which no recording holds."
    )]
    Replay {
        /// What `plugin record --save` or `plugin run --record` wrote
        file: PathBuf,
        /// By this component, under the manifest and the grants of the recording [default: by the one
        /// that was recorded]
        #[arg(long, value_name = "FILE")]
        wasm: Option<PathBuf>,
        /// List all events, with the time that each handler took
        #[arg(long)]
        times: bool,
    },
    /// Try a plugin from its folder in a node of its own, without network, that is thrown away
    #[command(
        after_help = "Each line of standard input is a command of the plugin: `say hello`, or `--user ann say \
                      hello`. `help` lists them; `advance 5s` moves the time and runs what is due; `quit` \
                      ends. Exit status: 0 all went well, 1 some command failed."
    )]
    Run(RunArgs),
}

/// What to do with a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RecordWord {
    On,
    Off,
    Forget,
}

/// A plugin to try, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Where its plugin.toml and its component are
    #[arg(value_name = "FOLDER")]
    pub(crate) folder: PathBuf,
    /// What to call the instance [default: the plugin's name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Keep the node's data in this folder, and go on with it [default: a folder that is deleted]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Record all events, and write them to a new file at the end
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
    /// A value that the plugin reads of its config; several times for several
    #[arg(long = "config", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) config: Vec<(String, String)>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct OpArgs {
    /// Those of this user of the node alone
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) user: Option<String>,
    #[command(subcommand)]
    pub(crate) command: OpCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum OpCommand {
    /// Those that go on, and those whose results wait to be collected
    List,
    /// Show how far one is until it ends, then print its result; nobody else gets that after it
    Attach {
        /// Its number in `op list`
        operation: u64,
    },
    /// Have one end
    Cancel {
        /// Its number in `op list`
        operation: u64,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Add a user, or one who was removed: with all that he had then
    Add {
        /// A small letter, then small letters, digits and `-`; at most 32
        name: String,
    },
    /// All users
    List,
    /// Remove a user: nothing runs for him any more, and what plugins keep for him stays
    Remove {
        /// As `user list` shows it
        name: String,
        /// Delete all that plugins keep for him, for ever; his name is not given again
        #[arg(long)]
        purge: bool,
        /// Delete it without being asked
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ScriptCommand {
    /// Check scripts without running them; needs no daemon
    Check {
        #[command(flatten)]
        files: ScriptFiles,
        /// Fail on warnings too
        #[arg(long)]
        deny_warnings: bool,
    },
    /// Run the cases beside scripts (NAME.test.rhai for NAME.rhai); needs no daemon
    Test(ScriptFiles),
    /// The scripts in force
    List,
    /// Load the scripts that the config names again, or others; when one fails, nothing changes
    Load {
        /// Scripts in the order in which they are asked, until the next load without names, SIGHUP
        /// or start; the config stays as it is [default: those that the config names]
        #[arg(value_name = "SCRIPT")]
        files: Vec<PathBuf>,
    },
    /// Return to the scripts before the last load
    Rollback,
    /// Ask scripts what they would have decided, over the decisions that the daemon keeps
    #[command(
        after_help = "Exit status: 0 nothing would change, 5 some decision would, 6 none that \
                            can be told, but some cannot."
    )]
    Replay(ReplayArgs),
}

/// Candidates, and the decisions to replay.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["files", "save"]))]
pub(crate) struct ReplayArgs {
    /// Scripts in the order in which they are asked, in place of all that the daemon has; what a
    /// script keeps goes by its file's name
    #[arg(value_name = "SCRIPT")]
    pub(crate) files: Vec<PathBuf>,
    /// Only the last N decisions of those kept
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) last: Option<u32>,
    /// Decisions that `--save` wrote; needs no daemon
    #[arg(long, value_name = "FILE")]
    pub(crate) from: Option<PathBuf>,
    /// Write the decisions to a new file that only its owner reads: it holds targets
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    pub(crate) save: Option<PathBuf>,
    /// A named set and its file, in place of what the decisions found in it
    #[arg(long = "set", value_name = "NAME=FILE", value_parser = named_set)]
    pub(crate) sets: Vec<(String, PathBuf)>,
}

/// Scripts on the disk, and what they stand on.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("which").required(true).multiple(true).args(["files", "config"]))]
pub(crate) struct ScriptFiles {
    /// Scripts in the order in which they are asked
    #[arg(value_name = "SCRIPT")]
    pub(crate) files: Vec<PathBuf>,
    /// A wormholed config: its scripts when none are named, its sets and its peers
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// A named set and its file; a set without a file is taken as empty, unless --config is given
    #[arg(long = "set", value_name = "NAME=FILE", value_parser = named_set)]
    pub(crate) sets: Vec<(String, PathBuf)>,
}

/// Listed, so that shells complete them.
fn event_kinds() -> impl TypedValueParser<Value = EventKind> {
    let names = EventKind::ALL.map(EventKind::as_str);
    PossibleValuesParser::new(names).try_map(|name| name.parse())
}

fn flow_number(text: &str) -> Result<u64, &'static str> {
    let not_one = "flows are numbered; `wormholes flows` and `wormholes events` show them";
    text.parse().map_err(|_| not_one)
}

fn key_value(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn named_set(text: &str) -> Result<(String, PathBuf), &'static str> {
    let (name, file) = text.split_once('=').ok_or("expected NAME=FILE")?;
    Ok((name.to_owned(), file.into()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use wormholes_proto::control::RESERVED_INSTANCES;

    use super::*;

    #[test]
    fn no_plugin_may_bear_the_name_of_a_command() {
        let args = Args::command();
        for command in args.get_subcommands() {
            let name = command.get_name();
            assert!(RESERVED_INSTANCES.contains(&name), "{name}");
        }
    }
}
