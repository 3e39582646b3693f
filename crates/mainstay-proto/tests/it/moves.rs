//! A session leaves its node, and another node continues it. The arena holds the sessions of all nodes; the pair's
//! registry is the node that the client reaches.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mainstay_proto::session::message::{LossCause, ResumeToken};
use mainstay_proto::session::state::Content;
use mainstay_proto::session::{
    Adopted, Answer, ClientConfig, Closed, ConnectionId, Control, EndCause, Frame, Message, NodeId,
    Presenter, RefuseReason, Registry, RegistryConfig, Released, Resumed, Route, Transmit,
};
use mainstay_proto::ws::CloseCode;

use super::pair::{Pair, RESUME_WINDOW, SECOND, server_config, start};
use super::resume::stranger as stranger_hello;

const ALICE: Presenter<'_> = Presenter { principal: b"alice", path: "/chat" };

fn node(number: u8) -> RegistryConfig {
    RegistryConfig { node: Some(NodeId([number; 8])), ..RegistryConfig::default() }
}

/// The registry of a node with this number, which starts when the test does.
fn registry(number: u8) -> Registry<usize> {
    Registry::new(start(), node(number), Arc::new(server_config()), [number; 32])
}

/// A client that is attached at node 1.
fn attached() -> Pair {
    let mut pair = Pair::new(ClientConfig::default(), server_config(), node(1));
    pair.connect();
    pair.session().set_movable();
    pair
}

/// The newest session leaves its node. The client sees the Close of its connection.
fn release(pair: &mut Pair) -> Released {
    let now = pair.now;
    pair.session().set_movable();
    pair.session().leave(now);
    pair.run();
    let newest = pair.server.sessions.len() - 1;
    pair.server.registry.release(now, pair.server.sessions.get(newest)).unwrap()
}

/// Another node continues the session; from now on the client reaches that node. Returns the node before.
fn adopt(pair: &mut Pair, number: u8, released: &Released) -> Registry<usize> {
    let before = std::mem::replace(&mut pair.server.registry, registry(number));
    let (registry, sessions) = (&mut pair.server.registry, &mut pair.server.sessions);
    let adopted = registry.adopt(pair.now, &released.record, released.claim + 1, sessions).unwrap();
    assert_eq!(adopted, Adopted::Session { session: sessions.len() - 1, evicted: None });
    before
}

fn moves(pair: &mut Pair, number: u8) {
    let released = release(pair);
    adopt(pair, number, &released);
}

/// The token that the client presents next.
fn token(pair: &mut Pair) -> ResumeToken {
    let probe = pair.open();
    let hello = pair.hello_under_way(probe);
    pair.cut(probe);
    hello.resume.unwrap().token
}

/// What the node answers to the resume that the client asks for now.
fn resume(pair: &mut Pair) -> Resumed<usize> {
    let probe = pair.open();
    let hello = pair.hello_under_way(probe);
    let answer = pair.server.registry.resume(pair.now, probe, ALICE, &hello, &mut pair.server.sessions);
    pair.cut(probe);
    answer
}

// ---- tokens ---------------------------------------------------------------------------------------

#[test]
fn a_token_names_the_node_that_issued_it_and_the_session() {
    let mut pair = attached();
    let (first, session) = (token(&mut pair), pair.session().id());
    assert_eq!(Route::of(&first), Some(Route { node: NodeId([1; 8]), session }));
    moves(&mut pair, 2);
    pair.connect();
    let second = token(&mut pair);
    assert_eq!(Route::of(&second), Some(Route { node: NodeId([2; 8]), session }));
    assert_ne!(first.0[16..], second.0[16..]);
}

#[test]
fn a_server_without_a_node_issues_the_secret_alone() {
    let mut pair = Pair::attached();
    let token = token(&mut pair);
    assert_eq!((token.0.len(), Route::of(&token)), (24, None));
}

#[test]
fn a_registry_knows_the_tokens_of_its_sessions_and_tombstones_for_their_principal_alone() {
    let mut pair = attached();
    let token = token(&mut pair);
    assert!(pair.server.registry.knows(ALICE, &token));
    assert!(!pair.server.registry.knows(Presenter { principal: b"bob", ..ALICE }, &token));
    let released = release(&mut pair);
    let before = adopt(&mut pair, 2, &released);
    assert!(before.knows(ALICE, &token) && pair.server.registry.knows(ALICE, &token));
    assert!(!registry(3).knows(ALICE, &token));
    assert_eq!(released.record.head[16..32], ALICE.token_name(&token), "the head begins with the names");
}

