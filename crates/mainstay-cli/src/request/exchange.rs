//! Exchanges messages between one client's session and its link to the backend.
//!
//! The two legs fail independently. While a client that speaks `mainstay.v1` is away, its link stays up and the backend's
//! messages are kept within the session's window. A full queue makes its sender wait, on either leg; no message is dropped.
//!
//! A message of a `mainstay.v1` client is acknowledged once the backend confirmed it, so that the client's report of a lost
//! backend is exact. Each arm of the exchange waits for one leg only, and no arm waits for another. The link is read until its
//! end even if the client is gone: the Pongs that empty the link's queue arrive behind the messages that wait there.
//!
//! Not here: the effect of a lost backend on the client (`backend_end`), and a session that moves to another node (`moving`).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use mainstay::client::{Event, Events, Incoming, Sender};
use mainstay::server::Sender as ToClient;
use mainstay::{CloseCode, Link, Message, PeerClose, SendError, Session};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::clients::limits;
use crate::clients::slow_clients::{self, Ended, send_waiting};
use crate::observe::access_log::{self, AccessEntry, EndedBy};
use crate::protocols::backend_end::{BackendEnd, ClientEnd};
use crate::protocols::message_filter::MessageFilter;
use crate::protocols::moving::{Restored, Underway, leave};
use crate::protocols::prologue::ReplayError;
use crate::request::retry_after::{self, SPREAD, jitter};
use crate::routes::route::Route;
use crate::upstream::hibernate::{Idle, hibernate};
use crate::upstream::links::LinkMonitor;
use crate::upstream::when_down::Patience;

/// How long the messages of a client that is gone may take to enter the link's queue.
pub(crate) const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an exchange ended.
enum End {
    /// The client closed, or its session expired.
    Client,
    /// The session leaves this node.
    Leaves,
    /// The link ended; the error if the prologue could not be replayed.
    Backend(Option<ReplayError>),
    /// The backend was away for longer than a plain client is kept.
    Away,
}

/// Exchanges messages until the client ends, the backend ends, or the backend was away for longer than `--upstream-wait`.
/// Counts and logs the messages that may not have reached the backend. `restored`: what the session brought along from
/// another node.
pub(crate) async fn exchange(
    mut session: Session,
    mut link: Link,
    mut monitor: LinkMonitor,
    entry: AccessEntry,
    route: Arc<Route>,
    restored: Restored,
) {
    let is_plain = !session.peer().resumable;
    let (to_client, to_backend) = (session.sender(), link.sender());
    let Restored { mut unsent, prologue } = restored;
    let filter = MessageFilter::new(&route, prologue);
    let (mut forwarded, mut confirmed, mut end) = (Forwarded::default(), 0, BackendEnd::default());
    let wait = is_plain.then_some(route.upstream_wait);
    let notices = Notices::of(&route);
    let notices = notices.as_deref();
    let down = Down { wait, notices, to_backend: &to_backend };
    let watching = watch(link.events(), &route, &mut monitor, down, &mut end);
    let up = forward(&mut session, &to_client, &to_backend, &filter, &mut forwarded, notices);
    let deliver = deliver(&mut link, &to_client, &filter, &mut unsent, (&*route, notices));
    let acknowledge = acknowledge(&to_client, &to_backend, &mut confirmed);
    let idle = notices.and_then(|notices| notices.idle.as_ref());
    let hibernating = idle.map(|idle| Box::pin(hibernate(idle, &to_client, &to_backend)));
    let hibernating = async {
        match hibernating {
            Some(hibernating) => hibernating.await,
            None => std::future::pending().await,
        }
    };
    let why = tokio::select! {
        biased; // all branches are polled on every message, so a random order would cost time for nothing
        () = up => End::Client,
        ended = async { tokio::try_join!(async { Ok(deliver.await) }, watching) } => match ended {
            Ok((prologue, ())) => End::Backend(prologue),
            Err(Away) => End::Away,
        },
        never = acknowledge, if !is_plain => match never {},
        never = hibernating, if idle.is_some() => match never {},
    };
    let why = if matches!(why, End::Client) && session.is_leaving() { End::Leaves } else { why };
    if !matches!(why, End::Leaves) {
        monitor.not_delivered(forwarded.is_sending.into());
    }
    match why {
        End::Leaves => {
            let underway = Underway { sent: forwarded.sent, acknowledged: confirmed, unsent, end };
            // Boxed: every exchange would be as large as this end of few.
            let leaving = Box::pin(leave(&session, link, &filter, &mut monitor, &route, underway));
            match leaving.await {
                None => entry.ended(EndedBy::Gateway, None, "the session leaves this node"),
                Some(end) => {
                    entry.ended(EndedBy::Backend, end.close_code(), &end.cause());
                    end_session(&session, &end, &route, forwarded.sent, confirmed);
                }
            }
        }
        End::Client => {
            let close = session.peer_close();
            entry.left(session.end().as_ref());
            monitor.not_delivered(unsent_messages(&mut session).await);
            finish(link, close, &filter, &mut monitor).await;
        }
        End::Backend(prologue) => {
            let end = end.with(prologue);
            for message in filter.final_messages() {
                // A client whose queue is full gets the Close all the same.
                let _ = to_client.try_send(message);
            }
            entry.ended(EndedBy::Backend, end.close_code(), &end.cause());
            end_session(&session, &end, &route, forwarded.sent, confirmed);
        }
        End::Away => {
            route.links.refused_unreachable();
            entry.ended(EndedBy::Gateway, Some(CloseCode::TRY_AGAIN), "the backend was away for too long");
            if is_plain {
                session.close(CloseCode::TRY_AGAIN, &retry_after::close_reason());
                return finish(link, None, &filter, &mut monitor).await;
            }
            // The account of the session is exact: what the backend has, what it may have, and what comes again.
            link.abandon("the backend was away for too long");
            while let Some(event) = link.event().await {
                monitor.observe(&event);
                end.handle_event(event);
            }
            let (delivered, unknown) = end.fates(forwarded.sent);
            session.ack_oldest(delivered.saturating_sub(confirmed));
            session.renew(unknown);
        }
    }
}

