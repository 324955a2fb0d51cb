//! The one place that commits: each batch is a record of the journal, and what to do when one fails.
//! It has a thread of its own, or it works in the callers' calls ([`crate::Store::open_inline`]).
//!
//! It knows neither records nor bytes of the disk. Invariants: a request is answered `Ok` only
//! after a sync that covers it; when a batch is answered with an error, nothing of it can be read,
//! even if the disk took it after all; a segment is written again only when the database has what
//! was in it.

use std::sync::Arc;
use std::thread::JoinHandle;

use hamlet_core::durable::CommitError;
use parking_lot::{Mutex, RwLock};
use redb::Database;

use crate::base::Base;
use crate::disk::Disk;
use crate::health::{Meter, StoreHealth};
use crate::journal::Journal;
use crate::pending::{Leaving, Pending};
use crate::queue::{Queue, Request, Write};

/// Most changed keys that wait for a checkpoint; with more, the journal goes on in its other
/// segment, full or not.
pub const CHECKPOINT_CHANGES_MAX: usize = 64 * 1024;

/// What the store, its writer and its checkpoints share.
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) cache_bytes: usize,
    /// `None` after a failed transaction until the file could be opened again, and after closing.
    pub(crate) database: RwLock<Option<Database>>,
    pub(crate) pending: Pending,
    pub(crate) health: Mutex<StoreHealth>,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    journal: Journal,
    base: Arc<Mutex<Base>>,
    /// Makes the checkpoints; without it they are made in the writer's own calls.
    checkpoints: Option<JoinHandle<()>>,
    /// Whether a failed batch may still be in the database.
    undo_due: bool,
}

/// However the thread ends, nobody waits for it in vain.
impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.queue.abandon();
        self.shared.pending.stop();
    }
}

/// Writes down what is due. What fails stays due.
fn checkpoint(shared: &Shared, base: &Mutex<Base>) -> Result<(), String> {
    let Some(frozen) = shared.pending.frozen() else { return Ok(()) };
    let outcome = base.lock().checkpoint(&frozen.layer, Some(frozen.mark));
    drop(frozen);
    let failing = shared.pending.figures().1.is_some();
    match &outcome {
        Err(error) if !failing => tracing::error!(%error, "checkpoints of the store fail"),
        Ok(()) if failing => tracing::info!("checkpoints of the store succeed again"),
        _ => {}
    }
    shared.pending.settle(outcome.clone());
    outcome
}

impl Writer {
    /// A writer that also makes the checkpoints.
    pub(crate) fn new(shared: Arc<Shared>, base: Base, journal: Journal) -> Writer {
        Writer { shared, journal, base: Arc::new(Mutex::new(base)), checkpoints: None, undo_due: false }
    }

    /// Leaves the checkpoints to a thread of their own from now on.
    pub(crate) fn start_checkpoints(&mut self) -> std::io::Result<()> {
        let (shared, base) = (self.shared.clone(), self.base.clone());
        let thread = std::thread::Builder::new().name("store-checkpoint".to_owned());
        let work = move || {
            let _leaving = Leaving(&shared.pending);
            while shared.pending.await_due() {
                // It is in the health, and it is tried again.
                let _ = checkpoint(&shared, &base);
            }
        };
        self.checkpoints = Some(thread.spawn(work)?);
        Ok(())
    }

    /// Serves the queue until it is closed and empty, then closes the file.
    pub(crate) fn run(mut self) -> Result<(), CommitError> {
        while let Some(batch) = self.shared.queue.next_batch() {
            self.serve(batch);
        }
        self.finish()
    }

    /// Makes one batch durable and answers its requests.
    pub(crate) fn serve(&mut self, mut batch: Vec<Request>) {
        let records = batch.iter().map(|r| r.writes.len() as u64).sum();
        let outcome = self.commit(&mut batch).map_err(|message| CommitError { message });
        self.account(&batch, records, &outcome);
        for request in batch {
            request.answer(outcome.clone());
        }
    }

