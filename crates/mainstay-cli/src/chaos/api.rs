//! Commands by HTTP, in JSON: what is open, which faults are in force, and new ones.
//!
//! The listener is for programs of this machine. A page of a browser must not use it: the Host must be a local name or one of
//! `--api-host`, an Origin must be the same host, and a body must be `application/json` (`admin::foreign`).

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, put};
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mainstay_chaos::{
    ActiveFault, ChaosProxy, Fault, FaultId, Kind, Rule, Scenario, ScenarioFile, Strikes, Target,
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::plan::{self, Plan};
use crate::admin::foreign;
use crate::admin::query::Query;
use crate::process::descriptors::{self, Spare};

/// Maximum number of open connections; further ones wait.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest body.
const MAX_BODY: usize = 1 << 20;

/// What the paths are, for a request of another one.
const PATHS: &str = "GET /, GET and DELETE /connections, DELETE /connections/ID, GET, POST and DELETE /faults, \
                     DELETE /faults/ID, PUT /upstream, PUT /scenario, GET /timeline";

/// What the requests are about. Cheap to clone.
#[derive(Clone)]
pub(super) struct Api {
    /// The command owns the proxy, and a request must not make it live longer.
    proxy: Weak<ChaosProxy>,
    current: Arc<Mutex<Current>>,
    hosts: Arc<[String]>,
}

/// What commands replace. Its lock keeps the order of two requests.
struct Current {
    upstream: String,
    scenario: Scenario,
}

impl Api {
    pub(super) fn new(proxy: &Arc<ChaosProxy>, plan: &Plan) -> Self {
        let hosts = plan.api_hosts.iter().map(|host| foreign::bare(host)).collect();
        let current = Current { upstream: without_scheme(&plan.upstream), scenario: plan.scenario.clone() };
        Self { proxy: Arc::downgrade(proxy), current: Arc::new(Mutex::new(current)), hosts }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn proxy(&self) -> Result<Arc<ChaosProxy>, Wrong> {
        self.proxy
            .upgrade()
            .ok_or_else(|| Wrong(StatusCode::SERVICE_UNAVAILABLE, "the proxy is ending".into()))
    }
}

/// Why a request is refused.
struct Wrong(StatusCode, String);

impl IntoResponse for Wrong {
    fn into_response(self) -> Response {
        let Self(status, error) = self;
        answer(status, &json!({"error": error}))
    }
}

fn bad(what: impl Into<String>) -> Wrong {
    Wrong(StatusCode::BAD_REQUEST, what.into())
}

type Answer = Result<Response, Wrong>;

fn answer(status: StatusCode, body: &impl Serialize) -> Response {
    let mut text = serde_json::to_string(body).unwrap_or_default();
    text.push('\n');
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

fn ok(body: &impl Serialize) -> Answer {
    Ok(answer(StatusCode::OK, body))
}

/// Where the API listens.
pub(super) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    /// Clients of the proxy may take every other descriptor, and a command may be what frees them.
    spare: Spare,
}

impl Listener {
    pub(super) fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener: TcpListener::from_std(listener)?, address, spare: Spare::new() })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the process ends.
    pub(super) async fn serve(mut self, api: Api) {
        let app = router(api);
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    self.spare.refill();
                    let app = app.clone();
                    tokio::spawn(async move {
                        serve_connection(stream, app).await;
                        drop(place);
                    });
                }
                Err(error) if descriptors::are_exhausted(&error) && self.spare.release() => {}
                // No descriptor is free, or the client is gone already.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, app: Router) {
    let Ok(local) = stream.local_addr() else { return };
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app.layer(Extension(local))))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection of the API ended with an error");
    }
}

