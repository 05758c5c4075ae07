//! The rows that an event reads and writes: on disk, and in memory.

use std::{cmp::Ordering, collections::BTreeMap};

use super::{Limit, ROW_BYTES, Transaction, invalid};
use crate::{
    event::{ErrorCode, Principal, Refusal},
    memory::Sealed,
    rows::{Space, own_key},
    store::{Span, StoreError},
};

/// The longest key of a row.
const MAX_KEY_BYTES: usize = 512;
/// The longest value of a row.
const MAX_VALUE_BYTES: usize = 1 << 20;
/// Rows that one `scan` lists, and their bytes.
const MAX_SCAN_ROWS: usize = 4096;
const MAX_SCAN_BYTES: usize = 1 << 20;

/// Rows in memory that an event wrote: deleted where there is no value.
pub(super) type Written = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Rows in the order of their keys.
pub(crate) type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// What a step of a migration is told that writes what is sealed.
pub(super) const STEP: &str = "secret rows, keys and blobs have one side only: change them in `init`, which follows `migrate`";

/// Rows of the principal's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Own {
    /// The plugin's.
    State,
    /// Its sealed ones.
    Secret,
    /// Keys that it created.
    Key,
}

/// Which rows to list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scan {
    pub(crate) prefix: Vec<u8>,
    pub(crate) after: Option<Vec<u8>>,
    pub(crate) backwards: bool,
    pub(crate) limit: u32,
}

impl Transaction {
    /// A row of the principal's own; none for a key that no row can have.
    pub(crate) fn row_get(&self, own: Own, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.view().get(&self.own_row(own, key))
    }

    pub(crate) fn row_set(
        &mut self,
        own: Own,
        key: &[u8],
        value: Vec<u8>,
    ) -> Result<Result<(), Refusal>, StoreError> {
        if let Err(refusal) = check_row(key, &value) {
            return Ok(Err(refusal));
        }
        self.row_put(own, key, Some(value))
    }

    pub(crate) fn row_delete(
        &mut self,
        own: Own,
        key: &[u8],
    ) -> Result<Result<(), Refusal>, StoreError> {
        if let Err(refusal) = check_row(key, &[]) {
            return Ok(Err(refusal));
        }
        self.row_put(own, key, None)
    }

    pub(crate) fn row_scan(&self, own: Own, scan: &Scan) -> Result<Rows, StoreError> {
        let after = scan.after.as_deref().map(|key| self.own_row(own, key));
        let mut rows = self.view().scan(
            &self.own_row(own, &scan.prefix),
            after.as_deref(),
            scan.backwards,
            scan_limit(scan),
            MAX_SCAN_BYTES,
        )?;
        for (key, _) in &mut rows {
            *key = own_key(key).to_vec();
        }
        Ok(rows)
    }

