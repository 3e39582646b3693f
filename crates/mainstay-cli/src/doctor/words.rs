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
        _ => format!("{bytes} bytes"),
    }
}
