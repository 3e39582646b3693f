//! Socket activation: listeners that a supervisor opened and passes to this process, as systemd does for `mainstay.socket`.
//!
//! The supervisor keeps its copy of a listener, so connections that come between two processes wait in the listener's queue
//! and none is refused. Variables say what was passed: `LISTEN_FDS`, `LISTEN_PID`, and `LISTEN_FDNAMES`, in which `admin`
//! names the listener of `--admin`. Any other name is the listener of clients.
//!
//! Not here: a listener that a draining process passes to its successor (`successor`).

use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;
use rustix::net::sockopt;

/// The name of the socket for `--admin`.
const ADMIN: &str = "admin";

/// The listeners that were passed to this process.
#[derive(Debug, Default)]
pub(crate) struct Activated {
    pub(crate) clients: Option<TcpListener>,
    pub(crate) admin: Option<TcpListener>,
}

/// Takes the listeners that the environment names, and removes its variables. Call it before the first thread starts.
///
/// # Errors
/// A socket is of another kind, or two sockets have the same purpose.
pub(crate) fn take() -> Result<Activated, String> {
    let mut sockets = ListenFd::from_env();
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    let mut found = Activated::default();
    for index in 0..sockets.len() {
        let name = names.next().unwrap_or_default();
        let wrong = |what: &str| format!("LISTEN_FDS: socket {} ({name:?}) {what}", index + 1);
        let listener = sockets
            .take_tcp_listener(index)
            .ok()
            .flatten()
            .filter(|listener| sockopt::socket_acceptconn(listener).unwrap_or(false))
            .ok_or_else(|| {
                wrong("is no TCP listener; write ListenStream=ADDRESS:PORT and Accept=no in its unit")
            })?;
        let place = if name == ADMIN { &mut found.admin } else { &mut found.clients };
        if place.replace(listener).is_some() {
            return Err(wrong(
                "is one too many: mainstay takes one socket for clients, and one with FileDescriptorName=admin",
            ));
        }
    }
    Ok(found)
}

/// The addresses that the flags name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flags {
    /// `--listen`, if it was given.
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) admin: Option<SocketAddr>,
}

impl Activated {
    /// Compares the listeners with the flags.
    ///
    /// # Errors
    /// A flag names another address than the socket that was passed, or a socket has no purpose.
    pub(crate) fn check(&self, flags: Flags) -> Result<(), String> {
        let differ = |flag: &str, given: SocketAddr, passed: SocketAddr| {
            Err(format!(
                "{flag} {given}: the socket that the supervisor passed (LISTEN_FDS) listens on {passed}; write the same \
                 address in both, or remove {flag}"
            ))
        };
        if let (Some(given), Some(passed)) = (flags.listen, address(self.clients.as_ref()))
            && given != passed
        {
            return differ("--listen", given, passed);
        }
        match (flags.admin, address(self.admin.as_ref())) {
            (Some(given), Some(passed)) if given != passed => differ("--admin", given, passed),
            (None, Some(passed)) => Err(format!(
                "LISTEN_FDS has a socket with FileDescriptorName={ADMIN} on {passed}; add --admin {passed}, or remove the socket"
            )),
            _ => Ok(()),
        }
    }
}

fn address(listener: Option<&TcpListener>) -> Option<SocketAddr> {
    listener.and_then(|listener| listener.local_addr().ok())
}
