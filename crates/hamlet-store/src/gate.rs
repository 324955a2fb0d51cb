//! Between the database and the disk: holds all writes back until the file was found sound, limits
//! the size of the file, remembers faults and measures syncs.
//!
//! It interprets no byte. Invariant: while it holds, the disk is only read, and the database can't
//! tell; once released, the disk has seen the same operations in the same order, syncs included,
//! so the database's own crash safety is untouched.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use redb::{BackendError, StorageBackend};

use crate::health::Meter;

/// Largest file of a store, in bytes. Growing further is refused like a full disk. Quotas of peers
/// keep a store far below it.
pub const FILE_MAX: u64 = 16 * 1024 * 1024 * 1024;

/// Most bytes of writes held back while a file is judged. A repair writes a few pages only; who
/// wants more has a nonsensical file before it.
const HELD_MAX: u64 = 256 * 1024 * 1024;
/// Granularity of held writes, in bytes.
const CHUNK: u64 = 4096;
/// Step of [`rewrite`], in bytes.
const REWRITE_STEP: usize = 1024 * 1024;

/// A gate in front of one open file. Clones are the same gate.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    disk: Box<dyn StorageBackend>,
    held: RwLock<Option<Held>>,
    meter: Arc<Meter>,
    fault: Mutex<Option<(io::ErrorKind, String)>>,
    sync_failed: AtomicBool,
    /// Whether to pass locking on: not for a file that is only looked at.
    locks: bool,
}

#[derive(Debug)]
enum Operation {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

/// What the database believes to have written, over what is on the disk.
#[derive(Debug)]
struct Held {
    /// Bytes below this are read from the disk where no chunk covers them; above it are zeros.
    below: u64,
    len: u64,
    chunks: BTreeMap<u64, Box<[u8; CHUNK as usize]>>,
    bytes: u64,
    log: Vec<Operation>,
}

impl Gate {
    /// A gate that holds writes back until [`Gate::release`].
    pub(crate) fn holding(disk: Box<dyn StorageBackend>, meter: Arc<Meter>, locks: bool) -> io::Result<Gate> {
        let len = disk.len()?;
        let held = Held { below: len, len, chunks: BTreeMap::new(), bytes: 0, log: Vec::new() };
        Ok(Gate::new(disk, Some(held), meter, locks))
    }

    /// A gate that passes everything on.
    pub(crate) fn open(disk: Box<dyn StorageBackend>, meter: Arc<Meter>) -> Gate {
        Gate::new(disk, None, meter, true)
    }

    fn new(disk: Box<dyn StorageBackend>, held: Option<Held>, meter: Arc<Meter>, locks: bool) -> Gate {
        Gate(Arc::new(Inner {
            disk,
            held: RwLock::new(held),
            meter,
            fault: Mutex::new(None),
            sync_failed: AtomicBool::new(false),
            locks,
        }))
    }

    /// Lets all held operations through, in order, and holds nothing from now on. If one fails,
    /// nothing after it gets through ever, as if the process had ended there.
    pub(crate) fn release(&self) -> io::Result<()> {
        let mut gate = self.0.held.write();
        let Some(held) = &mut *gate else { return Ok(()) };
        for operation in std::mem::take(&mut held.log) {
            match operation {
                Operation::Write(offset, data) => self.0.disk.write(offset, &data),
                Operation::SetLen(len) => self.0.disk.set_len(len),
                Operation::Sync => self.sync(),
            }?;
        }
        self.sync()?;
        self.0.meter.file_is(held.len);
        *gate = None;
        Ok(())
    }

    /// The first error of the disk itself, as opposed to what the database made of the bytes.
    pub(crate) fn fault(&self) -> Option<(io::ErrorKind, String)> {
        self.0.fault.lock().clone()
    }

    /// Whether the disk ever failed to make writes durable.
    pub(crate) fn sync_failed(&self) -> bool {
        self.0.sync_failed.load(Ordering::Acquire)
    }

    /// Writes every byte of the file again as it is on the disk, whatever is held, and syncs.
    pub(crate) fn rewrite(&self) -> io::Result<()> {
        rewrite(&*self.0.disk)?;
        self.sync()
    }

