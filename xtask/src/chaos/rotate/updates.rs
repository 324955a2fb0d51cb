//! Changes of one mesh's services, and whether each of them arrives at the other mesh.
//!
//! Every change is followed by itself: a service is changed again only when its last version was
//! seen at the peer, so none can hide behind a later one. Invariant: a version that was seen is
//! never followed by an older one, or by one that was never written.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hamlet_admin::api::ServiceStatus;
use hamlet_runtime::Shutdown;

use super::book::Book;
use super::mesh::{Mesh, write_whole};

/// How many services change in turn.
const SERVICES: u64 = 200;
/// They are spread over so many files.
const FILES: u64 = 8;
/// So often changes are written and the agent told.
const WRITE_EVERY: Duration = Duration::from_millis(100);
/// So often the peer is asked what it holds.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What has not arrived so long after the last change is lost.
const LOST_AFTER: Duration = Duration::from_secs(15);

/// One service.
#[derive(Debug, Clone, Copy)]
struct Slot {
    version: u64,
    /// When it was written, unless it was seen since.
    pending: Option<Duration>,
}

/// What became of one mesh's changes.
#[derive(Debug, Clone, Default)]
pub(super) struct Fate {
    /// Changes that were written.
    pub(super) written: u64,
    /// How long each took until it was seen at the peer.
    pub(super) took: Vec<Duration>,
    /// Services at the peer that were gone, older than before, or never written so.
    pub(super) wrong: u64,
    /// Moments at which no service could be changed, because all waited to be seen.
    pub(super) held_up: u64,
}

impl Fate {
    /// Changes that never arrived; final when the run is.
    pub(super) fn lost(&self) -> u64 {
        self.written - self.took.len() as u64
    }
}

struct State {
    slots: Vec<Slot>,
    next: u64,
    fate: Fate,
}

/// The changes of one mesh.
#[derive(Clone)]
pub(super) struct Updates {
    owner: &'static str,
    folder: PathBuf,
    book: Book,
    state: Arc<Mutex<State>>,
}

