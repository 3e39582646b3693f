//! Opens many connections at once, and then one after the other at growing rates.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::super::measured::{Crowd, Measured, Reconnect, Refused};
use super::super::probe::{Options, Probe, Seen};
use super::super::progress::Progress;
use super::super::report::OpenError;
use super::super::target::Target;
use super::crowd::Reconnects;
use super::hold::close;
use super::schedule::Schedule;

/// The events that may wait.
const EVENTS: usize = 256;
/// How long closing may take.
const CLOSING: Duration = Duration::from_secs(3);
/// How long the last openings may take, at least.
const LAST_OPENINGS: Duration = Duration::from_secs(2);

/// What happened to a connection of the crowd.
enum Event {
    Opened,
    Refused(Refused),
    /// It ended by itself, at this age.
    Ended(Duration),
}

/// Opens the crowd, and closes it in order. `limit`: the age at which a connection that only waits is cut.
pub(super) async fn crowd(
    target: &Target,
    schedule: &Schedule,
    opening_takes: Duration,
    limit: Option<Duration>,
    result: &mut Option<Crowd>,
    progress: &Progress,
) {
    let mut machine = schedule.crowd();
    // A server that is slow is not one that refuses.
    let grace = LAST_OPENINGS.max(schedule.patience).max(opening_takes * 3);
    let (began, mut tasks) = (Instant::now(), JoinSet::new());
    let (sender, mut events) = mpsc::channel(EVENTS);
    let (release, released) = watch::channel(());
    let (mut opening, mut last) = (0_u32, began);
    loop {
        let due = machine.next().map(|due| began + due);
        if due.is_none() && opening == 0 {
            break;
        }
        tokio::select! {
            Some(event) = events.recv() => {
                opening = opening.saturating_sub(u32::from(!matches!(event, Event::Ended(_))));
                match event {
                    Event::Opened => machine.handle_open(),
                    Event::Refused(refused) => machine.handle_refusal(refused),
                    Event::Ended(age) => machine.handle_end(age, limit),
                }
            }
            () = sleep_until(due.unwrap_or(last + grace)) => match due {
                Some(_) => {
                    (opening, last) = (opening + 1, Instant::now());
                    tasks.spawn(member(target.clone(), machine.start(), sender.clone(), released.clone()));
                }
                None => {
                    machine.handle_unanswered(opening, grace);
                    break;
                }
            },
        }
        *result = Some(machine.result().clone());
        show_crowd(progress, result, false);
    }
    *result = Some(machine.result().clone());
    show_crowd(progress, result, true);
    drop((release, events));
    let _ = timeout(CLOSING, async { while tasks.join_next().await.is_some() {} }).await;
    tasks.shutdown().await;
}

/// One connection of the crowd.
async fn member(target: Target, number: u32, events: mpsc::Sender<Event>, mut released: watch::Receiver<()>) {
    let mut probe = match target.open().await {
        Ok(probe) => probe,
        Err(error) => {
            let _ = events.send(Event::Refused(refused(number, &error))).await;
            return;
        }
    };
    let _ = events.send(Event::Opened).await;
    tokio::select! {
        biased;
        _ = released.changed() => close(&mut probe).await,
        () = lost(&mut probe) => drop(events.send(Event::Ended(probe.opened_at().elapsed())).await),
    }
}

async fn lost(probe: &mut Probe) {
    while !matches!(probe.next().await, Seen::Close { .. } | Seen::Ended(_)) {}
}

/// Opens and closes at growing rates.
pub(super) async fn reconnect(
    target: &Target,
    schedule: &Schedule,
    result: &mut Option<Reconnect>,
    progress: &Progress,
) {
    let mut machine = Reconnects::new(schedule.tail_part());
    let (began, mut closing) = (Instant::now(), JoinSet::new());
    while let Some(due) = machine.next() {
        sleep_until(began + due).await;
        while closing.try_join_next().is_some() {}
        if closing.len() + 1 >= schedule.at_once {
            closing.join_next().await;
        }
        match target.open_with(options()).await {
            Ok(mut probe) => {
                machine.handle_open(began.elapsed());
                closing.spawn(async move { close(&mut probe).await });
            }
            Err(error) => machine.handle_refusal(refused(machine.number(), &error)),
        }
        *result = Some(machine.result().clone());
        show_reconnect(progress, result, false);
    }
    if let Some(wait) = machine.wait(schedule.longest_retry_after()) {
        sleep(wait).await;
        let again = target.open_with(options()).await;
        machine.handle_after_wait(again.is_ok());
        if let Ok(mut probe) = again {
            close(&mut probe).await;
        }
    }
    *result = Some(machine.result().clone());
    show_reconnect(progress, result, true);
    let _ = timeout(CLOSING, async { while closing.join_next().await.is_some() {} }).await;
    closing.shutdown().await;
}

fn options() -> Options {
    Options { compression: false, ..Options::default() }
}

fn refused(number: u32, error: &OpenError) -> Refused {
    Refused { number, status: error.status, retry_after_ms: error.retry_after_ms, words: error.to_string() }
}

fn show_crowd(progress: &Progress, result: &Option<Crowd>, is_over: bool) {
    super::show(progress, &Measured { crowd: result.clone(), ..Measured::default() }, is_over);
}

fn show_reconnect(progress: &Progress, result: &Option<Reconnect>, is_over: bool) {
    super::show(progress, &Measured { reconnect: result.clone(), ..Measured::default() }, is_over);
}
