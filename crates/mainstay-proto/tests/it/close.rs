//! How sessions end on purpose, and what ends only a connection.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mainstay_proto::session::message::{Beat, Delay};
use mainstay_proto::session::{
    Closed, Control, Credentials, End, EndCause, Frame, Malformed, Message, PeerClose, PlainSession,
    RefuseReason, SessionError, Transmit,
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
    assert_eq!(pair.over(), Some(Closed::Ended { code: 1000, by_us: false }));
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
    assert_eq!(pair.over(), Some(Closed::Ended { code: 4500, by_us: true }));
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
fn messages_before_the_peers_end_are_still_delivered() {
    let mut pair = Pair::attached();
    pair.server.takes = false;
    pair.client_sends("a");
    pair.run();
    let (now, connection) = (pair.now, pair.client.current().unwrap());
    let end = Control::End { code: 1000, reason: String::new(), acknowledged: 0, delivered: 0 };
    pair.session().handle_frame(now, connection, Frame::Control(end)).unwrap();
    assert_eq!(pair.over(), None, "the application has not taken all of it");
    pair.server.takes = true;
    pair.run();
    assert_eq!(pair.server_got(), ["a"]);
    assert_eq!(pair.over(), Some(Closed::Ended { code: 1000, by_us: false }));
}

#[test]
fn an_end_while_a_replacement_is_opened_is_not_lost_with_the_old_connection() {
    let mut pair = Pair::attached();
    pair.open();
    pair.client.close(CloseCode::NORMAL, "done");
    pair.run();
    assert_eq!(pair.ended().map(|(code, _)| code), Some(1000));
    assert_eq!(pair.over(), Some(Closed::Ended { code: 1000, by_us: false }));
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
    assert_eq!(pair.over(), Some(Closed::Ended { code: 1000, by_us: false }));
}

#[test]
fn an_end_while_a_replacement_is_refused_leaves_on_the_old_connection() {
    let mut pair = Pair::attached();
    let replacement = pair.open();
    pair.lose_written(replacement);
    pair.client.close(CloseCode::NORMAL, "done");
    let refuse = Control::Refuse { code: 4413, temporary: true, delay: Default::default(), account: None };
    pair.client.handle_frame(replacement, Frame::Control(refuse)).unwrap();
    pair.run();
    assert_eq!(pair.ended().map(|(code, _)| code), Some(1000));
    assert_eq!(pair.over(), Some(Closed::Ended { code: 1000, by_us: false }));
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
        assert_eq!(pair.server.refusals, [RefuseReason::Ended]);
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
fn a_server_that_has_sent_end_still_answers_a_ping() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.server_closes(CloseCode::SESSION_ENDED, "over");
    let (now, session) = (pair.now, pair.session());
    assert!(session.poll_transmit(now, first).is_some_and(|transmit| is_end(&transmit, 4500)));
    let ping = Control::Ping(Beat { nonce: 7, sent: 0, acknowledged: 0 });
    session.handle_frame(now, first, Frame::Control(ping)).unwrap();
    let pong = Control::Pong(Beat { nonce: 7, sent: 0, acknowledged: 0 });
    assert_eq!(session.poll_transmit(now, first), Some(Transmit::Control(pong.encode())));
    assert_eq!(session.poll_transmit(now, first), None);
}

/// In which second after its close the session writes END, if the client acknowledges this in each.
fn second_of_end(pair: &mut Pair, sent: u32, acknowledged: impl Fn(u64) -> u64) -> Option<u32> {
    let first = pair.connect();
    for _ in 0..sent {
        pair.server_sends("x");
    }
    pair.server_closes(CloseCode::UNAUTHORIZED, "revoked");
    let (closed, session) = (pair.now, pair.session());
    (1..200).find(|&second| {
        let now = closed + second * SECOND;
        let written: Vec<_> = std::iter::from_fn(|| session.poll_transmit(now, first)).collect();
        let alive = Control::Ack { acknowledged: acknowledged(second.into()), window: None };
        session.handle_frame(now, first, Frame::Control(alive)).unwrap();
        while session.handle_timeout(now).is_some() {}
        let more = std::iter::from_fn(|| session.poll_transmit(now, first));
        written.into_iter().chain(more).filter(|transmit| is_end(transmit, 4501)).count() == 1
    })
}

#[test]
fn a_client_that_acknowledges_nothing_is_ended_within_ten_seconds() {
    let mut pair = Pair::default();
    assert_eq!(second_of_end(&mut pair, 1, |_| 0), Some(5));
    let closed = pair.now;
    assert_eq!(pair.session().end().map(|end| end.cause), Some(EndCause::Closed));
    while pair.session().handle_timeout(closed + 10 * SECOND).is_some() {}
    assert_eq!(pair.over(), Some(Closed::Ended { code: 4501, by_us: true }));
    assert_eq!(pair.session().take_undelivered(), [Message::text("x")]);
    assert_eq!(pair.session().take_undelivered(), []);
}

#[test]
fn a_client_that_keeps_acknowledging_has_the_resume_window_for_all_messages_and_no_longer() {
    assert_eq!(second_of_end(&mut Pair::default(), 10, |second| (second / 4).min(10)), Some(40));
    assert_eq!(second_of_end(&mut Pair::default(), 100, |second| (second / 4).min(100)), Some(120));
}

#[test]
fn nothing_that_comes_after_its_close_is_delivered() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.server.takes = false;
    pair.client_sends("waits for the application");
    pair.run();
    pair.server_sends("x");
    pair.lose_written(first);
    pair.server_closes(CloseCode::UNAUTHORIZED, "kicked");
    assert!(!pair.session().delivers());
    pair.client_sends("late");
    pair.server.takes = true;
    pair.run();
    // It comes back, and repeats everything.
    pair.cut(first);
    pair.connect();
    pair.wait(SECOND);
    assert_eq!((pair.server_got(), pair.server.errors.len()), (&[][..], 0));
    let (code, fate) = pair.ended().unwrap();
    assert_eq!((code, fate.delivered, fate.unknown, fate.last), (4501, 0, 0, 2));
    let end = pair.session().end().unwrap();
    assert_eq!(
        (end.cause, end.code, &*end.reason),
        (EndCause::Closed, Some(CloseCode::UNAUTHORIZED), "kicked")
    );
}

