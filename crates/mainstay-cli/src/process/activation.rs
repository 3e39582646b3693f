//! Socket activation: listeners that a supervisor opened and passes to this process, as systemd does for `mainstay.socket`.
//!
//! The supervisor keeps its copy of a listener, so connections that come between two processes wait in the listener's queue
//! and none is refused. Variables say what was passed: `LISTEN_FDS`, `LISTEN_PID`, and `LISTEN_FDNAMES`, in which `admin`
//! names the listener of `--admin`. Any other name is a listener of clients, of which there may be several.
//!
//! Not here: a listener that a draining process passes to its successor (`successor`).

use std::os::fd::{AsFd, OwnedFd};

use listenfd::ListenFd;
use rustix::net::sockopt;
use socket2::SockRef;

use crate::clients::listen_address::{ListenAddress, Place};

/// The name of the socket for `--admin`.
const ADMIN: &str = "admin";

/// A listener that was passed to this process.
#[derive(Debug)]
pub(crate) struct Passed {
    pub(crate) socket: OwnedFd,
    pub(crate) place: Place,
}

impl Passed {
    /// Returns the listener at an index, if it is one of TCP or a Unix socket with a path.
    fn take(sockets: &mut ListenFd, index: usize) -> Option<Self> {
        let socket: OwnedFd = match sockets.take_tcp_listener(index) {
            Ok(listener) => listener?.into(),
            Err(_) => sockets.take_unix_listener(index).ok()??.into(),
        };
        let own = SockRef::from(&socket).local_addr().ok()?;
        let place = match own.as_socket() {
            Some(address) => Place::Tcp(address),
            None => Place::Unix(own.as_pathname()?.to_owned()),
        };
        sockopt::socket_acceptconn(socket.as_fd()).unwrap_or(false).then_some(Self { socket, place })
    }

    /// The address that stands for it where none is given.
    pub(crate) fn address(&self) -> ListenAddress {
        match &self.place {
            Place::Tcp(address) => ListenAddress::tcp(*address),
            place => ListenAddress { place: place.clone(), ..ListenAddress::tcp(([0; 4], 0).into()) },
        }
    }
}

/// The listeners that were passed to this process.
#[derive(Debug, Default)]
pub(crate) struct Activated {
    pub(crate) clients: Vec<Passed>,
    pub(crate) admin: Option<Passed>,
}

/// Takes the listeners that the environment names, and removes its variables. Call it before the first thread starts.
///
/// # Errors
/// A socket is of another kind, or two sockets are named `admin`.
pub(crate) fn take() -> Result<Activated, String> {
    let mut sockets = ListenFd::from_env();
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    let mut found = Activated::default();
    for index in 0..sockets.len() {
        let name = names.next().unwrap_or_default();
        let wrong = |what: &str| format!("LISTEN_FDS: socket {} ({name:?}) {what}", index + 1);
        let passed = Passed::take(&mut sockets, index).ok_or_else(|| {
            wrong(
                "is no TCP listener and no Unix one; write ListenStream=ADDRESS:PORT or ListenStream=/PATH, and Accept=no, \
                 in its unit",
            )
        })?;
        if name != ADMIN {
            found.clients.push(passed);
        } else if found.admin.replace(passed).is_some() {
            return Err(wrong("is one too many: mainstay takes one socket with FileDescriptorName=admin"));
        }
    }
    Ok(found)
}

/// The addresses that the flags name.
#[derive(Debug, Clone)]
pub(crate) struct Flags {
    /// `--listen`, if it was given.
    pub(crate) listen: Option<Vec<ListenAddress>>,
    pub(crate) admin: Option<Place>,
}

impl Activated {
    /// Compares the listeners with the flags.
    ///
    /// # Errors
    /// A flag names another address than the socket that was passed, or a socket has no purpose.
    pub(crate) fn check(&self, flags: &Flags) -> Result<(), String> {
        let differ = |flag: &str, given: &str, passed: &Place| {
            Err(format!(
                "{flag} {given}: the socket that the supervisor passed (LISTEN_FDS) listens on {passed}; write the same \
                 address in both, or remove {flag}"
            ))
        };
        if let Some(given) = &flags.listen {
            let is_given = |passed: &&Passed| given.iter().any(|address| address.place == passed.place);
            if let Some(passed) = self.clients.iter().find(|passed| !is_given(passed)) {
                let given: Vec<_> = given.iter().map(ToString::to_string).collect();
                return differ("--listen", &given.join(", "), &passed.place);
            }
        }
        match (&flags.admin, self.admin.as_ref().map(|passed| &passed.place)) {
            (Some(given), Some(passed)) if given != passed => differ("--admin", &given.to_string(), passed),
            (None, Some(passed)) => Err(format!(
                "LISTEN_FDS has a socket with FileDescriptorName={ADMIN} on {passed}; add --admin {passed}, or remove the socket"
            )),
            _ => Ok(()),
        }
    }
}
