//! The end that sends notices a cut within seconds, at no cost of a byte to an idle client; and how soon it
//! reconnects.

use std::time::{Duration, Instant};

use mainstay_proto::confirm::ConfirmConfig;
use mainstay_proto::connect::{Command, ConnectConfig, Event, Lost, Mode, State};
use mainstay_proto::heartbeat::{Evidence, HeartbeatConfig};
use mainstay_proto::session::message::{Beat, Delay};
use mainstay_proto::session::{ConnectionId, Control, Frame, Message, Transmit};
use mainstay_proto::ws::{CloseCode, Kind};

use super::connect::{Node, abort, next_attempt_in, unreachable};
use super::pair::SECOND;

const MS: Duration = Duration::from_millis(1);

fn ack(acknowledged: u64) -> Control {
    Control::Ack { acknowledged, window: None }
}

/// The probes among what was written, and how many writes there were.
fn probes(node: &mut Node) -> (Vec<Beat>, usize) {
    let written: Vec<_> = node.commands.drain(..).collect();
    let beats = written.iter().filter_map(|command| match command {
        Command::Transmit(_, Transmit::Control(bytes)) => {
            match Frame::decode(Message::new(Kind::Binary, bytes.clone()).unwrap()) {
                Ok(Frame::Control(Control::Ping(beat))) => Some(beat),
                _ => None,
            }
        }
        _ => None,
    });
    (beats.collect(), written.len())
}

fn pong(node: &mut Node, connection: ConnectionId, beat: Beat, acknowledged: u64) {
    node.read(connection, &Control::Pong(Beat { nonce: beat.nonce, sent: 0, acknowledged }));
}

/// When the client gave the connection up, after `sent`, and by which evidence.
fn given_up(node: &mut Node, sent: Instant) -> Option<(Duration, Evidence)> {
    node.events.iter().find_map(|event| match event {
        Event::Detached { why: Lost::Dead(evidence), .. } => Some((node.now - sent, *evidence)),
        _ => None,
    })
}

#[test]
fn a_session_that_sends_over_a_cut_cable_notices_after_5_s() {
    let (mut node, _) = Node::attached();
    node.wait_flushing(10 * SECOND);
    node.send("into the void");
    let sent = node.now;
    node.wait_flushing(5 * SECOND - MS);
    assert_eq!(given_up(&mut node, sent), None);
    let (beats, _) = probes(&mut node);
    assert_eq!(beats.len(), 1);
    node.wait_flushing(MS);
    // 3 s until the probe, and its deadline of 2 s.
    assert_eq!(given_up(&mut node, sent), Some((5 * SECOND, Evidence::Silent)));
}

#[test]
fn a_slow_connection_has_four_round_trips_before_the_probe_and_four_after_it() {
    let (mut node, connection) = Node::attached();
    node.client.probe_now(node.now);
    node.flush();
    let (beats, _) = probes(&mut node);
    node.now += 2 * SECOND;
    pong(&mut node, connection, beats[0], 0);
    assert_eq!(node.client.rtt(), Some(2 * SECOND));
    node.commands.clear();
    node.send("into the void");
    let sent = node.now;
    node.wait_flushing(16 * SECOND);
    assert_eq!(given_up(&mut node, sent), Some((16 * SECOND, Evidence::Silent)));
}

#[test]
fn a_client_that_sends_nothing_writes_nothing_until_it_gives_up() {
    let (mut node, _) = Node::attached();
    node.wait_flushing(55 * SECOND - MS);
    assert_eq!(probes(&mut node).1, 0, "not a byte");
    assert!(node.client.is_attached());
    node.wait_flushing(MS);
    assert!(!node.client.is_attached());
}

#[test]
fn nothing_more_is_written_while_acknowledgements_come() {
    let (mut node, connection) = Node::attached();
    for number in 1..=600 {
        node.send("x");
        node.wait_flushing(SECOND / 4);
        node.read(connection, &ack(number));
        // Below its deadline, and above the time that an application at the other end needs.
        node.wait_flushing(SECOND * u32::try_from(number % 3).unwrap());
    }
    assert_eq!(probes(&mut node), (vec![], 600), "the messages alone");
    node.wait_flushing(50 * SECOND);
    assert_eq!(probes(&mut node).1, 0, "nothing is left to prove");
}

