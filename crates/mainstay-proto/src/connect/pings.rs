//! A plain peer that answers no Ping: what shows that it is alive nevertheless, and what changes then.
//!
//! RFC 6455 section 5.5.2 requires every endpoint to answer a Ping, and some do not. Towards them a link would write
//! 64 messages and then wait for ever, and its heartbeat would declare every connection dead on which the peer has
//! nothing to send. One Pong of a link's peer, on any connection, ends the doubt. Until then the client concludes
//! that the peer answers no Ping
//!
//! - when messages wait behind a Ping for longer than the heartbeat's deadline, although bytes arrived after the Ping
//!   had left;
//! - when messages or a probe wait for longer than the transport tolerates without an acknowledgement of TCP, if it
//!   has such a limit ([`Client::handle_guarded`]): the peer's machine is reachable, and the connection is its own;
//! - when the heartbeat finds that the peer sends bytes and answers no probe (5 minutes).
//!
//! From then on the peer is served at-most-once ([`Confirmer`](crate::confirm::Confirmer)), silence is no verdict,
//! and probes continue so that TCP notices a loss. A connection that accepts no bytes still ends as before. A Pong
//! ends this mode.
//!
//! Source: `docs/PROTOCOL.md` "Plain peers".

use std::time::{Duration, Instant};

use super::peer::Peer;
use super::{Client, Event, Pulse};
use crate::heartbeat::{Evidence, Heartbeat};
use crate::session::ConnectionId;

/// How much later the transport may report its limit.
const SLACK: Duration = Duration::from_secs(1);

/// What is known about the connection in addition to its heartbeat.
#[derive(Debug, Default)]
pub(super) struct Signs {
    /// When bytes last arrived.
    last_bytes: Option<Instant>,
    /// How long the transport waits for an acknowledgement before it reports the connection lost.
    guard: Option<Duration>,
    /// The heartbeat found no sign of life. At this time the transport has reported the connection lost, or the peer
    /// is alive.
    doubt_until: Option<Instant>,
}

impl Signs {
    pub(super) fn handle_bytes(&mut self, now: Instant) {
        (self.last_bytes, self.doubt_until) = (Some(now), None);
    }

    pub(super) fn last_bytes(&self) -> Option<Instant> {
        self.last_bytes
    }

    pub(super) fn doubt_until(&self) -> Option<Instant> {
        self.doubt_until
    }
}

impl Client {
    /// The transport of this connection reports it lost if the peer's machine acknowledges nothing for `within`.
    pub fn handle_guarded(&mut self, connection: ConnectionId, within: Duration) {
        if let Some(attached) = self.attached.as_mut().filter(|attached| attached.connection == connection) {
            attached.signs.guard = Some(within);
        }
    }

    /// Whether a plain peer answers Pings; `None` if that is not known yet.
    #[must_use]
    pub fn answers_pings(&self) -> Option<bool> {
        self.peer.plain()?.confirmer.answers_pings()
    }

    /// Returns when messages have waited long enough for a first Pong.
    pub(super) fn pings_judged_at(&self) -> Option<Instant> {
        let since = self.peer.plain()?.confirmer.stalled_since()?;
        let attached = self.attached.as_ref()?;
        let Pulse::Driven(beat, _) = &attached.pulse else { return None };
        // A Pong may stand unread behind messages that the application does not receive.
        if !self.wants_input() {
            return None;
        }
        let usual = since + beat.deadline();
        if attached.signs.last_bytes.is_some_and(|last_bytes| last_bytes > since) {
            return Some(usual);
        }
        attached.signs.guard.map(|within| usual.max(since + within + SLACK))
    }

    pub(super) fn judge_pings(&mut self, now: Instant) {
        let Some(at) = self.pings_judged_at().filter(|at| *at <= now) else { return };
        if now.duration_since(at) <= SLACK {
            self.expect_no_pongs(now);
        } else if let Peer::Plain(plain) = &mut self.peer {
            // This process was paused: that is no evidence about the peer.
            plain.confirmer.restart_stall(now);
        }
    }

    /// The peer is alive and answers no Ping, unless it ever answered one.
    pub(super) fn expect_no_pongs(&mut self, now: Instant) {
        if let Some(plain) = self.peer.plain_mut().filter(|plain| plain.confirmer.answers_pings().is_none()) {
            plain.confirmer.expect_no_pongs();
            self.events.push_back(Event::PingsUnanswered);
            self.close_plain_if_done(now);
        }
    }

    /// Whether to ignore the heartbeat's verdict, because this peer has never answered a Ping.
    pub(super) fn is_spared(&mut self, now: Instant, evidence: Evidence) -> bool {
        let (Peer::Plain(plain), Some(attached)) = (&self.peer, &mut self.attached) else { return false };
        if evidence == Evidence::Stalled {
            return false;
        }
        if plain.confirmer.answers_pings() == Some(false) {
            self.beat_anew(now);
            return true;
        }
        let guard = attached.signs.guard.filter(|_| plain.confirmer.answers_pings().is_none());
        attached.signs.doubt_until = guard.map(|within| now + within);
        guard.is_some()
    }

    /// The transport would have reported a peer that is gone.
    pub(super) fn end_doubt(&mut self, now: Instant) {
        if let Some(attached) = &mut self.attached {
            attached.signs.doubt_until = None;
        }
        self.expect_no_pongs(now);
        self.beat_anew(now);
    }

    fn beat_anew(&mut self, now: Instant) {
        if let Some(attached) = &mut self.attached {
            let beat = Heartbeat::new(now, &self.config.heartbeat, &mut self.rng);
            attached.pulse = Pulse::Driven(beat, None);
        }
    }
}
