//! Opening a store: judge the file and its journal, set aside what is damaged, make a new one if
//! there is none, and begin a new epoch of the journal.
//!
//! A file is judged behind a [`Gate`], so nothing is written to it before it was found sound and of
//! a schema that we know. Invariant: an error of the disk is never taken for damage, and damage is
//! never an error; panics of the database on nonsensical bytes are damage.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use hamlet_core::rejection::one_line;
use redb::backends::InMemoryBackend;
use redb::{Builder, Database, ReadableDatabase, StorageBackend, WriteTransaction};

use crate::damage::{DamageReport, SetAside};
use crate::disk::Disk;
use crate::error::OpenError;
use crate::frame::Flaw;
use crate::gate::{self, Gate};
use crate::health::Meter;
use crate::journal::{self, Journal, Mark, Replayed};
use crate::store::StoreOptions;
use crate::tables::{self, FoundSchema, Loaded, SCHEMA, Tables};

/// Longest reason that we show, in bytes.
const REASON_MAX: usize = 256;

/// Why the database could not do something.
#[derive(Debug)]
pub(crate) enum Failure {
    Redb(redb::Error),
    Panic(String),
}

impl From<redb::Error> for Failure {
    fn from(error: redb::Error) -> Failure {
        Failure::Redb(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self {
            Failure::Redb(error) => error.to_string(),
            Failure::Panic(text) => format!("the database gave up: {text}"),
        };
        f.write_str(&one_line(&text, REASON_MAX))
    }
}

/// Runs work of the database, which may panic on bytes that it did not write.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, Failure> {
    match std::panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(Failure::Redb),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            Err(Failure::Panic(text.unwrap_or_else(|| "no message".to_owned())))
        }
    }
}

/// Opens the database on a file, or makes one in an empty file; verifies every page.
pub(crate) fn open_database(gate: &Gate, cache_bytes: usize) -> Result<Database, redb::Error> {
    let mut builder = Builder::new();
    builder.set_cache_size(cache_bytes).set_check_integrity_on_open(true);
    Ok(builder.create_with_backend(gate.clone())?)
}

/// Closes a database that is of no use any more; it may even panic.
pub(crate) fn discard(database: Database) {
    let _ = guarded(|| {
        drop(database);
        Ok(())
    });
}

/// What was found in a file.
pub(crate) enum Judged {
    Sound(Box<Sound>),
    TooNew { found: u32 },
    Damaged { reason: String },
}

/// A file that can be used, and what its journal holds beyond it.
pub(crate) struct Sound {
    pub(crate) database: Database,
    pub(crate) gate: Gate,
    pub(crate) schema: u32,
    /// Whether the database says that it has all of its journal.
    pub(crate) whole: bool,
    pub(crate) replayed: Replayed,
    /// All that is kept, with the journal's changes.
    pub(crate) loaded: Loaded,
}

/// Opens the bytes of a journal; `None` if there is none.
pub(crate) type OpenJournal<'j> = &'j dyn Fn() -> io::Result<Option<Box<dyn StorageBackend>>>;

/// Judges the bytes of a store without changing them.
///
/// # Errors
/// Of the disk only, or if another process has the file.
pub(crate) fn judge(
    disk: Box<dyn StorageBackend>,
    journal: OpenJournal<'_>,
    place: &str,
    meter: Arc<Meter>,
    cache_bytes: usize,
    locks: bool,
) -> Result<Judged, OpenError> {
    let gate = Gate::holding(disk, meter, locks).map_err(|e| OpenError::system(place, e))?;
    if gate.len().map_err(|e| OpenError::system(place, e))? == 0 {
        return Ok(Judged::Damaged { reason: "the file is empty".to_owned() });
    }
    let read = guarded(|| {
        let database = open_database(&gate, cache_bytes)?;
        let txn = database.begin_read()?;
        let (schema, mark) = (tables::read_schema(&txn)?, tables::read_mark(&txn)?);
        drop(txn);
        Ok((database, schema, mark))
    });
    fault_of(&gate, place)?;
    let (database, schema, mark) = match read {
        Err(Failure::Redb(redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch)) => {
            return Err(OpenError::Locked { place: place.to_owned(), holder: None });
        }
        Err(failure) => return Ok(Judged::Damaged { reason: failure.to_string() }),
        Ok(read) => read,
    };
    let (schema, mark) = match (schema, mark) {
        (FoundSchema::Version(schema), Ok(mark)) if schema <= SCHEMA => (schema, mark),
        (schema, mark) => {
            discard(database);
            return Ok(unusable(schema, mark.err()));
        }
    };
    let replayed = match mark {
        None => Replayed::default(),
        Some(mark) => read_journal(journal, &mark).map_err(|e| OpenError::system(place, e))?,
    };
    let loaded = guarded(|| tables::load(&database.begin_read()?, &replayed.layer));
    fault_of(&gate, place)?;
    match loaded {
        Ok(loaded) => {
            let whole = mark.is_none();
            Ok(Judged::Sound(Box::new(Sound { database, gate, schema, whole, replayed, loaded })))
        }
        Err(failure) => {
            discard(database);
            Ok(Judged::Damaged { reason: failure.to_string() })
        }
    }
}

