//! One peer of the generator: its TCP connection, its WebSocket, and its session.
//!
//! A [`Peer`] lives for the whole run; its [`Connection`] is its current connection. Its session, if the run speaks
//! `mainstay.v1`, outlives connections. Everything that one readiness event produces leaves in one write; a plain message
//! allocates nothing.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use bytes::Buf;
use mainstay_proto::session::{
    ClientConfig, ClientEvent, ClientSession, ConnectionId, Control, Delivery, Frame, Message, Transmit,
};
use mainstay_proto::ws::{CloseCode, CloseState, Connection as Codec, Incoming, Role, SendQueue};
use mio::net::TcpStream;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::context::Context;
use super::plan::{Load, Plan, explain};
use super::stamp;

/// EINPROGRESS, the result of a non-blocking connect. The standard library has no stable name for it.
const IN_PROGRESS: i32 = if cfg!(target_os = "linux") { 115 } else { 36 };

/// A message whose answer takes longer is reported as one without an answer, in nanoseconds.
const NO_ANSWER: u64 = 2_000_000_000;

pub(super) struct Peer {
    connection: Option<Connection>,
    session: Option<Box<ClientSession>>,
    /// The number of connections so far; identifies the current one to the session.
    connections: u64,
    in_flight: u32,
    /// When the latest answer came, or the first message was sent that waits for one.
    waits_since: u64,
    /// When the next message is due, if the run has a rate.
    pub(super) due: Option<u64>,
    /// When the opening of the current connection was due.
    pub(super) began: u64,
}

struct Connection {
    stream: TcpStream,
    stage: Stage,
    codec: Codec,
    /// Bytes that the socket did not accept; later frames are encoded behind them.
    unsent: Option<Box<SendQueue>>,
}

enum Stage {
    Connecting,
    /// With the part of the response's head that was received so far.
    Upgrading(Vec<u8>),
    /// HELLO was sent, WELCOME was not received.
    Attaching,
    Open,
}

/// Why a connection ended.
pub(super) enum End {
    /// After a closing handshake.
    Closed,
    /// Any other way.
    Lost(String),
}

type Flow = Result<(), End>;

impl Peer {
    pub(super) fn new(plan: &Plan, seed: [u8; 32]) -> Self {
        let session = plan.session.then(|| Box::new(ClientSession::new(ClientConfig::default(), seed)));
        Self { connection: None, session, connections: 0, in_flight: 0, waits_since: 0, due: None, began: 0 }
    }

    /// Opens a connection and returns its stream, for registration.
    pub(super) fn connect(&mut self, number: u64, mask: [u8; 32], plan: &Plan) -> io::Result<&mut TcpStream> {
        let socket = Socket::new(Domain::for_address(plan.target), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = plan.source(number) {
            socket.bind(&source.into())?;
        }
        match socket.connect(&plan.target.into()) {
            Err(error) if error.raw_os_error() == Some(IN_PROGRESS) => {}
            done => done?,
        }
        let connection = Connection {
            stream: TcpStream::from_std(socket.into()),
            stage: Stage::Connecting,
            codec: Codec::new(Role::Client, plan.limits, None, mask),
            unsent: None,
        };
        self.connections += 1;
        self.in_flight = 0;
        Ok(&mut self.connection.insert(connection).stream)
    }

    pub(super) fn has_connection(&self) -> bool {
        self.connection.is_some()
    }

    pub(super) fn is_open(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| matches!(connection.stage, Stage::Open))
    }

    /// Returns how many messages wait while no answer came for [`NO_ANSWER`].
    pub(super) fn unanswered(&self, now: u64) -> u32 {
        let is_silent = self.is_open() && now.saturating_sub(self.waits_since) >= NO_ANSWER;
        if is_silent { self.in_flight } else { 0 }
    }

    /// Drops the connection; returns whether it was open.
    pub(super) fn drop_connection(&mut self) -> bool {
        let was_open = self.is_open();
        if self.connection.take().is_some()
            && let Some(session) = &mut self.session
        {
            session.handle_lost(ConnectionId(self.connections));
        }
        was_open
    }

    /// Ends the connection with a RST.
    pub(super) fn cut(&mut self) {
        if let Some(connection) = &self.connection {
            let _ = SockRef::from(&connection.stream).set_linger(Some(Duration::ZERO));
        }
        self.drop_connection();
    }

