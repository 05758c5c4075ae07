//! From files to a policy: read, compile, check, run the scripts' own tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use thiserror::Error;
use wormholes_proto::control::{ScriptDiagnostic, ScriptText};
use wormholes_rules::{
    Diagnostic, LoadEnv, Policy, RuleState, ScriptSource, SetError, SetRegistry, Surroundings,
    cases_path, run_tests,
};

use crate::config::{Config, PluginConfig, RulesConfig};

/// A script is read by people; a larger file is none.
const MAX_SCRIPT_BYTES: u64 = 1 << 20;
/// The largest public block lists have some 100 MiB.
const MAX_SET_BYTES: u64 = 256 << 20;

/// Rules that were not loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file changed while it was read.
    #[error("the files change while they are read; load them when they are written")]
    Unsteady,
    /// A file cannot be read.
    #[error("cannot read {}: {cause}", .path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file is too large.
    #[error("{} is too large for a script or a set", .path.display())]
    Size {
        /// Which one.
        path: PathBuf,
    },
    /// A file that config.toml names.
    #[error("`{key}` in [rules], line {line} of the config: {error}")]
    Named {
        /// `scripts`, or `sets.NAME`.
        key: String,
        /// Where it is named.
        line: usize,
        /// What is wrong with the file.
        error: Box<LoadError>,
    },
    /// A set holds what no set can hold.
    #[error(transparent)]
    Set(#[from] SetError),
    /// Scripts are wrong, or fail their own tests.
    #[error("{}", list(.0))]
    Scripts(Vec<Diagnostic>),
}

/// Which scripts a load takes; all else of the rules is as config.toml says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scripts {
    /// Those that config.toml names.
    OfConfig,
    /// Those that a command gave, while they are in force; else those of config.toml.
    InForce,
    /// These, until the next load with [`Self::OfConfig`], or the next start. They come as texts: a
    /// daemon that read what a command names would read for its caller what is not the caller's.
    Given(Vec<ScriptText>),
}

/// What plugins have to do with rules, as config.toml grants it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Granted {
    /// Facts that they may publish.
    facts: Arc<BTreeSet<String>>,
    /// Hooks that they may ask.
    hooks: BTreeSet<String>,
    /// Whether one is told what scripts bill.
    usage: bool,
}

impl Granted {
    pub(crate) fn to(plugins: &[PluginConfig]) -> Self {
        let grants = || plugins.iter().map(|plugin| &plugin.grants);
        let facts: BTreeSet<_> = grants().flat_map(|it| &it.facts).cloned().collect();
        Self {
            facts: Arc::new(facts),
            hooks: grants().flat_map(|it| &it.rules).cloned().collect(),
            usage: grants().any(|it| it.usage),
        }
    }
}

/// The files of one load, as they were read.
#[derive(Debug, PartialEq)]
pub(super) struct Sources {
    /// See [`Scripts::Given`].
    pub(super) by_command: bool,
    scripts: Vec<ScriptSource>,
    /// The tests of each script, when it has some.
    cases: Vec<Option<ScriptSource>>,
    sets: Sets,
}

type Sets = BTreeMap<String, SetFile>;

/// A set's file; its text is not kept, which may be large.
#[derive(Debug, PartialEq)]
struct SetFile {
    path: PathBuf,
    digest: [u8; 32],
}

impl LoadError {
    /// Each fault with its place, for people and for the control socket.
    pub fn diagnostics(&self) -> Vec<ScriptDiagnostic> {
        let whole = |script: String| {
            vec![ScriptDiagnostic {
                script,
                line: 0,
                column: 0,
                message: self.to_string(),
            }]
        };
        match self {
            Self::Scripts(faults) => faults.iter().map(ScriptDiagnostic::from).collect(),
            Self::Named { error, .. } => whole(error.file()),
            Self::Unsteady | Self::Read { .. } | Self::Size { .. } | Self::Set(_) => {
                whole(self.file())
            }
        }
    }

    /// The file that cannot be read; empty when it is named elsewhere.
    fn file(&self) -> String {
        match self {
            Self::Read { path, .. } | Self::Size { path } => path.display().to_string(),
            Self::Named { error, .. } => error.file(),
            Self::Unsteady | Self::Set(_) | Self::Scripts(_) => String::new(),
        }
    }

    /// This error, with the place of the config that names the file.
    fn named(self, key: impl Into<String>, line: Option<&usize>) -> Self {
        match line {
            Some(line) => Self::Named {
                key: key.into(),
                line: *line,
                error: Box::new(self),
            },
            None => self,
        }
    }
}

impl Sources {
    /// Reads all files of `config`.
    pub(super) fn read(config: &RulesConfig) -> Result<Self, LoadError> {
        let scripts = config.scripts.iter().enumerate().map(|(index, path)| {
            let line = config.lines.scripts.get(index);
            script(path).map_err(|error| error.named("scripts", line))
        });
        let cases = config.scripts.iter().map(|path| {
            let path = cases_path(path);
            path.exists().then(|| script(&path)).transpose()
        });
        Ok(Self {
            by_command: false,
            scripts: scripts.collect::<Result<_, LoadError>>()?,
            cases: cases.collect::<Result<_, LoadError>>()?,
            sets: sets(config)?,
        })
    }

    /// Takes the scripts from their texts, and the sets from the files of `config`.
    fn given(config: &RulesConfig, scripts: Vec<ScriptText>) -> Result<Self, LoadError> {
        let pairs = scripts.into_iter().map(|script| {
            let cases = script
                .cases
                .map(|text| ScriptSource::of_file(&cases_path(&script.path), text));
            (ScriptSource::of_file(&script.path, script.text), cases)
        });
        let (scripts, cases) = pairs.unzip();
        Ok(Self {
            by_command: true,
            scripts,
            cases,
            sets: sets(config)?,
        })
    }

