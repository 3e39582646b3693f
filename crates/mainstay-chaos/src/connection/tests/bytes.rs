//! What passes, and when.

use std::time::Duration;

use proptest::prelude::*;

use super::play::{Play, REQUEST, SWITCHED, frame, text};
use crate::event::What;
use crate::fault::{Direction, Fault, Side};
use crate::pipe::{ROOM, ROOM_OF_DELAY};

const PING: u8 = 9;
const PONG: u8 = 10;
const CLOSE: u8 = 8;

fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Writes bytes in the given cuts.
fn write_cut(play: &mut Play, side: Side, bytes: &[u8], cuts: &[usize]) {
    let mut rest = bytes;
    for cut in cuts.iter().cycle() {
        let (now, later) = rest.split_at(rest.len().min(*cut));
        play.write(side, now);
        rest = later;
        if rest.is_empty() {
            return;
        }
    }
}

fn frames() -> impl Strategy<Value = Vec<(u8, Vec<u8>, Option<[u8; 4]>)>> {
    let opcode = prop_oneof![Just(0u8), Just(1), Just(2), Just(CLOSE), Just(PING), Just(PONG), Just(5)];
    let length = prop_oneof![0usize..130, 65_530usize..65_540, 126usize..2000];
    let one =
        (opcode, length, any::<u8>(), any::<Option<[u8; 4]>>()).prop_map(|(opcode, length, fill, mask)| {
            let length = if opcode >= 8 { length.min(125) } else { length };
            (opcode, vec![fill; length], mask)
        });
    prop::collection::vec(one, 0..12)
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1usize..8, 1usize..3000, Just(ROOM)], 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn without_a_fault_bytes_pass_unchanged_in_any_cuts(
        up in prop::collection::vec(any::<u8>(), 1..5000),
        down in prop::collection::vec(any::<u8>(), 1..5000),
        cuts in cuts(),
    ) {
        let mut play = Play::begin();
        write_cut(&mut play, Side::Client, &up, &cuts);
        write_cut(&mut play, Side::Upstream, &down, &cuts);
        prop_assert_eq!(&play.got, &[up, down]);
    }

    #[test]
    fn dropped_pings_are_exactly_the_bytes_of_the_pings_in_any_cuts(frames in frames(), cuts in cuts()) {
        for side in Side::BOTH {
            let mut play = Play::begin();
            play.inject(Fault::DropPings(Direction::Both));
            let heads = [REQUEST, SWITCHED];
            write_cut(&mut play, Side::Client, heads[0], &cuts);
            write_cut(&mut play, Side::Upstream, heads[1], &cuts);
            let bytes = |keeps: fn(u8) -> bool| -> Vec<u8> {
                let kept = frames.iter().filter(|(opcode, ..)| keeps(*opcode));
                kept.flat_map(|(opcode, payload, mask)| frame(*opcode, payload, *mask)).collect()
            };
            let all = bytes(|_| true);
            if !all.is_empty() {
                write_cut(&mut play, side, &all, &cuts);
            }
            let expected = [heads[side as usize].to_vec(), bytes(|opcode| opcode != PING)].concat();
            prop_assert_eq!(&play.got[side as usize], &expected);
        }
    }

    #[test]
    fn delay_bandwidth_trickle_and_stall_together_lose_nothing_and_keep_the_order(
        bytes in prop::collection::vec(any::<u8>(), 1..3000),
        cuts in cuts(),
        latency in 0u64..500,
        jitter in 0u64..500,
        rate in 500u64..100_000,
        slice in 1usize..50,
    ) {
        let mut play = Play::begin();
        let direction = Direction::Up;
        play.inject(Fault::Delay { direction, latency: milliseconds(latency), jitter: milliseconds(jitter) });
        play.inject(Fault::Bandwidth { direction, bytes_per_second: rate });
        play.inject(Fault::Trickle { direction, bytes: slice });
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at(rest.len().min(*cut));
            play.write(Side::Client, now);
            play.wait(7);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        play.end(Side::Client);
        play.wait(20_000);
        prop_assert_eq!(&play.got[0], &bytes);
        prop_assert!(play.writes[0].iter().all(|size| *size <= slice));
        prop_assert_eq!(play.ends[1], Some("fin"));
    }

    #[test]
    fn any_bytes_of_either_side_under_any_faults_neither_panic_nor_pile_up(
        seed in any::<u64>(),
        steps in prop::collection::vec((0usize..22, any::<bool>(), prop::collection::vec(any::<u8>(), 0..300), 0u64..3000), 1..60),
        begins_as_websocket in any::<bool>(),
    ) {
        let mut play = if begins_as_websocket { Play::websocket() } else { Play::begin() };
        for (choice, is_up, bytes, pause) in steps {
            let side = if is_up { Side::Client } else { Side::Upstream };
            match choice {
                0..16 => {
                    let room = play.machine.room(side).min(bytes.len());
                    if room > 0 {
                        play.write(side, &bytes[..room]);
                    }
                }
                16 => play.inject_for(any_fault(seed ^ pause), pause),
                17 => play.inject(any_fault(seed ^ pause)),
                18 => play.lift(),
                19 if pause < 300 => play.end(side),
                20 if pause < 300 => play.reset(side),
                _ => play.wait(pause),
            }
            for lane in &play.machine.lanes {
                prop_assert!(lane.pipe.waiting() <= ROOM_OF_DELAY + ROOM);
            }
        }
    }
}

