//! Whether the backend is there, as far as the gateway knows, and what is logged of it.
//!
//! A machine: dials of links, requests and probes report what they found; lines of the log, and the time of the next
//! probe, come out. The gateway probes by itself, with TCP and TLS and not a byte of HTTP: every second until the
//! backend was reached once, and again while it is down.
//!
//! The first trouble of each kind is one line. What follows within 30 s is counted, and told by the next line of its
//! kind: a backend that fails must not fill the log as well.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use mainstay::client::{ConnectFailure, FailureKind, Lost};

use crate::upstream;

/// Between two probes of a backend that is not reached.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Between two lines about the same kind of trouble.
const LINE_EVERY: Duration = Duration::from_secs(30);
/// Connections lost within [`LINE_EVERY`] that are a loop, and not a visitor's end or a network's hiccup.
const LOOP: u64 = 3;

/// Why a connection to the backend did not come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Refused,
    UnknownName,
    TimedOut,
    NoRoute,
    /// This machine has none left towards it.
    NoLocalPort,
    /// This process has none left.
    NoDescriptor,
    Certificate,
    Tls,
    Other,
    /// It was reached, and did not answer the opening handshake in time.
    NoAnswer,
    /// It was reached, and answered by a status of HTTP that asks to come back.
    Status,
    /// It was reached, and broke the opening handshake off, or answered something else.
    Handshake,
}

impl Reason {
    pub(crate) const ALL: [Self; 12] = [
        Self::Refused,
        Self::UnknownName,
        Self::TimedOut,
        Self::NoRoute,
        Self::NoLocalPort,
        Self::NoDescriptor,
        Self::Certificate,
        Self::Tls,
        Self::Other,
        Self::NoAnswer,
        Self::Status,
        Self::Handshake,
    ];

    /// The label of the metric.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::UnknownName => "unknown_name",
            Self::TimedOut => "timed_out",
            Self::NoRoute => "no_route",
            Self::NoLocalPort => "no_local_port",
            Self::NoDescriptor => "no_descriptor",
            Self::Certificate => "certificate",
            Self::Tls => "tls",
            Self::Other => "other",
            Self::NoAnswer => "no_answer",
            Self::Status => "status",
            Self::Handshake => "handshake",
        }
    }

    /// Whether a probe fails of it too.
    pub(crate) fn is_down(self) -> bool {
        !matches!(self, Self::NoAnswer | Self::Status | Self::Handshake)
    }
}

/// A connection that did not come about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    pub(crate) why: String,
}

impl Failure {
    /// `None`: it did come about.
    pub(crate) fn of(lost: &Lost) -> Option<Self> {
        let reason = match lost {
            Lost::NotConnected(failure) => return Some(failure.clone().into()),
            Lost::NotOpened(_) => Reason::Handshake,
            Lost::NoAnswer { .. } => Reason::NoAnswer,
            Lost::Unavailable { .. } | Lost::Refused { .. } => Reason::Status,
            _ => return None,
        };
        Some(Self { reason, why: lost.to_string() })
    }

    /// What failed about a request over HTTP. `None`: its client's fault.
    pub(crate) fn of_request(failure: &upstream::Failure) -> Option<Self> {
        use upstream::Failure as F;
        let (reason, why) = match failure {
            F::Unreachable(why) if why.contains("refused") => (Reason::Refused, why.clone()),
            F::Unreachable(why) => (Reason::Other, why.clone()),
            F::Untrusted(why) => (Reason::Tls, why.clone()),
            F::ConnectTimeout => (Reason::TimedOut, failure.to_string()),
            F::AnswerTimeout => (Reason::NoAnswer, failure.to_string()),
            F::NoAnswer(why) | F::Nonsense(why) => (Reason::Handshake, why.clone()),
            F::Client(_) => return None,
        };
        Some(Self { reason, why })
    }
}

impl From<ConnectFailure> for Failure {
    fn from(failure: ConnectFailure) -> Self {
        let reason = match failure.kind {
            FailureKind::Refused => Reason::Refused,
            FailureKind::UnknownName => Reason::UnknownName,
            FailureKind::TimedOut => Reason::TimedOut,
            FailureKind::NoRoute => Reason::NoRoute,
            FailureKind::NoLocalPort => Reason::NoLocalPort,
            FailureKind::NoDescriptor => Reason::NoDescriptor,
            FailureKind::Certificate => Reason::Certificate,
            FailureKind::Tls => Reason::Tls,
            _ => Reason::Other,
        };
        Self { reason, why: failure.to_string() }
    }
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    /// It cannot be reached; so many attempts failed of it since the last line.
    Unreached { failure: Failure, attempts: u64 },
    /// It was reached, and no WebSocket came of it, so many times since the last line.
    NotOpened { failure: Failure, attempts: u64 },
    /// It puts visitors off with this status, so many since the last line.
    PutsOff { status: u16, answers: u64 },
    /// Connections to it are lost again and again, so many since the last line.
    Redialled { why: String, lost: u64 },
    /// It is reached again, or for the first time.
    Reached { after: Duration, is_first: bool },
}

