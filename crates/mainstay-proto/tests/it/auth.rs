//! Credentials: in HELLO, and anew on a live session.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mainstay_proto::session::{
    ClientConfig, ClientEvent, Control, Credentials, End, EndCause, Expiry, Frame, Leave, PlainSession,
    RefuseReason, RegistryConfig, SessionError, Transmit,
};
use mainstay_proto::ws::{CloseCode, Kind};

use super::pair::{Pair, SECOND, server_config, start};

/// A client that presents these in every HELLO.
fn presenting(credentials: &'static str) -> Pair {
    let config =
        ClientConfig { credentials: Some(Credentials(Bytes::from(credentials))), ..ClientConfig::default() };
    Pair::new(config, server_config(), RegistryConfig::default())
}

fn authenticate(pair: &mut Pair, credentials: &'static str) {
    pair.client.authenticate(Bytes::from(credentials));
}

/// The verdicts that the client received on new credentials.
fn verdicts(pair: &Pair) -> Vec<bool> {
    let verdicts = pair.events.iter().filter_map(|event| match event {
        ClientEvent::Authenticated { accepted } => Some(*accepted),
        _ => None,
    });
    verdicts.collect()
}

#[test]
fn a_hello_with_wrong_credentials_is_refused_finally() {
    let mut pair = presenting("wrong");
    pair.client_sends("a");
    pair.connect();
    assert_eq!(pair.server.refusals, [RefuseReason::Unauthorized]);
    let (code, fate) = pair.ended().unwrap();
    assert_eq!((code, fate.last, fate.resent), (4501, 1, false));
    assert_eq!(pair.server.sessions.len(), 0);
}

#[test]
fn a_token_in_the_hands_of_another_principal_opens_nothing() {
    let mut pair = presenting("alice/1");
    let first = pair.connect();
    pair.client_sends("a");
    pair.run();
    // Another client has the token, and credentials of its own.
    let thief = pair.wire();
    pair.client.handle_opened(pair.now, thief);
    pair.write();
    let mut hello = pair.hello_under_way(thief);
    hello.credentials = Some(Credentials(Bytes::from("mallory/1")));
    pair.hello(thief, &hello);
    assert_eq!(pair.server.sessions.get(0).connection(), Some(first), "it keeps its connection");
    assert_eq!(
        (pair.server.sessions.get(0).epoch(), pair.server.sessions.get(1).acknowledged_inbound()),
        (1, 0)
    );
}

#[test]
fn a_token_at_another_path_opens_nothing() {
    let mut pair = presenting("alice/1");
    let first = pair.connect();
    pair.cut(first);
    pair.server.path = "/another";
    pair.connect();
    assert_eq!(pair.attaches(), [(1, false), (1, false)]);
    assert_eq!(pair.gaps().len(), 1);
    assert_eq!(pair.server.sessions.get(0).connection(), None, "the session at /chat still waits");
}

#[test]
fn credentials_are_renewed_on_a_live_session_and_presented_from_then_on() {
    let mut pair = presenting("alice/1");
    let first = pair.connect();
    authenticate(&mut pair, "alice/2");
    pair.run();
    assert_eq!(verdicts(&pair), [true]);
    pair.cut(first);
    let second = pair.open();
    assert_eq!(pair.hello_under_way(second).credentials, Some(Credentials(Bytes::from("alice/2"))));
    pair.run();
    assert_eq!(pair.attaches(), [(1, false), (2, true)]);
    assert_eq!(verdicts(&pair), [true], "reported once");
}

#[test]
fn new_credentials_that_are_refused_leave_the_session_and_the_old_ones() {
    for refused in ["wrong", "bob/1"] {
        let mut pair = presenting("alice/1");
        let first = pair.connect();
        authenticate(&mut pair, refused);
        pair.client_sends("a");
        pair.run();
        assert_eq!((verdicts(&pair), pair.over()), (vec![false], None), "{refused}");
        assert_eq!(pair.server_got(), ["a"]);
        pair.cut(first);
        pair.connect();
        assert_eq!(pair.attaches(), [(1, false), (2, true)], "{refused}");
    }
}

#[test]
fn while_detached_new_credentials_go_with_the_next_hello() {
    let mut pair = presenting("alice/1");
    let first = pair.connect();
    pair.cut(first);
    authenticate(&mut pair, "alice/2");
    pair.run();
    assert!(verdicts(&pair).is_empty(), "no verdict was given");
    let second = pair.open();
    assert_eq!(pair.hello_under_way(second).credentials, Some(Credentials(Bytes::from("alice/2"))));
    pair.run();
    assert_eq!((verdicts(&pair), pair.attaches()), (vec![true], vec![(1, false), (2, true)]));
}

