//! Errors of an engine in words that name what to do, and what each means: a wrong configuration, an engine that is away, or a
//! request that it refuses.

use std::error::Error;
use std::io;

use mainstay_proto::reach::{ConnectFailure, FailureKind};
use redis::{ErrorKind, RedisError};

use super::engine::{Engine, EngineError, Host, Place};

/// How much of a server's own words is repeated.
const WORDS: usize = 200;

/// What an error says of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The engine answers others, and refuses this request.
    Refused(String),
    /// No answer, or the answer of a server that cannot serve now: the connection is of no use.
    Lost(String),
}

/// What an error means for one request.
pub(super) fn verdict(error: &RedisError) -> Verdict {
    let Some((code, words)) = answer(error) else {
        return match error.kind() {
            ErrorKind::UnexpectedReturnType => Verdict::Refused(odd(error)),
            _ => Verdict::Lost(silence(error)),
        };
    };
    let words = one_line(&format!("{code} {words}"));
    match code.as_str() {
        "LOADING" | "READONLY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "BUSY" | "MOVED" | "ASK"
        | "NOAUTH" => Verdict::Lost(words),
        _ => Verdict::Refused(words),
    }
}

/// What an error means for the connection.
pub(super) fn of(engine: &Engine, error: &RedisError) -> EngineError {
    let Some((code, words)) = answer(error) else {
        return match error.kind() {
            ErrorKind::UnexpectedReturnType => EngineError::wrong(format!("{engine}: {}", odd(error))),
            ErrorKind::AuthenticationFailed => {
                EngineError::wrong(format!("{engine} refuses the user or the password"))
            }
            ErrorKind::InvalidClientConfig => {
                EngineError::wrong(format!("{engine}: {}", one_line(&error.to_string())))
            }
            _ => EngineError::away(format!("{engine}: {}", silence(error))),
        };
    };
    let words = one_line(&words);
    let has = |part: &str| words.contains(part);
    let wrong = |what: &str| EngineError::wrong(format!("{engine} {what}"));
    let away = |what: &str| EngineError::away(format!("{engine} {what}"));
    match code.as_str() {
        "WRONGPASS" => wrong("refuses the user or the password"),
        "NOAUTH" => wrong("asks for a password: redis://:password@host, or user:password@"),
        "NOPERM" => wrong(&format!(
            "allows the user too little ({words}): the documentation of --cluster names the rules"
        )),
        "DENIED" => wrong("is in protected mode, which serves its own machine alone: give it a password"),
        "MOVED" | "ASK" | "CROSSSLOT" => wrong("is a node of Redis Cluster: write redis+cluster://host:6379"),
        "READONLY" if matches!(engine.place, Place::Sentinel { .. } | Place::Cluster(_)) => {
            away("takes no writes: a fail-over is under way")
        }
        "READONLY" => {
            wrong("is a replica, which takes no writes: name the primary, or use redis+sentinel://")
        }
        "LOADING" => away("is loading its data"),
        "BUSY" => away("is busy with a script of another program: SCRIPT KILL ends it"),
        "MASTERDOWN" => away("is a replica that has lost its primary"),
        "CLUSTERDOWN" => away(&format!("does not serve all keys ({words}): CLUSTER NODES lists its servers")),
        "OOM" => away("takes no writes, its memory is full: raise maxmemory"),
        "MISCONF" => away(&format!("takes no writes, as it cannot save its data: {words}")),
        // Inside of a script: Valkey, Redis 7.
        "ERR" if has("ACL failure") || has("can't run this command") => wrong(&too_little(&words)),
        "ERR" if has("max number of clients") => away("has as many clients as it takes: raise maxclients"),
        "ERR" if has("without any password configured") => {
            wrong("has no password for its default user: leave it out of the URL, or name the user")
        }
        "ERR" if has("DB index is out of range") => {
            wrong("has fewer databases: the number behind the host is too high")
        }
        "ERR" if has("SELECT is not allowed") => {
            wrong("is a node of Redis Cluster: write redis+cluster://host:6379")
        }
        "ERR" if has("cluster support disabled") => wrong("is no Redis Cluster: write redis://host:6379"),
        _ => wrong(&format!("cannot serve: {code} {words}")),
    }
}

fn too_little(words: &str) -> String {
    format!("allows the user too little ({words}): the documentation of clusters names the rules")
}

/// What an error of a Sentinel means.
pub(super) fn of_sentinel(engine: &Engine, host: &Host, error: &RedisError) -> EngineError {
    match answer(error) {
        Some((code, words)) if code == "ERR" && words.contains("unknown command") => EngineError::wrong(
            format!("{engine}: {host} is no Sentinel: write redis://{host} if it is the engine itself"),
        ),
        _ => of(engine, error),
    }
}

/// Why no connection came about.
pub(super) fn of_connecting(engine: &Engine, failure: &ConnectFailure) -> EngineError {
    let words = one_line(&failure.to_string());
    let denied = |error: &(dyn Error + 'static)| {
        error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    match failure.kind {
        FailureKind::Certificate => {
            EngineError::wrong(format!("{engine}: {words}; SSL_CERT_FILE names the certificates to trust"))
        }
        FailureKind::Refused => EngineError::away(format!("{engine}: {words}: is the engine running there?")),
        _ if matches!(engine.place, Place::Unix(_)) && failure.source().is_some_and(denied) => {
            EngineError::wrong(format!("{engine}: {words}: this user may not open the socket"))
        }
        _ => EngineError::away(format!("{engine}: {words}")),
    }
}

/// Whether a server answered, though with an error.
pub(super) fn is_answer(error: &RedisError) -> bool {
    answer(error).is_some()
}

/// Whether the engine does not allow this command, or does not know it.
pub(super) fn is_forbidden(error: &RedisError) -> bool {
    answer(error)
        .is_some_and(|(code, words)| code == "NOPERM" || (code == "ERR" && words.contains("unknown command")))
}

/// The code and the words of a server's error answer; in a pipeline, of the first.
fn answer(error: &RedisError) -> Option<(String, String)> {
    let errors = error.clone().into_server_errors()?;
    let (_, first) = errors.first()?;
    Some((first.code().to_owned(), first.details().unwrap_or_default().to_owned()))
}

/// An answer of another form than the command has.
fn odd(error: &RedisError) -> String {
    format!("an answer that no Redis and no Valkey gives: {}", one_line(&error.to_string()))
}

/// Why no answer came. An answer that cannot be parsed may be one that was cut.
fn silence(error: &RedisError) -> String {
    match error.kind() {
        ErrorKind::Parse => "the answer is cut, or none of Redis or Valkey".to_owned(),
        _ if error.is_connection_dropped() => "the engine closed the connection".to_owned(),
        _ => one_line(&error.to_string()),
    }
}

/// A server's words as part of a log line.
fn one_line(words: &str) -> String {
    let words: String = words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(WORDS).collect();
    words.trim_end().to_owned()
}
