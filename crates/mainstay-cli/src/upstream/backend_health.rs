//! Whether an address of the backend can be reached, as far as the gateway knows, and what is logged about it.
//!
//! This is a machine. Links, requests and probes report how their connections went; log lines and the time of the next
//! probe come out. The gateway probes an address every second until it was reached once, and every second while it is
//! down; with an interval, that often at other times too.
//!
//! Not here: which of several addresses is used (`pool`), and what a probe does (`upstream_probe`).
//!
//! The first failure of each kind is logged at once. Further failures of that kind within 30 s are counted, and the next
//! line of the kind reports the count, so that a failing backend does not fill the log.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use mainstay::client::{ConnectFailure, FailureKind, Lost};

use crate::upstream::error::UpstreamError;
use crate::upstream::pool::Fault;

/// Interval between two probes of a backend that is down.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between two log lines about the same kind of failure.
const LINE_INTERVAL: Duration = Duration::from_secs(30);
/// This many lost connections within [`LINE_INTERVAL`] are a loop; fewer are clients that leave, or a short outage.
const LOOP: u64 = 3;

/// Why no WebSocket or HTTP exchange with the backend came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// No connection was opened.
    Connect(FailureKind),
    /// The backend accepted the connection and did not respond in time.
    NoAnswer,
    /// The backend responded to the opening handshake with an HTTP status that asks to try again later.
    Status,
    /// The backend broke the opening handshake off, or responded with something else.
    Handshake,
}

impl Reason {
    pub(crate) const ALL: [Self; 13] = [
        Self::Connect(FailureKind::Refused),
        Self::Connect(FailureKind::UnknownName),
        Self::Connect(FailureKind::TimedOut),
        Self::Connect(FailureKind::NoRoute),
        Self::Connect(FailureKind::NoLocalPort),
        Self::Connect(FailureKind::NoDescriptor),
        Self::Connect(FailureKind::Certificate),
        Self::Connect(FailureKind::Tls),
        Self::Connect(FailureKind::Proxy),
        Self::Connect(FailureKind::Other),
        Self::NoAnswer,
        Self::Status,
        Self::Handshake,
    ];

    /// Returns the label of the metric.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Connect(kind) => kind.as_str(),
            Self::NoAnswer => "no_answer",
            Self::Status => "status",
            Self::Handshake => "handshake",
        }
    }

    /// Returns the position in [`ALL`](Self::ALL).
    pub(crate) fn index(self) -> usize {
        let known = Self::ALL.iter().position(|reason| *reason == self);
        known.unwrap_or_else(|| Self::Connect(FailureKind::Other).index())
    }

    /// Returns whether the backend is down, so that a probe would fail too.
    pub(crate) fn is_down(self) -> bool {
        matches!(self, Self::Connect(_))
    }

    /// Returns what that says about the address; `None`: nothing. Its status is judged where it is known, and a resource that
    /// this process lacks is no fault of an address.
    pub(crate) fn fault(self) -> Option<Fault> {
        match self {
            Self::Connect(FailureKind::NoLocalPort | FailureKind::NoDescriptor) | Self::Status => None,
            Self::Connect(_) => Some(Fault::Connect),
            Self::NoAnswer | Self::Handshake => Some(Fault::Response),
        }
    }
}

/// One failed attempt to reach the backend or to open a WebSocket with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    pub(crate) why: String,
}

impl Failure {
    /// Returns why a link's attempt failed; `None` if `lost` describes a connection that had been open.
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

    /// Returns why a request over HTTP failed; `None` if the client is at fault.
    pub(crate) fn of_request(error: &UpstreamError) -> Option<Self> {
        let (reason, why) = match error {
            UpstreamError::Connect(failure) => return Some(failure.clone().into()),
            UpstreamError::ResponseTimeout => (Reason::NoAnswer, error.to_string()),
            UpstreamError::NoAnswer(why) | UpstreamError::BadResponse(why) => {
                (Reason::Handshake, why.clone())
            }
            UpstreamError::Client(_) => return None,
        };
        Some(Self { reason, why })
    }
}

impl From<ConnectFailure> for Failure {
    fn from(failure: ConnectFailure) -> Self {
        Self { reason: Reason::Connect(failure.kind), why: failure.to_string() }
    }
}

/// One line of the log. Counts cover the time since the last line of the same kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    /// The backend cannot be reached.
    Unreachable { failure: Failure, attempts: u64 },
    /// The backend was reached and opened no WebSocket.
    NotOpened { failure: Failure, attempts: u64 },
    /// The backend responds to clients with 429 or 5xx.
    Refuses { status: u16, responses: u64 },
    /// Connections to the backend are lost repeatedly.
    LostRepeatedly { why: String, lost: u64 },
    /// The backend is reachable again, or for the first time.
    Reachable { after: Duration, is_first: bool },
}

