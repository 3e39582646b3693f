//! The backend behind a server is lost: the session is renewed with an exact account, or continues and its client is
//! notified.

use mainstay_proto::session::message::{Control, LossCause};
use mainstay_proto::session::{Closed, Frame};
use mainstay_proto::ws::{CloseCode, Kind};

use super::pair::{Pair, RESUME_WINDOW, SECOND};

/// A server whose application acknowledges by itself. `a` to `d` were delivered to it; `a` is acknowledged.
fn delivered_four() -> Pair {
    let mut pair = Pair::attached();
    pair.session().manual_ack();
    pair.client_sends_numbers(1..=4);
    pair.run();
    let now = pair.now;
    pair.session().acknowledge_oldest(now, 1);
    pair
}

#[test]
fn a_renewed_session_reports_the_exact_fate_of_each_message_and_a_new_one_begins() {
    let mut pair = delivered_four();
    let (now, first) = (pair.now, pair.client.current().unwrap());
    pair.session().renew(now, 2);
    pair.run();
    assert_eq!(pair.over(), Some(Closed::Replaced));
    assert_eq!(pair.client.current(), None, "its connection is closed");
    assert_ne!(pair.connect(), first);
    pair.run();
    let gaps = pair.gaps();
    assert_eq!(gaps.len(), 1);
    let fate = gaps[0];
    assert_eq!((fate.delivered, fate.unknown, fate.last), (1, 3, 4));
    assert_eq!((fate.resent, fate.cause), (true, LossCause::Replaced));
    assert_eq!(pair.attaches(), [(1, false), (1, false)]);
    assert_eq!(pair.server_got(), ["4"], "sent again, as what was never passed on");
}

#[test]
fn what_was_sent_before_the_loss_is_delivered_before_a_session_is_renewed() {
    let mut pair = Pair::attached();
    let now = pair.now;
    pair.server_sends("x");
    pair.server_sends("y");
    pair.session().renew(now, 0);
    assert!(pair.session().send(mainstay_proto::session::Message::text("late")).is_err());
    pair.run();
    assert_eq!(pair.client_got, ["x", "y"]);
    pair.wait(SECOND);
    assert_eq!(pair.over(), Some(Closed::Replaced));
    pair.connect();
    pair.run();
    assert_eq!(pair.gaps()[0].lost, None, "nothing that the server sent is missing");
}

#[test]
fn a_client_that_is_away_gets_what_was_kept_for_it_before_its_session_is_renewed() {
    let mut pair = Pair::attached();
    let first = pair.client.current().unwrap();
    pair.cut(first);
    pair.server_sends("x");
    let now = pair.now;
    pair.session().renew(now, 0);
    pair.run();
    assert_eq!(pair.over(), None);
    pair.connect();
    pair.wait(SECOND);
    assert_eq!((pair.client_got.clone(), pair.over()), (vec!["x".to_owned()], Some(Closed::Replaced)));
}

#[test]
fn a_renewed_session_does_not_wait_for_its_client() {
    // Nothing is kept for its client.
    let mut pair = Pair::attached();
    let (now, first) = (pair.now, pair.client.current().unwrap());
    pair.cut(first);
    pair.session().renew(now, 0);
    assert_eq!(pair.over(), Some(Closed::Replaced));
    // Its client receives nothing.
    let mut pair = Pair::attached();
    pair.server_sends("x");
    let now = pair.now;
    pair.session().renew(now, 0);
    pair.now += 10 * SECOND;
    let now = pair.now;
    while pair.session().handle_timeout(now).is_some() {}
    assert_eq!(pair.over(), Some(Closed::Replaced));
    // Its client does not come back.
    let mut pair = Pair::attached();
    let first = pair.client.current().unwrap();
    pair.cut(first);
    pair.server_sends("x");
    let now = pair.now;
    pair.session().renew(now, 0);
    pair.now += RESUME_WINDOW;
    let now = pair.now;
    while pair.session().handle_timeout(now).is_some() {}
    assert_eq!(pair.over(), Some(Closed::Replaced));
}

#[test]
fn a_replacement_is_reported_once_in_its_place_over_any_number_of_connections() {
    let mut pair = Pair::attached();
    pair.server_sends("x");
    pair.session().note_replaced();
    pair.server_sends("y");
    pair.run();
    assert_eq!(pair.client_got, ["x", "replaced 1", "y"]);
    for round in 2..4 {
        let connection = pair.client.current().unwrap();
        pair.cut(connection);
        pair.session().note_replaced();
        pair.connect();
        pair.run();
        assert_eq!(pair.client_got.last().unwrap(), &format!("replaced {round}"));
    }
    // Lost on its way.
    let connection = pair.client.current().unwrap();
    pair.session().note_replaced();
    pair.lose_written(connection);
    pair.cut(connection);
    pair.connect();
    pair.server_sends("z");
    pair.run();
    assert_eq!(pair.client_got, ["x", "replaced 1", "y", "replaced 2", "replaced 3", "replaced 4", "z"]);
}

#[test]
fn a_replacement_out_of_its_place_ends_the_session_and_a_clients_is_ignored() {
    let mut pair = Pair::attached();
    let connection = pair.client.current().unwrap();
    let mark = Control::Replaced { after: 3, count: 1 };
    pair.at_server(connection, Kind::Binary, mark.encode());
    assert_eq!(pair.over(), None);
    assert!(pair.client.handle_frame(connection, Frame::Control(mark)).is_err());
    pair.run();
    assert_eq!(pair.ended().map(|(code, _)| code), Some(u64::from(CloseCode::PROTOCOL_VIOLATION)));
}

#[test]
fn marks_without_messages_between_them_fill_no_queue() {
    let mut pair = Pair::attached();
    let connection = pair.client.current().unwrap();
    for count in 1..1000 {
        let mark = Frame::Control(Control::Replaced { after: 0, count });
        pair.client.handle_frame(connection, mark).unwrap();
    }
    pair.run();
    assert_eq!(pair.client_got, ["replaced 999"]);
}

#[test]
fn a_client_that_misses_messages_around_a_replacement_receives_the_gap_and_the_mark() {
    let mut pair = Pair::attached();
    let first = pair.client.current().unwrap();
    pair.session().drop_oldest_when_full();
    pair.cut(first);
    pair.server_sends("0");
    pair.session().note_replaced();
    for number in 1..=1025 {
        pair.server_sends(&number.to_string());
    }
    pair.connect();
    assert_eq!(pair.client_got[..3], ["gap 1 2", "replaced 1", "2"]);
}
