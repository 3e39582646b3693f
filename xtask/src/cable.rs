//! A cable between a client and a server that can be cut: a TCP relay on loopback.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use crate::Result;

const POLL: Duration = Duration::from_millis(2);

/// Connections to `address` are relayed to the server, until they are cut. Dropping it cuts them all.
pub(crate) struct Cable {
    pub(crate) address: SocketAddr,
    server: SocketAddr,
    ends: Arc<Ends>,
    acceptor: Option<Acceptor>,
}

/// Every socket of the connections relayed since the last cut.
type Ends = Mutex<Vec<TcpStream>>;

struct Acceptor {
    accepting: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Cable {
    pub(crate) fn to(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut cable =
            Self { address: listener.local_addr()?, server, ends: Arc::default(), acceptor: None };
        cable.accept_from(listener)?;
        Ok(cable)
    }

    /// Ends every connection on both sides, without a closing handshake; what is under way is lost.
    pub(crate) fn cut(&self) {
        for end in self.ends.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
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
        let (server, ends, go_on) = (self.server, Arc::clone(&self.ends), Arc::clone(&accepting));
        let thread = spawn(move || {
            while go_on.load(Relaxed) {
                match listener.accept() {
                    // A failed one is dropped: its client sees that.
                    Ok((client, _)) => drop(relay(client, server, &ends)),
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

fn relay(client: TcpStream, server: SocketAddr, ends: &Ends) -> io::Result<()> {
    client.set_nonblocking(false)?;
    let server = TcpStream::connect(server)?;
    for (from, to) in [(&client, &server), (&server, &client)] {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        to.set_nodelay(true)?;
        spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    ends.lock().unwrap_or_else(PoisonError::into_inner).extend([client, server]);
    Ok(())
}
