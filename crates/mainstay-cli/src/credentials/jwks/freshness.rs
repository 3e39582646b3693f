//! For how long an issuer says that its keys are fresh: `Cache-Control`, else `Expires` (RFC 9111 section 4.2).
//!
//! `s-maxage` is for caches that several users share, and this is none. `must-revalidate` is not looked at: the settings say
//! for how long stale keys may be used.

use std::time::{Duration, SystemTime};

use http::header::{AGE, CACHE_CONTROL, DATE, EXPIRES, HeaderMap, HeaderName};

/// Returns how long a response is still fresh. `None`: it does not say. Zero: it must not be kept, or says it wrongly.
pub(super) fn of(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let lines = headers.get_all(CACHE_CONTROL).iter();
    let directives =
        lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let mut max_age = None;
    for directive in directives {
        let (name, value) = pair(directive);
        if name.eq_ignore_ascii_case(b"no-store") || name.eq_ignore_ascii_case(b"no-cache") {
            return Some(Duration::ZERO);
        }
        if name.eq_ignore_ascii_case(b"max-age") {
            // The first of several counts.
            max_age = max_age.or(Some(seconds(value).unwrap_or_default()));
        }
    }
    if let Some(max_age) = max_age {
        let age = headers.get(AGE).and_then(|age| seconds(age.as_bytes())).unwrap_or_default();
        return Some(max_age.saturating_sub(age));
    }
    headers.contains_key(EXPIRES).then(|| {
        let sent = date(headers, &DATE).unwrap_or(now);
        let left = date(headers, &EXPIRES).and_then(|expires| expires.duration_since(sent).ok());
        left.unwrap_or_default()
    })
}

fn pair(directive: &[u8]) -> (&[u8], &[u8]) {
    let mut parts = directive.splitn(2, |byte| *byte == b'=');
    (parts.next().unwrap_or_default().trim_ascii(), parts.next().unwrap_or_default().trim_ascii())
}

/// Parses a number of seconds; one that is too large for 64 bits is the largest.
fn seconds(text: &[u8]) -> Option<Duration> {
    let digits = text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(text);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = std::str::from_utf8(digits).ok()?.parse().unwrap_or(u64::MAX);
    Some(Duration::from_secs(number))
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use http::HeaderValue;

    use super::*;

    #[test]
    fn an_issuer_says_by_cache_control_or_else_by_expires_for_how_long_its_keys_are_fresh() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        let check = |fields: &[(&'static str, &'static str)], expected: Option<u64>| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_static(value));
            }
            assert_eq!(of(&headers, now).map(|left| left.as_secs()), expected, "{fields:?}");
        };
        check(&[], None);
        check(&[("cache-control", "public")], None);
        check(&[("cache-control", "public, max-age=300, must-revalidate")], Some(300));
        check(&[("cache-control", "public"), ("cache-control", "Max-Age = \"300\"")], Some(300));
        check(&[("cache-control", "max-age=300"), ("age", "100")], Some(200));
        check(&[("cache-control", "max-age=300"), ("age", "301")], Some(0));
        check(&[("cache-control", "max-age=300"), ("age", "old")], Some(300));
        check(&[("cache-control", "s-maxage=5, max-age=300, max-age=1")], Some(300));
        check(&[("cache-control", "max-age=99999999999999999999999")], Some(u64::MAX));
        for wrong in ["max-age", "max-age=", "max-age=-1", "max-age=1h", "no-cache, max-age=9", "no-store"] {
            check(&[("cache-control", wrong)], Some(0));
        }
        let (sent, hour_later) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 09:49:37 GMT");
        check(&[("date", sent), ("expires", hour_later)], Some(3600));
        check(&[("expires", hour_later)], Some(3600));
        check(&[("date", hour_later), ("expires", sent)], Some(0));
        check(&[("expires", "0")], Some(0));
        check(&[("expires", "0"), ("cache-control", "max-age=7")], Some(7));
    }
}
