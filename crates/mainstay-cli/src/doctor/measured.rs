//! What the experiments measure, as `--json` prints it. Times end in `_ms` and are milliseconds.

use std::time::Duration;

use serde::{Serialize, Serializer};

/// The results of the experiments. `None`: the experiment did not run, or was interrupted before it knew anything.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Measured {
    /// For how long connections were watched.
    #[serde(rename = "waited_ms", serialize_with = "as_ms")]
    pub(crate) waited: Duration,
    pub(crate) idle: Option<Idle>,
    pub(crate) lifetime: Option<Lifetime>,
    pub(crate) largest_message: Option<Largest>,
    /// The fragments of one message.
    pub(crate) fragments: Option<Largest>,
    pub(crate) close_codes: Vec<ClosePassage>,
    pub(crate) compression: Option<Compression>,
    pub(crate) crowd: Option<Crowd>,
    pub(crate) reconnect: Option<Reconnect>,
    /// What was left out, and why, one sentence each.
    pub(crate) left_out: Vec<String>,
}

/// How long a connection on which nothing passes is kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Idle {
    /// Neither end sends.
    pub(crate) silent: Limit,
    /// This client sends a Ping each `every_ms`, and the server answers.
    pub(crate) our_pings: Limit,
    /// Only this client sends: a Pong that nothing answers each `every_ms` (RFC 6455 section 5.5.3). The time is that without a byte
    /// from the server. A cut here shows a path that counts only the server's bytes, as AWS CloudFront does.
    pub(crate) up_only: Limit,
    /// This client sends a small message again and again, and the server returns it. `None`: not tried, it needs `--echo`.
    pub(crate) our_messages: Option<Limit>,
    /// This client sends nothing by itself; it answers the server's Pings. Unknown if the server sends nothing.
    pub(crate) server_sends: Limit,
    /// This client does not answer the server's Pings. Unknown if the server sends none.
    pub(crate) unanswered_pings: Limit,
    /// Between two Pings or Pongs of this client. It is shorter than the idle limit, if that was found in time.
    #[serde(rename = "every_ms", serialize_with = "as_ms")]
    pub(crate) every: Duration,
    /// What the server sends by itself.
    pub(crate) server: ServerSends,
}

/// What a server sends by itself. If it sends anything again and again, no longer silence can be had on the path.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct ServerSends {
    /// Pings on all connections.
    pub(crate) pings: u32,
    /// The median time between two Pings of one connection.
    #[serde(rename = "ping_interval_ms", serialize_with = "some_as_ms")]
    pub(crate) ping_interval: Option<Duration>,
    /// Messages and Pongs that nothing asked for, on all connections.
    pub(crate) messages: u32,
    /// The median time between two of them on one connection.
    #[serde(rename = "message_interval_ms", serialize_with = "some_as_ms")]
    pub(crate) message_interval: Option<Duration>,
}

impl ServerSends {
    /// Returns whether the server sends again and again, and not only as it greets.
    pub(crate) fn is_regular(&self) -> bool {
        self.ping_interval.is_some() || self.message_interval.is_some()
    }
}

/// How old a connection may become on which Pings are answered all the time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Lifetime {
    pub(crate) limit: Limit,
    /// Since the experiments began: when connections of different age ended at once, as in a restart or deployment.
    #[serde(rename = "restarts_ms", serialize_with = "each_as_ms")]
    pub(crate) restarts: Vec<Duration>,
}

/// A limit of time, as far as it is known.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Limit {
    /// The connection is cut.
    Cut {
        /// The best estimate.
        #[serde(rename = "after_ms", serialize_with = "as_ms")]
        after: Duration,
        /// The limit lies between these two.
        #[serde(rename = "between_ms", serialize_with = "both_as_ms")]
        between: (Duration, Duration),
        how: CutHow,
        /// How many connections show it.
        seen: u32,
    },
    /// No cut was seen.
    Holds {
        /// The longest that was tried.
        #[serde(rename = "for_at_least_ms", serialize_with = "as_ms")]
        for_at_least: Duration,
    },
    /// It could not be found.
    Unknown {
        /// One clause, without a full stop.
        why: String,
    },
}

impl Limit {
    pub(crate) fn unknown(why: impl Into<String>) -> Self {
        Self::Unknown { why: why.into() }
    }

    /// Returns whether this one holds for longer than the other cuts.
    pub(crate) fn outlives(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Holds { for_at_least }, Self::Cut { after, .. }) if for_at_least >= after)
    }
}

