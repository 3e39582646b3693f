//! The client towards a plain peer.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use mainstay_proto::confirm::{Confirm, ConfirmConfig};
use mainstay_proto::connect::{
    Client, Command, ConnectConfig, EndCause, EndsOn, Event, Incoming, Lost, Mode, ReasonCode, Report, State,
};
use mainstay_proto::session::{ConnectionId, Message, Transmit};
use mainstay_proto::ws::CloseCode;

const SECOND: Duration = Duration::from_secs(1);

struct Link {
    client: Client,
    now: Instant,
    commands: VecDeque<Command>,
    events: VecDeque<Event>,
}

impl Link {
    /// Attached to its first connection.
    fn new() -> Self {
        Self::with(ConnectConfig::default())
    }

    fn with(config: ConnectConfig) -> Self {
        let mut link = Self::detached(config);
        link.attach();
        link
    }

    fn detached(config: ConnectConfig) -> Self {
        let now = Instant::now();
        let client = Client::new(now, config, [7; 32]);
        Self { client, now, commands: VecDeque::new(), events: VecDeque::new() }
    }

    /// Dials when that is due, and opens the connection.
    fn attach(&mut self) -> ConnectionId {
        let connection = self.dial();
        self.client.handle_opened(self.now, connection, Mode::Plain);
        connection
    }

    fn dial(&mut self) -> ConnectionId {
        loop {
            self.client.handle_timeout(self.now);
            match self.command() {
                Some(Command::Dial(connection)) => return connection,
                Some(_) => {}
                None => self.now = self.now.max(self.client.poll_timeout().unwrap()),
            }
        }
    }

    /// Polls every command and event, as a driver does before it waits.
    fn drain(&mut self) {
        self.commands.extend(std::iter::from_fn(|| self.client.poll_command()));
        self.events.extend(std::iter::from_fn(|| self.client.poll_event()));
    }

    fn command(&mut self) -> Option<Command> {
        self.drain();
        self.commands.pop_front()
    }

    fn events(&mut self) -> Vec<Event> {
        self.drain();
        self.events.drain(..).collect()
    }

    fn connection(&self) -> ConnectionId {
        self.client.writer().unwrap()
    }

    /// Does what is due and writes everything.
    fn turn(&mut self) -> Vec<Transmit> {
        while self.client.handle_timeout(self.now) {}
        let connection = self.connection();
        let written: Vec<_> =
            std::iter::from_fn(|| self.client.poll_transmit(self.now, connection)).collect();
        self.client.handle_flushed(self.now, connection);
        written
    }

    fn pong(&mut self, nonce: u64) {
        self.client.handle_pong(self.now, self.connection(), &nonce.to_be_bytes());
    }

    fn lose(&mut self) {
        self.client.handle_lost(self.now, self.connection(), Lost::Broken("cut".into()));
    }

    fn reports(&mut self) -> Vec<Report> {
        let events = self.events().into_iter();
        events
            .filter_map(|event| if let Event::Report(report) = event { Some(report) } else { None })
            .collect()
    }
}

fn ping(written: &[Transmit]) -> u64 {
    let pings = written.iter().filter_map(|transmit| match transmit {
        Transmit::Ping(nonce) => Some(*nonce),
        _ => None,
    });
    let pings: Vec<_> = pings.collect();
    assert_eq!(pings.len(), 1, "{written:?}");
    pings[0]
}

#[test]
fn a_healthy_link_answers_a_requested_ping_and_stays() {
    let mut link = Link::new();
    link.client.probe_now(link.now);
    let nonce = ping(&link.turn());
    link.now += SECOND / 2;
    link.pong(nonce);
    link.now += 2 * SECOND;
    link.turn();
    assert_eq!(link.command(), None);
    assert_eq!(link.client.rtt(), Some(SECOND / 2));
}

