//! A session that leaves its node: what it does until it is released, and what moves with it.
//!
//! Source: `docs/CLUSTER.md`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::ending::{Closed, Ending};
use super::{Established, FIRST_CLAIM, Hold, Life, Rare, ServerConfig, ServerSession};
use crate::session::flow::{Flow, Volatiles};
use crate::session::names::Name;
use crate::session::replaced::Replacements;
use crate::session::state::SessionState;
use crate::session::transmit::{ConnectionId, Transmit};
use crate::ws::CloseCode;

/// How long a session without a connection is kept whose client never confirmed an epoch. Nothing was delivered in it,
/// and the client may have another session under the same key elsewhere.
pub(super) const UNCONFIRMED_LIFE: Duration = Duration::from_secs(10);

/// The reason in the Close of the connection that a session leaves.
const LEAVES: &str = "this session moves, come back";

impl ServerSession {
    /// Declares that a new handler at another node may continue the session with what this one
    /// [saved](Self::save).
    pub fn set_movable(&mut self) {
        self.rare.get_or_insert_default().is_movable = true;
    }

    /// Whether [`set_movable`](Self::set_movable) was called.
    #[must_use]
    pub fn is_movable(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.is_movable)
    }

    /// Whether the session [leaves](Self::leave) in a drain before it is given up. A movable one does. So does one in
    /// manual mode: its handler acknowledges what it has finished, and only then is the account final.
    #[must_use]
    pub fn leaves_first(&self) -> bool {
        self.is_movable() || self.flow.inbox.is_manual()
    }

    /// Keeps what the next handler starts with. It replaces what was saved before.
    pub fn save(&mut self, bytes: Bytes) {
        self.rare.get_or_insert_default().saved = Some(bytes);
    }

    /// Returns what was saved last, here or at the node that had the session before.
    #[must_use]
    pub fn saved(&self) -> Option<&Bytes> {
        self.rare.as_ref()?.saved.as_ref()
    }

    /// Prepares the session for its [release](crate::session::Registry::release). Its connection is fenced and gets a
    /// Close with 1012; nothing is delivered any more. The application may still send, into a buffer of twice the size
    /// until the release, because no client acknowledges anything; it may acknowledge, and may end the session instead.
    /// Does nothing to a session that is not open.
    pub fn leave(&mut self, now: Instant) {
        if !self.is_open() || self.is_leaving() {
            return;
        }
        self.hold = Hold::Leaving { was_confirmed: self.is_confirmed() };
        let rare = self.rare.get_or_insert_default();
        rare.limit = Some(self.flow.outbox.double_limit());
        if let Some(attached) = self.attached.take() {
            rare.fenced = Some(attached.connection);
            self.flow.forget_owed();
            self.flow.outbox.trim(u64::MAX);
            self.life = Life::Parked { since: now };
        }
    }

    /// Whether the session [leaves](Self::leave) and is neither released nor ended.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        matches!(self.hold, Hold::Leaving { .. }) && self.is_open()
    }

    /// Ends the session as [`close`](Self::close) does, because the application dropped its handle. A session that
    /// leaves goes on.
    pub fn handle_dropped(&mut self, now: Instant) {
        if !self.is_leaving() {
            self.close(now, CloseCode::NORMAL, "");
        }
    }

    /// Whether the application may receive: the handler may start. Where confirmation comes first
    /// ([`confirmation_first`](crate::session::RegistryConfig::confirmation_first)), a control message of the client
    /// has to confirm an epoch of the session at this node before; elsewhere it is always `true`.
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        matches!(self.hold, Hold::No | Hold::Leaving { was_confirmed: true })
    }

    /// Whether confirmation comes first, and no epoch of the session was ever confirmed, at any node: nothing was
    /// delivered.
    pub(in crate::session) fn was_never_confirmed(&self) -> bool {
        !self.is_confirmed() && !self.was_established()
    }

    /// An application that ends the session keeps it here.
    pub(super) fn stay(&mut self) {
        if let Hold::Leaving { was_confirmed } = self.hold {
            self.hold = if was_confirmed { Hold::No } else { Hold::Unconfirmed };
        }
    }

    /// Ends the session because its node drains: its client gets the exact account, with the cause
    /// [`Restarted`](crate::session::message::LossCause::Restarted). An end that the application began is final now.
    pub(in crate::session) fn end_in_drain(&mut self) {
        self.is_retired = true;
        let closed = match &self.life {
            Life::Closed(_) => return,
            Life::Closing { how, .. } => match &**how {
                Ending::End { code, .. } => Closed::Ended { code: u64::from(*code), by_us: true },
                Ending::Replaced => Closed::Replaced,
            },
            Life::EndSent { code, .. } => Closed::Ended { code: *code, by_us: true },
            Life::EndReceived { code } => Closed::Ended { code: *code, by_us: false },
            Life::Parked { .. } | Life::Attached => Closed::Evicted,
        };
        self.finish(closed);
    }

    /// Returns the claim by which this node has the session.
    pub(in crate::session) fn claim(&self) -> u64 {
        self.rare.as_ref().map_or(FIRST_CLAIM, |rare| rare.claim)
    }

    /// The session is released: it is over at this node.
    pub(in crate::session) fn handle_released(&mut self) {
        self.finish(Closed::Moved);
    }

    /// Returns what another node needs to continue the session.
    pub(in crate::session) fn to_state(&self, now: Instant) -> SessionState {
        let left = match self.life {
            Life::Parked { since } => (since + self.resume_window).saturating_duration_since(now),
            _ => self.resume_window,
        };
        let mut outbound = self.flow.outbox.to_state();
        outbound.limit = self.rare.as_ref().and_then(|rare| rare.limit).unwrap_or(outbound.limit);
        SessionState {
            id: self.id,
            epoch: self.epoch,
            tokens: self.tokens().map(|name| name.map(|name| name.0)),
            key: self.key.0,
            principal: self.principal.0,
            instance: self.instance,
            attempt: self.attempt,
            was_established: self.was_established(),
            resume_window: self.resume_window,
            left,
            inbound: self.flow.inbox.to_state(),
            outbound,
            account: self.account.as_deref().copied(),
            replaced: self.rare.as_ref().map_or_else(Vec::new, |rare| rare.replaced.to_state()),
        }
    }

    /// Continues a session that another node released: parked, with the rest of its resume window.
    pub(in crate::session) fn from_state(
        config: Arc<ServerConfig>,
        now: Instant,
        state: SessionState,
        saved: Option<Bytes>,
        (claim, confirmation_first): (u64, bool),
    ) -> Self {
        let [presented, issued] = state.tokens.map(|name| name.map(Name));
        let rare = Rare {
            replaced: Replacements::from_state(&state.replaced),
            is_movable: true,
            saved,
            claim,
            fenced: None,
            limit: None,
        };
        let away = state.resume_window.saturating_sub(state.left);
        Self {
            id: state.id,
            flow: Flow::from_state(&state.inbound, state.outbound),
            principal: Name(state.principal),
            resume_window: state.resume_window,
            key: Name(state.key),
            presented,
            issued,
            spent: None,
            epoch: state.epoch,
            established: if state.was_established { Established::Earlier } else { Established::Never },
            hold: if confirmation_first { Hold::Unconfirmed } else { Hold::No },
            instance: state.instance,
            attempt: state.attempt,
            account: state.account.map(Box::new),
            life: Life::Parked { since: now.checked_sub(away).unwrap_or(now) },
            is_retired: false,
            reported_closed: false,
            forgets: false,
            attached: None,
            volatiles: Volatiles::default(),
            rare: Some(Box::new(rare)),
            end: None,
            config,
        }
    }

    /// Returns the Close of the connection that the session left, once.
    pub(super) fn close_fenced(&mut self, connection: ConnectionId) -> Option<Transmit> {
        let rare = self.rare.as_mut()?;
        rare.fenced.take_if(|fenced| *fenced == connection)?;
        Some(Transmit::Close { code: CloseCode::RESTART, reason: LEAVES.to_owned() })
    }
}
