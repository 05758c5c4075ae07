//! Files of blobs, which are on disk before the event is real that wrote them.

use std::{io, time::Duration};

use super::Actor;
use crate::{
    event::{ErrorCode, Refusal},
    guest::Fault,
    transaction::Transaction,
};

/// An event waits so long when the disk does not take its blobs.
const DISK_PAUSE: Duration = Duration::from_secs(1);
/// How often an event is tried whose blobs the disk does not take; for ever while it is full, since
/// somebody makes room.
const DISK_TRIES: u32 = 5;

impl Actor {
    /// Has files do what an event wants of them: on disk, before the event is real.
    pub(super) async fn carry_out(
        &mut self,
        mut transaction: Box<Transaction>,
    ) -> Result<Box<Transaction>, Fault> {
        let blobs = self.edition.plugin().around.blobs.clone();
        let Some(blobs) = blobs.filter(|_| transaction.has_file_work()) else {
            return Ok(transaction);
        };
        let work = match transaction.file_work(&blobs) {
            Ok(work) => work,
            Err(refusal) => {
                self.memory = transaction.undo();
                return Err(Fault::Refused(refusal));
            }
        };
        if work.is_empty() {
            return Ok(transaction);
        }
        let done = tokio::task::spawn_blocking(move || blobs.carry_out(work)).await;
        match done.unwrap_or_else(|_| Err(io::Error::other("the plugins stop"))) {
            Ok(pins) => {
                self.disk_failures = 0;
                transaction.keep_pins(pins);
                Ok(transaction)
            }
            Err(error) => {
                self.memory = transaction.undo();
                let is_full = matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                );
                self.disk_failures = if is_full { 0 } else { self.disk_failures + 1 };
                if self.disk_failures >= DISK_TRIES {
                    self.disk_failures = 0;
                    tracing::error!(plugin = %self.loaded.name, %error, "a blob cannot be written");
                    return Err(Fault::Refused(unwritten()));
                }
                // A disk that is full takes nothing a moment later either.
                tokio::time::sleep(DISK_PAUSE).await;
                Err(Fault::Host(format!("a blob cannot be written: {error}")))
            }
        }
    }
}

fn unwritten() -> Refusal {
    let why = "the disk does not take the plugin's blobs; see the log of the node";
    Refusal::new(ErrorCode::Unavailable, why)
}