/// The client's messages on their way to the link.
#[derive(Default)]
struct Forwarded {
    /// Messages that the link accepted.
    sent: u64,
    /// A message was received from the client and not accepted by the link yet.
    is_sending: bool,
}

/// What notices messages in passing. Boxed, and only where the route asks for it: every exchange would be larger.
struct Notices {
    /// Notified at each message of the client.
    sent: Notify,
    idle: Option<Idle>,
}

impl Notices {
    fn of(route: &Route) -> Option<Box<Self>> {
        let is_needed = route.when_down.watches_messages() || route.hibernate_after.is_some();
        is_needed.then(|| Box::new(Self { sent: Notify::new(), idle: route.hibernate_after.map(Idle::new) }))
    }

    fn message_of_client(&self) {
        self.sent.notify_one();
        self.message_of_backend();
    }

    fn message_of_backend(&self) {
        if let Some(idle) = &self.idle {
            idle.note_message();
        }
    }
}

/// Sends every message of the client to the link. Completes when the client has ended and its messages are sent, or cannot be
/// sent within [`FORWARD_TIMEOUT`].
async fn forward(
    session: &mut Session,
    to_client: &ToClient,
    to_backend: &Sender,
    filter: &MessageFilter,
    forwarded: &mut Forwarded,
    notices: Option<&Notices>,
) {
    let mut until = None;
    while let Some(message) = session.recv().await {
        forwarded.is_sending = true;
        if let Some(notices) = notices {
            notices.message_of_client();
        }
        let recorded = filter.is_active().then(|| message.clone());
        tokio::select! {
            biased; // while the link has room, the second branch is not polled
            sent = to_backend.send(message) => {
                if sent.is_err() {
                    // The link has ended; `watch` returns how.
                    return std::future::pending().await;
                }
            }
            // The client is gone, and the backend does not accept its last messages.
            () = forward_timeout(to_client, &mut until) => return,
            // The message is not acknowledged: it comes again from the client.
            () = to_client.leaving() => return,
        }
        forwarded.is_sending = false;
        forwarded.sent += 1;
        if let Some(message) = recorded {
            filter.handle_client(forwarded.sent, &message);
        }
    }
}

/// Acknowledges to a `mainstay.v1` client what the backend confirmed, for as long as it is polled.
async fn acknowledge(to_client: &ToClient, to_backend: &Sender, confirmed: &mut u64) -> Infallible {
    loop {
        let settled = to_backend.settled(*confirmed).await;
        to_client.ack_oldest(settled - *confirmed);
        *confirmed = settled;
    }
}