    fn sync(&self) -> io::Result<()> {
        let result = self.0.meter.time_sync(|| self.0.disk.sync_data());
        if result.is_err() {
            self.0.sync_failed.store(true, Ordering::Release);
        }
        result
    }

    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            self.0.fault.lock().get_or_insert_with(|| (error.kind(), error.to_string()));
        }
        result
    }
}

/// Writes every byte of a file again, and its length. To be synced by the caller.
///
/// After a failed sync the system may have dropped its dirty pages while still showing their
/// content; a later sync then succeeds without writing them. Writing them again makes "synced" true
/// for what is read. Interrupted, it leaves each sector as it was or as it was shown.
pub(crate) fn rewrite(disk: &dyn StorageBackend) -> io::Result<()> {
    let len = disk.len()?;
    disk.set_len(len)?;
    let mut buffer = vec![0; REWRITE_STEP];
    let mut at = 0;
    while at < len {
        let part = usize::try_from(len - at).unwrap_or(REWRITE_STEP).min(REWRITE_STEP);
        disk.read(at, &mut buffer[..part])?;
        disk.write(at, &buffer[..part])?;
        at += part as u64;
    }
    Ok(())
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, "the file would exceed the store's size limit")
}

fn past_end() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it says")
}

impl Held {
    fn read(&self, disk: &dyn StorageBackend, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64).ok_or_else(past_end)?;
        if end > self.len {
            return Err(past_end());
        }
        let on_disk = usize::try_from(self.below.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        if on_disk > 0 {
            disk.read(offset, &mut out[..on_disk])?;
        }
        out[on_disk..].fill(0);
        let first = offset - offset % CHUNK;
        for (start, chunk) in self.chunks.range(first..end) {
            let from = offset.max(*start);
            let to = end.min(start + CHUNK);
            let source = (from - start) as usize..(to - start) as usize;
            out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(&chunk[source]);
        }
        Ok(())
    }

    fn write(&mut self, disk: &dyn StorageBackend, offset: u64, data: &[u8]) -> io::Result<()> {
        let end =
            offset.checked_add(data.len() as u64).filter(|end| *end <= FILE_MAX).ok_or_else(too_large)?;
        self.account(data.len() as u64)?;
        self.len = self.len.max(end);
        let mut at = offset;
        while at < end {
            let start = at - at % CHUNK;
            let to = end.min(start + CHUNK);
            if !self.chunks.contains_key(&start) {
                let mut chunk = Box::new([0; CHUNK as usize]);
                let known = self.len.saturating_sub(start).min(CHUNK) as usize;
                self.read(disk, start, &mut chunk[..known])?;
                self.account(CHUNK)?;
                self.chunks.insert(start, chunk);
            }
            if let Some(chunk) = self.chunks.get_mut(&start) {
                let source = &data[(at - offset) as usize..(to - offset) as usize];
                chunk[(at - start) as usize..(to - start) as usize].copy_from_slice(source);
            }
            at = to;
        }
        self.log.push(Operation::Write(offset, data.to_vec()));
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        if len > FILE_MAX && len > self.len {
            return Err(too_large());
        }
        self.account(1)?;
        self.len = len;
        self.below = self.below.min(len);
        let _ = self.chunks.split_off(&len.next_multiple_of(CHUNK));
        if let Some(last) = self.chunks.get_mut(&(len - len % CHUNK)) {
            last[(len % CHUNK) as usize..].fill(0);
        }
        self.log.push(Operation::SetLen(len));
        Ok(())
    }

    fn account(&mut self, bytes: u64) -> io::Result<()> {
        self.bytes += bytes;
        if self.bytes > HELD_MAX { Err(too_large()) } else { Ok(()) }
    }
}

