//! Which flows go over from a relayed tunnel to a direct one, and when. A flow goes where new ones of
//! its plan would go, or where its plan says so: by a direct connection to the same peer, when one
//! stands. Whatever fails, it stays where it is.

use std::{collections::BTreeMap, convert::Infallible, future::pending, time::Duration};

use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout, timeout_at};
use wormholes_proto::{CarrierKind, NodeId, Reason};
use wormholes_rules::{Migrate, Plan, Tunnel, TunnelKind};

use super::{open::Route, record, table::Place};
use crate::{
    carrier::Link,
    node::NodeCore,
    pipe::Handover,
    tunnel::{OpenError, Opened, ask_to_move},
};

/// New connections are told of. This is for what is not: one that came to life again, a plan that no
/// longer sticks to its relay.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Until a connection is asked again that a flow could not go over to: doubled each time.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(60);

/// That a flow may go over, and to what.
#[derive(Debug)]
pub(super) struct Terms {
    to: NodeId,
    /// None: any.
    carrier: Option<CarrierKind>,
    /// A plan that sticks to its relay, and the step that has to have its turn again before.
    sticks: Option<(Plan, usize)>,
}

impl Terms {
    /// Those of a flow that `plan` opened by its step `taken`; `None`: it stays.
    pub(super) fn of(plan: Plan, taken: usize, opened: &Opened) -> Option<Self> {
        let to = *opened.path.last()?;
        if opened.kind != TunnelKind::Relay || !may_be_direct(&plan) {
            return None;
        }
        let leads_there = |tunnel: &Tunnel| match tunnel {
            Tunnel::Direct { to: end, .. } => *end == Some(to),
            Tunnel::Punch { to: end, .. } => *end == to,
            Tunnel::Relay { .. }
            | Tunnel::Onion { .. }
            | Tunnel::Tor
            | Tunnel::I2p { .. }
            | Tunnel::Socks { .. }
            | Tunnel::Block { .. } => false,
        };
        // A direct tunnel behind the relayed one is what the script wants less.
        let mut preferred = plan.steps.iter().take(taken + 1).enumerate();
        let direct = preferred.find(|(_, step)| step.tunnels.iter().any(leads_there));
        let direct = direct.map(|(number, step)| (number, step.marks.carrier));
        match (direct, plan.migrate) {
            (_, Some(Migrate::Nothing)) | (None, None) => None,
            (None, Some(Migrate::Streams)) => Some(Self {
                to,
                carrier: None,
                sticks: None,
            }),
            (Some((number, carrier)), Some(Migrate::Streams) | None) => Some(Self {
                to,
                carrier,
                sticks: plan.stick.is_some().then_some((plan, number)),
            }),
        }
    }
}

/// The connections that a flow could not go over to, by when they were made: at most those that stand.
#[derive(Debug, Default)]
struct Failures(BTreeMap<Instant, Failure>);

#[derive(Debug)]
struct Failure {
    wait: Duration,
    /// None: never.
    again: Option<Instant>,
}

impl Failures {
    /// Forgets connections that are gone.
    fn keep(&mut self, standing: &[Instant]) {
        self.0.retain(|made, _| standing.contains(made));
    }

    /// Whether the connection may be asked.
    fn lets_ask(&self, made: Instant) -> bool {
        let is_due = |again: Instant| again <= Instant::now();
        self.0
            .get(&made)
            .is_none_or(|failure| failure.again.is_some_and(is_due))
    }

    /// Asking the connection failed; `is_final`: it need not be asked again.
    fn add(&mut self, made: Instant, is_final: bool) {
        let before = self.0.get(&made).map(|failure| failure.wait);
        let wait = before.map_or(FIRST_WAIT, |wait| wait.saturating_mul(2).min(LAST_WAIT));
        let again = (!is_final).then(|| Instant::now() + wait);
        self.0.insert(made, Failure { wait, again });
    }

    /// When to look again, though nobody tells of a connection.
    fn look_again(&self) -> Instant {
        let now = Instant::now();
        let again = self.0.values().filter_map(|failure| failure.again);
        // What is due already waits for something else.
        let coming = again.filter(|again| *again > now);
        coming.fold(now + LOOK_AGAIN, Ord::min)
    }
}

/// Whether the other end will say the same again: that it has no such session, or knows no moving.
fn is_final(error: &OpenError) -> bool {
    matches!(error, OpenError::Refused { reason, .. } if *reason != Reason::Busy)
}

