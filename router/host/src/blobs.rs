//! Blobs: files that principals hold, fetch and write.
//!
//! ```text
//! <data folder>/plugins/blobs/
//!   <64 hexadecimal digits>               a whole blob, by its name
//!   fetch-<instance>-<principal>-<id>     one that comes: as it will be, with holes
//!   draft-<instance>-<principal>-<number> what a plugin appends to
//!   new-<number>                          on its way to a name
//! a whole blob: its bytes | the values of its pieces, if they are two or more | its length u64
//! ```
//! A file gets its name when all of it is on disk, and before a row that names it is durable. What no
//! row names, and nobody holds in memory, is deleted: when the last row is gone, and at a start.

mod draft;
mod file;
mod part;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, FileExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use wormholes_proto::blob::{BlobHasher, BlobId, BlobTree};

pub(crate) use self::{draft::DraftFile, part::Part};
use crate::rows::Home;

/// What a blob takes of a disk, and counts for: whole blocks of this size.
const BLOCK_BYTES: u64 = 4096;

/// The files of a node's blobs. Clones are the same.
#[derive(Clone)]
pub(crate) struct Blobs(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    /// Blobs that have a use.
    uses: Mutex<BTreeMap<BlobId, Uses>>,
    next: AtomicU64,
    /// Deletes beside whoever has no more use for something.
    sweeper: Option<(mpsc::Sender<Rubbish>, JoinHandle<()>)>,
}

/// Why a blob stays.
#[derive(Debug, Default)]
struct Uses {
    /// Durable rows that name it.
    rows: u64,
    /// What is on its way to a row, or is read.
    pins: u64,
    /// The store failed on a row that names it, and may have it.
    is_doubtful: bool,
}

/// Something to be deleted.
enum Rubbish {
    Blob(BlobId),
    File(PathBuf),
}

/// Keeps a blob's file as long as this is there.
pub(crate) struct Pin {
    blobs: Blobs,
    id: BlobId,
}

/// Names that rows have for files: all others are deleted at a start.
#[derive(Debug, Default)]
pub(crate) struct Named {
    /// Once for each row.
    pub(crate) blobs: Vec<BlobId>,
    pub(crate) fetches: Vec<(Home, u64)>,
    pub(crate) drafts: Vec<(Home, u64)>,
}

/// A blob that comes from outside of any event, as it is written.
pub(crate) struct Incoming {
    blobs: Blobs,
    hasher: BlobHasher,
    file: File,
    /// `None`: it is whole.
    path: Option<PathBuf>,
}

/// What a file does for an event, before the event is real.
#[derive(Debug)]
pub(crate) enum FileWork {
    /// A blob is written.
    Put(BlobTree, Bytes),
    /// A draft grows.
    Append(DraftFile, Vec<u8>),
    /// A draft is a blob.
    Seal(DraftFile, BlobTree),
}

/// What a blob of this length counts for.
pub(crate) fn charged(length: u64) -> u64 {
    length
        .max(1)
        .div_ceil(BLOCK_BYTES)
        .saturating_mul(BLOCK_BYTES)
}

impl Blobs {
    /// Opens the folder, which is made, and deletes what nothing names.
    pub(crate) fn open(folder: PathBuf, named: Named) -> io::Result<Self> {
        let mut dir = DirBuilder::new();
        dir.recursive(true).mode(0o700).create(&folder)?;
        let mut uses = BTreeMap::<_, Uses>::new();
        for id in &named.blobs {
            uses.entry(*id).or_default().rows += 1;
        }
        sweep(&folder, &uses, &named)?;
        let inner = Arc::new_cyclic(|inner: &std::sync::Weak<Inner>| {
            let (rubbish, swept) = mpsc::channel();
            let inner = inner.clone();
            let sweeper = thread::Builder::new().name("plugin-blobs".to_owned());
            let sweeper = sweeper.spawn(move || {
                for rubbish in swept {
                    if let Some(inner) = inner.upgrade() {
                        inner.delete(rubbish);
                    }
                }
            });
            let sweeper = sweeper.ok().map(|thread| (rubbish, thread));
            Inner {
                folder,
                uses: Mutex::new(uses),
                next: AtomicU64::new(0),
                sweeper,
            }
        });
        if inner.sweeper.is_none() {
            return Err(io::Error::other("no thread starts"));
        }
        Ok(Self(inner))
    }

    /// Keeps a blob's file, if it is there or will be.
    pub(crate) fn pin(&self, id: BlobId) -> Pin {
        self.0.uses().entry(id).or_default().pins += 1;
        Pin {
            blobs: self.clone(),
            id,
        }
    }

    /// Rows that name blobs are durable, or gone: whether each is there.
    pub(crate) fn changed(&self, rows: impl IntoIterator<Item = (BlobId, bool)>) {
        let mut uses = self.0.uses();
        for (id, is_there) in rows {
            let of = uses.entry(id).or_default();
            of.rows = if is_there {
                of.rows.saturating_add(1)
            } else {
                of.rows.saturating_sub(1)
            };
            if !of.are_any() {
                self.0.sweep(Rubbish::Blob(id));
            }
        }
    }

