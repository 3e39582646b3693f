//! From the 101 response to a session: HELLO, the identity of the client, and the session that it may have.
//!
//! An opening has a tokio task of its own and the opening deadline; the session that it returns is polled by a worker.
//!
//! Source: `docs/PROTOCOL.md` "Attaching", "Credentials".

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use mainstay_proto::session::message::Hello;
use mainstay_proto::session::{
    ConnectionId, Control, Frame, PlainSession, Presenter, RefuseReason, SessionError,
};
use mainstay_proto::timeline::Event;
use mainstay_proto::ws::{CloseCode, CloseFrame, Connection, Limits, Role};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};
#[cfg(feature = "tls")]
use tokio_rustls::server::TlsStream;

use super::attach::{Bound, Opened, SessionOptions, refuse, settle};
use super::core::{Core, Cores, Shared};
use super::group::Places;
use super::limits::Permit;
use super::peer::{Peer, PeerInfo};
use super::session::Session;
use super::stats::Counters;
use super::task::SessionTask;
use super::write_timeout::WriteTimeout;
use crate::clock::now;
use crate::driver::{Arrived, LARGEST_CONTROL, Reading, Wire};
use crate::transport::{Stream, Transport, one_kind};
use crate::worker;

/// The outcome of the opening handshake.
pub(super) struct Opening {
    pub(super) on_upgrade: OnUpgrade,
    pub(super) permit: Option<Arc<Permit>>,
    /// What a plain client counts for.
    pub(super) places: Option<Places>,
    pub(super) info: PeerInfo,
    pub(super) options: SessionOptions,
    /// The part of the opening deadline that the request used up.
    pub(super) head_duration: Duration,
}

/// An extension of requests: the part of the opening deadline that the head of the request used up.
#[derive(Clone, Copy)]
pub(super) struct HeadDuration(pub(super) Duration);

/// The largest HELLO, credentials included.
const LARGEST_HELLO: usize = LARGEST_CONTROL;

/// Begins a session with the handler, if this connection creates one.
pub(super) async fn open<H, F>(shared: Arc<Shared>, opening: Opening, handler: H)
where
    H: FnOnce(Session) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let Some((connection, core, wire)) = bind(&shared, opening).await else { return };
    #[cfg(feature = "cluster")]
    if shared.confirms_first() {
        let handler = |session| super::confirmed::WhenConfirmed::new(session, handler);
        SessionTask::begin(Arc::clone(&core), connection, wire, handler);
        return shared.drain_if_draining(&core);
    }
    SessionTask::begin(Arc::clone(&core), connection, wire, handler);
    shared.drain_if_draining(&core);
}

