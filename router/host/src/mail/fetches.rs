//! Blobs that principals fetch: one task each, over whatever trunks stand.
//!
//! ```text
//! a fetch is durable -> what of it is on disk is checked -> WANT on a trunk -> pieces, checked and written
//!   -> the trunk breaks: WANT again, from the first piece that is missing
//!   -> all are there: the file has its name -> the principal is told, in the event that holds the blob
//! ```

use std::{collections::HashMap, fs::File, os::unix::fs::FileExt as _, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    task::{AbortHandle, spawn_blocking},
    time::{sleep, timeout},
};
use wormholes_proto::{
    blob::BlobId,
    trunk::{BlobFetch, BlobFrame, FetchError, Fetched},
};

use super::{Input, Mail, Office, Owner, letters::Want, trunk::TrunkId};
use crate::{
    blobs::{Part, Pin},
    clock::now_ms,
    event::{ErrorCode, Principal, Query, Refusal},
    host::{Shared, held},
    message::{Address, Identity, Place},
    principal::Task,
    rows::Home,
    store::StoreError,
    transaction::FetchRow,
};

/// After a setback a blob is wanted again; twice as late each time, until the second one. How often a
/// node is called, its route says.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// Who gives, and says nothing for so long, is asked again.
const SILENCE: Duration = Duration::from_secs(60);
/// As long for its first word, which may be eight times as long as a piece, and waits for an answer of
/// the plugin.
const FIRST_SILENCE: Duration = Duration::from_secs(600);

/// What came on a trunk of a blob that is wanted.
#[derive(Debug)]
pub(crate) struct Came {
    pub(crate) trunk: TrunkId,
    /// Its number there.
    pub(crate) want: u64,
    /// `None`: it is wanted there from now on.
    pub(crate) frame: Option<BlobFrame>,
    pub(crate) room: Option<OwnedSemaphorePermit>,
}

/// The blobs that are fetched.
pub(super) type Fetches = HashMap<(Home, u64), AbortHandle>;

/// One of them.
struct Fetch {
    shared: Arc<Shared>,
    mail: Mail,
    owner: Owner,
    row: FetchRow,
    part: Part,
}

/// Why a blob is not there yet.
enum Setback {
    /// It is wanted again.
    Again,
    /// It does not come.
    Never(Refusal),
}

/// What is wanted on a trunk: given up with this.
struct Wanted<'a> {
    mail: &'a Mail,
    trunk: TrunkId,
    want: u64,
}

impl Office {
    /// What a principal fetches goes on.
    pub(super) fn resume_fetches(&mut self, owner: &Owner) -> Result<(), StoreError> {
        let fetches = crate::memory::fetches(owner.home, &self.store.snapshot())?;
        for (id, row) in fetches {
            self.begin_fetch(owner, id, row);
        }
        Ok(())
    }

    pub(super) fn begin_fetch(&mut self, owner: &Owner, id: u64, row: FetchRow) {
        let known = (owner.home, id);
        if self.fetches.contains_key(&known) {
            return;
        }
        let fetch = Fetch {
            part: self.shared.blobs.part(owner.home, id),
            shared: Arc::clone(&self.shared),
            mail: self.mail.clone(),
            owner: owner.clone(),
            row,
        };
        let (mail, owner) = (self.mail.clone(), owner.clone());
        let task = tokio::spawn(async move {
            let outcome = fetch.run().await;
            mail.tell(Input::Fetched { owner, id, outcome });
        });
        self.fetches.insert(known, task.abort_handle());
    }

    /// It came, or does not: the principal is told, and told again after a failure of the store.
    pub(super) fn fetched(&mut self, owner: &Owner, id: u64, outcome: Result<(u64, Pin), Refusal>) {
        if self.fetches.remove(&(owner.home, id)).is_some() {
            self.hand_over(owner, Task::BlobFetched { id, outcome });
        }
    }

    /// Nobody wants it any more.
    pub(super) fn end_fetch(&mut self, home: Home, id: u64) {
        if let Some(task) = self.fetches.remove(&(home, id)) {
            task.abort();
        }
    }

