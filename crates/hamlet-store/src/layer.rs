//! Changes that are durable in the journal but not yet in the database, merged by key.
//!
//! It knows tables and ranges, not records or disks. Invariant: reading a layer first and the
//! database below it second gives what the changes, made one after the other, would have left in
//! the database.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use redb::ReadableTable;

use crate::queue::Write;
use crate::tables::{Table, Tables};

/// What a key holds; `None` when it was removed.
type Change = Option<Vec<u8>>;

/// A range of keys: the first one, and the first one after it.
type Range = (Vec<u8>, Vec<u8>);

/// Changes on top of the database. Its size is bounded by that of the journal's segment.
#[derive(Debug, Default)]
pub(crate) struct Layer {
    /// Ranges that were removed before `changes` were made.
    cleared: BTreeMap<Table, BTreeSet<Range>>,
    changes: BTreeMap<Table, BTreeMap<Vec<u8>, Change>>,
}

impl Layer {
    /// Makes one more change.
    pub(crate) fn apply(&mut self, write: Write) {
        match write {
            Write::Put { table, key, value } => {
                self.changes.entry(table).or_default().insert(key, Some(value));
            }
            Write::Remove { table, key } => {
                self.changes.entry(table).or_default().insert(key, None);
            }
            Write::RemoveRange { table, from, to } => {
                let changes = self.changes.entry(table).or_default();
                let range = (Bound::Included(&from[..]), Bound::Excluded(&to[..]));
                let inside = if from < to { changes.range::<[u8], _>(range) } else { Default::default() };
                let inside: Vec<_> = inside.map(|(key, _)| key.clone()).collect();
                for key in inside {
                    changes.remove(&key);
                }
                self.cleared.entry(table).or_default().insert((from, to));
            }
        }
    }

    /// What is known here of a key: `None` if nothing, so that the database decides.
    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Option<Option<&[u8]>> {
        if let Some(change) = self.changes.get(&table).and_then(|changes| changes.get(key)) {
            return Some(change.as_deref());
        }
        let mut cleared = self.cleared.get(&table).into_iter().flatten();
        cleared.any(|(from, to)| from[..] <= *key && *key < to[..]).then_some(None)
    }

    /// The values of a table that are here.
    pub(crate) fn values(&self, table: Table) -> impl Iterator<Item = (&[u8], &[u8])> {
        let changes = self.changes.get(&table).into_iter().flatten();
        changes.filter_map(|(key, change)| Some((&key[..], change.as_deref()?)))
    }

    /// Number of changes.
    pub(crate) fn len(&self) -> usize {
        let cleared: usize = self.cleared.values().map(BTreeSet::len).sum();
        self.changes.values().map(BTreeMap::len).sum::<usize>() + cleared
    }

    /// Makes all changes in a transaction.
    pub(crate) fn write_to(&self, tables: &mut Tables<'_>) -> Result<(), redb::Error> {
        for (table, ranges) in &self.cleared {
            let open = tables.get(*table)?;
            for (from, to) in ranges.iter().filter(|(from, to)| from < to) {
                let mut keys = Vec::new();
                for entry in open.range::<&[u8]>(&from[..]..&to[..])? {
                    keys.push(entry?.0.value().to_vec());
                }
                for key in keys {
                    open.remove(&key[..])?;
                }
            }
        }
        for (table, changes) in &self.changes {
            let open = tables.get(*table)?;
            for (key, change) in changes {
                match change {
                    Some(value) => drop(open.insert(&key[..], &value[..])?),
                    None => drop(open.remove(&key[..])?),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(0u8..4, 1..3)
    }

    fn write() -> impl Strategy<Value = Write> {
        let table = Table::Imports;
        prop_oneof![
            3 => (key(), any::<u8>()).prop_map(move |(key, v)| Write::Put { table, key, value: vec![v] }),
            1 => key().prop_map(move |key| Write::Remove { table, key }),
            1 => (key(), key()).prop_map(move |(from, to)| Write::RemoveRange { table, from, to }),
        ]
    }

    fn make(map: &mut BTreeMap<Vec<u8>, Vec<u8>>, write: &Write) {
        match write {
            Write::Put { key, value, .. } => drop(map.insert(key.clone(), value.clone())),
            Write::Remove { key, .. } => drop(map.remove(key)),
            Write::RemoveRange { from, to, .. } => map.retain(|key, _| key < from || key >= to),
        }
    }

    proptest! {
        #[test]
        fn a_layer_over_a_table_reads_like_the_table_with_the_changes_made(
            below in proptest::collection::btree_map(key(), proptest::collection::vec(any::<u8>(), 1), 0..8),
            writes in proptest::collection::vec(write(), 0..20),
        ) {
            let mut expected = below.clone();
            let mut layer = Layer::default();
            for write in writes {
                make(&mut expected, &write);
                layer.apply(write);
            }
            for first in 0..4 {
                for key in std::iter::once(vec![first]).chain((0..4).map(|second| vec![first, second])) {
                    let read = match layer.get(Table::Imports, &key) {
                        Some(known) => known.map(<[u8]>::to_vec),
                        None => below.get(&key).cloned(),
                    };
                    prop_assert_eq!(read.as_ref(), expected.get(&key));
                }
            }
            let hidden = |key: &Vec<u8>| layer.get(Table::Imports, key).is_some();
            let mut merged: BTreeMap<_, _> = below.into_iter().filter(|(key, _)| !hidden(key)).collect();
            merged.extend(layer.values(Table::Imports).map(|(key, value)| (key.to_vec(), value.to_vec())));
            prop_assert_eq!(merged, expected);
        }
    }
}
