//! Sessions outlive connections: what a lost connection, HELLO or WELCOME, a stolen token or an
//! expired session come to.

use std::time::Duration;

use bytes::Bytes;
use mainstay_proto::session::message::{
    Beat, ClientKey, Hello, Instance, LossCause, ResumeToken, SessionId, Welcome,
};
use mainstay_proto::session::{
    Answer, ClientConfig, Control, Fate, Frame, LostMessages, Message, RefuseReason, RegistryConfig,
    Transmit, Window,
};

use super::pair::{Pair, RESUME_WINDOW, SECOND, server_config};

#[test]
fn resume_replays_exactly_what_was_not_acknowledged() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.client_sends("a");
    pair.server_sends("x");
    pair.run();
    pair.client_sends("b");
    pair.server_sends("y");
    pair.lose_written(first);
    pair.cut(first);
    pair.client_sends("c");
    pair.server_sends("z");
    let second = pair.connect();
    assert_eq!(pair.server_got(), ["a", "b", "c"]);
    assert_eq!(pair.client_got, ["x", "y", "z"]);
    assert_eq!(pair.texts(second), ["b", "c", "y", "z"]);
    assert_eq!(pair.attaches(), [(1, false), (2, true)]);
    assert_eq!(pair.gaps(), []);
}

#[test]
fn only_what_was_written_before_counts_as_replayed() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.server_sends("written and lost");
    pair.lose_written(first);
    pair.cut(first);
    pair.server_sends("not written yet");
    let second = pair.open();
    while pair.write() {}
    pair.deliver_up(second);
    assert_eq!(pair.session().to_replay(), 1);
    pair.run();
    assert_eq!(pair.session().to_replay(), 0);
}

#[test]
fn every_cut_between_two_messages_delivers_all_of_them_once() {
    for arrived in 0..=6 {
        let mut pair = Pair::default();
        let first = pair.connect();
        pair.client_sends_numbers(1..=6);
        pair.write();
        (0..arrived).for_each(|_| assert!(pair.deliver_up(first)));
        pair.cut(first);
        let second = pair.connect();
        assert_eq!(pair.server_got(), ["1", "2", "3", "4", "5", "6"], "{arrived} arrived");
        assert!(pair.texts(second).len() <= 6);
    }
}

#[test]
fn a_lost_hello_makes_no_second_session() {
    let mut pair = Pair::default();
    let first = pair.open();
    pair.lose_written(first);
    pair.cut(first);
    pair.now += SECOND;
    pair.connect();
    assert_eq!(pair.server.sessions.len(), 1);
    assert_eq!(pair.attaches(), [(1, false)]);
}

#[test]
fn a_lost_welcome_makes_no_second_session() {
    let mut pair = Pair::default();
    let first = pair.open();
    pair.deliver_up(first);
    pair.lose_written(first);
    pair.cut_at_client(first);
    pair.now += SECOND;
    pair.connect();
    assert_eq!(pair.server.sessions.len(), 1);
    assert_eq!(pair.attaches(), [(2, false)]);
    pair.server_sends("x");
    pair.run();
    assert_eq!(pair.client_got, ["x"]);
}

#[test]
fn data_before_welcome_is_delivered_once() {
    for arrived in 0..=3 {
        let mut pair = Pair::default();
        pair.client_sends("a");
        pair.client_sends("b");
        let first = pair.open();
        (0..arrived).for_each(|_| assert!(pair.deliver_up(first)));
        pair.lose_written(first);
        pair.cut(first);
        pair.now += SECOND;
        let second = pair.connect();
        assert_eq!(pair.server_got(), ["a", "b"], "{arrived} arrived");
        assert_eq!(pair.texts(second), ["a", "b"], "WELCOME changes nothing in a new stream");
    }
}

#[test]
fn the_fenced_connections_unread_bytes_are_discarded() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.client_sends("a");
    pair.lose_written(first);
    pair.cut_at_client(first);
    let second = pair.open();
    assert!(pair.deliver_up(second));
    let now = pair.now;
    let late = Frame::Message(Message::text("a"));
    pair.session().handle_frame(now, first, late).unwrap();
    assert_eq!(pair.session().deliver(now), None);
    assert_eq!(pair.session().poll_transmit(now, first), None, "its writes stop, too");
    pair.run();
    assert_eq!(pair.server_got(), ["a"]);
}

