//! What becomes of the ends of a connection.

use super::play::{Play, frame, text};
use crate::connection::Connection;
use crate::event::What;
use crate::fault::{Direction, Fault, Side};

#[test]
fn the_end_of_one_side_passes_and_the_other_direction_goes_on() {
    let mut play = Play::websocket();
    play.end(Side::Client);
    assert_eq!((play.ends, play.over()), ([None, Some("fin")], None));
    play.down(&frame(1, b"still", None));
    assert_eq!(play.got[1], frame(1, b"still", None));
    play.end(Side::Upstream);
    assert_eq!((play.ends, play.over()), ([Some("fin"); 2], Some("client")));
}

#[test]
fn a_reset_of_one_side_passes_as_a_reset_after_the_bytes_before_it() {
    for (side, reason) in [(Side::Client, "client-reset"), (Side::Upstream, "upstream-reset")] {
        let mut play = Play::websocket();
        play.write(side, &text("before"));
        play.reset(side);
        assert_eq!(play.got[side as usize], text("before"));
        assert_eq!((play.ends[side.other() as usize], play.over()), (Some("reset"), Some(reason)));
    }
}

#[test]
fn a_reset_after_the_end_of_the_same_side_passes_too() {
    let mut play = Play::websocket();
    play.end(Side::Client);
    play.down(&frame(1, b"the client is gone", None));
    play.reset(Side::Client);
    assert_eq!((play.ends[1], play.over()), (Some("reset"), Some("client")));
}

#[test]
fn a_client_that_resets_before_the_upstream_is_connected_is_gone() {
    let mut play = Play::of(Connection::new(1, std::time::Duration::ZERO, 7));
    play.inject(Fault::Mute);
    play.up(b"GET / HTTP/1.1\r\n");
    play.reset(Side::Client);
    assert_eq!((play.over(), play.has_dialled), (Some("client-reset"), false));
}

#[test]
fn an_upstream_that_cannot_be_reached_resets_the_client() {
    let mut play = Play::begin();
    play.machine.handle_connect_failed(What::Unreadable);
    play.wait(0);
    assert_eq!((play.ends[0], play.over()), (Some("reset"), Some("upstream-failed")));
}

#[test]
fn an_upstream_that_cannot_be_reached_in_a_black_hole_is_not_noticed_by_the_client() {
    let mut play = Play::begin();
    play.inject(Fault::BlackHole(Direction::Down));
    play.machine.handle_connect_failed(What::Unreadable);
    play.wait(3_600_000);
    assert_eq!((play.ends, play.over()), ([None; 2], None));
    play.end(Side::Client);
    assert_eq!(play.over(), Some("client"));
}

#[test]
fn a_client_that_opened_and_ended_in_a_black_hole_is_gone_for_no_upstream_was_asked() {
    for way in [Direction::Up, Direction::Both] {
        let mut machine = Connection::new(1, std::time::Duration::ZERO, 7);
        machine.handle_fault(std::time::Duration::ZERO, &Fault::BlackHole(way), crate::event::FaultId(1));
        let mut play = Play::of(machine);
        play.up(b"GET / HTTP/1.1\r\n");
        assert_eq!((play.over(), play.has_dialled), (None, false));
        play.end(Side::Client);
        assert_eq!((play.over(), play.has_dialled), (Some("client"), false));
    }
}

#[test]
fn the_reset_of_a_side_in_a_black_hole_is_not_noticed_by_the_other() {
    let mut play = Play::websocket();
    play.inject(Fault::BlackHole(Direction::Both));
    play.reset(Side::Client);
    play.lift();
    play.down(&frame(1, b"to nobody", None));
    play.wait(3_600_000);
    assert_eq!((play.ends, play.over(), play.got[1].len()), ([None; 2], None, 0));
    play.reset(Side::Upstream);
    assert_eq!(play.over(), Some("client-reset"));
}

#[test]
fn a_half_open_connection_learns_of_the_end_that_passes_in_its_living_direction() {
    let mut play = Play::websocket();
    play.inject(Fault::BlackHole(Direction::Up));
    play.up(&text("lost"));
    play.end(Side::Upstream);
    assert_eq!((play.ends, play.over()), ([Some("fin"), None], None));
    play.end(Side::Client);
    assert_eq!(play.over(), Some("upstream"));
}

#[test]
fn a_ghost_cuts_the_client_off_with_its_next_frame_which_the_upstream_receives_after_a_newer_connection_is_up()
 {
    let mut play = Play::websocket();
    play.inject(Fault::Ghost);
    let last = text("last");
    play.up(&last[..3]);
    assert_eq!(play.ends, [None; 2], "half a frame is not enough");
    play.up(&last[3..]);
    assert_eq!((play.ends, play.got[0].len()), ([Some("reset"), None], 0));
    play.wait(3_600_000);
    assert_eq!(play.got[0].len(), 0);
    play.machine.handle_newcomer();
    play.wait(0);
    assert_eq!((&play.got[0], play.ends[1]), (&last, None));
    play.end(Side::Upstream);
    assert_eq!(play.over(), Some("ghost"));
}

#[test]
fn a_websocket_is_up_with_its_first_frame_from_the_upstream_or_a_second_after_its_handshake() {
    let mut play = Play::websocket();
    assert!(!play.has_appeared);
    play.down(&frame(1, b"welcome", None));
    assert!(play.has_appeared);
    let mut play = Play::websocket();
    play.wait(999);
    assert!(!play.has_appeared);
    play.wait(1);
    assert!(play.has_appeared);
}
