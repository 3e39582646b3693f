//! The frame codec from outside: whatever is sent arrives, however the bytes are cut.

use bytes::{Buf, Bytes};
use mainstay_proto::ws::deflate::DeflateParams;
use mainstay_proto::ws::{
    CloseCode, Connection, Incoming, Kind, Limits, ProtocolError, Role, SendQueue, State,
};
use proptest::prelude::*;

fn connection(role: Role, deflate: bool) -> Connection {
    let params = deflate.then(|| DeflateParams::choose("permessage-deflate").unwrap().0);
    Connection::new(role, Limits::default(), params, [3; 32])
}

fn bytes_of(queue: &mut SendQueue) -> Vec<u8> {
    queue.copy_to_bytes(queue.remaining()).to_vec()
}

/// Feeds `wire` in pieces of the given sizes (the last one again and again) and lists what came out.
fn feed(receiver: &mut Connection, wire: &[u8], cuts: &[usize]) -> Result<Vec<String>, ProtocolError> {
    let (mut out, mut at, mut turn) = (Vec::new(), 0, 0);
    while at < wire.len() {
        let size = cuts.get(turn).or(cuts.last()).copied().unwrap_or(usize::MAX).clamp(1, wire.len() - at);
        let mut piece = wire[at..at + size].to_vec();
        let mut input = piece.as_mut_slice();
        while let Some(incoming) = receiver.receive(&mut input)? {
            out.push(match incoming {
                Incoming::Message { kind, payload } => format!("{kind:?} {}", hex(&payload)),
                Incoming::Ping(payload) => format!("Ping {}", hex(&payload)),
                Incoming::Pong(payload) => format!("Pong {}", hex(&payload)),
                Incoming::Close(frame) => format!("Close {frame:?}"),
            });
        }
        (at, turn) = (at + size, turn + 1);
    }
    Ok(out)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

proptest! {
    #[test]
    fn messages_arrive_whole_and_in_order_however_the_stream_is_cut(
        messages in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..40_000)), 1..5),
        cuts in prop::collection::vec(1_usize..3000, 1..20),
        from_client in any::<bool>(),
        deflate in any::<bool>(),
    ) {
        let (from, to) = if from_client { (Role::Client, Role::Server) } else { (Role::Server, Role::Client) };
        let (mut sender, mut receiver) = (connection(from, deflate), connection(to, deflate));
        let (mut queue, mut expected) = (SendQueue::new(), Vec::new());
        for (n, (binary, payload)) in messages.iter().enumerate() {
            let text = String::from_utf8_lossy(payload).into_owned();
            let (kind, body) = if *binary { (Kind::Binary, payload.clone()) } else { (Kind::Text, text.into_bytes()) };
            if body.len() > Limits::default().max_message {
                continue;
            }
            sender.send(kind, &[], &Bytes::from(body.clone()), &mut queue);
            sender.ping(&[n as u8], &mut queue);
            expected.push(format!("{kind:?} {}", hex(&body)));
            expected.push(format!("Ping {}", hex(&[n as u8])));
        }
        let wire = bytes_of(&mut queue);
        prop_assert_eq!(feed(&mut receiver, &wire, &cuts).unwrap(), expected.clone());
        prop_assert_eq!(feed(&mut connection(to, deflate), &wire, &[1]).unwrap(), expected);
    }

    #[test]
    fn no_bytes_panic(wire in prop::collection::vec(any::<u8>(), 0..300), deflate in any::<bool>(), cut in 1_usize..50) {
        for role in [Role::Client, Role::Server] {
            let mut receiver = connection(role, deflate);
            if let Err(error) = feed(&mut receiver, &wire, &[cut]) {
                receiver.fail(&error, &mut SendQueue::new());
            }
        }
    }
}

/// A masked frame with a key of zeros: what a client sends, readable in a test.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        length @ 0..=125 => out.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend((length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend((length as u64).to_be_bytes());
        }
    }
    out.extend([0; 4]);
    out.extend(payload);
    out
}

fn check(wire: &[u8], expected: Result<&[&str], ProtocolError>) {
    let expected = expected.map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>());
    for cut in [1, 2, 3, 7, usize::MAX] {
        let got = feed(&mut connection(Role::Server, false), wire, &[cut]);
        assert_eq!(got, expected, "{wire:02x?} in steps of {cut}");
    }
}

#[test]
fn fragments_are_put_together_and_controls_may_stand_between_them() {
    let wire = [frame(0x01, b"ab"), frame(0x89, b"p"), frame(0x00, b""), frame(0x80, b"c")].concat();
    check(&wire, Ok(&["Ping 70", "Text 616263"]));
}

#[test]
fn fragments_out_of_order_fail_the_connection() {
    check(&frame(0x80, b"x"), Err(ProtocolError::Fragment));
    check(&[frame(0x01, b"a"), frame(0x81, b"b")].concat(), Err(ProtocolError::Fragment));
}

#[test]
fn too_many_fragments_fail_the_connection_even_if_they_are_empty() {
    let limit = Limits::default().max_fragments;
    let mut wire = frame(0x02, b"");
    (1..limit).for_each(|_| wire.extend(frame(0x00, b"")));
    let whole = [wire.clone(), frame(0x80, b"")].concat();
    assert_eq!(
        feed(&mut connection(Role::Server, false), &whole, &[]),
        Err(ProtocolError::TooManyFragments { limit })
    );
    let allowed = [frame(0x02, b""), frame(0x00, b"").repeat(limit as usize - 2), frame(0x80, b"")].concat();
    assert_eq!(feed(&mut connection(Role::Server, false), &allowed, &[]).unwrap(), ["Binary "]);
}

