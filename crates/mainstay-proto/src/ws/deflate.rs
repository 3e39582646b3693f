//! permessage-deflate.
//!
//! Off by default. When on, the server keeps no compressor between messages
//! (`server_no_context_takeover`): memory matters more than the last per cent.
//!
//! Source: RFC 7692.

use bytes::{Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::Role;
use super::error::ProtocolError;

/// What both ends agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeflateParams {
    /// The server compresses each message on its own.
    pub server_no_context_takeover: bool,
    /// The client compresses each message on its own.
    pub client_no_context_takeover: bool,
    /// The server's window, 9 to 15 bits.
    pub server_max_window_bits: u8,
    /// The client's window, 9 to 15 bits.
    pub client_max_window_bits: u8,
}

/// The name of the extension.
pub const EXTENSION: &str = "permessage-deflate";

/// What a client of ours offers.
pub const CLIENT_OFFER: &str = "permessage-deflate; client_no_context_takeover; server_no_context_takeover";

/// Messages below this are not worth compressing.
const WORTHWHILE: usize = 64;

impl DeflateParams {
    /// A server's choice among the offers of a `Sec-WebSocket-Extensions` header: the first that it
    /// understands completely, and the answer to send. Unknown, repeated and out-of-range parameters
    /// decline an offer; so does a window of 8 bits, which deflate implementations cannot keep to.
    #[must_use]
    pub fn choose(offers: &str) -> Option<(Self, String)> {
        offers.split(',').find_map(Self::accept)
    }

    fn accept(offer: &str) -> Option<(Self, String)> {
        let params = parse(offer, true)?;
        // We compress without context whether asked or not, and ask the client to do so as well.
        let chosen =
            Self { server_no_context_takeover: true, client_no_context_takeover: true, ..params.values };
        let mut answer = format!("{EXTENSION}; server_no_context_takeover; client_no_context_takeover");
        if params.server_bits {
            answer += &format!("; server_max_window_bits={}", chosen.server_max_window_bits);
        }
        if params.client_bits && chosen.client_max_window_bits < 15 {
            answer += &format!("; client_max_window_bits={}", chosen.client_max_window_bits);
        }
        Some((chosen, answer))
    }

    /// What the server's answer to [`CLIENT_OFFER`] agreed on; `None` if it is none that was offered.
    #[must_use]
    pub fn from_answer(answer: &str) -> Option<Self> {
        let params = parse(answer, false)?;
        // We did not offer client_max_window_bits, so the server may not set it.
        (!params.client_bits).then_some(Self { client_no_context_takeover: true, ..params.values })
    }
}

struct Parsed {
    values: DeflateParams,
    server_bits: bool,
    client_bits: bool,
}

fn parse(text: &str, is_offer: bool) -> Option<Parsed> {
    let mut words = text.split(';').map(str::trim);
    if !words.next()?.eq_ignore_ascii_case(EXTENSION) {
        return None;
    }
    let mut parsed = Parsed {
        values: DeflateParams {
            server_no_context_takeover: false,
            client_no_context_takeover: false,
            server_max_window_bits: 15,
            client_max_window_bits: 15,
        },
        server_bits: false,
        client_bits: false,
    };
    for word in words {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
            None => (word, None),
        };
        let values = &mut parsed.values;
        match (name, value) {
            ("server_no_context_takeover", None) if !values.server_no_context_takeover => {
                values.server_no_context_takeover = true;
            }
            ("client_no_context_takeover", None) if !values.client_no_context_takeover => {
                values.client_no_context_takeover = true;
            }
            ("server_max_window_bits", Some(bits)) if !parsed.server_bits => {
                values.server_max_window_bits = window_bits(bits)?;
                parsed.server_bits = true;
            }
            // In an offer it may come without a value: "I can be told".
            ("client_max_window_bits", None) if is_offer && !parsed.client_bits => parsed.client_bits = true,
            ("client_max_window_bits", Some(bits)) if !parsed.client_bits => {
                values.client_max_window_bits = window_bits(bits)?;
                parsed.client_bits = true;
            }
            _ => return None,
        }
    }
    Some(parsed)
}

fn window_bits(text: &str) -> Option<u8> {
    let plain = !text.starts_with(['0', '+']);
    text.parse().ok().filter(|bits| plain && (9..=15).contains(bits))
}

/// The compressor and the decompressor of one connection.
#[derive(Debug)]
pub(super) struct Deflate {
    compress_bits: u8,
    inflate_bits: u8,
    keep_compressor: bool,
    keep_decompressor: bool,
    compressor: Option<Compress>,
    decompressor: Option<Decompress>,
}

impl Deflate {
    pub(super) fn new(role: Role, params: DeflateParams) -> Self {
        let server = (params.server_max_window_bits, !params.server_no_context_takeover);
        let client = (params.client_max_window_bits, !params.client_no_context_takeover);
        let ((compress_bits, keep_compressor), (inflate_bits, keep_decompressor)) = match role {
            Role::Server => (server, client),
            Role::Client => (client, server),
        };
        Self {
            compress_bits,
            inflate_bits,
            keep_compressor,
            keep_decompressor,
            compressor: None,
            decompressor: None,
        }
    }

