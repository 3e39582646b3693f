use super::*;
use crate::origin;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const INTERVAL: Duration = Duration::from_secs(25);

/// A heartbeat on a virtual clock, with a driver that has nothing else to do.
struct Rig {
    now: Instant,
    config: HeartbeatConfig,
    beat: Heartbeat,
    calls: u32,
}

impl Rig {
    fn new(interval: Duration, seed: u64) -> Self {
        let (now, config) = (origin(), HeartbeatConfig::every(interval).unwrap());
        Self { now, config, beat: Heartbeat::new(now, &config, &mut SmallRng::seed_from_u64(seed)), calls: 0 }
    }

    /// A rig whose first probe, of the nonce returned, has just left.
    fn probed(interval: Duration) -> (Self, u64) {
        let mut rig = Self::new(interval, 1);
        let nonce = rig.next_probe();
        (rig, nonce)
    }

    fn timeout(&mut self) -> Option<Action> {
        self.calls += 1;
        assert!(self.calls < 100_000, "nothing happens any more");
        self.beat.handle_timeout(self.now, &self.config)
    }

    /// Waits for the timer until it asks for something.
    fn next(&mut self) -> Action {
        loop {
            self.now = self.now.max(self.beat.poll_timeout());
            if let Some(action) = self.timeout() {
                return action;
            }
        }
    }

    /// The next probe, which leaves at once.
    fn next_probe(&mut self) -> u64 {
        let Action::Probe { nonce } = self.next() else { panic!("no probe") };
        self.beat.handle_flushed(self.now);
        nonce
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }
}

#[test]
fn a_silent_peer_is_dead_one_deadline_after_the_probe_left() {
    let (mut rig, _) = Rig::probed(INTERVAL);
    let left = rig.now;
    assert_eq!(rig.next(), Action::Drain, "what is readable is read before the verdict");
    assert_eq!(rig.next(), Action::Dead(Evidence::Silent));
    assert_eq!(rig.now, left + SHORTEST_DEADLINE);
}

#[test]
fn an_answer_found_at_the_last_moment_saves_the_peer() {
    let (mut rig, nonce) = Rig::probed(INTERVAL);
    assert_eq!(rig.next(), Action::Drain);
    assert!(rig.beat.handle_pong(rig.now, nonce).is_some());
    assert_eq!(rig.timeout(), None);
    assert!(matches!(rig.next(), Action::Probe { .. }));
}

#[test]
fn first_beats_of_ten_thousand_connections_are_spread_over_the_interval() {
    let mut tenths = [0_u32; 10];
    for seed in 0..10_000 {
        let rig = Rig::new(INTERVAL, seed);
        let phase = rig.beat.poll_timeout() - rig.now;
        assert!(phase > Duration::ZERO && phase <= INTERVAL);
        tenths[((phase.as_secs_f64() / 2.5) as usize).min(9)] += 1;
    }
    assert!(tenths.iter().all(|n| (900..=1100).contains(n)), "{tenths:?}");
}

#[test]
fn later_beats_come_every_interval_plus_or_minus_a_tenth() {
    let (mut rig, mut nonce) = Rig::probed(INTERVAL);
    let mut tenths = [0_u32; 10];
    for _ in 0..1000 {
        let before = rig.now;
        rig.beat.handle_pong(rig.now + 30 * MS, nonce);
        nonce = rig.next_probe();
        let place = (rig.now - before).as_secs_f64() / INTERVAL.as_secs_f64() - 0.9;
        assert!((-0.0001..=0.2001).contains(&place), "{place}");
        tenths[((place * 50.0) as usize).min(9)] += 1;
    }
    assert!(tenths.iter().all(|n| (60..=140).contains(n)), "{tenths:?}");
}