#[test]
fn a_replacement_is_made_before_the_old_connection_breaks() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.server_sends("x");
    pair.write();
    let second = pair.open();
    pair.client_sends("a");
    pair.run();
    assert_eq!(pair.client_got, ["x"]);
    assert_eq!(pair.server_got(), ["a"]);
    assert_eq!(pair.texts(first), ["x"], "nothing of ours is written there after HELLO");
    assert!(pair.texts(second).contains(&"a"));
    assert_eq!(pair.attaches(), [(1, false), (2, true)]);
    assert_eq!(pair.ended(), None, "superseded by oneself is merely a closed connection");
}

#[test]
fn a_replacement_that_fails_gives_the_old_connection_back() {
    let mut pair = Pair::default();
    let first = pair.connect();
    let second = pair.open();
    pair.client_sends("a");
    pair.lose_written(second);
    pair.cut(second);
    pair.run();
    assert_eq!(pair.texts(first), ["a"]);
    assert_eq!(pair.server_got(), ["a"]);
}

// ---- tokens -------------------------------------------------------------------------------------

#[test]
fn a_token_works_until_its_epoch_is_established_and_not_after() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.cut(first);
    let second = pair.open();
    let presented = pair.hello_under_way(second).resume.unwrap().token;
    pair.deliver_up(second);
    pair.lose_written(second);
    pair.cut(second);

    let third = pair.open();
    assert_eq!(pair.hello_under_way(third).resume.unwrap().token, presented, "no WELCOME, no other token");
    pair.run();
    assert_eq!(pair.attaches(), [(1, false), (3, true)]);

    // The ACK of the third connection established the epoch.
    let late = pair.wire();
    let mut hello = stranger(7);
    hello.resume = Some(resume_with(presented));
    assert_fresh(&mut pair, late, &hello, "spent");
    assert_eq!(pair.server.sessions.get(0).epoch(), 3);
}

#[test]
fn wrong_foreign_and_unknown_tokens_get_the_same_answer_and_leave_the_session_alone() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.client_sends("a");
    pair.run();
    let probe = pair.open();
    let token = pair.hello_under_way(probe).resume.unwrap().token;
    pair.lose_written(probe);
    pair.cut(probe);

    let mut hello = stranger(1);
    hello.resume = Some(resume_with(ResumeToken(Bytes::from_static(&[0; 24]))));
    let unknown = pair.wire();
    assert_fresh(&mut pair, unknown, &hello, "unknown");

    let mut hello = stranger(2);
    hello.resume = Some(resume_with(ResumeToken(token.0.slice(..23))));
    let wrong = pair.wire();
    assert_fresh(&mut pair, wrong, &hello, "wrong");

    let mut hello = stranger(3);
    hello.resume = Some(resume_with(token.clone()));
    hello.resume.as_mut().unwrap().sent = 1;
    let foreign = pair.wire();
    pair.server.principal = Bytes::from_static(b"carol");
    assert_fresh(&mut pair, foreign, &hello, "foreign");
    pair.server.principal = Bytes::from_static(b"alice");

    // Another copy of this client: it sent less than arrived.
    let mut hello = stranger(4);
    hello.resume = Some(resume_with(token));
    let copy = pair.wire();
    assert_fresh(&mut pair, copy, &hello, "another copy");

    let session = pair.server.sessions.get(0);
    assert_eq!((session.epoch(), session.connection()), (1, Some(first)));
    pair.client_sends("b");
    pair.run();
    assert_eq!(pair.server.got[&0], ["a", "b"]);
}

/// The answer to a client without a session here: a new one, and no information about any other.
fn assert_fresh(pair: &mut Pair, on: mainstay_proto::session::ConnectionId, hello: &Hello, what: &str) {
    let answer = pair.hello(on, hello);
    assert!(
        matches!(answer, Answer::Attached { created: true, lost: true, fenced: None, .. }),
        "{what}: {answer:?}"
    );
    let now = pair.now;
    let Some(Transmit::Control(bytes)) = pair.session().poll_transmit(now, on) else { panic!("{what}") };
    let Ok(Frame::Control(Control::Welcome(welcome))) = Frame::decode(Message::Binary(bytes)) else {
        panic!("{what}")
    };
    let Welcome { epoch, resumed, acknowledged, first, account, .. } = *welcome;
    assert_eq!((epoch, resumed, acknowledged, first, account), (1, false, 0, 1, None), "{what}");
}

