//! Every rule that is turned back is noticed: by the explorer all of them, by the simulator's seeds those it can reach.
//!
//! Runs against the copy that `tests/planted.rs` makes, where the module `planted` has the switches.

use mainstay_proto::planted::{ALL, OF_CLUSTERS, Rule, turn_back};
use mainstay_sim::explore::{Budget, NONE, Outcome, Scenario, explore};
use mainstay_sim::{Plan, run};

/// Explores with one rule turned back.
fn without(rule: Rule, scenario: &Scenario) -> Outcome {
    turn_back(Some(rule));
    let outcome = explore(scenario);
    turn_back(None);
    outcome
}

#[test]
fn every_rule_that_is_turned_back_is_noticed() {
    let base = Scenario { most_states: 300_000, ..Scenario::CALM };
    let with = |client_messages, server_messages, faults| Scenario {
        client_messages,
        server_messages,
        faults,
        ..base
    };
    let slow = |scenario| Scenario { slow: true, ..scenario };
    let manual = |faults| Scenario { manual: true, ..with(1, 0, faults) };
    let cut = Budget { cuts: 1, ..NONE };
    let replace = Budget { replacements: 1, ..NONE };
    let tab = Budget { tabs: 1, ..NONE };
    let end = Budget { ends: 1, ..NONE };
    let table = [
        (Rule::PresentedTokenStaysValid, with(0, 0, Budget { abandons: 2, ..cut }), "without an excuse"),
        (Rule::DataEstablishesNothing, with(1, 0, cut), "without an excuse"),
        (Rule::NewSessionIsNotReplayed, with(1, 0, NONE), "duplicate"),
        (Rule::OneKeyOneSession, with(1, 0, cut), "duplicate"),
        (Rule::YoungKeyIsNotRefused, with(0, 0, cut), "without an excuse"),
        (Rule::OldKeyIsRefused, with(1, 0, Budget { restarts: 1, ..cut }), "duplicate"),
        (Rule::OldConnectionIsOnlyRead, with(1, 0, replace), ""),
        (Rule::SupersededNamesTheWinner, with(0, 0, replace), "without an excuse"),
        (Rule::StaleAttemptIsRefused, with(0, 1, Budget { abandons: 2, ..replace }), ""),
        (
            Rule::ContradictionChangesNothing,
            with(0, 1, Budget { abandons: 1, ..replace }),
            "without an excuse",
        ),
        (Rule::SentInHelloIsCompared, with(2, 0, tab), ""),
        (Rule::SentInPingIsThePosition, with(1, 0, Budget { pings: 1, ..NONE }), "integrity check"),
        (Rule::PingIsComparedWithThePosition, with(0, 2, Budget { pings: 1, ..replace }), "integrity check"),
        (Rule::PingIsComparedWithThePosition, manual(Budget { pings: 1, ..NONE }), "integrity check"),
        (Rule::TombstoneHasAllNames, with(1, 0, Budget { expiries: 1, cuts: 2, ..NONE }), "duplicate"),
        (Rule::AccountStatesDelivered, manual(Budget { expiries: 1, ..cut }), "untrue"),
        (Rule::EndedIsNotAttached, with(0, 0, Budget { ends: 1, ..replace }), "ended and goes on"),
        (Rule::NothingIsDeliveredAfterEnd, with(1, 0, end), "untrue"),
        (Rule::CopyNumbersNothing, with(1, 0, Budget { tabs: 1, ..cut }), ""),
        (Rule::KeyIsNotCopied, with(1, 0, Budget { tabs: 1, ..cut }), ""),
        (Rule::CopyingCountsAsWriting, with(1, 0, Budget { tabs: 1, expiries: 1, ..cut }), "untrue"),
        (Rule::RepetitionIsJudgedByReceived, manual(cut), "duplicate"),
        (Rule::AcknowledgedIsKeptUntilWritten, slow(with(2, 0, replace)), "lock-out"),
        (Rule::EndWaitsForTheAttempt, with(0, 0, Budget { ends: 1, ..replace }), "lock-out"),
        (Rule::SupersededIsFinalBeforeWelcome, with(0, 0, Budget { tabs: 1, ..replace }), "for ever"),
        (Rule::GapTakesOverNumbers, Scenario { drops_above: 1, ..with(0, 3, NONE) }, ""),
        (
            Rule::KeyIsASecretOnlyAtFirst,
            Scenario { overheard: true, ..with(0, 0, cut) },
            "by a key that is no secret",
        ),
        (Rule::ConfirmationComesFirst, Scenario { nodes: 2, ..with(1, 0, cut) }, "duplicate"),
        (Rule::AccountIsForOneInstance, with(1, 0, Budget { tabs: 1, expiries: 1, ..cut }), "untrue"),
    ];
    let untried: Vec<_> = ALL.iter().filter(|rule| !OF_CLUSTERS.contains(rule)).filter(|rule| table.iter().all(|(tried, ..)| tried != *rule)).collect();
    assert!(untried.is_empty(), "{untried:?} have no scenario");
    let mut unnoticed = Vec::new();
    for (rule, scenario, expected) in table {
        let outcome = without(rule, &scenario);
        let what = outcome.counterexample.map_or("not noticed".to_owned(), |broken| broken.what);
        println!("{rule:?}: {what} ({} states, {} deep)", outcome.states, outcome.depth);
        if what == "not noticed" || !what.contains(expected) {
            unnoticed.push((rule, what));
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
}

/// Bounds the time that a rule takes which no seed notices: a seed takes about 6 ms.
const SEEDS: u64 = 800;

/// The first seed that fails with this rule turned back, and what it reports.
fn noticed(rule: Rule, seeds: u64, draw: fn(u64) -> Plan) -> Option<(u64, String)> {
    turn_back(Some(rule));
    let found = (0..seeds).find_map(|seed| Some((seed, run(&draw(seed), false).failure?)));
    turn_back(None);
    found
}

/// Bounds the time that a rule of clusters takes: a seed takes about 25 ms.
const CLUSTERS: u64 = 520;

#[test]
fn rules_of_clusters_that_are_turned_back_are_noticed_by_some_seed() {
    let mut unnoticed = Vec::new();
    for rule in OF_CLUSTERS {
        match noticed(*rule, CLUSTERS, Plan::cluster) {
            Some((seed, what)) => println!("{rule:?}: seed {seed}, {what}"),
            None => unnoticed.push(rule),
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}

/// The rest is left to the explorer: two rules take thousands of seeds, and five need a copy of a client, which the
/// simulator does not make.
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
    let unnoticed: Vec<_> = rules.into_iter().filter(|rule| noticed(*rule, SEEDS, Plan::alone).is_none()).collect();
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}
