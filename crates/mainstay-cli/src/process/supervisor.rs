//! What a supervisor such as systemd learns of this process (`Type=notify`), over the socket in `NOTIFY_SOCKET`: that it
//! serves, one line about its state, that it drains and for how long, and that it still runs. Without that variable nothing
//! is sent.

use std::time::Duration;

use sd_notify::NotifyState;

/// What the end of a process takes beyond its drain, at most.
const MARGIN: Duration = Duration::from_secs(10);

/// Reports that clients are accepted.
pub(crate) fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Reports that the configuration is being read again. [`ready`] ends it.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// Reports that the process drains. The supervisor waits at least for the duration of the drain and [`MARGIN`], even if its
/// own limit is shorter.
pub(crate) fn stopping(drain: Duration, status: &str) {
    let micros = u32::try_from((drain + MARGIN).as_micros()).unwrap_or(u32::MAX);
    notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros), NotifyState::Status(status)]);
}

/// Reports for as long as it is polled that this process runs, twice in the interval that the supervisor set
/// (`WATCHDOG_USEC`). Returns at once if there is none.
pub(crate) async fn keep_watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero()) else {
        return;
    };
    let mut due = tokio::time::interval(interval / 2);
    loop {
        due.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the supervisor cannot be notified at the socket in NOTIFY_SOCKET");
    }
}
