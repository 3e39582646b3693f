//! The client's life: when it dials, how long it waits, and when it gives up.
//!
//! The peer is the test itself: it answers HELLO by hand, or speaks plain WebSocket.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use mainstay_proto::confirm::{Confirm, ConfirmConfig, Guarantee, WhenFull};
use mainstay_proto::connect::{Client, Command, ConnectConfig, Event, Lost, Mode, ReasonCode, Report, State};
use mainstay_proto::heartbeat::Evidence;
use mainstay_proto::session::message::{Delay, Hello, ResumeToken, SessionId, Welcome};
use mainstay_proto::session::{ConnectionId, Control, Frame, Message, Transmit, Window};
use mainstay_proto::ws::CloseCode;

use super::pair::{SECOND, start};

/// The number that an end's code is.
fn end_code(event: &Event) -> Option<u64> {
    let Event::Ended(end) = event else { panic!("{event:?}") };
    end.code.map(ReasonCode::get)
}

pub(crate) struct Node {
    pub(crate) now: Instant,
    pub(crate) client: Client,
    pub(crate) commands: VecDeque<Command>,
    pub(crate) events: VecDeque<Event>,
}

impl Default for Node {
    fn default() -> Self {
        Self::new(ConnectConfig::default())
    }
}

impl Node {
    pub(crate) fn new(config: ConnectConfig) -> Self {
        let client = Client::new(start(), config, [5; 32]);
        let mut node = Self { now: start(), client, commands: VecDeque::new(), events: VecDeque::new() };
        node.wait(Duration::ZERO);
        node
    }

    /// Returns a client that is attached to a session, with its event polled.
    pub(crate) fn attached() -> (Self, ConnectionId) {
        let mut node = Self::default();
        let connection = node.dialled();
        node.open(connection, Mode::Session);
        node.hello(connection);
        node.welcome(connection, 1, 0);
        assert_eq!(node.event(), Event::Attached { mode: Mode::Session, resumed: false, epoch: 1 });
        assert_eq!(node.control(connection).name(), "ACK");
        (node, connection)
    }

    /// Like [`wait`](Self::wait), with a socket that accepts everything at once.
    pub(crate) fn wait_flushing(&mut self, time: Duration) {
        let until = self.now + time;
        self.flush();
        while let Some(due) = self.client.poll_timeout().filter(|due| *due <= until) {
            self.wait(due.saturating_duration_since(self.now));
            self.flush();
        }
        self.wait(until - self.now);
    }

    /// What was written has left.
    pub(crate) fn flush(&mut self) {
        self.drain();
        if let Some(writer) = self.client.writer() {
            self.client.handle_flushed(self.now, writer);
        }
    }

