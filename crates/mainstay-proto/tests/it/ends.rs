//! Why a client ends, how soon, and what of what it was given is known then.

use std::error::Error;
use std::time::Duration;

use mainstay_proto::confirm::Guarantee;
use mainstay_proto::connect::{
    Command, ConnectConfig, EndCause, EndsOn, Event, Incoming, Lost, Mode, ReasonCode, Report, State,
};
use mainstay_proto::session::{Control, Message, Transmit};
use mainstay_proto::ws::CloseCode;

use super::connect::{Node, abort, next_attempt_in, plain, text, unreachable};
use super::pair::SECOND;

fn cause(node: &Node) -> Option<EndCause> {
    node.client.end().map(|end| end.cause)
}

fn closed(code: u16) -> Lost {
    Lost::Closed { code: CloseCode::new(code), reason: "said so".into() }
}

#[test]
fn an_abort_sends_end_and_close_and_waits_for_nothing() {
    let (mut node, connection) = Node::attached();
    node.send("a");
    node.read(connection, &Control::Ack { acknowledged: 1, window: None });
    node.send("b");
    node.commands.clear();
    node.client.abort(node.now, CloseCode::new(4000).unwrap(), "kicked");
    assert_eq!(node.client.state(), State::Ended);
    node.drain();
    let Control::End { code, reason, .. } = node.control(connection) else { panic!("no END") };
    assert_eq!((code, reason.as_str()), (4000, "kicked"));
    assert!(matches!(node.command(), Command::Transmit(_, Transmit::Close { .. })));
    let end = node.client.end().unwrap();
    let fate = end.fate.unwrap();
    let code = CloseCode::new(4000).map(ReasonCode::Close);
    assert_eq!((end.cause, end.code, fate.delivered, fate.unknown), (EndCause::Aborted, code, 1, 2));
    assert_eq!(node.client.take_undelivered(), ["b"].map(Message::text));
    assert_eq!(node.client.take_undelivered(), []);
    assert_eq!(node.client.send(Message::text("c")), Err(Message::text("c")));
}

#[test]
fn an_abort_of_a_link_closes_and_reports_the_fate_of_each_message() {
    let (mut node, connection) = plain(Guarantee::AtLeastOnce, &["a"]);
    node.client.handle_message(node.now, connection, Message::text("unread")).unwrap();
    node.client.abort(node.now, CloseCode::new(4000).unwrap(), "kicked");
    node.drain();
    let code = CloseCode::new(4000).unwrap();
    let close = Transmit::Close { code, reason: "kicked".into() };
    assert_eq!(node.command(), Command::Transmit(connection, close));
    assert_eq!(node.event(), Event::Report(Report::Unknown(1..=1)));
    assert_eq!(cause(&node), Some(EndCause::Aborted));
    assert_eq!(node.client.take_undelivered(), ["a"].map(Message::text));
    assert_eq!(node.client.deliver(node.now), None, "nothing is delivered any more");
}

#[test]
fn an_abort_without_a_connection_drops_the_attempt() {
    let mut node = Node::default();
    let connection = node.dialled();
    node.send("a");
    node.client.abort(node.now, CloseCode::NORMAL, "");
    node.drain();
    assert_eq!(node.command(), abort(connection));
    assert_eq!(node.client.take_undelivered(), ["a"].map(Message::text));
    let fate = node.client.end().unwrap().fate.unwrap();
    assert_eq!((fate.unknown, fate.last), (0, 1), "it was never written");
}

