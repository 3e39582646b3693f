//! The keys of an issuer behind a URL: how they rotate, for how long they are used, and what a hostile server can not do.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::response::IntoResponse;
use axum::routing::get;
use http::StatusCode;
use mainstay::Server;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::frames::Frames;
use crate::guarded::{Folder, Guarded, bearer, serve, telling_backend};
use crate::support::until;
use crate::tokens::{RSA_PUBLIC, Signer, claims_of};

/// A JWKS server whose answer a test changes.
#[derive(Clone, Default)]
struct Issuer {
    keys: Arc<Mutex<Option<Value>>>,
    fetches: Arc<AtomicUsize>,
}

impl Issuer {
    fn router(&self) -> Router<Server> {
        let issuer = self.clone();
        Router::new().route(
            "/jwks",
            get(move || {
                let issuer = issuer.clone();
                async move {
                    issuer.fetches.fetch_add(1, Relaxed);
                    let keys = issuer.keys.lock().unwrap().clone();
                    keys.map_or(StatusCode::INTERNAL_SERVER_ERROR.into_response(), |keys| {
                        keys.to_string().into_response()
                    })
                }
            }),
        )
    }

    fn publish(&self, keys: &[Value]) {
        *self.keys.lock().unwrap() = Some(json!({"keys": keys}));
    }

    fn fail(&self) {
        *self.keys.lock().unwrap() = None;
    }
}

