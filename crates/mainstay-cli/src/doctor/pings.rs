//! Round trips by the RFC's Ping, what answers them, and the Pings of the server.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::probe::{Ended, Probe, Seen};
use super::report::{AnsweredBy, EchoFacts, EndFacts, Facts, FirstMessageFacts, PingFacts, Spread, ms};
use super::target::{Target, seed};

/// How many Pings and echoed messages are sent, and how many in vain before the doctor gives up.
const ROUNDS: u32 = 10;
const ECHOES: u32 = 5;
const IN_VAIN: u32 = 2;
/// The longest time to wait for an answer.
const ANSWER_TIME: Duration = Duration::from_secs(3);
/// The pause between two Pings.
const PAUSE: Duration = Duration::from_millis(50);
/// A Pong that comes by so much earlier than an echo is not the server's.
const CLEARLY: f64 = 5.0;

/// Waits for the answer to a first message, sends Pings, and with `echo` messages, and notes the times of the answers in `facts`.
///
/// # Cancel safety
/// Safe: what is known so far is in `facts`.
pub(super) async fn measure(probe: &mut Probe, echo: bool, target: &Target, facts: &mut Facts) {
    let connect = facts.addresses.iter().find(|address| Some(address.address) == facts.used);
    let connect = connect.and_then(|address| address.connect_ms);
    if target.first_message().is_some() {
        let is_answered = timeout(ANSWER_TIME, probe.greeting()).await == Ok(true);
        let answered_ms = is_answered.then(|| ms(probe.heard_at() - probe.opened_at()));
        facts.first_message = Some(FirstMessageFacts { answered_ms });
    }
    let pings = facts.pings.insert(PingFacts::default());
    let end = match ping(probe, pings).await {
        Ok(()) if echo => echoes(probe, pings).await,
        other => other,
    };
    pings.answered_by = answered_by(pings, connect);
    facts.ended = end.err().map(|end| end.facts(probe, target));
}

/// Counts the server's Pings until the connection ends.
///
/// # Cancel safety
/// Safe: what is known so far is in `facts`.
pub(super) async fn watch(mut probe: Probe, facts: &mut PingFacts) {
    let mut last: Option<Instant> = None;
    loop {
        match probe.next().await {
            Seen::Ping(_) => {
                let now = Instant::now();
                let since = last.replace(now).map(|last| ms(now - last));
                let shortest = facts.server_interval_ms.into_iter().chain(since).reduce(f64::min);
                facts.server_interval_ms = shortest;
                facts.from_server += 1;
            }
            Seen::Ended(_) => return,
            _ => {}
        }
    }
}

/// The connection ended by itself.
enum Over {
    Close { code: Option<u16>, reason: String },
    End(Ended),
}

impl Over {
    fn facts(self, probe: &Probe, target: &Target) -> EndFacts {
        let after_ms = ms(probe.heard_at() - probe.opened_at());
        match self {
            Self::Close { code, reason } => {
                EndFacts { after_ms, how: "close", code, reason: Some(target.shown(&reason)) }
            }
            Self::End(Ended(end)) => EndFacts {
                after_ms,
                how: end.name(),
                code: None,
                reason: end.words().map(|words| target.shown(words)),
            },
        }
    }
}

