//! The frame around every value: a format version, a checksum, the content.
//!
//! The checksum finds accidents, not attackers: who can write our file can also write a matching
//! one. It covers table and key, so that a value that strayed to another place is found as well.
//! Invariant: what [`unseal`] returns is what [`seal`] was given for the same table and key.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::tables::Table;

/// Longest key of a record and longest name of a document, in bytes. A wire key is a short text;
/// a longer one is refused before it reaches the disk.
pub const KEY_MAX: usize = 16 * 1024;

/// Largest value we write, in bytes. A record holds at most two raw values of the wire (limit
/// 4 MiB each, protocol text); a larger one is refused before it reaches the disk.
pub const VALUE_MAX: usize = 16 * 1024 * 1024;

/// Version of the value format: postcard of the types of `hamlet_core::durable`.
const FORMAT: u8 = 1;
/// Bytes of SHA-256 that we keep.
const CHECKSUM_LEN: usize = 8;
const HEAD_LEN: usize = 1 + CHECKSUM_LEN;

/// What is wrong with a stored value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Flaw {
    #[error("it is too short")]
    Short,
    #[error("its checksum is wrong")]
    Checksum,
    #[error("its format is unknown")]
    Format,
    #[error("its key is malformed")]
    Key,
    #[error("its content is malformed")]
    Content,
}

fn checksum(table: Table, key: &[u8], format: u8, content: &[u8]) -> [u8; CHECKSUM_LEN] {
    let name = table.name().as_bytes();
    let mut hash = Sha256::new();
    hash.update((name.len() as u64).to_le_bytes());
    hash.update(name);
    hash.update((key.len() as u64).to_le_bytes());
    hash.update(key);
    hash.update([format]);
    hash.update(content);
    let full: [u8; 32] = hash.finalize().into();
    let mut short = [0; CHECKSUM_LEN];
    short.copy_from_slice(&full[..CHECKSUM_LEN]);
    short
}

/// Puts the frame around `content`.
pub(crate) fn seal(table: Table, key: &[u8], content: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEAD_LEN + content.len());
    value.push(FORMAT);
    value.extend_from_slice(&checksum(table, key, FORMAT, content));
    value.extend_from_slice(content);
    value
}

/// Checks the frame and takes it off.
pub(crate) fn unseal<'v>(table: Table, key: &[u8], value: &'v [u8]) -> Result<&'v [u8], Flaw> {
    let (head, content) = value.split_at_checked(HEAD_LEN).ok_or(Flaw::Short)?;
    if head[1..] != checksum(table, key, head[0], content) {
        return Err(Flaw::Checksum);
    }
    if head[0] != FORMAT {
        return Err(Flaw::Format);
    }
    Ok(content)
}

/// Encodes and seals one value of a type.
pub(crate) fn encode<T: Serialize>(table: Table, key: &[u8], value: &T) -> Result<Vec<u8>, postcard::Error> {
    Ok(seal(table, key, &postcard::to_stdvec(value)?))
}

/// Unseals and decodes one value; all of the content must be used.
pub(crate) fn decode<T: DeserializeOwned>(table: Table, key: &[u8], value: &[u8]) -> Result<T, Flaw> {
    let content = unseal(table, key, value)?;
    match postcard::take_from_bytes(content) {
        Ok((out, [])) => Ok(out),
        _ => Err(Flaw::Content),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hamlet_core::durable::PeerState;
    use proptest::prelude::*;

    #[test]
    fn a_value_that_strayed_to_another_key_or_table_is_found() {
        let value = seal(Table::Imports, b"acme\0a", b"content");
        assert_eq!(unseal(Table::Imports, b"acme\0a", &value), Ok(&b"content"[..]));
        assert_eq!(unseal(Table::Imports, b"acme\0b", &value), Err(Flaw::Checksum));
        assert_eq!(unseal(Table::Documents, b"acme\0a", &value), Err(Flaw::Checksum));
    }

    #[test]
    fn content_with_a_tail_or_of_another_shape_is_malformed_and_its_neighbour_is_not() {
        let state = PeerState { down_ms: 5, log_id: vec![1; 16], revision: 9 };
        let good = encode(Table::Peers, b"acme", &state).unwrap();
        assert_eq!(decode::<PeerState>(Table::Peers, b"acme", &good), Ok(state.clone()));
        let mut long = postcard::to_stdvec(&state).unwrap();
        long.push(0);
        for content in [&long[..], &long[..3], b""] {
            let bad = seal(Table::Peers, b"acme", content);
            assert_eq!(decode::<PeerState>(Table::Peers, b"acme", &bad), Err(Flaw::Content));
        }
    }

    #[test]
    fn an_unknown_format_with_a_right_checksum_is_told_apart_from_damage() {
        let mut value = vec![FORMAT + 1];
        value.extend_from_slice(&checksum(Table::Peers, b"acme", FORMAT + 1, b"x"));
        value.extend_from_slice(b"x");
        assert_eq!(unseal(Table::Peers, b"acme", &value), Err(Flaw::Format));
    }

    proptest! {
        #[test]
        fn every_flipped_bit_and_every_cut_is_found(
            content in proptest::collection::vec(any::<u8>(), 0..64),
            at in any::<proptest::sample::Index>(),
            bit in 0u8..8,
        ) {
            let value = seal(Table::Imports, b"k", &content);
            prop_assert_eq!(unseal(Table::Imports, b"k", &value), Ok(&content[..]));
            let place = at.index(value.len());
            let mut flipped = value.clone();
            flipped[place] ^= 1 << bit;
            prop_assert!(unseal(Table::Imports, b"k", &flipped).is_err());
            prop_assert!(unseal(Table::Imports, b"k", &value[..place]).is_err());
        }
    }
}