impl StorageBackend for Gate {
    fn len(&self) -> io::Result<u64> {
        match &*self.0.held.read() {
            Some(held) => Ok(held.len),
            None => self.note(self.0.disk.len()),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match &*self.0.held.read() {
            Some(held) => self.note(held.read(&*self.0.disk, offset, out)),
            None => self.note(self.0.disk.read(offset, out)),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if let Some(held) = &mut *self.0.held.write() {
            return self.note(held.set_len(len));
        }
        if len > FILE_MAX && len > self.0.disk.len()? {
            return self.note(Err(too_large()));
        }
        self.note(self.0.disk.set_len(len))?;
        self.0.meter.file_is(len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if let Some(held) = &mut *self.0.held.write() {
            held.log.push(Operation::Sync);
            return self.note(held.account(1));
        }
        self.note(self.sync())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Some(held) = &mut *self.0.held.write() {
            return self.note(held.write(&*self.0.disk, offset, data));
        }
        self.note(self.0.disk.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.0.disk.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        if self.0.locks { self.0.disk.try_lock_range(start, end) } else { Err(BackendError::Unsupported) }
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        if self.0.locks {
            self.0.disk.try_lock_shared_range(start, end)
        } else {
            Err(BackendError::Unsupported)
        }
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        if self.0.locks { self.0.disk.lock_range(start, end) } else { Err(BackendError::Unsupported) }
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        if self.0.locks { self.0.disk.lock_shared_range(start, end) } else { Err(BackendError::Unsupported) }
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        if self.0.locks { self.0.disk.unlock_range(start, end) } else { Err(BackendError::Unsupported) }
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        if self.0.locks { self.0.disk.query_lock_range(start, end) } else { Err(BackendError::Unsupported) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hamlet_runtime::SystemClock;
    use proptest::prelude::*;
    use redb::backends::InMemoryBackend;

    fn disk_with(bytes: &[u8]) -> Box<InMemoryBackend> {
        let disk = InMemoryBackend::new();
        disk.set_len(bytes.len() as u64).unwrap();
        disk.write(0, bytes).unwrap();
        Box::new(disk)
    }

    fn content(disk: &dyn StorageBackend) -> Vec<u8> {
        let mut out = vec![0; disk.len().unwrap() as usize];
        disk.read(0, &mut out).unwrap();
        out
    }

    #[test]
    fn a_read_past_the_end_is_an_error_and_one_up_to_it_is_not() {
        let gate = Gate::holding(disk_with(&[1; 100]), Meter::new(SystemClock::shared()), true).unwrap();
        assert!(gate.read(1, &mut [0; 100]).is_err());
        assert!(gate.read(u64::MAX, &mut [0; 2]).is_err());
        assert!(gate.read(0, &mut [0; 100]).is_ok());
        assert_eq!(gate.fault().unwrap().0, io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_nonsensical_length_is_refused_and_a_large_one_is_not() {
        let gate = Gate::holding(disk_with(&[]), Meter::new(SystemClock::shared()), true).unwrap();
        assert_eq!(gate.set_len(FILE_MAX + 1).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert!(gate.write(u64::MAX - 1, &[0; 4]).is_err());
        assert!(gate.set_len(FILE_MAX).is_ok());
    }

    proptest! {
        #[test]
        fn held_operations_look_done_touch_nothing_and_are_done_when_released(
            start in proptest::collection::vec(any::<u8>(), 0..9000),
            operations in proptest::collection::vec((0u64..12000, 1usize..6000, any::<u8>(), any::<bool>()), 0..12),
        ) {
            let (below, direct) = (disk_with(&start), disk_with(&start));
            let gate = Gate::holding(below, Meter::new(SystemClock::shared()), true).unwrap();
            for (offset, len, byte, resize) in operations {
                if resize {
                    gate.set_len(offset).unwrap();
                    direct.set_len(offset).unwrap();
                } else {
                    let end = offset + len as u64;
                    if end > direct.len().unwrap() {
                        gate.set_len(end).unwrap();
                        direct.set_len(end).unwrap();
                    }
                    gate.write(offset, &vec![byte; len]).unwrap();
                    direct.write(offset, &vec![byte; len]).unwrap();
                }
                gate.sync_data().unwrap();
                prop_assert_eq!(content(&gate), content(&*direct));
            }
            prop_assert_eq!(content(&*gate.0.disk), start);
            gate.release().unwrap();
            prop_assert_eq!(content(&*gate.0.disk), content(&*direct));
        }
    }
}
