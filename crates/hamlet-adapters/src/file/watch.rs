//! Watching a folder: a sign of change, a pause until it is quiet, a read, a comparison.
//!
//! It trusts no event: an event only says that reading again may pay, and a slow poll reads even
//! without one. Only contents count. Invariant: the callback sees each state that lasts, in order,
//! and never the same one twice in a row unless somebody asked for it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hamlet_runtime::{Clock, Shutdown, Spawner};
use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::config::{self, FolderLimits};
use super::source::{FolderError, FolderSnapshot, survey};

/// What a read of the folder gave.
type Reading = Result<FolderSnapshot, FolderError>;

/// Why a folder was not read again on request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RereadError {
    /// The watch has ended, because the program stops.
    #[error("the configuration is no longer watched: the program is stopping; ask again once it has started")]
    Stopped,
    /// The folder can't be read.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

/// Asks a [`FolderWatch`] to read again now; clonable.
#[derive(Debug, Clone)]
pub struct Trigger {
    asks: mpsc::Sender<oneshot::Sender<Reading>>,
}

impl Trigger {
    /// Has the folder read now and waits until the callback is done with the result, which is
    /// returned too. The callback is called even if nothing changed: who asks wants to see it
    /// applied.
    pub async fn reread(&self) -> Result<FolderSnapshot, RereadError> {
        let (answer, wait) = oneshot::channel();
        self.asks.send(answer).await.map_err(|_| RereadError::Stopped)?;
        Ok(wait.await.map_err(|_| RereadError::Stopped)??)
    }
}

/// Watches one file or folder.
pub struct FolderWatch {
    path: PathBuf,
    limits: FolderLimits,
    clock: Arc<dyn Clock>,
    asks: mpsc::Receiver<oneshot::Sender<Reading>>,
    signs: Signs,
    last: Option<Seen>,
}

/// What was delivered last: enough to recognise it.
#[derive(PartialEq)]
enum Seen {
    Snapshot([u8; 32]),
    Error(FolderError),
}

impl Seen {
    fn of(reading: &Reading) -> Seen {
        match reading {
            Ok(snapshot) => Seen::Snapshot(snapshot.fingerprint),
            Err(error) => Seen::Error(error.clone()),
        }
    }
}

impl FolderWatch {
    /// A watch on `path`, and the handle that makes it read at once. `seen` is the fingerprint of a
    /// snapshot that the caller has read already and wants no more; without it the first read is
    /// delivered.
    ///
    /// It never fails: where the system gives no signs of change (too many watches, a network file
    /// system), the poll finds them.
    pub fn new(
        path: impl Into<PathBuf>,
        limits: FolderLimits,
        seen: Option<[u8; 32]>,
        clock: Arc<dyn Clock>,
    ) -> (FolderWatch, Trigger) {
        let (ask, asks) = mpsc::channel(config::TRIGGERS_MAX);
        let last = seen.map(Seen::Snapshot);
        let path = path.into();
        let signs = Signs::new(&path);
        (FolderWatch { path, limits, clock, asks, signs, last }, Trigger { asks: ask })
    }

    /// Watches until the shutdown begins and awaits `on_change` for each new state: a snapshot that
    /// differs from the one before, an error that does, and the return from one to the other. An
    /// error leaves the caller with the last good snapshot; it is never a reason to empty anything.
    ///
    /// While `on_change` works, changes wait, and the next state is the one that is there afterwards.
    pub async fn run<F>(
        mut self,
        mut on_change: impl FnMut(Reading) -> F + Send,
        spawner: Spawner,
        shutdown: Shutdown,
    ) where
        F: Future<Output = ()> + Send,
    {
        let mut pause = Duration::ZERO;
        while let Some(wake) = shutdown.or_begun(self.wake(pause)).await {
            if let Wake::Sign = wake {
                shutdown.or_begun(self.settle()).await;
            }
            let started = self.clock.now();
            let Some(Some(reading)) = shutdown.or_begun(self.read(&spawner)).await else { return };
            let took = self.clock.now().saturating_sub(started);
            pause = config::POLL.max(took.saturating_mul(config::POLL_FACTOR));
            let seen = Some(Seen::of(&reading));
            let changed = self.last != seen;
            self.last = seen;
            match wake {
                Wake::Asked(answer) => {
                    on_change(reading.clone()).await;
                    // Who asked may have gone; the work is done all the same.
                    let _ = answer.send(reading);
                }
                Wake::Sign | Wake::Poll if changed => on_change(reading).await,
                Wake::Sign | Wake::Poll => {}
            }
        }
    }

