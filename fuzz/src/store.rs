//! Laws of the store's journal, as a crash, a bad disk or a stranger's hand may leave it. The format
//! is written down a second time here, from `docs/decisions/0012-journal.md`, so that records with a
//! right checksum reach the reader of changes and of values.
//!
//! The database's own file is left as it was: on bytes that it didn't write redb may panic, which the
//! store catches, and a fuzzer takes every panic for a finding.

use std::io;
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use futures::FutureExt;
use hamlet_core::PeerName;
use hamlet_core::durable::{HeardRecord, ImportChange, ImportRecord, ImportStore, PeerState, Verdict};
use hamlet_store::{Disk, Opened, SEGMENT_BYTES_MIN, Store, StoreOptions};
use parking_lot::Mutex;
use redb::StorageBackend;
use sha2::{Digest, Sha256};

const SECTOR: usize = 512;
/// Sectors of both segments of the smallest journal.
const SECTORS: usize = 2 * SEGMENT_BYTES_MIN as usize / SECTOR;
/// Records that the good journal has.
const RECORDS: u64 = 3;
/// Edits of one input.
const EDITS_MAX: usize = 24;

/// A file in memory; clones are the same file.
#[derive(Debug, Clone, Default)]
struct File(Arc<Mutex<Vec<u8>>>);

impl StorageBackend for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let file = self.0.lock();
        let part = usize::try_from(offset).ok().and_then(|at| file.get(at..)?.get(..out.len()));
        out.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().resize(len as usize, 0);
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut file = self.0.lock();
        let end = offset as usize + data.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[offset as usize..end].copy_from_slice(data);
        Ok(())
    }
    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, redb::BackendError> {
        Ok(true)
    }
}

/// A perfect disk in memory.
#[derive(Debug, Default)]
struct Memory {
    store: Mutex<Option<File>>,
    made: Mutex<Option<File>>,
    journal: Mutex<File>,
}

impl Memory {
    fn of(files: &Files) -> Memory {
        let file = |bytes: &[u8]| File(Arc::new(Mutex::new(bytes.to_vec())));
        let store = Mutex::new(Some(file(&files.store)));
        Memory { store, made: Mutex::default(), journal: Mutex::new(file(&files.journal)) }
    }
}

impl Disk for Memory {
    fn place(&self) -> String {
        "memory".to_owned()
    }
    fn open(&self) -> io::Result<Option<Box<dyn StorageBackend>>> {
        Ok(self.store.lock().clone().map(|file| Box::new(file) as Box<dyn StorageBackend>))
    }
    fn create(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.made.lock().insert(File::default()).clone()))
    }
    fn adopt(&self) -> io::Result<()> {
        *self.store.lock() = self.made.lock().take();
        Ok(())
    }
    fn set_aside(&self) -> io::Result<String> {
        *self.store.lock() = None;
        Ok("store-aside".to_owned())
    }
    fn journal(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.journal.lock().clone()))
    }
    fn set_journal_aside(&self) -> io::Result<String> {
        *self.journal.lock() = File::default();
        Ok("journal-aside".to_owned())
    }
}

/// The two files of a store whose process was killed.
#[derive(Debug, Clone)]
struct Files {
    store: Vec<u8>,
    journal: Vec<u8>,
}

fn open(disk: &Arc<Memory>) -> Opened {
    let options = StoreOptions { journal_segment_bytes: SEGMENT_BYTES_MIN, ..StoreOptions::default() };
    match Store::open_inline(disk.clone(), options) {
        Ok(opened) => opened,
        Err(error) => panic!("a perfect disk and a sound database: {error}"),
    }
}

fn record(n: u8) -> ImportRecord {
    let value = Bytes::from(vec![n; 20]);
    let leaf = hamlet_core::digest::leaf("t", "k", &value);
    let heard = HeardRecord { value, leaf, verdict: Verdict::Admitted, refused_ms: 0 };
    ImportRecord { heard: Some(heard), in_force: None, withheld_ms: None }
}

