//! Everything is bounded: what may be written, what is kept, what is remembered.

use std::time::Duration;

use bytes::Bytes;
use mainstay_proto::admission::Source;
use mainstay_proto::heartbeat::Action;
use mainstay_proto::session::message::{Delay, LossCause};
use mainstay_proto::session::{
    Answer, ClientConfig, ClientEvent, Closed, Control, Frame, LostMessages, Message, RefuseReason,
    RegistryConfig, ServerConfig, ServerSession, SessionError, Transmit, Window,
};
use mainstay_proto::ws::{CloseCode, Kind};

use super::pair::{Pair, RESUME_WINDOW, SECOND, server_config};
use super::resume::stranger;

fn pair_accepting(messages: u64, bytes: u64, manual_ack: bool) -> Pair {
    let mut config: ServerConfig = server_config();
    config.flow.accept = Window { messages, bytes };
    config.flow.manual_ack = manual_ack;
    Pair::new(ClientConfig::default(), config, RegistryConfig::default())
}

#[test]
fn the_window_holds_the_sender_back() {
    let mut pair = pair_accepting(4, 1000, false);
    pair.server.takes = false;
    let connection = pair.connect();
    pair.client_sends_numbers(1..=10);
    pair.run();
    assert_eq!(pair.texts(connection), ["1", "2", "3", "4"]);
    pair.server.takes = true;
    pair.run();
    assert_eq!(pair.server_got().len(), 10);
    assert_eq!(pair.server.errors, []);
}

#[test]
fn the_window_counts_bytes_and_lets_a_single_large_message_through() {
    let mut pair = pair_accepting(100, 10, false);
    pair.server.takes = false;
    let connection = pair.connect();
    let large = "larger than the window";
    for text in [large, "12345678", "123"] {
        pair.client_sends(text);
    }
    pair.run();
    assert_eq!(pair.texts(connection), [large]);
    pair.server.takes = true;
    pair.run();
    pair.wait(SECOND);
    pair.wait(SECOND);
    assert_eq!(pair.server_got(), [large, "12345678", "123"]);
    assert_eq!(pair.server.errors, []);
}

#[test]
fn the_window_holds_a_replay_back_too() {
    let mut pair = pair_accepting(4, 1000, false);
    let first = pair.connect();
    pair.cut(first);
    pair.client_sends_numbers(1..=10);
    pair.server.takes = false;
    let second = pair.connect();
    assert_eq!(pair.texts(second).len(), 4);
}

#[test]
fn no_more_than_16_messages_are_written_before_welcome() {
    let mut pair = Pair::default();
    pair.client_sends_numbers(1..=20);
    let connection = pair.open();
    assert_eq!(pair.under_way_up(connection).len(), 1 + 16, "HELLO and the window");
    pair.run();
    assert_eq!(pair.server_got().len(), 20);
}

#[test]
fn a_peer_that_ignores_the_window_loses_its_connection_and_keeps_its_session() {
    let mut pair = pair_accepting(2, 1000, false);
    pair.server.takes = false;
    let first = pair.connect();
    for _ in 0..3 {
        pair.at_server(first, Kind::Text, Bytes::from_static(b"x"));
    }
    assert_eq!(pair.server.errors, [SessionError::WindowExceeded]);
    assert_eq!(pair.over(), None);
}

#[test]
fn a_full_buffer_gives_the_message_back_at_both_ends() {
    let mut client = ClientConfig::default();
    client.flow.keep = Window { messages: 2, bytes: 1000 };
    let mut server = server_config();
    server.flow.keep = Window { messages: 2, bytes: 1000 };
    let mut pair = Pair::new(client, server, RegistryConfig::default());
    let connection = pair.connect();
    pair.cut(connection);
    for _ in 0..2 {
        pair.client_sends("a");
        pair.server_sends("x");
    }
    let message = Message::text("one too many");
    assert_eq!(pair.client.send(message.clone()), Err(message.clone()));
    assert_eq!(pair.session().send(message.clone()), Err(message));
    assert!(!pair.client.has_room(1) && !pair.session().has_room(1));
    pair.connect();
    pair.wait(SECOND);
    assert!(pair.client.has_room(1) && pair.session().has_room(1));
}

