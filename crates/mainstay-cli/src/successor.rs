//! A restart without a hole: a process that drains hands its listening sockets on to its successor.
//!
//! The socket itself goes over, by a copy of its descriptor, so no connection that waits to be accepted is reset, as
//! would happen if one of two sockets with `SO_REUSEPORT` were closed (`docs/adr/0013`). The two meet at an abstract
//! Unix socket whose name has the address in it: it lives in the network namespace of the port, needs no file, and goes
//! with the process. Only processes of the same user are answered.
//!
//! - A process that finds its address taken asks there. One that runs answers that it runs, and the newcomer ends: a
//!   second process that was started by mistake is told so.
//! - One that drains answers with the socket. The newcomer says when it accepts, and only then the old one stops.
//!
//! Linux only; elsewhere an address in use is an error, as for every program.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use here::ask;
pub(crate) use here::{Baton, offer};
#[cfg(target_os = "linux")]
use linux as here;
#[cfg(not(target_os = "linux"))]
use other as here;

/// Between SIGTERM and the moment from which on a busy process knows that it drains.
const MOMENT: Duration = Duration::from_secs(1);

/// What a process finds whose address is taken.
pub(crate) enum Found {
    /// Another program, or another user's.
    Stranger,
    /// A process of ours that does not drain, by its id.
    Running(u32),
    /// The listening socket of one that drains. Call [`Baton::take_over`] when it is accepted from.
    Handed(std::net::TcpListener, Baton),
}

/// Asks whoever has this address; again for a moment where that is a process of ours that runs: it may have been told
/// to end just now. Blocks its thread.
pub(crate) fn ask_for_a_moment(address: SocketAddr) -> Found {
    let asked = Instant::now();
    loop {
        match ask(address) {
            Found::Running(_) if asked.elapsed() < MOMENT => std::thread::sleep(Duration::from_millis(50)),
            found => return found,
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io::{self, IoSlice, IoSliceMut, Read, Write};
    use std::mem::MaybeUninit;
    use std::net::SocketAddr;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net as std_unix;
    use std::time::Duration;

    use mainstay::Server;
    use rustix::net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg, sockopt,
    };
    use tokio::io::{AsyncReadExt, Interest};
    use tokio::net::{TcpListener, UnixListener, UnixStream};

    use super::Found;

    /// How long one end waits for the other's next word.
    const PATIENCE: Duration = Duration::from_secs(10);
    const RUNNING: u8 = b'r';
    const HANDED: u8 = b'h';
    const ACCEPTS: u8 = b'a';

    fn name(address: SocketAddr) -> io::Result<std_unix::SocketAddr> {
        std_unix::SocketAddr::from_abstract_name(format!("mainstay/{address}"))
    }

    /// Whether the other end runs as the same user.
    fn is_ours(stream: impl AsFd) -> bool {
        sockopt::socket_peercred(stream).is_ok_and(|peer| peer.uid == rustix::process::geteuid())
    }

    /// What the successor says when it accepts.
    pub(crate) struct Baton(std_unix::UnixStream);

    impl Baton {
        /// From here on this process accepts; returns when the one before it has stopped. Blocks its thread.
        pub(crate) fn take_over(mut self) {
            let told = self.0.write_all(&[ACCEPTS]).and_then(|()| {
                self.0.set_read_timeout(Some(Duration::from_millis(500)))?;
                self.0.read(&mut [0])
            });
            if let Err(error) = told {
                tracing::warn!(%error, "the process before this one did not say that it stops accepting");
            }
        }
    }

    /// Asks whoever has this address.
    pub(super) fn ask(address: SocketAddr) -> Found {
        answer(address).unwrap_or(Found::Stranger)
    }

    fn answer(address: SocketAddr) -> io::Result<Found> {
        let mut stream = std_unix::UnixStream::connect_addr(&name(address)?)?;
        if !is_ours(&stream) {
            return Ok(Found::Stranger);
        }
        stream.set_read_timeout(Some(PATIENCE))?;
        let (mut kind, mut space) = ([0], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&stream, &mut [IoSliceMut::new(&mut kind)], &mut rights, RecvFlags::CMSG_CLOEXEC)?;
        let handed = rights.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
            _ => None,
        });
        let mut id = [0; 4];
        stream.read_exact(&mut id)?;
        match (kind, handed) {
            ([HANDED], Some(socket)) => {
                let listener = std::net::TcpListener::from(socket);
                let is_right = sockopt::socket_acceptconn(&listener)? && listener.local_addr()? == address;
                Ok(if is_right { Found::Handed(listener, Baton(stream)) } else { Found::Stranger })
            }
            ([RUNNING], _) => Ok(Found::Running(u32::from_be_bytes(id))),
            _ => Ok(Found::Stranger),
        }
    }

    /// Completes when a successor accepts from this listener's socket. Until `mainstay` drains, processes that ask are
    /// told that this one runs.
    pub(crate) fn offer(
        listener: &TcpListener,
        mainstay: Server,
    ) -> impl Future<Output = ()> + Send + 'static {
        let prepared =
            listener.local_addr().and_then(|address| Ok((address, listener.as_fd().try_clone_to_owned()?)));
        async move {
            let offered = match prepared {
                Ok((address, socket)) => answer_all(address, socket, mainstay).await,
                Err(error) => Err(error),
            };
            if let Err(error) = offered {
                tracing::warn!(%error, "a successor cannot be given the listening socket");
                std::future::pending().await
            }
        }
    }

    async fn answer_all(address: SocketAddr, socket: OwnedFd, mainstay: Server) -> io::Result<()> {
        let name = name(address)?;
        // The process before this one has the name until it heard that we accept.
        let listener = loop {
            match std_unix::UnixListener::bind_addr(&name) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                bound => break bound?,
            }
        };
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) if is_ours(&stream) => {
                    let handing = deliver(stream, &socket, mainstay.is_ready());
                    match tokio::time::timeout(PATIENCE, handing).await {
                        Ok(Ok(true)) => return Ok(()),
                        Ok(Ok(false)) => {}
                        Ok(Err(error)) => tracing::warn!(%address, %error, "a successor did not take over"),
                        Err(_) => {
                            tracing::warn!(%address, "a successor took the socket and did not say that it accepts")
                        }
                    }
                }
                Ok(_) => {}
                // Out of descriptors, for example.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Whether the other end accepts now.
    async fn deliver(mut stream: UnixStream, socket: &OwnedFd, is_running: bool) -> io::Result<bool> {
        let kind = if is_running { RUNNING } else { HANDED };
        let id = std::process::id().to_be_bytes();
        let message: Vec<u8> = [kind].into_iter().chain(id).collect();
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let (mut rights, sockets) = (SendAncillaryBuffer::new(&mut space), [socket.as_fd()]);
            if !is_running && !rights.push(SendAncillaryMessage::ScmRights(&sockets)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            sendmsg(&stream, &[IoSlice::new(&message)], &mut rights, SendFlags::NOSIGNAL)
                .map_err(io::Error::from)
        };
        stream.async_io(Interest::WRITABLE, send).await?;
        if is_running {
            return Ok(false);
        }
        Ok(stream.read_u8().await? == ACCEPTS)
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use mainstay::Server;
    use tokio::net::TcpListener;

    use super::Found;

    pub(crate) enum Baton {}

    impl Baton {
        pub(crate) fn take_over(self) {
            match self {}
        }
    }

    pub(super) fn ask(_: std::net::SocketAddr) -> Found {
        Found::Stranger
    }

    pub(crate) async fn offer(_: &TcpListener, _: Server) {
        std::future::pending().await
    }
}
