//! `wormholes plugin …`, and `wormholes INSTANCE COMMAND …` for what its manifest describes.

use std::{ffi::OsString, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, builder::PossibleValuesParser};
use serde_json::{Map, Value, json};
use wormholes_proto::control::{
    BlobBeginParams, Call, NoParams, PluginArgument, PluginArgumentKind, PluginAskParams,
    PluginCommand, PluginCondition, PluginDead, PluginDeadLetter, PluginHealth, PluginInfo,
    PluginList, PluginLog, PluginLogLine, PluginLogParams, PluginParams,
};

use super::{
    Context, blobs, field, operations, plugin_change, plugin_inspect, plugin_new, plugin_record,
    plugin_replay, plugin_run,
};
use crate::{
    args::{Args, PluginCommand as Typed},
    client::Client,
    error::CliError,
    format,
    output::{Style, Tone},
    progress::Bar,
    table::{Cell, Table},
};

/// As clap takes one word for another mistyped.
const SIMILAR: f64 = 0.7;
/// The option that says for whom a plugin is asked.
const USER: &str = "user";
/// The option that says where the blob goes that is the answer.
const OUTPUT: &str = "output";

pub(super) fn run(context: &mut Context<'_>, command: Typed) -> Result<(), CliError> {
    match command {
        Typed::New { folder, sdk } => plugin_new::run(context.output, &folder, sdk.as_deref()),
        Typed::Inspect { folder } => plugin_inspect::run(context.output, &folder),
        Typed::Add {
            folder,
            name,
            grants,
            yes,
        } => plugin_change::add(context, &folder, name, &grants, yes),
        Typed::Update { instance, sha256 } => {
            plugin_change::update(context, instance, sha256.as_deref())
        }
        Typed::Rollback { instance, sha256 } => {
            plugin_change::roll_back(context, instance, sha256.as_deref())
        }
        Typed::Remove {
            instance,
            purge,
            yes,
        } => plugin_change::remove(context, instance, purge, yes),
        Typed::Record {
            instance,
            action,
            mib,
            save,
        } => plugin_record::run(context, instance, action, mib, save.as_deref()),
        Typed::Replay { file, wasm, times } => {
            plugin_replay::run(context.output, &file, wasm.as_deref(), times)
        }
        Typed::Run(args) => plugin_run::run(context, &args),
        Typed::List => context.show(&Call::PluginList(NoParams {}), render),
        Typed::Health { instance } => {
            let call = Call::PluginHealth(PluginParams { instance });
            context.show(&call, |answer: &PluginHealth, _| {
                format!("{}\n", format::clean(&answer.health))
            })
        }
        Typed::Stop { instance } => {
            context.show(&Call::PluginStop(PluginParams { instance }), state)
        }
        Typed::Log { instance, follow } => log(context, instance, follow),
        Typed::Dead {
            instance,
            clear: false,
        } => context.show(&Call::PluginDead(PluginParams { instance }), dead),
        Typed::Dead {
            instance,
            clear: true,
        } => {
            let call = Call::PluginClearDead(PluginParams { instance });
            context.show(&call, |plugin: &PluginInfo, style| {
                field(style, &plugin.name, "no dead letters")
            })
        }
        Typed::Start { instance } => {
            context.show(&Call::PluginStart(PluginParams { instance }), state)
        }
    }
}

fn state(plugin: &PluginInfo, style: Style) -> String {
    field(style, &plugin.name, condition(plugin).0)
}