/// Counts what is not told at once.
#[derive(Debug, Clone, Copy, Default)]
struct Rate {
    next_line: Option<Instant>,
    unacked: u64,
}

impl Rate {
    /// How many to tell of, if there may be a line now.
    fn note(&mut self, now: Instant) -> Option<u64> {
        self.unacked += 1;
        if self.next_line.is_some_and(|at| now < at) {
            return None;
        }
        self.next_line = Some(now + LINE_EVERY);
        Some(std::mem::take(&mut self.unacked))
    }

    /// What was counted belongs to nothing that goes on.
    fn forget_if_old(&mut self, now: Instant) {
        if self.next_line.is_none_or(|at| now >= at) {
            self.unacked = 0;
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Backend {
    was_reached: bool,
    /// Since when it is not reached, and why at last. `None` before the first attempt too.
    down: Option<(Instant, Failure)>,
    /// A line said that it is down.
    is_told: bool,
    probe_at: Option<Instant>,
    /// A connection was lost whose link waits to dial again, and nothing was reached since.
    is_suspect: bool,
    failures: [Rate; Reason::ALL.len()],
    put_off: Rate,
    redials: Rate,
    /// Since when losses are counted that may be a loop, and how many these are.
    losses_since: Option<Instant>,
    losses: u64,
    lines: VecDeque<Line>,
}

impl Backend {
    /// Nothing is known of it. The first probe is due.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            was_reached: false,
            down: None,
            is_told: false,
            probe_at: Some(now),
            is_suspect: false,
            failures: Default::default(),
            put_off: Rate::default(),
            redials: Rate::default(),
            losses_since: None,
            losses: 0,
            lines: VecDeque::new(),
        }
    }

    /// A connection came about: a probe's, a link's, a request's. `true`: it was down until now, or may have been, and
    /// links that wait for it may try.
    pub(crate) fn handle_reached(&mut self, now: Instant) -> bool {
        self.probe_at = None;
        let is_first = !std::mem::replace(&mut self.was_reached, true);
        let was_suspect = std::mem::take(&mut self.is_suspect);
        let Some((since, _)) = self.down.take() else { return was_suspect };
        if std::mem::take(&mut self.is_told) {
            self.lines.push_back(Line::Reached { after: now - since, is_first });
        }
        true
    }

    /// A connection did not come about.
    pub(crate) fn handle_failed(&mut self, now: Instant, failure: Failure) {
        let attempts = self.failures.get_mut(failure.reason as usize).and_then(|rate| rate.note(now));
        if failure.reason.is_down() {
            self.is_told |= attempts.is_some();
            let since = self.down.take().map_or(now, |(since, _)| since);
            self.down = Some((since, failure.clone()));
            self.probe_at.get_or_insert(now + PROBE_EVERY);
            self.lines.extend(attempts.map(|attempts| Line::Unreached { failure, attempts }));
        } else if failure.reason == Reason::Status {
            // Told by its status, if that is a trouble of the backend's.
        } else {
            self.lines.extend(attempts.map(|attempts| Line::NotOpened { failure, attempts }));
        }
    }

    /// It answered a visitor with this status instead of what was asked for.
    pub(crate) fn handle_status(&mut self, now: Instant, status: u16) {
        if (status == 429 || status >= 500)
            && let Some(answers) = self.put_off.note(now)
        {
            self.lines.push_back(Line::PutsOff { status, answers });
        }
    }

    /// A connection that had come about was lost. `waits`: its link dials again after a while. A backend that is restarted
    /// in less time than that is found by a probe, and the link need not wait.
    pub(crate) fn handle_lost(&mut self, now: Instant, why: &str, waits: bool) {
        if waits {
            self.is_suspect = true;
            self.probe_at.get_or_insert(now + PROBE_EVERY);
        }
        if self.losses_since.is_none_or(|since| now - since > LINE_EVERY) {
            (self.losses_since, self.losses) = (Some(now), 0);
            self.redials.forget_if_old(now);
        }
        self.losses += 1;
        if self.losses < LOOP {
            self.redials.unacked += 1;
        } else if let Some(lost) = self.redials.note(now) {
            self.lines.push_back(Line::Redialled { why: why.to_owned(), lost });
        }
    }

    /// Whether to probe now. Then [`handle_reached`](Self::handle_reached) or
    /// [`handle_failed`](Self::handle_failed) is expected; until then no other probe is due.
    pub(crate) fn poll_probe(&mut self, now: Instant) -> bool {
        self.probe_at.take_if(|at| *at <= now).is_some()
    }

    /// When to probe next.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.probe_at
    }

