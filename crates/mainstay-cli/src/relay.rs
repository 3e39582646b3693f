//! Relays messages between one client's session and its link to the backend.
//!
//! The two legs fail independently. While a client that speaks `mainstay.v1` is away, its link stays up and the backend's
//! messages are kept within the session's window. [`BackendLoss`] is the operator's choice of what a lost backend means for
//! the client. A full queue makes its sender wait, on either leg; no message is dropped.
//!
//! A message of a `mainstay.v1` client is acknowledged once the backend confirmed it, so that the client's report of a lost
//! backend is exact. Each arm of the relay waits for one leg only, and no arm waits for another. The link is read until its
//! end even if the client is gone: the Pongs that empty the link's queue arrive behind the messages that wait there.

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use mainstay::client::{Event, Events, Incoming, Lost, ReasonCode};
use mainstay::server::{Sender as ToClient, Session};
use mainstay::{CloseCode, Link, PeerClose, Report};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::access_log::{self, AccessEntry, EndedBy};
use crate::limits;
use crate::links::LinkMonitor;
use crate::message_filter::MessageFilter;
use crate::prologue::ReplayError;
use crate::retry_after::{self, SPREAD, jitter};
use crate::session::LinkConfig;

/// How long the messages of a client that is gone may take to enter the link's queue.
pub(crate) const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);

/// What happens to a client whose backend connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendLoss {
    /// The client is closed with 1012 or gets a new session at once, and its application initialises again. For backends
    /// that keep state in the connection, such as a login, a subscription or a room.
    Renew,
    /// The client stays connected, and the gateway opens a new connection to the backend. For backends that keep no state in
    /// the connection.
    Keep,
}

/// Why a relay ended.
enum End {
    /// The client closed, or its session expired.
    Client,
    /// The link ended.
    Backend(BackendEnd),
    /// The backend was away for longer than a plain client is kept.
    Away,
}

/// How the backend ended the link.
struct BackendEnd {
    /// How the last connection ended; `None` if an opening handshake was refused.
    lost: Option<Lost>,
    /// The code or HTTP status that the link ended with.
    code: Option<ReasonCode>,
    reason: String,
    /// The last message whose delivery is unknown.
    unknown: Option<u64>,
    /// The first message that the backend did not confirm.
    first_unconfirmed: Option<u64>,
    /// Why the prologue could not be replayed to a new connection.
    prologue: Option<ReplayError>,
}

/// Relays until the client ends, the backend ends, or the backend was away for longer than `--upstream-wait`. Counts and
/// logs the messages that may not have reached the backend.
pub(crate) async fn relay(
    mut session: Session,
    mut link: Link,
    mut monitor: LinkMonitor,
    entry: AccessEntry,
    config: Arc<LinkConfig>,
) {
    let is_plain = !session.peer().resumable;
    let (to_client, to_backend) = (session.sender(), link.sender());
    let (away, filter) = (Notify::new(), MessageFilter::new(&config));
    let (mut sent, mut is_sending, mut confirmed) = (0, false, 0);
    let wait = is_plain.then_some(config.upstream_wait);
    let watching = watch(link.events(), &config, &mut monitor, wait, &away);
    let up = async {
        let mut until = None;
        while let Some(message) = session.recv().await {
            is_sending = true;
            let recorded = filter.is_active().then(|| message.clone());
            tokio::select! {
                biased; // while the link has room, the second branch is not polled
                sent = to_backend.send(message) => {
                    if sent.is_err() {
                        // The link has ended; `watching` returns how.
                        return std::future::pending().await;
                    }
                }
                // The client is gone, and the backend does not accept its last messages.
                () = forward_timeout(&to_client, &mut until) => return,
            }
            is_sending = false;
            sent += 1;
            if let Some(message) = recorded {
                filter.handle_client(sent, &message);
            }
        }
    };
    let acknowledge = async {
        if is_plain {
            return std::future::pending::<()>().await;
        }
        loop {
            let settled = to_backend.settled(confirmed).await;
            to_client.ack_oldest(settled - confirmed);
            confirmed = settled;
        }
    };
    let end = tokio::select! {
        biased; // all branches are polled on every message, so a random order would cost time for nothing
        () = up => End::Client,
        (prologue, end) = async { tokio::join!(deliver(&mut link, &to_client, &filter), watching) } => {
            End::Backend(BackendEnd { prologue, ..end })
        }
        () = acknowledge => End::Client,
        () = away.notified() => End::Away,
    };
    monitor.not_delivered(is_sending.into());
    match end {
        End::Client => {
            let close = session.peer_close();
            entry.left(session.end().as_ref());
            monitor.not_delivered(unsent_messages(&mut session).await);
            finish(link, close, &filter, &mut monitor).await;
        }
        End::Backend(end) => {
            for message in filter.final_messages() {
                // A client whose queue is full gets the Close all the same.
                let _ = to_client.try_send(message);
            }
            entry.ended(EndedBy::Backend, end.close_code(), &end.cause());
            end.announce(&session, &config, sent, confirmed);
        }
        End::Away => {
            config.links.refused_unreachable();
            entry.ended(EndedBy::Gateway, Some(CloseCode::TRY_AGAIN), "the backend was away for too long");
            session.close(CloseCode::TRY_AGAIN, &retry_after::close_reason());
            finish(link, None, &filter, &mut monitor).await;
        }
    }
}

