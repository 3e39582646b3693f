use super::*;
use crate::origin;
use proptest::prelude::*;
use std::collections::VecDeque;

const MIN_INTERVAL: Duration = Duration::from_millis(20);

/// A link whose messages are their own numbers, on a virtual clock.
struct Rig {
    link: Confirmer<u64>,
    now: Instant,
}

impl Rig {
    /// Attached, with `messages` of 64 bytes pushed.
    fn new(confirm: Confirm, guarantee: Guarantee, messages: u64) -> Self {
        let config =
            ConfirmConfig { confirm, guarantee, min_ping_interval: MIN_INTERVAL, ..ConfirmConfig::default() };
        let mut rig = Self { link: Confirmer::new(config), now: origin() };
        rig.link.handle_attached();
        (0..messages).for_each(|_| rig.push(64));
        rig
    }

    fn push(&mut self, bytes: usize) {
        let number = self.link.last() + 1;
        assert_eq!(self.link.push(number, bytes), Ok((number, None)));
    }

    /// Writes all that may be written now: the messages and the positions of the Pings.
    fn write(&mut self) -> (Vec<u64>, Vec<u64>) {
        let (mut messages, mut pings) = (Vec::new(), Vec::new());
        while let Some(transmit) = self.link.poll_transmit(self.now) {
            match transmit {
                Output::Message(number, message) => {
                    assert_eq!(number, *message);
                    messages.push(number);
                }
                Output::Ping(position) => pings.push(u64::from_be_bytes(position)),
            }
        }
        (messages, pings)
    }

    fn pong(&mut self, position: u64) -> Option<Outcome<u64>> {
        self.link.handle_pong(&position.to_be_bytes())
    }

    /// Writes and answers every Ping until nothing moves; the messages written.
    fn settle(&mut self) -> Vec<u64> {
        let mut all = Vec::new();
        loop {
            let (messages, pings) = self.write();
            all.extend(messages);
            if let Some(position) = pings.last() {
                self.pong(*position);
            } else if let Some(due) = self.link.poll_timeout() {
                self.now = self.now.max(due);
            } else {
                return all;
            }
        }
    }

    fn reconnect(&mut self) -> Option<Outcome<u64>> {
        let event = self.link.handle_lost();
        self.link.handle_attached();
        event
    }
}

#[test]
fn at_most_64_messages_go_unconfirmed_and_one_ping_is_open() {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 200);
    assert_eq!(rig.write(), ((1..=64).collect(), vec![64]));
    rig.now += Duration::from_secs(60);
    assert_eq!((rig.write(), rig.link.poll_timeout()), ((vec![], vec![]), None), "a late Pong is waited for");
    assert_eq!(rig.pong(64), Some(Outcome::Confirmed(64)));
    assert_eq!(rig.write(), ((65..=128).collect(), vec![128]));
}

#[test]
fn at_most_256_kib_go_unconfirmed_unless_it_is_one_message() {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 0);
    [100, 100, 56, 1, 300, 1].into_iter().for_each(|kib| rig.push(kib * 1024));
    assert_eq!(rig.write(), (vec![1, 2, 3], vec![1]), "64 KiB want a Ping, 256 KiB wait for its Pong");
    rig.pong(1);
    rig.now += MIN_INTERVAL;
    assert_eq!(rig.write(), (vec![4], vec![3]));
    rig.pong(3);
    rig.now += MIN_INTERVAL;
    assert_eq!(rig.write(), (vec![], vec![4]));
    rig.pong(4);
    rig.now += MIN_INTERVAL;
    assert_eq!(rig.write(), (vec![5], vec![5]), "300 KiB go alone");
    rig.now += PING_DELAY;
    assert_eq!(rig.write(), (vec![], vec![]));
    rig.pong(5);
    assert_eq!(rig.write().0, [6]);
}

