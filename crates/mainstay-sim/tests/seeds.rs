//! Seeds repeat, reach what they are meant for, and notice rules that are turned back.

use mainstay_proto::planted::{Rule, turn_back};
use mainstay_sim::{Counts, Plan, run};

/// Bounds the time of a rule that nobody notices: a seed takes about 10 ms.
const SEEDS: u64 = 800;

/// The first seed that fails with this rule turned back.
fn noticed(rule: Rule) -> Option<u64> {
    turn_back(Some(rule));
    let found = (0..SEEDS).find(|seed| run(&Plan::draw(*seed), false).failure.is_some());
    turn_back(None);
    found
}

/// Of the others two take thousands of seeds, and five need a copy of a client, which there is none of here. The explorer
/// notices all.
#[test]
fn rules_that_are_turned_back_are_noticed_by_some_seed() {
    let rules = [
        Rule::NewSessionIsNotReplayed,
        Rule::OneKeyOneSession,
        Rule::OldKeyIsRefused,
        Rule::OldConnectionIsOnlyRead,
        Rule::SupersededNamesTheWinner,
        Rule::SentInPingIsThePosition,
        Rule::PingIsComparedWithThePosition,
        Rule::NothingIsDeliveredAfterEnd,
        Rule::RepetitionIsJudgedByReceived,
        Rule::GapTakesOverNumbers,
    ];
    let unnoticed: Vec<_> = rules.into_iter().filter(|rule| noticed(*rule).is_none()).collect();
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}

#[test]
fn every_fault_strikes_and_every_kind_of_verdict_is_reached() {
    let mut counts = Counts::default();
    for seed in 0..300 {
        let outcome = run(&Plan::draw(seed), false);
        assert_eq!(outcome.failure, None, "seed {seed}");
        counts.add(&outcome.counts);
    }
    assert!(counts.faults.iter().chain(&counts.dead).all(|count| *count > 0), "{counts:?}");
    let Counts { volatile, dropped, ended, given_up, full, partial, refused, judged, .. } = counts;
    assert!(
        [volatile, dropped, ended, given_up, full, partial, refused, judged].iter().all(|n| *n > 0),
        "{counts:?}"
    );
}
