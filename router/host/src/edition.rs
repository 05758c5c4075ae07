//! A version of a plugin that runs, or is about to: its manifest, its code, and what config.toml says
//! of the instance.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use crate::{
    guest::{Around, Cache, Code, Engine, Plugin},
    host::LoadError,
    lines::PluginLines,
    memory::Version,
    source::Source,
};
use wormholes_proto::manifest::{Capabilities, Manifest};

/// Names a version by its files.
pub(crate) type Digest = [u8; 32];

/// A version of a plugin, for one instance.
pub(crate) struct Edition {
    pub(crate) manifest: Arc<Manifest>,
    /// The same as it was written.
    pub(crate) text: Arc<str>,
    pub(crate) code: Code,
    /// Those that it speaks.
    pub(crate) protocols: Arc<BTreeSet<String>>,
    /// Of its files.
    pub(crate) digest: Digest,
}

/// What config.toml says of an instance.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// What it may do, if its manifest asks for the same.
    pub grants: Capabilities,
    /// What it reads by `system.config`: values as JSON.
    pub config: BTreeMap<String, String>,
    /// Whether it takes messages of whoever calls; default: of peers alone.
    pub strangers: bool,
    /// What the component's SHA-256 must be; default: any.
    pub sha256: Option<[u8; 32]>,
}

/// Where a version is compiled.
pub(crate) struct Workshop<'a> {
    pub(crate) engine: Arc<Engine>,
    pub(crate) cache: Option<&'a Cache>,
    pub(crate) around: Around,
    /// Where its instances say something.
    pub(crate) lines: Arc<PluginLines>,
    /// How many times `limits.event_ms` an event may run: more than once where it ran elsewhere
    /// before.
    pub(crate) patience: u64,
}

impl Edition {
    /// Reads a plugin's manifest, compiles its component and checks what it imports. Takes seconds for
    /// components of many megabytes.
    pub(crate) fn compile(
        workshop: Workshop<'_>,
        name: &str,
        source: &Source,
        terms: Terms,
    ) -> Result<Self, LoadError> {
        let manifest = Manifest::parse(&source.manifest).map_err(|error| LoadError::Manifest {
            path: source.path.clone(),
            error,
        })?;
        let mut limits = manifest.limits.clone();
        limits.event_ms = limits.event_ms.saturating_mul(workshop.patience);
        let plugin = Arc::new(Plugin {
            name: name.into(),
            around: workshop.around,
            granted: Arc::new(manifest.capabilities.both(&terms.grants)),
            config: terms.config,
            strangers: terms.strangers,
            limits: Arc::new(limits),
            lines: workshop.lines,
        });
        let code = Code::compile(workshop.engine, workshop.cache, plugin, source)?;
        Ok(Self {
            protocols: Arc::new(manifest.messages.protocols.clone()),
            manifest: Arc::new(manifest),
            text: source.manifest.as_str().into(),
            code,
            digest: source.digest(),
        })
    }

    pub(crate) fn plugin(&self) -> &Arc<Plugin> {
        self.code.plugin()
    }

    /// What rows remember of it.
    pub(crate) fn version(&self) -> Version {
        let code = self.code.sha256();
        Version {
            schema: self.manifest.state.schema,
            code: code.first_chunk().copied().unwrap_or_default(),
        }
    }
}

impl fmt::Debug for Edition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("Edition");
        f.field("version", &self.version()).finish_non_exhaustive()
    }
}