#[test]
fn pings_keep_their_distance_and_few_messages_wait_a_quarter_of_a_second() {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 65);
    let start = rig.now;
    assert_eq!(rig.write().1, [64]);
    rig.pong(64);
    assert_eq!(rig.write(), (vec![65], vec![]));
    assert_eq!(rig.link.poll_timeout(), Some(start + PING_DELAY));
    (66..=200).for_each(|_| rig.push(64));
    assert_eq!(rig.write(), ((66..=128).collect(), vec![]), "the window is full, but 20 ms are not over");
    assert_eq!(rig.link.poll_timeout(), Some(start + MIN_INTERVAL));
    rig.now += MIN_INTERVAL;
    assert_eq!(rig.write(), (vec![], vec![128]));
}

#[test]
fn without_a_pause_a_full_window_waits_for_nothing_but_its_pong() {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 0);
    rig.link = Confirmer::new(ConfirmConfig::default());
    rig.link.handle_attached();
    (1..=640).for_each(|_| rig.push(64));
    for window in 1..=10 {
        let (written, pings) = rig.write();
        assert_eq!((written.len(), pings), (64, vec![window * 64]));
        rig.pong(window * 64);
    }
}

#[test]
fn the_quarter_of_a_second_counts_from_the_oldest_unconfirmed_message() {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 1);
    let start = rig.now;
    rig.write();
    rig.now += PING_DELAY;
    assert_eq!(rig.write().1, [1]);
    rig.push(64);
    rig.now += Duration::from_millis(100);
    assert_eq!(rig.write(), (vec![2], vec![]));
    rig.now += Duration::from_millis(100);
    assert_eq!(rig.pong(1), Some(Outcome::Confirmed(1)));
    assert_eq!(rig.link.poll_timeout(), Some(start + PING_DELAY + Duration::from_millis(350)));
}

#[test]
fn a_message_that_does_not_fit_the_window_brings_the_ping_forward() {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 1);
    rig.push(WINDOW_BYTES);
    assert_eq!(rig.write(), (vec![1], vec![1]));
    rig.pong(1);
    rig.now += MIN_INTERVAL;
    assert_eq!(rig.write(), (vec![2], vec![2]));
}

#[test]
fn only_the_answer_to_the_open_ping_confirms() {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 100);
    assert_eq!(rig.pong(0), None, "no Ping is open");
    rig.write();
    for position in [0, 1, 63, 65, u64::MAX] {
        assert_eq!(rig.pong(position), None);
    }
    assert_eq!(rig.link.handle_pong(b""), None);
    assert_eq!(rig.link.handle_pong(&[0; 125]), None);
    assert_eq!(rig.pong(64), Some(Outcome::Confirmed(64)));
    assert_eq!(rig.pong(64), None, "a Pong sent twice");
    assert_eq!(rig.link.unconfirmed(), 36);
}

#[test]
fn pongs_after_the_peers_close_prove_nothing() {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 100);
    rig.write();
    rig.link.handle_peer_close(true);
    assert_eq!(rig.pong(64), None);
    rig.now += PING_DELAY;
    assert_eq!((rig.write(), rig.link.poll_timeout()), ((vec![], vec![]), None));
    rig.reconnect();
    assert_eq!(rig.write().0, (1..=64).collect::<Vec<_>>());
}

#[test]
fn what_a_peer_may_have_answered_before_it_closed_is_unknown_and_not_written_again() {
    for (goes_on, reported) in [(true, Some(Outcome::Unknown(1, 2))), (false, None)] {
        let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 2);
        rig.write();
        rig.link.handle_peer_message();
        rig.push(1);
        rig.write();
        assert_eq!(rig.link.handle_peer_close(goes_on), reported);
        rig.reconnect();
        assert_eq!(rig.write().0, if goes_on { vec![3] } else { vec![1, 2, 3] });
    }
}

#[test]
fn an_answer_proves_nothing_if_the_application_confirms_or_the_stack_reads_ahead() {
    for confirm in [Confirm::PongWindow, Confirm::Reply] {
        let mut rig = Rig::new(confirm, Guarantee::AtLeastOnce, 2);
        rig.write();
        rig.link.handle_peer_message();
        assert_eq!(rig.link.handle_peer_close(true), None);
        rig.reconnect();
        assert_eq!(rig.write().0, [1, 2]);
    }
}