/// A HELLO of another instance.
pub(crate) fn stranger(number: u8) -> Hello {
    Hello {
        window: Window::CLIENT,
        key: ClientKey([number; 16]),
        key_age: Duration::ZERO,
        instance: Instance([number; 8]),
        attempt: 1,
        resume: None,
        credentials: None,
        resume_window: None,
        max_message: None,
    }
}

fn resume_with(token: ResumeToken) -> mainstay_proto::session::message::Resume {
    mainstay_proto::session::message::Resume { token, acknowledged: 0, sent: 0, first_held: 1 }
}

#[test]
fn superseded_by_another_instance_is_the_end_and_nothing_is_sent_again() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.client_sends("a");
    pair.run();
    pair.client_sends("b");
    pair.lose_written(first);
    let probe = pair.open();
    let mut hello = pair.hello_under_way(probe);
    pair.lose_written(probe);
    pair.cut(probe);
    hello.instance = Instance([9; 8]);
    let thief = pair.wire();
    let answer = pair.hello(thief, &hello);
    assert!(matches!(answer, Answer::Attached { created: false, lost: false, fenced: Some(_), .. }));
    pair.run();
    let (code, fate) = pair.ended().unwrap();
    assert_eq!(code, 4409);
    assert_eq!((fate.delivered, fate.unknown, fate.last, fate.resent), (1, 2, 2, false));
    assert!(pair.client.send(Message::text("c")).is_err());
}

#[test]
fn a_token_attach_that_is_not_confirmed_does_not_make_the_key_a_secret_again() {
    let mut pair = Pair::default();
    let first = pair.open();
    let mut by_key = pair.hello_under_way(first);
    pair.run();
    pair.cut(first);
    let second = pair.open();
    pair.deliver_up(second);
    pair.lose_written(second);
    by_key.attempt += 9;
    let third = pair.wire();
    let answer = pair.hello(third, &by_key);
    assert!(matches!(answer, Answer::Refused { why: RefuseReason::KeyUsed, .. }), "{answer:?}");
}

// ---- losing a session ---------------------------------------------------------------------------

#[test]
fn an_expired_session_gives_exactly_one_gap_with_truthful_classes_and_resends() {
    let mut pair = Pair::default();
    let first = pair.connect();
    for text in ["a", "b", "c"] {
        pair.client_sends(text);
    }
    pair.run();
    pair.client_sends("d");
    pair.lose_written(first);
    pair.cut(first);
    pair.server_sends("x");
    pair.wait(RESUME_WINDOW);

    // WELCOME with the account is lost; the next one brings it again.
    let second = pair.open();
    pair.deliver_up(second);
    pair.lose_written(second);
    pair.cut(second);
    assert_eq!(pair.gaps(), []);
    let third = pair.connect();
    let mut expected = Fate::none_delivered(4);
    (expected.delivered, expected.unknown, expected.resent) = (3, 3, true);
    (expected.lost, expected.cause) = (Some(LostMessages { first: 1, count: 1 }), LossCause::Expired);
    assert_eq!(pair.gaps(), [expected]);
    assert_eq!(pair.server.got[&0], ["a", "b", "c"]);
    assert_eq!(pair.server.got[&1], ["d"]);

    pair.cut(third);
    pair.connect();
    assert_eq!(pair.gaps().len(), 1);
    assert_eq!(pair.server.sessions.len(), 2, "one session for the HELLO whose WELCOME was lost");
}

#[test]
fn messages_that_were_delivered_and_not_acknowledged_are_unknown() {
    let mut config = server_config();
    config.flow.manual_ack = true;
    let mut pair = Pair::new(ClientConfig::default(), config, RegistryConfig::default());
    let first = pair.connect();
    for text in ["a", "b", "c"] {
        pair.client_sends(text);
    }
    pair.run();
    let now = pair.now;
    pair.session().acknowledge(now, 1);
    pair.client_sends("d");
    pair.lose_written(first);
    pair.cut(first);
    pair.wait(RESUME_WINDOW);
    pair.connect();
    let fate = pair.gaps()[0];
    assert_eq!((fate.delivered, fate.unknown, fate.last, fate.resent), (1, 3, 4, true));
    assert_eq!(pair.server.got[&1], ["d"]);
}