// ---- a session that moves -------------------------------------------------------------------------

#[test]
fn a_session_continues_at_another_node_exactly_once_and_in_order_both_ways() {
    let mut pair = attached();
    pair.client_sends("a");
    pair.server_sends("x");
    pair.run();
    // What the client sends next is lost on the way; what the server sends next is written and lost.
    let first = pair.client.current().unwrap();
    pair.client_sends("b");
    pair.server_sends("y");
    pair.lose_written(first);
    pair.server_sends("z");
    pair.session().save(Bytes::from_static(b"cart"));
    moves(&mut pair, 2);
    assert_eq!(pair.server.sessions.get(0).closed(), Some(Closed::Moved));
    assert_eq!(pair.session().saved(), Some(&Bytes::from_static(b"cart")));
    pair.client_sends("c");
    pair.connect();
    pair.server_sends("w");
    pair.run();
    assert_eq!(pair.server.got[&0], ["a"]);
    assert_eq!(pair.server.got[&1], ["b", "c"]);
    assert_eq!(pair.client_got, ["x", "y", "z", "w"]);
    assert_eq!((pair.gaps(), pair.attaches()), (vec![], vec![(1, false), (2, true)]));
}

#[test]
fn a_session_moves_from_node_to_node_and_back() {
    let mut pair = attached();
    let home = release(&mut pair);
    let mut first = adopt(&mut pair, 2, &home);
    pair.connect();
    pair.client_sends("a");
    pair.run();
    let back = release(&mut pair);
    assert_eq!(back.claim, home.claim + 1);
    std::mem::swap(&mut first, &mut pair.server.registry);
    let sessions = &mut pair.server.sessions;
    pair.server.registry.adopt(pair.now, &back.record, back.claim + 1, sessions).unwrap();
    pair.client_sends("b");
    pair.connect();
    assert_eq!(
        (pair.server.got[&1].as_slice(), pair.server_got()),
        (["a".to_owned()].as_slice(), ["b".to_owned()].as_slice())
    );
    assert_eq!(pair.gaps(), []);
}

#[test]
fn a_message_that_was_received_and_not_delivered_comes_again_from_the_client() {
    let mut pair = attached();
    pair.server.takes = false;
    pair.client_sends_numbers(1..=3);
    pair.run();
    moves(&mut pair, 2);
    pair.server.takes = true;
    pair.connect();
    assert_eq!(
        (pair.server.got.get(&0), pair.server_got()),
        (None, ["1", "2", "3"].map(String::from).as_slice())
    );
}

#[test]
fn in_manual_mode_a_message_that_was_delivered_and_not_acknowledged_is_delivered_again() {
    let mut pair = attached();
    pair.session().manual_ack();
    pair.client_sends_numbers(1..=3);
    pair.run();
    let now = pair.now;
    pair.session().acknowledge_oldest(now, 1);
    moves(&mut pair, 2);
    pair.connect();
    assert_eq!(pair.server.got[&0], ["1", "2", "3"]);
    assert_eq!(pair.server_got(), ["2", "3"]);
    assert_eq!(pair.session().acknowledged_inbound(), 1, "the mode moves with the session");
}

#[test]
fn gaps_marks_and_bounds_move_with_a_session() {
    let mut config = server_config();
    config.flow.keep.messages = 2;
    let mut pair = Pair::new(ClientConfig::default(), config, node(1));
    let first = pair.connect();
    pair.session().set_movable();
    pair.session().drop_oldest_when_full();
    pair.cut(first);
    for text in ["a", "b", "c", "d"] {
        pair.server_sends(text);
    }
    pair.session().note_replaced();
    moves(&mut pair, 2);
    assert_eq!(pair.session().dropped(), 2);
    pair.server_sends("e");
    pair.connect();
    assert_eq!(pair.session().dropped(), 3, "it still drops the oldest above two");
    assert_eq!(pair.client_got, ["gap 1 3", "d", "replaced 1", "e"]);
    pair.session().note_replaced();
    pair.run();
    assert_eq!(pair.client_got.last().unwrap(), "replaced 2");
}