/// Binds a new connection to a session. Returns `None` if that session has its handler already, or if there is none.
async fn bind(shared: &Arc<Shared>, opening: Opening) -> Option<Bound> {
    let Opening { on_upgrade, permit, places, mut info, options, head_duration } = opening;
    let stats = &shared.stats;
    let upgraded = match on_upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            tracing::debug!(%error, "upgrade failed");
            Counters::add(&stats.openings_failed, 1);
            return None;
        }
    };
    let (transport, early) = raw(upgraded);
    let limits = options.limits;
    let first = if info.resumable { before_hello(limits) } else { limits };
    let codec = Connection::new(Role::Server, first, options.deflate, [0; 32]);
    let mut wire = Wire::new(transport, codec, early);
    wire.permit = permit.map(Permit::keep);
    if let Some(places) = places {
        wire.permit = Some(places.keep(wire.permit.take()));
    }
    let connection = next_connection();
    Counters::add(&stats.connections_opened, 1);
    let deadline = Instant::now() + shared.config.opening_deadline.saturating_sub(head_duration);
    if !info.resumable {
        return match options.identity(None, deadline).await {
            Ok(identity) => {
                Counters::add(&stats.connections, 1);
                info.identify(&identity);
                let (now, settings) = (now(), shared.share(Arc::clone(&options.settings)));
                let mut plain = PlainSession::new(now, settings, connection.0);
                plain.set_expiry(now, identity.expiry());
                let peer = Peer::Plain(Box::new(plain));
                let core = Core::new(Arc::clone(shared), worker::mailbox(), info, peer, Some(&options.path));
                core.begin_epoch(None);
                core.lock().set_throttle(options.throttle);
                Some((connection, core, Some(wire)))
            }
            Err(why) => {
                // A plain client has presented its request, and gets a Close.
                Counters::add(&stats.openings_failed, 1);
                wire.close_and_finish(why.code(), "").await;
                None
            }
        };
    }
    #[cfg(feature = "cluster")]
    let mut raw = bytes::BytesMut::new();
    #[cfg(feature = "cluster")]
    let keep = |bytes: &[u8]| {
        if shared.node.is_some() {
            raw.extend_from_slice(bytes);
        }
    };
    #[cfg(not(feature = "cluster"))]
    let keep = |_: &[u8]| {};
    let hello = wait_for_hello(stats, &mut wire, keep, deadline).await;
    let Ok(hello) = hello else {
        wire.finish().await;
        return None;
    };
    match options.identity(hello.credentials.clone().map(|credentials| credentials.0), deadline).await {
        Ok(identity) => {
            info.identify(&identity);
            wire.begin_session(limits);
            if hello.resume.is_some()
                && let Err(exceeded) = shared.groups(options.group.as_ref()).judge_resume()
            {
                shared.gate.note_refused(exceeded.why, exceeded.is_of_route, stats);
                let refuse = RefuseReason::NoRoom.refuse_until(exceeded.refuse(info.opener()));
                self::refuse(stats, wire, &refuse, RefuseReason::NoRoom).await;
                return None;
            }
            let settings = Arc::clone(&options.settings);
            let path = shared.timeline.is_on().then(|| options.path.clone());
            let cores = Cores { shared: Arc::clone(shared), info, settings, path };
            let opened = Opened {
                connection,
                options,
                expiry: identity.expiry(),
                wire,
                #[cfg(feature = "cluster")]
                deadline,
            };
            #[cfg(feature = "cluster")]
            if let (Some(node), Some(resume)) = (&shared.node, &hello.resume) {
                return super::route::attach(node, cores, opened, &hello, resume, raw.freeze()).await;
            }
            attach(cores, opened, &hello).await
        }
        Err(why) => {
            shared.timeline.note(None, Event::Refused { why, address: info.address });
            refuse(stats, wire, &why.refuse(), why).await;
            None
        }
    }
}

async fn attach(mut cores: Cores, opened: Opened, hello: &Hello) -> Option<Bound> {
    let (shared, principal) = (Arc::clone(&cores.shared), cores.info.principal.clone());
    let who = Presenter { principal: &principal, path: &opened.options.path };
    let answer = shared.answer(&mut cores, opened.options.group.as_ref(), |registry, cores| {
        registry.hello(now(), opened.connection, who, hello, cores)
    });
    settle(&cores, opened, answer).await
}

/// Before its HELLO a client is unknown, and no budget counts the bytes that it makes this server keep.
pub(super) fn before_hello(limits: Limits) -> Limits {
    Limits { max_message: LARGEST_HELLO, ..limits }
}