#[test]
fn a_pong_of_the_connection_before_confirms_nothing() {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 64);
    rig.write();
    rig.reconnect();
    assert_eq!(rig.pong(64), None);
    assert_eq!(rig.link.unconfirmed(), 64);
}

#[test]
fn at_least_once_writes_again_what_is_not_confirmed() {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 100);
    rig.write();
    rig.pong(64);
    rig.write();
    assert_eq!(rig.reconnect(), None);
    assert_eq!(rig.settle(), (65..=100).collect::<Vec<_>>());
    assert_eq!(rig.link.unconfirmed(), 0);
}

#[test]
fn at_most_once_reports_what_was_written_and_keeps_what_was_not() {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtMostOnce, 200);
    rig.write();
    rig.pong(64);
    rig.write();
    assert_eq!(rig.reconnect(), Some(Outcome::Unknown(65, 128)));
    assert_eq!(rig.settle(), (129..=200).collect::<Vec<_>>());
    assert_eq!(rig.reconnect(), None);
}

#[test]
fn what_is_pushed_while_detached_waits_for_the_connection() {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtMostOnce, 0);
    rig.link.handle_lost();
    rig.push(64);
    assert_eq!((rig.write(), rig.link.poll_timeout()), ((vec![], vec![]), None));
    assert_eq!(rig.reconnect(), None);
    assert_eq!(rig.settle(), [1]);
}

#[test]
fn pong_window_keeps_the_last_64_confirmed_and_writes_them_again() {
    let mut rig = Rig::new(Confirm::PongWindow, Guarantee::AtLeastOnce, 100);
    rig.write();
    assert_eq!(rig.pong(64), None, "all 64 are kept back");
    rig.now += PING_DELAY;
    rig.write();
    rig.now += PING_DELAY;
    assert_eq!(rig.write().1, [100]);
    assert_eq!(rig.pong(100), Some(Outcome::Confirmed(36)));
    assert_eq!((rig.link.unconfirmed(), rig.link.kept_bytes()), (0, 64 * 64));
    rig.reconnect();
    assert_eq!(rig.settle(), (37..=100).collect::<Vec<_>>());
    assert_eq!(rig.link.unconfirmed(), 0);
}

#[test]
fn what_pong_window_keeps_back_never_fills_the_queue() {
    let config = ConfirmConfig { confirm: Confirm::PongWindow, queue_messages: 2, ..Default::default() };
    let mut rig = Rig::new(Confirm::PongWindow, Guarantee::AtLeastOnce, 0);
    rig.link = Confirmer::new(config);
    rig.link.handle_attached();
    for _ in 0..100 {
        rig.push(1024 * 1024);
        rig.settle();
        assert!(rig.link.kept.items().len() <= 1, "large messages are kept back by bytes");
    }
}

#[test]
fn a_reply_ends_the_keeping_and_a_pong_does_not() {
    let mut rig = Rig::new(Confirm::Reply, Guarantee::AtLeastOnce, 100);
    rig.now += PING_DELAY;
    assert_eq!(rig.write(), ((1..=64).collect(), vec![]), "64 beyond the last reply, no confirming Pings");
    rig.link.probe(rig.now);
    assert_eq!(rig.write().1, [64]);
    assert_eq!(rig.pong(64), None);
    assert!(rig.write().0.is_empty());
    assert_eq!(rig.link.handle_reply(Some(65)), None, "not even written");
    assert_eq!(rig.link.unconfirmed(), 100);
    assert_eq!(rig.link.handle_reply(None), Some(Outcome::Confirmed(1)));
    assert_eq!(rig.write().0, [65]);
}