async fn ping(probe: &mut Probe, facts: &mut PingFacts) -> Result<(), Over> {
    let mut times = Vec::new();
    let mut in_vain = 0;
    while facts.sent < ROUNDS && in_vain < IN_VAIN {
        let [payload @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = seed();
        let sent_at = Instant::now();
        probe.send_ping(&payload).await.map_err(|ended| over(probe, ended))?;
        facts.sent += 1;
        let mut other = false;
        let answered = until(probe, sent_at, &mut facts.from_server, |seen| match seen {
            Seen::Pong(pong) if **pong == payload => true,
            Seen::Pong(_) => {
                other = true;
                false
            }
            _ => false,
        });
        match answered.await? {
            true => times.push(ms(sent_at.elapsed())),
            false => {
                facts.wrong_payload += u32::from(other);
                in_vain += 1;
            }
        }
        facts.answered = u32::try_from(times.len()).unwrap_or(u32::MAX);
        facts.rtt = Spread::of(&times);
        sleep(PAUSE).await;
    }
    Ok(())
}

async fn echoes(probe: &mut Probe, facts: &mut PingFacts) -> Result<(), Over> {
    let mut times = Vec::new();
    let mut in_vain = 0;
    let mut echo = EchoFacts::default();
    while echo.sent < ECHOES && in_vain < IN_VAIN {
        let text = format!(
            "mainstay doctor {} {:016x}",
            echo.sent,
            seed().iter().fold(0, |sum: u64, byte| sum << 8 ^ u64::from(*byte))
        );
        let sent_at = Instant::now();
        probe.send_text(&text).await.map_err(|ended| over(probe, ended))?;
        echo.sent += 1;
        let returned = until(
            probe,
            sent_at,
            &mut facts.from_server,
            |seen| matches!(seen, Seen::Message { data, .. } if **data == *text.as_bytes()),
        );
        match returned.await? {
            true => times.push(ms(sent_at.elapsed())),
            false => in_vain += 1,
        }
        echo.returned = u32::try_from(times.len()).unwrap_or(u32::MAX);
        echo.rtt = Spread::of(&times);
        facts.echo = Some(echo.clone());
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Waits for what `is_it` accepts; `Ok(false)`: it did not come in time.
async fn until(
    probe: &mut Probe,
    sent_at: Instant,
    from_server: &mut u32,
    mut is_it: impl FnMut(&Seen) -> bool,
) -> Result<bool, Over> {
    let deadline = sent_at + ANSWER_TIME;
    loop {
        let Ok(seen) = timeout_at(deadline, probe.next()).await else { return Ok(false) };
        match seen {
            seen if is_it(&seen) => return Ok(true),
            Seen::Ping(_) => *from_server += 1,
            Seen::Close { code, reason } => return Err(Over::Close { code, reason }),
            Seen::Ended(end) => return Err(Over::End(Ended(end))),
            // A server that never pauses must not take the time away.
            _ if Instant::now() >= deadline => return Ok(false),
            _ => {}
        }
    }
}

/// Returns the server's Close, if one came before the end.
fn over(probe: &mut Probe, ended: Ended) -> Over {
    match probe.received_close() {
        Some((code, reason)) => Over::Close { code, reason },
        None => Over::End(ended),
    }
}

/// Judges what answers Pings. `connect`: the time that TCP's handshake took.
fn answered_by(facts: &PingFacts, connect: Option<f64>) -> AnsweredBy {
    let Some(pong) = facts.rtt.map(|rtt| rtt.min_ms) else { return AnsweredBy::Nothing };
    let echo = facts.echo.as_ref().and_then(|echo| echo.rtt).map(|rtt| rtt.min_ms);
    let is_clearly_more = |time: f64, than: f64| time > 2.0 * than && time - than > CLEARLY;
    match (echo, connect) {
        (Some(echo), _) if is_clearly_more(echo, pong) => AnsweredBy::Nearer,
        (Some(_), _) => AnsweredBy::Server,
        (None, Some(connect)) if is_clearly_more(pong, connect) => AnsweredBy::Behind,
        (None, _) => AnsweredBy::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_pings_is_told_by_the_times_of_echo_and_tcp() {
        let check = |pong: Option<f64>, echo: Option<f64>, connect: f64, expected: AnsweredBy| {
            let spread = |time: Option<f64>| Spread::of(time.as_slice());
            let echo = echo.map(|time| EchoFacts { sent: 1, returned: 1, rtt: spread(Some(time)) });
            let facts = PingFacts { rtt: spread(pong), echo, ..PingFacts::default() };
            assert_eq!(answered_by(&facts, Some(connect)), expected);
        };
        check(None, None, 1.0, AnsweredBy::Nothing);
        check(Some(1.0), None, 1.0, AnsweredBy::Unknown);
        check(Some(40.0), None, 1.0, AnsweredBy::Behind);
        check(Some(1.0), Some(2.0), 1.0, AnsweredBy::Server);
        check(Some(1.0), Some(40.0), 1.0, AnsweredBy::Nearer);
        check(Some(40.0), Some(41.0), 1.0, AnsweredBy::Server);
    }
}
