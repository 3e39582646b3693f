//! A cable between a client and a server that can be cut or fall silent: a TCP relay on loopback.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use crate::Result;

const POLL: Duration = Duration::from_millis(2);

/// Relays connections to `address` to the server until they are cut. Dropping the cable cuts them all.
pub(crate) struct Cable {
    pub(crate) address: SocketAddr,
    server: Arc<Mutex<SocketAddr>>,
    pairs: Arc<Pairs>,
    is_silent: Arc<AtomicBool>,
    acceptor: Option<Acceptor>,
}

/// The connections relayed since the last cut.
type Pairs = Mutex<Vec<Pair>>;

struct Pair {
    ends: [TcpStream; 2],
    /// Nothing passes any more, not even the end of a connection.
    is_dead: Arc<AtomicBool>,
}

struct Acceptor {
    accepting: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Cable {
    pub(crate) fn to(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut cable = Self {
            address: listener.local_addr()?,
            server: Arc::new(Mutex::new(server)),
            pairs: Arc::default(),
            is_silent: Arc::default(),
            acceptor: None,
        };
        cable.accept_from(listener)?;
        Ok(cable)
    }

    /// Ends every connection on both sides, without a closing handshake; bytes under way are lost.
    pub(crate) fn cut(&self) {
        for pair in self.pairs.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            pair.ends.iter().for_each(|end| drop(end.shutdown(Shutdown::Both)));
        }
    }

    /// Every present connection is dead from now on, and neither end notices; no new one gets through until
    /// [`heal`](Self::heal).
    pub(crate) fn silence(&self) {
        self.is_silent.store(true, Relaxed);
        for pair in self.pairs.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            pair.is_dead.store(true, Relaxed);
        }
    }

    /// New connections get through again, also those that were opened meanwhile. The old ones stay dead.
    pub(crate) fn heal(&self) {
        self.is_silent.store(false, Relaxed);
    }

    /// New connections lead to another server.
    pub(crate) fn lead_to(&self, server: SocketAddr) {
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = server;
    }

    /// Cuts, and refuses new connections until [`accept`](Self::accept).
    pub(crate) fn refuse(&mut self) {
        if let Some(Acceptor { accepting, thread }) = self.acceptor.take() {
            accepting.store(false, Relaxed);
            let _ = thread.join(); // the listener is closed with it
        }
        self.cut();
    }

    pub(crate) fn accept(&mut self) -> Result<()> {
        self.accept_from(TcpListener::bind(self.address)?)
    }

    fn accept_from(&mut self, listener: TcpListener) -> Result<()> {
        listener.set_nonblocking(true)?;
        let accepting = Arc::new(AtomicBool::new(true));
        let (server, pairs) = (Arc::clone(&self.server), Arc::clone(&self.pairs));
        let (go_on, is_silent) = (Arc::clone(&accepting), Arc::clone(&self.is_silent));
        let thread = spawn(move || {
            while go_on.load(Relaxed) {
                if is_silent.load(Relaxed) {
                    sleep(POLL); // the kernel keeps those that are begun
                    continue;
                }
                match listener.accept() {
                    // A failed connection is dropped: its client sees that.
                    Ok((client, _)) => {
                        let server = *server.lock().unwrap_or_else(PoisonError::into_inner);
                        drop(relay(client, server, &pairs));
                    }
                    Err(_) => sleep(POLL),
                }
            }
        });
        self.acceptor = Some(Acceptor { accepting, thread });
        Ok(())
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.refuse();
    }
}

fn relay(client: TcpStream, server: SocketAddr, pairs: &Pairs) -> io::Result<()> {
    client.set_nonblocking(false)?;
    let server = TcpStream::connect(server)?;
    let is_dead = Arc::new(AtomicBool::new(false));
    for (from, to) in [(&client, &server), (&server, &client)] {
        let (from, to, is_dead) = (from.try_clone()?, to.try_clone()?, Arc::clone(&is_dead));
        to.set_nodelay(true)?;
        spawn(move || {
            let _ = carry(&from, &to, &is_dead);
            if !is_dead.load(Relaxed) {
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            }
        });
    }
    let pair = Pair { ends: [client, server], is_dead };
    pairs.lock().unwrap_or_else(PoisonError::into_inner).push(pair);
    Ok(())
}

fn carry(mut from: &TcpStream, mut to: &TcpStream, is_dead: &AtomicBool) -> io::Result<()> {
    let mut bytes = [0; 16 * 1024];
    loop {
        let count = from.read(&mut bytes)?;
        if count == 0 {
            return Ok(());
        }
        if !is_dead.load(Relaxed) {
            to.write_all(&bytes[..count])?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that returns what it gets.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        spawn(move || {
            for stream in listener.incoming().flatten() {
                spawn(move || drop(carry(&stream, &stream, &AtomicBool::new(false))));
            }
        });
        address
    }

    fn exchange(mut stream: &TcpStream, what: &[u8; 4]) {
        stream.write_all(what).unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, what);
    }

    #[test]
    fn a_silent_cable_kills_what_is_connected_without_a_word_and_keeps_newcomers_until_it_is_healed() {
        let cable = Cable::to(echo()).unwrap();
        let mut old = TcpStream::connect(cable.address).unwrap();
        exchange(&old, b"well");
        cable.silence();
        old.write_all(b"gone").unwrap();
        let new = TcpStream::connect(cable.address).unwrap();
        (&new).write_all(b"kept").unwrap();
        cable.heal();
        let mut answer = [0; 4];
        (&new).read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"kept");
        exchange(&new, b"well");
        old.set_nonblocking(true).unwrap();
        assert_eq!(old.read(&mut answer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_cable_that_leads_elsewhere_takes_only_newcomers_there() {
        let cable = Cable::to(echo()).unwrap();
        let old = TcpStream::connect(cable.address).unwrap();
        exchange(&old, b"well");
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        cable.lead_to(closed);
        let mut new = TcpStream::connect(cable.address).unwrap();
        assert!(!matches!(new.read(&mut [0; 1]), Ok(1)), "no server is there");
        exchange(&old, b"well");
    }
}
