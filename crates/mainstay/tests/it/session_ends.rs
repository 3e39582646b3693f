//! How sessions end, and what a handler learns of it. Time is tokio's, which leaps whenever nothing is left to do.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay::client::Event;
use mainstay::server::{Changes, Config, EndCause, Sender, SessionState};
use mainstay::{Client, CloseCode, Link, Message, SendError, Server, Session};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::support::{Proxy, handled, until, until_quiet};

const KICKED: CloseCode = match CloseCode::new(4000) {
    Some(code) => code,
    None => panic!("4000 is a code"),
};

/// LossCause, code and reason.
type HowItEnded = (EndCause, Option<u16>, String);

/// A handler's view of one session.
#[derive(Clone, Default)]
struct Seen {
    sender: Arc<Mutex<Option<Sender>>>,
    received: Arc<Mutex<Vec<Message>>>,
    end: Arc<Mutex<Option<HowItEnded>>>,
    undelivered: Arc<Mutex<Vec<Message>>>,
}

impl Seen {
    async fn handle(self, mut session: Session) {
        if self.has_begun() {
            return; // A client that was asked to leave has come back: another session.
        }
        *self.sender.lock().unwrap() = Some(session.sender());
        session.send("welcome").await.unwrap();
        while let Some(message) = session.recv().await {
            self.received.lock().unwrap().push(message);
        }
        let end = session.end().unwrap();
        *self.end.lock().unwrap() = Some((end.cause, end.code.map(u16::from), end.reason));
        self.undelivered.lock().unwrap().extend(session.take_undelivered());
    }

    fn sender(&self) -> Sender {
        self.sender.lock().unwrap().clone().unwrap()
    }

    fn has_begun(&self) -> bool {
        self.sender.lock().unwrap().is_some()
    }

    fn received(&self) -> usize {
        self.received.lock().unwrap().len()
    }

    fn end(&self) -> Option<HowItEnded> {
        self.end.lock().unwrap().clone()
    }
}

async fn serve(config: Config) -> (SocketAddr, Server, Seen) {
    let seen = Seen::default();
    let handler = seen.clone();
    let (address, mainstay) =
        handled(Server::new(config), move |session| handler.clone().handle(session)).await;
    (address, mainstay, seen)
}

fn kicked() -> Option<HowItEnded> {
    Some((EndCause::Closed, Some(4000), "kicked".into()))
}

