//! What `mainstay doctor` measures by waiting, on servers whose limits are known.

mod server;

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use self::server::{Behaviour, Cut, Server};
use crate::support::{mainstay, signal};

/// The limits of these servers. A run of 6 s finds limits of up to 4 s.
const LIMIT: Duration = Duration::from_millis(1500);

/// Measures for 6 s and returns the report.
fn measure(server: &Server, arguments: &[&str]) -> Value {
    let output = doctor(server, arguments).output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["measured"].take()
}

fn doctor(server: &Server, arguments: &[&str]) -> Command {
    let url = format!("ws://127.0.0.1:{}/", server.port);
    mainstay(&[&["doctor", &url, "--for", "6s", "--json"], arguments].concat())
}

/// Checks that a limit is the expected one: within a tenth, and what a busy machine adds.
#[track_caller]
fn is_cut(limit: &Value, expected: Duration, how: &str) {
    let expected = expected.as_secs_f64() * 1e3;
    let after = limit["after_ms"].as_f64().unwrap_or_else(|| panic!("{limit}"));
    assert!(after > expected * 0.9 && after < expected * 1.1 + 250.0, "{limit}");
    assert!(limit["between_ms"][0].as_f64().unwrap() <= expected, "{limit}");
    assert_eq!(limit["how"]["kind"], how, "{limit}");
}

#[track_caller]
fn holds(limit: &Value) -> f64 {
    assert_eq!(limit["kind"], "holds", "{limit}");
    limit["for_at_least_ms"].as_f64().unwrap()
}

#[test]
fn an_idle_limit_that_any_byte_renews_is_found_and_pings_or_pongs_of_the_client_prevent_it() {
    let server = Server::start(Behaviour { idle: Some((LIMIT, Cut::Fin)), ..Behaviour::default() });
    let measured = measure(&server, &[]);
    is_cut(&measured["idle"]["silent"], LIMIT, "fin");
    assert!(holds(&measured["idle"]["our_pings"]) > 3000.0);
    assert!(holds(&measured["idle"]["up_only"]) > 2000.0);
    holds(&measured["lifetime"]["limit"]);
    assert_eq!(measured["idle"]["server"]["pings"], 0);
}

#[test]
fn a_path_that_counts_only_the_bytes_of_the_server_cuts_a_client_that_only_sends() {
    let idle = Some((LIMIT, Cut::Reset));
    let server = Server::start(Behaviour { idle, counts_down_only: true, ..Behaviour::default() });
    let measured = measure(&server, &[]);
    is_cut(&measured["idle"]["silent"], LIMIT, "reset");
    is_cut(&measured["idle"]["up_only"], LIMIT, "reset");
    holds(&measured["idle"]["our_pings"]);
}

#[test]
fn a_path_that_forgets_idle_connections_is_found_by_what_gets_no_answer() {
    let server = Server::start(Behaviour { idle: Some((LIMIT, Cut::Silent)), ..Behaviour::default() });
    let measured = measure(&server, &[]);
    is_cut(&measured["idle"]["silent"], LIMIT, "silent");
    holds(&measured["lifetime"]["limit"]);
}

#[test]
fn a_path_that_resets_forgotten_connections_is_found_by_the_reset() {
    let server = Server::start(Behaviour { idle: Some((LIMIT, Cut::ResetOnSend)), ..Behaviour::default() });
    is_cut(&measure(&server, &[])["idle"]["silent"], LIMIT, "reset-on-send");
}

#[test]
fn a_server_that_closes_idle_connections_itself_is_known_by_its_close_code() {
    let server = Server::start(Behaviour { idle: Some((LIMIT, Cut::Close(4000))), ..Behaviour::default() });
    let limit = measure(&server, &[])["idle"]["silent"].take();
    is_cut(&limit, LIMIT, "close");
    assert_eq!(limit["how"]["code"], 4000);
}

#[test]
fn a_limit_of_age_is_no_idle_limit() {
    let lifetime = Duration::from_millis(1800);
    let server = Server::start(Behaviour { lifetime: Some(lifetime), ..Behaviour::default() });
    let measured = measure(&server, &[]);
    is_cut(&measured["lifetime"]["limit"], lifetime, "fin");
    assert!(measured["lifetime"]["limit"]["seen"].as_u64().unwrap() >= 2, "{measured}");
    assert_ne!(measured["idle"]["silent"]["kind"], "cut", "{measured}");
    assert_eq!(measured["lifetime"]["restarts_ms"], serde_json::json!([]));
}

#[test]
fn a_restart_is_neither_a_limit_of_age_nor_of_silence() {
    let restart = Some(Duration::from_millis(3000));
    let server = Server::start(Behaviour { restart, ..Behaviour::default() });
    let measured = measure(&server, &[]);
    assert_eq!(measured["lifetime"]["restarts_ms"].as_array().unwrap().len(), 1, "{measured}");
    assert_ne!(measured["lifetime"]["limit"]["kind"], "cut", "{measured}");
    assert_ne!(measured["idle"]["silent"]["kind"], "cut", "{measured}");
}

