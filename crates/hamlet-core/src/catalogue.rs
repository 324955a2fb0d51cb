//! A catalogue: slices with one writer each, and any number of readers.
//!
//! Writers are handed out once per slice. Readers are told *that* something changed, never what:
//! they look at what should be and make it so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Slices of values by key. `S` names a slice (a source, or a peer).
#[derive(Debug)]
pub struct Catalogue<S: Ord, K: Ord, V> {
    shared: Arc<Shared<S, K, V>>,
}

#[derive(Debug)]
struct Shared<S: Ord, K: Ord, V> {
    state: Mutex<State<S, K, V>>,
    version: watch::Sender<u64>,
}

#[derive(Debug)]
struct State<S: Ord, K: Ord, V> {
    slices: BTreeMap<S, BTreeMap<K, Arc<V>>>,
    writers: BTreeSet<S>,
}

/// The slice has a writer already: two writers would undo each other's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the slice already has a writer")]
pub struct SliceTaken;

impl<S: Ord, K: Ord, V> Clone for Catalogue<S, K, V> {
    fn clone(&self) -> Self {
        Catalogue { shared: self.shared.clone() }
    }
}

impl<S: Ord + Clone, K: Ord + Clone, V> Default for Catalogue<S, K, V> {
    fn default() -> Self {
        Catalogue::new()
    }
}

impl<S: Ord + Clone, K: Ord + Clone, V> Catalogue<S, K, V> {
    /// An empty catalogue.
    pub fn new() -> Self {
        let state = State { slices: BTreeMap::new(), writers: BTreeSet::new() };
        Catalogue { shared: Arc::new(Shared { state: Mutex::new(state), version: watch::Sender::new(0) }) }
    }

    /// The only writer of a slice. What the slice held stays when a writer is dropped, so that a
    /// successor (a restarted source) finds it.
    pub fn writer(&self, slice: S) -> Result<SliceWriter<S, K, V>, SliceTaken> {
        let mut state = self.shared.lock();
        if !state.writers.insert(slice.clone()) {
            return Err(SliceTaken);
        }
        Ok(SliceWriter { shared: self.shared.clone(), slice })
    }

    /// Woken at every change; the value is a counter of changes.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }

    /// Looks at all slices under the lock. Keep it short.
    pub fn read<R>(&self, look: impl FnOnce(&BTreeMap<S, BTreeMap<K, Arc<V>>>) -> R) -> R {
        look(&self.shared.lock().slices)
    }

    /// All values, slice by slice in key order.
    pub fn snapshot(&self) -> Vec<Arc<V>> {
        self.read(|slices| slices.values().flat_map(|s| s.values().cloned()).collect())
    }

    /// How many entries a slice has.
    pub fn len_of(&self, slice: &S) -> usize {
        self.read(|slices| slices.get(slice).map_or(0, BTreeMap::len))
    }

    /// Removes a slice that has no writer (its source or peer was removed).
    pub fn remove_slice(&self, slice: &S) -> Result<(), SliceTaken> {
        let mut state = self.shared.lock();
        if state.writers.contains(slice) {
            return Err(SliceTaken);
        }
        state.slices.remove(slice);
        drop(state);
        self.shared.bump();
        Ok(())
    }
}

impl<S: Ord, K: Ord, V> Shared<S, K, V> {
    // A panic in a reader's closure leaves the maps whole, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, State<S, K, V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bump(&self) {
        self.version.send_modify(|v| *v += 1);
    }
}

/// Keeps one slice true. Not clonable: a slice has one writer.
#[derive(Debug)]
pub struct SliceWriter<S: Ord, K: Ord, V> {
    shared: Arc<Shared<S, K, V>>,
    slice: S,
}

impl<S: Ord + Clone, K: Ord + Clone, V: PartialEq> SliceWriter<S, K, V> {
    /// Replaces the whole slice in one step; equal values keep their identity. Returns whether
    /// anything changed.
    pub fn replace(&self, all: BTreeMap<K, Arc<V>>) -> bool {
        let mut state = self.shared.lock();
        let held = state.slices.entry(self.slice.clone()).or_default();
        let mut next = BTreeMap::new();
        let mut changed = held.len() != all.len();
        for (key, value) in all {
            match held.get(&key) {
                Some(old) if **old == *value => next.insert(key, old.clone()),
                _ => {
                    changed = true;
                    next.insert(key, value)
                }
            };
        }
        *held = next;
        drop(state);
        if changed {
            self.shared.bump();
        }
        changed
    }

    /// Applies changes in one step: `None` removes.
    pub fn apply(&self, changes: impl IntoIterator<Item = (K, Option<Arc<V>>)>) {
        let mut state = self.shared.lock();
        let held = state.slices.entry(self.slice.clone()).or_default();
        let mut changed = false;
        for (key, value) in changes {
            changed |= match value {
                Some(value) => held.insert(key, value.clone()).is_none_or(|old| *old != *value),
                None => held.remove(&key).is_some(),
            };
        }
        drop(state);
        if changed {
            self.shared.bump();
        }
    }

    /// How many entries the slice has.
    pub fn len(&self) -> usize {
        self.shared.lock().slices.get(&self.slice).map_or(0, BTreeMap::len)
    }

    /// Whether the slice is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<S: Ord, K: Ord, V> Drop for SliceWriter<S, K, V> {
    fn drop(&mut self) {
        self.shared.lock().writers.remove(&self.slice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_has_one_writer_and_keeps_its_entries_for_the_next() {
        let c: Catalogue<&str, u8, &str> = Catalogue::new();
        let w = c.writer("file").unwrap();
        assert!(c.writer("file").is_err());
        w.apply([(1, Some(Arc::new("a")))]);
        drop(w);
        assert!(c.writer("file").is_ok());
        assert_eq!(c.snapshot(), [Arc::new("a")]);
    }

    #[test]
    fn readers_are_woken_only_by_real_changes() {
        let c: Catalogue<&str, u8, &str> = Catalogue::new();
        let w = c.writer("file").unwrap();
        let changed = c.changed();
        assert!(w.replace([(1, Arc::new("a"))].into()));
        let first = *changed.borrow();
        assert!(!w.replace([(1, Arc::new("a"))].into()));
        w.apply([(1, Some(Arc::new("a")))]);
        w.apply([(2, None)]);
        assert_eq!(*changed.borrow(), first);
        w.apply([(1, None)]);
        assert_ne!(*changed.borrow(), first);
    }
}
