//! The store as the program sees it: open, commit, read a document, health, close.
//!
//! It seals values and passes them on; the [`crate::writer`] thread does the writing and has this as
//! its only parent. Invariant: a commit's future is `Ok` only when its changes survive the loss of
//! power.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use hamlet_core::durable::{CommitError, CommitFuture, ImportChange, ImportStore, LoadedPeer, PeerState};
use hamlet_core::name::PeerName;
use hamlet_runtime::{Clock, SystemClock};
use parking_lot::{Mutex, RwLock};
use redb::ReadableDatabase;
use serde::Serialize;

use crate::base::Base;
use crate::check::{self, CheckReport};
use crate::damage::DamageReport;
use crate::disk::{Disk, FolderDisk, FolderLock};
use crate::error::{OpenError, ReadError};
use crate::frame::{self, KEY_MAX, VALUE_MAX};
use crate::health::{Meter, StoreHealth};
use crate::journal::SEGMENT_BYTES;
use crate::opening::{self, guarded};
use crate::pending::Pending;
use crate::queue::{Queue, Request, Write, closed, stopped};
use crate::tables::{self, Table, import_key, import_range};
use crate::writer::{Shared, Writer};

/// Memory for the database's pages, in bytes. Records live in the session's memory; this only
/// serves writing.
pub const CACHE_BYTES: usize = 32 * 1024 * 1024;

/// How to open a store.
#[derive(Clone)]
pub struct StoreOptions {
    /// Measures how long the disk takes.
    pub clock: Arc<dyn Clock>,
    /// Memory for the database's pages, in bytes.
    pub cache_bytes: usize,
    /// Bytes of each of the two segments of the journal, from [`SEGMENT_BYTES_MIN`] to
    /// [`SEGMENT_BYTES_MAX`]. A checkpoint is made when one is full.
    ///
    /// [`SEGMENT_BYTES_MIN`]: crate::SEGMENT_BYTES_MIN
    /// [`SEGMENT_BYTES_MAX`]: crate::SEGMENT_BYTES_MAX
    pub journal_segment_bytes: u64,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        let clock = SystemClock::shared();
        StoreOptions { clock, cache_bytes: CACHE_BYTES, journal_segment_bytes: SEGMENT_BYTES }
    }
}

/// A store that was just opened, and what was in it.
pub struct Opened {
    /// The store.
    pub store: Arc<Store>,
    /// All records and states, by peer.
    pub peers: BTreeMap<PeerName, LoadedPeer>,
    /// What was found damaged, to be logged and shown. What it names must be resynchronised.
    pub damage: Option<DamageReport>,
}

/// Who does the writing.
enum Hand {
    /// A thread that serves the queue.
    Thread(JoinHandle<Result<(), CommitError>>),
    /// Whoever calls.
    Caller(Box<Writer>),
    /// Nobody: it is closed.
    Nobody,
}

/// The embedded store of one mesh.
///
/// Dropping it does what [`Store::close`] does, so the last owner should be one that may block.
pub struct Store {
    shared: Arc<Shared>,
    hand: Mutex<Hand>,
    /// Whether the writing is done in the calls, without a thread and without the queue.
    inline: bool,
    /// Released last, when the file is closed.
    lock: Mutex<Option<FolderLock>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("place", &self.shared.disk.place()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store of a data folder, making folder (mode 0700) and files (0600) when missing.
    /// Blocks while it reads everything.
    ///
    /// A damaged file is no error: it is set aside in the folder and [`Opened::damage`] says so.
    ///
    /// # Errors
    /// [`OpenError`]; in particular [`OpenError::Locked`] while another agent has the folder.
    pub fn open(folder: &Path, options: StoreOptions) -> Result<Opened, OpenError> {
        let lock = FolderLock::take(folder)?;
        Store::start(Arc::new(FolderDisk::new(folder)), options, Some(lock), false)
    }

    /// Opens the store of any disk, for tests and simulation: the disk may fail, run full, lose
    /// unsynced writes or hold damaged bytes. Takes no lock but the disk's own.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with_backend(disk: Arc<dyn Disk>, options: StoreOptions) -> Result<Opened, OpenError> {
        Store::start(disk, options, None, false)
    }