#[test]
fn a_busy_connection_is_probed_as_often_as_a_quiet_one_and_no_timer_moves() {
    let mut rig = Rig::new(INTERVAL, 1);
    let due = rig.beat.poll_timeout();
    while rig.now + MS < due {
        rig.pass(MS);
        rig.beat.handle_bytes(rig.now);
        rig.beat.handle_write_progress(rig.now);
        assert_eq!((rig.beat.poll_timeout(), rig.timeout()), (due, None));
    }
    assert!(matches!(rig.next(), Action::Probe { .. }));
    assert_eq!(rig.now, due);
}

#[test]
fn a_stale_or_unknown_pong_clears_nothing_newer() {
    let (mut rig, first) = Rig::probed(INTERVAL);
    assert_eq!(rig.beat.handle_pong(rig.now, first), Some(Duration::ZERO));
    let second = rig.next_probe();
    for nonce in [first, second + 1, second + (1 << 32), u64::MAX] {
        assert_eq!(rig.beat.handle_pong(rig.now, nonce), None);
    }
    assert!(rig.beat.clone().handle_pong(rig.now, second).is_some(), "still open");
    assert_eq!(rig.next(), Action::Drain);
    assert_eq!(rig.next(), Action::Dead(Evidence::Silent));
}

#[test]
fn a_pong_answers_every_probe_before_it() {
    let (mut rig, _) = Rig::probed(SECOND);
    let newest = (0..3).map(|_| rig.next_probe()).last().unwrap();
    assert_eq!(rig.beat.handle_pong(rig.now, newest), None, "when that one left is not known");
    assert!(!rig.beat.is_open());
}

#[test]
fn an_answer_to_an_older_probe_gives_the_newer_ones_their_time() {
    let (mut rig, oldest) = Rig::probed(SECOND);
    rig.next_probe();
    rig.pass(SECOND / 2);
    let answered = rig.now;
    assert!(rig.beat.handle_pong(answered, oldest).is_some());
    while matches!(rig.next(), Action::Probe { .. }) {}
    assert_eq!(rig.now, answered + rig.beat.srtt.deadline());
    assert_eq!(rig.next(), Action::Dead(Evidence::Silent));
}

#[test]
fn an_older_answer_does_not_start_the_clock_of_a_probe_that_has_not_left() {
    let (mut rig, oldest) = Rig::probed(SECOND);
    assert!(matches!(rig.next(), Action::Probe { .. }));
    rig.beat.handle_pong(rig.now, oldest);
    for _ in 0..150 {
        rig.pass(SECOND / 5);
        rig.beat.handle_write_progress(rig.now);
        assert!(matches!(rig.timeout(), None | Some(Action::Probe { .. } | Action::Drain)));
    }
}

#[test]
fn more_probes_do_not_give_a_dead_peer_more_time() {
    let (mut rig, _) = Rig::probed(SECOND);
    let left = rig.now;
    loop {
        match rig.next() {
            Action::Probe { .. } => rig.beat.handle_flushed(rig.now),
            Action::Dead(_) => break,
            _ => {}
        }
    }
    assert_eq!(rig.now, left + SHORTEST_DEADLINE);
}

#[test]
fn the_round_trip_is_smoothed_and_stretches_the_deadline_within_its_bounds() {
    let deadline_after = |round_trip: Duration| {
        let (mut rig, mut nonce) = Rig::probed(INTERVAL);
        for _ in 0..50 {
            rig.pass(round_trip);
            assert_eq!(rig.beat.handle_pong(rig.now, nonce), Some(round_trip));
            nonce = rig.next_probe();
        }
        let rtt = rig.beat.rtt().unwrap();
        assert!(rtt.abs_diff(round_trip) < 10 * Duration::from_micros(1), "{rtt:?}");
        let left = rig.now;
        assert_eq!(rig.next(), Action::Drain);
        rig.now - left
    };
    assert_eq!(deadline_after(Duration::from_micros(180)), 5 * SECOND);
    assert_eq!(deadline_after(2 * SECOND), 9 * SECOND);
    assert_eq!(deadline_after(5 * SECOND - MS), 20 * SECOND);

    let mut srtt = Srtt::default();
    srtt.add(800 * MS);
    srtt.add(Duration::ZERO);
    assert_eq!(srtt.get(), Some(700 * MS));
}

