//! Scripts on the disk with their sets and the peers that they may name: what the daemon would
//! load, read without it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::Spanned;
use wormholes_proto::control::ScriptText;
use wormholes_rules::{
    LACKS_I2P, LACKS_TOR, LoadEnv, ScriptSource, SetRegistry, cases_path, is_cases_path, named_sets,
};

use crate::{args::ScriptFiles, error::CliError};

/// Scripts and what they stand on.
#[derive(Debug)]
pub(crate) struct RuleFiles {
    /// In the order in which they are asked, with their files.
    pub(crate) scripts: Vec<(PathBuf, ScriptSource)>,
    /// For the check.
    pub(crate) env: LoadEnv,
    /// Sets that were taken as empty.
    pub(crate) empty_sets: Vec<String>,
}

/// The part of a daemon's config that scripts stand on; the daemon checks the rest.
#[derive(Debug, Default)]
struct Config {
    scripts: Vec<PathBuf>,
    sets: BTreeMap<String, PathBuf>,
    peers: Vec<Peer>,
    grants: Vec<Grants>,
    /// Tunnels that its node does not have, as far as it tells.
    lacking: BTreeMap<&'static str, &'static str>,
    /// Where it names each of those files, for errors.
    places: BTreeMap<PathBuf, String>,
}

/// The same as it is written.
#[derive(Debug, Deserialize)]
struct Written {
    #[serde(default)]
    rules: WrittenRules,
    #[serde(default)]
    peer: Vec<Peer>,
    #[serde(default)]
    plugin: BTreeMap<String, Plugin>,
    #[serde(default)]
    tor: WrittenTor,
    #[serde(default)]
    i2p: WrittenI2p,
}

#[derive(Debug, Default, Deserialize)]
struct WrittenTor {
    #[serde(default)]
    enabled: bool,
}

#[derive(Debug, Default, Deserialize)]
struct WrittenI2p {
    sam: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct WrittenRules {
    #[serde(default)]
    scripts: Vec<Spanned<PathBuf>>,
    #[serde(default)]
    sets: BTreeMap<String, Spanned<PathBuf>>,
}

#[derive(Debug, Deserialize)]
struct Plugin {
    #[serde(default)]
    grants: Grants,
}

/// What of a plugin's grants scripts can tell.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Grants {
    facts: BTreeSet<String>,
    rules: BTreeSet<String>,
    usage: bool,
}

#[derive(Debug, Deserialize)]
struct Peer {
    name: String,
    id: String,
}

impl RuleFiles {
    /// Reads all files. Files of cases among the scripts are passed over, so that
    /// `scripts/*.rhai` can be named.
    pub(crate) fn read(args: &ScriptFiles) -> Result<Self, CliError> {
        let config = args.config.as_deref().map(read_config).transpose()?;
        let has_config = config.is_some();
        let config = config.unwrap_or_default();
        let files = if args.files.is_empty() {
            &config.scripts
        } else {
            &args.files
        };
        let files = files.iter().filter(|file| !is_cases_path(file));
        let scripts = files
            .map(|file| {
                let script = read_script(file).map_err(|error| config.placed(file, error))?;
                Ok((file.clone(), script))
            })
            .collect::<Result<Vec<_>, CliError>>()?;
        let mut sets = SetRegistry::default();
        for (name, file) in &config.sets {
            add_set(&mut sets, name, file).map_err(|error| config.placed(file, error))?;
        }
        for (name, file) in &args.sets {
            add_set(&mut sets, name, file)?;
        }
        let empty_sets = if has_config {
            Vec::new()
        } else {
            add_empty_sets(&mut sets, &scripts)
        };
        let names = config.peers.into_iter();
        let known_peers = names.flat_map(|peer| [peer.name, peer.id]).collect();
        let known_peers = has_config.then_some(known_peers);
        let mut env = LoadEnv {
            known_peers,
            is_billed: config.grants.iter().any(|grants| grants.usage),
            lacking: config.lacking,
            ..LoadEnv::default()
        };
        env.surroundings.sets = sets.into();
        let mut facts = BTreeSet::new();
        for grants in config.grants {
            facts.extend(grants.facts);
            env.asked_hooks.extend(grants.rules);
        }
        env.surroundings.facts = facts.into();
        Ok(Self {
            scripts,
            env,
            empty_sets,
        })
    }
}

