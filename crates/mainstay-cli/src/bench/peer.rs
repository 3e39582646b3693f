//! One connection of the generator, from the first SYN on, and again after a cut.
//!
//! A [`Peer`] stays for the whole run; its [`Link`] is the connection it has now, and its session, if the run speaks
//! `mainstay.v1`, outlives links. Everything that one readiness turn produces leaves in one write; nothing is
//! allocated for a plain message.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use bytes::Buf;
use mainstay_proto::session::{
    ClientConfig, ClientEvent, ClientSession, ConnectionId, Control, Delivery, Frame, Message, Transmit,
};
use mainstay_proto::ws::{CloseCode, Connection, Incoming, Role, SendQueue, State};
use mio::net::TcpStream;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::plan::{Load, Plan, explain};
use super::stamp;
use super::worker::Turn;

/// EINPROGRESS: what a connect says that does not wait. The standard library has no stable name for it.
const IN_PROGRESS: i32 = if cfg!(target_os = "linux") { 115 } else { 36 };

pub(super) struct Peer {
    link: Option<Link>,
    session: Option<Box<ClientSession>>,
    /// Names the links of this peer to its session.
    links: u64,
    in_flight: u32,
    /// When the next message is due, if the run has a rate.
    pub(super) due: Option<u64>,
    /// When the opening of this link was due.
    pub(super) began: u64,
}

struct Link {
    stream: TcpStream,
    stage: Stage,
    codec: Connection,
    /// What the socket did not take; more is encoded behind it.
    unsent: Option<Box<SendQueue>>,
}

enum Stage {
    Connecting,
    /// With the part of the answer's head that came so far.
    Upgrading(Vec<u8>),
    /// HELLO is under way.
    Attaching,
    Open,
}

/// Why a link is no more.
pub(super) enum End {
    /// After a closing handshake.
    Closed,
    /// Any other way.
    Lost(String),
}

type Alive = Result<(), End>;

impl Peer {
    pub(super) fn new(plan: &Plan, seed: [u8; 32]) -> Self {
        let session = plan.session.then(|| Box::new(ClientSession::new(ClientConfig::default(), seed)));
        Self { link: None, session, links: 0, in_flight: 0, due: None, began: 0 }
    }

