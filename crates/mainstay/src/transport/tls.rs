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
    #[inline(never)] // Beside TCP in one function it would make that slower.
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
    #[inline(never)]
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
    #[inline(never)]
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
    #[inline(never)]
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.session.send_close_notify();
        ready!(self.poll_flush(cx))?;
        self.socket.poll_shutdown(cx)
    }

    /// Sends `close_notify` if the socket accepts it now.
    #[inline(never)]
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// Our end after the handshake, and the peer's session and socket.
    async fn pair() -> (Transport, ClientConnection, TcpStream) {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![cert.der().clone()], key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let trusting = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (theirs, accepted) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let name = ServerName::try_from("localhost").unwrap();
        let connecting = tokio_rustls::TlsConnector::from(Arc::new(trusting)).connect(name, theirs.unwrap());
        let accepting = TlsAcceptor::from(Arc::new(config)).accept(accepted.unwrap().0);
        let (theirs, ours) = tokio::join!(connecting, accepting);
        let ((socket, session), (own, own_session)) =
            (theirs.unwrap().into_inner(), ours.unwrap().into_inner());
        (Transport::tls(own, own_session), session, socket)
    }

    /// Encrypts a message as the peer.
    fn encrypted(session: &mut ClientConnection, message: &[u8]) -> Vec<u8> {
        session.writer().write_all(message).unwrap();
        let mut bytes = Vec::new();
        while session.wants_write() {
            session.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    async fn poll_read_once(transport: &mut Transport, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        poll_fn(|cx| Poll::Ready(transport.poll_read(cx, buffer))).await
    }

    #[tokio::test]
    async fn a_part_of_a_record_is_a_sign_of_life_and_nothing_to_read() {
        let (mut ours, mut session, mut socket) = pair().await;
        let record = encrypted(&mut session, b"hello");
        let mut buffer = [0; 64];
        assert!(poll_read_once(&mut ours, &mut buffer).await.is_pending() && !ours.took_part());
        let (part, rest) = record.split_at(record.len() - 1);
        socket.write_all(part).await.unwrap();
        while !ours.took_part() {
            assert!(poll_read_once(&mut ours, &mut buffer).await.is_pending());
            tokio::task::yield_now().await;
        }
        assert!(!ours.took_part(), "it is reported once");
        socket.write_all(rest).await.unwrap();
        let count = poll_fn(|cx| ours.poll_read(cx, &mut buffer)).await.unwrap();
        assert_eq!((&buffer[..count], ours.took_part()), (&b"hello"[..], false));
    }

    #[tokio::test]
    async fn what_does_not_fit_into_the_buffer_is_readable_at_once() {
        let (mut ours, mut session, mut socket) = pair().await;
        socket.write_all(&encrypted(&mut session, b"hello, world")).await.unwrap();
        let mut buffer = [0; 5];
        let mut text = Vec::new();
        while text.len() < 12 {
            let count = poll_fn(|cx| ours.poll_read(cx, &mut buffer)).await.unwrap();
            text.extend_from_slice(&buffer[..count]);
            assert!(ours.may_read() || text.len() == 12);
        }
        assert_eq!(text, b"hello, world");
    }

    #[tokio::test]
    async fn a_forged_record_is_an_error_and_the_peer_gets_an_alert() {
        let (mut ours, mut session, mut socket) = pair().await;
        let mut record = encrypted(&mut session, b"hello");
        *record.last_mut().unwrap() ^= 1;
        socket.write_all(&record).await.unwrap();
        let mut buffer = [0; 64];
        let error = poll_fn(|cx| ours.poll_read(cx, &mut buffer)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(ours);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        assert!(!answer.is_empty());
    }

    #[tokio::test]
    async fn little_is_encrypted_ahead_of_a_socket_that_accepts_nothing() {
        let (mut ours, _session, _socket) = pair().await;
        let Transport::Tls(tls) = &mut ours else { unreachable!() };
        let payload = [7; 64 * 1024];
        let mut accepted = 0;
        loop {
            let written = poll_fn(|cx| Poll::Ready(tls.poll_write(cx, &[io::IoSlice::new(&payload)]))).await;
            let Poll::Ready(count) = written else { break };
            let count = count.unwrap();
            assert!(count <= UNSENT, "{count}");
            accepted += count;
        }
        let mut waiting = Vec::new();
        while tls.session.wants_write() {
            tls.session.write_tls(&mut waiting).unwrap();
        }
        assert!(accepted > 0 && waiting.len() <= UNSENT + 1024, "{}", waiting.len());
    }
}
