//! Hot reload: notices changed certificate files and reads them again.
//!
//! Watches the *parent folders* (an orchestrator swaps a symlink beside the files, an editor
//! renames a new file into place), asks only whether something changed, and looks anew every
//! [`POLL`] as well, since events get lost. It publishes nothing half-written: that is
//! [`LocalIdentity::reload`]'s promise. Nor does it call a change an error before it had the time to
//! be whole: a certificate and its key are two files, replaced one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hamlet_runtime::Shutdown;
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};

use crate::files::read_public;
use crate::local::LocalIdentity;

/// How often files are looked at without an event.
pub const POLL: Duration = Duration::from_secs(30);
/// Events within this time are one change: two files are seldom replaced in the same instant.
const SETTLE: Duration = Duration::from_millis(100);
/// What can't be read at so many looks, [`SETTLE`] apart, is no change under way, but an error.
const LOOKS: u32 = 20;

/// What a look makes of an identity that can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// Somebody may be between the certificate and its key: nothing is said yet.
    Some,
    /// It is an error.
    None,
}

/// The task that keeps identities fresh and tells when other files (trust bundles) changed.
pub struct IdentityWatch {
    identities: Vec<Arc<LocalIdentity>>,
    others: BTreeMap<PathBuf, Option<Stamp>>,
    changed: watch::Sender<u64>,
    poll: Duration,
}

impl IdentityWatch {
    /// Watches the files of `identities`.
    pub fn new(identities: Vec<Arc<LocalIdentity>>) -> IdentityWatch {
        IdentityWatch { identities, others: BTreeMap::new(), changed: watch::Sender::new(0), poll: POLL }
    }

    /// Also watches `files`, such as trust bundles: [`Self::files_changed`] bumps when the content
    /// or the mode of one of them differs from what it was at this call, or it appears or goes.
    pub fn with_files(mut self, files: impl IntoIterator<Item = PathBuf>) -> IdentityWatch {
        self.others.extend(files.into_iter().map(|path| {
            let stamp = stamp(&path);
            (path, stamp)
        }));
        self
    }

    /// Looks without an event this often instead of every [`POLL`].
    pub fn with_poll(mut self, poll: Duration) -> IdentityWatch {
        self.poll = poll;
        self
    }

    /// Bumped when one of the other files changed. The reader decides what to do about it.
    pub fn files_changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Runs until `shutdown` begins.
    pub async fn run(mut self, shutdown: Shutdown) {
        let event = Arc::new(Notify::new());
        // Kept alive for as long as the task: dropping it ends the events.
        let _watcher = match watch_folders(&self.folders(), event.clone()) {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                let seconds = self.poll.as_secs();
                tracing::warn!(%error, seconds, "no file events; certificate files are looked at in intervals");
                None
            }
        };
        // At first what changed between loading and watching.
        'looks: while self.look_until_whole(&shutdown).await {
            tokio::select! {
                () = shutdown.begun() => break 'looks,
                () = event.notified() => {
                    if shutdown.or_begun(tokio::time::sleep(SETTLE)).await.is_none() {
                        break 'looks;
                    }
                }
                () = tokio::time::sleep(self.poll) => {}
            }
        }
    }

    /// Looks until nothing seems to be half of a change, or for long enough to call it an error;
    /// `false` once `shutdown` begins. Between its two files whoever replaces them waits for the disk,
    /// which may be busy.
    async fn look_until_whole(&mut self, shutdown: &Shutdown) -> bool {
        for _ in 1..LOOKS {
            if !self.look(Patience::Some) {
                return true;
            }
            if shutdown.or_begun(tokio::time::sleep(SETTLE)).await.is_none() {
                return false;
            }
        }
        self.look(Patience::None);
        true
    }

    /// Reads everything once; whether something is to be read again, because it could be half of a
    /// change. A few small local files: not worth a thread of their own.
    fn look(&mut self, patience: Patience) -> bool {
        let mut again = false;
        for identity in &self.identities {
            let before = identity.last_error();
            let outcome = match patience {
                Patience::Some => identity.reload_if_good(),
                Patience::None => identity.reload(),
            };
            match outcome {
                Ok(true) => tracing::info!(id = %identity.spiffe_id(), "certificate reloaded"),
                Ok(false) => {}
                Err(_) if patience == Patience::Some => again = true,
                // The same error again is no news.
                Err(error) if before.as_deref() == Some(error.to_string().as_str()) => {}
                Err(error) => {
                    let id = identity.spiffe_id();
                    tracing::warn!(%id, %error, "new certificate refused; the last good one stays");
                }
            }
        }
        let mut any = false;
        for (path, stamp) in &mut self.others {
            let now = self::stamp(path);
            if now != *stamp {
                *stamp = now;
                any = true;
            }
        }
        if any {
            self.changed.send_modify(|generation| *generation += 1);
        }
        again
    }

    fn folders(&self) -> BTreeSet<PathBuf> {
        let ours = self.identities.iter().flat_map(|identity| identity.files());
        ours.chain(self.others.keys().cloned())
            .map(|file| match file.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
                _ => Path::new(".").to_owned(),
            })
            .collect()
    }
}

