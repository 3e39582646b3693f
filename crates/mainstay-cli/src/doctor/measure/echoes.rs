//! Sends messages that the server returns: the largest, the most fragments, a compressed one. Only with `--echo`: unknown messages are
//! not sent to a server that does not expect them.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::super::measured::{Compression, CutHow, Largest, Measured};
use super::super::probe::{Ended, Options, Probe, Seen};
use super::super::progress::Progress;
use super::super::report::OpenError;
use super::super::target::Target;
use super::super::words::span;
use super::LeftOut;
use super::hold::{close, cut, greet};
use super::schedule::Schedule;
use super::sizes::Sizes;

/// The first size and the largest, in bytes.
const SIZES: (u64, u64) = (1 << 10, 64 << 20);
/// The first number of fragments and the largest. Each has one byte.
const FRAGMENTS: (u64, u64) = (2, 1 << 14);
/// How many refusals each search may cause.
const REFUSALS: u32 = 8;
/// What a connection carries in total is found in steps of this part of the size that passed alone.
const STEPS: u64 = 16;
/// The text that is compressed, so many times.
const TEXT: &str = "mainstay doctor sends this to see whether it comes back. ";
const TIMES: usize = 200;

/// Where the results go.
pub(super) struct Results<'a> {
    pub(super) largest_message: &'a mut Option<Largest>,
    pub(super) fragments: &'a mut Option<Largest>,
    pub(super) compression: &'a mut Option<Compression>,
    pub(super) left_out: &'a LeftOut<'a>,
}

/// What became of a message.
enum Fate {
    Returned,
    Refused(CutHow),
    /// Nothing came back in time.
    Lost,
}

pub(super) async fn run(
    target: &Target,
    schedule: &Schedule,
    may_send: bool,
    results: Results<'_>,
    progress: &Progress,
) {
    let longest = schedule.longest_echo();
    match target.open().await {
        Ok(mut probe) => {
            let handshake = probe.handshake();
            let (accepted, parameters) = (handshake.compressed, handshake.extensions.clone());
            *results.compression = Some(Compression { accepted, parameters, returned_same: None });
            show_compression(results.compression, progress);
            close(&mut probe).await;
        }
        Err(error) => results.left_out.note(format!("compression: {error}")),
    }
    if !may_send {
        return;
    }
    let mut search =
        Search { target, longest, what: What::Bytes, sizes: Sizes::new(SIZES.0, SIZES.1, REFUSALS) };
    search.run(results.largest_message, progress).await;
    // What counts all that a connection carries would be found once more.
    let message = results.largest_message.as_ref().filter(|largest| largest.total.is_none());
    let most = message.map_or(0, |largest| largest.accepted).min(FRAGMENTS.1);
    if most >= FRAGMENTS.0 {
        let sizes = Sizes::new(FRAGMENTS.0, most, REFUSALS);
        Search { target, longest, what: What::Fragments, sizes }.run(results.fragments, progress).await;
    }
    // A size that comes back without compression: what becomes of it is then due to compression.
    let passes = results.largest_message.as_ref().map_or(0, |largest| largest.accepted);
    if let Some(compression) = results.compression.as_mut().filter(|it| it.accepted && passes > 0) {
        let text = TEXT.repeat(TIMES);
        let text = text.get(..usize::try_from(passes).unwrap_or(usize::MAX)).unwrap_or(&text);
        compression.returned_same = returns_compressed(target, text, longest).await;
        show_compression(results.compression, progress);
    }
}

/// Returns whether a compressed message comes back the same. `None`: no connection could be opened.
async fn returns_compressed(target: &Target, text: &str, longest: Duration) -> Option<bool> {
    let mut probe = target.open().await.ok()?;
    greet(target, &mut probe).await;
    let returned = async {
        let _ = probe.send_text(text).await;
        returned(target, &mut probe, text.as_bytes()).await
    };
    let is_same = matches!(timeout(longest, returned).await, Ok(Fate::Returned));
    close(&mut probe).await;
    Some(is_same)
}

fn show_compression(compression: &Option<Compression>, progress: &Progress) {
    super::show(progress, &Measured { compression: compression.clone(), ..Measured::default() }, true);
}

/// What is counted.
#[derive(Clone, Copy, PartialEq)]
enum What {
    Bytes,
    Fragments,
}

struct Search<'a> {
    target: &'a Target,
    /// For one message, there and back.
    longest: Duration,
    what: What,
    sizes: Sizes,
}

/// A connection, and how much it carried there and back.
struct Used {
    probe: Probe,
    carried: u64,
}