#[test]
fn a_probe_behind_our_own_backlog_is_judged_from_when_it_leaves() {
    let mut rig = Rig::new(INTERVAL, 1);
    assert!(matches!(rig.next(), Action::Probe { .. }));
    // 100 MB at 1 Mbit/s in front of it. Its oldest beat waits, and so do those that follow.
    for _ in 0..800 {
        rig.pass(SECOND);
        rig.beat.handle_write_progress(rig.now);
        while let Some(action) = rig.timeout() {
            assert!(matches!(action, Action::Probe { .. }), "{action:?}");
        }
    }
    rig.beat.handle_flushed(rig.now);
    let left = rig.now;
    while matches!(rig.next(), Action::Probe { .. }) {}
    assert_eq!(rig.now, left + SHORTEST_DEADLINE);
}

#[test]
fn a_probe_that_cannot_leave_ends_in_a_verdict_too() {
    let mut rig = Rig::new(INTERVAL, 1);
    assert!(matches!(rig.next(), Action::Probe { .. }));
    let made = rig.now;
    while rig.next() != Action::Drain {}
    assert_eq!(rig.now, made + SHORTEST_DEADLINE * HARD_CAP);
    assert_eq!(rig.next(), Action::Dead(Evidence::Stalled));
}

#[test]
fn a_peer_that_sends_and_accepts_no_bytes_is_dead_after_24_deadlines() {
    let mut rig = Rig::new(INTERVAL, 1);
    assert!(matches!(rig.next(), Action::Probe { .. }));
    let made = rig.now;
    let verdict = loop {
        rig.pass(SECOND);
        rig.beat.handle_bytes(rig.now);
        let dead = std::iter::from_fn(|| rig.timeout()).find(|action| matches!(action, Action::Dead(_)));
        if let Some(Action::Dead(evidence)) = dead {
            break evidence;
        }
    };
    assert_eq!((verdict, rig.now), (Evidence::Stalled, made + SHORTEST_DEADLINE * STALL_CAP));
}

#[test]
fn a_peer_that_accepts_a_few_bytes_now_and_then_is_not_dead_while_it_sends() {
    let mut rig = Rig::new(INTERVAL, 1);
    assert!(matches!(rig.next(), Action::Probe { .. }));
    for second in 1..1000 {
        rig.pass(SECOND);
        rig.beat.handle_bytes(rig.now);
        if second % 100 == 0 {
            rig.beat.handle_write_progress(rig.now);
        }
        let dead = std::iter::from_fn(|| rig.timeout()).find(|action| matches!(action, Action::Dead(_)));
        assert_eq!(dead, None, "after {second} s");
    }
}