/// A store with [`RECORDS`] records that are only in its journal.
fn good() -> &'static Files {
    static GOOD: OnceLock<Files> = OnceLock::new();
    GOOD.get_or_init(|| {
        let disk = Arc::new(Memory::default());
        let Opened { store, .. } = open(&disk);
        let peer = || PeerName::parse("bank").expect("a name");
        for n in 0..RECORDS as u8 {
            let (key, record) = (format!("s{n}"), Some(record(n)));
            let state = PeerState { down_ms: n.into(), log_id: vec![n; 16], revision: 1 };
            let change = ImportChange { peer: peer(), key, record };
            let done = store.commit_with_state(vec![change], &peer(), state).now_or_never();
            done.expect("done in the call").expect("a perfect disk");
        }
        // As they are now, before the store is closed in order.
        let bytes = |file: &File| file.0.lock().clone();
        let store_bytes = disk.store.lock().as_ref().map(bytes).expect("a store was made");
        let journal = bytes(&disk.journal.lock());
        assert_eq!(journal.len(), SECTORS * SECTOR);
        assert_eq!(&journal[..4], b"HJL1");
        Files { store: store_bytes, journal }
    })
}

fn sum(parts: &[&[u8]]) -> [u8; 8] {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize()[..8].try_into().expect("of 32 bytes")
}

fn part(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_le_bytes(), bytes].concat()
}

/// A record as the format has it.
fn sealed(journal: &[u8], number: u64, changes: &[u8]) -> Vec<u8> {
    let length = (changes.len() as u32).to_le_bytes();
    let head = [b"HJL1", &length[..], &journal[8..24], &number.to_le_bytes()].concat();
    [&head, &sum(&[&head, changes])[..], changes].concat()
}

/// A value in its frame: format, checksum, content (`docs/decisions/0003-embedded-store.md`).
fn framed(table: u8, key: &[u8], content: &[u8]) -> Vec<u8> {
    let name = ["meta", "imports", "peers", "documents"][usize::from(table % 4)].as_bytes();
    let (long, wide) = ((name.len() as u64).to_le_bytes(), (key.len() as u64).to_le_bytes());
    [&[1], &sum(&[&long, name, &wide, key, &[1], content])[..], content].concat()
}

/// One thing done to the journal.
#[derive(Debug, Arbitrary)]
enum Edit {
    Overwrite {
        at: u16,
        bytes: [u8; 4],
    },
    Flip {
        at: u16,
        bit: u8,
    },
    Cut {
        sectors: u8,
    },
    /// A record with a right checksum and any content.
    Record {
        sector: u8,
        number: u8,
        changes: Vec<u8>,
    },
    /// One with a change that can be read, whose value may mean anything.
    Put {
        sector: u8,
        number: u8,
        table: u8,
        peer: bool,
        key: u8,
        value: Value,
    },
    Remove {
        sector: u8,
        number: u8,
        table: u8,
        key: u8,
        to: Option<u8>,
    },
    /// One of the good records, somewhere else.
    Copy {
        from: u8,
        sector: u8,
    },
}

#[derive(Debug, Arbitrary)]
enum Value {
    Bare(Vec<u8>),
    Framed(Vec<u8>),
    Record(u8),
}

fn key(table: u8, peer: bool, n: u8) -> Vec<u8> {
    match (table % 4, peer) {
        (1, true) => format!("bank\0s{}", n % 8).into_bytes(),
        (2, true) => b"bank".to_vec(),
        (_, true) => format!("d{}", n % 8).into_bytes(),
        (_, false) => vec![n; usize::from(n % 5)],
    }
}

fn put_at(journal: &mut Vec<u8>, sector: u8, bytes: &[u8]) {
    let at = usize::from(sector) % SECTORS * SECTOR;
    let end = (at + bytes.len()).min(SECTORS * SECTOR);
    if journal.len() < end {
        journal.resize(end, 0);
    }
    journal[at..end].copy_from_slice(&bytes[..end - at]);
}

