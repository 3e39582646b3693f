//! The headers of W3C Trace Context and of Baggage, where the gateway records no spans: they pass as the client sent them.

use mainstay::Client;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::frames::Frames;
use crate::http::{Stage, head, rest};
use crate::support::Gateway;

const CONTEXT: [(&str, &str); 3] = [
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
    ("baggage", "userId=alice,serverNode=DF%2028"),
];

fn lines() -> String {
    CONTEXT.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect()
}

/// Checks that a request has the headers, each once.
fn has_them(request: &str) {
    for (name, value) in CONTEXT {
        let found: Vec<&str> = request
            .lines()
            .filter_map(|line| line.split_once(": "))
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect();
        assert_eq!(found, [value], "{name} in {request}");
    }
}

#[tokio::test]
async fn the_trace_of_a_plain_handshake_reaches_the_backend() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::in_front_of(listener.local_addr().unwrap(), &[]);
    let fields = lines();
    let (client, (asked, _backend)) =
        tokio::join!(Frames::connect(gateway.address(), "/", &fields), Frames::serve(&listener));
    assert!(client.0.starts_with("HTTP/1.1 101"), "{}", client.0);
    has_them(&asked);
}

#[tokio::test]
async fn the_trace_of_a_session_reaches_the_backend_with_each_dial() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::in_front_of(listener.local_addr().unwrap(), &["--on-backend-loss", "keep"]);
    let mut builder = Client::builder(&gateway.url).unwrap();
    for (name, value) in CONTEXT {
        builder = builder.header(name.parse().unwrap(), value.parse().unwrap());
    }
    let _client = builder.connect();
    let (first, backend) = Frames::serve(&listener).await;
    has_them(&first);
    drop(backend);
    has_them(&Frames::serve(&listener).await.0);
}

#[tokio::test]
async fn the_trace_of_a_plain_request_reaches_the_backend() {
    let stage = Stage::set(&[]).await;
    let request = format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{}\r\n", lines());
    let mut client = stage.client(&request).await;
    let mut backend = stage.accept().await;
    has_them(&head(&mut backend).await);
    backend.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 200"));
}

#[cfg(not(feature = "otlp"))]
#[test]
fn a_build_without_the_feature_otlp_refuses_its_settings() {
    let folder = crate::routes::Folder::new("untraced");
    let upstream = "[routes.all]\nupstream.addresses = [\"ws://127.0.0.1:1\"]\n";
    for (settings, line) in [
        ("[tracing]\nendpoint = \"http://127.0.0.1:4318\"\n", "mainstay.toml:2: tracing.endpoint: "),
        ("[tracing]\nratio = 0.5\n", "mainstay.toml:1: tracing.endpoint: "),
    ] {
        let path = folder.write("mainstay.toml", &format!("{settings}{upstream}"));
        for arguments in [["config", "check"], ["serve", "--config"]] {
            let output = crate::support::run(&[&arguments[..], &[path.to_str().unwrap()]].concat(), b"");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
            for words in [line, "built without the feature otlp", "remove [tracing]"] {
                assert!(stderr.contains(words), "{words}: {stderr}");
            }
        }
    }
}
