//! Where the bytes of a store are: two files in a data folder, or a simulated disk in tests.
//!
//! Knows names, permissions and locks, never content. Invariants: a damaged file is renamed, never
//! overwritten; a new file gets its final name only after it holds a whole, synced store, so a
//! crash while it is made leaves nothing that looks damaged.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use redb::StorageBackend;
use redb::backends::FileBackend;

use crate::error::OpenError;

/// Name of the store's file in the data folder.
pub const FILE_NAME: &str = "hamlet.redb";
/// Name of the journal in the data folder: what was committed and is not yet in the store's file.
pub const JOURNAL_NAME: &str = "hamlet.journal";
/// Name of the lock file in the data folder. It holds the id of the process that has the folder.
pub const LOCK_NAME: &str = "LOCK";
/// How many damaged files are kept in a data folder; the oldest beyond it are removed.
pub const DAMAGED_FILES_KEPT: usize = 4;

const NEW_SUFFIX: &str = ".new";
const DAMAGED_MARK: &str = ".damaged-";
/// Most bytes of a lock file that are looked at.
const LOCK_READ_MAX: u64 = 32;

/// A disk with room for one store.
pub trait Disk: std::fmt::Debug + Send + Sync + 'static {
    /// Where this is, for messages to people.
    fn place(&self) -> String;
    /// Opens the store's bytes; `None` if there is no store yet.
    fn open(&self) -> io::Result<Option<Box<dyn StorageBackend>>>;
    /// Makes room for a new, empty store beside the present one. It becomes the store with
    /// [`Disk::adopt`].
    fn create(&self) -> io::Result<Box<dyn StorageBackend>>;
    /// Makes what was created the store, durably.
    fn adopt(&self) -> io::Result<()>;
    /// Moves the present store away without changing it, durably. Returns its new name.
    fn set_aside(&self) -> io::Result<String>;
    /// Opens the journal's bytes, making an empty one, durably by name, if there is none. Used at
    /// one offset by one caller at a time; its length is changed only when it is new.
    fn journal(&self) -> io::Result<Box<dyn StorageBackend>>;
    /// Moves the present journal away without changing it, durably. Returns its new name.
    fn set_journal_aside(&self) -> io::Result<String>;
}

/// A store in the files of a data folder.
#[derive(Debug)]
pub struct FolderDisk {
    folder: PathBuf,
}

impl FolderDisk {
    /// The store of `folder`, which must exist.
    pub fn new(folder: impl Into<PathBuf>) -> FolderDisk {
        FolderDisk { folder: folder.into() }
    }

    /// The path of the store's file.
    pub fn file(&self) -> PathBuf {
        self.folder.join(FILE_NAME)
    }

    /// The path of the journal.
    pub fn journal_file(&self) -> PathBuf {
        self.folder.join(JOURNAL_NAME)
    }

    fn new_file(&self) -> PathBuf {
        self.folder.join(format!("{FILE_NAME}{NEW_SUFFIX}"))
    }

