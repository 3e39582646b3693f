//! Rules that strike connections by themselves.

use std::time::Duration;

use super::play::Play;
use crate::connection::Connection;
use crate::event::What;
use crate::fault::{Direction, Fault};
use crate::scenario::{Rule, Scenario, When};

const STALL: Fault = Fault::Stall(Direction::Both);

fn rule(fault: Fault, when: When, lasts: Option<u64>, share: f64) -> Rule {
    Rule { fault, when, lasts: lasts.map(Duration::from_secs), share }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Plays a connection for a while: the times and names of what was noted.
fn timeline(seed: u64, id: u64, opened: u64, rules: &[Rule]) -> Vec<(Duration, &'static str)> {
    let scenario = Scenario { rules: rules.to_vec() };
    let mut machine = Connection::new(id, seconds(opened), seed);
    machine.set_rules(&scenario, seconds(opened));
    let mut play = Play::of(machine);
    play.now = seconds(opened);
    play.wait(600_000);
    let name = |what: &What| match what {
        What::Fault { fault, .. } => fault.name(),
        other => other.name(),
    };
    let noted = play.notes.iter().filter(|(_, what)| *what != What::Unreadable);
    noted.map(|(at, what)| (*at - seconds(opened), name(what))).collect()
}

#[test]
fn a_rule_without_a_time_strikes_at_the_opening_and_one_with_after_so_long_after_it() {
    let rules = [rule(STALL, When::Always, Some(5), 1.0), rule(STALL, When::After(seconds(9)), None, 1.0)];
    let expected = [(seconds(0), "stall"), (seconds(5), "lifted"), (seconds(9), "stall")];
    assert_eq!(timeline(1, 1, 100, &rules), expected);
}

#[test]
fn a_rule_with_every_strikes_at_its_mean_and_never_within_its_own_strike() {
    let rules = [rule(STALL, When::Every(seconds(10)), Some(2), 1.0)];
    let mut strikes = 0;
    for id in 0..50 {
        let seen = timeline(3, id, 0, &rules);
        assert!(
            seen.chunks(2)
                .all(|pair| pair[0].1 == "stall" && pair.get(1).is_none_or(|end| end.1 == "lifted"))
        );
        strikes += seen.len() / 2;
    }
    assert!((2200..2800).contains(&strikes), "{strikes} in 50 times 600 s, 12 s apart");
}

#[test]
fn the_same_seed_gives_the_same_timeline_whenever_a_connection_opens_and_another_seed_another() {
    let rules = [
        rule(STALL, When::Every(seconds(20)), Some(1), 0.5),
        rule(Fault::Corrupt(Direction::Both), When::Every(seconds(30)), None, 1.0),
        rule(Fault::Fin, When::After(seconds(500)), None, 0.5),
    ];
    let all = |seed| -> Vec<_> { (1..20).map(|id| timeline(seed, id, id * 7, &rules)).collect() };
    let again: Vec<_> = (1..20).map(|id| timeline(5, id, id * 11, &rules)).collect();
    assert_eq!(all(5), again);
    assert_ne!(all(5), all(6));
}

#[test]
fn a_share_strikes_its_part_of_the_connections() {
    let rules = [rule(STALL, When::Always, None, 0.3)];
    let struck = (0..1000).filter(|id| !timeline(9, *id, 0, &rules).is_empty()).count();
    assert!((250..350).contains(&struck), "{struck}");
}
