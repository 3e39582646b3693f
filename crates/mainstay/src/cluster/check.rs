//! The check of an engine at the start: whether a node can work with it, by doing what a node does.

use std::time::Duration;

use mainstay_proto::cluster::request::{Request, Response};
use mainstay_proto::session::message::SessionId;
use mainstay_proto::session::{NodeId, Record};
use redis::{RedisError, pipe};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::connect::{Link, connect};
use super::engine::{Engine, EngineError, Host};
use super::fault;
use super::info::Info;
use super::scripts::Scripts;

/// How long the trial, and each look at what answers, may take.
const LIMIT: Duration = Duration::from_secs(2);

/// How long the engine keeps the session of the trial.
const KEEP: Duration = Duration::from_secs(2);

const NO_INFO: &str = "the engine does not allow INFO: a fail-over of it may go unnoticed; allow +info";

/// A field that is no node's.
const TRIAL: &str = "trial";

/// What a node learns of its engine at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineFacts {
    /// The server and its version, as `Redis 7.0.15`; `None`: the engine does not allow INFO.
    pub server: Option<String>,
    /// One lifetime of the engine's primary; `None`: the engine does not allow INFO.
    pub incarnation: Option<String>,
    /// What the operator should know, a line each.
    pub warnings: Vec<String>,
}

impl Engine {
    /// Connects once and does what a node of the cluster `name` does: so a node starts only with an engine that can serve it. What
    /// it writes for that is gone after 2 s.
    ///
    /// # Errors
    ///
    /// The engine does not answer, or cannot serve: see [`EngineError::is_permanent`].
    ///
    /// # Cancel safety
    ///
    /// It may be dropped at any time; the connection closes.
    pub async fn check(&self, name: &str) -> Result<EngineFacts, EngineError> {
        check_name(name)?;
        let scripts = Scripts::new(name);
        let link = match connect(self, &scripts).await {
            Ok(link) => link,
            Err(error) => return Err(self.explain(error).await),
        };
        let Link { info, mut commands, moving, .. } = link;
        let trial = timeout(LIMIT, try_everything(&scripts, &mut commands));
        let tried = tokio::select! {
            tried = trial => tried,
            // The trial learns of it by its next command.
            () = moving => Err(EngineError::away(format!("{self}: the engine closed the connection")))?,
        };
        match tried {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(fault::of(self, &error)),
            Err(_) => {
                return Err(EngineError::away(format!("{self}: writes get no answer within {LIMIT:?}")));
            }
        }
        Ok(EngineFacts {
            server: info.as_ref().map(Info::server),
            incarnation: info.as_ref().and_then(Info::incarnation),
            warnings: info.map_or_else(|| vec![NO_INFO.to_owned()], |info| info.warnings()),
        })
    }

    /// A better reason, if what answers there shows one: the other of TLS and plain TCP, a web server, or anything else.
    async fn explain(&self, error: EngineError) -> EngineError {
        let Some(host) = self.hosts().first() else { return error };
        let scheme = self.to_string();
        let scheme = scheme.split("://").next().unwrap_or_default();
        match (look(host).await, self.tls) {
            (Looks::Web, _) => {
                EngineError::wrong(format!("{self}: a web server answers at {host}, and no engine"))
            }
            (Looks::Other, _) => {
                EngineError::wrong(format!("{self}: what answers at {host} is no Redis and no Valkey"))
            }
            (Looks::Tls, false) => {
                let scheme = scheme.replacen("redis", "rediss", 1);
                EngineError::wrong(format!("{self}: {host} speaks TLS: write {scheme}://"))
            }
            (Looks::Engine, true) => {
                let scheme = scheme.replacen("rediss", "redis", 1);
                EngineError::wrong(format!("{self}: {host} speaks no TLS: write {scheme}://"))
            }
            _ => error,
        }
    }
}

/// Whether a cluster may have this name: a part of keys.
fn check_name(name: &str) -> Result<(), EngineError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=64).contains(&name.len()) && name.chars().all(is_plain) {
        return Ok(());
    }
    Err(EngineError::wrong("the cluster's name must be 1 to 64 of the characters A-Z a-z 0-9 - _ ."))
}

/// Every command that a node runs, once, with all that the scripts call.
async fn try_everything(
    scripts: &Scripts,
    commands: &mut super::connect::Commands,
) -> Result<(), RedisError> {
    let nodes = scripts.nodes();
    pipe()
        .hset(&nodes, TRIAL, "")
        .ignore()
        .hgetall(&nodes)
        .ignore()
        .hdel(&nodes, TRIAL)
        .ignore()
        .exec_async(commands)
        .await?;
    let [a, b, c, d, e, f, g, h, ..] = crate::random_seed();
    let id = [a, b, c, d, e, f, g, h];
    let (session, owner) = (SessionId(id), NodeId(id));
    let record = Record { head: vec![1; 32].into(), saved: None, messages: vec!["trial".into()] };
    let release =
        |claim| Request::Release { session, owner, claim, number: 1, record: record.clone(), keep: KEEP };
    let claim =
        Request::Claim { session, owner, disowned: false, claimant: owner, name: [1; 16], keep: KEEP };
    scripts.execute(commands, &release(1), "").await?;
    let claimed = scripts.execute(commands, &claim, "").await?;
    let again = scripts.execute(commands, &release(2), "").await?;
    scripts.execute(commands, &claim, "").await?;
    match (claimed, again) {
        (Response::Claimed { .. }, Response::Stored) => Ok(()),
        _ => Err((redis::ErrorKind::UnexpectedReturnType, "the engine forgot at once what it stored").into()),
    }
}

/// What answers at an address.
enum Looks {
    Engine,
    Web,
    Tls,
    Other,
    Unknown,
}

/// What every server answers with an error in its own form: a record of TLS with 257 bytes that are no handshake, and without TLS a
/// line with an unknown command. It has no byte 0, at which Redis stops to look for the line's end.
fn question() -> Vec<u8> {
    let mut question = b"\x16\x03\x01\x01\x01PING\r\n".to_vec();
    question.resize(5 + 257, b' ');
    question
}

/// Looks at the first bytes that a server answers.
async fn look(host: &Host) -> Looks {
    let talk = async {
        let mut stream = TcpStream::connect((host.name.as_str(), host.port)).await?;
        stream.write_all(&question()).await?;
        let mut start = [0; 5];
        stream.read_exact(&mut start).await?;
        std::io::Result::Ok(start)
    };
    match timeout(LIMIT, talk).await {
        Ok(Ok([b'+' | b'-', ..])) => Looks::Engine,
        Ok(Ok([b'H', b'T', b'T', b'P', b'/'])) => Looks::Web,
        // An alert of TLS: 21, and the version's first byte.
        Ok(Ok([21, 3, ..])) => Looks::Tls,
        Ok(Ok(_)) => Looks::Other,
        _ => Looks::Unknown,
    }
}
