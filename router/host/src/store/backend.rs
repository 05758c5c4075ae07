//! What a store asks of the place where its rows lie: little enough for an existing distributed
//! store to stand behind it.

use std::{
    cmp::Ordering,
    fmt::Debug,
    ops::{Bound, ControlFlow},
};

use super::{StoreError, Writes};

/// Keeps ordered rows of bytes durably. One thread calls it, and may be blocked by it.
pub trait Backend: Debug + Send + 'static {
    /// All rows as the last commit left them; later commits do not change it.
    ///
    /// # Errors
    /// When it cannot be read.
    fn snapshot(&self) -> Result<Box<dyn Rows>, StoreError>;

    /// Writes all or nothing: first it deletes the ranges, then it puts the rows. They are durable
    /// when it returns.
    ///
    /// # Errors
    /// When that is not certain. Nothing but `reopen` is called then.
    fn commit(&mut self, writes: &Writes) -> Result<(), StoreError>;

    /// Begins anew after a failure, from what is durable: whatever was only on its way there is
    /// either durable now, or gone. Snapshots taken before may fail from now on.
    ///
    /// # Errors
    /// When it still does not work; it is called again, later.
    fn reopen(&mut self) -> Result<(), StoreError>;
}

/// The rows of a snapshot.
pub trait Rows: Debug + Send + Sync {
    /// A row's value.
    ///
    /// # Errors
    /// When it cannot be read.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Shows key and value of the rows of `span` in its direction, until `visit` breaks.
    ///
    /// # Errors
    /// When they cannot be read.
    fn scan(&self, span: &Span, visit: &mut Visit<'_>) -> Result<(), StoreError>;
}

/// Sees key and value of a row; breaks when it has enough.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Which rows to scan, and in which direction.
#[derive(Debug, Clone)]
pub struct Span {
    start: Bound<Vec<u8>>,
    end: Bound<Vec<u8>>,
    backwards: bool,
}

impl Span {
    /// The rows that begin with `prefix` and come behind `after`; none if there cannot be any.
    pub(crate) fn new(prefix: &[u8], after: Option<&[u8]>, backwards: bool) -> Option<Self> {
        let mut start = Bound::Included(prefix);
        let behind_all = behind_all(prefix);
        let mut end = behind_all
            .as_deref()
            .map_or(Bound::Unbounded, Bound::Excluded);
        match after {
            Some(after) if backwards && behind_all.as_deref().is_none_or(|end| after < end) => {
                end = Bound::Excluded(after);
            }
            Some(after) if !backwards && after >= prefix => start = Bound::Excluded(after),
            Some(_) | None => {}
        }
        Self::within(start, end, backwards)
    }

    fn within(start: Bound<&[u8]>, end: Bound<&[u8]>, backwards: bool) -> Option<Self> {
        let is_empty = match (start, end) {
            (Bound::Included(start) | Bound::Excluded(start), Bound::Excluded(end)) => start >= end,
            _ => false,
        };
        (!is_empty).then(|| Self {
            start: start.map(<[u8]>::to_vec),
            end: end.map(<[u8]>::to_vec),
            backwards,
        })
    }

    /// The part of it from a key on, and before another one; `None`: there is none.
    pub(super) fn clip(&self, from: &[u8], to: Option<&[u8]>) -> Option<Self> {
        let (start, end) = self.bounds();
        let start = match start {
            Bound::Included(at) | Bound::Excluded(at) if at >= from => start,
            Bound::Included(_) | Bound::Excluded(_) | Bound::Unbounded => Bound::Included(from),
        };
        let end = match (end, to) {
            (Bound::Included(at) | Bound::Excluded(at), Some(to)) if at < to => end,
            (end, None) => end,
            (_, Some(to)) => Bound::Excluded(to),
        };
        Self::within(start, end, self.backwards)
    }

    /// The keys; never crossed.
    pub fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let start = self.start.as_ref().map(Vec::as_slice);
        (start, self.end.as_ref().map(Vec::as_slice))
    }

    /// From the last row to the first.
    pub fn is_backwards(&self) -> bool {
        self.backwards
    }

    pub(super) fn order(&self, left: &[u8], right: &[u8]) -> Ordering {
        if self.backwards {
            right.cmp(left)
        } else {
            left.cmp(right)
        }
    }
}

/// The first key behind all those with a prefix; none if there is nothing behind them.
fn behind_all(prefix: &[u8]) -> Option<Vec<u8>> {
    let (last, _) = prefix
        .iter()
        .enumerate()
        .rfind(|(_, byte)| **byte != u8::MAX)?;
    let mut end = prefix.get(..=last)?.to_vec();
    *end.last_mut()? += 1;
    Some(end)
}
