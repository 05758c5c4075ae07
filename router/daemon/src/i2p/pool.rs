//! Which sessions there are, whose they are, and which are made ahead.
//!
//! The table is bounded by `sessions` of the config. When it is full, a spare makes room, then the
//! session that nobody has used for longest; where all are in use, the next flow is refused.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use wormholes_proto::sam::TunnelSettings;

use super::{
    I2pError, Owner, WantedTunnels,
    session::{InUse, Session},
};
use crate::config::I2pConfig;

/// As long as the paths of an onion: whoever comes back later is somebody else to whom it calls.
const MAX_IDLE: Duration = Duration::from_secs(600);
/// Kinds of tunnels that sessions are made ahead for; the one not asked for longest goes.
const MAX_KINDS: usize = 4;
/// After a session that could not be made ahead; twice as long each time, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// All sessions.
#[derive(Debug)]
pub(super) struct Pool {
    table: Arc<Mutex<Table>>,
    default: TunnelSettings,
    max_spares: usize,
    max_sessions: usize,
    /// Something may be missing.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    slots: HashMap<Key, Slot>,
    spares: Vec<Arc<Session>>,
    /// Tunnels of the spares that are being made.
    making: Vec<TunnelSettings>,
    /// What plans ask for beside the default, and when they did last.
    kinds: Vec<(TunnelSettings, Instant)>,
    failures: u32,
    /// No spare is made until then.
    pause_until: Option<Instant>,
}

/// What tells sessions apart: of a kept destination there is but one, whatever its tunnels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    owner: Owner,
    tunnels: Option<TunnelSettings>,
}

/// Filled when a session is made, or is not.
pub(super) type Made = Option<Result<Arc<Session>, I2pError>>;

#[derive(Debug)]
enum Slot {
    Making(TunnelSettings, watch::Receiver<Made>),
    Ready(Arc<Session>),
}

/// What there is for a flow, with the tunnels that it asks for.
#[derive(Debug)]
pub(super) enum Found {
    Ready(InUse),
    Making(watch::Receiver<Made>),
    /// Nothing so far: whoever gets the place makes it.
    Place(Place, watch::Receiver<Made>),
}

/// A place in the table, for a session to be made. Who drops it gives it back.
#[derive(Debug)]
pub(super) struct Place {
    table: Arc<Mutex<Table>>,
    key: Key,
    tunnels: TunnelSettings,
    made: watch::Sender<Made>,
}

/// A session, for a report.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) owner: Option<Owner>,
    /// None: it is being made.
    pub(super) session: Option<Arc<Session>>,
}

impl Place {
    pub(super) fn owner(&self) -> &Owner {
        &self.key.owner
    }

    pub(super) fn tunnels(&self) -> TunnelSettings {
        self.tunnels
    }

    /// Fills it, or gives it back with the reason.
    pub(super) fn fill(self, made: Result<Arc<Session>, I2pError>) {
        let mut table = lock(&self.table);
        match &made {
            Ok(session) => {
                let ready = Slot::Ready(Arc::clone(session));
                table.slots.insert(self.key.clone(), ready);
            }
            Err(_) => {
                table.slots.remove(&self.key);
            }
        }
        drop(table);
        self.made.send_replace(Some(made));
    }
}

/// Whoever was to make the session panicked or was stopped: the next flow has it made anew.
impl Drop for Place {
    fn drop(&mut self) {
        let was_filled = self.made.borrow().is_some();
        if !was_filled {
            lock(&self.table).slots.remove(&self.key);
        }
    }
}

impl Pool {
    pub(super) fn new(config: &I2pConfig) -> Self {
        Self {
            table: Arc::default(),
            default: config.tunnels,
            max_spares: config.spares,
            max_sessions: config.sessions,
            changed: Notify::new(),
        }
    }

