//! The two stages of stopping: *drain* (stop accepting, finish what runs) and *force*.

use tokio_util::sync::CancellationToken;

/// A clonable signal that things should stop. Dropping it signals nothing.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    drain: CancellationToken,
    force: CancellationToken,
}

impl Shutdown {
    /// A signal that nobody has given yet.
    pub fn new() -> Shutdown {
        Shutdown::default()
    }

    /// A signal that follows this one and can also be given on its own.
    pub fn child(&self) -> Shutdown {
        Shutdown { drain: self.drain.child_token(), force: self.force.child_token() }
    }

    /// First stage: stop accepting, drain.
    pub fn begin(&self) {
        self.drain.cancel();
    }

    /// Second stage: end now. Implies the first.
    pub fn force(&self) {
        self.drain.cancel();
        self.force.cancel();
    }

    /// Whether the first stage has begun.
    pub fn has_begun(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Completes when the first stage begins.
    pub async fn begun(&self) {
        self.drain.cancelled().await;
    }

    /// Completes when the second stage begins.
    pub async fn forced(&self) {
        self.force.cancelled().await;
    }

    /// Runs `work` until it ends or the first stage begins; `None` if it was stopped.
    pub async fn or_begun<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.drain.cancelled() => None,
            out = work => Some(out),
        }
    }
}