    /// What to log.
    pub(crate) fn poll_line(&mut self) -> Option<Line> {
        self.lines.pop_front()
    }

    /// Why no visitor should be sent here. `None`: it was reached at least once.
    pub(crate) fn not_ready(&self) -> Option<String> {
        if self.was_reached {
            return None;
        }
        let why = self.down.as_ref().map_or("no attempt has ended", |(_, failure)| failure.why.as_str());
        Some(format!("the backend was not reached yet: {why}"))
    }

    /// Whether it was reached, and nothing since says that it is away.
    pub(crate) fn is_up(&self) -> bool {
        self.was_reached && self.down.is_none()
    }
}

/// Writes a line.
pub(crate) fn log(line: Line) {
    match line {
        Line::Unreached { failure: Failure { reason, why }, attempts } => {
            tracing::warn!(reason = reason.label(), why, attempts, "the backend cannot be reached");
        }
        Line::NotOpened { failure: Failure { reason, why }, attempts } => {
            tracing::warn!(
                reason = reason.label(),
                why,
                attempts,
                "the backend was reached, and did not answer as it should"
            );
        }
        Line::PutsOff { status, answers } => {
            tracing::warn!(status, answers, "the backend puts visitors off");
        }
        Line::Redialled { why, lost } => {
            tracing::warn!(why, lost, "connections to the backend are lost again and again");
        }
        Line::Reached { after, is_first } => {
            let seconds = after.as_secs_f64();
            let seconds = (seconds * 10.0).round() / 10.0;
            let how = if is_first { "for the first time" } else { "again" };
            tracing::info!("the backend is reached {how}, after {seconds} s");
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    /// A backend in virtual time, and all its lines.
    struct Stage {
        start: Instant,
        backend: Backend,
    }

    impl Stage {
        fn new() -> Self {
            let start = Instant::now();
            Self { start, backend: Backend::new(start) }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn fails(&mut self, seconds: u64, reason: Reason) {
            let failure = Failure { reason, why: reason.label().to_owned() };
            self.backend.handle_failed(self.at(seconds), failure);
        }

        fn lines(&mut self) -> Vec<String> {
            let shown = |line| match line {
                Line::Unreached { failure, attempts } => format!("unreached {} {attempts}", failure.why),
                Line::NotOpened { failure, attempts } => format!("not opened {} {attempts}", failure.why),
                Line::PutsOff { status, answers } => format!("puts off {status} {answers}"),
                Line::Redialled { lost, .. } => format!("redialled {lost}"),
                Line::Reached { after, is_first } => format!("reached {} {is_first}", after.as_secs()),
            };
            std::iter::from_fn(|| self.backend.poll_line()).map(shown).collect()
        }
    }

    #[test]
    fn a_link_that_waits_to_dial_again_is_woken_by_the_probe_that_finds_the_backend() {
        let start = Instant::now();
        let mut backend = Backend::new(start);
        backend.handle_reached(start);
        backend.handle_lost(start, "broken", false);
        assert_eq!(backend.poll_timeout(), None, "nobody waits for it");
        backend.handle_lost(start, "broken", true);
        assert!(!backend.poll_probe(start) && backend.poll_probe(start + PROBE_EVERY));
        assert!(backend.handle_reached(start + PROBE_EVERY), "links that wait may dial");
        assert!(!backend.handle_reached(start + PROBE_EVERY), "and once is enough");
        assert_eq!(backend.poll_timeout(), None);
        assert_eq!(backend.poll_line(), None);
    }

    #[test]
    fn the_first_failure_of_a_kind_is_a_line_and_later_ones_are_counted_every_30_s() {
        let mut stage = Stage::new();
        for second in 0..=31 {
            stage.fails(second, Reason::Refused);
        }
        stage.fails(31, Reason::Tls);
        assert_eq!(stage.lines(), ["unreached refused 1", "unreached refused 30", "unreached tls 1"]);
    }

    #[test]
    fn recovery_is_a_line_with_the_time_that_it_took_if_the_outage_was_one() {
        let mut stage = Stage::new();
        stage.fails(0, Reason::Refused);
        stage.fails(3, Reason::UnknownName);
        assert!(stage.backend.handle_reached(stage.at(7)), "who waits may try");
        assert_eq!(stage.lines(), ["unreached refused 1", "unreached unknown_name 1", "reached 7 true"]);
        assert!(!stage.backend.handle_reached(stage.at(8)), "nobody waits");
        // It comes and goes: not two lines for each time.
        for second in 10..20 {
            stage.fails(second, Reason::Refused);
            assert!(stage.backend.handle_reached(stage.at(second)));
        }
        assert_eq!(stage.lines(), [""; 0]);
        stage.fails(40, Reason::Refused);
        stage.backend.handle_reached(stage.at(41));
        assert_eq!(stage.lines(), ["unreached refused 11", "reached 1 false"]);
    }

    #[test]
    fn it_is_probed_every_second_until_it_was_reached_and_while_it_is_down() {
        let mut stage = Stage::new();
        assert_eq!(stage.backend.poll_timeout(), Some(stage.at(0)));
        assert!(
            stage.backend.poll_probe(stage.at(0)) && !stage.backend.poll_probe(stage.at(9)),
            "one at a time"
        );
        stage.fails(0, Reason::Refused);
        assert!(!stage.backend.poll_probe(stage.at(0)) && stage.backend.poll_probe(stage.at(1)));
        stage.backend.handle_reached(stage.at(1));
        assert_eq!(stage.backend.poll_timeout(), None);
        stage.fails(50, Reason::TimedOut);
        assert_eq!(stage.backend.poll_timeout(), Some(stage.at(51)));
    }

    #[test]
    fn it_is_ready_once_it_was_reached_and_stays_so() {
        let mut stage = Stage::new();
        let not_ready = |stage: &Stage| stage.backend.not_ready().unwrap_or_default();
        assert!(not_ready(&stage).starts_with("the backend was not reached yet"));
        stage.fails(0, Reason::Tls);
        assert_eq!(not_ready(&stage), "the backend was not reached yet: tls");
        assert!(!stage.backend.is_up());
        stage.backend.handle_reached(stage.at(1));
        assert!(stage.backend.is_up());
        stage.fails(2, Reason::Refused);
        assert_eq!((not_ready(&stage).as_str(), stage.backend.is_up()), ("", false));
    }

    #[test]
    fn a_backend_that_answers_is_not_down_whatever_it_answers() {
        let mut stage = Stage::new();
        stage.backend.handle_reached(stage.at(0));
        for reason in [Reason::NoAnswer, Reason::Handshake, Reason::Status] {
            stage.fails(1, reason);
        }
        assert!(stage.backend.is_up() && stage.backend.poll_timeout().is_none());
        assert_eq!(stage.lines(), ["not opened no_answer 1", "not opened handshake 1"]);
        for status in [401, 404, 503, 503, 429] {
            stage.backend.handle_status(stage.at(2), status);
        }
        stage.backend.handle_status(stage.at(40), 502);
        assert_eq!(stage.lines(), ["puts off 503 1", "puts off 502 3"]);
    }

    #[test]
    fn connections_that_are_lost_again_and_again_are_a_line_and_a_few_are_none() {
        let mut stage = Stage::new();
        for second in [0, 1, 100, 101, 200] {
            stage.backend.handle_lost(stage.at(second), "reset", false);
        }
        assert_eq!(stage.lines(), [""; 0]);
        for second in 300..320 {
            stage.backend.handle_lost(stage.at(second), "reset", false);
        }
        assert_eq!(stage.lines(), ["redialled 3"]);
        for second in 320..340 {
            stage.backend.handle_lost(stage.at(second), "reset", false);
        }
        assert_eq!(stage.lines(), ["redialled 31"]);
    }

    #[test]
    fn each_failure_of_a_link_has_its_reason() {
        let check = |lost: Lost, expected| {
            let failure = Failure::of(&lost);
            assert_eq!(failure.map(|failure| failure.reason), expected, "{lost:?}");
        };
        for (kind, expected) in [
            (FailureKind::Refused, Reason::Refused),
            (FailureKind::UnknownName, Reason::UnknownName),
            (FailureKind::Certificate, Reason::Certificate),
            (FailureKind::Tls, Reason::Tls),
            (FailureKind::Other, Reason::Other),
        ] {
            check(Lost::NotConnected(ConnectFailure::new(kind, "why")), Some(expected));
            assert_eq!(expected.label(), kind.as_str());
        }
        check(Lost::NoAnswer { within: Duration::from_secs(10) }, Some(Reason::NoAnswer));
        let code = StatusCode::SERVICE_UNAVAILABLE.into();
        check(Lost::Unavailable { code, retry_after: None, reason: "503".into() }, Some(Reason::Status));
        check(Lost::NotOpened("the server closed the connection".into()), Some(Reason::Handshake));
        check(Lost::Broken("reset".into()), None);
    }

    #[test]
    fn each_reason_has_a_place_and_a_label_of_its_own() {
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place);
        }
        let labels: std::collections::BTreeSet<_> = Reason::ALL.map(Reason::label).into();
        assert_eq!(labels.len(), Reason::ALL.len());
    }
}
