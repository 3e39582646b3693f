//! Decides from the lives of connections whether they end at an age, or all at one moment.
//!
//! Connections whose Pings are answered all the time are *busy*: no idle limit ends them. If they were opened at different times and
//! end at one age, the path has a lifetime limit. If connections of different age end at one moment, something was restarted.

use std::time::Duration;

use super::super::measured::{CutHow, Lifetime, Limit};

/// Ends this close together happened at one moment.
const ONE_MOMENT: Duration = Duration::from_millis(150);
/// Ages that differ by more than this are different.
const ANOTHER_AGE: Duration = Duration::from_millis(450);
/// Ages of one limit differ by less than this factor.
const ONE_LIMIT: f64 = 1.3;

/// The life of one connection. Times count from the start of the experiments.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Life {
    pub(crate) opened: Duration,
    /// The last sign of life.
    pub(crate) last: Duration,
    /// When it was cut, and how. `None`: it lives, or this client closed it.
    pub(crate) cut: Option<(Duration, CutHow)>,
    pub(crate) is_busy: bool,
}

/// What else than silence ends connections.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Explained {
    /// The age at which busy connections end.
    pub(crate) lifetime: Option<Duration>,
    /// When connections of different age ended at once.
    pub(crate) moments: Vec<Duration>,
}

impl Explained {
    /// Returns whether a cut that happened between `from` and `to`, of a connection that was opened at `opened`, needs no other
    /// explanation.
    pub(crate) fn covers(&self, opened: Duration, from: Duration, to: Duration) -> bool {
        let between =
            |moment: Duration, tolerance: Duration| moment + tolerance >= from && moment <= to + tolerance;
        self.moments.iter().any(|&moment| between(moment, ONE_MOMENT))
            || self.lifetime.is_some_and(|age| between(opened + age, ONE_MOMENT + age / 100))
    }
}

impl Life {
    fn age_at_cut(&self) -> Option<Duration> {
        self.cut.as_ref().map(|(at, _)| at.saturating_sub(self.opened))
    }

    fn is_silent(&self) -> bool {
        matches!(self.cut, Some((_, CutHow::Silent | CutHow::ResetOnSend)))
    }

    /// The earliest time at which it may have been cut.
    pub(crate) fn from(&self) -> Duration {
        match &self.cut {
            Some((at, _)) if !self.is_silent() => *at,
            _ => self.last,
        }
    }
}

/// Returns what the lives explain so far.
pub(crate) fn explain(lives: &[Life]) -> Explained {
    let ages = ages(lives, &restarts(lives));
    Explained { lifetime: one_limit(&ages).then(|| median(&ages)), moments: moments(lives) }
}

/// Returns the result at `now`.
pub(crate) fn judge(lives: &[Life], now: Duration) -> Lifetime {
    let restarts = restarts(lives);
    let ages = ages(lives, &restarts);
    let oldest = lives
        .iter()
        .filter(|life| life.is_busy && life.cut.is_none())
        .map(|life| life.last.min(now).saturating_sub(life.opened))
        .max();
    Lifetime { limit: limit(lives, &ages, &restarts, oldest), restarts }
}

fn limit(lives: &[Life], ages: &[Duration], restarts: &[Duration], oldest: Option<Duration>) -> Limit {
    let (Some(&least), Some(&most)) = (ages.first(), ages.last()) else {
        // What a restart ended had lived until then.
        let cut = lives.iter().filter(|life| life.is_busy).filter_map(Life::age_at_cut).max();
        return match oldest.max(cut) {
            Some(for_at_least) => Limit::Holds { for_at_least },
            None => Limit::unknown("no connection could be watched"),
        };
    };
    if !one_limit(ages) {
        let ages: Vec<_> = ages.iter().map(|age| format!("{:.1} s", age.as_secs_f64())).collect();
        return Limit::unknown(format!("busy connections were cut at different ages: {}", ages.join(", ")));
    }
    if let Some(oldest) = oldest.filter(|oldest| oldest.as_secs_f64() > most.as_secs_f64() * ONE_LIMIT) {
        let (cut, lives) = (least.as_secs_f64(), oldest.as_secs_f64());
        return Limit::unknown(format!(
            "a busy connection was cut at the age of {cut:.1} s, and another lived for {lives:.1} s"
        ));
    }
    let of_limit = |life: &&Life| {
        life.is_busy
            && life.age_at_cut().is_some_and(|age| age >= least && age <= most)
            && !struck(life, restarts)
    };
    let cuts: Vec<_> = lives.iter().filter(of_limit).collect();
    let alive = cuts.iter().map(|life| life.last.saturating_sub(life.opened)).min().unwrap_or(least);
    let how = cuts.first().and_then(|life| life.cut.clone()).map_or(CutHow::Silent, |(_, how)| how);
    Limit::Cut { after: median(ages), between: (alive.min(least), most), how, seen: cuts.len() as u32 }
}

/// The moments at which connections were cut whatever their age. Where those that lived on are all younger than those that were cut, it
/// is their age: something looks for old ones from time to time.
fn restarts(lives: &[Life]) -> Vec<Duration> {
    let spares_the_young = |moment: &Duration| {
        let youngest = lives.iter().filter(|life| is_cut_at(life, *moment)).map(|life| life.opened).max();
        let mut spared =
            lives.iter().filter(|life| lives_on(life, *moment)).map(|life| life.opened).peekable();
        spared.peek().is_some() && spared.all(|opened| Some(opened) > youngest)
    };
    moments(lives).into_iter().filter(|moment| !spares_the_young(moment)).collect()
}

fn is_cut_at(life: &Life, moment: Duration) -> bool {
    life.cut.as_ref().is_some_and(|(at, _)| at.abs_diff(moment) <= ONE_MOMENT)
}