/// Completes [`FORWARD_TIMEOUT`] after the client is gone.
async fn forward_timeout(to_client: &ToClient, until: &mut Option<Instant>) {
    to_client.closed().await;
    sleep_until(*until.get_or_insert_with(|| Instant::now() + FORWARD_TIMEOUT)).await;
}

/// Sends every message of the link to the client; drops them once the client is gone. Returns the error if the replay of
/// the prologue failed.
async fn deliver(link: &mut Link, to_client: &ToClient, filter: &MessageFilter) -> Option<ReplayError> {
    loop {
        match filter.next(link).await {
            Ok(Some(Incoming::Message(message))) => {
                let since = filter.is_replaying().then(Instant::now);
                let _ = to_client.send(message).await;
                if let Some(since) = since {
                    filter.postpone(since.elapsed());
                }
            }
            Ok(Some(Incoming::FreshPeer { .. })) => to_client.note_replaced(),
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(error) => {
                link.abandon(&error.to_string());
                return Some(error);
            }
        }
    }
}

impl BackendEnd {
    /// Ends the client's session as the backend's end requires.
    fn announce(self, session: &Session, config: &LinkConfig, sent: u64, confirmed: u64) {
        if let Some(error) = &self.prologue {
            config.links.count_failed_prologue();
            tracing::warn!(session = %access_log::session_name(session.id()), %error, "the prologue could not be replayed; the client has to start again");
        }
        match &self.lost {
            Some(Lost::Closed { code, reason }) if self.is_final(session, config) => {
                // END cannot carry "no code".
                let none = if session.peer().resumable { CloseCode::NORMAL } else { CloseCode::NO_STATUS };
                session.close(code.unwrap_or(none), reason);
            }
            // A new session would receive the same message again.
            Some(lost @ Lost::TooBig { .. }) => {
                session.close(CloseCode::TOO_BIG, &format!("from the backend: {lost}"));
            }
            // Without a code the backend refused by HTTP: connecting again would not help the client.
            None if self.prologue.is_none() => {
                session.close(self.close_code().unwrap_or(CloseCode::POLICY), &self.reason);
            }
            _ => {
                let delivered = self.first_unconfirmed.map_or(sent, |first| first - 1);
                let passed_on = self.unknown.unwrap_or(delivered);
                session.ack_oldest(delivered.saturating_sub(confirmed));
                session.renew(passed_on.saturating_sub(delivered));
            }
        }
    }

    fn close_code(&self) -> Option<CloseCode> {
        self.code.and_then(ReasonCode::close_code)
    }