    /// The store failed on rows that name these: they stay until [`Blobs::count`] says whether it has
    /// the rows.
    pub(crate) fn keep_until_counted(&self, pins: &[Pin]) {
        let mut uses = self.0.uses();
        for pin in pins {
            uses.entry(pin.id).or_default().is_doubtful = true;
        }
    }

    /// The store was opened anew: these are all rows that name blobs, one for each.
    pub(crate) fn count(&self, named: &[BlobId]) {
        let mut uses = self.0.uses();
        for of in uses.values_mut() {
            (of.rows, of.is_doubtful) = (0, false);
        }
        for id in named {
            uses.entry(*id).or_default().rows += 1;
        }
        for (id, _) in uses.iter().filter(|(_, of)| !of.are_any()) {
            self.0.sweep(Rubbish::Blob(*id));
        }
    }

    /// Does what files do for an event; all of it is on disk when this returns. On an error nothing is
    /// left of what it began. Blocks.
    pub(crate) fn carry_out(&self, work: Vec<FileWork>) -> io::Result<Vec<Pin>> {
        let begun = work.iter().filter_map(|work| match work {
            FileWork::Append(draft, _) if draft.length == 0 => Some(draft.path(&self.0.folder)),
            FileWork::Put(..) | FileWork::Append(..) | FileWork::Seal(..) => None,
        });
        let begun: Vec<_> = begun.collect();
        let done = self.try_work(work);
        if done.is_err() {
            for path in begun {
                let _ = fs::remove_file(path);
            }
        }
        done
    }

    fn try_work(&self, work: Vec<FileWork>) -> io::Result<Vec<Pin>> {
        let mut pins = Vec::new();
        for work in work {
            match work {
                FileWork::Put(tree, bytes) => {
                    let path = self.0.new_path();
                    let written = file::write_new(&path, &tree, &bytes);
                    pins.push(self.adopt(&path, tree.id(), written)?);
                }
                FileWork::Append(draft, bytes) => draft.append(&self.0.folder, &bytes)?,
                FileWork::Seal(draft, tree) => {
                    let pin = self.pin(tree.id());
                    draft.seal(&self.0.folder, &tree, &self.path(tree.id()))?;
                    pins.push(pin);
                }
            }
        }
        self.sync()?;
        Ok(pins)
    }

    /// A part of a blob; less where it ends before. Blocks.
    pub(crate) fn read(
        &self,
        (id, length): (BlobId, u64),
        from: u64,
        bytes: usize,
    ) -> io::Result<Vec<u8>> {
        let file = File::open(self.path(id))?;
        let left = usize::try_from(length.saturating_sub(from)).unwrap_or(usize::MAX);
        let mut read = vec![0; bytes.min(left)];
        file.read_exact_at(&mut read, from)?;
        Ok(read)
    }

    /// A blob's file, and what its pieces are checked by. Blocks.
    pub(crate) fn open_blob(&self, id: BlobId) -> io::Result<(File, BlobTree)> {
        let file = File::open(self.path(id))?;
        let tree = file::read_tree(&file, id)?;
        Ok((file, tree))
    }

    /// Begins a blob whose bytes come piece by piece.
    pub(crate) fn receive(&self) -> io::Result<Incoming> {
        let path = self.0.new_path();
        Ok(Incoming {
            blobs: self.clone(),
            hasher: BlobHasher::new(),
            file: file::create(&path)?,
            path: Some(path),
        })
    }

    /// What of a blob is there that a principal fetches. Blocks.
    pub(crate) fn part(&self, home: Home, id: u64) -> Part {
        Part::new(self.clone(), self.0.folder.join(fetch_name(home, id)))
    }

    /// The bytes of a draft from there on. Blocks.
    pub(crate) fn read_draft(&self, draft: &DraftFile, from: u64) -> io::Result<Vec<u8>> {
        draft.read(&self.0.folder, from)
    }

    /// Nobody needs what came of a blob any more.
    pub(crate) fn forget_fetch(&self, home: Home, id: u64) {
        let path = self.0.folder.join(fetch_name(home, id));
        self.0.sweep(Rubbish::File(path));
    }

    /// Nobody needs a draft any more.
    pub(crate) fn forget_draft(&self, home: Home, number: u64) {
        let path = self.0.folder.join(draft_name(home, number));
        self.0.sweep(Rubbish::File(path));
    }

    /// Deletes what a principal fetches and writes.
    pub(crate) fn forget_home(&self, home: Home) {
        let begin = |kind: &str| format!("{kind}-{}-{}-", home.instance, home.principal);
        let begins = [begin(FETCH), begin(DRAFT)];
        for name in names(&self.0.folder) {
            if begins.iter().any(|begin| name.starts_with(begin)) {
                self.0.sweep(Rubbish::File(self.0.folder.join(name)));
            }
        }
    }

