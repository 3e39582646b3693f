//! How sessions end on purpose, and what ends only a connection.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mainstay_proto::session::message::{Beat, Delay};
use mainstay_proto::session::{
    Control, Credentials, Frame, Malformed, Message, Over, PlainSession, Refusal, SessionError, Transmit,
};
use mainstay_proto::ws::{CloseCode, Kind};

use super::pair::{Pair, SECOND, server_config, start};

#[test]
fn what_the_client_sent_is_delivered_before_its_end() {
    let mut pair = Pair::attached();
    pair.client_sends("a");
    pair.client.close(CloseCode::NORMAL, "done");
    assert!(pair.client.send(Message::text("late")).is_err());
    pair.run();
    assert_eq!(pair.over(), None, "END waits for the acknowledgement");
    pair.wait(SECOND);
    assert_eq!(pair.server_got(), ["a"]);
    assert_eq!(pair.over(), Some(Over::Ended { code: 1000, by_us: false }));
    let (code, fate) = pair.ended().unwrap();
    assert_eq!((code, fate.delivered, fate.unknown, fate.last), (1000, 1, 1, 1));
}

#[test]
fn what_the_server_sent_is_delivered_before_its_end() {
    let mut pair = Pair::attached();
    pair.server_sends("x");
    pair.server_closes(CloseCode::SESSION_ENDED, "over");
    assert!(pair.session().send(Message::text("late")).is_err());
    pair.run();
    assert_eq!(pair.ended(), None, "END waits for the acknowledgement");
    pair.wait(SECOND);
    assert_eq!(pair.client_got, ["x"]);
    assert_eq!(pair.over(), Some(Over::Ended { code: 4500, by_us: true }));
    assert_eq!(pair.ended().unwrap().0, 4500);
}

#[test]
fn an_end_flushes_over_a_lost_connection() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.client_sends("a");
    pair.client.close(CloseCode::NORMAL, "done");
    pair.lose_written(first);
    pair.cut(first);
    pair.connect();
    pair.wait(SECOND);
    assert_eq!(pair.server_got(), ["a"]);
    assert_eq!(pair.ended().unwrap().1.delivered, 1);
}

#[test]
fn what_came_before_the_peers_end_is_still_handed_over() {
    let mut pair = Pair::attached();
    pair.server.takes = false;
    pair.client_sends("a");
    pair.run();
    let (now, connection) = (pair.now, pair.client.current().unwrap());
    let end = Control::End { code: 1000, reason: String::new(), received: 0, handed: 0 };
    pair.session().handle_frame(now, connection, Frame::Control(end)).unwrap();
    assert_eq!(pair.over(), None, "the application has not taken all of it");
    pair.server.takes = true;
    pair.run();
    assert_eq!(pair.server_got(), ["a"]);
    assert_eq!(pair.over(), Some(Over::Ended { code: 1000, by_us: false }));
}

#[test]
fn an_end_while_a_replacement_is_opened_is_not_lost_with_the_old_connection() {
    let mut pair = Pair::attached();
    pair.open();
    pair.client.close(CloseCode::NORMAL, "done");
    pair.run();
    assert_eq!(pair.ended().map(|(code, _)| code), Some(1000));
    assert_eq!(pair.over(), Some(Over::Ended { code: 1000, by_us: false }));
}

#[test]
fn a_client_that_sent_end_asks_for_no_other_session() {
    let mut pair = Pair::attached();
    pair.client.close(CloseCode::NORMAL, "done");
    pair.write();
    let replacement = pair.open();
    assert_eq!(pair.under_way_up(replacement), []);
    pair.run();
    assert_eq!(pair.ended().map(|(code, _)| code), Some(1000));
    assert_eq!(pair.server.sessions.len(), 1);
}

#[test]
fn an_end_while_a_replacement_fails_leaves_on_the_old_connection() {
    let mut pair = Pair::attached();
    let replacement = pair.open();
    pair.client.close(CloseCode::NORMAL, "done");
    pair.lose_written(replacement);
    pair.cut(replacement);
    pair.run();
    assert_eq!(pair.ended().map(|(code, _)| code), Some(1000));
    assert_eq!(pair.over(), Some(Over::Ended { code: 1000, by_us: false }));
}