    /// The compressed message, or `None` where sending it as it is costs no more.
    pub(super) fn deflate(&mut self, head: &[u8], body: &Bytes) -> Option<Bytes> {
        let length = head.len() + body.len();
        if length < WORTHWHILE {
            return None;
        }
        let mut compressor = self.compressor.take().unwrap_or_else(|| {
            Compress::new_with_window_bits(Compression::fast(), false, self.compress_bits)
        });
        let mut out = Vec::with_capacity(length / 2 + 64);
        let ok = run(&mut compressor, head, FlushCompress::None, &mut out)
            .and_then(|()| run(&mut compressor, body, FlushCompress::Sync, &mut out))
            .is_some();
        if self.keep_compressor {
            self.compressor = Some(compressor);
        } else if out.len() >= length {
            return None;
        }
        if !ok {
            return None;
        }
        // Section 7.2.1: the empty block that a sync flush ends with does not travel.
        if out.ends_with(&TAIL) {
            out.truncate(out.len() - TAIL.len());
        }
        Some(Bytes::from(out))
    }

    /// Inflates one message, to at most `limit` bytes.
    pub(super) fn inflate(&mut self, bytes: &[u8], limit: usize) -> Result<BytesMut, ProtocolError> {
        let mut decompressor = self
            .decompressor
            .take()
            .unwrap_or_else(|| Decompress::new_with_window_bits(false, self.inflate_bits));
        let mut out = Vec::new();
        let mut ended = false;
        for input in [bytes, &TAIL] {
            let mut at = 0;
            while at < input.len() && !ended {
                // One byte more than allowed, so that a message of exactly the limit is told from a larger.
                let room = (out.len().max(1024) * 2).min(limit + 1 - out.len().min(limit));
                out.reserve_exact(room);
                let (before_in, before_out) = (decompressor.total_in(), out.len());
                let status = decompressor
                    .decompress_vec(&input[at..], &mut out, FlushDecompress::Sync)
                    .map_err(|_| ProtocolError::Deflate)?;
                let used = (decompressor.total_in() - before_in) as usize;
                at += used;
                if out.len() > limit {
                    return Err(ProtocolError::MessageTooBig { limit });
                }
                ended = status == Status::StreamEnd;
                if used == 0 && out.len() == before_out && !ended {
                    return Err(ProtocolError::Deflate);
                }
            }
        }
        // The output that was still inside when the input ended.
        while !ended && out.len() == out.capacity() {
            out.reserve_exact((limit + 1 - out.len()).min(4096));
            let before = out.len();
            decompressor
                .decompress_vec(&[], &mut out, FlushDecompress::Sync)
                .map_err(|_| ProtocolError::Deflate)?;
            if out.len() > limit {
                return Err(ProtocolError::MessageTooBig { limit });
            }
            if out.len() == before {
                break;
            }
        }
        // A stream that ended itself (a final block) cannot be continued.
        if self.keep_decompressor && !ended {
            self.decompressor = Some(decompressor);
        }
        Ok(BytesMut::from(Bytes::from(out)))
    }
}

const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

fn run(compressor: &mut Compress, input: &[u8], flush: FlushCompress, out: &mut Vec<u8>) -> Option<()> {
    let start = compressor.total_in();
    loop {
        let used = (compressor.total_in() - start) as usize;
        if out.capacity() - out.len() < 64 {
            out.reserve(out.len().max(256));
        }
        compressor.compress_vec(&input[used..], out, flush).ok()?;
        let used = (compressor.total_in() - start) as usize;
        if used == input.len() && out.len() < out.capacity() {
            return Some(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(offer: &str) -> Option<String> {
        DeflateParams::choose(offer).map(|(_, answer)| answer)
    }

    #[test]
    fn offers_are_taken_only_when_understood_completely() {
        let plain = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        assert_eq!(choose("permessage-deflate").as_deref(), Some(plain));
        assert_eq!(choose("permessage-deflate; client_max_window_bits").as_deref(), Some(plain));
        for bits in ["7", "8", "16", "99", "", "09", "+9", "x"] {
            assert_eq!(choose(&format!("permessage-deflate; server_max_window_bits={bits}")), None, "{bits}");
        }
        assert_eq!(choose("permessage-deflate; surprise"), None);
        assert_eq!(
            choose("permessage-deflate; server_no_context_takeover; server_no_context_takeover"),
            None
        );
        assert_eq!(choose("x-webkit-deflate-frame"), None);
        let second = choose(
            "permessage-deflate; server_max_window_bits=8, permessage-deflate; server_max_window_bits=\"10\"",
        );
        assert_eq!(second, Some(format!("{plain}; server_max_window_bits=10")));
    }

    #[test]
    fn an_answer_that_was_not_offered_is_refused() {
        assert!(DeflateParams::from_answer("permessage-deflate").is_some());
        assert!(DeflateParams::from_answer("permessage-deflate; client_max_window_bits=10").is_none());
        assert!(DeflateParams::from_answer("permessage-deflate; server_max_window_bits").is_none());
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        let (params, _) = DeflateParams::choose("permessage-deflate").unwrap();
        let zeros = Bytes::from(vec![0; 10_000_000]);
        let bomb = Deflate::new(Role::Client, params).deflate(&[], &zeros).unwrap();
        assert!(bomb.len() < 200_000);
        let mut server = Deflate::new(Role::Server, params);
        let limit = 64 * 1024;
        assert_eq!(server.inflate(&bomb, limit), Err(ProtocolError::MessageTooBig { limit }));
        assert_eq!(server.inflate(&bomb, 10_000_000).map(|out| out.len()), Ok(10_000_000));
    }

    #[test]
    fn broken_data_is_an_error_and_not_a_panic() {
        let (params, _) = DeflateParams::choose("permessage-deflate").unwrap();
        let mut server = Deflate::new(Role::Server, params);
        assert_eq!(server.inflate(&[0xff, 0xff, 0xff], 1000), Err(ProtocolError::Deflate));
    }
}