/// Whether a direct tunnel is no weaker than a closed plan allows.
fn may_be_direct(plan: &Plan) -> bool {
    let Some(first) = plan.steps.first() else {
        return false;
    };
    let is_weaker = |first: &Tunnel| TunnelKind::Direct.is_weaker_than(first.kind());
    !plan.closed || !first.tunnels.first().is_some_and(is_weaker)
}

/// Has the flow go over, if it may, as long as it travels; `None`: it stays.
pub(super) fn along<'a>(
    core: &'a NodeCore,
    flow: &'a Place,
    route: &mut Route,
) -> Option<BoxFuture<'a, Infallible>> {
    // Dropped, it says to the copy that the flow stays.
    let handover = route.opened.side.take_handover()?;
    let terms = route.moves.take()?;
    Some(Box::pin(go_over(core, flow, terms, handover)))
}

/// Waits for what never ends, if there is any.
pub(super) async fn beside(moving: Option<BoxFuture<'_, Infallible>>) -> Infallible {
    match moving {
        Some(moving) => moving.await,
        None => pending().await,
    }
}

async fn go_over(core: &NodeCore, flow: &Place, terms: Terms, handover: Handover) -> Infallible {
    handover.expect_stream();
    let mut links = core.network.moving_desk().links();
    let mut failures = Failures::default();
    let (pipe, place) = loop {
        links.mark_unchanged();
        if let Some(link) = direct_link(core, flow, &terms, &mut failures) {
            // Not for ever: another connection may be there by then.
            let Ok(Some(place)) = timeout(LOOK_AGAIN, link.own_crossing()).await else {
                continue;
            };
            match ask_to_move(&core.network, &link, handover.session()).await {
                Ok(pipe) => break (pipe, place),
                Err(error) => {
                    failures.add(link.made(), is_final(&error));
                    record::stays(core, flow, &error);
                }
            }
        } else {
            let _ = timeout_at(failures.look_again(), links.changed()).await;
        }
    };
    if handover.give(pipe, place).await.done().await {
        record::moved(core, flow, terms.to);
    }
    pending().await
}

/// A direct connection that the flow may go by, of those that may be asked: the newest, over QUIC
/// before TCP. One through Tor is no direct path.
fn direct_link(
    core: &NodeCore,
    flow: &Place,
    terms: &Terms,
    failures: &mut Failures,
) -> Option<Link> {
    let sticks = |(plan, number): &(Plan, usize)| core.sticks.first(plan, &flow.target) > *number;
    if terms.sticks.as_ref().is_some_and(sticks) {
        return None;
    }
    let links = core.network.peers().links_to(&terms.to);
    let standing: Vec<Instant> = links.iter().map(Link::made).collect();
    failures.keep(&standing);
    let fits = |link: &Link| {
        failures.lets_ask(link.made())
            && !link.goes_through_tor()
            && terms.carrier.is_none_or(|kind| kind == link.carrier())
    };
    let newest_first = links.into_iter().rev();
    newest_first.filter(fits).min_by_key(Link::carrier)
}

#[cfg(test)]
mod tests {
    use wormholes_rules::{Marks, Step, Stick};

    use super::*;
    use crate::{
        names::NodeName,
        pipe::{Pipe, Side},
    };

    const PEER: NodeId = NodeId::from_bytes([1; 32]);
    const RELAY: NodeId = NodeId::from_bytes([2; 32]);

    fn opened(kind: TunnelKind) -> Opened {
        let relay = (kind == TunnelKind::Relay).then_some(RELAY);
        let path = relay.into_iter().chain([PEER]).collect();
        Opened {
            side: Side::Stream(Pipe::memory().0),
            path,
            kind,
        }
    }

    fn direct(to: NodeId) -> Tunnel {
        Tunnel::Direct {
            to: Some(to),
            exit: false,
        }
    }

    fn relayed() -> Tunnel {
        Tunnel::Relay {
            via: None,
            to: PEER,
            exit: false,
        }
    }

    fn punched() -> Tunnel {
        Tunnel::Punch {
            via: None,
            to: PEER,
            exit: false,
        }
    }

    fn plan(steps: &[&[Tunnel]]) -> Plan {
        let step = |tunnels: &&[Tunnel]| Step {
            tunnels: tunnels.to_vec(),
            marks: Marks::default(),
        };
        Plan {
            steps: steps.iter().map(step).collect(),
            ..Plan::block("")
        }
    }