#[test]
fn an_end_while_a_replacement_is_refused_leaves_on_the_old_connection() {
    let mut pair = Pair::attached();
    let replacement = pair.open();
    pair.lose_written(replacement);
    pair.client.close(CloseCode::NORMAL, "done");
    let refuse = Control::Refuse { code: 4413, retryable: true, delay: Default::default(), account: None };
    pair.client.handle_frame(pair.now, replacement, Frame::Control(refuse)).unwrap();
    pair.run();
    assert_eq!(pair.ended().map(|(code, _)| code), Some(1000));
    assert_eq!(pair.over(), Some(Over::Ended { code: 1000, by_us: false }));
}

#[test]
fn a_session_that_sent_end_is_refused_with_its_code_and_account() {
    // Whether or not the server knows yet that the connection is lost: the same answer.
    for known in [false, true] {
        let mut pair = Pair::default();
        let first = pair.connect();
        pair.client_sends("a");
        pair.run();
        pair.client_sends("b");
        pair.lose_written(first);
        pair.server_closes(CloseCode::UNAUTHORIZED, "revoked");
        pair.lose_written(first);
        pair.cut_at_client(first);
        if known {
            pair.cut_at_server(first);
        }
        pair.connect();
        assert_eq!(pair.server.refusals, [Refusal::Ended]);
        let (code, fate) = pair.ended().unwrap();
        assert_eq!((code, fate.delivered, fate.unknown, fate.last), (4501, 1, 1, 2));
        assert_eq!(pair.server.sessions.len(), 1);
    }
}

#[test]
fn an_end_that_waits_for_its_client_is_given_to_it() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.cut(first);
    pair.server_sends("x");
    pair.server_closes(CloseCode::SESSION_ENDED, "over");
    pair.connect();
    pair.wait(SECOND);
    assert_eq!(pair.client_got, ["x"]);
    assert_eq!(pair.ended().unwrap().0, 4500);
}

#[test]
fn a_server_that_has_sent_end_still_answers_who_asks_whether_it_is_there() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.server_closes(CloseCode::SESSION_ENDED, "over");
    let (now, session) = (pair.now, pair.session());
    assert!(session.poll_transmit(now, first).is_some_and(|transmit| is_end(&transmit, 4500)));
    let ping = Control::Ping(Beat { nonce: 7, sent: 0, received: 0 });
    session.handle_frame(now, first, Frame::Control(ping)).unwrap();
    let pong = Control::Pong(Beat { nonce: 7, sent: 0, received: 0 });
    assert_eq!(session.poll_transmit(now, first), Some(Transmit::Control(pong.encode())));
    assert_eq!(session.poll_transmit(now, first), None);
}

#[test]
fn no_client_puts_off_its_end_by_acknowledging_nothing() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.server_sends("x");
    pair.server_closes(CloseCode::UNAUTHORIZED, "revoked");
    let (closed, session) = (pair.now, pair.session());
    let end = (1..).find(|&second| {
        let now = closed + second * SECOND;
        let alive = Frame::Control(Control::Ack { received: 0, window: None });
        session.handle_frame(now, first, alive).unwrap();
        while session.handle_timeout(now).is_some() {}
        let written = std::iter::from_fn(|| session.poll_transmit(now, first));
        written.filter(|transmit| is_end(transmit, 4501)).count() == 1
    });
    assert_eq!(end, Some(120), "the resume window");
    while session.handle_timeout(closed + 130 * SECOND).is_some() {}
    assert_eq!(session.is_over(), Some(Over::Ended { code: 4501, by_us: true }));
}

fn is_end(transmit: &Transmit, expected: u64) -> bool {
    let Transmit::Control(bytes) = transmit else { return false };
    let frame = Frame::decode(Message::Binary(bytes.clone()));
    matches!(frame, Ok(Frame::Control(Control::End { code, .. })) if code == expected)
}