/// Behind the gate the database sees a fault of the disk and goes on to report it in its own words,
/// so the gate is asked first.
fn fault_of(gate: &Gate, place: &str) -> Result<(), OpenError> {
    match gate.fault().filter(|(kind, _)| !is_of_the_bytes(*kind)) {
        Some((kind, text)) => Err(OpenError::system(place, io::Error::new(kind, text))),
        None => Ok(()),
    }
}

fn unusable(schema: FoundSchema, mark: Option<Flaw>) -> Judged {
    let reason = match (schema, mark) {
        (FoundSchema::Version(found), _) if found > SCHEMA => return Judged::TooNew { found },
        (FoundSchema::Missing, _) => "it has no schema version".to_owned(),
        (FoundSchema::Damaged(flaw), _) => format!("its schema version is damaged: {flaw}"),
        (_, mark) => {
            let flaw = mark.map_or_else(String::new, |flaw| flaw.to_string());
            format!("what it says of its journal is damaged: {flaw}")
        }
    };
    Judged::Damaged { reason }
}

fn read_journal(journal: OpenJournal<'_>, mark: &Mark) -> io::Result<Replayed> {
    match journal()? {
        Some(bytes) => journal::replay(&*bytes, mark),
        None => journal::replay(&InMemoryBackend::new(), mark),
    }
}

/// Errors of reading that come from what is in the file, not from the disk.
fn is_of_the_bytes(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{FileTooLarge, InvalidData, InvalidInput, UnexpectedEof};
    matches!(kind, UnexpectedEof | InvalidInput | InvalidData | FileTooLarge)
}

/// A store that is open for writing.
pub(crate) struct Ready {
    pub(crate) database: Database,
    pub(crate) gate: Gate,
    pub(crate) journal: Journal,
    pub(crate) loaded: Loaded,
    pub(crate) damage: Option<DamageReport>,
}

/// Opens the store of a disk, whatever its state, and begins a new epoch of its journal.
pub(crate) fn open(disk: &dyn Disk, meter: &Arc<Meter>, options: &StoreOptions) -> Result<Ready, OpenError> {
    let place = disk.place();
    let system = |e| OpenError::system(&place, e);
    let Some(bytes) = disk.open().map_err(system)? else { return create(disk, meter, options, None) };
    let journal = || disk.journal().map(Some);
    let sound = match judge(bytes, &journal, &place, meter.clone(), options.cache_bytes, true)? {
        Judged::TooNew { found } => return Err(OpenError::SchemaTooNew { place, found, known: SCHEMA }),
        Judged::Damaged { reason } => {
            return match disk.set_aside() {
                Err(source) => Err(OpenError::SetAside { place, reason, source }),
                Ok(name) => {
                    let file = Some(SetAside { name, reason });
                    let damage = DamageReport { file, ..DamageReport::default() };
                    create(disk, meter, options, Some(damage))
                }
            };
        }
        Judged::Sound(sound) => *sound,
    };
    adopt(disk, meter, options, sound)
}