/// How a connection was cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum CutHow {
    /// By a Close frame: the server or a gateway did it.
    Close {
        code: Option<u16>,
        /// The reason, cut and escaped.
        reason: String,
    },
    /// By the end of the stream, without a Close frame.
    Fin,
    /// By a reset.
    Reset,
    /// By a reset that came only when this client sent something: what cut had forgotten the connection.
    ResetOnSend,
    /// Neither end was notified: what was sent got no answer.
    Silent,
    /// By another error.
    Error { words: String },
}

impl Measured {
    /// Returns the time after which a connection that only waits is cut, if one was found.
    pub(crate) fn waiting_limit(&self) -> Option<Duration> {
        let silent = self.idle.as_ref().and_then(|idle| match idle.silent {
            Limit::Cut { between, .. } => Some(between.0),
            Limit::Holds { .. } | Limit::Unknown { .. } => None,
        });
        let age = self.lifetime.as_ref().and_then(|lifetime| match lifetime.limit {
            Limit::Cut { after, .. } => Some(after),
            Limit::Holds { .. } | Limit::Unknown { .. } => None,
        });
        silent.into_iter().chain(age).min()
    }
}

/// The largest size of something that comes back whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Largest {
    /// The largest that came back.
    pub(crate) accepted: u64,
    /// The smallest that did not. `None`: none was refused up to the bound of the experiment.
    pub(crate) refused: Option<u64>,
    /// How it was refused: by code 1009, or otherwise.
    pub(crate) how: Option<CutHow>,
    /// Connections end after about so much in total, whatever the size of one.
    pub(crate) total: Option<u64>,
    /// Why larger ones were not tried, if it was not for a refusal.
    pub(crate) ended: Option<String>,
}

/// What came back for a Close frame.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ClosePassage {
    pub(crate) sent: u16,
    /// `None`: no Close frame came back, or one without a code.
    pub(crate) returned: Option<u16>,
    /// Whether a Close frame came back.
    pub(crate) answered: bool,
    /// How the connection ended after it: `fin` is in order.
    pub(crate) end: CutHow,
    #[serde(rename = "took_ms", serialize_with = "as_ms")]
    pub(crate) took: Duration,
}

/// permessage-deflate (RFC 7692).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Compression {
    pub(crate) accepted: bool,
    /// As the server wrote them.
    pub(crate) parameters: Option<String>,
    /// Whether a message that compresses well came back the same. `None`: not tried.
    pub(crate) returned_same: Option<bool>,
}

/// Many connections at once.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Crowd {
    pub(crate) asked: u32,
    /// How many were opened each second.
    pub(crate) rate: f64,
    pub(crate) opened: u32,
    /// How many of those were open at once.
    pub(crate) most_open: u32,
    /// How many of those ended by themselves while the others were opened.
    pub(crate) lost: u32,
    /// How many ended as old as the limit of silence or age that was found before: connections of a crowd only wait.
    pub(crate) expired: u32,
    /// The first refusal. No more were tried after three of them in a row.
    pub(crate) refused: Option<Refused>,
    pub(crate) refusals: u32,
}

impl Crowd {
    /// Returns whether openings were refused now and then, and not from a number on: many were accepted after the first refusal.
    pub(crate) fn is_refused_at_random(&self) -> bool {
        let slack = (self.opened / 8).max(2);
        self.refused.as_ref().is_some_and(|first| first.number + slack <= self.opened)
    }
}

/// One client that opens and closes again and again.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Reconnect {
    /// How many connections were opened and closed.
    pub(crate) opened: u32,
    /// The highest rate, each second, at which all were accepted.
    pub(crate) accepted_rate: Option<f64>,
    /// The rate at which one was refused.
    pub(crate) refused_rate: Option<f64>,
    /// The refusal; the experiment ends with the first.
    pub(crate) refused: Option<Refused>,
    /// Whether another attempt was accepted after the wait of `Retry-After`. `None`: not tried.
    pub(crate) accepted_after_wait: Option<bool>,
}

/// A connection that was not opened.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Refused {
    /// Which one, counted from 1.
    pub(crate) number: u32,
    pub(crate) status: Option<u16>,
    pub(crate) retry_after_ms: Option<f64>,
    pub(crate) words: String,
}

fn as_ms<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(ms(*duration))
}

fn some_as_ms<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    duration.map(ms).serialize(serializer)
}

fn both_as_ms<S: Serializer>((from, to): &(Duration, Duration), serializer: S) -> Result<S::Ok, S::Error> {
    (ms(*from), ms(*to)).serialize(serializer)
}

fn each_as_ms<S: Serializer>(durations: &[Duration], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(durations.iter().copied().map(ms))
}

/// Returns a duration in milliseconds, rounded to microseconds.
pub(crate) fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