/// Whether a connection was open before this moment and after it.
fn lives_on(life: &Life, moment: Duration) -> bool {
    life.opened < moment && !is_cut_at(life, moment) && life.last > moment
}

/// The moments at which a busy connection was cut, and with it one of another age.
fn moments(lives: &[Life]) -> Vec<Duration> {
    let cut: Vec<_> = lives
        .iter()
        .filter(|life| !life.is_silent())
        .filter_map(|life| Some((life, life.cut.as_ref()?.0)))
        .collect();
    let with_another = |life: &Life, at: Duration| {
        cut.iter().any(|(other, other_at)| {
            other_at.abs_diff(at) <= ONE_MOMENT && other.opened.abs_diff(life.opened) >= ANOTHER_AGE
        })
    };
    let mut moments: Vec<_> =
        cut.iter().filter(|(life, at)| life.is_busy && with_another(life, *at)).map(|(_, at)| *at).collect();
    moments.sort_unstable();
    moments.dedup_by(|later, earlier| later.abs_diff(*earlier) <= ONE_MOMENT);
    moments
}

fn struck(life: &Life, restarts: &[Duration]) -> bool {
    restarts.iter().any(|moment| is_cut_at(life, *moment))
}

/// The ages, in order, at which busy connections were cut by no restart.
fn ages(lives: &[Life], restarts: &[Duration]) -> Vec<Duration> {
    let mut ages: Vec<_> = lives
        .iter()
        .filter(|life| life.is_busy && !struck(life, restarts))
        .filter_map(Life::age_at_cut)
        .collect();
    ages.sort_unstable();
    ages
}

fn one_limit(ages: &[Duration]) -> bool {
    match (ages.first(), ages.last()) {
        (Some(least), Some(most)) => {
            most.as_secs_f64() <= least.as_secs_f64() * ONE_LIMIT + ONE_MOMENT.as_secs_f64()
        }
        _ => false,
    }
}

fn median(sorted: &[Duration]) -> Duration {
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(value: f64) -> Duration {
        Duration::from_secs_f64(value)
    }

    fn busy(opened: f64, cut: Option<f64>) -> Life {
        let last = cut.map_or(seconds(60.0), |at| seconds(at - 0.5));
        Life { opened: seconds(opened), last, cut: cut.map(|at| (seconds(at), CutHow::Fin)), is_busy: true }
    }

    #[test]
    fn connections_that_end_at_one_age_show_a_lifetime() {
        let lives = [busy(0.0, Some(30.0)), busy(13.0, Some(43.05))];
        let Lifetime { limit: Limit::Cut { after, between, seen, how }, restarts } =
            judge(&lives, seconds(60.0))
        else {
            panic!()
        };
        assert_eq!((after, seen, how, restarts), (seconds(30.0), 2, CutHow::Fin, vec![]));
        assert!(between.0 < seconds(30.0) && between.1 >= seconds(30.0));
    }

    #[test]
    fn connections_of_different_age_that_end_at_once_show_a_restart_and_no_lifetime() {
        let lives = [busy(0.0, Some(30.0)), busy(13.0, Some(30.05)), busy(31.0, None)];
        let lifetime = judge(&lives, seconds(60.0));
        assert_eq!(
            lifetime,
            Lifetime { limit: Limit::Holds { for_at_least: seconds(30.0) }, restarts: vec![seconds(30.0)] }
        );
        assert!(explain(&lives).covers(seconds(3.0), seconds(3.0), seconds(30.1)));
        assert!(!explain(&lives).covers(seconds(31.0), seconds(31.0), seconds(40.0)));
    }

    #[test]
    fn a_server_that_ends_all_that_are_old_enough_at_once_has_a_limit_of_age_and_no_restart() {
        let quiet = |opened, cut| Life { is_busy: false, ..busy(opened, Some(cut)) };
        let lives = [busy(0.0, Some(32.0)), quiet(0.2, 32.0), quiet(1.6, 32.0), busy(13.0, Some(44.0))];
        let lifetime = judge(&lives, seconds(60.0));
        assert!(
            matches!(lifetime.limit, Limit::Cut { after, seen: 2, .. } if after == seconds(31.0)),
            "{lifetime:?}"
        );
        assert!(lifetime.restarts.is_empty());
        assert!(explain(&lives).covers(seconds(3.0), seconds(32.0), seconds(32.0)), "by the same look");
        let with_an_old_survivor = [&lives[..], &[busy(0.1, None)]].concat();
        assert_eq!(judge(&with_an_old_survivor, seconds(60.0)).restarts, [seconds(32.0)]);
    }

    #[test]
    fn a_busy_connection_cut_with_a_silent_one_of_another_age_shows_a_restart() {
        let silent = Life { is_busy: false, ..busy(2.0, Some(30.0)) };
        assert_eq!(judge(&[busy(0.0, Some(30.0)), silent], seconds(60.0)).restarts, [seconds(30.0)]);
    }

    #[test]
    fn cuts_at_ages_that_have_nothing_in_common_are_no_lifetime() {
        for lives in
            [[busy(0.0, Some(3.0)), busy(13.0, Some(43.0))], [busy(0.0, None), busy(13.0, Some(43.0))]]
        {
            let limit = judge(&lives, seconds(100.0)).limit;
            assert!(matches!(limit, Limit::Unknown { .. }), "{limit:?}");
        }
    }

    #[test]
    fn a_connection_that_outlives_the_experiments_holds() {
        assert_eq!(
            judge(&[busy(0.0, None)], seconds(60.0)).limit,
            Limit::Holds { for_at_least: seconds(60.0) }
        );
        assert!(matches!(judge(&[], seconds(60.0)).limit, Limit::Unknown { .. }));
    }
}