#[tokio::test]
async fn keys_of_a_url_rotate_by_unknown_names_and_stay_in_use_while_the_issuer_is_away() {
    let (issuer, old, new) = (Issuer::default(), Signer::ec(), Signer::ed());
    let address = serve(issuer.router()).await;
    let settings = format!(
        "[routes.chat.credentials.jwt]\njwks-url = \"http://{address}/jwks\"\njwks-refresh = \"10s\"\nalgorithms = [\"ES256\", \"EdDSA\"]"
    );
    // The issuer answers nothing yet: it is not the client's fault.
    let guarded = Guarded::start(telling_backend().await, Folder::new(), &settings);
    until("it was asked", || issuer.fetches.load(Relaxed) > 0).await;
    let of_old = bearer(&old.token_of("old", &claims_of("alice")));
    issuer.publish(&[old.jwk("old")]);
    // It waits for the keys, which are fetched again after a second.
    let (_, _first) = guarded.told("/chat", &of_old).await;
    let of_new = bearer(&new.token_of("new", &claims_of("alice")));
    issuer.publish(&[old.jwk("old"), new.jwk("new")]);
    let waiting = async {
        loop {
            let (head, _) = guarded.plain("/chat", &of_new).await;
            if head.starts_with("HTTP/1.1 101") {
                return;
            }
            // Fetched less than ten seconds ago: not for good.
            assert!(
                head.starts_with("HTTP/1.1 503") && head.to_lowercase().contains("retry-after: "),
                "{head}"
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap();
    let (_, _old) = guarded.told("/chat", &of_old).await;
    let before = issuer.fetches.load(Relaxed);
    for number in 0..20 {
        let unknown = bearer(&new.token_of(&format!("unknown-{number}"), &claims_of("mallory")));
        let (head, _) = guarded.plain("/chat", &unknown).await;
        assert!(head.starts_with("HTTP/1.1 503") || head.starts_with("HTTP/1.1 401"), "{head}");
    }
    assert!(issuer.fetches.load(Relaxed) <= before + 1, "anyone may send such tokens");
    issuer.fail();
    // The log comes through a pipe, later than the figures.
    let away = || guarded.gateway.log().matches("the issuer's keys cannot be fetched; those").count();
    until("it is away", || away() == 2).await;
    let (_, _second) = guarded.told("/chat", &of_old).await;
    issuer.publish(&[new.jwk("new")]);
    until("it is back", || guarded.gateway.log().matches("the issuer's keys are fetched again").count() == 2)
        .await;
    assert_eq!(away(), 2, "one line each time it goes: {}", guarded.gateway.log());
    let (head, _) = guarded.plain("/chat", &of_old).await;
    assert!(
        head.starts_with("HTTP/1.1 401") || head.starts_with("HTTP/1.1 503"),
        "the old key is gone: {head}"
    );
}

#[tokio::test]
async fn keys_come_over_tls_from_an_issuer_whose_certificate_a_file_trusts() {
    let (issuer, signer) = (Issuer::default(), Signer::rsa());
    issuer.publish(&[signer.jwk("1")]);
    let folder = Folder::new();
    let certificate = crate::tls::self_signed("localhost", false);
    let port = crate::tls::tls_in_front_of(serve(issuer.router()).await, &certificate, None).await;
    let ca = folder.write("ca.pem", &certificate.pem());
    let settings = format!(
        "[routes.chat.credentials.jwt]\njwks-url = \"https://localhost:{port}/jwks\"\njwks-ca-file = {ca:?}"
    );
    let guarded = Guarded::start(telling_backend().await, folder, &settings);
    let (_, _frames) = guarded.told("/chat", &bearer(&signer.token_of("1", &claims_of("alice")))).await;
}

/// A server on which a test says what each path answers, byte by byte, and which keeps the requests.
#[derive(Clone, Default)]
struct KeyServer {
    answers: Arc<Mutex<BTreeMap<String, Answered>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone)]
enum Answered {
    /// These bytes, and then nothing.
    Bytes(Vec<u8>),
    /// The head of a response, and then a piece of its body after each pause.
    Endless(Vec<u8>, Duration),
}

impl KeyServer {
    async fn start() -> (Self, std::net::SocketAddr) {
        let server = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(accepting.clone().serve(stream));
            }
        });
        (server, address)
    }

    async fn serve(self, mut stream: tokio::net::TcpStream) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte).await.unwrap_or_default() == 0 {
                return;
            }
            request.push(byte[0]);
        }
        let request = String::from_utf8(request).unwrap();
        let path = request.split(' ').nth(1).unwrap().to_owned();
        let answer = self.answers.lock().unwrap()[&path].clone();
        self.requests.lock().unwrap().push(request.to_lowercase());
        match answer {
            Answered::Bytes(bytes) => drop(stream.write_all(&bytes).await),
            Answered::Endless(head, pause) => {
                let mut piece = head;
                while stream.write_all(&piece).await.is_ok() {
                    piece = vec![b' '; 4096];
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    fn answers(&self, path: &str, status: &str, headers: &str, body: &str) {
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n",
            body.len()
        );
        let bytes = Answered::Bytes([head.as_bytes(), body.as_bytes()].concat());
        self.answers.lock().unwrap().insert(path.to_owned(), bytes);
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

#[tokio::test]
async fn an_issuer_says_how_long_its_keys_are_fresh_and_sends_them_again_only_if_they_changed() {
    let (server, address) = KeyServer::start().await;
    let (old, new) = (Signer::ec(), Signer::ec());
    server.answers(
        "/jwks",
        "200 OK",
        "cache-control: max-age=0\r\netag: \"v1\"\r\n",
        &set(&[old.jwk("old")]),
    );
    let settings = format!(
        "[routes.chat.credentials.jwt]\njwks-url = \"http://{address}/jwks\"\njwks-refresh = \"1day\"\njwks-min-refresh = \"10s\""
    );
    let guarded = Guarded::start(telling_backend().await, Folder::new(), &settings);
    let of_old = bearer(&old.token_of("old", &claims_of("alice")));
    let (_, _one) = guarded.told("/chat", &of_old).await;
    server.answers("/jwks", "304 Not Modified", "cache-control: max-age=0\r\n", "");
    let fetched = "jwks_fetches_total{route=\"chat\",outcome=\"done\"}";
    until("they are fetched again", || guarded.gateway.metric(fetched) >= 2.0).await;
    let requests = server.requests();
    assert!(
        !requests[0].contains("if-none-match") && requests[1].contains("if-none-match: \"v1\""),
        "{requests:?}"
    );
    let (_, _two) = guarded.told("/chat", &of_old).await;
    assert_eq!(guarded.gateway.metric("jwks_stale{route=\"chat\"}"), 0.0);
    // The next version comes without a token that names it.
    server.answers("/jwks", "200 OK", "", &set(&[new.jwk("new")]));
    until("the new ones are fetched", || guarded.gateway.metric(fetched) >= 3.0).await;
    let (_, _three) = guarded.told("/chat", &bearer(&new.token_of("new", &claims_of("alice")))).await;
    let (head, _) = guarded.plain("/chat", &of_old).await;
    assert!(!head.starts_with("HTTP/1.1 101"), "the old key is gone from the set: {head}");
}

#[tokio::test]
async fn stale_keys_are_used_as_long_as_the_settings_say_and_over_a_reload() {
    let (issuer, signer) = (Issuer::default(), Signer::ec());
    issuer.publish(&[signer.jwk("1")]);
    let address = serve(issuer.router()).await;
    let (backend, folder) = (telling_backend().await, Folder::new());
    let settings = |leeway: &str| {
        format!(
            "[routes.chat.credentials.jwt]\njwks-url = \"http://{address}/jwks\"\njwks-refresh = \"10s\"\njwks-max-stale = \"5s\"\nleeway = \"{leeway}\""
        )
    };
    let guarded = Guarded::start(backend, folder, &settings("30s"));
    let token = bearer(&signer.token_of("1", &claims_of("alice")));
    // A session holds the settings that it began with, and their keys.
    let (_, _one) = guarded.told("/chat", &token).await;
    issuer.fail();
    guarded.reconfigure(backend, &settings("31s")).await;
    let (_, _two) = guarded.told("/chat", &token).await;
    let samples = guarded.gateway.get("/metrics", "");
    assert_eq!(samples.matches("mainstay_jwks_age_seconds{route=\"chat\"}").count(), 1, "{samples}");
    let age = || guarded.gateway.get("/metrics", "").contains("mainstay_jwks_age_seconds{");
    until("they are forgotten", || !age()).await;
    assert_eq!(guarded.gateway.metric("jwks_stale{route=\"chat\"}"), 1.0);
    let (head, _) = guarded.plain("/chat", &token).await;
    assert!(head.starts_with("HTTP/1.1 503") && head.to_lowercase().contains("retry-after: "), "{head}");
    until("the log says so", || {
        guarded.gateway.log().contains("the issuer's keys are too old and not used any more")
    })
    .await;
    issuer.publish(&[signer.jwk("1")]);
    until("they are fetched again", age).await;
    let (_, _three) = guarded.told("/chat", &token).await;
}

#[tokio::test]
async fn a_hostile_key_server_costs_its_own_route_and_says_nothing_that_verifies() {
    let (server, address) = KeyServer::start().await;
    let (ec, rsa) = (Signer::ec(), Signer::rsa());
    let good = set(&[ec.jwk("1")]);
    let with = |field: &str, value: Value| {
        let mut key = ec.jwk("1");
        key[field] = value;
        set(&[key])
    };
    let ok = |name: &str, body: &str| server.answers(name, "200 OK", "", body);
    ok("/html", "<html><body>Log in</body></html>");
    ok("/empty", "");
    ok("/huge", &format!("{{\"keys\": [{}", " ".repeat(2 << 20)));
    ok("/many", &set(&vec![ec.jwk("1"); 101]));
    ok("/deep", &"[".repeat(100_000));
    ok("/other-alg", &with("alg", json!("PS256")));
    ok("/other-use", &with("use", json!("enc")));
    ok("/symmetric", &set(&[ec.jwk("1"), Signer::secret().jwk("2")]));
    ok("/private", &with("d", json!("AAAA")));
    server.answers("/redirect", "302 Found", &format!("location: http://{address}/good\r\n"), &good);
    server.answers("/error", "500 Internal Server Error", "", &good);
    server.answers("/unchanged", "304 Not Modified", "", "");
    {
        let head = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{".to_vec();
        let mut answers = server.answers.lock().unwrap();
        answers.insert("/endless".into(), Answered::Endless(head.clone(), Duration::ZERO));
        answers.insert("/slow".into(), Answered::Endless(head, Duration::from_millis(100)));
        answers.insert("/no-http".into(), Answered::Bytes(b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()));
    }
    let hostile = [
        ("html", "no JSON Web Key set"),
        ("empty", "no JSON Web Key set"),
        ("huge", "at most 1048576 bytes"),
        ("many", "more than 100 keys"),
        ("deep", "no JSON Web Key set"),
        ("other-alg", "has no key for the algorithms"),
        ("other-use", "has no key for the algorithms"),
        ("symmetric", "has a secret"),
        ("private", "has a private key"),
        ("redirect", "write the final URL"),
        ("error", "status 500"),
        ("unchanged", "redirects are not followed"),
        ("endless", "at most 1048576 bytes"),
        ("slow", "no response within 5s"),
        ("no-http", "error"),
    ];
    // Beside them routes with what is odd and right.
    ok("/good", &good);
    let (one, two) = (Signer::ec(), Signer::ec());
    ok("/twice", &set(&[one.jwk("1"), two.jwk("1")]));
    ok("/rsa", &set(&[rsa.jwk("1")]));
    let names = hostile.iter().map(|(name, _)| *name).chain(["good", "twice", "rsa"]);
    let backend = telling_backend().await;
    let routes: Vec<_> = names
        .map(|name| {
            format!(
                "[routes.{name}]\npath = \"/{name}\"\nstrip-path = true\n[routes.{name}.upstream]\naddresses = [\"ws://{backend}\"]\n\
                 [routes.{name}.credentials.jwt]\njwks-url = \"http://{address}/{name}\"\n"
            )
        })
        .collect();
    let guarded = Guarded::of_routes(Folder::new(), &routes.concat());
    let opened = |name: &'static str, token: String| {
        let gateway = guarded.gateway.address();
        async move { Frames::connect(gateway, &format!("/{name}/chat"), &bearer(&token)).await.0 }
    };
    for (name, why) in hostile {
        let url = format!("{address}/{name}\"");
        let lines = |log: String| {
            log.lines().filter(|line| line.contains(&url)).map(str::to_owned).collect::<Vec<_>>()
        };
        until(&url, || !lines(guarded.gateway.log()).is_empty()).await;
        let lines = lines(guarded.gateway.log());
        assert!(lines.len() == 1 && lines[0].contains(why), "{name}: {lines:?}");
        let failed = format!("jwks_fetches_total{{route=\"{name}\",outcome=\"failed\"}}");
        assert!(guarded.gateway.metric(&failed) >= 1.0, "{name}");
    }
    let refused: Vec<_> = hostile
        .iter()
        .map(|(name, _)| tokio::spawn(opened(name, ec.token_of("1", &claims_of("alice")))))
        .collect();
    for (opening, (name, _)) in refused.into_iter().zip(hostile) {
        let head = opening.await.unwrap();
        assert!(head.starts_with("HTTP/1.1 503"), "{name}: {head}");
    }
    let check = async |name: &'static str, token: String, status: &str| {
        let head = opened(name, token).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {head}");
    };
    check("good", ec.token_of("1", &claims_of("alice")), "101").await;
    check("twice", one.token_of("1", &claims_of("alice")), "101").await;
    check("twice", two.token_of("1", &claims_of("alice")), "101").await;
    check("twice", ec.token_of("1", &claims_of("alice")), "401").await;
    // The public key is known to everyone, and is no secret of HS256 in any form.
    check("rsa", rsa.token_of("1", &claims_of("alice")), "101").await;
    let modulus = rsa.jwk("1")["n"].as_str().unwrap().to_owned();
    for secret in [RSA_PUBLIC, RSA_PUBLIC.trim_end(), &modulus, &rsa.jwk("1").to_string()] {
        check("rsa", Signer::Hmac(secret.to_owned()).token_of("1", &claims_of("mallory")), "401").await;
    }
    assert_eq!(guarded.judged("algorithm"), 4.0);
}
