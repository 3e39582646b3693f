//! One client's session joined to one link to the backend.
//!
//! The two legs fail apart. While a client that speaks `mainstay.v1` is away its link stays up, and what the backend
//! sends is kept within the session's window. What the lost backend does to the client is the operator's choice:
//! [`BackendLoss`]. Full means waiting, on either leg, never dropping.
//!
//! A message is acknowledged to a client that speaks `mainstay.v1` once the link has it confirmed, so the client's own
//! account of a lost backend is exact. Each arm of the relay waits for one leg alone, and none waits for another arm:
//! the link is read until its end, also for a client that is gone, since the Pongs that empty its queue stand behind the
//! messages that wait there.

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use mainstay::client::{Event, Events, Incoming, Lost, ReasonCode, Report};
use mainstay::server::Sender as ToClient;
use mainstay::{CloseCode, Link, PeerClose, Session};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::access::{self, By, Visitor};
use crate::bounds;
use crate::conversation::Conversation;
use crate::join::{LinkConfig, SPREAD, come_back, jitter};
use crate::links::Account;
use crate::prologue::Failure;

/// How long what a client left behind may take to enter the link's queue.
pub(crate) const UNLOADING: Duration = Duration::from_secs(5);

/// What becomes of a client whose backend connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendLoss {
    /// It is told at once: closed with 1012, or given a new session, and its application initialises again. For backends
    /// that keep state with the connection: a login, a subscription, a room.
    Renew,
    /// It stays, and a new connection to the backend is joined to it. For backends that keep no state with the connection.
    Keep,
}

/// Why a relay ended.
enum End {
    /// The client left, or its session expired.
    Client,
    /// The backend's connection ended for good.
    Backend(BackendEnd),
    /// The backend was away for longer than a plain client is kept.
    Away,
}

/// How the backend ended the link.
struct BackendEnd {
    /// How its last connection ended; `None`: no connection, a handshake was refused.
    lost: Option<Lost>,
    /// The code or the status that the link ended with.
    code: Option<ReasonCode>,
    reason: String,
    /// What became of the messages that were not confirmed.
    unknown: Option<u64>,
    first_unconfirmed: Option<u64>,
    /// Why a new connection could not be told what the backend must know.
    prologue: Option<Failure>,
}

