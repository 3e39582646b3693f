//! What a plain peer receives first, which silence is too long, a reconnect on request, and what stands between
//! messages.

use std::time::Duration;

use mainstay_proto::confirm::Guarantee;
use mainstay_proto::connect::{Command, ConnectConfig, Event, Incoming, Lost, Mode, Silence, State};
use mainstay_proto::session::{Message, Transmit};
use mainstay_proto::ws::CloseCode;

use super::connect::{Node, abort, next_attempt_in, plain, text};
use super::pair::SECOND;

#[test]
fn a_greeting_goes_ahead_of_what_was_kept_on_each_connection_and_is_never_kept() {
    let mut node = Node::new(ConnectConfig { link: true, ..ConnectConfig::default() });
    node.send("order 1");
    let first = node.dialled();
    node.client.handle_opened(node.now, first, Mode::Plain);
    node.client.greet(first, ["auth", "subscribe"].map(Message::text).into());
    node.client.send_volatile(Message::text("cursor"));
    node.drain();
    let sent = [node.command(), node.command(), node.command(), node.command()];
    assert_eq!(sent, ["auth", "subscribe", "cursor", "order 1"].map(|sent| text(first, sent)));
    node.lose(first, Lost::Broken("reset".into()));
    node.events.clear();
    node.wait(SECOND);
    let second = node.dialled();
    node.client.handle_opened(node.now, second, Mode::Plain);
    node.client.greet(second, [Message::text("auth 2")].into());
    node.drain();
    assert_eq!([node.command(), node.command()], ["auth 2", "order 1"].map(|sent| text(second, sent)));
    node.wait(SECOND / 4);
    // The first message is number 1: no greeting is confirmed, or reported.
    assert_eq!(node.command(), Command::Transmit(second, Transmit::Ping(1)));
}

#[test]
fn a_greeting_for_a_connection_that_is_not_attached_any_more_goes_nowhere() {
    let (mut node, first) = plain(Guarantee::AtLeastOnce, &[]);
    node.lose(first, Lost::Broken("reset".into()));
    node.client.greet(first, [Message::text("auth")].into());
    node.drain();
    node.commands.retain(|command| matches!(command, Command::Transmit(..)));
    assert!(node.commands.is_empty());
}

fn quiet_after(limit: Duration) -> ConnectConfig {
    ConnectConfig { silence: Some(Silence::limit(limit).unwrap()), ..ConnectConfig::default() }
}

#[test]
fn a_connection_that_brings_no_message_for_too_long_is_replaced_though_it_answers() {
    let mut node = Node::new(quiet_after(10 * SECOND));
    let first = node.dialled();
    node.open(first, Mode::Plain);
    node.events.clear();
    for _ in 0..3 {
        node.client.handle_message(node.now, first, Message::text("tick")).unwrap();
        node.client.deliver(node.now);
        node.wait(9 * SECOND);
        node.client.handle_bytes(node.now, first);
    }
    assert!(node.client.is_attached());
    node.client.handle_pong(node.now, first, &1_u64.to_be_bytes());
    node.commands.clear();
    node.wait(SECOND);
    assert_eq!(node.command(), abort(first));
    let Event::Detached { why: Lost::NoMessage { within }, next_attempt_in } = node.event() else { panic!() };
    assert_eq!(within, 10 * SECOND);
    assert!(next_attempt_in <= SECOND / 5, "no other client lost a connection: {next_attempt_in:?}");
}

#[test]
fn what_waits_for_the_application_is_no_silence() {
    for mode in [Mode::Plain, Mode::Session] {
        let mut node = Node::new(quiet_after(10 * SECOND));
        let first = node.dialled();
        node.open(first, mode);
        if mode == Mode::Session {
            node.hello(first);
            node.welcome(first, 1, 0);
        }
        node.client.handle_message(node.now, first, Message::text("unread")).unwrap();
        for _ in 0..10 {
            node.wait(9 * SECOND);
            node.client.handle_bytes(node.now, first);
        }
        assert!(node.client.is_attached(), "{mode:?}");
        node.client.deliver(node.now);
        node.wait(20 * SECOND);
        assert!(
            node.events
                .iter()
                .any(|event| matches!(event, Event::Detached { why: Lost::NoMessage { .. }, .. }))
        );
    }
}