    /// Time passes; what is due is done when it is due.
    pub(crate) fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        self.drain();
        while let Some(due) = self.client.poll_timeout().filter(|due| *due <= until) {
            self.now = due.max(self.now);
            // What is readable has been read: when the client requests a drain, call it again.
            while self.client.handle_timeout(self.now) {}
            self.drain();
        }
        self.now = until;
        self.drain();
    }

    pub(crate) fn drain(&mut self) {
        if self.client.is_due(self.now) {
            while self.client.handle_timeout(self.now) {}
        }
        while let Some(command) = self.client.poll_command() {
            self.commands.push_back(command);
        }
        if let Some(writer) = self.client.writer() {
            while let Some(transmit) = self.client.poll_transmit(self.now, writer) {
                self.commands.push_back(Command::Transmit(writer, transmit));
            }
        }
        while let Some(event) = self.client.poll_event() {
            self.events.push_back(event);
        }
    }

    pub(crate) fn open(&mut self, connection: ConnectionId, mode: Mode) {
        self.client.handle_opened(self.now, connection, mode);
        self.drain();
    }

    pub(crate) fn lose(&mut self, connection: ConnectionId, why: Lost) {
        self.client.handle_lost(self.now, connection, why);
        self.drain();
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.client.send(Message::text(text)).unwrap();
        self.drain();
    }

    /// The server writes this.
    pub(crate) fn read(&mut self, connection: ConnectionId, control: &Control) {
        let message = Message::Binary(control.encode());
        self.client.handle_message(self.now, connection, message).unwrap();
        self.drain();
    }

    pub(crate) fn welcome(&mut self, connection: ConnectionId, epoch: u64, acknowledged: u64) {
        self.welcome_to(connection, epoch, acknowledged, None);
    }

    pub(crate) fn welcome_to(
        &mut self,
        connection: ConnectionId,
        epoch: u64,
        acknowledged: u64,
        resume_at: Option<String>,
    ) {
        let welcome = Welcome {
            id: SessionId([1; 8]),
            token: ResumeToken(Bytes::from(vec![epoch as u8; 24])),
            epoch,
            resumed: epoch > 1,
            acknowledged,
            first: 1,
            resume_window: 120 * SECOND,
            heartbeat_interval: 25 * SECOND,
            window: Window::SERVER,
            account: None,
            resume_at,
            max_message: None,
        };
        self.read(connection, &Control::Welcome(Box::new(welcome)));
    }

    // ---- what the client wants --------------------------------------------------------------------

    pub(crate) fn command(&mut self) -> Command {
        self.commands.pop_front().expect("a command")
    }

    pub(crate) fn dialled(&mut self) -> ConnectionId {
        match self.command() {
            Command::Dial(connection) => connection,
            other => panic!("{other:?} is no dial"),
        }
    }

    pub(crate) fn control(&mut self, on: ConnectionId) -> Control {
        let Command::Transmit(connection, Transmit::Control(bytes)) = self.command() else {
            panic!("no control")
        };
        assert_eq!(connection, on);
        match Frame::decode(Message::Binary(bytes)).unwrap() {
            Frame::Control(control) => control,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn hello(&mut self, on: ConnectionId) -> Hello {
        match self.control(on) {
            Control::Hello(hello) => *hello,
            other => panic!("{other:?} is no HELLO"),
        }
    }

    pub(crate) fn event(&mut self) -> Event {
        self.events.pop_front().expect("an event")
    }

    pub(crate) fn quiet(&mut self) {
        assert_eq!(
            (self.commands.make_contiguous(), self.events.make_contiguous()),
            (&mut [][..], &mut [][..])
        );
    }
}

pub(crate) fn text(on: ConnectionId, text: &str) -> Command {
    Command::Transmit(on, Transmit::Message(Message::text(text)))
}

pub(crate) fn abort(connection: ConnectionId) -> Command {
    Command::Transmit(connection, Transmit::Abort)
}

pub(crate) fn unreachable() -> Lost {
    Lost::NotOpened("no route".into())
}

pub(crate) fn next_attempt_in(event: &Event) -> Duration {
    match event {
        Event::AttemptFailed { next_attempt_in, .. } | Event::Detached { next_attempt_in, .. } => {
            *next_attempt_in
        }
        other => panic!("{other:?} says nothing of a retry"),
    }
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "has not polled every command")]
fn a_driver_that_waits_before_it_polled_every_command_fails_the_assertion() {
    let mut client = Client::new(start(), ConnectConfig::default(), [5; 32]);
    client.handle_timeout(start());
    let _ = client.poll_timeout();
}

#[test]
fn an_attempt_is_given_up_after_ten_seconds_however_far_it_got() {
    for opened in [false, true] {
        let mut node = Node::default();
        let first = node.dialled();
        node.wait(5 * SECOND);
        if opened {
            node.open(first, Mode::Session);
            node.hello(first);
        }
        node.wait(5 * SECOND - SECOND / 1000);
        node.quiet();
        node.wait(SECOND / 1000);
        assert_eq!(node.command(), abort(first));
        let wait = next_attempt_in(&node.event());
        node.wait(wait);
        let second = node.dialled();
        node.open(first, Mode::Session);
        assert_eq!(node.command(), abort(first), "too late");
        node.open(second, Mode::Session);
        node.hello(second);
    }
}

#[test]
fn waits_grow_from_one_failure_to_the_next_up_to_the_cap() {
    let mut node = Node::default();
    let mut longest = SECOND / 2;
    for attempt in 0..12 {
        let connection = node.dialled();
        node.lose(connection, unreachable());
        let wait = next_attempt_in(&node.event());
        // The cause is shared by others, so the whole range is used: full jitter.
        let range = Duration::ZERO..=if attempt == 0 { SECOND } else { longest };
        assert!(range.contains(&wait), "attempt {attempt}: {wait:?} is not within {range:?}");
        if attempt > 0 {
            longest = (longest * 2).min(30 * SECOND);
        }
        node.wait(wait);
    }
}

