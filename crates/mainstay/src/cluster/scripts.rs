//! Requests as commands and scripts of Redis, and the answers to them.
//!
//! | Key | Type | Content |
//! |---|---|---|
//! | `mainstay:NAME:nodes` | hash | the table of nodes: a node's id, and what it wrote |
//! | `mainstay:NAME:s:{ID}` | hash | a session that was released, or an account: see `commit.lua` |
//! | `mainstay:NAME:s:{ID}:o` | list | its messages |
//! | `mainstay:NAME:{notes}:DAY` | hash | the notes of one day, counted from 1970: a note's key and value |
//!
//! The braces are part of the key: Redis Cluster keeps both keys of a session on one server, and all
//! notes on one. The notes of a day are one key, which expires as a whole. The head comes in pieces of at most
//! 64 bytes, the first of which is the names of both valid tokens: a hash with longer fields takes twice the memory.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use mainstay_proto::cluster::Note;
use mainstay_proto::cluster::request::{Request, Response};
use mainstay_proto::session::message::SessionId;
use mainstay_proto::session::{NodeId, Record};
use redis::aio::ConnectionLike;
use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value, cmd, pipe};
use sha1::{Digest, Sha1};

/// The first piece of a head: two names of 16 bytes.
const NAMES: usize = 32;

/// What Redis keeps compact in a hash.
const PIECE: usize = 64;

/// Notes are kept by the day.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Precedes what is saved, so that nothing and an empty value differ.
const SAVED: u8 = b'=';

/// The scripts, and the keys that they work on.
pub(super) struct Scripts {
    prefix: String,
    commit: Script,
    claim: Script,
}

impl Scripts {
    /// The scripts for the cluster `name`.
    pub(super) fn new(name: &str) -> Self {
        Self {
            prefix: format!("mainstay:{name}:"),
            commit: Script::new(include_str!("commit.lua")),
            claim: Script::new(include_str!("claim.lua")),
        }
    }

    /// Loads the scripts, at every connect: a replica that became the primary has none.
    pub(super) async fn load(&self, commands: &mut impl ConnectionLike) -> Result<(), RedisError> {
        for script in [&self.commit, &self.claim] {
            let hash: String = cmd("SCRIPT").arg("LOAD").arg(script.code).query_async(commands).await?;
            if hash != script.hash {
                return Err((ErrorKind::UnexpectedReturnType, "SCRIPT LOAD returned another hash").into());
            }
        }
        Ok(())
    }

    /// The key of the table of nodes.
    pub(super) fn nodes(&self) -> String {
        format!("{}nodes", self.prefix)
    }

    fn notes(&self, day: u64) -> String {
        format!("{}{{notes}}:{day}", self.prefix)
    }

    fn session(&self, session: SessionId) -> [String; 2] {
        let key = format!("{}s:{{{session}}}", self.prefix);
        let messages = format!("{key}:o");
        [key, messages]
    }

    /// Executes a request. `incarnation` is the engine's, as far as it is known.
    pub(super) async fn execute(
        &self,
        commands: &mut impl ConnectionLike,
        request: &Request,
        incarnation: &str,
    ) -> Result<Response, RedisError> {
        match request {
            Request::Heartbeat { node, value } => {
                let (key, field) = (self.nodes(), node.to_string());
                let mut both = pipe();
                both.hset(&key, field, &value[..]).ignore().hgetall(&key);
                let (fields,): (Value,) = both.query_async(commands).await?;
                table(fields)
            }
            Request::Forget { node } => {
                cmd("HDEL").arg(self.nodes()).arg(node.to_string()).exec_async(commands).await?;
                Ok(Response::Stored)
            }
            Request::Release { session, owner, claim, number, record, keep } => {
                let [key, messages] = self.session(*session);
                let answer = self.commit.run(commands, |commit| {
                    commit.arg(2).arg(&key).arg(&messages).arg(claim).arg(owner.to_string()).arg(number);
                    // The whole session, without an owner. Its head has what it acknowledged.
                    commit.arg(1).arg(0).arg(0).arg(milliseconds(*keep)).arg(1).arg(incarnation);
                    commit.arg(
                        record.saved.as_ref().map_or_else(Vec::new, |saved| [&[SAVED], &saved[..]].concat()),
                    );
                    let (names, rest) = record.head.split_at(record.head.len().min(NAMES));
                    let pieces: Vec<&[u8]> = std::iter::once(names).chain(rest.chunks(PIECE)).collect();
                    commit.arg(pieces.len()).arg(pieces);
                    record.messages.iter().for_each(|message| _ = commit.arg(&message[..]));
                });
                committed(answer.await?)
            }
            Request::Claim { session, owner, disowned, claimant, name, keep } => {
                let [key, messages] = self.session(*session);
                let answer = self.claim.run(commands, |claim| {
                    claim.arg(2).arg(&key).arg(&messages).arg(owner.to_string()).arg(claimant.to_string());
                    claim.arg(&name[..]).arg(milliseconds(*keep)).arg(u8::from(*disowned));
                });
                claimed(answer.await?)
            }
            Request::Note { note, keep } => {
                let key = self.notes(today());
                let until = milliseconds(*keep + 2 * DAY);
                let mut both = pipe();
                both.hset(&key, &note.key[..], &note.value[..]).ignore();
                both.cmd("PEXPIRE").arg(&key).arg(until).ignore();
                both.exec_async(commands).await?;
                Ok(Response::Stored)
            }
            Request::Notes { keep } => {
                let (today, days) = (today(), keep.as_secs().div_ceil(DAY.as_secs()));
                let mut all = pipe();
                // Another node's clock may be ahead.
                for day in today.saturating_sub(days)..=today + 1 {
                    all.hgetall(self.notes(day));
                }
                let days: Vec<Value> = all.query_async(commands).await?;
                let mut notes = Vec::new();
                for fields in days {
                    notes.extend(noted(fields)?);
                }
                Ok(Response::Notes(notes))
            }
        }
    }
}

