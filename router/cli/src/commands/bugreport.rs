//! `wormholes bugreport`: what somebody who mends this program needs to know, and nothing else.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use serde::Serialize;
use serde_json::Value;
use wormholes_proto::control::{BugReport, Call, NoParams};

use super::Context;
use crate::{error::CliError, format};

const HEAD: &str = "Wormholes bug report. It has no name, id, target, address, path, key or password: \
                    [hidden] stands\nwhere one was. Read it before you pass it on.\n";

/// The report, and what the machine says of itself.
#[derive(Debug, Serialize)]
struct Full {
    cli_version: &'static str,
    system: System,
    /// None: it is not running.
    daemon: Option<BugReport>,
}

/// The machine; what cannot be read is empty.
#[derive(Debug, Default, Serialize)]
struct System {
    os: String,
    kernel: String,
    architecture: &'static str,
    processors: usize,
    memory: String,
}

/// Prints the report, or writes it to a new file.
pub(super) fn run(context: &mut Context<'_>, file: Option<&Path>) -> Result<(), CliError> {
    let (daemon, note) = match context.connect() {
        Ok(mut client) => (
            Some(client.report(&Call::BugReport(NoParams {}))?),
            String::new(),
        ),
        // A daemon that does not start is worth a report.
        Err(error @ CliError::NotRunning { .. }) => (None, error.to_string()),
        Err(error) => return Err(error),
    };
    let full = Full {
        cli_version: env!("CARGO_PKG_VERSION"),
        system: System::read(),
        daemon,
    };
    match file {
        None => context.output.report(&full, |_| render(&full))?,
        Some(file) => {
            let text = if context.output.json {
                serde_json::to_string(&full).map_err(CliError::Answer)? + "\n"
            } else {
                render(&full)
            };
            write(file, &text)?;
        }
    }
    let notes: Vec<String> = note.lines().map(str::to_owned).collect();
    context.output.notes(&notes)
}

/// It is for whoever asked, until they pass it on.
fn write(path: &Path, text: &str) -> Result<(), CliError> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| CliError::File {
        path: path.to_owned(),
        message: format!("{error}; the report goes to a new file"),
    })
}

fn render(full: &Full) -> String {
    let System {
        os,
        kernel,
        architecture,
        processors,
        memory,
    } = &full.system;
    let mut text = HEAD.to_owned();
    text += "\n== system\n";
    text += &format!(
        "wormholes {}\n{os}\n{kernel} {architecture}\n",
        full.cli_version
    );
    text += &format!("{processors} processors, {memory} of memory\n");
    let Some(daemon) = &full.daemon else {
        return text + "\n== wormholed is not running\n";
    };
    let process = &daemon.process;
    text += &format!("\n== wormholed {}\n", daemon.version);
    text += &format!(
        "{} resident, {} threads, {} of {} files open\n",
        format::bytes(process.resident_bytes),
        process.threads,
        process.open_files,
        process.max_open_files
    );
    for (title, report) in [
        ("config", &daemon.config),
        ("status", &daemon.status),
        ("peers", &daemon.peers),
        ("roles", &daemon.roles),
    ] {
        text += &format!("\n== {title}\n");
        lines(&mut text, "", report);
    }
    text += &format!("\n== metrics\n{}", multiline(&daemon.metrics));
    text += &format!("\n== log\n{}", multiline(&daemon.log.join("\n")));
    text
}

/// A line for each value, with the way to it: `limits.flows = 16384`.
fn lines(text: &mut String, way: &str, value: &Value) {
    let below = |key: &str| match way {
        "" => key.to_owned(),
        way => format!("{way}.{key}"),
    };
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                lines(text, &below(&format::clean(key)), value);
            }
        }
        Value::Array(values) if values.iter().any(Value::is_object) => {
            for (index, value) in values.iter().enumerate() {
                lines(text, &format!("{way}[{index}]"), value);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            *text += &format!("{way} = {}\n", format::clean(&value.to_string()));
        }
    }
}

fn multiline(text: &str) -> String {
    text.lines()
        .map(|line| format::clean(line) + "\n")
        .collect()
}

impl System {
    fn read() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, name: &str| {
            let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
            let value = values.next().unwrap_or_default();
            format::clean(value.trim().trim_matches('"'))
        };
        let kernel = ["ostype", "osrelease"].map(|file| read(&format!("/proc/sys/kernel/{file}")));
        Self {
            os: value(&read("/etc/os-release"), "PRETTY_NAME="),
            kernel: format::clean(&kernel.map(|word| word.trim().to_owned()).join(" ")),
            architecture: std::env::consts::ARCH,
            processors: std::thread::available_parallelism().map_or(0, Into::into),
            memory: value(&read("/proc/meminfo"), "MemTotal:"),
        }
    }
}