#[test]
fn an_application_that_lags_behind_is_probed_for_once() {
    let (mut node, connection) = Node::attached();
    node.send("x");
    node.wait_flushing(3 * SECOND);
    let (beats, _) = probes(&mut node);
    // The server's machine has it, and its application has not received it yet.
    pong(&mut node, connection, beats[0], 0);
    for _ in 0..20 {
        node.wait_flushing(10 * SECOND);
        let beat = Beat { nonce: 9, sent: 0, acknowledged: 0 };
        node.read(connection, &Control::Ping(beat));
        let (beats, written) = probes(&mut node);
        assert_eq!((beats.len(), written), (0, 1), "a PONG alone");
    }
    node.send("y");
    node.wait_flushing(3 * SECOND);
    assert_eq!(probes(&mut node).0.len(), 1, "what was sent since is proven by nothing");
}

#[test]
fn bytes_that_come_are_a_sign_of_life_as_good_as_an_acknowledgement() {
    let (mut node, connection) = Node::attached();
    node.send("x");
    for _ in 0..20 {
        node.wait_flushing(3 * SECOND - MS);
        node.client.handle_bytes(node.now, connection);
    }
    assert_eq!(probes(&mut node), (vec![], 1));
}

#[test]
fn a_full_socket_is_noticed_after_20_s_without_a_byte_in_either_direction() {
    let (mut node, connection) = Node::attached();
    node.send("x");
    // The socket accepts none of it: nothing is flushed.
    let sent = node.now;
    node.wait(10 * SECOND);
    node.client.handle_write_progress(node.now, connection);
    node.wait(20 * SECOND - MS);
    assert_eq!(given_up(&mut node, sent), None);
    node.wait(MS);
    assert_eq!(given_up(&mut node, sent), Some((30 * SECOND, Evidence::Stalled)));
}

#[test]
fn what_is_sent_again_after_a_resume_is_watched_as_well() {
    let (mut node, first) = Node::attached();
    node.send("x");
    node.lose(first, Lost::Broken("reset".into()));
    let wait = next_attempt_in(&node.event());
    node.wait(wait);
    node.commands.retain(|command| matches!(command, Command::Dial(_)));
    let second = node.dialled();
    node.open(second, Mode::Session);
    node.welcome(second, 2, 0);
    node.commands.clear();
    node.events.clear();
    let sent = node.now;
    node.wait_flushing(5 * SECOND);
    assert_eq!(given_up(&mut node, sent), Some((5 * SECOND, Evidence::Silent)));
}

/// The connection is lost, and followed by another on which the session goes on; returns it.
fn again(node: &mut Node, epoch: u64) -> ConnectionId {
    while let State::Waiting { until } = node.client.state() {
        node.wait(until - node.now);
    }
    // A replacement may be on its way already.
    let dials = node.commands.iter().filter_map(|command| match command {
        Command::Dial(connection) => Some(*connection),
        Command::Transmit(..) => None,
    });
    let connection = dials.last().unwrap();
    node.open(connection, Mode::Session);
    node.welcome(connection, epoch, 0);
    node.commands.clear();
    node.events.clear();
    connection
}

#[test]
fn a_link_with_full_buffers_is_given_longer_after_each_verdict_until_something_comes_in_time() {
    let (mut node, _) = Node::attached();
    node.send("x");
    for (epoch, verdict) in [(2, 5), (3, 16), (4, 40), (5, 40)] {
        let sent = node.now;
        node.wait_flushing(verdict * SECOND);
        assert_eq!(given_up(&mut node, sent), Some((verdict * SECOND, Evidence::Silent)), "epoch {epoch}");
        again(&mut node, epoch);
    }
    // An acknowledgement that came after 12 s is one that came.
    let connection = node.client.writer().unwrap();
    node.wait_flushing(12 * SECOND);
    node.read(connection, &ack(1));
    node.events.clear();
    node.send("y");
    let sent = node.now;
    node.wait_flushing(5 * SECOND);
    assert_eq!(given_up(&mut node, sent), Some((5 * SECOND, Evidence::Silent)));
}

/// A link that is known to answer Pings, and whose next beat is far away.
fn link(config: ConnectConfig) -> (Node, ConnectionId) {
    let heartbeat = HeartbeatConfig::every(3600 * SECOND).unwrap();
    let confirm = ConfirmConfig::default().expects_pongs(true);
    let mut node = Node::new(ConnectConfig { heartbeat, confirm, link: true, ..config });
    let connection = node.dialled();
    node.open(connection, Mode::Plain);
    node.events.clear();
    (node, connection)
}