#[test]
fn a_probed_link_without_an_answer_is_replaced_after_a_second_and_dead_after_two() {
    let mut link = Link::new();
    let first = link.connection();
    link.client.probe_now(link.now);
    ping(&link.turn());
    link.now += SECOND;
    link.turn();
    link.turn();
    assert!(matches!(link.command(), Some(Command::Dial(_))));
    link.now += SECOND;
    while link.client.handle_timeout(link.now) {}
    assert_eq!(link.command(), Some(Command::Transmit(first, Transmit::Abort)));
    assert!(!link.client.is_attached());
}

#[test]
fn what_a_replaced_link_did_not_confirm_is_written_on_the_new_one() {
    let mut link = Link::new();
    assert_eq!(link.client.send(Message::text("a")), Ok(1));
    assert_eq!(link.turn(), [Transmit::Message(Message::text("a"))]);
    link.client.probe_now(link.now);
    link.turn();
    link.now += SECOND;
    let first = link.connection();
    let second = link.attach();
    assert_eq!(
        (link.connection(), link.command()),
        (second, Some(Command::Transmit(first, Transmit::Abort)))
    );
    assert_eq!(link.turn(), [Transmit::Message(Message::text("a"))]);
    link.now += SECOND / 4;
    let position = ping(&link.turn());
    link.pong(position);
    assert_eq!(link.client.settled(), 1);
}

#[test]
fn a_message_that_ends_three_connections_comes_back() {
    let mut link = Link::new();
    link.client.send(Message::text("poison")).unwrap();
    for _ in 0..3 {
        link.turn();
        link.lose();
        link.attach();
    }
    assert_eq!(link.reports(), [Report::Undeliverable { number: 1, message: Message::text("poison") }]);
    assert_eq!(link.client.settled(), 1);
}

#[test]
fn a_peer_that_sends_but_answers_no_ping_is_kept() {
    let mut link = Link::new();
    let first = link.connection();
    for _ in 0..900 {
        link.now += SECOND;
        link.client.handle_message(link.now, first, Message::text("news")).unwrap();
        link.turn();
        link.client.deliver(link.now);
    }
    assert_eq!((link.connection(), link.command()), (first, None));
}

#[test]
fn a_volatile_message_is_written_once_and_neither_kept_nor_confirmed() {
    let mut link = Link::new();
    link.client.send_volatile(Message::text("now"));
    assert_eq!(link.turn(), [Transmit::Message(Message::text("now"))]);
    link.client.send_volatile(Message::text("under way"));
    link.lose();
    link.client.send_volatile(Message::text("away"));
    link.attach();
    assert_eq!(link.turn(), []);
}

fn texts(written: &[Transmit]) -> Vec<&str> {
    let messages = written.iter().filter_map(|transmit| match transmit {
        Transmit::Message(message) => Some(message),
        _ => None,
    });
    messages.filter_map(Message::as_text).collect()
}

#[test]
fn a_connection_that_is_held_back_carries_only_what_goes_ahead_until_it_is_released() {
    let mut link = Link::with(ConnectConfig { link: true, holds_replaced: true, ..ConnectConfig::default() });
    link.client.send(Message::text("a")).unwrap();
    assert_eq!(texts(&link.turn()), ["a"], "the first is not held back");
    link.lose();
    link.client.send(Message::text("b")).unwrap();
    link.attach();
    link.client.send_volatile(Message::text("later"));
    link.client.send_ahead(1, Message::text("login"));
    assert_eq!(texts(&link.turn()), ["login"]);
    assert_eq!(texts(&link.turn()), [""; 0]);
    link.client.send_ahead(1, Message::text("join"));
    link.client.release(1);
    link.client.send_ahead(1, Message::text("too late"));
    assert_eq!(texts(&link.turn()), ["join", "later", "a", "b"]);
    link.now += SECOND;
    link.turn();
    link.pong(2);
    assert_eq!(link.client.settled(), 2, "what goes ahead has no number");
}

