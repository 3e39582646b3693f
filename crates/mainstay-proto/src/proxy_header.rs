//! The header by which a proxy that forwards TCP names its client: PROXY protocol, version 1 (a line) and 2 (binary).
//!
//! The header comes before the client's first byte, and nothing of it may be read beyond its end. So a driver asks
//! [`parse`] how many bytes are certainly missing, reads no more than those, and asks again.
//!
//! Not here: which peers may send a header, and until when (the driver).
//!
//! Source: "The PROXY protocol, versions 1 & 2" by HAProxy (`doc/proxy-protocol.txt`), sections 2.1 and 2.2.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The versions that a listener accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Versions {
    /// Only version 1, the line.
    One,
    /// Only version 2, the binary one.
    Two,
    /// Either.
    Any,
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The address of the proxy's client. `None`: the proxy opened the connection for itself, as a health check, or does
    /// not know the address; the address of the connection counts.
    pub client: Option<SocketAddr>,
    /// Whether the client's connection to the proxy was encrypted. Only version 2 can say so.
    pub over_tls: bool,
}

/// The state of a header that arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// At least so many bytes are missing.
    Needs(usize),
    /// The header is complete. It took all bytes.
    Complete(Header),
}

/// Why bytes are no header. Displays as one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The bytes begin neither version, or a version that is not accepted.
    #[error("the connection does not begin with a PROXY header of an accepted version")]
    NoHeader,
    /// A line that is not as version 1 says.
    #[error("the line of PROXY version 1 is malformed")]
    Line,
    /// A line without an end.
    #[error("the line of PROXY version 1 is longer than 107 bytes")]
    LineTooLong,
    /// A binary header with an unknown version or command, or with addresses that do not fit in its length.
    #[error("the header of PROXY version 2 is malformed")]
    Binary,
    /// A binary header that announces too many bytes.
    #[error("the header of PROXY version 2 is longer than {LONGEST} bytes")]
    BinaryTooLong,
}

/// The first bytes of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The first bytes of version 1.
const PREFIX: &[u8; 6] = b"PROXY ";
/// The longest line of version 1, its end included.
const LONGEST_LINE: usize = 107;
/// The longest header of version 2 that is accepted: addresses and some hundred bytes of additions. The format allows 64 KiB.
pub const LONGEST: usize = 4096;
/// The bytes of version 2 before addresses.
const FIXED: usize = 16;

/// Reads the header at the front of a connection. `bytes` are all that were read so far, and no more than [`Parsed::Needs`]
/// asked for.
///
/// # Errors
/// The bytes are no header, whatever follows: close the connection.
pub fn parse(bytes: &[u8], accepted: Versions) -> Result<Parsed, HeaderError> {
    let begins = |expected: &[u8]| bytes.iter().zip(expected).all(|(byte, expected)| byte == expected);
    if accepted != Versions::Two && begins(PREFIX) {
        return parse_line(bytes);
    }
    if accepted != Versions::One && begins(SIGNATURE) {
        return parse_binary(bytes);
    }
    Err(HeaderError::NoHeader)
}

fn parse_line(bytes: &[u8]) -> Result<Parsed, HeaderError> {
    // The shortest line is that of an unknown protocol.
    let shortest = b"PROXY UNKNOWN\r\n".len();
    if bytes.len() < shortest {
        return Ok(Parsed::Needs(shortest - bytes.len()));
    }
    let Some(line) = bytes.strip_suffix(b"\r\n") else {
        let missing = if bytes.ends_with(b"\r") { 1 } else { 2 };
        // A line feed that is no end would let a line go on behind it.
        return match bytes.len() + missing {
            _ if bytes.contains(&b'\n') => Err(HeaderError::Line),
            length if length > LONGEST_LINE => Err(HeaderError::LineTooLong),
            _ => Ok(Parsed::Needs(missing)),
        };
    };
    let is_one_line = !line.iter().any(|byte| matches!(byte, b'\r' | b'\n'));
    let words = std::str::from_utf8(line).ok().filter(|_| is_one_line).ok_or(HeaderError::Line)?;
    let client = client_of_line(words).ok_or(HeaderError::Line)?;
    Ok(Parsed::Complete(Header { client, over_tls: false }))
}

/// Returns the client of a line; `None` if the line is malformed. Each of its addresses and ports must be written as the
/// format says: a line that two programs read differently lets a client choose its address.
fn client_of_line(line: &str) -> Option<Option<SocketAddr>> {
    let mut words = line.split(' ').skip(1);
    let address: fn(&str) -> Option<IpAddr> = match words.next()? {
        "UNKNOWN" => return Some(None),
        "TCP4" => |word| word.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "TCP6" => |word| word.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => return None,
    };
    let port = |word: &str| {
        let is_number =
            word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
        word.parse::<u16>().ok().filter(|_| is_number)
    };
    let (from, _to) = (address(words.next()?)?, address(words.next()?)?);
    let (from_port, _to_port) = (port(words.next()?)?, port(words.next()?)?);
    words.next().is_none().then(|| Some(SocketAddr::new(from, from_port)))
}

