use std::mem::size_of;

use bytes::Buf;
use proptest::prelude::*;

use super::*;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CONTINUATION: u8 = 0;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;

fn server() -> Connection {
    Connection::new(Role::Server, Limits::default(), None, [0; 32])
}

fn client() -> Connection {
    Connection::new(Role::Client, Limits::default(), None, [1; 32])
}

fn with_deflate(role: Role, params: DeflateParams) -> Connection {
    Connection::new(role, Limits::default(), Some(params), [1; 32])
}

/// A frame as a server sends it, with the shortest form of its length.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..=125 => frame.push(len as u8),
        len @ 126..=0xffff => {
            frame.push(126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}

/// Items that own what they carry.
#[derive(Debug, Clone, PartialEq)]
enum Item {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

fn owned(item: Incoming<'_>) -> Item {
    match item {
        Incoming::Message(payload) => match payload.into_message() {
            crate::ws::Message::Text(text) => Item::Text(text.into()),
            crate::ws::Message::Binary(payload) => Item::Binary(payload.into()),
        },
        Incoming::Ping(payload) => Item::Ping(payload.to_vec()),
        Incoming::Pong(payload) => Item::Pong(payload.to_vec()),
        Incoming::Close(close) => Item::Close(close.map(|c| (c.code.get(), c.reason))),
    }
}

/// Feeds `bytes` in pieces of `step` bytes.
fn receive(connection: &mut Connection, bytes: &[u8], step: usize) -> (Vec<Item>, Result<(), ProtocolError>) {
    let mut bytes = bytes.to_vec();
    let mut items = Vec::new();
    for piece in bytes.chunks_mut(step) {
        let mut input = piece;
        loop {
            match connection.receive(&mut input) {
                Ok(Some(item)) => items.push(owned(item)),
                Ok(None) => break,
                Err(error) => return (items, Err(error)),
            }
        }
        assert!(input.is_empty(), "all input has to be taken");
    }
    (items, Ok(()))
}

fn drain(queue: &mut SendQueue) -> Vec<u8> {
    queue.copy_to_bytes(queue.remaining()).to_vec()
}

/// What a client makes of `bytes` from a server, which has to be the same in every slicing.
#[track_caller]
fn client_receives(bytes: &[u8]) -> (Vec<Item>, Result<(), ProtocolError>) {
    let whole = receive(&mut client(), bytes, bytes.len().max(1));
    for step in [1, 2, 3, 5, 7, 13] {
        assert_eq!(receive(&mut client(), bytes, step), whole, "in steps of {step}");
    }
    whole
}

#[track_caller]
fn client_refuses(bytes: &[u8], error: ProtocolError, close_code: u16) {
    let (items, result) = client_receives(bytes);
    assert_eq!((items, result), (vec![], Err(error)), "{bytes:02x?}");
    assert_eq!(error.close_code().get(), close_code);
}

// ------------------------------------------------------------------------------- memory and copies

#[test]
fn an_idle_connection_is_small_and_owns_nothing() {
    assert!(size_of::<Connection>() <= 80, "{}", size_of::<Connection>());
    assert!(size_of::<ProtocolError>() <= 32, "{}", size_of::<ProtocolError>());

    let mut connection = server();
    let mut wire = SendQueue::new();
    let mut peer = client();
    peer.send(Kind::Text, b"", &Bytes::from("hello"), &mut wire);
    peer.ping(b"1", &mut wire);
    let bytes = drain(&mut wire);
    receive(&mut connection, &bytes, 1).1.unwrap();
    connection.flush_replies(&mut wire);
    assert!(connection.partial.is_none() && connection.owed_pong.is_none());
    assert!(connection.masks.is_none() && connection.deflate.is_none());
}

#[test]
fn a_message_that_arrives_whole_is_returned_where_it_lies() {
    let mut bytes = frame(FIN | TEXT, b"in place");
    let range = bytes.as_ptr_range();
    let mut input = bytes.as_mut_slice();
    let mut connection = client();
    let Ok(Some(Incoming::Message(payload))) = connection.receive(&mut input) else {
        panic!("expected a message")
    };
    assert!(payload.is_borrowed());
    assert_eq!(*payload, *b"in place");
    assert!(range.contains(&payload.as_ptr()));
}

#[test]
fn nothing_is_allocated_by_declared_length() {
    let limits = Limits { max_message: 1 << 30, ..Limits::default() };
    let mut connection = Connection::new(Role::Client, limits, None, [1; 32]);
    let mut bytes = vec![FIN | BINARY, 127];
    bytes.extend((1u64 << 30).to_be_bytes());
    bytes.extend([0; 100]);
    receive(&mut connection, &bytes, bytes.len()).1.unwrap();
    let kept = connection.partial.as_ref().and_then(|p| p.message.as_ref()).unwrap();
    assert_eq!(kept.bytes.len(), 100);
    assert!(kept.bytes.capacity() <= 16 * 1024, "{}", kept.bytes.capacity());
}

#[test]
fn memory_grows_with_what_arrives_at_most_twofold() {
    let limits = Limits { max_message: 1 << 30, ..Limits::default() };
    let mut connection = Connection::new(Role::Client, limits, None, [1; 32]);
    let mut bytes = vec![FIN | BINARY, 127];
    bytes.extend((1u64 << 30).to_be_bytes());
    receive(&mut connection, &bytes, 100).1.unwrap();
    for _ in 0..100 {
        receive(&mut connection, &[0; 1000], 1000).1.unwrap();
        let kept = &connection.partial.as_ref().unwrap().message.as_ref().unwrap().bytes;
        assert!(kept.capacity() <= (2 * kept.len()).max(16 * 1024 + kept.len()));
    }
}

#[test]
fn a_payload_is_not_shown_in_logs() {
    let payload = Payload::in_buffer(Kind::Binary, b"secret");
    assert_eq!(format!("{:?}", Incoming::Ping(payload)), "Ping(Payload(6 bytes))");
}

// ------------------------------------------------------------------------------------------ frames

#[test]
fn a_server_refuses_unmasked_and_a_client_masked_frames() {
    let unmasked = frame(FIN | TEXT, b"hi");
    assert_eq!(receive(&mut server(), &unmasked, 1).1, Err(ProtocolError::Unmasked));

    let masked = [FIN | TEXT, 0x80 | 2, 1, 2, 3, 4, b'h' ^ 1, b'i' ^ 2];
    client_refuses(&masked, ProtocolError::Masked, 1002);
    assert_eq!(receive(&mut server(), &masked, 3).0, [Item::Text("hi".into())]);
}

#[test]
fn a_mask_of_zeros_is_fine() {
    let masked = [FIN | TEXT, 0x80 | 2, 0, 0, 0, 0, b'h', b'i'];
    assert_eq!(receive(&mut server(), &masked, 1).0, [Item::Text("hi".into())]);
}

#[test]
fn reserved_bits_are_refused_without_an_extension() {
    for rsv in [0x40, 0x20, 0x10, 0x70] {
        client_refuses(&frame(FIN | rsv | TEXT, b"x"), ProtocolError::ReservedBit, 1002);
        client_refuses(&frame(FIN | rsv | PING, b""), ProtocolError::ReservedBit, 1002);
    }
}

#[test]
fn reserved_opcodes_are_refused() {
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        client_refuses(&frame(FIN | opcode, b""), ProtocolError::ReservedOpcode(opcode), 1002);
    }
}

#[test]
fn control_frames_are_short_and_whole() {
    for opcode in [CLOSE, PING, PONG] {
        client_refuses(&frame(FIN | opcode, &[0; 126]), ProtocolError::ControlTooLong, 1002);
        client_refuses(&frame(opcode, b""), ProtocolError::ControlFragmented, 1002);
    }
    let longest = client_receives(&frame(FIN | PING, &[7; 125])).0;
    assert_eq!(longest, [Item::Ping(vec![7; 125])]);
}

#[test]
fn lengths_have_to_use_their_shortest_form() {
    for len in [0u16, 1, 125] {
        let mut bytes = vec![FIN | BINARY, 126];
        bytes.extend(len.to_be_bytes());
        client_refuses(&bytes, ProtocolError::LengthNotMinimal, 1002);
    }
    for len in [0u64, 126, 0xffff] {
        let mut bytes = vec![FIN | BINARY, 127];
        bytes.extend(len.to_be_bytes());
        client_refuses(&bytes, ProtocolError::LengthNotMinimal, 1002);
    }
    for len in [125, 126, 127, 0xffff, 0x1_0000] {
        assert_eq!(client_receives(&frame(FIN | BINARY, &vec![1; len])).0, [Item::Binary(vec![1; len])]);
    }
}

#[test]
fn lengths_near_the_end_of_64_bits_are_refused() {
    for (len, error, code) in [
        (1 << 63, ProtocolError::LengthOverflow, 1002),
        (u64::MAX, ProtocolError::LengthOverflow, 1002),
        (u64::MAX >> 1, ProtocolError::MessageTooBig { limit: 1 << 20 }, 1009),
    ] {
        let mut bytes = vec![FIN | BINARY, 127];
        bytes.extend(u64::to_be_bytes(len));
        client_refuses(&bytes, error, code);
    }
}

#[test]
fn fragments_come_in_order_with_control_frames_in_between() {
    let bytes = [
        frame(TEXT, "Grü".as_bytes()),
        frame(FIN | PING, b"1"),
        frame(CONTINUATION, b""),
        frame(FIN | PONG, b"2"),
        frame(FIN | CONTINUATION, "ße".as_bytes()),
        frame(FIN | BINARY, b"next"),
    ];
    assert_eq!(
        client_receives(&bytes.concat()).0,
        [
            Item::Ping(b"1".to_vec()),
            Item::Pong(b"2".to_vec()),
            Item::Text("Grüße".into()),
            Item::Binary(b"next".to_vec()),
        ]
    );
}

#[test]
fn a_continuation_needs_a_message_and_a_message_its_end() {
    client_refuses(&frame(FIN | CONTINUATION, b"x"), ProtocolError::UnexpectedContinuation, 1002);
    client_refuses(&frame(CONTINUATION, b""), ProtocolError::UnexpectedContinuation, 1002);
    for second in [TEXT, BINARY] {
        let bytes = [frame(TEXT, b"a"), frame(FIN | second, b"b")].concat();
        client_refuses(&bytes, ProtocolError::UnfinishedMessage, 1002);
    }
}

// ------------------------------------------------------------------------------------------ limits

#[test]
fn a_message_may_be_as_long_as_the_limit_and_no_longer() {
    let limit = Limits::default().max_message;
    let full = vec![1; limit];
    assert_eq!(client_receives(&frame(FIN | BINARY, &full)).0, [Item::Binary(full.clone())]);
    let too_big = ProtocolError::MessageTooBig { limit };
    client_refuses(&frame(FIN | BINARY, &vec![1; limit + 1]), too_big, 1009);

    let rest = frame(FIN | CONTINUATION, &full[1..]);
    assert_eq!(client_receives(&[frame(BINARY, &[1]), rest.clone()].concat()).0.len(), 1);
    client_refuses(&[frame(BINARY, &[1, 1]), rest].concat(), too_big, 1009);
}

#[test]
fn a_message_too_big_is_refused_by_its_header() {
    let header = &frame(FIN | BINARY, &vec![1; (1 << 20) + 1])[..10];
    client_refuses(header, ProtocolError::MessageTooBig { limit: 1 << 20 }, 1009);
}

#[test]
fn fragments_are_counted_even_when_empty() {
    let most = Limits::default().max_fragments as usize;
    let begin = frame(BINARY, b"");
    let more = frame(CONTINUATION, b"");
    let end = frame(FIN | CONTINUATION, b"");
    let fits = [begin.clone(), more.repeat(most - 2), end.clone()].concat();
    assert_eq!(client_receives(&fits).0, [Item::Binary(vec![])]);
    let error = ProtocolError::TooManyFragments { limit: 1024 };
    client_refuses(&[begin.clone(), more.repeat(most - 1), end].concat(), error, 1008);
    client_refuses(&[begin, more.repeat(10 * most)].concat(), error, 1008);
}

// ------------------------------------------------------------------------------------------- UTF-8

#[test]
fn invalid_text_is_refused_however_it_is_split() {
    let invalid: [&[u8]; 8] = [
        b"a\xff",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"ok \xce",
        b"\xf0\x9f\x98",
        b"\x80",
        b"long enough to pass through the vector path of the check: \xfe and some more after it",
    ];
    for text in invalid {
        client_refuses(&frame(FIN | TEXT, text), ProtocolError::InvalidUtf8, 1007);
        for split in 0..=text.len() {
            let (a, b) = text.split_at(split);
            let bytes = [frame(TEXT, a), frame(FIN | CONTINUATION, b)].concat();
            client_refuses(&bytes, ProtocolError::InvalidUtf8, 1007);
        }
    }
}

#[test]
fn valid_text_may_be_split_inside_a_character() {
    let text = "κόσμε 😀 \u{10ffff}";
    for split in 0..=text.len() {
        let (a, b) = text.as_bytes().split_at(split);
        let bytes = [frame(TEXT, a), frame(FIN | CONTINUATION, b)].concat();
        assert_eq!(client_receives(&bytes).0, [Item::Text(text.into())]);
    }
}

#[test]
fn invalid_text_is_refused_at_the_offending_byte() {
    let bytes = frame(FIN | TEXT, b"ab\xf4\x90 and much more that has not come");
    let mut connection = client();
    assert_eq!(receive(&mut connection, &bytes[..5], 1), (vec![], Ok(())));
    assert_eq!(receive(&mut connection, &bytes[5..6], 1).1, Err(ProtocolError::InvalidUtf8));
}

#[test]
fn binary_messages_are_not_checked() {
    assert_eq!(client_receives(&frame(FIN | BINARY, b"\xff")).0, [Item::Binary(vec![0xff])]);
}

// ------------------------------------------------------------------------------- closing handshake

fn close_body(code: u16, reason: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes(), reason].concat()
}

