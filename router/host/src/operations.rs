//! Operations: requests of the command line that outlive whoever made them, and the node.
//!
//! A request becomes one when its command's manifest says `operation = true` and its handler answers
//! `later`: the commit of that event holds its row. It ends by `requests.finish`, its deadline, or an
//! operator who cancels it; the commit of the event that ends it holds what it came to, which is kept
//! for [`KEPT`] or until it is collected.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    event::{Caller, Command, Principal, Refusal},
    message::text,
    rows::Home,
    transaction::Progress,
};

/// How long a result is kept that nobody collects.
pub(crate) const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Of the arguments, for lists; and of what is told of the progress. The rest is cut.
const MAX_TEXT_BYTES: usize = 1024;

/// What an operation came to.
pub type Outcome = Result<Vec<u8>, Refusal>;

/// An operation as its row has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OperationRow {
    #[serde(with = "text")]
    pub(crate) command: Arc<str>,
    arguments: String,
    caller: Caller,
    began_ms: u64,
    pub(crate) deadline_ms: Option<u64>,
    percent: Option<u8>,
    said: String,
    pub(crate) ended: Option<EndedRow>,
}

/// When it ended, and what its result has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndedRow {
    pub(crate) at_ms: u64,
    pub(crate) bytes: u64,
}

/// An operation, as far as it is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The request's id: no other one of this node has it, ever.
    pub id: u64,
    /// The instance that is at it.
    pub instance: Arc<str>,
    /// For whom.
    pub principal: Principal,
    /// Who began it.
    pub caller: Caller,
    /// The command.
    pub command: Arc<str>,
    /// Its arguments, a JSON object; cut after 1 KiB.
    pub arguments: String,
    /// Milliseconds since 1970.
    pub began_unix_ms: u64,
    /// It is canceled then; `None`: never.
    pub deadline_unix_ms: Option<u64>,
    /// How far it said last that it is, 0 to 100.
    pub percent: Option<u8>,
    /// The same, for people; may be empty.
    pub said: String,
    /// `None`: it goes on.
    pub ended_unix_ms: Option<u64>,
    /// Rises with each change since the plugin was loaded.
    pub changes: u64,
}

/// What a commit changes of an operation.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// It is so from now on.
    Is(Box<OperationRow>),
    /// Nothing is kept of it any more.
    Gone,
}

/// The operations of an instance: those of all its principals, as far as they are durable.
#[derive(Debug, Default)]
pub(crate) struct Board(Mutex<BTreeMap<u64, Entry>>);

#[derive(Debug)]
struct Entry {
    home: Home,
    principal: Principal,
    row: OperationRow,
    changes: watch::Sender<u64>,
}

impl OperationRow {
    pub(crate) fn new(command: &Command, deadline_ms: Option<u64>, now_ms: u64) -> Self {
        Self {
            command: Arc::clone(&command.name),
            arguments: cut(&String::from_utf8_lossy(&command.body)),
            caller: command.caller.clone(),
            began_ms: now_ms,
            deadline_ms,
            percent: None,
            said: String::new(),
            ended: None,
        }
    }

    /// One of which only the number is known.
    pub(crate) fn unknown() -> Self {
        Self::new(&Command::new(Caller::Operator, "", &[]), None, 0)
    }

    pub(crate) fn hear(&mut self, progress: &Progress) {
        (self.percent, self.said) = (progress.percent, cut(&progress.text));
    }
}

impl Board {
    /// What is durable of an operation from now on.
    pub(crate) fn apply(&self, (home, principal): (Home, &Principal), id: u64, change: Change) {
        let mut all = self.all();
        match (change, all.get_mut(&id)) {
            (Change::Gone, _) => drop(all.remove(&id)),
            (Change::Is(row), Some(entry)) => {
                let row = *row;
                entry.row = row;
                entry.changes.send_modify(|changes| *changes += 1);
            }
            (Change::Is(row), None) => {
                let row = *row;
                let entry = Entry {
                    home,
                    principal: principal.clone(),
                    row,
                    changes: watch::Sender::new(1),
                };
                all.insert(id, entry);
            }
        }
    }

    /// The store failed: these are the operations of a principal, whatever was said to be lost.
    pub(crate) fn begin_anew<'a>(
        &self,
        of: (Home, &Principal),
        rows: impl Iterator<Item = (u64, &'a OperationRow)>,
    ) {
        let rows: BTreeMap<u64, &OperationRow> = rows.collect();
        let mut all = self.all();
        all.retain(|id, entry| entry.home != of.0 || rows.contains_key(id));
        let is_known = |id: &u64, row: &OperationRow| {
            let known = all.get(id);
            known.is_some_and(|entry| entry.row == *row)
        };
        let news = rows.into_iter().filter(|(id, row)| !is_known(id, row));
        let news: Vec<_> = news.collect();
        drop(all);
        for (id, row) in news {
            self.apply(of, id, Change::Is(Box::new(row.clone())));
        }
    }

    /// Nothing of this principal is kept.
    pub(crate) fn forget(&self, home: Home) {
        self.all().retain(|_, entry| entry.home != home);
    }

    /// How many go on.
    pub(crate) fn open_count(&self) -> usize {
        let all = self.all();
        let open = all.values().filter(|entry| entry.row.ended.is_none());
        open.count()
    }

    pub(crate) fn list(&self, instance: &Arc<str>) -> Vec<Operation> {
        let all = self.all();
        all.iter()
            .map(|(id, entry)| entry.operation(*id, instance))
            .collect()
    }

    /// One of them, whose it is, and what hears of its changes.
    pub(crate) fn watch(
        &self,
        id: u64,
        instance: &Arc<str>,
    ) -> Option<(Operation, Home, watch::Receiver<u64>)> {
        let all = self.all();
        let entry = all.get(&id)?;
        let changes = entry.changes.subscribe();
        Some((entry.operation(id, instance), entry.home, changes))
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn operation(&self, id: u64, instance: &Arc<str>) -> Operation {
        let row = self.row.clone();
        Operation {
            id,
            instance: Arc::clone(instance),
            principal: self.principal.clone(),
            caller: row.caller,
            command: row.command,
            arguments: row.arguments,
            began_unix_ms: row.began_ms,
            deadline_unix_ms: row.deadline_ms,
            percent: row.percent,
            said: row.said,
            ended_unix_ms: row.ended.map(|ended| ended.at_ms),
            changes: *self.changes.borrow(),
        }
    }
}

fn cut(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_TEXT_BYTES);
    text.get(..end).unwrap_or_default().to_owned()
}
