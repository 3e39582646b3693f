//! Frames that RFC 6455 does not allow, and frames that it allows and no application needs.

use mainstay::server::Config;

use super::{Stage, frame, header};

/// Sends `bytes` on a connection of its own and expects the close code.
async fn check(stage: &Stage, what: &str, bytes: &[u8], code: u16) {
    let mut raw = stage.open().await;
    raw.write(bytes).await;
    assert_eq!(raw.close_code().await, Some(code), "{what}");
}

#[tokio::test]
async fn a_broken_frame_closes_its_own_connection_with_the_code_of_the_rfc() {
    let stage = Stage::set(Config::default()).await;
    let close = |code: u16| frame(0x88, &code.to_be_bytes());
    let mut cases: Vec<(String, Vec<u8>, u16)> = [
        ("unmasked", vec![0x81, 1, b'x'], 1002),
        ("a fragmented ping", frame(0x09, b"x"), 1002),
        ("a ping of 126 bytes", frame(0x89, &[b'x'; 126]), 1002),
        ("125 bytes in 16 bits", [&[0x82, 0x80 | 126, 0, 125, 0, 0, 0, 0][..], &[0; 125]].concat(), 1002),
        ("65,535 bytes in 64 bits", vec![0x82, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff], 1002),
        ("2^63 bytes", [header(0x82, 1 << 63), vec![0; 4]].concat(), 1002),
        ("2^64 - 1 bytes", [header(0x82, u64::MAX), vec![0; 4]].concat(), 1002),
        ("2^63 - 1 bytes", [header(0x82, (1 << 63) - 1), vec![0; 4]].concat(), 1009),
        ("1 GB", [header(0x82, 1 << 30), vec![0; 4]].concat(), 1009),
        ("a continuation of nothing", frame(0x80, b"x"), 1002),
        ("a message inside another", [frame(0x01, b"a"), frame(0x81, b"b")].concat(), 1002),
        ("one byte too many", frame(0x82, &vec![0; (1 << 20) + 1]), 1009),
        ("too much in two", [frame(0x02, &vec![0; 1 << 20]), frame(0x80, b"x")].concat(), 1009),
        ("1,025 fragments", [frame(0x02, b"x"), frame(0x00, b"x").repeat(1024)].concat(), 1008),
        ("endless empty fragments", [frame(0x02, b""), frame(0x00, b"").repeat(20_000)].concat(), 1008),
        ("half a close code", frame(0x88, &[3]), 1002),
        ("a close reason that is no UTF-8", frame(0x88, &[3, 0xe8, 0xff]), 1007),
        ("text that is no UTF-8", frame(0x81, &[0xce, 0xba, 0xff]), 1007),
        ("text that ends in a character", frame(0x81, &[0xce]), 1007),
    ]
    .map(|(what, bytes, code)| (what.to_owned(), bytes, code))
    .into();
    for bit in [0x40, 0x20, 0x10] {
        cases.push((format!("reserved bit {bit:#x}"), frame(0x81 | bit, b"x"), 1002));
    }
    for opcode in (3..=7).chain(11..=15) {
        cases.push((format!("opcode {opcode}"), frame(0x80 | opcode, b"x"), 1002));
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 2000, 2999, 5000] {
        cases.push((format!("close code {code}"), close(code), 1002));
    }
    for (what, bytes, code) in &cases {
        check(&stage, what, bytes, *code).await;
    }
    assert_eq!(stage.mainstay.stats().protocol_errors, cases.len() as u64);
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn text_that_is_no_utf_8_is_refused_wherever_it_is_cut() {
    let stage = Stage::set(Config::default()).await;
    let bad = b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80edited"; // a surrogate half
    for cut in 0..bad.len() {
        let bytes = [frame(0x01, &bad[..cut]), frame(0x80, &bad[cut..])].concat();
        check(&stage, &format!("cut at {cut}"), &bytes, 1007).await;
    }
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn frames_that_the_rfc_allows_are_served_however_odd_they_are() {
    let stage = Stage::set(Config::default()).await;
    let mut raw = stage.open().await;
    // As large as may be; `frame` masks with a key of zeros.
    let large = vec![7; 1 << 20];
    raw.write(&frame(0x82, &large)).await;
    let mut back = Vec::new();
    while back.len() < large.len() {
        back.extend(raw.frame().await.unwrap().1);
    }
    assert!(back == large);
    // One byte in each segment.
    for byte in frame(0x81, b"byte by byte") {
        raw.write(&[byte]).await;
    }
    assert_eq!(raw.frame().await.unwrap(), (0x81, b"byte by byte".to_vec()));
    // Empty fragments, and a ping between them.
    let parts = [frame(0x01, b""), frame(0x00, b"a"), frame(0x89, b"?"), frame(0x00, b""), frame(0x80, b"b")];
    raw.write(&parts.concat()).await;
    let mut frames = [raw.frame().await.unwrap(), raw.frame().await.unwrap()];
    frames.sort();
    assert_eq!(frames, [(0x81, b"ab".to_vec()), (0x8a, b"?".to_vec())]);
    drop(raw);
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn nothing_after_a_close_is_looked_at() {
    let stage = Stage::set(Config::default()).await;
    let mut raw = stage.open().await;
    raw.write(&[frame(0x88, &1000_u16.to_be_bytes()), frame(0x81, b"late"), vec![0xff; 100]].concat()).await;
    assert_eq!(raw.frame().await.unwrap(), (0x88, 1000_u16.to_be_bytes().to_vec()), "and no echo before");
    assert!(raw.frame().await.is_err());
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn a_flood_of_empty_frames_ends_the_connection() {
    let stage = Stage::set(Config::default()).await;
    for (what, bytes) in [
        ("pings", frame(0x89, b"?")),
        ("unsolicited pongs", frame(0x8a, b"!")),
        // Each message is allowed by itself: 1,024 fragments.
        ("empty fragments", [frame(0x02, b""), frame(0x00, b"").repeat(1022), frame(0x80, b"")].concat()),
        ("empty messages between pings", [frame(0x82, b""), frame(0x89, b"")].concat()),
    ] {
        check(&stage, what, &bytes.repeat(2_100), 1008).await;
    }
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn small_messages_at_full_speed_are_no_flood() {
    let stage = Stage::set(Config::default()).await;
    let raw = stage.open().await;
    let (mut reading, mut writing) = raw.stream.into_split();
    // A ping after each message is no flood either.
    let bytes = [frame(0x82, b"x"), frame(0x89, b"")].concat().repeat(20_000);
    let write = async { tokio::io::AsyncWriteExt::write_all(&mut writing, &bytes).await.unwrap() };
    let read = async {
        // Pongs may be fewer than pings, messages may not.
        let (mut echoes, mut buffer) = (0, vec![0; 65_536]);
        while echoes < 20_000 {
            let count = tokio::io::AsyncReadExt::read(&mut reading, &mut buffer).await.unwrap();
            assert!(count > 0, "closed after {echoes} messages");
            echoes += buffer[..count].iter().filter(|byte| **byte == b'x').count();
        }
    };
    tokio::join!(write, read);
    drop((reading, writing));
    stage.ends_unharmed().await;
}
