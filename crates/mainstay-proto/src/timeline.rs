//! What happened to the clients of a server: the newest events, in a ring of fixed size.
//!
//! The driver notes each event once, with its time. A full ring forgets its oldest entry, so its memory depends neither on
//! the number of sessions nor on the age of the server. An operator asks it why a session reconnected, also after the
//! session has ended. Not here: figures that never forget, which count all events.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Instant;

use crate::connect::Lost;
use crate::heartbeat::Evidence;
use crate::session::message::SessionId;
use crate::session::{EndCause, Leave, RefuseReason};
use crate::ws::CloseCode;

/// The name of a client at one server.
///
/// ```
/// use mainstay_proto::timeline::ClientName;
///
/// let name: ClientName = "00c0ffee00c0ffee".parse()?;
/// assert!(matches!(name, ClientName::Session(_)));
/// assert_eq!("plain-7-1a".parse::<ClientName>()?.to_string(), "plain-7-1a");
/// # Ok::<(), mainstay_proto::timeline::NotAName>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientName {
    /// A client that speaks `mainstay.v1`: its session, over all connections.
    Session(SessionId),
    /// A plain client, which has one connection.
    Plain {
        /// Its place in the server's list of clients. Places are used again.
        place: u32,
        /// When it came, in tenths of a second since the server's start: two clients at one place differ in this.
        came: u32,
    },
}

/// A text that names no client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the id of a session has 16 hexadecimal digits; that of a plain client begins with plain-")]
pub struct NotAName;

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(id) => write!(f, "{id}"),
            Self::Plain { place, came } => write!(f, "plain-{place}-{came:x}"),
        }
    }
}

impl FromStr for ClientName {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let hex = |digits: &str| {
            let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            is_hex.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        let plain = || {
            let (place, came) = text.strip_prefix("plain-")?.split_once('-')?;
            let place = place.bytes().all(|digit| digit.is_ascii_digit()).then(|| place.parse().ok())??;
            Some(Self::Plain { place, came: hex(came)?.try_into().ok()? })
        };
        let session =
            || Some(Self::Session(SessionId(hex(text).filter(|_| text.len() == 16)?.to_be_bytes())));
        plain().or_else(session).ok_or(NotAName)
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A connection was attached.
    Attached {
        /// The number of the attach, from 1.
        epoch: u64,
        /// Where the connection came from.
        address: Option<SocketAddr>,
        /// What the session was before.
        how: Attach,
    },
    /// The connection was lost.
    Lost {
        /// The attach that it belonged to.
        epoch: u64,
        /// The evidence.
        why: Loss,
    },
    /// The client reported that it dropped messages of its own.
    Gap {
        /// How many.
        count: u64,
    },
    /// The server asked the client to leave this connection.
    AskedToLeave(Leave),
    /// The server began to drain: it asks all clients to leave.
    DrainBegan,
    /// The server refused a HELLO. Most name no session, and so most entries have no name.
    Refused {
        /// The reason.
        why: RefuseReason,
        /// Where the connection came from.
        address: Option<SocketAddr>,
    },
    /// The connection to the backend that the client uses was opened.
    BackendReached,
    /// That connection was lost.
    BackendLost(Loss),
    /// The backend could not be reached for this client. Later attempts of the same outage are not noted.
    BackendUnreachable(Loss),
    /// That connection was closed because the client is idle. It is opened again for the next message.
    BackendRested,
    /// The session was evicted to free a resource.
    Evicted(Resource),
    /// The session ended.
    Ended {
        /// What ended it.
        cause: EndCause,
        /// The code of END or Close.
        code: Option<CloseCode>,
    },
}

/// What a session was before a connection was attached to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Attach {
    /// None: it begins.
    New,
    /// None: the client asked for a session that was lost, and got this one.
    AfterLoss,
    /// Parked.
    Resumed,
    /// Attached to another connection, which this one replaces.
    Replaced,
}

