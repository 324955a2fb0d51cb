//! What was found damaged when the store was opened, in words for a log line and the status.
//!
//! Not an error: the store works, the peers will send again what is missing. Bounded: at most
//! [`DAMAGED_LISTED_MAX`] values are listed, the rest is counted.

use std::fmt;

use hamlet_core::rejection::one_line;

use crate::frame::Flaw;
use crate::tables::{Table, split_import_key};

/// Most damaged values that a report lists one by one.
pub const DAMAGED_LISTED_MAX: usize = 64;
/// Longest text of one name in a report, in bytes.
const NAME_SHOWN_MAX: usize = 128;

/// A file that was found damaged and moved away, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Its new name in the data folder.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// One value that was left out because it is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedValue {
    /// The table it was in: `imports`, `peers` or `documents`.
    pub table: &'static str,
    /// The peer it belonged to, if it belonged to one. Safe to show.
    pub peer: Option<String>,
    /// Wire key of the record or name of the document; empty for a peer's state. Safe to show.
    pub key: String,
    /// What is wrong with it.
    pub flaw: String,
}

/// All that was found damaged. What it names is missing from what was loaded and is to be
/// resynchronised; everything else is as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DamageReport {
    /// The whole file was damaged and set aside; the store started empty.
    pub file: Option<SetAside>,
    /// The journal was damaged and set aside; what was committed last, before the start, is missing.
    pub journal: Option<SetAside>,
    /// Single damaged values, at most [`DAMAGED_LISTED_MAX`]. They were moved to a table aside.
    pub values: Vec<DamagedValue>,
    /// How many single values were damaged.
    pub values_total: u64,
}

impl DamagedValue {
    pub(crate) fn new(table: Table, key: &[u8], flaw: Flaw) -> DamagedValue {
        let shown = |bytes: &[u8]| one_line(&String::from_utf8_lossy(bytes), NAME_SHOWN_MAX);
        let (peer, key) = match table {
            Table::Imports => match split_import_key(key) {
                Some((peer, key)) => (Some(shown(peer)), shown(key)),
                None => (None, shown(key)),
            },
            Table::Peers => (Some(shown(key)), String::new()),
            _ => (None, shown(key)),
        };
        DamagedValue { table: table.name(), peer, key, flaw: flaw.to_string() }
    }
}

impl DamageReport {
    /// A report about single values, or none if there are none.
    pub(crate) fn of_values(damaged: &[(Table, Vec<u8>, Flaw)]) -> Option<DamageReport> {
        let listed = damaged.iter().take(DAMAGED_LISTED_MAX);
        let values: Vec<_> = listed.map(|(table, key, flaw)| DamagedValue::new(*table, key, *flaw)).collect();
        let report = DamageReport { values, values_total: damaged.len() as u64, ..DamageReport::default() };
        (!damaged.is_empty()).then_some(report)
    }
}

impl fmt::Display for DamagedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.peer {
            Some(peer) if self.key.is_empty() => write!(f, "state of peer {peer}")?,
            Some(peer) => write!(f, "record {} of peer {peer}", self.key)?,
            None => write!(f, "{} {}", self.table, self.key)?,
        }
        write!(f, " ({})", self.flaw)
    }
}

impl fmt::Display for DamageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(
                f,
                "the store was damaged ({}) and was set aside as {}; it starts empty and peers send all again",
                file.reason, file.name
            )?;
        }
        if let Some(journal) = &self.journal {
            write!(
                f,
                "the store's journal was damaged ({}) and was set aside as {}; what was committed last is \
                 missing and peers send it again",
                journal.reason, journal.name
            )?;
        }
        if self.values_total > 0 {
            let gap = if self.file.is_some() || self.journal.is_some() { "; " } else { "" };
            write!(f, "{gap}{} damaged values were left out", self.values_total)?;
            for (place, value) in self.values.iter().take(3).enumerate() {
                write!(f, "{} {value}", if place == 0 { ":" } else { "," })?;
            }
            f.write_str(if self.values_total > 3 { ", ...; " } else { "; " })?;
            f.write_str("peers send their records again")?;
        }
        Ok(())
    }
}