#[test]
fn what_was_acknowledged_but_is_behind_the_position_is_still_written() {
    let mut pair = pair_accepting(2, 1000, true);
    let first = pair.connect();
    for text in ["a", "b", "c", "d"] {
        pair.client_sends(text);
    }
    pair.run();
    assert_eq!(pair.server_got(), ["a", "b"], "nothing is confirmed, the window is full");
    pair.cut(first);
    let second = pair.open();
    // WELCOME lets the client begin at 1; the acknowledgement of 2 overtakes its first message.
    pair.deliver_up(second);
    pair.write();
    let now = pair.now;
    pair.session().acknowledge(now, 2);
    pair.write();
    assert!(pair.deliver_down(second));
    assert!(pair.deliver_down(second));
    assert_eq!(pair.client.acknowledged(), 2);
    pair.run();
    assert_eq!(pair.texts(second), ["a", "b", "c", "d"], "positions are all there is");
    assert_eq!(pair.server_got(), ["a", "b", "c", "d"]);
    pair.client.probe(1);
    pair.run();
    assert_eq!(pair.server.errors, [], "and they agree");
}

#[test]
fn in_manual_mode_only_the_application_acknowledges() {
    let mut pair = pair_accepting(100, 1000, true);
    pair.connect();
    for text in ["a", "b", "c"] {
        pair.client_sends(text);
    }
    pair.run();
    pair.wait(SECOND);
    assert_eq!((pair.server_got().len(), pair.client.acknowledged()), (3, 0));
    let now = pair.now;
    pair.session().acknowledge(now, 2);
    pair.wait(SECOND);
    assert_eq!(pair.client.acknowledged(), 2);
}

#[test]
fn volatile_messages_do_not_wait_for_a_client() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.session().send_volatile(Message::text("now"));
    pair.client.send_volatile(Message::text("whatever"));
    pair.run();
    assert_eq!(pair.session().deliver_volatile(), Some(Message::text("whatever")));
    assert_eq!(pair.session().deliver_volatile(), None);
    assert_eq!((pair.client.last_sent(), pair.session().acknowledged_inbound()), (0, 0), "it has no number");
    let volatile = ClientEvent::Volatile(Message::text("now"));
    assert_eq!(pair.events.iter().filter(|event| **event == volatile).count(), 1);
    pair.cut(first);
    pair.session().send_volatile(Message::text("now"));
    pair.connect();
    pair.session().send_volatile(Message::text("later"));
    pair.run();
    assert_eq!(pair.events.iter().filter(|event| **event == volatile).count(), 1, "the second was dropped");
    assert_eq!(pair.server.errors, []);
}

#[test]
fn the_newest_volatile_messages_that_wait_for_the_application_are_kept() {
    let queue = Window { messages: 2, bytes: 100 };
    let config = ServerConfig { volatile_queue: queue, ..server_config() };
    let mut pair = Pair::new(ClientConfig::default(), config, RegistryConfig::default());
    pair.connect();
    for text in ["old", "newer", "newest"] {
        pair.client.send_volatile(Message::text(text));
        pair.run();
    }
    let waiting: Vec<_> = std::iter::from_fn(|| pair.session().deliver_volatile()).collect();
    assert_eq!(waiting, ["newer", "newest"].map(Message::text));
    pair.client.send_volatile(Message::text("late"));
    pair.run();
    pair.session().evict();
    assert_eq!(pair.session().deliver_volatile(), None, "the session is over");
}

// ---- how long, how many -------------------------------------------------------------------------

#[test]
fn a_client_may_ask_for_a_shorter_resume_window_and_gets_no_longer_one() {
    for (asked, granted) in [(5, 5), (600, 120), (0, 0)] {
        let config = ClientConfig { resume_window: Some(asked * SECOND), ..ClientConfig::default() };
        let mut pair = Pair::new(config, server_config(), RegistryConfig::default());
        let first = pair.connect();
        let reported = pair.events.iter().find_map(|event| match event {
            ClientEvent::Attached { resume_window, .. } => Some(*resume_window),
            _ => None,
        });
        assert_eq!(reported, Some(granted * SECOND));
        pair.cut(first);
        let expires = pair.now + granted * SECOND;
        assert_eq!(pair.session().poll_timeout(), Some(expires));
        if granted > 0 {
            pair.wait((granted - 1) * SECOND);
            assert_eq!(pair.over(), None, "{asked} s asked for");
        }
        pair.wait(SECOND);
        assert_eq!(pair.over(), Some(Closed::Expired), "{asked} s asked for");
    }
}