    /// The session of `owner`, or a place for it.
    ///
    /// # Errors
    /// [`I2pError::Full`], [`I2pError::OtherTunnels`].
    pub(super) fn find(&self, owner: &Owner, wanted: WantedTunnels) -> Result<Found, I2pError> {
        let tunnels = wanted.settled(self.default);
        let key = Key {
            owner: owner.clone(),
            tunnels: match owner {
                Owner::Kept(_) => None,
                Owner::Flows(_) => Some(tunnels),
            },
        };
        let mut table = self.lock();
        table.drop_ended();
        match table.slots.get(&key) {
            Some(slot) if slot.tunnels() == tunnels => return Ok(slot.found()),
            Some(slot) if slot.is_in_use() => return Err(I2pError::OtherTunnels(name_of(owner))),
            // Nobody uses the one with other tunnels: it makes room.
            Some(_) => {
                table.slots.remove(&key);
            }
            None => {}
        }
        if let Owner::Flows(_) = owner {
            table.asks_for(tunnels, self.default);
            self.changed.notify_one();
            if let Some(spare) = table.take_spare(tunnels) {
                let in_use = InUse::new(Arc::clone(&spare));
                table.slots.insert(key, Slot::Ready(spare));
                return Ok(Found::Ready(in_use));
            }
        }
        table.make_room(self.max_sessions)?;
        let (sender, made) = watch::channel(None);
        let making = Slot::Making(tunnels, made.clone());
        table.slots.insert(key.clone(), making);
        let place = Place {
            table: Arc::clone(&self.table),
            key,
            tunnels,
            made: sender,
        };
        Ok(Found::Place(place, made))
    }

    /// Ends what nobody has used for long, and gives the tunnels of each spare that shall be made. The last
    /// free place is left to flows: a spare makes room for none of them while it is being made.
    pub(super) fn missing_spares(&self) -> Vec<TunnelSettings> {
        let mut table = self.lock();
        table.drop_ended();
        table.drop_idle(self.default);
        if table
            .pause_until
            .is_some_and(|until| Instant::now() < until)
        {
            return Vec::new();
        }
        let mut missing = Vec::new();
        let kinds = table.kinds.iter().map(|(kind, _)| *kind);
        let kinds: Vec<_> = [self.default].into_iter().chain(kinds).collect();
        for kind in kinds {
            while table.spares_of(kind) < self.max_spares && table.count() + 1 < self.max_sessions {
                table.making.push(kind);
                missing.push(kind);
            }
        }
        missing
    }

    /// Takes a spare that was made, or the failure; true with the first of several.
    pub(super) fn add_spare(&self, tunnels: TunnelSettings, made: Option<Arc<Session>>) -> bool {
        let mut table = self.lock();
        if let Some(at) = table.making.iter().position(|making| *making == tunnels) {
            table.making.swap_remove(at);
        }
        let Some(session) = made else {
            let pause = PAUSE.saturating_mul(1 << table.failures.min(5));
            table.pause_until = Some(Instant::now() + pause.min(LONGEST_PAUSE));
            table.failures = table.failures.saturating_add(1);
            return table.failures == 1;
        };
        table.failures = 0;
        table.pause_until = None;
        table.spares.push(session);
        drop(table);
        self.changed.notify_one();
        false
    }

    /// Waits until something may be missing.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// All sessions, spares last.
    pub(super) fn list(&self) -> Vec<Listed> {
        let table = self.lock();
        let slots = table.slots.iter().map(|(key, slot)| Listed {
            owner: Some(key.owner.clone()),
            session: match slot {
                Slot::Making(..) => None,
                Slot::Ready(session) => Some(Arc::clone(session)),
            },
        });
        let spares = table.spares.iter().map(|spare| Listed {
            owner: None,
            session: Some(Arc::clone(spare)),
        });
        let making = table.making.iter().map(|_| Listed {
            owner: None,
            session: None,
        });
        slots.chain(spares).chain(making).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    fn tunnels(&self) -> TunnelSettings {
        match self {
            Self::Making(tunnels, _) => *tunnels,
            Self::Ready(session) => session.tunnels(),
        }
    }

    fn is_in_use(&self) -> bool {
        match self {
            Self::Making(..) => true,
            Self::Ready(session) => session.users() > 0,
        }
    }

    fn found(&self) -> Found {
        match self {
            Self::Making(_, made) => Found::Making(made.clone()),
            Self::Ready(session) => Found::Ready(InUse::new(Arc::clone(session))),
        }
    }
}

impl Table {
    fn count(&self) -> usize {
        self.slots.len() + self.spares.len() + self.making.len()
    }

