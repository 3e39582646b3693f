use std::collections::HashSet;

use flate2::{Compress, Compression, FlushCompress};

use super::*;

const MAX: usize = 64 * 1024;

fn params(server_bits: u8, client_bits: u8) -> DeflateParams {
    DeflateParams {
        server_max_window_bits: server_bits,
        client_max_window_bits: client_bits,
        ..DeflateParams::default()
    }
}

fn takeover() -> DeflateParams {
    DeflateParams {
        server_no_context_takeover: false,
        client_no_context_takeover: false,
        ..DeflateParams::default()
    }
}

/// Compressed for one receiver alone.
fn compress(deflate: &mut Deflate, head: &[u8], body: &[u8]) -> Option<Bytes> {
    deflate.compress(head, &Bytes::copy_from_slice(body), &mut Packed::new())
}

fn inflate(packed: &[u8]) -> Result<Vec<u8>, ProtocolError> {
    Deflate::new(Role::Client, DeflateParams::default()).inflate(packed, MAX)
}

// ------------------------------------------------------------------------------------- negotiation

/// What a server that would like the default answers to an offer.
fn answer(offer: &str) -> Option<String> {
    DeflateParams::default().accept(offer.split(',').map(str::trim)).map(|(_, answer)| answer)
}

#[test]
fn a_server_answers_offers_it_understands() {
    const BOTH: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    for (offer, extra) in [
        ("permessage-deflate", ""),
        ("Permessage-Deflate", ""),
        ("permessage-deflate; client_max_window_bits", ""),
        ("permessage-deflate;client_max_window_bits=15;server_no_context_takeover", ""),
        ("permessage-deflate; server_max_window_bits=10", "; server_max_window_bits=10"),
        ("permessage-deflate; server_max_window_bits=15", "; server_max_window_bits=15"),
        ("permessage-deflate; server_max_window_bits=8", "; server_max_window_bits=8"),
        ("permessage-deflate; client_max_window_bits=\"9\"", "; client_max_window_bits=9"),
        ("x-webkit-deflate-frame, permessage-deflate", ""),
        (
            "permessage-deflate; unknown, permessage-deflate; server_max_window_bits=9",
            "; server_max_window_bits=9",
        ),
    ] {
        assert_eq!(answer(offer), Some(format!("{BOTH}{extra}")), "{offer}");
    }
}

#[test]
fn a_server_declines_unknown_repeated_and_invalid_parameters() {
    for offer in [
        "",
        "permessage-bzip2",
        "permessage-deflate; unknown",
        "permessage-deflate; unknown=1",
        "permessage-deflate;",
        "permessage-deflate; server_no_context_takeover=true",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; client_max_window_bits; client_max_window_bits=10",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=99999999999999999999",
        "permessage-deflate; server_max_window_bits=010",
        "permessage-deflate; server_max_window_bits=+9",
        "permessage-deflate; client_max_window_bits=",
        "permessage-deflate; client_max_window_bits=\"",
    ] {
        assert_eq!(answer(offer), None, "{offer}");
    }
}

#[test]
fn a_servers_wish_limits_the_clients_window_only_where_the_client_offered_it() {
    let wish = params(12, 11);
    let agreed = |offer| wish.accept([offer].into_iter()).map(|(agreed, _)| agreed);
    assert_eq!(agreed("permessage-deflate"), Some(params(12, 15)));
    assert_eq!(agreed("permessage-deflate; client_max_window_bits"), Some(params(12, 11)));
    assert_eq!(agreed("permessage-deflate; client_max_window_bits=9"), Some(params(12, 9)));
    assert_eq!(agreed("permessage-deflate; server_max_window_bits=15"), Some(params(12, 15)));
}

#[test]
fn an_offer_and_its_answer_leave_both_ends_with_the_same_parameters() {
    for server_bits in [8, 12, 15] {
        for client_bits in [8, 12, 15] {
            for keeps in [true, false] {
                let client = DeflateParams { server_no_context_takeover: keeps, ..params(server_bits, 15) };
                let server = DeflateParams { client_no_context_takeover: keeps, ..params(13, client_bits) };
                let offer = client.offer();
                let (agreed, answer) = server.accept([offer.as_str()].into_iter()).unwrap();
                assert_eq!(client.check_answer(&answer), Some(agreed), "{offer} / {answer}");
            }
        }
    }
}