#[test]
fn a_server_without_room_puts_newcomers_off_and_lets_its_own_come_back() {
    let mut pair = Pair::with_room_for_one();
    let first = pair.client.current().unwrap();
    pair.cut(first);
    pair.connect();
    assert_eq!(pair.attaches(), [(1, false), (2, true)]);
    // It is attached: no new session evicts it.
    let newcomer = pair.wire();
    let Answer::Refused { refuse, why } = pair.hello(newcomer, &stranger(1)) else { panic!("no room") };
    let delay = Delay { min: SECOND, max: 30 * SECOND };
    assert_eq!(refuse, Control::Refuse { code: 4413, temporary: true, delay, account: None });
    assert_eq!((why, pair.server.sessions.len()), (RefuseReason::NoRoom, 1));
    // The same HELLO has success when there is room.
    pair.cut(pair.client.current().unwrap());
    pair.wait(RESUME_WINDOW);
    let again = pair.wire();
    assert!(matches!(pair.hello(again, &stranger(1)), Answer::Attached { created: true, .. }));
}

#[test]
fn a_client_takes_another_key_once_every_hello_with_the_old_one_was_refused_for_now() {
    // The answers to HELLO: a code, or none. Whether the HELLO behind each has another key.
    for (answers, expected) in [
        (&[Some(4413), Some(4414)][..], &[true, true][..]),
        (&[None, Some(4413)], &[false, false]),
        (&[Some(4413), None, Some(4413)], &[true, false, false]),
        // A session of this key was there.
        (&[Some(4410), Some(4413)], &[false, false]),
    ] {
        let mut pair = Pair::new(ClientConfig::default(), server_config(), RegistryConfig::default());
        let mut connection = pair.open();
        for (answer, is_new) in answers.iter().zip(expected) {
            let before = pair.hello_under_way(connection);
            if let Some(code) = *answer {
                let refuse =
                    Control::Refuse { code, temporary: true, delay: Delay::default(), account: None };
                pair.client.handle_frame(connection, Frame::Control(refuse)).unwrap();
            }
            pair.cut(connection);
            pair.now += SECOND;
            connection = pair.open();
            let next = pair.hello_under_way(connection);
            let found = (next.key != before.key, next.key_age.is_zero());
            assert_eq!(found, (*is_new, *is_new), "{answers:?}");
        }
    }
}

#[test]
fn a_client_that_had_no_room_at_a_young_server_gets_a_session_once_there_is_room() {
    let mut pair = Pair::new(
        ClientConfig::default(),
        server_config(),
        RegistryConfig { sessions: 1, ..RegistryConfig::default() },
    );
    let other = pair.wire();
    assert!(matches!(pair.hello(other, &stranger(1)), Answer::Attached { created: true, .. }));
    pair.client_sends("a");
    let first = pair.connect();
    pair.cut(first);
    pair.cut(other);
    pair.server.sessions.get(0).evict();
    let over = pair.server.sessions.get(0).clone();
    pair.server.registry.bury(pair.now, &over);
    pair.now += SECOND;
    pair.connect();
    assert_eq!(pair.server.refusals, [RefuseReason::NoRoom]);
    assert_eq!((pair.attaches(), pair.gaps()), (vec![(1, false)], vec![]));
    assert_eq!(pair.server.got.get(&1).map(Vec::as_slice), Some(&["a".to_owned()][..]));
}

#[test]
fn an_acknowledgement_that_the_connection_does_not_accept_sets_no_timer() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.client_sends("a");
    pair.run();
    let (now, session) = (pair.now, pair.session());
    let beat = session.poll_timeout().unwrap();
    let due = now + SECOND / 4;
    assert!(beat <= due, "an acknowledgement is due");
    // The socket is full: no timer is set.
    assert_eq!(session.handle_timeout(due), None);
    assert!(session.poll_timeout().unwrap() > due, "it is not asked again and again");
    assert_eq!(session.handle_timeout(due + SECOND), None);
    let written: Vec<_> = std::iter::from_fn(|| session.poll_transmit(due + SECOND, first)).collect();
    let ack = Control::Ack { acknowledged: 1, window: None };
    assert_eq!(written, [Transmit::Control(ack.encode())], "it leaves as soon as there is room");
}

