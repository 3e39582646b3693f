//! The seeds reach what they are meant for.

use mainstay_sim::{Counts, Plan, run};

#[test]
fn every_fault_strikes_and_every_kind_of_verdict_is_reached() {
    let mut counts = Counts::default();
    for seed in 0..300 {
        let outcome = run(&Plan::draw(seed), false);
        assert_eq!(outcome.failure, None, "seed {seed}");
        counts.add(&outcome.counts);
    }
    assert!(counts.faults.0.iter().chain(&counts.dead).all(|count| *count > 0), "{counts:?}");
    let Counts {
        volatile,
        dropped,
        ended,
        given_up,
        full,
        partial,
        refused,
        judged,
        moved,
        relayed,
        asked,
        ..
    } = counts;
    assert!(
        [volatile, dropped, ended, given_up, full, partial, refused, judged, moved, relayed, asked]
            .iter()
            .all(|n| *n > 0),
        "{counts:?}"
    );
}
