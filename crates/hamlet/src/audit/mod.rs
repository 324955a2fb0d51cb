//! The audit's files: who changed whom we trust, what was configured, and when.
//!
//! Lines of JSON in numbered files of one folder. Each [`Entry`] names the SHA-256 of the line before it,
//! across files too, so that a changed, removed or moved line is found ([`walk`]). What a chain alone
//! can't show is that its end is missing, or that somebody who may write the files wrote all of it anew:
//! for that a [`Head`] is to be kept elsewhere. No tokio, no agent: the agent's side is
//! `crate::agent::audit`. Invariant: nothing secret has a field here; a [`Subject`] has room for names,
//! fingerprints, numbers and fixed words only.

mod entry;
mod known;
mod log;
mod walk;

use std::path::{Path, PathBuf};

pub(crate) use entry::{Action, Actor, Draft, Entry, Outcome, parse_time, time_text};
pub(crate) use known::{Known, RootsKnown};
pub(crate) use log::{AuditLog, Bounds, Head};
pub(crate) use walk::{AnchorSeen, Report, Tail, walk};

/// Size beyond which the audit goes on in a new file, in bytes.
pub(crate) const AUDIT_FILE_BYTES: u64 = 2 * 1024 * 1024;
/// Most files that are kept of the audit; the oldest goes when a new one begins.
pub(crate) const AUDIT_FILES_MAX: usize = 16;
/// Largest file that is read as one of the audit, in bytes; a larger one was written by somebody else.
pub(crate) const AUDIT_READ_BYTES: u64 = 8 * 1024 * 1024;
/// Longest text in an entry of the audit, in bytes.
pub(crate) const AUDIT_TEXT_BYTES: usize = 256;
/// Most items of one list in an entry of the audit; the entry says how many more there were.
pub(crate) const AUDIT_LIST_MAX: usize = 64;
/// Most places that are listed at which the audit's chain is broken.
pub(crate) const AUDIT_BREAKS_MAX: usize = 20;

/// The folder's name within the data folder.
const FOLDER: &str = "audit";

/// The audit's folder in a data folder.
pub(crate) fn folder_in(data: &Path) -> PathBuf {
    data.join(FOLDER)
}

#[cfg(test)]
mod tests;
