//! The folder source on real folders: what is read, what is an error, and which changes are told.
#![allow(missing_docs)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hamlet_adapters::file::{
    FolderError, FolderLimits, FolderSnapshot, FolderWatch, RereadError, Trigger, read_folder,
};
use hamlet_runtime::{Clock, Shutdown, Supervisor};
use tokio::sync::mpsc;

fn put(path: PathBuf, text: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn read(path: &Path) -> Result<FolderSnapshot, FolderError> {
    read_folder(path, &FolderLimits::default())
}

fn texts(snapshot: &FolderSnapshot) -> Vec<&str> {
    snapshot.files.iter().map(|f| &*f.text).collect()
}

#[test]
fn yaml_of_the_folder_and_its_subfolders_is_read_sorted_by_path() {
    let temp = tempfile::tempdir().unwrap();
    let at = |path: &str| temp.path().join(path);
    put(at("mesh.yaml"), "mesh");
    put(at("b/1/2/3/deep.yml"), "deep");
    put(at("a/peer.yml"), "peer");
    put(at("README.md"), "not yaml");
    put(at("key.yaml.bak"), "not yaml");
    put(at(".hidden.yaml"), "hidden");
    put(at(".git/1/2/3/4/5/x.yaml"), "hidden");
    put(at("elsewhere.txt"), "linked");
    symlink("../elsewhere.txt", at("a/linked.yaml")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    let snapshot = read(temp.path()).unwrap();
    assert_eq!(texts(&snapshot), ["linked", "peer", "deep", "mesh"]);
    assert_eq!(snapshot.files[3].path, at("mesh.yaml"));
    // One file, whatever its name.
    assert_eq!(texts(&read(&at("README.md")).unwrap()), ["not yaml"]);
}

#[test]
fn the_fingerprint_changes_with_contents_and_names_only() {
    let temp = tempfile::tempdir().unwrap();
    let at = |path: &str| temp.path().join(path);
    put(at("a.yaml"), "x");
    put(at("b.yaml"), "y");
    let before = read(temp.path()).unwrap().fingerprint;
    put(at("a.yaml"), "x");
    assert_eq!(read(temp.path()).unwrap().fingerprint, before);
    put(at("a.yaml"), "xy");
    put(at("b.yaml"), "");
    let moved = read(temp.path()).unwrap().fingerprint;
    assert_ne!(moved, before);
    fs::rename(at("a.yaml"), at("c.yaml")).unwrap();
    assert_ne!(read(temp.path()).unwrap().fingerprint, moved);
}

#[test]
fn what_cannot_be_read_whole_is_an_error_that_names_the_place() {
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil, Spoil); 8] = [
        (
            "bad.yaml:2: not UTF-8",
            |p| put(p.join("bad.yaml"), b"a\n\xff"),
            |p| put(p.join("bad.yaml"), "a\n\u{fc}"),
        ),
        (
            "big.yaml: larger than 64",
            |p| put(p.join("big.yaml"), [b'a'; 65]),
            |p| put(p.join("big.yaml"), [b'a'; 64]),
        ),
        (
            "more than 128 bytes together",
            |p| (0..3).for_each(|i| put(p.join(format!("{i}.yaml")), [b'a'; 60])),
            |p| (0..2).for_each(|i| put(p.join(format!("{i}.yaml")), [b'a'; 60])),
        ),
        (
            "more than 4 YAML files",
            |p| (0..5).for_each(|i| put(p.join(format!("{i}.yaml")), "")),
            |p| (0..4).for_each(|i| put(p.join(format!("{i}.yaml")), "")),
        ),
        ("5: more than 4 folders deep", |p| put(p.join("1/2/3/4/5/x"), ""), |p| put(p.join("1/2/3/4/x"), "")),
        (
            "pipe.yaml: named like YAML but not a regular file",
            |p| drop(std::os::unix::net::UnixListener::bind(p.join("pipe.yaml")).unwrap()),
            |p| drop(std::os::unix::net::UnixListener::bind(p.join("agent.sock")).unwrap()),
        ),
        (
            "here: a symbolic link to a folder",
            |p| symlink("/", p.join("here")).unwrap(),
            |p| put(p.join("here/x"), ""),
        ),
        (
            "loop.yaml: can't be read",
            |p| symlink("loop.yaml", p.join("loop.yaml")).unwrap(),
            |p| symlink("loop", p.join("loop")).unwrap(),
        ),
    ];
    let limits = FolderLimits { file_bytes: 64, total_bytes: 128, files: 4, depth: 4 };
    for (expected, spoil, neighbour) in cases {
        let (bad, good) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        spoil(bad.path());
        neighbour(good.path());
        let error = read_folder(bad.path(), &limits).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected:?} is not in {error:?}");
        assert!(error.contains(&bad.path().display().to_string()) && error.contains("; "), "{error}");
        assert!(read_folder(good.path(), &limits).is_ok(), "the neighbour of {expected:?}");
    }
}