#[test]
fn replies_may_come_in_any_order_and_each_counts_once() {
    let mut rig = Rig::new(Confirm::Reply, Guarantee::AtLeastOnce, 5);
    rig.write();
    assert_eq!(rig.link.handle_reply(Some(3)), None);
    assert_eq!(rig.link.handle_reply(Some(3)), None);
    assert_eq!(rig.link.handle_reply(Some(2)), None);
    assert_eq!((rig.link.handle_reply(Some(0)), rig.link.handle_reply(Some(6))), (None, None));
    assert_eq!(rig.link.unconfirmed(), 3);
    assert_eq!(rig.link.handle_reply(None), Some(Outcome::Confirmed(3)), "the oldest open one was 1");
    assert_eq!(rig.link.handle_reply(Some(5)), None);
    rig.reconnect();
    assert_eq!(rig.write().0, [4], "what was answered is not written again");
    assert_eq!(rig.link.handle_reply(None), Some(Outcome::Confirmed(5)));
    assert_eq!(rig.link.handle_reply(None), None);
}

#[test]
fn a_full_queue_gives_the_message_back() {
    let config = ConfirmConfig { queue_messages: 2, queue_bytes: 100, ..Default::default() };
    let mut link = Confirmer::new(config);
    assert_eq!(link.push('a', 200), Ok((1, None)), "one larger message alone");
    assert_eq!(link.push('b', 0), Err(Full('b')));
    let mut link = Confirmer::new(config);
    assert_eq!((link.push('a', 60), link.push('b', 41)), (Ok((1, None)), Err(Full('b'))));
    assert_eq!((link.push('c', 40), link.push('d', 0)), (Ok((2, None)), Err(Full('d'))));
}

#[test]
fn a_full_queue_that_drops_the_oldest_keeps_the_newest_and_reports_what_went() {
    let config = ConfirmConfig { queue_messages: 3, when_full: WhenFull::DropOldest, ..Default::default() };
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 0);
    rig.link = Confirmer::new(config);
    (1..=3).for_each(|_| rig.push(64));
    assert_eq!(rig.link.push(4, 64), Ok((4, Some(Outcome::NotDelivered(1, 1)))));
    rig.link.handle_attached();
    assert_eq!(rig.write().0, [2, 3, 4]);
    assert_eq!(
        rig.link.push(5, 64),
        Ok((5, Some(Outcome::NotDelivered(5, 5)))),
        "what is written is not dropped"
    );
    assert_eq!(rig.reconnect(), None);
    assert_eq!(rig.settle(), [2, 3, 4]);
    assert_eq!((rig.link.settled(), rig.link.is_flushed()), (5, true));
    rig.push(64);
    rig.push(64);
    assert_eq!(rig.settle(), [6, 7]);
}

#[test]
fn messages_that_were_dropped_leave_nothing_behind() {
    let config = ConfirmConfig { queue_messages: 100, when_full: WhenFull::DropOldest, ..Default::default() };
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 0);
    rig.link = Confirmer::new(config);
    rig.link.handle_attached();
    (0..50).for_each(|_| rig.push(64));
    rig.write();
    rig.link.handle_lost();
    for _ in 0..10_000 {
        rig.link.push(rig.link.last() + 1, 64).unwrap();
    }
    assert_eq!(rig.link.kept.items().len(), 100);
    rig.link.handle_attached();
    assert_eq!(rig.settle(), (1..=50).chain(10_001..=10_050).collect::<Vec<_>>());
}

#[test]
fn an_end_reports_unknown_and_never_written_messages() {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 150);
    rig.write();
    rig.pong(64);
    rig.write();
    assert_eq!(rig.link.abandon(), [Some(Outcome::Unknown(65, 128)), Some(Outcome::NotDelivered(129, 150))]);
    assert_eq!((rig.link.settled(), rig.link.abandon()), (150, [None, None]));
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 10);
    rig.write();
    rig.link.handle_lost();
    rig.push(64);
    assert_eq!(rig.link.abandon(), [Some(Outcome::Unknown(1, 10)), Some(Outcome::NotDelivered(11, 11))]);
}