#[test]
fn an_account_that_the_client_has_not_confirmed_moves_with_the_session_that_reports_it() {
    let mut pair = attached();
    pair.client_sends("a");
    pair.run();
    let first = pair.client.current().unwrap();
    pair.cut(first);
    pair.wait(RESUME_WINDOW);
    let second = pair.open();
    pair.deliver_up(second);
    pair.session().set_movable();
    let released = release_lost(&mut pair, second);
    adopt(&mut pair, 2, &released);
    pair.connect();
    // The client asks for the session before, by whose token it knows: that one is unknown here.
    assert_eq!(pair.gaps().len(), 1);
    let state = released.record.content().unwrap();
    let Content::Session(state) = state else { panic!("{state:?}") };
    assert_eq!(state.account.unwrap().cause, LossCause::Expired);
}

/// As [`release`], but nothing that was written to the connection arrives.
fn release_lost(pair: &mut Pair, connection: ConnectionId) -> Released {
    let now = pair.now;
    pair.session().set_movable();
    pair.session().leave(now);
    pair.lose_written(connection);
    pair.cut(connection);
    let newest = pair.server.sessions.len() - 1;
    pair.server.registry.release(now, pair.server.sessions.get(newest)).unwrap()
}

#[test]
fn an_adopted_session_is_kept_for_what_was_left_of_its_resume_window() {
    let mut pair = attached();
    let first = pair.client.current().unwrap();
    pair.cut(first);
    pair.wait(100 * SECOND);
    let released = release(&mut pair);
    assert_eq!(released.keep, 2 * RESUME_WINDOW + 60 * SECOND);
    pair.now += 3600 * SECOND;
    adopt(&mut pair, 2, &released);
    pair.wait(19 * SECOND);
    assert_eq!(pair.over(), None);
    pair.wait(SECOND);
    assert_eq!(pair.over(), Some(Closed::Expired));
}

#[test]
fn a_record_may_be_adopted_twice() {
    let mut pair = attached();
    let released = release(&mut pair);
    adopt(&mut pair, 2, &released);
    let (registry, sessions) = (&mut pair.server.registry, &mut pair.server.sessions);
    let again = registry.adopt(pair.now, &released.record, 2, sessions).unwrap();
    assert_eq!((again, sessions.len()), (Adopted::Session { session: 1, evicted: None }, 2));
}

#[test]
fn the_place_of_a_session_that_moved_is_free() {
    let mut pair =
        Pair::new(ClientConfig::default(), server_config(), RegistryConfig { sessions: 1, ..node(1) });
    pair.connect();
    let full = matches!(stranger(&mut pair), Answer::Refused { why: RefuseReason::NoRoom, .. });
    release(&mut pair);
    let room = matches!(stranger(&mut pair), Answer::Attached { created: true, .. });
    assert!(full && room);
}

#[test]
fn an_adopted_session_takes_a_place_even_if_none_is_free() {
    let mut pair = attached();
    let released = release(&mut pair);
    let full = RegistryConfig { sessions: 0, ..node(2) };
    pair.server.registry = Registry::new(start(), full, Arc::new(server_config()), [2; 32]);
    let sessions = &mut pair.server.sessions;
    assert!(pair.server.registry.adopt(pair.now, &released.record, 2, sessions).is_ok());
    pair.connect();
    assert_eq!((pair.attaches(), pair.gaps()), (vec![(1, false), (2, true)], vec![]));

    let one = RegistryConfig { sessions: 1, ..node(3) };
    pair.server.registry = Registry::new(start(), one, Arc::new(server_config()), [3; 32]);
    let sessions = &mut pair.server.sessions;
    pair.server.registry.adopt(pair.now, &released.record, 2, sessions).unwrap();
    let answer = stranger(&mut pair);
    assert!(matches!(answer, Answer::Refused { why: RefuseReason::NoRoom, .. }), "{answer:?}");
}

fn stranger(pair: &mut Pair) -> Answer<usize> {
    let connection = pair.wire();
    pair.hello(connection, &stranger_hello(7))
}

// ---- while a session leaves -----------------------------------------------------------------------

