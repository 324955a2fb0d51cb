//! How a transcript is kept: every connected peer has one, so an entry takes a few bytes. What
//! streams mostly say (changes and their acknowledgements) is a run of small numbers, as differences
//! to the entry before; keys are shared with the view; all else is kept as it is. Not a format: it
//! never leaves the process.
//!
//! Invariant: what was put in comes out again, but for times, which are cut to microseconds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::{Entry, Nonce, Noted, Said, TRANSCRIPT_ENTRIES, TranscriptEntry, Way};

/// Longest entry in bytes: its head and at most six numbers of ten bytes.
const PACKED_BYTES: usize = 61;

/// The kind of a packed entry, in the low bits of its head.
const KIND_UPSERT: u8 = 0;
const KIND_DELETE: u8 = 1;
const KIND_ACK: u8 = 2;
/// The entry stands in [`Ring::whole`].
const KIND_WHOLE: u8 = 3;
const KIND_MASK: u8 = 0b11;
/// Where the way stands in the head.
const WAY_SHIFT: u8 = 2;
/// The stream differs from the entry before.
const FLAG_STREAM: u8 = 1 << 4;
/// The number doesn't follow that of the entry before: signs of life between were merged.
const FLAG_SEQ: u8 = 1 << 5;

/// What the next packed entry is a difference to.
#[derive(Debug, Default, Clone, Copy)]
struct Base {
    seq: u64,
    at_us: i64,
    stream: u64,
}

/// The last entries of a link.
#[derive(Debug, Default)]
pub(super) struct Ring {
    packed: VecDeque<u8>,
    keys: VecDeque<Arc<str>>,
    whole: VecDeque<Box<(Noted, u64)>>,
    entries: usize,
    /// Before the first packed entry, and the last of them.
    first: Base,
    last: Base,
    /// Number of the newest entry, whether it is packed yet or not.
    seq: u64,
    /// Signs of life after the last packed entry: they may still be merged.
    signs: Vec<Entry>,
}

impl Ring {
    /// Adds an entry; what is beyond the limit goes.
    pub(super) fn push(&mut self, stream: u64, way: Way, noted: Noted, at: Duration) {
        self.seq += 1;
        let sign = matches!(noted, Noted::Sign(_));
        if !sign || self.signs.first().is_some_and(|s| s.stream != stream) {
            for entry in std::mem::take(&mut self.signs) {
                self.pack(entry);
            }
        }
        let same = |e: &Entry| e.way == way && e.noted.is_like(&noted);
        let before = self.signs.iter().position(same).map(|at| self.signs.remove(at));
        let times = 1 + before.map_or(0, |old| old.times);
        if self.entries + self.signs.len() >= TRANSCRIPT_ENTRIES {
            self.pop();
        }
        let entry = Entry { seq: self.seq, at, stream, way, noted, times };
        match sign {
            true => self.signs.push(entry),
            false => self.pack(entry),
        }
    }

    /// Entries after number `after`, oldest first, and the number of the oldest of all.
    pub(super) fn after(&self, after: u64) -> (Vec<TranscriptEntry>, Option<u64>) {
        let mut reader = Reader {
            bytes: self.packed.iter(),
            keys: self.keys.iter(),
            whole: self.whole.iter(),
            base: self.first,
        };
        let packed = std::iter::from_fn(|| reader.next());
        let mut all = packed.chain(self.signs.iter().cloned()).peekable();
        let oldest = all.peek().map(|e| e.seq);
        (all.filter(|e| e.seq > after).map(Entry::told).collect(), oldest)
    }

    fn pack(&mut self, entry: Entry) {
        let Entry { seq, at, stream, way, noted, times } = entry;
        let at_us = i64::try_from(at.as_micros()).unwrap_or(i64::MAX);
        let mut out = Packer { bytes: [0; PACKED_BYTES], used: 1 };
        let mut head = (way as u8) << WAY_SHIFT;
        if seq != self.last.seq + 1 {
            head |= FLAG_SEQ;
            out.number(seq - self.last.seq);
        }
        out.signed(at_us - self.last.at_us);
        if stream != self.last.stream {
            head |= FLAG_STREAM;
            out.signed(stream.wrapping_sub(self.last.stream) as i64);
        }
        head |= match noted {
            Noted::Said(Said::Upsert { key, nonce: Nonce::Number(nonce), version, bytes }) => {
                self.keys.push_back(key);
                out.number(nonce);
                out.number(version);
                out.number(bytes as u64);
                KIND_UPSERT
            }
            Noted::Said(Said::Delete { key, nonce: Nonce::Number(nonce), version }) => {
                self.keys.push_back(key);
                out.number(nonce);
                out.number(version);
                KIND_DELETE
            }
            Noted::Said(Said::Ack(Nonce::Number(nonce))) => {
                out.number(nonce);
                KIND_ACK
            }
            noted => {
                self.whole.push_back(Box::new((noted, times)));
                KIND_WHOLE
            }
        };
        out.bytes[0] = head;
        self.packed.extend(&out.bytes[..out.used]);
        self.last = Base { seq, at_us, stream };
        self.entries += 1;
    }