    /// Returns the cause, for the log.
    fn cause(&self) -> String {
        match &self.lost {
            Some(Lost::Closed { reason, .. }) => format!("the backend closed its connection: {reason}"),
            Some(lost) => format!("the connection to the backend was lost: {lost:?}"),
            None => format!("the backend refused: {}", self.reason),
        }
    }

    /// Returns whether the backend's Close also ends the client's session. A plain client gets every Close.
    fn is_final(&self, session: &Session, config: &LinkConfig) -> bool {
        let Some(Lost::Closed { code, .. }) = &self.lost else { return false };
        let is_plain = !session.peer().resumable;
        let general = || {
            is_plain || config.settings.on_backend_loss == BackendLoss::Keep || !CloseCode::is_restart(*code)
        };
        // With a status the backend refused the next connection, and only the client can send other credentials.
        let was_refused = self.code.and_then(ReasonCode::status).is_some();
        let is_last = self.prologue.is_none() && !was_refused;
        is_last && (config.settings.closes.are_final(*code) || general())
    }
}

/// Counts the messages of a client that is gone that did not enter the link's queue.
async fn unsent_messages(session: &mut Session) -> u64 {
    let mut count = 0;
    while let Ok(Some(_)) = timeout(Duration::ZERO, session.recv()).await {
        count += 1;
    }
    count
}

/// Closes the link with the client's code and reason, and observes the fate of its messages until its end.
async fn finish(mut link: Link, close: Option<PeerClose>, filter: &MessageFilter, monitor: &mut LinkMonitor) {
    let (code, reason) = match close {
        Some(close) => (close.code.unwrap_or(CloseCode::NO_STATUS), close.reason),
        None => (CloseCode::GOING_AWAY, String::new()),
    };
    // Starts the close without waiting for it: the backend must be read for its confirmations.
    let _ = timeout(Duration::ZERO, link.close(code, &reason)).await;
    loop {
        match filter.next(&mut link).await {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => break link.abandon(&error.to_string()),
        }
    }
    while let Some(event) = link.event().await {
        monitor.observe(&event);
    }
}

/// Observes the link's events; notifies `away` when the backend was away for too long. Returns how the link ended.
async fn watch(
    events: Events,
    config: &LinkConfig,
    monitor: &mut LinkMonitor,
    wait: Option<Duration>,
    away: &Notify,
) -> BackendEnd {
    let mut give_up: Option<Instant> = None;
    let mut end = BackendEnd {
        lost: None,
        code: None,
        reason: String::new(),
        unknown: None,
        first_unconfirmed: None,
        prologue: None,
    };
    loop {
        let too_long = async {
            match give_up {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            biased;
            event = events.next() => event,
            () = too_long => {
                away.notify_one();
                give_up = None;
                continue;
            }
        };
        let Some(event) = event else { return end };
        monitor.observe(&event);
        limits::handle_event(&event, &config.server);
        match event {
            Event::Detached { why, .. } => {
                // A random part keeps clients of the same backend from being closed at the same moment.
                give_up = wait.map(|wait| Instant::now() + wait + jitter(SPREAD.min(wait)));
                end.lost = Some(why);
            }
            Event::Attached { .. } => {
                give_up = None;
                // Reports of a loss precede its `Detached` event, and belong to the connection before this one.
                (end.unknown, end.first_unconfirmed) = (None, None);
            }
            Event::Report(Report::Unknown(range)) => {
                end.unknown = end.unknown.max(Some(*range.end()));
                end.first_unconfirmed = end.first_unconfirmed.or(Some(*range.start()));
            }
            Event::Report(Report::NotDelivered(range)) => {
                end.first_unconfirmed = end.first_unconfirmed.or(Some(*range.start()));
            }
            Event::Ended(ended) => {
                (end.code, end.reason) = (ended.code, ended.reason);
                return end;
            }
            _ => {}
        }
    }
}
