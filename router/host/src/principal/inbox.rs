//! What waits for a principal, and who waits for its answers.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use tokio::sync::{
    OwnedSemaphorePermit,
    mpsc::{self, error::TrySendError},
    oneshot,
};

use super::TakeOver;
use crate::{
    blobs::Pin,
    event::{Incoming, Refusal, Reply, Request},
    message::Note,
    network::Datagram,
    transaction::Progress,
    wires::{SocketNews, Visitor},
};

/// The most that a manifest lets wait; which of them are refused, the version that runs says.
const MAX_TASKS: usize = 65_536;
/// One change at a time.
const MAX_ORDERS: usize = 1;

/// Something for a principal to do.
#[derive(Debug)]
pub(crate) enum Task {
    /// A request, and who waits for its answer.
    Request(Request, Asker),
    /// Who asked has left.
    Left(u64),
    /// An operator has no more use for an operation.
    Cancel(u64),
    /// Whoever wants the result of an operation has it.
    Collect(u64),
    /// A message.
    Message(Arc<Incoming>),
    /// Something is to be told, and has a row of this number.
    Note(u64, Note),
    /// The same, of this epoch, before its row is durable: what comes of it is durable behind that row or
    /// lost with it.
    EarlyNote(u64, u64, Note),
    /// What came of a question.
    Answer {
        id: u64,
        answer: Result<Bytes, Refusal>,
    },
    /// Something came of a request by HTTP.
    Fetched(u64),
    /// Somebody connected to a port of the plugin.
    Visit(Visitor),
    /// A datagram came to a port of the plugin.
    Datagram(Arc<Datagram>),
    /// What became of a connection; with its place among the pieces that wait, until it is handled.
    Socket {
        id: u64,
        news: SocketNews,
        place: Option<OwnedSemaphorePermit>,
    },
    /// So many bytes of a channel are acknowledged.
    Acknowledged { channel: u32, bytes: u64 },
    /// What came of a blob that it fetches.
    BlobFetched {
        id: u64,
        outcome: Result<(u64, Pin), Refusal>,
    },
    /// There is something to tell the node of.
    News,
    /// The time was moved: is something due? Asked again until nothing is.
    Look(oneshot::Sender<bool>),
    /// Comes first.
    Order(Order),
}

/// What the host wants of a principal, before all that waits for it.
#[derive(Debug)]
pub(crate) enum Order {
    /// Another version takes over.
    TakeOver(TakeOver),
    /// It ends, and says when it has.
    End(oneshot::Sender<()>),
    /// The user is removed: it ends as well, and whoever waits for an answer is told.
    Retire(oneshot::Sender<()>),
}

/// Where a principal's tasks are put. They are boxed: an empty queue of them keeps room for 32.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    /// Overflow: the newcomer is refused.
    tasks: mpsc::Sender<Box<Task>>,
    /// Of the office, which bounds them: by the windows of channels, and by what trunks may hold.
    mail: mpsc::UnboundedSender<Box<Task>>,
    delivered: Arc<AtomicUsize>,
    /// Overflow: whoever orders waits.
    orders: mpsc::Sender<Order>,
}

/// What comes out of it.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(super) tasks: mpsc::Receiver<Box<Task>>,
    mail: mpsc::UnboundedReceiver<Box<Task>>,
    reports: Reports,
    delivered: Arc<AtomicUsize>,
    pub(super) orders: mpsc::Receiver<Order>,
}

/// Where a principal's own connections and requests say what came, which is bounded by their credit and
/// their number. It keeps no principal awake.
#[derive(Debug, Clone)]
pub(crate) struct Reports {
    mail: mpsc::WeakUnboundedSender<Box<Task>>,
    delivered: Arc<AtomicUsize>,
}

/// Who waits for an answer.
#[derive(Debug)]
pub(crate) struct Asker {
    pub(crate) answer: oneshot::Sender<Result<Reply, Refusal>>,
    /// Overflow: what does not fit is left out.
    pub(crate) progress: Option<mpsc::Sender<Progress>>,
}