#[test]
fn an_end_nobody_answers_leaves_the_rest_unknown() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.client_sends("a");
    pair.client.close(CloseCode::NORMAL, "done");
    pair.lose_written(first);
    pair.client.abandon();
    pair.write();
    let (code, fate) = pair.ended().unwrap();
    assert_eq!((code, fate.delivered, fate.unknown, fate.last), (1000, 0, 1, 1));
}

#[test]
fn a_servers_end_that_nobody_answers_is_over_after_ten_seconds() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.server_closes(CloseCode::SESSION_ENDED, "over");
    pair.lose_written(first);
    pair.wait(9 * SECOND);
    assert_eq!(pair.over(), None);
    let due = pair.now + SECOND;
    assert_eq!(pair.session().poll_timeout(), Some(due));
    assert_eq!(pair.session().handle_timeout(due), None);
    assert_eq!(pair.over(), Some(Over::Ended { code: 4500, by_us: true }));
    assert!(pair.session().wants_abort());
    assert_eq!(pair.session().poll_transmit(due, first), Some(Transmit::Abort));
    assert_eq!(pair.session().poll_transmit(due, first), None);
}

#[test]
fn what_a_plain_peer_does_not_take_within_ten_seconds_of_the_close_is_dropped() {
    let now = start();
    let mut plain = PlainSession::new(now, Arc::new(server_config()), 1);
    plain.send(Message::text("a")).unwrap();
    plain.close(now, CloseCode::NORMAL, "done");
    assert_eq!(plain.poll_timeout(), Some(now + 10 * SECOND));
    // It is on its way, but the socket takes none of it.
    assert_eq!(plain.poll_transmit(), Some(Transmit::Message(Message::text("a"))));
    let close = Transmit::Close { code: CloseCode::NORMAL, reason: "done".into() };
    assert_eq!((plain.poll_transmit(), plain.poll_transmit()), (Some(close), None));
    assert_eq!(plain.handle_timeout(now + 9 * SECOND), None);
    assert!(!plain.is_over() && !plain.wants_abort());
    assert_eq!(plain.handle_timeout(now + 10 * SECOND), None);
    assert!(plain.wants_abort());
    assert_eq!(plain.poll_transmit(), Some(Transmit::Abort));
    assert!(plain.is_over());
}

// ---- what a peer does wrong ---------------------------------------------------------------------

#[test]
fn an_acknowledgement_above_what_was_written_closes_the_connection_and_keeps_the_session() {
    let beat = Beat { nonce: 1, sent: 0, received: 9 };
    for control in [Control::Ack { received: 9, window: None }, Control::Ping(beat), Control::Pong(beat)] {
        let pair = survives(&control.encode());
        assert_eq!(pair.server.errors, [SessionError::AckBeyondWritten { received: 9, written: 0 }]);
    }
}

#[test]
fn malformed_messages_close_the_connection_and_keep_the_session() {
    let vectors: [(&[u8], Malformed); 6] = [
        (&[], Malformed::Empty),
        (&[0x0d], Malformed::UnknownType(0x0d)),
        (&[0x03], Malformed::Truncated),
        (&[0x03, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Malformed::IntegerTooLarge),
        (&[0x0b, 0x02], Malformed::BadValue),
        (&[0x03, 0x00, 0x3f, 0x00, 0x3f, 0x00], Malformed::RepeatedField),
    ];
    for (bytes, error) in vectors {
        assert_eq!(survives(bytes).server.errors, [SessionError::Malformed(error)]);
    }
}

#[test]
fn messages_that_only_a_server_sends_close_the_connection_and_keep_the_session() {
    let refuse = Control::Refuse { code: 4413, retryable: true, delay: Default::default(), account: None };
    let result = Control::AuthResult { accepted: true, expires_in: SECOND };
    for control in [refuse, result] {
        let name = control.name();
        assert_eq!(survives(&control.encode()).server.errors, [SessionError::Unexpected(name)]);
    }
}

/// An attached client whose connection brings this; then it comes back and has missed nothing.
fn survives(bytes: &[u8]) -> Pair {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.at_server(first, Kind::Binary, Bytes::copy_from_slice(bytes));
    pair.client_sends("a");
    pair.run();
    assert_eq!(pair.client.current(), None, "{bytes:02x?}: the connection is closed");
    assert_eq!(pair.over(), None, "{bytes:02x?}: the session is kept");
    pair.connect();
    assert_eq!(pair.attaches(), [(1, false), (2, true)]);
    assert_eq!(pair.server_got(), ["a"]);
    pair
}

#[test]
fn reserved_types_are_ignored_and_not_counted() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.at_server(first, Kind::Binary, Bytes::from_static(&[0x81, 1, 2]));
    pair.client.probe(1);
    pair.run();
    assert_eq!(pair.server.errors, []);
    assert_eq!(pair.client.current(), Some(first));
}

