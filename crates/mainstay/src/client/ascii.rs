//! The parts of a URL in ASCII, as browsers send them: `ws://münchen.example/ä b` is `ws://xn--mnchen-3ya.example/%C3%A4%20b`.
//!
//! A path and a query are converted in every program. A host's name needs the tables of Unicode: 43 crates, 14 s of compilation and
//! 170 kB for a program that has no `url` crate yet. So the feature `idn` is off by default, and without it such a name is refused with
//! what to write.
//!
//! Source: URL Standard, "Percent-encoded bytes" and "Host parsing" (url.spec.whatwg.org).

use std::borrow::Cow;

use super::{UrlError, UrlErrorKind};

/// Returns a path and its query, percent-encoded. What is percent-encoded already stays as it is, and so do control characters,
/// which are an error.
pub(super) fn path_and_query(text: &str) -> String {
    let (path, query) = match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    };
    let mut encoded = String::with_capacity(text.len());
    encode(path, b"\"<>`^{}", &mut encoded);
    if let Some(query) = query {
        encoded.push('?');
        encode(query, b"\"<>'", &mut encoded);
    }
    encoded
}

fn encode(text: &str, more: &[u8], to: &mut String) {
    for byte in text.bytes() {
        if byte == b' ' || byte > b'~' || more.contains(&byte) {
            to.push_str(&format!("%{byte:02X}"));
        } else {
            to.push(char::from(byte));
        }
    }
}

/// Returns a host and its port with the host's name in ASCII.
pub(super) fn authority(text: &str) -> Result<Cow<'_, str>, UrlError> {
    if text.is_ascii() {
        return Ok(Cow::Borrowed(text));
    }
    let (host, port) = text.split_at(text.rfind(':').unwrap_or(text.len()));
    Ok(Cow::Owned(format!("{}{port}", name(host)?)))
}

#[cfg(feature = "idn")]
fn name(host: &str) -> Result<Cow<'_, str>, UrlError> {
    let converted = idna::domain_to_ascii_cow(host.as_bytes(), idna::AsciiDenyList::URL);
    converted.map_err(|_| {
        UrlError::new(
            UrlErrorKind::Host,
            format!("{}: not the name of a host; write it as in ws://host:port", host.escape_debug()),
        )
    })
}

#[cfg(not(feature = "idn"))]
fn name(host: &str) -> Result<Cow<'_, str>, UrlError> {
    let words = format!(
        "{}: a host beyond ASCII needs the feature `idn` of the crate `mainstay`, or its name that begins with xn--",
        host.escape_debug()
    );
    Err(UrlError::new(UrlErrorKind::Host, words))
}
