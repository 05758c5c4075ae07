//! `wormholes plugin add`, `update`, `rollback` and `remove`: config.toml is changed with the rights of
//! who types, then the daemon is told; what it refuses is undone in the file.

use std::{
    path::{Path, PathBuf},
    process, thread,
};

use signal_hook::{consts::SIGINT, iterator::Signals};
use toml::Value;
use wormholes_proto::control::{
    Call, ConfigReport, ErrorCode, NoParams, PluginInfo, PluginParams, PluginRemoveParams,
    PluginRemoved, RESERVED_INSTANCES, is_instance_name,
};

use super::{
    Context,
    consent::consent,
    field,
    operations::INTERRUPTED,
    plugin_inspect::{Inspection, grants_text, inspect, text},
};
use crate::{
    client::Client,
    config_file::{Changed, ConfigFile},
    error::CliError,
    format,
    output::Style,
};

pub(super) fn add(
    context: &mut Context<'_>,
    folder: &Path,
    name: Option<String>,
    grants: &[String],
    yes: bool,
) -> Result<(), CliError> {
    let inspection = inspect(folder)?;
    if let Some(problem) = inspection.problems.first() {
        return Err(CliError::Failed(problem.clone()));
    }
    let name = checked_name(name, &inspection)?;
    let grants = granted(&inspection, grants)?;
    // Links stay: the manifest is beside them, and what they lead to may be built elsewhere.
    let wasm = std::path::absolute(&inspection.wasm).map_err(|source| CliError::ReadFile {
        path: inspection.wasm.clone(),
        source,
    })?;
    let wasm = wasm.to_str().ok_or_else(|| CliError::Usage {
        message: format!("{} is no UTF-8", wasm.display()),
        mend: "config.toml holds text: move the plugin to a folder with such a name".to_owned(),
    })?;
    let mut client = context.connect()?;
    let mut file = ConfigFile::read(&config_path(&mut client)?)?;
    if file.names(&name) {
        return Err(CliError::Failed(format!(
            "config.toml has a section [plugin.{name}]; give another --name, or update that one"
        )));
    }
    if !yes {
        let shown = text(&inspection, Style::default());
        let granted = grants_text(&grants);
        let question = format!("load it as `{name}`, and grant {granted}?");
        consent(&shown, &question)?;
    }
    file.add(&name, wasm, &inspection.sha256, &grants);
    let changed = write(file)?;
    let call = Call::PluginAdd(PluginParams { instance: name });
    show(context, &mut client, &call, Some(changed))
}

pub(super) fn update(
    context: &mut Context<'_>,
    instance: String,
    sha256: Option<&str>,
) -> Result<(), CliError> {
    let mut client = context.connect()?;
    let changed = pin(&mut client, &instance, sha256)?;
    let call = Call::PluginUpdate(PluginParams { instance });
    show(context, &mut client, &call, changed)
}

pub(super) fn roll_back(
    context: &mut Context<'_>,
    instance: String,
    sha256: Option<&str>,
) -> Result<(), CliError> {
    let mut client = context.connect()?;
    let changed = pin(&mut client, &instance, sha256)?;
    let call = Call::PluginRollback(PluginParams { instance });
    show(context, &mut client, &call, changed)
}

pub(super) fn remove(
    context: &mut Context<'_>,
    instance: String,
    purge: bool,
    yes: bool,
) -> Result<(), CliError> {
    let mut client = context.connect()?;
    if purge && !yes {
        consent("", &format!("delete all that `{instance}` keeps?"))?;
    }
    let mut file = ConfigFile::read(&config_path(&mut client)?)?;
    let changed = match file.remove(&instance) {
        true => Some(write(file)?),
        false => None,
    };
    let was_named = changed.is_some();
    let params = PluginRemoveParams { instance, purge };
    let call = Call::PluginRemove(params.clone());
    let removed = match client.report(&call) {
        // A section that was never loaded, or that the daemon does not start with.
        Err(CliError::Rpc(error)) if was_named && error.is(ErrorCode::NotFound) => {
            return forgotten(context, params);
        }
        told => settled::<PluginRemoved>(told, changed)?,
    };
    context.output.report(&removed, |style| {
        let what = match removed.purged {
            true => "removed, with all that it kept",
            false => "removed; what it kept stays for the next of its name",
        };
        field(style, &removed.name, what)
    })
}

fn forgotten(context: &mut Context<'_>, params: PluginRemoveParams) -> Result<(), CliError> {
    let removed = PluginRemoved {
        name: params.instance,
        purged: params.purge,
    };
    context.output.report(&removed, |style| {
        field(
            style,
            &removed.name,
            "taken out of config.toml; it was not loaded",
        )
    })
}

/// Has the component pinned that config.toml shall name from now on.
fn pin(
    client: &mut Client,
    instance: &str,
    sha256: Option<&str>,
) -> Result<Option<Changed>, CliError> {
    let Some(sha256) = sha256 else {
        return Ok(None);
    };
    let mut file = ConfigFile::read(&config_path(client)?)?;
    file.pin(instance, sha256)?;
    write(file).map(Some)
}

/// What the plugin is from now on.
fn show(
    context: &mut Context<'_>,
    client: &mut Client,
    call: &Call,
    changed: Option<Changed>,
) -> Result<(), CliError> {
    let plugin: PluginInfo = settled(client.report(call), changed)?;
    context.output.report(&plugin, |style| {
        let runs = format!("{} {} runs", plugin.plugin, plugin.version);
        let but = plugin.why.as_deref().map(format::clean);
        [
            field(style, &plugin.name, &runs),
            field(style, "sha256", &plugin.sha256),
            but.map_or(String::new(), |but| field(style, "but", &but)),
        ]
        .concat()
    })
}