/// Runs until the client or the backend ends it, or the backend was away for longer than a plain client is kept. What
/// the backend did not certainly get is counted and logged.
pub(crate) async fn relay(
    mut session: Session,
    mut link: Link,
    mut account: Account,
    visitor: Visitor,
    config: Arc<LinkConfig>,
) {
    let is_plain = !session.peer().resumable;
    let (to_client, to_backend) = (session.sender(), link.sender());
    let (away, conversation) = (Notify::new(), Conversation::new(&config));
    let (mut sent, mut in_hand, mut confirmed) = (0, false, 0);
    let wait = is_plain.then_some(config.upstream_wait);
    let watching = watch(link.events(), &config, &mut account, wait, &away);
    let up = async {
        let mut until = None;
        while let Some(message) = session.recv().await {
            in_hand = true;
            let heard = conversation.listens().then(|| message.clone());
            tokio::select! {
                biased; // while the link has room the second is not even polled
                sent = to_backend.send(message) => {
                    if sent.is_err() {
                        // The link has ended, and `watching` says how.
                        return std::future::pending().await;
                    }
                }
                // The client is gone, and the backend takes nothing of what it left behind.
                () = unloaded(&to_client, &mut until) => return,
            }
            in_hand = false;
            sent += 1;
            if let Some(message) = heard {
                conversation.note_client(sent, &message);
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
        biased; // all are polled on every message: no dice are thrown for the first
        () = up => End::Client,
        (prologue, end) = async { tokio::join!(deliver(&mut link, &to_client, &conversation), watching) } => {
            End::Backend(BackendEnd { prologue, ..end })
        }
        () = acknowledge => End::Client,
        () = away.notified() => End::Away,
    };
    account.not_delivered(in_hand.into());
    match end {
        End::Client => {
            let close = session.peer_close();
            visitor.left(session.end().as_ref());
            account.not_delivered(left_behind(&mut session).await);
            finish(link, close, &conversation, &mut account).await;
        }
        End::Backend(end) => {
            for message in conversation.last_words() {
                // One that does not take it gets the close all the same.
                let _ = to_client.try_send(message);
            }
            visitor.ended(By::Backend, end.close_code(), &end.cause());
            end.announce(&session, &config, sent, confirmed);
        }
        End::Away => {
            config.links.turned_away();
            visitor.ended(By::Gateway, Some(CloseCode::TRY_AGAIN), "the backend was away for too long");
            session.close(CloseCode::TRY_AGAIN, &come_back());
            finish(link, None, &conversation, &mut account).await;
        }
    }
}

/// Waits until the client is gone, and as long after that as what it left behind may take.
async fn unloaded(to_client: &ToClient, until: &mut Option<Instant>) {
    to_client.closed().await;
    sleep_until(*until.get_or_insert_with(|| Instant::now() + UNLOADING)).await;
}

/// Everything that the link brings goes to the client, and nowhere once the client is gone. Returns why a new connection
/// could not be told what the backend must know, if that is why it ends.
async fn deliver(link: &mut Link, to_client: &ToClient, conversation: &Conversation) -> Option<Failure> {
    loop {
        match conversation.next(link).await {
            Ok(Some(Incoming::Message(message))) => {
                let since = conversation.is_replaying().then(Instant::now);
                let _ = to_client.send(message).await;
                if let Some(since) = since {
                    conversation.postpone(since.elapsed());
                }
            }
            Ok(Some(Incoming::FreshPeer { .. })) => to_client.note_replaced(),
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(failure) => {
                link.abandon(&failure.to_string());
                return Some(failure);
            }
        }
    }
}

impl BackendEnd {
    /// Passes the end on to the client: the backend's own words where it spoke any.
    fn announce(self, session: &Session, config: &LinkConfig, sent: u64, confirmed: u64) {
        if let Some(failure) = &self.prologue {
            config.links.count_failed_prologue();
            tracing::warn!(session = %access::name(session.id()), %failure, "a client is not kept: it has to begin anew");
        }
        match &self.lost {
            Some(Lost::Closed { code, reason }) if self.is_final(session, config) => {
                // END carries no code that says that there is none.
                let none = if session.peer().resumable { CloseCode::NORMAL } else { CloseCode::NO_STATUS };
                session.close(code.unwrap_or(none), reason);
            }
            // A new session would get the same message again.
            Some(lost @ Lost::TooBig { .. }) => {
                session.close(CloseCode::TOO_BIG, &format!("from the backend: {lost}"));
            }
            // Without a code it was refused by HTTP: a client cannot mend that by asking again.
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

    /// In words.
    fn cause(&self) -> String {
        match &self.lost {
            Some(Lost::Closed { reason, .. }) => format!("the backend closed its connection: {reason}"),
            Some(lost) => format!("the connection to the backend was lost: {lost:?}"),
            None => format!("the backend refused: {}", self.reason),
        }
    }

    /// Whether the backend's Close is the application's last word. A plain client judges any Close by itself.
    fn is_final(&self, session: &Session, config: &LinkConfig) -> bool {
        let Some(Lost::Closed { code, .. }) = &self.lost else { return false };
        let is_plain = !session.peer().resumable;
        let general = || {
            is_plain || config.settings.on_backend_loss == BackendLoss::Keep || !CloseCode::is_restart(*code)
        };
        // With a status the backend refused the connection that was to follow. Only the client can ask in other words.
        let was_refused = self.code.and_then(ReasonCode::status).is_some();
        let is_last = self.prologue.is_none() && !was_refused;
        is_last && (config.settings.closes.are_words(*code) || general())
    }
}

/// How many messages of a client that is gone nobody took.
async fn left_behind(session: &mut Session) -> u64 {
    let mut count = 0;
    while let Ok(Some(_)) = timeout(Duration::ZERO, session.recv()).await {
        count += 1;
    }
    count
}

/// Ends the link in order, with what the client said when it left, and notes to the end what became of what it had.
async fn finish(
    mut link: Link,
    close: Option<PeerClose>,
    conversation: &Conversation,
    account: &mut Account,
) {
    let (code, reason) = match close {
        Some(close) => (close.code.unwrap_or(CloseCode::NO_STATUS), close.reason),
        None => (CloseCode::GOING_AWAY, String::new()),
    };
    // Begun, and not waited for: until the backend is read nothing more of it would confirm anything.
    let _ = timeout(Duration::ZERO, link.close(code, &reason)).await;
    loop {
        match conversation.next(&mut link).await {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(failure) => break link.abandon(&failure.to_string()),
        }
    }
    while let Some(event) = link.event().await {
        account.note(&event);
    }
}

/// Notes what the link loses, as it happens, and says when the backend was away for too long; returns how the link
/// ended.
async fn watch(
    events: Events,
    config: &LinkConfig,
    account: &mut Account,
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
        account.note(&event);
        bounds::note(&event, &config.mainstay);
        match event {
            Event::Detached { why, .. } => {
                // Clients that lost their backend together are not sent away together.
                give_up = wait.map(|wait| Instant::now() + wait + jitter(SPREAD.min(wait)));
                end.lost = Some(why);
            }
            Event::Attached { .. } => {
                give_up = None;
                // What a loss reports stands before its own event, and is that connection's.
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
