//! The store's own row: what it is, and how often it was opened.
//!
//! ```text
//! 00 -> format u8 (1) | incarnation 16 bytes | boot u32, big-endian
//! ```

use super::{Rows, StoreError, Writes};

/// Before all other rows; no other key begins with this byte.
const KEY: &[u8] = &[0];
const FORMAT: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) incarnation: [u8; 16],
    pub(super) boot: u32,
}

impl Head {
    /// None of a store that never held one.
    pub(super) fn read(rows: &dyn Rows) -> Result<Option<Self>, StoreError> {
        let Some(row) = rows.get(KEY)? else {
            return Ok(None);
        };
        Self::parse(&row).map(Some)
    }

    fn parse(row: &[u8]) -> Result<Self, StoreError> {
        let damaged = || StoreError::Damaged {
            what: "its first row is not as it was written".to_owned(),
        };
        let (&format, rest) = row.split_first().ok_or_else(damaged)?;
        if format != FORMAT {
            return Err(StoreError::Format {
                found: format,
                known: FORMAT,
            });
        }
        let (incarnation, boot) = rest.split_first_chunk().ok_or_else(damaged)?;
        let boot = boot.try_into().map_err(|_| damaged())?;
        Ok(Self {
            incarnation: *incarnation,
            boot: u32::from_be_bytes(boot),
        })
    }

    pub(super) fn write(&self, writes: &mut Writes) {
        let boot = self.boot.to_be_bytes();
        let row = [&[FORMAT][..], &self.incarnation, &boot].concat();
        writes.put(KEY.to_vec(), Some(row));
    }
}
