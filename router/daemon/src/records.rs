//! What this node says about itself, and what it knows of others: whole sets of signed records,
//! exchanged with every peer. Nobody is ever asked for one node's record alone, which would tell
//! whom a flow goes to.

mod fetches;

use std::{
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use tokio::sync::watch;
use wormholes_proto::{
    Answer, MAX_RECORD_ADDRESSES, MAX_RECORD_EXIT_PORTS, MAX_RECORD_RELAYS, NodeId, NodeRecord,
    OnionKey, Open, RECORD_RENEWAL, RecordBook, RecordError, RecordSetReader, Roles, SignedRecord,
    Suite,
};

use crate::{
    carrier::Link,
    clock::unix_ms,
    config::Config,
    counters::Counters,
    identity::Identity,
    pipe::{Pipe, PipeError},
};

pub(crate) use fetches::Fetches;

/// Sets are fetched again this often from every connected peer; its load is as old at most.
pub(crate) const REFRESH_PERIOD: Duration = Duration::from_secs(300);
/// Fetching a set may take so long.
const FETCH_TIMEOUT: Duration = Duration::from_secs(20);

/// The records that this node has.
#[derive(Debug)]
pub(crate) struct Records {
    book: Mutex<RecordBook>,
    own: watch::Sender<SignedRecord>,
}

/// What goes into this node's own record.
#[derive(Debug)]
pub(crate) struct OwnRecord<'a> {
    pub(crate) config: &'a Config,
    pub(crate) identity: &'a Identity,
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) onion_keys: Vec<OnionKey>,
    pub(crate) relays: Vec<NodeId>,
}

impl OwnRecord<'_> {
    /// Signs it. The sequence is the time in milliseconds, or one more than the last.
    ///
    /// # Errors
    /// [`RecordError`] when config.toml holds what a record cannot.
    pub(crate) fn sign(self, last_sequence: u64) -> Result<SignedRecord, RecordError> {
        let advertise = &self.config.node.advertise;
        let mut addresses = if advertise.is_empty() {
            let told = self
                .listen
                .into_iter()
                .filter(|own| !own.ip().is_unspecified());
            told.collect()
        } else {
            advertise.clone()
        };
        addresses.truncate(MAX_RECORD_ADDRESSES);
        let mut relays = self.relays;
        relays.truncate(MAX_RECORD_RELAYS);
        let record = NodeRecord {
            id: self.identity.id(),
            sequence: unix_ms(SystemTime::now()).max(last_sequence.saturating_add(1)),
            addresses,
            noise_key: *self.identity.noise().public(),
            suite: Suite::fastest_here(),
            onion_keys: self.onion_keys,
            roles: Roles {
                relay: self.config.relay.enabled,
                hop: self.config.hop.role.enabled,
                exit: self.config.exit.role.enabled,
            },
            exit_ports: exit_ports(self.config),
            family: self.config.node.family.clone(),
            relays,
        };
        record.sign(|message| self.identity.sign(message))
    }
}

impl Records {
    pub(crate) fn new(own: SignedRecord) -> Self {
        let records = Self {
            book: Mutex::default(),
            own: watch::Sender::new(own.clone()),
        };
        records.add(own);
        records
    }

    /// All of them, this node's own included.
    pub(crate) fn book(&self) -> MutexGuard<'_, RecordBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node's own.
    pub(crate) fn own(&self) -> SignedRecord {
        self.own.borrow().clone()
    }

    /// The highest sequence that this node ever gave itself, as far as anybody remembers.
    pub(crate) fn last_own_sequence(&self) -> u64 {
        let own = self.own();
        let known = self.get(&own.id());
        known
            .map_or(0, |known| known.record().sequence)
            .max(own.record().sequence)
    }

    /// Whether this node has to sign anew: its record gets old, or others hold one of its former
    /// life for newer, because its clock went backwards.
    pub(crate) fn is_outdated(&self) -> bool {
        let own = self.own();
        let age = SystemTime::now().duration_since(own.record().signed_at());
        let is_old = age.is_ok_and(|age| age > RECORD_RENEWAL);
        is_old || self.last_own_sequence() > own.record().sequence
    }

    /// Names the nodes whose records always have a place, this one's own among them.
    pub(crate) fn set_kept(&self, nodes: impl IntoIterator<Item = NodeId>) {
        let own = self.own().id();
        self.book()
            .set_kept(nodes.into_iter().chain([own]).collect());
    }

