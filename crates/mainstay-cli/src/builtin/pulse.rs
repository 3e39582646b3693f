//! The backend of the page, over a session or a plain WebSocket. Messages are JSON texts; a client can affect its own
//! connection only:
//!
//! ```text
//! client                              server
//! {"type":"pulse","n":1}               returns the same message
//!                                      {"type":"tick","n":3592000001}, one every 500 ms
//! {"type":"cut"}                       drops the connection
//! {"type":"freeze","seconds":5}        stalls the connection, 1 to 30 seconds
//! {"type":"silent"}                    stalls the connection for an hour
//! {"type":"restart"}                   drains the connection: the client reconnects within a second
//! {"type":"forget"}                    renews the session, as if its backend were lost
//! anything else                        {"type":"error","message":"..."}
//! ```
//!
//! Ticks are numbered by the clock, so that a client that was away sees how many it missed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mainstay::server::Sender;
use mainstay::{Message, SendError, Session};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};

const TICK: Duration = Duration::from_millis(500);
const FREEZE_SECONDS: std::ops::RangeInclusive<u64> = 1..=30;
const SILENCE: Duration = Duration::from_secs(60 * 60);
const RECONNECT_WITHIN: std::ops::RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(1);
/// A client that has not reconnected by then is closed.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// The number of the newest tick: the same for all clients, and increasing over restarts of the program.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    started: Instant,
    /// The start, since 1970.
    wall: Duration,
}

impl Clock {
    pub(super) fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), wall }
    }

    pub(super) fn newest(self) -> u64 {
        let ticks = (self.wall + self.started.elapsed()).as_millis() / TICK.as_millis();
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

/// Serves one client until its session is over.
pub(super) async fn run(mut session: Session, clock: Clock) {
    let sender = session.sender();
    let mut timer = interval(TICK);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // A session that moved here continues behind the tick that the process before sent last.
    let restored = session.restored().and_then(|sent| sent.as_ref().try_into().ok());
    let mut sent = restored.map_or_else(|| clock.newest(), u64::from_be_bytes);
    loop {
        tokio::select! {
            message = session.recv() => {
                let Some(message) = message else { return session.save(sent.to_be_bytes().to_vec()) };
                match handle(&message, &sender) {
                    Outcome::Continue => {}
                    Outcome::Reply(reply) => if session.send(reply).await.is_err() { return },
                    Outcome::Renew => return session.renew(0),
                }
            }
            _ = timer.tick() => if !send_ticks(&session, clock.newest(), &mut sent) { return },
        }
    }
}

/// Sends the ticks up to the newest. Returns `false` if the session is over.
fn send_ticks(session: &Session, newest: u64, sent: &mut u64) -> bool {
    while *sent < newest {
        match session.try_send(text(&json!({"type": "tick", "n": *sent + 1}))) {
            Ok(()) => *sent += 1,
            // The client is away and its queue is full: the rest follows when it is back.
            Err(SendError::Full(_)) => return true,
            Err(_) => return false,
        }
    }
    true
}

/// The effect of a message on the session.
enum Outcome {
    Continue,
    Reply(Message),
    Renew,
}

/// Executes the request in a message.
fn handle(message: &Message, session: &Sender) -> Outcome {
    match Request::read(message) {
        Ok(Request::Pulse) => return Outcome::Reply(message.clone()),
        Ok(Request::Cut) => session.cut(),
        Ok(Request::Hold(duration)) => session.hold(duration),
        Ok(Request::Restart) => session.go_away("the client requested it", RECONNECT_WITHIN, DRAIN_DEADLINE),
        Ok(Request::Forget) => return Outcome::Renew,
        Err(why) => return Outcome::Reply(text(&json!({"type": "error", "message": why}))),
    }
    Outcome::Continue
}

/// A request of the client.
#[derive(Debug, PartialEq)]
enum Request {
    Pulse,
    Cut,
    Hold(Duration),
    Restart,
    Forget,
}

impl Request {
    fn read(message: &Message) -> Result<Self, String> {
        let json = message.as_text().and_then(|text| serde_json::from_str::<Value>(text).ok());
        let json = json.ok_or("not JSON; send a text such as {\"type\":\"pulse\",\"n\":1}")?;
        match json["type"].as_str() {
            Some("pulse") if json["n"].is_u64() => Ok(Self::Pulse),
            Some("pulse") => Err("n: a whole number from 0".to_owned()),
            Some("cut") => Ok(Self::Cut),
            Some("freeze") => match json["seconds"].as_u64().filter(|s| FREEZE_SECONDS.contains(s)) {
                Some(seconds) => Ok(Self::Hold(Duration::from_secs(seconds))),
                None => Err("seconds: a whole number from 1 to 30".to_owned()),
            },
            Some("restart") => Ok(Self::Restart),
            Some("forget") => Ok(Self::Forget),
            Some("silent") => Ok(Self::Hold(SILENCE)),
            _ => Err("type: one of pulse, cut, freeze, restart, silent, forget".to_owned()),
        }
    }
}

fn text(json: &Value) -> Message {
    Message::text(json.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<Request, &str>) {
        let found = Request::read(&Message::text(text));
        match expected {
            Ok(request) => assert_eq!(found, Ok(request), "{text}"),
            Err(word) => assert!(matches!(&found, Err(why) if why.starts_with(word)), "{text}: {found:?}"),
        }
    }

    #[test]
    fn a_request_is_parsed_or_refused_with_the_invalid_field() {
        let hold = |seconds| Ok(Request::Hold(Duration::from_secs(seconds)));
        check(r#"{"type":"pulse","n":0}"#, Ok(Request::Pulse));
        check(r#"{"type":"pulse","n":7,"text":"hello"}"#, Ok(Request::Pulse));
        check(r#"{"type":"cut"}"#, Ok(Request::Cut));
        check(r#"{"type":"freeze","seconds":1}"#, hold(1));
        check(r#"{"type":"freeze","seconds":30}"#, hold(30));
        check(r#"{"type":"silent"}"#, hold(3600));
        check(r#"{"type":"restart"}"#, Ok(Request::Restart));
        check(r#"{"type":"forget"}"#, Ok(Request::Forget));
        check(r#"{"type":"pulse"}"#, Err("n:"));
        check(r#"{"type":"pulse","n":-1}"#, Err("n:"));
        check(r#"{"type":"pulse","n":1.5}"#, Err("n:"));
        for seconds in ["0", "31", "-1", "1.5", "\"5\"", "1e99", "null"] {
            check(&format!(r#"{{"type":"freeze","seconds":{seconds}}}"#), Err("seconds:"));
        }
        check(r#"{"type":"shutdown"}"#, Err("type:"));
        check(r#"{"type":{}}"#, Err("type:"));
        check("[]", Err("type:"));
        check("", Err("not JSON"));
        check("{", Err("not JSON"));
        assert!(Request::read(&Message::binary(b"{\"type\":\"cut\"}".to_vec())).is_err());
    }
}