/// Gives an instance the command that was typed behind its name.
pub(super) fn ask(context: &mut Context<'_>, words: &[OsString]) -> Result<(), CliError> {
    let name = words
        .first()
        .map(|word| word.to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    let unknown = || unknown(&name);
    let mut client = match context.connect() {
        // Most who get here mistyped a command, which no daemon mends.
        Err(CliError::NotRunning { .. }) => return Err(unknown()),
        client => client?,
    };
    let list: PluginList = client.report(&Call::PluginList(NoParams {}))?;
    let mut plugins = list.plugins.iter();
    let plugin = plugins
        .find(|plugin| plugin.name == name)
        .ok_or_else(unknown)?;
    give(context, client, plugin, words)
}

/// Gives a plugin what was typed: its name, and a command.
pub(super) fn give(
    context: &mut Context<'_>,
    mut client: Client,
    plugin: &PluginInfo,
    words: &[OsString],
) -> Result<(), CliError> {
    let unknown = || unknown(&plugin.name);
    let typed = match parser(plugin).try_get_matches_from(words) {
        Ok(typed) => typed,
        Err(error) if error.use_stderr() => return Err(CliError::usage(&error)),
        Err(help) => return context.output.text(&help.render().to_string()),
    };
    let Some((command, typed)) = typed.subcommand() else {
        return Err(unknown());
    };
    let described = plugin.commands.iter().find(|known| known.name == command);
    let described = described.ok_or_else(unknown)?;
    context.output.json |= typed.get_flag("json");
    if takes_user(described)
        && let Some(user) = typed.get_one::<String>(USER)
    {
        context.user = Some(user.clone());
    }
    let mut params = PluginAskParams {
        instance: plugin.name.clone(),
        user: context.user.clone(),
        command: command.to_owned(),
        arguments: arguments(described, typed),
        progress: false,
    };
    blobs::upload(&mut client, described, &mut params)?;
    if described.operation {
        return operations::begin(context, client, params, typed.get_flag("detach"));
    }
    let mut bar = Bar::new(context.output.json);
    params.progress = bar.is_shown();
    let asked = BlobBeginParams {
        instance: plugin.name.clone(),
        user: context.user.clone(),
    };
    let answer = client.call_with(&Call::PluginAsk(params), |progress| bar.show(progress));
    drop(bar);
    let answer = answer?;
    if described.blob {
        let output = typed.get_one::<PathBuf>(OUTPUT).cloned();
        return blobs::download(context, &mut client, &asked, (&answer, output));
    }
    print(context, &answer)
}

/// Prints what a plugin answered.
pub(super) fn print(context: &mut Context<'_>, answer: &Value) -> Result<(), CliError> {
    if context.output.json {
        return context.output.value(answer);
    }
    let style = context.output.style;
    context.output.text(&shown(answer, style))
}

/// In clap's words, which knows nothing of plugins.
fn unknown(name: &str) -> CliError {
    let known = Args::command();
    let names = known.get_subcommands().map(Command::get_name);
    let likeness = |known: &&str| strsim::jaro(known, name);
    let similar = names
        .filter(|known| likeness(known) > SIMILAR)
        .max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
    let tip = similar.map(|known| format!("tip: a similar subcommand exists: '{known}'; "));
    CliError::Usage {
        message: format!("unrecognized subcommand '{name}', and no plugin runs under that name"),
        mend: format!(
            "{}try '--help', or `wormholes plugin list`",
            tip.unwrap_or_default()
        ),
    }
}

/// What may be typed behind the instance's name.
pub(super) fn parser(plugin: &PluginInfo) -> Command {
    let commands = plugin.commands.iter().map(|command| {
        let arguments = command.arguments.iter().map(argument);
        let detach = Arg::new("detach")
            .long("detach")
            .action(ArgAction::SetTrue)
            .help("Print the number of the operation, and leave it");
        let user = Arg::new(USER)
            .long(USER)
            .value_name("NAME")
            .help("For this user of the node");
        let output = Arg::new(OUTPUT)
            .long(OUTPUT)
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Where the answer goes; else to standard output");
        Command::new(command.name.clone())
            .about(command.about.clone())
            .args(arguments)
            .args(takes_user(command).then_some(user))
            .args(command.operation.then_some(detach))
            .args(command.blob.then_some(output))
            .arg(
                Arg::new("json")
                    .long("json")
                    .action(ArgAction::SetTrue)
                    .help("Print JSON"),
            )
    });
    Command::new(plugin.name.clone())
        .bin_name(format!("wormholes {}", plugin.name))
        .about(plugin.about.clone())
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_version_flag(true)
        .subcommands(commands)
}

/// Whether `--user` behind it is for whom it is asked: one that has an argument of that name means its
/// own, and takes the other in front.
fn takes_user(command: &PluginCommand) -> bool {
    command.arguments.iter().all(|own| own.name != USER)
}

fn argument(described: &PluginArgument) -> Arg {
    let arg = Arg::new(described.name.clone()).help(described.about.clone());
    let arg = match described.kind {
        PluginArgumentKind::Flag => {
            return arg.long(described.name.clone()).action(ArgAction::SetTrue);
        }
        PluginArgumentKind::Text if described.values.is_empty() => arg,
        PluginArgumentKind::Peer => arg,
        PluginArgumentKind::Blob => arg.value_name("@FILE"),
        PluginArgumentKind::Text => {
            arg.value_parser(PossibleValuesParser::new(described.values.clone()))
        }
        PluginArgumentKind::Integer => arg.value_parser(clap::value_parser!(i64)),
        PluginArgumentKind::Number => arg.value_parser(clap::value_parser!(f64)),
    };
    let arg = if described.many {
        arg.num_args(1..)
    } else {
        arg
    };
    if described.option {
        arg.long(described.name.clone())
    } else {
        arg.required(!described.optional)
            .allow_negative_numbers(true)
    }
}

/// What was typed, as the handler gets it.
fn arguments(command: &PluginCommand, typed: &ArgMatches) -> Map<String, Value> {
    let mut arguments = Map::new();
    for described in &command.arguments {
        if let Some(value) = value(described, typed) {
            arguments.insert(described.name.clone(), value);
        }
    }
    arguments
}

fn value(described: &PluginArgument, typed: &ArgMatches) -> Option<Value> {
    let name = described.name.as_str();
    let mut values: Vec<Value> = match described.kind {
        PluginArgumentKind::Flag => return Some(json!(typed.get_flag(name))),
        PluginArgumentKind::Text | PluginArgumentKind::Peer | PluginArgumentKind::Blob => {
            typed.get_many::<String>(name)?.map(|v| json!(v)).collect()
        }
        PluginArgumentKind::Integer => typed.get_many::<i64>(name)?.map(|v| json!(v)).collect(),
        PluginArgumentKind::Number => typed.get_many::<f64>(name)?.map(|v| json!(v)).collect(),
    };
    if described.many {
        Some(Value::Array(values))
    } else {
        values.pop()
    }
}

/// An answer for people: a text as it is, an object as fields, a list by lines.
fn shown(answer: &Value, style: Style) -> String {
    match answer {
        Value::Null => String::new(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| field(style, name, &text(value)))
            .collect(),
        Value::Array(items) => items.iter().map(|item| shown(item, style)).collect(),
        Value::String(_) | Value::Bool(_) | Value::Number(_) => {
            format!("{}\n", format::clean(&text(answer)))
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            value.to_string()
        }
    }
}

fn render(list: &PluginList, style: Style) -> String {
    if list.plugins.is_empty() {
        return "no plugins; [plugin.NAME] in config.toml names them\n".to_owned();
    }
    let heads = [
        "NAME",
        "STATE",
        ">EVENTS",
        ">REFUSED",
        ">BROKEN",
        ">OUTBOX",
        ">OPEN",
        ">KEEPS",
        ">BLOBS",
        "~CONTAINED",
        "~PLUGIN",
    ];
    let mut table = Table::new(&heads);
    for plugin in &list.plugins {
        let (state, tone) = condition(plugin);
        let about = format!("{} {}: {}", plugin.plugin, plugin.version, plugin.about);
        table.row([
            plugin.name.as_str().into(),
            Cell::toned(tone, state),
            plugin.events.to_string().into(),
            plugin.refused.to_string().into(),
            plugin.broken.to_string().into(),
            plugin.waiting_messages.to_string().into(),
            plugin.open_operations.to_string().into(),
            format::bytes(plugin.state_bytes).into(),
            format::bytes(plugin.blob_bytes).into(),
            contained(plugin).into(),
            about.into(),
        ]);
    }
    let parked = list.plugins.iter().filter_map(|plugin| {
        let why = format::clean(plugin.why.as_ref()?);
        let name = &plugin.name;
        Some(format!(
            "{name} is parked: {why}; `wormholes plugin start {name}`\n"
        ))
    });
    let parked: String = parked.collect();
    table.render(style) + parked.as_str()
}

/// What it was kept from, the most first: `messages 12, log 3, given up 1`.
fn contained(plugin: &PluginInfo) -> String {
    let limits = plugin.limits.iter();
    let limits = limits.map(|limit| format!("{} {}", limit.limit.replace('_', " "), limit.hits));
    let given_up = (plugin.given_up > 0).then(|| format!("given up {}", plugin.given_up));
    let all: Vec<_> = limits.chain(given_up).collect();
    match all.is_empty() {
        true => "-".to_owned(),
        false => all.join(", "),
    }
}

/// Prints what a plugin said; what it says then too, until the daemon stops.
fn log(context: &mut Context<'_>, instance: String, follow: bool) -> Result<(), CliError> {
    let mut params = PluginLogParams {
        instance,
        after: 0,
        wait: follow,
    };
    if !follow {
        return context.show(&Call::PluginLog(params), |log: &PluginLog, style| {
            log.lines.iter().map(|said| line(said, style)).collect()
        });
    }
    let mut client = context.connect()?;
    loop {
        let log: PluginLog = client.report(&Call::PluginLog(params.clone()))?;
        for said in &log.lines {
            params.after = said.number;
            if context.output.json {
                context.output.value(&json!(said))?;
            } else {
                let style = context.output.style;
                context.output.text(&line(said, style))?;
            }
        }
        context.output.flush()?;
    }
}

pub(super) fn line(said: &PluginLogLine, style: Style) -> String {
    let tone = match said.level.as_str() {
        "error" | "warn" => Tone::Bad,
        _ => Tone::Plain,
    };
    let level = style.paint(tone, &format!("{:<5}", format::clean(&said.level)));
    let (at, who) = (format::utc(said.at_unix_ms), format::clean(&said.principal));
    format!("{at} {level} {who}: {}\n", format::clean(&said.text))
}

/// One letter a block: what it was, then what broke, then what it said.
fn dead(dead: &PluginDead, style: Style) -> String {
    let letter = |letter: &PluginDeadLetter| {
        let head = format!("{} {}", letter.kind, format::clean(&letter.name));
        let body = data_encoding::BASE64.decode(letter.body.as_bytes());
        let body = body.unwrap_or_default();
        let more = match letter.body_bytes.saturating_sub(body.len() as u64) {
            0 => String::new(),
            more => format!(" … and {more} bytes"),
        };
        let body = format::clean(&String::from_utf8_lossy(&body));
        [
            format!("{} {head}\n", format::utc(letter.at_unix_ms)),
            field(style, "  for", &format::clean(&letter.principal)),
            field(style, "  fault", &format::clean(&letter.fault)),
            field(style, "  body", &format!("{body}{more}")),
        ]
        .concat()
    };
    let letters: String = dead.letters.iter().map(letter).collect();
    match (dead.letters.len(), dead.dropped) {
        (0, _) => "no dead letters\n".to_owned(),
        (_, 0) => letters,
        (_, dropped) => format!("{letters}{dropped} older ones went\n"),
    }
}

fn condition(plugin: &PluginInfo) -> (&'static str, Tone) {
    match plugin.condition {
        PluginCondition::Running => ("running", Tone::Good),
        PluginCondition::Paused => ("paused", Tone::Bad),
        PluginCondition::Parked => ("parked", Tone::Bad),
        PluginCondition::Stopped => ("stopped", Tone::Bad),
    }
}
