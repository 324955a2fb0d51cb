//! What is true in the simulated world, independently of the code under test: who offers what to
//! whom, in which revisions, and what was ever true before.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// A mesh by its number.
pub(crate) type MeshId = usize;
/// A service by its name.
pub(crate) type Key = Arc<str>;

/// One service as its owner means it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meant {
    /// Grows with every change that a consumer's readers can see; never used twice.
    pub(crate) revision: u64,
    /// `Any.value`.
    pub(crate) value: Bytes,
    /// Whether its name lies outside what consumers usually accept.
    pub(crate) alien: bool,
}

/// A number for a set of (key, value) pairs: equal sets have equal numbers. Not for adversaries,
/// who don't know that it exists.
pub(crate) fn mark(key: &str, value: &[u8]) -> u128 {
    let half = |salt: u64| {
        let mut hasher = DefaultHasher::new();
        (salt, key, value).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(1) << 64 | half(2)
}

/// The number of a whole set.
pub(crate) fn set_mark<'a>(entries: impl Iterator<Item = (&'a Key, &'a Bytes)>) -> u128 {
    entries.fold(0, |sum, (key, value)| sum.wrapping_add(mark(key, value)))
}

/// What one owner offers to one consumer, now and before.
#[derive(Debug, Default)]
pub(crate) struct Offered {
    now: BTreeMap<Key, Meant>,
    mark: u128,
    /// For each key, when it came to be which revision; `None` is absence.
    history: BTreeMap<Key, Vec<(Duration, Option<Meant>)>>,
}

impl Offered {
    /// From now on exactly this is offered. Returns the keys that changed.
    pub(crate) fn set(&mut self, wanted: BTreeMap<Key, Meant>, at: Duration) -> Vec<Key> {
        let mut changed = vec![];
        for (key, meant) in &wanted {
            if self.now.get(key) != Some(meant) {
                self.history.entry(key.clone()).or_default().push((at, Some(meant.clone())));
                changed.push(key.clone());
            }
        }
        for key in self.now.keys().filter(|k| !wanted.contains_key(*k)) {
            self.history.entry(key.clone()).or_default().push((at, None));
            changed.push(key.clone());
        }
        self.mark = set_mark(wanted.iter().map(|(k, m)| (k, &m.value)));
        self.now = wanted;
        changed
    }

    /// What is offered now.
    pub(crate) fn now(&self) -> &BTreeMap<Key, Meant> {
        &self.now
    }

    /// How many keys were ever offered.
    pub(crate) fn ever_offered(&self) -> usize {
        self.history.len()
    }

    /// The number of what is offered now.
    pub(crate) fn mark(&self) -> u128 {
        self.mark
    }

    /// The revision that a value is of.
    pub(crate) fn revision_of(&self, key: &str, value: &[u8]) -> Option<u64> {
        let history = self.history.get(key)?;
        let met = history.iter().rev().filter_map(|(_, m)| m.as_ref());
        met.into_iter().find(|m| m.value == value).map(|m| m.revision)
    }

    /// Whether the consumer was ever offered this revision.
    pub(crate) fn ever(&self, key: &str, revision: u64) -> bool {
        let history = self.history.get(key).into_iter().flatten();
        history.into_iter().any(|(_, m)| m.as_ref().is_some_and(|m| m.revision == revision))
    }

    /// Whether the key was not offered at some time from `since` on.
    pub(crate) fn withdrawn_since(&self, key: &str, since: Duration) -> bool {
        let Some(history) = self.history.get(key) else { return true };
        let ends = history.iter().skip(1).map(|(at, _)| *at).chain([Duration::MAX]);
        history.iter().zip(ends).any(|((_, meant), end)| meant.is_none() && end >= since)
    }

    /// When a revision was first offered.
    pub(crate) fn first_at(&self, key: &str, revision: u64) -> Option<Duration> {
        let mut history = self.history.get(key)?.iter();
        history.find(|(_, m)| m.as_ref().is_some_and(|m| m.revision == revision)).map(|(at, _)| *at)
    }

    /// Since when every revision of the key was one with an alien name.
    pub(crate) fn alien_since(&self, key: &str) -> Option<Duration> {
        let history = self.history.get(key)?;
        let alien = |m: &Option<Meant>| m.as_ref().is_some_and(|m| m.alien);
        history.iter().rev().take_while(|(_, m)| alien(m)).last().map(|(at, _)| *at)
    }

    /// Whether a revision of a key has an alien name.
    pub(crate) fn alien_of(&self, key: &str, revision: u64) -> bool {
        let history = self.history.get(key).into_iter().flatten();
        history.into_iter().any(|(_, m)| m.as_ref().is_some_and(|m| m.revision == revision && m.alien))
    }
}