#[test]
fn close_codes_that_may_not_travel_are_refused() {
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
        let bytes = frame(FIN | CLOSE, &close_body(code, b""));
        client_refuses(&bytes, ProtocolError::CloseCodeNotAllowed(code), 1002);
    }
    for code in [1000, 1003, 1007, 1014, 3000, 3999, 4000, 4999] {
        let bytes = frame(FIN | CLOSE, &close_body(code, b"why"));
        assert_eq!(client_receives(&bytes).0, [Item::Close(Some((code, "why".into())))]);
    }
}

#[test]
fn a_close_body_is_empty_or_has_a_code_and_a_utf8_reason() {
    assert_eq!(client_receives(&frame(FIN | CLOSE, b"")).0, [Item::Close(None)]);
    client_refuses(&frame(FIN | CLOSE, b"\x03"), ProtocolError::CloseTooShort, 1002);
    let bytes = frame(FIN | CLOSE, &close_body(1000, b"\xff"));
    client_refuses(&bytes, ProtocolError::InvalidUtf8, 1007);
}

#[test]
fn everything_after_the_peers_close_is_ignored() {
    let bytes = [frame(FIN | CLOSE, b""), frame(FIN | TEXT, b"late"), vec![0xff; 40]].concat();
    assert_eq!(client_receives(&bytes), (vec![Item::Close(None)], Ok(())));
}

