//! The engine as a node sees it: up, silent, away, refusing.

use std::time::Duration;

use mainstay_proto::cluster::request::{EngineEvent, Request, Response};
use mainstay_proto::cluster::{Nodes, NodesEvent};

use super::engine::{World, info, nodes};

const SECOND: Duration = Duration::from_secs(1);

fn events(nodes: &mut Nodes) -> Vec<NodesEvent> {
    std::iter::from_fn(|| nodes.poll_event()).collect()
}

fn up() -> NodesEvent {
    NodesEvent::EngineUp { incarnation: Some("one".into()), changed: false }
}

fn is_down(event: &NodesEvent) -> bool {
    matches!(event, NodesEvent::EngineDown { .. })
}

#[test]
fn an_engine_that_leaves_a_request_unanswered_for_one_second_is_unreachable() {
    let mut world = World::of(&[1]);
    world.member(1).is_deaf = true;
    while world.nodes[&1].unanswered.is_empty() {
        world.run(SECOND / 100);
    }
    world.run(SECOND * 9 / 10);
    assert_eq!(world.events(1), []);
    world.run(SECOND / 5);
    assert_eq!(world.events(1), [NodesEvent::EngineDown { reason: "no answer for 1 s".into() }]);
    assert!(!world.node(1).is_engine_up());
    world.run(60 * SECOND);
    assert_eq!(world.events(1), [], "reported once");
    let asked = world.nodes[&1].unanswered.len();
    assert!((8..=20).contains(&asked), "it is asked again and again: {asked}");
    world.member(1).is_deaf = false;
    world.run(6 * SECOND);
    assert_eq!(world.events(1), [up()]);
}

#[test]
fn a_lost_connection_is_reported_with_its_reason_and_nothing_is_requested_meanwhile() {
    let mut world = World::of(&[1]);
    world.disconnect(1);
    assert_eq!(world.events(1), [NodesEvent::EngineDown { reason: "connection reset".into() }]);
    let executed = world.engine.executed.len();
    world.disconnect(1);
    world.run(60 * SECOND);
    assert_eq!((world.events(1), world.engine.executed.len()), (vec![], executed));
    world.reconnect(1);
    assert_eq!(world.events(1), [up()]);
    assert_eq!(world.engine.executed.len(), executed + 1, "a heartbeat at once");
}

#[test]
fn a_heartbeat_of_unknown_outcome_is_repeated_within_a_second() {
    let mut world = World::of(&[1]);
    world.run(SECOND);
    while world.node(1).poll_timeout().is_some_and(|at| at > world.now) {
        world.now = world.node(1).poll_timeout().unwrap();
    }
    let now = world.now;
    world.node(1).handle_timeout(now);
    let (id, _) = world.node(1).poll_request(now).unwrap();
    world.node(1).handle_response(now, id, Response::Unknown);
    assert_eq!(world.node(1).poll_request(now), None);
    let executed = world.engine.count("heartbeat");
    world.run(SECOND * 6 / 10);
    assert_eq!(world.engine.count("heartbeat"), executed + 1);
}

#[test]
fn an_engine_that_refuses_heartbeats_is_unreachable_and_reports_its_reason_once() {
    let start = crate::pair::start();
    let (mut nodes, mut now) = (nodes(start, 1, true), start);
    nodes.announce(now, info(1));
    nodes.handle_engine(now, EngineEvent::Reachable { incarnation: Some("one".into()) });
    assert_eq!(events(&mut nodes), [up()]);
    for _ in 0..5 {
        let (id, _) = nodes.poll_request(now).unwrap();
        nodes.handle_response(now, id, Response::Refused("READONLY".into()));
        now += 4 * SECOND;
        nodes.handle_timeout(now);
    }
    let refuses = NodesEvent::EngineRefuses { request: "heartbeat", reason: "READONLY".into() };
    assert_eq!(events(&mut nodes), [NodesEvent::EngineDown { reason: "READONLY".into() }, refuses.clone()]);
    let (id, _) = nodes.poll_request(now).unwrap();
    nodes.handle_response(now, id, Response::Table(vec![]));
    assert_eq!(events(&mut nodes), [up()]);
    now += 4 * SECOND;
    let (id, _) = nodes.poll_request(now).unwrap();
    nodes.handle_response(now, id, Response::Refused("READONLY".into()));
    assert!(events(&mut nodes).contains(&refuses), "it had executed one in between");
}

#[test]
fn responses_to_requests_that_were_given_up_change_nothing() {
    let mut world = World::of(&[1]);
    world.member(1).is_deaf = true;
    world.run(30 * SECOND);
    assert!(world.events(1).iter().any(is_down));
    let late = std::mem::take(&mut world.member(1).unanswered);
    let (now, (last, _)) = (world.now, late.last().unwrap().clone());
    for (id, request) in late.into_iter().filter(|(id, _)| *id != last) {
        assert!(matches!(request, Request::Heartbeat { .. }));
        world.node(1).handle_response(now, id, Response::Table(vec![]));
    }
    assert!(!world.node(1).is_engine_up());
    world.node(1).handle_response(now, last, Response::Table(vec![]));
    assert!(world.node(1).is_engine_up(), "the last one was still open");
}

#[test]
fn a_node_without_an_engine_requests_nothing() {
    let start = crate::pair::start();
    let mut alone = nodes(start, 1, false);
    assert!(!alone.has_engine());
    assert!(alone.is_complete());
    assert_eq!((alone.poll_request(start), alone.poll_timeout(), alone.poll_event()), (None, None, None));
}

#[test]
fn the_figures_count_living_and_dead_nodes() {
    let mut world = World::of(&[1, 2, 3]);
    world.nodes.remove(&3);
    world.run(20 * SECOND);
    let status = world.node(1).status();
    assert_eq!((status.alive, status.dead, status.engine_up, status.is_complete), (1, 1, true, true));
}

#[test]
fn an_engine_that_reports_its_incarnation_after_a_silence_is_up_for_another_second() {
    let mut world = World::of(&[1]);
    world.member(1).is_deaf = true;
    world.run(4 * SECOND);
    while world.nodes[&1].unanswered.len() < 2 {
        world.run(SECOND / 10);
    }
    world.run(2 * SECOND);
    world.events(1);
    world.reconnect(1);
    world.run(SECOND / 2);
    assert_eq!(world.events(1), [up()]);
    world.run(SECOND);
    assert!(world.events(1).iter().any(is_down));
}