impl Updates {
    /// Writes the first version of all services of mesh `owner` into its `folder`.
    pub(super) fn new(owner: &'static str, folder: &Path, book: &Book) -> anyhow::Result<Updates> {
        let slots = vec![Slot { version: 0, pending: None }; usize::try_from(SERVICES)?];
        let state = Arc::new(Mutex::new(State { slots, next: 0, fate: Fate::default() }));
        let updates = Updates { owner, folder: folder.to_owned(), book: book.clone(), state };
        for file in 0..FILES {
            updates.write(file)?;
        }
        Ok(updates)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of them so far.
    pub(super) fn fate(&self) -> Fate {
        self.state().fate.clone()
    }

    /// Changes `rate` services a second until `stop` begins.
    pub(super) async fn run(self, owner: Arc<Mesh>, rate: u32, stop: Shutdown) {
        let began = self.book.now();
        let mut due = 0;
        while stop.or_begun(tokio::time::sleep(WRITE_EVERY)).await.is_some() {
            let wanted = (self.book.now() - began).as_millis() as u64 * u64::from(rate) / 1000;
            let files = self.change(wanted.saturating_sub(due));
            due = wanted;
            for file in files {
                if let Err(error) = self.write(file) {
                    self.book.failed(&format!("a file of {} can't be written: {error}", self.owner));
                }
            }
            if let Err(error) = owner.agent.client.reload().await {
                self.book.failed(&format!("{} refuses its folder: {error}", self.owner));
            }
        }
    }

    /// Changes up to `count` services that were seen since their last change; the files they are in.
    fn change(&self, count: u64) -> Vec<u64> {
        let now = self.book.now();
        let mut files = Vec::new();
        let mut state = self.state();
        for _ in 0..count {
            let free = (0..SERVICES).map(|step| (state.next + step) % SERVICES);
            let free = free.into_iter().find(|i| state.slots[*i as usize].pending.is_none());
            let Some(i) = free else {
                state.fate.held_up += 1;
                break;
            };
            let slot = &mut state.slots[i as usize];
            *slot = Slot { version: slot.version + 1, pending: Some(now) };
            state.next = i + 1;
            state.fate.written += 1;
            if !files.contains(&(i % FILES)) {
                files.push(i % FILES);
            }
        }
        files
    }

    fn write(&self, file: u64) -> std::io::Result<()> {
        let mut text = String::new();
        let slots = self.state().slots.clone();
        for (i, slot) in (0..).zip(slots).filter(|(i, _)| i % FILES == file) {
            let _ = write!(text, "{}", document(self.owner, i, slot.version));
        }
        write_whole(&self.folder, &format!("services-{file}.yaml"), &text)
    }

    /// Looks at what `consumer` holds until `stop` begins.
    pub(super) async fn follow(self, consumer: Arc<Mesh>, stop: Shutdown) {
        while stop.or_begun(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            match consumer.imported().await {
                Ok(held) => self.look(&held),
                Err(error) => {
                    self.book.failed(&format!("{} doesn't say what it holds: {error}", consumer.name))
                }
            }
        }
    }

    fn look(&self, held: &BTreeMap<String, ServiceStatus>) {
        let now = self.book.now();
        let mut state = self.state();
        let State { slots, fate, .. } = &mut *state;
        for (i, slot) in (0..).zip(slots.iter_mut()) {
            let seen = held.get(&fqdn(self.owner, i)).map(|s| s.description.clone());
            let is = |version: u64| seen.as_ref() == Some(&description(version));
            match slot.pending {
                Some(written) if is(slot.version) => {
                    fate.took.push(now - written);
                    slot.pending = None;
                }
                Some(_) if is(slot.version - 1) => {}
                None if is(slot.version) => {}
                _ => {
                    fate.wrong += 1;
                    let wanted = description(slot.version);
                    self.book.failed(&format!("{} is held as {seen:?}, not {wanted:?}", fqdn(self.owner, i)));
                }
            }
        }
    }

    /// Whether `consumer` holds the first version of all.
    pub(super) async fn all_there(&self, consumer: &Mesh) -> Result<(), String> {
        let held = consumer.imported().await.map_err(|e| e.to_string())?;
        let there = (0..SERVICES).filter(|i| held.contains_key(&fqdn(self.owner, *i))).count() as u64;
        (there == SERVICES).then_some(()).ok_or(format!("{there} of {SERVICES} of {}", self.owner))
    }

    /// Waits until nothing is pending, or what is pending counts as lost.
    pub(super) async fn settle(&self) {
        let began = self.book.now();
        while self.state().slots.iter().any(|s| s.pending.is_some()) && self.book.now() - began < LOST_AFTER {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn fqdn(owner: &str, i: u64) -> String {
    format!("svc-{i:04}.{owner}.example")
}

fn description(version: u64) -> String {
    format!("version {version}")
}

fn document(owner: &str, i: u64, version: u64) -> String {
    format!(
        "\
---
apiVersion: hamlet.dev/v1
kind: Service
metadata: {{name: svc-{i:04}}}
spec:
  fqdn: {}
  description: {}
  protocol: HTTP
  port: 8080
  backends: [\"127.0.0.1:9\"]
",
        fqdn(owner, i),
        description(version)
    )
}

#[cfg(test)]
mod tests {
    use hamlet_admin::api::{Origin, Standing};

    use super::*;

    fn held(versions: &[u64]) -> BTreeMap<String, ServiceStatus> {
        let one = |(i, version): (u64, &u64)| ServiceStatus {
            name: format!("east/svc-{i:04}"),
            fqdn: fqdn("east", i),
            origin: Origin::Imported { peer: "east".into() },
            standing: Standing::Current,
            description: description(*version),
            tags: vec![],
            labels: BTreeMap::new(),
            egress: vec![],
            instances: vec![],
            published_to: vec![],
            sans: vec![],
            conflicts: vec![],
        };
        (0..).zip(versions).map(one).map(|s| (s.fqdn.clone(), s)).collect()
    }

    #[test]
    fn what_is_late_lost_gone_older_or_never_written_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let book = Book::new();
        let updates = Updates::new("east", folder.path(), &book).unwrap();
        let mut versions = vec![0; usize::try_from(SERVICES).unwrap()];
        assert_eq!(updates.change(2), [0, 1]);
        updates.look(&held(&versions));
        assert_eq!((updates.fate().lost(), updates.fate().wrong), (2, 0), "late is not wrong");
        versions[0] = 1;
        updates.look(&held(&versions));
        assert_eq!((updates.fate().lost(), updates.fate().wrong), (1, 0), "one has arrived");
        let good = versions.clone();
        for (what, service, version) in [("older", 0, 0), ("never written", 1, 2), ("of another", 5, 7)] {
            versions[service] = version;
            let before = updates.fate();
            updates.look(&held(&versions));
            assert_eq!(updates.fate().wrong, before.wrong + 1, "{what}");
            versions.clone_from(&good);
            updates.look(&held(&versions));
            assert_eq!(updates.fate().wrong, before.wrong + 1, "and its neighbour is right");
        }
        let before = updates.fate();
        updates.look(&held(&versions[..versions.len() - 1]));
        assert_eq!(updates.fate().wrong, before.wrong + 1, "gone");
        assert_eq!(book.story().len(), 4);

        // One waits to be seen: all others can be changed, and it can't.
        assert_eq!(updates.change(SERVICES), (0..FILES).map(|f| (f + 2) % FILES).collect::<Vec<_>>());
        assert_eq!((updates.fate().written, updates.fate().held_up), (SERVICES + 1, 1));
    }
}
