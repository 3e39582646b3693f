//! The prologue: frames of the client that are replayed to every new connection to the backend.
//!
//! With `--on-backend-loss keep` a client outlives its connection to the backend. A backend that keeps state in the
//! connection, such as a login or subscriptions, needs that state again on the next one. This machine records the client's
//! frames that rules select, forgets those that later frames cancel, replays the rest to a new connection, and withholds
//! from the client the answers that it received before.
//!
//! **The machine learns which answers to wait for.** On the first connection every message passes. A message of the
//! backend that matches a rule for answers belongs to the oldest recorded frame with the same key that has no answer by
//! this rule yet; a message before the first recorded frame is the backend's greeting. A replay waits for the same answers:
//! for the greeting first; after each frame for its withheld answers, before the next frame is written; and at the end for
//! the answers that pass to the client. A frame that was never answered is not waited for; its answer passes to the client,
//! which has not received one.
//!
//! **Every frame has the number that the link gave it.** The link itself writes again, or reports, the messages that it
//! still keeps; a replay contains only frames that the link does not keep any more (`settled`). No frame is therefore
//! written twice to one connection.
//!
//! If a replay fails (too much was recorded, or an answer does not arrive), the client's connection ends as with
//! `--on-backend-loss renew`: an application that connects again is better off than one that waits for ever.
//!
//! **A prologue moves with its session to another process** ([`save`](Prologue::save), [`restore`](Prologue::restore)), as it was
//! after the last message that the client need not send again; later ones are recorded again when they come again.
//!
//! Not here: links and sessions (`session`, `message_filter`), and the rules of each protocol (`profiles`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay::Message;
use sha2::{Digest, Sha256};

use crate::protocols::rules::{MAX_MATCHED, MessageView, Pattern, Rule};
use crate::protocols::saved::{Malformed, Reader, Writer};

/// Maximum number and bytes of recorded frames of one client. More is not replayed.
const MAX_FRAMES: usize = 256;
const MAX_BYTES: usize = MAX_MATCHED;
/// Time from a new connection to the last awaited answer.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of replays in a row that a lost connection interrupts.
const MAX_INTERRUPTED: u32 = 5;
/// The number of messages that an earlier link had: below every number of this one.
const BEFORE: u64 = 0;
/// Maximum number of rules of one kind: each frame stores its answers in one bit per rule.
pub(crate) const MAX_RULES: usize = 16;

/// The rules for recording, forgetting, awaiting and hiding. Shared by all clients.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    /// Select the client's frames to record.
    pub(crate) record: Vec<Rule>,
    /// A JSON pointer to the key of a frame: a later frame with the same key replaces it.
    pub(crate) key: Option<String>,
    /// A matching message of either end removes the frames with its key.
    pub(crate) forget: Vec<Pattern>,
    /// Select the backend's answers.
    pub(crate) answers: Vec<Answer>,
    /// Recognises the message with which the backend announces a restart. It is hidden from the client. (The link uses the
    /// same function, and treats the Close that follows as a loss, whatever its code.)
    pub(crate) announces_restart: Option<fn(&Message) -> bool>,
}

impl Rules {
    /// Returns what differs between two sets of rules. What a prologue knows is about its rules, by their places.
    fn fingerprint(&self) -> [u8; 32] {
        let Self { record, key, forget, answers, announces_restart } = self;
        let text = format!("{record:?} {key:?} {forget:?} {answers:?} {}", announces_restart.is_some());
        Sha256::digest(text).into()
    }
}

/// A rule for answers of the backend to replayed frames.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) rule: Rule,
    /// Whether the client, which received an answer before, receives this one too.
    pub(crate) passes: bool,
}

/// What to do with a message of the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Send it to the client.
    Pass,
    /// Withhold it: the client received it before, or must not act on it.
    Hide,
}

/// Why a replay failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReplayError {
    #[error("more than 256 frames or 256 KiB were recorded, or memory was short")]
    TooMuch,
    #[error("the backend did not send the expected answer within 10 s")]
    NoAnswer,
    #[error("the backend ended the connection instead of sending the expected answer")]
    Closed,
    #[error("five connections in a row were lost during the replay")]
    Interrupted,
}

