//! nginx and HAProxy in front of the gateway. Not every machine has them: `cargo xtask test proxies` installs them and runs
//! these tests.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use crate::client_limits::{limited, open_from};
use crate::frames::TEXT;
use crate::listeners::Folder;
use crate::proxy_protocol::{REQUEST, exchange, gateway};
use crate::support::until;

/// A proxy that was started for a test.
struct Proxy(Child);

impl Proxy {
    /// Starts a program.
    fn start(program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::inherit());
        let started = command.spawn();
        Self(started.unwrap_or_else(|error| panic!("{program}: {error}; run cargo xtask test proxies")))
    }

    /// Starts nginx with these sections of its configuration.
    fn nginx(folder: &Folder, sections: &str) -> Self {
        let file = folder.path("nginx.conf");
        let configuration = format!(
            "daemon off; master_process off; error_log stderr; pid /dev/null; {sections} events {{}}"
        );
        std::fs::write(&file, configuration).unwrap();
        Self::start("nginx", &["-p", &folder.path(""), "-c", &file])
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn listens(at: SocketAddr) {
    until("the proxy listens", || TcpStream::connect(at).is_ok()).await;
}

async fn is_forwarded(at: SocketAddr) {
    listens(at).await;
    let answer = exchange(at, REQUEST);
    assert!(answer.contains("x-forwarded-for: 127.0.0.1"), "{answer}");
}

#[tokio::test]
#[ignore = "requires nginx: cargo xtask test proxies"]
async fn behind_nginx_each_client_has_the_limit_of_its_own_address() {
    let (folder, settings) = (Folder::new("nginx"), crate::routes::Folder::new("nginx"));
    let others = "[limits]\nconnections-per-address = 1\n[proxies]\ntrusted = [\"127.0.0.1\"]";
    let gateway = limited(&settings, "", others).await;
    let (at, to) = (free(), gateway.address());
    let _nginx = Proxy::nginx(
        &folder,
        &format!(
            "http {{ access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f;
             uwsgi_temp_path u; scgi_temp_path s;
             server {{ listen {at}; location / {{ proxy_pass http://{to}; proxy_http_version 1.1;
             proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;
             proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }} }}"
        ),
    );
    listens(at).await;
    let (status, _, mut first) = open_from("127.0.0.2", at, "").await;
    assert_eq!(status, "101");
    let (status, _, mut other) = open_from("127.0.0.3", at, "").await;
    assert_eq!(status, "101", "another client of the same proxy");
    for claimed in ["", "X-Forwarded-For: 203.0.113.9\r\n"] {
        let (status, head, _) = open_from("127.0.0.2", at, claimed).await;
        assert!(status == "429" && head.contains("retry-after: "), "{claimed}: {head}");
    }
    for client in [&mut first, &mut other] {
        client.write(TEXT, b"x").await;
        assert_eq!(client.text().await.as_deref(), Some("x"));
    }
    assert_eq!(gateway.metric("refused_total{reason=\"address\"}"), 2.0);
    until("it is logged", || gateway.log().contains("clients are refused by a limit")).await;
}

#[tokio::test]
#[ignore = "requires nginx with its module stream: cargo xtask test proxies"]
async fn nginx_forwards_tcp_with_its_header_over_tcp_and_over_a_unix_socket() {
    let folder = Folder::new("proxy-nginx");
    let socket = folder.path("a.sock");
    let gateway = gateway("v1", &["--listen", &format!("unix:{socket}?mode=666")]);
    let (over_tcp, over_unix, to) = (free(), free(), gateway.address());
    // Where it is a module, the step names its file.
    let load =
        std::env::var("NGINX_STREAM").map_or_else(|_| String::new(), |at| format!("load_module {at};"));
    let _nginx = Proxy::nginx(
        &folder,
        &format!(
            "{load} stream {{
             server {{ listen {over_tcp}; proxy_pass {to}; proxy_protocol on; }}
             server {{ listen {over_unix}; proxy_pass unix:{socket}; proxy_protocol on; }} }}"
        ),
    );
    is_forwarded(over_tcp).await;
    is_forwarded(over_unix).await;
    assert_eq!(gateway.metric("proxy_headers_refused_total"), 0.0);
}

#[tokio::test]
#[ignore = "requires HAProxy: cargo xtask test proxies"]
async fn haproxy_forwards_tcp_with_either_header_and_its_checks_are_not_counted() {
    let folder = Folder::new("proxy-haproxy");
    let gateway = gateway("any", &[]);
    let (one, two, to, file) = (free(), free(), gateway.address(), folder.path("haproxy.cfg"));
    let configuration = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
         listen one\n bind {one}\n server a {to} send-proxy check inter 100ms\n\
         listen two\n bind {two}\n server a {to} send-proxy-v2 check inter 100ms\n"
    );
    std::fs::write(&file, configuration).unwrap();
    let _haproxy = Proxy::start("haproxy", &["-db", "-f", &file]);
    is_forwarded(one).await;
    is_forwarded(two).await;
    assert_eq!(gateway.metric("proxy_headers_refused_total"), 0.0);
}
