//! The open sessions, plain connections and responses of each subject, and the subjects whose credentials were revoked.
//!
//! A revocation ends what is open and refuses every token that was issued before it. It is remembered until newer ones take
//! its place, and so outlives the tokens that it is about. Without a cluster nothing of it survives the process; in one, each
//! node [learns](Subjects::learn) it, also at its start.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mainstay::CloseCode;
use mainstay::server::Sender as ToClient;
use slab::Slab;
use tokio::sync::oneshot;

use crate::clients::identity::Subject;

/// How many revocations are remembered. The oldest make room.
const MAX_REVOKED: usize = 100_000;
/// The reason in END and Close.
const REVOKED: &str = "the credentials were revoked";

/// See the module. One for the process.
#[derive(Default)]
pub(crate) struct Subjects(Mutex<Table>);

#[derive(Default)]
struct Table {
    open: HashMap<Arc<str>, Slab<Open>>,
    revoked: HashMap<Arc<str>, Revocation>,
    /// The revoked subjects by their place in `revoked`, the oldest first.
    order: BTreeMap<u64, Arc<str>>,
    next: u64,
}

/// What is open, and when its credentials were issued.
struct Open {
    ending: Ending,
    issued: Option<u64>,
}

/// What is open, by what ends it.
enum Ending {
    /// A session or a plain connection.
    Client(ToClient),
    /// A response under way; `None` once it was ended.
    Response(Option<oneshot::Sender<()>>),
}

struct Revocation {
    /// Seconds since 1970.
    at: u64,
    place: u64,
}

/// An open session, connection or response of a subject; dropped, it is no more.
pub(crate) struct Present {
    subjects: Arc<Subjects>,
    subject: Subject,
    slot: usize,
}

/// The credentials were revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Revoked;

impl Subjects {
    /// Enters a session or connection whose credentials were issued at `issued`, in seconds since 1970; `None`: not known.
    ///
    /// # Errors
    /// They were revoked since they were judged.
    pub(crate) fn enter(
        self: &Arc<Self>,
        subject: &Subject,
        issued: Option<u64>,
        client: ToClient,
    ) -> Result<Present, Revoked> {
        self.add(subject, issued, Ending::Client(client))
    }

    /// As [`enter`](Self::enter), for a response under way. The receiver gets a message once the credentials are revoked.
    ///
    /// # Errors
    /// They were revoked since they were judged.
    pub(crate) fn enter_response(
        self: &Arc<Self>,
        subject: &Subject,
        issued: Option<u64>,
    ) -> Result<(Present, oneshot::Receiver<()>), Revoked> {
        let (revoke, revoked) = oneshot::channel();
        Ok((self.add(subject, issued, Ending::Response(Some(revoke)))?, revoked))
    }

    fn add(
        self: &Arc<Self>,
        subject: &Subject,
        issued: Option<u64>,
        ending: Ending,
    ) -> Result<Present, Revoked> {
        let mut table = self.table();
        if table.is_revoked(&subject.0, issued) {
            return Err(Revoked);
        }
        let slot = table.open.entry(Arc::clone(&subject.0)).or_default().insert(Open { ending, issued });
        drop(table);
        Ok(Present { subjects: Arc::clone(self), subject: subject.clone(), slot })
    }

    /// Whether credentials of a subject that were issued at `issued`, in seconds since 1970, were revoked. `None`, not known,
    /// counts as before.
    pub(crate) fn is_revoked(&self, subject: &str, issued: Option<u64>) -> bool {
        self.table().is_revoked(subject, issued)
    }

    /// Returns how many revocations are remembered.
    pub(crate) fn revoked(&self) -> usize {
        self.table().revoked.len()
    }

    /// Ends all sessions and plain connections of a subject with 4501, breaks its responses off, and from now on refuses its
    /// credentials that were issued before `at` or in the same second. Returns how many it ended. This process only.
    pub(crate) fn revoke(&self, subject: &str, at: u64) -> usize {
        let mut table = self.table();
        let forgets = table.note_revoked(subject, at);
        self.end(table, subject, |_| true, forgets)
    }

    /// The same for a revocation at another node that this one may know: a known one changes nothing, and credentials that
    /// were issued since stay.
    pub(crate) fn learn(&self, subject: &str, at: u64) -> usize {
        let mut table = self.table();
        if table.revoked.get(subject).is_some_and(|known| known.at >= at) {
            return 0;
        }
        let forgets = table.note_revoked(subject, at);
        self.end(table, subject, |issued| issued.is_none_or(|issued| issued <= at), forgets)
    }