#[test]
fn if_two_probes_wait_only_the_newer_leaves() {
    let mut pair = Pair::default();
    let first = pair.connect();
    let (mut now, session) = (pair.now, pair.session());
    let mut probe = |session: &mut ServerSession| {
        for _ in 0..1000 {
            now = now.max(session.poll_timeout().unwrap());
            // It is alive, and accepts a few bytes now and then.
            session.handle_bytes(now, first);
            session.handle_write_progress(now, first);
            if let Some(Action::Probe { nonce }) = session.handle_timeout(now) {
                return (now, nonce);
            }
        }
        panic!("no probe");
    };
    let (at, older) = probe(session);
    // The Ping leaves, then the socket is full.
    assert_eq!(session.poll_transmit(at, first), Some(Transmit::Ping(older)));
    let (at, newer) = probe(session);
    let written: Vec<_> = std::iter::from_fn(|| session.poll_transmit(at, first)).collect();
    let [Transmit::Ping(nonce), Transmit::Control(ping)] = written.as_slice() else { panic!("{written:?}") };
    let Ok(Frame::Control(Control::Ping(beat))) = Frame::decode(Message::Binary(ping.clone())) else {
        panic!()
    };
    assert_eq!((*nonce, beat.nonce), (newer, newer));
}

#[test]
fn a_new_session_evicts_the_one_whose_client_has_been_away_for_the_longest() {
    let registry = RegistryConfig { sessions: 3, ..RegistryConfig::default() };
    let mut pair = Pair::new(ClientConfig::default(), server_config(), registry);
    pair.client_sends("a");
    let first = pair.connect();
    for number in 1..=2 {
        let connection = pair.wire();
        pair.hello(connection, &stranger(number));
        pair.cut_at_server(connection);
        pair.wait(9 * SECOND);
    }
    for (number, is_left) in [(3, [true, false, true]), (4, [true, false, false])] {
        if number == 4 {
            let connection = pair.wire();
            let answer = pair.hello(connection, &stranger(number));
            assert!(
                matches!(answer, Answer::Refused { why: RefuseReason::NoRoom, .. }),
                "away for 9 s: {answer:?}"
            );
            pair.wait(SECOND);
        }
        let connection = pair.wire();
        let answer = pair.hello(connection, &stranger(number));
        assert!(matches!(answer, Answer::Attached { created: true, evicted: Some(_), .. }), "{answer:?}");
        let left = [0, 1, 2].map(|index| pair.server.sessions.get(index).closed().is_none());
        assert_eq!(left, is_left, "the one that is attached stays, of the others the older goes first");
    }
    // A client that lost its session in this way receives its account, and every attached client keeps its session.
    pair.cut(first);
    pair.wait(10 * SECOND);
    let connection = pair.wire();
    pair.hello(connection, &stranger(5));
    assert_eq!(pair.server.sessions.get(0).closed(), Some(Closed::Evicted));
    pair.cut_at_server(connection);
    pair.wait(10 * SECOND);
    pair.connect();
    assert_eq!(
        pair.gaps().iter().map(|fate| (fate.delivered, fate.cause)).collect::<Vec<_>>(),
        [(1, LossCause::Evicted)]
    );
}

/// A session of this source whose client leaves at once.
fn opens_and_leaves(pair: &mut Pair, number: u8, address: &str) {
    pair.server.sessions.source = Some(Source::of(address.parse().unwrap()));
    let connection = pair.wire();
    let answer = pair.hello(connection, &stranger(number));
    assert!(matches!(answer, Answer::Attached { created: true, .. }), "{answer:?}");
    pair.cut_at_server(connection);
}

fn left(pair: &mut Pair) -> Vec<bool> {
    (0..pair.server.sessions.len()).map(|index| pair.server.sessions.get(index).closed().is_none()).collect()
}

#[test]
fn where_sessions_are_scarce_the_source_that_has_most_loses_its_own_first() {
    let registry = RegistryConfig { sessions: 4, ..RegistryConfig::default() };
    let mut pair = Pair::new(ClientConfig::default(), server_config(), registry);
    opens_and_leaves(&mut pair, 1, "10.0.0.1");
    for (number, address) in [(2, "2001:db8::1"), (3, "2001:db8::2"), (4, "2001:db8::3")] {
        pair.wait(SECOND);
        opens_and_leaves(&mut pair, number, address);
    }
    pair.wait(10 * SECOND);
    opens_and_leaves(&mut pair, 5, "10.0.0.2");
    assert_eq!(
        left(&mut pair),
        [true, false, true, true, true],
        "not the one that has been away for the longest"
    );
}