#[test]
fn what_goes_ahead_is_lost_with_its_connection_and_releases_no_other() {
    let mut link = Link::with(ConnectConfig { link: true, holds_replaced: true, ..ConnectConfig::default() });
    link.client.send(Message::text("a")).unwrap();
    link.lose();
    link.attach();
    link.client.send_ahead(1, Message::text("login"));
    link.lose();
    link.client.release(1);
    link.attach();
    link.client.send_ahead(1, Message::text("login of before"));
    link.client.release(1);
    assert_eq!(texts(&link.turn()), [""; 0]);
    link.client.send_ahead(2, Message::text("login"));
    link.client.release(2);
    assert_eq!(texts(&link.turn()), ["login", "a"]);
}

#[test]
fn the_first_connection_of_a_link_that_continues_another_counts_as_a_replacement() {
    let config =
        ConnectConfig { link: true, holds_replaced: true, continues: true, ..ConnectConfig::default() };
    let mut link = Link::with(config);
    assert_eq!(link.client.deliver(link.now), Some(Incoming::FreshPeer { count: 1 }));
    link.client.send(Message::text("a")).unwrap();
    assert_eq!(texts(&link.turn()), [""; 0]);
    link.client.send_ahead(1, Message::text("login"));
    link.client.release(1);
    assert_eq!(texts(&link.turn()), ["login", "a"]);
    link.lose();
    link.attach();
    assert_eq!(link.client.deliver(link.now), Some(Incoming::FreshPeer { count: 2 }));
    link.client.release(2);
    assert_eq!(texts(&link.turn()), ["a"]);
}

#[test]
fn a_link_that_closes_and_reads_delivers_what_the_peer_sends_until_its_own_close() {
    let mut link = Link::with(ConnectConfig { link: true, ..ConnectConfig::default() });
    let connection = link.connection();
    link.client.send(Message::text("last")).unwrap();
    link.client.close_and_read(link.now, CloseCode::GOING_AWAY, "moved");
    assert_eq!(texts(&link.turn()), ["last"], "what was accepted goes first");
    link.client.handle_message(link.now, connection, Message::text("before the Close")).unwrap();
    link.now += SECOND;
    let asked = ping(&link.turn());
    link.pong(asked);
    let close = Transmit::Close { code: CloseCode::GOING_AWAY, reason: "moved".into() };
    assert_eq!(link.command(), Some(Command::Transmit(connection, close)));
    assert!(link.client.awaits_close(connection) && !link.client.is_ended());
    link.client.handle_message(link.now, connection, Message::text("under way")).unwrap();
    link.client.handle_peer_close(connection, Some(CloseCode::GOING_AWAY));
    let closed = Lost::Closed { code: Some(CloseCode::GOING_AWAY), reason: String::new() };
    link.client.handle_lost(link.now, connection, closed);
    let delivered: Vec<_> = std::iter::from_fn(|| link.client.deliver(link.now)).collect();
    let expected = ["before the Close", "under way"].map(|text| Incoming::Message(Message::text(text)));
    assert_eq!(delivered, expected);
    let ended = link.events().into_iter().find_map(|event| match event {
        Event::Ended(end) => Some(end.cause),
        _ => None,
    });
    assert_eq!((ended, link.client.settled()), (Some(EndCause::Closed), 1));
}

#[test]
fn a_link_that_closes_and_reads_makes_no_other_connection_and_reports_what_was_not_confirmed() {
    let mut link = Link::with(ConnectConfig { link: true, ..ConnectConfig::default() });
    link.client.send(Message::text("written")).unwrap();
    link.turn();
    link.client.close_and_read(link.now, CloseCode::GOING_AWAY, "moved");
    assert!(!link.client.is_ended());
    link.lose();
    assert!(link.client.is_ended());
    assert_eq!(link.reports(), [Report::Unknown(1..=1)]);

    let mut waits = Link::detached(ConnectConfig { link: true, ..ConnectConfig::default() });
    waits.client.send(Message::text("kept")).unwrap();
    waits.client.close_and_read(waits.now, CloseCode::GOING_AWAY, "moved");
    assert!(waits.client.is_ended());
    assert_eq!(waits.reports(), [Report::NotDelivered(1..=1)]);
}

