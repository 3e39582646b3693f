//! Compressed messages that are not what they look like.

use bytes::{Buf, Bytes};
use mainstay::server::Config;
use mainstay::{Kind, Limits};
use mainstay_proto::ws::{Connection, DeflateParams, Role, SendQueue};

use super::{Raw, Stage, frame};

const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";

async fn stage() -> Stage {
    Stage::set(Config::new().deflate(true)).await
}

async fn check(stage: &Stage, what: &str, bytes: &[u8], code: u16) {
    let mut raw = Raw::open(stage.address, OFFER).await;
    raw.write(bytes).await;
    assert_eq!(raw.close_code().await, Some(code), "{what}");
}

/// `body`, as an honest client compresses it.
fn compressed(body: Bytes) -> Vec<u8> {
    let mut client =
        Connection::new(Role::Client, Limits::default(), Some(DeflateParams::default()), [7; 32]);
    let mut out = SendQueue::new();
    client.send(Kind::Binary, b"", &body, &mut out);
    out.copy_to_bytes(out.remaining()).to_vec()
}

#[tokio::test]
async fn a_bomb_is_stopped_at_the_limit() {
    let stage = stage().await;
    let bomb = compressed(Bytes::from(vec![0; 10 << 20]));
    assert!(bomb.len() < 20_000, "10 MiB in {} bytes", bomb.len());
    check(&stage, "10 MiB of zeros", &bomb, 1009).await;
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn broken_compression_is_refused() {
    let stage = stage().await;
    for (what, bytes, code) in [
        ("a reserved block", frame(0xc2, &[0x07]), 1007),
        ("a stored block whose lengths differ", frame(0xc2, &[0x00, 0x01, 0x00, 0x00, 0x00, b'x']), 1007),
        ("a stored block that ends early", frame(0xc2, &[0x00, 0xff, 0x00, 0x00, 0xff, b'x']), 1007),
        ("bytes after the last block", frame(0xc2, &[0x03, 0x00, 0xff, 0xff, 0xff]), 1007),
        ("a distance before the start", frame(0xc2, &[0x4b, 0x04, 0x62, 0x00]), 1007),
        ("a compressed ping", frame(0xc9, b"x"), 1002),
        ("a compressed continuation", [frame(0x42, b"x"), frame(0xc0, b"x")].concat(), 1002),
        ("text that is no UTF-8 once inflated", frame(0xc1, &[0xfa, 0x07, 0x00]), 1007),
    ] {
        check(&stage, what, &bytes, code).await;
    }
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn no_context_is_kept_between_messages_whatever_is_offered() {
    let stage = stage().await;
    let mut raw = Raw::open(stage.address, OFFER).await;
    assert!(raw.head.contains("server_no_context_takeover"), "{}", raw.head);
    assert!(raw.head.contains("client_no_context_takeover"), "{}", raw.head);
    raw.echoes("x").await;
    drop(raw);
    stage.ends_unharmed().await;
}

#[tokio::test]
async fn random_bytes_never_do_more_than_close_their_connection() {
    let stage = stage().await;
    let mut state = 1_u64;
    for _ in 0..200 {
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        })
        .take(64)
        .collect();
        let mut raw = Raw::open(stage.address, OFFER).await;
        // Whole frames of random payload, and then anything; the Close ends what was none.
        raw.write(&[frame(0xc1, &bytes), bytes, frame(0x88, &[])].concat()).await;
        drop(raw);
    }
    stage.ends_unharmed().await;
}