fn router(api: Api) -> Router {
    Router::new()
        .route("/", get(overview))
        .route("/connections", get(connections).delete(reset_all))
        .route("/connections/{id}", delete(reset))
        .route("/faults", get(faults).post(inject).delete(lift_all))
        .route("/faults/{id}", delete(lift))
        .route("/upstream", put(set_upstream))
        .route("/scenario", put(set_scenario))
        .route("/timeline", get(timeline))
        .fallback(async || Wrong(StatusCode::NOT_FOUND, format!("unknown path; there are {PATHS}")))
        .method_not_allowed_fallback(async || {
            Wrong(StatusCode::METHOD_NOT_ALLOWED, format!("this path has no such method; there are {PATHS}"))
        })
        .layer(middleware::from_fn_with_state(api.clone(), refuse_pages))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(api)
}

/// Refuses what a page of another site may have caused.
async fn refuse_pages(
    State(api): State<Api>,
    Extension(local): Extension<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    match judge(&api, local, &request) {
        Ok(()) => tokio::time::timeout(BODY_TIMEOUT, next.run(request)).await.unwrap_or_else(|_| {
            let what = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
            Wrong(StatusCode::REQUEST_TIMEOUT, what).into_response()
        }),
        Err(wrong) => wrong.into_response(),
    }
}

fn judge(api: &Api, local: SocketAddr, request: &Request) -> Result<(), Wrong> {
    let Some(names) = foreign::hosts(request) else {
        return Err(bad("the request needs one valid Host, and a path or a URL as its target"));
    };
    let is_ours =
        |host: &str| foreign::is_local(host, Some(local.ip())) || api.hosts.contains(&foreign::bare(host));
    if !names.iter().all(|name| is_ours(name.host())) {
        let what = "the Host of this request is no local name: use localhost or the address of --api, or start with \
                    --api-host NAME to accept this one";
        return Err(Wrong(StatusCode::MISDIRECTED_REQUEST, what.to_owned()));
    }
    if !foreign::is_same_site(request.headers(), &names) {
        let what =
            "the request comes from a page of another site (Origin): pages of browsers may not use this API";
        return Err(Wrong(StatusCode::FORBIDDEN, what.to_owned()));
    }
    // `DELETE /faults?id=1` is meant for one of them.
    if request.uri().query().is_some() && request.uri().path() != "/timeline" {
        return Err(bad("this path has no parameters behind a ?; write a number into the path: /faults/1"));
    }
    let has_body = matches!(*request.method(), Method::POST | Method::PUT);
    if has_body && !foreign::is_json(request.headers()) {
        let what = "the body must be JSON: send the header Content-Type: application/json";
        return Err(Wrong(StatusCode::UNSUPPORTED_MEDIA_TYPE, what.to_owned()));
    }
    Ok(())
}

/// What runs.
#[derive(Serialize)]
struct Overview {
    listen: SocketAddr,
    upstream: String,
    seed: u64,
    accepted: u64,
    open: usize,
    rules: Vec<Rule>,
    faults: Vec<ActiveFault>,
    version: &'static str,
}

async fn overview(State(api): State<Api>) -> Answer {
    let proxy = api.proxy()?;
    let current = api.current();
    ok(&Overview {
        listen: proxy.address(),
        upstream: current.upstream.clone(),
        seed: proxy.seed(),
        accepted: proxy.accepted(),
        open: proxy.connections().len(),
        rules: current.scenario.rules.clone(),
        faults: proxy.faults(),
        version: env!("CARGO_PKG_VERSION"),
    })
}

async fn connections(State(api): State<Api>) -> Answer {
    ok(&api.proxy()?.connections())
}

async fn faults(State(api): State<Api>) -> Answer {
    ok(&api.proxy()?.faults())
}

async fn timeline(State(api): State<Api>, request: Request) -> Answer {
    let wrong = |(status, line): (StatusCode, String)| Wrong(status, line.trim_end().to_owned());
    let query = Query::of(&request, &["after"]).map_err(wrong)?;
    let after = query.number("after", 0, u64::MAX).map_err(wrong)?.unwrap_or(0);
    let mut events = api.proxy()?.timeline();
    events.retain(|event| event.number > after);
    ok(&events)
}

