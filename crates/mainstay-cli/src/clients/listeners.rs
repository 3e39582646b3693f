//! The sockets that clients connect to: bound here, inherited from a draining predecessor, or passed by a supervisor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Type};
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use crate::clients::listen_address::{ListenAddress, Place};
use crate::process::activation::Passed;
use crate::process::successor::{self, Found, Predecessor};

/// The accept queue of a listener; the kernel caps it at `net.core.somaxconn`. After a restart all clients connect at
/// once, and a client that finds the queue full is delayed until TCP retransmits its SYN, a second later or more.
const BACKLOG: u32 = 65_535;

/// A listening socket.
pub(crate) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

impl Socket {
    /// Makes a socket that listens at this kind of place.
    fn of(place: &Place, socket: OwnedFd) -> io::Result<Self> {
        Ok(match place {
            Place::Tcp(_) => {
                let listener = std::net::TcpListener::from(socket);
                listener.set_nonblocking(true)?;
                Self::Tcp(TcpListener::from_std(listener)?)
            }
            Place::Unix(_) => {
                let listener = std::os::unix::net::UnixListener::from(socket);
                listener.set_nonblocking(true)?;
                Self::Unix(UnixListener::from_std(listener)?)
            }
        })
    }
}

/// A listener, and where it is from.
pub(crate) struct Listening {
    pub(crate) socket: Socket,
    /// As it was asked for.
    pub(crate) address: ListenAddress,
    /// Where it really is: with the port that the system chose.
    pub(crate) place: Place,
    /// The process that it was inherited from.
    pub(crate) predecessor: Option<Predecessor>,
    /// A supervisor has a copy of it, and passes that to the next process.
    pub(crate) is_activated: bool,
    /// The file of a Unix socket, which this process removes at its end.
    pub(crate) file: Option<SocketFile>,
}

/// Takes the listeners that a supervisor passed, and listens on the other addresses, or inherits the listeners of a draining
/// predecessor. `flag` names where the addresses are from.
///
/// # Errors
/// The line to print: an address cannot be listened on.
pub(crate) fn listen_all(
    mut activated: Vec<Passed>,
    addresses: &[ListenAddress],
    flag: &str,
) -> Result<Vec<Listening>, String> {
    let each = |address: &ListenAddress| {
        let passed = activated.iter().position(|passed| passed.place == address.place);
        listen(passed.map(|at| activated.swap_remove(at)), address, flag)
    };
    addresses.iter().map(each).collect()
}

/// Takes the listener that a supervisor passed; else listens on an address, or inherits the listener of a draining
/// predecessor.
///
/// # Errors
/// As [`listen_all`].
pub(crate) fn listen(
    activated: Option<Passed>,
    address: &ListenAddress,
    flag: &str,
) -> Result<Listening, String> {
    let Some(passed) = activated else { return bind(address, flag) };
    let socket = Socket::of(&passed.place, passed.socket);
    let socket = socket.map_err(|error| format!("LISTEN_FDS, in place of {flag}: {error}"))?;
    let (address, place) = (address.clone(), passed.place);
    Ok(Listening { socket, address, place, predecessor: None, is_activated: true, file: None })
}

/// Listens on an address, or inherits the listener of a draining predecessor.
fn bind(address: &ListenAddress, flag: &str) -> Result<Listening, String> {
    let place = &address.place;
    let wrong = |error: io::Error| format!("{flag} {place}: {error}");
    let made = |bound: Bound, predecessor| Listening {
        file: bound.file(),
        socket: bound.socket,
        address: address.clone(),
        place: bound.place,
        predecessor,
        is_activated: false,
    };
    let error = match try_bind(address) {
        Ok(bound) => return Ok(made(bound, None)),
        Err(error) => error,
    };
    let is_in_use = error.kind() == io::ErrorKind::AddrInUse;
    match if is_in_use { successor::find_predecessor(place) } else { Found::Foreign } {
        Found::Running(process) => Err(format!(
            "{flag} {place}: {error}: mainstay runs there as process {process}; choose another address, or replace that \
             process: send it SIGTERM and start this one while it drains"
        )),
        Found::Inherited(socket, predecessor) => {
            let socket = Socket::of(place, socket).map_err(wrong)?;
            Ok(made(Bound { socket, place: place.clone() }, Some(predecessor)))
        }
        Found::Foreign => match place {
            Place::Unix(path) if is_in_use => {
                remove_stale(path).map_err(|why| format!("{flag} {place}: {why}"))?;
                Ok(made(try_bind(address).map_err(wrong)?, None))
            }
            Place::Unix(_) => {
                Err(format!("{}; choose a path in a directory that this user may write", wrong(error)))
            }
            Place::Tcp(_) => Err(format!("{}; choose another address", wrong(error))),
        },
    }
}

