//! Time inside a simulation: the paused clock of its runtime. Each process counts from its own
//! start, and each mesh has a wall clock that can jump.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use hamlet_runtime::Clock;
use tokio::time::Instant;

/// Where wall clocks begin: some moment after the epoch.
const WALL_BASE: Duration = Duration::from_secs(1_800_000_000);

/// The clock of one process.
#[derive(Debug)]
pub(crate) struct SimClock {
    start: Instant,
    world: Instant,
    jumps: Arc<AtomicI64>,
}

impl SimClock {
    /// A process that starts now in a world that began at `world`; `jumps` is how far its wall
    /// clock is off, in seconds.
    pub(crate) fn new(world: Instant, jumps: Arc<AtomicI64>) -> SimClock {
        SimClock { start: Instant::now(), world, jumps }
    }
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall(&self) -> Duration {
        let true_time = WALL_BASE + self.world.elapsed();
        let off = self.jumps.load(Ordering::SeqCst);
        let by = Duration::from_secs(off.unsigned_abs());
        if off < 0 { true_time.saturating_sub(by) } else { true_time + by }
    }
}