#[test]
fn a_missing_folder_and_a_dangling_link_are_errors_never_empty() {
    let temp = tempfile::tempdir().unwrap();
    assert!(matches!(read(&temp.path().join("none")), Err(FolderError::Missing { .. })));
    assert!(read(temp.path()).unwrap().files.is_empty(), "an empty folder is one");
    symlink("nowhere", temp.path().join("x.yaml")).unwrap();
    assert!(matches!(read(temp.path()), Err(FolderError::Vanished { .. })));
}

/// A clock that makes every read seem to have taken an hour: the poll then waits for days, and what
/// the tests see came from a sign of change.
#[derive(Default)]
struct SlowClock(AtomicU64);

impl Clock for SlowClock {
    fn now(&self) -> Duration {
        Duration::from_secs(3600 * self.0.fetch_add(1, Ordering::SeqCst))
    }
    fn wall(&self) -> Duration {
        Duration::ZERO
    }
}

struct Watched {
    supervisor: Supervisor,
    trigger: Trigger,
    states: mpsc::UnboundedReceiver<Result<Vec<String>, FolderError>>,
}

impl Watched {
    fn start(path: &Path, seen: Option<[u8; 32]>) -> Watched {
        let supervisor = Supervisor::new(Shutdown::new());
        let spawner = supervisor.spawner();
        let (watch, trigger) =
            FolderWatch::new(path, FolderLimits::default(), seen, Arc::new(SlowClock::default()));
        let (tell, states) = mpsc::unbounded_channel();
        let on_change = move |reading: Result<FolderSnapshot, FolderError>| {
            let told = reading.map(|s| s.files.iter().map(|f| f.text.to_string()).collect());
            let _ = tell.send(told);
            std::future::ready(())
        };
        spawner.spawn("folder", watch.run(on_change, spawner.clone(), spawner.shutdown()));
        Watched { supervisor, trigger, states }
    }

    async fn next(&mut self) -> Result<Vec<String>, FolderError> {
        let state = tokio::time::timeout(Duration::from_secs(60), self.states.recv()).await;
        state.expect("no change was told").expect("the watch ended")
    }

    /// Awaits a state; others may come before it, since a write is not one moment.
    async fn until(&mut self, expected: &[&str]) {
        while self.next().await.ok().is_none_or(|texts| texts != expected) {}
    }

    async fn until_error(&mut self) -> FolderError {
        loop {
            if let Err(error) = self.next().await {
                return error;
            }
        }
    }

    async fn stop(self) {
        let minute = Duration::from_secs(60);
        assert_eq!(self.supervisor.stop(minute, minute).await, Vec::<String>::new());
        assert_eq!(self.trigger.reread().await.unwrap_err(), RereadError::Stopped);
    }
}

