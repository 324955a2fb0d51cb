//! Reading the audit from its oldest line to its newest, and saying where its chain is broken.
//!
//! Changes nothing, and needs nothing but the files: a copy elsewhere is judged alike.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::entry::{Action, Entry};
use super::log::Head;
use super::{AUDIT_BREAKS_MAX, AUDIT_READ_BYTES};
use crate::hex::hex;

const SUFFIX: &str = ".jsonl";

/// The name of the file with that number.
pub(super) fn file_name(number: u64) -> String {
    format!("{number:08}{SUFFIX}")
}

/// The numbers of the files, in ascending order. Other files are none of the audit's.
pub(super) fn files(folder: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = vec![];
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.parse::<u64>().ok());
        // Not another spelling of a number.
        numbers.extend(number.filter(|n| name.to_str() == Some(&file_name(*n))));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The file's name.
    pub(crate) file: String,
    /// From 1.
    pub(crate) line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Where and how the chain is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub(crate) enum Break {
    #[error("{at}: entry {sequence} was altered, or put there: entry {next} names another hash for it")]
    Altered { at: Place, sequence: u64, next: u64 },
    #[error("{at}: {} missing before this line: {}", if from == to { "an entry is" } else { "entries are" },
        if from == to { format!("{from}") } else { format!("{from} to {to}") })]
    Missing { at: Place, from: u64, to: u64 },
    #[error("{at}: entry {sequence} stands after entry {after}: lines were moved, or put there")]
    Moved { at: Place, sequence: u64, after: u64 },
    #[error("{at}: this line is no entry, and nothing marks it as left by half: it was altered or put there")]
    Unreadable { at: Place },
    #[error("{at}: the first entry names one before it: what was there is missing")]
    Beginning { at: Place },
    #[error("{0}: the file is missing, with all of its entries")]
    File(String),
    #[error("the last entry is {last}, but there was an entry {noted}: the end was cut off")]
    Cut { last: u64, noted: u64 },
    #[error("entry {0} is another one than was noted: it was altered, and all after it were written anew")]
    Anchor(u64),
}

/// How the last file ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Tail {
    /// With a whole line, or there is none.
    #[default]
    Whole,
    /// With an entry that lacks only its line feed.
    Unended,
    /// With a part of a line, as a crash leaves it; the agent marks it when it starts.
    Torn {
        /// How long the part is.
        bytes: u64,
    },
}

/// What became of a head that was noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnchorSeen {
    /// That entry is there as it was.
    Held,
    /// It is older than the oldest file that is kept.
    Older,
    /// It is missing, or another one.
    Broken,
}

/// What a walk found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Report {
    /// The files' numbers.
    pub(crate) files: Vec<u64>,
    /// How many entries can be read.
    pub(crate) entries: u64,
    /// The first entry that is there; more than 1 when older files were removed.
    pub(crate) first: Option<u64>,
    /// The last line, and the last entry's number.
    pub(crate) head: Head,
    /// Where the chain is broken, at most [`AUDIT_BREAKS_MAX`].
    pub(crate) breaks: Vec<Break>,
    /// Lines left by half, each marked by the entry after it.
    pub(crate) torn: Vec<Place>,
    /// The end of the last file.
    pub(crate) tail: Tail,
    /// What became of the head that was given.
    pub(crate) anchor: Option<AnchorSeen>,
}

