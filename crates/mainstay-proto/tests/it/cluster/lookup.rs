//! Each row of the route table, and each way in which it fails.

use std::time::Duration;

use mainstay_proto::cluster::request::{Request, Response};
use mainstay_proto::cluster::{Lookup, NodesEvent, PeerKey, PeerOutcome, Step, lookup};
use mainstay_proto::session::Control;
use mainstay_proto::session::message::{Delay, ResumeToken};

use super::engine::{KEEP, SESSION, World, address, id, name, record, token};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A client presents to node `at` the token of node `of`, which the registry there does not have.
fn hello(world: &mut World, at: u8, of: u8) -> Lookup {
    let now = world.now;
    world.node(at).begin(now, &token(id(of)), name(id(of)), false, false)
}

/// The same HELLO comes through the peer listener of `at`.
fn hello_through_peer(world: &mut World, at: u8, of: u8) -> Lookup {
    let now = world.now;
    world.node(at).begin(now, &token(id(of)), name(id(of)), false, true)
}

fn poll(world: &mut World, at: u8, lookup: &mut Lookup) -> Step {
    let now = world.now;
    lookup.poll(now, world.node(at))
}

/// Polls, has the engine answer, and polls again.
fn settle(world: &mut World, at: u8, lookup: &mut Lookup) -> Step {
    assert_eq!(poll(world, at, lookup), Step::Claiming);
    world.settle();
    let woken = NodesEvent::ClaimAnswered { session: SESSION };
    assert!(world.events(at).contains(&woken), "the lookup is woken");
    poll(world, at, lookup)
}

fn peer(world: &World, lookup: &mut Lookup, outcome: PeerOutcome) {
    lookup.handle_peer(world.now, outcome);
}

fn release(world: &mut World, owner: u8) {
    let now = world.now;
    world.node(owner).release(now, SESSION, 1, record(id(owner)), KEEP);
    world.settle();
}

/// The engine has the session of `owner`, claimed by `claimant`.
fn release_and_claim(world: &mut World, owner: u8, claimant: u8) {
    release(world, owner);
    let (owner, claimant) = (id(owner), id(claimant));
    let (session, name, disowned) = (SESSION, name(owner), false);
    let claim = Request::Claim { session, owner, disowned, claimant, name, keep: KEEP };
    assert!(matches!(world.engine.execute(&claim), Response::Claimed { .. }));
}

fn ask(number: u8, pause: Duration) -> Step {
    Step::Ask { node: id(number), address: address(number), key: PeerKey([number; 16]), pause }
}

fn adopt(owner: u8, claim: u64) -> Step {
    Step::Adopt { session: SESSION, claim, record: record(id(owner)) }
}

#[test]
fn tokens_without_a_route_of_this_node_and_known_names_stay_here() {
    let mut world = World::of(&[1, 2]);
    let now = world.now;
    let nodes = world.node(1);
    let plain = ResumeToken(vec![1; 24].into());
    assert_eq!(nodes.begin(now, &plain, [1; 16], false, false).poll(now, nodes), Step::Here);
    let own = token(id(1));
    assert_eq!(nodes.begin(now, &own, [1; 16], false, false).poll(now, nodes), Step::Here);
    assert_eq!(nodes.begin(now, &own, [1; 16], false, true).poll(now, nodes), Step::Here);
    let known = token(id(2));
    assert_eq!(nodes.begin(now, &known, [2; 16], true, false).poll(now, nodes), Step::Here);
}

#[test]
fn a_listed_node_is_asked_at_its_peer_listener_with_its_key() {
    let mut world = World::of(&[1, 2]);
    let mut lookup = hello(&mut world, 1, 2);
    assert_eq!(poll(&mut world, 1, &mut lookup), ask(2, Duration::ZERO));
    assert_eq!(poll(&mut world, 1, &mut lookup), ask(2, Duration::ZERO), "until its outcome is known");
    assert_eq!(lookup.deadline(), None);
    assert_eq!(world.engine.count("claim"), 0);
}

#[test]
fn a_dead_node_is_asked_too() {
    let mut world = World::of(&[1, 2]);
    world.nodes.remove(&2);
    world.run(20 * SECOND);
    let mut lookup = hello(&mut world, 1, 2);
    assert_eq!(poll(&mut world, 1, &mut lookup), ask(2, Duration::ZERO));
}

