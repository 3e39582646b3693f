//! The credentials of a route, with real tokens: which clients are admitted, what the backend learns, and what happens when they expire.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::response::IntoResponse;
use axum::routing::post;
use http::StatusCode;
use mainstay::Client;
use mainstay::client::Request as Attempt;
use mainstay_proto::session::message::{Resume, ResumeToken, Welcome};
use mainstay_proto::session::{Control, Credentials, Frame, Message};
use serde_json::{Value, json};

use crate::frames::{BINARY, CLOSE, Frames, PING, encoded, hello};
use crate::guarded::{Folder, Guarded, bearer, configuration, ended, serve, telling_backend, text, told};
use crate::operator::{INTENT, ask};
use crate::support::until;
use crate::tokens::{SECRET, Signer, claims_of, in_seconds};

#[tokio::test]
async fn a_plain_client_is_admitted_by_a_valid_token_and_gets_401_with_a_challenge_otherwise() {
    let guarded = Guarded::with_secret("", "").await;
    let (head, _) = guarded.plain("/chat", "").await;
    assert!(
        head.starts_with("HTTP/1.1 401") && head.to_lowercase().contains("www-authenticate: bearer\r\n"),
        "{head}"
    );
    let expired = Signer::secret().token(&json!({"sub": "alice", "exp": in_seconds(-3600)}));
    let (head, _) = guarded.plain("/chat", &bearer(&expired)).await;
    let challenge =
        "www-authenticate: bearer error=\"invalid_token\", error_description=\"the token has expired\"";
    assert!(head.starts_with("HTTP/1.1 401") && head.to_lowercase().contains(challenge), "{head}");
    let page = guarded.http("/page", "").await;
    assert!(page.starts_with("HTTP/1.1 401") && page.ends_with("credentials are required\n"), "{page}");

    let token = Signer::secret().token(&claims_of("alice"));
    let (told, _frames) = guarded.told("/chat", &bearer(&token)).await;
    assert_eq!(told["headers"]["authorization"], format!("Bearer {token}"), "passed on by default");
    assert!(guarded.http("/page", &bearer(&token)).await.starts_with("HTTP/1.1 200"));
    assert_eq!(
        (guarded.judged("missing"), guarded.judged("expired"), guarded.judged("accepted")),
        (2.0, 1.0, 2.0)
    );
}