/// Returns a number that no other connection of this process has.
pub(super) fn next_connection() -> ConnectionId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    ConnectionId(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Returns HELLO if it comes in time; `raw` gets the bytes that were read. An error was counted, and the Close for it is
/// queued.
pub(super) async fn wait_for_hello(
    stats: &Counters,
    wire: &mut Wire,
    raw: impl FnMut(&[u8]) + Send,
    deadline: Instant,
) -> Result<Hello, ()> {
    let (counter, frame) = match timeout_at(deadline, read_hello(wire, raw)).await {
        Ok(Ok(hello)) => return Ok(hello),
        Ok(Err(None)) => (&stats.openings_failed, None),
        Ok(Err(Some(error))) => {
            let frame = CloseFrame { code: error.close_code(), reason: error.to_string() };
            (&stats.session_errors, Some(frame))
        }
        Err(_) => {
            let frame = CloseFrame { code: CloseCode::OPENING_TIMEOUT, reason: "no HELLO in time".into() };
            (&stats.openings_failed, Some(frame))
        }
    };
    Counters::add(counter, 1);
    frame.into_iter().for_each(|frame| wire.close(&frame));
    Err(())
}

/// Reads the first message, which must be HELLO. The error is `None` if the connection ended first.
async fn read_hello(
    wire: &mut Wire,
    mut raw: impl FnMut(&[u8]) + Send,
) -> Result<Hello, Option<SessionError>> {
    poll_fn(|cx| {
        let mut first = None;
        loop {
            let reading = wire.poll_read_raw(cx, &mut raw, |arrived| match arrived {
                Arrived::Message(message) => {
                    first = Some(Frame::decode(message));
                    false
                }
                Arrived::Pong(_) | Arrived::Bytes => true,
                Arrived::Close(_) => {
                    first = Some(Err(SessionError::Unexpected("a close before HELLO")));
                    false
                }
            });
            match first.take() {
                Some(Ok(Frame::Control(Control::Hello(hello)))) => return Poll::Ready(Ok(*hello)),
                Some(Ok(_)) => {
                    return Poll::Ready(Err(Some(SessionError::Unexpected("a message before HELLO"))));
                }
                Some(Err(error)) => return Poll::Ready(Err(Some(error))),
                None => {}
            }
            match reading {
                Reading::Idle => return Poll::Pending,
                Reading::More => {}
                Reading::Ended(_) => return Poll::Ready(Err(None)),
            }
        }
    })
    .await
}

/// Returns the stream of an upgraded connection, without hyper's state around it where that is possible.
fn raw(upgraded: Upgraded) -> (Transport, Bytes) {
    let bare = ours(upgraded, tcp).or_else(|upgraded| ours(upgraded, unix));
    #[cfg(feature = "tls")]
    let bare = bare.or_else(|upgraded| ours(upgraded, tls)).or_else(|upgraded| ours(upgraded, tls_over_unix));
    let bare = bare.or_else(|upgraded| {
        let others = upgraded.downcast::<TokioIo<TcpStream>>();
        others.map(|parts| (tcp(parts.io.into_inner()), parts.read_buf))
    });
    bare.unwrap_or_else(|upgraded| (Transport::other(TokioIo::new(upgraded)), Bytes::new()))
}

/// Returns the stream of a connection that [`serve`](crate::serve) accepted, if it is of this kind.
fn ours<S: Stream + 'static>(
    upgraded: Upgraded,
    kind: fn(S) -> Transport,
) -> Result<(Transport, Bytes), Upgraded> {
    let parts = upgraded.downcast::<TokioIo<WriteTimeout<S>>>()?;
    Ok((kind(parts.io.into_inner().into_inner()), parts.read_buf))
}

fn tcp(stream: TcpStream) -> Transport {
    let _ = stream.set_nodelay(true);
    Transport::tcp(stream)
}

fn unix(stream: UnixStream) -> Transport {
    one_kind(stream).map_or(Transport::Closed, Transport::tcp)
}

#[cfg(feature = "tls")]
fn tls(stream: TlsStream<TcpStream>) -> Transport {
    let (stream, session) = stream.into_inner();
    let _ = stream.set_nodelay(true);
    Transport::tls(stream, session)
}

#[cfg(feature = "tls")]
fn tls_over_unix(stream: TlsStream<UnixStream>) -> Transport {
    let (stream, session) = stream.into_inner();
    one_kind(stream).map_or(Transport::Closed, |stream| Transport::tls(stream, session))
}