#[test]
fn an_end_of_the_client_that_meets_our_close_leaves_our_cause() {
    let mut pair = Pair::attached();
    pair.server.takes = false;
    pair.client_sends("waits for the application");
    pair.run();
    pair.server_sends("x");
    pair.server_closes(CloseCode::UNAUTHORIZED, "kicked");
    let (now, connection) = (pair.now, pair.client.current().unwrap());
    let end = Control::End { code: 1000, reason: "bye".into(), acknowledged: 0, delivered: 0 };
    pair.session().handle_frame(now, connection, Frame::Control(end)).unwrap();
    assert_eq!(pair.over(), Some(Closed::Ended { code: 1000, by_us: false }));
    assert_eq!(pair.session().end().unwrap().cause, EndCause::Closed);
    assert_eq!(pair.session().peer_close(), None);
}

#[test]
fn an_abort_ends_at_once_and_what_was_not_acknowledged_comes_back() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.server_sends("taken");
    pair.run();
    pair.wait(SECOND);
    pair.server_sends("written");
    pair.lose_written(first);
    let now = pair.now;
    let session = pair.session();
    session.send(Message::text("never written")).unwrap();
    session.abort(now, CloseCode::UNAUTHORIZED, "kicked");
    let written: Vec<_> = std::iter::from_fn(|| session.poll_transmit(now, first)).collect();
    assert!(matches!(&written[..], [end] if is_end(end, 4501)), "{written:?}");
    assert_eq!(session.take_undelivered(), ["written", "never written"].map(Message::text));
    assert_eq!(session.end().map(|end| end.cause), Some(EndCause::Closed));
    while session.handle_timeout(now + SECOND).is_some() {}
    assert!(session.wants_abort() && session.closed().is_some());
}

#[test]
fn an_abort_of_a_parked_session_is_reported_to_the_client_that_comes_back() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.cut(first);
    pair.server_sends("x");
    let now = pair.now;
    pair.session().abort(now, CloseCode::UNAUTHORIZED, "kicked");
    assert_eq!(pair.over(), Some(Closed::Ended { code: 4501, by_us: true }));
    pair.connect();
    assert_eq!(pair.ended().map(|(code, _)| code), Some(4501));
}