#[test]
fn the_servers_advice_wins_over_the_backoff() {
    let mut node = Node::default();
    let first = node.dialled();
    node.open(first, Mode::Session);
    node.hello(first);
    let delay = Delay { min: 70 * SECOND, max: 90 * SECOND };
    node.read(first, &Control::Refuse { code: 4413, temporary: true, delay, account: None });
    assert_eq!(node.command(), abort(first));
    let wait = next_attempt_in(&node.event());
    assert!((70 * SECOND..=90 * SECOND).contains(&wait), "{wait:?}");
    node.wait(wait - SECOND / 1000);
    node.quiet();
    node.wait(SECOND / 1000);
    let second = node.dialled();
    node.open(second, Mode::Session);
    assert_eq!(node.hello(second).attempt, 2);
}

#[test]
fn clients_follow_a_servers_advice_and_are_spread() {
    let mut node = Node::default();
    let connection = node.dialled();
    let code = StatusCode::SERVICE_UNAVAILABLE.into();
    node.lose(connection, Lost::Unavailable { code, retry_after: Some(20 * SECOND), reason: "503".into() });
    let wait = next_attempt_in(&node.event());
    assert!((20 * SECOND..=22 * SECOND).contains(&wait), "{wait:?}");
    node.wait(wait);
    node.dialled();
}

#[test]
fn an_answer_that_will_not_change_ends_it() {
    let refused = Lost::Refused { status: Some(StatusCode::UNAUTHORIZED), reason: "401".into() };
    let stop = Lost::Closed { code: CloseCode::new(4501), reason: "no".into() };
    for (why, expected) in [(refused, Some(401)), (stop, Some(4501))] {
        let mut node = Node::default();
        let connection = node.dialled();
        node.lose(connection, why);
        assert_eq!(end_code(&node.event()), expected);
        assert!(node.client.is_ended());
        node.wait(3600 * SECOND);
        node.quiet();
    }
}

#[test]
fn a_normal_close_without_end_is_only_a_lost_connection() {
    let (mut node, first) = Node::attached();
    node.lose(first, Lost::Closed { code: Some(CloseCode::NORMAL), reason: String::new() });
    assert!(matches!(node.event(), Event::Detached { .. }));
    node.wait(SECOND);
    let second = node.dialled();
    node.open(second, Mode::Session);
    assert!(node.hello(second).resume.is_some());
}

#[test]
fn a_client_that_wants_one_connection_does_not_come_back() {
    let mut node = Node::new(ConnectConfig { once: true, ..ConnectConfig::default() });
    let connection = node.dialled();
    node.lose(connection, unreachable());
    assert!(matches!(node.event(), Event::Ended(end) if end.code.is_none()));
}

#[test]
fn go_away_replaces_the_connection_without_loss() {
    let (mut node, first) = Node::attached();
    let delay = Delay { min: SECOND, max: 2 * SECOND };
    node.read(
        first,
        &Control::GoAway { reason: "restart".into(), delay, close_in: 30 * SECOND, endpoint: None },
    );
    node.send("a");
    assert_eq!(node.command(), text(first, "a"));
    node.wait(SECOND - SECOND / 1000);
    node.quiet();
    node.wait(SECOND + SECOND / 1000);
    let second = node.dialled();
    node.send("b");
    assert_eq!(node.command(), text(first, "b"), "the old one is used until HELLO");
    node.open(second, Mode::Session);
    assert_eq!(node.hello(second).resume.unwrap().sent, 2);
    node.send("c");
    node.quiet();
    node.welcome(second, 2, 1);
    assert_eq!(node.command(), abort(first));
    assert_eq!(node.control(second).name(), "ACK");
    assert_eq!([node.command(), node.command()], [text(second, "b"), text(second, "c")]);
    assert_eq!(node.event(), Event::Attached { mode: Mode::Session, resumed: true, epoch: 2 });
    node.quiet();
}

#[test]
fn a_connection_that_ends_before_its_replacement_is_due_reports_the_wait() {
    let (mut node, first) = Node::attached();
    let delay = Delay { min: 60 * SECOND, max: 60 * SECOND };
    node.read(
        first,
        &Control::GoAway { reason: String::new(), delay, close_in: 30 * SECOND, endpoint: None },
    );
    node.wait(30 * SECOND);
    node.lose(first, Lost::Closed { code: Some(CloseCode::GOING_AWAY), reason: String::new() });
    // Advice that names one moment is widened, so that a crowd does not arrive together.
    let wait = next_attempt_in(&node.event());
    assert!((30 * SECOND..=36 * SECOND).contains(&wait), "{wait:?}");
    node.wait(wait);
    node.dialled();
}

