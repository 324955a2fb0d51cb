//! Protobuf by hand: fields are written and looked up one by one. Only for peers of a bench; what
//! can't be read is as if it weren't there.

/// Appends a varint.
fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length-delimited field.
pub(super) fn put(tag: u32, bytes: &[u8], out: &mut Vec<u8>) {
    varint(u64::from(tag) << 3 | 2, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Appends a number.
pub(super) fn put_number(tag: u32, number: u64, out: &mut Vec<u8>) {
    varint(u64::from(tag) << 3, out);
    varint(number, out);
}

/// The fields of a message that have a length, in order.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let length = usize::try_from(length).ok().filter(|n| *n <= self.0.len())?;
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.0.is_empty() {
            let key = self.varint()?;
            match key & 7 {
                0 => drop(self.varint()?),
                1 => drop(self.take(8)?),
                2 => {
                    let length = self.varint()?;
                    return Some(((key >> 3) as u32, self.take(length)?));
                }
                5 => drop(self.take(4)?),
                _ => return None,
            }
        }
        None
    }
}

/// The first field of that number.
pub(super) fn field(tag: u32, message: &[u8]) -> Option<&[u8]> {
    Fields(message).find(|(t, _)| *t == tag).map(|(_, bytes)| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_others_and_garbage_ends_the_search() {
        let mut message = vec![0x31, 1, 2, 3, 4, 5, 6, 7, 8];
        put_number(5, 150, &mut message);
        assert_eq!(message[9..], [0x28, 0x96, 0x01]);
        put(2, &[7; 300], &mut message);
        put(1000, b"x", &mut message);
        assert_eq!(field(2, &message), Some(&[7; 300][..]));
        assert_eq!(field(1000, &message), Some(&b"x"[..]));
        assert_eq!(field(3, &message), None);
        for garbage in [&[0x0a, 0xff][..], &[0xff; 12], &[0x0f, 1], &[0x0a, 5, 1]] {
            assert_eq!(field(1, garbage), None);
        }
    }
}
