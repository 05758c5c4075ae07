//! What goes wrong, and when: a trap at a host call, a crash at a commit, and whatever befalls what
//! leaves a node.

use std::panic;

use wormholes_plugin::Plugin;

use crate::world::World;

/// Counted since the world began, or since the last fault was asked for.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub(crate) host_calls: u64,
    pub(crate) commits: u64,
    /// Messages, answers and acknowledgements that left a node.
    pub(crate) sends: u64,
    pub(crate) next: Option<Next>,
    /// Not while a query runs: it has no event that could be tried again.
    pub(crate) paused: bool,
}

/// A fault that comes once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// At the host call of this number.
    Trap(u64),
    /// Before the commit of this number is durable.
    CrashBefore(u64),
    /// When it is durable, and nothing has left the node.
    CrashAfter(u64),
    /// Before that of this number leaves its node.
    CrashBeforeSend(u64),
    /// When it has left.
    CrashAfterSend(u64),
    /// Its trunk breaks, and it does not arrive.
    Lose(u64),
}

/// What becomes of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Commit {
    Done,
    Lost,
    /// Done, but nobody is told.
    Silent,
}

/// What becomes of something that leaves a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    Done,
    /// The node crashes before.
    Never,
    /// The node crashes when it left.
    Last,
    /// It does not arrive.
    Lost,
}

impl Faults {
    pub(crate) fn expect(&mut self, next: Next) {
        *self = Self {
            next: Some(next),
            ..Self::default()
        };
    }

    pub(crate) fn host_call(&mut self) {
        if self.paused {
            return;
        }
        let number = self.host_calls;
        self.host_calls += 1;
        if self.next == Some(Next::Trap(number)) {
            self.next = None;
            // Without the words that a panic prints.
            panic::resume_unwind(Box::new(format!("a trap at host call {number}")));
        }
    }

    pub(crate) fn commit(&mut self) -> Commit {
        let number = self.commits;
        self.commits += 1;
        let commit = match self.next {
            Some(Next::CrashBefore(at)) if at == number => Commit::Lost,
            Some(Next::CrashAfter(at)) if at == number => Commit::Silent,
            _ => return Commit::Done,
        };
        self.next = None;
        commit
    }

    pub(crate) fn leave(&mut self) -> Leave {
        let number = self.sends;
        self.sends += 1;
        let leave = match self.next {
            Some(Next::CrashBeforeSend(at)) if at == number => Leave::Never,
            Some(Next::CrashAfterSend(at)) if at == number => Leave::Last,
            Some(Next::Lose(at)) if at == number => Leave::Lost,
            _ => return Leave::Done,
        };
        self.next = None;
        leave
    }
}

/// Runs a scenario in a world without faults, then again for each fault that can meet it: a trap at
/// each host call, a crash of the node before and after each commit, and at each message, answer and
/// acknowledgement a crash before and after it leaves, and its loss. The scenario must hold in all of them: who is told [`Unavailable`](wormholes_plugin::ErrorCode::Unavailable) looks, and asks
/// again.
///
/// # Panics
/// Where the scenario does; standard error names the fault.
pub fn every_fault<P: Plugin>(manifest: &str, scenario: impl Fn(&mut World<P>)) {
    let mut calm = World::new(0, manifest);
    scenario(&mut calm);
    let (host_calls, commits, sends) = calm.counted();
    let traps = (0..host_calls).map(Next::Trap);
    let crashes = (0..commits).flat_map(|at| [Next::CrashBefore(at), Next::CrashAfter(at)]);
    let sends = (0..sends).flat_map(|at| {
        [
            Next::CrashBeforeSend(at),
            Next::CrashAfterSend(at),
            Next::Lose(at),
        ]
    });
    for next in traps.chain(crashes).chain(sends) {
        let mut world = World::new(0, manifest);
        world.expect(next);
        let named = Named(next);
        scenario(&mut world);
        drop(named);
    }
}

/// Says which fault it was when the scenario does not hold.
struct Named(Next);

impl Drop for Named {
    #[expect(clippy::print_stderr, reason = "what a failing test says")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the scenario does not hold with the fault {:?}", self.0);
        }
    }
}