#[test]
fn a_probe_without_answer_opens_a_replacement_and_a_late_answer_calls_it_off() {
    for answered in [false, true] {
        let (mut node, first) = Node::attached();
        node.client.probe_now(node.now);
        node.drain();
        let Control::Ping(beat) = node.control(first) else { panic!() };
        assert_eq!(node.commands.len(), 0);
        if answered {
            node.read(first, &Control::Pong(beat));
        }
        node.wait(SECOND);
        assert_eq!(node.commands.iter().any(|command| matches!(command, Command::Dial(_))), !answered);
    }
}

#[test]
fn a_silent_server_is_dead_after_two_intervals_and_five_seconds() {
    let (mut node, first) = Node::attached();
    node.wait(55 * SECOND - SECOND / 1000);
    node.quiet();
    node.wait(SECOND / 1000);
    assert_eq!(node.command(), abort(first));
    let Event::Detached { why: Lost::Dead(Evidence::Silent), next_attempt_in } = node.event() else {
        panic!()
    };
    // No other client lost a connection: this one need not spread.
    assert!(next_attempt_in <= SECOND / 5, "{next_attempt_in:?}");
}

#[test]
fn a_replacement_that_is_refused_finally_leaves_no_connection_open() {
    let (mut node, first) = Node::attached();
    let delay = Delay { min: SECOND, max: SECOND };
    node.read(
        first,
        &Control::GoAway { reason: String::new(), delay, close_in: Duration::ZERO, endpoint: None },
    );
    node.wait(2 * SECOND);
    let second = node.dialled();
    node.open(second, Mode::Session);
    node.hello(second);
    node.read(
        second,
        &Control::Refuse { code: 4501, temporary: false, delay: Delay::default(), account: None },
    );
    assert_eq!(end_code(&node.event()), Some(4501));
    assert_eq!([node.command(), node.command()], [abort(second), abort(first)]);
    node.quiet();
}

#[test]
fn a_client_comes_back_when_the_close_advises() {
    let (mut node, first) = Node::attached();
    let reason = "retry_ms=40000, no room".to_owned();
    node.lose(first, Lost::Closed { code: Some(CloseCode::TRY_AGAIN), reason });
    let wait = next_attempt_in(&node.event());
    assert!((40 * SECOND..=44 * SECOND).contains(&wait), "{wait:?}");
}

#[test]
fn superseded_by_another_instance_ends_and_is_not_fought_over() {
    let (mut node, first) = Node::attached();
    let reason = "0909090909090909 0".to_owned();
    node.lose(first, Lost::Closed { code: Some(CloseCode::SUPERSEDED), reason });
    assert_eq!(end_code(&node.event()), Some(4409));
    node.wait(3600 * SECOND);
    node.quiet();
}

#[test]
fn the_state_reports_what_the_client_is_doing() {
    let mut node = Node::default();
    assert_eq!(node.client.state(), State::Connecting);
    let first = node.dialled();
    node.open(first, Mode::Session);
    assert_eq!((node.client.state(), node.client.id()), (State::Connecting, None));
    node.welcome(first, 1, 0);
    assert_eq!(node.client.state(), State::Attached { mode: Mode::Session, epoch: 1 });
    assert_eq!(node.client.id(), Some(SessionId([1; 8])));
    node.events.clear();
    node.lose(first, Lost::Broken("reset".into()));
    let until = node.now + next_attempt_in(&node.event());
    assert_eq!(node.client.state(), State::Waiting { until });
    node.client.probe_now(node.now);
    node.wait(Duration::ZERO);
    assert_eq!(node.client.state(), State::Connecting);
}

// ---- where to go --------------------------------------------------------------------------------

#[test]
fn a_servers_endpoint_is_named_until_an_attempt_fails_there() {
    let (mut node, first) = Node::attached();
    assert_eq!(node.client.endpoint(), None);
    let delay = Delay { min: SECOND, max: SECOND };
    let endpoint = Some("ws://other/".to_owned());
    node.read(first, &Control::GoAway { reason: String::new(), delay, close_in: Duration::ZERO, endpoint });
    node.wait(3 * SECOND);
    let second = node.dialled();
    assert_eq!(node.client.endpoint(), Some("ws://other/"));
    node.lose(second, Lost::NotOpened("no listener".into()));
    assert_eq!(node.client.endpoint(), None);
}