/// Limits the lines of one kind; counts what falls between two lines.
#[derive(Debug, Clone, Copy, Default)]
struct RateLimit {
    next_line: Option<Instant>,
    unreported: u64,
}

impl RateLimit {
    /// Counts one occurrence. Returns the number to report if a line may be logged now.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.unreported += 1;
        if self.next_line.is_some_and(|at| now < at) {
            return None;
        }
        self.next_line = Some(now + LINE_INTERVAL);
        Some(std::mem::take(&mut self.unreported))
    }

    /// Drops the count if the interval is over: what was counted belongs to a failure that has ended.
    fn forget_if_old(&mut self, now: Instant) {
        if self.next_line.is_none_or(|at| now >= at) {
            self.unreported = 0;
        }
    }
}

/// The machine; see the module.
#[derive(Debug)]
pub(crate) struct BackendHealth {
    /// Interval of probes while it is up.
    interval: Option<Duration>,
    was_reached: bool,
    /// Since when the backend is down, and the latest failure. `None` before the first attempt too.
    down: Option<(Instant, Failure)>,
    /// A line reported that the backend is down.
    is_reported: bool,
    probe_at: Option<Instant>,
    /// A connection was lost, its link waits to dial again, and the backend was not reached since.
    is_suspect: bool,
    failures: [RateLimit; Reason::ALL.len()],
    refusals: RateLimit,
    losses_in_loop: RateLimit,
    /// Since when lost connections are counted that may be a loop, and how many they are.
    losses_since: Option<Instant>,
    losses: u64,
    lines: VecDeque<Line>,
}

impl BackendHealth {
    /// Creates the machine before the first attempt. The first probe is due. `interval`: of probes while it is up.
    pub(crate) fn new(now: Instant, interval: Option<Duration>) -> Self {
        Self {
            interval,
            was_reached: false,
            down: None,
            is_reported: false,
            probe_at: Some(now),
            is_suspect: false,
            failures: Default::default(),
            refusals: RateLimit::default(),
            losses_in_loop: RateLimit::default(),
            losses_since: None,
            losses: 0,
            lines: VecDeque::new(),
        }
    }

    /// A connection to the backend was opened by a probe, a link or a request. Returns whether the backend was down, or
    /// may have been: links that wait to dial again may then dial at once.
    pub(crate) fn handle_reached(&mut self, now: Instant) -> bool {
        let next = self.interval.map(|interval| now + interval);
        self.probe_at = next.map(|next| self.probe_at.map_or(next, |at| at.min(next)));
        let is_first = !std::mem::replace(&mut self.was_reached, true);
        let was_suspect = std::mem::take(&mut self.is_suspect);
        let Some((since, _)) = self.down.take() else { return was_suspect };
        if std::mem::take(&mut self.is_reported) {
            self.lines.push_back(Line::Reachable { after: now - since, is_first });
        }
        true
    }

    /// An attempt to connect or to open a WebSocket failed.
    pub(crate) fn handle_failed(&mut self, now: Instant, failure: Failure) {
        let rate = self.failures.get_mut(failure.reason.index());
        let attempts = rate.and_then(|rate| rate.count(now));
        if failure.reason.is_down() {
            self.is_reported |= attempts.is_some();
            let since = self.down.take().map_or(now, |(since, _)| since);
            self.down = Some((since, failure.clone()));
            self.probe_at.get_or_insert(now + PROBE_INTERVAL);
            self.lines.extend(attempts.map(|attempts| Line::Unreachable { failure, attempts }));
            return;
        }
        if let Some(interval) = self.interval {
            self.probe_at.get_or_insert(now + interval);
        }
        if failure.reason == Reason::Status {
            // `handle_status` reports it, if the status is the backend's fault.
        } else {
            self.lines.extend(attempts.map(|attempts| Line::NotOpened { failure, attempts }));
        }
    }

    /// The backend responded to a client's opening handshake with this status instead of 101.
    pub(crate) fn handle_status(&mut self, now: Instant, status: u16) {
        if (status == 429 || status >= 500)
            && let Some(responses) = self.refusals.count(now)
        {
            self.lines.push_back(Line::Refuses { status, responses });
        }
    }

    /// An open connection was lost. `waits`: its link dials again only after a while. A probe finds a backend that
    /// restarted sooner than that, and the link then dials at once.
    pub(crate) fn handle_lost(&mut self, now: Instant, why: &str, waits: bool) {
        if waits {
            self.is_suspect = true;
            self.probe_at.get_or_insert(now + PROBE_INTERVAL);
        }
        if self.losses_since.is_none_or(|since| now - since > LINE_INTERVAL) {
            (self.losses_since, self.losses) = (Some(now), 0);
            self.losses_in_loop.forget_if_old(now);
        }
        self.losses += 1;
        if self.losses < LOOP {
            self.losses_in_loop.unreported += 1;
        } else if let Some(lost) = self.losses_in_loop.count(now) {
            self.lines.push_back(Line::LostRepeatedly { why: why.to_owned(), lost });
        }
    }