#[test]
fn a_client_refuses_an_answer_that_does_not_fit_its_offer() {
    let client = DeflateParams { server_max_window_bits: 10, ..DeflateParams::default() };
    let fits = "permessage-deflate; server_no_context_takeover; server_max_window_bits=10";
    assert!(client.check_answer(fits).is_some());
    for answer in [
        "permessage-deflate; server_no_context_takeover",
        "permessage-deflate; server_max_window_bits=10",
        "permessage-deflate; server_no_context_takeover; server_max_window_bits=11",
        "permessage-deflate; server_no_context_takeover; server_max_window_bits=9; client_max_window_bits",
        "permessage-deflate; server_no_context_takeover; server_max_window_bits=9; mystery",
        "permessage-bzip2",
    ] {
        assert_eq!(client.check_answer(answer), None, "{answer}");
    }
}

// ------------------------------------------------------------------------------------- compression

#[test]
fn the_examples_of_the_rfc_inflate() {
    for packed in [
        &b"\xf2\x48\xcd\xc9\xc9\x07\x00"[..],                    // one block
        b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00",         // not compressed
        b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00",                     // a final block
        b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00", // two blocks
    ] {
        assert_eq!(inflate(packed), Ok(b"Hello".to_vec()), "{packed:02x?}");
    }
}

#[test]
fn a_message_may_refer_to_the_one_before_only_with_context_takeover() {
    let second = b"\xf2\x00\x11\x00\x00";
    let mut with = Deflate::new(Role::Client, takeover());
    assert_eq!(with.inflate(b"\xf2\x48\xcd\xc9\xc9\x07\x00", MAX), Ok(b"Hello".to_vec()));
    assert_eq!(with.inflate(second, MAX), Ok(b"Hello".to_vec()));
    assert_eq!(inflate(second), Err(ProtocolError::InvalidDeflate));
}

#[test]
fn broken_compression_is_refused() {
    for packed in [
        &b"\x06\x00"[..],                                // the reserved block type
        b"\x00\x05\x00\xfa\xfe\x48\x65\x6c\x6c\x6f\x00", // lengths of a stored block that differ
        b"\x00\x05\x00\xfa\xff\x48\x65",                 // a stored block that breaks off
        b"\x00\x14\x00\xeb\xff\x48\x65\x6c\x6c\x6f",     // a stored block that swallows the tail
        b"\xf2\x48\xcd\xc9",                             // a compressed block that breaks off
        b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00\x01",         // something behind the final block
        b"\xff\xff\xff\xff\xff",
        b"",
    ] {
        assert_eq!(inflate(packed), Err(ProtocolError::InvalidDeflate), "{packed:02x?}");
    }
}

fn bomb(len: usize) -> Vec<u8> {
    let mut packed = Vec::with_capacity(len / 500 + 1024);
    let mut compress = Compress::new(Compression::best(), false);
    compress.compress_vec(&vec![0; len], &mut packed, FlushCompress::Sync).unwrap();
    packed.truncate(packed.len() - FLUSH_TAIL.len());
    packed
}

#[test]
fn a_bomb_stops_at_the_limit() {
    let packed = bomb(10 << 20);
    assert!(packed.len() < 16 * 1024);
    assert_eq!(inflate(&packed), Err(ProtocolError::MessageTooBig { limit: MAX }));

    let mut deflate = Deflate::new(Role::Client, DeflateParams::default());
    let mut out = Vec::new();
    let mut context = Decompress::new(false);
    assert!(inflate_into(&mut context, &packed, &mut out, MAX).is_err());
    assert!(out.capacity() <= MAX + 1, "{}", out.capacity());
    assert_eq!(deflate.inflate(&bomb(MAX), MAX).map(|out| out.len()), Ok(MAX));
}

#[test]
fn a_message_that_inflates_beyond_all_reason_is_refused_below_the_limit() {
    let mut deflate = Deflate::new(Role::Client, DeflateParams::default());
    let packed = bomb(1 << 20);
    assert!(packed.len() * MAX_RATIO < 1 << 20);
    assert!(matches!(
        deflate.inflate(&packed, 16 << 20),
        Err(ProtocolError::MessageTooBig { limit }) if limit < 1 << 20
    ));
}