fn edit(journal: &mut Vec<u8>, edit: Edit) {
    let good = &good().journal;
    let number = |n: u8| u64::from(n % 16);
    match edit {
        Edit::Overwrite { at, bytes } => {
            for (byte, new) in journal.iter_mut().skip(usize::from(at)).zip(bytes) {
                *byte = new;
            }
        }
        Edit::Flip { at, bit } => {
            if let Some(byte) = journal.get_mut(usize::from(at)) {
                *byte ^= 1 << (bit % 8);
            }
        }
        Edit::Cut { sectors } => journal.truncate(usize::from(sectors) * SECTOR / 2),
        Edit::Record { sector, number: n, changes } => {
            put_at(journal, sector, &sealed(good, number(n), &changes));
        }
        Edit::Put { sector, number: n, table, peer, key: k, value } => {
            let key = key(table, peer, k);
            let value = match value {
                Value::Bare(bytes) => bytes,
                Value::Framed(content) => framed(table, &key, &content),
                Value::Record(n) => {
                    let content = postcard::to_stdvec(&record(n)).expect("records can be written");
                    framed(table, &key, &content)
                }
            };
            let change = [&[1, table % 4][..], &part(&key), &part(&value)].concat();
            put_at(journal, sector, &sealed(good, number(n), &change));
        }
        Edit::Remove { sector, number: n, table, key: k, to } => {
            let (first, kind) = (part(&key(table, true, k)), if to.is_some() { 3 } else { 2 });
            let last = to.map(|n| part(&key(table, true, n))).unwrap_or_default();
            let change = [&[kind, table % 4][..], &first, &last].concat();
            put_at(journal, sector, &sealed(good, number(n), &change));
        }
        Edit::Copy { from, sector } => {
            let from = usize::from(from) % RECORDS as usize * SECTOR;
            put_at(journal, sector, &good[from..from + SECTOR]);
        }
    }
}

/// A store opens whatever its journal holds; what an untouched one holds is there; and what was read
/// once stands: a second start reads the same and finds no damage any more.
pub(crate) fn journal(input: &[u8]) {
    let mut bytes = Unstructured::new(input);
    let mut files = good().clone();
    for _ in 0..EDITS_MAX {
        if bytes.is_empty() {
            break;
        }
        let Ok(next) = Edit::arbitrary(&mut bytes) else { break };
        edit(&mut files.journal, next);
    }
    let disk = Arc::new(Memory::of(&files));
    let first = open(&disk);
    if files.journal == good().journal {
        let kept = first.peers.values().map(|peer| peer.records.len() as u64).sum::<u64>();
        assert_eq!((kept, &first.damage), (RECORDS, &None));
    }
    if let Some(damage) = &first.damage {
        assert!(!damage.to_string().chars().any(char::is_control), "{damage}");
    }
    first.store.close().expect("a perfect disk");
    let second = open(&disk);
    assert_eq!(second.damage, None, "damage is set aside once");
    assert_eq!(first.peers, second.peers);
}

/// Edits that reach each reader.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    // Each edit begins with a number that chooses its kind: which seventh of 2^32 it is in.
    let kind = |n: u64| ((n << 32).div_ceil(7) as u32).to_le_bytes();
    let flip = [&kind(1)[..], &[40, 0, 3]].concat();
    let next = [&kind(5)[..], &[3, 4, 1, 2, 1, 0]].concat();
    let missing = [&kind(5)[..], &[3, 6, 1, 2, 1, 0]].concat();
    let moved = [&kind(6)[..], &[1, 9]].concat();
    let cut = [&kind(2)[..], &[9]].concat();
    vec![
        ("untouched", vec![]),
        ("flipped", flip),
        ("next", next),
        ("missing", missing),
        ("moved", moved),
        ("cut", cut),
        ("mixed", (0..400u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 5) as u8).collect()),
    ]
}
