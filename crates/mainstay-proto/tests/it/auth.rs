//! Credentials: in HELLO, and anew on a live session.

use std::time::Duration;

use bytes::Bytes;
use mainstay_proto::session::{
    ClientConfig, ClientEvent, Control, Credentials, Frame, RefuseReason, RegistryConfig, SessionError,
    Transmit,
};
use mainstay_proto::ws::Kind;

use super::pair::{Pair, SECOND, server_config};

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
    assert!(pair.session().handle_verdict(first, Some(b"alice")));
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
        session.handle_verdict(connection, Some(b"alice"));
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
