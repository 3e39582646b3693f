//! A restart without refused connections: a draining process passes its listening sockets to its successor.
//!
//! The successor inherits a copy of the descriptor, so that no connection in the accept queue is reset. Closing one of two
//! sockets with `SO_REUSEPORT` would reset them (`docs/adr/0013`). The two processes meet at an abstract Unix socket whose
//! name contains the address: it lives in the network namespace of the port, needs no file, and disappears with the
//! process. Only processes of the same user get a reply.
//!
//! - A process that finds its address in use asks at that socket. A running process replies that it runs, and the new
//!   process ends: it was started by mistake.
//! - A draining process replies with the listener. The new process reports when it accepts; only then does the old one
//!   stop accepting.
//!
//! Linux only. Elsewhere an address in use is an error.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use here::ask;
pub(crate) use here::{Predecessor, pass_listener};
#[cfg(target_os = "linux")]
use linux as here;
#[cfg(not(target_os = "linux"))]
use other as here;

use crate::clients::listen_address::Place;

/// How long a busy process may take to start draining after SIGTERM.
const DRAIN_START: Duration = Duration::from_secs(1);

/// The owner of an address that is in use.
pub(crate) enum Found {
    /// Another program, or a process of another user.
    Foreign,
    /// A mainstay process that does not drain, by its id.
    Running(u32),
    /// The listener of a draining mainstay process. Call [`Predecessor::stop_accepting`] once this process accepts.
    Inherited(OwnedFd, Predecessor),
}

