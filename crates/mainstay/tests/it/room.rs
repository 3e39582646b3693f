//! Rooms: one message to all members, in one order, however slow one of them is.

use std::net::SocketAddr;

use mainstay::client::{Event, Events};
use mainstay::server::{Config, EndCause, Room, SessionState, SlowMember};
use mainstay::{Client, CloseCode, Message, Server, Session, Window};
use tokio::sync::mpsc;

use crate::support::{Proxy, handled, until};

/// A server whose sessions are members of a room and send to it what they receive. Their ends are reported.
async fn serve(room: &Room, keep: Window) -> (SocketAddr, Server, mpsc::UnboundedReceiver<EndCause>) {
    let (report, reports) = mpsc::unbounded_channel();
    let room = room.clone();
    let mainstay = Server::new(Config::new().keep(keep).unwrap());
    let (address, mainstay) = handled(mainstay, move |mut session: Session| {
        let (room, report) = (room.clone(), report.clone());
        async move {
            let membership = room.join(&session);
            while let Some(message) = session.recv().await {
                membership.room().send(message);
            }
            report.send(session.end().unwrap().cause).ok();
        }
    })
    .await;
    (address, mainstay, reports)
}

fn client(address: SocketAddr) -> Client {
    Client::builder(&format!("ws://{address}/echo")).unwrap().connect()
}

#[tokio::test]
async fn a_message_reaches_all_members_in_one_order_also_those_that_are_away_meanwhile() {
    let room = Room::new();
    let (address, _mainstay, _reports) = serve(&room, Window::SERVER).await;
    let proxy = Proxy::to(address).await;
    let (mut first, mut second, mut away) = (client(address), client(address), client(proxy.address));
    until("all are in", || room.len() == 3).await;
    proxy.close();
    for n in 0..20 {
        let speaker = if n % 2 == 0 { &first } else { &second };
        speaker.send(format!("{n}")).await.unwrap();
    }
    let mut received = Vec::new();
    for _ in 0..20 {
        received.push(first.recv().await.unwrap());
    }
    proxy.open();
    for message in &received {
        assert_eq!(second.recv().await.as_ref(), Some(message));
        assert_eq!(away.recv().await.as_ref(), Some(message));
    }
}

#[tokio::test]
async fn a_member_leaves_when_its_last_membership_is_dropped_and_a_message_may_except_one() {
    let room = Room::new();
    let (handed, mut sessions) = mpsc::unbounded_channel();
    let (address, _mainstay) = handled(Server::default(), move |session: Session| {
        let handed = handed.clone();
        async move {
            handed.send(session.sender()).unwrap();
            session.closed().await;
        }
    })
    .await;
    let mut clients = [client(address), client(address)];
    let (first, second) = (sessions.recv().await.unwrap(), sessions.recv().await.unwrap());
    let (membership, twice, other) = (room.join(&first), room.join(first.clone()), room.join(&second));
    assert_eq!((room.len(), room.members().len()), (2, 2));
    assert_eq!(
        (room.send("all"), room.send_except(&first, "others"), membership.send_to_others("x")),
        (2, 1, 1)
    );
    drop(membership);
    assert_eq!(room.len(), 2, "it has another membership");
    drop(twice);
    assert_eq!((room.len(), room.send("rest")), (1, 1));
    second.abort(CloseCode::NORMAL, "");
    assert_eq!((room.send("no member"), room.len()), (0, 0), "a session that is over gets nothing");
    drop(other);
    assert!(room.is_empty());
    assert_eq!(clients[0].recv().await, Some(Message::text("all")));
}

/// Sends six messages to a member that is away, where four are kept. Returns what it receives, up to `last`, its events, and
/// the end of its session.
async fn overfill(room: &Room, last: &str) -> (Vec<Message>, Events, Option<EndCause>) {
    let keep = Window { messages: 4, bytes: 1 << 20 };
    let (address, mainstay, mut reports) = serve(room, keep).await;
    let proxy = Proxy::to(address).await;
    let mut member = client(proxy.address);
    until("it is in", || !room.is_empty()).await;
    member.send_tracked("0").await.unwrap().await;
    assert_eq!(member.recv().await, Some("0".into()));
    let sender = room.members().pop().unwrap();
    until("it is acknowledged", || mainstay.kept_bytes() == 0).await;
    let events = member.events();
    proxy.close();
    until("it is away", || sender.state() == SessionState::Parked).await;
    for n in 1..=6 {
        room.send(format!("{n}"));
    }
    proxy.open();
    let mut received = Vec::new();
    while received.last().and_then(Message::as_text) != Some(last) {
        received.push(member.recv().await.unwrap());
    }
    (received, events, reports.try_recv().ok())
}

fn texts(numbers: impl IntoIterator<Item = u32>) -> Vec<Message> {
    numbers.into_iter().map(|n| n.to_string().into()).collect()
}

#[tokio::test]
async fn a_slow_member_may_lose_its_oldest_messages_and_is_told() {
    let room = Room::with_slow_members(SlowMember::DropOldest);
    let (received, events, end) = overfill(&room, "6").await;
    assert_eq!((received, end), (texts(3..=6), None));
    while !matches!(events.next().await.unwrap(), Event::Dropped { count: 2, .. }) {}
    assert_eq!((room.disconnected(), room.skipped()), (0, 0));
}

#[tokio::test]
async fn a_slow_member_may_be_skipped() {
    let room = Room::with_slow_members(SlowMember::Skip);
    let (received, _, end) = overfill(&room, "4").await;
    assert_eq!((received, end, room.skipped()), (texts(1..=4), None, 2));
}

#[tokio::test]
async fn a_slow_member_is_disconnected_by_default_and_gets_what_came_before() {
    let room = Room::new();
    let (received, _, end) = overfill(&room, "4").await;
    assert_eq!((received, end, room.disconnected()), (texts(1..=4), Some(EndCause::Closed), 1));
    until("it is out", || room.is_empty()).await;
}
