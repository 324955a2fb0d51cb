//! A folder for one run: made private, removed when dropped unless it is kept.
//!
//! Not the tempfile crate: its features would make cargo build `hamlet` a second time for this
//! crate alone.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rand::Rng;

/// A folder of our own.
pub(crate) struct Scratch {
    path: PathBuf,
    kept: bool,
}

impl Scratch {
    /// Makes `<prefix><random>` below `above`.
    pub(crate) fn new(above: &Path, prefix: &str) -> anyhow::Result<Scratch> {
        let path = above.join(format!("{prefix}{:08x}", rand::rng().random::<u32>()));
        // Fails if it exists, so nobody else's is ever taken.
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("can't make {}", path.display()))?;
        Ok(Scratch { path, kept: false })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it on disk.
    pub(crate) fn keep(mut self) -> PathBuf {
        self.kept = true;
        self.path.clone()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Scratch;

    #[test]
    fn a_scratch_folder_goes_unless_it_is_kept() {
        let above = Scratch::new(&std::env::temp_dir(), "xtask-test-").unwrap();
        let gone = Scratch::new(above.path(), "a-").unwrap();
        let kept = Scratch::new(above.path(), "a-").unwrap();
        let path = gone.path().to_owned();
        assert!(path.is_dir());
        drop(gone);
        assert!(!path.exists() && kept.keep().is_dir());
    }
}