#[test]
fn each_welcome_announces_where_to_resume() {
    let mut node = Node::default();
    let first = node.dialled();
    node.open(first, Mode::Session);
    node.welcome_to(first, 1, 0, Some("ws://home/".into()));
    assert_eq!(node.client.endpoint(), Some("ws://home/"));
    (node.commands, node.events) = Default::default();
    node.lose(first, Lost::Broken("reset".into()));
    assert_eq!(node.client.endpoint(), Some("ws://home/"), "a lost connection is no failed attempt");
    let wait = next_attempt_in(&node.event());
    node.wait(wait);
    let second = node.dialled();
    node.open(second, Mode::Session);
    node.welcome(second, 2, 0);
    assert_eq!(node.client.endpoint(), None);
}

#[test]
fn a_client_leaves_before_the_server_closes() {
    for close_in in [4 * SECOND, 60 * SECOND] {
        let (mut node, first) = Node::attached();
        let delay = Delay { min: 2 * SECOND, max: 600 * SECOND };
        node.read(first, &Control::GoAway { reason: String::new(), delay, close_in, endpoint: None });
        node.wait(close_in);
        node.dialled();
    }
}

// ---- ending -------------------------------------------------------------------------------------

#[test]
fn closing_waits_for_the_end_of_what_was_sent_but_not_longer_than_ten_seconds() {
    let (mut node, first) = Node::attached();
    node.send("a");
    node.command();
    node.client.close(node.now, CloseCode::NORMAL, "done");
    node.wait(10 * SECOND - SECOND / 1000);
    // Meanwhile it looks whether the server lives, and for another way to it.
    assert_eq!(node.control(first).name(), "PING");
    let second = node.dialled();
    node.quiet();
    node.wait(SECOND / 1000);
    let ended = node.event();
    assert_eq!(end_code(&ended), Some(1000));
    let Event::Ended(end) = ended else { panic!("{ended:?}") };
    let fate = end.fate.unwrap();
    assert_eq!((fate.delivered, fate.unknown, fate.last), (0, 1, 1));
    assert_eq!([node.command(), node.command()], [abort(second), abort(first)], "no connection is kept");
    node.quiet();
}

#[test]
fn an_end_drops_the_replacement_that_was_being_opened() {
    for opened in [false, true] {
        let (mut node, first) = Node::attached();
        let delay = Delay { min: SECOND, max: SECOND };
        node.read(first, &Control::GoAway { reason: String::new(), delay, close_in: SECOND, endpoint: None });
        node.wait(2 * SECOND);
        let second = node.dialled();
        if opened {
            node.open(second, Mode::Session);
            node.hello(second);
        }
        node.read(first, &Control::End { code: 4500, reason: "over".into(), acknowledged: 0, delivered: 0 });
        assert_eq!(node.control(first).name(), "END");
        let close = Transmit::Close { code: CloseCode::NORMAL, reason: String::new() };
        assert_eq!(node.command(), Command::Transmit(first, close));
        assert_eq!(node.command(), abort(second));
        assert_eq!(end_code(&node.event()), Some(4500));
        node.quiet();
    }
}

#[test]
fn closing_before_anything_was_sent_ends_at_once() {
    let mut node = Node::default();
    let connection = node.dialled();
    node.client.close(node.now, CloseCode::NORMAL, "");
    node.drain();
    assert_eq!(node.command(), abort(connection));
    assert!(matches!(node.event(), Event::Ended(_)));
}

// ---- plain peers --------------------------------------------------------------------------------

/// Attached to a plain peer with these messages written to it.
pub(crate) fn plain(guarantee: Guarantee, texts: &[&str]) -> (Node, ConnectionId) {
    let confirm = ConfirmConfig::default().guarantee(guarantee);
    let mut node = Node::new(ConnectConfig { confirm, ..ConnectConfig::default() });
    let connection = node.dialled();
    texts.iter().for_each(|text| node.send(text));
    node.open(connection, Mode::Plain);
    assert_eq!(node.event(), Event::Attached { mode: Mode::Plain, resumed: false, epoch: 1 });
    for sent in texts {
        assert_eq!(node.command(), text(connection, sent));
    }
    (node, connection)
}