#[test]
fn what_has_to_be_written_again_is_not_flushed() {
    let mut rig = Rig::new(Confirm::PongWindow, Guarantee::AtLeastOnce, 10);
    rig.settle();
    assert!(rig.link.is_flushed(), "kept back, and confirmed");
    rig.reconnect();
    assert!(!rig.link.is_flushed());
    rig.settle();
    assert!(rig.link.is_flushed());
}

/// The peer ends the connection whenever it meets the message `poison`, before any later Pong.
/// Returns the number of connections it took until the link reported one undeliverable.
fn connections_until_undeliverable(rig: &mut Rig, poison: u64) -> (u32, Outcome<u64>) {
    for connections in 1..100 {
        loop {
            let (messages, pings) = rig.write();
            if messages.contains(&poison) {
                break;
            }
            match pings.last() {
                Some(position) => drop(rig.pong(*position)),
                None => rig.now = rig.link.poll_timeout().unwrap(),
            }
        }
        if let Some(event) = rig.reconnect() {
            return (connections, event);
        }
    }
    panic!("resent for ever")
}

#[test]
fn a_message_that_ends_three_connections_is_given_up_and_the_next_goes_on() {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 2);
    assert_eq!(connections_until_undeliverable(&mut rig, 1), (3, Outcome::Undeliverable(1, 1)));
    assert_eq!(rig.settle(), [2]);
    assert_eq!(rig.link.unconfirmed(), 0);
}

#[test]
fn the_innocent_in_front_of_a_poisonous_message_are_not_given_up() {
    for confirm in [Confirm::Pong, Confirm::PongWindow] {
        let mut rig = Rig::new(confirm, Guarantee::AtLeastOnce, 300);
        let (connections, event) = connections_until_undeliverable(&mut rig, 164);
        assert_eq!((connections, event), (5, Outcome::Undeliverable(164, 164)), "{confirm:?}");
        assert!(!rig.settle().contains(&164));
        assert_eq!(rig.link.unconfirmed(), 0);
    }
}

#[test]
fn two_lost_connections_are_no_blame_once_the_third_makes_progress() {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 3);
    for _ in 0..2 {
        rig.write();
        assert_eq!(rig.reconnect(), None);
    }
    assert_eq!(rig.write(), (vec![1], vec![1]), "one by one");
    rig.now += MIN_INTERVAL;
    assert_eq!(rig.pong(1), Some(Outcome::Confirmed(1)));
    assert_eq!(rig.write(), (vec![2], vec![2]));
    assert_eq!(rig.reconnect(), None);
    assert_eq!(rig.settle(), [2, 3]);
}

#[test]
fn a_connection_that_wrote_nothing_blames_no_message() {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 1);
    for _ in 0..10 {
        assert_eq!(rig.reconnect(), None);
    }
    assert_eq!(rig.settle(), [1]);
}

#[test]
fn a_probe_sends_a_ping_on_a_quiet_connection_and_never_a_second_one() {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 0);
    rig.link.probe(rig.now);
    assert_eq!(rig.link.poll_timeout(), Some(rig.now));
    assert_eq!(rig.write().1, [0]);
    rig.link.probe(rig.now);
    rig.now += PING_DELAY;
    assert!(rig.write().1.is_empty());
    assert_eq!((rig.pong(0), rig.link.poll_timeout()), (None, None));
}

/// A rig whose 200 messages wait behind a Ping that the peer does not answer.
fn stalled() -> Rig {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 200);
    assert_eq!(rig.write(), ((1..=64).collect(), vec![64]));
    assert_eq!(rig.link.stalled_since(), None, "the Ping has not left");
    rig.link.handle_flushed(rig.now);
    assert_eq!(rig.link.stalled_since(), Some(rig.now));
    rig
}

#[test]
fn a_peer_that_answers_no_ping_is_written_to_at_most_once_and_nothing_stalls() {
    let mut rig = stalled();
    rig.link.expect_no_pongs();
    assert_eq!(rig.link.stalled_since(), None);
    assert_eq!(rig.write(), ((65..=200).collect(), vec![]), "one Ping stays open");
    assert_eq!(rig.link.handle_flushed(rig.now), Some(Outcome::Unknown(1, 200)));
    assert!(rig.link.is_flushed(), "an end waits for nothing");
    rig.push(64);
    rig.write();
    assert_eq!(rig.reconnect(), Some(Outcome::Unknown(201, 201)), "it had not left");
    rig.push(64);
    assert_eq!(rig.settle(), [202], "nothing is doubled");
}

