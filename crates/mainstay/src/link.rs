//! The link: a client towards a peer that speaks plain WebSocket.
//!
//! It dials, detects a dead connection and dials again, as every [`Client`](crate::Client) does. Nothing is resumed, because
//! the peer has nothing to resume: messages that it sent meanwhile are lost, and every new connection is an
//! [`Event::FreshPeer`](crate::client::Event::FreshPeer). The link numbers and keeps the messages that it sends, and the
//! peer's Pongs confirm them. Every message meets one fate: it is confirmed, or a [`Report`] states what became of it.
//!
//! ```no_run
//! use mainstay::{Guarantee, Link, WhenFull};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mut link = Link::builder("wss://exchange.example/orders")?
//!     .guarantee(Guarantee::AtMostOnce)
//!     .queue(256, 1024 * 1024)?
//!     .when_full(WhenFull::Fail)
//!     .connect();
//! link.send(r#"{"buy": 1}"#).await?;
//! while let Some(message) = link.recv().await {
//!     println!("{:?}", message.as_text());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Source: `docs/PROTOCOL.md` "Plain peers".
//!
//! [`Report`]: crate::client::Report

use std::time::Duration;

use mainstay_proto::ConfigError;
use mainstay_proto::confirm::{Confirm, Guarantee, WhenFull};
use mainstay_proto::connect::{ConnectConfig, EndsOn};
use mainstay_proto::heartbeat::HeartbeatConfig;
use mainstay_proto::session::{Message, Window};
use mainstay_proto::ws::CloseCode;

use crate::client::{Builder, ClientHandle, Upgraded, UrlError};
use crate::clock::now;

/// The kind of peer that a [`Link`] expects: one that speaks plain WebSocket.
#[derive(Debug)]
pub enum Plain {}

/// A client towards a peer that speaks plain WebSocket. See the [module](self).
pub type Link = ClientHandle<Plain>;

impl ClientHandle<Plain> {
    /// Returns a builder of a link to `url`: `ws://`, `wss://` or a Unix socket, in the forms that
    /// [`Place`](crate::client::Place) reads.
    ///
    /// # Errors
    /// The URL cannot be dialled.
    pub fn builder(url: &str) -> Result<Builder<Plain>, UrlError> {
        Builder::new(url, ConnectConfig { link: true, ..ConnectConfig::default() })
    }

    /// With [`Confirm::Reply`]: confirms the oldest unanswered message, because the application has received its answer.
    ///
    /// ```no_run
    /// use mainstay::{Confirm, Link};
    ///
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut link = Link::builder("wss://exchange.example/orders")?.confirm(Confirm::Reply).connect();
    /// link.send("order 17").await?;
    /// while let Some(answer) = link.recv().await {
    ///     println!("{:?}", answer.as_text());
    ///     link.confirm_reply();
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn confirm_reply(&self) {
        self.core.change(|inner| inner.machine.handle_reply(now()));
    }

    /// Ends the link in order, as [`close`](Self::close), and still delivers what the peer sends until its own Close: the peer
    /// answers a Close behind everything that it sent before. The link makes no other connection for it. `recv` returns `None`
    /// behind the last message.
    pub fn close_and_read(&self, code: CloseCode, reason: &str) {
        self.core.close_and_read(code, reason);
    }

    /// With [`Builder::holds_replaced`]: writes a message ahead of the stream to the connection that
    /// [`Incoming::FreshPeer`] announced with the count `replacement`. The message is not kept, and is lost with that
    /// connection. If the stream flows on that connection already, or the connection was replaced, this does nothing.
    ///
    /// [`Incoming::FreshPeer`]: crate::client::Incoming::FreshPeer
    pub fn send_ahead(&self, replacement: u64, message: impl Into<Message>) {
        self.core.change(|inner| inner.machine.send_ahead(replacement, message.into()));
    }

    /// With [`Builder::holds_replaced`]: lets the stream flow on that connection, behind the messages that were [sent
    /// ahead](Self::send_ahead).
    pub fn release(&self, replacement: u64) {
        self.core.change(|inner| inner.machine.release(replacement));
    }

    /// The number up to which every message has met its fate: confirmed or reported.
    #[must_use]
    pub fn settled_now(&self) -> u64 {
        self.core.lock().machine.settled()
    }

    /// Closes the connection in order, and dials the next one when a message waits to be sent, or at
    /// [`probe_now`](Self::probe_now): for a program with many links that are idle. What the peer sends before it answers the
    /// Close is still received, and [`Event::Rested`] follows. The next connection is a fresh peer as any other, and is held back
    /// with [`Builder::holds_replaced`]. Returns `false`, and does nothing, if the link is not attached, is held back, closes, or
    /// waits for a confirmation.
    ///
    /// ```no_run
    /// # fn idle(link: &mainstay::Link) {
    /// if link.rest(mainstay::CloseCode::GOING_AWAY, "idle") {
    ///     println!("the next message opens another connection");
    /// }
    /// # }
    /// ```
    ///
    /// [`Event::Rested`]: crate::client::Event::Rested
    pub fn rest(&self, code: CloseCode, reason: &str) -> bool {
        self.core.change(|inner| inner.machine.rest(now(), code, reason))
    }

    /// Ends the link now, without a closing handshake. Messages that are kept are reported: those that were written as unknown,
    /// the others as not delivered.
    pub fn abandon(&self, reason: &str) {
        self.core.change(|inner| inner.machine.abandon(reason));
    }
}

impl Builder<Plain> {
    /// Chooses what confirms a message, so that it is no longer kept. Default: the Pong.
    pub fn confirm(mut self, confirm: Confirm) -> Self {
        self.config.confirm = self.config.confirm.confirm(confirm);
        self
    }