/// A link at rest: its Close was sent and answered.
fn resting(config: ConnectConfig) -> Link {
    let mut link = Link::with(config);
    link.turn();
    assert!(link.client.rest(link.now, CloseCode::GOING_AWAY, "idle"));
    let connection = link.connection();
    let close = Transmit::Close { code: CloseCode::GOING_AWAY, reason: "idle".into() };
    assert_eq!(link.command(), Some(Command::Transmit(connection, close)));
    assert_eq!(link.turn(), [], "nothing follows the Close");
    link.client.handle_message(link.now, connection, Message::text("the last word")).unwrap();
    let why = Lost::Closed { code: Some(CloseCode::GOING_AWAY), reason: String::new() };
    link.client.handle_lost(link.now, connection, why);
    assert_eq!(link.client.deliver(link.now), Some(Incoming::Message(Message::text("the last word"))));
    assert_eq!(link.events().last(), Some(&Event::Rested));
    link
}

#[test]
fn a_link_at_rest_dials_nothing_until_a_message_waits_and_then_at_once() {
    for ends_on in [EndsOn::Nothing, EndsOn::FinalClose, EndsOn::Close, EndsOn::Connection] {
        let mut link = resting(ConnectConfig { ends_on, holds_replaced: true, ..ConnectConfig::default() });
        assert_eq!((link.client.state(), link.client.poll_timeout()), (State::Resting, None));
        link.now += 1_000 * SECOND;
        link.client.handle_timeout(link.now);
        assert_eq!(link.command(), None);
        link.client.send(Message::text("first")).unwrap();
        assert!(link.client.is_due(link.now));
        link.attach();
        let fresh = link.client.deliver(link.now);
        assert_eq!(fresh, Some(Incoming::FreshPeer { count: 1 }), "{ends_on:?}");
        assert_eq!(link.turn(), [], "the connection is held back");
        link.client.release(1);
        assert_eq!(texts(&link.turn()), ["first"]);
    }
}

#[test]
fn a_link_at_rest_dials_when_it_is_asked_to_and_ends_when_it_is_closed() {
    let mut link = resting(ConnectConfig::default());
    link.client.probe_now(link.now);
    link.dial();
    for reads in [false, true] {
        let mut link = resting(ConnectConfig::default());
        if reads {
            link.client.close_and_read(link.now, CloseCode::NORMAL, "");
        } else {
            link.client.close(link.now, CloseCode::NORMAL, "");
        }
        assert!(link.client.is_ended() && link.command().is_none());
    }
}

#[test]
fn a_link_with_an_unconfirmed_message_or_without_a_connection_does_not_rest() {
    let mut link = Link::new();
    link.client.send(Message::text("x")).unwrap();
    assert!(!link.client.rest(link.now, CloseCode::GOING_AWAY, ""));
    link.turn();
    link.now += SECOND;
    let nonce = ping(&link.turn());
    link.pong(nonce);
    assert!(link.client.rest(link.now, CloseCode::GOING_AWAY, ""));
    assert!(!link.client.rest(link.now, CloseCode::GOING_AWAY, ""), "it does already");
    let mut link = Link::detached(ConnectConfig::default());
    link.dial();
    assert!(!link.client.rest(link.now, CloseCode::GOING_AWAY, ""));
}

#[test]
fn a_message_during_the_close_of_a_rest_is_sent_on_the_next_connection() {
    for answers in [true, false] {
        let mut link = Link::new();
        let connection = link.connection();
        link.turn();
        assert!(link.client.rest(link.now, CloseCode::GOING_AWAY, ""));
        link.client.send(Message::text("late")).unwrap();
        assert_eq!(link.turn(), []);
        if answers {
            link.client.handle_lost(link.now, connection, Lost::Closed { code: None, reason: String::new() });
        } else {
            link.now += 10 * SECOND;
            link.client.handle_timeout(link.now);
            assert!(!link.client.is_attached(), "the peer has 10 s to answer");
        }
        link.attach();
        assert_eq!(texts(&link.turn()), ["late"]);
        assert_eq!(link.reports(), []);
    }
}

