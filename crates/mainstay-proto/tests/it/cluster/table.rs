//! The node table: which nodes are seen, dead, left or foreign, and when an unlisted node is gone.

use std::time::Duration;

use bytes::Bytes;
use mainstay_proto::cluster::request::{EngineEvent, Request, Response};
use mainstay_proto::cluster::{Mark, NodesEvent, PeerKey, Step};

use super::engine::{World, address, id, info, name, nodes, token};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// Whether a token of this node is looked up there, waits, or is unknown.
fn route(world: &mut World, at: u8, of: u8) -> &'static str {
    let now = world.now;
    let nodes = world.node(at);
    let step = nodes.begin(now, &token(id(of)), name(id(of)), false, false).poll(now, nodes);
    match step {
        Step::Ask { .. } => "ask",
        Step::Wait => "wait",
        Step::Unknown => "unknown",
        Step::Claiming => "claim",
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_writes_its_field_every_three_seconds_and_not_in_step_with_others() {
    let mut world = World::young(&[1, 2]);
    let mut times = vec![vec![], vec![]];
    let start = world.now;
    for _ in 0..600 {
        world.run(SECOND / 10);
        for (number, times) in [1, 2].into_iter().zip(&mut times) {
            let field = world.engine.fields[&id(number)].clone();
            if times.last().is_none_or(|(_, last)| *last != field) {
                times.push((world.now - start, field));
            }
        }
    }
    for times in &times {
        assert!((18..=22).contains(&times.len()), "{}", times.len());
    }
    let at = |times: &[(Duration, Bytes)]| times.iter().map(|(at, _)| *at).collect::<Vec<_>>();
    assert_ne!(at(&times[0]), at(&times[1]));
}

#[test]
fn a_node_writes_nothing_before_it_announces_itself_and_at_once_after_it() {
    let mut world = World::young(&[]);
    let mut alone = nodes(world.now, 1, true);
    alone.handle_engine(world.now, EngineEvent::Reachable { incarnation: None });
    assert_eq!(alone.poll_request(world.now), None);
    assert_eq!(alone.poll_timeout(), None);
    world.now += SECOND;
    alone.announce(world.now, info(1));
    assert!(matches!(alone.poll_request(world.now), Some((_, Request::Heartbeat { .. }))));
    assert_eq!(alone.poll_request(world.now), None, "one heartbeat is open at a time");
}

#[test]
fn a_node_is_asked_as_soon_as_it_is_seen() {
    let mut world = World::of(&[1, 2]);
    world.start(3);
    world.run(4 * SECOND);
    let seen = NodesEvent::NodeSeen { node: id(3), address: Some(address(3)) };
    assert_eq!(world.events(1), [seen]);
    assert_eq!(route(&mut world, 1, 3), "ask");
}

#[test]
fn an_unlisted_node_is_gone_after_ten_seconds_of_answers_and_not_earlier() {
    let mut world = World::young(&[1]);
    let mut waited = Duration::ZERO;
    while route(&mut world, 1, 9) == "wait" {
        world.run(SECOND / 10);
        waited += SECOND / 10;
    }
    assert_eq!(route(&mut world, 1, 9), "unknown");
    assert!((10 * SECOND..14 * SECOND).contains(&waited), "{waited:?}");
    assert!(world.node(1).is_complete());
    assert_eq!(world.engine.count("claim"), 0, "an unknown token costs the engine nothing");
}

#[test]
fn a_break_makes_the_table_incomplete_again() {
    let mut world = World::of(&[1, 2]);
    assert_eq!(route(&mut world, 1, 9), "unknown");
    world.disconnect(1);
    assert_eq!(route(&mut world, 1, 9), "wait");
    assert_eq!(route(&mut world, 1, 2), "ask", "the last table serves meanwhile");
    world.reconnect(1);
    world.run(9 * SECOND);
    assert_eq!(route(&mut world, 1, 9), "wait");
    world.run(5 * SECOND);
    assert_eq!(route(&mut world, 1, 9), "unknown");
}

#[test]
fn another_incarnation_makes_the_table_incomplete_again() {
    let mut world = World::of(&[1]);
    let now = world.now;
    world.node(1).handle_engine(now, EngineEvent::Reachable { incarnation: Some("two".into()) });
    assert_eq!(route(&mut world, 1, 9), "wait");
    world.settle();
    let up = NodesEvent::EngineUp { incarnation: Some("two".into()), changed: true };
    assert_eq!(world.events(1), [up]);
}

#[test]
fn nodes_that_an_emptied_engine_has_lost_are_still_asked() {
    let mut world = World::of(&[1, 2, 3]);
    world.engine.fields.clear();
    for member in [2, 3] {
        world.member(member).is_deaf = true;
    }
    world.run(4 * SECOND);
    assert_eq!(world.engine.fields.len(), 1);
    assert_eq!(route(&mut world, 1, 2), "ask");
    assert_eq!(route(&mut world, 1, 9), "wait", "the engine may have lost any node");
    world.run(14 * SECOND);
    assert_eq!(route(&mut world, 1, 2), "unknown");
}

#[test]
fn a_node_is_dead_once_its_field_was_unchanged_for_ten_seconds_of_answers() {
    let mut world = World::of(&[1, 2]);
    world.member(2).is_paused = true;
    world.run(9 * SECOND);
    assert_eq!(world.events(1), []);
    world.run(9 * SECOND);
    assert_eq!(world.events(1), [NodesEvent::NodeDead { node: id(2) }]);
    assert_eq!(route(&mut world, 1, 2), "ask", "a dead node is asked");
    assert_eq!(world.node(1).status().dead, 1);
    world.member(2).is_paused = false;
    world.run(4 * SECOND);
    let seen = NodesEvent::NodeSeen { node: id(2), address: Some(address(2)) };
    assert_eq!(world.events(1), [seen]);
}

#[test]
fn time_in_which_the_engine_does_not_answer_makes_no_node_dead() {
    let mut world = World::of(&[1, 2]);
    world.member(2).is_paused = true;
    let mut connected = Duration::ZERO;
    while world.node(1).status().dead == 0 {
        assert!(connected < 40 * SECOND, "ten seconds of answers have passed, in pieces");
        world.disconnect(1);
        world.run(60 * SECOND);
        assert_eq!(world.node(1).status().dead, 0);
        world.reconnect(1);
        assert_eq!(world.node(1).status().dead, 0, "the time between two connections does not count");
        world.run(4 * SECOND);
        connected += 4 * SECOND;
    }
    assert!(connected > 10 * SECOND, "{connected:?}");
}

#[test]
fn a_node_that_was_paused_itself_declares_no_other_dead() {
    let mut world = World::of(&[1, 2]);
    world.member(1).is_paused = true;
    world.member(2).is_paused = true;
    world.run(60 * SECOND);
    world.member(1).is_paused = false;
    world.run(7 * SECOND);
    assert_eq!(world.events(1), []);
    assert_eq!(route(&mut world, 1, 9), "wait", "the engine may have been away meanwhile");
}

#[test]
fn a_slow_answer_counts_from_the_request_that_it_answers() {
    let start = crate::pair::start();
    let mut slow = nodes(start, 1, true);
    slow.announce(start, info(1));
    slow.handle_engine(start, EngineEvent::Reachable { incarnation: None });
    let field = info(2).to_bytes();
    let (mut now, mut first) = (start, None);
    while !slow.is_complete() {
        now = slow.poll_timeout().unwrap_or(now).max(now);
        slow.handle_timeout(now);
        if let Some((request, _)) = slow.poll_request(now) {
            let sent = now;
            now += SECOND * 9 / 10;
            slow.handle_response(now, request, Response::Table(vec![(id(2), field.clone())]));
            let apart = sent.saturating_duration_since(*first.get_or_insert(now));
            assert_eq!(slow.is_complete(), apart >= 10 * SECOND, "{apart:?}");
            assert_eq!(slow.status().dead == 1, apart >= 10 * SECOND, "{apart:?}");
        }
        assert!(now < start + 60 * SECOND);
    }
}

#[test]
fn a_node_that_leaves_reports_it_and_is_claimed_from_without_being_asked() {
    let mut world = World::of(&[1, 2]);
    let now = world.now;
    world.node(2).leave(now);
    world.settle();
    assert_eq!(world.events(2), [NodesEvent::Left]);
    world.run(4 * SECOND);
    assert_eq!(world.events(1), [NodesEvent::NodeLeft { node: id(2) }]);
    assert_eq!(route(&mut world, 1, 2), "claim");
    let heartbeats = world.engine.fields[&id(2)].clone();
    world.run(30 * SECOND);
    assert_eq!(world.engine.fields[&id(2)], heartbeats, "a node that left writes no more");
    assert_eq!(world.nodes[&2].nodes.poll_timeout(), None);
}

#[test]
fn the_field_of_a_node_that_left_is_deleted_after_a_day() {
    let mut world = World::of(&[1, 2]);
    let now = world.now;
    world.node(2).leave(now);
    world.settle();
    world.nodes.remove(&2);
    world.run(23 * HOUR);
    assert!(world.engine.fields.contains_key(&id(2)));
    world.run(2 * HOUR);
    assert!(!world.engine.fields.contains_key(&id(2)));
    assert_eq!(world.engine.count("forget"), 1);
    assert_eq!(route(&mut world, 1, 2), "unknown");
}

#[test]
fn the_field_of_a_dead_node_is_deleted_once_its_peer_listener_is_closed() {
    let mut world = World::of(&[1, 2]);
    world.nodes.remove(&2);
    world.run(25 * HOUR);
    let check = NodesEvent::CheckListener { node: id(2), address: address(2) };
    let asked = |events: &[NodesEvent]| events.iter().filter(|event| **event == check).count();
    let events = world.events(1);
    assert!((1..=8).contains(&asked(&events)), "{}", asked(&events));
    let now = world.now;
    world.node(1).listener_checked(now, id(2), false);
    world.settle();
    assert!(world.engine.fields.contains_key(&id(2)), "its peer listener is open");
    world.node(1).listener_checked(now, id(2), true);
    world.settle();
    assert!(!world.engine.fields.contains_key(&id(2)));
}

#[test]
fn a_living_node_loses_no_field_by_a_late_report() {
    let mut world = World::of(&[1, 2]);
    let now = world.now;
    world.node(1).listener_checked(now, id(2), true);
    world.settle();
    assert!(world.engine.fields.contains_key(&id(2)));
}

#[test]
fn the_field_of_a_dead_node_is_deleted_if_another_one_listens_there() {
    let mut world = World::of(&[1, 2]);
    world.nodes.remove(&2);
    world.start(3);
    let (now, info) = (world.now, mainstay_proto::cluster::NodeInfo { address: address(2), ..info(3) });
    world.node(3).announce(now, info);
    world.run(25 * HOUR);
    assert!(!world.engine.fields.contains_key(&id(2)));
    assert!(world.engine.fields.contains_key(&id(3)));
}

#[test]
fn a_field_that_cannot_be_read_is_reported_once_and_its_node_waited_for() {
    let mut world = World::of(&[1]);
    world.engine.fields.insert(id(2), Bytes::from_static(&[2, 0]));
    world.run(4 * SECOND);
    world.engine.fields.insert(id(2), Bytes::from_static(&[2, 1]));
    world.run(4 * SECOND);
    let events = world.events(1);
    let bad = events.iter().filter(|event| matches!(event, NodesEvent::BadField { .. })).count();
    assert_eq!(bad, 1, "{events:?}");
    assert_eq!(route(&mut world, 1, 2), "claim");
}

#[test]
fn a_node_of_another_cluster_under_the_same_name_is_reported() {
    let mut world = World::of(&[1, 2]);
    world.start(3);
    let (now, other) = (world.now, mainstay_proto::cluster::NodeInfo { mark: Mark([2; 8]), ..info(4) });
    let mut foreign = nodes(now, 4, true);
    foreign.announce(now, other.clone());
    foreign.handle_engine(now, EngineEvent::Reachable { incarnation: None });
    let (_, heartbeat) = foreign.poll_request(now).unwrap();
    world.engine.execute(&heartbeat);
    world.run(10 * SECOND);
    let events = world.events(1);
    let reported: Vec<_> =
        events.iter().filter(|event| matches!(event, NodesEvent::SameNameElsewhere { .. })).collect();
    let expected = NodesEvent::SameNameElsewhere { node: id(4), address: Some(address(4)) };
    assert_eq!(reported, [&expected], "node 3 has the same mark");
}

#[test]
fn another_process_with_this_nodes_id_is_reported() {
    let start = crate::pair::start();
    let mut nodes = nodes(start, 1, true);
    nodes.announce(start, info(1));
    nodes.handle_engine(start, EngineEvent::Reachable { incarnation: None });
    let (request, _) = nodes.poll_request(start).unwrap();
    let copy = mainstay_proto::cluster::NodeInfo { key: PeerKey([9; 16]), ..info(1) };
    nodes.handle_response(start, request, Response::Table(vec![(id(1), copy.to_bytes())]));
    let events: Vec<_> = std::iter::from_fn(|| nodes.poll_event()).collect();
    let reported = NodesEvent::SameNameElsewhere { node: id(1), address: Some(address(1)) };
    assert!(events.contains(&reported), "{events:?}");
}
