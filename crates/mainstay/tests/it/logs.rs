//! The lines of the log about a session, and the span around the lines of its handler.

use std::io;
use std::time::Duration;

use mainstay::Client;
use mainstay::server::Config;

use crate::lines::Lines;
use crate::support::{Proxy, server, until};

#[tokio::test]
async fn each_event_of_a_session_is_one_line_and_its_handler_runs_in_its_span() {
    // With one subscriber alone, a line that another test's thread reaches first would be off for all threads.
    let _second = tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(io::sink).finish());
    for log_principal in [false, true] {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
            .with_ansi(false)
            .with_writer(lines.clone())
            .finish();
        let _here = tracing::subscriber::set_default(subscriber);
        let config = Config::new().log_principal(log_principal);
        let (address, mainstay) = server(config, |upgrade| {
            upgrade.principal("ada").on_session(|mut session| async move {
                while let Some(message) = session.recv().await {
                    tracing::info!(length = message.len(), "handled");
                }
            })
        })
        .await;
        let proxy = Proxy::to(address).await;
        let client = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap().connect();
        client.send_tracked("secret").await.unwrap().await;
        until("it is handled", || lines.count(&["handled", "session{session=", "epoch=1"]) > 0).await;
        assert!(lines.count(&["session begins", "session="]) > 0);
        proxy.cut();
        until("it parks", || lines.count(&["session parked", "epoch=1", "cause="]) > 0).await;
        client.send_tracked("more").await.unwrap().await;
        until("it is back", || lines.count(&["session resumed", "epoch=2"]) > 0).await;
        until("it is handled", || lines.count(&["handled", "epoch=2"]) > 0).await;
        assert_eq!(lines.count(&["principal=ada"]) > 0, log_principal);
        mainstay.drain(Duration::ZERO).await;
        assert!(lines.count(&["session ended", "cause=\"drained\"", "epoch=2"]) > 0);
        assert!(lines.count(&["secret"]) == 0, "payloads are not logged");
    }
}
