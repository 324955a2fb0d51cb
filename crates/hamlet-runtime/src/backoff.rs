//! The one place where retries wait: exponential with full jitter.

use std::time::Duration;

/// Delays between attempts: uniformly random between zero and a ceiling that doubles from
/// `first` to `cap`. The very first delay is never shorter than half of `first`, so that a
/// restarting owner isn't met by all of its peers in the same instant.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    attempt: u32,
}

impl Backoff {
    /// Starts at `first`, never exceeds `cap`.
    pub fn new(first: Duration, cap: Duration) -> Backoff {
        Backoff { first, cap, attempt: 0 }
    }

    /// The next delay, drawn from the thread's generator.
    pub fn next_delay(&mut self) -> Duration {
        self.next_with(rand::random::<f64>())
    }

    /// The next delay for a given draw in `[0, 1)`.
    pub fn next_with(&mut self, draw: f64) -> Duration {
        let ceiling = self.first.saturating_mul(1u32 << self.attempt.min(20)).min(self.cap);
        let floor = if self.attempt == 0 { self.first / 2 } else { Duration::ZERO };
        self.attempt = self.attempt.saturating_add(1);
        floor + (ceiling - floor.min(ceiling)).mul_f64(draw)
    }

    /// Changes the ceiling that delays never exceed.
    pub fn set_cap(&mut self, cap: Duration) {
        self.cap = cap;
    }

    /// How many delays were drawn since the last reset.
    pub fn attempts(&self) -> u32 {
        self.attempt
    }

    /// Starts over; call it only after proven health, never after a mere connect.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_cap_and_reset_starts_over() {
        let mut b = Backoff::new(Duration::from_secs(1), Duration::from_secs(4));
        let top: Vec<_> = (0..5).map(|_| b.next_with(1.0).as_secs()).collect();
        assert_eq!(top, [1, 2, 4, 4, 4]);
        b.reset();
        assert_eq!(b.next_with(0.0), Duration::from_millis(500));
        assert_eq!(b.next_with(0.0), Duration::ZERO);
    }
}