#[test]
fn after_close_nothing_is_delivered() {
    let (mut node, connection) = Node::attached();
    node.client.handle_message(node.now, connection, Message::text("before")).unwrap();
    node.send("a");
    node.client.close(node.now, CloseCode::NORMAL, "");
    node.client.handle_message(node.now, connection, Message::text("after")).unwrap();
    assert_eq!(node.client.deliver(node.now), None);
    // The server ends it at the same time: its END is answered although the application does not receive what came
    // before it.
    let end = Control::End { code: 1000, reason: String::new(), acknowledged: 1, delivered: 1 };
    node.read(connection, &end);
    assert_eq!(node.client.state(), State::Ended);

    let (mut node, connection) = plain(Guarantee::AtLeastOnce, &["a"]);
    node.client.handle_message(node.now, connection, Message::text("before")).unwrap();
    node.client.close(node.now, CloseCode::NORMAL, "");
    for _ in 0..5000 {
        node.client.handle_message(node.now, connection, Message::text("after")).unwrap();
        assert!(node.client.wants_input(), "the confirming Pong is behind it");
    }
    assert_eq!(node.client.deliver(node.now), None);
    node.wait(SECOND);
    node.client.handle_pong(node.now, connection, &1_u64.to_be_bytes());
    assert_eq!(cause(&node), Some(EndCause::Closed));
    assert_eq!(node.client.take_undelivered(), []);
}

#[test]
fn a_link_that_reads_while_closing_hands_over_until_its_end() {
    let config = ConnectConfig { link: true, reads_while_closing: true, ..ConnectConfig::default() };
    let mut node = Node::new(config);
    let connection = node.dialled();
    node.open(connection, Mode::Plain);
    node.send("a");
    node.client.close(node.now, CloseCode::NORMAL, "");
    node.client.handle_message(node.now, connection, Message::text("answer")).unwrap();
    assert_eq!(node.client.deliver(node.now), Some(Incoming::Message(Message::text("answer"))));
}

#[test]
fn each_kind_of_end_is_distinguished() {
    let refused = || Lost::Refused { status: Some(http::StatusCode::FORBIDDEN), reason: "no".into() };
    let once = || ConnectConfig { once: true, ..ConnectConfig::default() };
    let check = |config: ConnectConfig, why: Lost, expected: EndCause| {
        let mut node = Node::new(config);
        let connection = node.dialled();
        if !matches!(why, Lost::Refused { .. } | Lost::NotOpened(_)) {
            node.open(connection, Mode::Plain);
        }
        node.lose(connection, why.clone());
        let end = node.client.end().unwrap();
        assert_eq!((end.cause, end.lost.as_deref()), (expected, Some(&why)));
        assert_eq!(end.source().unwrap().to_string(), why.to_string());
    };
    check(ConnectConfig::default(), refused(), EndCause::Refused);
    check(ConnectConfig::default(), closed(4501), EndCause::Peer);
    check(once(), unreachable(), EndCause::Lost);
    check(once(), Lost::Broken("reset".into()), EndCause::Lost);
    let ends = ConnectConfig { ends_on: EndsOn::Close, ..ConnectConfig::default() };
    check(ends, closed(1000), EndCause::Peer);
    let mut node = Node::default();
    node.client.abandon("the runtime is gone");
    assert_eq!(cause(&node), Some(EndCause::Abandoned));
    let mut node = Node::default();
    node.client.close(node.now, CloseCode::NORMAL, "");
    assert_eq!(cause(&node), Some(EndCause::Closed));
}

#[test]
fn as_many_attempts_in_a_row_as_are_allowed_end_a_client_and_a_connection_clears_their_count() {
    let mut config = ConnectConfig::default();
    assert_eq!(config.allow_attempts(0).map_err(|error| error.field), Err("max_attempts"));
    config.allow_attempts(3).unwrap();
    let mut node = Node::new(config);
    let fail = |node: &mut Node| {
        let connection = node.dialled();
        node.lose(connection, unreachable());
        if node.client.end().is_none() {
            let wait = next_attempt_in(&node.event());
            node.wait(wait);
        }
    };
    fail(&mut node);
    fail(&mut node);
    let first = node.dialled();
    node.open(first, Mode::Plain);
    node.events.clear();
    node.lose(first, Lost::Broken("reset".into()));
    let wait = next_attempt_in(&node.event());
    node.wait(wait);
    fail(&mut node);
    fail(&mut node);
    assert_eq!(node.client.end(), None);
    fail(&mut node);
    let end = node.client.end().unwrap();
    assert_eq!((end.cause, end.code), (EndCause::Attempts, None));
    assert_eq!(end.reason, "3 attempts in a row failed; the last one: no route");
}