/// One client's prologue. See the module.
#[derive(Debug)]
pub(crate) struct Prologue {
    rules: Arc<Rules>,
    frames: VecDeque<Frame>,
    bytes: usize,
    /// More was recorded than allowed: the replay will fail.
    too_much: bool,
    /// Messages of the client so far, and those that an earlier link had.
    seen: u64,
    seen_before: u64,
    /// For each rule of the client's frames: the message that met it, if it is an `until=` rule. [`BEFORE`] for a message of an
    /// earlier link.
    until_met: Box<[Option<u64>]>,
    /// Whether a frame was ever recorded. A message of the backend before that is its greeting.
    has_recorded: bool,
    greeting: Answers,
    /// For counting rules (`first=`, `until=`): the answers that the client received, and those still awaited.
    counted: Vec<Counted>,
    /// Set while a replay is in progress.
    deadline: Option<Instant>,
    /// Replays in a row that were interrupted.
    interrupted: u32,
}

#[derive(Debug)]
struct Frame {
    number: u64,
    message: Message,
    key: Option<String>,
    answers: Answers,
    /// How the frame is written to this connection.
    written: Written,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    /// The link writes the frame, or has written it.
    ByLink,
    /// The replay has not written it yet.
    NotYet,
    /// The replay has written it.
    ByReplay,
}

/// One bit per rule: the answers that were received once, and those still awaited on this connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Answers {
    had: u16,
    due: u16,
}

impl Answers {
    /// Removes an awaited answer; returns whether it was awaited.
    fn remove(&mut self, bit: u16) -> bool {
        let is_due = self.due & bit != 0;
        self.due &= !bit;
        is_due
    }

    /// Records an answer; returns whether it is the first.
    fn learn(&mut self, bit: u16) -> bool {
        let is_new = self.had & bit == 0;
        self.had |= bit;
        is_new
    }
}

/// A counting rule (`first=`, `until=`): answers that the client received, and those still awaited on this connection.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    had: u64,
    due: u64,
}

impl Counted {
    /// Counts a message against `first=`. Returns whether the client received it before.
    fn first(&mut self, count: u64) -> bool {
        let is_due = self.due > 0;
        self.due = self.due.saturating_sub(1);
        if !is_due && self.had < count {
            self.had += 1;
        }
        is_due
    }

    /// Counts a message against `until=`. Returns whether the client received it before.
    fn until(&mut self, matches: bool) -> bool {
        let is_due = self.due > 0;
        if matches {
            (self.had, self.due) = (1, 0);
        }
        is_due
    }
}

/// Iterates over one bit per rule.
fn bits() -> impl Iterator<Item = u16> {
    (0..u16::BITS).map(|index| 1 << index)
}

impl Prologue {
    /// Creates the machine, on the first connection.
    pub(crate) fn new(rules: Arc<Rules>) -> Self {
        let counted = vec![Counted::default(); rules.answers.len()];
        let until_met = vec![None; rules.record.len()].into();
        Self {
            rules,
            frames: VecDeque::new(),
            bytes: 0,
            too_much: false,
            seen: 0,
            seen_before: 0,
            until_met,
            has_recorded: false,
            greeting: Answers::default(),
            counted,
            deadline: None,
            interrupted: 0,
        }
    }

    /// The link accepted a message of the client as `number`.
    pub(crate) fn handle_client(&mut self, number: u64, message: &Message) {
        let rules = Arc::clone(&self.rules);
        let view = MessageView::new(message);
        self.forget(&rules, &view);
        if !self.is_recorded(&rules, number, &view) {
            return;
        }
        let key = rules.key.as_ref().and_then(|pointer| view.key(pointer));
        let answers = self.replaced_by(key.as_deref(), message);
        self.has_recorded = true;
        self.bytes += message.len();
        // Copied: the payload may be a small part of a large buffer, which would stay in memory as a whole.
        let message = match message {
            Message::Text(text) => Message::from(text.as_str()),
            Message::Binary(payload) => Message::from(payload.as_ref()),
        };
        self.frames.push_back(Frame { number, message, key, answers, written: Written::ByLink });
        if self.frames.len() > MAX_FRAMES || self.bytes > MAX_BYTES {
            self.give_up();
        }
    }

    /// Drops all frames and records no more: there is no memory for them.
    pub(crate) fn give_up(&mut self) {
        self.too_much = true;
        (self.frames, self.bytes) = (VecDeque::new(), 0);
    }

