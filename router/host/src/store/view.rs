//! What an event reads: its own writes, over its principal's uncommitted ones, over a snapshot.

use std::{cmp::Ordering, iter, ops::ControlFlow};

use super::{Overlay, Snapshot, StoreError, Writes, backend::Span};

/// Three layers read as one: later ones hide earlier ones, deletions hide.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    own: &'a Writes,
    overlay: &'a Overlay,
    snapshot: &'a Snapshot,
}

/// Key and value of a row.
pub type Row = (Vec<u8>, Vec<u8>);

/// One in memory; `None` is a deletion.
type Seen<'a> = (&'a [u8], Option<&'a [u8]>);

impl<'a> View<'a> {
    /// Reads `own` over `overlay` over `snapshot`.
    pub fn new(own: &'a Writes, overlay: &'a Overlay, snapshot: &'a Snapshot) -> Self {
        Self {
            own,
            overlay,
            snapshot,
        }
    }

    /// A row's value.
    ///
    /// # Errors
    /// When the store cannot be read; wait with [`Store::lost`](super::Store::lost) and begin anew.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(value) = self.own.map().get(key) {
            return Ok(value.clone());
        }
        if self.own.hides(key) {
            return Ok(None);
        }
        match self.overlay.get(key) {
            Some(value) => Ok(value.map(<[u8]>::to_vec)),
            None => self.snapshot.get(key),
        }
    }

    /// Rows whose keys begin with `prefix`, in the order of their keys or against it, that come
    /// behind `after` in that direction: at most `limit`, and at most `max_bytes` of keys and values,
    /// but one row if there is one and `limit` is not 0.
    ///
    /// # Errors
    /// As of [`View::get`].
    pub fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        backwards: bool,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<Row>, StoreError> {
        let mut found = Found::new(limit, max_bytes);
        let Some(span) = Span::new(prefix, after, backwards).filter(|_| limit > 0) else {
            return Ok(found.rows);
        };
        let mut memory = self.memory(&span).peekable();
        self.snapshot.scan(&span, &mut |key, value| {
            while let Some(row) = memory.next_if(|row| span.order(row.0, key).is_lt()) {
                found.push(row)?;
            }
            if let Some(row) = memory.next_if(|row| row.0 == key) {
                return found.push(row);
            }
            if self.own.hides(key) || self.overlay.hides(key) {
                return ControlFlow::Continue(());
            }
            found.push((key, Some(value)))
        })?;
        for row in memory {
            if found.push(row).is_break() {
                break;
            }
        }
        Ok(found.rows)
    }

    /// The rows of both layers in memory.
    fn memory<'b>(&self, span: &'b Span) -> impl Iterator<Item = Seen<'b>>
    where
        'a: 'b,
    {
        let own = self.own;
        let rows = own.map().range::<[u8], _>(span.bounds());
        let rows = rows.map(|(key, value)| (key.as_slice(), value.as_deref()));
        let below = self.overlay.range(span.bounds());
        let below = below.filter(|(key, _)| !own.hides(key));
        merge(span, direct(span, rows), direct(span, below))
    }
}

/// In the direction of `span`.
fn direct<'a>(
    span: &Span,
    rows: impl DoubleEndedIterator<Item = Seen<'a>> + 'a,
) -> Box<dyn Iterator<Item = Seen<'a>> + 'a> {
    if span.is_backwards() {
        Box::new(rows.rev())
    } else {
        Box::new(rows)
    }
}

/// Both in the order of `span`; where both have a key, that of `above`.
fn merge<'a>(
    span: &'a Span,
    above: impl Iterator<Item = Seen<'a>>,
    below: impl Iterator<Item = Seen<'a>>,
) -> impl Iterator<Item = Seen<'a>> {
    let (mut above, mut below) = (above.peekable(), below.peekable());
    iter::from_fn(move || {
        let order = match (above.peek(), below.peek()) {
            (Some(above), Some(below)) => span.order(above.0, below.0),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        if order.is_eq() {
            below.next();
        }
        if order.is_le() {
            above.next()
        } else {
            below.next()
        }
    })
}

/// The rows of a scan, up to its limits.
struct Found {
    rows: Vec<Row>,
    limit: usize,
    bytes: usize,
    max_bytes: usize,
    is_full: bool,
}

impl Found {
    fn new(limit: usize, max_bytes: usize) -> Self {
        Self {
            rows: Vec::new(),
            limit,
            bytes: 0,
            max_bytes,
            is_full: false,
        }
    }

    /// Takes a row unless it is deleted or does not fit; breaks when nothing more is wanted.
    fn push(&mut self, (key, value): Seen<'_>) -> ControlFlow<()> {
        let Some(value) = value.filter(|_| !self.is_full) else {
            return self.go_on();
        };
        self.bytes += key.len() + value.len();
        if self.bytes > self.max_bytes && !self.rows.is_empty() {
            self.is_full = true;
            return self.go_on();
        }
        self.rows.push((key.to_vec(), value.to_vec()));
        self.is_full = self.rows.len() >= self.limit;
        self.go_on()
    }

    fn go_on(&self) -> ControlFlow<()> {
        if self.is_full {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}
