//! The link: a client towards a peer that speaks plain WebSocket.
//!
//! It dials, detects a dead connection and dials again, as every [`Client`]. Nothing is resumed, because
//! the peer has nothing to resume: what it sent meanwhile is lost, and every new connection is an
//! [`Event::FreshPeer`](crate::client::Event::FreshPeer). What the link sends is numbered, kept and
//! confirmed by the peer's Pongs, and every message meets one fate: confirmed, or told in a [`Report`].
//!
//! ```no_run
//! use mainstay::{Guarantee, Link, Message, WhenFull};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mut link = Link::to("wss://exchange.example/orders")?
//!     .guarantee(Guarantee::AtMostOnce)
//!     .queue(256, 1024 * 1024)?
//!     .when_full(WhenFull::Fail)
//!     .connect();
//! link.send(Message::text(r#"{"buy": 1}"#)).await?;
//! while let Some(message) = link.recv().await {
//!     println!("{:?}", message.as_text());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Source: `docs/PROTOCOL.md` "Plain peers".
//!
//! [`Report`]: crate::Report

use std::time::Duration;

use mainstay_proto::ConfigError;
use mainstay_proto::confirm::{Confirm, Guarantee, WhenFull};
use mainstay_proto::connect::{ConnectConfig, EndsOn};
use mainstay_proto::heartbeat::HeartbeatConfig;
use mainstay_proto::session::{Message, Window};

use crate::client::{Builder, Client, UrlError};
use crate::clock::now;

/// What a [`Link`] expects of its peer: WebSocket without more.
#[derive(Debug)]
pub enum Plain {}

/// A client towards a peer that speaks plain WebSocket. See the [module](self).
pub type Link = Client<Plain>;

impl Client<Plain> {
    /// A link to `url` (`ws://` or `wss://`).
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn to(url: &str) -> Result<Builder<Plain>, UrlError> {
        Builder::new(url, ConnectConfig { link: true, ..ConnectConfig::default() })
    }

    /// With [`Confirm::Reply`]: the application's answer to the oldest unanswered message came.
    pub fn confirm_reply(&self) {
        self.core.change(|inner| inner.machine.handle_reply(now()));
    }

    /// With [`Builder::holds_replaced`]: writes a message ahead of the stream to the connection that
    /// [`Incoming::FreshPeer`] announced with the count `replacement`. It is not kept, and lost with that connection. Nothing
    /// happens if the stream flows on it already, or it was replaced itself.
    ///
    /// [`Incoming::FreshPeer`]: crate::client::Incoming::FreshPeer
    pub fn send_ahead(&self, replacement: u64, message: impl Into<Message>) {
        self.core.change(|inner| inner.machine.send_ahead(replacement, message.into()));
    }

    /// With [`Builder::holds_replaced`]: the stream flows on that connection, behind what was [sent
    /// ahead](Self::send_ahead).
    pub fn release(&self, replacement: u64) {
        self.core.change(|inner| inner.machine.release(replacement));
    }

    /// Up to this number every message has met its fate: confirmed or reported.
    #[must_use]
    pub fn settled_now(&self) -> u64 {
        self.core.lock().machine.settled()
    }

    /// Ends now, without a closing handshake. What is kept is reported: as unknown what was written, as not delivered the
    /// rest.
    pub fn abandon(&self, reason: &str) {
        self.core.change(|inner| inner.machine.abandon(reason));
    }
}

impl Builder<Plain> {
    /// What ends a message's keeping. Default: the Pong.
    #[must_use]
    pub fn confirm(mut self, confirm: Confirm) -> Self {
        self.config.confirm = self.config.confirm.confirm(confirm);
        self
    }

    /// What becomes of unconfirmed messages when the connection is lost. Default: they are sent again.
    #[must_use]
    pub fn guarantee(mut self, guarantee: Guarantee) -> Self {
        self.config.confirm = self.config.confirm.guarantee(guarantee);
        self
    }

