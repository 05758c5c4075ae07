//! `[plugin.NAME]`: which plugins run here, under which names, and what they may do.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use serde_json::Value;
use toml::de::DeValue;
use wormholes_host::{Capabilities, is_name};
use wormholes_proto::control::RESERVED_INSTANCES;
use wormholes_rules::{check_asked_hook, check_fact};

use super::read::{Document, Table};

/// Where plugins listen that are not told where.
const LISTEN: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// What stands for the instance's name in paths.
const OWN_PATH: &str = "/INSTANCE";

/// `[plugin.NAME]`
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConfig {
    /// The instance's name: what commands are given to, and what its state goes by.
    pub name: String,
    /// The component; its manifest, `plugin.toml`, is beside it.
    pub wasm: PathBuf,
    /// What the component's SHA-256 must be; none: any.
    pub sha256: Option<[u8; 32]>,
    /// What it may do, if its manifest asks for the same.
    pub grants: Capabilities,
    /// What it reads, as JSON.
    pub config: BTreeMap<String, String>,
    /// Whether it takes messages of whoever calls; default: of peers alone.
    pub strangers: bool,
    /// Where the ports are that it listens at; default: loopback.
    pub listen: IpAddr,
}

/// All instances; problems are left in the document.
pub(super) fn plugins<'a>(
    document: &'a Document<'a>,
    root: &'a toml::de::DeTable<'a>,
    folder: &Path,
) -> Vec<PluginConfig> {
    let tables = document.named_sections(root, "plugin");
    let mut taken = Taken::default();
    let plugin = |(name, table): (&str, Table<'a>)| {
        if !is_name(name) {
            let rule = "must be a small letter, then small letters, digits and `-`; at most 32";
            table.problem("wasm", format!("the name {name:?} {rule}"));
        }
        if RESERVED_INSTANCES.contains(&name) {
            let taken = format!("the name {name:?} is taken: `wormholes {name}` is a command");
            table.problem("wasm", taken);
        }
        let grants = table.value("grants", grants).unwrap_or_default();
        check_grants(name, &table, &grants, &mut taken);
        let wasm = table.required("wasm", |text| super::sections::path(folder, text))?;
        Some(PluginConfig {
            name: name.to_owned(),
            wasm,
            sha256: table.parsed("sha256", sha256),
            grants,
            config: table.value("config", values).unwrap_or_default(),
            strangers: table.boolean("strangers").unwrap_or(false),
            listen: table
                .parsed("listen", str::parse::<IpAddr>)
                .unwrap_or(LISTEN),
        })
    };
    tables.into_iter().filter_map(plugin).collect()
}

/// What one instance alone is granted, and which.
#[derive(Default)]
struct Taken {
    facts: BTreeMap<String, String>,
    paths: BTreeMap<String, String>,
}

/// The paths below which an instance answers HTTP requests by these grants.
pub(crate) fn http_paths(instance: &str, grants: &Capabilities) -> Vec<String> {
    let paths = grants.http.iter();
    paths
        .map(|path| match path.strip_prefix(OWN_PATH) {
            Some(below) if below.is_empty() || below.starts_with('/') => {
                format!("/{instance}{below}")
            }
            _ => path.clone(),
        })
        .collect()
}

/// What scripts cannot name is not granted, of each fact there is one publisher, and one answers at
/// each path.
fn check_grants(name: &str, table: &Table<'_>, grants: &Capabilities, taken: &mut Taken) {
    for path in http_paths(name, grants) {
        if let Some(other) = taken.paths.insert(path.clone(), name.to_owned()) {
            let twice =
                format!("http: `{path}` is granted to [plugin.{other}] too; let one answer there");
            table.problem("grants", twice);
        }
    }
    for fact in &grants.facts {
        if let Err(why) = check_fact(fact) {
            table.problem("grants", format!("facts: {why}"));
        }
        if let Some(other) = taken.facts.insert(fact.clone(), name.to_owned()) {
            let twice =
                format!("facts: `{fact}` is granted to [plugin.{other}] too; let one publish it");
            table.problem("grants", twice);
        }
    }
    for hook in &grants.rules {
        if let Err(why) = check_asked_hook(hook) {
            table.problem("grants", format!("rules: {why}"));
        }
    }
}

fn sha256(text: &str) -> Result<[u8; 32], &'static str> {
    let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes());
    let bytes = bytes.ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or("expected 64 hexadecimal digits, as sha256sum prints them")
}

fn grants(value: &DeValue<'_>) -> Result<Capabilities, String> {
    serde_json::from_value(json(value)).map_err(|error| error.to_string())
}

fn values(value: &DeValue<'_>) -> Result<BTreeMap<String, String>, String> {
    let table = value.as_table().ok_or("expected { key = value, … }")?;
    let values = table.iter().map(|(key, value)| {
        let key: &str = key.get_ref();
        (key.to_owned(), json(value.get_ref()).to_string())
    });
    Ok(values.collect())
}

/// The same in JSON; a date is a text.
fn json(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(is) => Value::Bool(*is),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).map_or(Value::Null, Value::from)
        }
        DeValue::Float(number) => number.as_str().parse::<f64>().unwrap_or(f64::NAN).into(),
        DeValue::Datetime(date) => Value::String(date.to_string()),
        DeValue::Array(items) => items.iter().map(|item| json(item.get_ref())).collect(),
        DeValue::Table(table) => {
            let entry = |(key, value): (
                &toml::Spanned<toml::de::DeString<'_>>,
                &toml::Spanned<DeValue<'_>>,
            )| { (key.get_ref().to_string(), json(value.get_ref())) };
            Value::Object(table.iter().map(entry).collect())
        }
    }
}
