//! Bytes of a fuzzer taken apart: choices from the front, then the content.

/// What is left of them. Where they have ended come zeros and empty pieces.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// A choice.
    pub(super) fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    /// So many bytes, or all that are left.
    pub(super) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        head
    }

    /// A piece after its length.
    pub(super) fn piece(&mut self) -> &'a [u8] {
        let len = self.byte();
        self.bytes(len.into())
    }

    /// All that is left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Damages `bytes` by what is left, three bytes for each place: where, and which bits. Returns
    /// whether anything is another than before.
    pub(super) fn damage(self, bytes: &mut [u8]) -> bool {
        let before = bytes.to_vec();
        for place in self.rest.chunks_exact(3) {
            let [high, low, bits] = *place.first_chunk().unwrap();
            let at = usize::from(u16::from_be_bytes([high, low])) % bytes.len().max(1);
            bytes
                .iter_mut()
                .skip(at)
                .take(1)
                .for_each(|byte| *byte ^= bits);
        }
        bytes != before
    }
}

/// `bytes` in pieces of 1 to 256 bytes, as `choice` says.
pub(super) fn pieces(bytes: &[u8], choice: u8) -> impl Iterator<Item = &[u8]> {
    bytes.chunks(usize::from(choice) + 1)
}
