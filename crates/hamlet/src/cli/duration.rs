//! Durations as people type them.

use std::time::Duration;

/// Longest duration of a flag: a day.
const MAX: Duration = Duration::from_secs(86_400);

/// `500ms`, `30s`, `5m`, `1h`; a bare number is seconds. Zero and more than a day are refused.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let number: u64 = digits.parse().map_err(|_| "write it like 500ms, 30s or 5m".to_owned())?;
    let ms = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        other => return Err(format!("unknown unit {other:?}: use ms, s, m or h")),
    };
    let duration = Duration::from_millis(number.saturating_mul(ms));
    if duration.is_zero() || duration > MAX {
        return Err("must be more than zero and at most a day".to_owned());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_durations_are_refused_and_their_neighbours_accepted() {
        for (bad, good) in [
            ("", "1"),
            ("0s", "1s"),
            ("5x", "5m"),
            ("-3s", "3s"),
            ("1.5s", "1500ms"),
            ("25h", "24h"),
            ("99999999999999999999s", "99s"),
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was accepted");
            assert!(parse(good).is_ok(), "{good:?} was refused");
        }
        assert_eq!(parse("1500ms").unwrap(), Duration::from_millis(1500));
    }
}