#[test]
fn a_peer_listener_that_refuses_twice_is_gone_and_its_session_claimed() {
    let mut world = World::of(&[1, 2]);
    release(&mut world, 2);
    let mut lookup = hello(&mut world, 1, 2);
    poll(&mut world, 1, &mut lookup);
    peer(&world, &mut lookup, PeerOutcome::Refused);
    assert_eq!(poll(&mut world, 1, &mut lookup), ask(2, 100 * MS), "a second attempt, 100 ms later");
    peer(&world, &mut lookup, PeerOutcome::Refused);
    assert_eq!(settle(&mut world, 1, &mut lookup), adopt(2, 2));
    assert_eq!(world.engine.held[&SESSION].owner, Some(id(1)));
}

#[test]
fn a_session_that_its_gone_owner_did_not_release_is_unknown() {
    let mut world = World::of(&[1, 2]);
    let mut lookup = hello(&mut world, 1, 2);
    poll(&mut world, 1, &mut lookup);
    peer(&world, &mut lookup, PeerOutcome::Refused);
    poll(&mut world, 1, &mut lookup);
    peer(&world, &mut lookup, PeerOutcome::Refused);
    assert_eq!(settle(&mut world, 1, &mut lookup), Step::Unknown);
}

#[test]
fn an_address_that_is_another_nodes_by_now_shows_that_the_owner_is_gone() {
    let mut world = World::of(&[1, 2]);
    release(&mut world, 2);
    let mut lookup = hello(&mut world, 1, 2);
    poll(&mut world, 1, &mut lookup);
    peer(&world, &mut lookup, PeerOutcome::OtherNode);
    assert_eq!(settle(&mut world, 1, &mut lookup), adopt(2, 2));
}

#[test]
fn a_released_session_is_claimed_and_adopted() {
    let mut world = World::of(&[1, 2]);
    release(&mut world, 2);
    let mut lookup = hello(&mut world, 1, 2);
    poll(&mut world, 1, &mut lookup);
    peer(&world, &mut lookup, PeerOutcome::Released);
    assert_eq!(settle(&mut world, 1, &mut lookup), adopt(2, 2));
}

#[test]
fn a_silent_owner_that_released_nothing_is_waited_for_until_it_is_dead() {
    let mut world = World::of(&[1, 2]);
    world.member(2).is_paused = true;
    let silent = |world: &mut World| {
        let mut lookup = hello(world, 1, 2);
        poll(world, 1, &mut lookup);
        peer(world, &mut lookup, PeerOutcome::Silent);
        settle(world, 1, &mut lookup)
    };
    assert_eq!(silent(&mut world), Step::Wait);
    world.run(8 * SECOND);
    assert_eq!(silent(&mut world), Step::Wait);
    world.run(10 * SECOND);
    assert_eq!(silent(&mut world), Step::Unknown);
}

#[test]
fn a_session_that_a_silent_owner_released_is_adopted() {
    let mut world = World::of(&[1, 2]);
    release(&mut world, 2);
    let mut lookup = hello(&mut world, 1, 2);
    poll(&mut world, 1, &mut lookup);
    peer(&world, &mut lookup, PeerOutcome::Silent);
    assert_eq!(settle(&mut world, 1, &mut lookup), adopt(2, 2));
}

#[test]
fn an_owner_that_could_not_be_asked_for_lack_of_descriptors_is_waited_for() {
    let mut world = World::of(&[1, 2]);
    let mut lookup = hello(&mut world, 1, 2);
    poll(&mut world, 1, &mut lookup);
    peer(&world, &mut lookup, PeerOutcome::NotAsked);
    assert_eq!(poll(&mut world, 1, &mut lookup), Step::Wait);
}

#[test]
fn an_unlisted_node_is_waited_for_until_the_table_is_complete() {
    let mut world = World::young(&[1]);
    let mut lookup = hello(&mut world, 1, 9);
    assert_eq!(poll(&mut world, 1, &mut lookup), Step::Wait);
    world.run(20 * SECOND);
    let mut lookup = hello(&mut world, 1, 9);
    assert_eq!(poll(&mut world, 1, &mut lookup), Step::Unknown);
    assert_eq!(world.engine.count("claim"), 0);
}