    fn spares_of(&self, tunnels: TunnelSettings) -> usize {
        let ready = self.spares.iter().filter(|it| it.tunnels() == tunnels);
        let making = self.making.iter().filter(|making| **making == tunnels);
        ready.count() + making.count()
    }

    fn take_spare(&mut self, tunnels: TunnelSettings) -> Option<Arc<Session>> {
        let mut spares = self.spares.iter();
        let at = spares.position(|spare| spare.tunnels() == tunnels)?;
        Some(self.spares.swap_remove(at))
    }

    fn drop_ended(&mut self) {
        self.spares.retain(|spare| !spare.has_ended());
        self.slots.retain(|_, slot| match slot {
            Slot::Making(..) => true,
            Slot::Ready(session) => !session.has_ended(),
        });
    }

    fn drop_idle(&mut self, default: TunnelSettings) {
        self.slots.retain(|_, slot| match slot {
            Slot::Making(..) => true,
            Slot::Ready(session) => session.idle() < MAX_IDLE,
        });
        self.kinds.retain(|(_, asked)| asked.elapsed() < MAX_IDLE);
        let kinds = &self.kinds;
        self.spares.retain(|spare| {
            let tunnels = spare.tunnels();
            tunnels == default || kinds.iter().any(|(kind, _)| *kind == tunnels)
        });
    }

    /// A plan asks for such tunnels.
    fn asks_for(&mut self, tunnels: TunnelSettings, default: TunnelSettings) {
        self.kinds.retain(|(kind, _)| *kind != tunnels);
        if tunnels != default {
            self.kinds.push((tunnels, Instant::now()));
        }
        if self.kinds.len() > MAX_KINDS {
            self.kinds.remove(0);
        }
    }