#[test]
fn the_peers_close_is_answered_with_its_code() {
    let (mut connection, mut queue) = (server(), SendQueue::new());
    let mut peer = client();
    peer.close(CloseCode::GOING_AWAY, "bye", &mut queue);
    assert_eq!((peer.state(), connection.state()), (CloseState::Closing, CloseState::Open));

    receive(&mut connection, &drain(&mut queue), 1).1.unwrap();
    assert_eq!(connection.state(), CloseState::Closing);
    connection.flush_replies(&mut queue);
    assert_eq!(connection.state(), CloseState::Closed);

    let echo = drain(&mut queue);
    assert_eq!(echo, frame(FIN | CLOSE, &1001u16.to_be_bytes()));
    receive(&mut peer, &echo, 1).1.unwrap();
    assert_eq!(peer.state(), CloseState::Closed);
    peer.flush_replies(&mut queue);
    assert!(queue.is_empty(), "a Close is not answered twice");
}

#[test]
fn only_a_server_whose_closing_handshake_is_done_ends_at_once() {
    let close = |role| {
        let (mut peer, mut queue) = (client(), SendQueue::new());
        if role == Role::Client {
            peer = server();
        }
        peer.close(CloseCode::NORMAL, "", &mut queue);
        drain(&mut queue)
    };
    // The peer closes first, or we do.
    let (mut connection, mut queue) = (server(), SendQueue::new());
    receive(&mut connection, &close(Role::Server), 100).1.unwrap();
    assert!(!connection.ends_in_order(), "our Close is owed");
    connection.flush_replies(&mut queue);
    assert!(connection.ends_in_order());
    let mut connection = server();
    connection.close(CloseCode::NORMAL, "", &mut queue);
    assert!(!connection.ends_in_order(), "the peer's Close is awaited");
    receive(&mut connection, &close(Role::Server), 100).1.unwrap();
    assert!(connection.ends_in_order());

    let mut connection = client();
    receive(&mut connection, &close(Role::Client), 100).1.unwrap();
    connection.flush_replies(&mut queue);
    assert_eq!(
        (connection.state(), connection.ends_in_order()),
        (CloseState::Closed, false),
        "a client waits"
    );

    let mut connection = server();
    let error = receive(&mut connection, &[0xff; 40], 100).1.unwrap_err();
    connection.fail(&error, &mut queue);
    assert_eq!(
        (connection.state(), connection.ends_in_order()),
        (CloseState::Closed, false),
        "more may be under way"
    );
}

