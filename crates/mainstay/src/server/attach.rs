//! What becomes of a client that has sent its HELLO and is authenticated, once the registry has decided.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use mainstay_proto::connect::Mode;
use mainstay_proto::session::server::{Fenced, ServerConfig};
use mainstay_proto::session::{Answer, ConnectionId, Control, Expiry, RefuseReason, Transmit};
use mainstay_proto::throttle::ThrottleConfig;
use mainstay_proto::timeline::{Attach, Event, Resource};
use mainstay_proto::ws::{CloseCode, CloseFrame, DeflateParams, Limits};
use tokio::time::Instant;

use super::auth::{Authenticate, Identity, judge};
use super::core::{CoreRef, Cores};
use super::group::Group;
use super::inner::Origin;
use super::stats::Counters;
use crate::driver::Wire;

/// Options of a session that the request and the application set before it begins.
pub(super) struct SessionOptions {
    /// The path where the session is opened, and may be resumed.
    pub(super) path: Box<str>,
    /// What the request proves; used without `authenticate`.
    pub(super) identity: Identity,
    pub(super) authenticate: Option<Authenticate>,
    /// The settings of the session: the server's, unless the application changed one for this route.
    pub(super) settings: Arc<ServerConfig>,
    pub(super) limits: Limits,
    /// The WebSockets of its route, which count together.
    pub(super) group: Option<Group>,
    pub(super) throttle: ThrottleConfig,
    pub(super) manual: bool,
    pub(super) drops_oldest: bool,
    #[cfg(feature = "cluster")]
    pub(super) movable: bool,
    pub(super) deflate: Option<DeflateParams>,
}

/// A session that has no handler yet, and its connection; `None`: its client has to come once more.
pub(super) type Bound = (ConnectionId, CoreRef, Option<Wire>);

/// A connection whose client has sent its HELLO and is authenticated.
pub(super) struct Opened {
    pub(super) connection: ConnectionId,
    pub(super) options: SessionOptions,
    /// How long the credentials hold.
    pub(super) expiry: Option<Expiry>,
    pub(super) wire: Wire,
    #[cfg(feature = "cluster")]
    pub(super) deadline: Instant,
}

/// Does what the registry decided.
pub(super) async fn settle(cores: &Cores, mut opened: Opened, answer: Answer<CoreRef>) -> Option<Bound> {
    if let Answer::Attached { .. } = answer {
        opened.take_place(cores);
    }
    let Opened { connection, options, expiry, wire, .. } = opened;
    let stats = &cores.shared.stats;
    match answer {
        Answer::Refused { refuse: answer, why } => {
            let refused = Event::Refused { why, address: cores.info.address };
            cores.shared.timeline.note(None, refused);
            refuse(stats, wire, &answer, why).await;
            None
        }
        Answer::Attached { session: core, created, lost, evicted, fenced } => {
            if let Some(evicted) = evicted {
                Counters::add(&stats.evicted, 1);
                evicted.note(|_| Event::Evicted(Resource::Place));
                evicted.notify();
            }
            let counter = match (created, lost) {
                (true, false) => &stats.attached_new,
                (_, true) => &stats.attached_lost,
                (false, false) => &stats.attached_resumed,
            };
            Counters::add(counter, 1);
            core.begin_epoch(options.authenticate.clone());
            core.set_expiry(connection, expiry);
            if created {
                Counters::add(&stats.connections, 1);
                core.note_attached(cores.info.address, if lost { Attach::AfterLoss } else { Attach::New });
                options.apply(&core);
                return Some((connection, core, Some(wire)));
            }
            let from = Origin { address: cores.info.address, path: options.path, entry: None };
            resume(&core, fenced, connection, wire, from).await;
            None
        }
    }
}

/// Gives a session that has its handler the connection on which its client is back.
pub(super) async fn resume(
    core: &CoreRef,
    fenced: Option<Fenced>,
    connection: ConnectionId,
    wire: Wire,
    from: Origin,
) {
    let stats = &core.shared.stats;
    Counters::add(&stats.connections, 1);
    let replayed = core.with_session(|session| session.to_replay()).unwrap_or(0);
    Counters::add(&stats.replayed, replayed);
    let loser = core.supersede(fenced, connection, wire, from);
    core.shared.drain_if_draining(core);
    if let Some((wire, frame)) = loser {
        Counters::subtract(&stats.connections, 1);
        wire.close_and_finish(frame.code, &frame.reason).await;
    }
}

pub(super) async fn refuse(stats: &Counters, wire: Wire, refuse: &Control, why: RefuseReason) {
    tracing::debug!(?why, "HELLO refused");
    Counters::add(&stats.attach_refused, 1);
    refuse_with(wire, refuse, why.code()).await;
}

/// Writes a REFUSE and closes.
pub(super) async fn refuse_with(mut wire: Wire, refuse: &Control, code: CloseCode) {
    wire.send_control(refuse).await;
    wire.close_and_finish(code, "").await;
}

impl Opened {
    /// Counts the connection, for as long as it exists, among the open WebSockets of its client and of its route.
    pub(super) fn take_place(&mut self, cores: &Cores) {
        let groups = cores.shared.groups(self.options.group.as_ref());
        if let Some(places) = groups.enter(cores.info.opener()) {
            self.wire.permit = Some(places.keep(self.wire.permit.take()));
        }
    }
}

impl SessionOptions {
    pub(super) async fn identity(
        &self,
        credentials: Option<Bytes>,
        deadline: Instant,
    ) -> Result<Identity, RefuseReason> {
        match &self.authenticate {
            Some(authenticate) => judge(authenticate, credentials, deadline).await,
            None => Ok(self.identity.clone()),
        }
    }

    /// Sets what the application chose for a session that gets its handler now.
    pub(super) fn apply(&self, core: &CoreRef) {
        core.with_session(|session| {
            if self.manual {
                session.manual_ack();
            }
            if self.drops_oldest {
                session.drop_oldest_when_full();
            }
            #[cfg(feature = "cluster")]
            if self.movable {
                session.set_movable();
            }
        });
        core.lock().set_throttle(self.throttle);
    }
}

impl Wire {
    /// Writes one control message, best effort.
    async fn send_control(&mut self, control: &Control) {
        let mut message = Some(Transmit::Control(control.encode()));
        let _ = poll_fn(|cx| Poll::Ready(self.poll_write(cx, Mode::Session, || message.take()))).await;
    }

    /// Closes the connection and waits for its end.
    pub(super) async fn close_and_finish(mut self, code: CloseCode, reason: &str) {
        self.close(&CloseFrame { code, reason: reason.to_owned() });
        self.finish().await;
    }
}