#[test]
fn a_source_that_has_as_many_parked_sessions_as_it_may_have_loses_the_oldest_by_opening_another() {
    let registry = RegistryConfig { parked_per_source: Some(2), ..RegistryConfig::default() };
    let mut pair = Pair::new(ClientConfig::default(), server_config(), registry);
    for number in 1..=3 {
        opens_and_leaves(&mut pair, number, "2001:db8::1");
        opens_and_leaves(&mut pair, 100 + number, "10.0.0.1");
        pair.wait(SECOND);
    }
    assert_eq!(left(&mut pair), [true; 6], "two may be away while a third is opened");
    opens_and_leaves(&mut pair, 4, "2001:db8::2");
    assert_eq!(left(&mut pair), [false, true, true, true, true, true, true], "one /64 is one source");
    // Another source is not concerned, and what a source has attached does not count.
    pair.server.sessions.source = Some(Source::of("10.0.0.9".parse().unwrap()));
    for number in 5..=20 {
        let connection = pair.wire();
        pair.hello(connection, &stranger(number));
    }
    assert_eq!(left(&mut pair).iter().filter(|is_left| !**is_left).count(), 1);
}

#[test]
fn a_session_that_is_being_ended_while_its_client_is_away_makes_room_too() {
    let registry = RegistryConfig { sessions: 1, ..RegistryConfig::default() };
    let mut pair = Pair::new(ClientConfig::default(), server_config(), registry);
    opens_and_leaves(&mut pair, 1, "10.0.0.1");
    let now = pair.now;
    pair.server.sessions.get(0).close(now, CloseCode::NORMAL, "");
    pair.wait(10 * SECOND);
    opens_and_leaves(&mut pair, 2, "10.0.0.2");
    assert_eq!(left(&mut pair), [false, true]);
}

#[test]
fn burying_a_session_again_after_its_tombstone_is_forgotten_gives_no_place_away() {
    let registry = RegistryConfig { sessions: 1, tombstones: 0, ..RegistryConfig::default() };
    let mut pair = Pair::new(ClientConfig::default(), server_config(), registry);
    opens_and_leaves(&mut pair, 1, "10.0.0.1");
    pair.server.sessions.get(0).evict();
    let over = pair.server.sessions.get(0).clone();
    pair.server.registry.bury(pair.now, &over);
    opens_and_leaves(&mut pair, 2, "10.0.0.1");
    pair.server.registry.bury(pair.now, &over);
    let connection = pair.wire();
    let answer = pair.hello(connection, &stranger(3));
    assert!(matches!(answer, Answer::Refused { why: RefuseReason::NoRoom, .. }), "{answer:?}");
}

#[test]
fn a_lost_session_waits_for_room_and_then_receives_its_account() {
    let mut pair = Pair::with_room_for_one();
    pair.client_sends("a");
    pair.run();
    let first = pair.client.current().unwrap();
    pair.cut(first);
    pair.wait(RESUME_WINDOW);
    let other = pair.wire();
    assert!(matches!(pair.hello(other, &stranger(1)), Answer::Attached { created: true, .. }));
    pair.connect();
    assert_eq!((pair.server.refusals.as_slice(), pair.gaps()), ([RefuseReason::NoRoom].as_slice(), vec![]));
    pair.cut(other);
    pair.wait(RESUME_WINDOW);
    pair.connect();
    assert_eq!(
        pair.gaps().iter().map(|fate| (fate.delivered, fate.cause)).collect::<Vec<_>>(),
        [(1, LossCause::Expired)]
    );
}

// ---- what the server remembers ------------------------------------------------------------------

const DAY: Duration = Duration::from_secs(86_400);

/// Sessions of strangers that came, left and expired, one after the other.
fn bury_strangers(pair: &mut Pair, numbers: std::ops::RangeInclusive<u8>) {
    for number in numbers {
        let connection = pair.wire();
        assert!(matches!(pair.hello(connection, &stranger(number)), Answer::Attached { created: true, .. }));
        pair.cut_at_server(connection);
        pair.wait(RESUME_WINDOW);
        assert_eq!(pair.over(), Some(Closed::Expired));
    }
}