/// Sets that were named with their files, and no others.
pub(crate) fn given_sets(given: &[(String, PathBuf)]) -> Result<SetRegistry, CliError> {
    let mut sets = SetRegistry::default();
    for (name, file) in given {
        add_set(&mut sets, name, file)?;
    }
    Ok(sets)
}

/// The cases beside a script; none when there is no such file.
pub(crate) fn read_cases(script: &Path) -> Result<Option<ScriptSource>, CliError> {
    let cases = cases_path(script);
    if cases.exists() {
        read_script(&cases).map(Some)
    } else {
        Ok(None)
    }
}

/// A script and its cases, to be sent to the daemon.
pub(crate) fn script_text(file: &Path) -> Result<ScriptText, CliError> {
    Ok(ScriptText {
        path: std::path::absolute(file).unwrap_or_else(|_| file.to_owned()),
        text: read(file)?,
        cases: read_cases(file)?.map(|cases| cases.text),
    })
}

impl Config {
    /// `error` of a file, with the place that names it.
    fn placed(&self, file: &Path, error: CliError) -> CliError {
        match self.places.get(file) {
            Some(place) => CliError::Failed(format!("{place}: {error}")),
            None => error,
        }
    }
}

fn read_config(path: &Path) -> Result<Config, CliError> {
    let text = read(path)?;
    let written: Written = toml::from_str(&text).map_err(|error| CliError::File {
        path: path.to_owned(),
        message: error.to_string(),
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let lacking = [
        (!written.tor.enabled, LACKS_TOR),
        (written.i2p.sam.is_none(), LACKS_I2P),
    ];
    let lacking = lacking.into_iter().filter(|(lacks, _)| *lacks);
    let mut config = Config {
        peers: written.peer,
        grants: written
            .plugin
            .into_values()
            .map(|plugin| plugin.grants)
            .collect(),
        lacking: lacking.map(|(_, tunnel)| tunnel).collect(),
        ..Config::default()
    };
    let mut named = |key: &str, file: &Spanned<PathBuf>| {
        let before = text.get(..file.span().start).unwrap_or_default();
        let line = 1 + before.matches('\n').count();
        let place = format!("{}:{line}: `{key}` in [rules]", path.display());
        let file = folder.join(file.get_ref());
        config.places.insert(file.clone(), place);
        file
    };
    let scripts = written.rules.scripts.iter();
    config.scripts = scripts.map(|file| named("scripts", file)).collect();
    let sets = written.rules.sets.iter();
    config.sets = sets
        .map(|(name, file)| (name.clone(), named(&format!("sets.{name}"), file)))
        .collect();
    Ok(config)
}

fn add_set(sets: &mut SetRegistry, name: &str, file: &Path) -> Result<(), CliError> {
    let loaded = sets.load(name, &file.display().to_string(), &read(file)?);
    loaded.map_err(|error| CliError::Failed(error.to_string()))
}

fn add_empty_sets(sets: &mut SetRegistry, scripts: &[(PathBuf, ScriptSource)]) -> Vec<String> {
    let named: BTreeSet<String> = scripts
        .iter()
        .flat_map(|(_, script)| named_sets(script))
        .collect();
    let missing = named.into_iter().filter(|name| !sets.contains(name));
    let missing: Vec<String> = missing.collect();
    for name in &missing {
        // Only too many sets can be wrong with an empty one; then the check says so.
        let _ = sets.load(name, "", "");
    }
    missing
}

fn read_script(path: &Path) -> Result<ScriptSource, CliError> {
    Ok(ScriptSource::of_file(path, read(path)?))
}

/// A file's text.
pub(crate) fn read(path: &Path) -> Result<String, CliError> {
    fs::read_to_string(path).map_err(|source| CliError::ReadFile {
        path: path.to_owned(),
        source,
    })
}
