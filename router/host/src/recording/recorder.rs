//! The recording of one instance: written while its events run, the oldest of it forgotten.
//!
//! ```text
//! <data folder>/plugins/recordings/<instance>/, mode 0700; files have mode 0600
//!   settings       the most bytes that are kept; where it is, the recording goes on after a start
//!   00000001.part  frames without an end; in each, every principal begins anew: it needs no other
//!   saved          all parts as one file, for who asks for it
//! ```
//! Nothing is synced: what a crash of the machine takes of a recording is gone, what a crash of
//! the node leaves is whole but for the last frame.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufReader, BufWriter, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    Frame, PluginFrame, RecordingError,
    format::{MAX_COMPONENTS_BYTES, Reader, Writer, encode, head},
};

const SETTINGS: &str = "settings";
const SAVED: &str = "saved";
const PART: &str = "part";
/// What is kept where nobody says how much.
const DEFAULT_BYTES: u64 = 64 << 20;
/// The least and the most that may be kept.
const BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 30;
/// What a principal has that begins: its event waits for it.
const MAX_BEGIN_BYTES: u64 = 4 << 20;
/// Pieces of a component in a file that is saved.
const PIECE_BYTES: usize = 1 << 20;

/// What to do with a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordAction {
    /// Begin, in place of what was recorded before; the most that is kept, 1 MiB to 1 GiB, default 64
    /// MiB.
    On(Option<u64>),
    /// Record no more; what was recorded stays.
    Off,
    /// Record no more, and delete what was recorded.
    Forget,
}

/// How a recording is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordingReport {
    /// Whether events are recorded.
    pub is_on: bool,
    /// Events since the node started or it was switched on, those that were forgotten among them.
    pub events: u64,
    /// What is kept.
    pub bytes: u64,
    /// The most that is.
    pub max_bytes: u64,
    /// Times that a principal, or an event, was left out: it is too large, or had to do with blobs, HTTP
    /// or connections.
    pub left_out: u64,
    /// Why it ended by itself.
    pub why: Option<String>,
}

/// Records one instance.
#[derive(Debug)]
pub(crate) struct Recorder {
    folder: PathBuf,
    /// The part that is written; 0: none.
    part: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    max_bytes: u64,
    /// The part that is written.
    file: Option<File>,
    bytes: u64,
    /// Of it, what begins principals.
    begins_bytes: u64,
    /// Versions that it tells of.
    plugins: BTreeSet<[u8; 32]>,
    tracks: u64,
    /// Those before it, with their bytes; the oldest first.
    parts: VecDeque<(u64, u64)>,
    last_part: u64,
    events: u64,
    left_out: u64,
    why: Option<String>,
}

/// A file that holds all that was recorded.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
}

