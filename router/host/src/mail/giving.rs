//! Blobs that are given to other nodes: one task for each that is wanted on a trunk.

use std::{collections::HashMap, fs::File, os::unix::fs::FileExt as _, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit},
    task::{AbortHandle, spawn_blocking},
    time::timeout,
};
use wormholes_proto::{
    blob::{BlobId, BlobTree},
    trunk::{BlobFrame, ChannelError, Failure, Frame, MAX_PIECES_AHEAD, Want as WireWant},
};

use super::{
    Input, Mail, Office, Owner,
    fetches::Came,
    trunk::{End, TrunkId},
    wire::Wire,
};
use crate::{
    blobs::Blobs,
    event::{ErrorCode, Refusal},
    host::Shared,
    message::{Address, Identity},
};

/// Blobs that one trunk is given at once. Overflow: the newcomer is told to come later.
const MAX_GIVEN: usize = 64;
/// Blobs that all trunks are given at once: each has an open file. Overflow: as above.
pub(super) const MAX_GIVING: usize = 256;
/// Who wants a blob, and takes nothing of it for so long, is told to come later.
const SILENCE: Duration = Duration::from_secs(60);

/// What is given on a trunk, by the numbers of the other end.
pub(super) type Given = HashMap<u64, Giving>;

/// A blob that is given.
pub(super) struct Giving {
    /// Pieces that may be sent.
    ahead: Arc<Semaphore>,
    task: AbortHandle,
    _place: OwnedSemaphorePermit,
}

/// What one needs to be given.
struct Give {
    shared: Arc<Shared>,
    mail: Mail,
    owner: Owner,
    /// Who wants it, and as whom this end is known there.
    asker: (Address, Identity),
    wire: Arc<Wire>,
    want: WireWant,
    ahead: Arc<Semaphore>,
}

impl Drop for Giving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Office {
    /// A frame about a blob.
    pub(super) fn blob_frame(
        &mut self,
        id: TrunkId,
        frame: BlobFrame,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<(), ChannelError> {
        let Some(trunk) = self.trunks.get_mut(&id) else {
            return Ok(());
        };
        let want = match &frame {
            BlobFrame::Want(want) => {
                self.wanted(id, (**want).clone());
                return Ok(());
            }
            BlobFrame::More { want, pieces } => {
                let Some(giving) = trunk.giving.get(want) else {
                    return Ok(());
                };
                giving.ahead.add_permits((*pieces).into());
                let is_many = giving.ahead.available_permits() > MAX_PIECES_AHEAD.into();
                return if is_many {
                    Err(ChannelError::Window)
                } else {
                    Ok(())
                };
            }
            BlobFrame::Unwant { want } => {
                trunk.giving.remove(want);
                return Ok(());
            }
            BlobFrame::Given { want, .. }
            | BlobFrame::Piece { want, .. }
            | BlobFrame::NotGiven { want, .. } => *want,
        };
        // What nobody wants any more was on its way.
        if let Some(frames) = trunk.wanted.get(&want) {
            let came = Came {
                trunk: id,
                want,
                frame: Some(frame),
                room,
            };
            let _ = frames.send(came);
        }
        Ok(())
    }

    /// The other end wants a blob.
    fn wanted(&mut self, id: TrunkId, want: WireWant) {
        let number = want.want;
        let Some(trunk) = self.trunks.get_mut(&id) else {
            return;
        };
        // Principals of one node have their blobs without a trunk.
        let End::Wire(wire) = &trunk.wire else {
            return;
        };
        if trunk.giving.contains_key(&number) {
            tracing::debug!("a trunk of a plugin ends: two blobs are wanted by one number");
            return self.down(id);
        }
        let busy = "too many blobs are given at once";
        let refusal = if trunk.giving.len() >= MAX_GIVEN {
            Refusal::new(ErrorCode::Unavailable, busy)
        } else if let Some(owner) = trunk.owner(&self.shared, &want.to) {
            let Ok(place) = Arc::clone(&self.giving).try_acquire_owned() else {
                let refusal = Refusal::new(ErrorCode::Unavailable, busy);
                return self.send(id, not_given(number, refusal));
            };
            let ahead = Arc::new(Semaphore::new(want.pieces.into()));
            let give = Give {
                shared: Arc::clone(&self.shared),
                mail: self.mail.clone(),
                owner,
                asker: (trunk.from(&want.from), trunk.identity()),
                wire: Arc::clone(wire),
                want,
                ahead: Arc::clone(&ahead),
            };
            let task = tokio::spawn(give.run(id)).abort_handle();
            let giving = Giving {
                ahead,
                task,
                _place: place,
            };
            trunk.giving.insert(number, giving);
            return;
        } else {
            Refusal::new(ErrorCode::Denied, "the other end does not give this blob")
        };
        self.send(id, not_given(number, refusal));
    }

    /// A blob was given, or not; or is wanted on no trunk any more.
    pub(super) fn said(&mut self, id: TrunkId, frame: BlobFrame) {
        let Some(trunk) = self.trunks.get_mut(&id) else {
            return;
        };
        match &frame {
            BlobFrame::Unwant { want } => {
                trunk.wanted.remove(want);
            }
            BlobFrame::NotGiven { want, .. } => {
                trunk.giving.remove(want);
            }
            BlobFrame::Want(_)
            | BlobFrame::Given { .. }
            | BlobFrame::More { .. }
            | BlobFrame::Piece { .. } => {}
        }
        self.send(id, Frame::Blob(frame));
    }

    /// All of a blob is on its way.
    pub(super) fn gave(&mut self, id: TrunkId, want: u64) {
        if let Some(trunk) = self.trunks.get_mut(&id) {
            trunk.giving.remove(&want);
        }
    }
}

impl Give {
    async fn run(self, trunk: TrunkId) {
        let want = self.want.want;
        match self.give().await {
            Ok(()) => self.mail.tell(Input::Gave { trunk, want }),
            Err(refusal) => {
                let failure = Failure::from(refusal);
                let frame = BlobFrame::NotGiven { want, failure };
                self.mail.tell(Input::Say { trunk, frame });
            }
        }
    }

