//! Heads and bodies of HTTP/1.1, as far as a proxy must know them to find where the next head begins.

/// The longest head that is read; a connection with a longer one is unreadable.
pub(crate) const LONGEST_HEAD: usize = 32 * 1024;

const MOST_FIELDS: usize = 128;

/// A head, read bit by bit.
#[derive(Debug, Default)]
pub(crate) struct Head {
    bytes: Vec<u8>,
}

/// What was found out about a head.
pub(crate) enum Parsed<T> {
    /// It goes on.
    Partial,
    /// It ends after so many of the bytes just given.
    Complete(usize, T),
    /// This is no HTTP/1.1.
    Unreadable,
}

/// What a request means for what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) is_head: bool,
    pub(crate) is_upgrade: bool,
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    /// After so many bytes.
    Length(u64),
    /// After the last chunk.
    Chunked(Chunk),
    /// With the connection.
    UntilEnd,
}

/// Where in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunk {
    Size { value: u64, is_over: bool },
    Data(u64),
    AfterData,
    Trailer { is_empty: bool },
}

impl Head {
    /// Whether no byte of it was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn read_request(&mut self, bytes: &[u8]) -> Parsed<(Request, Body)> {
        self.read(bytes, u8::is_ascii_uppercase, |head| {
            let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
            let mut request = httparse::Request::new(&mut fields);
            let httparse::Status::Complete(length) = request.parse(head)? else { return Ok(None) };
            let method = request.method.unwrap_or_default();
            let Some(body) = body(request.headers).filter(|_| method != "CONNECT") else {
                return Err(httparse::Error::Token);
            };
            let is_upgrade = body.is_none()
                && request.headers.iter().any(|field| {
                    field.name.eq_ignore_ascii_case("upgrade") && has_token(field.value, "websocket")
                });
            let request = Request { is_head: method == "HEAD", is_upgrade };
            Ok(Some((length, (request, body.unwrap_or(Body::Length(0))))))
        })
    }

    /// Reads the head of an answer to `request`: its status, and its body.
    pub(crate) fn read_response(&mut self, bytes: &[u8], request: Option<Request>) -> Parsed<(u16, Body)> {
        self.read(
            bytes,
            |first| *first == b'H',
            |head| {
                let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
                let mut response = httparse::Response::new(&mut fields);
                let httparse::Status::Complete(length) = response.parse(head)? else { return Ok(None) };
                let status = response.code.unwrap_or_default();
                let has_none =
                    matches!(status, 100..=199 | 204 | 304) || request.is_some_and(|it| it.is_head);
                let body = match body(response.headers) {
                    _ if has_none => Body::Length(0),
                    Some(body) => body.unwrap_or(Body::UntilEnd),
                    None => return Err(httparse::Error::Token),
                };
                Ok(Some((length, (status, body))))
            },
        )
    }

    /// `parse` returns the length of the whole head. It is called only after the end of a line, and only up to the bound, so that a head
    /// that comes byte by byte costs little.
    fn read<T>(
        &mut self,
        bytes: &[u8],
        may_begin: impl Fn(&u8) -> bool,
        parse: impl Fn(&[u8]) -> Result<Option<(usize, T)>, httparse::Error>,
    ) -> Parsed<T> {
        if self.bytes.is_empty() && !bytes.first().is_some_and(may_begin) {
            return Parsed::Unreadable;
        }
        let before = self.bytes.len();
        let more = &bytes[..bytes.len().min(LONGEST_HEAD - before)];
        self.bytes.extend_from_slice(more);
        let parsed = if more.contains(&b'\n') { parse(&self.bytes) } else { Ok(None) };
        match parsed {
            Ok(Some((length, parsed))) => {
                self.bytes = Vec::new();
                Parsed::Complete(length.saturating_sub(before), parsed)
            }
            Ok(None) if self.bytes.len() < LONGEST_HEAD => Parsed::Partial,
            Ok(None) | Err(_) => {
                self.bytes = Vec::new();
                Parsed::Unreadable
            }
        }
    }
}

