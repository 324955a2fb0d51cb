//! Shared by the store's tests: records to keep, and a simulated disk that forgets what was not
//! synced, fails, fills up, stalls, and loses power in the middle of anything.

#![allow(dead_code)] // each test binary uses its own part of it

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use hamlet_core::durable::{CommitError, CommitFuture, HeardRecord, ImportChange, ImportRecord, Verdict};
use hamlet_core::name::PeerName;
use hamlet_core::rejection::{Rejection, RejectionCode};
use hamlet_store::{Disk, OpenError, Opened, Store, StoreOptions};
use parking_lot::{Condvar, Mutex};
use redb::StorageBackend;

pub(crate) fn peer(name: &str) -> PeerName {
    PeerName::parse(name).unwrap()
}

/// A record that differs for every `n`, in every part.
pub(crate) fn record(n: u64) -> ImportRecord {
    let mut leaf = [0; 32];
    leaf[..8].copy_from_slice(&n.to_le_bytes());
    let refusal =
        Rejection::new(RejectionCode::Policy, "name-outside-suffixes", "fqdn", format!("number {n}"));
    let verdict = if n.is_multiple_of(3) { Verdict::Refused(refusal) } else { Verdict::Admitted };
    let value = Bytes::from(format!("{n}:").repeat(20 + (n % 50) as usize));
    ImportRecord {
        heard: Some(HeardRecord { value, leaf, verdict, refused_ms: n }),
        in_force: n.is_multiple_of(3).then(|| Bytes::from(n.to_be_bytes().to_vec())),
        withheld_ms: n.is_multiple_of(5).then_some(n),
    }
}

pub(crate) fn put(owner: &str, key: impl Into<String>, n: u64) -> ImportChange {
    ImportChange { peer: peer(owner), key: key.into(), record: Some(record(n)) }
}

pub(crate) fn wait(future: CommitFuture) -> Result<(), CommitError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(future)
}

pub(crate) fn wait_all(futures: Vec<CommitFuture>) -> Vec<Result<(), CommitError>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(futures::future::join_all(futures))
}

/// A small generator (splitmix64), so that a seed in a message is enough to see a failure again.
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

const SECTOR: usize = 512;

#[derive(Debug, Clone)]
enum Pending {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

/// A file: what reads see, what would survive, and what lies between.
#[derive(Debug, Clone, Default)]
struct SimFile {
    seen: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

fn write_to(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (from, to) = (offset as usize, offset as usize + data.len());
    if bytes.len() < to {
        bytes.resize(to, 0);
    }
    bytes[from..to].copy_from_slice(data);
}

/// What is wrong with the disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    pub(crate) write: Option<io::ErrorKind>,
    /// A failed sync drops the dirty pages and still shows them, as Linux does.
    pub(crate) sync: Option<io::ErrorKind>,
    /// None of these faults but the ones of a moment hit the journal.
    pub(crate) spare_journal: bool,
    /// A file can't grow beyond this.
    pub(crate) capacity: Option<u64>,
    /// Syncs wait until this is false.
    pub(crate) stalled: bool,
    /// This one operation fails, once.
    pub(crate) fails_at: Option<u64>,
    /// The power fails at this operation (write, resize or sync, counted from one).
    pub(crate) power_fails_at: Option<u64>,
    /// The process ends before this operation, with the machine still up. From then on nothing gets
    /// to the disk until [`SimDisk::restarted`].
    pub(crate) process_ends_at: Option<u64>,
}

#[derive(Debug, Clone, Default)]
struct State {
    files: BTreeMap<u64, SimFile>,
    current: Option<u64>,
    new: Option<u64>,
    journal: Option<u64>,
    aside: u64,
    journal_aside: u64,
    faults: Faults,
    operations: u64,
    written: u64,
    dark: bool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct SimDisk {
    state: Arc<Mutex<State>>,
    wake: Arc<Condvar>,
}

#[derive(Debug)]
struct SimHandle {
    disk: SimDisk,
    id: u64,
}

/// The bytes of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) file: Vec<u8>,
    pub(crate) journal: Vec<u8>,
}

/// Options with a journal so small that it is soon full.
pub(crate) fn small() -> StoreOptions {
    StoreOptions { journal_segment_bytes: 8 * 1024, ..StoreOptions::default() }
}

impl SimDisk {
    pub(crate) fn with_image(image: Image) -> SimDisk {
        let disk = SimDisk::default();
        {
            let mut state = disk.state.lock();
            for (id, bytes) in [(1, image.file), (2, image.journal)] {
                let file = SimFile { seen: bytes.clone(), durable: bytes, pending: Vec::new() };
                state.files.insert(id, file);
            }
            (state.current, state.journal) = (Some(1), Some(2));
        }
        disk
    }