    /// Opens the store of any disk without a thread, for deterministic simulation: each commit
    /// writes and syncs in the call itself, on the calling thread, and its future is ready. All
    /// else is the same code as behind [`Store::open`]. Requests don't share transactions here.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_inline(disk: Arc<dyn Disk>, options: StoreOptions) -> Result<Opened, OpenError> {
        Store::start(disk, options, None, true)
    }

    /// Looks at the store of a data folder without changing anything. Blocks while it reads
    /// everything.
    ///
    /// # Errors
    /// [`OpenError::Locked`] while an agent has the folder, and errors of the disk. Damage and an
    /// unknown schema are in the report.
    pub fn check(folder: &Path) -> Result<CheckReport, OpenError> {
        check::check(folder)
    }

    fn start(
        disk: Arc<dyn Disk>,
        options: StoreOptions,
        lock: Option<FolderLock>,
        inline: bool,
    ) -> Result<Opened, OpenError> {
        let meter = Meter::new(options.clock.clone());
        let ready = opening::open(&*disk, &meter, &options)?;
        let shared = Arc::new(Shared {
            disk,
            queue: Queue::new(),
            meter,
            cache_bytes: options.cache_bytes,
            database: RwLock::new(Some(ready.database)),
            pending: Pending::default(),
            health: Mutex::default(),
        });
        let base = Base::new(shared.clone(), ready.gate);
        let mut writer = Writer::new(shared.clone(), base, ready.journal);
        let hand = if inline {
            Hand::Caller(Box::new(writer))
        } else {
            writer.start_checkpoints().map_err(OpenError::Thread)?;
            let thread = std::thread::Builder::new().name("store-writer".to_owned());
            Hand::Thread(thread.spawn(move || writer.run()).map_err(OpenError::Thread)?)
        };
        let store = Store { shared, hand: Mutex::new(hand), inline, lock: Mutex::new(lock) };
        Ok(Opened { store: Arc::new(store), peers: ready.loaded.peers, damage: ready.damage })
    }

    /// The bytes of a named document as they were last written; `None` if there are none. Blocks
    /// for a short read.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn get_document(&self, name: &str) -> Result<Option<Vec<u8>>, ReadError> {
        let unavailable = |message: String| ReadError::Unavailable { message };
        let database = self.shared.database.read();
        let Some(database) = &*database else {
            return Err(unavailable(
                "it is closed, or the disk failed and nothing was written since".to_owned(),
            ));
        };
        let key = name.as_bytes();
        let value = match self.shared.pending.get(Table::Documents, key) {
            Some(known) => known,
            None => {
                let read = guarded(|| tables::get(&database.begin_read()?, Table::Documents, key));
                read.map_err(|failure| unavailable(failure.to_string()))?
            }
        };
        let Some(value) = value else { return Ok(None) };
        match frame::unseal(Table::Documents, key, &value) {
            Ok(content) => Ok(Some(content.to_vec())),
            Err(flaw) => Err(ReadError::Damaged { name: name.to_owned(), flaw: flaw.to_string() }),
        }
    }

    /// Makes the bytes of a named document durable. The same rules as for
    /// [`ImportStore::commit`].
    pub fn put_document(&self, name: &str, bytes: Vec<u8>) -> CommitFuture {
        let key = name.as_bytes().to_vec();
        let value = frame::seal(Table::Documents, &key, &bytes);
        self.submit(fitting(Table::Documents, key, value).map(|write| vec![write]))
    }

    /// Removes a named document, durably; that there is none is no error.
    pub fn remove_document(&self, name: &str) -> CommitFuture {
        self.put_documents(vec![(name.to_owned(), None)])
    }

    /// Makes several named documents durable in one transaction; `None` removes one. The same rules
    /// as for [`ImportStore::commit`].
    pub fn put_documents(&self, documents: Vec<(String, Option<Vec<u8>>)>) -> CommitFuture {
        let writes = documents.into_iter().map(|(name, bytes)| {
            let key = name.into_bytes();
            match bytes {
                Some(bytes) => {
                    let value = frame::seal(Table::Documents, &key, &bytes);
                    fitting(Table::Documents, key, value)
                }
                None => Ok(Write::Remove { table: Table::Documents, key }),
            }
        });
        self.submit(writes.collect())
    }

    /// How the store is doing.
    pub fn health(&self) -> StoreHealth {
        let mut health = self.shared.health.lock().clone();
        health.queued = self.shared.queue.len();
        health.pending = self.shared.pending.len();
        let (checkpoints, failure) = self.shared.pending.figures();
        health.checkpoints = checkpoints;
        health.error = health.error.or(failure.map(|message| CommitError { message }));
        self.shared.meter.fill(&mut health);
        health
    }

    /// Takes no further request, makes the queued ones durable, writes the journal down, closes the
    /// file and unlocks the folder. Blocks until that is done. Closing again does nothing.
    ///
    /// # Errors
    /// If that could not be done in order; the next opening makes it good.
    pub fn close(&self) -> Result<(), CommitError> {
        self.shared.queue.close();
        let mut hand = self.hand.lock();
        let outcome = match std::mem::replace(&mut *hand, Hand::Nobody) {
            Hand::Nobody => return Ok(()),
            Hand::Caller(writer) => writer.finish(),
            Hand::Thread(thread) => thread.join().unwrap_or_else(|_| {
                let message = "its writer panicked; restart the agent and report this".to_owned();
                Err(CommitError { message })
            }),
        };
        drop(self.lock.lock().take());
        outcome
    }

    fn submit(&self, writes: Result<Vec<Write>, CommitError>) -> CommitFuture {
        match writes {
            Err(error) => Box::pin(std::future::ready(Err(error))),
            Ok(writes) if writes.is_empty() => Box::pin(std::future::ready(Ok(()))),
            Ok(writes) if self.inline => Box::pin(std::future::ready(self.write_now(writes))),
            Ok(writes) => self.shared.queue.submit(writes),
        }
    }

    /// Makes changes durable in this call.
    fn write_now(&self, writes: Vec<Write>) -> Result<(), CommitError> {
        let (request, mut answer) = Request::new(writes);
        match &mut *self.hand.lock() {
            Hand::Caller(writer) => writer.serve(vec![request]),
            _ => return Err(closed()),
        }
        answer.try_recv().unwrap_or_else(|_| Err(stopped()))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        match self.close() {
            Err(error) if error != closed() => tracing::warn!(%error, "the store was not closed in order"),
            _ => {}
        }
    }
}

