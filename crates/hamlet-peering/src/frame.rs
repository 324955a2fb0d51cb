//! Strict reading and writing of bounded bytes, for the token, the documents and the messages.
//!
//! Invariant: one value has one encoding. Nothing may be left over, lengths are checked before
//! they are believed, and texts are read only in their canonical form.

/// The bytes are not what they should be. Why is not told: the sender is hostile or broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are not in the form that they must have")]
pub(crate) struct Broken;

/// Reads from the front.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    pub(crate) fn new(bytes: &'b [u8]) -> Reader<'b> {
        Reader(bytes)
    }

    /// So many bytes.
    pub(crate) fn take(&mut self, count: usize) -> Result<&'b [u8], Broken> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Broken)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Broken> {
        self.take(N)?.try_into().map_err(|_| Broken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Broken> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Broken> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Bytes with their length before them, two bytes.
    pub(crate) fn bytes(&mut self) -> Result<&'b [u8], Broken> {
        let length = u16::from_be_bytes(self.array()?);
        self.take(usize::from(length))
    }

    pub(crate) fn text(&mut self) -> Result<&'b str, Broken> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Broken)
    }

    /// A list with its length before it, one byte, of `least` to `most` items.
    pub(crate) fn list<T>(
        &mut self,
        least: usize,
        most: usize,
        mut item: impl FnMut(&mut Reader<'b>) -> Result<T, Broken>,
    ) -> Result<Vec<T>, Broken> {
        let count = usize::from(self.u8()?);
        if !(least..=most).contains(&count) {
            return Err(Broken);
        }
        (0..count).map(|_| item(self)).collect()
    }

    /// All was read.
    pub(crate) fn end(self) -> Result<(), Broken> {
        if self.0.is_empty() { Ok(()) } else { Err(Broken) }
    }
}

/// Writes at the end. What doesn't fit its length is noted, and makes the whole fail.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    overflow: bool,
}

impl Writer {
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let length = u16::try_from(bytes.len());
        self.overflow |= length.is_err();
        self.raw(&length.unwrap_or_default().to_be_bytes());
        self.raw(bytes);
    }

    pub(crate) fn list<T>(&mut self, items: &[T], mut item: impl FnMut(&mut Writer, &T)) {
        let count = u8::try_from(items.len());
        self.overflow |= count.is_err();
        self.raw(&[count.unwrap_or_default()]);
        for one in items {
            item(self, one);
        }
    }

    /// What was written, unless something was too long.
    pub(crate) fn finish(self) -> Result<Vec<u8>, Broken> {
        if self.overflow { Err(Broken) } else { Ok(self.bytes) }
    }
}