/// One of each kind.
pub(super) fn any_fault(choice: u64) -> Fault {
    let direction = [Direction::Up, Direction::Down, Direction::Both][(choice / 32 % 3) as usize];
    match choice % 18 {
        0 => Fault::BlackHole(direction),
        1 => Fault::Stall(direction),
        2 => Fault::Jam(direction),
        3 => {
            Fault::Delay { direction, latency: milliseconds(choice % 900), jitter: milliseconds(choice % 70) }
        }
        4 => Fault::Bandwidth { direction, bytes_per_second: choice % 5000 },
        5 => Fault::Trickle { direction, bytes: (choice % 9) as usize },
        6 => Fault::Corrupt(direction),
        7 => Fault::CutInFrame(direction),
        8 => Fault::CutAfter { direction, bytes: choice % 1000 },
        9 => Fault::Mute,
        10 => Fault::SwallowClose(direction),
        11 => Fault::DropPings(direction),
        12 => Fault::DropPongs(direction),
        13 => {
            Fault::IdleCut { direction, after: milliseconds(choice % 4000), silent: choice.is_multiple_of(2) }
        }
        14 => Fault::LifetimeCut { after: milliseconds(choice % 9000) },
        15 => Fault::Status { code: 502, retry_after: None },
        16 => Fault::Ghost,
        _ => Fault::Fin,
    }
}

#[test]
fn a_black_hole_loses_what_is_written_and_its_direction_stays_dead_after_it_is_lifted() {
    let mut play = Play::websocket();
    play.inject(Fault::BlackHole(Direction::Up));
    play.up(&text("lost"));
    play.down(b"\x81\x01a");
    play.lift();
    play.up(&text("lost too: the stream has a hole"));
    play.down(b"\x81\x01b");
    play.end(Side::Client);
    assert_eq!(play.got, [b"".to_vec(), b"\x81\x01a\x81\x01b".to_vec()]);
    assert_eq!((play.ends, play.over(), play.machine.state()), ([None; 2], None, "dead"));
    play.end(Side::Upstream);
    assert_eq!(play.over(), Some("client"), "both ends have ended: nothing is left to hold open");
}

#[test]
fn a_black_hole_that_swallowed_nothing_leaves_the_connection_as_it_was() {
    let mut play = Play::websocket();
    play.inject_for(Fault::BlackHole(Direction::Both), 1000);
    play.wait(1000);
    play.up(b"\x89\x80\0\0\0\0");
    assert_eq!(play.got[0], b"\x89\x80\0\0\0\0");
}

#[test]
fn a_black_hole_also_takes_what_is_on_its_way_and_the_ends_of_both_sides() {
    let mut play = Play::websocket();
    play.inject(Fault::Delay {
        direction: Direction::Up,
        latency: milliseconds(100),
        jitter: Duration::ZERO,
    });
    play.up(&text("on its way"));
    play.inject(Fault::BlackHole(Direction::Both));
    play.reset(Side::Upstream);
    play.wait(10_000);
    assert_eq!((play.got[0].len(), play.ends, play.over()), (0, [None; 2], None));
    let dead = play.note_names().into_iter().filter(|name| *name == "dead").count();
    assert_eq!(dead, 2, "up by the bytes on their way, down by the reset");
}

#[test]
fn a_stall_keeps_bytes_and_ends_back_until_it_is_over_and_reads_no_more_than_it_may_keep() {
    let mut play = Play::websocket();
    play.inject_for(Fault::Stall(Direction::Up), 5000);
    play.up(&vec![0x41; ROOM - 10]);
    assert_eq!((play.got[0].len(), play.machine.room(Side::Client)), (0, 10));
    play.end(Side::Client);
    play.down(b"\x81\x01a");
    play.wait(4999);
    assert_eq!((play.got[0].len(), play.ends[1]), (0, None));
    play.wait(1);
    assert_eq!((play.got[0].len(), play.ends[1]), (ROOM - 10, Some("fin")));
    assert_eq!(play.got[1], b"\x81\x01a", "the other direction is untouched");
}

#[test]
fn an_end_or_a_reset_stands_still_in_a_stall_too() {
    for (is_reset, expected) in [(false, "fin"), (true, "reset")] {
        let mut play = Play::websocket();
        play.inject_for(Fault::Stall(Direction::Both), 5000);
        if is_reset {
            play.reset(Side::Client)
        } else {
            play.end(Side::Client)
        }
        play.wait(4999);
        assert_eq!(play.ends, [None; 2]);
        play.wait(1);
        assert_eq!(play.ends[1], Some(expected));
    }
}

