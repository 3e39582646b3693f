//! A server's response to the opening handshake: its head, and the body of one that opens no WebSocket.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use mainstay_proto::failure::Failure;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The largest head of a response, with the interim responses before it, and the largest number of fields in it.
const MAX_HEAD: usize = 64 * 1024;
const MAX_FIELDS: usize = 256;
/// The largest part of a rejection's body that is kept, and the time to wait for it.
const MAX_BODY: usize = 64 * 1024;
const BODY_TIME: Duration = Duration::from_secs(2);

/// The HTTP response by which a server declined to open a WebSocket.
///
/// ```no_run
/// # async fn run() -> Result<(), mainstay::client::UrlError> {
/// let connected = mainstay::Client::builder("wss://chat.example/")?.connect_once().await;
/// if let Err(error) = connected
///     && let Some(rejection) = error.rejection()
/// {
///     println!("{}: {}", rejection.status, String::from_utf8_lossy(&rejection.body));
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rejection {
    /// The status.
    pub status: StatusCode,
    /// The header fields. `Content-Length` and `Transfer-Encoding` are as the server sent them.
    pub headers: HeaderMap,
    /// The body, with the transfer coding removed.
    pub body: Bytes,
    /// Whether the body is complete: it had at most 64 KiB and came within 2 s.
    pub is_complete: bool,
}

/// The head of a response, and the bytes that came behind it.
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) rest: Vec<u8>,
}

/// Reads the head of the final response, and skips interim ones (100, 102, 103).
///
/// Source: RFC 9110 section 15.2.
pub(super) async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Result<Head, Failure> {
    let (mut bytes, mut taken) = (Vec::with_capacity(1024), 0);
    loop {
        let known = bytes.len();
        if taken + known >= MAX_HEAD {
            return Err("the response's head is larger than 64 KiB".into());
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err("the server closed the connection without a response".into());
        }
        // The first bytes show whether it is HTTP at all, the others only whether the head has come to its end.
        let mut is_worth_a_look = taken == 0 && known == 0 || ends_head(&bytes, known);
        while std::mem::take(&mut is_worth_a_look) {
            let Some((status, headers, size)) = parse(&bytes)? else { break };
            let rest = bytes.split_off(size);
            if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
                return Ok(Head { status, headers, rest });
            }
            (taken, bytes) = (taken + size, rest);
            is_worth_a_look = !bytes.is_empty();
        }
    }
}

/// Whether an empty line has come, in the bytes from `known` on.
fn ends_head(bytes: &[u8], known: usize) -> bool {
    let new = bytes.get(known.saturating_sub(3)..).unwrap_or_default();
    new.windows(2).any(|two| two == b"\n\n") || new.windows(3).any(|three| three == b"\n\r\n")
}

fn parse(bytes: &[u8]) -> Result<Option<(StatusCode, HeaderMap, usize)>, Failure> {
    if bytes.first() == Some(&0x15) {
        // An alert: the record with which a TLS server responds to a request in clear text.
        return Err("the server speaks TLS at this port: write wss://".into());
    }
    let mut slots = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut slots);
    let not_http = |error| Failure::caused_by(error, format!("the server's answer is no HTTP: {error}"));
    let parsed = response.parse(bytes).map_err(not_http)?;
    let httparse::Status::Complete(size) = parsed else { return Ok(None) };
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or("the response has no status")?;
    let mut headers = HeaderMap::new();
    for field in response.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value)) {
            headers.append(name, value);
        }
    }
    Ok(Some((status, headers, size)))
}

impl Rejection {
    /// Reads the body, up to the part that is kept.
    pub(super) async fn read(head: Head, stream: &mut (impl AsyncRead + Unpin)) -> Self {
        let Head { status, headers, rest: mut raw } = head;
        let body = Body::of(status, &headers);
        let reading = async {
            while body.decoded(&raw).is_none() && raw.len() < MAX_BODY {
                match stream.read_buf(&mut raw).await {
                    Ok(0) => return matches!(body, Body::UntilTheEnd),
                    Ok(_) => {}
                    Err(_) => return false,
                }
            }
            body.decoded(&raw).is_some()
        };
        let is_complete = tokio::time::timeout(BODY_TIME, reading).await.unwrap_or(false);
        let mut kept = body.decoded(&raw).unwrap_or_else(|| body.begun(&raw));
        let is_complete = is_complete && kept.len() <= MAX_BODY;
        kept.truncate(MAX_BODY);
        Self { status, headers, body: Bytes::from(kept), is_complete }
    }
}

/// Where a body ends.
///
/// Source: RFC 9112 section 6.3.
enum Body {
    Bytes(usize),
    Chunks,
    UntilTheEnd,
}

impl Body {
    fn of(status: StatusCode, headers: &HeaderMap) -> Self {
        if matches!(
            status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED | StatusCode::SWITCHING_PROTOCOLS
        ) {
            return Self::Bytes(0);
        }
        let last = |name: HeaderName| headers.get_all(name).iter().next_back();
        if let Some(coding) = last(TRANSFER_ENCODING) {
            let is_chunked = coding.as_bytes().to_ascii_lowercase().ends_with(b"chunked");
            return if is_chunked { Self::Chunks } else { Self::UntilTheEnd };
        }
        let length = last(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.trim().parse().ok());
        length.map_or(Self::UntilTheEnd, Self::Bytes)
    }

