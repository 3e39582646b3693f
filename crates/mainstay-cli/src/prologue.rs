//! What a new connection to the backend is written before anything else.
//!
//! With `--on-backend-loss keep` a client outlives the connection behind it. A backend that keeps state in the
//! connection (who logged in, what is subscribed) must be told again on the next one. This machine records the
//! client's frames that rules name, forgets those that later frames cancel, writes what is left to a new connection,
//! and keeps back from the client what it was answered before.
//!
//! **Which answers are waited for is learned.** On the first connection everything passes. A message of the backend that
//! a rule for answers names belongs to the oldest recorded frame with its key that has none by that rule yet; one that
//! came before any frame was recorded is the backend's greeting. The replay waits for what came then: the greeting
//! first; behind each frame its swallowed answers, before the next frame is written; and at the end the answers that are
//! passed on. A frame that was never answered is not waited for, and its answer reaches the client, who has not got it.
//!
//! **Every frame has the number that the link gave it.** The link writes again, or reports, what it still keeps; a
//! replay holds only what the link keeps no longer (`settled`). So no frame is written twice to one connection.
//!
//! A replay that cannot be done (too much was recorded, an answer does not come) ends the client's connection, as
//! `--on-backend-loss renew` does: an application that connects again is better off than one that waits for ever.
//!
//! Not here: links and sessions (`join`), and which rules fit which protocol (`profiles`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay::Message;

use crate::rules::{LARGEST, MessageView, Pattern, Rule};

/// What may be recorded of one client. More cannot be replayed.
const MOST_FRAMES: usize = 256;
const MOST_BYTES: usize = LARGEST;
/// From a new connection to the last awaited answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that may be lost in a row during their replay.
const MOST_BARREN: u32 = 5;
/// Rules of one kind: each frame remembers in one bit per rule what it was answered.
pub(crate) const MOST_RULES: usize = 16;

/// What is recorded, forgotten, awaited and swallowed. Shared by all clients.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    /// The client's frames that are recorded.
    pub(crate) record: Vec<Rule>,
    /// A JSON pointer to what names a frame: a later frame of the same name takes its place.
    pub(crate) key: Option<String>,
    /// A message like this, of either end, makes the frames that have its key forgotten.
    pub(crate) forget: Vec<Pattern>,
    /// The backend's answers.
    pub(crate) answers: Vec<Answer>,
    /// A message by which the backend announces that it restarts: it is swallowed. (The link knows it too, and takes the
    /// close that follows for a loss, whatever its code.)
    pub(crate) announces_restart: Option<fn(&Message) -> bool>,
}

/// The backend's answers to what is replayed.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) rule: Rule,
    /// Whether the client, who had one before, gets this one too.
    pub(crate) passes: bool,
}

/// What becomes of a message of the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The client gets it.
    Pass,
    /// The client had it before, or must not act on it.
    Swallow,
}

/// Why a replay cannot be done or did not come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    #[error("more was recorded than 256 frames or 256 KiB, or memory was short")]
    TooMuch,
    #[error("the backend did not answer within 10 s as it did before")]
    NoAnswer,
    #[error("the backend ended the connection instead of answering as it did before")]
    Closed,
    #[error("five connections in a row were lost before the backend had answered")]
    Barren,
}

/// One client's prologue. See the module.
#[derive(Debug)]
pub(crate) struct Prologue {
    rules: Arc<Rules>,
    frames: VecDeque<Frame>,
    bytes: usize,
    /// More was recorded than may be: there is no replay any more.
    too_much: bool,
    /// Messages of the client so far; no more is counted than rules ask for.
    seen: u64,
    /// One bit per rule `until=` of the client's frames that has met its match.
    until_met: u16,
    /// Whether a frame was ever recorded: before that the backend greets.
    has_recorded: bool,
    greeting: Answers,
    /// By rules for answers that count: what the client got, and what is still to come again.
    counted: Vec<Counted>,
    /// Set from a new connection to the end of its replay.
    deadline: Option<Instant>,
    /// Replays in a row that did not come to their end.
    barren: u32,
}

#[derive(Debug)]
struct Frame {
    number: u64,
    message: Message,
    key: Option<String>,
    answers: Answers,
    /// On this connection.
    written: Written,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    /// The link writes it, or has written it.
    ByLink,
    /// The replay will.
    NotYet,
    ByReplay,
}

/// One bit per rule: what was answered once, and what of it is still to come on this connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Answers {
    had: u16,
    due: u16,
}

impl Answers {
    /// Takes an answer that is due.
    fn take(&mut self, bit: u16) -> bool {
        let is_due = self.due & bit != 0;
        self.due &= !bit;
        is_due
    }

    /// Learns an answer that was not there before.
    fn learn(&mut self, bit: u16) -> bool {
        let is_new = self.had & bit == 0;
        self.had |= bit;
        is_new
    }
}

/// What a rule that counts (`first=`, `until=`) has let pass, and what of it is still to come on this connection.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    had: u64,
    due: u64,
}

impl Counted {
    /// `true`: one of the first `count`, and the client had it.
    fn first(&mut self, count: u64) -> bool {
        let is_due = self.due > 0;
        self.due = self.due.saturating_sub(1);
        if !is_due && self.had < count {
            self.had += 1;
        }
        is_due
    }