    /// Makes renames and new names durable.
    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    /// Numbers of the damaged files of a name, in ascending order.
    fn damaged(&self, name: &str) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let found = entry?.file_name();
            let number = found.to_str().and_then(|n| n.strip_prefix(name)?.strip_prefix(DAMAGED_MARK));
            numbers.extend(number.and_then(|n| n.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Renames a damaged file, durably.
    fn move_away(&self, name: &str) -> io::Result<String> {
        let numbers = self.damaged(name)?;
        let number = numbers.last().map_or(Some(1), |n| n.checked_add(1)).ok_or_else(|| {
            io::Error::other("the numbers of damaged files are used up; remove some of these files")
        })?;
        let aside = damaged_name(name, number);
        std::fs::rename(self.folder.join(name), self.folder.join(&aside))?;
        self.sync_folder()?;
        for old in numbers.iter().take((numbers.len() + 1).saturating_sub(DAMAGED_FILES_KEPT)) {
            // Only tidying: a file that can't be removed is no reason not to start.
            let _ = std::fs::remove_file(self.folder.join(damaged_name(name, *old)));
        }
        Ok(aside)
    }
}

fn damaged_name(name: &str, number: u64) -> String {
    format!("{name}{DAMAGED_MARK}{number}")
}

/// redb's backend for a file. Its constructor can't fail, only its signature can.
pub(crate) fn file_backend(file: File) -> io::Result<Box<dyn StorageBackend>> {
    let backend = FileBackend::new(file).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(Box::new(backend))
}

impl Disk for FolderDisk {
    fn place(&self) -> String {
        self.folder.display().to_string()
    }

    fn open(&self) -> io::Result<Option<Box<dyn StorageBackend>>> {
        match OpenOptions::new().read(true).write(true).open(self.file()) {
            Ok(file) => {
                // The name may be seen because a process renamed it and could not sync that.
                self.sync_folder()?;
                file_backend(file).map(Some)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn create(&self) -> io::Result<Box<dyn StorageBackend>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        file_backend(options.open(self.new_file())?)
    }

    fn adopt(&self) -> io::Result<()> {
        std::fs::rename(self.new_file(), self.file())?;
        self.sync_folder()
    }

    fn set_aside(&self) -> io::Result<String> {
        self.move_away(FILE_NAME)
    }

    fn journal(&self) -> io::Result<Box<dyn StorageBackend>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        match options.open(self.journal_file()) {
            Ok(file) => file_backend(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let file = options.create_new(true).open(self.journal_file())?;
                self.sync_folder()?;
                file_backend(file)
            }
            Err(e) => Err(e),
        }
    }

    fn set_journal_aside(&self) -> io::Result<String> {
        self.move_away(JOURNAL_NAME)
    }
}

/// The lock on a data folder, held as long as this lives.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Makes the folder when it is missing (owner only) and locks it.
    pub(crate) fn take(folder: &Path) -> Result<FolderLock, OpenError> {
        let failed = |source| OpenError::system(folder.display().to_string(), source);
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let path = folder.join(LOCK_NAME);
        let mut options = OpenOptions::new();
        // Not truncated here: until we have the lock, the content is another process's.
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = file.map_err(|e| OpenError::system(path.display().to_string(), e))?;
        lock(&mut file, folder)?;
        let said = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        said.map_err(|e| OpenError::system(path.display().to_string(), e))?;
        Ok(FolderLock { _file: file })
    }

    /// Locks a folder that is only looked at. `None` if no agent ever had it.
    pub(crate) fn take_existing(folder: &Path) -> Result<Option<FolderLock>, OpenError> {
        let path = folder.join(LOCK_NAME);
        match File::open(&path) {
            Ok(mut file) => {
                lock(&mut file, folder)?;
                Ok(Some(FolderLock { _file: file }))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(OpenError::system(path.display().to_string(), e)),
        }
    }
}

fn lock(file: &mut File, folder: &Path) -> Result<(), OpenError> {
    let place = folder.display().to_string();
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::Error(source)) => Err(OpenError::system(place, source)),
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // The holder's id is a courtesy; without it the message is still right.
            let _ = file.take(LOCK_READ_MAX).read_to_string(&mut text);
            Err(OpenError::Locked { place, holder: text.trim().parse().ok() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_damaged_files_are_kept_and_numbers_never_come_again() {
        let folder = tempfile::tempdir().unwrap();
        let disk = FolderDisk::new(folder.path());
        let last = DAMAGED_FILES_KEPT as u64 + 3;
        for round in 1..=last {
            std::fs::write(disk.file(), round.to_string()).unwrap();
            std::fs::write(disk.journal_file(), round.to_string()).unwrap();
            assert_eq!(disk.set_aside().unwrap(), damaged_name(FILE_NAME, round));
            assert_eq!(disk.set_journal_aside().unwrap(), damaged_name(JOURNAL_NAME, round));
        }
        for name in [FILE_NAME, JOURNAL_NAME] {
            assert_eq!(disk.damaged(name).unwrap(), (4..=last).collect::<Vec<_>>());
            let newest = std::fs::read_to_string(folder.path().join(damaged_name(name, last))).unwrap();
            assert_eq!(newest, last.to_string());
        }
    }
}