#[tokio::test]
async fn writes_renames_and_deletions_are_told() {
    let temp = tempfile::tempdir().unwrap();
    let at = |path: &str| temp.path().join(path);
    put(at("a.yaml"), "one");
    let mut watched = Watched::start(temp.path(), None);
    watched.until(&["one"]).await;
    put(at("a.yaml"), "two");
    watched.until(&["two"]).await;
    // As editors save: a new file takes the old one's name.
    put(at("a.yaml.tmp"), "three");
    fs::rename(at("a.yaml.tmp"), at("a.yaml")).unwrap();
    watched.until(&["three"]).await;
    put(at("services/new/b.yaml"), "four");
    watched.until(&["three", "four"]).await;
    put(at("services/new/b.yaml"), "five");
    watched.until(&["three", "five"]).await;
    fs::remove_file(at("a.yaml")).unwrap();
    watched.until(&["five"]).await;
    watched.stop().await;
}

#[tokio::test]
async fn a_swapped_data_link_as_in_kubernetes_is_told() {
    let temp = tempfile::tempdir().unwrap();
    let at = |path: &str| temp.path().join(path);
    put(at("..1/mesh.yaml"), "one");
    symlink("..1", at("..data")).unwrap();
    symlink("..data/mesh.yaml", at("mesh.yaml")).unwrap();
    let mut folder = Watched::start(temp.path(), None);
    let mut file = Watched::start(&at("mesh.yaml"), None);
    folder.until(&["one"]).await;
    file.until(&["one"]).await;
    put(at("..2/mesh.yaml"), "two");
    symlink("..2", at("..tmp")).unwrap();
    fs::rename(at("..tmp"), at("..data")).unwrap();
    folder.until(&["two"]).await;
    file.until(&["two"]).await;
    folder.stop().await;
    file.stop().await;
}

#[tokio::test]
async fn a_folder_that_is_a_swapped_link_is_followed() {
    let temp = tempfile::tempdir().unwrap();
    let at = |path: &str| temp.path().join(path);
    put(at("one/mesh.yaml"), "one");
    put(at("two/mesh.yaml"), "two");
    symlink("one", at("current")).unwrap();
    let mut watched = Watched::start(&at("current"), None);
    watched.until(&["one"]).await;
    symlink("two", at("next")).unwrap();
    fs::rename(at("next"), at("current")).unwrap();
    watched.until(&["two"]).await;
    put(at("two/mesh.yaml"), "three");
    watched.until(&["three"]).await;
    watched.stop().await;
}

#[tokio::test]
async fn errors_and_the_return_from_them_are_told() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("acme");
    let mut watched = Watched::start(&folder, None);
    assert!(matches!(watched.until_error().await, FolderError::Missing { .. }));
    put(folder.join("a.yaml"), "one");
    watched.until(&["one"]).await;
    put(folder.join("bad.yaml"), b"\xff");
    assert!(matches!(watched.until_error().await, FolderError::NotText { .. }));
    fs::remove_file(folder.join("bad.yaml")).unwrap();
    watched.until(&["one"]).await;
    fs::rename(&folder, temp.path().join("gone")).unwrap();
    assert!(matches!(watched.until_error().await, FolderError::Missing { .. }));
    fs::rename(temp.path().join("gone"), &folder).unwrap();
    watched.until(&["one"]).await;
    watched.stop().await;
}

#[tokio::test]
async fn what_the_caller_knows_is_not_told_again_unless_asked_for() {
    let temp = tempfile::tempdir().unwrap();
    put(temp.path().join("a.yaml"), "one");
    let known = read(temp.path()).unwrap();
    let mut watched = Watched::start(temp.path(), Some(known.fingerprint));
    assert_eq!(watched.trigger.reread().await.unwrap(), known);
    // Told before the answer came, and exactly once: nothing was told at the start.
    assert_eq!(watched.states.try_recv().unwrap().unwrap(), ["one"]);
    assert!(watched.states.try_recv().is_err());
    put(temp.path().join("a.yaml"), b"\xff");
    let error = watched.trigger.reread().await.unwrap_err();
    assert!(matches!(error, RereadError::Folder(FolderError::NotText { .. })), "{error}");
    watched.stop().await;
}
