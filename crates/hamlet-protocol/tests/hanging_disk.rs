//! A disk that hangs keeps nobody waiting: not the committer, not what the link asks of it, not the
//! end of the program.
//!
//! Time is tokio's, which moves by itself when everybody waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hamlet_core::PeerName;
use hamlet_core::durable::{LoadedPeer, PeerState};
use hamlet_core::imported::{ImportedSlice, ServiceJudge};
use hamlet_core::lease::NameLeases;
use hamlet_core::settle::Settle;
use hamlet_protocol::importer::{
    COMMIT_DEADLINE, ImportState, ImportedCatalogue, Importer, ImporterParts, Request,
};
use hamlet_protocol::kind::LinkJudge;
use hamlet_runtime::{Clock, Shutdown};
use hamlet_testkit::store::MemoryStore;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

/// Shorter than any deadline of the committer.
const SOON: Duration = Duration::from_secs(4);

#[derive(Debug)]
struct PausedClock(Instant);

impl Clock for PausedClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn wall(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A committer without a stream, whose peer has been away for a while.
struct Lonely {
    store: Arc<MemoryStore>,
    state: Arc<ImportState>,
    ask: mpsc::Sender<Request>,
    shutdown: Shutdown,
}

fn peer() -> PeerName {
    PeerName::parse("acme").unwrap()
}

impl Lonely {
    /// The committer, and the future that runs it.
    fn new() -> (Lonely, impl Future<Output = ()>) {
        let store = MemoryStore::new();
        #[allow(clippy::disallowed_methods)] // tokio's paused clock, not the machine's
        let clock: Arc<dyn Clock> = Arc::new(PausedClock(Instant::now()));
        let leases = NameLeases::new();
        let slice: ImportedSlice = <ServiceJudge as LinkJudge>::slice(&peer(), &leases);
        let state = Arc::new(ImportState {
            slice: Mutex::new(slice),
            stream: Mutex::new(None),
            down_ms: AtomicU64::new(7),
            opened_ms: AtomicU64::new(0),
            closed_ms: AtomicU64::new(0),
            commit_error: Mutex::new(None),
            committing: Mutex::new(None),
            last_end: Mutex::new(None),
            settle: Mutex::new(Settle::new()),
            farewells: Mutex::default(),
        });
        let (ask, requests) = mpsc::channel(4);
        let parts = ImporterParts {
            peer: peer(),
            state: state.clone(),
            shared: leases,
            writer: ImportedCatalogue::new().writer(peer()).unwrap(),
            store: store.clone(),
            clock,
            work: Arc::new(Notify::new()),
            requests,
            stored: PeerState::default(),
        };
        let shutdown = Shutdown::new();
        let run = Importer::new(parts).run(shutdown.clone());
        (Lonely { store, state, ask, shutdown }, run)
    }

    fn kept(&self) -> LoadedPeer {
        self.store.load(&peer())
    }

    async fn held(&self) -> bool {
        let (reply, held) = oneshot::channel();
        self.ask.send(Request::Held(reply)).await.unwrap();
        tokio::time::timeout(SOON, held).await.is_ok_and(|held| held.is_ok())
    }
}

#[tokio::test(start_paused = true)]
async fn a_state_that_the_disk_does_not_take_keeps_nobody_waiting_is_shown_and_is_saved_when_it_can_be() {
    let (lonely, run) = Lonely::new();
    let story = async {
        // Its neighbour: a disk that takes it.
        tokio::time::sleep(Duration::from_secs(40)).await;
        let before = lonely.kept().state.down_ms;
        assert!(before > 7 && lonely.state.committing.lock().is_none(), "{before}");
        lonely.store.set_hanging(true);
        tokio::time::sleep(Duration::from_secs(40)).await;
        assert_eq!(lonely.kept().state.down_ms, before);
        // It is at the disk, which is what the status says, and all else goes on.
        assert!(lonely.state.committing.lock().is_some());
        assert!(lonely.held().await);
        let counted = lonely.state.down_ms.load(Ordering::Relaxed);
        assert!(counted >= 78_000, "{counted}");
        lonely.store.set_hanging(false);
        tokio::time::sleep(Duration::from_secs(70)).await;
        assert!(lonely.kept().state.down_ms > counted);
        assert!(lonely.state.committing.lock().is_none());
        lonely.store.set_failing(true);
        tokio::time::sleep(Duration::from_secs(70)).await;
        assert!(lonely.state.commit_error.lock().as_ref().is_some_and(|e| e.contains("told to fail")));
        lonely.store.set_failing(false);
        tokio::time::sleep(Duration::from_secs(70)).await;
        assert_eq!(*lonely.state.commit_error.lock(), None);
        lonely.shutdown.begin();
    };
    tokio::join!(run, story);
}

#[tokio::test(start_paused = true)]
async fn a_committer_stops_soon_though_the_disk_hangs_and_saves_the_state_if_it_does_not() {
    for hangs in [true, false] {
        let (lonely, run) = Lonely::new();
        let story = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            lonely.store.set_hanging(hangs);
            lonely.shutdown.begin();
        };
        let limit = Duration::from_secs(10) + SOON;
        let (ended, ()) = tokio::join!(tokio::time::timeout(limit, run), story);
        assert!(ended.is_ok(), "hangs: {hangs}");
        assert_eq!(lonely.kept().state.down_ms > 7, !hangs);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_removed_is_gone_after_the_deadline_though_the_disk_hangs() {
    for hangs in [true, false] {
        let (lonely, run) = Lonely::new();
        lonely.store.set_hanging(hangs);
        let story = async {
            let (done, forgotten) = oneshot::channel();
            lonely.ask.send(Request::Forget(done)).await.unwrap();
            assert!(tokio::time::timeout(COMMIT_DEADLINE + SOON, forgotten).await.is_ok_and(|f| f.is_ok()));
        };
        let limit = COMMIT_DEADLINE + 2 * SOON;
        let (ended, ()) = tokio::join!(tokio::time::timeout(limit, run), story);
        assert!(ended.is_ok(), "hangs: {hangs}");
    }
}
