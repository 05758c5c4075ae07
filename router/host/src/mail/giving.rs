//! Blobs that are given to other nodes: one task for each that is wanted on a trunk.

use std::{
    collections::HashMap, fs::File, io, os::unix::fs::FileExt as _, sync::Arc, time::Duration,
};

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

/// Blobs that one peer is given at once, or asks for. Overflow: the newcomer is told to come later.
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
    places: Arc<Semaphore>,
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
            if frames.send(came).is_err() {
                // Its fetch ended before it heard that it was wanted here.
                self.said(id, BlobFrame::Unwant { want });
            }
        }
        Ok(())
    }

    /// The other end wants a blob.
    fn wanted(&mut self, id: TrunkId, want: WireWant) {
        let number = want.want;
        let Some(peer) = self.trunks.get(&id).map(|trunk| trunk.peer) else {
            return;
        };
        let its = self.trunks.values().filter(|trunk| trunk.peer == peer);
        let given: usize = its.map(|trunk| trunk.giving.len()).sum();
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
        let refusal = if given >= MAX_GIVEN {
            busy()
        } else if let Some(owner) = trunk.owner(&self.shared, &want.to) {
            let ahead = Arc::new(Semaphore::new(want.pieces.into()));
            let give = Give {
                shared: Arc::clone(&self.shared),
                mail: self.mail.clone(),
                owner,
                asker: (trunk.from(&want.from), trunk.identity()),
                wire: Arc::clone(wire),
                want,
                ahead: Arc::clone(&ahead),
                places: Arc::clone(&self.giving),
            };
            let task = tokio::spawn(give.run(id)).abort_handle();
            trunk.giving.insert(number, Giving { ahead, task });
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
        // Those who may not have it keep nobody out.
        let _place = self.places.try_acquire().map_err(|_| busy())?;
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
    let opened = opened.map_err(|_| broke(&io::Error::other("the plugins stop")))?;
    let (file, tree) = opened.map_err(|error| broke(&error))?;
    Ok((Arc::new(file), tree))
}

async fn read(file: Arc<File>, from: u64, bytes: usize) -> Result<Bytes, Refusal> {
    let read = move || {
        let mut piece = vec![0; bytes];
        file.read_exact_at(&mut piece, from).map(|()| piece)
    };
    let piece = spawn_blocking(read).await;
    let piece = piece.map_err(|_| broke(&io::Error::other("the plugins stop")))?;
    piece.map(Bytes::from).map_err(|error| broke(&error))
}

fn stalled() -> Refusal {
    Refusal::new(ErrorCode::Unavailable, "nothing of the blob was taken")
}

fn not_given(want: u64, refusal: Refusal) -> Frame {
    let failure = Failure::from(refusal);
    Frame::Blob(BlobFrame::NotGiven { want, failure })
}

fn busy() -> Refusal {
    Refusal::new(ErrorCode::Unavailable, "too many blobs are given at once")
}

fn broke(error: &io::Error) -> Refusal {
    tracing::warn!(%error, "a blob cannot be given");
    let is_damaged = matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
    );
    // What is damaged is so the next time as well.
    let code = match is_damaged {
        true => ErrorCode::Failed,
        false => ErrorCode::Unavailable,
    };
    Refusal::new(code, "the blob cannot be read there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_wants_what_is_damaged_is_not_told_to_come_again() {
        for (kind, code) in [
            (io::ErrorKind::NotFound, ErrorCode::Failed),
            (io::ErrorKind::UnexpectedEof, ErrorCode::Failed),
            (io::ErrorKind::InvalidData, ErrorCode::Failed),
            (io::ErrorKind::Other, ErrorCode::Unavailable),
        ] {
            assert_eq!(broke(&kind.into()).code, code, "{kind}");
        }
    }
}