impl Recorder {
    /// In `folder`, which is made when it begins.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            part: AtomicU64::new(0),
            inner: Mutex::default(),
        }
    }

    /// Goes on where it was on when the node ended. One at a time writes into a folder.
    pub(crate) fn go_on(&self) {
        let settings = fs::read_to_string(self.folder.join(SETTINGS)).ok();
        let max_bytes = settings.and_then(|text| text.trim().parse::<u64>().ok());
        let mut inner = self.inner();
        inner.max_bytes = max_bytes.unwrap_or(DEFAULT_BYTES);
        // What cannot be read is not there to be saved.
        let parts = self.parts_there().unwrap_or_default();
        inner.last_part = parts.last().map_or(0, |(part, _)| *part);
        inner.parts = parts.into();
        let _ = self.remove(SAVED);
        if max_bytes.is_some_and(|max| BYTES.contains(&max)) {
            self.next_part(&mut inner);
        }
    }

    /// The part that is written; 0: nothing is recorded.
    pub(crate) fn part(&self) -> u64 {
        self.part.load(Ordering::Relaxed)
    }

    /// # Errors
    /// The file system's; or the cap is out of range.
    pub(crate) fn act(&self, action: RecordAction) -> io::Result<()> {
        let mut inner = self.inner();
        self.stop(&mut inner);
        match action {
            RecordAction::Off => self.remove(SETTINGS),
            RecordAction::Forget => self.forget_all(&mut inner),
            RecordAction::On(max_bytes) => {
                let max_bytes = max_bytes.unwrap_or(DEFAULT_BYTES);
                if !BYTES.contains(&max_bytes) {
                    let range = "a recording keeps 1 to 1,024 MiB";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, range));
                }
                self.forget_all(&mut inner)?;
                let mut builder = DirBuilder::new();
                builder.recursive(true).mode(0o700).create(&self.folder)?;
                let mut settings = self.create(SETTINGS)?;
                writeln!(settings, "{max_bytes}")?;
                (inner.max_bytes, inner.events, inner.left_out) = (max_bytes, 0, 0);
                inner.why = None;
                self.next_part(&mut inner);
                inner
                    .why
                    .take()
                    .map_or(Ok(()), |why| Err(io::Error::other(why)))
            }
        }
    }

    /// Deletes what was recorded; what is switched on goes on.
    pub(crate) fn begin_anew(&self) -> io::Result<()> {
        let mut inner = self.inner();
        let was_on = inner.file.is_some();
        self.stop(&mut inner);
        // All that lies there, whatever is known of it.
        let mut outcome = self.remove(SAVED);
        for (part, _) in self.parts_there()? {
            outcome = outcome.and(self.remove(&name(part)));
        }
        inner.parts = self.parts_there()?.into();
        outcome?;
        if was_on {
            self.next_part(&mut inner);
        }
        Ok(())
    }

    pub(crate) fn report(&self) -> RecordingReport {
        let inner = self.inner();
        RecordingReport {
            is_on: inner.file.is_some(),
            events: inner.events,
            bytes: inner.kept_bytes(),
            max_bytes: inner.max_bytes,
            left_out: inner.left_out,
            why: inner.why.clone(),
        }
    }

    /// The most that a principal that begins may have, its rows and what it remembers.
    pub(crate) fn most_at_begin(&self) -> u64 {
        (self.inner().max_bytes / 4).min(MAX_BEGIN_BYTES)
    }

    /// The number of a principal that begins in this part; `None`: another one is written by now.
    pub(crate) fn next_track(&self, part: u64) -> Option<u64> {
        let mut inner = self.inner();
        if self.part() != part {
            return None;
        }
        inner.tracks += 1;
        Some((part << 32) | inner.tracks)
    }

    /// A principal begins; false: it is not recorded.
    pub(crate) fn begin(&self, part: u64, plugin: &PluginFrame, frames: &[Frame]) -> bool {
        let Some(frames) = frames.iter().map(encode).collect::<Option<Vec<_>>>() else {
            self.leave_out();
            return false;
        };
        let mut inner = self.inner();
        if self.part() != part {
            return false;
        }
        if inner.is_full() {
            self.next_part(&mut inner);
            return false;
        }
        if !inner.plugins.contains(&plugin.digest) {
            let Some(frame) = encode(&Frame::Plugin(Box::new(plugin.clone()))) else {
                return false;
            };
            self.write(&mut inner, &frame);
            inner.plugins.insert(plugin.digest);
        }
        for frame in frames {
            inner.begins_bytes += frame.len() as u64;
            self.write(&mut inner, &frame);
        }
        inner.file.is_some()
    }

    /// Something happened; false: it is not recorded, and its principal has to begin anew.
    pub(crate) fn event(&self, part: u64, frame: &Frame) -> bool {
        let frame = encode(frame);
        let mut inner = self.inner();
        if self.part() != part {
            return false;
        }
        let fits = |frame: &Vec<u8>| frame.len() as u64 <= inner.max_bytes / 4;
        let Some(frame) = frame.filter(fits) else {
            inner.left_out += 1;
            return false;
        };
        inner.events += 1;
        self.write(&mut inner, &frame);
        if inner.is_full() {
            self.next_part(&mut inner);
        }
        true
    }

    /// A principal, or an event, is too large, or did what no recording holds.
    pub(crate) fn leave_out(&self) {
        self.inner().left_out += 1;
    }

    /// Writes all that was recorded into one file; `component` gives the components of versions.
    ///
    /// # Errors
    /// The file system's, or nothing was recorded.
    pub(crate) fn save(
        &self,
        component: impl Fn(&PluginFrame) -> Option<Vec<u8>>,
    ) -> io::Result<Saved> {
        let parts: Vec<u64> = {
            let inner = self.inner();
            let before = inner.parts.iter().map(|(part, _)| *part);
            let now = Some(self.part()).filter(|part| *part > 0);
            before.chain(now).collect()
        };
        let mut plugins = BTreeMap::new();
        for part in &parts {
            self.each_frame(*part, &mut |frame, _| {
                if let Frame::Plugin(plugin) = frame {
                    plugins.insert(plugin.digest, plugin);
                }
                Ok(())
            })?;
        }
        if plugins.is_empty() {
            return Err(io::Error::other("nothing was recorded yet"));
        }
        self.remove(SAVED)?;
        let mut writer = Writer::new(BufWriter::new(self.create(SAVED)?))?;
        let (mut components, mut wasm_bytes) = (BTreeSet::new(), 0);
        for plugin in plugins.values() {
            if components.contains(&plugin.sha256) {
                continue;
            }
            let Some(wasm) = component(plugin) else {
                continue;
            };
            wasm_bytes += wasm.len();
            if wasm_bytes > MAX_COMPONENTS_BYTES {
                break;
            }
            components.insert(plugin.sha256);
            for piece in wasm.chunks(PIECE_BYTES) {
                let piece = Frame::Wasm(plugin.sha256, piece.into());
                writer.write(&encode(&piece).unwrap_or_default())?;
            }
        }
        for part in parts {
            self.each_frame(part, &mut |_, bytes| writer.write(&bytes))?;
        }
        let (file, bytes) = writer.end()?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?;
        let path = self.saved();
        Ok(Saved { path, bytes })
    }

    /// Where that file lies.
    pub(crate) fn saved(&self) -> PathBuf {
        self.folder.join(SAVED)
    }

    /// The frames of a part, as far as they are whole. One that was forgotten meanwhile has none.
    fn each_frame(
        &self,
        part: u64,
        each: &mut dyn FnMut(Frame, Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        let file = match File::open(self.folder.join(name(part))) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        // What is written behind it meanwhile is of the next time.
        let about = file.metadata()?.len();
        let from = BufReader::new(io::Read::take(file, about));
        let Some(mut reader) = whole(Reader::of_part(from))? else {
            return Ok(());
        };
        while let Some((frame, bytes)) = whole(reader.next())?.flatten() {
            each(frame, bytes)?;
        }
        Ok(())
    }

    /// Parts that lie in the folder, with their bytes; the oldest first.
    fn parts_there(&self) -> io::Result<Vec<(u64, u64)>> {
        let mut parts = Vec::new();
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(parts),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            let number = path
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse().ok());
            if path.extension().is_some_and(|extension| extension == PART)
                && let Some(number) = number
            {
                parts.push((number, entry.metadata()?.len()));
            }
        }
        parts.sort_unstable();
        Ok(parts)
    }

    /// Begins another part.
    fn next_part(&self, inner: &mut Inner) {
        self.stop(inner);
        inner.last_part += 1;
        let file = self.create(&name(inner.last_part));
        match file {
            Ok(file) => {
                inner.file = Some(file);
                self.part.store(inner.last_part, Ordering::Relaxed);
                self.write(inner, &head());
            }
            Err(error) => inner.fail(&error),
        }
    }

    /// The part that is written ends.
    fn stop(&self, inner: &mut Inner) {
        self.part.store(0, Ordering::Relaxed);
        if inner.file.take().is_some() {
            inner.parts.push_back((inner.last_part, inner.bytes));
        }
        (inner.bytes, inner.begins_bytes, inner.tracks) = (0, 0, 0);
        inner.plugins.clear();
    }

    fn write(&self, inner: &mut Inner, bytes: &[u8]) {
        let Some(file) = &mut inner.file else {
            return;
        };
        if let Err(error) = file.write_all(bytes) {
            tracing::warn!(%error, "a plugin's recording cannot be written, and ends");
            self.stop(inner);
            return inner.fail(&error);
        }
        inner.bytes += bytes.len() as u64;
        while inner.kept_bytes() > inner.max_bytes
            && let Some((oldest, _)) = inner.parts.pop_front()
        {
            if let Err(error) = self.remove(&name(oldest)) {
                tracing::warn!(%error, "a plugin's recording cannot be kept small, and ends");
                self.stop(inner);
                return inner.fail(&error);
            }
        }
    }

    fn forget_all(&self, inner: &mut Inner) -> io::Result<()> {
        inner.parts.clear();
        remove_folder(&self.folder)
    }

    fn create(&self, name: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        options.open(self.folder.join(name))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn kept_bytes(&self) -> u64 {
        let before: u64 = self.parts.iter().map(|(_, bytes)| bytes).sum();
        before + self.bytes
    }

    /// A part holds at least as much of events as of what begins them, and never more than half of
    /// all that is kept.
    fn is_full(&self) -> bool {
        let quarter = self.max_bytes / 4;
        let is_long = self.bytes >= quarter && self.bytes >= 2 * self.begins_bytes;
        is_long || self.bytes >= 2 * quarter
    }

    fn fail(&mut self, error: &io::Error) {
        self.why = Some(error.to_string());
    }
}

/// A crash of the machine may leave anything of a part: what is whole before it counts.
fn whole<T>(read: Result<T, RecordingError>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(RecordingError::Read(error)) => Err(error),
        Err(
            RecordingError::NotOne
            | RecordingError::Format { .. }
            | RecordingError::Cut
            | RecordingError::Damaged(_),
        ) => Ok(None),
    }
}

/// Deletes a folder of recordings.
pub(crate) fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn name(part: u64) -> String {
    format!("{part:08}.{PART}")
}