    pub(super) fn row_put(
        &mut self,
        own: Own,
        key: &[u8],
        value: Option<Vec<u8>>,
    ) -> Result<Result<(), Refusal>, StoreError> {
        if let Err(refusal) = self.check_writable() {
            return Ok(Err(refusal));
        }
        if own != Own::State && self.runs_steps {
            return Ok(Err(Refusal::new(ErrorCode::Denied, STEP)));
        }
        let row = self.own_row(own, key);
        let before = self.view().get(&row)?;
        let sealed = match self.count(own, before.is_some(), value.is_some()) {
            Ok(sealed) => sealed,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let size = |value: &Vec<u8>| row_bytes(key, value);
        let before = before.as_ref().map_or(0, size);
        let after = value.as_ref().map_or(0, size);
        let kept = self.kept_bytes + after - before;
        if after > before && self.keeps_too_much(kept) {
            return Ok(Err(self.hit(Limit::State)));
        }
        if let Err(refusal) =
            self.charge_row(key.len() + value.as_ref().map_or(0, Vec::len) + ROW_BYTES)
        {
            return Ok(Err(refusal));
        }
        (self.kept_bytes, self.sealed) = (kept, sealed);
        self.rows.put(row, value);
        Ok(Ok(()))
    }

    /// How many sealed rows there are after a write.
    fn count(&mut self, own: Own, was: bool, is: bool) -> Result<Sealed, Refusal> {
        let mut sealed = self.sealed;
        let (count, most, limit) = match own {
            Own::Secret => (
                &mut sealed.secrets,
                self.ground.limits.secrets,
                Limit::Secrets,
            ),
            Own::Key => (&mut sealed.keys, self.ground.limits.keys, Limit::Keys),
            Own::State => return Ok(sealed),
        };
        if is && !was {
            if *count >= most {
                return Err(self.hit(limit));
            }
            *count += 1;
        } else if was && !is {
            *count = count.saturating_sub(1);
        }
        Ok(sealed)
    }

    fn own_row(&self, own: Own, key: &[u8]) -> Vec<u8> {
        let space = match own {
            Own::State => self.ground.side.space(),
            Own::Secret => Space::Secret,
            Own::Key => Space::Key,
        };
        self.ground.home.key(space, key)
    }

    pub(super) fn keeps_too_much(&self, change: i64) -> bool {
        let own = self.memory.kept_bytes.saturating_add_signed(change);
        let limits = &self.ground.limits;
        let is_user = self.stamp.principal != Principal::Node;
        is_user && own > limits.user_state_bytes()
            || own.saturating_add(self.ground.others_keep) > limits.state_bytes()
    }

    pub(crate) fn scratch_get(&self, key: &[u8]) -> Option<Vec<u8>> {
        match self.scratch.get(key) {
            Some(own) => own.clone(),
            None => self.memory.scratch.get(key).cloned(),
        }
    }

    pub(crate) fn scratch_set(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), Refusal> {
        check_row(key, &value)?;
        self.scratch_write(key, Some(value))
    }

    pub(crate) fn scratch_delete(&mut self, key: &[u8]) -> Result<(), Refusal> {
        check_row(key, &[])?;
        self.scratch_write(key, None)
    }

    pub(crate) fn scratch_scan(&self, scan: &Scan) -> Rows {
        merge(&self.memory.scratch, &self.scratch, scan)
    }

    fn scratch_write(&mut self, key: &[u8], value: Option<Vec<u8>>) -> Result<(), Refusal> {
        self.check_writable()?;
        let before = self.scratch_get(key);
        let size = |value: &Option<Vec<u8>>| {
            value
                .as_ref()
                .map_or(0, |value| row_bytes(key, value) + ROW_BYTES as i64)
        };
        let change = self.scratch_bytes + size(&value) - size(&before);
        let kept = self.memory.scratch_bytes.saturating_add_signed(change);
        if size(&value) > size(&before) && kept > self.ground.limits.scratch_bytes() {
            return Err(self.hit(Limit::Scratch));
        }
        self.charge(key.len() + value.as_ref().map_or(0, Vec::len) + ROW_BYTES)?;
        self.scratch_bytes = change;
        self.scratch.insert(key.to_vec(), value);
        Ok(())
    }
}

fn check_row(key: &[u8], value: &[u8]) -> Result<(), Refusal> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(invalid("a key has 1 to 512 bytes"));
    }
    if value.len() > MAX_VALUE_BYTES {
        return Err(invalid("a value has at most 1 MiB; keep more as a blob"));
    }
    Ok(())
}

fn row_bytes(key: &[u8], value: &[u8]) -> i64 {
    i64::try_from(key.len() + value.len()).unwrap_or(i64::MAX)
}

fn scan_limit(scan: &Scan) -> usize {
    (scan.limit as usize).min(MAX_SCAN_ROWS)
}

/// Lists rows of `below`, hidden by those of `above`.
fn merge(below: &BTreeMap<Vec<u8>, Vec<u8>>, above: &Written, scan: &Scan) -> Rows {
    let Some(span) = Span::new(&scan.prefix, scan.after.as_deref(), scan.backwards) else {
        return Rows::new();
    };
    let mut below = below.range::<[u8], _>(span.bounds());
    let mut above = above.range::<[u8], _>(span.bounds());
    let (mut low, mut high) = if scan.backwards {
        (below.next_back(), above.next_back())
    } else {
        (below.next(), above.next())
    };
    let (mut rows, mut bytes) = (Rows::new(), 0);
    while rows.len() < scan_limit(scan) {
        let order = match (low, high) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((low, _)), Some((high, _))) if scan.backwards => high.cmp(low),
            (Some((low, _)), Some((high, _))) => low.cmp(high),
        };
        let row = match order {
            Ordering::Less => low,
            Ordering::Equal | Ordering::Greater => {
                high.and_then(|(key, value)| Some((key, value.as_ref()?)))
            }
        };
        if let Some((key, value)) = row {
            bytes += key.len() + value.len();
            if bytes > MAX_SCAN_BYTES && !rows.is_empty() {
                break;
            }
            rows.push((key.clone(), value.clone()));
        }
        if order != Ordering::Greater {
            low = if scan.backwards {
                below.next_back()
            } else {
                below.next()
            };
        }
        if order != Ordering::Less {
            high = if scan.backwards {
                above.next_back()
            } else {
                above.next()
            };
        }
    }
    rows
}
