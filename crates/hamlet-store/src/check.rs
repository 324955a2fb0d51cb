//! An integrity report of a data folder that changes nothing: every page, every value, and the
//! journal.
//!
//! Not a repair: opening the store does that. The files are opened for reading only.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use hamlet_core::name::PeerName;
use hamlet_runtime::SystemClock;

use crate::damage::DamageReport;
use crate::disk::{FILE_NAME, FolderLock, JOURNAL_NAME, file_backend};
use crate::error::OpenError;
use crate::health::Meter;
use crate::opening::{Judged, Sound, discard, judge};
use crate::store::CACHE_BYTES;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckReport {
    /// The file that was looked at.
    pub file: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its state.
    pub state: CheckState,
}

/// The state of a store's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckState {
    /// There is none: an agent would make one.
    Missing,
    /// It can be used.
    Sound {
        /// Its schema version.
        schema: u32,
        /// Number of records, by peer, with the journal's changes.
        records: BTreeMap<PeerName, usize>,
        /// Number of documents.
        documents: u64,
        /// Changed keys that are in the journal only: the agent was not stopped in order, and the
        /// next one writes them down when it starts.
        journaled: usize,
        /// What is wrong with the journal, if anything is: an agent would set it aside and do
        /// without the changes that were committed last.
        journal_damage: Option<String>,
        /// Single values that are damaged; an agent would leave them out.
        damage: Option<DamageReport>,
    },
    /// A newer version of the program wrote it; this one would refuse to start.
    TooNew {
        /// Its schema version.
        found: u32,
    },
    /// It is damaged as a whole; an agent would set it aside and start empty.
    Damaged {
        /// What is wrong with it.
        reason: String,
    },
}

pub(crate) fn check(folder: &Path) -> Result<CheckReport, OpenError> {
    let path = folder.join(FILE_NAME);
    let place = path.display().to_string();
    let _lock = FolderLock::take_existing(folder)?;
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Ok(CheckReport { file: path, bytes: 0, state: CheckState::Missing });
        }
        Err(e) => return Err(OpenError::system(place, e)),
    };
    let bytes = file.metadata().map_err(|e| OpenError::system(&place, e))?.len();
    let backend = file_backend(file).map_err(|e| OpenError::system(&place, e))?;
    let journal = || match File::open(folder.join(JOURNAL_NAME)) {
        Ok(file) => file_backend(file).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    };
    let meter = Meter::new(SystemClock::shared());
    let state = match judge(backend, &journal, &place, meter, CACHE_BYTES, false)? {
        Judged::TooNew { found } => CheckState::TooNew { found },
        Judged::Damaged { reason } => CheckState::Damaged { reason },
        Judged::Sound(sound) => {
            let Sound { database, schema, replayed, loaded, .. } = *sound;
            discard(database);
            let damage = loaded.report();
            CheckState::Sound {
                schema,
                records: loaded.peers.into_iter().map(|(name, peer)| (name, peer.records.len())).collect(),
                documents: loaded.documents,
                journaled: replayed.layer.len(),
                journal_damage: replayed.damage,
                damage,
            }
        }
    };
    Ok(CheckReport { file: path, bytes, state })
}
