//! Writing the audit: opening what is there, appending, going on in a new file.
//!
//! Blocks. Invariants: a line is synced before [`AuditLog::append`] returns; what was left by half is
//! kept, ended and marked, never cut away; files have mode 0600 and their folder 0700; a file begins
//! with a whole line or is not there.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::entry::{Action, Actor, Draft};
use super::walk::{Tail, file_name, walk};
use super::{AUDIT_FILE_BYTES, AUDIT_FILES_MAX};
use crate::hex::{hex, unhex};

/// The end of a chain: a number and the hash of that entry's line. Kept elsewhere, it shows that nothing
/// up to there was taken away or written anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Head {
    /// The entry.
    pub(crate) sequence: u64,
    /// SHA-256 of its line.
    pub(crate) hash: [u8; 32],
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence, hex(&self.hash))
    }
}

impl std::str::FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Head, String> {
        let bad =
            || "a head is a number, a colon and 64 digits, as `hamlet audit verify` writes it".to_owned();
        let (sequence, hash) = text.split_once(':').ok_or_else(bad)?;
        let hash = unhex(hash).ok_or_else(bad)?;
        Ok(Head { sequence: sequence.parse().map_err(|_| bad())?, hash })
    }
}

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Size beyond which a new file begins.
    pub(crate) file_bytes: u64,
    /// Most files.
    pub(crate) files: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { file_bytes: AUDIT_FILE_BYTES, files: AUDIT_FILES_MAX }
    }
}

/// The audit, open for writing. One process at a time: whoever has the data folder's lock.
#[derive(Debug)]
pub(crate) struct AuditLog {
    folder: PathBuf,
    bounds: Bounds,
    file: File,
    number: u64,
    bytes: u64,
    head: Head,
}

impl AuditLog {
    /// Opens the audit of a folder, and makes one where there is none. A chain that is broken, or
    /// that doesn't have `remembered`, is gone on with after an entry that says so.
    ///
    /// # Errors
    /// Of the disk.
    pub(crate) fn open(
        folder: &Path,
        bounds: Bounds,
        at: Duration,
        remembered: Option<Head>,
    ) -> io::Result<AuditLog> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let report = walk(folder, remembered, &mut |_| {})?;
        let lost = remembered.map_or(0, |head| head.sequence);
        let head = Head { sequence: report.head.sequence.max(lost), ..report.head };
        let mut log = match report.files.last() {
            Some(&number) => {
                let file = OpenOptions::new().append(true).open(folder.join(file_name(number)))?;
                let bytes = file.metadata()?.len();
                AuditLog { folder: folder.to_owned(), bounds, file, number, bytes, head }
            }
            None => AuditLog::begin(folder, bounds, 1, head, at)?,
        };
        match report.tail {
            Tail::Whole => {}
            Tail::Unended => log.write(b"\n")?,
            Tail::Torn { bytes } => {
                log.write(b"\n")?;
                let mut draft = Draft::new(at, Actor::Agent, Action::LineTorn);
                draft.subject.count = Some(bytes);
                log.append(&[draft])?;
            }
        }
        if let Some(first) = report.breaks.first() {
            let mut draft = Draft::new(at, Actor::Agent, Action::ChainBroken);
            draft.subject.note = Some(first.to_string());
            draft.subject.count = Some(report.breaks.len() as u64);
            log.append(&[draft])?;
        }
        Ok(log)
    }

    /// The last entry.
    pub(crate) fn head(&self) -> Head {
        self.head
    }

    /// Makes entries durable, in order. On error none of them counts, and the log is to be opened anew.
    ///
    /// # Errors
    /// Of the disk, or because somebody else changed the file.
    pub(crate) fn append(&mut self, drafts: &[Draft]) -> io::Result<()> {
        self.look()?;
        if self.bytes >= self.bounds.file_bytes {
            let at = drafts.first().map_or(Duration::ZERO, |draft| draft.at);
            let (number, bounds) = (self.number.saturating_add(1), self.bounds);
            *self = AuditLog::begin(&self.folder, bounds, number, self.head, at)?;
        }
        let (mut lines, mut head) = (vec![], self.head);
        for draft in drafts {
            let line = line_after(head, draft)?;
            head = Head { sequence: head.sequence + 1, hash: Sha256::digest(&line).into() };
            lines.extend(line);
            lines.push(b'\n');
        }
        self.write(&lines)?;
        self.head = head;
        Ok(())
    }

    /// The file must be the one that we wrote last, and as long.
    fn look(&self) -> io::Result<()> {
        let (ours, there) = (self.file.metadata()?, fs::metadata(self.path())?);
        if (ours.dev(), ours.ino(), self.bytes) == (there.dev(), there.ino(), there.len()) {
            return Ok(());
        }
        Err(io::Error::other("somebody else changed the audit's file"))
    }

    fn path(&self) -> PathBuf {
        self.folder.join(file_name(self.number))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // What is left of it would only be a torn line.
            let _ = self.file.set_len(self.bytes);
            return Err(error);
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// A new file whose first line names the end of the one before; the oldest beyond the bound goes.
    fn begin(folder: &Path, bounds: Bounds, number: u64, head: Head, at: Duration) -> io::Result<AuditLog> {
        let line = line_after(head, &Draft::new(at, Actor::Agent, Action::FileBegun))?;
        let head = Head { sequence: head.sequence + 1, hash: Sha256::digest(&line).into() };
        let bytes = [&line[..], b"\n"].concat();
        replace(folder, &file_name(number), &bytes)?;
        let file = OpenOptions::new().append(true).open(folder.join(file_name(number)))?;
        let files = super::walk::files(folder)?;
        for old in files.iter().take(files.len().saturating_sub(bounds.files)) {
            // Tried again with the next file.
            let _ = fs::remove_file(folder.join(file_name(*old)));
        }
        Ok(AuditLog { folder: folder.to_owned(), bounds, file, number, bytes: bytes.len() as u64, head })
    }
}

/// The line of an entry that follows `head`, without its line feed.
fn line_after(head: Head, draft: &Draft) -> io::Result<Vec<u8>> {
    let entry = draft.numbered(head.sequence + 1, hex(&head.hash));
    serde_json::to_vec(&entry).map_err(io::Error::other)
}

/// Writes a file of the folder beside its place, makes it durable, and moves it there.
pub(super) fn replace(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let beside = folder.join(format!(".{name}.new"));
    // What an interrupted run left.
    let _ = fs::remove_file(&beside);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.and_then(|()| fs::rename(&beside, folder.join(name))).inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })?;
    File::open(folder)?.sync_all()
}