#[tokio::test]
async fn every_hostile_token_is_refused_counted_and_logged_without_the_token() {
    let guarded = Guarded::with_secret("audience = [\"chat\"]\nissuer = [\"https://issuer\"]", "").await;
    let good = json!({"sub": "mallory", "exp": in_seconds(600), "aud": "chat", "iss": "https://issuer"});
    let with = |field: &str, value: Value| {
        let mut claims = good.clone();
        claims[field] = value;
        Signer::secret().token(&claims)
    };
    let header = |header: Value| Signer::secret().token_with(&header, &good);
    let without_exp = json!({"sub": "mallory", "aud": "chat", "iss": "https://issuer"});
    let parts: Vec<String> = Signer::secret().token(&good).split('.').map(str::to_owned).collect();
    let cases = [
        ("algorithm", header(json!({"alg": "none"}))),
        ("algorithm", format!("{}.{}.", crate::tokens::base64url(r#"{"alg":"none"}"#), parts[1])),
        ("algorithm", header(json!({"alg": "RS256"}))),
        ("signature", format!("{}.{}.{}", parts[0], parts[1], "A".repeat(43))),
        ("signature", Signer::Hmac("another secret of thirty-two byte".into()).token(&good)),
        ("malformed", format!("{}.{}", parts[0], parts[1])),
        ("malformed", "x".repeat(17_000)),
        ("malformed", "a b".to_owned()),
        ("expired", with("exp", in_seconds(-60).into())),
        ("not_yet_valid", with("nbf", in_seconds(600).into())),
        ("claims", Signer::secret().token(&without_exp)),
        ("audience", with("aud", json!("other"))),
        ("issuer", with("iss", json!("https://evil"))),
        ("claims", with("sub", json!(""))),
    ];
    let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
    for (reason, token) in &cases {
        *counts.entry(reason).or_default() += 1.0;
        let (head, _) = guarded.plain("/chat", &bearer(token)).await;
        assert!(head.starts_with("HTTP/1.1 401"), "{reason}: {head}");
        assert_eq!(guarded.judged(reason), counts[reason], "{reason}: {token}");
    }
    assert_eq!(guarded.judged("accepted"), 0.0);
    for reason in counts.keys() {
        guarded.gateway.logged(&format!("reason=\"{reason}\""), 1).await;
    }
    let log = guarded.gateway.log();
    for reason in counts.keys() {
        assert_eq!(
            log.matches(&format!("reason=\"{reason}\"")).count(),
            1,
            "one line for each reason: {log}"
        );
    }
    for (_, token) in &cases {
        let signature = token.rsplit('.').next().unwrap();
        assert!(!log.contains(token.as_str()) && (signature.len() < 10 || !log.contains(signature)), "{log}");
    }
    let (told, _frames) = guarded.told("/chat", &bearer(&Signer::secret().token(&good))).await;
    assert_eq!(told["target"], "/chat");
}

#[tokio::test]
async fn claims_become_headers_and_no_client_can_forge_or_remove_them() {
    let jwt = "[routes.chat.credentials.jwt.claims-as-headers]\nX-User = \"sub\"\nX-Roles = \"/realm/roles\"\nX-Team = \"team\"";
    let guarded = Guarded::with_secret(jwt, "forward-token = false").await;
    let mut claims = claims_of("alice");
    claims["realm"] = json!({"roles": ["a", "b"]});
    let forged = "X-User: admin\r\nX_User: admin\r\nx-roles: [\"admin\"]\r\nX_ROLES: x\r\nX-Team: core\r\nX_Team: core\r\n";
    let dropping = "Connection: X-User, x_roles, keep-alive\r\n";
    let token = Signer::secret().token(&claims);
    let check = |told: &Value| {
        assert_eq!(
            (&told["headers"]["x-user"], &told["headers"]["x-roles"]),
            (&json!("alice"), &json!("[\"a\",\"b\"]")),
            "{told}"
        );
        for absent in ["x_user", "x_roles", "x-team", "x_team", "authorization"] {
            assert_eq!(told["headers"].get(absent), None, "{told}");
        }
    };
    let (by_plain, _frames) = guarded.told("/chat", &format!("{forged}{dropping}{}", bearer(&token))).await;
    check(&by_plain);
    let page = guarded.http("/page", &format!("{forged}{dropping}{}", bearer(&token))).await;
    check(&serde_json::from_str(page.rsplit("\r\n\r\n").next().unwrap()).unwrap());
    let mut client = Client::builder(&guarded.url())
        .unwrap()
        .header("x-user".parse().unwrap(), "admin".parse().unwrap())
        .header("x_team".parse().unwrap(), "core".parse().unwrap())
        .credentials(token)
        .connect();
    check(&told(&mut client).await);
}

#[tokio::test]
async fn a_session_presents_its_token_in_hello_and_learns_4501_if_it_is_refused() {
    let guarded = Guarded::with_secret("claims-as-headers = { X-User = \"sub\" }", "").await;
    let token = Signer::secret().token(&claims_of("alice"));
    let mut client = guarded.client(&token);
    let learned = told(&mut client).await;
    assert_eq!(learned["headers"]["x-user"], "alice");
    assert_eq!(
        learned["headers"]["authorization"],
        format!("Bearer {token}"),
        "a backend that checks it can"
    );
    client.send("hello").await.unwrap();
    assert_eq!(text(&client.recv().await.unwrap()), "hello");

    let expired = Signer::secret().token(&json!({"sub": "alice", "exp": in_seconds(-3600)}));
    assert_eq!(ended(&mut guarded.client(&expired)).await.1, Some(4501));
    let mut without = Client::builder(&guarded.url()).unwrap().connect();
    assert_eq!(ended(&mut without).await.1, Some(4501));
    assert_eq!((guarded.judged("missing"), guarded.judged("expired")), (1.0, 1.0));
    // From its header, where its client can set one.
    let mut by_header = Client::builder(&guarded.url())
        .unwrap()
        .header("authorization".parse().unwrap(), format!("Bearer {token}").parse().unwrap())
        .connect();
    assert_eq!(told(&mut by_header).await["headers"]["x-user"], "alice");
}

#[tokio::test]
async fn a_token_in_the_query_or_a_cookie_is_taken_only_if_asked_for_and_appears_nowhere_behind() {
    let folder = Folder::new();
    let keys = folder.write("secret", SECRET);
    let settings = format!(
        "from = [\"query:token\", \"cookie:jwt\"]\nforward-token = false\n[routes.chat.credentials.jwt]\nkeys-file = {keys:?}"
    );
    let guarded = Guarded::with_log(telling_backend().await, folder, &settings, "trace");
    let token = Signer::secret().token(&claims_of("alice"));
    let (told, _one) = guarded.told(&format!("/chat?room=1&token={token}&x=2"), "").await;
    assert_eq!(told["target"], "/chat?room=1&x=2");
    let (told, _two) = guarded.told("/chat", &format!("Cookie: theme=dark; jwt={token}\r\n")).await;
    assert_eq!(told["headers"]["cookie"], "theme=dark");
    let (head, _) = guarded.plain("/chat", &bearer(&token)).await;
    assert!(head.starts_with("HTTP/1.1 401"), "no header was asked for: {head}");
    let (head, _) = guarded.plain(&format!("/chat?token={token}&token={token}"), "").await;
    assert!(head.starts_with("HTTP/1.1 401"), "{head}");
    let log = guarded.gateway.log();
    let (_, signature) = token.rsplit_once('.').unwrap();
    let ours: Vec<_> =
        log.lines().filter(|line| line.contains(signature) && line.contains("mainstay")).collect();
    assert!(ours.is_empty(), "{ours:?}");
}

#[tokio::test]
async fn a_session_that_renews_its_token_goes_on_and_one_that_does_not_ends_with_4501() {
    let guarded = Guarded::with_secret("leeway = \"0s\"", "grace = \"6s\"").await;
    let short = || Signer::secret().token(&json!({"sub": "alice", "exp": in_seconds(2)}));
    // The client makes a token for each attempt; the gateway asks it to come back.
    let mut renewing = Client::builder(&guarded.url())
        .unwrap()
        .request(move || async move { Ok(Attempt::default().credentials(short())) })
        .connect();
    told(&mut renewing).await;
    let id = renewing.id();
    let mut fixed = guarded.client(&short());
    told(&mut fixed).await;
    let mut refreshed = guarded.client(&short());
    told(&mut refreshed).await;
    let other = Signer::secret().token(&claims_of("mallory"));
    assert!(refreshed.authenticate(other).await.is_err(), "another subject");
    assert!(refreshed.authenticate("nonsense").await.is_err());
    refreshed.authenticate(Signer::secret().token(&claims_of("alice"))).await.unwrap();
    let (_, mut plain) = guarded.told("/chat", &bearer(&short())).await;

    assert_eq!(ended(&mut fixed).await.1, Some(4501));
    let closed = async {
        loop {
            match plain.read().await.unwrap() {
                (CLOSE, payload) => return payload,
                (PING, _) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let payload = tokio::time::timeout(Duration::from_secs(30), closed).await.unwrap();
    assert_eq!(payload, [&4501_u16.to_be_bytes()[..], b"the credentials have expired"].concat());
    until("it has come back", || guarded.gateway.metric("attaches_total{outcome=\"resumed\"}") >= 2.0).await;
    for client in [&mut renewing, &mut refreshed] {
        client.send("still here").await.unwrap();
        assert_eq!(text(&client.recv().await.unwrap()), "still here");
    }
    assert_eq!(renewing.id(), id, "it is the same session");
    assert_eq!((guarded.judged("other_subject"), guarded.judged("malformed")), (1.0, 1.0));
    assert!(guarded.gateway.metric("credentials_expired_total{outcome=\"asked\"}") >= 2.0);
    assert!(guarded.gateway.metric("credentials_expired_total{outcome=\"ended\"}") >= 1.0);
}

/// Opens or resumes a session with these credentials; returns the server's answer.
pub(crate) async fn answer(
    guarded: &Guarded,
    number: u64,
    token: Option<&str>,
    resume: Option<ResumeToken>,
) -> Control {
    answer_on(guarded.gateway.address(), "/chat", "", number, token, resume).await
}

/// As [`answer`], at this address and path, with further headers.
pub(crate) async fn answer_on(
    to: std::net::SocketAddr,
    path: &str,
    headers: &str,
    number: u64,
    token: Option<&str>,
    resume: Option<ResumeToken>,
) -> Control {
    let headers = format!("Sec-WebSocket-Protocol: mainstay.v1\r\n{headers}");
    let (head, mut client) = Frames::connect(to, path, &headers).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let resume = resume.map(|token| Resume { token, acknowledged: 0, sent: 0, first_held: 1 });
    let credentials = token.map(|token| Credentials(token.to_owned().into()));
    client
        .write(
            BINARY,
            &encoded(mainstay_proto::session::message::Hello { resume, credentials, ..hello(number) }),
        )
        .await;
    loop {
        let (kind, payload) = client.read().await.unwrap();
        if kind == BINARY {
            match Frame::decode(Message::Binary(payload.into())) {
                Ok(Frame::Control(control)) => return control,
                other => panic!("{other:?}"),
            }
        }
    }
}

pub(crate) fn welcome(answer: Control) -> Welcome {
    match answer {
        Control::Welcome(welcome) => *welcome,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_session_is_resumed_by_its_subject_with_any_valid_token_and_by_no_other() {
    let guarded = Guarded::with_secret("", "").await;
    let token = |subject: &str, left: i64| {
        Signer::secret()
            .token(&json!({"sub": subject, "iat": in_seconds(0), "exp": in_seconds(left), "jti": left}))
    };
    let first = welcome(answer(&guarded, 1, Some(&token("alice", 600)), None).await);
    let stolen = welcome(answer(&guarded, 2, Some(&token("mallory", 600)), Some(first.token.clone())).await);
    assert!(!stolen.resumed && stolen.account.is_none(), "{stolen:?}");
    let refused = answer(&guarded, 3, Some(&token("alice", -600)), Some(first.token.clone())).await;
    assert!(matches!(refused, Control::Refuse { code: 4501, temporary: false, .. }), "{refused:?}");
    assert!(welcome(answer(&guarded, 4, Some(&token("alice", 700)), Some(first.token)).await).resumed);
}

#[tokio::test]
async fn a_revocation_ends_what_is_open_and_refuses_the_tokens_that_were_issued_before() {
    let guarded = Guarded::with_secret("", "").await;
    let token = |subject: &str, issued: i64| {
        Signer::secret().token(&json!({"sub": subject, "iat": in_seconds(issued), "exp": in_seconds(600)}))
    };
    let mut alice = guarded.client(&token("alice", -5));
    told(&mut alice).await;
    let (_, mut plain) = guarded.told("/chat", &bearer(&token("alice", -5))).await;
    let mut bob = guarded.client(&token("bob", -5));
    told(&mut bob).await;
    // Its client is away: it learns of the end when it comes back.
    let parked = welcome(answer(&guarded, 7, Some(&token("alice", -5)), None).await);
    let revoke =
        |subject: &str| ask(&guarded.gateway, "POST", &format!("/subjects/{subject}/revoke"), INTENT);
    let (status, body) = revoke("alice");
    assert_eq!((status, body.trim()), (200, r#"{"ended":3}"#));
    assert_eq!(ended(&mut alice).await.1, Some(4501));
    loop {
        match plain.read().await.unwrap() {
            (CLOSE, payload) => break assert_eq!(payload[..2], 4501_u16.to_be_bytes()),
            (PING, _) => {}
            other => panic!("{other:?}"),
        }
    }
    let (head, _) = guarded.plain("/chat", &bearer(&token("alice", -5))).await;
    assert!(head.starts_with("HTTP/1.1 401"), "{head}");
    let (head, _) = guarded
        .plain("/chat", &bearer(&Signer::secret().token(&json!({"sub": "alice", "exp": in_seconds(60)}))))
        .await;
    assert!(head.starts_with("HTTP/1.1 401"), "it does not say when it was issued: {head}");
    let old = answer(&guarded, 8, Some(&token("alice", -5)), Some(parked.token.clone())).await;
    assert!(matches!(old, Control::Refuse { code: 4501, temporary: false, .. }), "{old:?}");
    let (_, _new) = guarded.told("/chat", &bearer(&token("alice", 5))).await;
    assert_eq!((guarded.judged("revoked"), guarded.gateway.metric("revocations")), (3.0, 1.0));
    bob.send("still here").await.unwrap();
    assert_eq!(text(&bob.recv().await.unwrap()), "still here");
    assert_eq!(revoke("nobody").1.trim(), r#"{"ended":0}"#);
}

/// A hook that answers as a test says, and keeps what it was asked.
#[derive(Clone, Default)]
struct Hook {
    answer: Arc<Mutex<(u16, String)>>,
    asked: Arc<Mutex<Vec<Value>>>,
    delay: Arc<AtomicUsize>,
}

impl Hook {
    async fn start() -> (Self, String) {
        let hook = Self::default();
        hook.answers(200, "");
        let handler = {
            let hook = hook.clone();
            move |headers: http::HeaderMap, body: Bytes| {
                let hook = hook.clone();
                async move {
                    let mut question: Value = serde_json::from_slice(&body).unwrap();
                    question["authorization of the hook"] =
                        headers.get("authorization").map_or("none", |value| value.to_str().unwrap()).into();
                    hook.asked.lock().unwrap().push(question);
                    tokio::time::sleep(Duration::from_millis(hook.delay.load(Relaxed) as u64)).await;
                    let (status, body) = hook.answer.lock().unwrap().clone();
                    (StatusCode::from_u16(status).unwrap(), body).into_response()
                }
            }
        };
        let address = serve(Router::new().route("/connect", post(handler))).await;
        (hook, format!("url = \"http://{address}/connect\""))
    }

    fn answers(&self, status: u16, body: &str) {
        *self.answer.lock().unwrap() = (status, body.to_owned());
    }

    fn last(&self) -> Value {
        self.asked.lock().unwrap().last().unwrap().clone()
    }
}

#[tokio::test]
async fn the_connect_hook_decides_and_tells_the_backend_who_the_client_is() {
    let (hook, url) = Hook::start().await;
    let folder = Folder::new();
    let secret = folder.write("hook-secret", "Bearer of-the-gateway\n");
    let settings = format!(
        "[routes.chat.credentials.connect-hook]\n{url}\nsets-headers = [\"X-User\"]\nheaders = {{ Authorization = \"@{secret}\" }}"
    );
    let guarded = Guarded::start(telling_backend().await, folder, &settings);
    hook.answers(200, r#"{"subject": "alice", "headers": {"X-User": "Alice"}, "expires_in": 3600}"#);
    let (told_plain, _frames) =
        guarded.told("/chat?room=1", "Cookie: sid=1\r\nX-User: admin\r\nX_User: admin\r\n").await;
    assert_eq!(
        (&told_plain["headers"]["x-user"], told_plain["headers"].get("x_user")),
        (&json!("Alice"), None)
    );
    assert_eq!(told_plain["headers"]["cookie"], "sid=1");
    let asked = hook.last();
    assert_eq!(
        [
            &asked["event"],
            &asked["route"],
            &asked["method"],
            &asked["path"],
            &asked["query"],
            &asked["address"]
        ],
        ["connect", "chat", "GET", "/chat", "room=1", "127.0.0.1"]
    );
    assert_eq!(
        (&asked["headers"]["cookie"], asked["headers"].get("x-user")),
        (&json!("sid=1"), None),
        "{asked}"
    );
    assert_eq!(asked["authorization of the hook"], "Bearer of-the-gateway");

    let mut client = guarded.client("a ticket");
    assert_eq!(told(&mut client).await["headers"]["x-user"], "Alice");
    assert_eq!((&hook.last()["credentials"], &hook.last()["event"]), (&json!("a ticket"), &json!("connect")));
    client.authenticate("another ticket").await.unwrap();
    assert_eq!(
        (&hook.last()["credentials"], &hook.last()["event"]),
        (&json!("another ticket"), &json!("refresh"))
    );
    hook.answers(200, r#"{"subject": "mallory"}"#);
    assert!(client.authenticate("a third").await.is_err(), "another subject");

    hook.answers(403, r#"{"reason": "you are blocked"}"#);
    assert!(client.authenticate("a fourth").await.is_err());
    let page = guarded.http("/page", "").await;
    assert!(page.starts_with("HTTP/1.1 403") && page.ends_with("you are blocked\n"), "{page}");
    assert_eq!(ended(&mut guarded.client("x")).await.1, Some(4501));
    client.send("goes on").await.unwrap();
    assert_eq!(text(&client.recv().await.unwrap()), "goes on");
}

#[tokio::test]
async fn a_hook_that_does_not_decide_asks_clients_to_come_back_unless_the_settings_admit_them() {
    let (hook, url) = Hook::start().await;
    let table = "[routes.chat.credentials.connect-hook]";
    let settings = format!("{table}\n{url}\ntimeout = \"300ms\"\nconcurrency = 1");
    let guarded = Guarded::start(telling_backend().await, Folder::new(), &settings);
    for (status, body) in
        [(500, ""), (404, ""), (302, ""), (200, "no JSON"), (200, r#"{"headers": {"X-Other": "1"}}"#)]
    {
        hook.answers(status, body);
        let (head, _) = guarded.plain("/chat", "").await;
        assert!(
            head.starts_with("HTTP/1.1 503") && head.to_lowercase().contains("retry-after: "),
            "{status}: {head}"
        );
    }
    hook.answers(200, "");
    hook.delay.store(1_000, Relaxed);
    let (head, _) = guarded.plain("/chat", "").await;
    assert!(head.starts_with("HTTP/1.1 503"), "too slow: {head}");
    // A session comes back by itself, until the hook decides.
    let mut client = guarded.client("x");
    until("it was refused", || guarded.judged("hook_unavailable") >= 7.0).await;
    hook.delay.store(0, Relaxed);
    told(&mut client).await;

    hook.answers(500, "");
    let lenient = format!("{table}\n{url}\nallow-on-failure = true");
    let guarded = Guarded::start(telling_backend().await, Folder::new(), &lenient);
    let (_, _frames) = guarded.told("/chat", "").await;
}

#[tokio::test]
async fn a_token_and_the_hook_must_both_agree() {
    let (hook, url) = Hook::start().await;
    let folder = Folder::new();
    let keys = folder.write("secret", SECRET);
    let settings = format!(
        "[routes.chat.credentials.jwt]\nkeys-file = {keys:?}\n[routes.chat.credentials.connect-hook]\n{url}"
    );
    let guarded = Guarded::start(telling_backend().await, folder, &settings);
    let (head, _) = guarded.plain("/chat", "").await;
    assert!(head.starts_with("HTTP/1.1 401") && hook.asked.lock().unwrap().is_empty(), "{head}");
    let token = bearer(&Signer::secret().token(&claims_of("alice")));
    let (_, _frames) = guarded.told("/chat", &token).await;
    assert_eq!(hook.last()["subject"], "alice");
    hook.answers(401, "");
    let (head, _) = guarded.plain("/chat", &token).await;
    assert!(head.starts_with("HTTP/1.1 401"), "{head}");
}

#[tokio::test]
async fn a_route_may_serve_its_pages_without_credentials() {
    let guarded =
        Guarded::with_secret("claims-as-headers = { X-User = \"sub\" }", "check-http = false").await;
    let page = guarded.http("/page", "X-User: admin\r\nX_User: admin\r\n").await;
    assert!(page.starts_with("HTTP/1.1 200") && !page.contains("admin"), "{page}");
    let (head, _) = guarded.plain("/chat", "").await;
    assert!(head.starts_with("HTTP/1.1 401"), "{head}");
}

#[tokio::test]
async fn where_a_token_is_optional_a_client_without_one_is_anonymous_and_a_wrong_one_is_refused() {
    let guarded = Guarded::with_secret("claims-as-headers = { X-User = \"sub\" }", "required = false").await;
    let token = |subject: &str, left: i64| {
        Signer::secret().token(&json!({"sub": subject, "iat": in_seconds(0), "exp": in_seconds(left)}))
    };
    let forged = "X-User: admin\r\nX_User: admin\r\n";
    let (told, _plain) = guarded.told("/chat", forged).await;
    assert_eq!((told["headers"].get("x-user"), told["headers"].get("x_user")), (None, None), "{told}");
    let page = guarded.http("/page", forged).await;
    assert!(page.starts_with("HTTP/1.1 200") && !page.contains("admin"), "{page}");
    let (told, _of_alice) = guarded.told("/chat", &bearer(&token("alice", 600))).await;
    assert_eq!(told["headers"]["x-user"], "alice");
    for wrong in [token("alice", -600), "nonsense".to_owned(), String::new()] {
        let (head, _) = guarded.plain("/chat", &bearer(&wrong)).await;
        assert!(head.starts_with("HTTP/1.1 401"), "{wrong:?}: {head}");
        let answered = answer(&guarded, 1, Some(&wrong), None).await;
        assert!(matches!(answered, Control::Refuse { code: 4501, temporary: false, .. }), "{answered:?}");
    }
    // No session becomes another client's, in either direction.
    let anonymous = welcome(answer(&guarded, 2, None, None).await);
    let of_alice = welcome(answer(&guarded, 3, Some(&token("alice", 600)), None).await);
    let taken = welcome(answer(&guarded, 4, Some(&token("alice", 600)), Some(anonymous.token.clone())).await);
    assert!(!taken.resumed && taken.account.is_none(), "{taken:?}");
    let taken = welcome(answer(&guarded, 5, None, Some(of_alice.token)).await);
    assert!(!taken.resumed && taken.account.is_none(), "{taken:?}");
    assert!(welcome(answer(&guarded, 6, None, Some(anonymous.token)).await).resumed);
    // Neither does a live one by a login: that is another session.
    let mut client = Client::builder(&guarded.url()).unwrap().connect();
    crate::guarded::told(&mut client).await;
    assert!(client.authenticate(token("alice", 600)).await.is_err());
    client.send("still here").await.unwrap();
    assert_eq!(text(&client.recv().await.unwrap()), "still here");
    assert_eq!((guarded.judged("anonymous"), guarded.judged("missing")), (6.0, 0.0));
    assert_eq!(guarded.judged("other_subject"), 1.0);
}

#[tokio::test]
async fn another_key_in_the_file_takes_effect_at_once_also_for_what_is_open() {
    let (old, new) = (Signer::ec(), Signer::ec());
    let folder = Folder::new();
    let keys = folder.write("keys.pem", &old.pem());
    let settings = format!("[routes.chat.credentials.jwt]\nkeys-file = {keys:?}");
    let guarded = Guarded::start(telling_backend().await, folder, &settings);
    let mut client = guarded.client(&old.token(&claims_of("alice")));
    told(&mut client).await;
    assert!(client.authenticate(new.token(&claims_of("alice"))).await.is_err());
    guarded.folder.write("keys.pem", "no key");
    guarded.gateway.signal("HUP");
    until("it is refused", || guarded.gateway.log().contains("routes.chat.credentials.jwt.keys-file")).await;
    client.authenticate(old.token(&claims_of("alice"))).await.unwrap();
    guarded.folder.write("keys.pem", &new.pem());
    guarded.gateway.signal("HUP");
    guarded.gateway.wait_for_metric("config_last_reload_successful", 1.0).await;
    client.authenticate(new.token(&claims_of("alice"))).await.unwrap();
    let (head, _) = guarded.plain("/chat", &bearer(&old.token(&claims_of("alice")))).await;
    assert!(head.starts_with("HTTP/1.1 401"), "{head}");
}

#[test]
fn the_settings_of_the_guide_are_right() {
    let folder = Folder::new();
    folder.write("jwt.pem", crate::tokens::RSA_PUBLIC);
    folder.write("hook-secret", "Bearer x\n");
    let page = include_str!("../../../../docs/guides/credentials.md");
    let blocks: Vec<_> =
        page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(blocks.len(), 5);
    for block in blocks {
        let here = block.replace("/etc/mainstay", folder.0.to_str().unwrap());
        let file = folder.write("mainstay.toml", &here);
        let output = crate::support::run(&["config", "check", &file], b"");
        assert!(output.status.success(), "{block}{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_mistake_in_the_settings_is_one_line_that_names_the_field_and_what_to_write() {
    let folder = Folder::new();
    let key = folder.write("key", SECRET);
    let private = folder.write("private", "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n");
    let jwt = |more: &str| format!("jwt = {{ keys-file = {key:?}, {more} }}");
    let jwks = |more: &str| format!("jwt = {{ jwks-url = \"https://a/\", {more} }}");
    let hook = |more: &str| format!("connect-hook = {{ url = \"http://127.0.0.1:1/\", {more} }}");
    for (settings, field, part) in [
        ("jwt = {}".to_owned(), "jwt.keys-file", "jwks-url is required"),
        (jwt("jwks-url = \"https://a/\""), "jwt.jwks-url", "remove one"),
        (jwt("jwks-ca-file = \"x\""), "jwt.jwks-ca-file", "belongs to jwks-url"),
        ("jwt = { jwks-url = \"http://issuer.example/\" }".into(), "jwt.jwks-url", "must be https://"),
        (jwks("jwks-refresh = \"1s\""), "jwt.jwks-refresh", "between 10s and 1day"),
        (jwks("jwks-min-refresh = \"9s\""), "jwt.jwks-min-refresh", "between 10s and 1day"),
        (jwks("jwks-max-refresh = \"59s\""), "jwt.jwks-max-refresh", "between jwks-min-refresh and 30days"),
        (jwks("jwks-max-stale = \"31days\""), "jwt.jwks-max-stale", "at most 30days"),
        ("jwt = { keys-file = \"/nowhere\" }".into(), "jwt.keys-file", "name a readable file"),
        (format!("jwt = {{ keys-file = {private:?} }}"), "jwt.keys-file", "openssl pkey -pubout"),
        (jwt("algorithms = [\"none\"]"), "jwt.algorithms", "HS256"),
        (jwt("algorithms = []"), "jwt.algorithms", "at least one"),
        (jwt("algorithms = [\"ES256\"]"), "jwt.keys-file", "no key for the algorithms"),
        (jwt("leeway = \"11m\""), "jwt.leeway", "at most 10m"),
        (jwt("leeway = \"1500ms\""), "jwt.leeway", "whole seconds"),
        (jwt("issuer = [\"\"]"), "jwt.issuer", "empty"),
        (jwt("subject-claim = \"\""), "jwt.subject-claim", "must name a claim"),
        (jwt("claims-as-headers = { Host = \"sub\" }"), "jwt.claims-as-headers", "X-User"),
        (jwt("claims-as-headers = { X_User = \"sub\" }"), "jwt.claims-as-headers", "X-User"),
        (jwt("claims-as-headers = { X-Forwarded-User = \"sub\" }"), "jwt.claims-as-headers", "X-User"),
        (jwt("claims-as-headers = { X-User = \"\" }"), "jwt.claims-as-headers", "must name a claim"),
        (hook("timeout = \"5s\""), "connect-hook.timeout", "between 10ms and 4s"),
        (hook("concurrency = 0"), "connect-hook.concurrency", "between 1 and 10000"),
        (hook("sets-headers = [\"Cookie\"]"), "connect-hook.sets-headers", "X-User"),
        (hook("headers = { X = \"@/nowhere\" }"), "connect-hook.headers", "name a readable file"),
        (
            hook("headers = { X = \"a\\u0001b\" }"),
            "connect-hook.headers",
            "the value of x cannot be a header's",
        ),
        ("connect-hook = {}".into(), "connect-hook.url", "write for example"),
        ("from = [\"url:token\"]".into(), "from", "query:NAME"),
        (format!("from = []\n{}", jwt("")), "from", "must name a place"),
        ("grace = \"11m\"".into(), "grace", "at most 10m"),
        ("required = false".into(), "required", "belongs to jwt"),
        (format!("required = false\n{}", hook("")), "required", "belongs to jwt"),
    ] {
        let file = folder.write("mainstay.toml", &configuration(([127, 0, 0, 1], 1).into(), &settings));
        let output = crate::support::run(&["config", "check", &file], b"");
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), error.lines().count()), (Some(2), 1), "{settings}: {error}");
        assert!(
            error.contains(&format!("routes.chat.credentials.{field}")) && error.contains(part),
            "{settings}: {error}"
        );
    }
}
