//! Ages as people read them. For show only: never parsed back.

/// `450ms` is `0s`, then `12s`, `3m20s`, `45m`, `3h20m`, `30h`, `5d`: two units at most, fewer
/// digits the older it gets.
pub fn human_age(ms: u64) -> String {
    let seconds = ms / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |major: u64, unit: char, minor: u64, small: char| {
        if minor == 0 { format!("{major}{unit}") } else { format!("{major}{unit}{minor}{small}") }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, 'd', hours % 24, 'h'),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::human_age;

    #[test]
    fn an_age_has_at_most_two_units_and_never_a_zero_second_one() {
        let s = 1000;
        for (ms, text) in [
            (0, "0s"),
            (999, "0s"),
            (12 * s, "12s"),
            (119 * s, "119s"),
            (180 * s, "3m"),
            (200 * s, "3m20s"),
            (45 * 60 * s, "45m"),
            (200 * 60 * s, "3h20m"),
            (30 * 3600 * s, "30h"),
            (76 * 3600 * s, "3d4h"),
            (9 * 86_400 * s, "9d"),
        ] {
            assert_eq!(human_age(ms), text);
        }
    }
}