#[test]
fn the_heartbeat_of_a_server_is_seen_and_what_it_does_to_clients_that_do_not_answer() {
    let every = Duration::from_millis(700);
    let server = Server::start(Behaviour { pings: Some(every), ..Behaviour::default() });
    let idle = measure(&server, &[])["idle"].take();
    let interval = idle["server"]["ping_interval_ms"].as_f64().unwrap();
    assert!(interval > 600.0 && interval < 900.0, "{idle}");
    is_cut(&idle["unanswered_pings"], every, "fin");
    assert!(holds(&idle["server_sends"]) > 3000.0);
    // No longer silence can be had.
    assert!(holds(&idle["silent"]) < 1500.0, "{idle}");
}

#[test]
fn a_server_that_answers_no_ping_still_shows_its_idle_limit() {
    let idle = Some((LIMIT, Cut::Fin));
    let server = Server::start(Behaviour { idle, answers_no_ping: true, ..Behaviour::default() });
    let measured = measure(&server, &[]);
    is_cut(&measured["idle"]["silent"], LIMIT, "fin");
    assert_eq!(measured["idle"]["our_pings"]["kind"], "unknown", "{measured}");
}

#[test]
fn the_largest_message_the_most_fragments_and_replaced_close_codes_are_found() {
    let server = Server::start(Behaviour {
        max_message: Some(1 << 16),
        max_fragments: Some(100),
        close_code: Some(1000),
        ..Behaviour::default()
    });
    let measured = measure(&server, &["--echo"]);
    let (message, fragments) = (&measured["largest_message"], &measured["fragments"]);
    assert_eq!((&message["accepted"], &message["refused"]), (&(1 << 16).into(), &((1 << 16) + 1).into()));
    assert_eq!(message["how"]["code"], 1009, "{message}");
    assert!(
        fragments["accepted"].as_u64() <= Some(100) && fragments["refused"].as_u64() > Some(100),
        "{fragments}"
    );
    let codes = measured["close_codes"].as_array().unwrap();
    assert_eq!(codes.iter().map(|code| &code["sent"]).collect::<Vec<_>>(), [1000, 1001, 3000, 4001]);
    assert!(codes.iter().all(|code| code["returned"] == 1000 && code["end"]["kind"] == "fin"), "{measured}");
    assert_eq!(measured["compression"]["accepted"], false);
}

#[test]
fn without_echo_no_message_is_sent() {
    let server = Server::start(Behaviour {
        max_message: Some(0),
        idle: Some((LIMIT, Cut::Fin)),
        ..Behaviour::default()
    });
    let measured = measure(&server, &[]);
    assert!(measured["largest_message"].is_null() && measured["fragments"].is_null(), "{measured}");
    assert!(measured["left_out"][0].as_str().unwrap().contains("--echo"), "{measured}");
    is_cut(&measured["idle"]["silent"], LIMIT, "fin");
}

#[test]
fn a_bound_on_connections_is_found_and_the_doctor_keeps_its_own() {
    let server = Server::start(Behaviour { max_open: Some(40), ..Behaviour::default() });
    let crowd = measure(&server, &["--connections", "60"])["crowd"].take();
    assert!((30..=40).contains(&crowd["most_open"].as_u64().unwrap()), "{crowd}");
    assert_eq!(
        (&crowd["refused"]["status"], &crowd["refused"]["retry_after_ms"]),
        (&503.into(), &7000.0.into())
    );
    assert!(crowd["refusals"].as_u64() >= Some(3), "{crowd}");
    let server = Server::start(Behaviour::default());
    let measured = measure(&server, &["--connections", "12"]);
    assert!(server.most_open() <= 12, "{} {measured}", server.most_open());
    assert_eq!(measured["crowd"]["opened"], measured["crowd"]["asked"], "{measured}");
}

#[test]
fn a_rate_of_reconnects_that_is_refused_ends_the_experiment_and_its_wait_is_kept() {
    let server = Server::start(Behaviour { max_short: Some(8), ..Behaviour::default() });
    let reconnect = measure(&server, &["--connections", "10"])["reconnect"].take();
    assert_eq!(reconnect["refused"]["status"], 429, "{reconnect}");
    assert_eq!(reconnect["refused"]["retry_after_ms"], 1000.0);
    assert_eq!(reconnect["accepted_after_wait"], true);
}

#[test]
fn an_interrupt_prints_what_is_known_and_leaves_no_connection_open() {
    let server = Server::start(Behaviour { idle: Some((LIMIT, Cut::Fin)), ..Behaviour::default() });
    let mut doctor = doctor(&server, &["--for", "1h"]);
    let doctor = doctor.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until(|| server.open() >= 20);
    signal(&doctor, "INT");
    let output = doctor.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(report["complete"], false);
    assert!(report["measured"]["waited_ms"].as_f64().unwrap() > 0.0, "{report}");
    until(|| server.open() == 0);
}

/// Waits until it is so.
#[track_caller]
fn until(is_so: impl Fn() -> bool) {
    for _ in 0..1200 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    panic!("not within 30 s");
}