#[test]
fn after_our_close_no_message_leaves_but_messages_still_arrive() {
    let (mut connection, mut queue) = (client(), SendQueue::new());
    connection.close(CloseCode::NORMAL, "", &mut queue);
    drain(&mut queue);
    connection.send(Kind::Text, b"", &Bytes::from("x"), &mut queue);
    connection.ping(b"", &mut queue);
    connection.close(CloseCode::POLICY, "again", &mut queue);
    assert!(queue.is_empty());
    let bytes = [frame(FIN | TEXT, b"on its way"), frame(FIN | CLOSE, b"")].concat();
    let items = receive(&mut connection, &bytes, 1).0;
    assert_eq!(items, [Item::Text("on its way".into()), Item::Close(None)]);
    assert_eq!(connection.state(), CloseState::Closed);
}

#[test]
fn a_long_reason_is_cut_at_a_character() {
    let (mut connection, mut queue) = (server(), SendQueue::new());
    connection.close(CloseCode::NORMAL, &"€".repeat(100), &mut queue);
    let bytes = drain(&mut queue);
    assert_eq!(client_receives(&bytes).0, [Item::Close(Some((1000, "€".repeat(41))))]);
}

#[test]
fn a_failed_connection_sends_its_reason_and_reads_no_more() {
    let (mut connection, mut queue) = (client(), SendQueue::new());
    let bytes = [frame(FIN | PING, b"1"), frame(FIN | 3, b"")].concat();
    let error = receive(&mut connection, &bytes, 1).1.unwrap_err();
    assert_eq!(receive(&mut connection, &frame(FIN | TEXT, b"x"), 1), (vec![], Ok(())));
    connection.fail(&error, &mut queue);
    let queued = queue.len();
    connection.flush_replies(&mut queue);
    assert_eq!((connection.state(), queue.len()), (CloseState::Closed, queued), "nothing more is owed");
    let items = receive(&mut server(), &drain(&mut queue), 1).0;
    assert_eq!(items, [Item::Close(Some((1002, "reserved opcode 3".into())))]);
}