#[test]
fn the_connection_of_a_session_that_leaves_is_fenced_and_closed_with_1012_once() {
    let mut pair = attached();
    let (now, first) = (pair.now, pair.client.current().unwrap());
    pair.client_sends("late");
    pair.write();
    pair.session().leave(now);
    assert_eq!(pair.session().connection(), None);
    let closes: Vec<_> = std::iter::from_fn(|| pair.session().poll_transmit(now, first)).collect();
    assert!(matches!(closes[..], [Transmit::Close { code: CloseCode::RESTART, .. }]), "{closes:?}");
    while pair.deliver_up(first) {}
    pair.run();
    assert_eq!(pair.server.got.get(&0), None, "what still arrives there is ignored");
    assert_eq!(pair.session().acknowledged_inbound(), 0);
}

#[test]
fn a_session_that_leaves_delivers_nothing_and_still_sends_and_acknowledges() {
    let mut pair = attached();
    pair.session().manual_ack();
    pair.client_sends("a");
    pair.run();
    pair.server.takes = false;
    pair.client_sends("b");
    pair.run();
    let now = pair.now;
    pair.session().leave(now);
    let session = pair.session();
    assert!(session.is_leaving() && session.is_open() && !session.delivers());
    assert_eq!((session.deliver(now), session.deliver_volatile()), (None, None));
    assert_eq!(session.end().map(|end| end.cause), Some(EndCause::Moved));
    session.send(Message::text("farewell")).unwrap();
    session.acknowledge(now, 1);
    let newest = pair.server.sessions.len() - 1;
    let released = pair.server.registry.release(now, pair.server.sessions.get(newest)).unwrap();
    adopt(&mut pair, 2, &released);
    pair.server.takes = true;
    pair.run();
    pair.connect();
    assert_eq!(
        (pair.server_got(), pair.client_got.as_slice()),
        (["b".to_owned()].as_slice(), ["farewell".to_owned()].as_slice())
    );
}

#[test]
fn a_session_that_leaves_keeps_twice_as_much_and_its_bound_moves_unchanged() {
    let mut config = server_config();
    config.flow.keep.messages = 2;
    let mut pair = Pair::new(ClientConfig::default(), config, node(1));
    let first = pair.connect();
    pair.cut(first);
    let now = pair.now;
    let sends = |pair: &mut Pair, text: &str| pair.session().send(Message::text(text)).is_ok();
    assert_eq!(["a", "b", "c"].map(|text| sends(&mut pair, text)), [true, true, false]);
    pair.session().leave(now);
    assert_eq!(["c", "d", "e"].map(|text| sends(&mut pair, text)), [true, true, false]);
    moves(&mut pair, 2);
    assert!(!sends(&mut pair, "e"));
    let second = pair.connect();
    assert_eq!(pair.client_got, ["a", "b", "c", "d"]);
    pair.wait(SECOND);
    pair.cut(second);
    assert_eq!(["e", "f", "g"].map(|text| sends(&mut pair, text)), [true, true, false]);
}

#[test]
fn the_drop_of_the_handle_ends_a_session_only_if_it_does_not_leave() {
    let mut pair = attached();
    let now = pair.now;
    pair.session().leave(now);
    pair.session().handle_dropped(now);
    assert!(pair.session().is_leaving());
    let released = release(&mut pair);
    adopt(&mut pair, 2, &released);
    pair.session().handle_dropped(now);
    assert!(!pair.session().is_open());
}

#[test]
fn a_session_that_its_application_ends_while_it_leaves_stays_and_leaves_an_account() {
    let mut pair = attached();
    let now = pair.now;
    pair.session().leave(now);
    pair.run();
    pair.server_closes(CloseCode::NORMAL, "enough");
    assert!(!pair.session().is_leaving());
    let newest = pair.server.sessions.len() - 1;
    assert_eq!(pair.server.registry.release(now, pair.server.sessions.get(newest)), None);
    pair.connect();
    assert_eq!(pair.ended().map(|(code, _)| code), Some(1000));
    assert_eq!(pair.over(), Some(Closed::Ended { code: 1000, by_us: true }));
}

