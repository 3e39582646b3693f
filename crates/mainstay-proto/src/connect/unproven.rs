//! A cut is noticed in seconds by the end that sends.
//!
//! What was written and is not acknowledged within max(3 s, 4 x rtt) is a reason to probe, and the probe's own deadline
//! makes of it a verdict. An acknowledgement shows that the connection carries, and so does the answer to a probe, for
//! everything that was written before that probe: an application at the other end that lags behind is probed for once,
//! not again and again. Any byte that arrives starts the time anew. So an end that sends nothing writes no byte more, nor
//! does one whose acknowledgements come.
//!
//! No clock is read and no timer set for a message: the first of those that are not proven notes the time of its turn,
//! and one deadline for the connection follows from that.
//!
//! A link whose buffers are full answers late, and to call it dead makes it no faster: after such a verdict the next
//! connection is given four times as long, until a message, an acknowledgement or an answer comes.
//!
//! Towards a plain peer the confirming Ping is what is unanswered. Only one that is known to answer Pings is probed, and
//! with the heartbeat's deadline: there is no session that goes on if a peer that was merely busy is called dead.
//!
//! Source: `docs/PROTOCOL.md` "Heartbeat"; `docs/DEFAULTS.md` "Heartbeat".

use std::time::{Duration, Instant};

use super::peer::{Peer, Plain};
use super::{Attached, Client, Pulse};
use crate::session::ClientSession;

/// What is known of the writes on the attached connection.
#[derive(Debug, Default)]
pub(super) struct Unproven {
    /// The first write that is not proven, or the last time that a probe was asked for.
    since: Option<Instant>,
    /// A session's server has everything up to here: a probe that left behind it was answered.
    proven: u64,
    /// The newest probe, and what was written before it.
    probe: Option<(u64, u64)>,
}

impl Unproven {
    /// Message `number` was written to a session's server that acknowledged up to `acknowledged`.
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
    /// When what was written has been unacknowledged for long enough to probe for it.
    pub(super) fn unproven_at(&self) -> Option<Instant> {
        let attached = self.attached.as_ref()?;
        let since = match &self.peer {
            // A Pong may stand unread behind what the application does not take.
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

    /// Probes for what was written, if that is due.
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

    /// The connection is called dead: an answer may have been under way for longer than it was given.
    pub(super) fn allow_for_verdict(&mut self) {
        if let Some(Attached { pulse: Pulse::Watched(watch), .. }) = &self.attached {
            self.slow = watch.probe_deadline();
        }
    }

    /// A session's connection carries, and answers in time.
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
    /// Since when its confirming Ping is unanswered.
    fn unconfirmed_since(&self, attached: &Attached) -> Option<Instant> {
        let since = self.confirmer.pinged_at().filter(|_| self.confirmer.answers_pings() == Some(true))?;
        Some(attached.unproven.since.map_or(since, |asked| asked.max(since)))
    }
}