/// The evidence for the loss of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loss {
    /// The peer closed the connection, with this code.
    Closed(Option<CloseCode>),
    /// The transport was reset: by the peer, its kernel, or something between.
    Reset,
    /// The transport ended without a Close.
    Ended,
    /// The heartbeat declared the peer dead.
    Dead(Evidence),
    /// The peer sent bytes and answered no probe.
    NotListening,
    /// The peer violated the protocol.
    Violation,
    /// This end closed the connection.
    ByUs,
    /// A fault was injected.
    Injected,
    /// No connection could be opened.
    NotConnected,
    /// The peer was reached, and opened no WebSocket.
    NotOpened,
}

/// A resource that an eviction frees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resource {
    /// A place among the sessions of the server or of one address.
    Place,
    /// Another resource of the system that every session takes, for example a local port.
    System,
    /// Memory.
    Memory,
}

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// When it happened.
    pub at: Instant,
    /// To which client; `None`: to none that has a name.
    pub client: Option<ClientName>,
    /// What happened.
    pub event: Event,
}

/// The ring; the module describes it.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// All places, used or not.
    entries: Vec<Entry>,
    /// How many entries were ever noted: the number of the next one.
    noted: u64,
}

impl Timeline {
    /// Creates an empty ring with room for this many entries, of at most 80 bytes each. It takes that memory at once.
    #[must_use]
    pub fn new(now: Instant, room: usize) -> Self {
        let nothing = Entry { at: now, client: None, event: Event::DrainBegan };
        Self { entries: vec![nothing; room.max(1)], noted: 0 }
    }

    /// Notes an event. Above the room of the ring, its oldest entry is forgotten.
    pub fn note(&mut self, at: Instant, client: Option<ClientName>, event: Event) {
        let place = self.place(self.noted);
        if let Some(entry) = self.entries.get_mut(place) {
            *entry = Entry { at, client, event };
            self.noted += 1;
        }
    }

    /// Returns how many entries were ever noted.
    #[must_use]
    pub fn noted(&self) -> u64 {
        self.noted
    }

    /// Returns the number of the oldest entry that is not forgotten. Numbers begin at 0.
    #[must_use]
    pub fn oldest(&self) -> u64 {
        self.noted.saturating_sub(self.entries.len() as u64)
    }

    /// Returns the entries from this number on that are not forgotten, with their numbers, the oldest first.
    pub fn since(&self, number: u64) -> impl DoubleEndedIterator<Item = (u64, &Entry)> {
        let from = number.max(self.oldest());
        (from..self.noted).filter_map(|number| Some((number, self.entries.get(self.place(number))?)))
    }

    /// Returns the entries of one client, the oldest first.
    pub fn of(&self, client: ClientName) -> impl Iterator<Item = &Entry> {
        self.since(0).map(|(_, entry)| entry).filter(move |entry| entry.client == Some(client))
    }

    fn place(&self, number: u64) -> usize {
        (number % self.entries.len().max(1) as u64) as usize
    }
}

impl Loss {
    /// Returns the evidence for what a client's machine reports.
    #[must_use]
    pub fn of(lost: &Lost) -> Self {
        match lost {
            Lost::NotConnected(_) => Self::NotConnected,
            Lost::NotOpened(_) | Lost::NoAnswer { .. } | Lost::Unavailable { .. } | Lost::Refused { .. } => {
                Self::NotOpened
            }
            Lost::Broken(failure) => match failure.io_error().map(std::io::Error::kind) {
                None | Some(std::io::ErrorKind::UnexpectedEof) => Self::Ended,
                Some(_) => Self::Reset,
            },
            Lost::TooBig { .. } => Self::Violation,
            Lost::Dead(evidence) => Self::Dead(*evidence),
            Lost::NoMessage { .. } => Self::NotListening,
            Lost::Asked => Self::ByUs,
            Lost::Closed { code, .. } => Self::Closed(*code),
        }
    }

    /// Returns the evidence in one word, for figures.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed(_) => "closed",
            Self::Reset => "reset",
            Self::Ended => "ended",
            Self::Dead(Evidence::Silent) => "silent",
            Self::Dead(Evidence::Frozen) => "frozen",
            Self::Dead(Evidence::Stalled) => "stalled",
            Self::NotListening => "not_listening",
            Self::Violation => "violation",
            Self::ByUs => "server",
            Self::Injected => "injected",
            Self::NotConnected => "not_connected",
            Self::NotOpened => "not_opened",
        }
    }
}

