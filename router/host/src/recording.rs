//! Recordings: what happened to the principals of an instance, and what each event did, so that it can
//! be run again elsewhere, by the same component or another one.
//!
//! ```text
//! track    a principal's rows and memory at one moment -> its events from then on
//! event    what was handed in | what the host answered that rows do not say | how it ended | what it did
//! ```
//! Each event is replayed on what is recorded of those before it, not on what the replay did: one
//! difference does not become many. Sealed rows, and whatever a secret key is used for, are in no
//! recording: a replay answers with bytes of the same length that nobody can use, and what differs after
//! that cannot be told. Where a plugin may keep sealed rows, or has keys, its random bytes are left out,
//! too: secrets may be drawn from them. What has to do with blobs, HTTP and connections is in none: whose
//! event meets them is left out for a while.

mod effects;
mod format;
mod happened;
mod recorder;
mod replay;
mod scene;
mod tape;

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use self::replay::Nobody;
pub(crate) use self::{
    effects::{Effect, Ended},
    format::{Blob, EventFrame, Frame, Grants, PluginFrame, TrackFrame},
    happened::Happened,
    recorder::{Recorder, Saved, remove_folder},
    scene::{Found, Known, Remembered},
    tape::Tape,
};
pub use self::{
    format::{RecordingError, RecordingSummary},
    recorder::{RecordAction, RecordingReport},
    replay::{Replay, ReplayError, Replayed, Verdict},
};