/// Returns a whole answer, after which the connection ends.
pub(crate) fn answer(code: u16, retry_after: Option<u32>, without_body: bool) -> Vec<u8> {
    let reason =
        http::StatusCode::from_u16(code).ok().and_then(|code| code.canonical_reason()).unwrap_or("Error");
    let body = format!("{code} {reason}\n");
    let mut answer = format!("HTTP/1.1 {code} {reason}\r\nContent-Type: text/plain\r\n");
    answer += &format!("Content-Length: {}\r\nConnection: close\r\n", body.len());
    if let Some(seconds) = retry_after {
        answer += &format!("Retry-After: {seconds}\r\n");
    }
    answer += "\r\n";
    if !without_body && code != 304 {
        answer += &body;
    }
    answer.into_bytes()
}

/// Returns the body that these fields announce; `Some(None)`: they announce none; `None`: they contradict each other.
fn body(fields: &[httparse::Header<'_>]) -> Option<Option<Body>> {
    let mut length = None;
    for field in fields {
        if field.name.eq_ignore_ascii_case("transfer-encoding") {
            let chunked = Body::Chunked(Chunk::Size { value: 0, is_over: false });
            return has_token(field.value, "chunked").then_some(Some(chunked));
        }
        if field.name.eq_ignore_ascii_case("content-length") {
            let value = std::str::from_utf8(field.value).ok()?.trim().parse().ok()?;
            if length.is_some_and(|length| length != value) {
                return None;
            }
            length = Some(value);
        }
    }
    Some(length.map(Body::Length))
}

/// Whether a list of tokens has this one.
fn has_token(list: &[u8], token: &str) -> bool {
    list.split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

impl Body {
    /// Returns how many of these bytes belong to it; `None`: it is malformed.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::UntilEnd => Some(bytes.len()),
            Self::Length(left) => Some(take(left, bytes)),
            Self::Chunked(chunk) => {
                let mut read = 0;
                while read < bytes.len() && !chunk.is_over() {
                    read += chunk.read(&bytes[read..])?;
                }
                Some(read)
            }
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        match self {
            Self::UntilEnd => false,
            Self::Length(left) => *left == 0,
            Self::Chunked(chunk) => chunk.is_over(),
        }
    }
}

impl Chunk {
    /// The end of a chunked body, in a form that no other state has.
    const OVER: Self = Self::Data(0);

    fn is_over(self) -> bool {
        self == Self::OVER
    }

    /// Reads at least one byte of `bytes`, which is not empty.
    fn read(&mut self, bytes: &[u8]) -> Option<usize> {
        if let Self::Data(left) = self {
            let read = take(left, bytes);
            if *left == 0 {
                *self = Self::AfterData;
            }
            return Some(read);
        }
        let byte = *bytes.first()?;
        *self = match (*self, byte) {
            (Self::Size { value: 0, .. }, b'\n') => Self::Trailer { is_empty: true },
            (Self::Size { value, .. }, b'\n') => Self::Data(value),
            (Self::Size { value, is_over: false }, _) => match char::from(byte).to_digit(16) {
                Some(digit) => {
                    let value = value.checked_mul(16)?.checked_add(u64::from(digit))?;
                    Self::Size { value, is_over: false }
                }
                None if matches!(byte, b'\r' | b';' | b' ' | b'\t') => Self::Size { value, is_over: true },
                None => return None,
            },
            (Self::AfterData, b'\n') => Self::Size { value: 0, is_over: false },
            (Self::AfterData, b'\r') => Self::AfterData,
            (Self::AfterData, _) => return None,
            (Self::Trailer { is_empty: true }, b'\n') => Self::OVER,
            (Self::Trailer { is_empty }, b'\r') => Self::Trailer { is_empty },
            (Self::Trailer { .. }, _) => Self::Trailer { is_empty: byte == b'\n' },
            (state, _) => state,
        };
        Some(1)
    }
}

/// Takes from `left` what `bytes` has of it.
pub(crate) fn take(left: &mut u64, bytes: &[u8]) -> usize {
    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
    *left -= taken as u64;
    taken
}
