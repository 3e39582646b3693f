//! Faults that end a connection.

use std::time::Duration;

use super::play::{Play, REQUEST, frame, text};
use crate::fault::{Direction, Fault, Side};

fn idle_cut(direction: Direction, silent: bool) -> Fault {
    Fault::IdleCut { direction, after: Duration::from_secs(60), silent }
}

#[test]
fn a_reset_reaches_both_sides_at_once() {
    let mut play = Play::websocket();
    play.inject(Fault::Reset);
    assert_eq!((play.ends, play.over()), ([Some("reset"); 2], Some("reset")));
}

#[test]
fn a_fin_reaches_both_sides_and_the_connection_is_gone_once_both_have_ended_too() {
    let mut play = Play::websocket();
    play.inject(Fault::Fin);
    assert_eq!((play.ends, play.over()), ([Some("fin"); 2], None));
    play.up(&text("nothing passes any more"));
    play.end(Side::Client);
    play.end(Side::Upstream);
    assert_eq!((play.got[0].len(), play.over()), (0, Some("fin")));
}

#[test]
fn a_side_that_never_ends_after_a_fin_is_given_up() {
    let mut play = Play::websocket();
    play.inject(Fault::Fin);
    play.wait(1999);
    assert_eq!(play.over(), None);
    play.wait(1);
    assert_eq!(play.over(), Some("fin"));
}

#[test]
fn a_cut_inside_a_frame_lets_the_header_and_half_the_payload_of_the_next_data_frame_pass() {
    for cut in 1..40 {
        let mut play = Play::websocket();
        play.down(&frame(2, &[7; 10], None)[..4]);
        play.inject(Fault::CutInFrame(Direction::Down));
        play.down(&frame(2, &[7; 10], None)[4..]);
        play.got[1].clear();
        let bytes = [frame(9, b"ping", None), frame(1, &[9; 20], None)].concat();
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        play.down(first);
        if play.over().is_none() && !second.is_empty() {
            play.down(second);
        }
        assert_eq!(play.got[1], bytes[..6 + 2 + 10], "cut at {cut}");
        assert_eq!((play.ends, play.over()), ([Some("reset"); 2], Some("cut-in-frame")));
    }
}

#[test]
fn a_cut_inside_a_frame_of_a_length_that_never_comes_is_made_soon() {
    let mut play = Play::websocket();
    play.inject(Fault::CutInFrame(Direction::Up));
    play.up(b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0");
    play.up(&[0; 20_000]);
    assert_eq!((play.got[0].len(), play.over()), (14 + 16 * 1024, Some("cut-in-frame")));
}

#[test]
fn a_cut_after_bytes_lets_exactly_these_pass() {
    let mut play = Play::begin();
    play.inject(Fault::CutAfter { direction: Direction::Both, bytes: 10 });
    play.up(b"\x16234");
    play.down(b"567");
    assert_eq!(play.over(), None);
    play.up(b"89abcdef");
    assert_eq!((&play.got[0][..], play.over()), (&b"\x1623489a"[..], Some("cut-after")));
}

#[test]
fn a_connection_that_has_passed_the_bytes_already_is_cut_at_once() {
    let mut play = Play::begin();
    play.down(b"0123456789");
    play.inject(Fault::CutAfter { direction: Direction::Up, bytes: 5 });
    assert_eq!(play.over(), None);
    play.inject(Fault::CutAfter { direction: Direction::Down, bytes: 10 });
    assert_eq!(play.over(), Some("cut-after"));
}

#[test]
fn an_idle_connection_is_ended_on_both_sides_and_bytes_of_its_direction_postpone_that() {
    let mut play = Play::websocket();
    play.inject(idle_cut(Direction::Down, false));
    play.wait(59_000);
    play.down(b"\x81\x01a");
    for _ in 0..59 {
        play.wait(1000);
        play.up(&text("does not count"));
    }
    play.wait(999);
    assert_eq!(play.ends, [None; 2]);
    play.wait(1);
    assert_eq!(play.ends, [Some("fin"); 2]);
    play.wait(2000);
    assert_eq!(play.over(), Some("idle-cut"));
}

#[test]
fn bytes_that_came_in_time_and_are_read_late_keep_an_idle_connection_open() {
    let mut play = Play::websocket();
    play.inject(idle_cut(Direction::Both, false));
    // The process did not run for an hour, and the bytes of that hour wait in the sockets.
    play.now += std::time::Duration::from_secs(3600);
    play.machine.handle_timeout(play.now);
    play.machine.handle_bytes(play.now, Side::Client, &text("in time"));
    play.wait(0);
    assert_eq!((&play.got[0], play.ends), (&text("in time"), [None; 2]));
}

#[test]
fn a_silent_idle_cut_notifies_neither_side() {
    let mut play = Play::websocket();
    play.inject(idle_cut(Direction::Both, true));
    play.wait(60_000);
    play.up(&text("lost"));
    play.end(Side::Client);
    play.wait(600_000);
    assert_eq!((play.got[0].len(), play.ends, play.machine.state()), (0, [None; 2], "dead"));
    assert_eq!(play.note_names().iter().filter(|name| **name == "dead").count(), 2);
}

#[test]
fn a_connection_is_ended_at_the_age_of_a_lifetime_cut() {
    let mut play = Play::begin();
    play.wait(5000);
    play.inject(Fault::LifetimeCut { after: Duration::from_secs(10) });
    play.up(REQUEST);
    play.wait(4999);
    assert_eq!(play.ends, [None; 2]);
    play.wait(1);
    assert_eq!(play.ends, [Some("fin"); 2]);
}
