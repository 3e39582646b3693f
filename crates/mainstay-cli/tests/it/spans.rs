//! Spans of a real gateway, at a small collector that decodes what it receives.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::routing::post;
use mainstay::{Client, Message};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::frames::{CLOSE, Frames, TEXT};
use crate::routes::Folder;
use crate::support::{Gateway, Proxy, mainstay, run, until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const STATE: &str = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE";

/// The headers of a client's trace.
fn context(flags: &str) -> String {
    format!("traceparent: 00-{TRACE}-{CALLER}-{flags}\r\ntracestate: {STATE}\r\n")
}

/// What a span says, in words.
#[derive(Debug, Clone)]
struct Seen {
    name: String,
    kind: SpanKind,
    trace: String,
    id: String,
    parent: String,
    state: String,
    /// The trace and the id of each span link.
    links: Vec<(String, String)>,
    is_error: bool,
    is_in_order: bool,
    attributes: BTreeMap<String, String>,
}

impl Seen {
    fn of(span: &Span) -> Self {
        Self {
            name: span.name.clone(),
            kind: span.kind(),
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            state: span.trace_state.clone(),
            links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
            is_error: span.status.as_ref().is_some_and(|status| status.code == 2),
            is_in_order: span.start_time_unix_nano <= span.end_time_unix_nano,
            attributes: words(&span.attributes),
        }
    }

    fn says(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

fn words(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let word = |pair: &KeyValue| {
        let value = match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
            Some(Value::StringValue(text)) => text.clone(),
            Some(Value::IntValue(number)) => number.to_string(),
            other => format!("{other:?}"),
        };
        (pair.key.clone(), value)
    };
    attributes.iter().map(word).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A collector that accepts everything, or answers with a status.
#[derive(Clone)]
struct Collector {
    address: SocketAddr,
    status: Arc<AtomicU16>,
    received: Arc<Mutex<Vec<(HeaderMap, ExportTraceServiceRequest)>>>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let collector = Self { address, status: Arc::new(AtomicU16::new(200)), received: Arc::default() };
        let taking = collector.clone();
        let app = Router::new().route(
            "/v1/traces",
            post(move |headers: HeaderMap, body: Bytes| async move { taking.take(headers, &body) }),
        );
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        collector
    }

    fn take(&self, headers: HeaderMap, body: &[u8]) -> (axum::http::StatusCode, Vec<u8>) {
        let status = axum::http::StatusCode::from_u16(self.status.load(Relaxed)).unwrap();
        let mut answer = ExportTraceServiceResponse::default();
        match status.as_u16() {
            200 => self
                .received
                .lock()
                .unwrap()
                .push((headers, ExportTraceServiceRequest::decode(body).unwrap())),
            202 => {
                let partial = ExportTracePartialSuccess { rejected_spans: 1, ..Default::default() };
                answer.partial_success = Some(partial);
            }
            _ => {}
        }
        (status, answer.encode_to_vec())
    }

    fn answers(&self, status: u16) {
        self.status.store(status, Relaxed);
    }

    fn spans(&self) -> Vec<Seen> {
        let received = self.received.lock().unwrap();
        let resources = received.iter().flat_map(|(_, request)| &request.resource_spans);
        let spans = resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans);
        spans.map(Seen::of).collect()
    }

    /// Waits for a span.
    async fn span(&self, what: &str, is_it: impl Fn(&Seen) -> bool) -> Seen {
        until(what, || self.spans().iter().any(&is_it)).await;
        let span = self.spans().into_iter().find(is_it).unwrap();
        assert!(span.is_in_order, "{span:?}");
        span
    }

    async fn named(&self, name: &str) -> Seen {
        self.span(name, |span| span.name == name).await
    }
}

/// A gateway that sends its spans to a collector, with these settings and variables.
fn traced(
    collector: SocketAddr,
    backend: SocketAddr,
    settings: &str,
    variables: &[(&str, &str)],
) -> (Gateway, Folder) {
    let folder = Folder::new("traced");
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\nadmin.listen = \"127.0.0.1:0\"\n[tracing]\nendpoint = \"http://{collector}\"\n{settings}\n\
         [routes.chat]\npath = \"/chat\"\nupstream.addresses = [\"ws://{backend}\"]\nprofile.on-backend-loss = \"keep\"\n"
    );
    let file = folder.write("mainstay.toml", &text);
    let mut command = mainstay(&["serve", "--config", file.to_str().unwrap()]);
    for (variable, _) in std::env::vars_os() {
        if variable.as_encoded_bytes().starts_with(b"OTEL_") {
            command.env_remove(variable);
        }
    }
    command.envs(variables.iter().copied());
    (Gateway::begin(command), folder)
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Returns the values of a header in the head of a request.
fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

/// Returns the trace and the span of the only `traceparent`, which is sampled.
fn parent(head: &str) -> (String, String) {
    let found = values(head, "traceparent");
    let [only] = found.as_slice() else { panic!("{found:?} in {head}") };
    let parts: Vec<&str> = only.split('-').collect();
    let ["00", trace, span, "01"] = parts.as_slice() else { panic!("{only}") };
    ((*trace).to_owned(), (*span).to_owned())
}

/// Opens a plain WebSocket; returns the head that the backend received, and both ends.
async fn plain(gateway: &Gateway, listener: &TcpListener, fields: &str) -> (String, Frames, Frames) {
    let (client, backend) = tokio::join!(
        Frames::connect(gateway.address(), "/chat/7?token=s3cret", fields),
        Frames::serve(listener)
    );
    assert!(client.0.starts_with("HTTP/1.1 101"), "{}", client.0);
    (backend.0, client.1, backend.1)
}

/// Sends a plain request and answers it; returns the head that the backend received, and the response.
async fn request(gateway: &Gateway, listener: &TcpListener, fields: &str, answer: &str) -> (String, String) {
    let mut client = TcpStream::connect(gateway.address()).await.unwrap();
    let request = format!(
        "GET /chat/page?token=s3cret HTTP/1.1\r\nHost: example.com:81\r\nConnection: close\r\n{fields}\r\n"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let mut backend = loop {
        let (stream, _) = listener.accept().await.unwrap();
        // A probe sends nothing.
        if stream.peek(&mut [0]).await.is_ok_and(|count| count > 0) {
            break stream;
        }
    };
    let asked = crate::frames::head(&mut backend).await.unwrap();
    backend.write_all(answer.as_bytes()).await.unwrap();
    drop(backend);
    let mut response = String::new();
    // A response that ends early may end with a reset.
    let _ = client.read_to_string(&mut response).await;
    (asked, response)
}

const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";

#[tokio::test]
async fn a_plain_handshake_its_dial_and_its_connections_are_spans_of_the_clients_trace() {
    let (collector, (listener, backend)) = (Collector::start().await, listen().await);
    let (gateway, _folder) = traced(collector.address, backend, "sampled-flag = \"all\"", &[]);
    let (asked, mut client, mut served) = plain(&gateway, &listener, &context("01")).await;
    served.write(CLOSE, &4000_u16.to_be_bytes()).await;
    while client.read().await.is_ok_and(|(first, _)| first != CLOSE) {}
    client.write(CLOSE, &4000_u16.to_be_bytes()).await;

    let opening = collector.named("GET /chat/*").await;
    assert_eq!((opening.trace.as_str(), opening.parent.as_str()), (TRACE, CALLER));
    assert_eq!((opening.kind, opening.state.as_str(), opening.is_error), (SpanKind::Server, STATE, false));
    for (name, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "101"),
        ("http.route", "/chat/*"),
        ("url.path", "/chat/7"),
        ("url.scheme", "http"),
        ("client.address", "127.0.0.1"),
        ("network.protocol.version", "1.1"),
        ("server.address", "x"),
        ("mainstay.route", "chat"),
    ] {
        assert_eq!(opening.says(name), value, "{name}: {opening:?}");
    }
    let dial = collector.named("dial").await;
    assert_eq!((dial.kind, &dial.trace, &dial.parent), (SpanKind::Client, &opening.trace, &opening.id));
    assert_eq!(dial.says("server.port"), backend.port().to_string());
    assert_eq!((dial.says("mainstay.attempts"), dial.says("http.response.status_code")), ("1", "101"));
    assert_eq!(parent(&asked), (dial.trace.clone(), dial.id.clone()));
    assert_eq!(values(&asked, "tracestate"), [STATE]);

    let link = collector.named("link").await;
    assert_eq!((&link.trace, &link.parent), (&opening.trace, &dial.id));
    assert_eq!((link.says("mainstay.cause"), link.says("mainstay.close_code")), ("closed", "4000"));
    assert!(!link.is_error, "{link:?}");
    let attach = collector.named("attach").await;
    assert_eq!((&attach.trace, &attach.parent), (&opening.trace, &opening.id));
    assert_eq!((attach.says("mainstay.cause"), attach.says("mainstay.close_code")), ("closed", "4000"));
    let said = format!("{:?}", collector.spans());
    assert!(!said.contains("s3cret"), "no span has the query: {said}");
    assert_eq!(collector.spans().len(), 4);
}

#[tokio::test]
async fn each_connection_of_a_session_and_of_its_link_is_a_span_that_names_the_session() {
    let (collector, (listener, backend)) = (Collector::start().await, listen().await);
    let (gateway, _folder) = traced(collector.address, backend, "sampled-flag = \"all\"", &[]);
    let cable = Proxy::to(gateway.address());
    let mut builder = Client::builder(&format!("ws://{}/chat", cable.address)).unwrap();
    for line in context("01").lines() {
        let (name, value) = line.split_once(": ").unwrap();
        builder = builder.header(name.parse().unwrap(), value.parse().unwrap());
    }
    let mut client = builder.connect();
    let (first, mut served) = Frames::serve(&listener).await;
    served.write(TEXT, b"1").await;
    assert_eq!(client.recv().await, Some(Message::text("1")));
    let session = client.id().unwrap().to_string();

    let opening = collector.named("GET /chat/*").await;
    let dial = collector.named("dial").await;
    assert_eq!((&opening.trace, &dial.trace, &dial.parent), (&TRACE.to_owned(), &opening.trace, &opening.id));
    assert_eq!(dial.says("mainstay.session.id"), session);
    assert_eq!(parent(&first), (dial.trace.clone(), dial.id.clone()));

    // The client's connection is lost, and it resumes.
    cable.cut();
    let lost = collector.named("attach").await;
    assert_eq!((&lost.trace, &lost.parent), (&opening.trace, &opening.id));
    assert_eq!((lost.says("mainstay.epoch"), lost.says("mainstay.cause")), ("1", "lost"));
    assert_eq!(lost.says("mainstay.session.id"), session);
    cable.restore();
    client.probe_now();
    served.write(TEXT, b"2").await;
    assert_eq!(client.recv().await, Some(Message::text("2")));

    // The connection to the backend is lost, and the link dials again: in a trace of its own.
    drop(served);
    let (second, _served) = Frames::serve(&listener).await;
    let link = collector.named("link").await;
    assert_eq!((&link.trace, &link.parent, link.is_error), (&opening.trace, &dial.id, true));
    assert!(["ended", "reset"].contains(&link.says("mainstay.cause")), "{link:?}");
    let again = collector.span("the second dial", |span| span.name == "dial" && span.id != dial.id).await;
    assert_ne!(again.trace, opening.trace);
    assert_eq!(again.links, [(opening.trace.clone(), opening.id.clone())]);
    assert_eq!(again.says("mainstay.session.id"), session);
    assert_eq!(parent(&second), (again.trace.clone(), again.id.clone()));
    assert_eq!(values(&second, "tracestate"), [""; 0], "what is known of another trace");

    client.close(mainstay::CloseCode::NORMAL, "").await;
    let last = collector.span("the second attach", |span| span.says("mainstay.epoch") == "2").await;
    assert_eq!((last.says("mainstay.cause"), last.says("mainstay.session.id")), ("client", session.as_str()));
    assert_eq!(last.links, [(opening.trace.clone(), opening.id.clone())]);
}

#[tokio::test]
async fn a_plain_request_is_one_span_up_to_the_end_of_its_response() {
    let (collector, (listener, backend)) = (Collector::start().await, listen().await);
    let (gateway, _folder) = traced(collector.address, backend, "sampled-flag = \"all\"", &[]);
    let (asked, response) = request(&gateway, &listener, &context("01"), ANSWER).await;
    assert!(response.ends_with("hello"), "{response}");
    let span = collector.named("GET /chat/*").await;
    assert_eq!(parent(&asked), (TRACE.to_owned(), span.id.clone()));
    assert_eq!(values(&asked, "tracestate"), [STATE]);
    assert_eq!((span.parent.as_str(), span.is_error), (CALLER, false));
    assert_eq!((span.says("http.response.status_code"), span.says("error.type")), ("200", ""));
    assert_eq!((span.says("server.address"), span.says("server.port")), ("example.com", "81"));

    let failing = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    request(&gateway, &listener, "", failing).await;
    let failed = collector.span("a failed one", |span| span.says("error.type") == "503").await;
    assert!(failed.is_error && failed.parent.is_empty() && failed.trace != TRACE, "{failed:?}");

    // The response ends early.
    let broken = ANSWER.replace("5\r\n", "50\r\n");
    request(&gateway, &listener, "", &broken).await;
    let broken = collector.span("a broken one", |span| span.says("error.type") == "incomplete").await;
    assert!(broken.is_error && broken.says("http.response.status_code") == "200", "{broken:?}");
}

#[tokio::test]
async fn a_refused_handshake_and_a_backend_that_is_away_are_failed_spans() {
    let (collector, (listener, backend)) = (Collector::start().await, listen().await);
    let (gateway, _folder) = traced(collector.address, backend, "", &[]);
    let refusing = async {
        let (mut stream, _) = loop {
            let accepted = listener.accept().await.unwrap();
            if accepted.0.peek(&mut [0]).await.is_ok_and(|count| count > 0) {
                break accepted;
            }
        };
        crate::frames::head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    };
    let ((head, _), ()) = tokio::join!(Frames::connect(gateway.address(), "/chat", ""), refusing);
    assert!(head.starts_with("HTTP/1.1 401"), "{head}");
    let dial = collector.named("dial").await;
    let opening = collector.span("the opening", |span| span.id == dial.parent).await;
    assert_eq!((dial.says("error.type"), dial.is_error), ("401", true));
    assert_eq!((opening.says("http.response.status_code"), opening.is_error), ("401", false));

    // A client that goes while its backend does not answer.
    let mut client = TcpStream::connect(gateway.address()).await.unwrap();
    let request = "GET /chat HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut silent, _) = listener.accept().await.unwrap();
    crate::frames::head(&mut silent).await.unwrap();
    drop(client);
    let gone = collector.span("a cancelled dial", |span| span.says("error.type") == "cancelled").await;
    assert_eq!((gone.name.as_str(), gone.is_error), ("dial", true));
}

#[tokio::test]
async fn the_ratio_decides_unless_a_trusted_proxy_sends_the_flag() {
    let (collector, (listener, backend)) = (Collector::start().await, listen().await);
    let trusting = "\n[proxies]\ntrusted = [\"127.0.0.1\"]";
    // The settings, the flag that the client sends, and whether the request is traced.
    for (settings, flags, is_traced) in [
        ("ratio = 0".to_owned(), "01", false),
        ("ratio = 1".to_owned(), "00", true),
        (format!("ratio = 0{trusting}"), "01", true),
        (format!("ratio = 1{trusting}"), "00", false),
        (format!("ratio = 0\nsampled-flag = \"none\"{trusting}"), "01", false),
        ("ratio = 0\nsampled-flag = \"all\"".to_owned(), "01", true),
        ("ratio = 1\nsampled-flag = \"all\"".to_owned(), "00", false),
    ] {
        let before = collector.spans().len();
        let (mut gateway, _folder) = traced(collector.address, backend, &settings, &[]);
        let (asked, _) = request(&gateway, &listener, &context(flags), ANSWER).await;
        let sent = format!("00-{TRACE}-{CALLER}-{flags}");
        assert_eq!(values(&asked, "tracestate"), [STATE]);
        match is_traced {
            true => assert_eq!(parent(&asked).0, TRACE, "{settings}"),
            false => assert_eq!(values(&asked, "traceparent"), [sent.as_str()], "{settings}"),
        }
        // The end of the process flushes.
        gateway.signal("TERM");
        assert_eq!(gateway.ended().await, Some(0), "{}", gateway.log());
        assert_eq!(collector.spans().len() - before, usize::from(is_traced), "{settings}");
    }
}

#[tokio::test]
async fn a_request_that_is_not_sampled_gets_no_trace_and_loses_an_invalid_one() {
    let (collector, (listener, backend)) = (Collector::start().await, listen().await);
    let (gateway, _folder) = traced(collector.address, backend, "ratio = 0\nsampled-flag = \"all\"", &[]);
    let wrong =
        format!("traceparent: 00-{TRACE}-0000000000000000-01\r\ntracestate: {STATE}\r\nbaggage: a=b\r\n");
    for (fields, baggage) in [("", &[][..]), (&wrong, &["a=b"])] {
        let (asked, ..) = plain(&gateway, &listener, fields).await;
        let (over_http, _) = request(&gateway, &listener, fields, ANSWER).await;
        for asked in [asked, over_http] {
            assert_eq!(values(&asked, "traceparent"), [""; 0], "{asked}");
            assert_eq!(values(&asked, "tracestate"), [""; 0], "{asked}");
            assert_eq!(values(&asked, "baggage"), baggage, "{asked}");
        }
    }
    // Where it is sampled, an invalid trace starts again.
    let (gateway, _folder) = traced(collector.address, backend, "", &[]);
    let (asked, _) = request(&gateway, &listener, &wrong, ANSWER).await;
    let span = collector.named("GET /chat/*").await;
    assert_eq!(parent(&asked), (span.trace.clone(), span.id.clone()));
    assert!(span.trace != TRACE && span.parent.is_empty() && span.state.is_empty(), "{span:?}");
    assert_eq!(collector.spans().len(), 1);
}

#[tokio::test]
async fn spans_wait_for_a_collector_that_is_away_and_are_dropped_beyond_the_queue() {
    let (collector, (listener, backend)) = (Collector::start().await, listen().await);
    let cable = Proxy::to(collector.address);
    cable.cut();
    let (gateway, _folder) = traced(cable.address, backend, "", &[]);
    // 404 of the route's own backend would do: the gateway answers TRACE itself, and a span it is.
    let mut client = TcpStream::connect(gateway.address()).await.unwrap();
    let (mut reading, mut writing) = client.split();
    let many = 3000;
    let asking = async {
        let request = "TRACE /chat HTTP/1.1\r\nHost: x\r\n\r\n";
        for _ in 0..many {
            writing.write_all(request.as_bytes()).await.unwrap();
        }
    };
    let answered = async {
        let (mut seen, mut count) = (Vec::new(), 0);
        while count < many {
            assert_ne!(reading.read_buf(&mut seen).await.unwrap(), 0, "{}", gateway.log());
            let text = String::from_utf8_lossy(&seen).into_owned();
            count += text.matches("HTTP/1.1 405").count();
            // What is left may be the beginning of a status line.
            let rest = text.rfind("HTTP/1.1 405").map_or(0, |at| at + "HTTP/1.1 405".len());
            seen.drain(..rest);
        }
    };
    tokio::join!(asking, answered);
    let away = "the collector of spans cannot be reached";
    until("one line", || gateway.log().contains(away)).await;
    until("spans are dropped", || gateway.metric("spans_total{outcome=\"dropped\"}") > 0.0).await;
    until("a line with their count", || gateway.log().contains("spans were dropped")).await;
    assert_eq!(gateway.metric("spans_total{outcome=\"exported\"}"), 0.0);
    // Clients are served meanwhile.
    request(&gateway, &listener, "", ANSWER).await;

    cable.restore();
    until("the spans that waited arrive", || collector.spans().len() >= 2048).await;
    until("one line about that", || gateway.log().contains("the collector takes spans again")).await;
    assert_eq!(gateway.log().matches(away).count(), 1, "{}", gateway.log());
    until("each span is counted", || {
        let counted = |outcome| gateway.metric(&format!("spans_total{{outcome=\"{outcome}\"}}"));
        counted("exported") == collector.spans().len() as f64
            && counted("exported") + counted("dropped") == (many + 1) as f64
    })
    .await;
    drop(listener);
}

#[tokio::test]
async fn spans_that_the_collector_refuses_are_counted_and_logged_once() {
    let (collector, (listener, backend)) = (Collector::start().await, listen().await);
    let (gateway, _folder) = traced(collector.address, backend, "", &[]);
    for (status, refused) in [(400, 1.0), (401, 2.0), (202, 3.0)] {
        collector.answers(status);
        request(&gateway, &listener, "", ANSWER).await;
        gateway.wait_for_metric("spans_total{outcome=\"refused\"}", refused).await;
    }
    collector.answers(503);
    request(&gateway, &listener, "", ANSWER).await;
    until("the collector is away", || gateway.log().contains("why=\"status 503\"")).await;
    collector.answers(200);
    collector.named("GET /chat/*").await;
    gateway.wait_for_metric("spans_total{outcome=\"exported\"}", 1.0).await;
    assert_eq!(gateway.log().matches("the collector refuses spans").count(), 1, "{}", gateway.log());
}

#[tokio::test]
async fn a_collector_that_never_answers_does_not_hold_up_the_end_of_the_process() {
    let (silent, (listener, backend)) = (listen().await, listen().await);
    let (mut gateway, _folder) = traced(silent.1, backend, "", &[]);
    request(&gateway, &listener, "", ANSWER).await;
    let (_connection, _) = silent.0.accept().await.unwrap();
    request(&gateway, &listener, "", ANSWER).await;
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await, Some(0));
    until("a line about it", || gateway.log().contains("did not take in time")).await;
}