    /// Starts the replay to a new connection. `settled`: the link keeps no message up to this number.
    ///
    /// # Errors
    /// Too much was recorded, or too many replays in a row were interrupted.
    pub(crate) fn begin(&mut self, now: Instant, settled: u64) -> Result<(), ReplayError> {
        if self.too_much {
            return Err(ReplayError::TooMuch);
        }
        if self.interrupted >= MAX_INTERRUPTED {
            return Err(ReplayError::Interrupted);
        }
        self.interrupted += 1;
        for frame in &mut self.frames {
            frame.written = if frame.number <= settled { Written::NotYet } else { Written::ByLink };
            frame.answers.due = frame.answers.had;
        }
        self.greeting.due = self.greeting.had;
        for counted in &mut self.counted {
            counted.due = counted.had;
        }
        self.deadline = Some(now + REPLAY_TIMEOUT);
        Ok(())
    }

    /// The connection was lost: no answer is awaited any more.
    pub(crate) fn handle_lost(&mut self) {
        self.deadline = None;
    }

    /// Returns the next frame to write; `None` while an answer is awaited, or if all are written.
    pub(crate) fn poll_transmit(&mut self) -> Option<Message> {
        self.deadline?;
        if self.greeting.due != 0 {
            return None;
        }
        let passed = self.passed_answers();
        let ours = self.frames.iter_mut().filter(|frame| frame.written != Written::ByLink);
        for frame in ours {
            if frame.written == Written::NotYet {
                frame.written = Written::ByReplay;
                return Some(frame.message.clone());
            }
            if frame.answers.due & !passed != 0 {
                return None;
            }
        }
        None
    }

    /// The backend sent a message on the current connection.
    pub(crate) fn handle_backend(&mut self, message: &Message) -> Verdict {
        let rules = Arc::clone(&self.rules);
        let view = MessageView::new(message);
        if rules.announces_restart.is_some_and(|announces| announces(message)) {
            return Verdict::Hide;
        }
        if self.forget(&rules, &view) {
            return Verdict::Pass;
        }
        let key = rules.key.as_ref().and_then(|pointer| view.key(pointer));
        let mut verdict = Verdict::Pass;
        for (index, (bit, answer)) in bits().zip(&rules.answers).enumerate() {
            let is_due = match (&answer.rule, self.counted.get_mut(index)) {
                (Rule::First(count), Some(counted)) => counted.first(*count),
                (Rule::Until(pattern), Some(counted)) => counted.until(pattern.matches(&view)),
                (Rule::Each(pattern), _) => pattern.matches(&view) && self.answered(bit, key.as_deref()),
                (_, None) => false,
            };
            if is_due && !answer.passes {
                verdict = Verdict::Hide;
            }
        }
        verdict
    }

    /// Returns `true` once when the replay is complete; the link may then write.
    pub(crate) fn is_done(&mut self) -> bool {
        let waits = |frame: &Frame| match frame.written {
            Written::ByLink => false,
            Written::NotYet => true,
            Written::ByReplay => frame.answers.due != 0,
        };
        let counted = self.counted.iter().all(|counted| counted.due == 0);
        if self.greeting.due != 0 || !counted || self.frames.iter().any(waits) {
            return false;
        }
        self.interrupted = 0;
        self.deadline.take().is_some()
    }

    /// Returns whether a replay is in progress.
    pub(crate) fn is_replaying(&self) -> bool {
        self.deadline.is_some()
    }

    /// Returns when the replay in progress fails with [`ReplayError::NoAnswer`].
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    /// Extends the deadline by a time in which the backend could not be read.
    pub(crate) fn postpone(&mut self, waited: Duration) {
        self.deadline = self.deadline.map(|deadline| deadline + waited);
    }

    /// Returns the recorded payload bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes the state after message `upto` of the link. What later messages cancelled stays cancelled.
    pub(crate) fn save(&self, upto: u64, to: &mut Writer) {
        to.bytes(&self.rules.fingerprint());
        to.flag(self.too_much);
        to.number(self.seen_before + upto);
        for met in &self.until_met {
            to.flag(met.is_some_and(|number| number <= upto));
        }
        to.flag(self.has_recorded);
        to.number(self.greeting.had.into());
        for counted in &self.counted {
            to.number(counted.had);
        }
        let frames = || self.frames.iter().filter(|frame| frame.number <= upto);
        to.number(frames().count() as u64);
        for frame in frames() {
            to.message(&frame.message);
            to.number(frame.answers.had.into());
            to.flag(frame.key.is_some());
            to.bytes(frame.key.as_deref().unwrap_or_default().as_bytes());
        }
    }