#[test]
fn the_node_that_the_engine_names_is_asked_next() {
    let mut world = World::of(&[1, 2, 3]);
    release_and_claim(&mut world, 2, 3);
    let mut lookup = hello(&mut world, 1, 2);
    poll(&mut world, 1, &mut lookup);
    peer(&world, &mut lookup, PeerOutcome::Released);
    assert_eq!(settle(&mut world, 1, &mut lookup), ask(3, Duration::ZERO));
    peer(&world, &mut lookup, PeerOutcome::Refused);
    assert_eq!(poll(&mut world, 1, &mut lookup), ask(3, 100 * MS));
    peer(&world, &mut lookup, PeerOutcome::Refused);
    assert_eq!(settle(&mut world, 1, &mut lookup), Step::Unknown, "node 3 had claimed it, and died");
}

#[test]
fn an_unlisted_node_that_the_engine_names_is_gone_if_the_table_is_complete() {
    let mut world = World::of(&[1, 2]);
    release_and_claim(&mut world, 2, 9);
    let mut lookup = hello(&mut world, 1, 2);
    poll(&mut world, 1, &mut lookup);
    peer(&world, &mut lookup, PeerOutcome::Released);
    assert_eq!(settle(&mut world, 1, &mut lookup), Step::Claiming);
    assert_eq!(settle(&mut world, 1, &mut lookup), Step::Unknown);
}

#[test]
fn an_unlisted_node_that_the_engine_names_is_waited_for_if_the_table_is_not_complete() {
    let mut world = World::young(&[1, 2]);
    world.run(4 * SECOND);
    release_and_claim(&mut world, 2, 9);
    let mut lookup = hello(&mut world, 1, 2);
    poll(&mut world, 1, &mut lookup);
    peer(&world, &mut lookup, PeerOutcome::Released);
    assert_eq!(settle(&mut world, 1, &mut lookup), Step::Wait);
}

#[test]
fn a_lookup_that_is_sent_around_in_circles_waits() {
    let mut world = World::of(&[1, 2, 3]);
    release_and_claim(&mut world, 2, 3);
    let mut lookup = hello(&mut world, 1, 2);
    let mut asked = 0;
    let end = loop {
        match poll(&mut world, 1, &mut lookup) {
            Step::Ask { .. } => peer(&world, &mut lookup, PeerOutcome::Released),
            Step::Claiming => {
                // Whichever node is believed to have it, another one does.
                let now = world.now;
                let (request, Request::Claim { owner, .. }) = world.node(1).poll_request(now).unwrap() else {
                    panic!("a claim")
                };
                let other = if owner == id(2) { id(3) } else { id(2) };
                world.node(1).handle_response(now, request, Response::Moved(other));
            }
            end => break end,
        }
        asked += 1;
        assert!(asked < 30);
    };
    assert_eq!(end, Step::Wait);
}

#[test]
fn a_session_that_this_node_released_is_claimed_back_or_followed() {
    let mut world = World::of(&[1, 2]);
    release(&mut world, 1);
    let released = |world: &mut World| {
        let now = world.now;
        let mut lookup = world.node(1).begin(now, &token(id(1)), name(id(1)), true, false);
        assert_eq!(poll(world, 1, &mut lookup), Step::Here);
        lookup.released(now, world.node(1));
        lookup
    };
    let mut lookup = released(&mut world);
    let mut elsewhere = World::of(&[1, 2]);
    release_and_claim(&mut elsewhere, 1, 2);
    assert_eq!(settle(&mut world, 1, &mut lookup), adopt(1, 2));
    let mut lookup = released(&mut elsewhere);
    assert_eq!(settle(&mut elsewhere, 1, &mut lookup), ask(2, Duration::ZERO));
}

#[test]
fn an_account_that_this_node_released_itself_stays_with_its_registry() {
    let mut world = World::of(&[1]);
    let mut lookup = hello(&mut world, 1, 9);
    assert_eq!(poll(&mut world, 1, &mut lookup), Step::Unknown);
    let now = world.now;
    lookup.released(now, world.node(1));
    assert_eq!(poll(&mut world, 1, &mut lookup), Step::Unknown, "only after `Here`");
}

// ---- through the peer listener --------------------------------------------------------------------

#[test]
fn a_hello_through_the_peer_listener_is_neither_relayed_nor_claimed() {
    let mut world = World::of(&[1, 2, 3]);
    release_and_claim(&mut world, 2, 3);
    let claims = world.engine.count("claim");
    let mut lookup = hello_through_peer(&mut world, 1, 2);
    assert_eq!(poll(&mut world, 1, &mut lookup), Step::Elsewhere);
    world.run(SECOND);
    assert_eq!(world.engine.count("claim"), claims);
}