#[test]
fn positions_that_differ_end_the_session() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.client_sends("a");
    pair.run();
    // Somebody in between swallowed a message.
    let ping = Control::Ping(Beat { nonce: 1, sent: 2, received: 0 });
    pair.at_server(first, Kind::Binary, ping.encode());
    assert_eq!(pair.server.errors, [SessionError::PositionMismatch { sent: 2, read: 1 }]);
    assert_eq!(pair.over(), Some(Over::Ended { code: 4400, by_us: true }));
    pair.run();
    let (code, fate) = pair.ended().unwrap();
    assert_eq!((code, fate.delivered), (4400, 1), "END came before the Close");
}

#[test]
fn a_server_whose_position_differs_loses_its_client() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.client_sends("a");
    pair.run();
    let ping = Frame::Control(Control::Ping(Beat { nonce: 1, sent: 1, received: 0 }));
    let outcome = pair.client.handle_frame(pair.now, first, ping);
    assert_eq!(outcome, Err(SessionError::PositionMismatch { sent: 1, read: 0 }));
    pair.run();
    let (code, fate) = pair.ended().unwrap();
    assert_eq!((code, fate.delivered, fate.unknown, fate.last), (4400, 0, 1, 1));
    assert_eq!(pair.over(), Some(Over::Ended { code: 4400, by_us: false }), "END was written");
}

#[test]
fn what_a_server_does_wrong_closes_the_connection_and_keeps_the_session() {
    let mut pair = Pair::default();
    let first = pair.connect();
    for control in
        [Control::Ack { received: 9, window: None }, Control::Auth { credentials: Credentials(Bytes::new()) }]
    {
        let outcome = pair.client.handle_frame(pair.now, first, Frame::Control(control));
        assert!(outcome.is_err());
    }
    pair.cut(first);
    pair.connect();
    assert_eq!(pair.attaches(), [(1, false), (2, true)]);
    assert_eq!(pair.gaps(), []);
}

#[test]
fn anything_but_an_answer_before_welcome_is_an_error() {
    let mut pair = Pair::default();
    let first = pair.open();
    let now = pair.now;
    assert!(pair.client.handle_frame(now, first, Frame::Message(Message::text("x"))).is_err());
    let ack = Frame::Control(Control::Ack { received: 0, window: None });
    assert_eq!(pair.client.handle_frame(now, first, ack), Err(SessionError::Unexpected("ACK")));
}

#[test]
fn a_connection_that_was_asked_to_leave_and_stays_is_closed_at_the_time_that_was_announced() {
    let delay = Delay { min: Duration::ZERO, max: SECOND };
    let is_closed = |close_in, time, comes_back| {
        let mut pair = Pair::default();
        let mut connection = pair.connect();
        let now = pair.now;
        pair.session().go_away(now, "restart", delay, close_in);
        pair.run();
        if comes_back {
            connection = pair.connect();
        }
        pair.session().handle_timeout(now + time);
        let session = pair.session();
        std::iter::from_fn(|| session.poll_transmit(now + time, connection))
            .any(|transmit| matches!(transmit, Transmit::Close { code: CloseCode::RESTART, .. }))
    };
    assert!(is_closed(5 * SECOND, 5 * SECOND, false));
    assert!(!is_closed(5 * SECOND, 5 * SECOND - Duration::from_millis(1), false));
    assert!(!is_closed(Duration::ZERO, 5 * SECOND, false), "no time was announced");
    assert!(!is_closed(5 * SECOND, 5 * SECOND, true), "nobody asked its next connection to leave");
}