#[test]
fn messages_before_the_peers_end_of_a_client_are_still_delivered() {
    let mut node = Node::new(ConnectConfig { once: true, ..ConnectConfig::default() });
    let connection = node.dialled();
    node.open(connection, Mode::Session);
    node.hello(connection);
    node.welcome(connection, 1, 0);
    node.client.handle_message(node.now, connection, Message::text("last words")).unwrap();
    node.lose(connection, Lost::Broken("reset".into()));
    assert_eq!(node.client.state(), State::Ended);
    assert_eq!(node.client.deliver(node.now), Some(Incoming::Message(Message::text("last words"))));
}

#[test]
fn a_link_returns_messages_that_were_written_and_messages_that_were_not() {
    let (mut node, first) = plain(Guarantee::AtLeastOnce, &["a", "b"]);
    node.lose(first, Lost::Broken("reset".into()));
    node.send("c");
    node.client.abandon("enough");
    assert_eq!(node.client.take_undelivered(), ["a", "b", "c"].map(Message::text));
}

#[test]
fn a_message_that_ends_every_attempt_before_welcome_waits_until_there_is_a_session() {
    let mut node = Node::default();
    node.send("poison");
    for attempt in 1..=3 {
        let connection = node.dialled();
        node.open(connection, Mode::Session);
        assert_eq!(node.hello(connection).attempt, attempt);
        assert_eq!(node.command(), text(connection, "poison"));
        node.lose(connection, closed(1007));
        let wait = next_attempt_in(&node.event());
        node.wait(wait);
    }
    let connection = node.dialled();
    node.open(connection, Mode::Session);
    node.hello(connection);
    node.quiet();
    node.welcome(connection, 1, 0);
    assert!(node.client.is_attached(), "the session is there, and the message follows");
    node.commands.retain(|command| *command == text(connection, "poison"));
    assert_eq!(node.commands.len(), 1);
    // Five connections without progress give the session up, which is reported.
    let mut lost = connection;
    for epoch in 2..=5 {
        node.events.clear();
        node.commands.clear();
        node.lose(lost, closed(1007));
        let wait = next_attempt_in(&node.event());
        node.wait(wait);
        lost = node.dialled();
        node.open(lost, Mode::Session);
        node.welcome(lost, epoch, 0);
    }
    node.events.clear();
    node.lose(lost, closed(1007));
    let Event::Gap(fate) = node.event() else { panic!("{:?}", node.events) };
    assert_eq!((fate.unknown, fate.last), (1, 1));
}

#[test]
fn a_session_that_is_given_up_is_one_gap_and_begins_anew_with_another_key() {
    let (mut node, mut connection) = Node::attached();
    node.send("x");
    let mut key = None;
    for epoch in 2..=6 {
        node.events.clear();
        node.commands.clear();
        node.lose(connection, Lost::Broken("reset".into()));
        let gap = node.events.iter().any(|event| matches!(event, Event::Gap(_)));
        assert_eq!(gap, epoch == 6, "the fifth in a row");
        let detached = node.events.iter().find(|event| matches!(event, Event::Detached { .. }));
        let wait = next_attempt_in(detached.unwrap());
        node.commands.clear();
        node.wait(wait);
        connection = node.dialled();
        node.open(connection, Mode::Session);
        let hello = node.hello(connection);
        if epoch == 6 {
            assert!(hello.resume.is_none());
            assert_eq!(hello.key_age, Duration::ZERO, "never sent before");
            assert_ne!(
                key,
                Some(hello.key),
                "a server that knows it would refuse, and report the loss again"
            );
        } else {
            key = Some(hello.key);
            node.welcome(connection, epoch, 0);
        }
    }
}