#[test]
fn a_released_session_is_claimed_by_the_entry_node_and_not_by_its_owner() {
    let mut world = World::of(&[1, 2]);
    release(&mut world, 1);
    let now = world.now;
    let mut lookup = world.node(1).begin(now, &token(id(1)), name(id(1)), true, true);
    assert_eq!(poll(&mut world, 1, &mut lookup), Step::Here);
    lookup.released(now, world.node(1));
    assert_eq!(poll(&mut world, 1, &mut lookup), Step::Elsewhere);
}

#[test]
fn a_session_whose_claimant_never_learned_of_it_is_claimed_from_the_claimant() {
    let mut world = World::of(&[1, 2, 3]);
    release_and_claim(&mut world, 2, 3);
    let mut lookup = hello(&mut world, 1, 2);
    poll(&mut world, 1, &mut lookup);
    peer(&world, &mut lookup, PeerOutcome::Released);
    assert_eq!(settle(&mut world, 1, &mut lookup), ask(3, Duration::ZERO));
    let mut there = hello_through_peer(&mut world, 3, 2);
    assert_eq!(poll(&mut world, 3, &mut there), Step::Elsewhere);
    peer(&world, &mut lookup, PeerOutcome::Released);
    assert_eq!(settle(&mut world, 1, &mut lookup), adopt(2, 3));
}

#[test]
fn a_node_asks_no_more_for_what_it_has_adopted_so_that_an_old_token_brings_nothing_back() {
    let mut world = World::of(&[1, 2]);
    release(&mut world, 2);
    let claim = |world: &mut World| {
        let mut lookup = hello(world, 1, 2);
        poll(world, 1, &mut lookup);
        peer(world, &mut lookup, PeerOutcome::Released);
        settle(world, 1, &mut lookup)
    };
    assert_eq!(claim(&mut world), adopt(2, 2));
    world.run(2 * SECOND);
    assert_eq!(claim(&mut world), adopt(2, 2), "the caller may not have adopted it");
    let now = world.now;
    world.node(1).adopted(now, SESSION);
    world.run(2 * SECOND);
    let mut old = hello(&mut world, 1, 2);
    poll(&mut world, 1, &mut old);
    peer(&world, &mut old, PeerOutcome::Released);
    assert_eq!(poll(&mut world, 1, &mut old), Step::Here, "only the registry knows which token is old");
    assert_eq!(world.engine.count("claim"), 2);
}

#[test]
fn the_second_of_two_attempts_that_wait_for_a_release_finds_what_the_first_brought_here() {
    let mut world = World::of(&[1, 2]);
    let [mut first, mut second] = [(); 2].map(|()| hello(&mut world, 1, 2));
    for lookup in [&mut first, &mut second] {
        assert_eq!(poll(&mut world, 1, lookup), ask(2, Duration::ZERO));
    }
    release(&mut world, 2);
    peer(&world, &mut first, PeerOutcome::Released);
    assert_eq!(settle(&mut world, 1, &mut first), adopt(2, 2));
    let now = world.now;
    world.node(1).adopted(now, SESSION);
    peer(&world, &mut second, PeerOutcome::Released);
    assert_eq!(poll(&mut world, 1, &mut second), Step::Here);
}

#[test]
fn a_node_that_has_adopted_a_session_gives_it_to_no_node_that_asks_with_an_old_token() {
    let mut world = World::of(&[1, 2, 3]);
    release_and_claim(&mut world, 2, 3);
    let now = world.now;
    world.node(3).adopted(now, SESSION);
    // The client has gone on with a token of node 3, whose registry dropped the one that names node 2.
    let mut there = hello_through_peer(&mut world, 3, 2);
    assert_eq!(poll(&mut world, 3, &mut there), Step::Unknown);
    world.run(KEEP);
    let mut there = hello_through_peer(&mut world, 3, 2);
    assert_eq!(poll(&mut world, 3, &mut there), Step::Elsewhere, "the engine has forgotten the record, too");
}

