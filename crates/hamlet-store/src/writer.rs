//! The one place that writes: one transaction per batch, and what to do when one fails. It has a
//! thread of its own, or it works in the callers' calls ([`crate::Store::open_inline`]).
//!
//! It knows redb's ways, not records. Invariants: a request is answered `Ok` only after a sync that
//! covers it; when a batch is answered with an error, nothing of it can be read, even if the disk
//! took it after all; a failed sync is never trusted again ([`Gate::rewrite`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use hamlet_core::durable::CommitError;
use parking_lot::{Mutex, RwLock};
use redb::{Database, Durability, ReadableTable, WriteTransaction};

use crate::disk::Disk;
use crate::gate::Gate;
use crate::health::{Meter, StoreHealth};
use crate::opening::{Failure, discard, guarded, open_database};
use crate::queue::{Queue, Request, Write};
use crate::tables::Table;

/// What the store and its writer share.
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) cache_bytes: usize,
    /// `None` after a failed batch until the file could be opened again, and after closing.
    pub(crate) database: RwLock<Option<Database>>,
    pub(crate) health: Mutex<StoreHealth>,
}

/// What a key held before a batch.
struct Before {
    table: Table,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

/// What is to be done before the file may be used again.
struct Broken {
    undo: Vec<Before>,
    rewrite: bool,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    gate: Gate,
    broken: Option<Broken>,
}

/// However the thread ends, nobody waits for it in vain.
impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.queue.abandon();
    }
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, gate: Gate) -> Writer {
        Writer { shared, gate, broken: None }
    }

    /// Serves the queue until it is closed and empty, then closes the file.
    pub(crate) fn run(mut self) -> Result<(), CommitError> {
        while let Some(batch) = self.shared.queue.next_batch() {
            self.serve(batch);
        }
        self.finish()
    }

    /// Makes one batch durable and answers its requests.
    pub(crate) fn serve(&mut self, batch: Vec<Request>) {
        let outcome = self.commit(&batch).map_err(|message| CommitError { message });
        self.account(&batch, &outcome);
        for request in batch {
            request.answer(outcome.clone());
        }
    }

    /// One batch, all or nothing.
    fn commit(&mut self, batch: &[Request]) -> Result<(), String> {
        self.recover()?;
        let mut undo = Vec::new();
        let outcome = {
            let database = self.shared.database.read();
            let Some(database) = &*database else { return Err("the file is not open".to_owned()) };
            guarded(|| {
                let mut txn = database.begin_write()?;
                txn.set_durability(Durability::Immediate)?;
                write_all(&txn, batch, &mut undo)?;
                Ok(txn.commit()?)
            })
        };
        let Err(failure) = outcome else { return Ok(()) };
        let message = self.describe(&failure);
        self.broken = Some(Broken { undo, rewrite: false });
        // At once, so that nobody reads what this batch may have left in the file.
        let recovered = self.recover();
        match recovered {
            Ok(()) => Err(message),
            Err(still) if still == message => Err(message),
            Err(still) => Err(format!("{message}; and then: {still}")),
        }
    }

    /// After a failed batch: opens the file anew and takes back what the batch left in it.
    fn recover(&mut self) -> Result<(), String> {
        let Some(mut broken) = self.broken.take() else { return Ok(()) };
        if let Some(database) = self.shared.database.write().take() {
            discard(database);
        }
        broken.rewrite |= self.gate.sync_failed();
        match self.reopen(&broken) {
            Ok(database) => {
                *self.shared.database.write() = Some(database);
                Ok(())
            }
            Err(message) => {
                broken.rewrite |= self.gate.sync_failed();
                self.broken = Some(broken);
                Err(message)
            }
        }
    }

    fn reopen(&mut self, broken: &Broken) -> Result<Database, String> {
        let bytes = self.shared.disk.open().map_err(|e| e.to_string())?;
        let bytes = bytes.ok_or_else(|| "the file is gone; restart the agent".to_owned())?;
        self.gate = Gate::open(bytes, self.shared.meter.clone());
        if broken.rewrite {
            self.gate.rewrite().map_err(|e| e.to_string())?;
        }
        let database = guarded(|| open_database(&self.gate, self.shared.cache_bytes));
        let database = database.map_err(|failure| self.describe(&failure))?;
        match guarded(|| undo(&database, &broken.undo)) {
            Ok(()) => Ok(database),
            Err(failure) => {
                discard(database);
                Err(self.describe(&failure))
            }
        }
    }

    /// The disk's own words if it failed, else the database's.
    fn describe(&self, failure: &Failure) -> String {
        self.gate.fault().map_or_else(|| failure.to_string(), |(_, text)| text)
    }

    /// Closes the file.
    pub(crate) fn finish(mut self) -> Result<(), CommitError> {
        let recovered = self.recover();
        let database = self.shared.database.write().take();
        let closed = database.map_or(Ok(()), |database| guarded(|| Ok(database.close()?)));
        let closed = closed.map_err(|failure| self.describe(&failure));
        closed.and(recovered).map_err(|message| CommitError { message })
    }

    fn account(&self, batch: &[Request], outcome: &Result<(), CommitError>) {
        let requests = batch.len() as u64;
        let mut health = self.shared.health.lock();
        let was_failing = health.error.is_some();
        health.error = outcome.as_ref().err().cloned();
        match outcome {
            Ok(()) => {
                health.commits += requests;
                health.batches += 1;
                health.records += batch.iter().map(|r| r.writes.len() as u64).sum::<u64>();
                health.bytes += batch.iter().map(|r| r.bytes as u64).sum::<u64>();
            }
            Err(error) => {
                health.failed_commits += requests;
                health.failed_batches += 1;
                health.last_error = Some(error.clone());
            }
        }
        drop(health);
        match outcome {
            Err(error) if !was_failing => tracing::error!(%error, requests, "commits to the store fail"),
            Ok(()) if was_failing => tracing::info!("commits to the store succeed again"),
            _ => {}
        }
    }
}