/// Reads all lines, hands out what can be read, and checks the chain and a head that was noted earlier.
///
/// # Errors
/// Of the disk, or because a file is larger than the agent ever writes one.
pub(crate) fn walk(folder: &Path, anchor: Option<Head>, visit: &mut dyn FnMut(&Entry)) -> io::Result<Report> {
    let report = Report { files: files(folder)?, ..Report::default() };
    let mut walker = Walker { report, anchor, before: None, odd: None };
    let mut expected = None;
    for number in walker.report.files.clone() {
        for missing in expected.map_or(number..number, |from| from..number).take(AUDIT_BREAKS_MAX) {
            walker.found(Break::File(file_name(missing)));
        }
        expected = Some(number.saturating_add(1));
        let bytes = read(&folder.join(file_name(number)))?;
        walker.file(&file_name(number), &bytes, visit);
    }
    Ok(walker.end())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = vec![];
    File::open(path)?.take(AUDIT_READ_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > AUDIT_READ_BYTES {
        let text = format!("{} is larger than a file of the audit can be; move it away", path.display());
        return Err(io::Error::other(text));
    }
    Ok(bytes)
}

/// A walk under way.
struct Walker {
    report: Report,
    anchor: Option<Head>,
    /// The last entry that could be read, and where.
    before: Option<(u64, Place)>,
    /// A line that is no entry, and whether it ended.
    odd: Option<(Place, bool, u64)>,
}

impl Walker {
    fn found(&mut self, found: Break) {
        if self.report.breaks.len() < AUDIT_BREAKS_MAX {
            self.report.breaks.push(found);
        }
    }

    fn file(&mut self, name: &str, bytes: &[u8], visit: &mut dyn FnMut(&Entry)) {
        self.report.tail = Tail::Whole;
        for (i, whole) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
            let at = Place { file: name.to_owned(), line: i as u64 + 1 };
            let line = whole.strip_suffix(b"\n").unwrap_or(whole);
            let ended = line.len() < whole.len();
            let hash: [u8; 32] = Sha256::digest(line).into();
            match serde_json::from_slice::<Entry>(line) {
                Ok(entry) => {
                    self.entry(&entry, hash, at);
                    self.report.tail = if ended { Tail::Whole } else { Tail::Unended };
                    visit(&entry);
                }
                Err(_) => {
                    if let Some((at, ..)) = self.odd.take() {
                        self.found(Break::Unreadable { at });
                    }
                    self.odd = Some((at, ended, line.len() as u64));
                }
            }
            self.report.head.hash = hash;
        }
    }

    fn entry(&mut self, entry: &Entry, hash: [u8; 32], at: Place) {
        let follows = entry.previous == hex(&self.report.head.hash);
        let sequence = entry.sequence;
        if let Some((odd, ..)) = self.odd.take() {
            match follows && entry.action == Action::LineTorn.word() {
                true => self.report.torn.push(odd),
                false => self.found(Break::Unreadable { at: odd }),
            }
        } else {
            match self.before.take() {
                // What an older file said is gone with it.
                None if sequence == 1 && !follows => self.found(Break::Beginning { at: at.clone() }),
                None => {}
                Some((before, place)) if Some(sequence) == before.checked_add(1) && !follows => {
                    let (at, next) = (place, sequence);
                    self.found(Break::Altered { at, sequence: before, next });
                }
                Some((before, _)) if Some(sequence) == before.checked_add(1) => {}
                Some((before, _)) if sequence > before => {
                    let (at, from, to) = (at.clone(), before + 1, sequence - 1);
                    self.found(Break::Missing { at, from, to });
                }
                Some((before, _)) => {
                    self.found(Break::Moved { at: at.clone(), sequence, after: before });
                }
            }
        }
        if let Some(noted) = self.anchor.filter(|noted| noted.sequence == sequence) {
            let seen = if noted.hash == hash { AnchorSeen::Held } else { AnchorSeen::Broken };
            self.report.anchor = Some(seen);
            if seen == AnchorSeen::Broken {
                self.found(Break::Anchor(sequence));
            }
        }
        self.report.entries += 1;
        self.report.first.get_or_insert(sequence);
        self.report.head.sequence = sequence;
        self.before = Some((sequence, at));
    }

    fn end(mut self) -> Report {
        if let Some((at, ended, bytes)) = self.odd.take() {
            // A crash leaves a part of a line at the very end; one that ended was written by somebody.
            let last = self.report.files.last().map(|n| file_name(*n));
            match !ended && last.as_ref() == Some(&at.file) {
                true => self.report.tail = Tail::Torn { bytes },
                false => self.found(Break::Unreadable { at }),
            }
        }
        if let Some(noted) = self.anchor.filter(|_| self.report.anchor.is_none()) {
            let last = self.report.head.sequence;
            let older = self.report.first.is_some_and(|first| noted.sequence < first);
            self.report.anchor = Some(if older { AnchorSeen::Older } else { AnchorSeen::Broken });
            if noted.sequence > last {
                self.found(Break::Cut { last, noted: noted.sequence });
            }
        }
        self.report
    }
}