    /// One batch, all or nothing.
    fn commit(&mut self, batch: &mut [Request]) -> Result<(), String> {
        self.heal()?;
        if !self.journal.takes(writes(batch)) {
            return self.commit_below(batch);
        }
        let full = self.shared.pending.active_len() >= CHECKPOINT_CHANGES_MAX;
        if full || !self.journal.has_room(writes(batch)) {
            self.turn()?;
        }
        if let Err(error) = self.journal.append(writes(batch)) {
            let message = error.to_string();
            // At once, so that nothing of it comes back if the process ends now.
            return Err(match self.journal.repair(&*self.shared.disk) {
                Err(still) if still.to_string() != message => format!("{message}; and then: {still}"),
                _ => message,
            });
        }
        let made = batch.iter_mut().flat_map(|request| std::mem::take(&mut request.writes));
        self.shared.pending.apply(made);
        Ok(())
    }

    /// Takes back what a failed batch left, in the journal or in the database.
    fn heal(&mut self) -> Result<(), String> {
        self.journal.repair(&*self.shared.disk).map_err(|e| e.to_string())?;
        if self.undo_due {
            self.base.lock().recover()?;
            self.undo_due = false;
        }
        Ok(())
    }

    /// A batch too large for the journal: straight into the database, behind all that came before.
    fn commit_below(&mut self, batch: &[Request]) -> Result<(), String> {
        if !self.journal.at_start() {
            self.turn()?;
        }
        self.settle()?;
        let writes: Vec<_> = writes(batch).collect();
        let mut base = self.base.lock();
        let outcome = base.commit(&writes);
        self.undo_due = base.has_undo();
        outcome
    }

    /// Goes on in the other segment of the journal, as soon as the database has what is in it.
    fn turn(&mut self) -> Result<(), String> {
        self.settle()?;
        self.shared.pending.freeze(self.journal.mark());
        self.journal.switch();
        if self.checkpoints.is_none() {
            // If it fails, it is tried again when the segment is needed.
            let _ = checkpoint(&self.shared, &self.base);
        }
        Ok(())
    }

    /// Waits until nothing is left to be written down but the growing layer.
    fn settle(&mut self) -> Result<(), String> {
        match &self.checkpoints {
            Some(_) => self.shared.pending.wait(),
            None => checkpoint(&self.shared, &self.base),
        }
    }

    /// Writes all down, so that nothing needs the journal any more, and closes the file.
    pub(crate) fn finish(mut self) -> Result<(), CommitError> {
        // A record that failed is of no account if all others are written down; if not, this is
        // the last chance to take it back.
        let _ = self.heal();
        let settled = self.settle();
        self.shared.pending.stop();
        if let Some(thread) = self.checkpoints.take() {
            let _ = thread.join();
        }
        let mut base = self.base.lock();
        let layer = self.shared.pending.take_active();
        let written = settled.and_then(|()| base.checkpoint(&layer, None));
        let closed = base.close();
        let outcome = written.and(closed);
        if outcome.is_ok() && base.is_durable() {
            // Without the note the next start writes all of it once more: that costs time only.
            let _ = self.journal.note_closed();
        }
        drop(base);
        outcome.map_err(|message| CommitError { message })
    }

    fn account(&self, batch: &[Request], records: u64, outcome: &Result<(), CommitError>) {
        let requests = batch.len() as u64;
        let mut health = self.shared.health.lock();
        let was_failing = health.error.is_some();
        health.error = outcome.as_ref().err().cloned();
        match outcome {
            Ok(()) => {
                health.commits += requests;
                health.batches += 1;
                health.records += records;
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

/// All changes of a batch, in order.
fn writes(batch: &[Request]) -> impl Iterator<Item = &Write> {
    batch.iter().flat_map(|request| &request.writes)
}