#[test]
fn a_link_that_is_closed_while_its_rest_begins_sends_no_second_close() {
    for reads in [false, true] {
        let mut link = Link::new();
        let connection = link.connection();
        link.turn();
        link.client.rest(link.now, CloseCode::GOING_AWAY, "");
        link.drain();
        link.commands.clear();
        if reads {
            link.client.close_and_read(link.now, CloseCode::NORMAL, "");
            link.client.handle_lost(link.now, connection, Lost::Closed { code: None, reason: String::new() });
        } else {
            link.client.close(link.now, CloseCode::NORMAL, "");
        }
        let closes = |command: &Command| matches!(command, Command::Transmit(_, Transmit::Close { .. }));
        link.drain();
        assert!(link.client.is_ended() && !link.commands.iter().any(closes));
    }
}

#[test]
fn messages_that_are_confirmed_and_kept_back_are_not_written_again_after_a_rest() {
    let confirm = ConfirmConfig::default().confirm(Confirm::PongWindow);
    let mut link = Link::with(ConnectConfig { confirm, ..ConnectConfig::default() });
    link.client.send(Message::text("kept back")).unwrap();
    link.turn();
    link.now += SECOND;
    let nonce = ping(&link.turn());
    link.pong(nonce);
    assert_eq!(link.client.settled(), 0);
    let connection = link.connection();
    assert!(link.client.rest(link.now, CloseCode::GOING_AWAY, ""));
    assert_eq!(link.client.settled(), 1);
    link.client.handle_lost(link.now, connection, Lost::Closed { code: None, reason: String::new() });
    link.client.send(Message::text("next")).unwrap();
    link.attach();
    assert_eq!((texts(&link.turn()), link.reports()), (vec!["next"], vec![]));
}

#[test]
fn a_link_that_is_abandoned_ends_at_once_and_reports_what_it_kept() {
    let mut link = Link::with(ConnectConfig { link: true, holds_replaced: true, ..ConnectConfig::default() });
    link.client.send(Message::text("written")).unwrap();
    link.turn();
    link.client.send(Message::text("waits")).unwrap();
    link.client.abandon("no use");
    assert!(link.client.is_ended());
    let events: Vec<_> = link.events();
    assert!(events.contains(&Event::Report(Report::Unknown(1..=1))), "{events:?}");
    assert!(events.contains(&Event::Report(Report::NotDelivered(2..=2))), "{events:?}");
}

#[test]
fn a_close_behind_an_announced_restart_is_a_restart_whatever_its_code() {
    for (announced, ends) in [("restarting", false), ("news", true)] {
        let mut link = Link::with(ConnectConfig {
            link: true,
            ends_on: EndsOn::FinalClose,
            announces_restart: Some(|message| message.as_text() == Some("restarting")),
            ..ConnectConfig::default()
        });
        link.client.handle_message(link.now, link.connection(), Message::text(announced)).unwrap();
        link.client.handle_peer_close(link.connection(), Some(CloseCode::NORMAL));
        let closed = Lost::Closed { code: Some(CloseCode::NORMAL), reason: String::new() };
        link.client.handle_lost(link.now, link.connection(), closed);
        assert_eq!(link.client.is_ended(), ends, "{announced}");
    }
}

impl Link {
    /// A link whose peer has received 64 of 100 messages and does not answer the Ping behind them.
    fn stalled() -> Self {
        let mut link = Self::new();
        for _ in 0..100 {
            link.client.send(Message::text("x")).unwrap();
        }
        assert_eq!(messages(&link.turn()), 64);
        link
    }

    /// As long as nothing else happens: how many messages are written meanwhile.
    fn wait(&mut self, time: Duration) -> usize {
        let until = self.now + time;
        let mut written = 0;
        while self.client.is_attached() {
            self.drain();
            let Some(due) = self.client.poll_timeout().filter(|due| *due <= until) else { break };
            self.now = due.max(self.now);
            while self.client.handle_timeout(self.now) {}
            if self.client.is_attached() {
                written += messages(&self.turn());
            }
        }
        self.now = until;
        written
    }

    fn reported(&mut self, event: &Event) -> bool {
        self.events().into_iter().filter(|reported| reported == event).count() == 1
    }
}

