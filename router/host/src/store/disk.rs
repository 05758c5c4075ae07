//! The backend of a node by itself: one redb file with one table.
//!
//! A commit is redb's one-phase commit: all pages and the header are written, then one fdatasync;
//! checksums show after a crash whether it was whole. Opening reads the whole file once and checks
//! them, so that damage is refused here and not met later.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use redb::{
    Database, DatabaseError, ReadOnlyTable, ReadableDatabase, StorageError, TableDefinition,
    TableError, TableHandle, backends::FileBackend,
};
use rustix::fs::{Advice, fadvise};

use super::{Backend, Rows, Span, StoreError, Visit, Writes};

const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");

/// A file of rows, which no other process may open meanwhile.
pub(super) struct Disk {
    path: PathBuf,
    cache_bytes: usize,
    /// None after a failure, until it is opened anew.
    database: Option<Database>,
}

/// The rows of one commit. redb keeps their pages until it is dropped.
struct DiskRows(ReadOnlyTable<&'static [u8], &'static [u8]>);

impl Disk {
    /// Opens the store at `path`, or makes an empty one.
    pub(super) fn open(path: &Path, cache_bytes: usize) -> Result<Self, StoreError> {
        let mut disk = Self {
            path: path.to_owned(),
            cache_bytes,
            database: None,
        };
        if !path
            .try_exists()
            .map_err(|source| disk.cannot_open(source))?
        {
            disk.make()?;
        }
        disk.database = Some(disk.load()?);
        Ok(disk)
    }

    /// Makes an empty store beside its place and moves it there, so that a crash leaves none or a
    /// whole one.
    fn make(&self) -> Result<(), StoreError> {
        let beside = self.path.with_extension("new");
        let made = match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => options().create_new(true).mode(0o600).open(&beside),
        };
        let file = made.map_err(|source| self.cannot_open(source))?;
        let database = self.database(file)?;
        let transaction = database.begin_write().map_err(failed)?;
        transaction.open_table(ROWS).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        drop(database);
        fs::rename(&beside, &self.path)
            .and_then(|()| {
                let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty());
                File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
            })
            .map_err(|source| self.cannot_open(source))
    }

    fn load(&self) -> Result<Database, StoreError> {
        let file = options().open(&self.path);
        let file = file.map_err(|source| self.cannot_open(source))?;
        let about = file.metadata().map_err(|source| self.cannot_open(source))?;
        if about.mode() & 0o077 != 0 {
            return Err(StoreError::Exposed {
                path: self.path.clone(),
            });
        }
        if about.len() == 0 {
            // redb would make a new store of it, and with it of one that lost all it held.
            return Err(StoreError::Damaged {
                what: "the file is empty".to_owned(),
            });
        }
        let database = self.database(file)?;
        let transaction = database.begin_read().map_err(failed)?;
        let mut tables = transaction.list_tables().map_err(failed)?;
        if !tables.all(|table| table.name() == ROWS.name()) {
            return Err(self.foreign());
        }
        match transaction.open_table(ROWS) {
            Ok(_) => {}
            Err(TableError::Storage(error)) => return Err(failed(error)),
            Err(_) => return Err(self.foreign()),
        }
        Ok(database)
    }

    fn database(&self, file: File) -> Result<Database, StoreError> {
        let open = || {
            let mut builder = Database::builder();
            builder.set_cache_size(self.cache_bytes);
            builder.set_check_integrity_on_open(true);
            builder.create_with_backend(FileBackend::new(file)?)
        };
        // What is damaged may break redb's own assumptions before a checksum shows it.
        let opened = catch_unwind(AssertUnwindSafe(open)).map_err(|_| StoreError::Damaged {
            what: "redb cannot make sense of it".to_owned(),
        })?;
        opened.map_err(|error| self.explain(error))
    }

    fn explain(&self, error: DatabaseError) -> StoreError {
        let is_foreign = matches!(&error, DatabaseError::UpgradeRequired(_))
            || matches!(&error, DatabaseError::Storage(StorageError::Io(error))
                if error.kind() == io::ErrorKind::InvalidData);
        let is_held = matches!(
            error,
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch
        );
        if is_held {
            let path = self.path.clone();
            StoreError::Held { path }
        } else if is_foreign {
            self.foreign()
        } else {
            failed(error)
        }
    }

    fn cannot_open(&self, source: io::Error) -> StoreError {
        StoreError::Open {
            path: self.path.clone(),
            source,
        }
    }

    fn foreign(&self) -> StoreError {
        StoreError::Foreign {
            place: self.path.display().to_string(),
        }
    }
}

impl Backend for Disk {
    fn snapshot(&self) -> Result<Box<dyn Rows>, StoreError> {
        let database = self.database.as_ref().ok_or(StoreError::Closed)?;
        let transaction = database.begin_read().map_err(failed)?;
        let table = transaction.open_table(ROWS).map_err(failed)?;
        Ok(Box::new(DiskRows(table)))
    }

    fn commit(&mut self, writes: &Writes) -> Result<(), StoreError> {
        let database = self.database.as_ref().ok_or(StoreError::Closed)?;
        let transaction = database.begin_write().map_err(failed)?;
        let mut table = transaction.open_table(ROWS).map_err(failed)?;
        for range in writes.removed() {
            let range = range.start.as_slice()..range.end.as_slice();
            table.retain_in(range, |_, _| false).map_err(failed)?;
        }
        for (key, value) in writes.rows() {
            match value {
                Some(value) => table.insert(key, value),
                None => table.remove(key),
            }
            .map_err(failed)?;
        }
        drop(table);
        transaction.commit().map_err(failed)
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        drop(self.database.take());
        let file = options().open(&self.path);
        // The kernel counts a page as clean once writing it failed: the disk is asked what it has.
        file.and_then(|file| {
            file.sync_all()?;
            Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
        })
        .map_err(|source| self.cannot_open(source))?;
        self.database = Some(self.load()?);
        Ok(())
    }
}

impl Rows for DiskRows {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.0.get(key).map_err(failed)?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    fn scan(&self, span: &Span, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let mut rows = self.0.range::<&[u8]>(span.bounds()).map_err(failed)?;
        while let Some(row) = if span.is_backwards() {
            rows.next_back()
        } else {
            rows.next()
        } {
            let (key, value) = row.map_err(failed)?;
            if visit(key.value(), value.value()).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Disk")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for DiskRows {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("DiskRows").finish_non_exhaustive()
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options
}

fn failed(error: impl Into<redb::Error>) -> StoreError {
    let error = error.into();
    if let redb::Error::Corrupted(what) = error {
        StoreError::Damaged { what }
    } else if matches!(error, redb::Error::DatabaseClosed) {
        StoreError::Closed
    } else {
        StoreError::Failed(Box::new(error))
    }
}