#[test]
fn with_context_takeover_repetition_costs_little() {
    let mut server = Deflate::new(Role::Server, takeover());
    let mut client = Deflate::new(Role::Client, takeover());
    let text: Vec<u8> = (0u32..200).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_be_bytes()).collect();
    let mut sizes = Vec::new();
    for _ in 0..3 {
        let packed = compress(&mut server, &text[..10], &text[10..]).unwrap();
        assert_eq!(client.inflate(&packed, MAX).as_ref(), Ok(&text));
        sizes.push(packed.len());
    }
    assert!(sizes[0] > 800 && sizes[1] < 50 && sizes[2] < 50, "{sizes:?}");
}

#[test]
fn a_small_message_is_not_worth_a_compressor() {
    let text = [b'a'; WORTH_IT];
    let mut alone = Deflate::new(Role::Server, DeflateParams::default());
    assert!(compress(&mut alone, b"", &text[1..]).is_none());
    assert!(compress(&mut alone, b"", &text).is_some());
    assert!(compress(&mut Deflate::new(Role::Server, takeover()), b"", b"aaaa").is_some());
}

#[test]
fn a_window_too_small_for_zlib_means_uncompressed() {
    let text = "compress me ".repeat(50);
    let mut server = Deflate::new(Role::Server, params(8, 15));
    assert_eq!(compress(&mut server, b"", text.as_bytes()), None);
    let mut client = Deflate::new(Role::Client, params(8, 15));
    let packed = compress(&mut client, b"", text.as_bytes()).unwrap();
    assert_eq!(server.inflate(&packed, MAX), Ok(text.into_bytes()));
}

// ------------------------------------------------------------------------------------- one for many

/// What each of these servers makes of one message, and how often it was compressed for that.
fn fan_out(servers: &[DeflateParams], body: &Bytes) -> (Vec<Bytes>, usize) {
    let mut shared = Packed::new();
    let packed: Vec<_> = servers
        .iter()
        .map(|params| Deflate::new(Role::Server, *params).compress(b"", body, &mut shared).unwrap())
        .collect();
    let different: HashSet<_> = packed.iter().map(|packed| packed.as_ptr()).collect();
    (packed, different.len())
}

#[test]
fn a_message_to_many_is_compressed_once_into_the_bytes_that_each_would_produce() {
    let body = Bytes::from("one for many ".repeat(50));
    let (packed, times) = fan_out(&[DeflateParams::default(); 100], &body);
    assert_eq!(times, 1);
    let alone = compress(&mut Deflate::new(Role::Server, DeflateParams::default()), b"", &body).unwrap();
    assert!(packed.iter().all(|packed| *packed == alone));
}

#[test]
fn a_connection_with_another_window_gets_bytes_that_fit_it() {
    // What repeats is further back than a window of 512 bytes reaches.
    let text: String = (0u32..500).map(|n| n.wrapping_mul(2_654_435_761).to_string()).collect();
    let body = Bytes::from(text.repeat(2));
    let wishes = [params(15, 15), params(9, 15), params(15, 15), params(9, 15), params(15, 9)];
    let (packed, times) = fan_out(&wishes, &body);
    assert_eq!(times, 2, "the client's own window is another matter");
    for (packed, wish) in packed.iter().zip(wishes) {
        assert_eq!(Deflate::new(Role::Client, wish).inflate(packed, MAX).as_ref(), Ok(&body.to_vec()));
    }
}

#[test]
fn with_context_takeover_nothing_is_shared() {
    let (body, mut shared) = (Bytes::from("once more ".repeat(20)), Packed::new());
    let mut server = Deflate::new(Role::Server, takeover());
    let mut client = Deflate::new(Role::Client, takeover());
    let mut sizes = Vec::new();
    for _ in 0..2 {
        let packed = server.compress(b"", &body, &mut shared).unwrap();
        assert_eq!(client.inflate(&packed, MAX).as_ref(), Ok(&body.to_vec()));
        sizes.push(packed.len());
    }
    assert!(sizes[1] < sizes[0], "the second refers to the first: {sizes:?}");
}
