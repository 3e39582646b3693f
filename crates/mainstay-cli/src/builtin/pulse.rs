//! What the page talks to, over a session or a plain WebSocket alike. Messages are JSON texts, and a client can act on
//! no connection but its own:
//!
//! ```text
//! client                              server
//! {"type":"pulse","n":1}               the same message, whatever else it has
//!                                      {"type":"tick","n":3592000001}, one more every 500 ms
//! {"type":"cut"}                       drops the connection
//! {"type":"freeze","seconds":5}        holds it for so long, 1 to 30
//! {"type":"silent"}                    holds it for an hour
//! {"type":"restart"}                   sends the client away, to come back within a second
//! {"type":"forget"}                    ends the session, as if what stands behind it were lost
//! anything else                        {"type":"error","message":"..."}
//! ```
//!
//! Ticks are numbered by the time and not by the client, so that a client that was away sees how many it missed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mainstay::server::Sender;
use mainstay::{Message, SendError, Session};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};

const TICK: Duration = Duration::from_millis(500);
const FREEZE_SECONDS: std::ops::RangeInclusive<u64> = 1..=30;
const SILENCE: Duration = Duration::from_secs(60 * 60);
const COME_BACK: std::ops::RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(1);
/// A client that has not come back by then is closed.
const GONE_BY: Duration = Duration::from_secs(5);

/// The number of the newest tick: the same for every client, and it goes on over a restart of the program.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    started: Instant,
    /// Since 1970, when it started.
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

/// Serves one client, ticks included, until its session is over.
pub(super) async fn run(mut session: Session, clock: Clock) {
    let sender = session.sender();
    let mut timer = interval(TICK);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = clock.newest();
    loop {
        tokio::select! {
            message = session.recv() => {
                let Some(message) = message else { return };
                match handle(&message, &sender) {
                    Then::Nothing => {}
                    Then::Answer(answer) => if session.send(answer).await.is_err() { return },
                    Then::Forget => return session.renew(0),
                }
            }
            _ = timer.tick() => if !tell(&session, clock.newest(), &mut told) { return },
        }
    }
}

/// Sends the ticks up to the newest; false: the session is over.
fn tell(session: &Session, newest: u64, told: &mut u64) -> bool {
    while *told < newest {
        match session.try_send(text(&json!({"type": "tick", "n": *told + 1}))) {
            Ok(()) => *told += 1,
            // It is away, and enough waits for it: the rest follows when it is back.
            Err(SendError::Full(_)) => return true,
            Err(_) => return false,
        }
    }
    true
}

/// What follows from a message.
enum Then {
    Nothing,
    Answer(Message),
    Forget,
}

/// Does what a message asks for.
fn handle(message: &Message, session: &Sender) -> Then {
    match Wish::read(message) {
        Ok(Wish::Pulse) => return Then::Answer(message.clone()),
        Ok(Wish::Cut) => session.cut(),
        Ok(Wish::Hold(duration)) => session.hold(duration),
        Ok(Wish::Restart) => session.go_away("the client asked for it", COME_BACK, GONE_BY),
        Ok(Wish::Forget) => return Then::Forget,
        Err(why) => return Then::Answer(text(&json!({"type": "error", "message": why}))),
    }
    Then::Nothing
}

/// What a client wants done.
#[derive(Debug, PartialEq)]
enum Wish {
    Pulse,
    Cut,
    Hold(Duration),
    Restart,
    Forget,
}

impl Wish {
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

    fn check(text: &str, expected: Result<Wish, &str>) {
        let found = Wish::read(&Message::text(text));
        match expected {
            Ok(wish) => assert_eq!(found, Ok(wish), "{text}"),
            Err(word) => assert!(matches!(&found, Err(why) if why.starts_with(word)), "{text}: {found:?}"),
        }
    }

    #[test]
    fn a_wish_is_read_or_refused_by_the_field_that_is_wrong() {
        let hold = |seconds| Ok(Wish::Hold(Duration::from_secs(seconds)));
        check(r#"{"type":"pulse","n":0}"#, Ok(Wish::Pulse));
        check(r#"{"type":"pulse","n":7,"text":"hello"}"#, Ok(Wish::Pulse));
        check(r#"{"type":"cut"}"#, Ok(Wish::Cut));
        check(r#"{"type":"freeze","seconds":1}"#, hold(1));
        check(r#"{"type":"freeze","seconds":30}"#, hold(30));
        check(r#"{"type":"silent"}"#, hold(3600));
        check(r#"{"type":"restart"}"#, Ok(Wish::Restart));
        check(r#"{"type":"forget"}"#, Ok(Wish::Forget));
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
        assert!(Wish::read(&Message::binary(b"{\"type\":\"cut\"}".to_vec())).is_err());
    }
}
