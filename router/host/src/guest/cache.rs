//! Compiled components on disk, so that a plugin is compiled once and not at each start.
//!
//! ```text
//! <SHA-256 of the component>-<the engine's settings>.cwasm, mode 0600 in a folder of mode 0700
//!   XXH3 of what follows, 16 B | what the compiler made
//! ```
//! `unsafe` is here since the engine believes what it loads: a file counts only if this user alone
//! can write it and its checksum is right. Anything else is compiled anew. What was checked is what runs:
//! the engine maps a copy in memory, sealed, where a mapped file could be shortened under it.

#![expect(unsafe_code, reason = "the engine believes what it loads")]

use std::{
    fs::{self, DirBuilder, File},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use data_encoding::HEXLOWER;
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    io::Errno,
};
use tempfile::NamedTempFile;
use wasmtime::{Engine, component::Component};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::source::Source;

/// Of one folder, those of versions that run no more among them. Overflow: the oldest goes.
const MAX_FILES: usize = 64;
/// The largest file that is read: what the compiler makes of a component of 128 MiB.
const MAX_BYTES: u64 = 1 << 30;
const CHECKSUM_BYTES: usize = 16;
/// Of a file, at once.
const CHECKED_BYTES: usize = 64 << 10;

/// A folder of compiled components.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    folder: PathBuf,
    keeps: bool,
}

impl Cache {
    /// In `folder`, which is made when something is kept.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            keeps: true,
        }
    }

    /// The same, but nothing more is kept there: whoever looks may be another user than the node.
    pub(crate) fn looking(folder: PathBuf) -> Self {
        Self {
            folder,
            keeps: false,
        }
    }

    /// The component with this SHA-256, compiled before or now. What cannot be kept is told, and no
    /// error.
    pub(super) fn component(
        &self,
        engine: &Engine,
        source: &Source,
    ) -> wasmtime::Result<Component> {
        let path = self.folder.join(file_name(engine, &source.sha256()));
        if let Ok(Some(compiled)) = believed(&path)
            // SAFETY: only this user can have written it, as this code did, for the same engine; its
            // checksum says that it is whole, and it is sealed.
            && let Ok(component) = unsafe { Component::deserialize_file(engine, opened(&compiled)) }
        {
            return Ok(component);
        }
        let component = Component::from_binary(engine, &source.wasm)?;
        if self.keeps
            && let Err(error) = self.keep(&path, &component.serialize()?)
        {
            tracing::warn!(%error, "a compiled plugin cannot be kept");
        }
        Ok(component)
    }

    fn keep(&self, path: &Path, compiled: &[u8]) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)?;
        self.make_room()?;
        // Renamed: a crash leaves a file that nobody looks for.
        let mut file = NamedTempFile::new_in(&self.folder)?;
        file.write_all(&xxh3_128(compiled).to_be_bytes())?;
        file.write_all(compiled)?;
        file.persist(path)?;
        Ok(())
    }

    fn make_room(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
        files.sort();
        let too_many = (files.len() + 1).saturating_sub(MAX_FILES);
        files
            .into_iter()
            .take(too_many)
            .try_for_each(|(_, path)| fs::remove_file(path))
    }
}

fn file_name(engine: &Engine, component: &[u8]) -> String {
    let mut settings = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut settings);
    let component = HEXLOWER.encode(component);
    format!("{component}-{:016x}.cwasm", settings.finish())
}

/// What the compiler made, in memory and sealed, if it is whole and nobody else can have written it.
fn believed(path: &Path) -> io::Result<Option<File>> {
    let mut file = File::open(path)?;
    let about = file.metadata()?;
    let own = rustix::process::geteuid().as_raw();
    if about.uid() != own || about.mode() & 0o022 != 0 {
        return Ok(None);
    }
    let mut meant = [0; CHECKSUM_BYTES];
    file.read_exact(&mut meant)?;
    let mut copy = memory_file()?;
    let mut checksum = Xxh3::new();
    let mut compiled = BufReader::with_capacity(CHECKED_BYTES, file.take(MAX_BYTES));
    loop {
        let part = compiled.fill_buf()?;
        let length = part.len();
        if length == 0 {
            break;
        }
        checksum.update(part);
        copy.write_all(part)?;
        compiled.consume(length);
    }
    let all = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&copy, all)?;
    Ok((checksum.digest128().to_be_bytes() == meant).then_some(copy))
}

/// A file in memory that can be sealed. Nobody runs it as a program; kernels before 6.3 cannot be told so,
/// and some newer ones refuse one that may be run.
fn memory_file() -> io::Result<File> {
    let make = |flags| memfd_create("compiled plugin", MemfdFlags::CLOEXEC | flags);
    let made = match make(MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => make(MemfdFlags::ALLOW_SEALING),
        made => made,
    };
    Ok(File::from(made?))
}

/// Where the engine finds an open file: it takes a path alone.
fn opened(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// The least component.
    fn empty() -> Source {
        Source::new(PathBuf::new(), String::new(), b"\0asm\x0d\0\x01\0".to_vec())
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn what_was_compiled_is_kept_and_believed_only_if_it_is_whole_and_ones_own() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().join("compiled"));
        let engine = Engine::default();
        let looking = Cache::looking(cache.folder.clone());
        looking.component(&engine, &empty()).unwrap();
        assert!(!cache.folder.exists(), "who only looks keeps nothing");
        cache.component(&engine, &empty()).unwrap();
        let [path] = &files(&cache.folder)[..] else {
            panic!("one file");
        };
        let mode = fs::metadata(path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        let is_believed = || matches!(believed(path), Ok(Some(_)));
        assert!(is_believed());
        let mut sealed = believed(path).unwrap().unwrap();
        let written = sealed.write_all(b"other code");
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::PermissionDenied);

        let whole = fs::read(path).unwrap();
        let mut damaged = whole.clone();
        *damaged.last_mut().unwrap() ^= 1;
        for bytes in [&damaged[..], &whole[..whole.len() - 1], &whole[..10], &[]] {
            fs::write(path, bytes).unwrap();
            assert!(!is_believed());
        }
        looking.component(&engine, &empty()).unwrap();
        assert!(!is_believed(), "who only looks mends nothing");
        cache.component(&engine, &empty()).unwrap();
        assert_eq!(fs::read(path).unwrap(), whole, "compiled anew");

        fs::set_permissions(path, fs::Permissions::from_mode(0o620)).unwrap();
        assert!(!is_believed(), "others can write it");
    }

    #[test]
    fn the_oldest_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().to_owned());
        for number in 0..MAX_FILES + 3 {
            fs::write(dir.path().join(format!("{number:03}.cwasm")), "").unwrap();
        }
        cache.component(&Engine::default(), &empty()).unwrap();
        assert_eq!(files(dir.path()).len(), MAX_FILES);
    }
}
