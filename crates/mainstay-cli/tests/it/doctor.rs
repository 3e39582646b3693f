//! `mainstay doctor` with servers that are healthy, and with servers that are not: one test per kind of finding.

mod servers;

use std::io::{Read, Write};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use self::servers::{
    Authority, Connection, accepting, answering, closing, echoing, frame, hold, serve, serve_tls, speak,
};
use crate::flags::check;
use crate::support::{Gateway, mainstay, run, signal};

/// The result of `mainstay doctor --json`.
struct Diagnosis {
    code: i32,
    report: Value,
    output: Output,
}

impl Diagnosis {
    fn of(arguments: &[&str]) -> Self {
        let output = run(&[&["doctor", "--quick", "--json"][..], arguments].concat(), b"");
        let report =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        Self { code: output.status.code().unwrap(), report, output }
    }

    fn findings(&self) -> Vec<&str> {
        let findings = self.report["findings"].as_array().unwrap();
        findings.iter().map(|finding| finding["id"].as_str().unwrap()).collect()
    }

    /// The finding with this id.
    #[track_caller]
    fn finding(&self, id: &str) -> &Value {
        let findings = self.report["findings"].as_array().unwrap();
        findings.iter().find(|finding| finding["id"] == id).unwrap_or_else(|| panic!("{id}: {}", self.report))
    }

    /// Checks the exit code, and that the gravest finding is this one; returns its words.
    #[track_caller]
    fn is(&self, code: i32, id: &str) -> String {
        assert_eq!((self.code, self.findings().first().copied()), (code, Some(id)), "{}", self.report);
        let finding = self.finding(id);
        assert!(finding["words"].as_str().unwrap().ends_with('.'), "{finding}");
        format!("{} {}", finding["words"], finding["advice"])
    }

    #[track_caller]
    fn is_healthy(&self) {
        let notes = self.report["findings"].as_array().unwrap();
        assert!(self.code == 0 && notes.iter().all(|note| note["severity"] == "note"), "{}", self.report);
        assert!(
            self.report["facts"]["failed"].is_null() && self.report["complete"] == true,
            "{}",
            self.report
        );
    }
}

fn url(port: u16) -> String {
    format!("ws://127.0.0.1:{port}/")
}

fn secure(port: u16) -> String {
    format!("wss://localhost:{port}/")
}