    /// None of these goes on here.
    pub(super) fn end_fetches(&mut self, is_its: impl Fn(Home) -> bool) {
        let its = self.fetches.extract_if(|(home, _), _| is_its(*home));
        its.for_each(|(_, task)| task.abort());
    }
}

impl Fetch {
    async fn run(self) -> Result<(u64, Pin), Refusal> {
        let Some(deadline_ms) = self.row.deadline_ms else {
            return self.bring().await;
        };
        let left = Duration::from_millis(deadline_ms.saturating_sub(now_ms()));
        let late = || Refusal::new(ErrorCode::Expired, "the blob did not come in time");
        timeout(left, self.bring())
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    async fn bring(&self) -> Result<(u64, Pin), Refusal> {
        if self.row.key.to.place == Place::Here {
            return self.bring_here().await;
        }
        let (id, most) = (self.row.blob(), self.row.max_bytes);
        let part = self.part.clone();
        let there = spawn_blocking(move || part.resume(id)).await;
        let mut blob = match there.ok().flatten() {
            Some((tree, pieces)) => BlobFetch::resume(tree, pieces, most),
            None => BlobFetch::new(id, most),
        };
        let mut pause = FIRST_PAUSE;
        while !blob.is_whole() {
            let before = blob.pieces();
            match self.over_a_trunk(&mut blob).await {
                Ok(()) => {}
                Err(Setback::Never(refusal)) => return Err(refusal),
                Err(Setback::Again) => {
                    sleep(pause).await;
                    let is_going = blob.pieces() > before;
                    pause = if is_going { FIRST_PAUSE } else { pause * 2 };
                    pause = pause.min(LAST_PAUSE);
                }
            }
        }
        let length = blob.tree().map_or(0, |tree| tree.length());
        let part = self.part.clone();
        let finished = spawn_blocking(move || part.finish(id)).await;
        match finished.unwrap_or_else(|_| Err(std::io::Error::other("the plugins stop"))) {
            Ok(pin) => Ok((length, pin)),
            Err(error) => Err(broke(&error)),
        }
    }

    /// Takes what one trunk brings.
    async fn over_a_trunk(&self, blob: &mut BlobFetch) -> Result<(), Setback> {
        let (first, pieces, with_values) = blob.handle_trunk_up();
        let (frames, mut came) = mpsc::unbounded_channel();
        let want = Want {
            blob: blob.id(),
            first,
            pieces,
            with_values,
            frames,
        };
        let (key, way) = (self.row.key.clone(), self.row.way.clone());
        self.mail.tell(Input::Want {
            owner: self.owner.clone(),
            key,
            way,
            want: Box::new(want),
        });
        // Until a trunk stands it may take as long as it takes.
        let begun = came.recv().await.ok_or(Setback::Again)?;
        let wanted = Wanted {
            mail: &self.mail,
            trunk: begun.trunk,
            want: begun.want,
        };
        let mut file = match blob.tree() {
            Some(_) => Some(self.open(Part::open).await?),
            None => None,
        };
        let mut patience = FIRST_SILENCE;
        while !blob.is_whole() {
            let next = timeout(patience, came.recv()).await;
            let next = next.ok().flatten().ok_or(Setback::Again)?;
            let Some(frame) = next.frame else { continue };
            patience = SILENCE;
            match blob
                .handle_frame(frame)
                .map_err(|error| self.setback(error))?
            {
                Fetched::Begun(tree) => {
                    let begun = self.open(move |part| part.begin(&tree)).await?;
                    file = Some(begun);
                }
                Fetched::Piece { from, bytes } => {
                    if let Some(file) = &file {
                        self.write(file, from, bytes).await?;
                    }
                }
                Fetched::Nothing => {}
            }
            // What it held of the trunk's room is free before more may come.
            drop(next.room);
            if let Some(pieces) = blob.handle_written() {
                wanted.more(pieces);
            }
        }
        Ok(())
    }

    async fn open(
        &self,
        open: impl FnOnce(&Part) -> std::io::Result<File> + Send + 'static,
    ) -> Result<Arc<File>, Setback> {
        let part = self.part.clone();
        let opened = spawn_blocking(move || open(&part)).await;
        let opened = opened.map_err(|_| Setback::Again)?;
        opened
            .map(Arc::new)
            .map_err(|error| Setback::Never(broke(&error)))
    }

    async fn write(&self, file: &Arc<File>, from: u64, bytes: bytes::Bytes) -> Result<(), Setback> {
        self.owner.loaded.figures.blob_came(bytes.len());
        let file = Arc::clone(file);
        let written = spawn_blocking(move || file.write_all_at(&bytes, from)).await;
        let written = written.map_err(|_| Setback::Again)?;
        written.map_err(|error| Setback::Never(broke(&error)))
    }

    fn setback(&self, error: FetchError) -> Setback {
        let code = match &error {
            FetchError::NotGiven(failure) => {
                let refusal = Refusal::from(failure.clone());
                return match refusal.code {
                    ErrorCode::Quota | ErrorCode::Unavailable | ErrorCode::Expired => {
                        Setback::Again
                    }
                    ErrorCode::Denied
                    | ErrorCode::Invalid
                    | ErrorCode::NotFound
                    | ErrorCode::Failed => Setback::Never(refusal),
                };
            }
            FetchError::TooLong(_) => ErrorCode::Quota,
            FetchError::OtherBytes | FetchError::Order => ErrorCode::Failed,
        };
        let plugin = &self.owner.loaded.name;
        tracing::warn!(%plugin, %error, "a blob does not come from that node");
        Setback::Never(Refusal::new(code, error.to_string()))
    }

    /// From a principal of this node, whose file is there.
    async fn bring_here(&self) -> Result<(u64, Pin), Refusal> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.take_here().await {
                Err(refusal) if refusal.code == ErrorCode::Unavailable => {
                    sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
                taken => return taken,
            }
        }
    }

