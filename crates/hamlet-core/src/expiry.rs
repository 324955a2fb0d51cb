//! When the end of a certificate's validity begins to matter to a person. Pure; knows no certificate.
//!
//! Invariant: the levels only rise as time passes.

use std::fmt;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Above the first of these nothing is said; each below is a level of its own.
const MONTH_LEFT: Duration = Duration::from_secs(30 * DAY.as_secs());
const WEEK_LEFT: Duration = Duration::from_secs(7 * DAY.as_secs());
/// Of a short life, the part below which every level is reached: whoever renews does so when a third
/// is left, so that at a sixth the renewal is overdue.
const OVERDUE_PART: u32 = 6;

/// How near the end of a validity is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Expiry {
    /// Nothing to do.
    #[default]
    Far,
    /// Less than 30 days are left.
    Month,
    /// Less than 7 days are left.
    Week,
    /// Less than a day is left.
    Day,
    /// It is over.
    Over,
}

impl Expiry {
    /// The level at `now` of a validity from `not_before` to `not_after` (all since the epoch). A life
    /// too short for a threshold has a sixth of itself instead.
    pub fn at(now: Duration, not_before: Duration, not_after: Duration) -> Expiry {
        let Some(left) = not_after.checked_sub(now).filter(|left| !left.is_zero()) else {
            return Expiry::Over;
        };
        let overdue = not_after.saturating_sub(not_before) / OVERDUE_PART;
        let below = |threshold: Duration| left < threshold.min(overdue);
        match () {
            () if below(DAY) => Expiry::Day,
            () if below(WEEK_LEFT) => Expiry::Week,
            () if below(MONTH_LEFT) => Expiry::Month,
            () => Expiry::Far,
        }
    }

    /// The stable word for logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Expiry::Far => "far",
            Expiry::Month => "month",
            Expiry::Week => "week",
            Expiry::Day => "day",
            Expiry::Over => "over",
        }
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(life: Duration, left: Duration) -> Expiry {
        let from = Duration::from_secs(1_700_000_000);
        Expiry::at(from + life - left, from, from + life)
    }

    #[test]
    fn a_year_is_spoken_of_at_thirty_seven_and_one_days_and_at_its_end() {
        let year = 365 * DAY;
        let second = Duration::from_secs(1);
        for (left, expected) in [
            (year, Expiry::Far),
            (30 * DAY, Expiry::Far),
            (30 * DAY - second, Expiry::Month),
            (7 * DAY, Expiry::Month),
            (7 * DAY - second, Expiry::Week),
            (DAY, Expiry::Week),
            (DAY - second, Expiry::Day),
            (second, Expiry::Day),
            (Duration::ZERO, Expiry::Over),
        ] {
            assert_eq!(level(year, left), expected, "{left:?} left");
        }
    }

    #[test]
    fn a_day_that_is_renewed_in_time_is_never_spoken_of() {
        // Renewed when a third is left; said when that did not happen.
        assert_eq!(level(DAY, DAY / 3), Expiry::Far);
        assert_eq!(level(DAY, DAY / 6 + Duration::from_secs(1)), Expiry::Far);
        assert_eq!(level(DAY, DAY / 6 - Duration::from_secs(1)), Expiry::Day);
    }

    #[test]
    fn the_level_only_rises_whatever_the_life() {
        for hours in [1, 24, 24 * 9, 24 * 90, 24 * 3650] {
            let life = Duration::from_secs(hours * 3600);
            let levels: Vec<_> = (0..=1000).map(|i| level(life, life - life * i / 1000)).collect();
            assert!(levels.is_sorted(), "{hours} h");
            assert_eq!(levels.first(), Some(&Expiry::Far), "{hours} h");
            assert_eq!(levels.last(), Some(&Expiry::Over), "{hours} h");
        }
    }
}