    /// The same scripts, with the sets read anew.
    pub(super) fn again(&self, config: &RulesConfig) -> Result<Self, LoadError> {
        Ok(Self {
            by_command: self.by_command,
            scripts: self.scripts.clone(),
            cases: self.cases.clone(),
            sets: sets(config)?,
        })
    }

    pub(super) fn script_names(&self) -> Vec<String> {
        let scripts = self.scripts.iter();
        scripts.map(|script| script.name.clone()).collect()
    }

    /// What the scripts' own tests found wrong.
    fn failed_cases(&self) -> Vec<Diagnostic> {
        let pairs = self.scripts.iter().zip(&self.cases);
        let reports = pairs.filter_map(|(script, cases)| {
            let cases = cases.as_ref()?;
            Some(run_tests(script, cases))
        });
        let failures = reports.flat_map(|report| {
            let cases = report.cases.into_iter();
            let failures = cases.filter_map(|case| case.failure);
            failures.chain(report.faults).collect::<Vec<_>>()
        });
        failures.collect()
    }
}

/// Reads what `config` and `scripts` mean beside the rules `before`. The config that comes with it
/// names the scripts that were taken.
pub(super) fn gather(
    config: &RulesConfig,
    scripts: Scripts,
    before: (&RulesConfig, &Sources),
) -> Result<(RulesConfig, Sources), LoadError> {
    let mut config = config.clone();
    let sources = match scripts {
        Scripts::Given(given) => {
            config.scripts = given.iter().map(|script| script.path.clone()).collect();
            Sources::given(&config, given)?
        }
        Scripts::InForce if before.1.by_command => {
            config.scripts.clone_from(&before.0.scripts);
            before.1.again(&config)?
        }
        Scripts::InForce | Scripts::OfConfig => Sources::read(&config)?,
    };
    Ok((config, sources))
}

/// Reads, compiles and checks the rules of a config that no node runs; gives what is odd in them, but
/// no error.
///
/// # Errors
/// [`LoadError`] with every fault.
pub fn check(config: &Config) -> Result<Vec<Diagnostic>, LoadError> {
    let sources = Sources::read(&config.rules)?;
    let peers = config.peers.iter();
    let known_peers = peers.flat_map(|peer| [peer.name.clone(), peer.id.to_string()]);
    let (known_peers, granted) = (known_peers.collect(), Granted::to(&config.plugins));
    let lacking = config.lacking_tunnels();
    let state = Arc::default();
    let policy = compile(&sources, &state, known_peers, (&granted, &lacking), false)?;
    Ok(policy.warnings().to_vec())
}

/// See [`LoadEnv::lacking`].
pub(crate) type Lacking = BTreeMap<&'static str, &'static str>;

/// Compiles and checks `sources`, and runs their tests.
pub(super) fn compile(
    sources: &Sources,
    state: &Arc<RuleState>,
    known_peers: Vec<String>,
    (granted, lacking): (&Granted, &Lacking),
    records: bool,
) -> Result<Policy, LoadError> {
    let mut sets = SetRegistry::default();
    for (name, file) in &sources.sets {
        let text = read(&file.path, MAX_SET_BYTES)?;
        sets.load(name, &file.path.display().to_string(), &text)?;
    }
    let env = LoadEnv {
        surroundings: Surroundings {
            sets: Arc::new(sets),
            state: Arc::clone(state),
            facts: Arc::clone(&granted.facts),
        },
        known_peers: Some(known_peers.into_iter().collect()),
        records,
        asked_hooks: granted.hooks.clone(),
        is_billed: granted.usage,
        lacking: lacking.clone(),
    };
    let policy = Policy::load(&sources.scripts, &env).map_err(LoadError::Scripts)?;
    let failures = sources.failed_cases();
    if failures.is_empty() {
        Ok(policy)
    } else {
        Err(LoadError::Scripts(failures))
    }
}

fn sets(config: &RulesConfig) -> Result<Sets, LoadError> {
    let sets = config.sets.iter().map(|(name, path)| {
        let named = |error: LoadError| {
            let line = config.lines.sets.get(name);
            error.named(format!("sets.{name}"), line)
        };
        let digest = digest(&read(path, MAX_SET_BYTES).map_err(named)?);
        let path = path.clone();
        Ok((name.clone(), SetFile { path, digest }))
    });
    sets.collect()
}

fn script(path: &Path) -> Result<ScriptSource, LoadError> {
    let text = read(path, MAX_SCRIPT_BYTES)?;
    Ok(ScriptSource::of_file(path, text))
}

fn read(path: &Path, max_bytes: u64) -> Result<String, LoadError> {
    let unreadable = |cause| LoadError::Read {
        path: path.to_owned(),
        cause,
    };
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        // A pipe that nobody writes to would hold all loads up.
        return Err(unreadable(io::Error::other("it is no regular file")));
    }
    if metadata.len() > max_bytes {
        return Err(LoadError::Size {
            path: path.to_owned(),
        });
    }
    fs::read_to_string(path).map_err(unreadable)
}

fn digest(text: &str) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let mut bytes = [0; 32];
    for (to, from) in bytes.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    bytes
}

fn list(faults: &[Diagnostic]) -> String {
    let lines = faults.iter().map(ToString::to_string);
    lines.collect::<Vec<_>>().join("\n")
}
