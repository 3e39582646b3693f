//! What `mainstay doctor` measures by waiting, on servers whose limits are known.

mod server;

use std::collections::HashMap;
use std::process::{Child, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use mainstay_chaos::{ChaosProxy, Direction, Fault, Rule, Scenario, When};
use serde_json::Value;

use self::server::{Behaviour, Cut, Server};
use crate::support::{Gateway, mainstay, run, signal};

/// The limit of most of these servers. A run of 6 s finds limits of up to 4 s.
const LIMIT: Duration = Duration::from_millis(1500);

/// A limit that is shorter than the interval of the doctor's Pings at first.
const SHORT: Duration = Duration::from_millis(700);

/// What a server wants to have first.
const LOGIN: &str = r#"{"login":"ann"}"#;

/// So many bytes of a client pass on one connection.
const TOTAL: u64 = 100_000;

/// A path whose limits are known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Case {
    /// A proxy with an idle limit. Both directions count.
    Idle,
    /// A proxy with a limit that is shorter than the interval of the doctor's Pings.
    IdleShort,
    /// A proxy for which only the server's bytes count.
    IdleDown,
    /// A proxy that forgets idle connections.
    Forgets,
    /// A server with an idle limit.
    IdleServer(Cut),
    /// A server with an idle limit that answers no Ping.
    NoPongs,
    Lifetime,
    Restart,
    Heartbeat,
    /// It echoes messages, up to a size.
    Echo,
    /// It echoes messages, and closes a client that does not send the right one first.
    Login,
    /// The same, and the doctor does.
    LoggedIn,
    /// It echoes messages, and only those renew its idle limit.
    Messages,
    /// It echoes messages, and the path cuts each connection after so many bytes.
    Total,
    /// The path is so long that several Pings are on the way at once.
    Far,
    /// More connections are refused.
    Bound,
    /// The doctor has a bound.
    OwnBound,
    Rate,
}

const CASES: [(Case, &[&str]); 20] = [
    (Case::Idle, &[]),
    (Case::IdleShort, &[]),
    (Case::IdleDown, &[]),
    (Case::Forgets, &[]),
    (Case::IdleServer(Cut::Reset), &[]),
    (Case::IdleServer(Cut::Close), &[]),
    (Case::IdleServer(Cut::ResetOnSend), &[]),
    (Case::NoPongs, &[]),
    (Case::Lifetime, &[]),
    (Case::Restart, &[]),
    (Case::Heartbeat, &[]),
    (Case::Echo, &["--echo"]),
    (Case::Login, &[]),
    (Case::LoggedIn, &["--echo", "--first-message", LOGIN]),
    (Case::Messages, &["--echo"]),
    (Case::Total, &["--echo"]),
    (Case::Far, &[]),
    (Case::Bound, &["--connections", "60"]),
    (Case::OwnBound, &["--connections", "12"]),
    (Case::Rate, &["--connections", "10"]),
];

impl Case {
    fn behaviour(self) -> Behaviour {
        let plain = Behaviour::default();
        match self {
            Self::IdleServer(cut) => Behaviour { idle: Some((LIMIT, cut)), ..plain },
            Self::NoPongs => Behaviour { idle: Some((LIMIT, Cut::Fin)), answers_no_ping: true, ..plain },
            Self::Heartbeat => Behaviour { pings: Some(HEARTBEAT), ..plain },
            Self::Echo => Behaviour {
                max_message: Some(1 << 16),
                max_fragments: Some(100),
                close_code: Some(1000),
                ..plain
            },
            Self::Login => Behaviour { login: Some((LOGIN, LIMIT)), ..plain },
            Self::LoggedIn => {
                let idle = Some((LIMIT, Cut::Fin));
                Behaviour { login: Some((LOGIN, SHORT)), idle, max_message: Some(1 << 16), ..plain }
            }
            Self::Messages => Behaviour { idle: Some((LIMIT, Cut::Fin)), counts_messages: true, ..plain },
            Self::Bound => Behaviour { max_open: Some(40), ..plain },
            Self::Rate => Behaviour { max_short: Some(8), ..plain },
            _ => plain,
        }
    }