#[tokio::test(start_paused = true)]
async fn nothing_is_received_after_a_close_however_long_the_client_reads_nothing() {
    let (address, mainstay, seen) = serve(Config::default()).await;
    // It never receives, and so acknowledges nothing.
    let client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    client.send("before").await.unwrap();
    until_quiet("it is received", || seen.received() == 1).await;
    let closed = Instant::now();
    seen.sender().close(KICKED, "kicked");
    until_quiet("the handler returns", || seen.end().is_some()).await;
    assert!(closed.elapsed() <= Duration::from_secs(1));
    client.send("after").await.ok();
    until_quiet("it holds no place", || mainstay.stats().sessions == 0).await;
    assert!(client.send("too late").await.is_err(), "it does not wait for a session that was ended");
    assert!(closed.elapsed() <= Duration::from_secs(11), "{:?}", closed.elapsed());
    assert_eq!((seen.received(), seen.end()), (1, kicked()));
    assert!(seen.sender().is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_was_closed_accepts_nothing_more_though_it_did_not_read_what_came_before() {
    let (address, _mainstay, seen) = serve(Config::default()).await;
    let client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    client.send("before").await.unwrap();
    until_quiet("it is received", || seen.received() == 1).await;
    seen.sender().close(KICKED, "kicked");
    // A `send` that waits for room fails, too: the server receives nothing more, and so makes no room.
    let outcome = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            if let Err(refused) = client.send("after").await {
                break refused;
            }
        }
    });
    assert_eq!(outcome.await.unwrap(), SendError::Closed("after".into()));
    assert!(client.sender().is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_handler_receives_nothing_from_a_plain_client_that_it_has_closed() {
    let (address, mainstay, seen) = serve(Config::default()).await;
    let link = Link::builder(&format!("ws://{address}/echo")).unwrap().connect();
    link.send("before").await.unwrap();
    until_quiet("it is received", || seen.received() == 1).await;
    seen.sender().close(KICKED, "kicked");
    link.send("after").await.ok();
    until_quiet("the handler returns", || seen.end().is_some()).await;
    assert_eq!((seen.received(), seen.end()), (1, kicked()));
    drop(link);
    until_quiet("it holds no place", || mainstay.stats().sessions == 0).await;
}

#[tokio::test(start_paused = true)]
async fn an_abort_ends_a_session_at_once_and_the_client_gets_its_code() {
    let (address, mainstay, seen) = serve(Config::default()).await;
    let mut client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    let events = client.events();
    client.send("before").await.unwrap();
    assert_eq!(client.recv().await, Some("welcome".into()));
    until_quiet("it is received", || seen.received() == 1).await;
    let aborted = Instant::now();
    seen.sender().abort(KICKED, "kicked");
    assert!(seen.sender().is_closed() && seen.sender().try_send("late").is_err());
    let ended = loop {
        if let Event::Ended(end) = events.next().await.unwrap() {
            break (end.code, end.reason);
        }
    };
    assert_eq!(ended, (Some(KICKED.into()), "kicked".into()));
    until_quiet("it holds no place", || mainstay.stats().sessions == 0).await;
    assert!(aborted.elapsed() <= Duration::from_secs(2), "{:?}", aborted.elapsed());
    assert_eq!(seen.end(), kicked());
}

#[tokio::test]
async fn the_undelivered_messages_of_an_expired_session_are_returned() {
    let config = Config::new().resume_window(Duration::from_millis(200)).unwrap();
    let (address, mainstay, seen) = serve(config).await;
    let proxy = Proxy::to(address).await;
    let mut client = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap().connect();
    client.send_tracked("here").await.unwrap().await;
    assert_eq!(client.recv().await, Some("welcome".into()));
    let sender = seen.sender();
    until("the welcome is acknowledged", || mainstay.kept_bytes() == 0).await;
    proxy.close();
    until("it is away", || sender.state() == SessionState::Parked).await;
    let notes: Vec<Message> = (0..5).map(|n| format!("note {n}").into()).collect();
    for note in &notes {
        sender.send(note.clone()).await.unwrap();
    }
    until("it expires", || seen.end().is_some()).await;
    assert_eq!(seen.end(), Some((EndCause::Expired, None, String::new())));
    assert_eq!(*seen.undelivered.lock().unwrap(), notes);
    until("nothing is kept", || mainstay.kept_bytes() == 0).await;
}

#[tokio::test]
async fn a_handler_learns_how_its_client_left() {
    for resumable in [true, false] {
        let (address, _mainstay, seen) = serve(Config::default()).await;
        let url = format!("ws://{address}/echo");
        if resumable {
            let mut client = Client::builder(&url).unwrap().connect();
            client.recv().await.unwrap();
            client.close(KICKED, "enough").await;
        } else {
            let mut link = Link::builder(&url).unwrap().connect();
            link.recv().await.unwrap();
            link.close(KICKED, "enough").await;
        }
        until("the handler returns", || seen.end().is_some()).await;
        assert_eq!(seen.end(), Some((EndCause::Client, Some(4000), "enough".into())), "{resumable}");
    }
}

#[tokio::test]
async fn a_handler_learns_that_the_server_drains_and_that_a_plain_connection_was_lost() {
    for resumable in [true, false] {
        let (address, mainstay, seen) = serve(Config::default()).await;
        let url = format!("ws://{address}/echo");
        let client = resumable.then(|| Client::builder(&url).unwrap().connect());
        let link = (!resumable).then(|| Link::builder(&url).unwrap().connect());
        until("it is there", || seen.has_begun()).await;
        mainstay.drain(Duration::ZERO).await;
        let cause = seen.end().map(|(cause, ..)| cause);
        assert_eq!(cause, Some(EndCause::Drained), "{resumable}");
        drop((client, link));
    }
    let (address, _mainstay, seen) = serve(Config::default()).await;
    let proxy = Proxy::to(address).await;
    let _link = Link::builder(&format!("ws://{}/echo", proxy.address)).unwrap().connect();
    until("it is there", || seen.has_begun()).await;
    proxy.close();
    until("it is lost", || seen.end().is_some()).await;
    assert_eq!(seen.end(), Some((EndCause::Lost, None, String::new())));
}

#[tokio::test]
async fn the_end_of_a_session_names_a_panic_of_its_handler() {
    let sender = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&sender);
    let (address, _mainstay) = handled(Server::default(), move |mut session: Session| {
        *keep.lock().unwrap() = Some(session.sender());
        async move {
            session.recv().await;
            panic!("as the test asks for");
        }
    })
    .await;
    let client = Client::builder(&format!("ws://{address}/echo")).unwrap().connect();
    client.send("x").await.unwrap();
    let panicked = || {
        let sender = sender.lock().unwrap();
        let end = sender.as_ref().and_then(|sender: &Sender| sender.end());
        end.is_some_and(|end| end.cause == EndCause::Panicked)
    };
    until("it says so", panicked).await;
}