impl Search<'_> {
    async fn run(&mut self, result: &mut Option<Largest>, progress: &Progress) {
        let mut open = None;
        while let Some(size) = self.sizes.next() {
            let used = match open.take() {
                Some(used) => Ok(used),
                None => self.open().await,
            };
            match used {
                Ok(used) => open = self.try_size(used, size).await,
                Err(error) => self.sizes.end(format!("no connection could be opened ({error})")),
            }
            *result = self.sizes.largest();
            self.show(result, progress, false);
        }
        self.show(result, progress, true);
        if let Some(mut used) = open {
            close(&mut used.probe).await;
        }
    }

    async fn open(&self) -> Result<Used, OpenError> {
        let max_message = usize::try_from(SIZES.1).unwrap_or(usize::MAX);
        let options = Options { compression: false, max_message, ..Options::default() };
        let mut probe = self.target.open_with(options).await?;
        greet(self.target, &mut probe).await;
        Ok(Used { probe, carried: 0 })
    }

    /// Returns the connection if it can be used again.
    async fn try_size(&mut self, used: Used, size: u64) -> Option<Used> {
        let (began, carried) = (Instant::now(), used.carried);
        match self.exchange(used, size).await {
            Ok(used) => {
                self.sizes.accept(size);
                if began.elapsed() > self.longest / 3 {
                    self.sizes.end(format!("it took {}", span(began.elapsed())));
                }
                return Some(used);
            }
            Err(Fate::Refused(how)) if carried > 0 && self.sizes.is_in_doubt() => {
                return self.try_alone(size, carried + size, how).await;
            }
            Err(Fate::Refused(how)) => self.sizes.refuse(size, how),
            Err(_) if self.what == What::Bytes && self.sizes.largest().is_none() => {
                self.sizes.end("the server returned no message");
            }
            Err(_) if began.elapsed() >= self.longest && size > 1 << 20 => {
                self.sizes.end(format!("the next did not come back within {}", span(self.longest)));
            }
            Err(_) => self.sizes.refuse(size, CutHow::Silent),
        }
        None
    }

    /// Tries a size once more, on a connection that carried nothing. If it passes, what ended the other one counts all that it carried, and
    /// smaller ones on this connection find how much that is.
    async fn try_alone(&mut self, size: u64, total: u64, how: CutHow) -> Option<Used> {
        let alone = match self.open().await {
            Ok(used) => self.exchange(used, size).await.ok(),
            Err(_) => None,
        };
        let Some(mut used) = alone else {
            self.sizes.refuse(size, how);
            return None;
        };
        self.sizes.accept(size);
        let step = (size / STEPS).max(1);
        while used.carried < total {
            let carried = used.carried + step;
            match self.exchange(used, step).await {
                Ok(still_open) => used = still_open,
                Err(_) => {
                    self.sizes.end_by_total(carried, how);
                    return None;
                }
            }
        }
        // This one carries as much: something else ended the other.
        Some(used)
    }

    /// Sends so much and waits until it comes back. In a task of its own: a large message keeps a thread busy, and the connections that
    /// wait are measured meanwhile.
    async fn exchange(&self, used: Used, size: u64) -> Result<Used, Fate> {
        let (target, what) = (self.target.clone(), self.what);
        // Dropping it ends the task.
        let mut task = JoinSet::new();
        task.spawn(async move {
            let Used { mut probe, carried } = used;
            let text = letters(usize::try_from(size).unwrap_or(usize::MAX));
            // If it fails, the reason is seen next.
            let _ = send(&mut probe, what, &text).await;
            match returned(&target, &mut probe, text.as_bytes()).await {
                Fate::Returned => Ok(Used { probe, carried: carried + size }),
                fate => Err(fate),
            }
        });
        match timeout(self.longest, task.join_next()).await {
            Ok(Some(Ok(fate))) => fate,
            _ => Err(Fate::Lost),
        }
    }

    fn show(&self, result: &Option<Largest>, progress: &Progress, is_over: bool) {
        let part = match self.what {
            What::Bytes => Measured { largest_message: result.clone(), ..Measured::default() },
            What::Fragments => Measured { fragments: result.clone(), ..Measured::default() },
        };
        super::show(progress, &part, is_over);
    }
}

async fn send(probe: &mut Probe, what: What, text: &str) -> Result<(), Ended> {
    if what == What::Bytes {
        // In one frame, as browsers do.
        return probe.send_frame(1, true, text.as_bytes()).await;
    }
    let last = text.len().saturating_sub(1);
    for (index, byte) in text.bytes().enumerate() {
        probe.send_frame(u8::from(index == 0), index == last, &[byte]).await?;
    }
    Ok(())
}

/// Waits for this message; others are not answers.
async fn returned(target: &Target, probe: &mut Probe, expected: &[u8]) -> Fate {
    loop {
        match probe.next().await {
            Seen::Message { data, .. } if data == expected => return Fate::Returned,
            Seen::Close { code, reason } => {
                return Fate::Refused(CutHow::Close { code, reason: target.shown(&reason) });
            }
            Seen::Ended(end) => return Fate::Refused(cut(end)),
            _ => {}
        }
    }
}

/// Returns a text of this length that compresses badly.
fn letters(len: usize) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ len as u64;
    let letter = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'a' + (state >> 33) as u8 % 26)
    };
    std::iter::repeat_with(letter).take(len).collect()
}