    /// Waits for a reason to read.
    async fn wake(&mut self, pause: Duration) -> Wake {
        tokio::select! {
            biased;
            Some(answer) = self.asks.recv() => Wake::Asked(answer),
            () = self.signs.seen.notified() => Wake::Sign,
            () = sleep(pause) => Wake::Poll,
        }
    }

    /// Waits until no sign came for [`config::QUIET`], but at most [`config::QUIET_AT_MOST`]: an
    /// editor or a deployment writes several files, and none of them at once.
    async fn settle(&self) {
        let quiet = async { while timeout(config::QUIET, self.signs.seen.notified()).await.is_ok() {} };
        let _ = timeout(config::QUIET_AT_MOST, quiet).await;
    }

    /// Reads on the blocking pool; `None` if the runtime stops.
    async fn read(&mut self, spawner: &Spawner) -> Option<Reading> {
        let (path, limits, mut watching) = (self.path.clone(), self.limits, self.signs.watching.take());
        let work = spawner.spawn_blocking(move || {
            let reading = read_and_follow(&path, &limits, watching.as_mut());
            (reading, watching)
        });
        match work.await {
            Ok((reading, watching)) => {
                self.signs.watching = watching;
                Some(reading)
            }
            Err(failed) => match failed.try_into_panic() {
                // The supervisor reports it with this task.
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_stopped) => None,
            },
        }
    }
}

/// Why the folder is read.
enum Wake {
    /// Something may have changed.
    Sign,
    /// It is time.
    Poll,
    /// Somebody wants to know.
    Asked(oneshot::Sender<Reading>),
}

/// Reads, and watches the folders that were read; again while some were not watched before, since
/// they may have changed in between. A new folder can only show newer ones below it, so the depth
/// bounds the rounds; what keeps growing even so is left to the poll.
fn read_and_follow(path: &Path, limits: &FolderLimits, watching: Option<&mut Watching>) -> Reading {
    let Some(watching) = watching else { return survey(path, limits).0 };
    watching.renew();
    let (mut reading, mut folders) = survey(path, limits);
    for _ in 0..=limits.depth {
        if !watching.follow(&folders) {
            break;
        }
        (reading, folders) = survey(path, limits);
    }
    watching.follow(&folders);
    reading
}

/// The system's signs of change.
struct Signs {
    /// Holds at most one: signs that come while we read are one sign.
    seen: Arc<Notify>,
    /// None where the system gives no signs, and while a read has it.
    watching: Option<Watching>,
}

impl Signs {
    fn new(root: &Path) -> Signs {
        let seen = Arc::new(Notify::new());
        let (sign, filter) = (seen.clone(), SignFilter::new(root));
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| filter.passes(&event)) {
                sign.notify_one();
            }
        });
        let watching = match watcher {
            Ok(watcher) => Some(Watching { watcher, folders: BTreeSet::new(), warned: false }),
            Err(error) => {
                tracing::warn!(%error, every = ?config::POLL, "no signs of change from the system: polling");
                None
            }
        };
        Signs { seen, watching }
    }
}

/// Keeps out what would make us read for nothing: our own reading, other things beside the folder,
/// and data files that happen to lie in it.
struct SignFilter {
    root: PathBuf,
    above: PathBuf,
}

impl SignFilter {
    fn new(root: &Path) -> SignFilter {
        let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
        let above = root.parent().unwrap_or(&root).to_owned();
        SignFilter { root, above }
    }

    fn passes(&self, event: &notify::Event) -> bool {
        let written = match event.kind {
            EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write) => return false,
            EventKind::Access(_) | EventKind::Modify(ModifyKind::Data(_)) => true,
            _ => false,
        };
        event.need_rescan() || event.paths.is_empty() || event.paths.iter().any(|p| self.matters(p, written))
    }

    /// `written`: the content of a file changed, nothing else.
    fn matters(&self, path: &Path, written: bool) -> bool {
        if path == self.root {
            return true;
        }
        let yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        // Beside a folder nothing matters; beside a file the links may that it is reached by.
        let beside = path.parent() == Some(&self.above) && self.root.is_dir();
        !beside && (yaml || !written)
    }
}

