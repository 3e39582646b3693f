//! What the page talks to. Messages are JSON texts, and a visitor can act on no session but its own:
//!
//! ```text
//! visitor                              server
//! {"type":"pulse","n":1}               the same message, whatever else it has
//!                                      {"type":"tick","n":1}, with n = 1, 2, 3 ... every 500 ms
//! {"type":"cut"}                       drops the connection
//! {"type":"freeze","seconds":5}        holds it for so long, 1 to 30
//! {"type":"silent"}                    holds it for an hour
//! {"type":"restart"}                   sends the visitor away, to come back within a second
//! anything else                        {"type":"error","message":"..."}
//! ```

use std::time::Duration;

use mainstay::server::Sender;
use mainstay::{Message, SendError, Session};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

const TICK: Duration = Duration::from_millis(500);
const FREEZE_SECONDS: std::ops::RangeInclusive<u64> = 1..=30;
const SILENCE: Duration = Duration::from_secs(60 * 60);
const COME_BACK: std::ops::RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(1);
/// A visitor that has not come back by then is closed.
const GONE_BY: Duration = Duration::from_secs(5);

/// Serves one visitor, ticks included, until its session is over.
pub(super) async fn run(mut session: Session) {
    let sender = session.sender();
    let mut clock = interval(TICK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ticks = 0;
    loop {
        tokio::select! {
            message = session.recv() => {
                let Some(message) = message else { return };
                if let Some(answer) = handle(&message, &sender)
                    && session.send(answer).await.is_err()
                {
                    return;
                }
            }
            _ = clock.tick() => match session.try_send(text(&json!({"type": "tick", "n": ticks + 1}))) {
                Ok(()) => ticks += 1,
                // It is away, and enough waits for it. The next one has this number.
                Err(SendError::Full(_)) => {}
                Err(_) => return,
            },
        }
    }
}

/// Does what a message asks for; the answer, where there is one.
fn handle(message: &Message, session: &Sender) -> Option<Message> {
    match Wish::read(message) {
        Ok(Wish::Pulse) => return Some(message.clone()),
        Ok(Wish::Cut) => session.cut(),
        Ok(Wish::Hold(duration)) => session.hold(duration),
        Ok(Wish::Restart) => session.go_away("the visitor asked for it", COME_BACK, GONE_BY),
        Err(why) => return Some(text(&json!({"type": "error", "message": why}))),
    }
    None
}

/// What a visitor wants done.
#[derive(Debug, PartialEq)]
enum Wish {
    Pulse,
    Cut,
    Hold(Duration),
    Restart,
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
            Some("silent") => Ok(Self::Hold(SILENCE)),
            _ => Err("type: one of pulse, cut, freeze, restart, silent".to_owned()),
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
