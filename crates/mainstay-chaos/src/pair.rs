//! The driver of one connection: it moves bytes between the two sockets and the machine, and decides nothing.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep_until};

use crate::connection::{Action, Connection};
use crate::dial::dial;
use crate::event::What;
use crate::fault::Side;
use crate::shared::{Shared, reason};

/// How often one connection moves bytes before the others have their turn.
const TURNS: usize = 8;

/// A connection and its two sockets.
pub(crate) struct Pair {
    pub(crate) id: u64,
    pub(crate) client: SocketAddr,
    pub(crate) machine: Connection,
    /// Where it leads, once the machine has asked for it.
    upstream: String,
    /// By side.
    sockets: [Option<TcpStream>; 2],
    dial: Option<Dial>,
    sleep: Option<(Duration, Pin<Box<Sleep>>)>,
    waker: Option<Waker>,
    is_closed: bool,
}

type Dial = Pin<Box<dyn Future<Output = io::Result<TcpStream>>>>;

impl Pair {
    pub(crate) fn new(id: u64, stream: TcpStream, client: SocketAddr, machine: Connection) -> Self {
        let _ = stream.set_nodelay(true);
        let (sockets, upstream) = ([Some(stream), None], String::new());
        Self {
            id,
            client,
            machine,
            upstream,
            sockets,
            dial: None,
            sleep: None,
            waker: None,
            is_closed: false,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Carries out at once what a command has decided. The task goes on from there.
    pub(crate) fn carry_out(&mut self, shared: &Shared) {
        let waker = self.waker.take();
        let _ = self.poll(&mut Context::from_waker(Waker::noop()), shared);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ready once the connection is gone.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>, shared: &Shared) -> Poll<()> {
        self.waker = Some(context.waker().clone());
        for _ in 0..TURNS {
            let now = shared.now();
            self.machine.handle_timeout(now);
            let mut has_moved = self.poll_dial(context, now).is_ready();
            for side in Side::BOTH {
                has_moved |= self.poll_read(context, shared, now, side).is_ready();
                has_moved |= self.poll_write(context, now, side).is_ready();
            }
            self.machine.handle_silence(now);
            has_moved |= self.act(context, shared);
            while let Some(note) = self.machine.poll_note() {
                shared.event_at(now, Some(self.id), note);
            }
            if self.machine.over().is_some() {
                return self.close(shared, now);
            }
            if !has_moved && self.poll_sleep(context, shared, now).is_pending() {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn close(&mut self, shared: &Shared, now: Duration) -> Poll<()> {
        let Some(reason) = self.machine.over() else { return Poll::Pending };
        self.sockets = [None, None];
        self.dial = None;
        if !std::mem::replace(&mut self.is_closed, true) {
            let (up, down) = self.machine.bytes();
            shared.event_at(now, Some(self.id), What::Closed { reason, up, down });
        }
        Poll::Ready(())
    }

    fn act(&mut self, context: &mut Context<'_>, shared: &Shared) -> bool {
        let mut has_acted = false;
        while let Some(action) = self.machine.poll_action() {
            has_acted = true;
            match action {
                Action::Dial => {
                    self.upstream = shared.upstream();
                    self.dial = Some(Box::pin(dial(self.upstream.clone(), shared.address)));
                }
                Action::Finish(side) => {
                    if let Some(socket) = &mut self.sockets[side as usize] {
                        // An error means that the other end is gone already.
                        let _ = Pin::new(socket).poll_shutdown(context);
                    }
                }
                Action::Reset(side) => {
                    if let Some(socket) = self.sockets[side as usize].take() {
                        let _ = socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO));
                    }
                }
                Action::Appear => shared.newcomer(self.id),
            }
        }
        has_acted
    }

    fn poll_dial(&mut self, context: &mut Context<'_>, now: Duration) -> Poll<()> {
        let Some(dial) = &mut self.dial else { return Poll::Pending };
        let dialled = ready!(dial.as_mut().poll(context));
        self.dial = None;
        match dialled.and_then(|stream| Ok((stream.peer_addr()?, stream))) {
            Ok((upstream, stream)) => {
                let _ = stream.set_nodelay(true);
                self.sockets[Side::Upstream as usize] = Some(stream);
                self.machine.handle_connected(now, What::Connected { upstream });
            }
            Err(error) => {
                let upstream = self.upstream.clone();
                let note = What::UpstreamFailed { upstream, reason: reason(&error) };
                self.machine.handle_connect_failed(note);
            }
        }
        Poll::Ready(())
    }

    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        shared: &Shared,
        now: Duration,
        side: Side,
    ) -> Poll<()> {
        let room = self.machine.room(side);
        let Some(socket) = self.sockets[side as usize].as_mut().filter(|_| room > 0) else {
            return Poll::Pending;
        };
        let mut scratch = shared.scratch();
        let most = room.min(scratch.len());
        let mut buffer = ReadBuf::new(&mut scratch[..most]);
        match ready!(Pin::new(socket).poll_read(context, &mut buffer)) {
            Ok(()) if buffer.filled().is_empty() => self.machine.handle_end(now, side),
            Ok(()) => self.machine.handle_bytes(now, side, buffer.filled()),
            Err(_) => self.machine.handle_reset(now, side),
        }
        Poll::Ready(())
    }

    fn poll_write(&mut self, context: &mut Context<'_>, now: Duration, side: Side) -> Poll<()> {
        let reader = side.other();
        let bytes = self.machine.poll_write(now, side);
        let Some(socket) = self.sockets[reader as usize].as_mut().filter(|_| !bytes.is_empty()) else {
            return Poll::Pending;
        };
        match ready!(Pin::new(socket).poll_write(context, bytes)) {
            Ok(count) => self.machine.wrote(now, side, count),
            Err(_) => self.machine.handle_reset(now, reader),
        }
        Poll::Ready(())
    }

    fn poll_sleep(&mut self, context: &mut Context<'_>, shared: &Shared, now: Duration) -> Poll<()> {
        let Some(at) = self.machine.poll_timeout(now) else {
            self.sleep = None;
            return Poll::Pending;
        };
        let (time, sleep) =
            self.sleep.get_or_insert_with(|| (at, Box::pin(sleep_until(shared.instant(at).into()))));
        if *time != at {
            *time = at;
            sleep.as_mut().reset(shared.instant(at).into());
        }
        ready!(sleep.as_mut().poll(context));
        self.sleep = None;
        Poll::Ready(())
    }
}