/// Makes a sound file the store: makes durable what was read of it, brings it up to date with its
/// journal, and moves what is damaged out of the way.
fn adopt(
    disk: &dyn Disk,
    meter: &Arc<Meter>,
    options: &StoreOptions,
    sound: Sound,
) -> Result<Ready, OpenError> {
    let place = disk.place();
    let system = |e| OpenError::system(&place, e);
    let Sound { database, gate, schema, whole, replayed, loaded } = sound;
    let bytes = disk.journal().map_err(system)?;
    // The note is taken in any case: it is true of the moment of closing only.
    let closed = journal::take_closed(&*bytes).map_err(system)?;
    let mark = fresh_mark(options);
    let filled = journal::is_filled(&*bytes, mark.segment_bytes).map_err(system)?;
    if !(closed && whole) {
        // The process before may have ended after a failed sync, with the machine still up.
        if filled {
            gate::rewrite(&*bytes).and_then(|()| bytes.sync_data()).map_err(system)?;
        }
        gate.rewrite().map_err(system)?;
    }
    gate.release().map_err(system)?;
    let mut damage = loaded.report();
    let keep = filled && replayed.damage.is_none();
    // What the journal holds must be in the file before the journal is changed or moved away.
    transact(&database, &gate, &place, |txn| {
        if schema < SCHEMA {
            tables::migrate(txn, schema)?;
        }
        replayed.layer.write_to(&mut Tables::of(txn))?;
        if !loaded.damaged.is_empty() {
            tables::set_values_aside(txn, &loaded.damaged)?;
        }
        tables::write_mark(txn, keep.then_some(mark))
    })?;
    if let Some(reason) = replayed.damage {
        let name = disk.set_journal_aside().map_err(system)?;
        damage.get_or_insert_default().journal = Some(SetAside { name, reason });
    }
    let journal = if keep {
        Journal::new(bytes, mark, meter.clone())
    } else {
        begin(disk, meter, mark, &database, &gate)?
    };
    Ok(Ready { database, gate, journal, loaded, damage })
}

/// Makes a new store.
fn create(
    disk: &dyn Disk,
    meter: &Arc<Meter>,
    options: &StoreOptions,
    damage: Option<DamageReport>,
) -> Result<Ready, OpenError> {
    let place = disk.place();
    let bytes = disk.create().map_err(|e| OpenError::system(&place, e))?;
    let gate = Gate::open(bytes, meter.clone());
    let database = guarded(|| open_database(&gate, options.cache_bytes));
    let database = database.map_err(|failure| failed(&gate, &place, failure))?;
    transact(&database, &gate, &place, |txn| tables::migrate(txn, 0))?;
    disk.adopt().map_err(|e| OpenError::system(&place, e))?;
    let journal = begin(disk, meter, fresh_mark(options), &database, &gate)?;
    Ok(Ready { database, gate, journal, loaded: Loaded::default(), damage })
}

fn fresh_mark(options: &StoreOptions) -> Mark {
    let segment_bytes = journal::segment_size(options.journal_segment_bytes);
    Mark { epoch: rand::random(), applied: 0, segment_bytes }
}

/// Begins an epoch in a journal of which nothing is needed.
fn begin(
    disk: &dyn Disk,
    meter: &Arc<Meter>,
    mark: Mark,
    database: &Database,
    gate: &Gate,
) -> Result<Journal, OpenError> {
    let place = disk.place();
    let system = |e| OpenError::system(&place, e);
    let bytes = disk.journal().map_err(system)?;
    // Also if it has its size: nothing says that the disk knows of it.
    journal::fill(&*bytes, mark.segment_bytes).map_err(system)?;
    // Only now the database says that there is a journal to be read.
    transact(database, gate, &place, |txn| tables::write_mark(txn, Some(mark)))?;
    Ok(Journal::new(bytes, mark, meter.clone()))
}

fn transact(
    database: &Database,
    gate: &Gate,
    place: &str,
    work: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
) -> Result<(), OpenError> {
    let done = guarded(|| {
        let txn = database.begin_write()?;
        work(&txn)?;
        Ok(txn.commit()?)
    });
    done.map_err(|failure| failed(gate, place, failure))
}

fn failed(gate: &Gate, place: &str, failure: Failure) -> OpenError {
    match gate.fault() {
        Some((kind, text)) => OpenError::system(place, io::Error::new(kind, text)),
        None => OpenError::Fresh { place: place.to_owned(), reason: failure.to_string() },
    }
}
