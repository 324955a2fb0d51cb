//! A shared secret in a file of its own. Not keys: those are the identity crate's.
//!
//! Invariant: the secret is never printed, logged, compared in a message, or kept longer than its
//! holder keeps the [`Secret`].

use std::fmt;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Largest secret, in bytes.
const SECRET_MAX: u64 = 64 * 1024;

/// A secret text. `Debug` doesn't show it, and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// Where a secret stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile {
    /// The file.
    pub path: PathBuf,
}

/// Why a secret could not be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum SecretError {
    #[error("the secret {path} can't be read: {source}; create it, readable by the agent only")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the secret {path} can be read by others (mode {mode:04o}); run: chmod 600 {path}")]
    Mode { path: PathBuf, mode: u32 },
    #[error("the secret {path} is empty, too long or not UTF-8; write one line of at most 64 KiB")]
    Content { path: PathBuf },
}

impl SecretFile {
    /// Reads it (blocking); one line end at the end is dropped.
    pub fn read(&self) -> Result<Secret, SecretError> {
        let path = self.path.clone();
        let failed = |source| SecretError::Read { path: path.clone(), source };
        let file = std::fs::File::open(&self.path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Mode { path, mode });
        }
        let mut bytes = Vec::new();
        file.take(SECRET_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        let fits = bytes.len() as u64 <= SECRET_MAX;
        let text = String::from_utf8(bytes).ok().filter(|_| fits);
        let text =
            text.map(|t| t.strip_suffix('\n').map_or(t.clone(), |s| s.trim_end_matches('\r').to_owned()));
        text.filter(|t| !t.is_empty()).map(Secret).ok_or(SecretError::Content { path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_from_a_private_file_only_and_never_printed() {
        let folder = tempfile::tempdir().unwrap();
        let file = SecretFile { path: folder.path().join("token") };
        assert!(matches!(file.read(), Err(SecretError::Read { .. })));
        std::fs::write(&file.path, "hunter2\n").unwrap();
        std::fs::set_permissions(&file.path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(matches!(file.read(), Err(SecretError::Mode { .. })));
        std::fs::set_permissions(&file.path, PermissionsExt::from_mode(0o600)).unwrap();
        let secret = file.read().unwrap();
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(format!("{secret:?}"), "Secret(hidden)");
        std::fs::write(&file.path, "").unwrap();
        assert!(matches!(file.read(), Err(SecretError::Content { .. })));
    }
}
