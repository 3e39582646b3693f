//! A HELLO that came from another node: this one may own its session.
//!
//! The entry node has authenticated the client. The owner reads HELLO from the client's own bytes, with a codec of its own,
//! queries its registry for the *resume* alone, and never relays again.
//!
//! Source: `docs/CLUSTER.md`.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use mainstay_proto::cluster::peer::{ANSWER_TIME, BLOCK_TIME, Head, PeerAnswer};
use mainstay_proto::cluster::{Step, lookup};
use mainstay_proto::session::message::{Hello, SessionId};
use mainstay_proto::session::registry::Resumed;
use mainstay_proto::session::{Answer, Presenter, RefuseReason, Route, ServerSession, Sessions};
use mainstay_proto::ws::{Connection, Limits, Role};
use tokio::time::{Instant, timeout_at};

use super::attach::resume;
use super::core::{CoreRef, Cores, Shared};
use super::inner::Origin;
use super::open::{before_hello, next_connection, wait_for_hello};
use super::stats::Counters;
use crate::clock::now;
use crate::cluster::{Figures, Node};
use crate::driver::Wire;
use crate::transport::Transport;

/// Attaches a client that another node relays, or answers what became of its session. `early`: the client's bytes that came
/// with the block.
pub(crate) async fn attach(shared: Arc<Shared>, head: Head, transport: Transport, early: Bytes) {
    let Some(node) = &shared.node else { return };
    let limits = shared.config.limits;
    let codec = Connection::new(Role::Server, before_hello(limits), head.deflate, [0; 32]);
    let mut wire = Wire::new(transport, codec, early);
    let (deadline, answer_by) = (Instant::now() + BLOCK_TIME, Instant::now() + ANSWER_TIME);
    // Not a HELLO: the entry node has read one in the same bytes, so this is no node.
    let Ok(hello) = wait_for_hello(&shared.stats, &mut wire, |_| {}, deadline).await else { return };
    wire.begin_session(limits);
    let connection = next_connection();
    let answer = loop {
        let resumed = {
            let who = Presenter { principal: &head.principal, path: &head.path };
            let mut owned = Owned::new(&shared);
            let resumed = shared.registry_for_hello().resume(now(), connection, who, &hello, &mut owned);
            owned.notify_ended();
            resumed
        };
        match resumed {
            Resumed::Answer(Answer::Attached { session, fenced, .. }) => {
                Figures::add(&node.figures.accepted, 1);
                Counters::add(&shared.stats.attached_resumed, 1);
                if let Some(max_message) = session.lock().peer.max_message() {
                    // The session's route may have other limits than the rest of this server.
                    let max_message = usize::try_from(max_message).unwrap_or(usize::MAX);
                    wire.begin_session(Limits { max_message, ..limits });
                }
                session.begin_relayed_epoch();
                session.set_expiry(connection, head.expiry);
                // A relay that is gone by now shows when the session writes.
                let _ = wire.write_first(PeerAnswer::Accepted.encode()).await;
                let from =
                    Origin { address: known(head.client), path: head.path.into(), entry: Some(head.from) };
                return resume(&session, fenced, connection, wire, from).await;
            }
            Resumed::Answer(Answer::Refused { refuse, why }) => {
                tracing::debug!(?why, entry = %head.from, "a HELLO from another node is refused");
                Counters::add(&shared.stats.attach_refused, 1);
                break PeerAnswer::Refused(refuse);
            }
            Resumed::Lost(None) if !is_known(&shared, &head, &hello) => break lost(node, &head, &hello),
            Resumed::Lost(account) if !node.gave_accounts() => break PeerAnswer::Lost(account),
            Resumed::Lost(account) => match timeout_at(answer_by, was_released(node, &hello)).await {
                Ok(true) => break PeerAnswer::Released,
                Ok(false) => break PeerAnswer::Lost(account),
                Err(_) => break moving(),
            },
            Resumed::Released => match timeout_at(answer_by, was_released(node, &hello)).await {
                Ok(true) => break PeerAnswer::Released,
                // It ends with its exact account, and is asked once more.
                Ok(false) => end_released(&shared, &hello),
                Err(_) => break moving(),
            },
            Resumed::Leaving(session) => {
                session.leave();
                if timeout_at(answer_by, session.left()).await.is_err() {
                    break moving();
                }
            }
        }
    };
    Figures::add(&node.figures.answered, 1);
    let _ = wire.write_first(answer.encode()).await;
    // An entry node gives a question up a little later, and its client asks again.
    let is_received = Instant::now() <= answer_by;
    if let (true, PeerAnswer::Lost(_), Some(session)) = (is_received, &answer, named(&hello)) {
        node.note_accounted(session);
    }
}

fn is_known(shared: &Shared, head: &Head, hello: &Hello) -> bool {
    let who = Presenter { principal: &head.principal, path: &head.path };
    hello.resume.as_ref().is_some_and(|resume| shared.registry().knows(who, &resume.token))
}

/// The answer for a token that this node does not know. The engine may have named this node for it: its claim was executed,
/// and no answer came, or it adopts the session just now.
fn lost(node: &Node, head: &Head, hello: &Hello) -> PeerAnswer {
    let Some(resume) = &hello.resume else { return PeerAnswer::Lost(None) };
    let who = Presenter { principal: &head.principal, path: &head.path };
    match node.step_of_peer(&resume.token, who.token_name(&resume.token)) {
        Step::Elsewhere => PeerAnswer::Released,
        Step::Wait => PeerAnswer::Refused(lookup::wait()),
        _ => PeerAnswer::Lost(None),
    }
}

/// The session takes its time to leave: its client comes back.
fn moving() -> PeerAnswer {
    PeerAnswer::Refused(RefuseReason::Moving.refuse())
}

/// Waits until the engine has the session, or its account. Returns `false` if it certainly never will.
async fn was_released(node: &Node, hello: &Hello) -> bool {
    match named(hello) {
        Some(session) => node.released(session).await,
        None => true,
    }
}

/// Ends a session that no other node can have: its client gets the exact account here.
fn end_released(shared: &Shared, hello: &Hello) {
    if let Some(session) = named(hello) {
        shared.registry().end_released(session);
    }
}

/// The session that the token names.
fn named(hello: &Hello) -> Option<SessionId> {
    hello.resume.as_ref().and_then(|resume| Route::of(&resume.token)).map(|route| route.session)
}

/// An entry node whose listener has no addresses states 0.0.0.0:0.
fn known(address: SocketAddr) -> Option<SocketAddr> {
    (!address.ip().is_unspecified()).then_some(address)
}

/// The sessions of this server as its registry sees them, for a HELLO that creates none. A draining registry ends sessions;
/// their tasks must look.
pub(super) struct Owned {
    cores: Cores,
    touched: Vec<CoreRef>,
}

impl Owned {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { cores: Cores::without_client(shared), touched: Vec::new() }
    }

    /// Has the tasks of sessions look that the registry has ended.
    pub(super) fn notify_ended(self) {
        self.touched.iter().filter(|core| core.lock().peer.is_closed()).for_each(|core| core.notify());
    }
}

impl Sessions for Owned {
    type Handle = CoreRef;

    fn with<R>(&mut self, handle: &CoreRef, f: impl FnOnce(&mut ServerSession) -> R) -> R {
        self.touched.push(Arc::clone(handle));
        self.cores.with(handle, f)
    }

    fn create(&mut self, session: ServerSession) -> CoreRef {
        self.cores.create(session)
    }
}