    /// Starts the closing handshake.
    pub(super) fn close(&mut self, cx: &mut Context) -> Flow {
        match (&mut self.session, &mut self.connection) {
            (Some(session), _) => session.close(CloseCode::NORMAL, ""),
            (None, Some(connection)) => {
                connection.codec.close(CloseCode::NORMAL, "", queue(&mut connection.unsent, &mut cx.out))
            }
            (None, None) => {}
        }
        self.flush(cx)
    }

    /// Handles readiness: reads everything and writes the responses. `ended`: the end of the stream is readable.
    pub(super) fn ready(
        &mut self,
        writable: bool,
        ended: bool,
        scratch: &mut [u8],
        cx: &mut Context,
    ) -> Flow {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        if matches!(connection.stage, Stage::Connecting) {
            if !writable || !connection.send_request(&cx.plan.request)? {
                return Ok(());
            }
            connection.stage = Stage::Upgrading(Vec::new());
        }
        loop {
            let Some(connection) = &mut self.connection else { return Ok(()) };
            let count = match connection.stream.read(scratch) {
                Ok(0) => return Err(connection.end_of_stream()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(lost(&error)),
            };
            cx.update_now();
            self.receive(scratch.get_mut(..count).unwrap_or_default(), cx)?;
            // A short read emptied the socket.
            if count < scratch.len() && !ended {
                break;
            }
        }
        self.flush(cx)
    }

    fn receive(&mut self, mut input: &mut [u8], cx: &mut Context) -> Flow {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        if let Stage::Upgrading(head) = &mut connection.stage {
            head.extend_from_slice(input);
            let Some(size) = check_response(head, &cx.plan.accept, cx.plan.session).map_err(End::Lost)?
            else {
                return Ok(());
            };
            let mut rest = head.split_off(size);
            connection.stage = Stage::Attaching;
            match &mut self.session {
                Some(session) => session.handle_opened(cx.instant(), ConnectionId(self.connections)),
                None => self.opened(cx)?,
            }
            return self.receive_frames(&mut rest.as_mut_slice(), cx);
        }
        self.receive_frames(&mut input, cx)
    }

    fn receive_frames(&mut self, input: &mut &mut [u8], cx: &mut Context) -> Flow {
        loop {
            let Some(connection) = &mut self.connection else { return Ok(()) };
            match connection.codec.receive(input).map_err(|error| End::Lost(error.to_string()))? {
                None => return Ok(()),
                Some(Incoming::Message(payload)) => match &mut self.session {
                    None => self.message(&payload, cx),
                    Some(_) => self.session_message(payload.into_message(), cx)?,
                },
                Some(Incoming::Ping(_)) => {
                    if self.session.is_none() {
                        cx.ping();
                    }
                    // Answers every Ping, not only the last of several, so that each one is counted.
                    connection.codec.flush_replies(queue(&mut connection.unsent, &mut cx.out));
                }
                Some(Incoming::Pong(_)) => {}
                Some(Incoming::Close(close)) => {
                    if connection.codec.state() != CloseState::Closed && !cx.is_leaving() {
                        let code = close.map_or_else(|| "no code".to_owned(), |close| close.code.to_string());
                        return Err(End::Lost(format!("closed by the server: {code}")));
                    }
                }
            }
        }
    }

    fn session_message(&mut self, message: Message, cx: &mut Context) -> Flow {
        let Some(session) = &mut self.session else { return Ok(()) };
        let broken = |error: mainstay_proto::session::SessionError| End::Lost(error.to_string());
        let frame = Frame::decode(message).map_err(broken)?;
        if matches!(frame, Frame::Control(Control::Ping(_))) {
            cx.ping();
        }
        session.handle_frame(ConnectionId(self.connections), frame).map_err(broken)?;
        while let Some(session) = &mut self.session
            && let Some(delivery) = session.deliver(cx.instant())
        {
            if let Delivery::Message(message) = delivery {
                self.message(message.payload(), cx);
            }
        }
        while let Some(event) = self.session.as_mut().and_then(|session| session.poll_event()) {
            match event {
                ClientEvent::Attached { resumed, .. } => {
                    if resumed {
                        cx.counts.resumed += 1;
                    }
                    self.opened(cx)?;
                }
                ClientEvent::Gap(_) => cx.counts.gaps += 1,
                ClientEvent::Refused { code, .. } => {
                    return Err(End::Lost(format!("the session was refused: {code}")));
                }
                ClientEvent::Ended { code, reason, .. } => {
                    if !cx.is_leaving() && cx.plan.load != Load::Handshake {
                        return Err(End::Lost(format!("the server ended the session: {code} {reason}")));
                    }
                    if let Some(connection) = &mut self.connection {
                        connection.codec.close(
                            CloseCode::NORMAL,
                            "",
                            queue(&mut connection.unsent, &mut cx.out),
                        );
                    }
                }
                ClientEvent::GoAway { .. }
                | ClientEvent::Authenticated { .. }
                | ClientEvent::TooLarge { .. }
                | ClientEvent::Volatile(_) => {}
            }
        }
        Ok(())
    }

    fn opened(&mut self, cx: &mut Context) -> Flow {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        connection.stage = Stage::Open;
        cx.opened(self.began);
        if cx.plan.load == Load::Handshake { self.close(cx) } else { Ok(()) }
    }

    fn message(&mut self, payload: &[u8], cx: &mut Context) {
        let load = cx.plan.load;
        if !matches!(load, Load::Echo | Load::Fanout) {
            return;
        }
        match stamp::read(payload).filter(|_| payload.len() == cx.plan.size()) {
            Some(sent) => cx.answered(sent),
            None => return cx.counts.foreign(),
        }
        if load == Load::Echo {
            self.in_flight = self.in_flight.saturating_sub(1);
            self.waits_since = cx.now;
            self.pump(cx);
        }
    }

    /// Sends the messages that are due, up to the limit in flight. A message that had to wait keeps its due time in its
    /// stamp, or a slow server would hide its own delays (coordinated omission).
    pub(super) fn pump(&mut self, cx: &mut Context) {
        while cx.is_loaded() && self.in_flight < cx.plan.in_flight {
            let sent = match &mut self.due {
                None => cx.now,
                Some(due) if *due > cx.now => return,
                Some(due) => std::mem::replace(due, *due + cx.period),
            };
            self.send(sent, cx);
            if self.in_flight == 0 {
                self.waits_since = cx.now;
            }
            self.in_flight += 1;
        }
    }

    /// Queues one message; the next [`flush`](Self::flush) writes it.
    pub(super) fn send(&mut self, sent: u64, cx: &mut Context) {
        let (stamp, plan) = (stamp::write(sent), &cx.plan);
        match (&mut self.session, &mut self.connection) {
            (Some(session), _) => {
                let payload = [&stamp, plan.filler.as_ref()].concat().into();
                let sent =
                    Message::new(plan.kind, payload).ok().and_then(|message| session.send(message).ok());
                if sent.is_none() {
                    cx.counts.problem("the session's window is full; lower --in-flight".to_owned());
                }
            }
            (None, Some(connection)) => {
                connection.codec.send(
                    plan.kind,
                    &stamp,
                    &plan.filler,
                    queue(&mut connection.unsent, &mut cx.out),
                );
            }
            (None, None) => {}
        }
    }

    /// Writes the queue.
    pub(super) fn flush(&mut self, cx: &mut Context) -> Flow {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        if let Some(session) = &mut self.session {
            while let Some((id, transmit)) = session.poll_transmit(cx.instant()) {
                if id == ConnectionId(self.connections) {
                    connection.transmit(&transmit, &mut cx.out)?;
                }
            }
        }
        connection.codec.flush_replies(queue(&mut connection.unsent, &mut cx.out));
        connection.write(&mut cx.out)
    }

    /// Writes an acknowledgement that became due by time.
    pub(super) fn tick(&mut self, cx: &mut Context) -> Flow {
        let now = cx.instant();
        let Some(session) = &mut self.session else { return Ok(()) };
        if session.poll_timeout().is_none_or(|due| due > now) {
            return Ok(());
        }
        session.handle_timeout(now);
        self.flush(cx)
    }
}

impl Connection {
    /// Sends the opening handshake; returns `false` if TCP is not connected yet.
    fn send_request(&mut self, request: &[u8]) -> Result<bool, End> {
        match self.stream.write(request) {
            Ok(count) if count == request.len() => Ok(true),
            Ok(_) => Err(End::Lost("the socket accepted a part of the request only".to_owned())),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                Ok(false)
            }
            Err(error) => Err(lost(&error)),
        }
    }

