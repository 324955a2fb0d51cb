//! A disk that forgets what was not synced, fails, and runs full: the real store lives on it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use hamlet_store::Disk;
use parking_lot::Mutex;
use redb::StorageBackend;

use crate::draw::Draw;

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

impl SimFile {
    /// What is found of it: all that was synced, and of each write that wasn't so many of a
    /// hundred sectors.
    fn after(&self, draw: &mut Draw, kept: u64) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for pending in &self.pending {
            match pending {
                Pending::SetLen(len) if draw.chance(kept) => bytes.resize(*len as usize, 0),
                Pending::SetLen(_) => {}
                Pending::Write(offset, data) => {
                    for (n, sector) in data.chunks(SECTOR).enumerate() {
                        if draw.chance(kept) {
                            write_to(&mut bytes, offset + (n * SECTOR) as u64, sector);
                        }
                    }
                }
            }
        }
        bytes
    }
}

/// What is wrong with the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Writes fail.
    Write,
    /// Syncs fail, and what they should have written is dropped while reads still show it.
    Sync,
    /// The file can't grow, and writes fail for want of space.
    Full,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u64, SimFile>,
    current: Option<u64>,
    new: Option<u64>,
    journal: Option<u64>,
    aside: u64,
    fault: Fault,
    syncs: u64,
}

/// A simulated disk with room for one store. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct Handle {
    disk: SimDisk,
    id: u64,
}

impl SimDisk {
    /// From now on this is wrong with it.
    pub(crate) fn set_fault(&self, fault: Fault) {
        self.0.lock().fault = fault;
    }

    /// What is wrong with it.
    pub(crate) fn fault(&self) -> Fault {
        self.0.lock().fault
    }

    /// Whether reads show what a failed sync has dropped.
    pub(crate) fn lies(&self) -> bool {
        self.0.lock().files.values().any(|f| f.pending.is_empty() && f.seen != f.durable)
    }

    /// The disk as it is found after the process was killed: what reads see is in the page cache,
    /// which survives a process, with what failed syncs have dropped of it. Or after the power was
    /// lost: all that was synced, and of the rest any part of any write.
    pub(crate) fn after(&self, draw: &mut Draw, killed: bool) -> SimDisk {
        let kept = *draw.pick(&[0, 100, 50, 80, 20]).unwrap_or(&0);
        let state = self.0.lock();
        let after = SimDisk::default();
        let mut new = after.0.lock();
        (new.current, new.journal, new.aside) = (state.current, state.journal, state.aside);
        for id in [state.current, state.journal].into_iter().flatten() {
            let Some(file) = state.files.get(&id) else { continue };
            let found = match killed {
                true => file.clone(),
                false => {
                    let bytes = file.after(draw, kept);
                    SimFile { seen: bytes.clone(), durable: bytes, pending: vec![] }
                }
            };
            new.files.insert(id, found);
        }
        drop(new);
        after
    }
}

impl State {
    fn file(&mut self, id: u64) -> &mut SimFile {
        self.files.entry(id).or_default()
    }
}

impl Disk for SimDisk {
    fn place(&self) -> String {
        "a simulated disk".to_owned()
    }

    fn open(&self) -> io::Result<Option<Box<dyn StorageBackend>>> {
        let handle = |id| Box::new(Handle { disk: self.clone(), id }) as Box<dyn StorageBackend>;
        Ok(self.0.lock().current.map(handle))
    }

    fn create(&self) -> io::Result<Box<dyn StorageBackend>> {
        let mut state = self.0.lock();
        let id = state.files.keys().last().unwrap_or(&0) + 1;
        state.files.insert(id, SimFile::default());
        state.new = Some(id);
        Ok(Box::new(Handle { disk: self.clone(), id }))
    }

    fn adopt(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        state.current = state.new.take();
        Ok(())
    }

    fn set_aside(&self) -> io::Result<String> {
        let mut state = self.0.lock();
        state.current = None;
        state.aside += 1;
        Ok(format!("aside-{}", state.aside))
    }

    fn journal(&self) -> io::Result<Box<dyn StorageBackend>> {
        let mut state = self.0.lock();
        let next = state.files.keys().last().unwrap_or(&0) + 1;
        let id = *state.journal.get_or_insert(next);
        state.files.entry(id).or_default();
        Ok(Box::new(Handle { disk: self.clone(), id }))
    }

    fn set_journal_aside(&self) -> io::Result<String> {
        let mut state = self.0.lock();
        state.journal = None;
        state.aside += 1;
        Ok(format!("journal-aside-{}", state.aside))
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().file(self.id).seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let seen = &state.file(self.id).seen;
        let part = seen.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let fault = state.fault;
        let file = state.file(self.id);
        if fault == Fault::Full && len > file.seen.len() as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.seen.resize(len as usize, 0);
        file.pending.push(Pending::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.syncs += 1;
        let fault = state.fault;
        let file = state.file(self.id);
        let pending = std::mem::take(&mut file.pending);
        if fault == Fault::Sync {
            return Err(io::Error::other("the sync failed"));
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
        let mut state = self.disk.0.lock();
        match state.fault {
            Fault::Write => return Err(io::Error::other("the write failed")),
            Fault::Full => return Err(io::ErrorKind::StorageFull.into()),
            Fault::None | Fault::Sync => {}
        }
        let file = state.file(self.id);
        write_to(&mut file.seen, offset, data);
        file.pending.push(Pending::Write(offset, data.to_vec()));
        Ok(())
    }
}