    /// The fault of the proxy in front of the server.
    fn rule(self) -> Option<Rule> {
        let idle = |direction, silent| Fault::IdleCut { direction, after: LIMIT, silent };
        let short = Fault::IdleCut { direction: Direction::Both, after: SHORT, silent: false };
        let (fault, when) = match self {
            Self::Idle => (idle(Direction::Both, false), When::Always),
            Self::IdleShort => (short, When::Always),
            Self::IdleDown => (idle(Direction::Down, false), When::Always),
            Self::Forgets => (idle(Direction::Both, true), When::Always),
            Self::Lifetime => (Fault::LifetimeCut { after: LIMIT }, When::Always),
            Self::Total => (Fault::CutAfter { direction: Direction::Up, bytes: TOTAL }, When::Always),
            Self::Far => {
                let latency = Duration::from_millis(150);
                (Fault::Delay { direction: Direction::Both, latency, jitter: Duration::ZERO }, When::Always)
            }
            Self::Restart => (Fault::Fin, When::At { at: LIMIT * 2, repeat: None }),
            _ => return None,
        };
        Some(Rule { fault, when, lasts: None, share: 1.0 })
    }
}

/// A server, and a proxy in front of it if the case has a fault.
struct Path {
    server: Server,
    proxy: Option<ChaosProxy>,
}

impl Path {
    fn new(case: Case) -> Self {
        let server = Server::start(case.behaviour());
        let proxy = case.rule().map(|rule| {
            let scenario = Scenario { rules: vec![rule] };
            ChaosProxy::builder(format!("127.0.0.1:{}", server.port)).scenario(scenario).start().unwrap()
        });
        Self { server, proxy }
    }

    fn doctor(&self, lasts: &str, arguments: &[&str]) -> Child {
        let port = self.proxy.as_ref().map_or(self.server.port, |proxy| proxy.address().port());
        let url = format!("ws://127.0.0.1:{port}/");
        let mut doctor = mainstay(&[&["doctor", &url, "--for", lasts, "--json"], arguments].concat());
        doctor.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

/// The interval of a server's Pings.
const HEARTBEAT: Duration = Duration::from_millis(700);

/// What was measured, and how many connections were open at once. All cases run side by side, once for all tests.
static RESULTS: LazyLock<HashMap<Case, (Value, usize)>> = LazyLock::new(|| {
    let runs = CASES.map(|(case, arguments)| {
        // The test's process holds the other ends of all connections.
        let bound = if arguments.contains(&"--connections") { &[][..] } else { &["--connections", "36"] };
        let path = Path::new(case);
        let doctor = path.doctor("6s", &[arguments, bound].concat());
        (case, path, doctor)
    });
    let finish = |(case, path, doctor): (Case, Path, Child)| {
        let output = doctor.wait_with_output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 1)), "{case:?}: {output:?}");
        let measured = serde_json::from_slice::<Value>(&output.stdout).unwrap()["measured"].take();
        (case, (measured, path.server.most_open()))
    };
    runs.map(finish).into_iter().collect()
});

fn measured(case: Case) -> &'static Value {
    &RESULTS[&case].0
}

/// Checks that a limit is the expected one, and no other of these paths. A busy machine takes times for shorter or longer ones; tests in
/// virtual time hold the exactness.
#[track_caller]
fn is_cut(limit: &Value, expected: Duration, how: &str) {
    let expected = expected.as_secs_f64() * 1e3;
    let after = limit["after_ms"].as_f64().unwrap_or_else(|| panic!("{limit}"));
    assert!(after > expected * 0.7 && after < expected * 1.3 + 500.0, "{limit}");
    assert!(limit["between_ms"][0].as_f64().unwrap() <= expected + 250.0, "{limit}");
    assert_eq!(limit["how"]["kind"], how, "{limit}");
}

#[track_caller]
fn holds(limit: &Value) -> f64 {
    assert_eq!(limit["kind"], "holds", "{limit}");
    limit["for_at_least_ms"].as_f64().unwrap()
}

#[test]
fn an_idle_limit_that_any_byte_renews_is_found_and_pings_or_pongs_of_the_client_prevent_it() {
    let measured = measured(Case::Idle);
    is_cut(&measured["idle"]["silent"], LIMIT, "fin");
    assert!(holds(&measured["idle"]["our_pings"]) > 2000.0);
    assert!(holds(&measured["idle"]["up_only"]) > 1600.0);
    holds(&measured["lifetime"]["limit"]);
    assert_eq!(measured["idle"]["server"]["pings"], 0);
}