/// What the daemon answered; what it refused is undone in the file.
fn settled<T>(told: Result<T, CliError>, changed: Option<Changed>) -> Result<T, CliError> {
    let refusal = match told {
        Err(CliError::Rpc(error)) if !error.is(ErrorCode::Unsettled) => CliError::Rpc(error),
        // The daemon may go on: a file that says otherwise would be wrong at its next start.
        Err(why) => return Err(CliError::Unsettled { why: why.into() }),
        told => return told,
    };
    match changed.map(Changed::undo) {
        Some(Err(undo)) => Err(CliError::Failed(format!(
            "{refusal}\nand config.toml is not what it was before: {undo}"
        ))),
        Some(Ok(())) | None => Err(refusal),
    }
}

/// Writes what the daemon is told next. Who left in between would leave what the daemon may refuse,
/// and not start with.
fn write(file: ConfigFile) -> Result<Changed, CliError> {
    wait_despite_interrupt()?;
    file.write()
}

/// The first Ctrl-C says what is waited for, and the second leaves.
#[expect(clippy::print_stderr, reason = "who interrupts looks at the terminal")]
fn wait_despite_interrupt() -> Result<(), CliError> {
    let mut signals = Signals::new([SIGINT])?;
    thread::spawn(move || {
        let mut signals = signals.forever();
        if signals.next().is_some() {
            eprintln!("\nthe daemon is at it; a second Ctrl-C leaves config.toml as it is by now");
        }
        if signals.next().is_some() {
            process::exit(INTERRUPTED);
        }
    });
    Ok(())
}

/// Where the daemon's config is.
fn config_path(client: &mut Client) -> Result<PathBuf, CliError> {
    let report: ConfigReport = client.report(&Call::Config(NoParams {}))?;
    let none = || CliError::Failed("the node has no config file to name plugins in".to_owned());
    report.file.ok_or_else(none)
}

pub(super) fn checked_name(
    name: Option<String>,
    inspection: &Inspection,
) -> Result<String, CliError> {
    let name = name.unwrap_or_else(|| inspection.plugin.clone());
    let mend = if !is_instance_name(&name) {
        "give a --name: a small letter, then small letters, digits and `-`; at most 32"
    } else if RESERVED_INSTANCES.contains(&name.as_str()) {
        "give a --name that is no command of `wormholes`"
    } else {
        return Ok(name);
    };
    Err(CliError::Usage {
        message: format!("`{name}` cannot name an instance"),
        mend: mend.to_owned(),
    })
}

/// All that it asks for, or what was typed of it.
fn granted(
    inspection: &Inspection,
    typed: &[String],
) -> Result<Vec<(&'static str, Value)>, CliError> {
    let asked = inspection.asked();
    if typed.is_empty() {
        return Ok(asked);
    }
    let grant = |typed: &String| {
        let known = asked.iter().find(|(capability, _)| *capability == typed);
        known.cloned().ok_or_else(|| CliError::Usage {
            message: format!("the plugin does not ask for `{typed}`"),
            mend: format!("it asks for: {}", grants_text(&asked)),
        })
    };
    typed.iter().map(grant).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{BufRead as _, BufReader, Write as _},
        os::unix::net::UnixListener,
    };

    use super::*;

    const TEXT: &str = "[node]\nname = 'ann'\n";

    /// What is told when config.toml was changed and the daemon answers so, or not at all; and what
    /// the file says then.
    fn check(answer: Option<&'static str>, meanwhile: impl FnOnce(&Path)) -> (String, String) {
        let dir = tempfile::tempdir().unwrap();
        let (path, socket) = (dir.path().join("config.toml"), dir.path().join("socket"));
        fs::write(&path, TEXT).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let daemon = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut call = String::new();
            BufReader::new(&stream).read_line(&mut call).unwrap();
            if let Some(error) = answer {
                let answer = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{error}}}\n");
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let mut file = ConfigFile::read(&path).unwrap();
        file.add("one", "1.wasm", "00", &[]);
        let changed = Some(file.write().unwrap());
        meanwhile(&path);
        let call = Call::PluginAdd(PluginParams {
            instance: "one".to_owned(),
        });
        let mut client = Client::connect(Some(&socket)).unwrap();
        let told = settled::<PluginInfo>(client.report(&call), changed).unwrap_err();
        daemon.join().unwrap();
        (told.to_string(), fs::read_to_string(&path).unwrap())
    }

    #[test]
    fn what_the_daemon_refused_is_undone_and_what_it_may_go_on_with_stays() {
        let refusal = Some("{\"code\":-32000,\"message\":\"too large\"}");
        let (told, text) = check(refusal, |_| {});
        assert_eq!((told.as_str(), text.as_str()), ("too large", TEXT));
        let late = Some("{\"code\":-32004,\"message\":\"timed out\"}");
        for answer in [late, None] {
            let (told, text) = check(answer, |_| {});
            assert!(told.contains("`wormholes plugin list`"), "{told}");
            assert!(text.contains("[plugin.one]"), "{text}");
        }
        let (told, text) = check(refusal, |path| fs::write(path, "# mine\n").unwrap());
        assert!(told.starts_with("too large\n"), "{told}");
        assert!(told.contains("somebody else changed it"), "{told}");
        assert_eq!(text, "# mine\n");
    }
}
