//! The list of a server's clients, for its operator: pages of it, one client, and ending them.
//!
//! Nothing is kept for it beside the list that a drain walks. A page looks at a bounded number of clients, so a list of a
//! million delays no session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mainstay_proto::session::EndCause;
use mainstay_proto::timeline::ClientName;
use mainstay_proto::ws::CloseCode;

use super::core::{Core, CoreRef, Shared};
use super::handle::Server;
use super::peer::{PeerInfo, Presence};
use crate::clock::now;

/// The most clients that one page looks at.
const LOOKED_AT: usize = 100_000;
/// How many clients are copied from the list at once.
const AT_ONCE: usize = 4096;

/// One client, as it was when it was looked at.
///
/// ```
/// let server = mainstay::Server::default();
/// let page = server.list(None, 100, |client| client.unread_bytes > 0);
/// assert!(page.clients.is_empty() && page.next.is_none());
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct ClientInfo {
    /// Its name: of the session, or of a plain connection.
    pub name: ClientName,
    /// Its place in the list, to continue [after](Server::list) it.
    pub place: u32,
    /// Whether it is there.
    pub presence: Presence,
    /// How many connections the session has had.
    pub epoch: u64,
    /// How long ago its session began here, to a tenth of a second.
    pub age: Duration,
    /// How long it has been away; `None` if it is connected.
    pub away: Option<Duration>,
    /// The smoothed round-trip time of the current connection's heartbeats.
    pub rtt: Option<Duration>,
    /// Payload bytes that are kept for it.
    pub kept_bytes: u64,
    /// Payload bytes that came from it and that no handler has received.
    pub unread_bytes: u64,
    core: CoreRef,
}

impl ClientInfo {
    fn of(place: u32, core: CoreRef) -> Self {
        let inner = core.lock();
        let peer = &inner.peer;
        let now = now();
        let (name, presence) = (core.name_of(peer, place), Presence::of(peer));
        let epoch = peer.epoch().unwrap_or(1);
        let since = peer.session().and_then(|session| session.parked_since());
        let away = since.map(|since| now.saturating_duration_since(since));
        let (rtt, kept_bytes, unread_bytes) = (peer.rtt(), peer.kept_bytes(), peer.unread_bytes());
        drop(inner);
        let age = core.shared.age(core.info.came);
        Self { name, place, presence, epoch, age, away, rtt, kept_bytes, unread_bytes, core }
    }

    /// Properties of the client, as of its first connection.
    #[must_use]
    pub fn peer(&self) -> &PeerInfo {
        &self.core.info
    }

    /// Where its first connection came from. The timeline has the addresses of the later ones.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.core.info.address
    }

    /// The path that its session was opened at, or what [`SessionUpgrade::opened_at`](crate::SessionUpgrade::opened_at) set
    /// in its place, cut to 256 bytes; `None` without [`Config::timeline`](super::Config::timeline).
    #[must_use]
    pub fn path(&self) -> Option<Arc<str>> {
        self.core.shared.paths.get(self.core.info.path)
    }
}

impl std::fmt::Debug for ClientInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, presence, epoch, age, .. } = self;
        f.debug_struct("ClientInfo")
            .field("name", name)
            .field("presence", presence)
            .field("epoch", epoch)
            .field("age", age)
            .finish_non_exhaustive()
    }
}

/// A part of the list.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Page {
    /// The clients, in the order of the list.
    pub clients: Vec<ClientInfo>,
    /// The place to continue [after](Server::list); `None` at the end of the list. A page that looked at 100,000 clients ends
    /// there, full or not.
    pub next: Option<u32>,
}

impl Server {
    /// Returns the clients behind the place `after` that `wanted` accepts, at most `limit`. Locks each client for a moment.
    ///
    /// Between two pages clients come and go, and a new one may get the place of one that has gone: no client that stays is
    /// left out or listed twice.
    #[must_use]
    pub fn list(&self, after: Option<u32>, limit: usize, wanted: impl Fn(&ClientInfo) -> bool) -> Page {
        let (mut clients, mut last, mut left) = (Vec::new(), after, LOOKED_AT);
        loop {
            let some = self.shared.cores_after(last, left.min(AT_ONCE));
            let Some((end, _)) = some.last() else { return Page { clients, next: None } };
            last = Some(*end);
            left = left.saturating_sub(some.len());
            for (place, core) in some {
                let Some(core) = core.upgrade() else { continue };
                let client = ClientInfo::of(place, core);
                if wanted(&client) {
                    clients.push(client);
                }
                if clients.len() >= limit {
                    return Page { clients, next: Some(place) };
                }
            }
            if left == 0 {
                return Page { clients, next: last };
            }
        }
    }

    /// Returns the client of this name. Walks the list for a session.
    #[must_use]
    pub fn client(&self, name: ClientName) -> Option<ClientInfo> {
        let (place, core) = self.shared.find(name)?;
        Some(ClientInfo::of(place, core)).filter(|client| client.name == name)
    }

    /// Ends a session or a plain connection on behalf of an operator, now: a client that is connected gets END (a plain one a
    /// Close) with code and reason, one that is away gets them when it comes back. Messages that were not written are not
    /// written any more; the client receives the exact account. Returns `false` if there is no such client.
    ///
    /// Source: `docs/PROTOCOL.md` "Closing", `abort`.
    pub fn end_client(&self, name: ClientName, code: CloseCode, reason: &str) -> bool {
        let found = self.client(name);
        found.map(|client| client.core.end_by_operator(code, reason)).is_some()
    }

    /// As [`end_client`](Self::end_client), for every client that `unwanted` accepts, for example all of one
    /// [principal](PeerInfo::principal). Returns how many there were. Walks the list.
    pub fn end_clients(
        &self,
        unwanted: impl Fn(&ClientInfo) -> bool,
        code: CloseCode,
        reason: &str,
    ) -> usize {
        let (mut after, mut ended) = (None, 0);
        loop {
            let page = self.list(after, AT_ONCE, &unwanted);
            page.clients.iter().for_each(|client| client.core.end_by_operator(code, reason));
            ended += page.clients.len();
            match page.next {
                Some(next) => after = Some(next),
                None => return ended,
            }
        }
    }
}

impl Core {
    fn end_by_operator(&self, code: CloseCode, reason: &str) {
        self.change_state(|peer| peer.abort(now(), EndCause::Operator, code, reason));
    }
}

impl Shared {
    /// The client of this name, and its place.
    fn find(&self, name: ClientName) -> Option<(u32, CoreRef)> {
        if let ClientName::Plain { place, .. } = name {
            let (found, core) = self.cores_after(place.checked_sub(1), 1).pop()?;
            return core.upgrade().filter(|_| found == place).map(|core| (place, core));
        }
        let mut after = None;
        loop {
            let some = self.cores_after(after, AT_ONCE);
            after = Some(some.last()?.0);
            let found = some.into_iter().find_map(|(place, core)| {
                let core = core.upgrade()?;
                let is_it = core.name_of(&core.lock().peer, place) == name;
                is_it.then_some((place, core))
            });
            if found.is_some() {
                return found;
            }
        }
    }
}