#[test]
fn what_is_readable_is_read_before_a_connection_is_called_silent() {
    let mut node = Node::new(quiet_after(10 * SECOND));
    let first = node.dialled();
    node.open(first, Mode::Plain);
    node.now += 3600 * SECOND;
    // This process was paused.
    assert!(node.client.handle_timeout(node.now));
    node.client.handle_message(node.now, first, Message::text("it was there")).unwrap();
    while node.client.handle_timeout(node.now) {}
    assert!(node.client.is_attached());
}

#[test]
fn a_silence_out_of_range_is_named() {
    for limit in [Duration::ZERO, SECOND / 20, 8 * 86_400 * SECOND, Duration::MAX] {
        assert_eq!(Silence::limit(limit).map_err(|error| error.field), Err("silence"));
    }
}

#[test]
fn a_requested_reconnect_dials_at_once() {
    // A session continues over it.
    let (mut node, first) = Node::attached();
    node.client.reconnect(node.now);
    node.wait(Duration::ZERO);
    assert_eq!(node.command(), abort(first));
    assert_eq!(node.event(), Event::Detached { why: Lost::Asked, next_attempt_in: Duration::ZERO });
    let second = node.dialled();
    node.open(second, Mode::Session);
    assert!(node.hello(second).resume.is_some());
    // An attempt starts again: its URL may have changed.
    node.client.reconnect(node.now);
    node.wait(Duration::ZERO);
    assert_eq!(node.command(), abort(second));
    let third = node.dialled();
    assert_ne!(third, second);
    // A plain peer receives a Close.
    let (mut node, first) = plain(Guarantee::AtLeastOnce, &[]);
    node.client.reconnect(node.now);
    node.wait(Duration::ZERO);
    let close = Transmit::Close { code: CloseCode::GOING_AWAY, reason: String::new() };
    assert_eq!(node.command(), Command::Transmit(first, close));
    node.dialled();
    assert_eq!(node.client.state(), State::Connecting);
}

#[test]
fn a_reconnect_while_waiting_dials_and_after_the_end_does_nothing() {
    let mut node = Node::default();
    let first = node.dialled();
    node.lose(first, super::connect::unreachable());
    assert!(next_attempt_in(&node.event()) > Duration::ZERO);
    node.client.reconnect(node.now);
    node.wait(Duration::ZERO);
    node.dialled();
    node.client.abandon("enough");
    node.drain();
    node.commands.clear();
    node.client.reconnect(node.now);
    node.wait(Duration::ZERO);
    assert!(node.commands.is_empty());
}

#[test]
fn a_fresh_peer_stands_between_the_messages_of_the_two_connections() {
    let (mut node, mut connection) = plain(Guarantee::AtLeastOnce, &[]);
    let bring = |node: &mut Node, connection, texts: &[&'static str]| {
        for sent in texts {
            node.client.handle_message(node.now, connection, Message::text(*sent)).unwrap();
        }
    };
    bring(&mut node, connection, &["1.1", "1.2"]);
    node.lose(connection, Lost::Broken("reset".into()));
    node.wait(SECOND);
    node.commands.retain(|command| matches!(command, Command::Dial(_)));
    connection = node.dialled();
    node.open(connection, Mode::Plain);
    bring(&mut node, connection, &["2.1"]);
    assert!(!node.events.contains(&Event::FreshPeer), "what came before it waits still");
    let mut seen = Vec::new();
    while let Some(incoming) = node.client.deliver(node.now) {
        node.drain();
        seen.push((incoming, node.events.contains(&Event::FreshPeer)));
    }
    let message = |text: &'static str| Incoming::Message(Message::text(text));
    let expected = [
        (message("1.1"), false),
        (message("1.2"), false),
        (Incoming::FreshPeer { count: 1 }, true),
        (message("2.1"), true),
    ];
    assert_eq!(seen, expected);
    // If nothing unread is before it, the event comes at once, and only once.
    node.events.clear();
    node.lose(connection, Lost::Broken("reset".into()));
    node.wait(SECOND);
    node.commands.retain(|command| matches!(command, Command::Dial(_)));
    connection = node.dialled();
    node.open(connection, Mode::Plain);
    assert_eq!(node.events.iter().filter(|event| **event == Event::FreshPeer).count(), 1);
    assert_eq!(node.client.deliver(node.now), Some(Incoming::FreshPeer { count: 2 }));
    node.drain();
    assert_eq!(node.events.iter().filter(|event| **event == Event::FreshPeer).count(), 1);
}