    fn make_room(&mut self, max: usize) -> Result<(), I2pError> {
        if self.count() < max || self.spares.pop().is_some() {
            return Ok(());
        }
        let idle = self.slots.iter().filter_map(|(key, slot)| match slot {
            Slot::Ready(session) if session.users() == 0 => Some((session.idle(), key)),
            Slot::Ready(_) | Slot::Making(..) => None,
        });
        let longest = idle.max_by_key(|(idle, _)| *idle);
        let key = longest.map(|(_, key)| key.clone());
        let key = key.ok_or(I2pError::Full(max))?;
        self.slots.remove(&key);
        Ok(())
    }
}

fn name_of(owner: &Owner) -> String {
    match owner {
        Owner::Kept(name) => name.to_string(),
        Owner::Flows(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use wormholes_proto::ServiceName;

    use super::*;
    use crate::i2p::session::tests::session;

    /// What a plan asks for that says nothing of tunnels.
    const UNSAID: WantedTunnels = WantedTunnels {
        length: None,
        quantity: None,
    };

    fn pool(spares: usize, sessions: usize) -> Pool {
        Pool::new(&I2pConfig {
            spares,
            sessions,
            ..I2pConfig::default()
        })
    }

    fn kept() -> Owner {
        Owner::Kept(ServiceName::parse("blog").unwrap())
    }

    fn flows(key: &str) -> Owner {
        Owner::Flows(key.to_owned())
    }

    fn hops(length: u8) -> WantedTunnels {
        WantedTunnels {
            length: Some(length),
            ..UNSAID
        }
    }

    fn place(found: Result<Found, I2pError>) -> Place {
        let Ok(Found::Place(place, _)) = found else {
            panic!("{found:?}");
        };
        place
    }

    fn ready(found: Result<Found, I2pError>) -> InUse {
        let Ok(Found::Ready(session)) = found else {
            panic!("{found:?}");
        };
        session
    }

    #[test]
    fn a_kept_destination_has_the_tunnels_that_were_asked_for() {
        let pool = pool(0, 4);
        let is_refused = |wanted| {
            let found = pool.find(&kept(), wanted);
            matches!(found, Err(I2pError::OtherTunnels(name)) if name == "blog")
        };
        let made = place(pool.find(&kept(), hops(0)));
        assert!(is_refused(UNSAID), "it is made without hops");
        let found = pool.find(&kept(), hops(0));
        assert!(matches!(found, Ok(Found::Making(_))), "{found:?}");
        let tunnels = made.tunnels();
        made.fill(Ok(session(tunnels)));
        let user = ready(pool.find(&kept(), hops(0)));
        assert!(is_refused(UNSAID), "it stands without hops");
        assert!(is_refused(hops(1)), "it stands without hops");
        drop(user);

        // Nobody uses it.
        let made = place(pool.find(&kept(), UNSAID));
        let config = I2pConfig::default().tunnels;
        assert_eq!(made.tunnels(), config);
        made.fill(Ok(session(config)));
        let _user = ready(pool.find(&kept(), hops(config.length)));
        assert!(is_refused(hops(0)), "it stands with hops");
    }

    #[tokio::test]
    async fn a_place_that_nobody_fills_is_given_back() {
        let pool = pool(0, 1);
        let Ok(Found::Place(lost, mut made)) = pool.find(&kept(), UNSAID) else {
            panic!("a place");
        };
        drop(lost);
        assert!(made.wait_for(Option::is_some).await.is_err());

        let failed = place(pool.find(&kept(), UNSAID));
        failed.fill(Err(I2pError::HungUp));
        let made = place(pool.find(&kept(), UNSAID));
        made.fill(Ok(session(I2pConfig::default().tunnels)));
        ready(pool.find(&kept(), UNSAID));
    }

    #[test]
    fn spares_leave_the_last_free_place_to_flows() {
        let pool = pool(4, 3);
        assert_eq!(pool.missing_spares().len(), 2);
        let _ann = place(pool.find(&flows("ann"), UNSAID));
        let full = pool.find(&flows("bob"), UNSAID);
        assert!(matches!(full, Err(I2pError::Full(3))), "{full:?}");
        let tunnels = I2pConfig::default().tunnels;
        pool.add_spare(tunnels, None);
        assert!(pool.missing_spares().is_empty(), "it failed just now");
        let _bob = place(pool.find(&flows("bob"), UNSAID));
    }

    #[test]
    fn a_spare_goes_to_the_first_flow_that_asks_for_its_tunnels() {
        let pool = pool(1, 8);
        let tunnels = I2pConfig::default().tunnels;
        assert_eq!(pool.missing_spares(), [tunnels]);
        assert!(pool.missing_spares().is_empty(), "it is being made");
        let spare = session(tunnels);
        pool.add_spare(tunnels, Some(Arc::clone(&spare)));
        assert!(pool.missing_spares().is_empty(), "it stands");

        // Who keeps a destination has its own.
        drop(place(pool.find(&kept(), UNSAID)));
        drop(place(pool.find(&flows("ann"), hops(0))));
        let ann = ready(pool.find(&flows("ann"), UNSAID));
        assert!(std::ptr::eq(&*ann, &*spare));
        let again = ready(pool.find(&flows("ann"), hops(tunnels.length)));
        assert_eq!(again.users(), 2, "it is hers from now on");
        drop(place(pool.find(&flows("bob"), UNSAID)));

        // Another is made, and one for the tunnels that a plan asked for.
        let none = hops(0).settled(tunnels);
        assert_eq!(pool.missing_spares(), [tunnels, none]);
    }
}