// ------------------------------------------------------------------------------------ ping and pong

#[test]
fn a_burst_of_pings_is_answered_by_one_pong() {
    let (mut connection, mut queue) = (client(), SendQueue::new());
    let pings: Vec<u8> = (0..100).flat_map(|n| frame(FIN | PING, &[n])).collect();
    assert_eq!(receive(&mut connection, &pings, 7).0.len(), 100);
    connection.flush_replies(&mut queue);
    connection.flush_replies(&mut queue);
    assert_eq!(receive(&mut server(), &drain(&mut queue), 1).0, [Item::Pong(vec![99])]);
}

#[test]
fn the_pong_of_a_ping_before_a_close_comes_before_the_echo() {
    let (mut connection, mut queue) = (client(), SendQueue::new());
    let bytes = [frame(FIN | PING, b"1"), frame(FIN | CLOSE, b"")].concat();
    receive(&mut connection, &bytes, bytes.len()).1.unwrap();
    connection.flush_replies(&mut queue);
    let items = receive(&mut server(), &drain(&mut queue), 1).0;
    assert_eq!(items, [Item::Pong(b"1".to_vec()), Item::Close(None)]);
}

#[test]
fn a_ping_is_cut_to_what_a_control_frame_holds() {
    let (mut connection, mut queue) = (server(), SendQueue::new());
    connection.ping(&[3; 300], &mut queue);
    assert_eq!(client_receives(&drain(&mut queue)).0, [Item::Ping(vec![3; 125])]);
}

