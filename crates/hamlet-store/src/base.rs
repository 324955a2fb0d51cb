//! The database below the journal: checkpoints, batches too large for the journal, and what to do
//! when the database fails.
//!
//! It knows redb's ways, not records. Invariants: a layer is in the database whole or not at all,
//! together with the mark that says so; when a large batch is answered with an error, nothing of
//! it can be read, even if the disk took it; a failed sync is never trusted again
//! ([`Gate::rewrite`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use redb::{Database, Durability, ReadableTable, WriteTransaction};

use crate::gate::Gate;
use crate::journal::Mark;
use crate::layer::Layer;
use crate::opening::{Failure, discard, guarded, open_database};
use crate::queue::Write;
use crate::tables::{Table, Tables, write_mark};
use crate::writer::Shared;

/// What a key held before a batch.
struct Before {
    table: Table,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

/// What is to be done before the file may be used again.
#[derive(Default)]
struct Broken {
    undo: Vec<Before>,
    rewrite: bool,
}

/// The one writer of the database.
pub(crate) struct Base {
    shared: Arc<Shared>,
    gate: Gate,
    broken: Option<Broken>,
}

impl Base {
    pub(crate) fn new(shared: Arc<Shared>, gate: Gate) -> Base {
        Base { shared, gate, broken: None }
    }

    /// Writes a layer down, and what the journal holds from now on. What failed may be in the file
    /// after all: that is harmless, it was durable before, and it will be written again.
    pub(crate) fn checkpoint(&mut self, layer: &Layer, mark: Option<Mark>) -> Result<(), String> {
        self.recover()?;
        let mut none = Vec::new();
        self.transact(&mut none, |txn, _| {
            layer.write_to(&mut Tables::of(txn))?;
            write_mark(txn, mark)
        })
    }

    /// Makes a batch durable here, all or nothing. What came before it must be here already.
    pub(crate) fn commit(&mut self, writes: &[&Write]) -> Result<(), String> {
        self.recover()?;
        let mut undo = Vec::new();
        self.transact(&mut undo, |txn, undo| write_all(txn, writes, undo))
    }

    /// Whether something that failed may still be in the file.
    pub(crate) fn has_undo(&self) -> bool {
        self.broken.as_ref().is_some_and(|broken| !broken.undo.is_empty())
    }

    /// Whether nothing that was written of the file is known to be lost.
    pub(crate) fn is_durable(&self) -> bool {
        self.broken.is_none() && !self.gate.sync_failed()
    }

    /// Closes the file.
    pub(crate) fn close(&mut self) -> Result<(), String> {
        let recovered = self.recover();
        let database = self.shared.database.write().take();
        let closed = database.map_or(Ok(()), |database| guarded(|| Ok(database.close()?)));
        closed.map_err(|failure| self.describe(&failure)).and(recovered)
    }

    fn transact(
        &mut self,
        undo: &mut Vec<Before>,
        work: impl FnOnce(&WriteTransaction, &mut Vec<Before>) -> Result<(), redb::Error>,
    ) -> Result<(), String> {
        let outcome = {
            let database = self.shared.database.read();
            let Some(database) = &*database else { return Err("the file is not open".to_owned()) };
            guarded(|| {
                let mut txn = database.begin_write()?;
                txn.set_durability(Durability::Immediate)?;
                work(&txn, undo)?;
                Ok(txn.commit()?)
            })
        };
        let Err(failure) = outcome else { return Ok(()) };
        let message = self.describe(&failure);
        self.broken = Some(Broken { undo: std::mem::take(undo), rewrite: false });
        // At once, so that nobody reads what this may have left in the file.
        match self.recover() {
            Ok(()) => Err(message),
            Err(still) if still == message => Err(message),
            Err(still) => Err(format!("{message}; and then: {still}")),
        }
    }

    /// After a failure: opens the file anew and takes back what a failed batch left in it.
    pub(crate) fn recover(&mut self) -> Result<(), String> {
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
}

/// Makes all changes of a batch, in order, noting what was there before.
fn write_all(txn: &WriteTransaction, writes: &[&Write], undo: &mut Vec<Before>) -> Result<(), redb::Error> {
    let mut tables = Tables::of(txn);
    for write in writes.iter().copied() {
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
