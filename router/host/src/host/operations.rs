//! Operations as their operators see them: begun, listed, waited for, canceled and collected.

use std::time::Duration;

use tokio::{sync::watch, time::timeout};

use super::{Command, Host, Shared, shared::after};
use crate::{
    event::{ErrorCode, Principal, Refusal, Reply, Request, Wish},
    mail::Owner,
    message::decode,
    operations::{Operation, Outcome},
    principal::Task,
    rows::{Home, Space},
};

/// How long the first answer may take: done, or later.
const BEGIN: Duration = Duration::from_secs(30);
/// How long an operation may take to end when it is canceled, and to be forgotten.
const END: Duration = Duration::from_secs(60);

/// What came of a request that may become an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// It was answered at once.
    Done(Vec<u8>),
    /// It goes on, and is durable.
    Operation(Box<Operation>),
}

/// Hears of the changes of an operation.
#[derive(Debug)]
pub struct News(Option<watch::Receiver<u64>>);

/// An operation, and where it is known.
struct Found {
    operation: Operation,
    owner: Owner,
    changes: watch::Receiver<u64>,
}

impl Host {
    /// Hands a request to a principal that goes on, if its handler answers `later`, until it is
    /// finished or canceled, or until `deadline`, whoever stops meanwhile.
    ///
    /// # Errors
    /// What the plugin refused, or why it could not be asked; [`ErrorCode::Quota`]: too many go on.
    pub async fn begin(
        &self,
        instance: &str,
        principal: Principal,
        command: Command,
        deadline: Option<Duration>,
    ) -> Result<Begun, Refusal> {
        let owner = self.shared.owner(instance, principal)?;
        let id = self.shared.next_request();
        let request = Request {
            id,
            wish: Wish::Command(command.for_long()),
            deadline_ms: deadline.map(after),
        };
        let pending = self.shared.hand_over(&owner, request, BEGIN)?;
        Ok(match pending.reply().await? {
            Reply::Done(answer) => Begun::Done(answer),
            Reply::Later => Begun::Operation(Box::new(self.shared.operation(id)?.operation)),
        })
    }

    /// All operations, those that ended and whose results are kept among them, the oldest first.
    pub fn operations(&self) -> Vec<Operation> {
        let all = self.shared.all();
        let mut operations: Vec<_> = all
            .iter()
            .flat_map(|loaded| loaded.board.list(&loaded.name))
            .collect();
        operations.sort_unstable_by_key(|operation| operation.id);
        operations
    }

    /// What hears of an operation's changes, without holding the host.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`]: there is none, or its result was collected.
    pub fn news(&self, id: u64) -> Result<News, Refusal> {
        let found = self.shared.operation(id)?;
        let has_ended = found.operation.ended_unix_ms.is_some();
        Ok(News((!has_ended).then_some(found.changes)))
    }

    /// How an operation is, and what it came to, once it ended.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`]: there is none, or its result was collected.
    pub fn operation(&self, id: u64) -> Result<(Operation, Option<Outcome>), Refusal> {
        let found = self.shared.operation(id)?;
        let outcome = match found.operation.ended_unix_ms {
            Some(_) => Some(self.shared.outcome(found.owner.home, id)?),
            None => None,
        };
        Ok((found.operation, outcome))
    }

    /// Has an operation end; returns when it has, and its plugin was told. One that ended is as it is.
    ///
    /// # Errors
    /// There is none, or its plugin is parked, stopped or slow.
    pub async fn cancel(&self, id: u64) -> Result<Operation, Refusal> {
        let mut found = self.shared.operation(id)?;
        if found.operation.ended_unix_ms.is_some() {
            return Ok(found.operation);
        }
        self.shared.tell(&found.owner, Task::Cancel(id)).await?;
        let ended = async {
            while found.changes.changed().await.is_ok() {
                let operation = self.shared.operation(id)?.operation;
                if operation.ended_unix_ms.is_some() {
                    return Ok(operation);
                }
            }
            Err(none(id))
        };
        timeout(END, ended).await.unwrap_or_else(|_| Err(slow()))
    }

    /// Forgets an operation that ended, and its result.
    ///
    /// # Errors
    /// There is none, it goes on, or its plugin is slow.
    pub async fn collect(&self, id: u64) -> Result<Operation, Refusal> {
        let mut found = self.shared.operation(id)?;
        if found.operation.ended_unix_ms.is_none() {
            let open = format!("operation {id} goes on; `wormholes op cancel {id}` ends it");
            return Err(Refusal::new(ErrorCode::Invalid, open));
        }
        self.shared.tell(&found.owner, Task::Collect(id)).await?;
        let forgotten = async { while found.changes.changed().await.is_ok() {} };
        let forgotten = timeout(END, forgotten).await;
        forgotten.map_err(|_| slow()).map(|()| found.operation)
    }
}

impl News {
    /// Waits as long as `patience` for more than `seen` changes; not at all when it has ended.
    pub async fn wait(&mut self, seen: u64, patience: Duration) {
        if let Some(changes) = &mut self.0 {
            // It may be collected meanwhile.
            let news = changes.wait_for(|changes| *changes > seen);
            let _ = timeout(patience, news).await;
        }
    }
}

impl Shared {
    fn operation(&self, id: u64) -> Result<Found, Refusal> {
        for loaded in self.all() {
            if let Some((operation, home, changes)) = loaded.board.watch(id, &loaded.name) {
                let principal = operation.principal.clone();
                return Ok(Found {
                    operation,
                    owner: Owner {
                        loaded,
                        principal,
                        home,
                    },
                    changes,
                });
            }
        }
        Err(none(id))
    }

    fn outcome(&self, home: Home, id: u64) -> Result<Outcome, Refusal> {
        let row = self
            .store
            .snapshot()
            .get(&home.key(Space::Result, &id.to_be_bytes()));
        let row = row.map_err(|error| {
            let why = format!("the store cannot be read: {error}");
            Refusal::new(ErrorCode::Unavailable, why)
        })?;
        // It may have been collected since.
        let row = row.ok_or_else(|| none(id))?;
        decode(&row).ok_or_else(|| {
            let damaged = format!("the result of operation {id} is damaged");
            Refusal::new(ErrorCode::Failed, damaged)
        })
    }

    /// Hands a task to a principal, which is woken for it, when there is room.
    async fn tell(&self, owner: &Owner, task: Task) -> Result<(), Refusal> {
        let is_cancel = matches!(task, Task::Cancel(_));
        let health = owner.loaded.health(&owner.principal);
        if let Some(refusal) = health.closed().filter(|_| is_cancel) {
            return Err(refusal);
        }
        let post = self.post(owner)?;
        let sent = timeout(END, post.tasks().send(Box::new(task))).await;
        sent.map_err(|_| slow())?.map_err(|_| slow())
    }
}

fn none(id: u64) -> Refusal {
    let missing = format!("there is no operation {id}; `wormholes op list` shows them");
    Refusal::new(ErrorCode::NotFound, missing)
}

fn slow() -> Refusal {
    let slow = "the plugin is slow; look at `wormholes plugin list`";
    Refusal::new(ErrorCode::Unavailable, slow)
}