    /// Forgets the oldest packed entry.
    fn pop(&mut self) {
        let mut reader = Reader {
            bytes: self.packed.iter(),
            keys: self.keys.iter(),
            whole: self.whole.iter(),
            base: self.first,
        };
        if reader.next().is_none() {
            return;
        }
        let (bytes, keys, whole) = (reader.bytes.len(), reader.keys.len(), reader.whole.len());
        self.first = reader.base;
        self.packed.drain(..self.packed.len() - bytes);
        self.keys.drain(..self.keys.len() - keys);
        self.whole.drain(..self.whole.len() - whole);
        self.entries -= 1;
    }
}

/// Writes one entry.
struct Packer {
    bytes: [u8; PACKED_BYTES],
    used: usize,
}

impl Packer {
    /// Seven bits a byte, the lowest first.
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes[self.used] = number as u8 | 0x80;
            self.used += 1;
            number >>= 7;
        }
        self.bytes[self.used] = number as u8;
        self.used += 1;
    }

    /// The sign goes last, so that small negative numbers are short as well.
    fn signed(&mut self, number: i64) {
        self.number(((number << 1) ^ (number >> 63)) as u64);
    }
}

/// Reads what was packed, oldest first.
struct Reader<'a> {
    bytes: std::collections::vec_deque::Iter<'a, u8>,
    keys: std::collections::vec_deque::Iter<'a, Arc<str>>,
    whole: std::collections::vec_deque::Iter<'a, Box<(Noted, u64)>>,
    base: Base,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<Entry> {
        let head = *self.bytes.next()?;
        self.base.seq += if head & FLAG_SEQ == 0 { 1 } else { self.number()? };
        self.base.at_us += self.signed()?;
        if head & FLAG_STREAM != 0 {
            self.base.stream = self.base.stream.wrapping_add(self.signed()? as u64);
        }
        let mut times = 1;
        let noted = match head & KIND_MASK {
            KIND_UPSERT => {
                let key = self.keys.next()?.clone();
                let (nonce, version) = (Nonce::Number(self.number()?), self.number()?);
                Noted::Said(Said::Upsert { key, nonce, version, bytes: self.number()? as usize })
            }
            KIND_DELETE => {
                let key = self.keys.next()?.clone();
                let nonce = Nonce::Number(self.number()?);
                Noted::Said(Said::Delete { key, nonce, version: self.number()? })
            }
            KIND_ACK => Noted::Said(Said::Ack(Nonce::Number(self.number()?))),
            _ => {
                let (noted, count) = &**self.whole.next()?;
                times = *count;
                noted.clone()
            }
        };
        let way = match (head >> WAY_SHIFT) & 0b11 {
            0 => Way::In,
            1 => Way::Out,
            _ => Way::None,
        };
        let at = Duration::from_micros(self.base.at_us.unsigned_abs());
        Some(Entry { seq: self.base.seq, at, stream: self.base.stream, way, noted, times })
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.next()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn signed(&mut self) -> Option<i64> {
        let number = self.number()?;
        Some((number >> 1) as i64 ^ -((number & 1) as i64))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Short, Sign};
    use super::*;

    fn noted() -> impl Strategy<Value = Noted> {
        let nonce = prop_oneof![
            any::<u64>().prop_map(Nonce::Number),
            "[a-z]{0,6}".prop_map(|text| Nonce::Text(text.into())),
        ];
        let key = "[a-z.]{0,12}";
        prop_oneof![
            (key, nonce.clone(), any::<u64>(), any::<u32>()).prop_map(|(key, nonce, version, bytes)| {
                Said::Upsert { key: key.into(), nonce, version, bytes: bytes as usize }
            }),
            (key, nonce.clone(), any::<u64>()).prop_map(|(key, nonce, version)| Said::Delete {
                key: key.into(),
                nonce,
                version
            }),
            nonce.prop_map(Said::Ack),
            "[a-z ]{0,20}".prop_map(|text| Said::Subscribe(text.into())),
            any::<bool>().prop_map(|dialled| Said::Opened { dialled }),
            "[a-z]{0,5}".prop_map(|text| Said::Control { kind: "held", text: text.into() }),
            Just(Said::Empty),
        ]
        .prop_map(Noted::Said)
        .boxed()
        .prop_union(sign().prop_map(Noted::Sign).boxed())
    }

    fn sign() -> impl Strategy<Value = Sign> {
        let root = Short::of(&[7; 4]);
        prop_oneof![
            any::<u64>().prop_map(move |seq| Sign::Bookmark { seq, round: 1, version: 2, count: 3, root }),
            any::<u64>().prop_map(|seq| Sign::Proof { seq, verdict: 1, refused: 0, withheld: 0 }),
            any::<u64>().prop_map(|seq| Sign::Beat {
                seq,
                echo_seq: 0,
                head: 0,
                unsent: 0,
                waits: 0,
                commits: 0
            }),
        ]
    }

    fn way() -> impl Strategy<Value = Way> {
        prop_oneof![Just(Way::In), Just(Way::Out), Just(Way::None)]
    }

    /// What the ring means, in as many words: a list of entries.
    #[derive(Default)]
    struct Plain {
        entries: VecDeque<Entry>,
        seq: u64,
    }

    impl Plain {
        fn push(&mut self, stream: u64, way: Way, noted: Noted, at: Duration) {
            self.seq += 1;
            let mut times = 1;
            if matches!(noted, Noted::Sign(_)) {
                let tail = self.entries.iter().rev();
                let tail =
                    tail.take_while(|e| e.stream == stream && matches!(e.noted, Noted::Sign(_))).count();
                let from = self.entries.len() - tail;
                let mut run = self.entries.range(from..);
                let same = run.position(|e| e.way == way && e.noted.is_like(&noted));
                times += same.and_then(|same| self.entries.remove(from + same)).map_or(0, |old| old.times);
            }
            if self.entries.len() >= TRANSCRIPT_ENTRIES {
                self.entries.pop_front();
            }
            self.entries.push_back(Entry { seq: self.seq, at, stream, way, noted, times });
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_was_put_in_comes_out_again(
            noted in proptest::collection::vec((0u64..4, way(), noted(), 0u64..u64::MAX >> 12), 0..900),
            after in 0u64..1_000,
        ) {
            let (mut ring, mut plain) = (Ring::default(), Plain::default());
            for (stream, way, noted, at) in noted {
                let (stream, at) = (stream * (u64::MAX / 3), Duration::from_micros(at));
                ring.push(stream, way, noted.clone(), at);
                plain.push(stream, way, noted, at);
            }
            let wanted = plain.entries.iter().filter(|e| e.seq > after).cloned().map(Entry::told);
            let wanted: Vec<_> = wanted.collect();
            prop_assert_eq!(ring.after(after), (wanted, plain.entries.front().map(|e| e.seq)));
        }
    }

    #[test]
    fn a_full_ring_of_changes_and_acknowledgements_takes_a_few_bytes_an_entry() {
        let mut ring = Ring::default();
        let key: Arc<str> = "ledger.prod.acme.example".into();
        for n in 0..4 * TRANSCRIPT_ENTRIES as u64 {
            let nonce = Nonce::Number(n);
            let upsert = Said::Upsert { key: key.clone(), nonce: nonce.clone(), version: n, bytes: 480 };
            ring.push(1, Way::Out, Noted::Said(upsert), Duration::from_millis(2 * n));
            ring.push(1, Way::In, Noted::Said(Said::Ack(nonce)), Duration::from_millis(2 * n + 1));
        }
        assert_eq!(ring.after(0).0.len(), TRANSCRIPT_ENTRIES);
        assert_eq!(ring.keys.len(), TRANSCRIPT_ENTRIES / 2);
        assert!(ring.packed.len() < 10 * TRANSCRIPT_ENTRIES, "{} bytes", ring.packed.len());
    }
}