fn messages(written: &[Transmit]) -> usize {
    written.iter().filter(|transmit| matches!(transmit, Transmit::Message(_))).count()
}

/// What a driver on Linux has the transport bear.
const GUARD: Duration = Duration::from_secs(20);

#[test]
fn a_peer_that_sends_and_answers_no_ping_is_written_to_after_the_deadline() {
    let mut link = Link::stalled();
    link.now += SECOND;
    link.client.handle_message(link.now, link.connection(), Message::text("news")).unwrap();
    assert_eq!(link.wait(3 * SECOND), 0);
    assert_eq!(link.wait(SECOND), 36);
    assert_eq!(link.client.settled(), 100, "nothing is kept");
    link.lose();
    assert_eq!(link.reports(), [Report::Unknown(1..=100)]);
    link.attach();
    assert_eq!(messages(&link.turn()), 0, "nothing is doubled");
    link.client.send(Message::text("more")).unwrap();
    assert_eq!(messages(&link.turn()), 1);
}

#[test]
fn a_peer_that_only_reads_is_known_to_live_by_its_transport() {
    let mut link = Link::stalled();
    link.client.handle_guarded(link.connection(), GUARD);
    assert_eq!(link.wait(GUARD), 0);
    assert_eq!(link.wait(2 * SECOND), 36);
    assert!(link.reported(&Event::PingsUnanswered));
    assert_eq!(link.command(), None);
}

#[test]
fn a_quiet_peer_that_answers_no_ping_keeps_its_connection_where_the_transport_would_have_noticed() {
    let mut link = Link::new();
    link.client.handle_guarded(link.connection(), GUARD);
    link.wait(60 * SECOND);
    assert!(link.reported(&Event::PingsUnanswered));
    link.wait(3600 * SECOND);
    assert_eq!((link.client.is_attached(), link.command()), (true, None));
    // One that answered once is dead when it falls silent.
    let mut link = Link::new();
    link.client.handle_guarded(link.connection(), GUARD);
    link.client.probe_now(link.now);
    let nonce = ping(&link.turn());
    link.pong(nonce);
    link.wait(60 * SECOND);
    assert!(!link.client.is_attached());
}

#[test]
fn silence_is_a_verdict_where_nothing_else_would_notice() {
    let mut link = Link::stalled();
    link.wait(60 * SECOND);
    assert!(!link.client.is_attached() && !link.reported(&Event::PingsUnanswered));
}

#[test]
fn a_pong_after_all_ends_the_exception() {
    let mut link = Link::stalled();
    link.client.handle_guarded(link.connection(), GUARD);
    link.wait(22 * SECOND);
    assert!(link.reported(&Event::PingsUnanswered));
    link.pong(64);
    assert!(link.reported(&Event::PingsAnswered));
    link.client.send(Message::text("more")).unwrap();
    link.turn();
    link.lose();
    link.attach();
    assert!(messages(&link.turn()) > 0, "written again");
}

#[test]
fn an_end_waits_for_no_pong_of_a_peer_that_answers_none() {
    let mut link = Link::stalled();
    link.client.handle_guarded(link.connection(), GUARD);
    link.wait(22 * SECOND);
    link.client.send(Message::text("last")).unwrap();
    link.client.close(link.now, CloseCode::NORMAL, "");
    assert!(!link.client.is_ended(), "the last one has not left");
    assert_eq!(messages(&link.turn()), 1);
    assert!(link.client.is_ended());
    assert_eq!(link.reports(), [Report::Unknown(1..=100), Report::Unknown(101..=101)]);
}

/// Returns whether a link with this `ends_on` ends when its connection ends so, and with which code.
fn end(ends_on: EndsOn, why: Lost) -> Option<Option<u64>> {
    let mut link = Link::with(ConnectConfig { link: true, ends_on, ..ConnectConfig::default() });
    link.client.handle_lost(link.now, link.connection(), why.clone());
    let events: Vec<_> = link.events();
    let at = events.iter().position(|event| matches!(event, Event::Ended(_)))?;
    let reported = matches!(&events[at - 1], Event::Detached { why: reported, .. } if *reported == why);
    assert!(reported || ends_on == EndsOn::Nothing, "{events:?}");
    match &events[at] {
        Event::Ended(end) => Some(end.code.map(ReasonCode::get)),
        _ => unreachable!(),
    }
}

