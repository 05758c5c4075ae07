//! The node that is thrown away.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use tempfile::TempDir;
use toml::{Table, Value};
use wormholes_proto::control::{Call, NoParams, PluginInfo, PluginList};

use super::super::plugin_inspect::Inspection;
use crate::{args::RunArgs, client::Client, daemon, error::CliError};

/// How often it is looked whether it has started.
const LOOK: Duration = Duration::from_millis(20);
/// Of what it said, where it did not start.
const SAID_BYTES: usize = 4096;

/// A daemon of one's own.
#[derive(Debug)]
pub(super) struct Node {
    child: Child,
    folder: TempDir,
    socket: PathBuf,
}

impl Node {
    /// Starts one with a plugin, which is granted all that it asks for.
    pub(super) fn start(
        name: &str,
        inspection: &Inspection,
        args: &RunArgs,
    ) -> Result<Self, CliError> {
        let folder = TempDir::with_prefix("wormholes-run-").map_err(unmade)?;
        let path = |name: &str| folder.path().join(name);
        let (socket, config) = (path("control.sock"), path("config.toml"));
        let data = match &args.data {
            Some(data) => absolute(data)?,
            None => path("data"),
        };
        let text = text(name, inspection, args, (&data, &socket))?;
        fs::write(&config, text).map_err(unmade)?;
        let mut command = daemon::command();
        command.arg("--config").arg(&config).arg("--throw-away");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        command.stderr(File::create(path("log")).map_err(unmade)?);
        let child = command.spawn().map_err(|error| daemon::missing(&error))?;
        Ok(Self {
            child,
            folder,
            socket,
        })
    }

    /// Waits until the plugin runs.
    pub(super) fn wait(&mut self, name: &str) -> Result<(Client, PluginInfo), CliError> {
        loop {
            if self.child.try_wait().map_err(unmade)?.is_some() {
                return Err(CliError::Failed(self.said()));
            }
            if let Ok(mut client) = Client::connect(Some(self.socket()))
                && let Ok(list) = client.report::<PluginList>(&Call::PluginList(NoParams {}))
                && let Some(plugin) = list.plugins.into_iter().find(|known| known.name == name)
            {
                return Ok((client, plugin));
            }
            thread::sleep(LOOK);
        }
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends it, and waits for that: what it keeps is on disk then.
    pub(super) fn stop(mut self) -> Result<(), CliError> {
        drop(self.child.stdin.take());
        self.child.wait().map_err(unmade)?;
        Ok(())
    }

    /// The end of what it said.
    fn said(&self) -> String {
        let said = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let from = said.len().saturating_sub(SAID_BYTES);
        let said = said
            .get(said.ceil_char_boundary(from)..)
            .unwrap_or_default();
        let said = said.trim().trim_start_matches("wormholed: ");
        match said {
            "" => "the node ended and said nothing".to_owned(),
            said => said.to_owned(),
        }
    }
}

/// However this ends, the node does.
impl Drop for Node {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It ends by itself, and its folder goes with this.
        let _ = self.child.wait();
    }
}

fn unmade(error: io::Error) -> CliError {
    CliError::Failed(format!("cannot make a node to try it in: {error}"))
}

/// Its config.
fn text(
    name: &str,
    inspection: &Inspection,
    args: &RunArgs,
    (data, socket): (&Path, &Path),
) -> Result<String, CliError> {
    let asked = inspection.asked().into_iter();
    let grants: Table = asked
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    let config = args.config.iter();
    let config: Table = config
        .map(|(key, text)| (key.clone(), value(text)))
        .collect();
    let mut plugin = Table::new();
    plugin.insert("wasm".to_owned(), path_text(&absolute(&inspection.wasm)?)?);
    plugin.insert("grants".to_owned(), grants.into());
    plugin.insert("config".to_owned(), config.into());
    let section = |key: &str, value: Value| Table::from_iter([(key.to_owned(), value)]);
    let root = Table::from_iter([
        (
            "node".to_owned(),
            section("data_dir", path_text(data)?).into(),
        ),
        (
            "control".to_owned(),
            section("socket", path_text(socket)?).into(),
        ),
        ("log".to_owned(), section("level", "error".into()).into()),
        ("plugin".to_owned(), section(name, plugin.into()).into()),
    ]);
    Ok(root.to_string())
}

/// A value of TOML, or a text.
fn value(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>();
    let parsed = parsed.ok().and_then(|mut table| table.remove("value"));
    parsed.unwrap_or_else(|| text.into())
}

fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|source| CliError::ReadFile {
        path: path.to_owned(),
        source,
    })
}

fn path_text(path: &Path) -> Result<Value, CliError> {
    let text = path.to_str().ok_or_else(|| CliError::Usage {
        message: format!("{} is no UTF-8", path.display()),
        mend: "config.toml holds text: move the plugin to a folder with such a name".to_owned(),
    })?;
    Ok(text.into())
}