    async fn give(&self) -> Result<(), Refusal> {
        let WireWant {
            want, blob, first, ..
        } = self.want;
        // Its file stays as long as it is open, whoever releases it meanwhile.
        let (length, _pin) = self
            .shared
            .give(&self.owner, self.asker.clone(), blob)
            .await?;
        let blobs = self.shared.blobs.clone();
        let (file, tree) = open(blobs, blob).await?;
        let values = match self.want.with_values {
            true => Bytes::copy_from_slice(tree.values()),
            false => Bytes::new(),
        };
        let given = BlobFrame::Given {
            want,
            length,
            values,
        };
        self.say(given).await?;
        let mut index = first;
        while let Some((from, bytes)) = tree.piece(index) {
            match timeout(SILENCE, self.ahead.acquire()).await {
                // Nobody closes it.
                Ok(may) => may.into_iter().for_each(SemaphorePermit::forget),
                Err(_) => return Err(stalled()),
            }
            let bytes = read(Arc::clone(&file), from, bytes).await?;
            self.owner.loaded.figures.blob_went(bytes.len());
            self.say(BlobFrame::Piece { want, index, bytes }).await?;
            index += 1;
        }
        Ok(())
    }

    /// Behind all messages that wait. Whoever does not read keeps no place for long.
    async fn say(&self, frame: BlobFrame) -> Result<(), Refusal> {
        let frame = Frame::Blob(frame);
        let said = timeout(SILENCE, self.wire.write_behind(&frame)).await;
        said.map_err(|_| stalled())
    }
}

async fn open(blobs: Blobs, blob: BlobId) -> Result<(Arc<File>, BlobTree), Refusal> {
    let opened = spawn_blocking(move || blobs.open_blob(blob)).await;
    let opened = opened.map_err(|_| broke(&"the plugins stop"))?;
    let (file, tree) = opened.map_err(|error| broke(&error))?;
    Ok((Arc::new(file), tree))
}

async fn read(file: Arc<File>, from: u64, bytes: usize) -> Result<Bytes, Refusal> {
    let read = move || {
        let mut piece = vec![0; bytes];
        file.read_exact_at(&mut piece, from).map(|()| piece)
    };
    let piece = spawn_blocking(read).await;
    let piece = piece.map_err(|_| broke(&"the plugins stop"))?;
    piece.map(Bytes::from).map_err(|error| broke(&error))
}

fn stalled() -> Refusal {
    Refusal::new(ErrorCode::Unavailable, "nothing of the blob was taken")
}

fn not_given(want: u64, refusal: Refusal) -> Frame {
    let failure = Failure::from(refusal);
    Frame::Blob(BlobFrame::NotGiven { want, failure })
}

fn broke(error: &dyn std::fmt::Display) -> Refusal {
    tracing::warn!(%error, "a blob cannot be given");
    let why = "the blob cannot be read there";
    Refusal::new(ErrorCode::Unavailable, why)
}
