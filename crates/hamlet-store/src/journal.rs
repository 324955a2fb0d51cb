//! The journal: two segments of a file of fixed size, in which a batch is one record, one write and
//! one sync.
//!
//! It knows bytes and sequence numbers; what is merged where is the business of `pending`. The
//! format is in `docs/decisions/0012-journal.md`. Invariants: a record is found again whole or not
//! at all; records are found in the order they were written, without a gap, or damage is reported;
//! a record of another epoch, or one that the database has already, is never found.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use redb::StorageBackend;
use sha2::{Digest, Sha256};

use crate::disk::Disk;
use crate::health::Meter;
use crate::layer::Layer;
use crate::queue::Write;
use crate::tables::Table;

/// Bytes of one of the two segments of the journal, unless [`crate::StoreOptions`] say otherwise.
/// When one is full it goes to the database in one transaction, while the other is written.
pub const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;
/// Smallest segment, in bytes. A smaller wish gets this.
pub const SEGMENT_BYTES_MIN: u64 = 4 * 1024;
/// Largest segment, in bytes. A larger wish gets this. Both segments may be in memory at once.
pub const SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Records begin at multiples of this, so that no sector is ever part of two records: a torn write
/// can't harm the record before it.
const SECTOR: usize = 512;
const MAGIC: [u8; 4] = *b"HJL1";
/// What the first sector begins with while the store is closed in order. No record does.
const CLOSED: [u8; 4] = *b"HJLC";
const CHECKSUM: std::ops::Range<usize> = 32..40;
const HEAD: usize = 40;
/// Bytes of a change beside its key and value, at most.
const CHANGE_HEAD: usize = 10;
/// Step of filling a new file, in bytes.
const FILL_STEP: usize = 1024 * 1024;
/// Largest buffer that is kept from one record to the next, in bytes.
const BUFFER_KEPT: usize = 1024 * 1024;

/// Tells the records of one opening from all others. Random, and known to nobody else, so that
/// bytes inside of a value can't pass for a record.
pub(crate) type Epoch = [u8; 16];

/// What the database says of the journal that goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) epoch: Epoch,
    /// All records up to this one are in the database.
    pub(crate) applied: u64,
    pub(crate) segment_bytes: u64,
}

impl Mark {
    pub(crate) fn to_bytes(self) -> [u8; 32] {
        let mut out = [0; 32];
        out[..16].copy_from_slice(&self.epoch);
        out[16..24].copy_from_slice(&self.applied.to_le_bytes());
        out[24..].copy_from_slice(&self.segment_bytes.to_le_bytes());
        out
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Mark> {
        let (epoch, rest) = bytes.split_first_chunk()?;
        let (applied, rest) = rest.split_first_chunk()?;
        let segment_bytes = u64::from_le_bytes(rest.try_into().ok()?);
        let known = segment_bytes == segment_size(segment_bytes);
        known.then_some(Mark { epoch: *epoch, applied: u64::from_le_bytes(*applied), segment_bytes })
    }
}

/// The size of a segment that comes nearest to a wish.
pub(crate) fn segment_size(wish: u64) -> u64 {
    let wish = wish.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
    wish - wish % SECTOR as u64
}

/// Whether a file has the size of a journal. A new one must be filled first.
pub(crate) fn is_filled(bytes: &dyn StorageBackend, segment_bytes: u64) -> io::Result<bool> {
    Ok(bytes.len()? == 2 * segment_bytes)
}

/// Gives a file its size and writes all of it once, so that a later sync has nothing to write but
/// the record itself.
pub(crate) fn fill(bytes: &dyn StorageBackend, segment_bytes: u64) -> io::Result<()> {
    bytes.set_len(2 * segment_bytes)?;
    let zeros = vec![0; FILL_STEP.min(2 * segment_bytes as usize)];
    let mut at = 0;
    while at < 2 * segment_bytes {
        let part = zeros.len().min((2 * segment_bytes - at) as usize);
        bytes.write(at, &zeros[..part])?;
        at += part as u64;
    }
    bytes.sync_data()
}

/// Takes the note away that the store was closed in order, durably, and says whether there was one.
/// Without it nothing says that what is read of the store's files is on the disk: the system shows
/// what a failed sync has dropped until it needs the memory.
///
/// # Errors
/// Of the disk; then nothing may be written.
pub(crate) fn take_closed(bytes: &dyn StorageBackend) -> io::Result<bool> {
    let mut first = [0; SECTOR];
    if bytes.len()? < SECTOR as u64 {
        return Ok(false);
    }
    bytes.read(0, &mut first)?;
    if first[..CLOSED.len()] != CLOSED {
        return Ok(false);
    }
    bytes.write(0, &[0; SECTOR])?;
    bytes.sync_data()?;
    Ok(true)
}

/// The journal while it is written.
#[derive(Debug)]
pub(crate) struct Journal {
    bytes: Box<dyn StorageBackend>,
    meter: Arc<Meter>,
    mark: Mark,
    /// The segment that is written now: 0 or 1.
    segment: u64,
    /// Where the next record goes in it.
    offset: u64,
    /// The next record's number.
    next: u64,
    /// Bytes from `offset` on that a failed write may have left.
    spoiled: Option<u64>,
    buffer: Vec<u8>,
}

impl Journal {
    /// Starts to write a filled file in a new epoch.
    pub(crate) fn new(bytes: Box<dyn StorageBackend>, mark: Mark, meter: Arc<Meter>) -> Journal {
        let next = mark.applied + 1;
        Journal { bytes, meter, mark, segment: 0, offset: 0, next, spoiled: None, buffer: Vec::new() }
    }