#[test]
fn a_session_that_leaves_and_is_never_released_expires() {
    let mut pair = attached();
    let now = pair.now;
    pair.session().leave(now);
    assert_eq!(pair.session().poll_timeout(), Some(now + RESUME_WINDOW));
    pair.wait(RESUME_WINDOW);
    assert_eq!(pair.over(), Some(Closed::Expired));
}

#[test]
fn a_session_that_does_not_leave_is_not_released() {
    let mut pair = attached();
    let now = pair.now;
    assert_eq!(pair.server.registry.release(now, pair.server.sessions.get(0)), None);
    release(&mut pair);
    assert_eq!(pair.server.registry.release(now, pair.server.sessions.get(0)), None, "only once");
}

#[test]
fn a_client_that_comes_back_while_its_session_leaves_waits_and_then_asks_elsewhere() {
    let mut pair = attached();
    let now = pair.now;
    pair.session().leave(now);
    pair.run();
    assert!(matches!(resume(&mut pair), Resumed::Leaving(0)));
    pair.connect();
    assert_eq!(pair.server.refusals, [RefuseReason::Moving]);
    let released = release(&mut pair);
    assert!(matches!(resume(&mut pair), Resumed::Released));
    pair.connect();
    assert_eq!(pair.server.refusals, [RefuseReason::Moving; 2]);
    let Control::Refuse { code, temporary, delay, .. } = RefuseReason::Moving.refuse() else { panic!() };
    assert_eq!((code, temporary), (4414, true));
    assert_eq!((delay.min, delay.max), (Duration::from_millis(200), 2 * SECOND));
    adopt(&mut pair, 2, &released);
    pair.connect();
    assert_eq!((pair.attaches(), pair.gaps()), (vec![(1, false), (2, true)], vec![]));
}

// ---- a drain --------------------------------------------------------------------------------------

#[test]
fn a_drain_offers_a_movable_session_to_the_node_that_its_client_reaches() {
    let mut pair = attached();
    pair.server.registry.set_draining(true);
    assert!(matches!(resume(&mut pair), Resumed::Leaving(0)));
    assert!(pair.session().is_open(), "nothing changed yet");
    pair.server.registry.set_draining(false);
    assert!(matches!(resume(&mut pair), Resumed::Answer(Answer::Attached { session: 0, .. })));
}

#[test]
fn a_stale_or_wrong_hello_gets_its_usual_answer_in_a_drain() {
    let mut pair = attached();
    let probe = pair.open();
    let hello = pair.hello_under_way(probe);
    pair.server.registry.set_draining(true);
    let mut ask = |hello| {
        let (registry, sessions) = (&mut pair.server.registry, &mut pair.server.sessions);
        registry.resume(pair.now, probe, ALICE, &hello, sessions)
    };
    let mut stale = hello.clone();
    stale.attempt = 1;
    let stale = ask(stale);
    assert!(matches!(stale, Resumed::Answer(Answer::Refused { why: RefuseReason::Stale, .. })), "{stale:?}");
    let mut wrong = hello.clone();
    wrong.resume.as_mut().unwrap().acknowledged = 99;
    let wrong = ask(wrong);
    assert!(matches!(wrong, Resumed::Lost(None)), "{wrong:?}");
    assert!(pair.session().is_open());
}

#[test]
fn a_drain_ends_any_other_session_with_the_exact_account_once_its_handler_has_acknowledged_and_passes_it_on()
{
    let mut pair = Pair::new(ClientConfig::default(), server_config(), node(1));
    pair.connect();
    pair.session().manual_ack();
    pair.client_sends_numbers(1..=3);
    pair.server_sends("x");
    pair.run();
    let now = pair.now;
    pair.session().acknowledge_oldest(now, 1);
    pair.server.registry.set_draining(true);
    assert!(matches!(resume(&mut pair), Resumed::Leaving(0)), "its handler may acknowledge more");
    pair.session().leave(now);
    pair.session().acknowledge_oldest(now, 1);
    assert_eq!(pair.server.registry.release(now, pair.server.sessions.get(0)), None, "it may not move");
    let Resumed::Lost(Some(account)) = resume(&mut pair) else { panic!("no account") };
    assert_eq!((account.acknowledged, account.delivered, account.first_lost, account.count), (2, 3, 2, 0));
    assert_eq!(account.cause, LossCause::Restarted);
    let end = pair.session().end().map(|end| end.cause);
    assert_eq!((pair.over(), end), (Some(Closed::Evicted), Some(EndCause::Drained)));

    let accounts: Vec<_> = pair.server.registry.take_accounts();
    let [(session, claim, record)] = &accounts[..] else { panic!("{accounts:?}") };
    assert_eq!((*session, *claim), (pair.session().id(), 1));
    pair.server.registry = registry(2);
    let sessions = &mut pair.server.sessions;
    assert_eq!(pair.server.registry.adopt(now, record, 2, sessions), Ok(Adopted::Account));
    assert_eq!(
        pair.server.registry.adopt(now, record, 2, sessions),
        Ok(Adopted::Account),
        "it may come twice"
    );
    assert_eq!(pair.server.registry.size().1, 1);
    let Resumed::Lost(Some(again)) = resume(&mut pair) else { panic!("its client may ask again") };
    assert_eq!(again, account);
    let accounts: Vec<_> = pair.server.registry.take_accounts();
    assert_eq!((accounts.len(), accounts[0].1), (1, 2), "a later drain passes it on");
}

