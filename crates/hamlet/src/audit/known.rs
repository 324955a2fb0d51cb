//! What the audit said last of roots: what the next look is compared with, also after a restart.
//!
//! One small file beside the audit's own, replaced whole. It proves nothing; without it everything in
//! force is told once more as new.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::log::replace;

/// The file's name.
const NAME: &str = "known.json";
/// Largest file of what the audit said last of roots, in bytes.
const KNOWN_BYTES: u64 = 16 * 1024 * 1024;

/// What proves one peer, as the audit said it last.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RootsKnown {
    /// SHA-256 of the CAs in force.
    pub(crate) roots: BTreeSet<String>,
    /// When they last changed, in seconds since the epoch.
    pub(crate) at_s: u64,
    /// From where they came.
    pub(crate) source: String,
    /// SHA-256 of what came then.
    pub(crate) added: Vec<String>,
    /// SHA-256 of what went then.
    pub(crate) removed: Vec<String>,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Known {
    /// The last entry that was written, as a [`super::Head`].
    pub(crate) head: Option<String>,
    /// By peer.
    pub(crate) peers: BTreeMap<String, RootsKnown>,
    /// SHA-256 of our own CAs as we publish them; absent before that was said once.
    pub(crate) own: Option<BTreeSet<String>>,
    /// The roots of our authority, and whether each waits, issues or leaves.
    pub(crate) authority: Option<BTreeMap<String, String>>,
}

impl Known {
    /// Reads it; nothing if there is none.
    pub(crate) fn read(folder: &Path) -> io::Result<Known> {
        let file = match std::fs::File::open(folder.join(NAME)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Known::default()),
            Err(error) => return Err(error),
        };
        let mut bytes = vec![];
        file.take(KNOWN_BYTES).read_to_end(&mut bytes)?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }

    /// Replaces the file.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        replace(folder, NAME, &bytes)
    }
}
