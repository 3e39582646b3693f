//! Notes: every node reads them once, whenever it starts or comes back, and they cost nothing otherwise.

use std::time::Duration;

use mainstay_proto::cluster::request::{EngineEvent, Response};
use mainstay_proto::cluster::{NodesEvent, Note};

use super::engine::{KEEP, World, nodes};

const SECOND: Duration = Duration::from_secs(1);

fn note(key: &str) -> Note {
    Note { key: key.to_owned().into(), value: "7".into() }
}

/// Nodes that watch notes.
fn world(numbers: &[u8]) -> World {
    let mut world = World::of(numbers);
    numbers.iter().for_each(|number| world.node(*number).watch_notes(KEEP));
    world.run(4 * SECOND);
    numbers.iter().for_each(|number| drop(world.events(*number)));
    world
}

/// What the node has read since the last look.
fn read(world: &mut World, number: u8) -> Vec<Vec<Note>> {
    let notes = |event| match event {
        NodesEvent::Notes(notes) => Some(notes),
        _ => None,
    };
    world.events(number).into_iter().filter_map(notes).collect()
}

#[test]
fn every_other_node_reads_a_note_once_within_a_heartbeat() {
    let mut world = world(&[1, 2, 3]);
    let (now, before) = (world.now, world.engine.count("notes"));
    let number = world.node(1).note(now, note("alice"), KEEP).unwrap();
    world.settle();
    assert_eq!(world.events(1), [NodesEvent::Noted { number }]);
    world.run(4 * SECOND);
    for node in [2, 3] {
        assert_eq!(read(&mut world, node), [vec![note("alice")]], "{node}");
    }
    world.run(60 * SECOND);
    assert_eq!((world.engine.count("note"), world.engine.count("notes")), (1, before + 2));
}

#[test]
fn a_node_that_starts_later_reads_the_notes_once_at_its_start() {
    let mut world = world(&[1]);
    let now = world.now;
    world.node(1).note(now, note("alice"), KEEP).unwrap();
    world.settle();
    let before = world.engine.count("notes");
    world.start(2);
    world.node(2).watch_notes(KEEP);
    world.run(60 * SECOND);
    assert_eq!(read(&mut world, 2), [vec![note("alice")]]);
    assert_eq!(world.engine.count("notes"), before + 1);
}

#[test]
fn a_node_that_stood_still_reads_what_it_missed() {
    let mut world = world(&[1, 2]);
    world.member(2).is_paused = true;
    let now = world.now;
    world.node(1).note(now, note("alice"), KEEP).unwrap();
    world.run(30 * SECOND);
    assert_eq!(read(&mut world, 2), Vec::<Vec<Note>>::new());
    world.member(2).is_paused = false;
    world.run(4 * SECOND);
    assert_eq!(read(&mut world, 2), [vec![note("alice")]]);
}

#[test]
fn a_note_is_repeated_until_the_engine_has_it() {
    let mut world = world(&[1]);
    world.disconnect(1);
    world.events(1);
    let now = world.now;
    let number = world.node(1).note(now, note("alice"), KEEP).unwrap();
    world.run(20 * SECOND);
    assert_eq!((world.events(1), world.engine.count("note")), (vec![], 0));
    world.reconnect(1);
    world.run(SECOND);
    assert!(world.events(1).contains(&NodesEvent::Noted { number }));
    assert_eq!(world.engine.notes, [note("alice")]);
}

#[test]
fn another_incarnation_of_the_engine_gets_the_notes_of_each_node_again() {
    let mut world = world(&[1]);
    for key in ["alice", "bob"] {
        let now = world.now;
        world.node(1).note(now, note(key), KEEP).unwrap();
    }
    world.settle();
    world.engine.notes.clear();
    let now = world.now;
    world.node(1).handle_engine(now, EngineEvent::Reachable { incarnation: Some("two".into()) });
    world.run(SECOND);
    assert_eq!(world.engine.notes, [note("alice"), note("bob")]);
    // Those that no node reads any more are not written again.
    world.run(KEEP);
    world.engine.notes.clear();
    let now = world.now;
    world.node(1).note(now, note("carol"), KEEP).unwrap();
    world.node(1).handle_engine(now, EngineEvent::Reachable { incarnation: Some("three".into()) });
    world.run(SECOND);
    assert_eq!(world.engine.notes, [note("carol")]);
}

#[test]
fn a_node_that_does_not_watch_reads_no_notes() {
    let mut world = World::of(&[1, 2]);
    let now = world.now;
    world.node(1).note(now, note("alice"), KEEP).unwrap();
    world.run(60 * SECOND);
    assert_eq!(world.engine.count("notes"), 0);
}

#[test]
fn an_engine_that_refuses_a_note_is_asked_again_after_half_a_minute() {
    let mut world = world(&[1]);
    let now = world.now;
    world.node(1).note(now, note("alice"), KEEP).unwrap();
    let (id, _) = world.node(1).poll_request(now).unwrap();
    world.node(1).handle_response(now, id, Response::Refused("OOM".into()));
    world.settle();
    let refuses = NodesEvent::EngineRefuses { request: "note", reason: "OOM".into() };
    assert_eq!(world.events(1), [refuses]);
    world.run(29 * SECOND);
    assert_eq!(world.engine.count("note"), 0);
    world.run(2 * SECOND);
    assert_eq!(world.engine.notes, [note("alice")]);
}

#[test]
fn notes_wait_for_the_engine_up_to_a_bound() {
    let mut world = world(&[1]);
    world.disconnect(1);
    let now = world.now;
    for number in 1..=10_000 {
        assert_eq!(world.node(1).note(now, note("alice"), KEEP), Some(number));
    }
    assert_eq!(world.node(1).note(now, note("alice"), KEEP), None);
    assert_eq!(nodes(now, 2, false).note(now, note("alice"), KEEP), None, "without an engine");
}
