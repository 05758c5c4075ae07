//! Peers that were added by invite. They are kept in `peers.toml` in the data folder, so that the
//! operator's config.toml is never rewritten; where both name a peer, config.toml holds.

use std::{
    collections::HashMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use wormholes_proto::{Invite, InviteRelay, NodeId};

use crate::{
    config::{PeerConfig, petname},
    private_file,
};

/// Peers that an operator adds by hand; more is a program gone wild. The next one is refused.
const MAX_ADDED: usize = 4096;
/// A peer with all its addresses takes less than 1 KiB.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// An invite says nothing of trust: who takes one by hand knows the inviter.
const DEFAULT_TRUST: u8 = 2;

/// The peers that were added, and their file.
#[derive(Debug)]
pub(crate) struct AddedPeers {
    path: PathBuf,
    /// The file's content; held while it is written.
    entries: Mutex<Vec<Entry>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    id: NodeId,
    addresses: Vec<SocketAddr>,
    trust: u8,
    /// Ids, not names: the petname of a relay may change in config.toml.
    relays: Vec<NodeId>,
    /// It is here only because another entry's invite named it as a relay.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    only_relay: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    peer: Vec<Entry>,
}

/// `peers.toml` cannot be read.
#[derive(Debug, Error)]
pub enum ReadAddedError {
    /// The system refused.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It does not hold what this program wrote.
    #[error("{} is damaged; mend it or remove it: {message}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Where and what.
        message: String,
    },
}

