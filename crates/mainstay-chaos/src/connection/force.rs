//! Faults that strike one connection: which are in force, what they mean for its two pipes, and how they end.

use std::time::Duration;

use super::{Connection, Held, Life};
use crate::event::{Cause, FaultId, Lift, What};
use crate::fault::{Fault, Side};
use crate::frames::opcode;
use crate::pipe::Gates;
use crate::schedule::Strike;

/// A fault that lasts.
#[derive(Debug)]
pub(super) struct InForce {
    fault: Fault,
    by: Origin,
    pub(super) until: Option<Duration>,
}

/// Where a fault comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A rule strikes this connection alone, which notes it.
    Rule(usize),
    /// The proxy, which notes it.
    Proxy(FaultId),
}

/// A cut that time makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CutByTime {
    reason: &'static str,
    is_silent: bool,
    /// It strikes a connection on which nothing passed.
    pub(super) is_of_silence: bool,
}

impl Connection {
    /// Returns the names of the faults in force.
    pub(crate) fn faults(&self) -> Vec<&'static str> {
        self.in_force.iter().map(|it| it.fault.name()).collect()
    }

    /// A fault of the proxy strikes, on command or by a rule of the whole proxy, which notes it. It lasts until
    /// [`handle_lift`](Self::handle_lift).
    pub(crate) fn handle_fault(&mut self, now: Duration, fault: &Fault, id: FaultId) {
        self.strike(now, fault, Origin::Proxy(id), None);
    }

    /// A fault of the proxy stops.
    pub(crate) fn handle_lift(&mut self, now: Duration, id: FaultId, why: Lift) {
        self.stop(now, why, |it| it.by == Origin::Proxy(id));
    }

    /// The faults of rules that strike this connection alone stop.
    pub(crate) fn handle_lift_of_rules(&mut self, now: Duration, why: Lift) {
        self.stop(now, why, |it| matches!(it.by, Origin::Rule(_)));
    }

    /// Returns whether a fault has come to its end.
    pub(super) fn end_faults(&mut self, now: Duration) -> bool {
        self.stop(now, Lift::End, |it| it.until.is_some_and(|until| until <= now))
    }

    /// Returns whether a rule has struck.
    pub(super) fn strike_by_rules(&mut self, now: Duration) -> bool {
        if self.life != Life::Open {
            return false;
        }
        let due = self.rules.iter_mut().filter(|(_, schedule)| schedule.next().is_some_and(|at| at <= now));
        let Some((fault, schedule)) = due.min_by_key(|(_, schedule)| schedule.next()) else { return false };
        let (fault, number) = (fault.clone(), schedule.rule);
        let Some(Strike { at, due, until }) = schedule.pop(now) else { return false };
        let lasts = until.map(|until| until.saturating_sub(at));
        let by = Cause::Rule(number);
        self.notes.push_back(What::Fault { fault: fault.clone(), by, lasts, due: Some(due) });
        self.strike(now, &fault, Origin::Rule(number), until);
        true
    }

    fn strike(&mut self, now: Duration, fault: &Fault, by: Origin, until: Option<Duration>) {
        if self.life != Life::Open {
            return;
        }
        match fault {
            Fault::Reset => self.reset_both("reset"),
            Fault::Fin => self.finish_both(now, "fin"),
            Fault::Ghost => self.begin_ghost(),
            Fault::Corrupt(direction) => {
                for side in Side::BOTH.into_iter().filter(|side| direction.covers(*side)) {
                    self.lanes[side as usize].pipe.corrupt(&mut self.bits);
                }
            }
            Fault::CutInFrame(direction) => {
                for side in Side::BOTH.into_iter().filter(|side| direction.covers(*side)) {
                    self.lanes[side as usize].cuts_next_frame = true;
                }
            }
            lasting => {
                self.in_force.push(InForce { fault: lasting.clone(), by, until });
                self.refresh(now);
            }
        }
    }

    /// Returns whether there was one to stop.
    fn stop(&mut self, now: Duration, why: Lift, is_meant: impl Fn(&InForce) -> bool) -> bool {
        let stopped: Vec<_> = self.in_force.extract_if(.., |it| is_meant(it)).collect();
        for it in stopped.iter().filter(|_| self.life == Life::Open) {
            if let Origin::Rule(number) = it.by {
                self.notes.push_back(What::Lifted { fault: it.fault.name(), by: Cause::Rule(number), why });
            }
        }
        if !stopped.is_empty() {
            self.refresh(now);
        }
        !stopped.is_empty()
    }

    /// Applies the faults in force.
    fn refresh(&mut self, now: Duration) {
        for side in Side::BOTH {
            let at = side as usize;
            self.lanes[at].gates = self.gates_of(side);
            self.lanes[at].pipe.hurry(now, &self.lanes[at].gates);
            let holds_some =
                !self.lanes[at].pipe.is_empty() || self.lanes[at].pipe.has_tail() || self.holds_request(side);
            if self.lanes[at].gates.hole && holds_some {
                self.lose(side);
            }
        }
        if Side::BOTH.into_iter().any(|side| self.bytes_until_cut(side) == Some(0)) {
            return self.reset_both("cut-after");
        }
        self.answer_or_pass(now);
        self.pass_tails(now);
    }

    fn holds_request(&self, side: Side) -> bool {
        side == Side::Client && !matches!(self.held, Held::No)
    }

    fn gates_of(&self, side: Side) -> Gates {
        let mut gates = Gates::default();
        for InForce { fault, .. } in &self.in_force {
            match fault {
                Fault::BlackHole(way) => gates.hole |= way.covers(side),
                Fault::Stall(way) => gates.stall |= way.covers(side),
                Fault::Jam(way) => gates.jam |= way.covers(side),
                Fault::SwallowClose(way) => gates.swallow_close |= way.covers(side),
                Fault::DropPings(way) => gates.drop_pings |= way.covers(side),
                Fault::DropPongs(way) => gates.drop_pongs |= way.covers(side),
                Fault::Delay { direction, latency, jitter } if direction.covers(side) => {
                    let (base, more) = gates.delay.unwrap_or_default();
                    gates.delay = Some((base.saturating_add(*latency), more.saturating_add(*jitter)));
                }
                Fault::Bandwidth { direction, bytes_per_second } if direction.covers(side) => {
                    let rate = (*bytes_per_second).max(1);
                    gates.bytes_per_second =
                        Some(gates.bytes_per_second.map_or(rate, |least| least.min(rate)));
                }
                Fault::Trickle { direction, bytes } if direction.covers(side) => {
                    let bytes = (*bytes).max(1);
                    gates.trickle = Some(gates.trickle.map_or(bytes, |least| least.min(bytes)));
                }
                _ => {}
            }
        }
        gates
    }

    pub(super) fn drops(&self, side: Side, code: u8) -> bool {
        let gates = &self.lanes[side as usize].gates;
        match code {
            opcode::CLOSE => gates.swallow_close,
            opcode::PING => gates.drop_pings,
            opcode::PONG => gates.drop_pongs,
            _ => false,
        }
    }

    pub(super) fn is_mute(&self) -> bool {
        self.in_force.iter().any(|it| it.fault == Fault::Mute)
    }

    /// Returns the status that requests are answered with.
    pub(super) fn status(&self) -> Option<(u16, Option<u32>)> {
        self.in_force.iter().rev().find_map(|it| match it.fault {
            Fault::Status { code, retry_after } => Some((code, retry_after)),
            _ => None,
        })
    }

    /// Returns how many more bytes of `side` pass before `cut-after`.
    pub(super) fn bytes_until_cut(&self, side: Side) -> Option<u64> {
        let limits = self.in_force.iter().filter_map(|it| match it.fault {
            Fault::CutAfter { direction, bytes } if direction.covers(side) => {
                let counted = Side::BOTH.into_iter().filter(|side| direction.covers(*side));
                let passed: u64 = counted.map(|side| self.lanes[side as usize].pipe.entered()).sum();
                Some(bytes.saturating_sub(passed))
            }
            _ => None,
        });
        limits.min()
    }

    /// Returns the cuts that time will make, if nothing passes until then.
    pub(super) fn cut_times(&self) -> impl Iterator<Item = (Duration, CutByTime)> + '_ {
        let is_alive = self.lanes.iter().any(|lane| !lane.pipe.is_dead() && !lane.pipe.is_over());
        let is_open = self.life == Life::Open && is_alive;
        self.in_force.iter().filter(move |_| is_open).filter_map(|it| match it.fault {
            Fault::IdleCut { direction, after, silent } => {
                let at = self.idle_since(direction).checked_add(after)?;
                Some((at, CutByTime { reason: "idle-cut", is_silent: silent, is_of_silence: true }))
            }
            Fault::LifetimeCut { after } => {
                let at = self.opened.checked_add(after)?;
                Some((at, CutByTime { reason: "lifetime-cut", is_silent: false, is_of_silence: false }))
            }
            _ => None,
        })
    }

    pub(super) fn cut_what_is_due(&mut self, now: Duration, is_meant: impl Fn(&CutByTime) -> bool) {
        let due = self.cut_times().filter(|(time, cut)| *time <= now && is_meant(cut));
        let Some((_, cut)) = due.min_by_key(|(time, _)| *time) else { return };
        if !cut.is_silent {
            return self.finish_both(now, cut.reason);
        }
        for side in Side::BOTH {
            self.lose(side);
        }
    }
}
