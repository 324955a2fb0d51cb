//! Clocks, passed in everywhere: nothing else reads the system's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Time as the program sees it.
pub trait Clock: Send + Sync + 'static {
    /// Monotonic time since the clock was made. For every timer and age.
    fn now(&self) -> Duration;
    /// Wall clock since the Unix epoch. Only for certificate validity and for showing to people.
    fn wall(&self) -> Duration;
}

/// The system's clocks.
#[derive(Debug, Clone)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock that starts now.
    #[allow(clippy::disallowed_methods)] // the one home of the system clock
    pub fn new() -> SystemClock {
        SystemClock { start: Instant::now() }
    }

    /// The same, behind the trait.
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(SystemClock::new())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    #[allow(clippy::disallowed_methods)] // the one home of the system clock
    fn wall(&self) -> Duration {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }
}

/// A clock that moves only when told to; for tests.
#[derive(Debug, Default)]
pub struct ManualClock {
    now_ms: AtomicU64,
    wall_ms: AtomicU64,
}

impl ManualClock {
    /// A clock at zero, its wall clock at `wall` since the epoch.
    pub fn at(wall: Duration) -> Arc<ManualClock> {
        let clock = ManualClock::default();
        clock.wall_ms.store(wall.as_millis() as u64, Ordering::SeqCst);
        Arc::new(clock)
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        self.now_ms.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
        self.wall_ms.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }

    /// Sets the wall clock only.
    pub fn set_wall(&self, wall: Duration) {
        self.wall_ms.store(wall.as_millis() as u64, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        Duration::from_millis(self.now_ms.load(Ordering::SeqCst))
    }
    fn wall(&self) -> Duration {
        Duration::from_millis(self.wall_ms.load(Ordering::SeqCst))
    }
}