/// Content and mode: a secret that others can read is refused, and a `chmod` is its remedy.
type Stamp = ([u8; 32], u32);

fn stamp(path: &Path) -> Option<Stamp> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    Some((Sha256::digest(read_public(path).ok()?).into(), mode))
}

/// Starts events for all folders that can be watched; one that can't is left to the poll.
fn watch_folders(folders: &BTreeSet<PathBuf>, event: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |found: notify::Result<notify::Event>| {
        if found.is_ok_and(|found| is_own_reading(found.kind)) {
            return;
        }
        event.notify_one();
    })?;
    for folder in folders {
        if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
            let folder = folder.display();
            tracing::warn!(%folder, %error, "no events for this folder; its files are looked at in intervals");
        }
    }
    Ok(watcher)
}

/// Opening and reading are events too, and our own look would wake us for ever.
fn is_own_reading(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

#[cfg(test)]
mod tests {
    use hamlet_core::TrustDomain;
    use hamlet_runtime::SystemClock;

    use super::*;
    use crate::ca::LocalCa;
    use crate::files::replace;

    #[test]
    fn half_of_a_change_is_no_error_at_once_and_one_when_it_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (domain, day) = (TrustDomain::parse("acme.example").unwrap(), Duration::from_secs(24 * 3600));
        let clock = SystemClock::shared();
        let ca = LocalCa::create(&folder.path().join("ca"), &domain, day * 30, clock.clone()).unwrap();
        let issue = || ca.issue_agent(&domain.id("agent").unwrap(), &[], day).unwrap();
        let (cert, key) = (folder.path().join("agent.pem"), folder.path().join("agent.key"));
        let write_key = |pem: &str| replace(&key, pem.as_bytes(), 0o600).unwrap();
        let write_cert = |pem: &str| replace(&cert, pem.as_bytes(), 0o644).unwrap();
        let (first, second) = (issue(), issue());
        write_key(&first.key);
        write_cert(&first.cert);
        let identity = LocalIdentity::from_pem_files(&cert, &key, clock).unwrap();
        let mut watch = IdentityWatch::new(vec![identity.clone()]);
        let (before, changed) = (identity.fingerprint(), identity.changed());
        assert!(!watch.look(Patience::Some), "all is as it was");

        write_key(&second.key);
        assert!(watch.look(Patience::Some), "to be looked at again");
        assert_eq!((identity.last_error(), identity.fingerprint()), (None, before));
        write_cert(&second.cert);
        assert!(!watch.look(Patience::None));
        assert_eq!(identity.last_error(), None);
        assert!(identity.fingerprint() != before && changed.has_changed().unwrap());

        write_key(&first.key);
        assert!(watch.look(Patience::Some) && !watch.look(Patience::None));
        assert!(identity.last_error().is_some_and(|error| error.contains("is not the key")));
        write_key(&second.key);
        assert!(!watch.look(Patience::Some), "mended");
        assert_eq!(identity.last_error(), None);
    }
}