    fn transmit(&mut self, transmit: &Transmit, out: &mut SendQueue) -> Flow {
        let out = queue(&mut self.unsent, out);
        match transmit {
            Transmit::Ping(nonce) => self.codec.ping(&nonce.to_be_bytes(), out),
            Transmit::Close { code, reason } => self.codec.close(*code, reason, out),
            Transmit::Abort => return Err(End::Lost("the session aborted the connection".to_owned())),
            message => {
                if let Some((kind, head, body)) = message.as_message() {
                    self.codec.send(kind, head, body, out);
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, out: &mut SendQueue) -> Flow {
        let queue = queue(&mut self.unsent, out);
        while !queue.is_empty() {
            match self.stream.write(queue.chunk()) {
                Ok(count) => queue.advance(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.unsent.is_none() {
                        self.unsent = Some(Box::new(out.take_rest()));
                    }
                    return Ok(());
                }
                Err(error) => return Err(lost(&error)),
            }
        }
        self.unsent = None;
        Ok(())
    }

    fn end_of_stream(&self) -> End {
        match (&self.stage, self.codec.state()) {
            (Stage::Open | Stage::Attaching, CloseState::Closed) => End::Closed,
            (Stage::Open | Stage::Attaching, _) => {
                End::Lost("the server closed TCP without a Close frame".to_owned())
            }
            _ => End::Lost("the server closed TCP during the opening handshake".to_owned()),
        }
    }
}

/// Returns the queue to encode into: behind unsent bytes of this socket, or the worker's.
fn queue<'a>(unsent: &'a mut Option<Box<SendQueue>>, out: &'a mut SendQueue) -> &'a mut SendQueue {
    unsent.as_deref_mut().unwrap_or(out)
}

fn lost(error: &io::Error) -> End {
    End::Lost(explain(error))
}

/// Checks the head of a response; returns its length, or `None` while it is incomplete.
fn check_response(head: &[u8], accept: &str, session: bool) -> Result<Option<usize>, String> {
    let mut slots = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut slots);
    let parsed =
        response.parse(head).map_err(|error| format!("the response to the opening handshake: {error}"))?;
    let httparse::Status::Complete(size) = parsed else {
        return if head.len() < 16 * 1024 {
            Ok(None)
        } else {
            Err("the head of the response is larger than 16 KiB".into())
        };
    };
    let status = response.code.unwrap_or(0);
    if status != 101 {
        return Err(format!("the server refused the opening handshake with status {status}"));
    }
    let value = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        header.map(|header| header.value.trim_ascii())
    };
    if value("sec-websocket-accept") != Some(accept.as_bytes()) {
        return Err("the response to the opening handshake has no valid Sec-WebSocket-Accept".to_owned());
    }
    if session && value("sec-websocket-protocol") != Some(b"mainstay.v1") {
        return Err("the server does not speak mainstay.v1; remove --session".to_owned());
    }
    Ok(Some(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(head: &str, session: bool) -> Result<Option<usize>, String> {
        check_response(head.as_bytes(), "accepted", session)
    }

    #[test]
    fn a_response_is_accepted_when_its_head_is_complete_and_its_key_is_right() {
        let whole = "HTTP/1.1 101 x\r\nsec-websocket-ACCEPT: accepted\r\n\r\n";
        assert_eq!(check(whole, false), Ok(Some(whole.len())));
        assert_eq!(check(&format!("{whole}\u{1}"), false), Ok(Some(whole.len())));
        for cut in 1..whole.len() {
            assert_eq!(check(&whole[..cut], false), Ok(None), "{cut}");
        }
        assert!(check(whole, true).unwrap_err().contains("--session"));
        let session = whole.replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: mainstay.v1\r\n\r\n");
        assert_eq!(check(&session, true), Ok(Some(session.len())));
    }

    #[test]
    fn a_response_that_is_no_upgrade_is_an_error_with_the_reason() {
        for (head, expected) in [
            ("HTTP/1.1 404 Not Found\r\n\r\n", "status 404"),
            ("HTTP/1.1 101 x\r\nsec-websocket-accept: other\r\n\r\n", "no valid Sec-WebSocket-Accept"),
            ("SSH-2.0\r\n", "the response to the opening handshake"),
        ] {
            let error = check(head, false).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
