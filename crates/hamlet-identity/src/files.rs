//! Reading and writing PEM files: bounded, private keys kept private, writes whole or not at all.
//!
//! Knows nothing of what is in them.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Largest PEM file we read, in bytes.
pub const PEM_BYTES_MAX: usize = 1024 * 1024;

/// Why a PEM file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum FileError {
    #[error("can't read {}: {error}; check the path and its permissions", .path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{} has more than {PEM_BYTES_MAX} bytes; this is not a PEM file of ours", .path.display())]
    TooLarge { path: PathBuf },
    #[error(
        "{} can be read by others (mode {mode:03o}); a private key belongs to its owner alone: run \
         `chmod 600 {}`", .path.display(), .path.display()
    )]
    KeyTooOpen { path: PathBuf, mode: u32 },
    #[error("can't write {}: {error}; check free space and permissions of the folder", .path.display())]
    Write { path: PathBuf, error: std::io::Error },
    #[error("{} exists already and is never overwritten; move it away, or use another folder", .path.display())]
    Exists { path: PathBuf },
}

/// Reads a file of public content.
pub(crate) fn read_public(path: &Path) -> Result<Vec<u8>, FileError> {
    let mut file = open(path)?;
    read_bounded(path, &mut file)
}

/// Reads a private key; refuses one that its group or others can read. The mode is that of the
/// opened file, so it can't be swapped in between.
pub(crate) fn read_key(path: &Path) -> Result<Vec<u8>, FileError> {
    let mut file = open(path)?;
    let failed = |error| FileError::Read { path: path.to_owned(), error };
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(FileError::KeyTooOpen { path: path.to_owned(), mode });
    }
    read_bounded(path, &mut file)
}

fn open(path: &Path) -> Result<File, FileError> {
    let failed = |error| FileError::Read { path: path.to_owned(), error };
    // Opening a pipe would block us for ever.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(std::io::Error::other("it is not a regular file")));
    }
    File::open(path).map_err(failed)
}

fn read_bounded(path: &Path, file: &mut File) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    let failed = |error| FileError::Read { path: path.to_owned(), error };
    file.take(PEM_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > PEM_BYTES_MAX {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Makes a folder (and its parents) that only the owner can enter. An existing one is left as is.
pub(crate) fn private_folder(path: &Path) -> Result<(), FileError> {
    if path.is_dir() {
        return Ok(());
    }
    let failed = |error| FileError::Write { path: path.to_owned(), error };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)
}

/// Fails if there is anything at `path`.
pub(crate) fn refuse_existing(path: &Path) -> Result<(), FileError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err(FileError::Exists { path: path.to_owned() }),
        Err(_) => Ok(()),
    }
}

/// Writes a new file. Never overwrites.
pub(crate) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    refuse_existing(path)?;
    replace(path, bytes, mode)
}

/// Writes a file beside its place, makes it durable and renames it into its place: a reader sees
/// the old one or the new one, whole.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let failed = |error| FileError::Write { path: path.to_owned(), error };
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let temporary = path.with_file_name(name);
    // A left-over of an interrupted run is of no use to anybody.
    let _ = fs::remove_file(&temporary);
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&temporary);
        failed(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_command_to_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.key");
        write_new(&path, b"secret", 0o600).unwrap();
        assert_eq!(read_key(&path).unwrap(), b"secret");
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let text = read_key(&path).unwrap_err().to_string();
            assert!(text.contains("chmod 600") && text.contains("agent.key"), "{text}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(read_key(&path).is_ok());
    }

    #[test]
    fn a_file_is_written_once_with_its_mode_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        private_folder(&folder).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        let path = folder.join("x.pem");
        write_new(&path, b"one", 0o644).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert!(matches!(write_new(&path, b"two", 0o644), Err(FileError::Exists { .. })));
        assert_eq!(read_public(&path).unwrap(), b"one");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_a_small_regular_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read_public(dir.path()), Err(FileError::Read { .. })));
        let path = dir.path().join("large");
        write_new(&path, &vec![0; PEM_BYTES_MAX + 1], 0o600).unwrap();
        assert!(matches!(read_public(&path), Err(FileError::TooLarge { .. })));
    }
}