    pub(crate) fn try_open(&self, options: StoreOptions) -> Result<Opened, OpenError> {
        Store::open_with_backend(Arc::new(self.clone()), options)
    }

    pub(crate) fn open_store(&self) -> Opened {
        self.try_open(small()).unwrap()
    }

    pub(crate) fn open_inline(&self) -> Opened {
        Store::open_inline(Arc::new(self.clone()), small()).unwrap()
    }

    pub(crate) fn faults(&self, set: impl FnOnce(&mut Faults)) {
        set(&mut self.state.lock().faults);
        self.wake.notify_all();
    }

    /// Number of writes, resizes and syncs so far.
    pub(crate) fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// Number of bytes written so far.
    pub(crate) fn bytes_written(&self) -> u64 {
        self.state.lock().written
    }

    /// What a reader of the present files sees.
    pub(crate) fn seen(&self) -> Image {
        let state = self.state.lock();
        let seen = |id: Option<u64>| id.map(|id| state.files[&id].seen.clone()).unwrap_or_default();
        Image { file: seen(state.current), journal: seen(state.journal) }
    }

    /// Pages of the present file that readers see but that would not survive.
    pub(crate) fn lost_pages(&self) -> usize {
        let state = self.state.lock();
        let Some(file) = state.current.map(|id| &state.files[&id]) else { return 0 };
        file.seen
            .chunks(4096)
            .zip(file.durable.chunks(4096))
            .filter(|(seen, durable)| seen != durable)
            .count()
    }

    /// How many files and how many journals were set aside.
    pub(crate) fn set_aside_count(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.aside, state.journal_aside)
    }

    /// The disk as the next process finds it when this one has ended and the machine has not: what
    /// was not synced is still seen and still to be written, but what failed syncs have dropped is
    /// only seen. Nothing is wrong with it.
    pub(crate) fn restarted(&self) -> SimDisk {
        let state = self.state.lock().clone();
        let state = State { faults: Faults::default(), dark: false, operations: 0, written: 0, ..state };
        SimDisk { state: Arc::new(Mutex::new(state)), wake: Arc::default() }
    }

    /// Bytes of the store and the journal that reads show and that a loss of power would take.
    pub(crate) fn lies(&self) -> bool {
        let state = self.state.lock();
        let files = state.current.into_iter().chain(state.journal).map(|id| &state.files[&id]);
        files.into_iter().any(|file| file.pending.is_empty() && file.seen != file.durable)
    }

    /// The disk after a loss of power now: all that was synced, and of the rest any part of any
    /// write, as the seed wills.
    pub(crate) fn after_power_cut(&self, seed: u64) -> SimDisk {
        let mut draw = Draw(seed);
        let state = self.state.lock();
        // In tenths: nothing, everything, or some of what was not synced.
        let kept = [0, 10, 5, 8, 2][(seed % 5) as usize];
        let after = SimDisk::default();
        {
            let mut new_state = after.state.lock();
            (new_state.current, new_state.journal) = (state.current, state.journal);
            for id in state.current.into_iter().chain(state.journal) {
                let bytes = state.files[&id].after_power_cut(&mut draw, kept);
                let file = SimFile { seen: bytes.clone(), durable: bytes, pending: Vec::new() };
                new_state.files.insert(id, file);
            }
        }
        after
    }
}

impl SimFile {
    fn after_power_cut(&self, draw: &mut Draw, kept: u64) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for pending in &self.pending {
            match pending {
                Pending::SetLen(len) if draw.below(10) < kept => bytes.resize(*len as usize, 0),
                Pending::SetLen(_) => {}
                Pending::Write(offset, data) => {
                    for (n, sector) in data.chunks(SECTOR).enumerate() {
                        if draw.below(10) < kept {
                            write_to(&mut bytes, offset + (n * SECTOR) as u64, sector);
                        }
                    }
                }
            }
        }
        bytes
    }
}