#[test]
fn a_path_that_counts_only_the_bytes_of_the_server_cuts_a_client_that_only_sends() {
    let measured = measured(Case::IdleDown);
    is_cut(&measured["idle"]["silent"], LIMIT, "fin");
    is_cut(&measured["idle"]["up_only"], LIMIT, "fin");
    holds(&measured["idle"]["our_pings"]);
}

#[test]
fn the_doctor_sends_more_often_than_a_short_idle_limit_to_see_what_keeps_a_connection() {
    let measured = measured(Case::IdleShort);
    is_cut(&measured["idle"]["silent"], SHORT, "fin");
    assert!(measured["idle"]["every_ms"].as_f64() < Some(500.0), "{measured}");
    assert!(holds(&measured["idle"]["our_pings"]) > 1000.0);
    assert!(holds(&measured["idle"]["up_only"]) > 800.0);
}

#[test]
fn an_idle_limit_is_found_whatever_the_end_looks_like() {
    let paths = [
        (Case::Forgets, "silent"),
        (Case::IdleServer(Cut::Reset), "reset"),
        (Case::IdleServer(Cut::Close), "close"),
        (Case::IdleServer(Cut::ResetOnSend), "reset-on-send"),
    ];
    for (case, how) in paths {
        let measured = measured(case);
        is_cut(&measured["idle"]["silent"], LIMIT, how);
        holds(&measured["lifetime"]["limit"]);
    }
    let close = &measured(Case::IdleServer(Cut::Close))["idle"]["silent"];
    assert_eq!(close["how"]["code"], 4000);
}

#[test]
fn a_limit_of_age_is_no_idle_limit() {
    let measured = measured(Case::Lifetime);
    is_cut(&measured["lifetime"]["limit"], LIMIT, "fin");
    assert!(measured["lifetime"]["limit"]["seen"].as_u64() >= Some(2), "{measured}");
    assert_ne!(measured["idle"]["silent"]["kind"], "cut", "{measured}");
    assert_eq!(measured["lifetime"]["restarts_ms"], serde_json::json!([]));
}

#[test]
fn a_restart_is_neither_a_limit_of_age_nor_of_silence() {
    let measured = measured(Case::Restart);
    assert_eq!(measured["lifetime"]["restarts_ms"].as_array().unwrap().len(), 1, "{measured}");
    assert_ne!(measured["lifetime"]["limit"]["kind"], "cut", "{measured}");
    assert_ne!(measured["idle"]["silent"]["kind"], "cut", "{measured}");
}

#[test]
fn the_heartbeat_of_a_server_is_seen_and_what_it_does_to_clients_that_do_not_answer() {
    let idle = &measured(Case::Heartbeat)["idle"];
    let interval = idle["server"]["ping_interval_ms"].as_f64().unwrap();
    assert!(interval > 350.0 && interval < 1200.0, "{idle}");
    assert_eq!(
        (&idle["unanswered_pings"]["kind"], &idle["unanswered_pings"]["how"]["kind"]),
        (&"cut".into(), &"fin".into()),
        "{idle}"
    );
    assert!(holds(&idle["server_sends"]) > 2000.0);
    // No longer silence can be had.
    assert!(holds(&idle["silent"]) < 2000.0, "{idle}");
}

#[test]
fn a_server_that_answers_no_ping_still_shows_its_idle_limit() {
    let measured = measured(Case::NoPongs);
    is_cut(&measured["idle"]["silent"], LIMIT, "fin");
    assert_eq!(measured["idle"]["our_pings"]["kind"], "unknown", "{measured}");
}