#[test]
fn a_hello_through_the_peer_listener_waits_while_this_node_claims_the_session() {
    let mut world = World::of(&[1, 2]);
    release(&mut world, 2);
    let mut lookup = claiming(&mut world);
    let through = |world: &mut World| {
        let mut lookup = hello_through_peer(world, 1, 2);
        poll(world, 1, &mut lookup)
    };
    assert_eq!(through(&mut world), Step::Wait);
    let (now, (request, claim)) = (world.now, world.member(1).unanswered.remove(0));
    let response = world.engine.execute(&claim);
    world.node(1).handle_response(now, request, response);
    assert_eq!(poll(&mut world, 1, &mut lookup), adopt(2, 2));
    assert_eq!(through(&mut world), Step::Wait, "it is about to be adopted");
    world.member(1).is_deaf = false;
    world.run(2 * SECOND);
    assert_eq!(through(&mut world), Step::Elsewhere);
}

// ---- claims that do not come about ---------------------------------------------------------------

#[test]
fn a_claim_of_unknown_outcome_is_repeated_as_it_was() {
    let mut world = World::of(&[1, 2]);
    release(&mut world, 2);
    let mut lookup = hello(&mut world, 1, 2);
    poll(&mut world, 1, &mut lookup);
    peer(&world, &mut lookup, PeerOutcome::Released);
    assert_eq!(poll(&mut world, 1, &mut lookup), Step::Claiming);
    let now = world.now;
    let (request, claim) = world.node(1).poll_request(now).unwrap();
    world.engine.execute(&claim);
    world.node(1).handle_response(now, request, Response::Unknown);
    assert_eq!(poll(&mut world, 1, &mut lookup), Step::Claiming);
    world.run(100 * MS);
    assert_eq!(poll(&mut world, 1, &mut lookup), adopt(2, 2), "the same answer, and the same claim number");
    assert_eq!(world.engine.count("claim"), 2);
}

#[test]
fn a_claim_waits_for_an_unreachable_engine_not_at_all() {
    let mut world = World::of(&[1, 2]);
    world.disconnect(1);
    let mut lookup = hello(&mut world, 1, 2);
    assert_eq!(poll(&mut world, 1, &mut lookup), ask(2, Duration::ZERO), "no engine is needed to relay");
    peer(&world, &mut lookup, PeerOutcome::Released);
    assert_eq!(poll(&mut world, 1, &mut lookup), Step::Wait);
}

#[test]
fn a_claim_ends_with_the_engines_connection() {
    let mut world = World::of(&[1, 2]);
    let mut lookup = claiming(&mut world);
    world.disconnect(1);
    assert!(world.events(1).contains(&NodesEvent::ClaimAnswered { session: SESSION }));
    assert_eq!(poll(&mut world, 1, &mut lookup), Step::Wait);
}

#[test]
fn a_claim_ends_once_the_engine_is_silent_for_one_second() {
    let mut world = World::of(&[1, 2]);
    let mut lookup = claiming(&mut world);
    world.run(SECOND);
    assert!(world.events(1).contains(&NodesEvent::ClaimAnswered { session: SESSION }));
    assert_eq!(poll(&mut world, 1, &mut lookup), Step::Wait);
}

#[test]
fn a_claim_that_is_always_unknown_ends_after_two_seconds() {
    let mut world = World::of(&[1, 2]);
    let mut lookup = claiming(&mut world);
    let start = world.now;
    while poll(&mut world, 1, &mut lookup) == Step::Claiming {
        let now = world.now;
        for (request, _) in std::mem::take(&mut world.member(1).unanswered) {
            world.node(1).handle_response(now, request, Response::Unknown);
        }
        // Everything else is answered.
        let table = Response::Table(world.engine.fields.clone().into_iter().collect());
        while let Some((request, sent)) = world.node(1).poll_request(now) {
            let is_claim = matches!(sent, Request::Claim { .. });
            let response = if is_claim { Response::Unknown } else { table.clone() };
            world.node(1).handle_response(now, request, response);
        }
        world.now += 10 * MS;
        let now = world.now;
        world.node(1).handle_timeout(now);
    }
    assert_eq!(poll(&mut world, 1, &mut lookup), Step::Wait);
    assert!((SECOND..=2 * SECOND + 20 * MS).contains(&(world.now - start)), "{:?}", world.now - start);
}

/// A lookup of node 1 whose claim was sent and gets no answer.
fn claiming(world: &mut World) -> Lookup {
    let mut lookup = hello(world, 1, 2);
    poll(world, 1, &mut lookup);
    peer(world, &mut lookup, PeerOutcome::Released);
    world.member(1).is_deaf = true;
    assert_eq!(poll(world, 1, &mut lookup), Step::Claiming);
    assert_eq!(lookup.deadline(), Some(world.now + 2 * SECOND));
    world.settle();
    lookup
}