fn reattach(node: &mut Node, lost: ConnectionId) -> ConnectionId {
    node.lose(lost, Lost::Broken("reset".into()));
    while !matches!(node.events.front(), Some(Event::Detached { .. })) {
        node.events.rotate_left(1);
    }
    let wait = next_attempt_in(&node.event());
    node.wait(wait);
    let connection = node.dialled();
    node.open(connection, Mode::Plain);
    connection
}

#[test]
fn plain_peers_report_every_reattach_as_fresh() {
    let (mut node, mut connection) = plain(Guarantee::AtLeastOnce, &[]);
    for epoch in 2..5 {
        connection = reattach(&mut node, connection);
        assert_eq!(node.event(), Event::Attached { mode: Mode::Plain, resumed: false, epoch });
        assert_eq!(node.event(), Event::FreshPeer);
        node.quiet();
    }
}

#[test]
fn what_a_pong_confirmed_is_not_sent_again_and_the_rest_is() {
    let (mut node, first) = plain(Guarantee::AtLeastOnce, &["a", "b"]);
    node.wait(Duration::from_millis(250));
    assert_eq!(node.command(), Command::Transmit(first, Transmit::Ping(2)));
    node.client.handle_pong(node.now, first, &2_u64.to_be_bytes());
    assert_eq!(node.client.settled(), 2);
    node.send("c");
    assert_eq!(node.command(), text(first, "c"));
    let second = reattach(&mut node, first);
    assert_eq!(node.command(), text(second, "c"));
    assert!(!node.events.iter().any(|event| matches!(event, Event::Report(_))));
}

#[test]
fn at_most_once_reports_what_is_unknown_and_sends_nothing_again() {
    let (mut node, first) = plain(Guarantee::AtMostOnce, &["a"]);
    node.wait(Duration::from_millis(250));
    assert_eq!(node.command(), Command::Transmit(first, Transmit::Ping(1)));
    node.client.handle_pong(node.now, first, &1_u64.to_be_bytes());
    for sent in ["b", "c"] {
        node.send(sent);
        assert_eq!(node.command(), text(first, sent));
    }
    let second = reattach(&mut node, first);
    assert_eq!(node.event(), Event::Report(Report::Unknown(2..=3)));
    node.send("d");
    assert_eq!(node.command(), text(second, "d"));
}

#[test]
fn what_the_application_answered_is_not_unknown() {
    let confirm = ConfirmConfig::default().confirm(Confirm::Reply).guarantee(Guarantee::AtMostOnce);
    let mut node = Node::new(ConnectConfig { confirm, ..ConnectConfig::default() });
    let first = node.dialled();
    ["a", "b", "c"].into_iter().for_each(|text| node.send(text));
    node.open(first, Mode::Plain);
    node.client.handle_reply(node.now);
    node.commands.clear();
    reattach(&mut node, first);
    assert!(node.events.contains(&Event::Report(Report::Unknown(2..=3))));
}

#[test]
fn a_pong_after_the_peers_close_confirms_nothing() {
    let (mut node, first) = plain(Guarantee::AtMostOnce, &["a"]);
    node.client.handle_peer_close(first, None);
    node.client.handle_pong(node.now, first, &1_u64.to_be_bytes());
    reattach(&mut node, first);
    assert_eq!(node.event(), Event::Report(Report::Unknown(1..=1)));
}

#[test]
fn a_peer_that_accepts_no_bytes_keeps_no_client_from_its_end() {
    let (mut node, first) = plain(Guarantee::AtMostOnce, &[]);
    node.client.close(node.now, CloseCode::NORMAL, "done");
    assert_eq!(node.client.state(), State::Ended);
    node.drain();
    node.commands.clear();
    // Its Close waits in a socket that accepts no bytes.
    assert_eq!(node.client.poll_timeout(), Some(node.now + 10 * SECOND));
    node.wait(10 * SECOND);
    assert_eq!(node.commands.pop_back(), Some(Command::Transmit(first, Transmit::Abort)));
    assert_eq!(node.client.poll_timeout(), None);
}

