//! A client of the Tor network.

use std::{
    fmt,
    fs::{File, TryLockError},
    io,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arti_client::{
    BootstrapBehavior, DormantMode, HsId, KeystoreSelector, StreamPrefs, TorClient,
    isolation::IsolationHelper, status::BootstrapStatus,
};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use tor_hscrypto::pk::HsClientDescEncSecretKey;
use tor_llcrypto::pk::curve25519::StaticSecret;
use tor_rtcompat::PreferredRuntime;

use crate::{
    circuits::Circuits,
    config,
    error::{TorError, whole},
    hosting::Hosted,
    report::{Circuit, Progress},
    settings::{Authorization, HostSettings, Settings},
    stream::Stream,
};

/// Arti's client, with its type written out.
pub(crate) type Arti = TorClient<PreferredRuntime>;

/// A client. It calls nobody before [`Client::bootstrap`].
pub struct Client {
    arti: Arc<Arti>,
    /// Shares all with the one above but its circuits, which no other one had or will have.
    identity: Mutex<Arc<Arti>>,
    circuits: Arc<Circuits>,
}

/// Streams of one group may share circuits.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group(Arc<str>);

impl IsolationHelper for Group {
    fn compatible_same_type(&self, other: &Self) -> bool {
        self == other
    }

    fn join_same_type(&self, other: &Self) -> Option<Self> {
        (self == other).then(|| self.clone())
    }
}

impl Client {
    /// Makes a client of what its folder holds. The process has to have a provider for rustls by then.
    ///
    /// # Errors
    /// [`TorError::Settings`] and [`TorError::Folder`].
    pub fn create(settings: &Settings) -> BoxFuture<'_, Result<Self, TorError>> {
        create(settings).boxed()
    }

    /// Gets into the network; done when flows may go. To be called again when it failed. Dropping the
    /// future gives up.
    ///
    /// # Errors
    /// [`TorError`] in arti's words.
    pub fn bootstrap(&self) -> BoxFuture<'static, Result<(), TorError>> {
        let arti = Arc::clone(&self.arti);
        async move { arti.bootstrap().await.map_err(|error| TorError::of(&error)) }.boxed()
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        progress(&self.arti.bootstrap_status())
    }

    /// How far it is, whenever that changed. May never end: arti's own does not always.
    pub fn watch(&self) -> BoxStream<'static, Progress> {
        let events = self.arti.bootstrap_events();
        events.map(|status| progress(&status)).boxed()
    }

    /// Opens a stream to `host`, a name, an address or an onion service. Streams of different groups
    /// share no circuit, nor do those before and after [`Client::take_new_identity`].
    ///
    /// # Errors
    /// [`TorError`] by what failed.
    pub fn connect(
        &self,
        host: &str,
        port: u16,
        group: &str,
    ) -> BoxFuture<'static, Result<Stream, TorError>> {
        let (arti, prefs) = (self.identity(), prefs(group));
        let (host, circuits) = (host.to_owned(), Arc::clone(&self.circuits));
        async move {
            let stream = arti.connect_with_prefs((host.as_str(), port), &prefs).await;
            let stream = stream.map_err(|error| TorError::of(&error))?;
            Ok(Stream::opened(stream, &circuits))
        }
        .boxed()
    }

    /// Has an exit look `host` up.
    ///
    /// # Errors
    /// [`TorError`] by what failed.
    pub fn resolve(
        &self,
        host: &str,
        group: &str,
    ) -> BoxFuture<'static, Result<Vec<IpAddr>, TorError>> {
        let (arti, prefs, host) = (self.identity(), prefs(group), host.to_owned());
        async move {
            let found = arti.resolve_with_prefs(&host, &prefs).await;
            found.map_err(|error| TorError::of(&error))
        }
        .boxed()
    }

    /// Streams from now on share no circuit with those before; these go on.
    pub fn take_new_identity(&self) {
        *self.lock() = self.arti.isolated_client();
    }

    /// The circuits that carry streams of this client, and some that did.
    pub fn circuits(&self) -> Vec<Circuit> {
        self.circuits.all()
    }

    /// Publishes an onion service, with the keys that the folder has under its nickname, or new ones.
    /// Dropping it takes it away.
    ///
    /// # Errors
    /// [`TorError`] when it cannot begin.
    pub fn host(&self, settings: &HostSettings) -> Result<Hosted, TorError> {
        Hosted::launch(&self.arti, settings)
    }

    /// Does nothing by itself until it is woken. What opens streams from then on shares no circuit with
    /// what did before.
    pub fn rest(&self) {
        self.take_new_identity();
        self.arti.set_dormant(DormantMode::Soft);
    }

    /// Goes on after a rest.
    pub fn wake(&self) {
        self.arti.set_dormant(DormantMode::Normal);
    }

    fn identity(&self) -> Arc<Arti> {
        Arc::clone(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Arti>> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

async fn create(settings: &Settings) -> Result<Client, TorError> {
    let config = config::of(settings)?;
    check_free(&settings.folder)?;
    forget_authorizations(&settings.folder)?;
    let builder = TorClient::builder();
    let builder = builder
        .config(config)
        // Nothing leaves before somebody wants it.
        .bootstrap_behavior(BootstrapBehavior::Manual);
    let arti = builder.create_unbootstrapped_async().await;
    let arti = arti.map_err(|error| TorError::of(&error))?;
    for authorization in &settings.authorizations {
        authorize(&arti, authorization)?;
    }
    Ok(Client {
        identity: Mutex::new(arti.isolated_client()),
        arti,
        circuits: Arc::default(),
    })
}

/// Arti takes its folder as soon as it is made. Where another has it, it goes on without, keeps no guards
/// and hosts nothing, and says so in its log alone. Who comes between this look and arti's is not seen.
fn check_free(folder: &Path) -> Result<(), TorError> {
    let state = config::state_folder(folder).join("state");
    let Ok(lock) = File::open(state.join("state.lock")) else {
        // Nobody ever had it. What else is wrong with it arti says.
        return Ok(());
    };
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => {
            let why =
                "it is in use, by another process or by what was stopped and has not ended yet";
            Err(TorError::Folder(format!("{}: {why}", folder.display())))
        }
        Err(TryLockError::Error(_)) => Ok(()),
        Ok(()) => {
            // A child that is just being made would hold on to it.
            let _ = lock.unlock();
            Ok(())
        }
    }
}

/// Keys for onion services are those of the settings, and none that were there before.
fn forget_authorizations(folder: &Path) -> Result<(), TorError> {
    let keys = config::state_folder(folder).join("keystore").join("client");
    match std::fs::remove_dir_all(&keys) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(TorError::Folder(format!("{}: {error}", keys.display())))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn authorize(arti: &Arti, authorization: &Authorization) -> Result<(), TorError> {
    let service = authorization.service.parse::<HsId>();
    let service = service.map_err(|error| TorError::Settings(whole(&error)))?;
    let key = StaticSecret::from(*authorization.key);
    let key = HsClientDescEncSecretKey::from(key);
    let inserted = arti.insert_service_discovery_key(KeystoreSelector::Primary, service, key);
    inserted.map(drop).map_err(|error| TorError::of(&error))
}

fn prefs(group: &str) -> StreamPrefs {
    let mut prefs = StreamPrefs::new();
    prefs.set_isolation(Group(group.into()));
    prefs
}

fn progress(status: &BootstrapStatus) -> Progress {
    let blocked = status.blocked().map(|blocked| blocked.to_string());
    Progress {
        fraction: status.as_frac(),
        is_ready: status.ready_for_traffic(),
        blocked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_streams_of_one_group_share_a_circuit() {
        let group = |name: &str| Group(name.into());
        assert!(group("a").compatible_same_type(&group("a")));
        assert_eq!(group("a").join_same_type(&group("a")), Some(group("a")));
        assert!(!group("a").compatible_same_type(&group("b")));
        assert_eq!(group("a").join_same_type(&group("b")), None);
    }

    #[test]
    fn a_folder_that_another_has_is_not_used() {
        let folder = std::env::temp_dir().join(format!("wormholes-taken-{}", std::process::id()));
        assert_eq!(check_free(&folder), Ok(()), "nobody was there");
        let state = folder.join("state/state");
        std::fs::create_dir_all(&state).unwrap();
        let lock = File::create(state.join("state.lock")).unwrap();
        assert_eq!(check_free(&folder), Ok(()));
        lock.try_lock().expect("a look at it takes nothing");
        let taken = check_free(&folder);
        assert!(matches!(taken, Err(TorError::Folder(_))), "{taken:?}");
        lock.unlock().unwrap();
        assert_eq!(check_free(&folder), Ok(()));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn keys_that_were_given_before_are_forgotten() {
        let folder = std::env::temp_dir().join(format!("wormholes-tor-{}", std::process::id()));
        let keys = folder.join("state/keystore/client/some");
        std::fs::create_dir_all(&keys).unwrap();
        forget_authorizations(&folder).unwrap();
        assert!(!keys.exists() && folder.join("state/keystore").exists());
        forget_authorizations(&folder).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
