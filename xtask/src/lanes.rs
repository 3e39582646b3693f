//! Which steps of the test run share the machine: two at a time, where each leaves a core idle by itself.

use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::Step;

/// What may run at the same time as a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    /// Nothing: it measures, or uses all cores by itself.
    Nothing,
    /// One more that compiles: a link keeps a single core busy.
    Compiling,
    /// One more that waits for processes and timers most of the time.
    Waiting,
    /// The same, but it listens on the ports that documents name: not another such step.
    WaitingAtKnownPorts,
}

/// Cuts steps into parts, one after the other. The steps of one part may share the machine.
pub(crate) fn parts<'a>(steps: &'a [&'a Step]) -> impl Iterator<Item = &'a [&'a Step]> {
    let waits = |step: &Step| matches!(step.beside, Beside::Waiting | Beside::WaitingAtKnownPorts);
    let compiles = |step: &Step| step.beside == Beside::Compiling;
    steps.chunk_by(move |one, next| (waits(one) && waits(next)) || (compiles(one) && compiles(next)))
}

/// Plays the steps of one part, two at a time in their order. After one that fails no other begins.
pub(crate) fn play(part: &[&Step], passes: impl Fn(&Step) -> bool + Sync) {
    let queue = Mutex::new(Queue { steps: part.to_vec(), at_known_ports: false });
    let queue = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    let lane = || {
        loop {
            let Some(step) = queue().next() else { break };
            let passed = passes(step);
            queue().ended(step, passed);
        }
    };
    thread::scope(|scope| {
        if part.len() > 1 {
            scope.spawn(lane);
        }
        lane();
    });
}

struct Queue<'a> {
    steps: Vec<&'a Step>,
    /// Whether a step runs that listens on known ports.
    at_known_ports: bool,
}

impl<'a> Queue<'a> {
    /// The next step that may begin. If there is none, the lane of the step that runs plays the rest.
    fn next(&mut self) -> Option<&'a Step> {
        let may_begin = |step: &&Step| !(self.at_known_ports && step.beside == Beside::WaitingAtKnownPorts);
        let next = self.steps.iter().position(may_begin)?;
        let step = self.steps.remove(next);
        self.at_known_ports |= step.beside == Beside::WaitingAtKnownPorts;
        Some(step)
    }

    fn ended(&mut self, step: &Step, passed: bool) {
        self.at_known_ports &= step.beside != Beside::WaitingAtKnownPorts;
        if !passed {
            self.steps.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Outcome;

    fn step(name: &'static str, beside: Beside) -> Step {
        Step::new(name, "", |_| Ok(Outcome::Passed)).beside(beside)
    }

    fn names(steps: &[&Step]) -> String {
        steps.iter().map(|step| step.name).collect()
    }

    #[test]
    fn only_neighbours_that_wait_or_that_compile_share_the_machine() {
        use Beside::{Compiling, Nothing, Waiting, WaitingAtKnownPorts};
        let kinds = [Compiling, Compiling, Nothing, Nothing, WaitingAtKnownPorts, Waiting, Compiling];
        let steps: Vec<Step> = "abcdefg"
            .split("")
            .filter(|name| !name.is_empty())
            .zip(kinds)
            .map(|(name, beside)| step(name, beside))
            .collect();
        let steps: Vec<&Step> = steps.iter().collect();
        assert_eq!(parts(&steps).map(names).collect::<Vec<_>>(), ["ab", "c", "d", "ef", "g"]);
    }

    #[test]
    fn two_steps_with_known_ports_never_run_at_a_time_and_the_others_go_ahead() {
        let (known, free) = (Beside::WaitingAtKnownPorts, Beside::Waiting);
        let (a, b, c) = (step("a", known), step("b", known), step("c", free));
        let mut queue = Queue { steps: vec![&a, &b, &c], at_known_ports: false };
        let mut next = || queue.next().map(|step| step.name);
        assert_eq!([next(), next(), next()], [Some("a"), Some("c"), None]);
        queue.ended(&c, true);
        assert!(queue.next().is_none());
        queue.ended(&a, true);
        assert_eq!(queue.next().map(|step| step.name), Some("b"));
    }

    #[test]
    fn every_step_is_played_once_and_after_a_failure_none_begins() {
        let steps = ["a", "b", "c", "d"].map(|name| step(name, Beside::Waiting));
        let part: Vec<&Step> = steps.iter().collect();
        let played = Mutex::new(Vec::new());
        play(&part, |step| {
            played.lock().unwrap().push(step.name);
            true
        });
        let mut played = played.into_inner().unwrap();
        played.sort_unstable();
        assert_eq!(played, ["a", "b", "c", "d"]);
        let mut queue = Queue { steps: part, at_known_ports: false };
        let first = queue.next().unwrap();
        queue.ended(first, false);
        assert!(queue.next().is_none());
    }
}
