//! TLS over a socket that the worker may watch: records instead of bytes, and else as cheap as TCP.
//!
//! The handshake was done elsewhere. This keeps no buffer of its own. rustls keeps one of 4 KiB for what it reads, and the
//! records that the socket has not accepted yet, at most [`UNSENT`] bytes of payload, so that a write reports how fast the
//! peer reads.

use std::io::{self, Read, Write};
use std::task::{Context, Poll, ready};

use rustls::Connection;

use super::Transport;

/// The most payload in records that the socket has not accepted: two full records.
const UNSENT: usize = 32 * 1024;

/// A session of TLS on its socket.
pub(crate) struct Tls {
    /// TCP or a Unix socket.
    pub(super) socket: Transport,
    session: Connection,
    /// Whether the session may hold bytes for the reader, or an error.
    holds: bool,
    /// Whether a part of a record came since that was asked last.
    took_part: bool,
}

impl Tls {
    pub(super) fn new(socket: Transport, mut session: Connection) -> Self {
        session.set_buffer_limit(Some(UNSENT));
        // Bytes may have come behind the handshake.
        Self { socket, session, holds: true, took_part: false }
    }

    pub(super) fn may_read(&self) -> bool {
        self.holds || self.socket.may_read()
    }

    pub(super) fn took_part(&mut self) -> bool {
        std::mem::take(&mut self.took_part)
    }

    /// Reads until `buffer` is full or the socket is empty; 0 is the end of the stream.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut filled = 0;
        loop {
            let rest = buffer.get_mut(filled..).unwrap_or_default();
            match self.session.reader().read(rest) {
                Ok(0) if !rest.is_empty() => break self.end_or(filled, Ok(0)),
                Ok(count) => {
                    filled += count;
                    if filled == buffer.len() {
                        self.holds = true;
                        break Poll::Ready(Ok(filled));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self.poll_records(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => break self.end_or(filled, Err(error)),
                    Poll::Pending => {
                        self.holds = false;
                        break if filled > 0 { Poll::Ready(Ok(filled)) } else { Poll::Pending };
                    }
                },
                Err(error) => break self.end_or(filled, Err(error)),
            }
        }
    }

    /// Returns what was read before the end; the next read finds the end again.
    fn end_or(&mut self, filled: usize, end: io::Result<usize>) -> Poll<io::Result<usize>> {
        self.holds = true;
        Poll::Ready(if filled > 0 { Ok(filled) } else { end })
    }

    /// Reads from the socket once and decrypts what is complete.
    fn poll_records(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let count = ready!(would_block(self.session.read_tls(&mut Socket { socket: &mut self.socket, cx })))?;
        self.took_part = count > 0;
        let processed = self.session.process_new_packets();
        if self.session.wants_write() {
            // An answer of TLS itself, or the alert that says what was wrong. The rest leaves with the next write.
            let _ = self.poll_flush(cx);
        }
        match processed {
            Ok(state) => {
                self.took_part &= state.plaintext_bytes_to_read() == 0;
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error))),
        }
    }

    /// Encrypts as much as the bound allows, and writes. Nothing is accepted while earlier records wait.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(cx))?;
        let count = self.session.writer().write_vectored(slices)?;
        match self.poll_flush(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(count)),
        }
    }

    /// Writes the records that wait; `Ready` once the socket has accepted all of them.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            let written = self.session.write_tls(&mut Socket { socket: &mut self.socket, cx });
            if ready!(would_block(written))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends `close_notify`, and shuts down the writing side of the socket.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.session.send_close_notify();
        ready!(self.poll_flush(cx))?;
        self.socket.poll_shutdown(cx)
    }

    /// Sends `close_notify` if the socket accepts it now.
    pub(super) fn announce_end(&mut self, cx: &mut Context<'_>) {
        self.session.send_close_notify();
        let _ = self.poll_flush(cx);
    }
}

/// The socket, as rustls reads and writes it.
struct Socket<'a, 'c> {
    socket: &'a mut Transport,
    cx: &'a mut Context<'c>,
}

impl Read for Socket<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        or_would_block(self.socket.poll_read(self.cx, buffer))
    }
}

impl Write for Socket<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[io::IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        or_would_block(self.socket.poll_write_slices(self.cx, slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn or_would_block<T>(outcome: Poll<io::Result<T>>) -> io::Result<T> {
    match outcome {
        Poll::Ready(done) => done,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

fn would_block<T>(outcome: io::Result<T>) -> Poll<io::Result<T>> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        done => Poll::Ready(done),
    }
}