/// The evidence as the rest of a sentence whose subject is the peer.
impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed(Some(code)) => return write!(f, "closed it with code {code}"),
            Self::Closed(None) => "closed it without a code",
            Self::Reset => "or something between reset it",
            Self::Ended => "ended it without a Close",
            Self::Dead(Evidence::Silent) => "was silent: no byte came after a probe",
            Self::Dead(Evidence::Frozen) => "was frozen: its kernel accepted bytes, and none came back",
            Self::Dead(Evidence::Stalled) => "was stalled: it accepted no bytes",
            Self::NotListening => "sent bytes and answered no probe",
            Self::Violation => "violated the protocol",
            Self::ByUs => "was asked to leave, and the server closed it",
            Self::Injected => "was cut off by an injected fault",
            Self::NotConnected => "could not be connected to",
            Self::NotOpened => "was reached and opened no WebSocket",
        })
    }
}

impl Event {
    /// Returns what happened in one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attached { how: Attach::New, .. } => "attached",
            Self::Attached { how: Attach::AfterLoss, .. } => "began_again",
            Self::Attached { how: Attach::Resumed | Attach::Replaced, .. } => "resumed",
            Self::Lost { .. } => "lost",
            Self::Gap { .. } => "gap",
            Self::AskedToLeave(_) => "asked_to_leave",
            Self::DrainBegan => "drain",
            Self::Refused { .. } => "refused",
            Self::BackendReached => "backend_reached",
            Self::BackendLost(_) => "backend_lost",
            Self::BackendUnreachable(_) => "backend_unreachable",
            Self::BackendRested => "backend_rested",
            Self::Evicted(_) => "evicted",
            Self::Ended { .. } => "ended",
        }
    }
}

/// What happened, as a sentence without its full stop.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = |f: &mut fmt::Formatter<'_>, address: Option<SocketAddr>| match address {
            Some(address) => write!(f, " from {address}"),
            None => Ok(()),
        };
        match *self {
            Self::Attached { epoch, address, how } => {
                write!(f, "connection {epoch} was attached")?;
                from(f, address)?;
                f.write_str(match how {
                    Attach::New => ": the session began",
                    Attach::AfterLoss => ": the client asked for a session that was lost, and got this one",
                    Attach::Resumed => ": the session resumed",
                    Attach::Replaced => ": it replaced the connection before",
                })
            }
            Self::Lost { epoch, why } => write!(f, "connection {epoch} was lost: the client {why}"),
            Self::Gap { count } => write!(f, "the client reported that it dropped {count} messages"),
            Self::AskedToLeave(Leave::Idle) => f.write_str("the server asked the client to leave: idle"),
            Self::AskedToLeave(Leave::Old) => {
                f.write_str("the server asked the client to leave: the connection is old")
            }
            Self::AskedToLeave(Leave::Expiring) => {
                f.write_str("the credentials expired, and the server asked the client for others")
            }
            Self::AskedToLeave(Leave::Unauthorized) => {
                f.write_str("the client presented no other credentials in time")
            }
            Self::DrainBegan => f.write_str("the server began to drain"),
            Self::Refused { why, address } => {
                f.write_str("a HELLO")?;
                from(f, address)?;
                write!(f, " was refused: {}", why.as_str())
            }
            Self::BackendReached => f.write_str("the connection to the backend was opened"),
            Self::BackendLost(why) => {
                write!(f, "the connection to the backend was lost: the backend {why}")
            }
            Self::BackendUnreachable(why) => write!(f, "the backend {why}"),
            Self::BackendRested => {
                f.write_str("the connection to the backend was closed: the client is idle")
            }
            Self::Evicted(resource) => {
                write!(
                    f,
                    "the session was evicted: {}",
                    match resource {
                        Resource::Place => "there were too many sessions",
                        Resource::System => "the system had no more of what each session takes",
                        Resource::Memory => "the memory budget was used up",
                    }
                )
            }
            Self::Ended { cause, code } => {
                write!(f, "the session ended: {}", in_words(cause))?;
                match code {
                    Some(code) => write!(f, ", with code {code}"),
                    None => Ok(()),
                }
            }
        }
    }
}