fn fitting(table: Table, key: Vec<u8>, value: Vec<u8>) -> Result<Write, CommitError> {
    let (name, len, max) = if key.len() > KEY_MAX {
        ("key", key.len(), KEY_MAX)
    } else if value.len() > VALUE_MAX {
        ("value", value.len(), VALUE_MAX)
    } else {
        return Ok(Write::Put { table, key, value });
    };
    let message = format!("a {name} of {len} bytes is too large, at most {max} are possible");
    Err(CommitError { message })
}

fn put<T: Serialize>(table: Table, key: Vec<u8>, value: &T) -> Result<Write, CommitError> {
    let sealed = frame::encode(table, &key, value);
    let sealed = sealed.map_err(|e| CommitError { message: format!("a value can't be encoded: {e}") })?;
    fitting(table, key, sealed)
}

fn change(change: ImportChange) -> Result<Write, CommitError> {
    let key = import_key(&change.peer, &change.key);
    match &change.record {
        Some(record) => put(Table::Imports, key, record),
        None => Ok(Write::Remove { table: Table::Imports, key }),
    }
}

/// Requests are queued when the method is called, not when its future is first polled, so they are
/// made durable in the order of the calls (if the queue is full: of the first polls). Dropping a
/// future takes nothing back.
impl ImportStore for Store {
    fn commit(&self, changes: Vec<ImportChange>) -> CommitFuture {
        self.submit(changes.into_iter().map(change).collect())
    }

    fn put_peer_state(&self, peer: &PeerName, state: PeerState) -> CommitFuture {
        self.submit(put(Table::Peers, peer.as_str().as_bytes().to_vec(), &state).map(|write| vec![write]))
    }

    fn commit_with_state(
        &self,
        changes: Vec<ImportChange>,
        peer: &PeerName,
        state: PeerState,
    ) -> CommitFuture {
        let changes: Result<Vec<Write>, CommitError> = changes.into_iter().map(change).collect();
        let state = put(Table::Peers, peer.as_str().as_bytes().to_vec(), &state);
        self.submit(changes.and_then(|mut writes| {
            writes.push(state?);
            Ok(writes)
        }))
    }

    fn forget_peer(&self, peer: &PeerName) -> CommitFuture {
        let (from, to) = import_range(peer);
        let records = Write::RemoveRange { table: Table::Imports, from, to };
        let state = Write::Remove { table: Table::Peers, key: peer.as_str().as_bytes().to_vec() };
        self.submit(Ok(vec![records, state]))
    }
}
