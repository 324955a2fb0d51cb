//! The limits of the folder source. Constants and defaults only.

use std::time::Duration;

/// How much is read at most; more is an error, not a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FolderLimits {
    /// Largest file, in bytes.
    pub file_bytes: u64,
    /// Largest sum of all files, in bytes.
    pub total_bytes: u64,
    /// Most files.
    pub files: usize,
    /// How many levels of subfolders are read; the folder itself is level 0.
    pub depth: usize,
}

impl Default for FolderLimits {
    /// 16 MiB a file, 256 MiB in all, 50,000 files, 4 levels.
    fn default() -> FolderLimits {
        FolderLimits { file_bytes: 16 << 20, total_bytes: 256 << 20, files: 50_000, depth: 4 }
    }
}

/// How often a read starts over because a file went away under it.
pub const READ_ATTEMPTS: usize = 5;
/// How long the folder must be quiet before it is read again.
pub const QUIET: Duration = Duration::from_millis(100);
/// How long a folder that is never quiet is waited for.
pub const QUIET_AT_MOST: Duration = Duration::from_secs(1);
/// How often the folder is read without any sign of change: the safety net for file systems that
/// report none.
pub const POLL: Duration = Duration::from_secs(10);
/// A poll waits at least this many times as long as the last read took, so that a huge folder costs
/// at most a hundredth of a core.
pub const POLL_FACTOR: u32 = 100;
/// Most folders that are watched; changes in others are found by the poll.
pub const WATCHED_FOLDERS_MAX: usize = 4096;
/// Most requests to read again that wait at a time.
pub const TRIGGERS_MAX: usize = 16;
