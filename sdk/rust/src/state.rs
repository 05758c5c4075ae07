//! Rows with types: values in postcard, keys in an order that scans keep.

use std::marker::PhantomData;

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Error, Result,
    host::{InMemory, OnDisk, Range, Sealed, Shelf},
};

/// One value under a name.
#[derive(Debug)]
pub struct Cell<T, S = OnDisk> {
    name: &'static str,
    value: PhantomData<fn(S) -> T>,
}

/// Values by key, under a name.
#[derive(Debug)]
pub struct Map<K, V, S = OnDisk> {
    name: &'static str,
    row: PhantomData<fn(K, S) -> V>,
}

/// What rows are found by. The order of the bytes is the order of the keys.
pub trait Key: Sized {
    /// Adds the key's bytes; those of no key begin another's, but for a last text or bytes.
    fn encode(&self, bytes: &mut Vec<u8>);
    /// Reads them again.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

impl<T> Cell<T> {
    /// On disk. The name must differ from those of all other cells and maps.
    pub const fn new(name: &'static str) -> Self {
        let value = PhantomData;
        Self { name, value }
    }
}

impl<T> Cell<T, InMemory> {
    /// In memory, for as long as the node runs.
    pub const fn scratch(name: &'static str) -> Self {
        let value = PhantomData;
        Self { name, value }
    }
}

impl<T> Cell<T, Sealed> {
    /// On disk, sealed: what is written over cannot be read again. Capability `secret`.
    pub const fn secret(name: &'static str) -> Self {
        let value = PhantomData;
        Self { name, value }
    }
}

impl<T: Serialize + DeserializeOwned, S: Shelf> Cell<T, S> {
    /// The value; `None` before the first `set`.
    ///
    /// # Errors
    /// [`Failed`](crate::ErrorCode::Failed): the row is of another type.
    pub fn get(&self) -> Result<Option<T>> {
        let row = S::get(&prefix(self.name));
        row.map(|row| decode(self.name, &row)).transpose()
    }

    /// Writes the value.
    ///
    /// # Errors
    /// [`Quota`](crate::ErrorCode::Quota): a limit.
    pub fn set(&self, value: &T) -> Result<()> {
        let row = encode(self.name, value)?;
        S::set(&prefix(self.name), &row)
    }
}

impl<K, V> Map<K, V> {
    /// On disk. The name must differ from those of all other cells and maps.
    pub const fn new(name: &'static str) -> Self {
        let row = PhantomData;
        Self { name, row }
    }
}

impl<K, V> Map<K, V, InMemory> {
    /// In memory, for as long as the node runs.
    pub const fn scratch(name: &'static str) -> Self {
        let row = PhantomData;
        Self { name, row }
    }
}

impl<K, V> Map<K, V, Sealed> {
    /// On disk, sealed: what is removed or written over cannot be read again. Capability `secret`.
    pub const fn secret(name: &'static str) -> Self {
        let row = PhantomData;
        Self { name, row }
    }
}

impl<K: Key, V: Serialize + DeserializeOwned, S: Shelf> Map<K, V, S> {
    /// A value.
    ///
    /// # Errors
    /// [`Failed`](crate::ErrorCode::Failed): the row is of another type.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        let row = S::get(&self.key(key));
        row.map(|row| decode(self.name, &row)).transpose()
    }

    /// Writes a value.
    ///
    /// # Errors
    /// [`Quota`](crate::ErrorCode::Quota): a limit.
    pub fn set(&self, key: &K, value: &V) -> Result<()> {
        let row = encode(self.name, value)?;
        S::set(&self.key(key), &row)
    }

    /// Removes a value; none under that key is no error.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorCode::Invalid): the key is longer than 512 bytes.
    pub fn remove(&self, key: &K) -> Result<()> {
        S::delete(&self.key(key))
    }

    /// At most `limit` rows beyond `after`, in the order of their keys; the host gives at most
    /// 4,096 rows and 1 MiB at once.
    ///
    /// # Errors
    /// [`Failed`](crate::ErrorCode::Failed): a row is of another type.
    pub fn page(&self, after: Option<&K>, limit: u32) -> Result<Vec<(K, V)>> {
        self.scan(after, limit, false)
    }

    /// As [`page`](Self::page), from the last to the first.
    ///
    /// # Errors
    /// As for [`page`](Self::page).
    pub fn page_back(&self, after: Option<&K>, limit: u32) -> Result<Vec<(K, V)>> {
        self.scan(after, limit, true)
    }

    fn scan(&self, after: Option<&K>, limit: u32, backwards: bool) -> Result<Vec<(K, V)>> {
        let prefix = prefix(self.name);
        let range = Range {
            after: after.map(|key| self.key(key)),
            backwards,
            limit,
            prefix: prefix.clone(),
        };
        let rows = S::scan(&range);
        let row = |(key, row): (Vec<u8>, Vec<u8>)| {
            let own = key.strip_prefix(prefix.as_slice());
            let key = own
                .and_then(K::decode)
                .ok_or_else(|| unreadable(self.name))?;
            Ok((key, decode(self.name, &row)?))
        };
        rows.into_iter().map(row).collect()
    }

    fn key(&self, key: &K) -> Vec<u8> {
        let mut bytes = prefix(self.name);
        key.encode(&mut bytes);
        bytes
    }
}

/// No name's bytes begin another's: they end with a byte that no text has.
fn prefix(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0xff]].concat()
}

fn encode<T: Serialize>(name: &str, value: &T) -> Result<Vec<u8>> {
    postcard::to_allocvec(value).map_err(|error| Error::failed(format!("{name}: {error}")))
}

fn decode<T: DeserializeOwned>(name: &str, row: &[u8]) -> Result<T> {
    postcard::from_bytes(row).map_err(|_| unreadable(name))
}

fn unreadable(name: &str) -> Error {
    Error::failed(format!(
        "a row of `{name}` is of another type: was the schema raised?"
    ))
}

impl Key for String {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.as_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Self::from_utf8(bytes.to_vec()).ok()
    }
}

impl Key for Vec<u8> {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(bytes.to_vec())
    }
}

impl<const N: usize> Key for [u8; N] {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok()
    }
}

impl Key for u32 {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_be_bytes)
    }
}

impl Key for u64 {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_be_bytes)
    }
}

/// Eight bytes, then the rest.
impl<B: Key> Key for (u64, B) {
    fn encode(&self, bytes: &mut Vec<u8>) {
        self.0.encode(bytes);
        self.1.encode(bytes);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (first, rest) = bytes.split_first_chunk()?;
        Some((u64::from_be_bytes(*first), B::decode(rest)?))
    }
}
