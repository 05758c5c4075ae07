//! The ephemeral keys that CREATEs to one onion key used: each is good for one circuit.

use std::collections::BTreeSet;

use super::build::EPHEMERAL_BYTES;

/// A set that only grows. Overflow: a full set takes nothing, so its onion key is of no more use.
#[derive(Debug)]
pub(super) struct SeenKeys {
    /// The first 8 bytes of each. Two honest keys agree in them with a chance of 2^-27 in a full
    /// set; who makes his own collide only has his own CREATE dropped.
    prefixes: BTreeSet<[u8; 8]>,
    max: usize,
}

impl SeenKeys {
    pub(super) fn new(max: usize) -> Self {
        Self {
            prefixes: BTreeSet::new(),
            max,
        }
    }

    pub(super) fn contains(&self, ephemeral: &[u8; EPHEMERAL_BYTES]) -> bool {
        self.prefixes.contains(&prefix(ephemeral))
    }

    /// Takes note of a key; false when it was seen before or the set is full.
    pub(super) fn insert(&mut self, ephemeral: &[u8; EPHEMERAL_BYTES]) -> bool {
        !self.is_full() && self.prefixes.insert(prefix(ephemeral))
    }

    pub(super) fn is_full(&self) -> bool {
        self.prefixes.len() >= self.max
    }
}

fn prefix(ephemeral: &[u8; EPHEMERAL_BYTES]) -> [u8; 8] {
    ephemeral.first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_once_and_a_full_set_takes_none() {
        let mut seen = SeenKeys::new(2);
        assert!(seen.insert(&[1; 32]));
        assert!(!seen.insert(&[1; 32]));
        assert!(seen.contains(&[1; 32]));
        assert!(seen.insert(&[2; 32]));
        assert!(seen.is_full());
        assert!(!seen.insert(&[3; 32]));
        assert!(seen.contains(&[1; 32]), "nothing is ever evicted");
    }
}