#[test]
fn a_late_pong_brings_back_what_was_chosen() {
    let mut rig = stalled();
    rig.link.expect_no_pongs();
    rig.write();
    rig.link.handle_flushed(rig.now);
    assert_eq!(rig.pong(64), None, "all of that was given up");
    assert!(!rig.link.is_without_pongs());
    rig.push(64);
    rig.write();
    assert_eq!((rig.reconnect(), rig.write().0), (None, vec![201]), "written again");
}

#[test]
fn a_peer_that_answered_one_ping_is_waited_for() {
    let mut rig = Rig::new(Confirm::Pong, Guarantee::AtLeastOnce, 200);
    rig.write();
    rig.link.handle_flushed(rig.now);
    rig.pong(64);
    rig.now += MIN_INTERVAL;
    assert_eq!(rig.write().1, [128]);
    rig.link.handle_flushed(rig.now);
    assert_eq!((rig.link.stalled_since(), rig.link.answers_pings()), (None, Some(true)));
    let mut rig = stalled();
    rig.link.handle_other_pong();
    assert_eq!(rig.link.stalled_since(), None, "the heartbeat's Ping is one too");
}

#[test]
fn a_peer_known_to_answer_no_ping_is_never_waited_for_and_replies_need_none() {
    let config = ConfirmConfig::default().expects_pongs(false);
    let mut rig = Rig { link: Confirmer::new(config), now: origin() };
    rig.link.handle_attached();
    (0..100).for_each(|_| rig.push(64));
    assert_eq!(rig.write().0.len(), 100);
    let mut rig = Rig { link: Confirmer::new(config.confirm(Confirm::Reply)), now: origin() };
    rig.link.handle_attached();
    (0..100).for_each(|_| rig.push(64));
    assert_eq!(rig.write().0.len(), 64);
    assert_eq!((rig.link.handle_flushed(rig.now), rig.reconnect()), (None, None));
}

#[test]
fn a_setting_out_of_range_is_named() {
    let check = |config: ConfirmConfig| config.checked().map_err(|error| error.field).err();
    let good = ConfirmConfig::default();
    assert_eq!(check(good), None);
    assert_eq!(check(ConfirmConfig { queue_messages: 0, ..good }), Some("confirm.queue_messages"));
    assert_eq!(check(ConfirmConfig { queue_bytes: 0, ..good }), Some("confirm.queue_bytes"));
    assert_eq!(
        check(ConfirmConfig { min_ping_interval: Duration::from_secs(61), ..good }),
        Some("confirm.min_ping_interval")
    );
}

#[derive(Debug, Clone)]
enum Step {
    Push(usize),
    /// The link writes this many things.
    Write(usize),
    /// The peer reads this many things.
    Read(usize),
    Reply,
    ReplyTo(u64),
    Garbage(u64),
    Wait(u64),
    /// What was written leaves.
    Flush,
    /// The peer is found to answer no Ping, rightly or not.
    ExpectNoPongs,
    PeerMessage,
    PeerClose(bool),
    Cut,
    Attach,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop_oneof![9 => 0_usize..2_000, 1 => 0_usize..400_000].prop_map(Step::Push),
        8 => (1_usize..80).prop_map(Step::Write),
        8 => (1_usize..80).prop_map(Step::Read),
        4 => Just(Step::Reply),
        1 => (0_u64..300).prop_map(Step::ReplyTo),
        1 => any::<u64>().prop_map(Step::Garbage),
        4 => (0_u64..400).prop_map(Step::Wait),
        4 => Just(Step::Flush),
        1 => Just(Step::ExpectNoPongs),
        2 => Just(Step::PeerMessage),
        1 => any::<bool>().prop_map(Step::PeerClose),
        1 => Just(Step::Cut),
        2 => Just(Step::Attach),
    ]
}

