//! The lines of the log about a session, and the span around the lines of its handler.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay::Client;
use mainstay::server::Config;
use tracing_subscriber::fmt::MakeWriter;

use crate::support::{Proxy, server, until};

/// Lines of this test's thread, which all of its server runs on.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Lines {
    fn has(&self, words: &[&str]) -> bool {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().any(|line| words.iter().all(|word| line.contains(word)))
    }
}

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
        until("it is handled", || lines.has(&["handled", "session{session=", "epoch=1"])).await;
        assert!(lines.has(&["session begins", "session="]));
        proxy.cut();
        until("it parks", || lines.has(&["session parked", "epoch=1", "cause="])).await;
        client.send_tracked("more").await.unwrap().await;
        until("it is back", || lines.has(&["session resumed", "epoch=2"])).await;
        until("it is handled", || lines.has(&["handled", "epoch=2"])).await;
        assert_eq!(lines.has(&["principal=ada"]), log_principal);
        mainstay.drain(Duration::ZERO).await;
        assert!(lines.has(&["session ended", "cause=\"drained\"", "epoch=2"]));
        assert!(!lines.has(&["secret"]), "payloads are not logged");
    }
}