#[tokio::test]
async fn the_collector_learns_the_service_and_gets_the_headers_that_are_set() {
    let (collector, (listener, backend)) = (Collector::start().await, listen().await);
    let folder = Folder::new("secret");
    let secret = folder.write("token", "Bearer t0ken\n");
    let settings = format!("headers = {{ Authorization = \"@{}\" }}", secret.display());
    let variables = [
        ("OTEL_SERVICE_NAME", "edge"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b,authorization=other"),
    ];
    // The variables, the settings, the expected name and the headers.
    let plainly =
        [("mainstay", [None, None]), ("edge", [Some("Bearer t0ken"), Some("a b")]), ("gateway", [None; 2])];
    for ((name, headers), (settings, variables)) in plainly.into_iter().zip([
        ("", &[][..]),
        (&settings, &variables),
        ("service-name = \"gateway\"", &variables[..1]),
    ]) {
        let (gateway, _folder) = traced(collector.address, backend, settings, variables);
        request(&gateway, &listener, "", ANSWER).await;
        until("the spans arrive", || !collector.received.lock().unwrap().is_empty()).await;
        let (fields, request) = collector.received.lock().unwrap().pop().unwrap();
        let value = |name: &str| fields.get(name).map(|value| value.to_str().unwrap());
        assert_eq!([value("authorization"), value("x-tenant")], headers, "{fields:?}");
        assert_eq!(value("content-type"), Some("application/x-protobuf"));
        let resource = words(&request.resource_spans[0].resource.as_ref().unwrap().attributes);
        let says = |name: &str| resource.get(name).map_or("", String::as_str);
        assert_eq!((says("service.name"), says("service.version")), (name, env!("CARGO_PKG_VERSION")));
        assert_eq!(says("service.instance.id").len(), 36);
        let stage = if variables.len() > 1 { "staging" } else { "" };
        assert_eq!(says("deployment.environment.name"), stage);
        let scope = &request.resource_spans[0].scope_spans[0].scope;
        assert_eq!(scope.as_ref().map(|scope| scope.name.as_str()), Some("mainstay"));
    }
}

#[test]
fn wrong_settings_are_one_line_each() {
    let folder = Folder::new("mistraced");
    let upstream = "\n[routes.all]\nupstream.addresses = [\"ws://127.0.0.1:1\"]\n";
    let endpoint = "endpoint = \"http://127.0.0.1:4318\"\n";
    for (settings, expected) in [
        ("ratio = 0.5".to_owned(), "tracing.endpoint: is missing"),
        ("endpoint = \"collector\"".to_owned(), ":2: tracing.endpoint: "),
        ("endpoint = \"http://user:s3cret@collector\"".to_owned(), "has credentials, which are not sent"),
        (format!("{endpoint}ratio = 1.5"), ":3: tracing.ratio: must be between 0 and 1"),
        (format!("{endpoint}ratio = \"much\""), ":3: tracing.ratio: "),
        (format!("{endpoint}sampled-flag = \"yes\""), ":3: tracing.sampled-flag: "),
        (format!("{endpoint}service-name = \" \""), ":3: tracing.service-name: must have 1 to 255 bytes"),
        (format!("{endpoint}headers = {{ Authorization = \"@/no/such\" }}"), "/no/such: "),
        (format!("{endpoint}headers = {{ Host = \"s3cret\" }}"), ":3: tracing.headers: "),
        (format!("{endpoint}ca-file = \"/no/such\""), ":3: tracing.ca-file: "),
        (format!("{endpoint}sample = 1"), ":3: tracing.sample: unknown key"),
    ] {
        let file = folder.write("mainstay.toml", &format!("[tracing]\n{settings}{upstream}"));
        let output = run(&["config", "check", file.to_str().unwrap()], b"");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{settings}: {stderr}");
        assert!(stderr.contains(expected) && !stderr.contains("s3cret"), "{settings}: {stderr}");
    }
    let file = folder
        .write("mainstay.toml", &format!("[tracing]\n{endpoint}headers = {{ A = \"s3cret\" }}{upstream}"));
    let mut show = mainstay(&["config", "show", file.to_str().unwrap()]);
    let output = show.env("MAINSTAY_TRACING__RATIO", "0.25").output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("tracing.ratio = 0.25") && !shown.contains("s3cret"), "{shown}");
}

#[tokio::test]
async fn a_variable_of_opentelemetry_that_is_wrong_ends_the_start_with_one_line() {
    let folder = Folder::new("mistraced");
    let text = "listen = [\"127.0.0.1:0\"]\n[tracing]\nendpoint = \"http://127.0.0.1:4318\"\n\
                [routes.all]\nupstream.addresses = [\"ws://127.0.0.1:1\"]\n";
    let file = folder.write("mainstay.toml", text);
    let mut serve = mainstay(&["serve", "--config", file.to_str().unwrap()]);
    let output = serve.env("OTEL_EXPORTER_OTLP_HEADERS", "s3cret").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("OTEL_EXPORTER_OTLP_HEADERS: must be NAME=VALUE"), "{stderr}");
    assert!(!output.status.success() && !stderr.contains("s3cret"), "{stderr}");
}