/// Completes [`FORWARD_TIMEOUT`] after the client is gone.
async fn forward_timeout(to_client: &ToClient, until: &mut Option<Instant>) {
    to_client.closed().await;
    sleep_until(*until.get_or_insert_with(|| Instant::now() + FORWARD_TIMEOUT)).await;
}

/// Sends every message of the link to the client; drops them once the client is gone. Those that wait for room are in
/// `unsent` meanwhile: a session that leaves takes them along. Returns the error if the replay of the prologue failed.
async fn deliver(
    link: &mut Link,
    to_client: &ToClient,
    filter: &MessageFilter,
    unsent: &mut VecDeque<Message>,
    (route, notices): (&Route, Option<&Notices>),
) -> Option<ReplayError> {
    send_waiting(to_client, unsent).await;
    loop {
        match filter.next(link).await {
            Ok(Some(Incoming::Message(message))) => {
                if let Some(notices) = notices {
                    notices.message_of_backend();
                }
                let since = filter.is_replaying().then(Instant::now);
                if let Err(SendError::Full(message)) = to_client.try_send(message) {
                    unsent.push_back(message);
                    // Boxed: every exchange would be as large as what few of them do.
                    let slowly = Box::pin(slow_clients::deliver(route, link, to_client, filter, unsent));
                    match slowly.await {
                        Ok(()) => {}
                        Err(Ended::Link) => return None,
                        Err(Ended::Replay(error)) => {
                            link.abandon(&error.to_string());
                            return Some(error);
                        }
                    }
                }
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

/// Ends the client's session as the backend's end requires.
fn end_session(session: &Session, end: &BackendEnd, route: &Route, sent: u64, confirmed: u64) {
    if let Some(error) = end.replay_error() {
        route.links.count_failed_prologue();
        let session = access_log::session_name(session.id());
        tracing::warn!(%session, %error, "the prologue could not be replayed; the client has to start again");
    }
    match end.client_end(&route.settings, session.peer().resumable) {
        ClientEnd::Close(code, reason) => session.close(code, &reason),
        ClientEnd::Renew => {
            let (delivered, unknown) = end.fates(sent);
            session.ack_oldest(delivered.saturating_sub(confirmed));
            session.renew(unknown);
        }
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

/// The backend was away for too long.
struct Away;

/// What `watch` needs to know when the backend was away for too long.
struct Down<'a> {
    /// How long a plain client is kept.
    wait: Option<Duration>,
    notices: Option<&'a Notices>,
    to_backend: &'a Sender,
}

/// Observes the link's events. Completes when the link has ended, and `end` says how, or when the backend was away for too long.
async fn watch(
    events: Events,
    route: &Route,
    monitor: &mut LinkMonitor,
    down: Down<'_>,
    end: &mut BackendEnd,
) -> Result<(), Away> {
    let mut patience = Patience::new(&route.when_down);
    loop {
        let now = Instant::now();
        let until = patience.poll_timeout(now.into_std());
        // A branch whose condition is false is not polled: all are on every message.
        let event = tokio::select! {
            biased;
            event = events.next() => event,
            () = message_of_client(down.notices), if down.notices.is_some() => {
                patience.handle_message(Instant::now().into_std());
                continue;
            }
            () = sleep_until(until.map_or(now, Instant::from_std)), if until.is_some() => return Err(Away),
        };
        let Some(event) = event else { return Ok(()) };
        monitor.observe(&event);
        limits::handle_event(&event, &route.server);
        match &event {
            // A random part keeps clients of the same backend from being closed at the same moment.
            Event::Detached { .. } => {
                let wait = down.wait.map(|wait| wait + jitter(SPREAD.min(wait)));
                let has_unconfirmed = down.to_backend.kept_bytes() > 0;
                patience.handle_lost(Instant::now().into_std(), has_unconfirmed, wait);
            }
            Event::AttemptFailed { .. } if !monitor.tries_another() => patience.handle_down(),
            Event::Attached { .. } => patience.handle_attached(),
            _ => {}
        }
        if end.handle_event(event) {
            return Ok(());
        }
    }
}

async fn message_of_client(notices: Option<&Notices>) {
    if let Some(notices) = notices {
        // Boxed: few exchanges have it.
        Box::pin(notices.sent.notified()).await;
    }
}
