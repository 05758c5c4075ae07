//! The eight tag slots at the head of a cell, as numbers that XOR and shift cheaply.

use crate::noise::TAG_BYTES;

use super::build::MAX_HOPS;

/// Bytes of all slots.
pub(super) const SLOTS_BYTES: usize = MAX_HOPS * TAG_BYTES;

/// Eight slots of 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slots([u128; MAX_HOPS]);

impl Slots {
    pub(super) const ZERO: Self = Self([0; MAX_HOPS]);

    pub(super) fn from_bytes(bytes: &[u8; SLOTS_BYTES]) -> Self {
        let (slots, _) = bytes.as_chunks::<TAG_BYTES>();
        let mut numbers = [0; MAX_HOPS];
        for (number, slot) in numbers.iter_mut().zip(slots) {
            *number = u128::from_ne_bytes(*slot);
        }
        Self(numbers)
    }

    pub(super) fn write_to(self, bytes: &mut [u8; SLOTS_BYTES]) {
        let (slots, _) = bytes.as_chunks_mut::<TAG_BYTES>();
        for (slot, number) in slots.iter_mut().zip(self.0) {
            *slot = number.to_ne_bytes();
        }
    }

    pub(super) fn xor(self, other: Self) -> Self {
        let mut numbers = self.0;
        for (number, other) in numbers.iter_mut().zip(other.0) {
            *number ^= other;
        }
        Self(numbers)
    }

    /// Drops the first slot; the last becomes zero.
    pub(super) fn towards_first(self) -> Self {
        let [_, b, c, d, e, f, g, h] = self.0;
        Self([b, c, d, e, f, g, h, 0])
    }

    /// Drops the last slot; the first becomes zero.
    pub(super) fn towards_last(self) -> Self {
        let [a, b, c, d, e, f, g, _] = self.0;
        Self([0, a, b, c, d, e, f, g])
    }

    pub(super) fn first(self) -> [u8; TAG_BYTES] {
        self.0[0].to_ne_bytes()
    }

    pub(super) fn with_first(mut self, tag: [u8; TAG_BYTES]) -> Self {
        self.0[0] = u128::from_ne_bytes(tag);
        self
    }

    pub(super) fn last(self) -> u128 {
        self.0[MAX_HOPS - 1]
    }

    pub(super) fn with_last(mut self, slot: u128) -> Self {
        self.0[MAX_HOPS - 1] = slot;
        self
    }

    /// Takes the first `n_slots` from `other`.
    pub(super) fn with_head_of(mut self, other: Self, n_slots: usize) -> Self {
        for (mine, theirs) in self.0.iter_mut().zip(other.0).take(n_slots) {
            *mine = theirs;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifts_drop_one_end_and_clear_the_other() {
        let slots = Slots([1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(slots.towards_first(), Slots([2, 3, 4, 5, 6, 7, 8, 0]));
        assert_eq!(slots.towards_last(), Slots([0, 1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(slots.xor(slots), Slots::ZERO);
        assert_eq!(
            slots.with_head_of(Slots::ZERO, 3),
            Slots([0, 0, 0, 4, 5, 6, 7, 8])
        );
    }

    #[test]
    fn bytes_come_back() {
        let bytes = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let slots = Slots::from_bytes(&bytes);
        assert_eq!(slots.first()[..], bytes[..16]);
        let mut copy = [0; SLOTS_BYTES];
        slots.write_to(&mut copy);
        assert_eq!(copy, bytes);
    }
}
