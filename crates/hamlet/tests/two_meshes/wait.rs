//! Waiting for what must come: polling with a generous deadline, never a fixed pause.
#![allow(clippy::disallowed_methods, reason = "a test's deadline is real time")]

use std::time::{Duration, Instant};

/// Far more than anything takes; only a failure waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks until it sees what is expected and returns it. Panics with what it saw instead.
#[track_caller]
pub(crate) fn until<T>(expected: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if Instant::now() > deadline => panic!("expected: {expected}; seen at last: {seen}"),
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// The same for a condition.
#[track_caller]
pub(crate) fn until_true(expected: &str, mut condition: impl FnMut() -> bool) {
    until(expected, || if condition() { Ok(()) } else { Err("not so".to_owned()) });
}

/// How long something took, for bounds that a configuration promises.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let out = work();
    (out, start.elapsed())
}
