//! Which step of a plan flows begin with that sticks (`.stick`, `.back_after`): the one that opened
//! last, when those before it had failed. Takes the time as an argument, and probes nothing: flows
//! themselves find out whether an earlier step opens again.

use std::{
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use wormholes_proto::Target;
use wormholes_rules::{Plan, Stick, Tunnel};

/// Plans, and plans for one target, that are remembered. Overflow: the one whose time is over first
/// makes room; its flows begin with the first step again.
const MAX_KEPT: usize = 1024;

/// What is remembered, of all plans.
#[derive(Debug, Default)]
pub(crate) struct Sticks {
    kept: Mutex<Vec<Kept>>,
}

/// Flows of one plan begin with a later step.
#[derive(Debug)]
struct Kept {
    scope: Scope,
    step: usize,
    /// From then on steps before it have their turn again.
    until: Instant,
    /// How often in a row one of them opened since.
    clean: u32,
    /// A flow finds out: the others do not wait for what may be dead.
    is_checked: bool,
}

/// Whose failure it was.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scope {
    ways: Vec<Vec<Tunnel>>,
    stick: Stick,
    /// The only target that the ways before failed for; none: they failed by themselves.
    target: Option<Target>,
}

/// One flow of a plan that sticks.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    sticks: &'a Sticks,
    scope: Scope,
    target: Target,
    /// The step that was remembered when it began.
    kept: Option<usize>,
    /// It is the one that finds out.
    checks: bool,
}

impl Sticks {
    /// A flow to `target` begins; none when its plan does not stick.
    pub(super) fn begin(&self, plan: &Plan, target: &Target, now: Instant) -> Option<Turn<'_>> {
        let mut scope = Scope {
            stick: plan.stick?,
            ways: plan.steps.iter().map(|step| step.tunnels.clone()).collect(),
            target: Some(target.clone()),
        };
        let mut all = self.lock();
        if !all.iter().any(|kept| kept.scope == scope) {
            scope.target = None;
        }
        let mut turn = Turn {
            sticks: self,
            scope,
            target: target.clone(),
            kept: None,
            checks: false,
        };
        if let Some(kept) = all.iter_mut().find(|kept| kept.scope == turn.scope) {
            turn.kept = Some(kept.step);
            turn.checks = now >= kept.until && !kept.is_checked;
            kept.is_checked |= turn.checks;
        }
        drop(all);
        Some(turn)
    }

    /// The step that flows of `plan` to `target` begin with by now, but for one that finds out.
    pub(super) fn first(&self, plan: &Plan, target: &Target) -> usize {
        let is_of_plan = |kept: &&Kept| {
            let ways = plan.steps.iter().map(|step| &step.tunnels);
            Some(kept.scope.stick) == plan.stick && kept.scope.ways.iter().eq(ways)
        };
        let all = self.lock();
        let of_target = |target: Option<&Target>| {
            let mut kept = all.iter().filter(is_of_plan);
            kept.find(|kept| kept.scope.target.as_ref() == target)
        };
        let kept = of_target(Some(target)).or_else(|| of_target(None));
        kept.map_or(0, |kept| kept.step)
    }

    fn keep(&self, scope: Scope, step: usize, now: Instant) {
        let mut all = self.lock();
        if all.iter().any(|kept| kept.scope == scope) {
            return;
        }
        if all.len() == MAX_KEPT {
            let soonest = all.iter().enumerate().min_by_key(|(_, kept)| kept.until);
            if let Some(index) = soonest.map(|(index, _)| index) {
                all.swap_remove(index);
            }
        }
        let mut kept = Kept {
            scope,
            step,
            until: now,
            clean: 0,
            is_checked: false,
        };
        kept.stay_with(step, now);
        all.push(kept);
    }

    /// Every change is whole: a panic elsewhere leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn stay_with(&mut self, step: usize, now: Instant) {
        self.step = step;
        // Scripts cannot ask for a time that does not fit.
        self.until = now.checked_add(self.scope.stick.time).unwrap_or(now);
        self.clean = 0;
    }
}

impl Turn<'_> {
    /// The step to begin with; the others follow in their order.
    pub(super) fn first(&self) -> usize {
        self.kept.filter(|_| !self.checks).unwrap_or(0)
    }

    /// The number in the plan of the step that is tried at `place`.
    pub(super) fn step_at(&self, place: usize) -> usize {
        match place {
            0 => self.first(),
            _ if place <= self.first() => place - 1,
            _ => place,
        }
    }

    /// The flow took `step`. `of_target`: one before it failed for what the target is.
    pub(super) fn opened(mut self, step: usize, of_target: bool, now: Instant) {
        let checks = mem::take(&mut self.checks);
        let Some(begun) = self.kept else {
            if step > 0 {
                let target = of_target.then(|| self.target.clone());
                let scope = Scope {
                    target,
                    ..self.scope.clone()
                };
                self.sticks.keep(scope, step, now);
            }
            return;
        };
        let mut all = self.sticks.lock();
        let Some(index) = all.iter().position(|kept| kept.scope == self.scope) else {
            return;
        };
        let Some(kept) = all.get_mut(index) else {
            return;
        };
        if checks {
            kept.is_checked = false;
            if step < kept.step {
                kept.clean += 1;
                if kept.clean < self.scope.stick.back_after {
                    return;
                }
            }
        } else if step == begun || kept.step != begun {
            // As expected, or another flow knows better by now.
            return;
        }
        match step {
            0 => drop(all.swap_remove(index)),
            _ => kept.stay_with(step, now),
        }
    }
}