#[derive(Debug, Clone, Copy)]
enum Sent {
    Message(u64),
    Ping([u8; 8]),
}

/// A link and its peer, with a wire between them that a cut empties.
struct World {
    rig: Rig,
    confirm: Confirm,
    attached: bool,
    closed: bool,
    wire: VecDeque<Sent>,
    /// Read on this connection, not yet answered by the application.
    read: Vec<u64>,
    /// Ever read by the peer.
    taken: std::collections::BTreeSet<u64>,
    ever_written: std::collections::BTreeSet<u64>,
    /// Reported as unknown, not delivered or undeliverable.
    reported: std::collections::BTreeSet<u64>,
    settled: u64,
    last_written: u64,
    last_ping: Option<Instant>,
}

impl World {
    fn new(config: ConfirmConfig) -> Self {
        let confirm = config.confirm;
        let mut rig = Rig::new(confirm, config.guarantee, 0);
        rig.link = Confirmer::new(config);
        Self {
            rig,
            confirm,
            attached: false,
            closed: false,
            wire: VecDeque::new(),
            read: Vec::new(),
            taken: Default::default(),
            ever_written: Default::default(),
            reported: Default::default(),
            settled: 0,
            last_written: 0,
            last_ping: None,
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Push(bytes) => {
                let number = self.rig.link.last() + 1;
                match self.rig.link.push(number, bytes) {
                    Ok((given, event)) => {
                        assert_eq!(given, number);
                        self.note(event);
                    }
                    Err(_) => assert!(self.rig.link.waits_when_full() && self.rig.link.unconfirmed() > 0),
                }
            }
            Step::Write(things) => (0..things).for_each(|_| self.write()),
            Step::Read(things) => (0..things).for_each(|_| self.read()),
            Step::Reply if !self.read.is_empty() => {
                self.read.remove(0);
                let event = self.rig.link.handle_reply(None);
                self.note(event);
            }
            Step::ReplyTo(number) if self.read.contains(&number) => {
                self.read.retain(|read| *read != number);
                let event = self.rig.link.handle_reply(Some(number));
                self.note(event);
            }
            Step::Garbage(position) if self.wire.is_empty() => {
                let open = self.rig.link.line.ping;
                let event = self.rig.pong(position);
                assert!(event.is_none() || open == Some(position));
                self.note(event);
            }
            Step::Wait(ms) => self.rig.now += Duration::from_millis(ms),
            Step::Flush => {
                let event = self.rig.link.handle_flushed(self.rig.now);
                self.note(event);
            }
            Step::ExpectNoPongs => self.rig.link.expect_no_pongs(),
            Step::PeerClose(goes_on) => {
                self.closed = true;
                let event = self.rig.link.handle_peer_close(goes_on);
                self.note(event);
            }
            Step::PeerMessage => self.rig.link.handle_peer_message(),
            Step::Cut => self.cut(),
            Step::Attach => {
                self.cut();
                self.rig.link.handle_attached();
                (self.attached, self.closed, self.last_written, self.last_ping) = (true, false, 0, None);
            }
            Step::Reply | Step::ReplyTo(_) | Step::Garbage(_) => {}
        }
    }

    fn write(&mut self) {
        let (now, pause) = (self.rig.now, self.rig.link.config.min_ping_interval);
        let Some(transmit) = self.rig.link.poll_transmit(now) else { return };
        match transmit {
            Output::Message(number, _) => {
                assert!(number > self.last_written, "in order on each connection");
                self.last_written = number;
                self.ever_written.insert(number);
                self.wire.push_back(Sent::Message(number));
                assert!(!self.reported.contains(&number), "reported and written again");
                let Load { messages, bytes } = self.rig.link.line.in_flight;
                let fits = messages <= WINDOW_MESSAGES && (messages == 1 || bytes <= WINDOW_BYTES);
                assert!(fits || self.rig.link.is_without_pongs());
            }
            Output::Ping(position) => {
                let apart = self.last_ping.replace(now).is_none_or(|last| now >= last + pause);
                assert!(apart, "Pings keep their distance");
                assert!(!self.wire.iter().any(|sent| matches!(sent, Sent::Ping(_))), "one Ping is open");
                self.wire.push_back(Sent::Ping(position));
            }
        }
        assert!(self.attached && !self.closed);
    }