    /// Reads the state that [`save`](Self::save) wrote, for another link.
    ///
    /// # Errors
    /// It was written by other rules, or is damaged.
    pub(crate) fn restore(rules: Arc<Rules>, from: &mut Reader<'_>) -> Result<Self, Malformed> {
        if from.bytes()? != rules.fingerprint() {
            return Err(Malformed);
        }
        let mut restored = Self::new(rules);
        restored.too_much = from.flag()?;
        restored.seen_before = from.number()?;
        restored.seen = restored.seen_before;
        for met in &mut restored.until_met {
            *met = from.flag()?.then_some(BEFORE);
        }
        restored.has_recorded = from.flag()?;
        restored.greeting.had = read_bits(from)?;
        for counted in &mut restored.counted {
            counted.had = from.number()?;
        }
        for _ in 0..from.number()? {
            restored.restore_frame(from)?;
        }
        Ok(restored)
    }

    fn restore_frame(&mut self, from: &mut Reader<'_>) -> Result<(), Malformed> {
        let message = from.message()?;
        let answers = Answers { had: read_bits(from)?, due: 0 };
        let (has_key, key) = (from.flag()?, from.bytes()?);
        let key = has_key.then(|| String::from_utf8(key.to_vec())).transpose().map_err(|_| Malformed)?;
        self.bytes += message.len();
        if self.frames.len() >= MAX_FRAMES || self.bytes > MAX_BYTES {
            return Err(Malformed);
        }
        self.frames.push_back(Frame { number: BEFORE, message, key, answers, written: Written::ByLink });
        Ok(())
    }

    fn is_recorded(&mut self, rules: &Rules, number: u64, view: &MessageView<'_>) -> bool {
        if self.too_much {
            return false;
        }
        self.seen += 1;
        let mut recorded = false;
        for (met, rule) in self.until_met.iter_mut().zip(&rules.record) {
            recorded |= match rule {
                Rule::First(count) => self.seen <= *count,
                Rule::Until(pattern) => {
                    let is_open = met.is_none();
                    if is_open && pattern.matches(view) {
                        *met = Some(number);
                    }
                    is_open
                }
                Rule::Each(pattern) => pattern.matches(view),
            };
        }
        recorded
    }

    /// Removes the frames that a message cancels; returns whether there was one.
    fn forget(&mut self, rules: &Rules, view: &MessageView<'_>) -> bool {
        let Some(pointer) = &rules.key else { return false };
        if self.frames.is_empty() || !rules.forget.iter().any(|pattern| pattern.matches(view)) {
            return false;
        }
        view.key(pointer).is_some_and(|key| self.remove_key(Some(&key)))
    }

    /// Removes the frame that a new one replaces. Returns its answers if the new frame is identical: the backend may send
    /// none for it.
    fn replaced_by(&mut self, key: Option<&str>, message: &Message) -> Answers {
        if key.is_none() {
            return Answers::default();
        }
        let same = self.frames.iter().find(|frame| frame.key.as_deref() == key && frame.message == *message);
        let answers = same.map(|frame| frame.answers).unwrap_or_default();
        self.remove_key(key);
        answers
    }

    fn remove_key(&mut self, key: Option<&str>) -> bool {
        let before = self.frames.len();
        self.frames.retain(|frame| frame.key.as_deref() != key);
        self.bytes = self.frames.iter().map(|frame| frame.message.len()).sum();
        self.frames.len() < before
    }

    /// Assigns an answer to the greeting or to a frame. Returns whether the answer was awaited.
    fn answered(&mut self, bit: u16, key: Option<&str>) -> bool {
        if self.greeting.remove(bit) {
            return true;
        }
        let mut asked = self.frames.iter_mut().filter(|frame| frame.key.as_deref() == key);
        if asked.any(|frame| frame.written != Written::NotYet && frame.answers.remove(bit)) {
            return true;
        }
        let mut asked = self.frames.iter_mut().filter(|frame| frame.key.as_deref() == key);
        if !asked.any(|frame| frame.answers.learn(bit)) && !self.has_recorded {
            self.greeting.learn(bit);
        }
        false
    }

    fn passed_answers(&self) -> u16 {
        let passes = bits().zip(&self.rules.answers).filter(|(_, answer)| answer.passes);
        passes.fold(0, |passed, (bit, _)| passed | bit)
    }
}

/// Reads one bit per rule.
fn read_bits(from: &mut Reader<'_>) -> Result<u16, Malformed> {
    u16::try_from(from.number()?).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests;
