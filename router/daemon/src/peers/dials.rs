//! Dialling a node: one dial at a time for each wish, which goes on when whoever began it waits no
//! longer. Nodes that could not be reached are left alone for a while.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use wormholes_proto::{CarrierKind, is_placeholder};

use super::ConnectError;
use crate::carrier::{Link, LinkError};

/// The first pause after a failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest: a node that comes back is found again within it.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A way to reach a node.
pub(crate) type Way = (CarrierKind, SocketAddr);

/// For whom a node is dialled, and over what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// This node itself; over any carrier, where none is named.
    Own(Option<CarrierKind>),
    /// Strangers, who may not have all addresses of it dialled: how that ends says nothing about
    /// the others.
    Strangers,
}

/// The dials to one node, for each wish by itself.
#[derive(Debug, Default)]
pub(crate) struct Dials {
    any: Mutex<Tries>,
    quic: Mutex<Tries>,
    tcp: Mutex<Tries>,
    strangers: Mutex<Tries>,
}

/// How the dials for one wish went.
#[derive(Debug, Default)]
struct Tries {
    back_off: BackOff,
    running: Option<Running>,
    /// One that goes on though nobody new waits for it. Overflow rule: the older one is ended.
    forgotten: Option<Running>,
}

/// A dial that its [`Turn`] does; dropping this ends it.
#[derive(Debug)]
struct Running {
    dial: Dial,
    done: Arc<Outcome>,
    _stop: DropGuard,
}

/// Where those who wait hear how a dial ended.
type Outcome = watch::Sender<Option<Result<Link, ConnectError>>>;

/// A dial that runs; dropping it does not end the dial.
#[derive(Debug, Clone)]
pub(crate) struct Dial {
    since: Instant,
    done: watch::Receiver<Option<Result<Link, ConnectError>>>,
}

/// The right to dial a node, which ends with the value.
#[derive(Debug)]
pub(crate) struct Turn {
    dials: Arc<Dials>,
    wish: Wish,
    done: Arc<Outcome>,
    stopped: CancellationToken,
}

#[derive(Debug, Default)]
struct BackOff {
    until: Option<Instant>,
    pause: Duration,
    last: Option<LinkError>,
}

impl Dials {
    /// The dial that runs, or a new one, which is then for the caller to do.
    ///
    /// # Errors
    /// [`ConnectError::BackingOff`].
    pub(crate) fn enter(
        self: &Arc<Self>,
        wish: Wish,
    ) -> Result<(Dial, Option<Turn>), ConnectError> {
        let mut tries = self.of(wish);
        if let Some(running) = &tries.running {
            return Ok((running.dial.clone(), None));
        }
        tries.back_off.check()?;
        let (sender, done) = watch::channel(None);
        let (sender, stopped) = (Arc::new(sender), CancellationToken::new());
        let since = Instant::now();
        let dial = Dial { since, done };
        tries.running = Some(Running {
            dial: dial.clone(),
            done: Arc::clone(&sender),
            _stop: stopped.clone().drop_guard(),
        });
        let turn = Turn {
            dials: Arc::clone(self),
            wish,
            done: sender,
            stopped,
        };
        Ok((dial, Some(turn)))
    }

    /// Lets the node be dialled at once, whatever failed before. A dial that runs may have gone
    /// nowhere: it goes on beside the one that whoever comes next begins, and no longer.
    pub(crate) fn start_afresh(&self) {
        for tries in [&self.any, &self.quic, &self.tcp, &self.strangers] {
            let mut tries = lock(tries);
            tries.back_off = BackOff::default();
            if let Some(running) = tries.running.take() {
                tries.forgotten = Some(running);
            }
        }
    }

    /// Whether one for this node itself, over any carrier, runs.
    pub(super) fn are_running(&self) -> bool {
        self.of(Wish::Own(None)).running.is_some()
    }

    fn of(&self, wish: Wish) -> MutexGuard<'_, Tries> {
        lock(match wish {
            Wish::Own(None) => &self.any,
            Wish::Own(Some(CarrierKind::Quic)) => &self.quic,
            Wish::Own(Some(CarrierKind::Tcp)) => &self.tcp,
            Wish::Strangers => &self.strangers,
        })
    }
}