#[test]
fn an_end_reports_which_side_ended_the_session() {
    let cause = |end: fn(&mut Pair)| {
        let mut pair = Pair::attached();
        assert_eq!(pair.session().end(), None);
        end(&mut pair);
        assert!(!pair.session().delivers());
        pair.session().end().map(|end| (end.cause, end.code.map(u16::from), end.reason))
    };
    let by_client = cause(|pair| {
        pair.client.close(CloseCode::NORMAL, "bye");
        pair.run();
    });
    assert_eq!(by_client, Some((EndCause::Client, Some(1000), "bye".into())));
    let expired = cause(|pair| {
        let connection = pair.client.current().unwrap();
        pair.cut(connection);
        let at = pair.now + 120 * SECOND;
        pair.session().handle_timeout(at);
    });
    assert_eq!(expired, Some((EndCause::Expired, None, String::new())));
    assert_eq!(cause(|pair| pair.session().evict()), Some((EndCause::Evicted, None, String::new())));
    let drained = cause(|pair| {
        pair.session().retire();
        let connection = pair.client.current().unwrap();
        pair.cut(connection);
    });
    assert_eq!(drained, Some((EndCause::Drained, None, String::new())));
    let replaced = cause(|pair| {
        let now = pair.now;
        pair.session().renew(now, 0);
    });
    assert_eq!(replaced, Some((EndCause::Replaced, None, String::new())));
    let broken = cause(|pair| {
        let connection = pair.client.current().unwrap();
        let ping = Control::Ping(Beat { nonce: 1, sent: 2, acknowledged: 0 });
        pair.at_server(connection, Kind::Binary, ping.encode());
    });
    assert_eq!(broken, Some((EndCause::ProtocolError, Some(4400), "positions differ".into())));
}

fn is_end(transmit: &Transmit, expected: u64) -> bool {
    let Transmit::Control(bytes) = transmit else { return false };
    let frame = Frame::decode(Message::Binary(bytes.clone()));
    matches!(frame, Ok(Frame::Control(Control::End { code, .. })) if code == expected)
}

#[test]
fn an_end_without_an_answer_leaves_the_rest_unknown() {
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
fn a_servers_end_without_an_answer_is_over_after_ten_seconds() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.server_closes(CloseCode::SESSION_ENDED, "over");
    pair.lose_written(first);
    pair.wait(9 * SECOND);
    assert_eq!(pair.over(), None);
    let due = pair.now + SECOND;
    assert_eq!(pair.session().poll_timeout(), Some(due));
    assert_eq!(pair.session().handle_timeout(due), None);
    assert_eq!(pair.over(), Some(Closed::Ended { code: 4500, by_us: true }));
    assert!(pair.session().wants_abort());
    assert_eq!(pair.session().poll_transmit(due, first), Some(Transmit::Abort));
    assert_eq!(pair.session().poll_transmit(due, first), None);
}

#[test]
fn what_a_plain_peer_does_not_read_within_ten_seconds_of_the_close_is_dropped() {
    let now = start();
    let mut plain = PlainSession::new(now, Arc::new(server_config()), 1);
    plain.send(Message::text("a")).unwrap();
    plain.close(now, CloseCode::NORMAL, "done");
    assert_eq!(plain.poll_timeout(), Some(now + 10 * SECOND));
    // The Close is on its way, but the socket accepts none of it.
    assert_eq!(plain.poll_transmit(), Some(Transmit::Message(Message::text("a"))));
    let close = Transmit::Close { code: CloseCode::NORMAL, reason: "done".into() };
    assert_eq!((plain.poll_transmit(), plain.poll_transmit()), (Some(close), None));
    assert_eq!(plain.handle_timeout(now + 9 * SECOND), None);
    assert!(!plain.is_closed() && !plain.wants_abort());
    assert_eq!(plain.handle_timeout(now + 10 * SECOND), None);
    assert!(plain.wants_abort());
    assert_eq!(plain.poll_transmit(), Some(Transmit::Abort));
    assert!(plain.is_closed());
}

