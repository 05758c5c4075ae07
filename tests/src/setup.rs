//! What a daemon will be: its identity, config, scripts and surroundings, before it starts.

use std::{
    fmt::Write as _,
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use tempfile::TempDir;
use wormholes_host::Manifest;
use wormholes_proto::NodeId;

use crate::{binaries, daemon::Daemon, identity::Identity, workspace};

/// A daemon to be started.
#[derive(Debug)]
pub struct Setup {
    pub(crate) name: String,
    pub(crate) folder: TempDir,
    pub(crate) id: NodeId,
    pub(crate) namespace: Option<String>,
    pub(crate) names: Vec<(String, IpAddr)>,
    pub(crate) name_server: Option<IpAddr>,
    pub(crate) clock: Option<String>,
    listen: Vec<String>,
    node: String,
    sections: String,
    scripts: Vec<String>,
}

impl Setup {
    /// A node that knows nobody, listens nowhere and has a new identity in a new folder.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        Self::with_identity(name, &Identity::generate()?)
    }

    /// As [`Self::new`], with an identity that others know already.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn with_identity(name: &str, identity: &Identity) -> Result<Self> {
        let folder = TempDir::with_prefix(format!("wormholes-{name}-"))
            .context("cannot make a folder for a node")?;
        identity.write(&folder.path().join("data"))?;
        Ok(Self {
            name: name.to_owned(),
            folder,
            id: identity.id(),
            namespace: None,
            names: Vec::new(),
            name_server: None,
            clock: None,
            listen: Vec::new(),
            node: String::new(),
            sections: String::new(),
            scripts: Vec::new(),
        })
    }

    /// Who it will be.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Its folder: config.toml, scripts, and `data`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where peers reach it: `127.1.0.1:0` takes any port.
    #[must_use]
    pub fn listen(mut self, address: &str) -> Self {
        self.listen.push(address.to_owned());
        self
    }

    /// More keys of `[node]`.
    #[must_use]
    pub fn node(mut self, keys: &str) -> Self {
        let _infallible = writeln!(self.node, "{keys}");
        self
    }

    /// More sections of config.toml.
    #[must_use]
    pub fn config(mut self, sections: &str) -> Self {
        let _infallible = writeln!(self.sections, "{sections}");
        self
    }

    /// A SOCKS5 and an HTTP entrance on loopback, any ports.
    #[must_use]
    pub fn entrances(self) -> Self {
        self.config(
            "[[entrance]]\nkind = \"socks5\"\nlisten = \"127.0.0.1:0\"\n\
             [[entrance]]\nkind = \"http\"\nlisten = \"127.0.0.1:0\"",
        )
    }

    /// A running node as a peer, with its address.
    #[must_use]
    pub fn peer(self, peer: &Daemon, trust: u8) -> Self {
        let addresses = peer.listen().map(|address| format!("\"{address}\""));
        let addresses = addresses.unwrap_or_default();
        self.config(&format!(
            "[[peer]]\nname = {:?}\nid = \"{}\"\naddresses = [{addresses}]\ntrust = {trust}",
            peer.name(),
            peer.id(),
        ))
    }

    /// A node as a peer by its id alone, with more keys: `via = ["relay"]`.
    #[must_use]
    pub fn peer_id(self, name: &str, id: NodeId, trust: u8, more: &str) -> Self {
        self.config(&format!(
            "[[peer]]\nname = {name:?}\nid = \"{id}\"\ntrust = {trust}\n{more}"
        ))
    }

    /// A service at a local address.
    #[must_use]
    pub fn service(self, name: &str, target: std::net::SocketAddr) -> Self {
        self.config(&format!(
            "[[service]]\nname = {name:?}\ntarget = \"{target}\""
        ))
    }

    /// A rule script, loaded after those given before.
    ///
    /// # Panics
    /// Never; a script that cannot be written fails the start.
    #[must_use]
    pub fn script(mut self, name: &str, text: &str) -> Self {
        // A failure shows when the daemon does not find the file.
        let _seen_at_start = fs::write(self.folder.path().join(name), text);
        self.scripts.push(name.to_owned());
        self
    }

    /// A plugin of this workspace, by the folder that its manifest is in (`plugins/echo`), with all
    /// that the manifest asks for granted. The instance has the folder's name.
    ///
    /// # Errors
    /// When it cannot be built or copied.
    pub fn plugin(self, folder: &str) -> Result<Self> {
        self.plugin_with(folder, &[])
    }

    /// The same with other words in its manifest: `("tcp:6667", "tcp:43211")`.
    ///
    /// # Errors
    /// As of [`Self::plugin`].
    pub fn plugin_with(self, folder: &str, words: &[(&str, &str)]) -> Result<Self> {
        let from = workspace::root().join(folder);
        let name = from.file_name().and_then(|name| name.to_str());
        let name = name.context("a plugin has a folder")?;
        let file = format!("wormholes_{name}.wasm");
        let to = self.folder().join(name);
        fs::create_dir_all(&to)?;
        fs::copy(
            binaries::component(&format!("wormholes_{name}"))?,
            to.join(&file),
        )?;
        let mut manifest = fs::read_to_string(from.join("plugin.toml"))?;
        for (before, after) in words {
            manifest = manifest.replace(before, after);
        }
        fs::write(to.join("plugin.toml"), &manifest)?;
        let asked = Manifest::parse(&manifest)?.capabilities;
        let mut grants = "state = true, scratch = true, timers = true, messages = true".to_owned();
        for (name, words) in asked.words() {
            if !words.is_empty() {
                let words: Vec<_> = words.iter().collect();
                grants += &format!(", {name} = {words:?}");
            }
        }
        let flags = [
            ("users", asked.users),
            ("keys", asked.keys),
            ("secret", asked.secret),
            ("blobs", asked.blobs),
            ("presence", asked.presence),
            ("usage", asked.usage),
            ("fetch", asked.fetch),
        ];
        for (name, is_asked) in flags {
            if is_asked {
                grants += &format!(", {name} = true");
            }
        }
        Ok(self.config(&format!(
            "[plugin.{name}]\nwasm = \"{name}/{file}\"\ngrants = {{ {grants} }}",
        )))
    }

    /// Runs it in a network namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &crate::Namespace) -> Self {
        self.namespace = Some(namespace.name().to_owned());
        self
    }

    /// Lets it resolve a name as /etc/hosts would.
    #[must_use]
    pub fn name(mut self, name: &str, address: IpAddr) -> Self {
        self.names.push((name.to_owned(), address));
        self
    }

    /// Has it ask this name server.
    #[must_use]
    pub fn name_server(mut self, address: IpAddr) -> Self {
        self.name_server = Some(address);
        self
    }

    /// Has it tell another time than this machine: `+2h`, `-2h`.
    #[must_use]
    pub fn clock(mut self, offset: &str) -> Self {
        self.clock = Some(offset.to_owned());
        self
    }

    /// Writes config.toml and starts the daemon; returns when it answers.
    ///
    /// # Errors
    /// When it does not; its log is in the text.
    pub async fn start(self) -> Result<Daemon> {
        self.write_config()?;
        Daemon::start(self).await
    }

    /// Writes config.toml and returns its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_config(&self) -> Result<PathBuf> {
        let path = self.folder.path().join("config.toml");
        let text = self.config_text();
        if text.contains("[plugin.") {
            binaries::share_compiled(&self.folder.path().join("data/plugins"))?;
        }
        fs::write(&path, text).context("cannot write config.toml")?;
        // With secrets in it no other mode is taken.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    }

    /// How many entrances it will have, and whether it will show metrics.
    pub(crate) fn listeners(&self) -> (usize, bool) {
        let n_entrances = self.sections.matches("[[entrance]]").count();
        (n_entrances, self.sections.contains("[metrics]"))
    }

    pub(crate) fn relisten(&mut self, address: std::net::SocketAddr) {
        self.listen = vec![address.to_string()];
    }

    fn config_text(&self) -> String {
        let rules = if self.sections.contains("[rules]") {
            String::new()
        } else {
            format!(
                "[rules]\nscripts = {:?}\nrecord_decisions = 1000\n",
                self.scripts
            )
        };
        let log = if self.sections.contains("[log]") {
            ""
        } else {
            "[log]\nlevel = \"info,wormholed=debug,wormholes=debug\"\nmask = false\n"
        };
        format!(
            "[node]\nname = {:?}\ndata_dir = \"data\"\nlisten = {:?}\n{}\n{rules}\n{log}\n{}",
            self.name, self.listen, self.node, self.sections
        )
    }
}