fn in_words(cause: EndCause) -> &'static str {
    match cause {
        EndCause::Client => "the client closed it",
        EndCause::Closed => "the application closed it",
        EndCause::Operator => "an operator ended it",
        EndCause::Idle => "no message passed for the idle timeout",
        EndCause::Old => "the connection was older than its lifetime",
        EndCause::Unauthorized => "its credentials expired",
        EndCause::Drained => "the server drained",
        EndCause::Expired => "the client was away for longer than the resume window",
        EndCause::Evicted => "it was evicted",
        EndCause::Replaced => "the backend lost its state, and the client gets a new session",
        EndCause::Moved => "it goes on at another node",
        EndCause::ProtocolError => "the client violated the protocol",
        EndCause::Lost => "the connection was lost",
        EndCause::Panicked => "the handler panicked",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::origin;

    fn name(number: u8) -> ClientName {
        ClientName::Session(SessionId([number; 8]))
    }

    #[test]
    fn a_full_ring_forgets_the_oldest_and_counts_on() {
        let mut ring = Timeline::new(origin(), 3);
        assert_eq!((ring.noted(), ring.oldest(), ring.since(0).count()), (0, 0, 0));
        for number in 0..5 {
            let at = origin() + Duration::from_secs(number);
            ring.note(at, Some(name(number as u8 % 2)), Event::Gap { count: number });
        }
        assert_eq!((ring.noted(), ring.oldest()), (5, 2));
        let counts: Vec<_> = ring.since(0).map(|(number, entry)| (number, entry.event)).collect();
        let gap = |count| (count, Event::Gap { count });
        assert_eq!(counts, [gap(2), gap(3), gap(4)]);
        assert_eq!(ring.since(4).count(), 1);
        assert_eq!(ring.of(name(1)).map(|entry| entry.event).collect::<Vec<_>>(), [gap(3).1]);
        assert_eq!(ring.of(name(7)).count(), 0);
    }

    #[test]
    fn an_entry_is_as_small_as_the_document_says() {
        assert!(size_of::<Entry>() <= 80, "{}", size_of::<Entry>());
    }

    #[test]
    fn an_event_is_a_sentence() {
        let check = |event: Event, expected: &str| assert_eq!(event.to_string(), expected);
        let address = "10.0.0.7:5000".parse().ok();
        check(
            Event::Attached { epoch: 2, address, how: Attach::Resumed },
            "connection 2 was attached from 10.0.0.7:5000: the session resumed",
        );
        check(
            Event::Lost { epoch: 1, why: Loss::Dead(Evidence::Silent) },
            "connection 1 was lost: the client was silent: no byte came after a probe",
        );
        check(
            Event::Lost { epoch: 1, why: Loss::Closed(Some(CloseCode::GOING_AWAY)) },
            "connection 1 was lost: the client closed it with code 1001",
        );
        check(
            Event::Refused { why: RefuseReason::NoRoom, address: None },
            "a HELLO was refused: there is no room for another session",
        );
        check(
            Event::Ended { cause: EndCause::Operator, code: Some(CloseCode::SESSION_ENDED) },
            "the session ended: an operator ended it, with code 4500",
        );
    }

    #[test]
    fn what_names_no_client_is_refused() {
        for text in
            ["", "plain-", "plain-1", "plain--1", "plain-+1-a", "plain-1-+a", "00c0ffee", "00c0ffee00c0ffeg"]
        {
            assert_eq!(text.parse::<ClientName>(), Err(NotAName), "{text}");
        }
        assert_eq!("plain-1-1ffffffff".parse::<ClientName>(), Err(NotAName));
        assert_eq!("+0c0ffee00c0ffee".parse::<ClientName>(), Err(NotAName));
    }

    proptest! {
        #[test]
        fn a_name_is_read_back(id in any::<[u8; 8]>(), place in any::<u32>(), came in any::<u32>()) {
            for name in [ClientName::Session(SessionId(id)), ClientName::Plain { place, came }] {
                prop_assert_eq!(name.to_string().parse::<ClientName>(), Ok(name));
            }
        }
    }
}