fn parse_binary(bytes: &[u8]) -> Result<Parsed, HeaderError> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
        return Ok(Parsed::Needs(FIXED - bytes.len()));
    };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if FIXED + length > LONGEST {
        return Err(HeaderError::BinaryTooLong);
    }
    match length.checked_sub(rest.len()) {
        Some(0) => {}
        Some(missing) => return Ok(Parsed::Needs(missing)),
        None => return Err(HeaderError::Binary),
    }
    match command {
        // The proxy opened it for itself: the rest is to be ignored.
        0x20 => return Ok(Parsed::Complete(Header { client: None, over_tls: false })),
        0x21 => {}
        _ => return Err(HeaderError::Binary),
    }
    let (client, additions) = addresses(family, rest).ok_or(HeaderError::Binary)?;
    let over_tls = is_over_tls(additions).ok_or(HeaderError::Binary)?;
    Ok(Parsed::Complete(Header { client, over_tls }))
}

/// Returns the client's address, if the family has one, and the bytes behind the addresses. `None`: they do not fit.
fn addresses(family: u8, rest: &[u8]) -> Option<(Option<SocketAddr>, &[u8])> {
    match family >> 4 {
        1 => {
            let ([a, b, c, d, _, _, _, _, high, low, _, _], additions) = rest.split_first_chunk::<12>()?;
            let address = Ipv4Addr::new(*a, *b, *c, *d);
            Some((Some((address, u16::from_be_bytes([*high, *low])).into()), additions))
        }
        2 => {
            let (from, after) = rest.split_first_chunk::<16>()?;
            let (_to, after) = after.split_first_chunk::<16>()?;
            let ([high, low, _, _], additions) = after.split_first_chunk::<4>()?;
            let address = Ipv6Addr::from(*from);
            Some((Some((address, u16::from_be_bytes([*high, *low])).into()), additions))
        }
        // Unix sockets have no address that means something here.
        3 => rest.split_at_checked(216).map(|(_, additions)| (None, additions)),
        0 => Some((None, &[])),
        _ => None,
    }
}

