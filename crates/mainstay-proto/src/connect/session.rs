//! Towards a session's server: what the session's machine reports, and what it writes.
//!
//! Source: `docs/PROTOCOL.md` "Attaching", "Closing".

use std::time::{Duration, Instant};

use super::attempts::advice;
use super::peer::Peer;
use super::{Client, Command, Dial, End, EndCause, Event, Lost, Mode, Pulse, ReasonCode, Report};
use crate::backoff::Scope;
use crate::heartbeat::Watch;
use crate::session::message::Delay;
use crate::session::{CLOSE_TIMEOUT, ClientEvent, ConnectionId, EndedBy, Transmit};

impl Client {
    pub(super) fn poll_session_transmit(
        &mut self,
        now: Instant,
        connection: ConnectionId,
    ) -> Option<Transmit> {
        let Peer::Session(session) = &mut self.peer else { return None };
        if session.writer() != Some(connection) {
            return None;
        }
        let (_, transmit) = session.poll_transmit(now)?;
        if let (Transmit::Message(_), Some(attached), Some(number)) =
            (&transmit, &mut self.attached, session.wrote())
        {
            attached.unproven.note_written(now, number, session.acknowledged());
        }
        Some(transmit)
    }

    /// Handles the events of the session's machine.
    pub(super) fn collect(&mut self, now: Instant) {
        while let Some(event) = self.peer.session_mut().and_then(|session| session.poll_event()) {
            match event {
                ClientEvent::Attached { id, epoch, resumed, heartbeat_interval, resume_at, .. } => {
                    (self.id, self.endpoint) = (Some(id), resume_at);
                    if let Some(connection) = self.peer.session().and_then(|session| session.current()) {
                        let mut watch = Watch::new(now, heartbeat_interval);
                        watch.allow(self.slow);
                        self.set_attached(now, connection, Pulse::Watched(watch));
                        self.epoch = epoch;
                        self.events.push_back(Event::Attached { mode: Mode::Session, resumed, epoch });
                    }
                }
                ClientEvent::Gap(fate) => {
                    // Messages that were received and not delivered are lost with the session.
                    (self.gap, self.left) = (Some(Box::new(fate)), 0);
                    self.events.push_back(Event::Gap(fate));
                }
                ClientEvent::TooLarge { number } => {
                    self.events.push_back(Event::Report(Report::NotDelivered(number..=number)));
                }
                ClientEvent::Refused { code, delay, .. } => {
                    if let Dial::Attaching { connection, .. } = self.dial {
                        self.abort_connection(connection);
                        let (code, reason) =
                            (ReasonCode::of_session(code), format!("refused with code {code}"));
                        let why = Lost::Unavailable { code, retry_after: None, reason };
                        self.dial_failed(now, why, Some(delay));
                    }
                }
                ClientEvent::GoAway { delay, close_in, endpoint, .. } => {
                    self.handle_go_away(now, delay, close_in, endpoint);
                }
                ClientEvent::Volatile(message) => self.events.push_back(Event::Volatile(message)),
                ClientEvent::Authenticated { accepted } => {
                    self.events.push_back(Event::Authenticated { accepted });
                }
                ClientEvent::Ended { code, reason, fate, by } => {
                    let closed = self.write_last(now);
                    self.drop_connections(closed);
                    self.end_with(End {
                        cause: cause_of(by),
                        code: Some(ReasonCode::of_session(code)),
                        reason,
                        fate: Some(fate),
                        lost: None,
                    });
                }
            }
        }
        self.close_plain_if_done(now);
    }

    /// The server asks the client to leave: plans the replacement.
    fn handle_go_away(&mut self, now: Instant, delay: Delay, close_in: Duration, endpoint: Option<String>) {
        self.endpoint = endpoint.or(self.endpoint.take());
        self.unwanted_until = (delay.min >= close_in && !delay.min.is_zero()).then(|| now + delay.min);
        let leave = Some(advice(before(delay, close_in)));
        let wait = self.backoff.next_delay(Scope::Shared, leave, &mut self.rng);
        if self.dial == Dial::Rest {
            self.dial = Dial::Waiting { until: now + wait };
        }
    }

    /// Queues the last transmits of the session (the answer to END, the Close), so that they leave before the end. Returns
    /// the connection that is closed with them.
    fn write_last(&mut self, now: Instant) -> Option<ConnectionId> {
        let mut closed = None;
        while let Some((id, transmit)) =
            self.peer.session_mut().and_then(|session| session.poll_transmit(now))
        {
            closed = closed.or(matches!(transmit, Transmit::Close { .. }).then_some(id));
            self.commands.push_back(Command::Transmit(id, transmit));
            self.lingering = Some((id, now + CLOSE_TIMEOUT));
        }
        closed
    }

    /// Drops the connection that is being opened and, if the attempt was refused finally, the one that it was to replace:
    /// that one gets no Close. `closed`: the connection that got one.
    fn drop_connections(&mut self, closed: Option<ConnectionId>) {
        if let Dial::Connecting { connection, .. } | Dial::Attaching { connection, .. } = self.dial {
            self.abort_connection(connection);
            let old = self.attached.as_ref().map(|old| old.connection).filter(|old| Some(*old) != closed);
            old.into_iter().for_each(|old| self.abort_connection(old));
        }
        (self.attached, self.dial) = (None, Dial::Rest);
    }
}

fn cause_of(by: EndedBy) -> EndCause {
    match by {
        EndedBy::Us => EndCause::Closed,
        EndedBy::Abort => EndCause::Aborted,
        EndedBy::Server => EndCause::Peer,
        EndedBy::Refusal => EndCause::Refused,
        EndedBy::OtherInstance => EndCause::Superseded,
        EndedBy::Protocol => EndCause::Protocol,
    }
}

/// Returns the part of a delay that is over before the server closes the connection, if there is one. (A `close_in`
/// of 0 announces no time. An earliest moment after the close means that the server refuses connections before it.)
fn before(delay: Delay, close_in: Duration) -> Delay {
    if delay.min < close_in { Delay { max: delay.max.min(close_in), ..delay } } else { delay }
}