#[test]
fn a_plain_close_that_times_out_reports_unknown_and_never_written_messages() {
    let (mut node, first) = plain(Guarantee::AtLeastOnce, &["a", "b"]);
    node.lose(first, Lost::Broken("reset".into()));
    node.event();
    node.send("c");
    node.client.close(node.now, CloseCode::NORMAL, "done");
    assert_eq!(node.client.state(), State::Closing);
    node.wait(10 * SECOND);
    let reports: Vec<_> = node.events.iter().filter(|event| matches!(event, Event::Report(_))).collect();
    let expected = [&Event::Report(Report::Unknown(1..=2)), &Event::Report(Report::NotDelivered(3..=3))];
    assert_eq!(reports, expected);
    let Some(Event::Ended(end)) = node.events.back() else { panic!("{:?}", node.events) };
    assert_eq!((end.code.map(ReasonCode::get), end.fate), (Some(1000), None));
    assert_eq!(node.client.state(), State::Ended);
}

#[test]
fn a_plain_close_waits_for_what_has_to_be_written_again() {
    let confirm = ConfirmConfig::default().confirm(Confirm::PongWindow);
    let mut node = Node::new(ConnectConfig { confirm, link: true, ..ConnectConfig::default() });
    node.send("a");
    let first = node.dialled();
    node.open(first, Mode::Plain);
    node.wait(Duration::from_millis(250));
    node.client.handle_pong(node.now, first, &1_u64.to_be_bytes());
    node.commands.clear();
    node.lose(first, Lost::Broken("reset".into()));
    node.client.close(node.now, CloseCode::NORMAL, "");
    assert_eq!(node.client.state(), State::Closing, "the peer may have lost what it had read ahead");
    node.wait(SECOND);
    let second = node.dialled();
    node.open(second, Mode::Plain);
    assert_eq!(node.command(), text(second, "a"));
    node.wait(Duration::from_millis(250));
    node.client.handle_pong(node.now, second, &1_u64.to_be_bytes());
    assert_eq!(node.client.state(), State::Ended);
    assert!(!node.events.iter().any(|event| matches!(event, Event::Report(_))));
}

#[test]
fn a_link_uses_its_queue_before_its_first_connection_is_up() {
    let confirm = ConfirmConfig::default().queue(2, 100).unwrap();
    let config = ConnectConfig { confirm, link: true, ..ConnectConfig::default() };
    let mut node = Node::new(config.clone());
    ["a", "b"].into_iter().for_each(|text| node.send(text));
    assert_eq!(node.client.send(Message::text("c")), Err(Message::text("c")));
    assert!(node.client.waits_when_full());
    let confirm = confirm.when_full(WhenFull::DropOldest);
    let mut node = Node::new(ConnectConfig { confirm, ..config });
    ["a", "b", "c"].into_iter().for_each(|text| node.send(text));
    assert_eq!(node.event(), Event::Report(Report::NotDelivered(1..=1)));
    let first = node.dialled();
    node.open(first, Mode::Plain);
    assert_eq!([node.command(), node.command()], [text(first, "b"), text(first, "c")]);
}

#[test]
fn messages_that_a_client_accepted_before_it_met_a_plain_peer_are_all_sent() {
    let confirm = ConfirmConfig::default().queue(1, 1).unwrap();
    let mut node = Node::new(ConnectConfig { confirm, ..ConnectConfig::default() });
    let first = node.dialled();
    ["a", "b", "c"].into_iter().for_each(|text| node.send(text));
    node.open(first, Mode::Plain);
    assert_eq!(
        [node.command(), node.command(), node.command()],
        ["a", "b", "c"].map(|sent| text(first, sent))
    );
}

#[test]
fn a_plain_peer_is_read_until_too_many_bytes_wait_for_the_application() {
    let (mut node, first) = plain(Guarantee::AtLeastOnce, &[]);
    for _ in 0..4 {
        assert!(node.client.wants_input());
        let message = Message::binary(vec![0; 1024 * 1024]);
        node.client.handle_message(node.now, first, message).unwrap();
    }
    assert!(!node.client.wants_input(), "4 MiB wait");
    node.client.deliver(node.now);
    assert!(node.client.wants_input());
}

#[test]
fn a_server_that_changes_its_protocol_is_not_believed() {
    let (mut node, first) = Node::attached();
    node.lose(first, Lost::Broken("reset".into()));
    let wait = next_attempt_in(&node.event());
    node.wait(wait);
    let second = node.dialled();
    node.open(second, Mode::Plain);
    assert_eq!(node.command(), abort(second));
    assert!(matches!(node.event(), Event::AttemptFailed { .. }));
}
