//! What is durable in the journal and on its way to the database: the layer that grows, and the one
//! that is being written down.
//!
//! It moves layers and wakes who waits; it writes nothing itself. Invariants: there are at most
//! two layers; one leaves only when the database has it durably; nobody waits for a thread that
//! is gone.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::journal::Mark;
use crate::layer::Layer;
use crate::queue::Write;
use crate::tables::Table;

/// How long after a failed checkpoint it is tried again, if no commit asks for it earlier.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A layer that gets no more changes.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub(crate) layer: Layer,
    /// What the database is to say of the journal with these changes.
    pub(crate) mark: Mark,
}

#[derive(Debug, Default)]
struct State {
    active: Layer,
    frozen: Option<Arc<Frozen>>,
    /// Why the last attempt to write `frozen` down failed.
    failure: Option<String>,
    /// Whether `frozen` is to be written down now.
    due: bool,
    stopped: bool,
    checkpoints: u64,
}

/// The layers above the database.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    state: Mutex<State>,
    changed: Condvar,
}

/// However a checkpoint thread ends, nobody waits for it in vain.
pub(crate) struct Leaving<'p>(pub(crate) &'p Pending);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Pending {
    /// What is known of a key above the database.
    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Option<Option<Vec<u8>>> {
        let state = self.state.lock();
        let frozen = || state.frozen.as_ref().and_then(|frozen| frozen.layer.get(table, key));
        state.active.get(table, key).or_else(frozen).map(|value| value.map(<[u8]>::to_vec))
    }

    /// Adds changes that are durable.
    pub(crate) fn apply(&self, writes: impl Iterator<Item = Write>) {
        let mut state = self.state.lock();
        writes.for_each(|write| state.active.apply(write));
    }

    /// Changes that grow in number until the next freeze.
    pub(crate) fn active_len(&self) -> usize {
        self.state.lock().active.len()
    }

    /// All changes that the database doesn't have.
    pub(crate) fn len(&self) -> usize {
        let state = self.state.lock();
        state.active.len() + state.frozen.as_ref().map_or(0, |frozen| frozen.layer.len())
    }

    /// Number of layers written down, and why the last attempt failed.
    pub(crate) fn figures(&self) -> (u64, Option<String>) {
        let state = self.state.lock();
        (state.checkpoints, state.failure.clone())
    }

    /// Makes the growing layer the one to be written down. There must be none.
    pub(crate) fn freeze(&self, mark: Mark) {
        let mut state = self.state.lock();
        let layer = std::mem::take(&mut state.active);
        state.frozen = Some(Arc::new(Frozen { layer, mark }));
        state.due = true;
        self.changed.notify_all();
    }

    /// Takes the growing layer, to write it down at the end.
    pub(crate) fn take_active(&self) -> Layer {
        std::mem::take(&mut self.state.lock().active)
    }

    /// The layer to be written down, if there is one.
    pub(crate) fn frozen(&self) -> Option<Arc<Frozen>> {
        let mut state = self.state.lock();
        state.due = false;
        state.frozen.clone()
    }

    /// What became of writing it down.
    pub(crate) fn settle(&self, outcome: Result<(), String>) {
        let mut state = self.state.lock();
        let layer = match outcome {
            Ok(()) => {
                state.failure = None;
                state.checkpoints += 1;
                state.frozen.take()
            }
            Err(failure) => {
                state.failure = Some(failure);
                None
            }
        };
        self.changed.notify_all();
        drop(state);
        // It may be large: not under the lock.
        drop(layer);
    }

    /// For the checkpoint thread: blocks until there is something to write down. `false` when it is
    /// to end.
    pub(crate) fn await_due(&self) -> bool {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return false;
            }
            if state.due && state.frozen.is_some() {
                return true;
            }
            if state.failure.is_some() {
                state.due |= self.changed.wait_for(&mut state, RETRY_AFTER).timed_out();
            } else {
                self.changed.wait(&mut state);
            }
        }
    }

    /// For the writer: blocks until the checkpoint thread has written the frozen layer down. One
    /// that failed before gets another chance.
    ///
    /// # Errors
    /// Why it failed now.
    pub(crate) fn wait(&self) -> Result<(), String> {
        let mut state = self.state.lock();
        if state.failure.take().is_some() {
            state.due = true;
            self.changed.notify_all();
        }
        loop {
            if state.frozen.is_none() {
                return Ok(());
            }
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            if state.stopped {
                return Err("its checkpoint thread has stopped; restart the agent".to_owned());
            }
            self.changed.wait(&mut state);
        }
    }

    /// Ends the checkpoint thread.
    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
    }
}
