//! Runs the experiments.
//!
//! For most of the time connections wait side by side: [`waits`] has those that search for limits of time, with the machines of
//! [`idle`], [`steady`] and [`lifetime`]. Beside them the short experiments run one after the other: [`closes`], and with `--echo`
//! [`echoes`] with the machine of [`sizes`]. What could disturb them comes last: [`crowds`] with the machines of [`crowd`]. The
//! [`schedule`] divides time and connections.

mod closes;
mod crowd;
mod crowds;
mod echoes;
mod hold;
mod idle;
mod lifetime;
mod schedule;
mod sends;
mod sizes;
mod steady;
mod waits;

use std::cell::RefCell;
use std::time::Duration;

use tokio::time::timeout;

use self::schedule::Schedule;
use super::Plan;
use super::measured::Measured;
use super::progress::{Progress, State};
use super::rows;
use super::target::Target;
use super::words::span;

/// Returns what the experiments will do to the server, one line each: the question to the user shows it.
pub(crate) fn announced(plan: &Plan) -> Vec<String> {
    let schedule = Schedule::new(plan);
    let (per_second, crowd) = (schedule.openings_per_second(), schedule.crowd());
    let mut lines = vec![format!(
        "for {} up to {} WebSockets at once, opened at most {per_second:.0} a second, that wait and send Pings and Pongs",
        span(schedule.waiting),
        schedule.waiting_at_once(),
    )];
    if plan.echo {
        lines.push(
            "beside them one that sends messages of up to 64 MiB, as long as they come back in time"
                .to_owned(),
        );
    }
    lines.push(format!(
        "then {} WebSockets, {:.0} a second, which are closed again; it ends after three refusals in a row",
        crowd.result().asked,
        crowd.result().rate,
    ));
    lines.push(format!(
        "then one WebSocket after the other for {}, at most 50 a second; it ends with the first refusal",
        span(schedule.tail_part()),
    ));
    lines
}

/// Runs the experiments and writes each result as soon as it is known. `opening_takes`: how long the opening handshake takes.
///
/// # Cancel safety
/// Safe: what is known so far is in `measured`, and no socket stays open.
pub(crate) async fn measure(
    target: &Target,
    plan: &Plan,
    opening_takes: Duration,
    measured: &mut Measured,
    progress: &Progress,
) {
    let schedule = Schedule::new(plan);
    let Measured { waited, idle, lifetime, largest_message, fragments, .. } = measured;
    let Measured { close_codes, compression, left_out, .. } = measured;
    let left_out = LeftOut(RefCell::new(left_out));
    if !plan.echo {
        left_out.note("the largest message, the most fragments, compressed messages: only with --echo");
    }
    let waiting = waits::wait(
        target,
        &schedule,
        waits::Results { waited, idle, lifetime, left_out: &left_out },
        progress,
    );
    let short = async {
        closes::run(target, &schedule, close_codes, &left_out, progress).await;
        let results = echoes::Results { largest_message, fragments, compression, left_out: &left_out };
        echoes::run(target, &schedule, plan.echo, results, progress).await;
    };
    let short = async {
        if timeout(schedule.short(), short).await.is_err() {
            left_out.note(format!(
                "the last of the short experiments: they took longer than {}",
                span(schedule.short())
            ));
        }
    };
    if schedule.is_side_by_side {
        tokio::join!(waiting, short);
    } else {
        short.await;
        waiting.await;
    }
    let limit = measured.waiting_limit();
    crowds::crowd(target, &schedule, opening_takes, limit, &mut measured.crowd, progress).await;
    crowds::reconnect(target, &schedule, &mut measured.reconnect, progress).await;
}

/// What was left out. The experiments that run side by side share it.
struct LeftOut<'a>(RefCell<&'a mut Vec<String>>);

impl LeftOut<'_> {
    fn note(&self, words: impl Into<String>) {
        self.0.borrow_mut().push(words.into());
    }
}

/// Shows the rows of some results. While they may change, only what is wrong already has its mark.
fn show(progress: &Progress, part: &Measured, is_over: bool) {
    for row in rows::of_measured(part) {
        let state = if is_over || row.state == State::Bad { row.state } else { State::Running };
        let is_unknown = state == State::Running && row.state == State::Done;
        progress.report(row.name, state, if is_unknown { String::new() } else { row.words });
    }
}
