//! Gateways whose route asks for credentials, and what a test does with them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::IntoResponse;
use axum::routing::{any, get};
use mainstay::client::EndCause;
use mainstay::{Client, Server, SessionUpgrade};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::frames::Frames;
use crate::support::{Gateway, backend, mainstay, until};
use crate::tokens::SECRET;

/// A backend that first says what it learned of its client, and then repeats every message. `/page` says it over HTTP.
pub(crate) async fn telling_backend() -> std::net::SocketAddr {
    let told = |request: &Request| {
        let headers: BTreeMap<_, _> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        json!({"headers": headers, "target": request.uri().to_string()}).to_string()
    };
    let app = Router::new()
        .route(
            "/chat",
            any(move |request: Request| async move {
                let (parts, _) = request.into_parts();
                let told = told(&Request::from_parts(parts.clone(), axum::body::Body::empty()));
                let mut parts = parts;
                let server: Server = parts.extensions.get::<Server>().unwrap().clone();
                match <SessionUpgrade as axum::extract::FromRequestParts<Server>>::from_request_parts(
                    &mut parts, &server,
                )
                .await
                {
                    Ok(upgrade) => upgrade.on_session(|mut session| async move {
                        session.send(told).await.ok();
                        while let Some(message) = session.recv().await {
                            session.send(message).await.ok();
                        }
                    }),
                    Err(rejection) => rejection.into_response(),
                }
            }),
        )
        .route("/page", get(move |request: Request| async move { told(&request) }));
    serve(app).await
}

pub(crate) async fn serve(app: Router<Server>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    backend(listener, app).await;
    address
}

/// A folder of a test, removed at its end.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("mainstay-credentials-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A gateway whose route `chat` has these credentials.
pub(crate) struct Guarded {
    pub(crate) gateway: Gateway,
    pub(crate) folder: Folder,
}

impl Guarded {
    pub(crate) fn start(backend: std::net::SocketAddr, folder: Folder, credentials: &str) -> Self {
        Self::with_log(backend, folder, credentials, "info")
    }

    pub(crate) fn with_log(
        backend: std::net::SocketAddr,
        folder: Folder,
        credentials: &str,
        log: &str,
    ) -> Self {
        let file = folder.write("mainstay.toml", &configuration(backend, credentials));
        let mut command = mainstay(&["serve", "--config", &file]);
        command.env("MAINSTAY_LOG", log);
        Self { gateway: Gateway::begin(command), folder }
    }

    /// Starts a gateway with these routes.
    pub(crate) fn of_routes(folder: Folder, routes: &str) -> Self {
        let listeners = "listen = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n";
        let file = folder.write("mainstay.toml", &format!("{listeners}{routes}"));
        Self { gateway: Gateway::begin(mainstay(&["serve", "--config", &file])), folder }
    }

    /// Has the gateway read other settings, and waits until they are in force.
    pub(crate) async fn reconfigure(&self, backend: std::net::SocketAddr, credentials: &str) {
        let before = self.gateway.metric("config_reloads_total{outcome=\"done\"}");
        self.folder.write("mainstay.toml", &configuration(backend, credentials));
        self.gateway.signal("HUP");
        let reloads = || self.gateway.metric("config_reloads_total{outcome=\"done\"}");
        until("the settings are in force", || reloads() > before).await;
    }

    /// As [`start`](Self::start), with the secret of HS256 and these further settings of `jwt` and of the route.
    pub(crate) async fn with_secret(jwt: &str, credentials: &str) -> Self {
        let folder = Folder::new();
        let keys = folder.write("secret", SECRET);
        let settings = format!("{credentials}\n[routes.chat.credentials.jwt]\nkeys-file = {keys:?}\n{jwt}");
        Self::start(telling_backend().await, folder, &settings)
    }

    /// Opens a plain WebSocket with these headers. Returns the head of the response, and what the backend told.
    pub(crate) async fn plain(&self, path: &str, headers: &str) -> (String, Frames) {
        Frames::connect(self.gateway.address(), path, headers).await
    }

    /// As [`plain`](Self::plain), admitted: returns what the backend told.
    pub(crate) async fn told(&self, path: &str, headers: &str) -> (Value, Frames) {
        let (head, mut frames) = self.plain(path, headers).await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        (serde_json::from_str(&frames.text().await.unwrap()).unwrap(), frames)
    }

    /// Requests a page; returns the whole response.
    pub(crate) async fn http(&self, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(self.gateway.address()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    pub(crate) fn judged(&self, outcome: &str) -> f64 {
        self.gateway.metric(&format!("credentials_judged_total{{outcome=\"{outcome}\"}}"))
    }

    pub(crate) fn client(&self, token: &str) -> Client {
        Client::builder(&format!("{}/chat", self.gateway.url))
            .unwrap()
            .credentials(token.to_owned())
            .connect()
    }

    pub(crate) fn url(&self) -> String {
        format!("{}/chat", self.gateway.url)
    }
}

pub(crate) fn configuration(backend: std::net::SocketAddr, credentials: &str) -> String {
    format!(
        "listen = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [routes.chat.upstream]\naddresses = [\"ws://{backend}\"]\n\
         [routes.chat.credentials]\n{credentials}\n"
    )
}

pub(crate) fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

pub(crate) fn text(message: &mainstay::Message) -> String {
    String::from_utf8(message.payload().to_vec()).unwrap()
}

/// What the backend told a client, as the first message.
pub(crate) async fn told(client: &mut Client) -> Value {
    serde_json::from_str(&text(&client.recv().await.unwrap())).unwrap()
}

pub(crate) async fn ended(client: &mut Client) -> (EndCause, Option<u64>) {
    let all = async {
        while client.recv().await.is_some() {}
        client.end().unwrap()
    };
    let end = tokio::time::timeout(Duration::from_secs(30), all).await.unwrap();
    (end.cause, end.code.map(|code| code.get()))
}
