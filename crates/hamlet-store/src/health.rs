//! Figures about the store for readiness, metrics and the bench. Values only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hamlet_core::durable::CommitError;
use hamlet_runtime::Clock;

/// How the store is doing. Counters start at zero when the store is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreHealth {
    /// Why the last batch or the last checkpoint failed; `None` as soon as one succeeds. Not ready
    /// while it is set.
    pub error: Option<CommitError>,
    /// The last failure since the store was opened, even if later batches succeeded.
    pub last_error: Option<CommitError>,
    /// Requests made durable.
    pub commits: u64,
    /// Requests that failed.
    pub failed_commits: u64,
    /// Batches that succeeded, each shared by one or more requests.
    pub batches: u64,
    /// Batches that failed.
    pub failed_batches: u64,
    /// Values written or removed by successful requests.
    pub records: u64,
    /// Bytes of keys and values of successful requests.
    pub bytes: u64,
    /// Requests waiting for the disk now.
    pub queued: usize,
    /// How often a segment of the journal was written down in the database.
    pub checkpoints: u64,
    /// Changed keys that are in the journal only, to be written down with the next checkpoints.
    pub pending: usize,
    /// How often the disk was told to make writes durable (opening included).
    pub syncs: u64,
    /// How long the last of these took.
    pub sync_last: Duration,
    /// How long they took on average.
    pub sync_mean: Duration,
    /// Size of the database's file in bytes; the journal's is fixed.
    pub file_bytes: u64,
}

/// Measures the disk from below the database and the journal.
pub(crate) struct Meter {
    clock: Arc<dyn Clock>,
    syncs: AtomicU64,
    sync_last_ns: AtomicU64,
    sync_total_ns: AtomicU64,
    file_bytes: AtomicU64,
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meter").field("syncs", &self.syncs).finish_non_exhaustive()
    }
}

impl Meter {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Arc<Meter> {
        Arc::new(Meter {
            clock,
            syncs: AtomicU64::new(0),
            sync_last_ns: AtomicU64::new(0),
            sync_total_ns: AtomicU64::new(0),
            file_bytes: AtomicU64::new(0),
        })
    }

    pub(crate) fn time_sync<T>(&self, sync: impl FnOnce() -> T) -> T {
        let start = self.clock.now();
        let out = sync();
        let took = self.clock.now().saturating_sub(start).as_nanos() as u64;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.sync_last_ns.store(took, Ordering::Relaxed);
        self.sync_total_ns.fetch_add(took, Ordering::Relaxed);
        out
    }

    pub(crate) fn file_is(&self, bytes: u64) {
        self.file_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Fills in the figures that are measured here.
    pub(crate) fn fill(&self, health: &mut StoreHealth) {
        let total = self.sync_total_ns.load(Ordering::Relaxed);
        health.syncs = self.syncs.load(Ordering::Relaxed);
        health.sync_last = Duration::from_nanos(self.sync_last_ns.load(Ordering::Relaxed));
        health.sync_mean = Duration::from_nanos(total.checked_div(health.syncs).unwrap_or(0));
        health.file_bytes = self.file_bytes.load(Ordering::Relaxed);
    }
}
