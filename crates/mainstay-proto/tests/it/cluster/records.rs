//! A node without an engine: it keeps its records itself, and the next process answers claims from them.

use std::time::Duration;

use mainstay_proto::cluster::{LocalRecord, NodesEvent, ReleaseOutcome, Step};

use super::engine::{KEEP, SESSION, id, name, nodes, record, token};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_next_process_adopts_what_the_one_before_released() {
    let now = crate::pair::start();
    let mut before = nodes(now, 1, false);
    before.release(now, SESSION, 1, record(id(1)), KEEP);
    let stored = NodesEvent::Released { session: SESSION, outcome: ReleaseOutcome::Stored };
    assert_eq!(before.poll_event(), Some(stored));
    let file = before.take_records(now + SECOND);
    assert_eq!(file[0].keep, KEEP - SECOND);

    let mut next = nodes(now, 2, false);
    next.records(now, file);
    assert_eq!(next.status().records, 1);
    let step = next.begin(now, &token(id(1)), name(id(1)), false, false).poll(now, &mut next);
    assert_eq!(step, Step::Adopt { session: SESSION, claim: 2, record: record(id(1)) });
    assert_eq!(next.take_records(now), []);
}

#[test]
fn a_second_client_waits_while_the_first_one_is_adopted() {
    let now = crate::pair::start();
    let mut next = nodes(now, 2, false);
    next.records(now, vec![LocalRecord { session: SESSION, claim: 1, record: record(id(1)), keep: KEEP }]);
    let mut lookup = next.begin(now, &token(id(1)), name(id(1)), false, false);
    assert!(matches!(lookup.poll(now, &mut next), Step::Adopt { .. }));
    let mut second = next.begin(now, &token(id(1)), name(id(1)), false, false);
    assert_eq!(second.poll(now, &mut next), Step::Wait);
    let later = now + SECOND;
    next.handle_timeout(later);
    let mut third = next.begin(later, &token(id(1)), name(id(1)), false, false);
    assert_eq!(third.poll(later, &mut next), Step::Unknown);
}

#[test]
fn a_record_is_neither_adopted_nor_written_again_after_its_time() {
    let now = crate::pair::start();
    let mut next = nodes(now, 2, false);
    let local = LocalRecord { session: SESSION, claim: 1, record: record(id(1)), keep: 30 * SECOND };
    next.records(now, vec![local]);
    let late = now + 30 * SECOND;
    let step = next.begin(late, &token(id(1)), name(id(1)), false, false).poll(late, &mut next);
    assert_eq!(step, Step::Unknown);
    assert_eq!(next.clone().take_records(late), []);
    let mut now = now;
    while let Some(at) = next.poll_timeout() {
        assert!(at > now, "the timeout moves on");
        now = at;
        next.handle_timeout(now);
    }
    assert_eq!(next.status().records, 0, "and nothing is left at rest");
}

#[test]
fn a_token_that_a_record_does_not_name_is_unknown() {
    let now = crate::pair::start();
    let mut next = nodes(now, 2, false);
    next.records(now, vec![LocalRecord { session: SESSION, claim: 1, record: record(id(1)), keep: KEEP }]);
    for wrong in [name(id(9)), [0; 16]] {
        let step = next.begin(now, &token(id(1)), wrong, false, false).poll(now, &mut next);
        assert_eq!(step, Step::Unknown);
    }
    assert_eq!(next.status().records, 1);
}

#[test]
fn a_node_that_released_a_session_to_itself_takes_it_back() {
    let now = crate::pair::start();
    let mut node = nodes(now, 1, false);
    node.release(now, SESSION, 3, record(id(1)), KEEP);
    let mut lookup = node.begin(now, &token(id(1)), name(id(1)), true, false);
    assert_eq!(lookup.poll(now, &mut node), Step::Here);
    lookup.released(now, &node);
    let adopt = Step::Adopt { session: SESSION, claim: 4, record: record(id(1)) };
    assert_eq!(lookup.poll(now, &mut node), adopt);
}