    fn read(&mut self) {
        match self.wire.pop_front() {
            Some(Sent::Message(number)) => {
                self.taken.insert(number);
                self.read.push(number);
            }
            Some(Sent::Ping(position)) => {
                let event = self.rig.link.handle_pong(&position);
                self.note(event);
            }
            None => {}
        }
    }

    fn cut(&mut self) {
        let event = self.rig.link.handle_lost();
        self.note(event);
        self.wire.clear();
        self.read.clear();
        self.attached = false;
    }

    fn note(&mut self, event: Option<Outcome<u64>>) {
        match event {
            Some(Outcome::Confirmed(upto)) => {
                assert!(upto > self.settled, "confirmations only grow");
                for number in self.settled + 1..=upto {
                    assert!(self.taken.contains(&number) || self.reported.contains(&number), "{number}");
                }
                self.settled = upto;
            }
            Some(Outcome::Unknown(first, last)) => {
                assert!(first > self.settled && last >= first);
                self.reported.extend(first..=last);
            }
            Some(Outcome::NotDelivered(first, last)) => {
                assert!(last >= first);
                let written = |number: &u64| self.ever_written.contains(number);
                assert!(!(first..=last).any(|number| written(&number)), "written, and dropped all the same");
                self.reported.extend(first..=last);
            }
            Some(Outcome::Undeliverable(number, message)) => {
                assert!(number == message && number > self.settled);
                assert!(self.reported.insert(number), "given up once");
            }
            None => {}
        }
        assert!(self.rig.link.kept.items().len() <= self.rig.link.unconfirmed() + KEPT_BACK_MESSAGES);
    }

    /// The faults end: everything gets through.
    fn heal(&mut self) {
        self.apply(Step::Attach);
        let mut rounds = 0;
        while self.rig.link.unconfirmed() > 0 {
            self.apply(Step::Write(100));
            self.apply(Step::Read(100));
            if self.confirm == Confirm::Reply {
                (0..100).for_each(|_| self.apply(Step::Reply));
            }
            self.rig.now = self.rig.link.poll_timeout().unwrap_or(self.rig.now).max(self.rig.now);
            rounds += 1;
            assert!(rounds < 2_000, "stuck");
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_every_message_is_received_or_reported(
        confirm in prop_oneof![Just(Confirm::Pong), Just(Confirm::PongWindow), Just(Confirm::Reply)],
        guarantee in prop_oneof![Just(Guarantee::AtLeastOnce), Just(Guarantee::AtMostOnce)],
        when_full in prop_oneof![Just(WhenFull::Wait), Just(WhenFull::DropOldest)],
        queue_messages in prop_oneof![Just(5_usize), Just(100), Just(1024)],
        min_ping_interval in prop_oneof![Just(Duration::ZERO), Just(MIN_INTERVAL)],
        ends in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..300),
    ) {
        let defaults = ConfirmConfig::default();
        let config = ConfirmConfig { confirm, guarantee, when_full, queue_messages, min_ping_interval, ..defaults };
        let mut world = World::new(config);
        steps.into_iter().for_each(|step| world.apply(step));
        if ends {
            let reported = world.rig.link.abandon();
            reported.into_iter().for_each(|event| world.note(event));
            prop_assert!(world.rig.link.settled() == world.rig.link.last() && world.rig.link.is_flushed());
        } else {
            world.heal();
        }
        for number in 1..=world.rig.link.last() {
            prop_assert!(world.taken.contains(&number) || world.reported.contains(&number), "{number} is lost");
        }
        let Load { messages, bytes } = world.rig.link.queue;
        prop_assert_eq!((messages, bytes), (0, 0));
    }
}
