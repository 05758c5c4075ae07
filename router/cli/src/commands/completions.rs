//! Completions. A shell's script asks this program at each TAB, so that it has what the plugins of the
//! running node offer; without a node it is what is always there, and nobody hears of it.

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    sync::mpsc,
    thread,
    time::Duration,
};

use clap::{Command, CommandFactory};
use clap_complete::{
    ArgValueCandidates, CompletionCandidate, Shell, engine::SubcommandCandidates, env::Shells,
};
use wormholes_proto::control::{Call, NoParams, PluginInfo, PluginList};

use super::plugins;
use crate::{args::Args, client::Client, error::CliError, format, output::Output};

const PROGRAM: &str = "wormholes";
/// Where a script names the shell that asks.
const ASKS: &str = "WORMHOLES_COMPLETE";
/// Where scripts say which word is completed, in clap_complete's words; those that do not mean the last.
const INDEX: &str = "_CLAP_COMPLETE_INDEX";
/// The argument of `wormholes plugin …` that is the name of one.
const INSTANCE: &str = "instance";
/// Who pressed TAB sees nothing until then.
const PATIENCE: Duration = Duration::from_secs(1);

/// zsh runs the file at the first TAB, which is to be answered as well.
const FIRST_OF_ZSH: &str = "
if [ \"$funcstack[1]\" = \"_wormholes\" ]; then
    _clap_dynamic_completer_wormholes \"$@\"
fi
";

/// Prints what a shell is to source.
pub(super) fn script(output: &mut Output, shell: Shell) -> Result<(), CliError> {
    let shells = Shells::builtins();
    let completer = shells.completer(&shell.to_string());
    let completer = completer
        .ok_or_else(|| CliError::Failed(format!("there are no completions for {shell}")))?;
    let mut script: Vec<u8> = Vec::new();
    completer.write_registration(ASKS, PROGRAM, PROGRAM, PROGRAM, &mut script)?;
    if shell == Shell::Zsh {
        script.extend_from_slice(FIRST_OF_ZSH.as_bytes());
    }
    Ok(output.bytes().write_all(&script)?)
}

/// Answers a script, if one asks. Whatever fails says nothing: a person types there.
pub(crate) fn answer() -> Option<ExitCode> {
    let shell = env::var(ASKS).ok().filter(|shell| !shell.is_empty())?;
    let words: Vec<OsString> = env::args_os()
        .skip_while(|word| word != "--")
        .skip(1)
        .collect();
    let mut candidates: Vec<u8> = Vec::new();
    let shells = Shells::builtins();
    if let Some(completer) = shells.completer(&shell)
        && let Some(mut offered) = offered(&words)
    {
        let folder = env::current_dir().ok();
        let written =
            completer.write_complete(&mut offered, words, folder.as_deref(), &mut candidates);
        if written.is_err() {
            candidates.clear();
        }
    }
    let mut stdout = io::stdout().lock();
    // Nobody reads any more, then.
    let _ = stdout.write_all(&candidates).and_then(|()| stdout.flush());
    Some(ExitCode::SUCCESS)
}

/// What may stand in the place where the line is completed; none: there is nobody to ask for that.
fn offered(words: &[OsString]) -> Option<Command> {
    let (socket, command) = read(words);
    let own = Args::command();
    let last = words.len().checked_sub(1)?;
    let index = env::var(INDEX).ok().and_then(|index| index.parse().ok());
    let index: usize = index.unwrap_or(last);
    let Some((_, command)) = command.filter(|(at, _)| *at < index) else {
        let plugins = listed(socket);
        return Some(own.add(SubcommandCandidates::new(move || candidates(&plugins))));
    };
    if command == "plugin" {
        return Some(with_names(own, listed(socket)));
    }
    // clap adds `help` to the others later.
    if command == "help" || own.find_subcommand(&command).is_some() {
        return Some(own);
    }
    let plugin = listed(socket)
        .into_iter()
        .find(|known| known.name == command)?;
    // Options of the program itself end where the plugin's words begin.
    let options = own
        .get_arguments()
        .map(|option| option.clone().global(false));
    let line = Command::new(PROGRAM).args(options);
    Some(line.subcommand(plugins::parser(&plugin)))
}

/// The socket that is named in front of the command, and where the command stands.
fn read(words: &[OsString]) -> (Option<PathBuf>, Option<(usize, String)>) {
    let mut socket = None;
    let mut words = words.iter().enumerate().skip(1);
    while let Some((at, word)) = words.next() {
        let word = word.to_string_lossy();
        if let Some(path) = word.strip_prefix("--socket=") {
            socket = Some(PathBuf::from(path));
        } else if word == "--socket" {
            socket = words.next().map(|(_, path)| PathBuf::from(path));
        } else if word == "--user" {
            words.next();
        } else if !word.starts_with('-') {
            return (socket, Some((at, word.into_owned())));
        }
    }
    (socket, None)
}

/// The plugins that run; none when nobody answers in time.
fn listed(socket: Option<PathBuf>) -> Vec<PluginInfo> {
    let (told, plugins) = mpsc::channel();
    // On a thread: no time-out of a socket bounds how long a daemon that is full lets a caller wait.
    let asked = thread::Builder::new().spawn(move || {
        let list = Client::connect(socket.as_deref())
            .and_then(|mut client| client.report::<PluginList>(&Call::PluginList(NoParams {})));
        // Nobody waits any more, then.
        let _ = told.send(list.map(|list| list.plugins).unwrap_or_default());
    });
    let plugins = match asked {
        Ok(_) => plugins.recv_timeout(PATIENCE).unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    plugins.into_iter().map(typeable).collect()
}

/// Without what would steer the terminal, and without values that a shell takes for something else.
fn typeable(mut plugin: PluginInfo) -> PluginInfo {
    plugin.about = format::clean(&plugin.about);
    for command in &mut plugin.commands {
        command.about = format::clean(&command.about);
        for argument in &mut command.arguments {
            argument.about = format::clean(&argument.about);
            let is_plain = |value: &String| shlex::try_quote(value).is_ok_and(|it| it == *value);
            argument.values.retain(is_plain);
        }
    }
    plugin
}

fn candidates(plugins: &[PluginInfo]) -> Vec<CompletionCandidate> {
    let candidate = |plugin: &PluginInfo| {
        let about = plugin.about.clone().into();
        CompletionCandidate::new(plugin.name.clone()).help(Some(about))
    };
    plugins.iter().map(candidate).collect()
}

/// Has `wormholes plugin …` offer them.
fn with_names(own: Command, plugins: Vec<PluginInfo>) -> Command {
    let names = ArgValueCandidates::new(move || candidates(&plugins));
    own.mut_subcommand("plugin", |plugin| {
        plugin.mut_subcommands(|command| {
            command.mut_args(|argument| match argument.get_id().as_str() {
                INSTANCE => argument.add(names.clone()),
                _ => argument,
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> (Option<PathBuf>, Option<(usize, String)>) {
        let words: Vec<OsString> = text.split(' ').map(OsString::from).collect();
        read(&words)
    }

    #[test]
    fn the_command_stands_behind_the_options_of_the_program() {
        assert_eq!(line("wormholes"), (None, None));
        let echo = |at| Some((at, "echo".to_owned()));
        assert_eq!(line("wormholes echo --socket x"), (None, echo(1)));
        let socket = Some(PathBuf::from("x"));
        assert_eq!(
            line("wormholes --json --user ann --socket x echo"),
            (socket.clone(), echo(6))
        );
        assert_eq!(line("wormholes --socket=x echo say"), (socket, echo(2)));
    }

    /// The names that are completed are those of this argument.
    #[test]
    fn commands_of_plugins_name_them_by_one_word() {
        let own = Args::command();
        let plugin = own.find_subcommand("plugin").unwrap();
        let takes = |command: &&Command| {
            let mut arguments = command.get_arguments();
            arguments.any(|argument| argument.get_id().as_str() == INSTANCE)
        };
        let named = plugin.get_subcommands().filter(takes).count();
        assert!(named >= 9, "{named}");
    }
}