// ----------------------------------------------------------------------------------------- sending

#[test]
fn a_client_masks_with_a_new_key_for_every_frame() {
    let (mut connection, mut queue) = (client(), SendQueue::new());
    let mut keys = Vec::new();
    for _ in 0..100 {
        connection.send(Kind::Binary, b"", &Bytes::from_static(b"same"), &mut queue);
        let bytes = drain(&mut queue);
        assert_eq!(bytes[1], 0x80 | 4);
        keys.push(bytes[2..6].to_vec());
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 100);
}

#[test]
fn a_large_message_is_shared_and_cut_into_fragments() {
    let (mut connection, mut queue) = (server(), SendQueue::new());
    let body = Bytes::from(vec![7; 40_000]);
    connection.send(Kind::Binary, &[0], &body, &mut queue);
    assert_eq!(queue.len(), 40_001 + 3 * 4);
    let mut slices = [std::io::IoSlice::new(&[]); 16];
    let filled = queue.chunks_vectored(&mut slices);
    assert_eq!(filled, 6, "three headers, three parts of the body");
    assert!(body.as_ptr_range().contains(&slices[1].as_ptr()), "the body has to be shared");
    let first = drain(&mut queue);
    assert_eq!(first[..5], [BINARY, 126, 0x40, 0, 0], "16 KiB, the head's byte in front");
    assert_eq!(client_receives(&first).0, [Item::Binary([&[0], &body[..]].concat())]);
}

#[test]
fn the_head_may_be_longer_than_a_fragment() {
    let (mut connection, mut queue) = (client(), SendQueue::new());
    connection.send(Kind::Binary, &[1; 20_000], &Bytes::from_static(b"tail"), &mut queue);
    let items = receive(&mut server(), &drain(&mut queue), 1000).0;
    assert_eq!(items, [Item::Binary([&[1; 20_000][..], b"tail"].concat())]);
}

