//! DER elements one by one, where a parser's leniency would matter. *Hardened to untrusted
//! network.*
//!
//! Not a parser of certificates: those are read by two libraries. Invariant: a length has one form,
//! and what is read fits into what is there.

/// One DER element from the front of `reader`: tag and content.
pub(crate) fn element<'a>(reader: &mut &'a [u8]) -> Result<(u8, &'a [u8]), String> {
    const UNREADABLE: &str = "it can't be read";
    let read = |bytes: &'a [u8]| -> Option<(u8, &'a [u8], &'a [u8])> {
        let (tag, bytes) = bytes.split_first()?;
        let (first, bytes) = bytes.split_first()?;
        let (length, bytes) = match first {
            0..=0x7f => (usize::from(*first), bytes),
            0x81 => {
                let (length, bytes) = bytes.split_first()?;
                (usize::from(*length), bytes)
            }
            0x82 => {
                let (length, bytes) = bytes.split_first_chunk::<2>()?;
                (usize::from(u16::from_be_bytes(*length)), bytes)
            }
            _ => return None,
        };
        // DER knows one way to write each length.
        let minimal = match first {
            0x81 => length >= 0x80,
            0x82 => length > 0xff,
            _ => true,
        };
        let (content, rest) = bytes.split_at_checked(length).filter(|_| minimal)?;
        Some((*tag, content, rest))
    };
    let (tag, content, rest) = read(reader).ok_or(UNREADABLE)?;
    *reader = rest;
    Ok((tag, content))
}

/// Appends one DER element. What comes in was read by [`element`], so its length fits.
pub(crate) fn write(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    let [.., high, low] = content.len().to_be_bytes();
    out.push(tag);
    match (high, low) {
        (0, 0..=0x7f) => out.push(low),
        (0, _) => out.extend([0x81, low]),
        _ => out.extend([0x82, high, low]),
    }
    out.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_has_one_form() {
        for (bytes, good) in [
            (&[0x86, 0x01, b'a'][..], true),
            (&[0x86, 0x81, 0x01, b'a'], false),
            (&[0x86, 0x82, 0, 1, b'a'], false),
            (&[0x86, 0x80, b'a', 0, 0], false),
        ] {
            let mut reader = bytes;
            assert_eq!(element(&mut reader).is_ok(), good, "{bytes:02x?}");
        }
    }
}
