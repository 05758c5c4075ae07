//! One node's place: the connections to it, and how it is dialled.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use wormholes_proto::CarrierKind;

use super::dials::{Dials, Way};
use crate::carrier::{CloseCode, Link};

/// For so long the way that worked is tried first (RFC 8305, section 4: ten minutes).
const KEPT_CARRIER: Duration = Duration::from_secs(600);
/// Connections to one node at once.
const MAX_LINKS_PER_SEAT: usize = 4;

/// One node's place.
#[derive(Debug, Default)]
pub(super) struct Seat {
    /// The newest last; further ones stand over another carrier, and where this machine moved or
    /// both ends dialled at once. Overflow rule: see [`least_needed`].
    links: Mutex<Vec<Link>>,
    pub(super) dials: Arc<Dials>,
    /// What the last connection was made over, and when: what a network lets pass changes.
    worked: Mutex<Option<(Way, Instant)>>,
}

impl Seat {
    pub(super) fn links(&self) -> MutexGuard<'_, Vec<Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest is used from then on.
    pub(super) fn take(&self, link: Link) {
        let mut links = self.links();
        if links.len() >= MAX_LINKS_PER_SEAT {
            let least = least_needed(&links);
            links.remove(least).close(CloseCode::Done);
        }
        links.push(link);
    }

    /// Since when none of its connections has a stream.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let links = self.links();
        let since: Option<Vec<Instant>> = links.iter().map(Link::idle_since).collect();
        since?.into_iter().max()
    }

    pub(super) fn close(&self) {
        for link in self.links().iter() {
            link.close(CloseCode::Done);
        }
    }

    /// The connection that stands: over QUIC, if there is one.
    pub(super) fn link(&self) -> Option<Link> {
        self.link_over(None, None)
    }

    /// The newest that stands over what is wanted, else over QUIC before TCP, of those that were
    /// made `after`.
    pub(super) fn link_over(
        &self,
        wanted: Option<CarrierKind>,
        after: Option<Instant>,
    ) -> Option<Link> {
        let links = self.links();
        let fits = |link: &Link| stands(link) && after.is_none_or(|after| link.made() > after);
        let newest = |kind| {
            let mut newest_first = links.iter().rev();
            newest_first.find(|link| link.carrier() == kind && fits(link))
        };
        let link = match wanted {
            Some(kind) => newest(kind),
            None => CarrierKind::ALL.into_iter().find_map(newest),
        };
        link.cloned()
    }

    /// Whether a newer one over the same carrier has stood for so `long`.
    pub(super) fn has_newer(&self, link: &Link, long: Duration) -> bool {
        let links = self.links();
        let newer = links.iter().rev().take_while(|newer| !newer.is_same(link));
        let stands = |newer: &&Link| stands(newer) && newer.carrier() == link.carrier();
        newer
            .filter(stands)
            .any(|newer| newer.made().elapsed() >= long)
    }

    /// What is tried first.
    pub(super) fn worked(&self) -> Option<Way> {
        let worked = self.worked.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = worked.filter(|(_, when)| when.elapsed() < KEPT_CARRIER);
        fresh.map(|(way, _)| way)
    }

    pub(super) fn works(&self, way: Way) {
        let mut worked = self.worked.lock().unwrap_or_else(PoisonError::into_inner);
        *worked = Some((way, Instant::now()));
    }
}

/// Which one makes room: one that is closed, else the oldest without a stream, for flows live on then.
/// Else the newest that never answered: a punch makes several at once, and flows are on those before.
/// Else the oldest.
fn least_needed(links: &[Link]) -> usize {
    let closed = links.iter().position(Link::is_closed);
    let idle = || links.iter().position(|link| link.idle_since().is_some());
    let unanswered = || links.iter().rposition(|link| !link.has_answered());
    closed.or_else(idle).or_else(unanswered).unwrap_or(0)
}

/// Whether streams may be opened on it.
pub(super) fn stands(link: &Link) -> bool {
    !link.is_closed() && !link.is_silent()
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{answer, somebody},
        *,
    };

    #[tokio::test]
    async fn one_connection_too_many_ends_the_one_that_is_needed_least() {
        let ((id, called), (_, caller)) = (somebody(), somebody());
        let address = called.listen_addresses()[0];
        let answers = tokio::spawn(answer(called));
        let seat = Seat::default();
        let seats = |link: &Link| seat.links().iter().any(|seated| seated.is_same(link));
        let take = async |has_answered: bool| {
            let way = (CarrierKind::Quic, address);
            let link = caller.dial(caller.myself(), id, way).await.unwrap();
            let flow = link.open().await.unwrap();
            if has_answered {
                link.note_answer();
            }
            seat.take(link.clone());
            (link, flow)
        };
        let first = take(true).await;
        let second = take(false).await;
        let third = take(true).await;
        let mut newest = take(false).await;
        for _ in 0..2 {
            let newer = take(false).await;
            assert!(
                newest.0.is_closed() && !seats(&newest.0),
                "it never answered"
            );
            newest = newer;
        }
        // Without a stream, and closed.
        drop(first.1);
        third.0.close(CloseCode::Done);
        let fourth = take(true).await;
        assert!(seats(&first.0) && !seats(&third.0), "it was closed");
        let fifth = take(true).await;
        assert!(first.0.is_closed(), "nothing was on it");
        newest.0.note_answer();
        let _sixth = take(true).await;
        assert!(second.0.is_closed(), "it never answered");
        let _seventh = take(true).await;
        assert!(newest.0.is_closed(), "it is the oldest");
        assert!(seats(&fourth.0) && seats(&fifth.0));
        answers.abort();
    }
}