// ------------------------------------------------------------------------------------- compression

fn compressed(text: &str) -> Vec<u8> {
    let mut connection = with_deflate(Role::Server, DeflateParams::default());
    let mut queue = SendQueue::new();
    connection.send(Kind::Text, b"", &Bytes::from(text.to_owned()), &mut queue);
    let bytes = drain(&mut queue);
    assert_eq!(bytes[0], FIN | RSV1 | TEXT);
    bytes
}

fn deflating_client(bytes: &[u8]) -> Result<Vec<Item>, ProtocolError> {
    let mut connection = with_deflate(Role::Client, DeflateParams::default());
    let (items, result) = receive(&mut connection, bytes, bytes.len().max(1));
    result.map(|()| items)
}

#[test]
fn a_compressed_message_may_be_fragmented_and_only_its_first_frame_is_marked() {
    let text = "compress me ".repeat(50);
    let bytes = compressed(&text);
    let (a, b) = bytes[2..].split_at(10);
    let fragments = [frame(RSV1 | TEXT, a), frame(FIN | CONTINUATION, b)].concat();
    assert_eq!(deflating_client(&fragments), Ok(vec![Item::Text(text)]));
    let marked = [frame(RSV1 | TEXT, a), frame(FIN | RSV1 | CONTINUATION, b)].concat();
    assert_eq!(deflating_client(&marked), Err(ProtocolError::ReservedBit));
}

#[test]
fn control_frames_are_never_compressed() {
    let ping = frame(FIN | RSV1 | PING, b"");
    assert_eq!(deflating_client(&ping), Err(ProtocolError::ReservedBit));
}

#[test]
fn uncompressed_messages_pass_where_compression_is_agreed_on() {
    assert_eq!(deflating_client(&frame(FIN | TEXT, b"hi")), Ok(vec![Item::Text("hi".into())]));
}

#[test]
fn invalid_text_is_found_after_inflating() {
    // "a\xff" in a stored block.
    let bytes = frame(FIN | RSV1 | TEXT, b"\x00\x02\x00\xfd\xffa\xff\x00");
    assert_eq!(deflating_client(&bytes), Err(ProtocolError::InvalidUtf8));
}

#[test]
fn a_message_that_does_not_get_smaller_goes_out_as_it_is() {
    let mut connection = with_deflate(Role::Server, DeflateParams::default());
    let mut queue = SendQueue::new();
    let noise: Vec<u8> = (0u32..400).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    connection.send(Kind::Binary, b"", &Bytes::from(noise.clone()), &mut queue);
    assert_eq!(drain(&mut queue), frame(FIN | BINARY, &noise));
}

#[test]
fn without_context_takeover_nothing_is_kept_between_messages() {
    let mut connection = with_deflate(Role::Server, DeflateParams::default());
    let mut peer = with_deflate(Role::Client, DeflateParams::default());
    let mut queue = SendQueue::new();
    let text = "again and again ".repeat(40);
    connection.send(Kind::Text, b"", &Bytes::from(text.clone()), &mut queue);
    let bytes = drain(&mut queue);
    assert_eq!(receive(&mut peer, &bytes, 3).0, [Item::Text(text)]);
    assert!(connection.deflate.as_ref().unwrap().is_idle());
    assert!(peer.deflate.as_ref().unwrap().is_idle());
}

// -------------------------------------------------------------------------------------- properties

#[derive(Debug, Clone)]
enum Sent {
    Message(Item, usize),
    Ping(Vec<u8>),
}

fn any_item() -> impl Strategy<Value = Item> {
    prop_oneof![
        ".{0,40}".prop_map(Item::Text),
        "[ab ]{0,3000}".prop_map(Item::Text),
        prop::collection::vec(any::<u8>(), 0..200).prop_map(Item::Binary),
        (0usize..60_000, any::<u8>()).prop_map(|(len, byte)| Item::Binary(vec![byte; len])),
    ]
}

