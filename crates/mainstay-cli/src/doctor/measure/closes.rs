//! Closes connections with different codes, and looks at what comes back.

use std::time::Duration;

use mainstay_proto::ws::CloseCode;
use tokio::time::{Instant, timeout_at};

use super::super::measured::{ClosePassage, CutHow, Measured};
use super::super::probe::{Probe, Seen};
use super::super::progress::Progress;
use super::super::target::Target;
use super::LeftOut;
use super::hold::{cut, greet};
use super::schedule::Schedule;

/// A normal end, a page that is left, and two codes of applications.
const CODES: [u16; 4] = [1000, 1001, 3000, 4001];
/// The longest that the server may take.
const LONGEST: Duration = Duration::from_secs(5);

pub(super) async fn run(
    target: &Target,
    schedule: &Schedule,
    passages: &mut Vec<ClosePassage>,
    left_out: &LeftOut<'_>,
    progress: &Progress,
) {
    let longest = LONGEST.min(schedule.waiting / 8);
    for code in CODES.into_iter().filter_map(CloseCode::new) {
        match target.open().await {
            Ok(mut probe) => {
                greet(target, &mut probe).await;
                passages.push(close(probe, code, longest).await);
            }
            Err(error) => left_out.note(format!("the close code {}: {error}", code.get())),
        }
        super::show(progress, &Measured { close_codes: passages.clone(), ..Measured::default() }, false);
    }
    super::show(progress, &Measured { close_codes: passages.clone(), ..Measured::default() }, true);
}

async fn close(mut probe: Probe, code: CloseCode, longest: Duration) -> ClosePassage {
    let began = Instant::now();
    let mut passage = ClosePassage {
        sent: code.get(),
        returned: None,
        answered: false,
        end: CutHow::Silent,
        took: longest,
    };
    let closing = async {
        // If it fails, the end is seen next.
        let _ = probe.send_close(code, "doctor").await;
        loop {
            match probe.next().await {
                Seen::Close { code, .. } => (passage.answered, passage.returned) = (true, code),
                Seen::Ended(end) => break passage.end = cut(end),
                _ => {}
            }
        }
    };
    if timeout_at(began + longest, closing).await.is_ok() {
        passage.took = began.elapsed();
    }
    passage
}