/// A peer that cannot be added or removed.
#[derive(Debug, Error)]
pub(crate) enum ChangeError {
    #[error("that is this node's own invite")]
    Own,
    #[error("it is a peer already, named {0}")]
    Known(String),
    #[error("another peer is named {0}; choose a name with --name")]
    NameTaken(String),
    #[error("{name:?} is no petname ({why}); choose one with --name")]
    Name { name: String, why: &'static str },
    #[error("at most {MAX_ADDED} peers can be added")]
    Full,
    #[error("{0} stands in config.toml; remove it there")]
    InConfig(String),
    #[error("no peer that was added is named {0}")]
    NotAdded(String),
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl AddedPeers {
    /// Reads `peers.toml` in `data_dir`; none is no peers.
    ///
    /// # Errors
    /// [`ReadAddedError`]: starting without known peers would surprise more than not starting.
    pub(crate) fn load(data_dir: &Path) -> Result<Self, ReadAddedError> {
        let path = data_dir.join("peers.toml");
        let entries = match read(&path) {
            Ok(text) => toml::from_str::<File>(&text).map_err(|error| ReadAddedError::Content {
                path: path.clone(),
                message: error.to_string(),
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => File::default(),
            Err(source) => return Err(ReadAddedError::Read { path, source }),
        };
        Ok(Self {
            path,
            entries: Mutex::new(entries.peer),
        })
    }

    /// The peers of config.toml and those that were added.
    pub(crate) fn with(&self, config: &[PeerConfig]) -> Vec<PeerConfig> {
        let entries = self.lock();
        let added = entries.iter().filter(|entry| !entry.is_in(config));
        let added: Vec<&Entry> = added.collect();
        let names: HashMap<NodeId, &str> = config
            .iter()
            .map(|peer| (peer.id, peer.name.as_str()))
            .chain(added.iter().map(|entry| (entry.id, entry.name.as_str())))
            .collect();
        let peer = |entry: &&Entry| PeerConfig {
            name: entry.name.clone(),
            id: entry.id,
            addresses: entry.addresses.clone(),
            onions: Vec::new(),
            trust: entry.trust,
            via: entry
                .relays
                .iter()
                .filter_map(|relay| names.get(relay).map(|name| (*name).to_owned()))
                .collect(),
            register: false,
        };
        config
            .iter()
            .cloned()
            .chain(added.iter().map(peer))
            .collect()
    }

    /// Whether `id` was added.
    pub(crate) fn contains(&self, id: &NodeId) -> bool {
        self.lock().iter().any(|entry| entry.id == *id)
    }

    /// Adds the inviting node, and its relays that are not known yet. Writes the file.
    ///
    /// # Errors
    /// [`ChangeError`]; then nothing changed.
    pub(crate) fn add(
        &self,
        own: NodeId,
        config: &[PeerConfig],
        invite: &Invite,
        name: Option<&str>,
        trust: Option<u8>,
    ) -> Result<NodeId, ChangeError> {
        let mut entries = self.lock();
        let mut next = entries.clone();
        // Known as a relay only, it becomes a peer in its own right.
        next.retain(|entry| entry.id != invite.id() || !entry.only_relay);
        if invite.id() == own {
            return Err(ChangeError::Own);
        }
        if let Some(known) = name_of(invite.id(), config, &next) {
            return Err(ChangeError::Known(known));
        }
        let name = choose_name(name, invite)?;
        if is_taken(&name, config, &next) {
            return Err(ChangeError::NameTaken(name));
        }
        next.push(Entry {
            name: name.clone(),
            id: invite.id(),
            addresses: invite.addresses().to_vec(),
            trust: trust.unwrap_or(DEFAULT_TRUST),
            relays: invite.relays().iter().map(|relay| relay.id).collect(),
            only_relay: false,
        });
        for relay in invite.relays() {
            if relay.id != own && name_of(relay.id, config, &next).is_none() {
                let relay = relay_entry(relay, &name, config, &next);
                next.push(relay);
            }
        }
        if next.len() > MAX_ADDED {
            return Err(ChangeError::Full);
        }
        self.write(&next)?;
        *entries = next;
        Ok(invite.id())
    }

    /// Removes a peer that was added, and relays that only it needed. Writes the file.
    ///
    /// # Errors
    /// [`ChangeError`]; then nothing changed.
    pub(crate) fn remove(
        &self,
        config: &[PeerConfig],
        id: NodeId,
        name: &str,
    ) -> Result<(), ChangeError> {
        if config.iter().any(|peer| peer.id == id) {
            return Err(ChangeError::InConfig(name.to_owned()));
        }
        let mut entries = self.lock();
        let mut next = entries.clone();
        next.retain(|entry| entry.id != id);
        if next.len() == entries.len() {
            return Err(ChangeError::NotAdded(name.to_owned()));
        }
        let needed: Vec<NodeId> = next.iter().flat_map(|entry| entry.relays.clone()).collect();
        next.retain(|entry| !entry.only_relay || needed.contains(&entry.id));
        self.write(&next)?;
        *entries = next;
        Ok(())
    }

    fn write(&self, entries: &[Entry]) -> Result<(), ChangeError> {
        let file = File {
            peer: entries.to_vec(),
        };
        let written = toml::to_string(&file)
            .map_err(io::Error::other)
            .and_then(|text| private_file::write(&self.path, text.as_bytes()));
        written.map_err(|source| ChangeError::Write {
            path: self.path.clone(),
            source,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn is_in(&self, config: &[PeerConfig]) -> bool {
        config
            .iter()
            .any(|peer| peer.id == self.id || peer.name == self.name)
    }
}

/// A relay that is known only through an invite is a stranger.
fn relay_entry(relay: &InviteRelay, of: &str, config: &[PeerConfig], entries: &[Entry]) -> Entry {
    let id = relay.id.to_string();
    let mut name = format!("{of}-relay");
    if petname(&name).is_err() || is_taken(&name, config, entries) {
        name = format!("relay-{}", id.get(..16).unwrap_or(&id));
    }
    Entry {
        name,
        id: relay.id,
        addresses: relay.addresses.clone(),
        trust: 0,
        relays: Vec::new(),
        only_relay: true,
    }
}

/// The name that was asked for, else the inviter's own in the letters of a petname.
fn choose_name(asked: Option<&str>, invite: &Invite) -> Result<String, ChangeError> {
    let own: String = invite
        .name()
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let name = asked.unwrap_or_else(|| own.trim_matches('-'));
    petname(name).map_err(|why| ChangeError::Name {
        name: name.to_owned(),
        why,
    })
}

fn name_of(id: NodeId, config: &[PeerConfig], entries: &[Entry]) -> Option<String> {
    let peers = config.iter().map(|peer| (peer.id, &peer.name));
    let added = entries.iter().map(|entry| (entry.id, &entry.name));
    let mut all = peers.chain(added);
    all.find(|(other, _)| *other == id)
        .map(|(_, name)| name.clone())
}

fn is_taken(name: &str, config: &[PeerConfig], entries: &[Entry]) -> bool {
    let peers = config.iter().map(|peer| &peer.name);
    let added = entries.iter().map(|entry| &entry.name);
    peers.chain(added).any(|other| other == name)
}

fn read(path: &Path) -> io::Result<String> {
    let bytes = fs::metadata(path)?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("{bytes} bytes are too many")));
    }
    fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const OWN: NodeId = NodeId::from_bytes([9; 32]);

    fn id(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    fn invite(byte: u8, name: &str, relays: &[u8]) -> Invite {
        let address = |byte: u8| vec![([192, 0, 2, byte], 4433).into()];
        let relays = relays.iter().map(|byte| InviteRelay {
            id: id(*byte),
            addresses: address(*byte),
        });
        Invite::new(id(byte), name, address(byte), relays.collect()).unwrap()
    }

    fn configured(byte: u8, name: &str) -> PeerConfig {
        PeerConfig {
            name: name.to_owned(),
            id: id(byte),
            addresses: Vec::new(),
            onions: Vec::new(),
            trust: 2,
            via: Vec::new(),
            register: false,
        }
    }

    fn names(peers: &[PeerConfig]) -> Vec<&str> {
        peers.iter().map(|peer| peer.name.as_str()).collect()
    }

    #[test]
    fn what_was_added_survives_a_restart_and_goes_with_its_relays() {
        let dir = tempfile::tempdir().unwrap();
        let config = [configured(7, "harbour")];
        let added = AddedPeers::load(dir.path()).unwrap();
        let invite = invite(1, "Bob B", &[2, 7]);
        added.add(OWN, &config, &invite, None, Some(3)).unwrap();
        let mode = fs::metadata(dir.path().join("peers.toml"))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);

        let again = AddedPeers::load(dir.path()).unwrap();
        let peers = again.with(&config);
        assert_eq!(names(&peers), ["harbour", "bob-b", "bob-b-relay"]);
        assert_eq!(peers[1].via, ["bob-b-relay", "harbour"]);
        assert_eq!((peers[1].trust, peers[2].trust), (3, 0));
        again.remove(&config, id(1), "bob-b").unwrap();
        assert_eq!(
            names(&AddedPeers::load(dir.path()).unwrap().with(&config)),
            ["harbour"]
        );
    }

    #[test]
    fn a_name_or_an_id_means_one_peer() {
        let dir = tempfile::tempdir().unwrap();
        let config = [configured(7, "harbour")];
        let added = AddedPeers::load(dir.path()).unwrap();
        let add = |byte: u8, name: Option<&str>| {
            let invite = invite(byte, "bob", &[]);
            added
                .add(OWN, &config, &invite, name, None)
                .map_err(|error| error.to_string())
        };
        assert!(add(9, None).unwrap_err().contains("own invite"));
        assert!(add(7, None).unwrap_err().contains("named harbour"));
        assert!(add(1, Some("harbour")).unwrap_err().contains("--name"));
        assert!(add(1, Some("Bob!")).unwrap_err().contains("no petname"));
        add(1, None).unwrap();
        assert!(add(1, Some("other")).unwrap_err().contains("named bob"));
        assert!(add(2, None).unwrap_err().contains("another peer"));
        add(2, Some("bob-two")).unwrap();
        let remove = |id, name| added.remove(&config, id, name).unwrap_err().to_string();
        assert!(remove(id(7), "harbour").contains("config.toml"));
        assert!(remove(id(5), "eve").contains("no peer"));
    }

    #[test]
    fn config_holds_over_what_was_added() {
        let dir = tempfile::tempdir().unwrap();
        let added = AddedPeers::load(dir.path()).unwrap();
        added
            .add(OWN, &[], &invite(1, "bob", &[]), None, Some(3))
            .unwrap();
        let peers = added.with(&[configured(1, "robert")]);
        assert_eq!((names(&peers), peers[0].trust), (vec!["robert"], 2));
    }

    #[test]
    fn a_relay_becomes_a_peer_by_its_own_invite() {
        let dir = tempfile::tempdir().unwrap();
        let added = AddedPeers::load(dir.path()).unwrap();
        added
            .add(OWN, &[], &invite(1, "bob", &[2]), None, None)
            .unwrap();
        added
            .add(OWN, &[], &invite(2, "harbour", &[]), None, None)
            .unwrap();
        assert_eq!(names(&added.with(&[])), ["bob", "harbour"]);
        added.remove(&[], id(1), "bob").unwrap();
        assert_eq!(names(&added.with(&[])), ["harbour"]);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("peers.toml"), "[[peer]]\nname = 1\n").unwrap();
        let error = AddedPeers::load(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("peers.toml") && error.contains("name"),
            "{error}"
        );
    }
}