#[test]
fn the_largest_message_the_most_fragments_and_replaced_close_codes_are_found() {
    let measured = measured(Case::Echo);
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
fn a_server_that_waits_for_a_first_message_ends_all_connections_at_one_age() {
    let measured = measured(Case::Login);
    is_cut(&measured["lifetime"]["limit"], LIMIT, "close");
    assert_eq!(measured["lifetime"]["limit"]["how"]["code"], 4408);
}

#[test]
fn with_its_first_message_a_server_shows_its_limits_and_its_answer_is_no_echo_and_no_heartbeat() {
    let measured = measured(Case::LoggedIn);
    is_cut(&measured["idle"]["silent"], LIMIT, "fin");
    holds(&measured["idle"]["our_pings"]);
    holds(&measured["lifetime"]["limit"]);
    assert_eq!(measured["idle"]["server"]["messages"], 0, "{measured}");
    assert_eq!(measured["largest_message"]["accepted"], 1 << 16, "{measured}");
    assert!(measured["close_codes"].as_array().unwrap().iter().all(|code| code["returned"] == code["sent"]));
}

#[test]
fn messages_keep_a_connection_where_pings_do_not_count() {
    let measured = measured(Case::Messages);
    is_cut(&measured["lifetime"]["limit"], LIMIT, "fin");
    assert!(holds(&measured["idle"]["our_messages"]) > 2500.0);
}

#[test]
fn a_compressed_message_is_no_longer_than_one_that_passes_without_compression() {
    let gateway = Gateway::start(&["--deflate", "--max-message", "4KiB"]);
    let output = run(&["doctor", &format!("{}/echo", gateway.url), "--echo", "--for", "10s", "--json"], b"");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(report["measured"]["largest_message"]["accepted"], 4096, "{report}");
    assert_eq!(report["measured"]["compression"]["returned_same"], true, "{report}");
}

#[test]
fn a_path_that_counts_all_that_a_connection_carries_is_told_from_a_limit_of_one_message() {
    let largest = &measured(Case::Total)["largest_message"];
    assert!(largest["refused"].is_null(), "{largest}");
    let total = largest["total"].as_u64().unwrap_or_else(|| panic!("{largest}"));
    assert!(total.abs_diff(TOTAL) <= TOTAL / 10, "{largest}");
    assert_eq!(largest["how"]["kind"], "reset", "{largest}");
}

#[test]
fn pongs_that_come_after_the_next_ping_are_no_messages_of_the_server() {
    let idle = &measured(Case::Far)["idle"];
    assert_eq!(idle["server"]["messages"], 0, "{idle}");
    holds(&idle["our_pings"]);
}

#[test]
fn without_echo_no_message_is_sent() {
    let measured = measured(Case::Idle);
    assert!(measured["largest_message"].is_null() && measured["fragments"].is_null(), "{measured}");
    assert!(measured["left_out"][0].as_str().unwrap().contains("--echo"), "{measured}");
}

#[test]
fn a_bound_on_connections_is_found_and_the_doctor_keeps_its_own() {
    let crowd = &measured(Case::Bound)["crowd"];
    assert!((30..=40).contains(&crowd["most_open"].as_u64().unwrap()), "{crowd}");
    assert_eq!(
        (&crowd["refused"]["status"], &crowd["refused"]["retry_after_ms"]),
        (&503.into(), &7000.0.into())
    );
    assert!(crowd["refusals"].as_u64() >= Some(3), "{crowd}");
    let (measured, most_open) = &RESULTS[&Case::OwnBound];
    assert!(*most_open <= 12, "{most_open} {measured}");
    assert_eq!(measured["crowd"]["opened"], measured["crowd"]["asked"], "{measured}");
}

#[test]
fn a_rate_of_reconnects_that_is_refused_ends_the_experiment_and_its_wait_is_kept() {
    let reconnect = &measured(Case::Rate)["reconnect"];
    assert_eq!(reconnect["refused"]["status"], 429, "{reconnect}");
    assert_eq!(reconnect["refused"]["retry_after_ms"], 1000.0);
    assert_eq!(reconnect["accepted_after_wait"], true);
}

#[test]
fn an_interrupt_prints_what_is_known_and_leaves_no_connection_open() {
    let path = Path::new(Case::OwnBound);
    let doctor = path.doctor("1h", &[]);
    until(|| path.server.open() >= 20);
    signal(&doctor, "INT");
    let output = doctor.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(report["complete"], false);
    assert!(report["measured"]["waited_ms"].as_f64().unwrap() > 0.0, "{report}");
    until(|| path.server.open() == 0);
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
