//! When a machine has something to do next.

use std::time::Instant;

/// Returns the earliest of these times, most of which are `None`. Every poll of every connection asks, so this is one test
/// for each: `flatten().min()` costs more instructions.
#[inline]
pub(crate) fn earliest<const N: usize>(times: [Option<Instant>; N]) -> Option<Instant> {
    times.into_iter().fold(None, |first, time| match (first, time) {
        (Some(first), Some(time)) => Some(first.min(time)),
        (first, time) => first.or(time),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_earliest_time_is_the_smallest_of_those_there_are() {
        let now = crate::origin();
        let [one, two] = [1, 2].map(|seconds| Some(now + Duration::from_secs(seconds)));
        assert_eq!(earliest([None, two, None, one]), one);
        assert_eq!(earliest([one, two]), one);
        assert_eq!(earliest([None, None]), None);
        assert_eq!(earliest([]), None);
    }
}