impl Dial {
    /// How it ended; `patience` is how long it may run before whoever waits goes another way.
    ///
    /// # Errors
    /// [`ConnectError`] when no address answered, or not in time.
    pub(crate) async fn ended(mut self, patience: Option<Duration>) -> Result<Link, ConnectError> {
        let until = patience.and_then(|patience| self.since.checked_add(patience));
        let ended = self.done.wait_for(Option::is_some);
        let ended = match until {
            Some(until) => timeout_at(until, ended)
                .await
                .map_err(|_| ConnectError::Slow)?,
            None => ended.await,
        };
        let stopped = || Err(LinkError::Lost("given up".to_owned()).into());
        let ended = ended.ok().and_then(|ended| ended.clone());
        ended.unwrap_or_else(stopped)
    }
}

impl Turn {
    /// Does `dial`, unless two dials that began after it make it needless before its end.
    pub(crate) async fn dial<T>(&self, dial: impl Future<Output = T>) -> Option<T> {
        self.stopped.run_until_cancelled(dial).await
    }

    /// Tells whoever waits how it ended; those too who wait for a newer dial, when this one leads
    /// anywhere. The newer one goes on: it may lead where this one does not any more.
    pub(crate) fn end(self, ended: Result<Link, ConnectError>) {
        let mut tries = self.dials.of(self.wish);
        let mut newer = None;
        match &ended {
            Ok(_) => {
                tries.back_off = BackOff::default();
                newer = tries.running.take_if(|running| !self.is(running));
            }
            Err(ConnectError::Link(error)) if self.is_in(&tries) => {
                tries.back_off.failed(error.clone());
            }
            Err(_) => {}
        }
        if let Some(newer) = newer {
            newer.done.send_replace(Some(ended.clone()));
            tries.forgotten = Some(newer);
        }
        drop(tries);
        self.done.send_replace(Some(ended));
    }

    /// Whether this machine moved since the dial began, or another one was faster.
    pub(crate) fn is_outdated(&self) -> bool {
        !self.is_in(&self.dials.of(self.wish))
    }

    /// Whether no other dial took its place.
    fn is_in(&self, tries: &Tries) -> bool {
        let running = tries.running.as_ref();
        running.is_some_and(|running| self.is(running))
    }

    fn is(&self, running: &Running) -> bool {
        Arc::ptr_eq(&self.done, &running.done)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut tries = self.dials.of(self.wish);
        tries.running.take_if(|running| self.is(running));
        tries.forgotten.take_if(|running| self.is(running));
    }
}

impl BackOff {
    fn check(&self) -> Result<(), ConnectError> {
        match (&self.last, self.until) {
            (Some(last), Some(until)) if Instant::now() < until => {
                Err(ConnectError::BackingOff(last.clone()))
            }
            _ => Ok(()),
        }
    }

    fn failed(&mut self, error: LinkError) {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.until = Instant::now().checked_add(self.pause);
        self.last = Some(error);
    }
}

fn lock(tries: &Mutex<Tries>) -> MutexGuard<'_, Tries> {
    tries.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wish {
    /// What is dialled only.
    pub(super) fn carrier(self) -> Option<CarrierKind> {
        match self {
            Self::Own(carrier) => carrier,
            Self::Strangers => None,
        }
    }
}