#[test]
fn a_client_that_does_not_want_it_resends_nothing() {
    let config = ClientConfig { resend_undelivered: false, ..ClientConfig::default() };
    let mut pair = Pair::new(config, server_config(), RegistryConfig::default());
    let first = pair.connect();
    pair.client_sends("a");
    pair.lose_written(first);
    pair.cut(first);
    pair.wait(RESUME_WINDOW);
    pair.connect();
    let fate = pair.gaps()[0];
    assert_eq!((fate.delivered, fate.unknown, fate.last, fate.resent), (0, 0, 1, false));
    assert_eq!(pair.server_got(), [""; 0]);
}

#[test]
fn a_session_is_kept_for_its_whole_resume_window() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.cut(first);
    pair.wait(RESUME_WINDOW - SECOND / 1000);
    assert_eq!(pair.over(), None);
    pair.connect();
    assert_eq!(pair.attaches(), [(1, false), (2, true)]);
}

#[test]
fn five_barren_connections_in_a_row_start_over() {
    let mut pair = Pair::default();
    let mut connection = pair.connect();
    for _ in 1..5 {
        pair.cut(connection);
        assert_eq!(pair.gaps(), []);
        connection = pair.connect();
    }
    pair.cut(connection);
    assert_eq!(pair.gaps().len(), 1);
    pair.connect();
    assert_eq!(pair.attaches().last(), Some(&(1, false)));
}

#[test]
fn a_connection_with_progress_is_not_barren_and_ends_the_count() {
    let mut pair = Pair::default();
    let mut connection = pair.connect();
    for n in 0..12 {
        if n % 4 == 3 {
            pair.server_sends("x");
            pair.run();
        }
        pair.cut(connection);
        connection = pair.connect();
    }
    assert_eq!(pair.gaps(), []);
    assert_eq!(pair.client_got.len(), 3);
}

#[test]
fn an_idle_session_outlives_any_number_of_connections_that_brought_a_heartbeat() {
    let mut pair = Pair::default();
    for _ in 0..20 {
        let connection = pair.connect();
        let ping = Control::Ping(Beat { nonce: 1, sent: 0, acknowledged: 0 });
        pair.client.handle_frame(connection, Frame::Control(ping)).unwrap();
        pair.cut(connection);
    }
    assert_eq!(pair.gaps(), []);
}

#[test]
fn a_heartbeat_does_not_excuse_a_message_that_may_be_what_ends_connections() {
    let mut pair = Pair::default();
    pair.client_sends("poison");
    for _ in 0..5 {
        assert_eq!(pair.gaps(), []);
        let connection = pair.open();
        pair.deliver_up(connection);
        pair.write();
        pair.deliver_down(connection);
        pair.write();
        pair.lose_written(connection);
        let ping = Control::Ping(Beat { nonce: 1, sent: 0, acknowledged: 0 });
        pair.client.handle_frame(connection, Frame::Control(ping)).unwrap();
        pair.cut(connection);
    }
    assert_eq!(pair.gaps().len(), 1);
}

#[test]
fn a_welcome_with_impossible_counts_loses_the_session_as_unknown() {
    for (acknowledged, first) in [(2, 1), (0, 1), (1, 9)] {
        let mut pair = Pair::default();
        let old = pair.connect();
        pair.client_sends("a");
        pair.run();
        pair.wait(SECOND);
        assert_eq!(pair.client.acknowledged(), 1);
        pair.cut(old);
        let new = pair.open();
        let welcome = Welcome {
            id: SessionId([1; 8]),
            token: ResumeToken(Bytes::from_static(b"token")),
            epoch: 2,
            resumed: true,
            acknowledged,
            first,
            resume_window: RESUME_WINDOW,
            heartbeat_interval: SECOND,
            window: Window::SERVER,
            account: None,
            resume_at: None,
            max_message: None,
        };
        let outcome = pair.client.handle_frame(new, Frame::Control(Control::Welcome(Box::new(welcome))));
        assert!(outcome.is_err(), "acknowledged {acknowledged} first {first}");
        pair.cut(new);
        assert_eq!(pair.gaps().len(), 1);
        pair.connect();
        assert_eq!(pair.attaches().last(), Some(&(1, false)));
    }
}
