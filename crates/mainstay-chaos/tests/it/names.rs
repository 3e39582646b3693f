//! The names of faults.

use mainstay_chaos::Fault;
use mainstay_sim::plan;

#[test]
fn faults_of_the_network_have_the_same_names_in_the_simulator_and_in_the_chaos_proxy() {
    let of_the_network = [
        plan::Fault::Reset,
        plan::Fault::BlackHole,
        plan::Fault::BlackHoleUp,
        plan::Fault::BlackHoleDown,
        plan::Fault::Stall,
        plan::Fault::Jam,
        plan::Fault::Trickle,
        plan::Fault::Refuse,
        plan::Fault::Mute,
    ];
    for fault in of_the_network {
        let name = format!("{fault:?}");
        // The proxy has the direction as a parameter.
        let kind = name.trim_end_matches("Up").trim_end_matches("Down");
        let same = Fault::NAMES.iter().any(|name| name.replace('-', "") == kind.to_lowercase());
        assert!(same, "the chaos proxy has no {name}");
    }
}