/// How a node may be reached, in the order in which it is tried: what `worked` last, else the
/// preferred carrier; then the other one at the same address, so that a network which lets only
/// one of them pass costs one try, however many addresses there are. What is `wanted` only.
pub(crate) fn ways(
    kinds: &[CarrierKind],
    worked: Option<Way>,
    wanted: Option<CarrierKind>,
    addresses: &[SocketAddr],
) -> Vec<Way> {
    let mut kinds: Vec<CarrierKind> = kinds.to_vec();
    kinds.retain(|kind| wanted.is_none_or(|wanted| *kind == wanted));
    let mut addresses = addresses.to_vec();
    if let Some((worked, at)) = worked {
        kinds.sort_by_key(|kind| *kind != worked);
        addresses.sort_by_key(|address| *address != at);
    }
    let over_all = |address| kinds.iter().map(move |kind| (*kind, address));
    let ways = addresses.into_iter().flat_map(over_all);
    // Tor carries no UDP.
    let is_way = |(kind, address): &Way| *kind == CarrierKind::Tcp || !is_placeholder(address);
    ways.filter(is_way).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Wish = Wish::Own(None);

    #[test]
    fn what_worked_is_tried_first_and_what_is_wanted_only() {
        use CarrierKind::{Quic, Tcp};
        let addresses = ["192.0.2.1:1", "192.0.2.2:2"].map(|address| address.parse().unwrap());
        let order = |worked: Option<(CarrierKind, usize)>, wanted| {
            let worked = worked.map(|(kind, index)| (kind, addresses[index]));
            let ways = ways(&CarrierKind::ALL, worked, wanted, &addresses);
            ways.into_iter()
                .map(|(kind, address)| (kind, address.port()))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            order(None, None),
            [(Quic, 1), (Tcp, 1), (Quic, 2), (Tcp, 2)]
        );
        assert_eq!(
            order(Some((Quic, 1)), None),
            [(Quic, 2), (Tcp, 2), (Quic, 1), (Tcp, 1)]
        );
        assert_eq!(
            order(Some((Tcp, 0)), None),
            [(Tcp, 1), (Quic, 1), (Tcp, 2), (Quic, 2)]
        );
        assert_eq!(order(Some((Quic, 0)), Some(Tcp)), [(Tcp, 1), (Tcp, 2)]);
        assert_eq!(order(None, Some(Quic)), [(Quic, 1), (Quic, 2)]);
        assert_eq!(ways(&[Tcp], None, Some(Quic), &addresses), []);
        let onion = "[100::1:2:3:4]:4433".parse().unwrap();
        assert_eq!(
            ways(&CarrierKind::ALL, None, None, &[onion]),
            [(Tcp, onion)]
        );
        assert_eq!(ways(&CarrierKind::ALL, None, Some(Quic), &[onion]), []);
    }

    #[tokio::test]
    async fn who_is_not_patient_goes_on_and_the_dial_does_too() {
        let dials = Arc::new(Dials::default());
        let (first, turn) = dials.enter(OWN).unwrap();
        let turn = turn.unwrap();
        let (second, none) = dials.enter(OWN).unwrap();
        assert!(none.is_none(), "one dial at a time");
        let hasty = first.ended(Some(Duration::ZERO)).await;
        assert!(matches!(hasty, Err(ConnectError::Slow)));
        turn.end(Err(LinkError::Silent.into()));
        let waited = second.ended(None).await;
        assert!(matches!(waited, Err(ConnectError::Link(LinkError::Silent))));
        let left_alone = dials.enter(OWN).map(drop);
        assert!(matches!(left_alone, Err(ConnectError::BackingOff(_))));
        dials.start_afresh();
        assert!(dials.enter(OWN).is_ok());
    }

    #[tokio::test]
    async fn after_a_move_a_new_dial_takes_the_place_of_one_that_runs() {
        let dials = Arc::new(Dials::default());
        let (_, old) = dials.enter(OWN).unwrap();
        dials.start_afresh();
        let (dial, new) = dials.enter(OWN).unwrap();
        let new = new.expect("it waits for none that may have gone nowhere");
        old.unwrap().end(Err(LinkError::Silent.into()));
        let (_, none) = dials.enter(OWN).expect("the failure was elsewhere");
        assert!(none.is_none(), "the new one runs");
        drop(new);
        assert!(dial.ended(None).await.is_err());
    }

    #[tokio::test]
    async fn dials_for_strangers_hold_up_none_of_this_node_nor_the_other_way_round() {
        for (one, other) in [(Wish::Strangers, OWN), (OWN, Wish::Strangers)] {
            let dials = Arc::new(Dials::default());
            let (_, first) = dials.enter(one).unwrap();
            let (_, second) = dials.enter(other).unwrap();
            second.expect("it waits for none that is for others");
            first.unwrap().end(Err(LinkError::Silent.into()));
            assert!(dials.enter(one).is_err(), "left alone for a while");
            assert!(dials.enter(other).is_ok(), "the failure was the others'");
        }
    }

    #[tokio::test]
    async fn a_dial_that_is_given_up_makes_room_for_the_next() {
        let dials = Arc::new(Dials::default());
        let (dial, turn) = dials.enter(OWN).unwrap();
        drop(turn);
        assert!(dial.ended(None).await.is_err());
        assert!(dials.enter(OWN).unwrap().1.is_some());
    }
}