/// Returns whether an addition says that the client's connection was encrypted (`PP2_TYPE_SSL` with `PP2_CLIENT_SSL`).
/// `None`: the additions are malformed.
fn is_over_tls(mut additions: &[u8]) -> Option<bool> {
    let mut over_tls = false;
    while let Some(([kind, high, low], rest)) = additions.split_first_chunk::<3>() {
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([*high, *low])))?;
        over_tls |= *kind == 0x20 && value.first().is_some_and(|client| client & 1 == 1);
        additions = rest;
    }
    additions.is_empty().then_some(over_tls)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a header as a driver does; returns what it says and how many bytes it took.
    fn read(bytes: &[u8], accepted: Versions) -> Result<Option<(Header, usize)>, HeaderError> {
        let mut taken = 0;
        loop {
            match parse(&bytes[..taken], accepted)? {
                Parsed::Complete(header) => return Ok(Some((header, taken))),
                Parsed::Needs(0) => panic!("it asks for nothing"),
                Parsed::Needs(missing) if taken + missing > bytes.len() => return Ok(None),
                Parsed::Needs(missing) => taken += missing,
            }
        }
    }

    fn client_of(bytes: &[u8]) -> Result<Option<SocketAddr>, HeaderError> {
        let (header, taken) = read(bytes, Versions::Any)?.expect("a complete header");
        assert_eq!(taken, bytes.len());
        Ok(header.client)
    }

    /// A header of version 2.
    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0xdc, 0x04, 0x01, 0xbb];

    #[test]
    fn a_line_names_the_client() {
        let check = |line: &str, client: Option<&str>| {
            let client = client.map(|client| client.parse().unwrap());
            assert_eq!(client_of(line.as_bytes()), Ok(client), "{line}");
        };
        check("PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n", Some("192.0.2.7:56324"));
        check("PROXY TCP6 2001:db8::7 ::1 1 0\r\n", Some("[2001:db8::7]:1"));
        check("PROXY UNKNOWN\r\n", None);
        check("PROXY UNKNOWN ffff:f::ffff ffff::ffff 65535 65535\r\n", None);
    }

    #[test]
    fn a_malformed_line_is_refused() {
        for line in [
            "PROXY TCP4 192.0.2.7 10.0.0.1 56324\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 56324 443 \r\n",
            "PROXY TCP4 192.0.2.7  10.0.0.1 56324 443\r\n",
            "PROXY TCP4 ::1 ::1 1 1 padding\r\n",
            "PROXY TCP6 192.0.2.7 10.0.0.1 1 1\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 +1 443\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 01 443\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 65536 443\r\n",
            "PROXY TCP4 192.0.2.007 10.0.0.1 1 443\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 1 443\nx\r\n",
            "PROXY UDP4 192.0.2.7 10.0.0.1 1 443\r\n",
            "PROXY tcp4 192.0.2.7 10.0.0.1 1 443\r\n",
            "PROXY  192.0.2.7 10.0.0.1 1 443\r\n",
            "PROXY UNKNOWN a\nb\r\n",
        ] {
            assert_eq!(read(line.as_bytes(), Versions::Any), Err(HeaderError::Line), "{line}");
        }
        let endless = [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat();
        assert_eq!(read(&endless, Versions::Any), Err(HeaderError::LineTooLong));
    }

    #[test]
    fn a_binary_header_names_the_client_and_whether_its_connection_was_encrypted() {
        assert_eq!(client_of(&binary(0x21, 0x11, &V4)), Ok(Some("192.0.2.7:56324".parse().unwrap())));
        let mut v6 = [0; 36];
        (v6[15], v6[33]) = (1, 80);
        assert_eq!(client_of(&binary(0x21, 0x21, &v6)), Ok(Some("[::1]:80".parse().unwrap())));
        let with = |additions: &[u8]| {
            read(&binary(0x21, 0x11, &[&V4, additions].concat()), Versions::Two).map(|read| read.unwrap().0)
        };
        assert!(with(&[0x20, 0, 5, 1, 0, 0, 0, 0]).unwrap().over_tls);
        assert!(!with(&[0x20, 0, 5, 0, 0, 0, 0, 0]).unwrap().over_tls);
        assert!(!with(&[0x04, 0, 2, 1, 1]).unwrap().over_tls);
        assert_eq!(with(&[0x20, 0, 6, 1, 0, 0, 0, 0]), Err(HeaderError::Binary), "longer than the header");
        assert_eq!(with(&[0x20, 0]), Err(HeaderError::Binary));
    }

    #[test]
    fn a_proxys_own_connection_and_one_without_ip_have_no_client() {
        assert_eq!(client_of(&binary(0x20, 0x11, &V4)), Ok(None));
        assert_eq!(client_of(&binary(0x20, 0, b"what it likes")), Ok(None));
        assert_eq!(client_of(&binary(0x21, 0, &[])), Ok(None));
        assert_eq!(client_of(&binary(0x21, 0x31, &[0; 216])), Ok(None));
    }

    #[test]
    fn a_malformed_binary_header_is_refused() {
        for (command, family, rest) in [
            (0x11, 0x11, &V4[..]),
            (0x22, 0x11, &V4),
            (0x21, 0x11, &V4[..11]),
            (0x21, 0x21, &V4),
            (0x21, 0x31, &V4),
            (0x21, 0x41, &V4),
        ] {
            let bytes = binary(command, family, rest);
            assert_eq!(read(&bytes, Versions::Any), Err(HeaderError::Binary), "{command:x} {family:x}");
        }
        let long = binary(0x21, 0x11, &[0; LONGEST]);
        assert_eq!(read(&long[..FIXED], Versions::Any), Err(HeaderError::BinaryTooLong));
    }

    #[test]
    fn only_an_accepted_version_is_read_and_a_request_is_no_header() {
        let (line, binary) = (b"PROXY UNKNOWN\r\n".to_vec(), binary(0x20, 0, &[]));
        assert!(read(&line, Versions::One).is_ok() && read(&binary, Versions::Two).is_ok());
        assert_eq!(parse(&line, Versions::Two), Err(HeaderError::NoHeader));
        assert_eq!(parse(&binary, Versions::One), Err(HeaderError::NoHeader));
        for other in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PROXYX", b"\x16\x03\x01\x02\x00\x01", b"\r\n\r\nGET"]
        {
            assert_eq!(parse(&other[..other.len().min(6)], Versions::Any), Err(HeaderError::NoHeader));
        }
    }

    #[test]
    fn no_byte_behind_the_header_is_read() {
        for header in [b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n".to_vec(), binary(0x21, 0x11, &V4)] {
            let bytes = [&header[..], b"\r\nGET / HTTP/1.1\r\n\r\n"].concat();
            assert_eq!(read(&bytes, Versions::Any).unwrap().unwrap().1, header.len());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_an_error_within_the_longest_header(
            start in prop::sample::select(vec![b"PROXY ".to_vec(), b"PROXY TCP4 1".to_vec(), SIGNATURE.to_vec(), Vec::new()]),
            rest in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let bytes = [start, rest].concat();
            if let Ok(Some((_, taken))) = read(&bytes, Versions::Any) {
                prop_assert!(taken <= LONGEST);
            }
        }
    }
}
