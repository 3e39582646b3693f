//! Holds one connection in a task of its own: opens it, sends what it is asked to, and reports what comes.

use std::time::Duration;

use mainstay_proto::ws::CloseCode;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::{Instant, timeout};

use super::super::measured::CutHow;
use super::super::probe::{End, Options, Probe, Seen};
use super::super::report::OpenError;
use super::super::target::Target;

/// How long the end of a connection may take after the closing handshake began.
const CLOSING: Duration = Duration::from_secs(1);

/// How long the answer to a first message may take.
const GREETING: Duration = Duration::from_secs(1);

/// A message that the server returns.
const TEXT: &str = "mainstay doctor";

/// What a connection is to send. When the sender is dropped, the connection is closed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Command {
    Ping,
    /// A Pong that nothing asked for.
    Pong,
    /// A message that the server returns.
    Message,
}

/// What happened to a connection.
#[derive(Debug)]
pub(super) enum Event {
    Opened,
    Failed(OpenError),
    /// The answer to a Ping, or a message that came back.
    Answer,
    /// A Ping of the server.
    Ping,
    /// The answer to the first message.
    Greeting,
    /// Anything else that the server sent.
    Data,
    /// It ended, not by this client.
    Ended(CutHow),
}

/// Opens a connection and holds it until it ends or is closed. `name` names it in the events, each of which has the time at which it
/// happened: the driver may be late.
pub(super) async fn hold<N: Copy>(
    target: Target,
    options: Options,
    name: N,
    mut commands: Receiver<Command>,
    events: Sender<(N, Instant, Event)>,
) {
    let mut probe = match target.open_with(options).await {
        Ok(probe) => probe,
        Err(error) => {
            let _ = events.send((name, Instant::now(), Event::Failed(error))).await;
            return;
        }
    };
    if events.send((name, Instant::now(), Event::Opened)).await.is_err() {
        return;
    }
    let mut is_greeted = target.first_message().is_none();
    // Over a slow path several Pings are on the way at once.
    let (mut asked, mut sent) = (0_u32, 0_u32);
    loop {
        let event = tokio::select! {
            seen = probe.next() => match seen {
                Seen::Pong(_) if asked > 0 => (asked -= 1, Event::Answer).1,
                Seen::Message { data, .. } if sent > 0 && data == TEXT => (sent -= 1, Event::Answer).1,
                Seen::Ping(_) => Event::Ping,
                Seen::Message { .. } if !is_greeted => (is_greeted = true, Event::Greeting).1,
                Seen::Pong(_) | Seen::Message { .. } => Event::Data,
                Seen::Close { code, reason } => {
                    let reason = target.shown(&reason);
                    let _ = events.send((name, Instant::now(), Event::Ended(CutHow::Close { code, reason }))).await;
                    let _ = timeout(CLOSING, ended(&mut probe)).await;
                    return;
                }
                Seen::Ended(end) => {
                    let _ = events.send((name, Instant::now(), Event::Ended(cut(end)))).await;
                    return;
                }
            },
            command = commands.recv() => {
                // An error is seen next, as the end.
                let _ = match command {
                    None => return close(&mut probe).await,
                    Some(Command::Ping) => (asked += 1, probe.send_ping(b"doctor").await).1,
                    Some(Command::Pong) => probe.send_pong(b"doctor").await,
                    Some(Command::Message) => {
                        if !std::mem::replace(&mut is_greeted, true) {
                            greet(&target, &mut probe).await;
                        }
                        sent += 1;
                        probe.send_text(TEXT).await
                    }
                };
                continue;
            }
        };
        if events.send((name, Instant::now(), event)).await.is_err() {
            return;
        }
    }
}

/// Waits for the answer to a first message, if there is one: a server may take nothing else before it.
pub(super) async fn greet(target: &Target, probe: &mut Probe) {
    if target.answers_first() {
        let _ = timeout(GREETING, probe.greeting()).await;
    }
}

/// Closes with 1000 and waits a moment for the end.
pub(super) async fn close(probe: &mut Probe) {
    let closing = async {
        if probe.send_close(CloseCode::NORMAL, "").await.is_ok() {
            ended(probe).await;
        }
    };
    let _ = timeout(CLOSING, closing).await;
}

/// Reads until the end.
pub(super) async fn ended(probe: &mut Probe) -> End {
    loop {
        if let Seen::Ended(end) = probe.next().await {
            return end;
        }
    }
}

/// The end of a stream as a cut.
pub(super) fn cut(end: End) -> CutHow {
    match end {
        End::Fin | End::TlsCut => CutHow::Fin,
        End::Reset => CutHow::Reset,
        End::Error(words) => CutHow::Error { words },
    }
}
