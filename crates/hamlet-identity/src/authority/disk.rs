//! The authority's files: `authority/` in the identity folder, and what is made from it beside it.
//!
//! ```text
//! identity/ca.pem                 the bundle: every root that peers have to believe
//! identity/agent.pem, .key        our leaves, and the gateway's likewise
//! identity/authority/             for its owner only
//!   authority.json                the state; what it doesn't name means nothing
//!   root-N.pem, .key              a root
//!   root-N-cross.pem              the same root, signed by the one before
//!   issuing-N.pem, .key           the intermediate that signs leaves
//!   lock                          held while anything of this changes
//! ```
//!
//! Invariant: a change is in effect when `authority.json` was replaced, not before; every file is
//! whole at any moment; keys can be read by their owner only.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::certs::Made;
use super::state::{Issuing, LeafRole, Root, State};
use crate::ca::CA_CERT_FILE;
use crate::files::{FileError, private_folder, read_key, read_public, replace};

/// The folder of roots and intermediates in the identity folder.
const FOLDER: &str = "authority";
/// The state's file in it.
const STATE_FILE: &str = "authority.json";
const LOCK_FILE: &str = "lock";

/// The folder, as paths and operations.
#[derive(Debug)]
pub(super) struct Disk {
    identity: PathBuf,
    folder: PathBuf,
    /// How many changes of files succeed before the disk fails.
    #[cfg(test)]
    pub(super) budget: std::sync::atomic::AtomicUsize,
}

/// Held while the folder is looked at or changed, between processes too.
pub(super) struct Locked {
    _file: File,
}

impl Disk {
    pub(super) fn new(identity: &Path) -> Disk {
        Disk {
            identity: identity.to_owned(),
            folder: identity.join(FOLDER),
            #[cfg(test)]
            budget: std::sync::atomic::AtomicUsize::new(usize::MAX),
        }
    }

    pub(super) fn state_file(&self) -> PathBuf {
        self.folder.join(STATE_FILE)
    }

    pub(super) fn bundle_file(&self) -> PathBuf {
        self.identity.join(CA_CERT_FILE)
    }

    pub(super) fn leaf_files(&self, role: LeafRole) -> (PathBuf, PathBuf) {
        let file = |end| self.identity.join(format!("{role}.{end}"));
        (file("pem"), file("key"))
    }

    pub(super) fn root_files(&self, number: u64) -> (PathBuf, PathBuf) {
        self.pair(&format!("root-{number}"))
    }

    pub(super) fn cross_file(&self, number: u64) -> PathBuf {
        self.folder.join(format!("root-{number}-cross.pem"))
    }

    pub(super) fn issuing_files(&self, issuing: &Issuing) -> (PathBuf, PathBuf) {
        match issuing.is_root() {
            true => self.root_files(issuing.number),
            false => self.pair(&format!("issuing-{}", issuing.number)),
        }
    }

    fn pair(&self, stem: &str) -> (PathBuf, PathBuf) {
        (self.folder.join(format!("{stem}.pem")), self.folder.join(format!("{stem}.key")))
    }

    /// Makes the folders, if they aren't there.
    pub(super) fn make(&self) -> Result<(), FileError> {
        private_folder(&self.identity)?;
        private_folder(&self.folder)
    }

    /// Waits until nobody else is at it.
    pub(super) fn lock(&self) -> Result<Locked, FileError> {
        let path = self.folder.join(LOCK_FILE);
        let locked = || -> std::io::Result<File> {
            let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
            file.lock()?;
            Ok(file)
        };
        match locked() {
            Ok(file) => Ok(Locked { _file: file }),
            Err(error) => Err(FileError::Write { path, error }),
        }
    }

    /// Replaces one file.
    pub(super) fn write(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
        #[cfg(test)]
        self.spend(path)?;
        replace(path, bytes, mode)
    }

    /// The key first: a certificate without its key would be of no use to anybody.
    pub(super) fn write_pair(&self, files: &(PathBuf, PathBuf), made: &Made) -> Result<(), FileError> {
        self.write(&files.1, made.key.as_bytes(), 0o600)?;
        self.write(&files.0, made.cert.as_bytes(), 0o644)
    }

    /// The certificate and the key.
    pub(super) fn read_pair(&self, files: &(PathBuf, PathBuf)) -> Result<(Vec<u8>, Vec<u8>), FileError> {
        Ok((read_public(&files.0)?, read_key(&files.1)?))
    }

    /// Removes what the state doesn't name: left over from a change that was interrupted, or of
    /// roots and intermediates that are no more.
    pub(super) fn sweep(&self, state: &State) -> Result<(), FileError> {
        let failed = |error| FileError::Read { path: self.folder.clone(), error };
        let mut named: Vec<PathBuf> = vec![self.state_file(), self.folder.join(LOCK_FILE)];
        let mut name = |(a, b): (PathBuf, PathBuf)| named.extend([a, b]);
        for Root { number, .. } in &state.roots {
            name(self.root_files(*number));
            name((self.cross_file(*number), self.cross_file(*number)));
        }
        state.issuing.iter().for_each(|issuing| name(self.issuing_files(issuing)));
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // Only what has a name of ours: somebody's note beside it is not ours to remove.
            let ours = path.file_name().and_then(|n| n.to_str()).is_some_and(|n| {
                let n = n.strip_prefix('.').unwrap_or(n);
                n.starts_with("root-") || n.starts_with("issuing-")
            });
            if ours && !named.contains(&path) {
                #[cfg(test)]
                self.spend(&path)?;
                fs::remove_file(&path).map_err(|error| FileError::Write { path: path.clone(), error })?;
            }
        }
        Ok(())
    }

    #[cfg(test)]
    fn spend(&self, path: &Path) -> Result<(), FileError> {
        use std::sync::atomic::Ordering::SeqCst;
        let left = self.budget.load(SeqCst);
        if left == 0 {
            let error = std::io::Error::other("the test's disk is full");
            return Err(FileError::Write { path: path.to_owned(), error });
        }
        self.budget.store(left - 1, SeqCst);
        Ok(())
    }
}