#[test]
fn a_healthy_server_is_healthy_and_its_facts_are_in_the_report() {
    let gateway = Gateway::start(&[]);
    let diagnosis = Diagnosis::of(&[&format!("{}/echo", gateway.url), "--echo"]);
    diagnosis.is_healthy();
    let facts = &diagnosis.report["facts"];
    assert_eq!(facts["lookup"]["ipv4"][0], "127.0.0.1");
    assert!(facts["addresses"][0]["connect_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(facts["handshake"]["status"], 101);
    assert_eq!((&facts["pings"]["sent"], &facts["pings"]["answered"]), (&10.into(), &10.into()));
    assert!(facts["pings"]["rtt"]["min_ms"].as_f64() <= facts["pings"]["rtt"]["max_ms"].as_f64());
    assert_eq!(facts["pings"]["echo"]["returned"], 5);
    assert_eq!(facts["pings"]["answered_by"], "server");
    assert_eq!(diagnosis.report["target"]["is_near"], true);
    assert_eq!(diagnosis.output.stdout.iter().filter(|byte| **byte == b'\n').count(), 1, "one line");
}

#[test]
fn the_report_has_the_documented_fields() {
    let gateway = Gateway::start(&[]);
    let diagnosis = Diagnosis::of(&[&format!("{}/echo", gateway.url)]);
    let fields = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    let report = &diagnosis.report;
    assert_eq!(report["version"], 1);
    assert_eq!(fields(report), "complete facts findings measured target took_ms verdict version");
    assert_eq!(
        fields(&report["target"]),
        "added_fields host is_near port secure sends_first_message subprotocols url"
    );
    let facts = &report["facts"];
    assert_eq!(
        fields(facts),
        "addresses ended failed first_message handshake http2 lookup pings proxy_variables tls used"
    );
    assert_eq!(
        fields(&facts["handshake"]),
        "body compressed extensions fields http interim location more_fields offered_extensions \
         offered_subprotocols products retry_after_ms server status subprotocol took_ms via wrong"
    );
    assert_eq!(
        fields(&facts["pings"]),
        "answered answered_by echo from_server rtt sent server_interval_ms wrong_payload"
    );
}

#[test]
fn a_server_behind_a_unix_socket_is_examined() {
    let socket = std::env::temp_dir().join(format!("mainstay-doctor-{}.sock", std::process::id()));
    let socket = format!("unix:{}", socket.display());
    let _gateway = Gateway::at(&["--listen", &socket]);
    let diagnosis = Diagnosis::of(&[&format!("{socket}:/echo")]);
    diagnosis.is_healthy();
    assert_eq!(diagnosis.report["facts"]["lookup"], Value::Null);
    Diagnosis::of(&["unix:/nowhere/at.sock"]).is(3, "connection-refused");
}

#[test]
fn a_name_without_an_address_and_a_closed_port_are_unreachable() {
    let words = Diagnosis::of(&["ws://no-such-name.invalid/"]).is(3, "name-unknown");
    assert!(words.contains("no-such-name.invalid"), "{words}");
    let words = Diagnosis::of(&["ws://127.0.0.1:1/"]).is(3, "connection-refused");
    assert!(words.contains("127.0.0.1:1: Connection refused"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_status_that_opens_no_websocket_has_its_finding() {
    let cases = [
        ("200 OK", "Content-Length: 6\r\n", "<html>", "not-a-websocket", "login"),
        ("301 Moved", "Location: https://h/in?token=hidden\r\n", "", "redirected", "https://h/in?token=..."),
        ("400 Bad Request", "", "", "upgrade-refused", "proxy_http_version 1.1"),
        ("400 Bad Request", "", "The plain HTTP request was sent to HTTPS port", "tls-expected", "wss://"),
        ("401 Unauthorized", "", "", "unauthorized", "--bearer-file"),
        ("403 Forbidden", "", "", "forbidden", "Origin"),
        ("404 Not Found", "", "", "path-not-found", "path"),
        ("426 Upgrade Required", "", "", "upgrade-refused", "Upgrade"),
        ("429 Too Many Requests", "Retry-After: 7\r\n", "", "too-many-requests", "after 7 s"),
        ("500 Internal Server Error", "", "", "refused", "log"),
        ("502 Bad Gateway", "", "", "backend-unavailable", "backend"),
        ("503 Service Unavailable", "Retry-After: 90\r\n", "", "backend-unavailable", "after 90 s"),
        ("504 Gateway Timeout", "", "", "backend-unavailable", "backend"),
    ];
    for (status, fields, body, id, advice) in cases {
        let response = format!("HTTP/1.1 {status}\r\n{fields}Connection: close\r\n\r\n{body}");
        let port = serve(answering(move |_| response.clone())).await;
        let diagnosis = Diagnosis::of(&[&url(port)]);
        let words = diagnosis.is(3, id);
        assert!(words.contains(advice), "{status}: {words}");
        let number: u16 = status[..3].parse().unwrap();
        assert_eq!(diagnosis.report["facts"]["handshake"]["status"], number);
        assert_eq!(diagnosis.report["facts"]["failed"]["step"], "handshake");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_101_that_breaks_the_rules_opens_no_websocket() {
    let without = |field: &'static str| {
        move |head: &str| {
            let response = accepting(head, "");
            let kept = response.split_inclusive("\r\n").filter(|line| !line.starts_with(field));
            kept.collect()
        }
    };
    let with = |fields: &'static str| move |head: &str| accepting(head, fields);
    let wrong = |head: &str| accepting(head, "").replace("Sec-WebSocket-Accept: ", "Sec-WebSocket-Accept: x");
    for (port, id, kind) in [
        (serve(answering(without("Upgrade"))).await, "upgrade-missing", "no-upgrade"),
        (serve(answering(without("Connection"))).await, "upgrade-missing", "no-connection"),
        (serve(answering(without("Sec-WebSocket-Accept"))).await, "accept-wrong", "no-accept"),
        (serve(answering(wrong)).await, "accept-wrong", "accept"),
        (
            serve(answering(with("Sec-WebSocket-Protocol: x\r\n"))).await,
            "subprotocol-not-offered",
            "subprotocol",
        ),
        (
            serve(answering(with("Sec-WebSocket-Extensions: x\r\n"))).await,
            "extension-not-offered",
            "extension",
        ),
    ] {
        let diagnosis = Diagnosis::of(&[&url(port)]);
        diagnosis.is(3, id);
        assert_eq!(diagnosis.report["facts"]["handshake"]["wrong"], kind);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fields_of_a_proxy_are_in_the_report() {
    let fields =
        "Server: nginx/1.25.3\r\nVia: 1.1 vegur\r\nCF-RAY: 1\r\nSet-Cookie: AWSALB=secret; Path=/\r\n";
    let port = serve(speak(fields, echoing)).await;
    let diagnosis = Diagnosis::of(&[&url(port)]);
    diagnosis.is_healthy();
    let handshake = &diagnosis.report["facts"]["handshake"];
    assert_eq!((&handshake["server"], &handshake["via"][0]), (&"nginx/1.25.3".into(), &"1.1 vegur".into()));
    let products = handshake["products"].as_array().unwrap();
    let names: Vec<_> = products.iter().map(|product| product["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["cloudflare", "aws-alb", "heroku", "nginx"]);
    assert!(!diagnosis.report.to_string().contains("secret"), "values of cookies are not shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subprotocol_that_the_server_does_not_choose_is_a_finding() {
    let port = serve(speak("", echoing)).await;
    let words = Diagnosis::of(&[&url(port), "--subprotocol", "chat.v2"]).is(1, "subprotocol-not-chosen");
    assert!(words.contains("chat.v2"), "{words}");
    let port = serve(speak("Sec-WebSocket-Protocol: chat.v2\r\n", echoing)).await;
    let diagnosis = Diagnosis::of(&[&url(port), "--subprotocol", "chat.v2"]);
    diagnosis.is_healthy();
    assert_eq!(diagnosis.report["facts"]["handshake"]["subprotocol"], "chat.v2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_closes_at_once_is_a_finding_with_its_code() {
    let port = serve(speak("", |connection| closing(connection, 1008, "token\u{1b}[2J missing"))).await;
    let diagnosis = Diagnosis::of(&[&url(port)]);
    let words = diagnosis.is(1, "closed-after-opening");
    assert!(words.contains("1008") && words.contains("missing"), "{words}");
    assert_eq!(diagnosis.report["facts"]["ended"]["code"], 1008);
    assert!(!diagnosis.output.stdout.contains(&0x1b), "a terminal would act on it");
    let port = serve(speak("", |mut connection: Connection| async move {
        connection.shutdown().await.unwrap();
        // To drop it with the doctor's Ping unread would be a reset.
        hold(connection).await;
    }))
    .await;
    let diagnosis = Diagnosis::of(&[&url(port)]);
    diagnosis.is(1, "closed-after-opening");
    assert_eq!(diagnosis.report["facts"]["ended"]["how"], "fin");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_message_comes_before_all_else_as_text_or_from_a_file_and_its_answer_is_in_the_facts() {
    let file = std::env::temp_dir().join(format!("mainstay-doctor-first-{}", std::process::id()));
    std::fs::write(&file, b"\x10\0planted\n").unwrap();
    let port = serve(speak("", |mut connection| async move {
        let first = frame(&mut connection).await.unwrap();
        let answer: &[u8] = match first {
            (1, text) if text == b"LOGIN planted" => b"\x81\x02ok",
            (2, bytes) if bytes == b"\x10\0planted\n" => b"\x82\x02ok",
            _ => b"\x88\x02\x11\x38",
        };
        connection.write_all(answer).await.unwrap();
        echoing(connection).await;
    }))
    .await;
    for (message, is_right) in [
        ("LOGIN planted".to_owned(), true),
        (format!("@{}", file.display()), true),
        ("HELO".to_owned(), false),
    ] {
        let diagnosis = Diagnosis::of(&[&url(port), "--first-message", &message, "--echo"]);
        let answered = &diagnosis.report["facts"]["first_message"]["answered_ms"];
        assert_eq!(answered.as_f64().is_some(), is_right, "{message}: {}", diagnosis.report);
        match is_right {
            true => assert_eq!(diagnosis.report["facts"]["pings"]["echo"]["returned"], 5),
            false => assert!(diagnosis.is(1, "closed-after-opening").contains("refuse the first message")),
        }
        assert!(!String::from_utf8_lossy(&diagnosis.output.stdout).contains("planted"));
    }
    std::fs::remove_file(file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_that_nothing_answers_and_pongs_of_another_payload_are_findings() {
    let silent = url(serve(speak("", hold)).await);
    let wrong = url(serve(speak("", |mut connection: Connection| async move {
        while let Some((opcode, _)) = frame(&mut connection).await {
            if opcode == 9 && connection.write_all(b"\x8a\x01x").await.is_err() {
                return;
            }
        }
    }))
    .await);
    let (silent, wrong) = std::thread::scope(|scope| {
        let silent = scope.spawn(|| Diagnosis::of(&[&silent]));
        let wrong = Diagnosis::of(&[&wrong]);
        (silent.join().unwrap(), wrong)
    });
    silent.is(1, "pings-unanswered");
    assert_eq!(silent.report["facts"]["pings"]["answered_by"], "nothing");
    wrong.is(1, "pong-wrong");
}

#[tokio::test(flavor = "multi_thread")]
async fn pongs_that_come_much_sooner_than_echoes_come_from_something_nearer() {
    let port = serve(speak("", |mut connection: Connection| async move {
        while let Some((opcode, payload)) = frame(&mut connection).await {
            let reply = match opcode {
                9 => 0x8a,
                1 => {
                    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
                    0x81
                }
                _ => continue,
            };
            let head = [reply, u8::try_from(payload.len()).unwrap()];
            if connection.write_all(&[&head[..], &payload].concat()).await.is_err() {
                return;
            }
        }
    }))
    .await;
    let diagnosis = Diagnosis::of(&[&url(port), "--echo"]);
    diagnosis.is(1, "pings-answered-nearer");
    assert_eq!(diagnosis.report["facts"]["pings"]["answered_by"], "nearer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_silent_is_unreachable_after_a_stated_time() {
    let silent = serve(|connection| async move {
        std::future::pending::<()>().await;
        drop(connection);
    })
    .await;
    let (plain, secure) = (url(silent), secure(silent));
    let (plain, secure) = std::thread::scope(|scope| {
        let plain = scope.spawn(|| Diagnosis::of(&[&plain]));
        let secure = Diagnosis::of(&[&secure]);
        (plain.join().unwrap(), secure)
    });
    assert!(plain.is(3, "no-response").contains("within 10 s"));
    assert!(secure.is(3, "tls-missing").contains("within 10 s"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ws_to_a_port_of_tls_and_wss_to_a_port_without_are_recognized() {
    let authority = Authority::new();
    let port = serve_tls(authority.server(|_| {}), speak("", echoing)).await;
    let words = Diagnosis::of(&[&url(port)]).is(3, "tls-expected");
    assert!(words.contains("wss://"), "{words}");
    let port = serve(answering(|_| "HTTP/1.1 400 Bad Request\r\n\r\n".to_owned())).await;
    // The first bytes of TLS are no HTTP, and most servers answer them with 400.
    let words = Diagnosis::of(&[&secure(port)]).is(3, "tls-missing");
    assert!(words.contains("HTTP without TLS") && words.contains("ws://"), "{words}");
    let port = serve(|mut connection: Connection| async move {
        let _ = connection.write_all(b"SSH-2.0-x\r\n").await;
        hold(connection).await;
    })
    .await;
    Diagnosis::of(&[&url(port)]).is(3, "no-http");
    assert!(Diagnosis::of(&[&secure(port)]).is(3, "tls-failed").contains("SSH-2.0-x"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_certificate_is_described() {
    let authority = Authority::new();
    let port = serve_tls(authority.server(|_| {}), speak("", echoing)).await;
    let diagnosis = Diagnosis::of(&[&secure(port), "--cacert", &authority.file()]);
    diagnosis.is_healthy();
    let tls = &diagnosis.report["facts"]["tls"];
    assert_eq!((&tls["version"], &tls["server_name"]), (&"TLS 1.3".into(), &"localhost".into()));
    assert_eq!((&tls["chain"][0]["names"][0], &tls["untrusted"]), (&"localhost".into(), &Value::Null));
    assert!(tls["chain"][0]["days_left"].as_i64().unwrap() > 300);
    assert!(!tls["cipher"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_reason_not_to_trust_a_certificate_has_its_finding_and_nothing_is_sent() {
    let authority = Authority::new();
    let cases = [
        (
            authority.server(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1)),
            "certificate-expired",
            "days ago",
        ),
        (
            authority.server(|params| params.not_before = rcgen::date_time_ymd(2100, 1, 1)),
            "certificate-not-yet-valid",
            "clock",
        ),
        (
            authority.server(|params| {
                params.subject_alt_names = vec![rcgen::SanType::DnsName("other.example".try_into().unwrap())]
            }),
            "certificate-wrong-name",
            "other.example, and not for localhost",
        ),
        (Authority::new().server(|_| {}), "certificate-unknown-issuer", "--cacert"),
        (
            Authority::new().server(servers::with_place_of_issuer),
            "certificate-missing-intermediate",
            "fullchain.pem",
        ),
        (servers::self_signed(), "certificate-self-signed", "--cacert"),
    ];
    for (config, id, word) in cases {
        let goes_on = Arc::new(AtomicBool::new(false));
        let went_on = Arc::clone(&goes_on);
        let port = serve_tls(config, move |_| {
            went_on.store(true, Ordering::SeqCst);
            async {}
        })
        .await;
        let arguments = [&secure(port), "--cacert", &authority.file(), "--header", "X-Secret: s3cret"];
        let diagnosis = Diagnosis::of(&arguments);
        let words = diagnosis.is(3, id);
        assert!(words.contains(word), "{words}");
        assert!(diagnosis.report["facts"]["tls"]["chain"][0]["subject"].is_string(), "{id}");
        assert_eq!(diagnosis.report["facts"]["failed"]["step"], "tls");
        assert!(!goes_on.load(Ordering::SeqCst), "{id}: the handshake was finished");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expires_soon_and_an_old_version_of_tls_are_found() {
    let authority = Authority::new();
    let soon = authority.server(servers::expires_in_three_days);
    let port = serve_tls(soon, speak("", echoing)).await;
    let words =
        Diagnosis::of(&[&secure(port), "--cacert", &authority.file()]).is(1, "certificate-expires-soon");
    assert!(words.contains("in 2 days") || words.contains("in 3 days"), "{words}");
    let port = serve_tls(authority.old_server(), speak("", echoing)).await;
    let diagnosis = Diagnosis::of(&[&secure(port), "--cacert", &authority.file()]);
    diagnosis.is_healthy();
    diagnosis.finding("tls-1.2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_requires_a_certificate_or_offers_no_http_1_is_found() {
    let authority = Authority::new();
    let port = serve_tls(authority.strict_server(), speak("", echoing)).await;
    Diagnosis::of(&[&secure(port), "--cacert", &authority.file()]).is(3, "client-certificate-required");
    let mut only_http_2 = authority.server(|_| {});
    only_http_2.alpn_protocols = vec![b"h2".to_vec()];
    let port = serve_tls(only_http_2, speak("", echoing)).await;
    let words = Diagnosis::of(&[&secure(port), "--cacert", &authority.file()]).is(3, "tls-failed");
    assert!(words.contains("HTTP/1.1 (ALPN)"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_itself_and_sends_what_the_user_adds() {
    let (asked, mut was_asked) = tokio::sync::mpsc::channel(9);
    let port = serve(answering(move |head| {
        asked.try_send(head.to_owned()).unwrap();
        "HTTP/1.1 403 Forbidden\r\n\r\n".to_owned()
    }))
    .await;
    let added = ["--header", "Origin: https://page.example", "--header", "Host: other.example"];
    let url = url(port);
    Diagnosis::of(&[&[url.as_str()][..], &added].concat()).is(3, "forbidden");
    let head = was_asked.recv().await.unwrap();
    for line in
        ["GET / HTTP/1.1", "Origin: https://page.example", "Host: other.example", "Sec-WebSocket-Version: 13"]
    {
        assert!(head.lines().any(|is| is == line), "{line}: {head}");
    }
    assert!(head.contains("User-Agent: mainstay-doctor/") && head.matches("Host: ").count() == 1, "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_over_http_2_are_tried_where_the_server_allows_them() {
    let authority = Authority::new();
    for (allows, status, healthy) in [(true, 200, true), (true, 404, false), (false, 200, true)] {
        let port = servers::serve_http_2(authority.server(|_| {}), allows, status).await;
        let diagnosis = Diagnosis::of(&[&secure(port), "--cacert", &authority.file()]);
        let http2 = &diagnosis.report["facts"]["http2"];
        assert_eq!(
            (&http2["offered"], &http2["extended_connect"]),
            (&true.into(), &allows.into()),
            "{http2}"
        );
        assert_eq!(http2["status"], if allows { status.into() } else { Value::Null }, "{http2}");
        match healthy {
            true => diagnosis.is_healthy(),
            false => drop(diagnosis.is(1, "http2-websocket-fails")),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_secret_is_printed_even_if_the_server_sends_it_back() {
    let token = std::env::temp_dir().join(format!("mainstay-doctor-token-{}", std::process::id()));
    std::fs::write(&token, "planted-in-file\n").unwrap();
    let token = token.to_str().unwrap();
    let echoed = |head: &str| {
        let line = head.replace("\r\n", " ");
        let sent = line.trim();
        format!(
            "HTTP/1.1 403 Forbidden\r\nX-Got: {sent}\r\nServer: {sent}\r\nLocation: /{sent}\r\n\r\n{sent}"
        )
    };
    let refusing = serve(answering(echoed)).await;
    let garbage = serve(answering(|head| format!("GARBAGE {head}"))).await;
    let reason = "planted-in-query planted-in-header planted-in-file planted-in-message";
    let ending = serve(speak("", move |connection| closing(connection, 4000, reason))).await;
    for port in [refusing, garbage, ending] {
        let url = format!("ws://127.0.0.1:{port}/a?token=planted-in-query&planted-alone");
        for json in [&["--json"][..], &[]] {
            let flags = [
                "doctor",
                "--quick",
                &url,
                "--header",
                "Cookie: a=planted-in-header",
                "--bearer-file",
                token,
                "--first-message",
                r#"{"type":"login","token":"planted-in-message"}"#,
            ];
            let output = run(&[&flags, json].concat(), b"");
            let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert!(!text.contains("planted"), "{text}");
            assert!(text.len() > 20, "{text}");
        }
    }
    std::fs::remove_file(token).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_server_ends_the_examination_and_not_the_doctor() {
    let endless = |begin: &'static [u8], more: &'static [u8]| {
        move |mut connection: Connection| async move {
            let _ = connection.write_all(begin).await;
            while connection.write_all(more).await.is_ok() {}
        }
    };
    let one_field = serve(endless(b"HTTP/1.1 101 x\r\nX: ", &[b'x'; 1024])).await;
    let fields = serve(endless(b"HTTP/1.1 101 x\r\n", b"X: 1\r\n")).await;
    let interim = serve(endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n")).await;
    for port in [one_field, fields, interim] {
        Diagnosis::of(&[&url(port)]).is(3, "no-http");
    }
    let frames = |more: &'static [u8]| {
        speak("", move |mut connection: Connection| async move {
            while connection.write_all(more).await.is_ok() {}
        })
    };
    // A message of 2^40 bytes, one without an end, Pings without an end, a frame that is none.
    let huge = serve(frames(b"\x82\x7f\0\0\x01\0\0\0\0\0")).await;
    let endless = serve(frames(b"\x02\x7f\0\0\0\0\0\0\0\x01x")).await;
    let pings = serve(frames(b"\x89\x00")).await;
    let wrong = serve(frames(b"\xff\xff")).await;
    for port in [huge, endless, pings, wrong] {
        for first in [&[][..], &["--first-message", "x"]] {
            let diagnosis = Diagnosis::of(&[&[url(port).as_str()], first].concat());
            assert!(matches!(diagnosis.code, 0 | 1), "{}", diagnosis.report);
        }
    }
    let fields = "X-A: \u{9b}2J\u{202e}\r\nX-\u{1b}: 1\r\nServer: \x1b]0;title\x07\r\n";
    let port = serve(speak(fields, echoing)).await;
    for json in [&["--json"][..], &[]] {
        let output = run(&[&["doctor", "--quick", &url(port)][..], json].concat(), b"");
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!text.contains(|c: char| c.is_control() && c != '\n' || c == '\u{202e}'), "{text:?}");
    }
}

#[test]
fn a_foreign_host_is_not_measured_without_a_terminal_or_yes() {
    // These addresses are for documentation: no packet to them arrives anywhere.
    for url in ["ws://192.0.2.1/", "wss://[2001:db8::1]/feed?token=planted"] {
        check(&["doctor", url], &["--yes", "--quick", "beyond this machine"]);
        let output = run(&["doctor", url], b"y\n");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.stdout.is_empty() && !text.contains("planted"), "{text}");
    }
}

#[test]
fn on_a_terminal_the_doctor_asks_before_it_measures_a_foreign_host() {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let device = || std::fs::File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let process = mainstay(&["doctor", "ws://192.0.2.1/feed?token=planted"])
        .stdin(device())
        .stderr(device())
        .spawn()
        .unwrap();
    let mut terminal = std::fs::File::from(terminal);
    let mut shown = String::new();
    while !shown.contains("[y/N]") {
        let mut part = [0; 1024];
        let count = terminal.read(&mut part).unwrap();
        shown.push_str(&String::from_utf8_lossy(&part[..count]));
    }
    terminal.write_all(b"n\n").unwrap();
    let output = process.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &b""[..]));
    for expected in ["(192.0.2.1)", "at once", "a second", "No message is sent", "--quick"] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert!(shown.lines().count() < 24 && !shown.contains("planted"), "one screen: {shown}");
}

#[test]
fn a_wrong_argument_of_the_doctor_is_one_line() {
    let url = "ws://127.0.0.1:1/";
    check(&["doctor"], &["<URL>"]);
    check(&["doctor", "example.com"], &["<URL>", "ws://"]);
    check(&["doctor", "ws://ann:secret@127.0.0.1/"], &["<URL>", "Authorization"]);
    check(&["doctor", "ws://bü cher.example/"], &["<URL>", "bü cher.example", "ws://host:port"]);
    check(&["doctor", "ws://127.0.0.1:0/"], &["<URL>", "from 1 to 65535"]);
    check(&["doctor", url, "--for", "0s"], &["--for", "between 1s and 24h"]);
    check(&["doctor", url, "--for", "soon"], &["--for", "500ms"]);
    for wrong in ["0", "10001", "many"] {
        check(&["doctor", url, "--connections", wrong], &["--connections", "from 1 to 10000"]);
    }
    check(&["doctor", url, "--quick", "--for", "1m"], &["--quick", "--for"]);
    check(&["doctor", url, "--header", "no colon"], &["--header", "Name: value"]);
    for own in ["Sec-WebSocket-Key: x", "Upgrade: x", "Connection: x", "Content-Length: 1"] {
        check(&["doctor", url, "--header", own], &["--header", "belongs to the opening handshake"]);
    }
    check(&["doctor", url, "--subprotocol", "a b"], &["--subprotocol", "letters, digits"]);
    check(&["doctor", url, "--cacert", "/dev/null"], &["--cacert", "no certificate found"]);
    check(&["doctor", url, "--first-message", ""], &["--first-message", "is empty"]);
    check(
        &["doctor", url, "--first-message", "@/nowhere/x"],
        &["--first-message @/nowhere/x", "readable file"],
    );
    check(&["doctor", url, "--first-message", "@/dev/zero"], &["--first-message", "at most 64 KiB"]);
    check(&["doctor", url, "--bearer-file", "/dev/zero"], &["--bearer-file", "one token"]);
    check(&["doctor", url, "--bearer-file", "/nowhere/x"], &["--bearer-file", "readable file"]);
    check(&["doctor", url, "--bearer-file", "/dev/null"], &["--bearer-file", "one token"]);
    let both = ["doctor", url, "--bearer-file", "/dev/null", "--header", "Authorization: x"];
    check(&both, &["--bearer-file", "--header"]);
}

#[test]
fn a_limit_of_open_files_that_is_too_low_is_named_and_not_blamed_on_the_server() {
    let mut shell = std::process::Command::new("sh");
    let command = "ulimit -n 100 && exec \"$0\" doctor ws://127.0.0.1:1/";
    let output = shell.args(["-c", command, env!("CARGO_BIN_EXE_mainstay")]).output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), line.lines().count()), (Some(2), 1), "{line}");
    for part in ["--connections 200", "100 open files", "at most 68", "ulimit -n"] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_the_doctor_with_what_is_known() {
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let (asked, mut was_asked) = tokio::sync::mpsc::channel(1);
        let port = serve(move |mut connection: Connection| {
            let asked = asked.clone();
            async move {
                if servers::read_head(&mut connection).await.is_some() {
                    let _ = asked.send(()).await;
                }
                std::future::pending().await
            }
        })
        .await;
        let process = mainstay(&["doctor", "--json", &url(port)]).spawn().unwrap();
        was_asked.recv().await.unwrap();
        signal(&process, name);
        let output = process.wait_with_output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(code), "no WebSocket was open yet");
        assert_eq!(report["complete"], false);
        assert_eq!(report["facts"]["used"], format!("127.0.0.1:{port}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_while_limits_are_measured_prints_the_facts_with_their_exit_code() {
    let (pinged, mut was_pinged) = tokio::sync::mpsc::channel(1000);
    let serve_one = move |mut connection: Connection| {
        let pinged = pinged.clone();
        async move {
            while let Some((opcode, payload)) = frame(&mut connection).await {
                let head = [0x8a, u8::try_from(payload.len()).unwrap()];
                if opcode == 9 && connection.write_all(&[&head[..], &payload].concat()).await.is_err() {
                    return;
                }
                let _ = pinged.send(()).await;
            }
        }
    };
    let port = serve(speak("", serve_one)).await;
    let process = mainstay(&["doctor", "--json", "--for", "1h", &url(port)]).spawn().unwrap();
    // The facts take ten Pings; further ones are those of the measurement.
    for _ in 0..12 {
        was_pinged.recv().await.unwrap();
    }
    let draining = tokio::spawn(async move { while was_pinged.recv().await.is_some() {} });
    signal(&process, "INT");
    let output = process.wait_with_output().unwrap();
    draining.abort();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let is_problem = findings.iter().any(|finding| finding["severity"] != "note");
    assert_eq!(output.status.code(), Some(i32::from(is_problem)), "{report}");
    assert_eq!((&report["complete"], &report["facts"]["pings"]["answered"]), (&false.into(), &10.into()));
    assert!(report["measured"].is_object(), "{report}");
}
