//! Peers that stop: in the middle of a frame, with reading, with everything. Time is tokio's, which leaps whenever
//! nothing is left to do.

use mainstay::server::Config;
use tokio::io::AsyncWriteExt;

use super::{Raw, frame, header};
use crate::support::{echo_server, until_quiet};

#[tokio::test(start_paused = true)]
async fn a_peer_that_stops_in_the_middle_of_a_frame_is_found_by_the_heartbeat() {
    let (address, mainstay) = echo_server(Config::default()).await;
    let mut raw = Raw::open(address, "").await;
    raw.write(&header(0x82, 60_000)).await;
    raw.write(&[0; 500]).await;
    until_quiet("it is called dead", || mainstay.stats().connections == 0).await;
    let stats = mainstay.stats();
    assert_eq!((stats.dead_silent + stats.dead_frozen, stats.sessions), (1, 0), "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_writes_and_never_reads_is_found_by_the_heartbeat_and_bounded() {
    let (address, mainstay) = echo_server(Config::default()).await;
    let mut raw = Raw::open(address, "").await;
    let message = frame(0x82, &[7; 60_000]);
    let writing = tokio::spawn(async move {
        let mut count = 0_u64;
        while raw.stream.write_all(&message).await.is_ok() {
            count += 1;
        }
        count
    });
    until_quiet("it is called dead", || {
        // What waits for it never exceeds the window by more than a message.
        assert!(mainstay.kept_bytes() <= (1 << 20) + 60_000);
        mainstay.stats().connections == 0 && mainstay.stats().connections_opened == 1
    })
    .await;
    let stats = mainstay.stats();
    assert_eq!(stats.dead_silent + stats.dead_frozen + stats.dead_stalled, 1, "{stats:?}");
    until_quiet("nothing is left", || mainstay.stats().sessions == 0).await;
    // The window, the buffers of two kernels, and then nothing.
    assert!(writing.await.unwrap() < 1_000);
}

#[tokio::test(start_paused = true)]
async fn a_close_that_is_never_answered_holds_nothing() {
    let (address, mainstay) = echo_server(Config::default()).await;
    let mut raw = Raw::open(address, "").await;
    // Broken: the server closes, and the peer just stays.
    raw.write(&[0x81, 1, b'x']).await;
    until_quiet("the connection is gone", || mainstay.stats().connections == 0).await;
    // Far beyond the linger.
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert_eq!(raw.close_code().await, Some(1002));
}
