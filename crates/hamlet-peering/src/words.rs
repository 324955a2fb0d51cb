//! The four words that two people compare by voice: 44 bits of the transcript.
//!
//! The list is the English one of BIP-39, from the crate of that name: 2,048 words that are told
//! apart by their first four letters. Only the list is used; nothing here is a wallet's mnemonic.

use std::fmt;

use bip39::Language;

use crate::crypto::{Transcript, append_lp, sha256};

/// How many words; each is 11 bits.
pub const WORDS: usize = 4;

const LABEL: &[u8] = b"hamlet-peering-1 words";

/// Four words. Equal words mean: the same bundles, domains, ids, addresses and channel.
#[derive(Clone, PartialEq, Eq)]
pub struct Words([&'static str; WORDS]);

impl Words {
    /// The words of a transcript: the first 44 bits of a hash of it.
    pub fn of(transcript: &Transcript) -> Words {
        let mut bytes = Vec::new();
        append_lp(&mut bytes, LABEL);
        append_lp(&mut bytes, &transcript.0);
        let [a, b, c, d, e, f, ..] = sha256(&bytes);
        let bits = u64::from_be_bytes([0, 0, a, b, c, d, e, f]) >> 4;
        let list = Language::English.word_list();
        let word = |place: usize| {
            let index = bits >> (11 * (WORDS - 1 - place)) & 0x7ff;
            list.get(index as usize).copied().unwrap_or_default()
        };
        Words(std::array::from_fn(word))
    }

    /// Reads what a person typed: four words of the list, in any case, apart by space, comma or
    /// hyphen. `None` if it isn't that.
    pub fn parse(text: &str) -> Option<Words> {
        let typed = text.split(|c: char| c.is_whitespace() || matches!(c, ',' | '-'));
        let mut words = typed.filter(|w| !w.is_empty()).map(str::to_ascii_lowercase);
        let mut out = [""; WORDS];
        for slot in &mut out {
            let typed = words.next()?;
            *slot = Language::English.word_list().iter().find(|w| **w == typed)?;
        }
        words.next().is_none().then_some(Words(out))
    }
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Words({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_list_has_2048_words_that_differ_in_four_letters() {
        let list = Language::English.word_list();
        let starts: BTreeSet<&str> = list.iter().map(|w| &w[..w.len().min(4)]).collect();
        assert_eq!((list.len(), starts.len()), (2048, 2048));
        let plain = |w: &&str| (3..=8).contains(&w.len()) && w.bytes().all(|b| b.is_ascii_lowercase());
        assert!(list.iter().all(plain));
    }

    #[test]
    fn typed_words_are_read_leniently_but_only_four_of_the_list() {
        let words = Words::of(&Transcript([7; 32]));
        let text = words.to_string();
        assert_eq!(Words::parse(&text), Some(words.clone()));
        let shouted = format!(" {} ", text.to_uppercase().replace(' ', " - "));
        assert_eq!(Words::parse(&shouted), Some(words));
        for bad in ["", "zoo zoo zoo", "zoo zoo zoo zoo zoo", "zoo zoo zoo hamlet"] {
            assert_eq!(Words::parse(bad), None, "{bad}");
        }
    }
}