#[test]
fn tombstones_are_bounded_and_the_oldest_go_first() {
    let registry = RegistryConfig { tombstones: 3, ..RegistryConfig::default() };
    let mut pair = Pair::new(ClientConfig::default(), server_config(), registry);
    bury_strangers(&mut pair, 1..=5);
    let (names, tombstones) = pair.server.registry.size();
    assert_eq!((tombstones, names), (3, pair.server.registry.tombstoned_names()));

    // A key with a tombstone is refused; one whose tombstone was dropped is older than the memory.
    for (number, why) in [(5, RefuseReason::KeyUsed), (1, RefuseReason::KeyTooOld)] {
        let connection = pair.wire();
        let mut hello = stranger(number);
        hello.key_age = RESUME_WINDOW * 5;
        assert!(matches!(pair.hello(connection, &hello), Answer::Refused { why: got, .. } if got == why));
    }
}

#[test]
fn tombstones_are_forgotten_after_a_day() {
    let mut pair = Pair::default();
    bury_strangers(&mut pair, 1..=3);
    assert_eq!(pair.server.registry.size().1, 3);
    pair.now += DAY;
    let connection = pair.wire();
    pair.hello(connection, &stranger(9));
    assert_eq!(pair.server.registry.size().1, 0);
    assert_eq!(pair.server.registry.tombstoned_names(), 0);
}

#[test]
fn a_forgotten_session_has_no_account_and_everything_unacknowledged_is_unknown() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.client_sends("a");
    pair.lose_written(first);
    pair.cut(first);
    pair.wait(RESUME_WINDOW);
    pair.now += DAY;
    pair.connect();
    let fate = pair.gaps()[0];
    assert_eq!((fate.delivered, fate.unknown, fate.last), (0, 1, 1));
    assert_eq!((fate.resent, fate.lost, fate.cause), (false, None, LossCause::Unknown));
}

#[test]
fn reading_an_account_does_not_use_it_up() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.server_sends("x");
    pair.lose_written(first);
    pair.cut(first);
    pair.wait(RESUME_WINDOW);
    for _ in 0..3 {
        let lost = pair.open();
        pair.deliver_up(lost);
        pair.lose_written(lost);
        pair.cut(lost);
        pair.wait(RESUME_WINDOW + SECOND);
    }
    // The session that the first of these HELLOs made is gone, too, and its key with it: another key
    // is needed, but the account of what was asked for is still there.
    pair.server.refusals.clear();
    pair.connect();
    assert_eq!((pair.server.refusals.as_slice(), pair.gaps().len()), ([RefuseReason::KeyUsed].as_slice(), 0));
    pair.connect();
    assert_eq!(
        pair.gaps().first().map(|fate| (fate.lost, fate.cause)),
        Some((Some(LostMessages { first: 1, count: 1 }), LossCause::Expired))
    );
}

#[test]
fn an_evicted_session_is_accounted_for() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.client_sends("a");
    pair.run();
    pair.cut(first);
    pair.session().evict();
    pair.connect();
    let fate = pair.gaps()[0];
    assert_eq!((fate.delivered, fate.last, fate.cause), (1, 1, LossCause::Evicted));
}

#[test]
fn a_retired_session_is_over_once_it_has_no_connection() {
    let mut pair = Pair::default();
    let first = pair.connect();
    pair.client_sends("a");
    pair.session().retire();
    pair.run();
    assert_eq!(pair.session().closed(), None, "its connection goes on");
    assert_eq!(pair.session().acknowledged_inbound(), 1);
    pair.cut(first);
    assert_eq!(pair.session().closed(), Some(Closed::Evicted));

    let mut pair = Pair::default();
    let first = pair.connect();
    pair.cut(first);
    pair.session().retire();
    assert_eq!(pair.session().closed(), Some(Closed::Evicted), "no client can resume it");
}

#[test]
fn a_full_registry_refuses_new_sessions_and_still_resumes_the_others() {
    let registry = RegistryConfig { sessions: 1, ..RegistryConfig::default() };
    let mut pair = Pair::new(ClientConfig::default(), server_config(), registry);
    let first = pair.connect();
    let connection = pair.wire();
    let answer = pair.hello(connection, &stranger(1));
    assert!(matches!(answer, Answer::Refused { why: RefuseReason::NoRoom, .. }), "{answer:?}");
    pair.cut(first);
    pair.connect();
    assert_eq!(pair.attaches(), [(1, false), (2, true)]);
    // Once it is buried, its place is another's.
    pair.session().evict();
    let buried = pair.server.sessions.get(0).clone();
    pair.server.registry.bury(pair.now, &buried);
    let connection = pair.wire();
    assert!(matches!(pair.hello(connection, &stranger(1)), Answer::Attached { created: true, .. }));
}
