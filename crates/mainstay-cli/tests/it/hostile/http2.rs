//! A flood over HTTP/2 at the gateway: its connection ends, an operator sees it, a neighbour does not.

use axum::Router;
use axum::routing::any;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::doors::{Door, House, LIMIT, Neighbour, reads_to_the_end};
use crate::support::{backend, echo, until};

/// One frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[0, 0, length, kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

/// Requests that are cancelled at once.
fn rapid_reset() -> Vec<u8> {
    let request = [&[0x82, 0x87, 0x84, 0x41, 9][..], b"localhost"].concat();
    let each = |number: u32| {
        let stream = 2 * number + 1;
        [frame(1, 5, stream, &request), frame(3, 0, stream, &[0, 0, 0, 8])].concat()
    };
    let begin = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[])].concat();
    [begin, (0..5_000).flat_map(each).collect()].concat()
}

#[tokio::test]
async fn a_rapid_reset_ends_its_connection_is_counted_and_logged_and_a_neighbour_is_served() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    backend(listener, Router::new().fallback(any(echo))).await;
    let house = House::new(Door::Tls, address, &[]);
    let neighbour = Neighbour::at(&house, "/").await;
    let before = house.figures();
    for count in 1..=5 {
        let (mut reader, mut writer) = tokio::io::split(house.connect_with(b"h2").await);
        let flooding = async {
            // The gateway closes before it has read all of it.
            let _ = writer.write_all(&rapid_reset()).await;
            std::future::pending::<()>().await;
        };
        let both = async {
            tokio::select! {
                () = reads_to_the_end(&mut reader) => {}
                () = flooding => {}
            }
        };
        tokio::time::timeout(LIMIT, both).await.expect("the gateway closes");
        house.gateway.wait_for_metric("http2_floods_total", f64::from(count)).await;
    }
    house.is_back_at(&before, "a flood over HTTP/2").await;
    neighbour.was_served().await;
    let lines = || house.gateway.log().matches("its client flooded it").count();
    until("it is logged", || lines() > 0).await;
    assert!(lines() < 5, "one line every 30 s: {}", house.gateway.log());
}