#[test]
fn a_peer_that_sends_one_huge_frame_is_never_dead_and_reported_as_not_listening() {
    let (mut rig, _) = Rig::probed(INTERVAL);
    let (left, mut reports) = (rig.now, Vec::new());
    // 100 MB at 1 Mbit/s: no answer fits in between.
    for _ in 0..800 {
        rig.pass(SECOND);
        rig.beat.handle_bytes(rig.now);
        while let Some(action) = rig.timeout() {
            match action {
                Action::Probe { .. } => rig.beat.handle_flushed(rig.now),
                Action::NotListening => reports.push(rig.now),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(reports.len(), 2);
    assert!(reports[0] >= left + 300 * SECOND && reports[0] <= left + 300 * SECOND + INTERVAL * 11 / 10);
}

#[test]
fn silence_after_bytes_is_judged_one_deadline_after_the_last() {
    let (mut rig, _) = Rig::probed(INTERVAL);
    rig.pass(4 * SECOND);
    rig.beat.handle_bytes(rig.now);
    let last_bytes = rig.now;
    assert_eq!(rig.next(), Action::Drain);
    assert_eq!(rig.now, last_bytes + SHORTEST_DEADLINE);
    assert_eq!(rig.next(), Action::Dead(Evidence::Silent));
}

#[test]
fn acknowledged_writes_stretch_the_deadline_four_times_and_no_further() {
    let (mut rig, _) = Rig::probed(Duration::from_secs(3600));
    let left = rig.now;
    let action = loop {
        rig.pass(SECOND);
        rig.beat.handle_write_progress(rig.now);
        if let Some(action) = rig.timeout() {
            break action;
        }
    };
    assert_eq!((action, rig.now), (Action::Drain, left + SHORTEST_DEADLINE * HARD_CAP));
    assert_eq!(rig.timeout(), Some(Action::Dead(Evidence::Frozen)));
}

#[test]
fn our_own_pause_is_no_evidence_about_the_peer() {
    let (mut rig, _) = Rig::probed(INTERVAL);
    rig.pass(600 * SECOND);
    assert_eq!(rig.timeout(), Some(Action::Drain));
    assert!(matches!(rig.timeout(), Some(Action::Probe { .. })), "nothing was readable: ask again");
    rig.beat.handle_flushed(rig.now);
    let left = rig.now;
    assert_eq!(rig.next(), Action::Drain);
    assert_eq!(rig.next(), Action::Dead(Evidence::Silent));
    assert_eq!(rig.now, left + SHORTEST_DEADLINE, "one fresh deadline, no more");
}

#[test]
fn a_timer_is_late_from_a_quarter_interval_on_and_never_below_250_ms() {
    for (interval, late, pause) in [
        (INTERVAL, 6250 * MS, false),
        (INTERVAL, 6251 * MS, true),
        (100 * MS, 250 * MS, false),
        (100 * MS, 251 * MS, true),
    ] {
        let mut rig = Rig::new(interval, 1);
        rig.now = rig.beat.poll_timeout() + late;
        assert_eq!(rig.timeout() == Some(Action::Drain), pause);
    }
}

#[test]
fn timers_that_are_late_again_and_again_on_a_busy_machine_do_not_put_off_the_verdict() {
    let (busy, left) = (100 * MS, 5 * SECOND);
    let (mut rig, _) = Rig::probed(busy);
    let start = rig.now;
    let mut watch = Watch::new(start, busy);
    let limit = start + left + 3 * busy;
    while rig.now < limit {
        rig.now = rig.now.max(rig.beat.poll_timeout()) + busy;
        match std::iter::from_fn(|| rig.timeout()).find(|action| matches!(action, Action::Dead(_))) {
            Some(_) => break,
            None => rig.beat.handle_flushed(rig.now),
        }
    }
    assert!(rig.now < limit, "the server found it after {:?}", rig.now - start);
    let late = watch.poll_timeout() + busy;
    assert_eq!(watch.handle_timeout(late), Some(Action::Drain));
    assert_eq!(watch.handle_timeout(late), Some(Action::Dead(Evidence::Silent)));
}

#[test]
fn a_requested_probe_leaves_at_once_and_has_its_own_deadline() {
    let mut rig = Rig::new(INTERVAL, 1);
    rig.beat.probe(rig.now);
    assert_eq!(rig.beat.poll_timeout(), rig.now);
    let asked = rig.now;
    let nonce = rig.next_probe();
    assert_eq!(rig.now, asked);
    assert_eq!(rig.next(), Action::Drain);
    assert_eq!(rig.now, asked + 2 * SECOND);
    rig.beat.handle_pong(rig.now, nonce);
    assert_eq!(rig.timeout(), None);
    rig.next_probe();
    let left = rig.now;
    assert_eq!(rig.next(), Action::Drain);
    assert_eq!(rig.now, left + 9 * SECOND, "the next regular beat is judged as one (4 x 2 s + 1 s)");
}

#[test]
fn asking_again_and_again_does_not_put_off_the_verdict() {
    let mut rig = Rig::new(INTERVAL, 1);
    let asked = rig.now;
    rig.beat.probe(rig.now);
    rig.next_probe();
    while !matches!(rig.timeout(), Some(Action::Drain)) {
        rig.pass(100 * MS);
        rig.beat.probe(rig.now);
    }
    assert_eq!(rig.now, asked + 2 * SECOND);
    assert_eq!(rig.timeout(), Some(Action::Dead(Evidence::Silent)));
}

#[test]
fn a_wake_that_finds_an_old_probe_open_gives_a_new_one_its_time() {
    let (mut rig, old) = Rig::probed(INTERVAL);
    rig.pass(4 * SECOND);
    rig.beat.probe(rig.now);
    rig.next_probe();
    let asked = rig.now;
    assert_eq!(rig.beat.handle_pong(rig.now, old), None, "too old to measure or to clear anything");
    assert_eq!(rig.next(), Action::Drain);
    assert_eq!(rig.now, asked + 2 * SECOND);
}

#[test]
fn ten_minutes_suspended_end_in_a_verdict_two_seconds_after_the_probe() {
    let (mut rig, _) = Rig::probed(INTERVAL);
    rig.pass(600 * SECOND);
    let awake = rig.now;
    rig.beat.probe(awake);
    assert_eq!(rig.timeout(), Some(Action::Drain));
    rig.next_probe();
    assert_eq!(rig.next(), Action::Drain);
    assert_eq!(rig.next(), Action::Dead(Evidence::Silent));
    assert_eq!(rig.now, awake + 2 * SECOND);
}

#[test]
fn a_heartbeat_fits_in_48_bytes() {
    assert!(size_of::<Heartbeat>() <= 48, "{}", size_of::<Heartbeat>());
}

#[test]
fn a_setting_out_of_range_is_named() {
    let interval = |interval| HeartbeatConfig::every(interval).map_err(|error| error.field).err();
    assert_eq!(interval(99 * MS), Some("heartbeat.interval"));
    assert_eq!(interval(Duration::MAX), Some("heartbeat.interval"));
    assert_eq!(interval(100 * MS), None);
    let limit = HeartbeatConfig::default().answer_limit(SECOND);
    assert_eq!(limit.map_err(|error| error.field), Err("heartbeat.answer_limit"));
}

/// The driver of a connection whose peer answers after `round_trip` until `silent`, and whose own
/// process pauses. It reads before it looks at the clock, but only what had arrived when it woke.
fn verdict(rig: &mut Rig, round_trip: Duration, silent: Instant, pauses: &[Duration], end: Instant) -> bool {
    let (mut answers, mut pauses) = (Vec::<(Instant, u64)>::new(), pauses.iter().cycle());
    while rig.now < end {
        let arrival = answers.first().map(|(at, _)| *at);
        let wake = arrival.into_iter().chain([rig.beat.poll_timeout()]).min().unwrap_or(rig.now);
        rig.now = rig.now.max(wake) + *pauses.next().unwrap_or(&Duration::ZERO);
        // The timer first: worst case for the rule.
        while let Some(action) = rig.timeout() {
            match action {
                Action::Dead(_) => return true,
                Action::Probe { nonce } => {
                    rig.beat.handle_flushed(rig.now);
                    let arrives = rig.now + round_trip;
                    if arrives < silent {
                        answers.push((arrives, nonce));
                    }
                }
                Action::Drain => {
                    for (_, nonce) in answers.extract_if(.., |(at, _)| *at <= rig.now) {
                        rig.beat.handle_pong(rig.now, nonce);
                    }
                }
                Action::NotListening => {}
            }
        }
        for (_, nonce) in answers.extract_if(.., |(at, _)| *at <= rig.now) {
            rig.beat.handle_pong(rig.now, nonce);
        }
    }
    false
}

proptest! {
    #[test]
    fn a_peer_that_answers_in_time_is_never_dead_however_often_we_pause(
        interval in 1_000_u64..60_000, round_trip in 0_u64..4_900, seed: u64,
        pauses in proptest::collection::vec(prop_oneof![4 => Just(0_u64), 1 => 1_u64..60_000], 1..20),
    ) {
        let ms = Duration::from_millis;
        let mut rig = Rig::new(ms(interval), seed);
        let (end, never) = (rig.now + 3600 * SECOND, rig.now + 7200 * SECOND);
        let pauses: Vec<_> = pauses.into_iter().map(ms).collect();
        prop_assert!(!verdict(&mut rig, ms(round_trip), never, &pauses, end));
    }

    #[test]
    fn a_peer_that_goes_silent_is_dead_within_an_interval_and_a_deadline(
        interval in 1_000_u64..60_000, round_trip in 0_u64..4_900, silent in 0_u64..600_000, seed: u64,
    ) {
        let ms = Duration::from_millis;
        let mut rig = Rig::new(ms(interval), seed);
        let (silent, end) = (rig.now + ms(silent), rig.now + 3600 * SECOND);
        prop_assert!(verdict(&mut rig, ms(round_trip), silent, &[], end));
        let bound = rig.config.interval * 11 / 10 + rig.beat.srtt.deadline() + SECOND / 10;
        prop_assert!(rig.now <= silent + bound, "{:?} after it went silent", rig.now - silent);
    }

    #[test]
    fn inputs_in_any_order_leave_a_heartbeat_that_beats(
        steps in proptest::collection::vec((0_u64..40_000, 0_u8..7, any::<u32>()), 1..200),
    ) {
        let mut rig = Rig::new(INTERVAL, 1);
        let mut newest = 0;
        for (wait, input, nonce) in steps {
            rig.pass(Duration::from_millis(wait));
            let now = rig.now;
            match input {
                0 => rig.beat.handle_bytes(now),
                1 => rig.beat.handle_flushed(now),
                2 => rig.beat.handle_write_progress(now),
                3 => rig.beat.probe(now),
                4 => drop(rig.beat.handle_pong(now, nonce.into())),
                5 => drop(rig.beat.handle_pong(now, newest)),
                _ => {}
            }
            if let Some(Action::Probe { nonce }) = rig.timeout() {
                newest = nonce;
            }
            prop_assert!(rig.beat.poll_timeout() <= now + INTERVAL * 11 / 10);
        }
        for _ in 0..4 {
            rig.beat.handle_pong(rig.now, newest);
            if let Action::Probe { nonce } = rig.next() {
                newest = nonce;
            }
        }
        rig.beat.handle_flushed(rig.now);
        prop_assert!(rig.beat.handle_pong(rig.now, newest).is_some());
    }
}

/// Waits for the watch's timer until it asks for something.
fn next(watch: &mut Watch, now: &mut Instant) -> Action {
    loop {
        *now = watch.poll_timeout().max(*now);
        if let Some(action) = watch.handle_timeout(*now) {
            return action;
        }
    }
}

#[test]
fn a_client_waits_two_announced_intervals_and_five_seconds_after_the_last_byte() {
    let mut now = origin();
    let mut watch = Watch::new(now, INTERVAL);
    let last_bytes = now + 10 * SECOND;
    watch.handle_bytes(last_bytes);
    assert_eq!(watch.handle_timeout(last_bytes + 54 * SECOND), None);
    assert_eq!(next(&mut watch, &mut now), Action::Drain);
    assert_eq!(next(&mut watch, &mut now), Action::Dead(Evidence::Silent));
    assert_eq!(now, last_bytes + 55 * SECOND);
}

#[test]
fn an_answer_that_comes_before_the_socket_is_empty_is_an_answer() {
    let mut now = origin();
    let mut watch = Watch::new(now, INTERVAL);
    watch.probe();
    let Action::Probe { nonce } = next(&mut watch, &mut now) else { panic!("no probe") };
    now += SECOND;
    assert_eq!(watch.handle_pong(now, nonce), None, "when it left is not known");
    now += 20 * SECOND;
    watch.handle_flushed(now);
    assert_eq!(watch.poll_timeout(), now - 20 * SECOND + 55 * SECOND, "no deadline begins");
}

#[test]
fn a_client_that_slept_probes_before_it_judges() {
    let mut now = origin();
    let mut watch = Watch::new(now, INTERVAL);
    now += 600 * SECOND;
    let awake = now;
    assert_eq!(watch.handle_timeout(now), Some(Action::Drain));
    assert_eq!(watch.handle_timeout(now), Some(Action::Probe { nonce: 1 }));
    watch.handle_flushed(now);

    let mut answered = watch.clone();
    assert_eq!(answered.handle_pong(now + SECOND, 1), Some(SECOND));
    assert_eq!(answered.rtt(), Some(SECOND));
    assert_eq!(answered.poll_timeout(), now + SECOND + 55 * SECOND);

    assert_eq!(next(&mut watch, &mut now), Action::Drain);
    assert_eq!(next(&mut watch, &mut now), Action::Dead(Evidence::Silent));
    assert_eq!(now, awake + 2 * SECOND);
}

#[test]
fn a_client_that_slept_and_finds_bytes_on_waking_stays() {
    let mut now = origin();
    let mut watch = Watch::new(now, INTERVAL);
    now += 600 * SECOND;
    assert_eq!(watch.handle_timeout(now), Some(Action::Drain));
    watch.handle_bytes(now);
    assert!(matches!(watch.handle_timeout(now), Some(Action::Probe { .. })), "those may be old");
    watch.handle_flushed(now);
    watch.handle_bytes(now + SECOND);
    assert_eq!(watch.handle_timeout(now + 3 * SECOND), None, "any byte after the probe is life");
}

#[test]
fn a_client_probes_on_request_and_another_request_does_not_postpone_the_verdict() {
    let mut now = origin();
    let mut watch = Watch::new(now, INTERVAL);
    watch.probe();
    assert!(watch.poll_timeout() <= now);
    let Some(Action::Probe { nonce }) = watch.handle_timeout(now) else { panic!() };
    let left = now + SECOND;
    watch.handle_flushed(left);
    assert_eq!(watch.clone().handle_pong(left + SECOND, nonce + 1), None);
    while now < left + 2 * SECOND {
        assert_eq!(watch.handle_timeout(now), None);
        watch.probe();
        now += 500 * MS;
    }
    assert_eq!(next(&mut watch, &mut now), Action::Drain);
    assert_eq!(next(&mut watch, &mut now), Action::Dead(Evidence::Silent));
}

#[test]
fn another_patient_request_does_not_shorten_the_deadline_of_the_open_probe() {
    let mut now = origin();
    let mut watch = Watch::new(now, INTERVAL);
    watch.allow(2 * SECOND);
    watch.probe_patiently();
    assert!(matches!(watch.handle_timeout(now), Some(Action::Probe { .. })));
    watch.handle_flushed(now);
    let due = now + 8 * SECOND;
    assert_eq!(watch.poll_timeout(), due);
    // With the short deadline the probe would be overdue, and this process would seem to have slept.
    watch.probe_patiently();
    assert_eq!(watch.poll_timeout(), due);
    assert_eq!(next(&mut watch, &mut now), Action::Drain);
    assert_eq!(next(&mut watch, &mut now), Action::Dead(Evidence::Silent));
    assert_eq!(now, due);
}

#[test]
fn an_interval_announced_by_a_hostile_server_overflows_nothing() {
    let now = origin();
    assert_eq!(Watch::new(now, Duration::MAX).poll_timeout(), now + 7205 * SECOND);
    assert_eq!(Watch::new(now, Duration::ZERO).poll_timeout(), now + 5200 * MS);
}