type OpenTable<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;

/// The tables a transaction has touched so far.
struct Tables<'t> {
    txn: &'t WriteTransaction,
    open: BTreeMap<Table, OpenTable<'t>>,
}

impl<'t> Tables<'t> {
    fn of(txn: &'t WriteTransaction) -> Tables<'t> {
        Tables { txn, open: BTreeMap::new() }
    }

    fn get(&mut self, table: Table) -> Result<&mut OpenTable<'t>, redb::Error> {
        use std::collections::btree_map::Entry;
        match self.open.entry(table) {
            Entry::Occupied(open) => Ok(open.into_mut()),
            Entry::Vacant(place) => Ok(place.insert(self.txn.open_table(table.definition())?)),
        }
    }
}

/// Makes all changes of a batch, in order, noting what was there before.
fn write_all(txn: &WriteTransaction, batch: &[Request], undo: &mut Vec<Before>) -> Result<(), redb::Error> {
    let mut tables = Tables::of(txn);
    for write in batch.iter().flat_map(|request| &request.writes) {
        match write {
            Write::Put { table, key, value } => {
                let old = tables.get(*table)?.insert(&key[..], &value[..])?;
                let value = old.map(|old| old.value().to_vec());
                undo.push(Before { table: *table, key: key.clone(), value });
            }
            Write::Remove { table, key } => {
                let old = tables.get(*table)?.remove(&key[..])?;
                if let Some(old) = old {
                    let value = Some(old.value().to_vec());
                    undo.push(Before { table: *table, key: key.clone(), value });
                }
            }
            Write::RemoveRange { table, from, to } => {
                let open = tables.get(*table)?;
                let mut found = Vec::new();
                for entry in open.range::<&[u8]>(&from[..]..&to[..])? {
                    let (key, value) = entry?;
                    found.push((key.value().to_vec(), value.value().to_vec()));
                }
                for (key, value) in found {
                    open.remove(&key[..])?;
                    undo.push(Before { table: *table, key, value: Some(value) });
                }
            }
        }
    }
    Ok(())
}

/// Puts back what was there before a batch, if any of it got into the file.
fn undo(database: &Database, before: &[Before]) -> Result<(), redb::Error> {
    // A key may have been touched several times; its first state counts.
    let mut first: BTreeMap<(Table, &[u8]), Option<&[u8]>> = BTreeMap::new();
    for entry in before {
        first.entry((entry.table, &entry.key)).or_insert(entry.value.as_deref());
    }
    let txn = database.begin_write()?;
    let mut changed = false;
    let mut tables = Tables::of(&txn);
    for ((table, key), value) in first {
        let open = tables.get(table)?;
        let present = open.get(key)?.map(|present| present.value().to_vec());
        if present.as_deref() == value {
            continue;
        }
        changed = true;
        match value {
            Some(value) => drop(open.insert(key, value)?),
            None => drop(open.remove(key)?),
        }
    }
    drop(tables);
    if changed { Ok(txn.commit()?) } else { Ok(txn.abort()?) }
}
