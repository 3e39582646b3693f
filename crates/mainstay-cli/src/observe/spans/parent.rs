//! The trace that a request belongs to, by its headers `traceparent` and `tracestate`.
//!
//! The propagator of `opentelemetry_sdk` was rejected: it accepts ids that are too short, and knows only the first of several
//! headers.
//!
//! Source: W3C Trace Context, sections 3.2 and 4.3.

use std::str::FromStr;

use http::HeaderValue;
use http::header::{HeaderMap, HeaderName};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// The flags that are passed on: sampled, and that the trace's id is random (level 2).
const FLAGS: u8 = 0x03;

/// Returns the span that a request belongs to. Without a valid one the trace starts again: what the client sent is removed.
pub(super) fn take(fields: &mut HeaderMap) -> Option<SpanContext> {
    let mut values = fields.get_all(TRACEPARENT).iter();
    // Several are none.
    let only = values.next().filter(|_| values.next().is_none());
    let found = only.and_then(|value| parse(value.as_bytes()));
    let Some((trace, span, flags)) = found else {
        fields.remove(TRACEPARENT);
        fields.remove(TRACESTATE);
        return None;
    };
    Some(SpanContext::new(trace, span, flags, true, state(fields)))
}

/// Returns the header of a span.
pub(super) fn header(context: &SpanContext) -> HeaderValue {
    let (trace, span, flags) = (context.trace_id(), context.span_id(), context.trace_flags().to_u8());
    // An id is hexadecimal digits.
    HeaderValue::try_from(format!("00-{trace}-{span}-{flags:02x}"))
        .unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Returns what other systems know of the trace; nothing if it is malformed. The header itself is passed on as it is.
fn state(fields: &HeaderMap) -> TraceState {
    let lines = fields.get_all(TRACESTATE).iter().filter_map(|line| line.to_str().ok());
    let joined = lines.collect::<Vec<_>>().join(",");
    TraceState::from_str(&joined).unwrap_or_default()
}

/// Parses `version-trace-span-flags`. A later version may have more behind a further dash.
fn parse(text: &[u8]) -> Option<(TraceId, SpanId, TraceFlags)> {
    let (head, rest) = text.split_at_checked(55)?;
    let [version, trace, span, flags] = parts(head)?;
    let version = u8::try_from(number(version)?).ok()?;
    let is_whole = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.first().is_none_or(|first| *first == b'-'),
    };
    let trace = TraceId::from(number(trace)?);
    let span = SpanId::from(u64::try_from(number(span)?).ok()?);
    let flags = TraceFlags::new(u8::try_from(number(flags)?).ok()? & FLAGS);
    let is_valid = is_whole && trace != TraceId::INVALID && span != SpanId::INVALID;
    is_valid.then_some((trace, span, flags))
}

fn parts(head: &[u8]) -> Option<[&[u8]; 4]> {
    let mut parts = head.split(|byte| *byte == b'-');
    let four = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    let lengths = four.map(<[u8]>::len);
    (lengths == [2, 32, 16, 2] && parts.next().is_none()).then_some(four)
}

/// Reads hexadecimal digits in lower case.
fn number(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn taken(lines: &[&str]) -> (Option<SpanContext>, HeaderMap) {
        let mut fields = HeaderMap::new();
        for line in lines {
            fields.append(TRACEPARENT, line.parse().unwrap());
        }
        fields.append(TRACESTATE, "a=1".parse().unwrap());
        fields.append(TRACESTATE, "b=2".parse().unwrap());
        (take(&mut fields), fields)
    }

    #[test]
    fn a_valid_parent_is_continued_and_its_headers_stay() {
        for (line, flags) in [
            (format!("00-{TRACE}-{SPAN}-01"), 1),
            (format!("00-{TRACE}-{SPAN}-00"), 0),
            (format!("00-{TRACE}-{SPAN}-ff"), 3),
            (format!("01-{TRACE}-{SPAN}-01-what-comes-later"), 1),
            (format!("cc-{TRACE}-{SPAN}-01"), 1),
        ] {
            let (parent, fields) = taken(&[&line]);
            let parent = parent.unwrap_or_else(|| panic!("{line}"));
            assert_eq!(parent.trace_id().to_string(), TRACE);
            assert_eq!(parent.span_id().to_string(), SPAN);
            assert_eq!(parent.trace_flags().to_u8(), flags, "{line}");
            assert_eq!(parent.trace_state().header(), "a=1,b=2");
            assert_eq!(fields.get_all(TRACESTATE).iter().count(), 2);
        }
    }

    #[test]
    fn an_invalid_parent_starts_the_trace_again() {
        let zeros = |count| "0".repeat(count);
        for line in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("01-{TRACE}-{SPAN}-01more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("0-{TRACE}-{SPAN}-001"),
            format!("00-{}-{SPAN}-01", TRACE.to_ascii_uppercase()),
            format!("00-{}-{SPAN}-01", zeros(32)),
            format!("00-{TRACE}-{}-01", zeros(16)),
            format!("00-{TRACE}-{SPAN}-0g"),
            format!("00_{TRACE}_{SPAN}_01"),
            format!("00-+{}-{SPAN}-01", TRACE.get(1..).unwrap()),
        ] {
            let (parent, fields) = taken(&[&line]);
            assert!(parent.is_none() && fields.is_empty(), "{line}: {fields:?}");
        }
        let valid = format!("00-{TRACE}-{SPAN}-01");
        assert!(matches!(taken(&[&valid, &valid]), (None, fields) if fields.is_empty()), "two of them");
        assert!(matches!(taken(&[]), (None, fields) if fields.is_empty()), "a state without a parent");
    }

    #[test]
    fn a_span_is_written_as_it_is_read() {
        let line = format!("00-{TRACE}-{SPAN}-01");
        let (parent, _) = taken(&[&line]);
        assert_eq!(parent.map(|parent| header(&parent)).unwrap(), line);
    }
}