    /// Returns whether to probe now. The driver then calls [`handle_reached`](Self::handle_reached) or
    /// [`handle_failed`](Self::handle_failed); until then no other probe is due.
    pub(crate) fn poll_probe(&mut self, now: Instant) -> bool {
        self.probe_at.take_if(|at| *at <= now).is_some()
    }

    /// Returns when the next probe is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.probe_at
    }

    /// Returns the next line to log.
    pub(crate) fn poll_line(&mut self) -> Option<Line> {
        self.lines.pop_front()
    }

    /// Returns why a load balancer should send no client here; `None` once the backend was reached.
    pub(crate) fn not_ready(&self) -> Option<String> {
        if self.was_reached {
            return None;
        }
        let why = self.down.as_ref().map_or("no attempt has ended", |(_, failure)| failure.why.as_str());
        Some(format!("the backend was not reached yet: {why}"))
    }

    /// Returns the latest failure, while the backend is down.
    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.down.as_ref().map(|(_, failure)| failure)
    }

    /// Returns whether the backend was reached and no later attempt found it down.
    pub(crate) fn is_up(&self) -> bool {
        self.was_reached && self.down.is_none()
    }
}

/// Writes a line to the log. `address`: which one it is about, if there are several.
pub(crate) fn log(line: Line, address: Option<&str>) {
    match line {
        Line::Unreachable { failure: Failure { reason, why }, attempts } => {
            tracing::warn!(address, reason = reason.label(), why, attempts, "the backend cannot be reached");
        }
        Line::NotOpened { failure: Failure { reason, why }, attempts } => {
            tracing::warn!(
                address,
                reason = reason.label(),
                why,
                attempts,
                "the backend was reached and did not respond properly"
            );
        }
        Line::Refuses { status, responses } => {
            tracing::warn!(address, status, responses, "the backend refuses clients with an error status");
        }
        Line::LostRepeatedly { why, lost } => {
            tracing::warn!(address, why, lost, "connections to the backend are lost repeatedly");
        }
        Line::Reachable { after, is_first } => {
            let seconds = after.as_secs_f64();
            let seconds = (seconds * 10.0).round() / 10.0;
            let how = if is_first { "for the first time" } else { "again" };
            tracing::info!(address, "the backend is reachable {how}, after {seconds} s");
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    /// A backend in virtual time, and all its log lines.
    struct Stage {
        start: Instant,
        backend: BackendHealth,
    }

    impl Stage {
        fn new() -> Self {
            let start = Instant::now();
            Self { start, backend: BackendHealth::new(start, None) }
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
                Line::Unreachable { failure, attempts } => format!("unreachable {} {attempts}", failure.why),
                Line::NotOpened { failure, attempts } => format!("not opened {} {attempts}", failure.why),
                Line::Refuses { status, responses } => format!("refuses {status} {responses}"),
                Line::LostRepeatedly { lost, .. } => format!("lost repeatedly {lost}"),
                Line::Reachable { after, is_first } => format!("reachable {} {is_first}", after.as_secs()),
            };
            std::iter::from_fn(|| self.backend.poll_line()).map(shown).collect()
        }
    }

    #[test]
    fn a_waiting_link_dials_when_a_probe_finds_the_backend() {
        let start = Instant::now();
        let mut backend = BackendHealth::new(start, None);
        backend.handle_reached(start);
        backend.handle_lost(start, "broken", false);
        assert_eq!(backend.poll_timeout(), None, "no link waits for the backend");
        backend.handle_lost(start, "broken", true);
        assert!(!backend.poll_probe(start) && backend.poll_probe(start + PROBE_INTERVAL));
        assert!(backend.handle_reached(start + PROBE_INTERVAL), "waiting links may dial");
        assert!(!backend.handle_reached(start + PROBE_INTERVAL), "no link waits any more");
        assert_eq!(backend.poll_timeout(), None);
        assert_eq!(backend.poll_line(), None);
    }

    #[test]
    fn the_first_failure_of_a_kind_is_logged_and_later_ones_are_counted_every_30_s() {
        let mut stage = Stage::new();
        for second in 0..=31 {
            stage.fails(second, Reason::Connect(FailureKind::Refused));
        }
        stage.fails(31, Reason::Connect(FailureKind::Tls));
        assert_eq!(stage.lines(), ["unreachable refused 1", "unreachable refused 30", "unreachable tls 1"]);
    }

    #[test]
    fn recovery_is_logged_with_its_duration_if_the_outage_was_logged() {
        let mut stage = Stage::new();
        stage.fails(0, Reason::Connect(FailureKind::Refused));
        stage.fails(3, Reason::Connect(FailureKind::UnknownName));
        assert!(stage.backend.handle_reached(stage.at(7)), "waiting links may dial");
        assert_eq!(
            stage.lines(),
            ["unreachable refused 1", "unreachable unknown_name 1", "reachable 7 true"]
        );
        assert!(!stage.backend.handle_reached(stage.at(8)), "no link waits");
        // The backend flaps: it is not two lines each time.
        for second in 10..20 {
            stage.fails(second, Reason::Connect(FailureKind::Refused));
            assert!(stage.backend.handle_reached(stage.at(second)));
        }
        assert_eq!(stage.lines(), [""; 0]);
        stage.fails(40, Reason::Connect(FailureKind::Refused));
        stage.backend.handle_reached(stage.at(41));
        assert_eq!(stage.lines(), ["unreachable refused 11", "reachable 1 false"]);
    }

    #[test]
    fn the_backend_is_probed_every_second_until_it_was_reached_and_while_it_is_down() {
        let mut stage = Stage::new();
        assert_eq!(stage.backend.poll_timeout(), Some(stage.at(0)));
        assert!(
            stage.backend.poll_probe(stage.at(0)) && !stage.backend.poll_probe(stage.at(9)),
            "one probe at a time"
        );
        stage.fails(0, Reason::Connect(FailureKind::Refused));
        assert!(!stage.backend.poll_probe(stage.at(0)) && stage.backend.poll_probe(stage.at(1)));
        stage.backend.handle_reached(stage.at(1));
        assert_eq!(stage.backend.poll_timeout(), None);
        stage.fails(50, Reason::Connect(FailureKind::TimedOut));
        assert_eq!(stage.backend.poll_timeout(), Some(stage.at(51)));
    }

    #[test]
    fn the_gateway_is_ready_once_the_backend_was_reached_and_stays_ready() {
        let mut stage = Stage::new();
        let not_ready = |stage: &Stage| stage.backend.not_ready().unwrap_or_default();
        assert!(not_ready(&stage).starts_with("the backend was not reached yet"));
        stage.fails(0, Reason::Connect(FailureKind::Tls));
        assert_eq!(not_ready(&stage), "the backend was not reached yet: tls");
        assert!(!stage.backend.is_up());
        stage.backend.handle_reached(stage.at(1));
        assert!(stage.backend.is_up());
        stage.fails(2, Reason::Connect(FailureKind::Refused));
        assert_eq!((not_ready(&stage).as_str(), stage.backend.is_up()), ("", false));
    }

    #[test]
    fn a_backend_that_responds_is_not_down_whatever_it_responds() {
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
        assert_eq!(stage.lines(), ["refuses 503 1", "refuses 502 3"]);
    }

    #[test]
    fn connections_that_are_lost_repeatedly_are_logged_and_a_few_are_not() {
        let mut stage = Stage::new();
        for second in [0, 1, 100, 101, 200] {
            stage.backend.handle_lost(stage.at(second), "reset", false);
        }
        assert_eq!(stage.lines(), [""; 0]);
        for second in 300..320 {
            stage.backend.handle_lost(stage.at(second), "reset", false);
        }
        assert_eq!(stage.lines(), ["lost repeatedly 3"]);
        for second in 320..340 {
            stage.backend.handle_lost(stage.at(second), "reset", false);
        }
        assert_eq!(stage.lines(), ["lost repeatedly 31"]);
    }

    #[test]
    fn each_failure_of_a_link_has_its_reason() {
        let check = |lost: Lost, expected| {
            let failure = Failure::of(&lost);
            assert_eq!(failure.map(|failure| failure.reason), expected, "{lost:?}");
        };
        for kind in [FailureKind::Refused, FailureKind::Certificate, FailureKind::Proxy, FailureKind::Other] {
            check(Lost::NotConnected(ConnectFailure::new(kind, "why")), Some(Reason::Connect(kind)));
        }
        check(Lost::NoAnswer { within: Duration::from_secs(10) }, Some(Reason::NoAnswer));
        let code = StatusCode::SERVICE_UNAVAILABLE.into();
        check(Lost::Unavailable { code, retry_after: None, reason: "503".into() }, Some(Reason::Status));
        check(Lost::NotOpened("the server closed the connection".into()), Some(Reason::Handshake));
        check(Lost::Broken("reset".into()), None);
    }

    #[test]
    fn each_reason_has_an_index_and_a_label_of_its_own() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), index);
        }
        let labels: std::collections::BTreeSet<_> = Reason::ALL.map(Reason::label).into();
        assert_eq!(labels.len(), Reason::ALL.len());
    }
}