/// Asks the owner of an address who it is. Repeats the question for [`DRAIN_START`] while the answer is "running": that
/// process may have received SIGTERM just now. Blocks its thread.
pub(crate) fn find_predecessor(place: &Place) -> Found {
    let asked = Instant::now();
    loop {
        match ask(place) {
            Found::Running(_) if asked.elapsed() < DRAIN_START => {
                std::thread::sleep(Duration::from_millis(50))
            }
            found => return found,
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io::{self, IoSlice, IoSliceMut, Read, Write};
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net as std_unix;
    use std::time::Duration;

    use mainstay::Server;
    use rustix::net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg, sockopt,
    };
    use sha2::{Digest, Sha256};
    use socket2::SockRef;
    use tokio::io::{AsyncReadExt, Interest};
    use tokio::net::{UnixListener, UnixStream};

    use super::Found;
    use crate::clients::listen_address::Place;

    /// How long one process waits for the next message of the other.
    const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
    const RUNNING: u8 = b'r';
    const LISTENER: u8 = b'h';
    const ACCEPTING: u8 = b'a';

    /// The name of the Unix socket at which the processes meet. A path may be longer than a name, so its hash stands for it.
    fn name(place: &Place) -> io::Result<std_unix::SocketAddr> {
        std_unix::SocketAddr::from_abstract_name(match place {
            Place::Tcp(address) => format!("mainstay/{address}"),
            Place::Unix(path) => {
                let hash = Sha256::digest(path.as_os_str().as_encoded_bytes());
                let hash: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
                format!("mainstay/unix/{hash}")
            }
        })
    }

    /// Whether a socket listens at this place.
    fn listens_at(socket: BorrowedFd<'_>, place: &Place) -> io::Result<bool> {
        let own = SockRef::from(&socket).local_addr()?;
        let is_there = match place {
            Place::Tcp(address) => own.as_socket() == Some(*address),
            Place::Unix(path) => own.as_pathname() == Some(path.as_path()),
        };
        Ok(is_there && sockopt::socket_acceptconn(socket)?)
    }

    /// Returns whether the other process runs as the same user.
    fn is_same_user(stream: impl AsFd) -> bool {
        sockopt::socket_peercred(stream).is_ok_and(|peer| peer.uid == rustix::process::geteuid())
    }

    /// The connection to the process whose listener was inherited.
    pub(crate) struct Predecessor(std_unix::UnixStream);

    impl Predecessor {
        /// Reports that this process accepts; returns when the predecessor has stopped accepting. Blocks its thread.
        pub(crate) fn stop_accepting(mut self) {
            let reported = self.0.write_all(&[ACCEPTING]).and_then(|()| {
                self.0.set_read_timeout(Some(Duration::from_millis(500)))?;
                self.0.read(&mut [0])
            });
            if let Err(error) = reported {
                tracing::warn!(%error, "the predecessor did not confirm that it stopped accepting");
            }
        }
    }

    /// Asks the owner of an address who it is.
    pub(super) fn ask(place: &Place) -> Found {
        try_ask(place).unwrap_or(Found::Foreign)
    }

    fn try_ask(place: &Place) -> io::Result<Found> {
        let mut stream = std_unix::UnixStream::connect_addr(&name(place)?)?;
        if !is_same_user(&stream) {
            return Ok(Found::Foreign);
        }
        stream.set_read_timeout(Some(MESSAGE_TIMEOUT))?;
        let (mut kind, mut space) = ([0], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&stream, &mut [IoSliceMut::new(&mut kind)], &mut rights, RecvFlags::CMSG_CLOEXEC)?;
        let inherited = rights.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
            _ => None,
        });
        let mut id = [0; 4];
        stream.read_exact(&mut id)?;
        match (kind, inherited) {
            ([LISTENER], Some(socket)) => {
                let is_expected = listens_at(socket.as_fd(), place)?;
                Ok(if is_expected { Found::Inherited(socket, Predecessor(stream)) } else { Found::Foreign })
            }
            ([RUNNING], _) => Ok(Found::Running(u32::from_be_bytes(id))),
            _ => Ok(Found::Foreign),
        }
    }

    /// Completes when a successor accepts from this listener. Until the server drains, processes that ask get the reply
    /// that this one runs. They can ask as soon as this returns, unless a predecessor still owns the name. `place` is where
    /// it listens, with its real port.
    pub(crate) fn pass_listener(
        listener: BorrowedFd<'_>,
        place: Place,
        server: Server,
    ) -> impl Future<Output = ()> + Send + use<> + 'static {
        let prepared = || {
            let (socket, name) = (listener.try_clone_to_owned()?, name(&place)?);
            Ok((socket, std_unix::UnixListener::bind_addr(&name)))
        };
        let prepared = prepared();
        async move {
            let passed = match prepared {
                Ok((socket, bound)) => answer_all(&place, socket, bound, server).await,
                Err(error) => Err(error),
            };
            if let Err(error) = passed {
                tracing::warn!(%error, "the listener cannot be passed to a successor");
                std::future::pending().await
            }
        }
    }

    async fn answer_all(
        place: &Place,
        socket: OwnedFd,
        mut bound: io::Result<std_unix::UnixListener>,
        server: Server,
    ) -> io::Result<()> {
        let name = name(place)?;
        // The predecessor owns the name until this process has reported that it accepts.
        let listener = loop {
            match bound {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    bound = std_unix::UnixListener::bind_addr(&name);
                }
                bound => break bound?,
            }
        };
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) if is_same_user(&stream) => {
                    let passing = pass(stream, &socket, server.is_ready());
                    match tokio::time::timeout(MESSAGE_TIMEOUT, passing).await {
                        Ok(Ok(true)) => return Ok(()),
                        Ok(Ok(false)) => {}
                        Ok(Err(error)) => {
                            tracing::warn!(address = %place, %error, "a successor did not accept from the listener")
                        }
                        Err(_) => {
                            tracing::warn!(address = %place, "a successor inherited the listener and did not report that it accepts")
                        }
                    }
                }
                Ok(_) => {}
                // For example, no file descriptor is left.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Replies to one process. Returns whether that process accepts now.
    async fn pass(mut stream: UnixStream, socket: &OwnedFd, is_running: bool) -> io::Result<bool> {
        let kind = if is_running { RUNNING } else { LISTENER };
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
        Ok(stream.read_u8().await? == ACCEPTING)
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::os::fd::BorrowedFd;

    use mainstay::Server;

    use super::Found;
    use crate::clients::listen_address::Place;

    pub(crate) enum Predecessor {}

    impl Predecessor {
        pub(crate) fn stop_accepting(self) {
            match self {}
        }
    }

    pub(super) fn ask(_: &Place) -> Found {
        Found::Foreign
    }

    pub(crate) fn pass_listener(
        _: BorrowedFd<'_>,
        _: Place,
        _: Server,
    ) -> impl Future<Output = ()> + Send + use<> + 'static {
        std::future::pending()
    }
}
