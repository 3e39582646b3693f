//! Every run of the small worlds holds.

use mainstay_sim::explore::{explore, small};

#[test]
fn every_run_of_every_small_world_holds() {
    for scenario in small() {
        let outcome = explore(&scenario);
        assert!(outcome.counterexample.is_none(), "{}: {:#?}", scenario.name, outcome.counterexample);
        assert!(outcome.exhausted, "{}: {} states are not all", scenario.name, outcome.states);
    }
}