#[test]
fn an_account_that_moved_is_reported_to_one_instance() {
    let mut pair = Pair::new(ClientConfig::default(), server_config(), node(1));
    pair.connect();
    pair.server.registry.set_draining(true);
    assert!(matches!(resume(&mut pair), Resumed::Lost(Some(_))));
    let accounts: Vec<_> = pair.server.registry.take_accounts();
    pair.server.registry = registry(2);
    let sessions = &mut pair.server.sessions;
    pair.server.registry.adopt(pair.now, &accounts[0].2, 2, sessions).unwrap();
    let probe = pair.open();
    let mut copy = pair.hello_under_way(probe);
    copy.instance.0 = [9; 8];
    let answer = pair.server.registry.resume(pair.now, probe, ALICE, &copy, &mut pair.server.sessions);
    assert!(matches!(answer, Resumed::Lost(None)), "{answer:?}");
}

#[test]
fn a_session_that_the_application_ended_stays_ended_at_every_node() {
    let mut pair = Pair::new(ClientConfig::default(), server_config(), node(1));
    let first = pair.connect();
    pair.cut(first);
    pair.server_sends("unseen");
    pair.server_closes(CloseCode::SESSION_ENDED, "enough");
    pair.server.registry.set_draining(true);
    assert!(matches!(resume(&mut pair), Resumed::Answer(Answer::Refused { why: RefuseReason::Ended, .. })));
    let accounts: Vec<_> = pair.server.registry.take_accounts();
    pair.server.registry = registry(2);
    let sessions = &mut pair.server.sessions;
    pair.server.registry.adopt(pair.now, &accounts[0].2, 2, sessions).unwrap();
    pair.connect();
    assert_eq!(pair.server.refusals, [RefuseReason::Ended]);
    let (code, fate) = pair.ended().unwrap();
    assert_eq!((code, fate.lost.map(|lost| lost.count)), (u64::from(CloseCode::SESSION_ENDED), Some(1)));
}

#[test]
fn sessions_that_end_before_a_drain_or_after_their_tombstone_is_gone_are_not_passed_on() {
    let mut pair =
        Pair::new(ClientConfig::default(), server_config(), RegistryConfig { tombstones: 1, ..node(1) });
    let ends = |pair: &mut Pair, number| {
        let connection = pair.wire();
        pair.hello(connection, &stranger_hello(number));
        pair.session().evict();
        pair.run();
        pair.session().id()
    };
    ends(&mut pair, 1);
    pair.server.registry.set_draining(true);
    ends(&mut pair, 2);
    let last = ends(&mut pair, 3);
    let accounts: Vec<_> = pair.server.registry.take_accounts();
    assert_eq!(accounts.iter().map(|account| account.0).collect::<Vec<_>>(), [last]);
    assert_eq!(pair.server.registry.take_accounts(), [], "each once");
    pair.server.registry.set_draining(false);
    ends(&mut pair, 4);
    assert_eq!(pair.server.registry.take_accounts(), [], "the drain is over");
}

