//! Blobs of plugins, for control.

use std::sync::Arc;

use wormholes_host::{Principal, Refusal, Upload};
use wormholes_proto::blob::BlobId;

use super::Plugins;

impl Plugins {
    /// Begins a blob for a command.
    ///
    /// # Errors
    /// There is no such principal, or it takes none.
    pub(crate) async fn upload(
        &self,
        instance: &str,
        user: Option<String>,
    ) -> Result<Upload, Refusal> {
        self.host(instance)?.upload(instance, principal(user)).await
    }

    /// A part of a blob that a plugin holds, and how many bytes it has in all.
    ///
    /// # Errors
    /// It does not hold it.
    pub(crate) async fn read_blob(
        &self,
        instance: &str,
        user: Option<String>,
        id: BlobId,
        from: u64,
        bytes: usize,
    ) -> Result<(Vec<u8>, u64), Refusal> {
        let host = self.host(instance)?;
        let read = host.read_blob(instance, principal(user), id, from, bytes);
        read.await
    }
}

fn principal(user: Option<String>) -> Principal {
    user.map_or(Principal::Node, |name| Principal::User(Arc::from(name)))
}
