//! Requests and answers of HTTP before a WebSocket, and the fault `status`.

use super::play::{Play, REQUEST, SWITCHED, frame, text};
use crate::connection::Connection;
use crate::event::What;
use crate::fault::{Direction, Fault, Side};

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
const BUSY: Fault = Fault::Status { code: 503, retry_after: Some(7) };
const ANSWER: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 24\r\nConnection: close\r\n\
                      Retry-After: 7\r\n\r\n503 Service Unavailable\n";

fn statuses(play: &Play) -> Vec<u16> {
    let status = |what: &What| if let What::Handshake { status } = what { Some(*status) } else { None };
    play.notes.iter().filter_map(|(_, what)| status(what)).collect()
}

#[test]
fn a_handshake_is_answered_as_soon_as_its_head_is_whole_and_does_not_reach_the_upstream() {
    for cut in 1..REQUEST.len() {
        let mut play = Play::of(Connection::new(1, std::time::Duration::ZERO, 7));
        play.inject(BUSY);
        play.up(&REQUEST[..cut]);
        assert_eq!(play.got[1].len(), 0);
        play.up(&REQUEST[cut..]);
        assert_eq!(String::from_utf8_lossy(&play.got[1]), ANSWER);
        assert_eq!((play.has_dialled, play.ends[0], statuses(&play)), (false, Some("fin"), vec![503]));
        play.end(Side::Client);
        assert_eq!((play.over(), play.got[0].len()), (Some("status"), 0));
    }
}

#[test]
fn the_answer_to_a_head_request_and_one_with_304_have_no_body() {
    let mut play = Play::begin();
    play.inject(BUSY);
    play.up(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(String::from_utf8_lossy(&play.got[1]), ANSWER.trim_end_matches("503 Service Unavailable\n"));
    let mut play = Play::begin();
    play.inject(Fault::Status { code: 304, retry_after: None });
    play.up(REQUEST);
    assert!(play.got[1].ends_with(b"\r\n\r\n"), "{}", String::from_utf8_lossy(&play.got[1]));
}

#[test]
fn a_head_that_began_to_pass_passes_and_the_next_request_is_answered() {
    let mut play = Play::begin();
    play.up(&GET[..10]);
    play.inject(BUSY);
    play.up(&GET[10..]);
    assert_eq!(play.got[0], GET);
    // Two more come at once, before the upstream has answered the first.
    play.up(&[GET, GET].concat());
    assert_eq!(play.got[1].len(), 0, "the answers keep their order");
    play.down(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no");
    assert_eq!(play.ends[0], None);
    play.down(b"k");
    let got = String::from_utf8_lossy(&play.got[1]).into_owned();
    assert_eq!(got, format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{ANSWER}"));
    assert_eq!(play.got[0], GET, "neither of the two reached the upstream");
}

#[test]
fn a_request_that_is_kept_back_passes_when_the_fault_ends() {
    let mut play = Play::of(Connection::new(1, std::time::Duration::ZERO, 7));
    play.inject_for(BUSY, 1000);
    play.up(&REQUEST[..20]);
    assert!(!play.has_dialled);
    play.wait(1000);
    assert!(play.has_dialled);
    play.up(&REQUEST[20..]);
    assert_eq!(play.got[0], REQUEST);
}

#[test]
fn bytes_that_are_no_request_pass_under_the_fault_status() {
    let mut play = Play::of(Connection::new(1, std::time::Duration::ZERO, 7));
    play.inject(BUSY);
    play.up(b"\x16\x03\x01");
    assert_eq!((&play.got[0][..], play.machine.state()), (&b"\x16\x03\x01"[..], "unreadable"));
}

#[test]
fn a_websocket_that_is_open_is_left_alone_by_the_fault_status() {
    let mut play = Play::websocket();
    play.inject(BUSY);
    play.up(&text("GET / HTTP/1.1"));
    assert_eq!(play.got[0], text("GET / HTTP/1.1"));
}

#[test]
fn a_mute_connection_reaches_the_upstream_once_the_fault_ends() {
    let mut play = Play::of(Connection::new(1, std::time::Duration::ZERO, 7));
    play.inject(Fault::Mute);
    play.up(REQUEST);
    assert_eq!((play.has_dialled, play.got[0].len()), (false, 0));
    play.lift();
    assert_eq!((play.has_dialled, &play.got[0][..]), (true, REQUEST));
}

#[test]
fn a_new_connection_in_a_black_hole_does_not_reach_the_upstream_and_is_dead_once_the_client_has_written() {
    let mut play = Play::of(Connection::new(1, std::time::Duration::ZERO, 7));
    play.inject(Fault::BlackHole(Direction::Both));
    play.up(REQUEST);
    play.lift();
    assert_eq!((play.has_dialled, play.machine.state()), (false, "dead"));
}

#[test]
fn frames_are_found_after_any_number_of_requests_whatever_their_bodies() {
    let exchanges: [(&[u8], &[u8]); 7] = [
        (GET, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nTrailer: x\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n\x89\x00\r\n0\r\n\r\n",
        ),
        (b"HEAD / HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
        (b"\r\nGET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n"),
        (REQUEST, b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"),
        (REQUEST, SWITCHED),
    ];
    for cut in 1..64 {
        let mut play = Play::begin();
        play.inject(Fault::DropPings(Direction::Both));
        for (request, answer) in exchanges {
            request.chunks(cut).for_each(|bytes| play.up(bytes));
            answer.chunks(cut).for_each(|bytes| play.down(bytes));
        }
        assert_eq!(play.machine.state(), "websocket", "in cuts of {cut}");
        assert_eq!(statuses(&play), [200, 204, 200, 200, 304, 401, 101]);
        play.got = Default::default();
        play.down(&[frame(9, b"", None), frame(1, b"a", None)].concat());
        assert_eq!(play.got[1], frame(1, b"a", None));
    }
}

#[test]
fn what_is_no_http_is_unreadable() {
    let long = [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 40_000]].concat();
    let requests: [&[u8]; 6] = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\nno field\n\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz",
        &long,
    ];
    for request in requests {
        let mut play = Play::begin();
        play.up(request);
        assert_eq!(play.machine.state(), "unreadable", "{}", String::from_utf8_lossy(&request[..20]));
        assert_eq!(play.got[0], request);
    }
}

#[test]
fn more_requests_than_are_counted_pass_and_are_unreadable() {
    let mut play = Play::begin();
    play.up(&GET.repeat(64));
    assert_eq!(play.machine.state(), "open");
    play.up(GET);
    assert_eq!((play.machine.state(), &play.got[0]), ("unreadable", &GET.repeat(65)));
}

#[test]
fn frames_that_come_before_the_answer_are_read_as_frames() {
    let early = [REQUEST, &frame(9, b"?", Some([1, 2, 3, 4]))].concat();
    let mut play = Play::begin();
    play.inject(Fault::DropPings(Direction::Up));
    play.up(&early);
    play.down(SWITCHED);
    assert_eq!((play.machine.state(), &play.got[0][..]), ("websocket", REQUEST));
    // An answer that refuses the upgrade shows that they were none.
    let mut play = Play::begin();
    play.up(&early);
    play.down(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((play.machine.state(), &play.got[0]), ("unreadable", &early));
}

#[test]
fn a_switch_of_protocols_to_something_else_is_unreadable() {
    let mut play = Play::begin();
    play.up(b"GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n");
    play.down(SWITCHED);
    assert_eq!(play.machine.state(), "unreadable");
}