    async fn take_here(&self) -> Result<(u64, Pin), Refusal> {
        let Address {
            plugin, principal, ..
        } = &self.row.key.to;
        let giver = self.shared.owner(plugin, principal.clone())?;
        let asker = Address {
            place: Place::Here,
            plugin: Arc::clone(&self.owner.loaded.name),
            principal: self.owner.principal.clone(),
        };
        let blob = self.row.blob();
        let given = self
            .shared
            .give(&giver, (asker, Identity::Node), blob)
            .await?;
        if given.0 > self.row.max_bytes {
            let long = FetchError::TooLong(given.0).to_string();
            return Err(Refusal::new(ErrorCode::Quota, long));
        }
        Ok(given)
    }
}

impl Shared {
    /// A blob of a principal, for somebody who may have it.
    pub(super) async fn give(
        &self,
        giver: &Owner,
        (from, own): (Address, Identity),
        blob: BlobId,
    ) -> Result<(u64, Pin), Refusal> {
        let no = || Refusal::new(ErrorCode::Denied, "the other end does not give this blob");
        if !giver.loaded.edition().code.gives_blobs() {
            return Err(no());
        }
        let query = Query::MayRead { from, own, blob };
        let principal: Principal = giver.principal.clone();
        let turn = giver.loaded.may_reads.acquire().await;
        let may = giver.loaded.query(principal, &query, &self.store).await;
        drop(turn);
        match may {
            Ok(may) if may == [1] => {}
            // Its plugin rests, or has too much to do.
            Err(refusal) if refusal.code == ErrorCode::Unavailable => return Err(refusal),
            Ok(_) | Err(_) => return Err(no()),
        }
        // In this order: what is held by then stays.
        let pin = self.blobs.pin(blob);
        let length = held(&self.store.snapshot(), giver.home, blob)?;
        Ok((length, pin))
    }
}

impl Wanted<'_> {
    fn more(&self, pieces: u16) {
        let want = self.want;
        self.say(BlobFrame::More { want, pieces });
    }

    fn say(&self, frame: BlobFrame) {
        self.mail.tell(Input::Say {
            trunk: self.trunk,
            frame,
        });
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        // After its last piece, too: then the other end knows nothing of it any more.
        self.say(BlobFrame::Unwant { want: self.want });
    }
}

fn broke(error: &std::io::Error) -> Refusal {
    tracing::warn!(%error, "the disk failed on a blob that came");
    let failed = "the disk failed on the blob that came";
    Refusal::new(ErrorCode::Unavailable, failed)
}