    /// The number of the last record, and where the database must look for the ones after it.
    pub(crate) fn mark(&self) -> Mark {
        Mark { applied: self.next - 1, ..self.mark }
    }

    /// Whether changes fit into a segment at all.
    pub(crate) fn takes<'w>(&self, writes: impl Iterator<Item = &'w Write>) -> bool {
        record_len(writes) <= self.mark.segment_bytes / 2
    }

    /// Whether changes fit into the rest of the segment.
    pub(crate) fn has_room<'w>(&self, writes: impl Iterator<Item = &'w Write>) -> bool {
        self.offset + record_len(writes) <= self.mark.segment_bytes
    }

    /// Makes a batch durable. After a failure nothing more is written before [`Journal::repair`].
    pub(crate) fn append<'w>(&mut self, writes: impl Iterator<Item = &'w Write>) -> io::Result<()> {
        let mut record = std::mem::take(&mut self.buffer);
        encode(&mut record, &self.mark.epoch, self.next, writes);
        let len = record.len() as u64;
        let written = self.write_here(&record);
        if record.capacity() <= BUFFER_KEPT {
            self.buffer = record;
        }
        match written {
            Ok(()) => {
                self.offset += len;
                self.next += 1;
                Ok(())
            }
            Err(error) => {
                self.spoiled = Some(len);
                Err(error)
            }
        }
    }

    /// Makes sure that a record whose append failed is never found. Opens the file anew for it,
    /// and writes over every byte that the failed sync may have dropped while still showing it.
    pub(crate) fn repair(&mut self, disk: &dyn Disk) -> io::Result<()> {
        let Some(len) = self.spoiled else { return Ok(()) };
        self.bytes = disk.journal()?;
        if !is_filled(&*self.bytes, self.mark.segment_bytes)? {
            return Err(io::Error::other("the journal has lost its size; restart the agent"));
        }
        self.write_here(&vec![0; len as usize])?;
        self.spoiled = None;
        Ok(())
    }

    /// Notes that all that was written of the store is durable and nothing will be written any more.
    /// Needs no sync: after a loss of power what is read is what is there, with or without the note.
    pub(crate) fn note_closed(&self) -> io::Result<()> {
        let mut first = [0; SECTOR];
        first[..CLOSED.len()].copy_from_slice(&CLOSED);
        self.bytes.write(0, &first)
    }

    /// Goes on at the start of the other segment. All that is in it must be in the database.
    pub(crate) fn switch(&mut self) {
        self.segment = 1 - self.segment;
        self.offset = 0;
    }

    /// Whether nothing was written since the last switch.
    pub(crate) fn at_start(&self) -> bool {
        self.offset == 0
    }

    fn write_here(&self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.write(self.segment * self.mark.segment_bytes + self.offset, bytes)?;
        self.meter.time_sync(|| self.bytes.sync_data())
    }
}

/// Length of a record of changes: at most this, in whole sectors.
fn record_len<'w>(writes: impl Iterator<Item = &'w Write>) -> u64 {
    let content: usize = writes.map(|write| CHANGE_HEAD + write.bytes()).sum();
    (HEAD + content).next_multiple_of(SECTOR) as u64
}

fn checksum(head: &[u8], content: &[u8]) -> [u8; CHECKSUM.end - CHECKSUM.start] {
    let mut hash = Sha256::new();
    hash.update(head);
    hash.update(content);
    let full: [u8; 32] = hash.finalize().into();
    let mut short = [0; CHECKSUM.end - CHECKSUM.start];
    short.copy_from_slice(&full[..CHECKSUM.end - CHECKSUM.start]);
    short
}

