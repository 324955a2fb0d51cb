//! Opening a store: judge the file, set it aside if it is damaged, make a new one if there is none.
//!
//! A file is judged behind a [`Gate`], so nothing is written to it before it was found sound and of
//! a schema that we know. Invariant: an error of the disk is never taken for damage, and damage is
//! never an error; panics of the database on nonsensical bytes are damage.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use hamlet_core::rejection::one_line;
use redb::{Builder, Database, ReadableDatabase, StorageBackend};

use crate::damage::{DamageReport, SetAside};
use crate::disk::Disk;
use crate::error::OpenError;
use crate::gate::Gate;
use crate::health::Meter;
use crate::tables::{self, FoundSchema, Loaded, SCHEMA};

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
    Sound { database: Database, gate: Gate, schema: u32, loaded: Loaded },
    TooNew { found: u32 },
    Damaged { reason: String },
}

/// Judges the bytes of a store without changing them.
///
/// # Errors
/// Of the disk only, or if another process has the file.
pub(crate) fn judge(
    disk: Box<dyn StorageBackend>,
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
        let schema = tables::read_schema(&txn)?;
        let loaded = match schema {
            FoundSchema::Version(found) if found <= SCHEMA => tables::load(&txn)?,
            _ => Loaded::default(),
        };
        drop(txn);
        Ok((database, schema, loaded))
    });
    // Behind the gate the database sees a fault of the disk and goes on to report it in its own
    // words, so the gate is asked first.
    if let Some((kind, text)) = gate.fault().filter(|(kind, _)| !is_of_the_bytes(*kind)) {
        return Err(OpenError::system(place, io::Error::new(kind, text)));
    }
    match read {
        Err(Failure::Redb(redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch)) => {
            Err(OpenError::Locked { place: place.to_owned(), holder: None })
        }
        Err(failure) => Ok(Judged::Damaged { reason: failure.to_string() }),
        Ok((database, FoundSchema::Version(schema), loaded)) if schema <= SCHEMA => {
            Ok(Judged::Sound { database, gate, schema, loaded })
        }
        Ok((database, schema, _)) => {
            discard(database);
            Ok(match schema {
                FoundSchema::Version(found) => Judged::TooNew { found },
                FoundSchema::Missing => Judged::Damaged { reason: "it has no schema version".to_owned() },
                FoundSchema::Damaged(flaw) => {
                    Judged::Damaged { reason: format!("its schema version is damaged: {flaw}") }
                }
            })
        }
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
    pub(crate) loaded: Loaded,
    pub(crate) damage: Option<DamageReport>,
}

/// Opens the store of a disk, whatever its state.
pub(crate) fn open(disk: &dyn Disk, meter: &Arc<Meter>, cache_bytes: usize) -> Result<Ready, OpenError> {
    let place = disk.place();
    let Some(bytes) = disk.open().map_err(|e| OpenError::system(&place, e))? else {
        return create(disk, meter, cache_bytes, None);
    };
    match judge(bytes, &place, meter.clone(), cache_bytes, true)? {
        Judged::TooNew { found } => Err(OpenError::SchemaTooNew { place, found, known: SCHEMA }),
        Judged::Damaged { reason } => match disk.set_aside() {
            Err(source) => Err(OpenError::SetAside { place, reason, source }),
            Ok(name) => {
                let file = Some(SetAside { name, reason });
                let damage = DamageReport { file, ..DamageReport::default() };
                create(disk, meter, cache_bytes, Some(damage))
            }
        },
        Judged::Sound { database, gate, schema, loaded } => {
            gate.release().map_err(|e| OpenError::system(&place, e))?;
            if schema < SCHEMA || !loaded.damaged.is_empty() {
                prepare(&database, &gate, &place, schema, &loaded)?;
            }
            let damage = loaded.report();
            Ok(Ready { database, gate, loaded, damage })
        }
    }
}

/// Makes a new store.
fn create(
    disk: &dyn Disk,
    meter: &Arc<Meter>,
    cache_bytes: usize,
    damage: Option<DamageReport>,
) -> Result<Ready, OpenError> {
    let place = disk.place();
    let bytes = disk.create().map_err(|e| OpenError::system(&place, e))?;
    let gate = Gate::open(bytes, meter.clone());
    let database = guarded(|| open_database(&gate, cache_bytes)).map_err(|f| failed(&gate, &place, f))?;
    prepare(&database, &gate, &place, 0, &Loaded::default())?;
    disk.adopt().map_err(|e| OpenError::system(&place, e))?;
    Ok(Ready { database, gate, loaded: Loaded::default(), damage })
}

/// The first transaction: schema, and damaged values out of the way.
fn prepare(
    database: &Database,
    gate: &Gate,
    place: &str,
    schema: u32,
    loaded: &Loaded,
) -> Result<(), OpenError> {
    let done = guarded(|| {
        let txn = database.begin_write()?;
        tables::migrate(&txn, schema)?;
        if !loaded.damaged.is_empty() {
            tables::set_values_aside(&txn, &loaded.damaged)?;
        }
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