    /// Ends what is open of a subject, if it was issued as `is_meant` says.
    fn end(
        &self,
        mut table: MutexGuard<'_, Table>,
        subject: &str,
        is_meant: impl Fn(Option<u64>) -> bool,
        forgets: bool,
    ) -> usize {
        let (mut clients, mut responses) = (Vec::new(), 0);
        let open = table.open.get_mut(subject).into_iter().flatten().map(|(_, open)| open);
        for Open { ending, .. } in open.filter(|open| is_meant(open.issued)) {
            match ending {
                Ending::Client(client) => clients.push(client.clone()),
                Ending::Response(response) => {
                    responses += usize::from(response.take().is_some_and(|revoke| revoke.send(()).is_ok()));
                }
            }
        }
        drop(table);
        for client in &clients {
            client.abort(CloseCode::UNAUTHORIZED, REVOKED);
        }
        if forgets {
            tracing::warn!(
                remembered = MAX_REVOKED,
                "too many revocations: the oldest is forgotten, and tokens of its subject are accepted again"
            );
        }
        let ended = clients.len() + responses;
        tracing::info!(subject, ended, "credentials revoked");
        ended
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn is_revoked(&self, subject: &str, issued: Option<u64>) -> bool {
        self.revoked
            .get(subject)
            .is_some_and(|revocation| issued.is_none_or(|issued| issued <= revocation.at))
    }

    /// Remembers a revocation. Returns whether the oldest was forgotten for it.
    fn note_revoked(&mut self, subject: &str, at: u64) -> bool {
        let subject: Arc<str> = subject.into();
        let place = self.next;
        self.next += 1;
        // Clocks of nodes differ: a later revocation must not be an earlier one.
        let at = self.revoked.get(&subject).map_or(at, |known| known.at.max(at));
        if let Some(before) = self.revoked.insert(Arc::clone(&subject), Revocation { at, place }) {
            self.order.remove(&before.place);
        }
        self.order.insert(place, subject);
        let oldest = (self.order.len() > MAX_REVOKED).then(|| self.order.pop_first()).flatten();
        oldest.is_some_and(|(_, oldest)| self.revoked.remove(&oldest).is_some())
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        let mut table = self.subjects.table();
        let Some(open) = table.open.get_mut(&self.subject.0) else { return };
        open.try_remove(self.slot);
        if open.is_empty() {
            table.open.remove(&self.subject.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_refuses_what_was_issued_before_it_or_in_the_same_second() {
        let subjects = Subjects::default();
        assert!(!subjects.is_revoked("alice", Some(5)) && !subjects.is_revoked("alice", None));
        assert_eq!(subjects.revoke("alice", 10), 0);
        for (issued, revoked) in [(Some(0), true), (Some(10), true), (Some(11), false), (None, true)] {
            assert_eq!(subjects.is_revoked("alice", issued), revoked, "{issued:?}");
        }
        assert!(!subjects.is_revoked("bob", Some(5)));
        subjects.revoke("alice", 20);
        assert!(subjects.is_revoked("alice", Some(15)));
        subjects.revoke("alice", 18);
        assert!(subjects.is_revoked("alice", Some(20)), "another node's clock is behind");
        assert_eq!(subjects.revoked(), 1);
    }

    #[test]
    fn a_revocation_that_is_learned_late_or_twice_spares_credentials_that_were_issued_since() {
        let subjects = Subjects::default();
        subjects.learn("alice", 10);
        assert!(subjects.is_revoked("alice", Some(10)) && !subjects.is_revoked("alice", Some(11)));
        subjects.learn("alice", 5);
        assert!(subjects.is_revoked("alice", Some(10)), "an older one changes nothing");
        subjects.learn("alice", 20);
        assert!(subjects.is_revoked("alice", Some(20)));
    }

    #[test]
    fn only_the_newest_revocations_are_remembered() {
        let subjects = Subjects::default();
        for number in 0..MAX_REVOKED {
            subjects.revoke(&number.to_string(), 1);
        }
        // Revoked once more, it is not the oldest any longer.
        subjects.revoke("0", 2);
        subjects.revoke("one more", 2);
        assert_eq!(subjects.revoked(), MAX_REVOKED);
        let revoked = |name: &str| subjects.is_revoked(name, Some(1));
        assert_eq!((revoked("0"), revoked("1"), revoked("2")), (true, false, true));
    }
}