impl Drop for Turn<'_> {
    /// A flow that ends without an answer found out nothing.
    fn drop(&mut self) {
        if !self.checks {
            return;
        }
        let mut all = self.sticks.lock();
        if let Some(kept) = all.iter_mut().find(|kept| kept.scope == self.scope) {
            kept.is_checked = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wormholes_rules::{Marks, Step};

    use super::*;

    const TIME: Duration = Duration::from_secs(600);
    const OFFICE: &str = "office.example:1";
    const OTHER: &str = "other.example:1";

    /// Three ways, named by `plan`.
    fn plan(name: &str, back_after: u32) -> Plan {
        let step = |why: &str| Step {
            tunnels: vec![Tunnel::Block {
                why: format!("{name} {why}"),
            }],
            marks: Marks::default(),
        };
        Plan {
            steps: ["a", "b", "c"].map(step).into(),
            closed: false,
            stick: Some(Stick {
                time: TIME,
                back_after,
            }),
            migrate: None,
        }
    }

    fn begin<'a>(sticks: &'a Sticks, plan: &Plan, target: &str, now: Instant) -> Turn<'a> {
        sticks.begin(plan, &target.parse().unwrap(), now).unwrap()
    }

    /// The step that a flow began with, which then took `opened`.
    fn flow(sticks: &Sticks, plan: &Plan, now: Instant, opened: usize) -> usize {
        let turn = begin(sticks, plan, OFFICE, now);
        let first = turn.first();
        turn.opened(opened, false, now);
        first
    }

    #[test]
    fn flows_begin_with_what_opened_until_its_time_is_over() {
        let (sticks, plan, start) = (Sticks::default(), plan("", 1), Instant::now());
        assert_eq!(flow(&sticks, &plan, start, 0), 0, "nothing failed yet");
        assert_eq!(flow(&sticks, &plan, start, 1), 0);
        let almost = start + TIME - Duration::from_secs(1);
        assert_eq!(flow(&sticks, &plan, almost, 1), 1);
        // It fails too: the next in the plan's order.
        let turn = begin(&sticks, &plan, OFFICE, almost);
        assert_eq!([0, 1, 2].map(|place| turn.step_at(place)), [1, 0, 2]);
        turn.opened(2, false, almost);
        assert_eq!(flow(&sticks, &plan, almost, 2), 2);
        // Its time is over: the first one opens, and all go back at once.
        assert_eq!(flow(&sticks, &plan, almost + TIME, 0), 0);
        assert_eq!(flow(&sticks, &plan, almost + TIME, 0), 0);
        assert!(sticks.lock().is_empty());
        assert!(
            sticks
                .begin(&Plan::block(""), &OFFICE.parse().unwrap(), start)
                .is_none()
        );
    }

    #[test]
    fn all_go_back_when_an_earlier_step_opened_so_often_in_a_row() {
        let (sticks, plan, start) = (Sticks::default(), plan("", 2), Instant::now());
        flow(&sticks, &plan, start, 2);
        let over = start + TIME;
        // One flow at a time finds out, the others stay.
        let check = begin(&sticks, &plan, OFFICE, over);
        let beside = begin(&sticks, &plan, OFFICE, over);
        assert_eq!((check.first(), beside.first()), (0, 2));
        beside.opened(2, false, over);
        check.opened(0, false, over);
        assert_eq!(flow(&sticks, &plan, over, 2), 0, "the second check fails");
        assert_eq!(flow(&sticks, &plan, over, 2), 2);
        let over = over + TIME;
        // A flow that is given up found out nothing.
        drop(begin(&sticks, &plan, OFFICE, over));
        assert_eq!(flow(&sticks, &plan, over, 1), 0);
        assert_eq!(flow(&sticks, &plan, over, 1), 0);
        assert_eq!(flow(&sticks, &plan, over, 1), 1, "back as far as it goes");
        let over = over + TIME;
        assert_eq!(flow(&sticks, &plan, over, 0), 0);
        assert_eq!(flow(&sticks, &plan, over, 0), 0);
        assert!(sticks.lock().is_empty());
    }

    #[test]
    fn what_fails_for_one_target_is_kept_for_that_one() {
        let (sticks, plan, now) = (Sticks::default(), plan("", 1), Instant::now());
        let first = |target| begin(&sticks, &plan, target, now).first();
        begin(&sticks, &plan, OFFICE, now).opened(1, true, now);
        assert_eq!((first(OFFICE), first(OTHER)), (1, 0));
        begin(&sticks, &plan, OTHER, now).opened(2, false, now);
        // What is known of the target goes first.
        assert_eq!((first(OFFICE), first(OTHER)), (1, 2));
        let by_now = |target: &str| sticks.first(&plan, &target.parse().unwrap());
        assert_eq!((by_now(OFFICE), by_now(OTHER)), (1, 2));
        assert_eq!(
            sticks.first(&self::plan("other", 1), &OFFICE.parse().unwrap()),
            0
        );
        assert_eq!(first("third.example:1"), 2);
    }

    #[test]
    fn plans_that_are_remembered_are_bounded() {
        let (sticks, start) = (Sticks::default(), Instant::now());
        let plan = |number: usize| plan(&number.to_string(), 1);
        let at = |number: usize| start + Duration::from_millis(number as u64);
        for number in 0..=MAX_KEPT {
            flow(&sticks, &plan(number), at(number), 1);
        }
        let first = |number| begin(&sticks, &plan(number), OFFICE, start).first();
        assert_eq!([0, 1, MAX_KEPT].map(first), [0, 1, 1]);
        assert_eq!(sticks.lock().len(), MAX_KEPT);
    }
}