#[test]
fn a_plain_session_reports_which_end_ended_it_and_returns_unwritten_messages() {
    let now = start();
    let plain = || {
        let mut plain = PlainSession::new(now, Arc::new(server_config()), 1);
        plain.handle_message(now, Message::text("came before"));
        plain.send(Message::text("x")).unwrap();
        plain
    };
    let code = CloseCode::UNAUTHORIZED;
    let mut kicked = plain();
    kicked.close(now, code, "kicked");
    kicked.handle_message(now, Message::text("late"));
    assert_eq!((kicked.deliver(), kicked.delivers()), (None, false));
    assert_eq!(kicked.end(), Some(End::new(EndCause::Closed, Some(code), "kicked")));
    assert_eq!(kicked.take_undelivered(), [], "it still leaves");
    kicked.handle_lost();
    assert_eq!(kicked.take_undelivered(), [Message::text("x")]);
    assert_eq!(kicked.end().unwrap().cause, EndCause::Closed);

    let mut aborted = plain();
    aborted.abort(now, code, "kicked");
    let close = Transmit::Close { code, reason: "kicked".into() };
    assert_eq!((aborted.poll_transmit(), aborted.poll_transmit()), (Some(close), None));
    aborted.handle_timeout(now + SECOND);
    assert!(aborted.wants_abort(), "a peer that takes nothing has a second");
    assert_eq!(aborted.end().unwrap().cause, EndCause::Closed);

    let mut lost = plain();
    lost.handle_lost();
    assert_eq!((lost.delivers(), lost.deliver()), (true, Some(Message::text("came before"))));
    assert_eq!(lost.end(), Some(End::new(EndCause::Lost, None, "")));
    let mut left = plain();
    left.handle_peer_close(PeerClose { code: Some(CloseCode::NORMAL), reason: "bye".into() });
    left.handle_lost();
    assert_eq!(left.end(), Some(End::new(EndCause::Client, Some(CloseCode::NORMAL), "bye")));
    let mut broken = plain();
    broken.handle_violation(CloseCode::TOO_BIG, "too big");
    assert_eq!(broken.end(), Some(End::new(EndCause::ProtocolError, Some(CloseCode::TOO_BIG), "too big")));
}

// ---- what a peer does wrong ---------------------------------------------------------------------

#[test]
fn an_acknowledgement_above_what_was_written_closes_the_connection_and_keeps_the_session() {
    let beat = Beat { nonce: 1, sent: 0, acknowledged: 9 };
    for control in [Control::Ack { acknowledged: 9, window: None }, Control::Ping(beat), Control::Pong(beat)]
    {
        let pair = survives(&control.encode());
        assert_eq!(pair.server.errors, [SessionError::AckBeyondWritten { acknowledged: 9, written: 0 }]);
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
    let refuse = Control::Refuse { code: 4413, temporary: true, delay: Default::default(), account: None };
    let result = Control::AuthResult { accepted: true, expires_in: SECOND };
    for control in [refuse, result] {
        let name = control.name();
        assert_eq!(survives(&control.encode()).server.errors, [SessionError::Unexpected(name)]);
    }
}

/// An attached client whose connection brings this; then it comes back and has lost nothing.
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
    // An intermediary lost a message.
    let ping = Control::Ping(Beat { nonce: 1, sent: 2, acknowledged: 0 });
    pair.at_server(first, Kind::Binary, ping.encode());
    assert_eq!(pair.server.errors, [SessionError::PositionMismatch { sent: 2, read: 1 }]);
    assert_eq!(pair.over(), Some(Closed::Ended { code: 4400, by_us: true }));
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
    let ping = Frame::Control(Control::Ping(Beat { nonce: 1, sent: 1, acknowledged: 0 }));
    let outcome = pair.client.handle_frame(first, ping);
    assert_eq!(outcome, Err(SessionError::PositionMismatch { sent: 1, read: 0 }));
    pair.run();
    let (code, fate) = pair.ended().unwrap();
    assert_eq!((code, fate.delivered, fate.unknown, fate.last), (4400, 0, 1, 1));
    assert_eq!(pair.over(), Some(Closed::Ended { code: 4400, by_us: false }), "END was written");
}

#[test]
fn what_a_server_does_wrong_closes_the_connection_and_keeps_the_session() {
    let mut pair = Pair::default();
    let first = pair.connect();
    for control in [
        Control::Ack { acknowledged: 9, window: None },
        Control::Auth { credentials: Credentials(Bytes::new()) },
    ] {
        let outcome = pair.client.handle_frame(first, Frame::Control(control));
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
    assert!(pair.client.handle_frame(first, Frame::Message(Message::text("x"))).is_err());
    let ack = Frame::Control(Control::Ack { acknowledged: 0, window: None });
    assert_eq!(pair.client.handle_frame(first, ack), Err(SessionError::Unexpected("ACK")));
}

#[test]
fn a_connection_that_ignores_go_away_is_closed_at_the_announced_time() {
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
    assert!(!is_closed(5 * SECOND, 5 * SECOND, true), "its next connection got no GOAWAY");
}