    /// Gives a file that is on disk its name; it is durable with [`Blobs::sync`].
    fn adopt(&self, path: &Path, id: BlobId, written: io::Result<()>) -> io::Result<Pin> {
        // Before it has its name, since nothing else keeps it.
        let pin = self.pin(id);
        let adopted = written.and_then(|()| fs::rename(path, self.path(id)));
        if adopted.is_err() {
            let _ = fs::remove_file(path);
        }
        adopted.map(|()| pin)
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.0.folder)?.sync_all()
    }

    fn path(&self, id: BlobId) -> PathBuf {
        self.0.folder.join(id.to_string())
    }
}

const FETCH: &str = "fetch";
const DRAFT: &str = "draft";
const NEW: &str = "new";

fn fetch_name(home: Home, id: u64) -> String {
    format!("{FETCH}-{}-{}-{id}", home.instance, home.principal)
}

fn draft_name(home: Home, number: u64) -> String {
    format!("{DRAFT}-{}-{}-{number}", home.instance, home.principal)
}

/// Deletes all that nothing names.
fn sweep(folder: &Path, uses: &BTreeMap<BlobId, Uses>, named: &Named) -> io::Result<()> {
    let fetches = named
        .fetches
        .iter()
        .map(|(home, id)| fetch_name(*home, *id));
    let drafts = named.drafts.iter();
    let drafts = drafts.map(|(home, number)| draft_name(*home, *number));
    let kept: BTreeSet<_> = fetches.chain(drafts).collect();
    for name in names(folder) {
        let is_used = name
            .parse::<BlobId>()
            .is_ok_and(|id| uses.contains_key(&id));
        if !is_used && !kept.contains(&name) {
            fs::remove_file(folder.join(name))?;
        }
    }
    Ok(())
}

fn names(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder).into_iter().flatten();
    let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
    names.collect()
}

impl Uses {
    fn are_any(&self) -> bool {
        self.rows > 0 || self.pins > 0 || self.is_doubtful
    }
}

impl Inner {
    fn uses(&self) -> MutexGuard<'_, BTreeMap<BlobId, Uses>> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_path(&self) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.folder.join(format!("{NEW}-{number}"))
    }

    fn sweep(&self, rubbish: Rubbish) {
        if let Some((sweeper, _)) = &self.sweeper {
            // What is not deleted now is so at the next start.
            let _ = sweeper.send(rubbish);
        }
    }

    fn delete(&self, rubbish: Rubbish) {
        let deleted = match rubbish {
            Rubbish::File(path) => fs::remove_file(path),
            Rubbish::Blob(id) => self.unname(id).and_then(fs::remove_file),
        };
        if let Err(error) = deleted
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "a blob's file cannot be deleted; the next start tries again");
        }
    }
}

impl Inner {
    /// Takes its name from a blob without a use; what is left, which takes long to delete, is nobody's.
    fn unname(&self, id: BlobId) -> io::Result<PathBuf> {
        let path = self.new_path();
        // Whoever has a use for it from now on writes it anew.
        let mut uses = self.uses();
        if uses.get(&id).is_some_and(Uses::are_any) {
            return Err(io::ErrorKind::NotFound.into());
        }
        uses.remove(&id);
        fs::rename(self.folder.join(id.to_string()), &path)?;
        Ok(path)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some((sweeper, thread)) = self.sweeper.take() {
            drop(sweeper);
            // It may be this one: it held the last handle for a moment.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Pin {
    pub(crate) fn id(&self) -> BlobId {
        self.id
    }
}

impl Clone for Pin {
    fn clone(&self) -> Self {
        self.blobs.pin(self.id)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut uses = self.blobs.0.uses();
        let of = uses.entry(self.id).or_default();
        of.pins = of.pins.saturating_sub(1);
        if !of.are_any() {
            self.blobs.0.sweep(Rubbish::Blob(self.id));
        }
    }
}

impl Incoming {
    /// How many bytes came.
    pub(crate) fn length(&self) -> u64 {
        self.hasher.length()
    }

    /// Takes the next bytes. Blocks.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.hasher.length())?;
        self.hasher.update(bytes);
        Ok(())
    }

    /// All bytes came: the blob of them, on disk. Blocks.
    pub(crate) fn finish(mut self) -> io::Result<(u64, Pin)> {
        let tree = std::mem::take(&mut self.hasher).finish();
        file::write_end(&self.file, &tree)?;
        self.file.sync_all()?;
        let path = self.path.take().unwrap_or_default();
        let pin = self.blobs.adopt(&path, tree.id(), Ok(()))?;
        self.blobs.sync()?;
        Ok((tree.length(), pin))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            self.blobs.0.sweep(Rubbish::File(path));
        }
    }
}

impl fmt::Debug for Blobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blobs").finish_non_exhaustive()
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin").finish_non_exhaustive()
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