    /// Starts a link and returns its stream, to be registered.
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
        let link = Link {
            stream: TcpStream::from_std(socket.into()),
            stage: Stage::Connecting,
            codec: Connection::new(Role::Client, plan.limits, None, mask),
            unsent: None,
        };
        self.links += 1;
        self.in_flight = 0;
        Ok(&mut self.link.insert(link).stream)
    }

    pub(super) fn has_link(&self) -> bool {
        self.link.is_some()
    }

    pub(super) fn is_open(&self) -> bool {
        self.link.as_ref().is_some_and(|link| matches!(link.stage, Stage::Open))
    }

    /// Forgets the link; whether it had been open.
    pub(super) fn drop_link(&mut self) -> bool {
        let was_open = self.is_open();
        if self.link.take().is_some()
            && let Some(session) = &mut self.session
        {
            session.handle_lost(ConnectionId(self.links));
        }
        was_open
    }

    /// Ends the link with a RST: no FIN, nothing in order.
    pub(super) fn cut(&mut self) {
        if let Some(link) = &self.link {
            let _ = SockRef::from(&link.stream).set_linger(Some(Duration::ZERO));
        }
        self.drop_link();
    }

    /// Starts to leave in order.
    pub(super) fn close(&mut self, turn: &mut Turn) -> Alive {
        match (&mut self.session, &mut self.link) {
            (Some(session), _) => session.close(CloseCode::NORMAL, ""),
            (None, Some(link)) => {
                link.codec.close(CloseCode::NORMAL, "", queue(&mut link.unsent, &mut turn.out))
            }
            (None, None) => {}
        }
        self.flush(turn)
    }

    /// The socket is ready: reads what is there and writes what that leads to. `ended` says that the end of the
    /// stream is among it.
    pub(super) fn ready(
        &mut self,
        writable: bool,
        ended: bool,
        scratch: &mut [u8],
        turn: &mut Turn,
    ) -> Alive {
        let Some(link) = &mut self.link else { return Ok(()) };
        if matches!(link.stage, Stage::Connecting) {
            if !writable || !link.send_request(&turn.plan.request)? {
                return Ok(());
            }
            link.stage = Stage::Upgrading(Vec::new());
        }
        loop {
            let Some(link) = &mut self.link else { return Ok(()) };
            let count = match link.stream.read(scratch) {
                Ok(0) => return Err(link.end_of_stream()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(lost(&error)),
            };
            turn.tell_time();
            self.receive(scratch.get_mut(..count).unwrap_or_default(), turn)?;
            // A short read emptied the socket.
            if count < scratch.len() && !ended {
                break;
            }
        }
        self.flush(turn)
    }

    fn receive(&mut self, mut input: &mut [u8], turn: &mut Turn) -> Alive {
        let Some(link) = &mut self.link else { return Ok(()) };
        if let Stage::Upgrading(head) = &mut link.stage {
            head.extend_from_slice(input);
            let Some(size) = check_answer(head, &turn.plan.accept, turn.plan.session).map_err(End::Lost)?
            else {
                return Ok(());
            };
            let mut rest = head.split_off(size);
            link.stage = Stage::Attaching;
            match &mut self.session {
                Some(session) => session.handle_opened(turn.instant(), ConnectionId(self.links)),
                None => self.opened(turn)?,
            }
            return self.receive_frames(&mut rest.as_mut_slice(), turn);
        }
        self.receive_frames(&mut input, turn)
    }

    fn receive_frames(&mut self, input: &mut &mut [u8], turn: &mut Turn) -> Alive {
        loop {
            let Some(link) = &mut self.link else { return Ok(()) };
            match link.codec.receive(input).map_err(|error| End::Lost(error.to_string()))? {
                None => return Ok(()),
                Some(Incoming::Message(payload)) => match &mut self.session {
                    None => self.message(&payload, turn),
                    Some(_) => self.session_message(payload.into_message(), turn)?,
                },
                Some(Incoming::Ping(_)) => {
                    if self.session.is_none() {
                        turn.ping();
                    }
                    // Every Ping is answered, not only the last one of a turn, so that each can be counted.
                    link.codec.flush_replies(queue(&mut link.unsent, &mut turn.out));
                }
                Some(Incoming::Pong(_)) => {}
                Some(Incoming::Close(close)) => {
                    if link.codec.state() != State::Closed && !turn.is_leaving() {
                        let code = close.map_or_else(|| "no code".to_owned(), |close| close.code.to_string());
                        return Err(End::Lost(format!("closed by the server: {code}")));
                    }
                }
            }
        }
    }

    fn session_message(&mut self, message: Message, turn: &mut Turn) -> Alive {
        let Some(session) = &mut self.session else { return Ok(()) };
        let broken = |error: mainstay_proto::session::SessionError| End::Lost(error.to_string());
        let frame = Frame::decode(message).map_err(broken)?;
        if matches!(frame, Frame::Control(Control::Ping(_))) {
            turn.ping();
        }
        session.handle_frame(ConnectionId(self.links), frame).map_err(broken)?;
        while let Some(session) = &mut self.session
            && let Some(delivery) = session.deliver(turn.instant())
        {
            if let Delivery::Message(message) = delivery {
                self.message(message.payload(), turn);
            }
        }
        while let Some(event) = self.session.as_mut().and_then(|session| session.poll_event()) {
            match event {
                ClientEvent::Attached { resumed, .. } => {
                    if resumed {
                        turn.counts.resumed += 1;
                    }
                    self.opened(turn)?;
                }
                ClientEvent::Gap(_) => turn.counts.gaps += 1,
                ClientEvent::Refused { code, .. } => {
                    return Err(End::Lost(format!("the session was refused: {code}")));
                }
                ClientEvent::Ended { code, reason, .. } => {
                    if !turn.is_leaving() && turn.plan.load != Load::Handshake {
                        return Err(End::Lost(format!("the server ended the session: {code} {reason}")));
                    }
                    if let Some(link) = &mut self.link {
                        link.codec.close(CloseCode::NORMAL, "", queue(&mut link.unsent, &mut turn.out));
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

    fn opened(&mut self, turn: &mut Turn) -> Alive {
        let Some(link) = &mut self.link else { return Ok(()) };
        link.stage = Stage::Open;
        turn.opened(self.began);
        if turn.plan.load == Load::Handshake { self.close(turn) } else { Ok(()) }
    }

    fn message(&mut self, payload: &[u8], turn: &mut Turn) {
        let load = turn.plan.load;
        if !matches!(load, Load::Echo | Load::Fanout) {
            return;
        }
        match stamp::read(payload).filter(|_| payload.len() == turn.plan.size()) {
            Some(sent) => turn.answered(sent),
            None => return turn.counts.foreign(),
        }
        if load == Load::Echo {
            self.in_flight = self.in_flight.saturating_sub(1);
            self.pump(turn);
        }
    }

    /// Sends what is due and may be under way. What had to wait keeps the time it was due in its stamp, or a slow
    /// server would hide its own delays (coordinated omission).
    pub(super) fn pump(&mut self, turn: &mut Turn) {
        while turn.is_loaded() && self.in_flight < turn.plan.in_flight {
            let sent = match &mut self.due {
                None => turn.now,
                Some(due) if *due > turn.now => return,
                Some(due) => std::mem::replace(due, *due + turn.period),
            };
            self.send(sent, turn);
            self.in_flight += 1;
        }
    }

    /// Queues one message; it leaves with the next [`flush`](Self::flush).
    pub(super) fn send(&mut self, sent: u64, turn: &mut Turn) {
        let (stamp, plan) = (stamp::write(sent), &turn.plan);
        match (&mut self.session, &mut self.link) {
            (Some(session), _) => {
                let payload = [&stamp, plan.filler.as_ref()].concat().into();
                let sent =
                    Message::new(plan.kind, payload).ok().and_then(|message| session.send(message).ok());
                if sent.is_none() {
                    turn.counts
                        .trouble("the session's window is full; use fewer messages in flight".to_owned());
                }
            }
            (None, Some(link)) => {
                link.codec.send(plan.kind, &stamp, &plan.filler, queue(&mut link.unsent, &mut turn.out));
            }
            (None, None) => {}
        }
    }

    /// Writes everything that is queued.
    pub(super) fn flush(&mut self, turn: &mut Turn) -> Alive {
        let Some(link) = &mut self.link else { return Ok(()) };
        if let Some(session) = &mut self.session {
            while let Some((connection, transmit)) = session.poll_transmit(turn.instant()) {
                if connection == ConnectionId(self.links) {
                    link.transmit(&transmit, &mut turn.out)?;
                }
            }
        }
        link.codec.flush_replies(queue(&mut link.unsent, &mut turn.out));
        link.write(&mut turn.out)
    }

    /// Writes an acknowledgement that is due by time alone.
    pub(super) fn tick(&mut self, turn: &mut Turn) -> Alive {
        let now = turn.instant();
        let Some(session) = &mut self.session else { return Ok(()) };
        if session.poll_timeout().is_none_or(|due| due > now) {
            return Ok(());
        }
        session.handle_timeout(now);
        self.flush(turn)
    }
}

impl Link {
    /// Whether TCP is there and took the request.
    fn send_request(&mut self, request: &[u8]) -> Result<bool, End> {
        match self.stream.write(request) {
            Ok(count) if count == request.len() => Ok(true),
            Ok(_) => Err(End::Lost("the socket took a part of the request only".to_owned())),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                Ok(false)
            }
            Err(error) => Err(lost(&error)),
        }
    }

    fn transmit(&mut self, transmit: &Transmit, out: &mut SendQueue) -> Alive {
        let out = queue(&mut self.unsent, out);
        match transmit {
            Transmit::Ping(nonce) => self.codec.ping(&nonce.to_be_bytes(), out),
            Transmit::Close { code, reason } => self.codec.close(*code, reason, out),
            Transmit::Abort => return Err(End::Lost("given up by the session".to_owned())),
            message => {
                if let Some((kind, head, body)) = message.as_message() {
                    self.codec.send(kind, head, body, out);
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, out: &mut SendQueue) -> Alive {
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
            (Stage::Open | Stage::Attaching, State::Closed) => End::Closed,
            (Stage::Open | Stage::Attaching, _) => {
                End::Lost("the server ended TCP without a Close".to_owned())
            }
            _ => End::Lost("the server ended TCP during the opening handshake".to_owned()),
        }
    }
}

/// Where to encode: behind what waits for this socket, or in the worker's queue.
fn queue<'a>(unsent: &'a mut Option<Box<SendQueue>>, out: &'a mut SendQueue) -> &'a mut SendQueue {
    unsent.as_deref_mut().unwrap_or(out)
}

fn lost(error: &io::Error) -> End {
    End::Lost(explain(error))
}

/// The length of a complete answer's head; `None` while it is incomplete.
fn check_answer(head: &[u8], accept: &str, session: bool) -> Result<Option<usize>, String> {
    let mut slots = [httparse::EMPTY_HEADER; 64];
    let mut answer = httparse::Response::new(&mut slots);
    let parsed = answer.parse(head).map_err(|error| format!("the answer to the upgrade: {error}"))?;
    let httparse::Status::Complete(size) = parsed else {
        return if head.len() < 16 * 1024 {
            Ok(None)
        } else {
            Err("the answer's head is above 16 KiB".into())
        };
    };
    let status = answer.code.unwrap_or(0);
    if status != 101 {
        return Err(format!("the server refused the upgrade: status {status}"));
    }
    let value = |name: &str| {
        let header = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        header.map(|header| header.value.trim_ascii())
    };
    if value("sec-websocket-accept") != Some(accept.as_bytes()) {
        return Err("the answer to the upgrade has no valid Sec-WebSocket-Accept".to_owned());
    }
    if session && value("sec-websocket-protocol") != Some(b"mainstay.v1") {
        return Err("the server does not speak mainstay.v1; leave out --session".to_owned());
    }
    Ok(Some(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(head: &str, session: bool) -> Result<Option<usize>, String> {
        check_answer(head.as_bytes(), "accepted", session)
    }

    #[test]
    fn an_answer_counts_when_its_head_is_whole_and_its_key_is_right() {
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
    fn an_answer_that_is_no_upgrade_says_why() {
        for (head, expected) in [
            ("HTTP/1.1 404 Not Found\r\n\r\n", "status 404"),
            ("HTTP/1.1 101 x\r\nsec-websocket-accept: other\r\n\r\n", "no valid Sec-WebSocket-Accept"),
            ("SSH-2.0\r\n", "the answer to the upgrade"),
        ] {
            let error = check(head, false).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