fn encode<'w>(out: &mut Vec<u8>, epoch: &Epoch, number: u64, writes: impl Iterator<Item = &'w Write>) {
    out.clear();
    out.resize(HEAD, 0);
    for write in writes {
        let (kind, table, first, second) = match write {
            Write::Put { table, key, value } => (1, table, key, Some(value)),
            Write::Remove { table, key } => (2, table, key, None),
            Write::RemoveRange { table, from, to } => (3, table, from, Some(to)),
        };
        out.extend_from_slice(&[kind, table.number()]);
        for part in std::iter::once(first).chain(second) {
            // Keys and values have limits far below 4 GiB.
            out.extend_from_slice(&(part.len() as u32).to_le_bytes());
            out.extend_from_slice(part);
        }
    }
    let content = (out.len() - HEAD) as u32;
    out[..4].copy_from_slice(&MAGIC);
    out[4..8].copy_from_slice(&content.to_le_bytes());
    out[8..24].copy_from_slice(epoch);
    out[24..32].copy_from_slice(&number.to_le_bytes());
    let (head, rest) = out.split_at(HEAD);
    let sum = checksum(&head[..CHECKSUM.start], rest);
    out[CHECKSUM].copy_from_slice(&sum);
    out.resize(out.len().next_multiple_of(SECTOR), 0);
}

fn take<'b>(bytes: &mut &'b [u8], len: usize) -> Option<&'b [u8]> {
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}

fn take_part(bytes: &mut &[u8]) -> Option<Vec<u8>> {
    let len = u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?);
    Some(take(bytes, usize::try_from(len).ok()?)?.to_vec())
}

fn take_write(bytes: &mut &[u8]) -> Option<Write> {
    let head = take(bytes, 2)?;
    let table = Table::of_number(head[1])?;
    let first = take_part(bytes)?;
    Some(match head[0] {
        1 => Write::Put { table, key: first, value: take_part(bytes)? },
        2 => Write::Remove { table, key: first },
        3 => Write::RemoveRange { table, from: first, to: take_part(bytes)? },
        _ => return None,
    })
}

fn decode(mut content: &[u8]) -> Option<Vec<Write>> {
    let mut writes = Vec::new();
    while !content.is_empty() {
        writes.push(take_write(&mut content)?);
    }
    Some(writes)
}

/// The number and the content of the record at the start of `bytes`, if there is one of the epoch
/// that the database doesn't have.
fn record<'b>(bytes: &'b [u8], mark: &Mark) -> Option<(u64, &'b [u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let number = u64::from_le_bytes(head[24..32].try_into().ok()?);
    if head[..4] != MAGIC || head[8..24] != mark.epoch || number <= mark.applied {
        return None;
    }
    let len = u32::from_le_bytes(head[4..8].try_into().ok()?);
    let content = rest.get(..usize::try_from(len).ok()?)?;
    (head[CHECKSUM] == checksum(&head[..CHECKSUM.start], content)).then_some((number, content))
}

/// What a journal held beyond what the database has.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    /// Its changes.
    pub(crate) layer: Layer,
    /// Number of the last record that is in the layer or in the database.
    pub(crate) last: u64,
    /// What is wrong: records are missing, and those after them were left out.
    pub(crate) damage: Option<String>,
}

/// Reads what the database does not have yet.
///
/// # Errors
/// Of the disk only.
pub(crate) fn replay(bytes: &dyn StorageBackend, mark: &Mark) -> io::Result<Replayed> {
    let len = bytes.len()?;
    let short = len < 2 * mark.segment_bytes;
    let mut found = BTreeMap::new();
    for segment in 0..2 {
        let start = (segment * mark.segment_bytes).min(len);
        let end = ((segment + 1) * mark.segment_bytes).min(len);
        let mut content = vec![0; (end - start) as usize];
        bytes.read(start, &mut content)?;
        let mut at = 0;
        while at < content.len() {
            let Some((number, writes)) = record(&content[at..], mark) else {
                at += SECTOR;
                continue;
            };
            at += (HEAD + writes.len()).next_multiple_of(SECTOR);
            found.insert(number, decode(writes));
        }
    }
    let mut replayed = Replayed { last: mark.applied, ..Replayed::default() };
    for (number, writes) in found {
        let expected = replayed.last + 1;
        match writes {
            Some(writes) if number == expected => {
                writes.into_iter().for_each(|write| replayed.layer.apply(write));
                replayed.last = number;
            }
            Some(_) => {
                let missing = format!("record {expected} is missing, {number} is there");
                replayed.damage.get_or_insert(missing);
            }
            None => {
                replayed.damage.get_or_insert_with(|| format!("record {number} is malformed"));
            }
        }
    }
    if short {
        replayed.damage.get_or_insert_with(|| format!("it is missing or cut off, {len} bytes are left"));
    }
    Ok(replayed)
}
