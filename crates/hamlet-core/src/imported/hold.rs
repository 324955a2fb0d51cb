//! What readers see when the hold time has ended: nothing but what the owner has said again since.
//!
//! It counts no time; the committer says when. Invariant: what is acknowledged is shown, and nothing
//! else is, until a proof shows all.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{ImportedSlice, SliceChanges, Staged};
use crate::judge::Judge;

impl<J: Judge> ImportedSlice<J> {
    /// Hides from readers what is in force when the hold time ends, also what was said since it
    /// ended before, or shows all of it when the peer is back. What was heard stays, so an equal root
    /// restores everything without a transfer.
    pub fn set_expired(&mut self, expired: bool) -> SliceChanges<J::Value> {
        let next = expired.then(BTreeSet::new);
        if self.expired == next {
            return vec![];
        }
        let before = std::mem::replace(&mut self.expired, next);
        // Shown before, or else to be shown now.
        let concerned = |k: &Arc<str>| before.as_ref().is_none_or(|said| said.contains(k) == expired);
        let serving = self.entries.iter().filter(|(k, _)| concerned(k));
        let serving = serving.filter_map(|(k, e)| Some((k.clone(), e.in_force.clone()?)));
        serving.map(|(k, f)| (k, (!expired).then_some(f.service))).collect()
    }

    /// Whether readers don't see a key although it is in force: the hold time has ended, and the owner
    /// has not said it again.
    pub(super) fn is_hidden(&self, key: &str) -> bool {
        self.expired.as_ref().is_some_and(|said| !said.contains(key))
    }

    /// What the owner says now is acknowledged, so readers see it now, whatever became of the rest.
    /// Returns whether that is new.
    pub(super) fn reveal(&mut self, staged: &Staged<J::Value>) -> bool {
        let Some(said) = &mut self.expired else { return false };
        match staged.said && staged.answer.is_ok() {
            true => said.insert(staged.key.clone()),
            false => {
                if staged.changed && staged.next.as_ref().is_none_or(|e| e.in_force.is_none()) {
                    said.remove(&staged.key);
                }
                false
            }
        }
    }

    /// How many services readers see.
    pub fn shown(&self) -> u64 {
        let in_force = |k: &Arc<str>| self.entries.get(k).is_some_and(|e| e.in_force.is_some());
        match &self.expired {
            None => self.counts.in_force,
            Some(said) => said.iter().filter(|k| in_force(k)).count() as u64,
        }
    }

    /// Whether the hold time has ended without the peer, and no proof came since.
    pub fn is_expired(&self) -> bool {
        self.expired.is_some()
    }
}