#[test]
fn what_ends_a_link_is_its_users_choice() {
    let closed = |code: u16| Lost::Closed { code: CloseCode::new(code), reason: "why".into() };
    let broken = || Lost::Broken("reset".into());
    for restart in [1001, 1005, 1011, 1012, 1013, 1014, 4000, 4499] {
        let code = CloseCode::new(restart).map(u64::from);
        assert_eq!(end(EndsOn::Nothing, closed(restart)), None, "{restart}");
        assert_eq!(end(EndsOn::FinalClose, closed(restart)), None, "{restart}");
        assert_eq!(end(EndsOn::Close, closed(restart)), Some(code), "{restart}");
        assert_eq!(end(EndsOn::Connection, closed(restart)), Some(code), "{restart}");
    }
    for last in [1000, 1002, 1003, 1007, 1008, 1009, 1010, 3999, 4500, 4999] {
        for ends_on in [EndsOn::FinalClose, EndsOn::Close, EndsOn::Connection] {
            assert_eq!(end(ends_on, closed(last)), Some(Some(last.into())), "{last}");
        }
    }
    assert_eq!(end(EndsOn::Close, broken()), None);
    assert_eq!(end(EndsOn::Connection, broken()), Some(None));
}

#[test]
fn the_fifth_close_in_a_row_without_a_message_is_final() {
    let config = ConnectConfig { link: true, ends_on: EndsOn::FinalClose, ..ConnectConfig::default() };
    let closed = || Lost::Closed { code: None, reason: String::new() };
    let mut link = Link::with(config.clone());
    for _ in 0..4 {
        link.client.handle_lost(link.now, link.connection(), closed());
        link.attach();
    }
    link.client.handle_lost(link.now, link.connection(), closed());
    assert!(link.client.is_ended());
    // A message makes the difference.
    let mut link = Link::with(config);
    for _ in 0..20 {
        let connection = link.connection();
        link.client.handle_message(link.now, connection, Message::text("news")).unwrap();
        link.client.handle_lost(link.now, connection, closed());
        link.attach();
    }
}

#[test]
fn a_link_that_ends_with_its_connection_dials_until_it_has_one() {
    let config = ConnectConfig { link: true, ends_on: EndsOn::Connection, ..ConnectConfig::default() };
    let mut link = Link::detached(config);
    for _ in 0..3 {
        let connection = link.dial();
        link.client.handle_lost(link.now, connection, Lost::NotOpened("refused".into()));
    }
    link.attach();
    assert!(link.client.is_attached());
}

#[test]
fn a_peer_that_agrees_on_another_subprotocol_than_before_is_not_joined() {
    let mut link = Link::new();
    let mut agrees = |name| link.client.check_subprotocol(Mode::Plain, name).is_ok();
    assert!(agrees(Some("a.v2")) && agrees(Some("a.v2")));
    assert!(!agrees(Some("b.v1")) && !agrees(None));
    link.lose();
    let connection = link.dial();
    let why = link.client.check_subprotocol(Mode::Plain, Some("b.v1")).unwrap_err();
    link.client.handle_lost(link.now, connection, why);
    assert!(link.client.is_ended());
}

#[test]
fn a_replacement_stands_between_the_messages_of_the_two_connections() {
    let mut link = Link::new();
    let first = link.connection();
    link.client.handle_message(link.now, first, Message::text("a")).unwrap();
    link.lose();
    let second = link.attach();
    link.client.handle_message(link.now, second, Message::text("b")).unwrap();
    let received: Vec<_> = std::iter::from_fn(|| link.client.deliver(link.now)).collect();
    let message = |text| Incoming::Message(Message::text(text));
    assert_eq!(received, [message("a"), Incoming::FreshPeer { count: 1 }, message("b")]);
}
