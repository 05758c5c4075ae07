//! `wormholes plugin inspect`: what a plugin is and asks for, for who decides whether to trust it.
//!
//! What it imports is read from the component itself, by wasmtime's own reader: needs no daemon, and
//! runs nothing of it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};
use serde::Serialize;
use toml::Value;
use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentOuterAliasKind, ComponentType,
    ComponentTypeRef, Encoding, InstanceTypeDeclaration, Parser, Payload,
};
use wormholes_proto::{
    control::PluginCommand,
    manifest::{Capabilities, Limits, MAX_MANIFEST_BYTES, Manifest, Mode, Poison},
};

use super::field;
use crate::{
    error::CliError,
    format,
    output::{Output, Style, Tone},
};

const MANIFEST: &str = "plugin.toml";
/// As the daemon has it.
const MAX_WASM_BYTES: u64 = 128 << 20;
/// The ABI's interfaces are named so: `wormholes:plugin/state@0.1.0`.
const ABI: &str = "wormholes:plugin/";

/// What a plugin is and asks for.
#[derive(Debug, Serialize)]
pub(super) struct Inspection {
    /// Its component.
    pub(super) wasm: PathBuf,
    pub(super) plugin: String,
    pub(super) version: String,
    pub(super) about: String,
    pub(super) sha256: String,
    pub(super) bytes: u64,
    pub(super) schema: u32,
    /// What it asks for, but for lists of words.
    pub(super) capabilities: Vec<&'static str>,
    /// The facts that it asks to publish.
    pub(super) facts: Vec<String>,
    /// The hooks of rule scripts that it asks to ask.
    pub(super) rules: Vec<String>,
    /// The paths below which it asks to answer HTTP requests.
    pub(super) http: Vec<String>,
    /// The ports that it asks to connect to.
    pub(super) sockets: Vec<String>,
    /// Interfaces, as the component names them.
    pub(super) imports: Vec<String>,
    pub(super) exports: Vec<String>,
    pub(super) protocols: Vec<String>,
    pub(super) limits: Vec<(&'static str, u64)>,
    pub(super) mode: &'static str,
    pub(super) poison: &'static str,
    pub(super) commands: Vec<PluginCommand>,
    /// Why it will not load, whatever is granted.
    pub(super) problems: Vec<String>,
}

pub(super) fn run(output: &mut Output, folder: &Path) -> Result<(), CliError> {
    let inspection = inspect(folder)?;
    output.report(&inspection, |style| text(&inspection, style))
}

impl Inspection {
    /// What it asks for, as config.toml grants it.
    pub(super) fn asked(&self) -> Vec<(&'static str, Value)> {
        let flags = self.capabilities.iter();
        let flags = flags.map(|name| (*name, Value::Boolean(true)));
        let words = [
            ("facts", &self.facts),
            ("rules", &self.rules),
            ("http", &self.http),
            ("sockets", &self.sockets),
        ];
        let words = words.into_iter().filter(|(_, words)| !words.is_empty());
        let words = words.map(|(name, words)| (name, Value::from(words.clone())));
        flags.chain(words).collect()
    }
}

/// Reads a plugin's files.
pub(super) fn inspect(folder: &Path) -> Result<Inspection, CliError> {
    let path = folder.join(MANIFEST);
    let manifest = read(&path, MAX_MANIFEST_BYTES as u64)?;
    let manifest = Manifest::parse(&String::from_utf8_lossy(&manifest))
        .map_err(|error| file_error(&path, error.to_string()))?;
    let wasm = folder.join(&manifest.plugin.wasm);
    let component = read(&wasm, MAX_WASM_BYTES)?;
    let (imports, exports) = interfaces(&component)
        .map_err(|why| file_error(&wasm, format!("this is no WebAssembly component: {why}")))?;
    Ok(Inspection {
        plugin: manifest.plugin.name,
        version: manifest.plugin.version,
        about: manifest.plugin.about,
        sha256: HEXLOWER.encode(digest(&SHA256, &component).as_ref()),
        bytes: component.len() as u64,
        schema: manifest.state.schema,
        problems: problems(&imports, &manifest.capabilities),
        capabilities: manifest.capabilities.names().collect(),
        facts: manifest.capabilities.facts.into_iter().collect(),
        rules: manifest.capabilities.rules.into_iter().collect(),
        http: manifest.capabilities.http.into_iter().collect(),
        sockets: manifest.capabilities.sockets.into_iter().collect(),
        imports,
        exports,
        protocols: manifest.messages.protocols.into_iter().collect(),
        limits: limits(&manifest.limits),
        mode: match manifest.instance.mode {
            Mode::Warm => "warm",
            Mode::Fresh => "fresh",
        },
        poison: match manifest.instance.poison {
            Poison::Skip => "skip",
            Poison::Halt => "halt",
        },
        commands: manifest.commands,
        wasm,
    })
}

/// For people.
pub(super) fn text(inspection: &Inspection, style: Style) -> String {
    let list = |names: &[String]| match names {
        [] => "nothing".to_owned(),
        names => names.join(", "),
    };
    let own = |names: &[String]| {
        let own = names.iter().filter_map(|name| own_interface(name));
        list(&own.map(str::to_owned).collect::<Vec<_>>())
    };
    let limits = inspection.limits.iter();
    let limits: Vec<_> = limits.map(|(key, most)| format!("{key} {most}")).collect();
    let name = format!(
        "{} {}: {}",
        inspection.plugin, inspection.version, inspection.about
    );
    let commands = inspection.commands.iter();
    let commands = commands.map(|command| {
        let about = format::clean(&command.about);
        format!("  {}: {about}\n", command.name)
    });
    let commands: String = commands.collect();
    let problems = inspection.problems.iter().map(|problem| {
        let problem = style.paint(Tone::Bad, &format::clean(problem));
        format!("{problem}\n")
    });
    [
        field(style, "plugin", &name),
        field(style, "component", &inspection.wasm.display().to_string()),
        field(style, "size", &format::bytes(inspection.bytes)),
        field(style, "sha256", &inspection.sha256),
        field(style, "asks for", &grants_text(&inspection.asked())),
        field(style, "imports", &own(&inspection.imports)),
        field(style, "handles", &own(&inspection.exports)),
        field(style, "protocols", &list(&inspection.protocols)),
        field(style, "schema", &inspection.schema.to_string()),
        field(style, "memory", inspection.mode),
        field(style, "poison", inspection.poison),
        field(style, "limits", &limits.join(", ")),
        field(
            style,
            "commands",
            if commands.is_empty() { "none" } else { "" },
        ),
        commands,
        problems.collect(),
    ]
    .concat()
}

/// Grants for people: `state, facts ["credit"]`.
pub(super) fn grants_text(grants: &[(&'static str, Value)]) -> String {
    let shown = grants.iter().map(|(name, value)| match value.as_array() {
        Some(_) => format!("{name} {value}"),
        None => (*name).to_owned(),
    });
    match grants {
        [] => "nothing".to_owned(),
        _ => shown.collect::<Vec<_>>().join(", "),
    }
}

/// What the component imports and exports: the interfaces' names. One of which it takes nothing but words
/// for types gives it nothing, and is no import here, as for the daemon.
fn interfaces(component: &[u8]) -> Result<(Vec<String>, Vec<String>), String> {
    let (mut imports, mut exports, mut depth) = (Vec::new(), Vec::new(), 0_usize);
    // By the index of each type: whether it is of an instance that has nothing but types.
    let mut types = Vec::new();
    for payload in Parser::new(0).parse_all(component) {
        let payload = payload.map_err(|error| error.to_string())?;
        let nests = matches!(
            payload,
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. }
        );
        if nests {
            depth += 1;
        } else if matches!(payload, Payload::End(_)) {
            depth = depth.saturating_sub(1);
        } else if depth > 0 {
            continue;
        } else if let Payload::Version { encoding, .. } = payload {
            if encoding != Encoding::Component {
                return Err("a module, which `wasm-tools component new` makes one of".to_owned());
            }
        } else if let Payload::ComponentImportSection(section) = payload {
            for import in section {
                let import = import.map_err(|error| error.to_string())?;
                let is_words = |of: u32| types.get(of as usize).copied().unwrap_or(false);
                match import.ty {
                    ComponentTypeRef::Instance(of) if is_words(of) => {}
                    ComponentTypeRef::Type(_) => types.push(false),
                    ComponentTypeRef::Instance(_)
                    | ComponentTypeRef::Module(_)
                    | ComponentTypeRef::Func(_)
                    | ComponentTypeRef::Value(_)
                    | ComponentTypeRef::Component(_) => {
                        imports.push(import.name.name.to_owned());
                    }
                }
            }
        } else if let Payload::ComponentTypeSection(section) = payload {
            for of in section {
                types.push(has_types_alone(&of.map_err(|error| error.to_string())?));
            }
        } else if let Payload::ComponentAliasSection(section) = payload {
            for alias in section {
                if is_type(&alias.map_err(|error| error.to_string())?) {
                    types.push(false);
                }
            }
        } else if let Payload::ComponentExportSection(section) = payload {
            for export in section {
                let export = export.map_err(|error| error.to_string())?;
                exports.push(export.name.name.to_owned());
                if export.kind == ComponentExternalKind::Type {
                    types.push(false);
                }
            }
        }
    }
    Ok((imports, exports))
}

fn has_types_alone(of: &ComponentType<'_>) -> bool {
    let ComponentType::Instance(parts) = of else {
        return false;
    };
    let is_other = |part: &InstanceTypeDeclaration<'_>| match part {
        InstanceTypeDeclaration::Export { ty, .. } => !matches!(ty, ComponentTypeRef::Type(_)),
        InstanceTypeDeclaration::CoreType(_)
        | InstanceTypeDeclaration::Type(_)
        | InstanceTypeDeclaration::Alias(_) => false,
    };
    !parts.iter().any(is_other)
}

fn is_type(alias: &ComponentAlias<'_>) -> bool {
    match alias {
        ComponentAlias::InstanceExport { kind, .. } => *kind == ComponentExternalKind::Type,
        ComponentAlias::Outer { kind, .. } => *kind == ComponentOuterAliasKind::Type,
        ComponentAlias::CoreInstanceExport { .. } => false,
    }
}

fn own_interface(name: &str) -> Option<&str> {
    let (interface, _) = name.strip_prefix(ABI)?.split_once('@')?;
    Some(interface)
}

/// Imports that the manifest does not ask for.
fn problems(imports: &[String], capabilities: &Capabilities) -> Vec<String> {
    let own = imports.iter().filter_map(|name| own_interface(name));
    let unasked = own.filter_map(|interface| {
        let (capability, is_asked_for) = capabilities.for_interface(interface)?;
        let problem = format!(
            "it imports `{interface}`, and [capabilities] of its plugin.toml does not ask for \
             `{capability}`: it does not load"
        );
        (!is_asked_for).then_some(problem)
    });
    unasked.collect()
}

/// Each of them, which the compiler sees to.
fn limits(limits: &Limits) -> Vec<(&'static str, u64)> {
    let Limits {
        memory_mib,
        event_ms,
        write_kib,
        pace_kib,
        state_mib,
        user_state_mib,
        scratch_mib,
        timers,
        log_kib,
        log_kib_per_second,
        waiting,
        requests,
        operations,
        messages,
        messages_per_second,
        message_kib_per_second,
        outbox_mib,
        channels,
        facts,
        keys,
        secrets,
        blob_mib,
        user_blob_mib,
        one_blob_mib,
        blob_fetches,
        http,
        sockets,
    } = *limits;
    vec![
        ("memory_mib", memory_mib),
        ("event_ms", event_ms),
        ("write_kib", write_kib),
        ("pace_kib", pace_kib.into()),
        ("state_mib", state_mib),
        ("user_state_mib", user_state_mib),
        ("scratch_mib", scratch_mib),
        ("timers", timers.into()),
        ("log_kib", log_kib),
        ("log_kib_per_second", log_kib_per_second.into()),
        ("waiting", waiting.into()),
        ("requests", requests.into()),
        ("operations", operations.into()),
        ("messages", messages.into()),
        ("messages_per_second", messages_per_second.into()),
        ("message_kib_per_second", message_kib_per_second.into()),
        ("outbox_mib", outbox_mib),
        ("channels", channels.into()),
        ("facts", facts.into()),
        ("keys", keys.into()),
        ("secrets", secrets.into()),
        ("blob_mib", blob_mib),
        ("user_blob_mib", user_blob_mib),
        ("one_blob_mib", one_blob_mib),
        ("blob_fetches", blob_fetches.into()),
        ("http", http.into()),
        ("sockets", sockets.into()),
    ]
}

fn read(path: &Path, most: u64) -> Result<Vec<u8>, CliError> {
    let read = fs::metadata(path).and_then(|about| match about.len() {
        length if length <= most => fs::read(path),
        _ => Err(io::Error::other(format!("larger than {most} bytes"))),
    });
    read.map_err(|source| CliError::ReadFile {
        path: path.to_owned(),
        source,
    })
}

fn file_error(path: &Path, message: String) -> CliError {
    CliError::File {
        path: path.to_owned(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_limits_are_shown_as_the_table_for_authors_has_them() {
        let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../../sdk/README.md");
        let readme = fs::read_to_string(readme).unwrap();
        let rows = readme.lines().filter_map(|line| {
            let (name, rest) = line.strip_prefix("| `limits.")?.split_once('`')?;
            let (_, default) = rest.strip_suffix(" |")?.rsplit_once("| ")?;
            let default = default.replace(',', "").parse::<u64>().ok()?;
            Some((name.to_owned(), default))
        });
        let shown = limits(&Limits::default()).into_iter();
        let shown = shown.map(|(name, most)| (name.to_owned(), most));
        let shown: Vec<(String, u64)> = shown.collect();
        assert_eq!(shown, rows.collect::<Vec<_>>());
    }
}
