//! A bounded cursor over bytes, and its opposite: what every format in this crate is read and
//! written with. Integers are big-endian.

use thiserror::Error;

/// Input that breaks a format.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// The input ended inside the named field.
    #[error("input ends inside {0}")]
    Truncated(&'static str),
    /// The named field holds a value that its format forbids.
    #[error("invalid {0}")]
    Invalid(&'static str),
    /// Bytes follow where the format ends.
    #[error("{0} bytes too many")]
    Trailing(usize),
}

/// Reads fields from the front of a slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Takes the next `len` bytes; `field` names them in the error.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when fewer are left.
    pub fn bytes(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], WireError> {
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(WireError::Truncated(field))?;
        self.rest = rest;
        Ok(head)
    }

    /// Takes the next `N` bytes as an array.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when fewer are left.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(WireError::Truncated(field))?;
        self.rest = rest;
        Ok(*head)
    }

    /// Takes one byte.
    ///
    /// # Errors
    /// [`WireError::Truncated`] at the end.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, WireError> {
        Ok(u8::from_be_bytes(self.array(field)?))
    }

    /// Takes a 16-bit integer.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when fewer than two bytes are left.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, WireError> {
        Ok(u16::from_be_bytes(self.array(field)?))
    }

    /// Takes a 32-bit integer.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when fewer than four bytes are left.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }

    /// Takes a 64-bit integer.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when fewer than eight bytes are left.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        Ok(u64::from_be_bytes(self.array(field)?))
    }

    /// Takes a byte string that its length, one byte, precedes.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when the length promises more than is left.
    pub fn short_bytes(&mut self, field: &'static str) -> Result<&'a [u8], WireError> {
        let len = usize::from(self.u8(field)?);
        self.bytes(len, field)
    }

    /// Everything that is left.
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`WireError::Trailing`] when bytes are left.
    pub fn finish(self) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(WireError::Trailing(left)),
        }
    }
}

/// Appends fields to a vector.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Starts empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends raw bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    /// Appends a 16-bit integer.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Appends a 32-bit integer.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Appends a 64-bit integer.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Appends a byte string after its length in one byte. More than 255 bytes are cut off: the
    /// types whose fields come here are bounded below that.
    pub fn short_bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let len = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
        self.u8(len)
            .bytes(bytes.get(..usize::from(len)).unwrap_or_default())
    }

    /// What was written.
    pub fn into_vec(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut writer = Writer::new();
        writer
            .u8(7)
            .u16(0x0102)
            .u32(0x0304_0506)
            .u64(9)
            .short_bytes(b"abc")
            .bytes(b"end");
        let bytes = writer.into_vec();
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.u8("a"), Ok(7));
        assert_eq!(reader.u16("b"), Ok(0x0102));
        assert_eq!(reader.u32("c"), Ok(0x0304_0506));
        assert_eq!(reader.u64("c"), Ok(9));
        assert_eq!(reader.short_bytes("d"), Ok(&b"abc"[..]));
        assert_eq!(reader.clone().finish(), Err(WireError::Trailing(3)));
        assert_eq!(reader.rest(), b"end");
    }

    #[test]
    fn a_length_beyond_the_input_is_truncated() {
        assert_eq!(
            Reader::new(&[5, 1]).short_bytes("name"),
            Err(WireError::Truncated("name"))
        );
        assert_eq!(Reader::new(&[1]).u64("n"), Err(WireError::Truncated("n")));
    }
}