/// A new listener, and where it really is.
struct Bound {
    socket: Socket,
    place: Place,
}

impl Bound {
    fn file(&self) -> Option<SocketFile> {
        match &self.place {
            Place::Unix(path) => SocketFile::at(path),
            Place::Tcp(_) => None,
        }
    }
}

fn try_bind(address: &ListenAddress) -> io::Result<Bound> {
    match &address.place {
        Place::Tcp(at) => {
            let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?;
            socket.bind(*at)?;
            let listener = socket.listen(BACKLOG)?;
            Ok(Bound { place: Place::Tcp(listener.local_addr()?), socket: Socket::Tcp(listener) })
        }
        Place::Unix(path) => {
            let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.bind(&SockAddr::unix(path)?)?;
            // Before it listens: until then nobody can connect, whatever the process's umask allows.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(address.mode))?;
            socket.listen(i32::try_from(BACKLOG).unwrap_or(i32::MAX))?;
            let place = address.place.clone();
            Ok(Bound { socket: Socket::of(&place, socket.into())?, place })
        }
    }
}

/// Removes the file of a Unix socket that no process listens on any more: one that was killed leaves it behind.
fn remove_stale(path: &Path) -> Result<(), String> {
    let is_socket = std::fs::symlink_metadata(path).map(|found| found.file_type().is_socket());
    match is_socket {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.to_string()),
        Ok(false) => {
            return Err("a file that is no socket is there; remove it, or choose another path".to_owned());
        }
        Ok(true) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(error) => {
            return Err(format!(
                "a socket is there that cannot be asked ({error}); remove it, or choose another path"
            ));
        }
        Ok(_) => return Err("another program listens there; stop it, or choose another path".to_owned()),
    }
    tracing::info!(path = %path.display(), "removed the socket file of a process that is gone");
    std::fs::remove_file(path).map_err(|error| error.to_string())
}

/// The file of a Unix socket of this process.
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl SocketFile {
    fn at(path: &Path) -> Option<Self> {
        let found = std::fs::symlink_metadata(path).ok()?;
        Some(Self { path: path.to_owned(), id: (found.dev(), found.ino()) })
    }

    /// Removes the file, unless another process has put its own there.
    pub(crate) fn remove(self) {
        if Self::at(&self.path).is_some_and(|found| found.id == self.id) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_file_is_stale_only_when_its_process_is_gone() {
        let folder = std::env::temp_dir().join(format!("mainstay-stale-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        assert!(remove_stale(&path).unwrap_err().contains("another program"));
        drop(listener);
        assert_eq!((remove_stale(&path), path.exists()), (Ok(()), false));
        assert_eq!(remove_stale(&path), Ok(()), "it is gone meanwhile");
        std::fs::write(&path, "mine").unwrap();
        assert!(remove_stale(&path).unwrap_err().contains("no socket"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_file_of_another_process_is_not_removed() {
        let folder = std::env::temp_dir().join(format!("mainstay-file-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.sock");
        let first = UnixListener::bind(&path).unwrap();
        let (one, same) = (SocketFile::at(&path).unwrap(), SocketFile::at(&path).unwrap());
        std::fs::rename(&path, folder.join("kept")).unwrap();
        let second = UnixListener::bind(&path).unwrap();
        one.remove();
        assert!(path.exists());
        drop((first, second));
        std::fs::rename(folder.join("kept"), &path).unwrap();
        same.remove();
        assert!(!path.exists());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
