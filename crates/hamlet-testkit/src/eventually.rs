//! Waiting for a condition by polling, with a deadline that only a broken program misses.
//!
//! Not for measuring: a test that depends on how soon something happens is wrong.

use std::time::Duration;

/// A deadline that a loaded machine doesn't miss.
pub const GENEROUS: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// Polls `condition` every 10 ms until it is true. Panics with `what` after `deadline`.
pub async fn eventually(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(POLL).await;
        }
    };
    if tokio::time::timeout(deadline, poll).await.is_err() {
        panic!("not within {deadline:?}: {what}");
    }
}

/// The same for an attempt that awaits and has a result: polls until it is `Ok` and returns that.
/// Panics with `what` and the last error after `deadline`.
pub async fn eventually_ok<T, E: std::fmt::Debug>(
    what: &str,
    deadline: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let mut last = None;
    let poll = async {
        loop {
            match attempt().await {
                Ok(value) => return value,
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(POLL).await;
        }
    };
    match tokio::time::timeout(deadline, poll).await {
        Ok(value) => value,
        Err(_) => panic!("not within {deadline:?}: {what}; last: {last:?}"),
    }
}
