//! Why a store can't be opened or read: one enum per operation, one variant per reaction.
//!
//! Failed commits are `hamlet_core::durable::CommitError`; damage is not an error
//! ([`crate::DamageReport`]).

use std::io;

/// Why the store can't be opened. Nothing was changed, except where a variant says so.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another agent has the data folder.
    #[error(
        "the data folder {place} is in use by another agent{}: stop that one, or give this agent a data \
         folder of its own",
        holder.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Locked {
        /// The data folder.
        place: String,
        /// The process that has it, if it said so.
        holder: Option<u32>,
    },
    /// A newer version of the program wrote the store.
    #[error(
        "the store in {place} was written by a newer version (schema {found}, this one knows up to {known}): \
         run that version, or choose an empty data folder; nothing was changed"
    )]
    SchemaTooNew {
        /// Where the store is.
        place: String,
        /// The schema version found.
        found: u32,
        /// The newest schema version that we know.
        known: u32,
    },
    /// The folder or a file in it can't be used by this user.
    #[error("no permission for {place}: {source}; make it owned and writable by the agent's user")]
    Denied {
        /// Folder or file.
        place: String,
        /// What the system said.
        source: io::Error,
    },
    /// The disk refused: full, failing, read-only, not a folder.
    #[error("{place} can't be read or written: {source}; check the disk, its free space and the path")]
    Io {
        /// Folder or file.
        place: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file is damaged and could not be set aside.
    #[error(
        "the store in {place} is damaged ({reason}) and can't be set aside: {source}; move its file away by hand"
    )]
    SetAside {
        /// Where the store is.
        place: String,
        /// What is wrong with the file.
        reason: String,
        /// Why it can't be moved.
        source: io::Error,
    },
    /// A store that was just made can't be used.
    #[error("a new store in {place} doesn't work: {reason}; check the disk and the file system")]
    Fresh {
        /// Where the store is.
        place: String,
        /// What went wrong.
        reason: String,
    },
    /// The writer thread can't be started.
    #[error("the store's writer thread can't be started: {0}; raise the limit of threads")]
    Thread(io::Error),
}

impl OpenError {
    /// Sorts an error of the system by what is to be done about it.
    pub(crate) fn system(place: impl Into<String>, source: io::Error) -> OpenError {
        let place = place.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => OpenError::Denied { place, source },
            _ => OpenError::Io { place, source },
        }
    }
}

/// Why a document can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Its value is damaged; write it anew.
    #[error("the stored document {name:?} is damaged: {flaw}; it must be written anew")]
    Damaged {
        /// Its name.
        name: String,
        /// What is wrong with it.
        flaw: String,
    },
    /// The store can't be read now.
    #[error("the store can't be read: {message}; check the disk of the data folder")]
    Unavailable {
        /// What the store said.
        message: String,
    },
}
