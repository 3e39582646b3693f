//! permessage-deflate: the negotiation, and the compression of whole messages.
//!
//! Both directions of a connection are independent. With *no context takeover* (what Mainstay asks for) a compressor
//! is lent for one message (by [`Packed`]) and no connection owns one; with context takeover a direction keeps its
//! window. That costs 250 to 370 KiB to send, by window, and 46 KiB to receive.
//!
//! Source: RFC 7692.

use bytes::Bytes;
use flate2::{Compress, Decompress, FlushDecompress, Status};

use super::compress::{FLUSH_TAIL, compressor, pack};
use super::{Packed, ProtocolError, Role};

/// The name of the extension.
const NAME: &str = "permessage-deflate";
const MAX_WINDOW: u8 = 15;
/// The smallest window zlib can compress with.
const MIN_COMPRESS_WINDOW: u8 = 9;

/// The parameters of permessage-deflate: the negotiated ones, or those that one end prefers.
///
/// Source: RFC 7692 section 7.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeflateParams {
    /// The server compresses each message independently and keeps nothing between two. Default: true.
    pub server_no_context_takeover: bool,
    /// The client compresses each message independently and keeps nothing between two. Default: true.
    pub client_no_context_takeover: bool,
    /// Window of the server's compressor: 2^n bytes. Default: 15. Range: 8-15, others are clamped.
    ///
    /// zlib cannot compress with 8: if 8 is negotiated for the sending direction, this end sends uncompressed, as it
    /// may send any message (RFC 7692 section 6).
    pub server_max_window_bits: u8,
    /// Window of the client's compressor: 2^n bytes. Default: 15. Range: 8-15, as above.
    pub client_max_window_bits: u8,
}

impl Default for DeflateParams {
    fn default() -> Self {
        Self {
            server_no_context_takeover: true,
            client_no_context_takeover: true,
            server_max_window_bits: MAX_WINDOW,
            client_max_window_bits: MAX_WINDOW,
        }
    }
}

impl DeflateParams {
    /// Returns the first acceptable offer of a client, adjusted to what the server prefers, and the answer to it.
    ///
    /// An unknown, repeated or invalid parameter declines its offer.
    pub(super) fn accept<'a>(self, extensions: impl Iterator<Item = &'a str>) -> Option<(Self, String)> {
        let offer = extensions.filter_map(Params::parse).find(|offer| {
            offer.server_max_window_bits != Some(None) // the server's needs a value
        })?;
        let wish = self.clamped();
        let agreed = Self {
            server_no_context_takeover: wish.server_no_context_takeover || offer.server_no_context_takeover,
            client_no_context_takeover: wish.client_no_context_takeover || offer.client_no_context_takeover,
            server_max_window_bits: match offer.server_max_window_bits.flatten() {
                Some(bits) => bits.min(wish.server_max_window_bits),
                None => wish.server_max_window_bits,
            },
            // A server must not limit the window of a client that did not offer it.
            client_max_window_bits: match offer.client_max_window_bits {
                Some(bits) => bits.unwrap_or(MAX_WINDOW).min(wish.client_max_window_bits),
                None => MAX_WINDOW,
            },
        };
        let mut answer = agreed.to_header();
        if agreed.server_max_window_bits == MAX_WINDOW && offer.server_max_window_bits.is_some() {
            answer.push_str("; server_max_window_bits=15"); // what was asked for has to be answered
        }
        Some((agreed, answer))
    }

    /// Returns a client's offer.
    pub(super) fn offer(self) -> String {
        let wish = self.clamped();
        let mut offer = wish.to_header();
        if wish.client_max_window_bits == MAX_WINDOW {
            offer.push_str("; client_max_window_bits"); // the server may choose
        }
        offer
    }

    /// Returns the parameters that a server's answer to [`offer`](Self::offer) agrees on, if the answer is valid.
    ///
    /// Source: RFC 7692 section 7.1 and its parts.
    pub(super) fn check_answer(self, extension: &str) -> Option<Self> {
        let wish = self.clamped();
        let answer = Params::parse(extension)?;
        let bits = |bits: Option<Option<u8>>| match bits {
            Some(bits) => bits, // an answer names a value
            None => Some(MAX_WINDOW),
        };
        let agreed = Self {
            server_no_context_takeover: answer.server_no_context_takeover,
            client_no_context_takeover: wish.client_no_context_takeover || answer.client_no_context_takeover,
            server_max_window_bits: bits(answer.server_max_window_bits)?,
            client_max_window_bits: bits(answer.client_max_window_bits)?.min(wish.client_max_window_bits),
        };
        let fits = agreed.server_max_window_bits <= wish.server_max_window_bits
            && agreed.server_no_context_takeover >= wish.server_no_context_takeover;
        fits.then_some(agreed)
    }

    fn to_header(self) -> String {
        let mut header = NAME.to_owned();
        if self.server_no_context_takeover {
            header.push_str("; server_no_context_takeover");
        }
        if self.client_no_context_takeover {
            header.push_str("; client_no_context_takeover");
        }
        if self.server_max_window_bits < MAX_WINDOW {
            header.push_str(&format!("; server_max_window_bits={}", self.server_max_window_bits));
        }
        if self.client_max_window_bits < MAX_WINDOW {
            header.push_str(&format!("; client_max_window_bits={}", self.client_max_window_bits));
        }
        header
    }

    fn clamped(self) -> Self {
        Self {
            server_max_window_bits: self.server_max_window_bits.clamp(8, MAX_WINDOW),
            client_max_window_bits: self.client_max_window_bits.clamp(8, MAX_WINDOW),
            ..self
        }
    }
}