#[test]
fn while_detached_new_credentials_that_are_refused_end_the_client() {
    let mut pair = presenting("alice/1");
    let first = pair.connect();
    pair.cut(first);
    authenticate(&mut pair, "wrong");
    pair.connect();
    assert_eq!(pair.ended().map(|(code, _)| code), Some(4501));
    assert!(verdicts(&pair).is_empty());
}

#[test]
fn a_verdict_that_is_lost_with_its_connection_is_requested_again_in_hello() {
    let mut pair = presenting("alice/1");
    let first = pair.connect();
    pair.server.judges = false;
    authenticate(&mut pair, "alice/2");
    pair.run();
    pair.cut(first);
    pair.connect();
    assert_eq!(verdicts(&pair), [true]);
    // The verdict on the old connection comes late, and no client receives it.
    let now = pair.now;
    assert!(pair.session().handle_verdict(now, first, Some((b"alice", None))));
    pair.run();
    assert_eq!(verdicts(&pair), [true]);
}

#[test]
fn credentials_given_while_others_are_judged_are_presented_after_them() {
    let mut pair = presenting("alice/1");
    pair.connect();
    pair.server.judges = false;
    authenticate(&mut pair, "alice/2");
    pair.run();
    authenticate(&mut pair, "wrong");
    pair.run();
    assert_eq!(pair.server.errors, [], "one AUTH at a time");
    pair.judge(0);
    pair.run();
    assert!(verdicts(&pair).is_empty(), "the first were replaced");
    pair.judge(0);
    pair.run();
    assert_eq!(verdicts(&pair), [false]);
}

#[test]
fn credentials_given_while_a_connection_is_opened_are_presented_on_it() {
    let mut pair = presenting("alice/1");
    pair.open();
    authenticate(&mut pair, "alice/2");
    pair.run();
    assert_eq!(verdicts(&pair), [true]);
    let replacement = pair.open();
    assert_eq!(pair.hello_under_way(replacement).credentials, Some(Credentials(Bytes::from("alice/2"))));
}

#[test]
fn a_replacement_that_is_lost_leaves_its_credentials_to_the_old_connection() {
    let mut pair = presenting("alice/1");
    pair.connect();
    let replacement = pair.open();
    authenticate(&mut pair, "alice/2");
    pair.lose_written(replacement);
    pair.cut(replacement);
    pair.run();
    assert_eq!(verdicts(&pair), [true]);
}

#[test]
fn a_second_auth_before_the_result_and_a_result_without_auth_are_errors() {
    let mut pair = presenting("alice/1");
    let first = pair.connect();
    pair.server.judges = false;
    let result = Frame::Control(Control::AuthResult { accepted: true, expires_in: SECOND });
    let outcome = pair.client.handle_frame(first, result);
    assert_eq!(outcome, Err(SessionError::Unexpected("AUTH_RESULT")));
    let auth = Control::Auth { credentials: Credentials(Bytes::from("alice/2")) };
    pair.at_server(first, Kind::Binary, auth.encode());
    assert_eq!(pair.server.errors, []);
    pair.at_server(first, Kind::Binary, auth.encode());
    assert_eq!(pair.server.errors, [SessionError::Unexpected("AUTH before AUTH_RESULT")]);
    assert_eq!(pair.over(), None, "the session is kept");
}

#[test]
fn results_do_not_pile_up_for_a_client_that_reads_nothing() {
    let mut pair = presenting("alice/1");
    let first = pair.connect();
    let auth = || Frame::Control(Control::Auth { credentials: Credentials(Bytes::from("alice/2")) });
    let (now, session) = (pair.now, pair.session());
    for _ in 0..2 {
        session.handle_frame(now, first, auth()).unwrap();
        let (connection, _) = session.poll_auth().unwrap();
        session.handle_verdict(now, connection, Some((b"alice", None)));
        // Judged, and nothing of it is written yet.
        let early = session.handle_frame(now, first, auth());
        assert_eq!(early, Err(SessionError::Unexpected("AUTH before AUTH_RESULT")));
        assert!(session.poll_auth().is_none());
        let result = Control::AuthResult { accepted: true, expires_in: Duration::ZERO };
        let result = Transmit::Control(result.encode());
        assert_eq!(session.poll_transmit(now, first), Some(result));
        assert_eq!(session.poll_transmit(now, first), None);
    }
}