fn answer_pings(node: &mut Node, connection: ConnectionId) -> usize {
    let mut count = 0;
    while let Some(command) = node.commands.pop_front() {
        if let Command::Transmit(_, Transmit::Ping(nonce)) = command {
            node.client.handle_pong(node.now, connection, &nonce.to_be_bytes());
            count += 1;
        }
    }
    count
}

#[test]
fn a_link_that_sends_over_a_cut_cable_notices_after_8_s() {
    let (mut node, connection) = link(ConnectConfig::default());
    node.send("into the void");
    let sent = node.now;
    node.wait_flushing(SECOND / 4);
    assert!(matches!(node.commands.pop_back(), Some(Command::Transmit(_, Transmit::Ping(1)))));
    node.wait_flushing(8 * SECOND);
    // 0.25 s until the confirming Ping, 3 s for its Pong, and the heartbeat's deadline of 5 s.
    let (noticed, evidence) = given_up(&mut node, sent).unwrap();
    assert!(noticed <= 8 * SECOND + SECOND / 4, "{noticed:?}");
    assert_eq!(evidence, Evidence::Silent);
    assert!(node.commands.contains(&abort(connection)));
}

#[test]
fn a_link_is_not_probed_for_unconfirmed_messages_if_that_is_switched_off() {
    let (mut node, _) = link(ConnectConfig { probes_unconfirmed: false, ..ConnectConfig::default() });
    node.send("into the void");
    node.wait_flushing(15 * SECOND);
    assert!(node.client.is_attached());
}

#[test]
fn a_link_whose_pongs_come_writes_no_ping_more() {
    let (mut node, connection) = link(ConnectConfig::default());
    let mut pings = 0;
    for _ in 0..20 {
        node.send("x");
        node.wait_flushing(SECOND / 4);
        node.now += SECOND;
        pings += answer_pings(&mut node, connection);
        node.wait_flushing(10 * SECOND);
    }
    assert!((20..=21).contains(&pings), "{pings}: one for each message, and perhaps one beat");
}

// ---- back again ---------------------------------------------------------------------------------------

#[test]
fn a_lost_connection_pulls_the_next_attempt_to_within_a_second_though_replacements_failed() {
    let (mut node, first) = Node::attached();
    node.wait_flushing(SECOND);
    let delay = Delay { min: Duration::ZERO, max: Duration::ZERO };
    let leave = Control::GoAway { reason: String::new(), delay, close_in: 300 * SECOND, endpoint: None };
    node.read(first, &leave);
    // There is no server to go to.
    for _ in 0..8 {
        while !matches!(node.commands.front(), Some(Command::Dial(_))) {
            node.commands.clear();
            node.wait(SECOND);
            node.client.handle_bytes(node.now, first);
        }
        let attempt = node.dialled();
        node.lose(attempt, unreachable());
    }
    node.events.clear();
    let State::Attached { .. } = node.client.state() else { panic!("{:?}", node.client.state()) };
    node.lose(first, Lost::Closed { code: Some(CloseCode::RESTART), reason: String::new() });
    let wait = next_attempt_in(&node.event());
    assert!(wait <= SECOND, "{wait:?}");
    node.wait(wait);
    node.dialled();
}

#[test]
fn a_train_ride_does_not_add_up_to_long_waits() {
    let (mut node, mut connection) = Node::attached();
    for ride in 2..40 {
        node.send("x");
        node.wait_flushing(3 * SECOND);
        node.client.handle_bytes(node.now, connection);
        node.read(connection, &ack(ride - 1));
        node.events.clear();
        node.commands.clear();
        node.lose(connection, Lost::Broken("tunnel".into()));
        let wait = next_attempt_in(&node.event());
        assert!(wait <= SECOND, "ride {ride}: {wait:?}");
        node.wait(wait);
        connection = node.dialled();
        node.open(connection, Mode::Session);
        node.welcome(connection, ride, ride - 1);
    }
}

#[test]
fn a_plain_peer_that_never_answered_a_ping_is_not_probed_for_unconfirmed_messages() {
    let heartbeat = HeartbeatConfig::every(3600 * SECOND).unwrap();
    let mut node = Node::new(ConnectConfig { heartbeat, link: true, ..ConnectConfig::default() });
    let connection = node.dialled();
    node.open(connection, Mode::Plain);
    node.send("x");
    node.wait_flushing(60 * SECOND);
    assert!(node.client.is_attached());
}