    /// How many messages, and how many bytes of them, may wait for confirmation, written or not; one
    /// larger message alone is accepted. Default: 1,024 and 4 MiB. Range: at least 1 each.
    ///
    /// # Errors
    /// One of them is 0.
    pub fn queue(mut self, messages: usize, bytes: usize) -> Result<Self, ConfigError> {
        self.config.confirm = self.config.confirm.queue(messages, bytes)?;
        Ok(self)
    }

    /// What happens to a message that does not fit the queue. Default: its sender waits.
    #[must_use]
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.config.confirm = self.config.confirm.when_full(when_full);
        self
    }

    /// Shortest time between two confirming Pings, for services that count them. It bounds what the link carries to
    /// 64 messages or 256 KiB in that time. Default: none. Range: up to 1 minute.
    ///
    /// # Errors
    /// It is out of range.
    pub fn min_ping_interval(mut self, min_ping_interval: Duration) -> Result<Self, ConfigError> {
        self.config.confirm = self.config.confirm.min_ping_interval(min_ping_interval)?;
        Ok(self)
    }

    /// What is read ahead of the application: once so much waits for [`recv`](Client::recv) the peer is not read, so it
    /// waits too. What one look at the socket brings above that, up to 64 KiB or one message, is kept. Default: 1,024
    /// messages and 4 MiB. Range: at least 1 each; less counts as that.
    #[must_use]
    pub fn read_ahead(mut self, ahead: Window) -> Self {
        let Window { messages, bytes } = ahead;
        self.config.session.flow.accept = Window { messages: messages.max(1), bytes: bytes.max(1) };
        self
    }

    /// Whether the peer answers Pings, where that is known beforehand. If not, it is served at-most-once from the first
    /// message on, whatever [`guarantee`](Self::guarantee) says, and until its first Pong; if so, its silence is never
    /// taken for that. Default: it is [found out](crate::client::Event::PingsUnanswered).
    #[must_use]
    pub fn expects_pongs(mut self, expects_pongs: bool) -> Self {
        self.config.confirm = self.config.confirm.expects_pongs(expects_pongs);
        self
    }

    /// How often to probe. Default: every 25 s.
    #[must_use]
    pub fn heartbeat(mut self, heartbeat: HeartbeatConfig) -> Self {
        self.config.heartbeat = heartbeat;
        self
    }

    /// Whether a message that stays unconfirmed for 3 s, or four round trips, is a reason to look at once whether the peer
    /// lives. It has 5 to 20 s to show that, as for any heartbeat. Leave it out where the peer is near and may stand still
    /// for longer than that. Default: yes, towards a peer that is known to answer Pings.
    #[must_use]
    pub fn probes_unconfirmed(mut self, probes: bool) -> Self {
        self.config.probes_unconfirmed = probes;
        self
    }

    /// Whether what the peer sends after [`Client::close`] is handed over until the end: for applications whose
    /// [`confirm_reply`](Link::confirm_reply) depends on it. Default: no.
    #[must_use]
    pub fn reads_while_closing(mut self, reads: bool) -> Self {
        self.config.reads_while_closing = reads;
        self
    }

    /// What ends the link for good, instead of another dial; the [`Event::Detached`](crate::client::Event::Detached)
    /// before its [`Event::Ended`](crate::client::Event::Ended) says why. Default: [`EndsOn::Nothing`].
    #[must_use]
    pub fn ends_on(mut self, ends_on: EndsOn) -> Self {
        self.config.ends_on = ends_on;
        self
    }

    /// Every connection but the first carries nothing of the stream until [`Link::release`], so that the peer can be
    /// told first what it knew on the connection before. Default: no.
    #[must_use]
    pub fn holds_replaced(mut self, holds: bool) -> Self {
        self.config.holds_replaced = holds;
        self
    }

    /// A message by which the peer announces that it restarts: whatever the code of the Close behind it, that counts as
    /// 1012. Default: there is none.
    #[must_use]
    pub fn announces_restart(mut self, announces: fn(&Message) -> bool) -> Self {
        self.config.announces_restart = Some(announces);
        self
    }
}