impl Task {
    /// What became of a connection, but for what came on it.
    pub(crate) fn socket(id: u64, news: SocketNews) -> Self {
        let place = None;
        Self::Socket { id, news, place }
    }
}

impl Asker {
    /// Nobody may listen any more.
    pub(super) fn say(self, answer: Result<Reply, Refusal>) {
        let _ = self.answer.send(answer);
    }
}

impl Post {
    /// A principal's post and inbox.
    pub(crate) fn new() -> (Self, Inbox) {
        let (tasks, received) = mpsc::channel(MAX_TASKS);
        let (mail, delivered) = mpsc::unbounded_channel();
        let (orders, ordered) = mpsc::channel(MAX_ORDERS);
        let waiting = Arc::new(AtomicUsize::new(0));
        let post = Self {
            tasks,
            mail,
            delivered: Arc::clone(&waiting),
            orders,
        };
        let reports = Reports {
            mail: post.mail.downgrade(),
            delivered: Arc::clone(&waiting),
        };
        let inbox = Inbox {
            tasks: received,
            mail: delivered,
            reports,
            delivered: waiting,
            orders: ordered,
        };
        (post, inbox)
    }

    /// Puts a task there that may be refused.
    ///
    /// # Errors
    /// `most` wait, or the principal has ended.
    pub(crate) fn offer(&self, task: Task, most: u32) -> Result<(), TrySendError<()>> {
        if self.offered() >= most as usize {
            return Err(TrySendError::Full(()));
        }
        self.tasks
            .try_send(Box::new(task))
            .map_err(|error| match error {
                TrySendError::Full(_) => TrySendError::Full(()),
                TrySendError::Closed(_) => TrySendError::Closed(()),
            })
    }

    /// Where tasks are offered.
    pub(crate) fn tasks(&self) -> &mpsc::Sender<Box<Task>> {
        &self.tasks
    }

    fn offered(&self) -> usize {
        self.tasks.max_capacity() - self.tasks.capacity()
    }

    /// Puts what the office has bounded there. A principal that ended reads it from the store.
    pub(crate) fn deliver(&self, task: Task) {
        self.delivered.fetch_add(1, Ordering::Relaxed);
        let _ = self.mail.send(Box::new(task));
    }

    /// Has it do something before all that waits; waits for room. False: it ended.
    pub(crate) async fn order(&self, order: Order) -> bool {
        self.orders.send(order).await.is_ok()
    }

    /// Tasks that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.offered() + self.delivered.load(Ordering::Relaxed)
    }
}

impl Reports {
    /// A principal that ended hears of nothing.
    pub(crate) fn tell(&self, task: Task) {
        if let Some(mail) = self.mail.upgrade() {
            self.delivered.fetch_add(1, Ordering::Relaxed);
            let _ = mail.send(Box::new(task));
        }
    }
}

impl Inbox {
    pub(super) fn reports(&self) -> Reports {
        self.reports.clone()
    }

    pub(super) async fn next(&mut self) -> Option<Task> {
        tokio::select! {
            task = self.tasks.recv() => task.map(|task| *task),
            task = self.mail.recv() => self.taken(task),
            order = self.orders.recv() => order.map(Task::Order),
        }
    }

    /// Whether something waits.
    pub(super) fn has_tasks(&self) -> bool {
        !self.tasks.is_empty() || !self.mail.is_empty()
    }

    pub(super) fn has_no_order(&self) -> bool {
        self.orders.is_empty()
    }

    fn taken(&self, task: Option<Box<Task>>) -> Option<Task> {
        if task.is_some() {
            self.delivered.fetch_sub(1, Ordering::Relaxed);
        }
        task.map(|task| *task)
    }

    pub(super) fn try_next(&mut self) -> Option<Task> {
        let mail = self.mail.try_recv().ok();
        self.taken(mail)
            .or_else(|| self.tasks.try_recv().ok().map(|task| *task))
    }
}