async fn inject(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Answer {
    let proxy = api.proxy()?;
    let (rule, target) = command(object(&body)?, |id| is_open(&proxy, id))?;
    let id = proxy.inject(rule.fault, target, rule.lasts);
    Ok(answer(StatusCode::CREATED, &json!({"id": id})))
}

/// Reads the fault of a command, and what it strikes.
fn command(
    mut fields: Map<String, Value>,
    is_open: impl Fn(u64) -> Result<(), Wrong>,
) -> Result<(Rule, Target), Wrong> {
    let (connection, target) = (fields.remove("connection"), fields.remove("target"));
    if let Some(field) =
        ["at", "repeat", "after", "every", "share"].iter().find(|field| fields.contains_key(**field))
    {
        return Err(bad(format!(
            "{field}: a command strikes at once; remove it, or send the rule to PUT /scenario as {{\"fault\": [{{...}}]}}"
        )));
    }
    let rule = Rule::from_fields(&fields).map_err(|error| bad(error.to_string()))?;
    let target = match (connection, target) {
        (Some(_), Some(_)) => return Err(bad("target: contradicts connection; write one of them")),
        (Some(id), None) => {
            let id = id.as_u64().ok_or_else(|| {
                bad(format!(
                    "connection: must be a number of GET /connections, not {id}; write for example 1"
                ))
            })?;
            is_open(id)?;
            Target::Connection(id)
        }
        (None, None) => Target::All,
        (None, Some(target)) => match target.as_str() {
            Some("open") => Target::Open,
            Some("new") => Target::New,
            Some("all") => Target::All,
            _ => return Err(bad(format!("target: must be open, new or all, not {target}"))),
        },
    };
    let strikes = Kind::named(rule.fault.name()).map(|kind| kind.strikes);
    let only_new = matches!(strikes, Some(Strikes::Listener | Strikes::Opening));
    match target {
        Target::Open if only_new => Err(bad(format!(
            "target: {} strikes connections as they open; write new or all",
            rule.fault.name()
        ))),
        Target::Connection(_) if only_new => {
            Err(bad(format!("connection: {} strikes connections as they open; remove it", rule.fault.name())))
        }
        target => Ok((rule, target)),
    }
}

/// The number in a path.
type Number = Result<Path<u64>, PathRejection>;

async fn lift(State(api): State<Api>, number: Number) -> Answer {
    let Path(number) = number.map_err(|_| bad("the path has no number of a fault; GET /faults has them"))?;
    if api.proxy()?.lift(FaultId(number)) {
        return ok(&json!({"lifted": true}));
    }
    let what = format!("fault {number} is not in force; GET /faults lists those that are");
    Err(Wrong(StatusCode::NOT_FOUND, what))
}

async fn lift_all(State(api): State<Api>) -> Answer {
    api.proxy()?.lift_all();
    ok(&json!({"lifted": true}))
}

async fn reset(State(api): State<Api>, number: Number) -> Answer {
    let Path(number) =
        number.map_err(|_| bad("the path has no number of a connection; GET /connections has them"))?;
    let proxy = api.proxy()?;
    is_open(&proxy, number)?;
    ok(&json!({"id": proxy.inject(Fault::Reset, Target::Connection(number), None)}))
}

async fn reset_all(State(api): State<Api>) -> Answer {
    ok(&json!({"id": api.proxy()?.inject(Fault::Reset, Target::Open, None)}))
}

fn is_open(proxy: &ChaosProxy, id: u64) -> Result<(), Wrong> {
    match proxy.connections().iter().any(|connection| connection.id == id) {
        true => Ok(()),
        false => {
            let what = format!("connection {id} is not open; GET /connections lists those that are");
            Err(Wrong(StatusCode::NOT_FOUND, what))
        }
    }
}

/// Returns `HOST:PORT`, as the timeline has it.
fn without_scheme(upstream: &str) -> String {
    upstream.split_once("://").map_or(upstream, |(_, rest)| rest).trim_end_matches('/').to_owned()
}

async fn set_upstream(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Answer {
    let fields = object(&body)?;
    let upstream = match (fields.get("upstream").and_then(Value::as_str), fields.len()) {
        (Some(upstream), 1) => upstream,
        _ => return Err(bad("write {\"upstream\": \"127.0.0.1:3000\"} and nothing else")),
    };
    let proxy = api.proxy()?;
    plan::without_password(upstream).map_err(|what| bad(format!("upstream: {what}")))?;
    let mut current = api.current();
    proxy.set_upstream(upstream).map_err(|error| bad(error.to_string()))?;
    current.upstream = without_scheme(upstream);
    ok(&json!({"upstream": current.upstream}))
}

/// The rules in force, in the order in which the timeline counts them.
#[derive(Serialize)]
struct Rules<'a> {
    rules: &'a [Rule],
}

async fn set_scenario(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Answer {
    let file = ScenarioFile::parse_json(text(&body)?).map_err(|error| bad(error.to_string()))?;
    if file.seed.is_some() {
        return Err(bad("seed: is fixed when the program starts; remove it"));
    }
    let proxy = api.proxy()?;
    let mut current = api.current();
    proxy.set_scenario(file.scenario.clone());
    current.scenario = file.scenario;
    ok(&Rules { rules: &current.scenario.rules })
}

fn text(body: &Result<Bytes, BytesRejection>) -> Result<&str, Wrong> {
    match body {
        Ok(body) => std::str::from_utf8(body).map_err(|_| bad("the body is no text in UTF-8")),
        Err(error) => {
            Err(Wrong(error.status(), format!("the body cannot be read, or is larger than 1 MiB: {error}")))
        }
    }
}

fn object(body: &Result<Bytes, BytesRejection>) -> Result<Map<String, Value>, Wrong> {
    match serde_json::from_str(text(body)?) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(bad("the body must be an object such as {\"kind\": \"reset\"}")),
        Err(error) => Err(bad(format!("the body is no valid JSON: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Target, String> {
        let Ok(Value::Object(fields)) = serde_json::from_str(text) else { panic!("{text}") };
        let is_open = |id| if id == 3 { Ok(()) } else { Err(bad("not open")) };
        command(fields, is_open).map(|(_, target)| target).map_err(|Wrong(_, line)| line)
    }

    #[test]
    fn a_command_strikes_all_connections_unless_it_names_some() {
        assert_eq!(read(r#"{"kind": "reset"}"#), Ok(Target::All));
        assert_eq!(read(r#"{"kind": "stall", "for": "1s", "target": "new"}"#), Ok(Target::New));
        assert_eq!(read(r#"{"kind": "stall", "connection": 3}"#), Ok(Target::Connection(3)));
    }

    #[test]
    fn a_wrong_command_names_the_field_and_what_to_write() {
        for (text, expected) in [
            (
                r#"{"kind": "reset", "at": "1s"}"#,
                "at: a command strikes at once; remove it, or send the rule to PUT /scenario",
            ),
            (r#"{"kind": "reset", "connection": 3, "target": "all"}"#, "target: contradicts connection"),
            (
                r#"{"kind": "reset", "connection": "3"}"#,
                "connection: must be a number of GET /connections, not \"3\"",
            ),
            (r#"{"kind": "reset", "connection": 4}"#, "not open"),
            (r#"{"kind": "reset", "target": "some"}"#, "target: must be open, new or all, not \"some\""),
            (
                r#"{"kind": "refuse", "target": "open"}"#,
                "target: refuse strikes connections as they open; write new or all",
            ),
            (
                r#"{"kind": "status", "code": 503, "connection": 3}"#,
                "connection: status strikes connections as they open",
            ),
            (
                r#"{"kind": "stall", "for": 8}"#,
                "for: must be a time with a unit, not 8; write for example \"8s\"",
            ),
            (r#"{}"#, "kind: is missing"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
