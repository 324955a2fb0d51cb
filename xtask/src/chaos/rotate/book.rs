//! What happened, as it is seen from outside: calls and how long they took, every failure with its
//! time and error, and when what was rotated. It judges nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hamlet_runtime::{Clock, SystemClock};

/// Most failures that are kept in words; all are counted.
const FAILURES_KEPT: usize = 100;
/// So far back from a failure its events are told.
const BEFORE_FAILURE: Duration = Duration::from_secs(3);

/// How a call is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Bytes on a new connection, through the service's own egress address.
    NewRaw,
    /// HTTP on a new connection, through the service's own egress address.
    NewWeb,
    /// HTTP on a new connection to the shared listener.
    NewShared,
    /// Bytes on a connection that is kept.
    KeptRaw,
    /// HTTP on a connection to the shared listener that is kept.
    KeptShared,
    /// One piece of a stream that never pauses for long.
    Stream,
}

impl Kind {
    /// All, in order.
    pub(super) const ALL: [Kind; 6] =
        [Kind::NewRaw, Kind::NewWeb, Kind::NewShared, Kind::KeptRaw, Kind::KeptShared, Kind::Stream];

    /// Whether each call opens a connection.
    pub(super) fn is_new(self) -> bool {
        matches!(self, Kind::NewRaw | Kind::NewWeb | Kind::NewShared)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::NewRaw => "bytes, new connection",
            Kind::NewWeb => "HTTP, new connection",
            Kind::NewShared => "HTTP by Host, new connection",
            Kind::KeptRaw => "bytes, kept connection",
            Kind::KeptShared => "HTTP by Host, kept connection",
            Kind::Stream => "pieces of streams",
        })
    }
}

/// All calls of one kind.
#[derive(Debug, Clone, Default)]
pub(super) struct Calls {
    /// How long each good one took.
    pub(super) took: Vec<Duration>,
    /// Those that failed.
    pub(super) failed: u64,
    /// Connections that were opened for them.
    pub(super) connections: u64,
    /// Of the kept connections, those that were still used after our own or the peer's gateway had got
    /// a new certificate.
    pub(super) outlived: u64,
}

impl Calls {
    /// Good and failed ones.
    pub(super) fn count(&self) -> u64 {
        self.took.len() as u64 + self.failed
    }
}

#[derive(Default)]
struct Pages {
    calls: BTreeMap<Kind, Calls>,
    failures: Vec<(Duration, String)>,
    events: Vec<(Duration, String)>,
}

/// The record of a run, shared by all that takes part in it.
#[derive(Clone)]
pub(super) struct Book {
    clock: Arc<SystemClock>,
    pages: Arc<Mutex<Pages>>,
}

impl Book {
    /// An empty one, from now on.
    pub(super) fn new() -> Book {
        Book { clock: Arc::new(SystemClock::new()), pages: Arc::default() }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time since it was begun.
    pub(super) fn now(&self) -> Duration {
        self.clock.now()
    }

    /// A connection was opened for calls.
    pub(super) fn connected(&self, kind: Kind) {
        self.pages().calls.entry(kind).or_default().connections += 1;
    }

    /// A kept connection has seen a rotation of a gateway.
    pub(super) fn outlived(&self, kind: Kind) {
        self.pages().calls.entry(kind).or_default().outlived += 1;
    }

    /// A call that began at `began` is over.
    pub(super) fn called(&self, kind: Kind, from: &str, began: Duration, outcome: anyhow::Result<()>) {
        let now = self.now();
        match outcome {
            Ok(()) => self.pages().calls.entry(kind).or_default().took.push(now - began),
            Err(error) => {
                self.pages().calls.entry(kind).or_default().failed += 1;
                let took = (now - began).as_millis();
                self.failed(&format!("{kind} from {from}, begun {took} ms before: {error:#}"));
            }
        }
    }

    /// Something else went wrong.
    pub(super) fn failed(&self, what: &str) {
        let now = self.now();
        let mut pages = self.pages();
        if pages.failures.len() < FAILURES_KEPT {
            pages.failures.push((now, what.to_owned()));
        }
    }

    /// Something was rotated.
    pub(super) fn event(&self, what: String) {
        let now = self.now();
        self.pages().events.push((now, what));
    }

    /// All calls of a kind.
    pub(super) fn calls(&self, kind: Kind) -> Calls {
        self.pages().calls.get(&kind).cloned().unwrap_or_default()
    }

    /// Whether more went wrong than is kept in words: then the rest tells nothing new.
    pub(super) fn is_full(&self) -> bool {
        self.pages().failures.len() >= FAILURES_KEPT
    }

    /// Every failure with what was rotated right before it.
    pub(super) fn story(&self) -> Vec<String> {
        let pages = self.pages();
        let at = |when: &Duration| format!("{:.3}", when.as_secs_f64());
        let told = pages.failures.iter().map(|(when, what)| {
            let near = pages.events.iter().filter(|(e, _)| e <= when && *when - *e <= BEFORE_FAILURE);
            let near: Vec<String> = near.map(|(e, what)| format!("{} {what}", at(e))).collect();
            format!("at {}: {what} [before it: {}]", at(when), near.join("; "))
        });
        told.collect()
    }
}

/// The value below which `share` of the sorted `took` lies.
pub(super) fn quantile(took: &[Duration], share: f64) -> Duration {
    let index = (took.len() as f64 * share) as usize;
    took.get(index.min(took.len().saturating_sub(1))).copied().unwrap_or_default()
}
