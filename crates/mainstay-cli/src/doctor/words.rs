//! Durations and sizes as people read them.

use std::time::Duration;

/// Returns a measured duration: tenths of a second below ten seconds, whole seconds above, minutes and hours where those are exact.
pub(crate) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        _ if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        _ if seconds < 9.95 && (seconds - seconds.round()).abs() >= 0.05 => format!("{seconds:.1} s"),
        _ => age(Duration::from_secs(seconds.round() as u64)),
    }
}

/// Returns the bounds of a measured duration, in tenths of a second below 100 s.
pub(crate) fn bounds(from: Duration, to: Duration) -> String {
    let bound = |duration: Duration| match duration.as_secs_f64() {
        seconds @ 1.0..100.0 => format!("{seconds:.1} s"),
        _ => span(duration),
    };
    format!("between {} and {}", bound(from), bound(to))
}

/// Returns a duration of whole seconds in its largest unit: `90 s`, `5 min`, `2 h`, `5 days`.
pub(crate) fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        86_400.. if seconds.is_multiple_of(86_400) => plural(seconds / 86_400, "day"),
        7_200.. if seconds.is_multiple_of(3_600) => format!("{} h", seconds / 3_600),
        120.. if seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        _ => format!("{seconds} s"),
    }
}

fn plural(count: u64, unit: &str) -> String {
    if count == 1 { format!("1 {unit}") } else { format!("{count} {unit}s") }
}

/// Returns a size in its largest binary unit: `64 KiB`, `1 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0x10_0000.. if bytes.is_multiple_of(0x10_0000) => format!("{} MiB", bytes >> 20),
        0x400.. if bytes.is_multiple_of(0x400) => format!("{} KiB", bytes >> 10),
        _ => plural(bytes, "byte"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_digits_that_people_read() {
        let check = |ms: u64, words: &str| assert_eq!(span(Duration::from_millis(ms)), words);
        check(250, "250 ms");
        check(2_949, "2.9 s");
        check(3_020, "3 s");
        check(59_700, "60 s");
        check(130_000, "130 s");
        check(350_000, "350 s");
        check(240_000, "4 min");
        check(7_200_000, "2 h");
        check(432_000_000, "5 days");
    }

    #[test]
    fn bounds_that_are_near_each_other_are_told_apart() {
        let bounds = |from, to| bounds(Duration::from_millis(from), Duration::from_millis(to));
        assert_eq!(bounds(19_910, 20_060), "between 19.9 s and 20.1 s");
        assert_eq!(bounds(118_000, 121_000), "between 118 s and 121 s");
    }

    #[test]
    fn sizes_are_in_their_largest_binary_unit() {
        assert_eq!(
            [size(1), size(65_536), size(16 << 20), size(1_500)],
            ["1 byte", "64 KiB", "16 MiB", "1500 bytes"]
        );
    }
}
