//! Compressing one message.
//!
//! Source: RFC 7692 section 7.2.1.

use bytes::Bytes;
use flate2::{Compress, Compression, FlushCompress};

/// What a compressor writes last at a flush, and a sender leaves out.
pub(super) const FLUSH_TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

pub(super) fn compressor(window_bits: u8) -> Compress {
    Compress::new_with_window_bits(Compression::default(), false, window_bits)
}

/// One message by itself, from a compressor without context; `None` if that does not make it smaller.
pub(super) fn pack_alone(compress: &mut Compress, head: &[u8], body: &[u8]) -> Option<Bytes> {
    pack(compress, head, body, head.len() + body.len() + FLUSH_TAIL.len())
}

/// `None` if what comes out needs more than `room`: the compressor is of no use any more before it is reset.
pub(super) fn pack(compress: &mut Compress, head: &[u8], body: &[u8], room: usize) -> Option<Bytes> {
    let mut packed = Vec::with_capacity(room);
    compress_into(compress, head, FlushCompress::None, &mut packed)?;
    compress_into(compress, body, FlushCompress::Sync, &mut packed)?;
    let end = packed.strip_suffix(&FLUSH_TAIL)?.len();
    packed.truncate(end);
    packed.shrink_to_fit();
    Some(Bytes::from(packed))
}

/// `None` if `out` has no room for everything.
fn compress_into(
    compress: &mut Compress,
    input: &[u8],
    flush: FlushCompress,
    out: &mut Vec<u8>,
) -> Option<()> {
    let before = compress.total_in();
    compress.compress_vec(input, out, flush).ok()?;
    let taken = compress.total_in() - before;
    // A full buffer may hide that there is more to come.
    (taken == input.len() as u64 && out.len() < out.capacity()).then_some(())
}