#[test]
fn a_released_session_that_no_node_can_have_leaves_its_exact_account() {
    let mut pair = attached();
    pair.session().manual_ack();
    pair.client_sends_numbers(1..=2);
    pair.run();
    let now = pair.now;
    pair.session().acknowledge_oldest(now, 1);
    let released = release(&mut pair);
    assert_eq!(pair.server.registry.take_accounts(), [], "it goes on elsewhere");
    pair.server.registry.end_released(mainstay_proto::session::message::SessionId([0; 8]));
    assert!(matches!(resume(&mut pair), Resumed::Released));
    pair.server.registry.end_released(released.session);
    let accounts: Vec<_> = pair.server.registry.take_accounts();
    assert_eq!(accounts.iter().map(|account| account.0).collect::<Vec<_>>(), [released.session]);
    let Resumed::Lost(Some(account)) = resume(&mut pair) else { panic!("no account") };
    assert_eq!((account.acknowledged, account.delivered, account.cause), (1, 2, LossCause::Restarted));
}

// ---- confirmation first ---------------------------------------------------------------------------

fn confirmed_first(number: u8) -> RegistryConfig {
    RegistryConfig { confirmation_first: true, ..node(number) }
}

/// A client that said hello at a node where confirmation comes first, with a message and a volatile one behind HELLO.
fn unconfirmed() -> (Pair, ConnectionId) {
    let mut pair = Pair::new(ClientConfig::default(), server_config(), confirmed_first(1));
    pair.client_sends("a");
    let first = pair.open();
    pair.deliver_up(first);
    pair.deliver_up(first);
    (pair, first)
}

#[test]
fn nothing_is_delivered_before_the_first_confirmation() {
    let (mut pair, first) = unconfirmed();
    let now = pair.now;
    assert_eq!(pair.session().unread_bytes(), 1, "it waits");
    assert!(!pair.session().is_confirmed() && pair.session().delivers());
    assert_eq!(pair.session().deliver(now), None);
    pair.run();
    assert!(pair.session().is_confirmed());
    assert_eq!(pair.server_got(), ["a"]);
    // Later epochs need no confirmation.
    pair.cut(first);
    pair.client_sends("b");
    pair.open();
    assert!(pair.session().is_confirmed());
}

#[test]
fn a_session_that_leaves_before_it_is_confirmed_starts_no_handler() {
    let (mut pair, first) = unconfirmed();
    let now = pair.now;
    pair.session().set_movable();
    pair.session().leave(now);
    pair.run();
    assert!(!pair.session().is_confirmed() && pair.session().connection() != Some(first));
    pair.server_closes(CloseCode::NORMAL, "");
    assert!(!pair.session().is_confirmed());
}

#[test]
fn a_volatile_message_is_itself_the_confirmation() {
    let (mut pair, first) = unconfirmed();
    let now = pair.now;
    let volatile = Frame::Control(Control::Volatile(Message::text("here")));
    pair.session().handle_frame(now, first, volatile).unwrap();
    assert!(pair.session().is_confirmed());
    assert_eq!(pair.session().deliver_volatile(), Some(Message::text("here")));
}

#[test]
fn without_an_engine_messages_do_not_wait_for_a_confirmation() {
    let mut pair = Pair::new(ClientConfig::default(), server_config(), node(1));
    pair.client_sends("a");
    let first = pair.open();
    pair.deliver_up(first);
    pair.deliver_up(first);
    let now = pair.now;
    assert!(pair.session().is_confirmed() && pair.session().deliver(now).is_some());
}

#[test]
fn where_confirmation_comes_first_no_key_is_too_old() {
    let mut hello = stranger_hello(1);
    hello.key_age = 7 * 86_400 * SECOND;
    for (config, refused) in [(node(1), true), (confirmed_first(1), false)] {
        let mut pair = Pair::new(ClientConfig::default(), server_config(), config);
        let connection = pair.wire();
        let answer = pair.hello(connection, &hello);
        let too_old = matches!(answer, Answer::Refused { why: RefuseReason::KeyTooOld, .. });
        assert_eq!(too_old, refused, "{answer:?}");
    }
}