fn any_sent() -> impl Strategy<Value = Sent> {
    prop_oneof![
        4 => (any_item(), 0usize..3).prop_map(|(item, head)| Sent::Message(item, head)),
        1 => prop::collection::vec(any::<u8>(), 0..=125).prop_map(Sent::Ping),
    ]
}

fn any_deflate() -> impl Strategy<Value = Option<DeflateParams>> {
    prop::option::of((any::<bool>(), any::<bool>(), 8u8..=15, 8u8..=15).prop_map(
        |(server, client, server_bits, client_bits)| DeflateParams {
            server_no_context_takeover: server,
            client_no_context_takeover: client,
            server_max_window_bits: server_bits,
            client_max_window_bits: client_bits,
        },
    ))
}

fn steps() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just(vec![1]),
        prop::collection::vec(1usize..20, 1..10),
        prop::collection::vec(1usize..20_000, 1..10),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_is_sent_arrives_in_any_slicing(
        sent in prop::collection::vec(any_sent(), 0..12),
        deflate in any_deflate(),
        role in prop_oneof![Just(Role::Client), Just(Role::Server)],
        steps in steps(),
    ) {
        let mut from = Connection::new(role, Limits::default(), deflate, [5; 32]);
        let mut to = Connection::new(role.peer(), Limits::default(), deflate, [6; 32]);
        let mut queue = SendQueue::new();
        let mut expected = Vec::new();
        for sent in sent {
            match sent {
                Sent::Message(item, head) => {
                    let (kind, payload) = match &item {
                        Item::Text(text) => (Kind::Text, text.as_bytes()),
                        Item::Binary(bytes) => (Kind::Binary, &bytes[..]),
                        _ => unreachable!(),
                    };
                    let (head, body) = payload.split_at(head.min(payload.len()));
                    from.send(kind, head, &Bytes::copy_from_slice(body), &mut queue);
                    expected.push(item);
                }
                Sent::Ping(payload) => {
                    from.ping(&payload, &mut queue);
                    expected.push(Item::Ping(payload));
                }
            }
        }
        let bytes = drain(&mut queue);
        let mut items = Vec::new();
        let mut steps = steps.iter().cycle();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(*steps.next().unwrap()));
            let (more, result) = receive(&mut to, piece, piece.len());
            prop_assert_eq!(result, Ok(()));
            items.extend(more);
            rest = after;
        }
        prop_assert!(items == expected, "{} items of {}", items.len(), expected.len());
        prop_assert!(to.partial.is_none());
    }

    #[test]
    fn no_bytes_make_it_panic_and_slicing_changes_nothing(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300),
            // Mostly acceptable headers, so that more than the first frame is seen.
            prop::collection::vec(
                (prop::sample::select(vec![0x01u8, 0x02, 0x00, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8a, 0xc1, 0x42]),
                 prop::collection::vec(any::<u8>(), 0..12)), 0..20)
            .prop_map(|frames| frames.into_iter().flat_map(|(f, p)| frame(f, &p)).collect()),
        ],
        masked in any::<bool>(),
        deflate in any_deflate(),
        step in 1usize..40,
    ) {
        let role = if masked { Role::Server } else { Role::Client };
        let new = || Connection::new(role, Limits::default(), deflate, [5; 32]);
        let (mut a, mut b) = (new(), new());
        let whole = receive(&mut a, &bytes, bytes.len().max(1));
        let sliced = receive(&mut b, &bytes, step);
        prop_assert_eq!(&whole, &sliced);
        let mut queue = SendQueue::new();
        if let Err(error) = whole.1 {
            a.fail(&error, &mut queue);
        }
        a.flush_replies(&mut queue);
        let reply = drain(&mut queue);
        let mut peer = Connection::new(role.peer(), Limits::default(), deflate, [5; 32]);
        prop_assert_eq!(receive(&mut peer, &reply, 1).1, Ok(()), "what we answer is valid");
    }
}