    /// `true`: not behind the match, and the client had all of it.
    fn until(&mut self, matches: bool) -> bool {
        let is_due = self.due > 0;
        if matches {
            (self.had, self.due) = (1, 0);
        }
        is_due
    }
}

/// One bit per rule.
fn bits() -> impl Iterator<Item = u16> {
    (0..u16::BITS).map(|index| 1 << index)
}

impl Prologue {
    /// Nothing recorded, on the first connection.
    pub(crate) fn new(rules: Arc<Rules>) -> Self {
        let counted = vec![Counted::default(); rules.answers.len()];
        Self {
            rules,
            frames: VecDeque::new(),
            bytes: 0,
            too_much: false,
            seen: 0,
            until_met: 0,
            has_recorded: false,
            greeting: Answers::default(),
            counted,
            deadline: None,
            barren: 0,
        }
    }

    /// The link accepted a message of the client as `number`.
    pub(crate) fn handle_client(&mut self, number: u64, message: &Message) {
        let rules = Arc::clone(&self.rules);
        let view = MessageView::new(message);
        self.forget(&rules, &view);
        if !self.is_recorded(&rules, &view) {
            return;
        }
        let key = rules.key.as_ref().and_then(|pointer| view.key(pointer));
        let answers = self.replaced_by(key.as_deref(), message);
        self.has_recorded = true;
        self.bytes += message.len();
        // A copy: the payload may be a small part of a large buffer, which would be kept as a whole.
        let message = match message {
            Message::Text(text) => Message::from(text.as_str()),
            Message::Binary(payload) => Message::from(payload.as_ref()),
        };
        self.frames.push_back(Frame { number, message, key, answers, written: Written::ByLink });
        if self.frames.len() > MOST_FRAMES || self.bytes > MOST_BYTES {
            self.give_up();
        }
    }

    /// Records nothing any more, and lets go of what it had: there is no room for it.
    pub(crate) fn give_up(&mut self) {
        self.too_much = true;
        (self.frames, self.bytes) = (VecDeque::new(), 0);
    }

    /// A new connection, on which nothing is written yet: begins the replay. `settled`: the link keeps nothing up to this
    /// number.
    ///
    /// # Errors
    /// There is too much to replay, or it was tried too often.
    pub(crate) fn begin(&mut self, now: Instant, settled: u64) -> Result<(), Failure> {
        if self.too_much {
            return Err(Failure::TooMuch);
        }
        if self.barren >= MOST_BARREN {
            return Err(Failure::Barren);
        }
        self.barren += 1;
        for frame in &mut self.frames {
            frame.written = if frame.number <= settled { Written::NotYet } else { Written::ByLink };
            frame.answers.due = frame.answers.had;
        }
        self.greeting.due = self.greeting.had;
        for counted in &mut self.counted {
            counted.due = counted.had;
        }
        self.deadline = Some(now + PATIENCE);
        Ok(())
    }

    /// The connection is gone: nothing more of it is awaited.
    pub(crate) fn handle_lost(&mut self) {
        self.deadline = None;
    }

    /// The next frame to write before anything else; `None` until an answer comes, or when all are written.
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
            return Verdict::Swallow;
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
                verdict = Verdict::Swallow;
            }
        }
        verdict
    }

    /// Whether the replay is through: now the link may write. Says so once.
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
        self.barren = 0;
        self.deadline.take().is_some()
    }

    /// Whether a replay is under way.
    pub(crate) fn is_replaying(&self) -> bool {
        self.deadline.is_some()
    }

    /// When a replay that is under way has failed: [`Failure::NoAnswer`].
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    /// For so long nothing of the backend could be read.
    pub(crate) fn postpone(&mut self, waited: Duration) {
        self.deadline = self.deadline.map(|deadline| deadline + waited);
    }

    /// Payload bytes that are recorded.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn is_recorded(&mut self, rules: &Rules, view: &MessageView<'_>) -> bool {
        if self.too_much {
            return false;
        }
        self.seen += 1;
        let mut recorded = false;
        for (bit, rule) in bits().zip(&rules.record) {
            recorded |= match rule {
                Rule::First(count) => self.seen <= *count,
                Rule::Until(pattern) => {
                    let is_open = self.until_met & bit == 0;
                    if is_open && pattern.matches(view) {
                        self.until_met |= bit;
                    }
                    is_open
                }
                Rule::Each(pattern) => pattern.matches(view),
            };
        }
        recorded
    }

    /// `true`: a frame was forgotten.
    fn forget(&mut self, rules: &Rules, view: &MessageView<'_>) -> bool {
        let Some(pointer) = &rules.key else { return false };
        if self.frames.is_empty() || !rules.forget.iter().any(|pattern| pattern.matches(view)) {
            return false;
        }
        view.key(pointer).is_some_and(|key| self.remove_key(Some(&key)))
    }

    /// Takes out the frame whose place a new one takes. One that is the same once more has its answers already: it may
    /// get no others.
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

    /// Finds what a message answers; `true`: it was answered before, and this was due again.
    fn answered(&mut self, bit: u16, key: Option<&str>) -> bool {
        if self.greeting.take(bit) {
            return true;
        }
        let mut asked = self.frames.iter_mut().filter(|frame| frame.key.as_deref() == key);
        if asked.any(|frame| frame.written != Written::NotYet && frame.answers.take(bit)) {
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

#[cfg(test)]
mod tests;