#[test]
fn other_credentials_go_with_the_next_hello_but_not_before_those_that_wait_for_their_verdict() {
    let mut pair = presenting("alice/1");
    let first = pair.connect();
    pair.client.set_credentials(Bytes::from("alice/2"));
    pair.run();
    assert!(verdicts(&pair).is_empty(), "no verdict is asked for on the live connection");
    pair.cut(first);
    let second = pair.open();
    assert_eq!(pair.hello_under_way(second).credentials, Some(Credentials(Bytes::from("alice/2"))));
    pair.run();
    pair.cut(second);
    authenticate(&mut pair, "alice/3");
    pair.client.set_credentials(Bytes::from("alice/4"));
    let third = pair.open();
    assert_eq!(pair.hello_under_way(third).credentials, Some(Credentials(Bytes::from("alice/3"))));
    pair.run();
    assert_eq!(verdicts(&pair), [true]);
}

#[test]
fn nothing_that_carries_credentials_shows_them() {
    let mut pair = presenting("alice/hunter2");
    let first = pair.open();
    let config =
        ClientConfig { credentials: Some(Credentials(Bytes::from("hunter2"))), ..ClientConfig::default() };
    let hello = pair.hello_under_way(first);
    let auth = Control::Auth { credentials: Credentials(Bytes::from("hunter2")) };
    let written = Transmit::Control(Control::Hello(Box::new(hello.clone())).encode());
    pair.run();
    authenticate(&mut pair, "alice/hunter2");
    for shown in [
        format!("{config:?}"),
        format!("{hello:?} {:?}", Control::Hello(Box::new(hello.clone()))),
        format!("{auth:?} {:?}", Frame::Control(auth.clone())),
        format!("{written:?}"),
        format!("{:?}", pair.client),
        format!("{:?}", pair.session()),
    ] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

// ---- credentials that expire ----------------------------------------------------------------------------

/// Credentials that hold for a minute, and 30 s more for the client to present others.
const A_MINUTE: Option<Expiry> =
    Some(Expiry { expires_in: Duration::from_secs(60), grace: Duration::from_secs(30) });

/// A client whose credentials hold for a minute.
fn expiring() -> Pair {
    let mut pair = presenting("alice/1");
    pair.server.expiry = A_MINUTE;
    pair.connect();
    pair
}

/// How often the server asked the client to come back, and until when it closes.
fn asked(pair: &Pair) -> Vec<Duration> {
    let asked = pair.events.iter().filter_map(|event| match event {
        ClientEvent::GoAway { close_in, delay, .. } => {
            assert_eq!((delay.min, delay.max), (Duration::ZERO, *close_in / 2));
            Some(*close_in)
        }
        _ => None,
    });
    asked.collect()
}

#[test]
fn a_client_whose_credentials_expired_is_asked_for_others_and_ended_after_the_grace() {
    let mut pair = expiring();
    assert_eq!(pair.session().poll_timeout().map(|at| at <= pair.now + 60 * SECOND), Some(true));
    pair.wait(59 * SECOND);
    assert!(asked(&pair).is_empty());
    pair.wait(SECOND);
    assert_eq!(asked(&pair), [30 * SECOND]);
    assert_eq!(pair.session().poll_leave(), Some(Leave::Expiring));
    pair.client_sends("still here");
    pair.wait(29 * SECOND);
    assert_eq!((pair.server_got(), pair.ended()), (&["still here".to_owned()][..], None));
    pair.now += SECOND;
    let now = pair.now;
    pair.session().handle_timeout(now);
    assert_eq!(pair.session().poll_leave(), Some(Leave::Unauthorized));
    pair.run();
    assert_eq!(pair.ended().map(|(code, _)| code), Some(4501));
    let end = pair.session().end();
    let expected =
        End::new(EndCause::Unauthorized, Some(CloseCode::UNAUTHORIZED), "the credentials have expired");
    assert_eq!((end, asked(&pair).len()), (Some(expected), 1));
}

#[test]
fn credentials_that_are_accepted_on_the_live_connection_count_from_their_verdict() {
    let mut pair = expiring();
    pair.wait(59 * SECOND);
    authenticate(&mut pair, "alice/2");
    pair.run();
    assert_eq!(verdicts(&pair), [true]);
    pair.wait(59 * SECOND);
    assert!(asked(&pair).is_empty(), "the first ones are forgotten");
    pair.wait(SECOND);
    assert_eq!(asked(&pair), [30 * SECOND]);
    // In the grace, too; and for good, if they do not expire.
    pair.server.expiry = None;
    authenticate(&mut pair, "alice/3");
    pair.run();
    pair.wait(600 * SECOND);
    assert_eq!((verdicts(&pair), pair.ended()), (vec![true, true], None));
}

#[test]
fn refused_credentials_and_those_of_another_principal_leave_the_expiry_as_it_is() {
    for wrong in ["wrong", "mallory/1"] {
        let mut pair = expiring();
        pair.wait(59 * SECOND);
        authenticate(&mut pair, wrong);
        pair.run();
        assert_eq!(verdicts(&pair), [false]);
        pair.wait(SECOND);
        assert_eq!(asked(&pair), [30 * SECOND], "{wrong}");
        pair.wait(30 * SECOND);
        assert_eq!(pair.ended().map(|(code, _)| code), Some(4501));
    }
}

#[test]
fn a_client_that_comes_back_with_others_continues_its_session() {
    let mut pair = expiring();
    pair.wait(60 * SECOND);
    pair.client.set_credentials(Bytes::from("alice/2"));
    let replacement = pair.connect();
    pair.client_sends("a");
    pair.wait(59 * SECOND);
    assert_eq!(pair.session().connection(), Some(replacement));
    assert_eq!((pair.server_got(), asked(&pair).len()), (&["a".to_owned()][..], 1));
    assert_eq!(pair.attaches().last(), Some(&(2, true)));
}

#[test]
fn nothing_expires_while_a_session_is_parked_and_its_next_hello_is_judged() {
    let mut pair = expiring();
    let first = pair.connect();
    pair.wait(10 * SECOND);
    pair.cut(first);
    pair.wait(100 * SECOND);
    assert_eq!(pair.over(), None, "the resume window alone counts");
    pair.client.set_credentials(Bytes::from("wrong"));
    pair.connect();
    assert_eq!((pair.ended().map(|(code, _)| code), pair.over()), (Some(4501), None));
}

#[test]
fn without_a_grace_the_end_comes_at_once_and_an_expiry_beyond_every_clock_is_none() {
    let mut pair = presenting("alice/1");
    pair.server.expiry = Some(Expiry { expires_in: SECOND, grace: Duration::ZERO });
    pair.connect();
    pair.wait(SECOND);
    assert_eq!((asked(&pair).len(), pair.ended().map(|(code, _)| code)), (0, Some(4501)));

    let mut pair = presenting("alice/1");
    pair.server.expiry = Some(Expiry { expires_in: Duration::MAX, grace: Duration::MAX });
    let first = pair.connect();
    pair.wait(3600 * SECOND);
    assert_eq!((asked(&pair).len(), pair.session().connection()), (0, Some(first)));
}

#[test]
fn auth_result_announces_for_how_long_credentials_are_accepted() {
    let mut pair = expiring();
    let connection = pair.session().connection().unwrap();
    let now = pair.now;
    let mut announced = |expiry| {
        let session = pair.session();
        let auth = Control::Auth { credentials: Credentials(Bytes::from("alice/2")) };
        session.handle_frame(now, connection, Frame::Control(auth)).unwrap();
        session.poll_auth().unwrap();
        session.handle_verdict(now, connection, Some((b"alice", expiry)));
        session.poll_transmit(now, connection)
    };
    let result =
        |expires_in| Some(Transmit::Control(Control::AuthResult { accepted: true, expires_in }.encode()));
    assert_eq!(announced(A_MINUTE), result(60 * SECOND));
    assert_eq!(announced(None), result(Duration::ZERO));
    let at_once = Expiry { expires_in: Duration::ZERO, grace: SECOND };
    assert_eq!(announced(Some(at_once)), result(Duration::from_millis(1)), "0 would mean no limit");
}

#[test]
fn a_plain_connection_is_closed_when_its_credentials_expire_without_a_grace() {
    let mut plain = PlainSession::new(start(), Arc::new(server_config()), 1);
    plain.set_expiry(start(), A_MINUTE);
    let at = |seconds: u32| start() + seconds * SECOND;
    plain.handle_bytes(at(59));
    while plain.handle_timeout(at(59)).is_some() {}
    assert!(plain.is_open());
    plain.handle_bytes(at(60));
    while plain.handle_timeout(at(60)).is_some() {}
    assert_eq!(plain.poll_leave(), Some(Leave::Unauthorized));
    let end = plain.end().unwrap();
    assert_eq!((end.cause, end.code), (EndCause::Unauthorized, Some(CloseCode::UNAUTHORIZED)));
}