    fn moves(plan: &Plan, taken: usize) -> bool {
        Terms::of(plan.clone(), taken, &opened(TunnelKind::Relay)).is_some()
    }

    #[test]
    fn a_flow_goes_where_new_ones_of_its_plan_would_go() {
        let best = plan(&[&[direct(PEER)], &[relayed()]]);
        assert!(moves(&best, 1));
        let is_direct = Terms::of(best.clone(), 0, &opened(TunnelKind::Direct));
        assert!(is_direct.is_none(), "it is there");
        assert!(moves(&plan(&[&[relayed(), direct(PEER)]]), 0), "they race");
        let relayed_first = plan(&[&[relayed()], &[direct(PEER)]]);
        assert!(!moves(&relayed_first, 0), "a direct one is the last resort");
        assert!(!moves(&plan(&[&[direct(RELAY)], &[relayed()]]), 1));
        assert!(!moves(&plan(&[&[relayed()]]), 0));
    }

    #[test]
    fn best_goes_over_when_a_direct_way_comes_up() {
        let mut best = plan(&[&[punched()]]);
        assert!(moves(&best, 0));
        best.closed = true;
        assert!(moves(&best, 0));
        best.migrate = Some(Migrate::Nothing);
        assert!(!moves(&best, 0));
    }

    #[test]
    fn a_plan_says_whether_its_flows_go_over() {
        let migrate = |mut plan: Plan, migrate| {
            plan.migrate = Some(migrate);
            plan
        };
        let best = plan(&[&[direct(PEER)], &[relayed()]]);
        assert!(!moves(&migrate(best.clone(), Migrate::Nothing), 1));
        assert!(moves(&migrate(best, Migrate::Streams), 1));
        assert!(moves(&migrate(plan(&[&[relayed()]]), Migrate::Streams), 0));
    }

    #[test]
    fn no_flow_of_a_closed_plan_goes_where_the_plan_may_not() {
        let closed = |mut plan: Plan| {
            plan.closed = true;
            plan
        };
        let mut asked = closed(plan(&[&[relayed()]]));
        asked.migrate = Some(Migrate::Streams);
        assert!(!moves(&asked, 0));
        assert!(moves(&closed(plan(&[&[direct(PEER)], &[relayed()]])), 1));
    }

    #[test]
    fn a_plan_that_sticks_is_asked_for_its_turn_and_the_step_for_its_carrier() {
        let mut sticky = plan(&[&[Tunnel::Tor], &[direct(PEER)], &[relayed()]]);
        sticky.stick = Some(Stick {
            time: Duration::from_secs(9),
            back_after: 2,
        });
        if let Some(step) = sticky.steps.get_mut(1) {
            step.marks.carrier = Some(CarrierKind::Tcp);
        }
        let terms = Terms::of(sticky.clone(), 2, &opened(TunnelKind::Relay)).unwrap();
        assert_eq!(terms.carrier, Some(CarrierKind::Tcp));
        assert_eq!(terms.sticks, Some((sticky, 1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_failed_is_asked_again_and_hides_no_other() {
        let older = Instant::now();
        let newer = older + Duration::from_millis(1);
        let mut failures = Failures::default();
        for wait in [1, 2, 4, 8, 16, 32, 60, 60].map(Duration::from_secs) {
            failures.add(newer, false);
            assert!(failures.lets_ask(older));
            assert!(!failures.lets_ask(newer));
            let look = failures.look_again();
            assert_eq!(look, Instant::now() + wait.min(LOOK_AGAIN));
            tokio::time::advance(wait).await;
            assert!(failures.lets_ask(newer), "after {wait:?}");
            assert_eq!(failures.look_again(), Instant::now() + LOOK_AGAIN);
        }
        failures.keep(&[older]);
        failures.add(newer, false);
        tokio::time::advance(FIRST_WAIT).await;
        assert!(failures.lets_ask(newer), "what is gone is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_whose_far_end_does_not_move_the_flow_is_not_asked_again() {
        let made = Instant::now();
        let mut failures = Failures::default();
        failures.add(made, true);
        tokio::time::advance(LAST_WAIT * 2).await;
        assert!(!failures.lets_ask(made));
        assert!(!is_final(&OpenError::TimedOut(LAST_WAIT)));
        let refused = |reason| OpenError::Refused {
            node: NodeName {
                id: PEER,
                petname: None,
            },
            reason,
        };
        assert!(!is_final(&refused(Reason::Busy)));
        assert!(is_final(&refused(Reason::Denied)));
    }
}