    /// Drops what is too old to be true.
    pub(crate) fn drop_expired(&self) {
        self.book().handle_timeout(SystemTime::now());
    }

    /// Takes a record that no set brought; whether it is new.
    pub(crate) fn add(&self, record: SignedRecord) -> bool {
        let own = self.own().id();
        let outcome = self
            .book()
            .handle_record(SystemTime::now(), own, record.clone());
        tracing::debug!(node = %record.id(), ?outcome, "record");
        outcome.is_news()
    }

    /// This node's own, and each that follows it.
    pub(crate) fn follow_own(&self) -> watch::Receiver<SignedRecord> {
        self.own.subscribe()
    }

    /// Replaces this node's own.
    pub(crate) fn set_own(&self, own: SignedRecord) {
        self.add(own.clone());
        self.own.send_replace(own);
    }

    /// The newest record of a node.
    pub(crate) fn get(&self, id: &NodeId) -> Option<SignedRecord> {
        self.book().get(id).cloned()
    }

    /// Fetches the whole set of one peer; whether anything is new.
    pub(crate) async fn fetch(&self, link: &Link, counters: &Counters) -> Result<bool, FetchError> {
        let fetch = async {
            let set = async { self.fetch_set(link, link.open().await?, counters).await };
            link.while_alive(set).await?
        };
        let result = tokio::time::timeout(FETCH_TIMEOUT, fetch).await;
        let result = result.unwrap_or(Err(FetchError::TimedOut));
        if let Err(error) = &result {
            tracing::debug!(peer = %link.peer(), %error, "no records from the peer");
        }
        result
    }

    async fn fetch_set(
        &self,
        link: &Link,
        mut pipe: Pipe,
        counters: &Counters,
    ) -> Result<bool, FetchError> {
        pipe.writer.send_open(&Open::Records).await?;
        pipe.writer.finish().await?;
        let answer = counters.answered(pipe.reader.read_answer().await)?;
        link.note_answer();
        match answer {
            Answer::Accepted(body) => link.set_load(body.first().copied().unwrap_or(0)),
            Answer::Refused(reason) => return Err(FetchError::Refused(reason)),
        }
        let mut set = RecordSetReader::new();
        let mut news = false;
        let malformed = |_| PipeError::Malformed("set of records");
        while let Some(chunk) = counters.answered(pipe.reader.read_chunk().await)? {
            set.handle_bytes(&chunk);
            while let Some(record) = counters.answered(set.poll_record().map_err(malformed))? {
                news |= self.take(link.peer(), &record, counters);
            }
        }
        counters.answered(set.handle_end().map_err(malformed))?;
        Ok(news)
    }

    /// Takes one encoded record that `teller` told; whether it is new. One that does not verify is
    /// counted, the rest of its set is judged by itself.
    fn take(&self, teller: NodeId, record: &[u8], counters: &Counters) -> bool {
        let taken = self.book().handle_bytes(SystemTime::now(), teller, record);
        match taken {
            Ok(outcome) => outcome.is_news(),
            Err(error) => {
                counters.records_refused.fetch_add(1, Relaxed);
                tracing::debug!(%error, "record refused");
                false
            }
        }
    }

    /// Sends the whole set down a stream that was accepted.
    pub(crate) async fn serve(&self, pipe: Pipe) -> Result<(), PipeError> {
        let mut pipe = pipe;
        let set = self.book().encode_set(SystemTime::now());
        pipe.writer.write_chunk(set.into()).await?;
        pipe.writer.finish().await
    }
}

/// A set of records that was not fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(transparent)]
    Link(#[from] crate::carrier::LinkError),
    #[error(transparent)]
    Pipe(#[from] PipeError),
    #[error("refused: {0}")]
    Refused(wormholes_proto::Reason),
    #[error("timed out")]
    TimedOut,
}

/// A summary of what the exit dials: ranges of ports, whatever the address.
fn exit_ports(config: &Config) -> Vec<(u16, u16)> {
    if !config.exit.role.enabled {
        return Vec::new();
    }
    let mut ports: Vec<(u16, u16)> = Vec::new();
    for rule in &config.exit.allow {
        if rule.ports.is_empty() {
            return vec![(1, u16::MAX)];
        }
        ports.extend(&rule.ports);
    }
    ports.sort_unstable();
    ports.dedup();
    ports.truncate(MAX_RECORD_EXIT_PORTS);
    ports
}