#[tokio::test]
async fn one_select_waits_for_messages_and_for_changes_of_state() {
    let (report, mut reports) = mpsc::unbounded_channel();
    let (address, _mainstay) = handled(Server::default(), move |mut session: Session| {
        let report = report.clone();
        async move {
            let mut changes = session.changes();
            loop {
                tokio::select! {
                    message = session.recv() => match message {
                        Some(message) => session.send(message).await.unwrap(),
                        None => break,
                    },
                    Some(state) = changes.next() => report.send(state).unwrap(),
                }
            }
            // The rest of them.
            while let Some(state) = changes.next().await {
                report.send(state).unwrap();
            }
        }
    })
    .await;
    let proxy = Proxy::to(address).await;
    let mut client = Client::builder(&format!("ws://{}/echo", proxy.address)).unwrap().connect();
    client.send("a").await.unwrap();
    assert_eq!(client.recv().await, Some("a".into()));
    proxy.cut();
    assert_eq!(reports.recv().await, Some(SessionState::Parked));
    client.send("b").await.unwrap();
    assert_eq!(client.recv().await, Some("b".into()));
    assert_eq!(reports.recv().await, Some(SessionState::Attached { epoch: 2 }));
    client.close(CloseCode::NORMAL, "").await;
    assert_eq!(reports.recv().await, Some(SessionState::Closed));
}

#[tokio::test]
async fn senders_of_one_session_are_equal_and_report_its_id_and_state() {
    let (handed, mut sessions) = mpsc::unbounded_channel();
    let (address, _mainstay) = handled(Server::default(), move |session: Session| {
        let handed = handed.clone();
        async move {
            handed.send((session.sender(), session.id())).unwrap();
            session.closed().await;
        }
    })
    .await;
    let url = format!("ws://{address}/echo");
    let _clients = (Client::builder(&url).unwrap().connect(), Client::builder(&url).unwrap().connect());
    let (first, id) = sessions.recv().await.unwrap();
    let (second, _) = sessions.recv().await.unwrap();
    assert_eq!((first.id(), first.clone()), (id, first.clone()));
    assert_ne!(first, second);
    assert_eq!((first.state(), first.is_closed()), (SessionState::Attached { epoch: 1 }, false));
    let mut changes: Changes = first.changes();
    first.abort(KICKED, "");
    assert_eq!(changes.next().await, Some(SessionState::Closed));
    assert_eq!(changes.next().await, None);
}