    /// The body, if `raw` contains all of it.
    fn decoded(&self, raw: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Bytes(length) => raw.get(..*length).map(<[u8]>::to_vec),
            Self::Chunks => match chunks(raw) {
                (body, true) => Some(body),
                (_, false) => None,
            },
            Self::UntilTheEnd => None,
        }
    }

    /// The part of the body that `raw` contains.
    fn begun(&self, raw: &[u8]) -> Vec<u8> {
        match self {
            Self::Chunks => chunks(raw).0,
            Self::Bytes(_) | Self::UntilTheEnd => raw.to_vec(),
        }
    }
}

/// The chunks in `raw`, and whether the last chunk is among them.
fn chunks(mut raw: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Ok(httparse::Status::Complete((begin, size))) = httparse::parse_chunk_size(raw) {
        if size == 0 {
            return (body, true);
        }
        let data = raw.get(begin..).unwrap_or_default();
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let Some((chunk, after)) = data.split_at_checked(size) else {
            body.extend_from_slice(data);
            break;
        };
        body.extend_from_slice(chunk);
        let Some(next) = after.strip_prefix(b"\r\n") else { break };
        raw = next;
    }
    (body, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result of a client that receives these bytes one by one, and then the end of the stream.
    async fn read(bytes: &[u8]) -> Result<Rejection, Failure> {
        let (client, mut server) = tokio::io::duplex(1);
        let mut client = client;
        let bytes = bytes.to_vec();
        tokio::spawn(async move {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut server, &bytes).await;
        });
        let head = read_head(&mut client).await?;
        Ok(Rejection::read(head, &mut client).await)
    }

    async fn body(bytes: &[u8]) -> (String, bool) {
        let rejection = read(bytes).await.unwrap();
        (String::from_utf8(rejection.body.to_vec()).unwrap(), rejection.is_complete)
    }

    #[tokio::test]
    async fn interim_responses_are_skipped() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n";
        let rejection = read(format!("{interim}HTTP/1.1 401 No\r\nX: y\r\n\r\n").as_bytes()).await.unwrap();
        assert_eq!((rejection.status.as_u16(), rejection.headers.len()), (401, 1));
        let endless = interim.repeat(2000);
        assert!(read(endless.as_bytes()).await.is_err(), "they are bounded");
    }

    #[tokio::test]
    async fn a_head_has_64_kib_and_256_fields_at_most() {
        let head = |fields: usize, size: usize| {
            let fields: String = (0..fields).map(|n| format!("F{n}: {}\r\n", "x".repeat(size))).collect();
            format!("HTTP/1.1 503 Later\r\n{fields}\r\n").into_bytes()
        };
        assert_eq!(read(&head(256, 100)).await.unwrap().headers.len(), 256);
        assert!(read(&head(257, 1)).await.is_err());
        assert!(read(&head(2, 20_000)).await.is_ok());
        assert!(read(&head(4, 20_000)).await.is_err());
    }

    #[tokio::test]
    async fn the_body_of_a_rejection_is_read_as_its_head_states() {
        let check = async |head: &str, raw: &str, expected: (&str, bool)| {
            let bytes = format!("HTTP/1.1 403 No\r\n{head}\r\n{raw}");
            assert_eq!(body(bytes.as_bytes()).await, (expected.0.to_owned(), expected.1), "{head:?} {raw:?}");
        };
        check("Content-Length: 5\r\n", "words and more", ("words", true)).await;
        check("Content-Length: 9\r\n", "words", ("words", false)).await;
        check("", "until the end", ("until the end", true)).await;
        check("Transfer-Encoding: chunked\r\n", "5\r\nwords\r\n1;x=y\r\n!\r\n0\r\n\r\n", ("words!", true))
            .await;
        check("Transfer-Encoding: chunked\r\n", "5\r\nwords\r\n9\r\ncut", ("wordscut", false)).await;
        check("Transfer-Encoding: chunked\r\n", "no size", ("", false)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn reading_a_rejection_is_bounded_in_time_and_in_bytes() {
        let (mut client, mut server) = tokio::io::duplex(1024);
        let silent = b"HTTP/1.1 500 Oops\r\nContent-Length: 9\r\n\r\nwords";
        tokio::io::AsyncWriteExt::write_all(&mut server, silent).await.unwrap();
        let head = read_head(&mut client).await.unwrap();
        let rejection = Rejection::read(head, &mut client).await;
        assert_eq!((rejection.body.as_ref(), rejection.is_complete), (&b"words"[..], false));
        let large = format!("HTTP/1.1 500 Oops\r\nContent-Length: 99999\r\n\r\n{}", "x".repeat(99_999));
        let rejection = read(large.as_bytes()).await.unwrap();
        assert_eq!((rejection.body.len(), rejection.is_complete), (MAX_BODY, false));
    }

    #[tokio::test]
    async fn a_response_that_is_no_http_is_reported_at_once() {
        let check = async |bytes: &[u8], words: &str| {
            let Err(failure) = read(bytes).await else { panic!("{bytes:?}") };
            assert!(failure.message().contains(words), "{failure}");
        };
        check(&[0x15, 3, 1, 0, 2, 2, 70], "write wss://").await;
        check(b"SSH-2.0-OpenSSH_9.7\r\n", "no HTTP").await;
        check(b"", "closed the connection").await;
    }
}
