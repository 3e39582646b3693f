//! `mainstay chaos`: the program around the proxy. Its faults, as clients and servers see them, are in `faults`.

mod faults;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::flags::check;
use crate::frames::{Frames, TEXT};
use crate::support::{mainstay, run, signal, until, without_variables};

/// A running `mainstay chaos`, killed when dropped.
pub(crate) struct Chaos {
    process: Process,
    stdin: Option<ChildStdin>,
    /// The first line: the addresses, the seed.
    pub(crate) start: Value,
    events: Arc<Mutex<Vec<Value>>>,
}

impl Chaos {
    /// Runs it on free ports, with its API, in front of this upstream.
    pub(crate) fn before(upstream: SocketAddr, arguments: &[&str]) -> Self {
        let upstream = upstream.to_string();
        let all =
            [&["chaos", "--upstream", &upstream, "--api", "127.0.0.1:0", "--json"][..], arguments].concat();
        Self::begin(mainstay(&all))
    }

    /// Runs this command, whose output is JSON.
    fn begin(mut command: Command) -> Self {
        let mut process = command.spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut why = String::new();
            process.stderr.take().unwrap().read_to_string(&mut why).unwrap();
            panic!("{why}");
        }
        let start: Value = serde_json::from_str(&line).unwrap();
        let events = Arc::new(Mutex::new(vec![start.clone()]));
        let writing = Arc::clone(&events);
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                writing.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Self { stdin: process.stdin.take(), process: Process(process), start, events }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.start["listen"].as_str().unwrap().parse().unwrap()
    }

    fn api(&self) -> SocketAddr {
        self.start["api"].as_str().unwrap().parse().unwrap()
    }

    /// The events of this name so far.
    pub(crate) fn events(&self, name: &str) -> Vec<Value> {
        let events = self.events.lock().unwrap();
        events.iter().filter(|event| event["event"] == name).cloned().collect()
    }

    /// Waits for an event of this name; returns the first.
    pub(crate) async fn event(&self, name: &str) -> Value {
        until(name, || !self.events(name).is_empty()).await;
        self.events(name).remove(0)
    }

    /// Sends a request with a body of JSON, or without; returns the status and the answer.
    pub(crate) fn ask(&self, request: &str, body: Option<Value>) -> (u16, Value) {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        self.ask_raw(request, "Host: localhost\r\nContent-Type: application/json\r\n", &body)
    }

    fn ask_raw(&self, request: &str, headers: &str, body: &str) -> (u16, Value) {
        let mut stream = StdStream::connect(self.api()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let length = body.len();
        let text = format!(
            "{request} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        );
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// Injects a fault by the API; returns its number.
    pub(crate) fn inject(&self, fault: Value) -> u64 {
        let (status, answer) = self.ask("POST /faults", Some(fault.clone()));
        assert_eq!(status, 201, "{fault}: {answer}");
        answer["id"].as_u64().unwrap()
    }

    pub(crate) fn lift(&self, id: u64) {
        assert_eq!(self.ask(&format!("DELETE /faults/{id}"), None), (200, json!({"lifted": true})));
    }
}

/// A process that is killed when dropped, also by a test that fails.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a process ends by itself; returns its exit code.
async fn ended(process: &mut Process) -> Option<i32> {
    for _ in 0..1500 {
        if let Some(status) = process.0.try_wait().unwrap() {
            return status.code();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("mainstay chaos does not end");
}

/// A server of WebSockets, whose connections the test holds, with a client through `mainstay chaos`.
pub(crate) async fn pair(listener: &TcpListener, chaos: &Chaos) -> (Frames, Frames) {
    let ((head, client), (_, server)) =
        tokio::join!(Frames::connect(chaos.address(), "/", ""), Frames::serve(listener));
    assert!(head.contains("101"), "{head}");
    (client, server)
}

pub(crate) async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An address where nothing listens.
fn nowhere() -> SocketAddr {
    StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn what_passes_through_it_is_unchanged_and_is_in_the_timeline() {
    let (listener, upstream) = listener().await;
    let chaos = Chaos::before(upstream, &["--seed", "7"]);
    assert_eq!((&chaos.start["event"], &chaos.start["seed"]), (&json!("started"), &json!(7)));
    assert_eq!(chaos.start["upstream"], upstream.to_string());
    let (mut client, mut server) = pair(&listener, &chaos).await;
    client.write(TEXT, b"up").await;
    assert_eq!(server.read().await.unwrap(), (TEXT, b"up".to_vec()));
    server.write(TEXT, b"down").await;
    assert_eq!(client.read().await.unwrap(), (TEXT, b"down".to_vec()));
    drop((client, server));
    let closed = chaos.event("closed").await;
    assert_eq!(closed["connection"], 1);
    assert!(closed["up"].as_u64() > closed["down"].as_u64(), "{closed}");
    let (status, timeline) = chaos.ask("GET /timeline?after=1", None);
    let names = timeline.as_array().unwrap().iter().map(|event| event["event"].clone());
    // A machine without a free core adds pauses.
    let names: Vec<_> = names.filter(|name| name != "paused").collect();
    assert_eq!(
        (status, names),
        (200, vec!["opened".into(), "connected".into(), json!("handshake"), "closed".into()])
    );
}

#[tokio::test]
async fn a_signal_the_end_of_its_time_and_of_its_input_end_it_and_leave_no_socket() {
    for how in ["INT", "TERM", "QUIT", "--for", "stdin"] {
        let (listener, upstream) = listener().await;
        let arguments: &[&str] = match how {
            "--for" => &["--for", "300ms"],
            "stdin" => &["--until-stdin-closes"],
            _ => &[],
        };
        let mut chaos = Chaos::before(upstream, arguments);
        // With `--for` the program may have ended before.
        let held = StdStream::connect(chaos.address());
        match how {
            "--for" => {}
            "stdin" => drop(chaos.stdin.take()),
            name => signal(&chaos.process.0, name),
        }
        assert_eq!(ended(&mut chaos.process).await, Some(0), "{how}");
        assert!(chaos.event("ended").await["at"].is_number(), "{how}");
        if let Ok(mut held) = held {
            held.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            let end = held.read(&mut [0]).map_err(|error| error.kind());
            assert!(matches!(end, Ok(0) | Err(ErrorKind::ConnectionReset)), "{how}: {end:?}");
        }
        drop(listener);
    }
}

#[tokio::test]
async fn a_signal_ends_it_while_it_waits_for_a_scenario_from_a_pipe() {
    let arguments = ["chaos", "--upstream", "127.0.0.1:1", "--scenario", "/dev/stdin"];
    let mut process = Process(mainstay(&arguments).spawn().unwrap());
    let mut input = process.0.stdin.take().unwrap();
    // More than a pipe holds: it reads.
    input.write_all("# a comment\n".repeat(50_000).as_bytes()).unwrap();
    signal(&process.0, "TERM");
    assert_eq!(ended(&mut process).await, None, "no exit code: the signal ended it");
}

#[tokio::test]
async fn it_ends_when_the_program_that_started_it_is_killed() {
    let (reader, writer) = std::io::pipe().unwrap();
    // It stands for a test runner: it holds the other end of standard input, and has no chance to clean up.
    let mut runner = Process(Command::new("sleep").arg("1000").stdout(writer).spawn().unwrap());
    let upstream = nowhere().to_string();
    let mut command = mainstay(&["chaos", "--upstream", &upstream, "--api", "127.0.0.1:0", "--json"]);
    command.arg("--until-stdin-closes").stdin(reader);
    let mut chaos = Chaos::begin(command);
    runner.0.kill().unwrap();
    runner.0.wait().unwrap();
    assert_eq!(ended(&mut chaos.process).await, Some(0));
}

#[tokio::test]
async fn it_ends_when_its_output_is_not_read_any_more() {
    let upstream = nowhere().to_string();
    // There is no event, and so no write that could fail.
    for flag in ["--json", "--quiet"] {
        let mut process = Process(mainstay(&["chaos", "--upstream", &upstream, flag]).spawn().unwrap());
        let mut output = process.0.stdout.take().unwrap();
        output.read_exact(&mut [0; 1]).unwrap();
        drop(output);
        assert_eq!(ended(&mut process).await, Some(0), "{flag}");
    }
}

#[tokio::test]
async fn a_lack_of_open_files_is_named_once_as_its_own_and_the_api_can_end_it() {
    // Each client takes two: with one of the limits all files are in use, with the other one all but one.
    for limit in [48, 49] {
        let (server, upstream) = listener().await;
        let mut command = Command::new("sh");
        let script =
            format!("ulimit -n {limit} && exec \"$0\" chaos --api 127.0.0.1:0 --json --upstream {upstream}");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_mainstay")]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        without_variables(&mut command);
        let chaos = Chaos::begin(command);
        let clients: Vec<_> = (0..48).map(|_| StdStream::connect(chaos.address()).unwrap()).collect();
        let failed = chaos.event("accept-failed").await;
        assert!(failed["reason"].as_str().unwrap().contains("ulimit -n"), "{failed}");
        let count = async || {
            tokio::time::sleep(Duration::from_millis(500)).await;
            chaos.events("accept-failed").len()
        };
        assert_eq!(count().await, count().await, "it tries ten times a second");
        let is_its_own = |event: &Value| event["reason"].as_str().unwrap().contains("the proxy itself");
        assert!(chaos.events("upstream-failed").iter().all(is_its_own));
        assert_eq!(chaos.ask("DELETE /connections", None).0, 200);
        drop(clients);
        // It accepts nothing: what the other clients have opened to it would keep their files for ever.
        drop(server);
        until("every client was accepted", || chaos.events("opened").len() == 48).await;
    }
}

#[tokio::test]
async fn on_a_terminal_each_event_is_a_line_of_words() {
    let (listener, upstream) = listener().await;
    let address = upstream.to_string();
    let process = mainstay(&["chaos", "--upstream", &address, "--seed", "7", "--fault", "reset,after=100ms"])
        .spawn()
        .unwrap();
    let mut process = Process(process);
    let mut lines = BufReader::new(process.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first = lines.next().unwrap();
    assert!(first.starts_with("listening on ws://127.0.0.1:"), "{first}");
    assert!(first.ends_with(&format!(", upstream {upstream}, seed 7")), "{first}");
    assert_eq!(lines.next().unwrap(), "rule 1: reset,after=100ms");
    let listen = first.split_once("ws://").unwrap().1.split_once(',').unwrap().0.parse().unwrap();
    let (_, (_, mut server)) = tokio::join!(Frames::connect(listen, "/", ""), Frames::serve(&listener));
    assert!(server.read().await.is_err());
    let seen: Vec<String> = lines.by_ref().take(5).map(|line| line[11..].trim().to_owned()).collect();
    let expected = [
        "#1    opened by",
        "#1    connected to",
        "#1    is a WebSocket",
        "#1    FAULT reset (rule 1)",
        "#1    closed by reset",
    ];
    assert!(seen.iter().zip(expected).all(|(line, expected)| line.starts_with(expected)), "{seen:#?}");
}

#[test]
fn quiet_prints_the_addresses_and_no_event() {
    let upstream = nowhere().to_string();
    let output = run(&["chaos", "--upstream", &upstream, "--quiet", "--json", "--for", "50ms"], b"");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!((output.status.code(), text.lines().count()), (Some(0), 1), "{text}");
    assert!(text.contains("\"listen\":\"127.0.0.1:"), "{text}");
}

#[test]
fn the_list_has_every_fault_and_every_profile_and_prints_a_profile_as_a_file() {
    let list = |arguments: &[&str]| {
        let output = run(&[&["chaos", "--list"], arguments].concat(), b"");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let words = list(&[]);
    let all: Value = serde_json::from_str(&list(&["--json"])).unwrap();
    let names = |list: &str, field: &str| {
        all[list]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry[field].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let (faults, profiles) = (names("faults", "kind"), names("profiles", "name"));
    assert!(faults.contains(&"black-hole".to_owned()) && profiles.contains(&"elevator".to_owned()));
    for name in faults.iter().chain(&profiles) {
        assert!(words.contains(&format!("\n  {name} ")), "{name}");
    }
    let file = std::env::temp_dir().join(format!("mainstay-chaos-{}.toml", std::process::id()));
    std::fs::write(&file, list(&["deploy"])).unwrap();
    let upstream = nowhere().to_string();
    let path = file.to_str().unwrap();
    let output = run(&["chaos", "--upstream", &upstream, "--scenario", path, "--for", "1ms"], b"");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(
        String::from_utf8(output.stdout).unwrap().contains("rule 3: status,code=503,retry-after=1,at=13s")
    );
}

#[test]
fn a_mistake_is_one_line_that_names_the_flag_the_bound_and_what_to_write() {
    let taken = StdListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let wrong = |arguments: &[&str], expected: &[&str]| {
        check(&[&["chaos", "--upstream", "127.0.0.1:1"], arguments].concat(), expected);
    };
    check(&["chaos"], &["--upstream"]);
    let many = ["--fault", "reset"].repeat(1001);
    wrong(&many, &["--fault", "1001 rules", "at most 1000"]);
    for (upstream, expected) in [
        ("127.0.0.1", "no port"),
        ("127.0.0.1:0", "1 to 65535"),
        ("ftp://h:1", "ws://HOST:PORT"),
        ("wss://h:1", "TLS"),
        ("ws://h:1/path", "path"),
        ("::1:3000", "[::1]:3000"),
        ("[::1]", "[::1]:3000"),
        ("a server:1", "no host"),
        ("", "HOST:PORT"),
    ] {
        check(&["chaos", "--upstream", upstream], &["--upstream", expected]);
    }
    wrong(&["--listen", "8080"], &["--listen", "127.0.0.1:8080"]);
    wrong(&["--listen", &address], &["--listen", &address, "another program listens there", "or 0"]);
    wrong(&["--api", &address], &["--api", &address, "another program listens there", "or 0"]);
    wrong(&["--listen", "203.0.113.7:8123"], &["--listen 203.0.113.7:8123", "127.0.0.1"]);
    wrong(&["--api", "0.0.0.0:8474"], &["--api 0.0.0.0:8474", "127.0.0.1:8474", "--api-host NAME"]);
    wrong(&["--api-host", "chaos"], &["--api"]);
    wrong(&["--api", "127.0.0.1:0", "--api-host", "chaos:8474"], &["--api-host", "without a port"]);
    wrong(&["--profile", "elevater"], &["--profile", "\"elevater\" is no profile; write elevator"]);
    wrong(&["--fault", "rset"], &["--fault \"rset\"", "kind", "write reset"]);
    wrong(&["--fault", "stall,for=8"], &["--fault", "for: must be a time with a unit", "\"8s\""]);
    wrong(&["--fault", "reset,at=1s,after=1s"], &["after: contradicts at", "keep one"]);
    wrong(&["--seed", "x"], &["--seed", "for example 7"]);
    wrong(&["--seed", "9007199254740992"], &["--seed", "0 to 9007199254740991"]);
    wrong(&["--for", "soon"], &["--for", "500ms"]);
    wrong(&["--scenario", "/nowhere"], &["--scenario /nowhere", "readable file"]);
    wrong(&["--scenario", "/"], &["--scenario /", "readable file"]);
    wrong(&["--scenario", "/dev/zero"], &["--scenario /dev/zero", "1 MiB"]);
    wrong(&["extra"], &["extra"]);
    check(&["chaos", "--list", "elevater"], &["--list", "elevator"]);
    let file = std::env::temp_dir().join(format!("mainstay-chaos-wrong-{}.toml", std::process::id()));
    for (text, expected) in [
        (&b"[[fault]]\nkind = \"stall\"\nfor = 8\n"[..], "line 3: fault[0].for: must be a time with a unit"),
        (b"[[fault]\n", "line 1: no valid TOML"),
        (b"\xff", "UTF-8"),
    ] {
        std::fs::write(&file, text).unwrap();
        wrong(&["--scenario", file.to_str().unwrap()], &["--scenario", expected]);
    }
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn a_password_in_the_upstream_is_refused_and_not_repeated() {
    for upstream in ["ws://ann:secret@127.0.0.1:1", "ann:secret@127.0.0.1:1"] {
        let output = run(&["chaos", "--upstream", upstream], b"");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(!stderr.contains("secret") && stderr.contains("--upstream"), "{stderr}");
    }
}

#[tokio::test]
async fn a_command_with_a_mistake_is_answered_with_the_field_and_what_to_write() {
    let chaos = Chaos::before(nowhere(), &[]);
    for (request, body, status, expected) in [
        ("POST /faults", "{", 400, "no valid JSON"),
        ("POST /faults", "[]", 400, "must be an object"),
        ("POST /faults", "{}", 400, "kind: is missing"),
        ("POST /faults", r#"{"kind": "stall", "for": 8}"#, 400, "for: must be a time with a unit"),
        ("POST /faults", r#"{"kind": "stall", "connection": 9}"#, 404, "connection 9 is not open"),
        ("POST /faults", r#"{"kind": "stall", "target": "some"}"#, 400, "target: must be open, new or all"),
        ("DELETE /faults/9", "", 404, "fault 9 is not in force"),
        ("DELETE /faults/x", "", 400, "no number of a fault"),
        ("DELETE /faults/%ff", "", 400, "no number of a fault"),
        ("DELETE /faults?id=1", "", 400, "no parameters behind a ?"),
        ("DELETE /connections?id=1", "", 400, "no parameters behind a ?"),
        ("DELETE /connections/9", "", 404, "connection 9 is not open"),
        ("PUT /upstream", r#"{"upstream": "x"}"#, 400, "upstream: \"x\" has no port"),
        ("PUT /upstream", r#"{"upstream": "a:b@c:1"}"#, 400, "upstream: must have no user:password@"),
        ("PUT /upstream", r#"{"up": "x:1"}"#, 400, "write {\"upstream\":"),
        (
            "PUT /scenario",
            r#"{"fault": [{"kind": "rest"}]}"#,
            400,
            "fault[0].kind: \"rest\" is no fault; write reset",
        ),
        ("PUT /scenario", r#"{"seed": 1}"#, 400, "seed: is fixed"),
        ("GET /timeline?after=x", "", 400, "after: must be a number"),
        ("GET /timeline?since=1", "", 400, "since: unknown parameter; this path has after"),
        ("GET /nowhere", "", 404, "unknown path; there are GET /"),
        ("PUT /faults", "{}", 405, "no such method"),
    ] {
        let (got, answer) =
            chaos.ask_raw(request, "Host: localhost\r\nContent-Type: application/json\r\n", body);
        let error = answer["error"].as_str().unwrap_or_default();
        assert_eq!(got, status, "{request} {body}: {answer}");
        assert!(error.contains(expected) && error.lines().count() == 1, "{request} {body}: {answer}");
    }
}

#[tokio::test]
async fn a_page_of_a_browser_cannot_use_the_api() {
    let chaos = Chaos::before(nowhere(), &["--api-host", "chaos"]);
    let (reset, json) = (r#"{"kind": "reset"}"#, "Content-Type: application/json\r\n");
    let port = chaos.api().port();
    for (request, headers, expected) in [
        ("GET /", "Host: localhost\r\n".to_owned(), 200),
        ("GET /", format!("Host: 127.0.0.1:{port}\r\n"), 200),
        ("GET /", format!("Host: chaos:{port}\r\n"), 200),
        // A name that was rebound to this address.
        ("GET /timeline", "Host: rebound.example\r\n".to_owned(), 421),
        ("POST /faults", format!("Host: rebound.example\r\n{json}"), 421),
        ("GET http://rebound.example/", "Host: localhost\r\n".to_owned(), 421),
        ("GET /", String::new(), 400),
        // A form, or a script of another site without a preflight.
        ("POST /faults", "Host: localhost\r\nContent-Type: text/plain\r\n".to_owned(), 415),
        ("POST /faults", "Host: localhost\r\n".to_owned(), 415),
        ("POST /faults", format!("Host: localhost:{port}\r\nOrigin: http://evil.example\r\n{json}"), 403),
        ("POST /faults", format!("Host: localhost:{port}\r\nOrigin: http://localhost:3000\r\n{json}"), 403),
        ("POST /faults", format!("Host: localhost:{port}\r\nOrigin: null\r\n{json}"), 403),
        ("DELETE /faults", format!("Host: localhost:{port}\r\nOrigin: http://evil.example\r\n"), 403),
        // Its preflight gets no consent.
        ("OPTIONS /faults", format!("Host: localhost:{port}\r\nOrigin: http://evil.example\r\n"), 403),
        ("POST /faults", format!("Host: localhost\r\n{json}"), 201),
    ] {
        let body = if request.starts_with("POST") { reset } else { "" };
        let (status, answer) = chaos.ask_raw(request, &headers, body);
        assert_eq!(status, expected, "{request} {headers}: {answer}");
    }
}

#[tokio::test]
async fn a_body_of_more_than_a_mebibyte_is_refused() {
    let chaos = Chaos::before(nowhere(), &[]);
    let body = " ".repeat((1 << 20) + 1);
    let (status, answer) =
        chaos.ask_raw("PUT /scenario", "Host: localhost\r\nContent-Type: application/json\r\n", &body);
    assert!(status == 413 && answer["error"].as_str().unwrap().contains("1 MiB"), "{answer}");
}

#[tokio::test]
async fn new_connections_go_to_another_upstream_on_command() {
    let ((first, address), (second, other)) = (listener().await, listener().await);
    let chaos = Chaos::before(address, &[]);
    let (mut client, mut server) = pair(&first, &chaos).await;
    assert_eq!(chaos.ask("PUT /upstream", Some(json!({"upstream": other.to_string()}))).0, 200);
    let _second = pair(&second, &chaos).await;
    client.write(TEXT, b"still here").await;
    assert_eq!(server.read().await.unwrap().1, b"still here");
    let (status, overview) = chaos.ask("GET /", None);
    assert_eq!(
        (status, &overview["upstream"], &overview["accepted"]),
        (200, &json!(other.to_string()), &json!(2))
    );
}

#[test]
fn a_process_whose_standard_input_is_no_pipe_needs_no_flag() {
    let upstream = nowhere().to_string();
    let mut command = mainstay(&["chaos", "--upstream", &upstream, "--for", "100ms"]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
