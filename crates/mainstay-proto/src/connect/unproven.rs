//! The end that sends notices a cut within seconds.
//!
//! If written messages are not acknowledged within max(3 s, 4 x rtt), the client probes, and the probe's own deadline
//! leads to a verdict. An acknowledgement shows that the connection works. So does the answer to a probe, for
//! everything that was written before that probe: a slow application at the other end causes one probe, not one after
//! the other. Any byte that arrives restarts the time. So an end that sends nothing writes no additional byte, and
//! neither does an end whose acknowledgements arrive.
//!
//! No clock is read and no timer is set for a message. The first unproven message records the time of its turn, and
//! the connection has one deadline that follows from it.
//!
//! A link with full buffers answers late, and a verdict makes it no faster. After such a verdict the next connection
//! gets four times as long, until a message, an acknowledgement or an answer arrives.
//!
//! Towards a plain peer the confirming Ping is what stays unanswered. The client probes only a peer that is known to
//! answer Pings, and with the heartbeat's deadline: no session would continue if a merely busy peer were declared
//! dead.
//!
//! Source: `docs/PROTOCOL.md` "Heartbeat"; `docs/DEFAULTS.md` "Heartbeat".

use std::time::{Duration, Instant};

use super::peer::{Peer, Plain};
use super::{Attached, Client, Pulse};
use crate::session::ClientSession;

/// The state of the writes on the attached connection.
#[derive(Debug, Default)]
pub(super) struct Unproven {
    /// When the first unproven message was written, or when a probe was last requested.
    since: Option<Instant>,
    /// A session's server has every message up to this number: it answered a probe behind it.
    proven: u64,
    /// The newest probe, and the number of the last message before it.
    probe: Option<(u64, u64)>,
}

impl Unproven {
    /// Message `number` was written to a session's server that has acknowledged up to `acknowledged`.
    pub(super) fn note_written(&mut self, now: Instant, number: u64, acknowledged: u64) {
        if number <= acknowledged.max(self.proven) + 1 {
            self.since = Some(now);
        }
    }

    /// A probe goes out behind message `number`.
    pub(super) fn note_probe(&mut self, nonce: u64, number: u64) {
        self.probe = Some((nonce, number));
    }

    pub(super) fn handle_pong(&mut self, nonce: u64) {
        if let Some((_, number)) = self.probe.take_if(|(probe, _)| *probe == nonce) {
            self.proven = number;
        }
    }
}

impl Client {
    /// Returns when written messages have been unacknowledged for long enough to probe.
    pub(super) fn unproven_at(&self) -> Option<Instant> {
        let attached = self.attached.as_ref()?;
        let since = match &self.peer {
            // A Pong may stand unread behind messages that the application does not receive.
            Peer::Plain(_) if !self.config.probes_unconfirmed || !self.wants_input() => return None,
            Peer::Plain(plain) => plain.unconfirmed_since(attached)?,
            Peer::Session(session) => unacknowledged_since(session, attached)?,
        };
        let (last_bytes, patience) = match &attached.pulse {
            Pulse::Watched(watch) => (watch.last_bytes(), watch.patience()),
            Pulse::Driven(beat, _) => (attached.signs.last_bytes().unwrap_or(since), beat.patience()),
        };
        Some(since.max(last_bytes) + patience)
    }

    /// Probes for written messages, if that is due.
    pub(super) fn probe_for_unproven(&mut self, now: Instant) {
        if self.unproven_at().is_none_or(|at| at > now) {
            return;
        }
        if let Some(attached) = &mut self.attached {
            attached.unproven.since = Some(now);
            match &mut attached.pulse {
                Pulse::Watched(watch) => watch.probe_patiently(),
                Pulse::Driven(beat, _) => beat.beat_now(now),
            }
        }
    }

    /// The connection is declared dead: an answer may have been in transit for longer than allowed.
    pub(super) fn allow_for_verdict(&mut self) {
        if let Some(Attached { pulse: Pulse::Watched(watch), .. }) = &self.attached {
            self.slow = watch.probe_deadline();
        }
    }

    /// A session's connection works, and answers in time.
    pub(super) fn note_progress(&mut self, now: Instant) {
        self.backoff.handle_progress(now);
        if !self.slow.is_zero()
            && let Some(Attached { pulse: Pulse::Watched(watch), .. }) = &mut self.attached
        {
            self.slow = Duration::ZERO;
            watch.allow(Duration::ZERO);
        }
    }
}

fn unacknowledged_since(session: &ClientSession, attached: &Attached) -> Option<Instant> {
    let known = session.acknowledged().max(attached.unproven.proven);
    // While an attempt is pending nothing is written to the attached connection.
    let is_unproven = session.wrote()? > known && session.pending().is_none();
    attached.unproven.since.filter(|_| is_unproven)
}

impl Plain {
    /// Returns since when the confirming Ping is unanswered.
    fn unconfirmed_since(&self, attached: &Attached) -> Option<Instant> {
        let since = self.confirmer.pinged_at().filter(|_| self.confirmer.answers_pings() == Some(true))?;
        Some(attached.unproven.since.map_or(since, |asked| asked.max(since)))
    }
}