#[test]
fn a_jam_reads_nothing_until_it_is_over() {
    let mut play = Play::websocket();
    play.inject_for(Fault::Jam(Direction::Down), 3000);
    assert_eq!(play.machine.room(Side::Upstream), 0);
    assert_eq!(play.machine.room(Side::Client), ROOM);
    play.wait(3000);
    assert_eq!(play.machine.room(Side::Upstream), ROOM);
}

#[test]
fn a_delay_lets_each_byte_leave_its_latency_later_and_the_end_after_it() {
    let mut play = Play::begin();
    play.inject(Fault::Delay {
        direction: Direction::Up,
        latency: milliseconds(300),
        jitter: Duration::ZERO,
    });
    play.up(b"\x16one");
    play.wait(100);
    play.up(b"two");
    play.end(Side::Client);
    play.wait(199);
    assert_eq!(play.got[0], b"");
    play.wait(1);
    assert_eq!(play.got[0], b"\x16one");
    play.wait(99);
    assert_eq!((&play.got[0][..], play.ends[1]), (&b"\x16one"[..], None));
    play.wait(1);
    assert_eq!((&play.got[0][..], play.ends[1]), (&b"\x16onetwo"[..], Some("fin")));
}

#[test]
fn what_a_lifted_delay_held_passes_at_once() {
    let mut play = Play::begin();
    play.inject(Fault::Delay {
        direction: Direction::Both,
        latency: milliseconds(3_600_000),
        jitter: Duration::ZERO,
    });
    play.up(b"\x16one");
    play.lift();
    play.up(b"two");
    assert_eq!(play.got[0], b"\x16onetwo");
}

#[test]
fn a_bandwidth_is_kept_over_each_second() {
    let mut play = Play::begin();
    play.inject(Fault::Bandwidth { direction: Direction::Up, bytes_per_second: 10_000 });
    play.up(&vec![0x16; 50_000]);
    for second in 1..=4 {
        play.wait(1000);
        let got = play.got[0].len();
        assert!((second * 10_000..second * 10_000 + 2000).contains(&got), "{got} bytes after {second} s");
    }
}

#[test]
fn a_trickle_writes_a_few_bytes_at_a_time() {
    let mut play = Play::begin();
    play.inject(Fault::Trickle { direction: Direction::Down, bytes: 3 });
    play.up(b"\x16");
    play.down(b"12345678");
    assert_eq!((&play.got[1][..], &play.writes[1][..]), (&b"12345678"[..], &[3, 3, 2][..]));
}

#[test]
fn a_corruption_inverts_one_bit_of_the_next_bytes_however_they_are_cut() {
    let play = |cuts: &[usize]| {
        let mut play = Play::begin();
        play.up(b"\x16");
        play.inject(Fault::Corrupt(Direction::Up));
        write_cut(&mut play, Side::Client, &[0; 64], cuts);
        play.got[0][1..].to_vec()
    };
    let got = play(&[64]);
    assert_eq!(got.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    assert_eq!(play(&[1]), got);
}

#[test]
fn close_frames_are_swallowed_in_the_direction_of_the_fault_alone() {
    let mut play = Play::websocket();
    play.inject(Fault::SwallowClose(Direction::Down));
    let close = frame(CLOSE, &[3, 232], None);
    play.down(&[frame(1, b"a", None), close.clone(), frame(1, b"b", None)].concat());
    play.up(&close);
    assert_eq!(play.got, [close, [frame(1, b"a", None), frame(1, b"b", None)].concat()]);
}

#[test]
fn pongs_are_dropped_and_pings_pass() {
    let mut play = Play::websocket();
    play.inject(Fault::DropPongs(Direction::Both));
    play.down(&[frame(PING, b"?", None), frame(PONG, b"!", None)].concat());
    assert_eq!(play.got[1], frame(PING, b"?", None));
}

#[test]
fn a_frame_that_began_to_pass_passes_whole_and_one_that_began_to_be_dropped_is_dropped_whole() {
    let ping = frame(PING, b"0123456789", None);
    let mut play = Play::websocket();
    play.down(&ping[..5]);
    play.inject(Fault::DropPings(Direction::Both));
    play.down(&ping[5..]);
    play.down(&ping[..1]);
    play.lift();
    play.down(&ping[1..]);
    play.down(&ping);
    assert_eq!(play.got[1], [&ping[..], &ping[..]].concat());
}

#[test]
fn bytes_of_tls_pass_and_are_noted_as_unreadable_once() {
    let mut play = Play::begin();
    play.inject(Fault::DropPings(Direction::Both));
    play.notes.clear();
    play.up(b"\x16\x03\x01\x00\x89\x00");
    play.down(b"\x89\x00\x89\x00");
    assert_eq!(play.got, [b"\x16\x03\x01\x00\x89\x00".to_vec(), b"\x89\x00\x89\x00".to_vec()]);
    let unreadable: Vec<_> = play.notes.iter().filter(|(_, what)| *what == What::Unreadable).collect();
    assert_eq!((unreadable.len(), play.machine.state()), (1, "unreadable"));
}