/// The parameters as one header element states them; `Some(None)` is a parameter without a value.
#[derive(Default)]
struct Params {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<Option<u8>>,
    client_max_window_bits: Option<Option<u8>>,
}

impl Params {
    /// Returns `None` if this is another extension, or has an unknown, repeated or invalid parameter.
    fn parse(extension: &str) -> Option<Self> {
        let mut parts = extension.split(';').map(str::trim);
        if !parts.next()?.eq_ignore_ascii_case(NAME) {
            return None;
        }
        let mut params = Self::default();
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim_end(), Some(unquote(value.trim_start()))),
                None => (part, None),
            };
            let name = name.to_ascii_lowercase();
            let repeated = match (name.as_str(), value) {
                ("server_no_context_takeover", None) => {
                    std::mem::replace(&mut params.server_no_context_takeover, true)
                }
                ("client_no_context_takeover", None) => {
                    std::mem::replace(&mut params.client_no_context_takeover, true)
                }
                ("server_max_window_bits", value) => {
                    params.server_max_window_bits.replace(window_bits(value)?).is_some()
                }
                ("client_max_window_bits", value) => {
                    params.client_max_window_bits.replace(window_bits(value)?).is_some()
                }
                _ => return None,
            };
            if repeated {
                return None;
            }
        }
        Some(params)
    }
}

/// Returns `None` if invalid: a value is a number from 8 to 15 without leading zeros.
fn window_bits(value: Option<&str>) -> Option<Option<u8>> {
    let Some(value) = value else {
        return Some(None);
    };
    (8..=MAX_WINDOW).find(|bits| bits.to_string() == value).map(Some)
}

