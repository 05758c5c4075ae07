//! The file of slots: one for the key of each sealed row, itself sealed, and overwritten in place when
//! the row is gone.
//!
//! ```text
//! header  64 bytes: "wormholes slots 1", then zeros
//! slot    64 bytes: nonce 12 | AES-256-GCM-SIV of the key 32 | tag 16 | zero 4; all zeros: free
//! ```
//! 64 bytes divide a sector, so that a slot is written whole or not at all. What overwriting promises
//! is what the file system and the disk make of it: one that writes elsewhere (btrfs, ZFS, the flash of
//! an SSD) keeps the old bytes for a while, which then only who holds the node's identity can open.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Advice, fadvise};

use super::{super::StoreError, seal::Key};

const SLOT_BYTES: usize = 64;
/// Nonce, key and tag.
const WRAPPED_BYTES: usize = 60;
const HEADER: &[u8] = b"wormholes slots 1";
const FREE: [u8; SLOT_BYTES] = [0; SLOT_BYTES];

pub(super) struct Slots {
    path: PathBuf,
    file: File,
    /// Seals the keys in slots.
    key: Key,
    /// Those that there are, used and free. The file grows by one when none is free.
    count: u32,
    free: BTreeSet<u32>,
    /// Whether something written is not durable.
    is_dirty: bool,
}

impl Slots {
    /// Opens the file at `path`; makes it if there is none, and `may_make`: no row needs it.
    pub(super) fn open(path: &Path, key: Key, may_make: bool) -> Result<Self, StoreError> {
        let (file, count) = load(path, may_make)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            key,
            count,
            free: BTreeSet::new(),
            is_dirty: false,
        })
    }

    /// Opens it anew, with what is durable.
    pub(super) fn reopen(&mut self, may_make: bool) -> Result<(), StoreError> {
        let (file, count) = load(&self.path, may_make)?;
        // The kernel counts a page as clean once writing it failed: the disk is asked what it has.
        let asked = file
            .sync_all()
            .and_then(|()| Ok(fadvise(&file, 0, None, Advice::DontNeed)?));
        asked.map_err(|source| cannot_open(&self.path, source))?;
        (self.file, self.count, self.is_dirty) = (file, count, false);
        Ok(())
    }

    /// The key in a slot that a row names.
    pub(super) fn read(&self, slot: u32) -> Result<Key, StoreError> {
        if slot >= self.count {
            return Err(self.broken("a slot is missing"));
        }
        let bytes = self.slot(slot)?;
        let wrapped = bytes.get(..WRAPPED_BYTES).unwrap_or_default();
        let key = self.key.unwrap(&about(slot), wrapped);
        key.ok_or_else(|| self.broken("a slot cannot be opened"))
    }

    /// Overwrites all slots but these, durably.
    pub(super) fn keep_only(&mut self, named: &[u32]) -> Result<(), StoreError> {
        let used: BTreeSet<u32> = named.iter().copied().collect();
        if used.len() != named.len() {
            return Err(self.broken("two rows name one slot"));
        }
        self.free.clear();
        for slot in (0..self.count).filter(|slot| !used.contains(slot)) {
            if self.slot(slot)? == FREE {
                self.free.insert(slot);
            } else {
                self.wipe([slot])?;
            }
        }
        self.sync()
    }

    /// Puts a new key into a free slot; it is durable after [`Slots::sync`].
    pub(super) fn put(&mut self) -> Result<(u32, Key), StoreError> {
        let key = Key::random();
        let slot = match self.free.first() {
            Some(slot) => *slot,
            None => self.count,
        };
        let wrapped = self.key.wrap(&about(slot), &key);
        let wrapped = wrapped.ok_or_else(|| self.broken("a key cannot be sealed"))?;
        let mut bytes = FREE;
        for (to, from) in bytes.iter_mut().zip(wrapped) {
            *to = from;
        }
        self.write(slot, &bytes)?;
        if !self.free.remove(&slot) {
            let more = self.count.checked_add(1);
            self.count = more.ok_or_else(|| self.broken("there is no slot left"))?;
        }
        Ok((slot, key))
    }

    /// Overwrites slots, which are free then; that is durable after [`Slots::sync`].
    pub(super) fn wipe(&mut self, slots: impl IntoIterator<Item = u32>) -> Result<(), StoreError> {
        for slot in slots {
            self.write(slot, &FREE)?;
            self.free.insert(slot);
        }
        Ok(())
    }

    /// Makes durable what was written.
    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        if self.is_dirty {
            self.file.sync_data().map_err(failed)?;
            self.is_dirty = false;
        }
        Ok(())
    }

    /// What to say of rows and slots that do not fit.
    pub(super) fn broken(&self, what: &'static str) -> StoreError {
        StoreError::Sealed {
            slots: self.path.clone(),
            what,
        }
    }

    fn slot(&self, slot: u32) -> Result<[u8; SLOT_BYTES], StoreError> {
        let mut bytes = FREE;
        let read = self.file.read_exact_at(&mut bytes, offset(slot));
        read.map_err(failed)?;
        Ok(bytes)
    }

    fn write(&mut self, slot: u32, bytes: &[u8; SLOT_BYTES]) -> Result<(), StoreError> {
        self.is_dirty = true;
        self.file.write_all_at(bytes, offset(slot)).map_err(failed)
    }
}

/// The file, and how many slots it has.
fn load(path: &Path, may_make: bool) -> Result<(File, u32), StoreError> {
    let is_there = path
        .try_exists()
        .map_err(|source| cannot_open(path, source))?;
    let broken = |what| StoreError::Sealed {
        slots: path.to_owned(),
        what,
    };
    if !is_there && !may_make {
        return Err(broken("the file is missing"));
    }
    if !is_there {
        make(path).map_err(|source| cannot_open(path, source))?;
    }
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(|source| cannot_open(path, source))?;
    let about = file
        .metadata()
        .map_err(|source| cannot_open(path, source))?;
    if about.mode() & 0o077 != 0 {
        let path = path.to_owned();
        return Err(StoreError::Exposed { path });
    }
    let mut header = FREE;
    let is_read = file.read_exact_at(&mut header, 0).is_ok();
    if !is_read || header != self::header() {
        return Err(broken("it begins as no such file does"));
    }
    // What a crash cut off was never named by a row.
    let slots = about.len() / SLOT_BYTES as u64;
    let count = u32::try_from(slots - 1).map_err(|_| broken("it is too long"))?;
    Ok((file, count))
}

/// Makes an empty one beside its place and moves it there, so that a crash leaves none or a whole one.
fn make(path: &Path) -> io::Result<()> {
    let beside = path.with_extension("slots-new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all_at(&header(), 0)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn header() -> [u8; SLOT_BYTES] {
    let mut header = FREE;
    for (to, from) in header.iter_mut().zip(HEADER) {
        *to = *from;
    }
    header
}

fn offset(slot: u32) -> u64 {
    (u64::from(slot) + 1) * SLOT_BYTES as u64
}

/// A key opens in its own slot alone.
fn about(slot: u32) -> [u8; 4] {
    slot.to_be_bytes()
}

fn cannot_open(path: &Path, source: io::Error) -> StoreError {
    StoreError::Open {
        path: path.to_owned(),
        source,
    }
}

fn failed(error: io::Error) -> StoreError {
    StoreError::Failed(Box::new(error))
}