#[test]
fn a_message_of_the_limit_passes_and_one_byte_more_does_not() {
    let limit = Limits::default().max_message;
    let mut server = connection(Role::Server, false);
    assert_eq!(feed(&mut server, &frame(0x82, &vec![0; limit]), &[1000]).unwrap().len(), 1);
    let too_big = Err(ProtocolError::MessageTooBig { limit });
    assert_eq!(feed(&mut connection(Role::Server, false), &frame(0x82, &vec![0; limit + 1]), &[10]), too_big);
    let sum = [frame(0x02, &vec![0; limit]), frame(0x80, b"x")].concat();
    assert_eq!(feed(&mut connection(Role::Server, false), &sum, &[10_000]), too_big);
}

#[test]
fn a_declared_length_is_refused_before_anything_is_allocated() {
    let mut wire = vec![0x82, 0xff];
    wire.extend((1_u64 << 62).to_be_bytes());
    wire.extend([0; 4]);
    check(&wire, Err(ProtocolError::MessageTooBig { limit: Limits::default().max_message }));
}

#[test]
fn text_that_is_not_utf8_fails_at_the_byte_that_shows_it() {
    check(&frame(0x81, &[0xff]), Err(ProtocolError::Utf8));
    check(&frame(0x81, &[0xe2, 0x82]), Err(ProtocolError::Utf8));
    check(&[frame(0x01, &[0xe2, 0x82]), frame(0x80, &[0xac])].concat(), Ok(&["Text e282ac"]));
    // The frame announces 20 bytes; the surrogate is told when its second byte is there.
    let cut_off = &frame(0x81, &[0xed, 0xa0, 0x80].repeat(7))[..8];
    check(cut_off, Err(ProtocolError::Utf8));
}

#[test]
fn close_codes_and_reasons_are_checked() {
    let close = |body: &[u8]| feed(&mut connection(Role::Server, false), &frame(0x88, body), &[]);
    assert_eq!(close(b"").unwrap(), ["Close None"]);
    for code in [1000_u16, 1001, 1002, 1003, 1007, 1011, 1014, 3000, 4999] {
        assert!(close(&code.to_be_bytes()).is_ok(), "{code}");
    }
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535] {
        assert_eq!(close(&code.to_be_bytes()), Err(ProtocolError::CloseBody), "{code}");
    }
    assert_eq!(close(&[3]), Err(ProtocolError::CloseBody));
    assert_eq!(close(&[3, 232, 0xff]), Err(ProtocolError::Utf8));
}

#[test]
fn nothing_is_read_after_the_peers_close_and_the_close_is_answered_once() {
    let mut server = connection(Role::Server, false);
    let wire = [frame(0x89, b"p"), frame(0x88, &[3, 232]), frame(0x81, b"late")].concat();
    assert_eq!(feed(&mut server, &wire, &[]).unwrap().len(), 2);
    assert_eq!(server.state(), State::CloseReceived);
    let mut queue = SendQueue::new();
    server.flush_replies(&mut queue);
    server.flush_replies(&mut queue);
    server.send(Kind::Text, &[], &Bytes::from_static(b"late"), &mut queue);
    assert_eq!(bytes_of(&mut queue), [0x8a, 1, b'p', 0x88, 2, 3, 232]);
    assert_eq!(server.state(), State::Closed);
}

#[test]
fn only_the_last_of_many_pings_is_answered() {
    let mut server = connection(Role::Server, false);
    feed(&mut server, &[frame(0x89, b"1"), frame(0x89, b"2")].concat(), &[]).unwrap();
    let mut queue = SendQueue::new();
    server.flush_replies(&mut queue);
    assert_eq!(bytes_of(&mut queue), [0x8a, 1, b'2']);
}

#[test]
fn a_failed_connection_says_why_and_reads_no_more() {
    let mut server = connection(Role::Server, false);
    let error = feed(&mut server, &frame(0x83, b""), &[]).unwrap_err();
    let mut queue = SendQueue::new();
    server.fail(&error, &mut queue);
    assert_eq!(bytes_of(&mut queue)[2..4], 1002_u16.to_be_bytes());
    assert_eq!(feed(&mut server, &frame(0x81, b"x"), &[]).unwrap(), [""; 0]);
}

#[test]
fn large_messages_leave_in_fragments_of_16_kib_and_are_shared_not_copied() {
    let body = Bytes::from(vec![7; 40_000]);
    let mut queue = SendQueue::new();
    connection(Role::Server, false).send(Kind::Binary, &[0], &body, &mut queue);
    let mut slices = [std::io::IoSlice::new(&[]); 8];
    assert_eq!(queue.chunks_vectored(&mut slices), 6);
    assert_eq!(slices[1].as_ptr(), body.as_ptr());
    assert_eq!(slices[1].len(), 16 * 1024 - 1);
    assert_eq!(CloseCode::new(1006), None);
}

#[test]
fn an_idle_connection_is_a_few_words() {
    assert!(size_of::<Connection>() <= 64, "{}", size_of::<Connection>());
    assert!(size_of::<ProtocolError>() <= 32);
}
