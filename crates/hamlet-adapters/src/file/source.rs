//! Reading one file or folder whole.
//!
//! It does not watch (see [`super::watch`]) and does not parse. Invariant: the result holds every
//! YAML file there is, or it is an error that names the place and what to do.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::config::{self, FolderLimits};

/// One file as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Where it is: the path that was asked for, and below it.
    pub path: PathBuf,
    /// What it says.
    pub text: Arc<str>,
}

/// A folder as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderSnapshot {
    /// Its YAML files, sorted by path.
    pub files: Vec<SourceFile>,
    /// SHA-256 over all paths and texts: equal if and only if nothing changed.
    pub fingerprint: [u8; 32],
}

/// Why a folder could not be read. Comparable, so that an unchanged error is recognised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FolderError {
    /// The path that was asked for does not exist.
    #[error("{}: there is no such file or folder; check the path, or create it with `hamlet init`", .path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// The system refuses to read something.
    #[error("{}: can't be read: {reason}; make it readable for the user this program runs as, or move it elsewhere", .path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file is not UTF-8.
    #[error("{}:{line}: not UTF-8 text; save the file as UTF-8", .path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The line of the first wrong byte, from 1.
        line: usize,
    },
    /// Something with a YAML name is no file: a pipe, a socket, a device.
    #[error("{}: named like YAML but not a regular file; rename or remove it", .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A symbolic link to a folder. Those are not followed, and leaving them out would be silent.
    #[error("{}: a symbolic link to a folder; put the folder itself here, or link its files", .path.display())]
    LinkedFolder {
        /// The link.
        path: PathBuf,
    },
    /// A folder lies too deep.
    #[error("{}: more than {limit} folders deep; move it up, or start its name with '.' to leave it out", .path.display())]
    TooDeep {
        /// The folder.
        path: PathBuf,
        /// How many levels are read.
        limit: usize,
    },
    /// A file is too large.
    #[error("{}: larger than {limit} bytes; split it into several files", .path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// The limit, in bytes.
        limit: u64,
    },
    /// All files together are too large.
    #[error("{}: its YAML files have more than {limit} bytes together; keep other data elsewhere", .path.display())]
    FolderTooLarge {
        /// The folder.
        path: PathBuf,
        /// The limit, in bytes.
        limit: u64,
    },
    /// There are too many files.
    #[error("{}: more than {limit} YAML files; put several documents into one file, separated by ---", .path.display())]
    TooManyFiles {
        /// The folder.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// A file was listed and could not be opened, each time anew.
    #[error("{}: listed in its folder but not there: a dangling symbolic link, or files that come and go; remove it, or write files under another name and rename them", .path.display())]
    Vanished {
        /// The file.
        path: PathBuf,
    },
}

/// Reads the YAML under `path`: the file itself, whatever its name, or the folder's `*.yaml` and
/// `*.yml` and those of its subfolders. Names that start with `.` are left out, symbolic links to
/// files are followed. A file that goes away while we read makes the read start over.
///
/// Blocks: call it on the blocking pool.
pub fn read_folder(path: &Path, limits: &FolderLimits) -> Result<FolderSnapshot, FolderError> {
    survey(path, limits).0
}

/// The same, and all folders whose changes can change the result, as absolute paths.
pub(super) fn survey(
    path: &Path,
    limits: &FolderLimits,
) -> (Result<FolderSnapshot, FolderError>, BTreeSet<PathBuf>) {
    let mut result = Err(FolderError::Vanished { path: path.to_owned() });
    let mut folders = BTreeSet::new();
    for _ in 0..config::READ_ATTEMPTS {
        folders = BTreeSet::new();
        result = read_once(path, limits, &mut folders);
        if !matches!(result, Err(FolderError::Vanished { .. })) {
            break;
        }
    }
    (result, folders)
}