/// One script. The crate's own type panics if a server answers SCRIPT LOAD with another hash.
struct Script {
    code: &'static str,
    hash: String,
}

impl Script {
    fn new(code: &'static str) -> Self {
        let hash = Sha1::digest(code);
        Self { code, hash: hash.iter().map(|byte| format!("{byte:02x}")).collect() }
    }

    /// Runs the script by its hash, and by its text if the server has lost it. `arguments` adds the count of keys, the keys and the
    /// rest.
    async fn run(
        &self,
        commands: &mut impl ConnectionLike,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<Vec<Value>, RedisError> {
        let mut by_hash = cmd("EVALSHA");
        arguments(by_hash.arg(&self.hash));
        let answer = match by_hash.query_async(commands).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                let mut by_text = cmd("EVAL");
                arguments(by_text.arg(self.code));
                by_text.query_async(commands).await
            }
            answer => answer,
        };
        match answer? {
            Value::Array(parts) => Ok(parts),
            _ => Err(foreign()),
        }
    }
}

/// The fields as HGETALL returns them. Those that are no node's are left out: a check writes one for a moment.
fn table(fields: Value) -> Result<Response, RedisError> {
    let Value::Array(fields) = fields else { return Err(foreign()) };
    let (mut fields, mut nodes) = (fields.into_iter().map(bytes), Vec::new());
    while let (Some(field), Some(value)) = (fields.next(), fields.next()) {
        nodes.extend(node(&field).map(|node| (node, value)));
    }
    Ok(Response::Table(nodes))
}

/// The notes of a day as HGETALL returns them.
fn noted(fields: Value) -> Result<impl Iterator<Item = Note>, RedisError> {
    let Value::Array(fields) = fields else { return Err(foreign()) };
    let mut fields = fields.into_iter().map(bytes);
    Ok(std::iter::from_fn(move || Some(Note { key: fields.next()?, value: fields.next()? })))
}

/// Returns the day by this node's clock, counted from 1970.
fn today() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / DAY.as_secs())
}

fn committed(answer: Vec<Value>) -> Result<Response, RedisError> {
    let mut answer = answer.into_iter();
    let kind = answer.next().map(bytes).unwrap_or_default();
    match (&kind[..], answer.next()) {
        (b"stored", None) => Ok(Response::Stored),
        (b"fenced", Some(owner)) => match bytes(owner) {
            nobody if nobody.is_empty() => Ok(Response::Fenced(None)),
            owner => Ok(Response::Fenced(Some(node(&owner).ok_or_else(foreign)?))),
        },
        _ => Err(foreign()),
    }
}

fn claimed(answer: Vec<Value>) -> Result<Response, RedisError> {
    let mut answer = answer.into_iter();
    let kind = answer.next().map(bytes).unwrap_or_default();
    match (&kind[..], answer.next(), answer.next()) {
        (b"none", None, None) => Ok(Response::None),
        (b"moved", Some(owner), None) => Ok(Response::Moved(node(&bytes(owner)).ok_or_else(foreign)?)),
        (b"yours", Some(Value::Array(fields)), Some(Value::Array(messages))) => {
            let (claim, record) = record(fields, messages).ok_or_else(foreign)?;
            Ok(Response::Claimed { claim, record })
        }
        _ => Err(foreign()),
    }
}

/// The fields of a session, as HGETALL returns them.
fn record(fields: Vec<Value>, messages: Vec<Value>) -> Option<(u64, Record)> {
    let (mut claim, mut saved, mut pieces) = (None, None, Vec::new());
    let mut fields = fields.into_iter().map(bytes);
    while let (Some(field), Some(value)) = (fields.next(), fields.next()) {
        match &field[..] {
            b"c" => claim = number(&value),
            b"s" => saved = Some(value),
            [b'h', index @ ..] => pieces.push((number(index)?, value)),
            _ => {}
        }
    }
    pieces.sort_unstable_by_key(|(index, _)| *index);
    let head = pieces.iter().map(|(_, piece)| &piece[..]).collect::<Vec<_>>().concat().into();
    let saved = match saved {
        Some(saved) if saved.first() == Some(&SAVED) => Some(saved.slice(1..)),
        Some(_) => return None,
        None => None,
    };
    Some((claim?, Record { head, saved, messages: messages.into_iter().map(bytes).collect() }))
}

/// The bytes of a bulk string; empty for anything else.
fn bytes(value: Value) -> Bytes {
    match value {
        Value::BulkString(bytes) => bytes.into(),
        _ => Bytes::new(),
    }
}

fn node(hex: &[u8]) -> Option<NodeId> {
    let text = std::str::from_utf8(hex).ok().filter(|text| text.len() == 16 && !text.starts_with('+'))?;
    u64::from_str_radix(text, 16).ok().map(|id| NodeId(id.to_be_bytes()))
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// At least 1: Redis deletes at once what lives for no time.
fn milliseconds(keep: Duration) -> u64 {
    u64::try_from(keep.as_millis()).unwrap_or(u64::MAX).clamp(1, i64::MAX as u64 / 2)
}

fn foreign() -> RedisError {
    (ErrorKind::UnexpectedReturnType, "the keys mainstay:NAME:* have content that no node wrote").into()
}