fn dark() -> io::Error {
    io::Error::other("nothing gets to the disk any more")
}

impl State {
    fn operate(&mut self) -> io::Result<()> {
        self.operations += 1;
        if self.faults.power_fails_at == Some(self.operations) {
            self.dark = true;
        }
        if self.faults.process_ends_at.is_some_and(|end| self.operations >= end) {
            self.dark = true;
            return Err(dark());
        }
        if self.faults.fails_at == Some(self.operations) {
            return Err(io::Error::other("a passing fault"));
        }
        if self.dark { Err(dark()) } else { Ok(()) }
    }

    fn file(&mut self, id: u64) -> &mut SimFile {
        self.files.entry(id).or_default()
    }

    fn new_file(&mut self) -> u64 {
        let id = self.files.keys().last().unwrap_or(&0) + 1;
        self.files.insert(id, SimFile::default());
        id
    }

    /// Whether lasting faults hit a file.
    fn hits(&self, id: u64) -> bool {
        !(self.faults.spare_journal && self.journal == Some(id))
    }
}

impl Disk for SimDisk {
    fn place(&self) -> String {
        "a simulated disk".to_owned()
    }

    fn open(&self) -> io::Result<Option<Box<dyn StorageBackend>>> {
        let state = self.state.lock();
        if state.dark {
            return Err(dark());
        }
        let handle = |id| Box::new(SimHandle { disk: self.clone(), id }) as Box<dyn StorageBackend>;
        Ok(state.current.map(handle))
    }

    fn create(&self) -> io::Result<Box<dyn StorageBackend>> {
        let mut state = self.state.lock();
        let id = state.new_file();
        state.new = Some(id);
        Ok(Box::new(SimHandle { disk: self.clone(), id }))
    }

    fn adopt(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.dark {
            return Err(dark());
        }
        state.current = state.new.take();
        Ok(())
    }

    fn set_aside(&self) -> io::Result<String> {
        let mut state = self.state.lock();
        state.current = None;
        state.aside += 1;
        Ok(format!("aside-{}", state.aside))
    }

    fn journal(&self) -> io::Result<Box<dyn StorageBackend>> {
        let mut state = self.state.lock();
        if state.dark {
            return Err(dark());
        }
        let id = match state.journal {
            Some(id) => id,
            None => state.new_file(),
        };
        state.journal = Some(id);
        Ok(Box::new(SimHandle { disk: self.clone(), id }))
    }

    fn set_journal_aside(&self) -> io::Result<String> {
        let mut state = self.state.lock();
        state.journal = None;
        state.journal_aside += 1;
        Ok(format!("journal-aside-{}", state.journal_aside))
    }
}

impl StorageBackend for SimHandle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state.lock().file(self.id).seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        if state.dark {
            return Err(dark());
        }
        let seen = &state.file(self.id).seen;
        let part = seen.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.operate()?;
        if state.hits(self.id) && state.faults.capacity.is_some_and(|capacity| len > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = state.file(self.id);
        file.seen.resize(len as usize, 0);
        file.pending.push(Pending::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        while state.faults.stalled && state.hits(self.id) {
            self.disk.wake.wait(&mut state);
        }
        let operated = state.operate();
        if state.dark {
            return operated;
        }
        let fault = state.faults.sync.filter(|_| state.hits(self.id));
        let file = state.file(self.id);
        let pending = std::mem::take(&mut file.pending);
        operated?;
        if let Some(kind) = fault {
            return Err(kind.into());
        }
        for operation in pending {
            match operation {
                Pending::Write(offset, data) => write_to(&mut file.durable, offset, &data),
                Pending::SetLen(len) => file.durable.resize(len as usize, 0),
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.operate()?;
        if let Some(kind) = state.faults.write.filter(|_| state.hits(self.id)) {
            return Err(kind.into());
        }
        state.written += data.len() as u64;
        let file = state.file(self.id);
        write_to(&mut file.seen, offset, data);
        file.pending.push(Pending::Write(offset, data.to_vec()));
        Ok(())
    }
}
