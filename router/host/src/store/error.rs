//! What goes wrong with a store, and what mends it.

use std::{error::Error, io, path::PathBuf};

/// Why the store cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file cannot be made or opened.
    #[error("cannot open the store {}; its folder must exist and be writable", path.display())]
    Open {
        /// The store's file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// Others than its owner could read the file.
    #[error("others can read the store {place}; run `chmod 600 {place}`", place = path.display())]
    Exposed {
        /// The store's file.
        path: PathBuf,
    },
    /// Another process has it open.
    #[error(
        "another process has the store {} open; stop that wormholed, or give this one a data \
         folder of its own",
        path.display()
    )]
    Held {
        /// The store's file.
        path: PathBuf,
    },
    /// Something else than a store.
    #[error(
        "{place} is no store of plugins; move it away to begin with an empty store, or name \
         another data folder"
    )]
    Foreign {
        /// The file, or what stands for it.
        place: String,
    },
    /// Written by a newer version.
    #[error("the store has format {found}, this wormholed knows {known}; install a newer one")]
    Format {
        /// The store's.
        found: u8,
        /// The newest that is known here.
        known: u8,
    },
    /// Its content is not what was written.
    #[error(
        "the store is damaged ({what}); restore a copy of it, or move it away to begin with an \
         empty store"
    )]
    Damaged {
        /// What was found.
        what: String,
    },
    /// Sealed rows and the slots with their keys do not fit.
    #[error(
        "the secrets of plugins cannot be opened: {what}. {slots} belongs to the store beside it and to \
         identity.key; put all three back from one backup, or move this file and the store away to \
         begin without what plugins kept",
        slots = slots.display()
    )]
    Sealed {
        /// The file of slots.
        slots: PathBuf,
        /// What was found.
        what: &'static str,
    },
    /// Not the store that was open before.
    #[error("the store was replaced while it was open; put the old one back, or restart wormholed")]
    Replaced,
    /// Closed, or closed to be opened anew after a failure; read a new snapshot.
    #[error("the store was closed or is being opened anew; read it again")]
    Closed,
    /// The disk, or what stands for it, failed.
    #[error("cannot read or write the store; see that its disk works and has free space")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
    /// The thread that commits cannot be started.
    #[error("cannot start the thread that commits; see the limits on threads and memory")]
    Thread(#[source] io::Error),
}

/// What was appended is not known to be durable: the store failed before it could say so. Whoever
/// appended it begins anew from a snapshot of the epoch that follows, which holds it whole or not
/// at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store failed before this was durable; begin anew from what it holds")]
pub struct Lost;