#[test]
fn a_session_that_was_never_confirmed_ends_ten_seconds_after_its_connection_and_frees_its_key() {
    let (mut pair, first) = unconfirmed();
    pair.lose_written(first);
    pair.cut(first);
    pair.wait(9 * SECOND);
    assert_eq!(pair.over(), None);
    pair.wait(SECOND);
    assert_eq!(pair.over(), Some(Closed::Expired));
    pair.connect();
    assert_eq!((pair.server.refusals.as_slice(), pair.gaps()), ([].as_slice(), vec![]));
    assert_eq!((pair.server.got.get(&0), pair.server_got()), (None, ["a".to_owned()].as_slice()));
    let now = pair.now;
    let over = pair.server.sessions.get(0).clone();
    let before = pair.server.registry.size();
    pair.server.registry.bury(now, &over);
    assert_eq!(pair.server.registry.size(), before, "it is buried only once");
    assert!(
        matches!(resume(&mut pair), Resumed::Answer(Answer::Attached { .. })),
        "the key names the second"
    );
}

#[test]
fn a_token_of_a_session_that_was_never_confirmed_gets_its_account() {
    let (mut pair, first) = unconfirmed();
    pair.write();
    while pair.deliver_down(first) {}
    pair.cut(first);
    pair.wait(10 * SECOND);
    pair.connect();
    let fate = pair.gaps()[0];
    assert_eq!((fate.delivered, fate.unknown, fate.last, fate.resent), (0, 0, 1, true));
    assert_eq!(pair.server_got(), ["a"]);
}

#[test]
fn a_confirmed_session_is_kept_for_its_resume_window() {
    let (mut pair, first) = unconfirmed();
    pair.run();
    pair.cut(first);
    pair.wait(RESUME_WINDOW - SECOND);
    assert_eq!(pair.over(), None);
}

#[test]
fn an_adopted_session_delivers_after_the_first_confirmation_at_its_new_node() {
    let mut pair = Pair::new(ClientConfig::default(), server_config(), confirmed_first(1));
    pair.connect();
    pair.client_sends("a");
    pair.run();
    let first = pair.client.current().unwrap();
    pair.client_sends("b");
    pair.lose_written(first);
    let released = release(&mut pair);
    pair.server.registry = Registry::new(start(), confirmed_first(2), Arc::new(server_config()), [2; 32]);
    let sessions = &mut pair.server.sessions;
    pair.server.registry.adopt(pair.now, &released.record, 2, sessions).unwrap();
    assert!(!pair.session().is_confirmed());
    let second = pair.open();
    pair.deliver_up(second);
    pair.cut(second);
    pair.wait(RESUME_WINDOW - SECOND);
    assert_eq!(pair.over(), None, "it was confirmed elsewhere: it is kept");
    pair.connect();
    assert!(pair.session().is_confirmed());
    assert_eq!(pair.server_got(), ["b"]);
}

#[test]
fn an_adopted_session_takes_its_key_from_a_session_that_was_never_confirmed() {
    // The first HELLO reached node 1 and its WELCOME was lost; the second reached node 2.
    let (mut pair, first) = unconfirmed();
    pair.lose_written(first);
    pair.cut(first);
    let second = Registry::new(start(), confirmed_first(2), Arc::new(server_config()), [3; 32]);
    let first = std::mem::replace(&mut pair.server.registry, second);
    pair.connect();
    let released = release(&mut pair);
    pair.server.registry = first;
    let sessions = &mut pair.server.sessions;
    let adopted = pair.server.registry.adopt(pair.now, &released.record, 2, sessions).unwrap();
    assert_eq!(adopted, Adopted::Session { session: 2, evicted: Some(0) });
    assert_eq!(pair.server.sessions.get(0).closed(), Some(Closed::Evicted));
    pair.client_sends("b");
    pair.connect();
    assert_eq!(pair.server_got(), ["b"]);
    assert_eq!((pair.server.got.get(&0), pair.gaps()), (None, vec![]));
}

#[test]
fn a_session_that_was_confirmed_elsewhere_refuses_its_key() {
    let mut pair = Pair::new(ClientConfig::default(), server_config(), node(1));
    let first = pair.open();
    let mut by_key = pair.hello_under_way(first);
    pair.run();
    moves(&mut pair, 2);
    by_key.attempt += 9;
    let probe = pair.wire();
    let answer = pair.hello(probe, &by_key);
    assert!(matches!(answer, Answer::Refused { why: RefuseReason::KeyUsed, .. }), "{answer:?}");
}