fn read_once(
    root: &Path,
    limits: &FolderLimits,
    folders: &mut BTreeSet<PathBuf>,
) -> Result<FolderSnapshot, FolderError> {
    if let Some(above) = std::path::absolute(root).ok().as_deref().and_then(Path::parent) {
        folders.insert(above.to_owned());
    }
    let metadata = fs::metadata(root).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => FolderError::Missing { path: root.to_owned() },
        _ => unreadable(root, &e),
    })?;
    let mut reading = Reading { root, limits, files: Vec::new(), total: 0, folders };
    if metadata.is_dir() {
        reading.folder(root, 0)?;
    } else {
        reading.file(root)?;
    }
    let mut files = reading.files;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let fingerprint = fingerprint(&files);
    Ok(FolderSnapshot { files, fingerprint })
}

struct Reading<'a> {
    root: &'a Path,
    limits: &'a FolderLimits,
    files: Vec<SourceFile>,
    total: u64,
    folders: &'a mut BTreeSet<PathBuf>,
}

impl Reading<'_> {
    fn folder(&mut self, folder: &Path, depth: usize) -> Result<(), FolderError> {
        if depth > self.limits.depth {
            return Err(FolderError::TooDeep { path: folder.to_owned(), limit: self.limits.depth });
        }
        self.folders.insert(std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned()));
        for entry in fs::read_dir(folder).map_err(|e| problem(folder, &e))? {
            let entry = entry.map_err(|e| problem(folder, &e))?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            self.entry(&entry.path(), depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, depth: usize) -> Result<(), FolderError> {
        let yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        let itself = fs::symlink_metadata(path).map_err(|e| problem(path, &e))?;
        let target = match fs::metadata(path) {
            Ok(target) => target,
            // A dangling link that isn't ours to read.
            Err(_) if itself.is_symlink() && !yaml => return Ok(()),
            Err(error) => return Err(problem(path, &error)),
        };
        match (target.is_dir(), itself.is_symlink()) {
            (true, true) => Err(FolderError::LinkedFolder { path: path.to_owned() }),
            (true, false) => self.folder(path, depth + 1),
            (false, _) if yaml => self.file(path),
            (false, _) => Ok(()),
        }
    }

    fn file(&mut self, path: &Path) -> Result<(), FolderError> {
        // Before it is opened: opening a pipe would wait for a writer.
        let metadata = fs::metadata(path).map_err(|e| problem(path, &e))?;
        if !metadata.is_file() {
            return Err(FolderError::NotAFile { path: path.to_owned() });
        }
        if self.files.len() >= self.limits.files {
            return Err(FolderError::TooManyFiles { path: self.root.to_owned(), limit: self.limits.files });
        }
        let limit = self.limits.file_bytes;
        let file = File::open(path).map_err(|e| problem(path, &e))?;
        let mut bytes = Vec::with_capacity(metadata.len().min(limit) as usize);
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| problem(path, &e))?;
        if bytes.len() as u64 > limit {
            return Err(FolderError::FileTooLarge { path: path.to_owned(), limit });
        }
        self.total += bytes.len() as u64;
        if self.total > self.limits.total_bytes {
            let limit = self.limits.total_bytes;
            return Err(FolderError::FolderTooLarge { path: self.root.to_owned(), limit });
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
            let line = valid.iter().filter(|b| **b == b'\n').count() + 1;
            FolderError::NotText { path: path.to_owned(), line }
        })?;
        self.watch_link(path);
        self.files.push(SourceFile { path: path.to_owned(), text: text.into() });
        Ok(())
    }

    /// A file behind a symbolic link changes in another folder.
    fn watch_link(&mut self, path: &Path) {
        let linked = fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink());
        let target = linked.then(|| fs::canonicalize(path).ok()).flatten();
        if let Some(folder) = target.as_deref().and_then(Path::parent) {
            self.folders.insert(folder.to_owned());
        }
    }
}

/// What is gone although it was there a moment ago is read again; the rest is final.
fn problem(path: &Path, error: &io::Error) -> FolderError {
    match error.kind() {
        io::ErrorKind::NotFound => FolderError::Vanished { path: path.to_owned() },
        _ => unreadable(path, error),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> FolderError {
    FolderError::Unreadable { path: path.to_owned(), reason: error.to_string() }
}

/// Lengths stand before contents, so that no two folders have the same input.
fn fingerprint(files: &[SourceFile]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for file in files {
        for part in [file.path.as_os_str().as_encoded_bytes(), file.text.as_bytes()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
    }
    hash.finalize().into()
}