/// What the system watches for us.
struct Watching {
    watcher: RecommendedWatcher,
    folders: BTreeSet<PathBuf>,
    warned: bool,
}

impl Watching {
    /// Watches all folders again: one that was replaced under its name is another one.
    fn renew(&mut self) {
        for folder in std::mem::take(&mut self.folders) {
            self.watch(folder);
        }
    }

    /// Watches exactly `folders`, as far as the system lets us; says whether one is new.
    fn follow(&mut self, folders: &BTreeSet<PathBuf>) -> bool {
        let gone: Vec<PathBuf> = self.folders.difference(folders).cloned().collect();
        for folder in gone {
            // It fails for a folder that no longer exists, whose watch has ended with it.
            let _ = self.watcher.unwatch(&folder);
            self.folders.remove(&folder);
        }
        let new: Vec<PathBuf> = folders.difference(&self.folders).cloned().collect();
        let room = config::WATCHED_FOLDERS_MAX.saturating_sub(self.folders.len());
        let added = new.into_iter().take(room).filter(|folder| self.watch(folder.clone())).count();
        added > 0
    }

    fn watch(&mut self, folder: PathBuf) -> bool {
        match self.watcher.watch(&folder, RecursiveMode::NonRecursive) {
            Ok(()) => self.folders.insert(folder),
            Err(error) => {
                if !std::mem::replace(&mut self.warned, true) {
                    let folder = folder.display();
                    tracing::warn!(%folder, %error, every = ?config::POLL, "can't watch a folder: polling");
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hamlet_runtime::{Supervisor, SystemClock};
    use notify::Event;
    use notify::event::{CreateKind, DataChange, ModifyKind, RenameMode};

    #[test]
    fn our_own_reading_and_data_files_are_no_signs_of_change() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("acme");
        std::fs::create_dir(&root).unwrap();
        let filter = SignFilter::new(&root);
        let data = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        let opened = EventKind::Access(AccessKind::Open(AccessMode::Any));
        let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
        let moved = EventKind::Modify(ModifyKind::Name(RenameMode::To));
        let created = EventKind::Create(CreateKind::Any);
        for (kind, path, sign) in [
            (opened, "acme/mesh.yaml", false),
            (closed, "acme/mesh.yaml", true),
            (data, "acme/mesh.yaml", true),
            (data, "acme/data/store.redb", false),
            (closed, "acme/data/store.redb", false),
            (created, "acme/services", true),
            (moved, "acme/..data", true),
            (moved, "globex", false),
            (data, "globex.yaml", false),
            (moved, "acme", true),
        ] {
            let event = Event::new(kind).add_path(temp.path().join(path));
            assert_eq!(filter.passes(&event), sign, "{kind:?} {path}");
        }
        assert!(filter.passes(&Event::new(EventKind::Other)), "an event without a path may mean anything");
    }

    #[tokio::test(start_paused = true)]
    async fn a_folder_whose_system_gives_no_signs_is_polled() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("a.yaml"), "one").unwrap();
        let supervisor = Supervisor::new(Shutdown::new());
        let spawner = supervisor.spawner();
        let (mut watch, _trigger) =
            FolderWatch::new(temp.path(), FolderLimits::default(), None, SystemClock::shared());
        watch.signs.watching = None;
        let (states, mut seen) = mpsc::channel(8);
        let on_change = move |reading: Reading| {
            let states = states.clone();
            async move {
                let _ = states.send(reading.unwrap().files[0].text.clone()).await;
            }
        };
        spawner.spawn("watch", watch.run(on_change, spawner.clone(), spawner.shutdown()));
        assert_eq!(&*seen.recv().await.unwrap(), "one");
        std::fs::write(temp.path().join("a.yaml"), "two").unwrap();
        assert_eq!(&*seen.recv().await.unwrap(), "two");
        assert!(supervisor.stop(Duration::from_secs(5), Duration::from_secs(1)).await.is_empty());
    }
}