fn unquote(value: &str) -> &str {
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

/// Both directions of one connection.
pub(super) struct Deflate {
    outbound: Direction<Compress>,
    inbound: Direction<Decompress>,
}

struct Direction<T> {
    window_bits: u8,
    takeover: bool,
    /// Kept between two messages only with context takeover.
    context: Option<Box<T>>,
}

/// A last, empty block: proves that what came before it was complete.
const FINAL_BLOCK: [u8; 2] = [3, 0];
/// Below this size compression without context makes a message longer.
const WORTH_IT: usize = 64;
/// No message may inflate to more than this times its size...
const MAX_RATIO: usize = 100;
/// ...but up to this many bytes every ratio is fine.
const ANY_RATIO: usize = 64 * 1024;

impl Deflate {
    pub(super) fn new(role: Role, params: DeflateParams) -> Self {
        let params = params.clamped();
        let server = (params.server_max_window_bits, !params.server_no_context_takeover);
        let client = (params.client_max_window_bits, !params.client_no_context_takeover);
        let (outbound, inbound) = match role {
            Role::Server => (server, client),
            Role::Client => (client, server),
        };
        Self {
            outbound: Direction { window_bits: outbound.0, takeover: outbound.1, context: None },
            inbound: Direction { window_bits: inbound.0, takeover: inbound.1, context: None },
        }
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.outbound.context.is_none() && self.inbound.context.is_none()
    }

    /// `head` and `body` compressed as one message, or what `shared` remembers of that; `None` if it should
    /// go out as it is.
    pub(super) fn compress(&mut self, head: &[u8], body: &Bytes, shared: &mut Packed) -> Option<Bytes> {
        let Direction { window_bits, takeover, .. } = self.outbound;
        let smallest = if takeover { 1 } else { WORTH_IT };
        if window_bits < MIN_COMPRESS_WINDOW || head.len() + body.len() < smallest {
            return None;
        }
        match takeover {
            // What comes out depends on every message before it.
            true => {
                let context = self.outbound.context.take();
                let mut compress = context.unwrap_or_else(|| Box::new(compressor(window_bits)));
                // It goes out even if it gets a little larger: the window counts on the peer having seen it.
                let len = head.len() + body.len();
                let packed = pack(&mut compress, head, body, len + len / 64 + 64)?;
                self.outbound.context = Some(compress);
                Some(packed)
            }
            false => shared.get_or_compress(window_bits, head, body),
        }
    }

    /// A whole compressed message, inflated to at most `max` bytes.
    ///
    /// A message may end with a final block, with or without the empty one that should follow it; the
    /// context ends there too.
    pub(super) fn inflate(&mut self, packed: &[u8], max: usize) -> Result<Vec<u8>, ProtocolError> {
        let Direction { window_bits, takeover, ref mut context } = self.inbound;
        let mut inflate = context.take().unwrap_or_else(|| {
            let window_bits = window_bits.max(MIN_COMPRESS_WINDOW);
            Box::new(Decompress::new_with_window_bits(false, window_bits))
        });
        let max = max.min(ANY_RATIO.max(packed.len().saturating_mul(MAX_RATIO)));
        let mut out = Vec::new();
        match inflate_into(&mut inflate, packed, &mut out, max)? {
            Inflated::All => {
                inflate_into(&mut inflate, &FLUSH_TAIL, &mut out, max)?;
                // A message that broke off would swallow this block. With context there is no such
                // proof, and the peer spoils its own next message only.
                if !takeover
                    && inflate_into(&mut inflate, &FINAL_BLOCK, &mut out, max)? != Inflated::Final(&[])
                {
                    return Err(ProtocolError::InvalidDeflate);
                }
            }
            Inflated::Final([] | [0]) => inflate.reset(false),
            Inflated::Final(_) => return Err(ProtocolError::InvalidDeflate),
        }
        if takeover {
            *context = Some(inflate);
        }
        out.shrink_to_fit();
        Ok(out)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Inflated<'a> {
    /// Everything was taken.
    All,
    /// A final block came; this follows it.
    Final(&'a [u8]),
}

/// Inflates `input` behind what is in `out`, which grows with what comes out, up to `max` bytes in all.
fn inflate_into<'a>(
    inflate: &mut Decompress,
    mut input: &'a [u8],
    out: &mut Vec<u8>,
    max: usize,
) -> Result<Inflated<'a>, ProtocolError> {
    loop {
        if out.len() == out.capacity() {
            // One byte more than allowed, to see whether there is one.
            let room = max.saturating_add(1) - out.len();
            out.reserve_exact(room.min(out.len().max(input.len() * 2).max(256)));
        }
        let before = (inflate.total_in(), out.len());
        let status = inflate
            .decompress_vec(input, out, FlushDecompress::None)
            .map_err(|_| ProtocolError::InvalidDeflate)?;
        if out.len() > max {
            return Err(ProtocolError::MessageTooBig { limit: max });
        }
        let taken = inflate.total_in() - before.0;
        input = usize::try_from(taken).ok().and_then(|taken| input.get(taken..)).unwrap_or(&[]);
        if status == Status::StreamEnd {
            return Ok(Inflated::Final(input));
        }
        if out.len() < out.capacity() {
            if input.is_empty() {
                return Ok(Inflated::All);
            }
            if (taken, out.len()) == (0, before.1) {
                return Err(ProtocolError::InvalidDeflate);
            }
        }
    }
}

#[cfg(test)]
mod tests;