    /// Chooses what becomes of unconfirmed messages when the connection is lost. Default: they are sent again.
    pub fn guarantee(mut self, guarantee: Guarantee) -> Self {
        self.config.confirm = self.config.confirm.guarantee(guarantee);
        self
    }

    /// Limits the messages, and their payload bytes, that may wait for confirmation, written or not. One larger message is
    /// accepted while nothing else waits. Default: 1,024 messages and 4 MiB. Range: at least 1 each.
    ///
    /// # Errors
    /// One of them is 0.
    pub fn queue(mut self, messages: usize, bytes: usize) -> Result<Self, ConfigError> {
        self.config.confirm = self.config.confirm.queue(messages, bytes)?;
        Ok(self)
    }

    /// Chooses what happens to a message that does not fit the queue. Default: its sender waits.
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.config.confirm = self.config.confirm.when_full(when_full);
        self
    }

    /// Sets the shortest time between two confirming Pings, for services that limit them. The link carries at most 64 messages
    /// or 256 KiB in that time. Default: none. Range: up to 1 minute.
    ///
    /// # Errors
    /// It is out of range.
    pub fn min_ping_interval(mut self, min_ping_interval: Duration) -> Result<Self, ConfigError> {
        self.config.confirm = self.config.confirm.min_ping_interval(min_ping_interval)?;
        Ok(self)
    }

    /// Limits what is read ahead of the application: while so much waits for [`recv`](ClientHandle::recv) the link reads
    /// nothing more, so the peer has to wait, too. One read may exceed the limit by up to 64 KiB or one message. Default:
    /// 1,024 messages and 4 MiB. Range: at least 1 each; less counts as 1.
    pub fn read_ahead(mut self, ahead: Window) -> Self {
        let Window { messages, bytes } = ahead;
        self.config.session.flow.accept = Window { messages: messages.max(1), bytes: bytes.max(1) };
        self
    }

    /// States whether the peer answers Pings, where that is known beforehand. With `false` messages are sent at most once,
    /// whatever [`guarantee`](Self::guarantee) states, until the peer's first Pong. With `true` a missing Pong always counts
    /// against the peer. Default: the link [finds out](crate::client::Event::PingsUnanswered).
    pub fn expects_pongs(mut self, expects_pongs: bool) -> Self {
        self.config.confirm = self.config.confirm.expects_pongs(expects_pongs);
        self
    }

    /// Sets how often the link probes the peer. Default: every 25 s.
    pub fn heartbeat(mut self, heartbeat: HeartbeatConfig) -> Self {
        self.config.heartbeat = heartbeat;
        self
    }

    /// Whether the link probes the peer at once when a message stays unconfirmed for 3 s, or for four round trips. The peer
    /// has 5 to 20 s to answer, as for any heartbeat. Turn it off for a peer that is near and may pause for longer than that.
    /// Default: yes, towards a peer that is known to answer Pings.
    pub fn probes_unconfirmed(mut self, probes: bool) -> Self {
        self.config.probes_unconfirmed = probes;
        self
    }

    /// Whether messages that the peer sends after [`close`](ClientHandle::close) are delivered until the end: for applications
    /// whose [`confirm_reply`](Link::confirm_reply) depends on them. Default: no.
    pub fn reads_while_closing(mut self, reads: bool) -> Self {
        self.config.reads_while_closing = reads;
        self
    }

    /// Chooses what ends the link instead of another dial. The [`Event::Detached`](crate::client::Event::Detached) before its
    /// [`Event::Ended`](crate::client::Event::Ended) states why. Default: [`EndsOn::Nothing`].
    pub fn ends_on(mut self, ends_on: EndsOn) -> Self {
        self.config.ends_on = ends_on;
        self
    }

    /// Whether every connection but the first carries nothing of the stream until [`Link::release`], so that the application
    /// can first restore the state that the peer had on the connection before. Default: no.
    ///
    /// ```no_run
    /// use mainstay::Link;
    /// use mainstay::client::Incoming;
    ///
    /// # async fn run() -> Result<(), mainstay::client::UrlError> {
    /// let mut link = Link::builder("ws://127.0.0.1:3000/")?.holds_replaced(true).connect();
    /// while let Some(incoming) = link.recv_any().await {
    ///     match incoming {
    ///         Incoming::Message(message) => println!("{message:?}"),
    ///         Incoming::FreshPeer { count } => {
    ///             link.send_ahead(count, "join room 7");
    ///             link.release(count);
    ///         }
    ///         _ => {}
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn holds_replaced(mut self, holds: bool) -> Self {
        self.config.holds_replaced = holds;
        self
    }

    /// Whether the first connection continues one that another process had, as for a session that moved here: it counts as a
    /// replacement, so [`Incoming::FreshPeer`](crate::client::Incoming::FreshPeer) comes first, and
    /// [`holds_replaced`](Self::holds_replaced) holds it back. Default: no.
    pub fn continues(mut self, continues: bool) -> Self {
        self.config.continues = continues;
        self
    }

    /// Recognises the message by which the peer announces that it restarts: the Close behind it counts as 1012, whatever its
    /// code. Default: no message announces it.
    pub fn announces_restart(mut self, announces: fn(&Message) -> bool) -> Self {
        self.config.announces_restart = Some(announces);
        self
    }

    /// Begins with a connection whose opening handshake is done, for a gateway that passes a client's handshake on. The link
    /// is attached at once. When that connection is lost the link dials as every other does, with the settings of this
    /// builder.
    #[must_use = "dropping a link closes it"]
    pub fn adopt(self, upgraded: Upgraded) -> ClientHandle<Plain> {
        self.begin_upgraded(upgraded)
    }
}
