//! Releases: repeated until their outcome is known, or given up at the drain's deadline.

use std::time::Duration;

use mainstay_proto::cluster::request::{EngineEvent, Request, Response};
use mainstay_proto::cluster::{NodesEvent, ReleaseOutcome};
use mainstay_proto::session::message::SessionId;

use super::engine::{KEEP, SESSION, World, id, record};

const SECOND: Duration = Duration::from_secs(1);

fn released(outcome: ReleaseOutcome) -> NodesEvent {
    NodesEvent::Released { session: SESSION, outcome }
}

fn release(world: &mut World) {
    let now = world.now;
    world.node(1).release(now, SESSION, 1, record(id(1)), KEEP);
}

/// The request of node 1 that comes next, and is answered by hand.
fn next(world: &mut World) -> (mainstay_proto::cluster::request::RequestId, Request) {
    let now = world.now;
    world.node(1).poll_request(now).unwrap()
}

fn answer(world: &mut World, id: mainstay_proto::cluster::request::RequestId, response: Response) {
    let now = world.now;
    world.node(1).handle_response(now, id, response);
}

#[test]
fn a_release_that_the_engine_stored_is_reported() {
    let mut world = World::of(&[1]);
    release(&mut world);
    world.settle();
    assert_eq!(world.events(1), [released(ReleaseOutcome::Stored)]);
    assert_eq!(world.engine.held[&SESSION].owner, None);
}

#[test]
fn a_release_of_unknown_outcome_is_repeated_as_it_was() {
    let mut world = World::of(&[1]);
    release(&mut world);
    let (first, request) = next(&mut world);
    answer(&mut world, first, Response::Unknown);
    let now = world.now;
    assert_eq!(world.node(1).poll_request(now), None, "not at once");
    world.run(SECOND / 10);
    assert_eq!(world.events(1), []);
    world.now += SECOND / 5;
    let (_, again) = next(&mut world);
    assert_eq!(again, request);
}

#[test]
fn fenced_in_answer_to_a_repeated_release_shows_that_it_worked() {
    let mut world = World::of(&[1, 2]);
    release(&mut world);
    let (first, request) = next(&mut world);
    world.engine.execute(&request);
    answer(&mut world, first, Response::Unknown);
    let (session, owner, name) = (SESSION, id(1), super::engine::name(id(1)));
    let claim = Request::Claim { session, owner, disowned: false, claimant: id(2), name, keep: KEEP };
    assert!(matches!(world.engine.execute(&claim), Response::Claimed { claim: 2, .. }));
    world.run(SECOND);
    assert_eq!(world.events(1), [released(ReleaseOutcome::Stored)]);
    assert_eq!(world.engine.held[&SESSION].owner, Some(id(2)), "the claim stands");
}

#[test]
fn fenced_in_answer_to_a_first_release_shows_that_the_session_is_elsewhere() {
    let mut world = World::of(&[1]);
    release(&mut world);
    let (first, _) = next(&mut world);
    answer(&mut world, first, Response::Fenced(Some(id(2))));
    world.settle();
    assert_eq!(world.events(1), [released(ReleaseOutcome::Fenced(Some(id(2))))]);
}

#[test]
fn a_refused_release_is_not_repeated() {
    let mut world = World::of(&[1]);
    release(&mut world);
    let (first, _) = next(&mut world);
    answer(&mut world, first, Response::Refused("OOM".into()));
    world.settle();
    let refused = NodesEvent::EngineRefuses { request: "release", reason: "OOM".into() };
    assert_eq!(world.events(1), [released(ReleaseOutcome::Refused("OOM".into())), refused]);
    world.run(10 * SECOND);
    assert_eq!(world.engine.count("release"), 0);
}

#[test]
fn releases_wait_for_an_unreachable_engine_and_go_once_it_is_back() {
    let mut world = World::of(&[1]);
    world.disconnect(1);
    release(&mut world);
    world.run(30 * SECOND);
    assert_eq!(world.node(1).status().releases, 1);
    world.events(1);
    world.reconnect(1);
    assert!(world.events(1).contains(&released(ReleaseOutcome::Stored)));
    assert_eq!(world.node(1).status().releases, 0);
}

#[test]
fn a_release_that_a_lost_connection_left_open_is_repeated_at_the_next_one() {
    let mut world = World::of(&[1]);
    world.member(1).is_deaf = true;
    release(&mut world);
    world.settle();
    world.member(1).is_deaf = false;
    world.disconnect(1);
    world.run(SECOND);
    world.reconnect(1);
    assert!(world.events(1).contains(&released(ReleaseOutcome::Stored)));
}

#[test]
fn releases_that_are_given_up_report_whether_they_were_sent() {
    let mut world = World::of(&[1]);
    release(&mut world);
    next(&mut world);
    let (now, unsent) = (world.now, SessionId([6; 8]));
    world.node(1).handle_engine(now, EngineEvent::Unreachable { reason: "gone".into() });
    world.node(1).release(now, unsent, 1, record(id(1)), KEEP);
    world.node(1).give_up_releases(now);
    world.settle();
    let events = world.events(1);
    assert!(events.contains(&released(ReleaseOutcome::Unknown)), "{events:?}");
    let unsent = NodesEvent::Released { session: unsent, outcome: ReleaseOutcome::Unsent };
    assert!(events.contains(&unsent), "{events:?}");
    world.reconnect(1);
    assert_eq!(world.engine.count("release"), 0);
}

#[test]
fn ten_thousand_releases_go_256_at_a_time() {
    let mut world = World::of(&[1]);
    let now = world.now;
    for number in 0..10_000_u64 {
        let session = SessionId(number.to_be_bytes());
        world.node(1).release(now, session, 1, record(id(1)), KEEP);
    }
    let sent: Vec<_> = std::iter::from_fn(|| world.node(1).poll_request(now)).collect();
    assert_eq!(sent.len(), 256);
    for (id, request) in sent {
        let response = world.engine.execute(&request);
        world.node(1).handle_response(now, id, response);
    }
    world.settle();
    assert_eq!(world.events(1).len(), 10_000);
    assert_eq!(world.engine.held.len(), 10_000);
}

/// Node 2 claims what node 1 released.
fn claim_by(world: &mut World, owner: u8, claimant: u8) -> Response {
    let (session, owner, name) = (SESSION, id(owner), super::engine::name(id(1)));
    world.engine.execute(&Request::Claim {
        session,
        owner,
        disowned: false,
        claimant: id(claimant),
        name,
        keep: KEEP,
    })
}

#[test]
fn what_a_node_took_over_is_given_to_no_other_node() {
    let mut world = World::of(&[1, 2, 3]);
    release(&mut world);
    world.settle();
    assert!(matches!(claim_by(&mut world, 1, 2), Response::Claimed { claim: 2, .. }));
    assert_eq!(claim_by(&mut world, 1, 3), Response::Moved(id(2)), "the owner is asked");
    assert_eq!(claim_by(&mut world, 2, 3), Response::None, "an owner that is gone took the session along");
    assert!(matches!(claim_by(&mut world, 1, 2), Response::Claimed { claim: 2, .. }), "its answer was lost");
}