#[test]
fn a_refused_claim_waits_and_is_reported() {
    let mut world = World::of(&[1, 2]);
    let mut lookup = claiming(&mut world);
    let (now, (request, _)) = (world.now, world.member(1).unanswered.remove(0));
    world.node(1).handle_response(now, request, Response::Refused("NOPERM".into()));
    world.settle();
    let refuses = NodesEvent::EngineRefuses { request: "claim", reason: "NOPERM".into() };
    assert!(world.events(1).contains(&refuses));
    assert_eq!(poll(&mut world, 1, &mut lookup), Step::Wait);
}

#[test]
fn one_claim_for_a_session_is_in_progress_and_other_clients_wait() {
    let mut world = World::of(&[1, 2]);
    release(&mut world, 2);
    let mut first = claiming(&mut world);
    let second = |world: &mut World| {
        let mut lookup = hello(world, 1, 2);
        poll(world, 1, &mut lookup);
        peer(world, &mut lookup, PeerOutcome::Released);
        poll(world, 1, &mut lookup)
    };
    assert_eq!(second(&mut world), Step::Wait);
    let (now, (request, claim)) = (world.now, world.member(1).unanswered.remove(0));
    let response = world.engine.execute(&claim);
    world.node(1).handle_response(now, request, response);
    assert_eq!(second(&mut world), Step::Wait, "the answer is there and the session not adopted");
    assert_eq!(poll(&mut world, 1, &mut first), adopt(2, 2));
    assert_eq!(second(&mut world), Step::Wait, "nor now");
    world.member(1).is_deaf = false;
    world.run(SECOND);
    assert_eq!(second(&mut world), Step::Claiming, "it was not adopted, and is there again");
}

#[test]
fn at_most_256_claims_are_in_progress() {
    let mut world = World::of(&[1, 2]);
    let now = world.now;
    world.node(2).leave(now);
    world.run(4 * SECOND);
    world.member(1).is_deaf = true;
    let now = world.now;
    let mut steps = vec![];
    for number in 0..257_u64 {
        let token = [&id(2).0[..], &number.to_be_bytes(), &[7; 24]].concat();
        let nodes = world.node(1);
        let mut lookup = nodes.begin(now, &ResumeToken(token.into()), [2; 16], false, false);
        steps.push(lookup.poll(now, nodes));
    }
    assert_eq!(steps.iter().filter(|step| **step == Step::Claiming).count(), 256);
    assert_eq!(steps.last(), Some(&Step::Wait));
    assert_eq!(world.node(1).status().claims, 256);
}

#[test]
fn claims_of_lookups_that_were_dropped_leave_nothing_behind() {
    let mut world = World::of(&[1, 2]);
    release(&mut world, 2);
    let lookup = claiming(&mut world);
    drop(lookup);
    world.member(1).is_deaf = false;
    world.run(10 * SECOND);
    let status = world.node(1).status();
    assert_eq!((status.claims, status.claimed.unavailable), (0, 1));
    let mut lookup = hello(&mut world, 1, 2);
    poll(&mut world, 1, &mut lookup);
    peer(&world, &mut lookup, PeerOutcome::Released);
    assert_eq!(settle(&mut world, 1, &mut lookup), adopt(2, 2));
}

#[test]
fn the_outcomes_of_claims_are_counted() {
    let mut world = World::of(&[1, 2, 3]);
    release(&mut world, 2);
    let mut lookup = hello(&mut world, 1, 2);
    poll(&mut world, 1, &mut lookup);
    peer(&world, &mut lookup, PeerOutcome::Released);
    settle(&mut world, 1, &mut lookup);
    let mut none = hello(&mut world, 3, 1);
    poll(&mut world, 3, &mut none);
    peer(&world, &mut none, PeerOutcome::OtherNode);
    settle(&mut world, 3, &mut none);
    assert_eq!(world.node(1).status().claimed.taken, 1);
    assert_eq!(world.node(3).status().claimed.none, 1);
}

#[test]
fn wait_refuses_for_now_with_4414_and_a_spread_of_two_seconds() {
    let Control::Refuse { code, temporary, delay, account } = lookup::wait() else { panic!("a REFUSE") };
    assert_eq!((code, temporary, account), (4414, true, None));
    assert_eq!(delay, Delay { min: 200 * MS, max: 2 * SECOND });
}
