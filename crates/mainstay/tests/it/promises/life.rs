//! R6, R7, R9, R10, R11 and R14: how a client comes back, and what its application and its server notice of that.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use mainstay::client::{Event, Mode, Request, State};
use mainstay::server::{Config, Sender, SessionState};
use mainstay::{Budget, Client, CloseCode, Link, Message, Server, Session};
use mainstay_proto::connect::{Client as Machine, Command, ConnectConfig, Lost};
use mainstay_proto::session::Window;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Dice, HOUR, SECOND, attached, client_at, comes_back, event, small_leaps};
use crate::hostile::{Raw, frame};
use crate::support::{Proxy, echo, echo_server, handled, until_quiet};

/// How many of 10,000 clients dial in each second, whose server is lost at second 0 and stays away for `away` seconds.
fn storm(away: u64) -> Vec<u32> {
    let start = std::time::Instant::now();
    let mut due = BTreeMap::new();
    let mut dials = vec![0; 90];
    for n in 0..10_000_u32 {
        let mut seed = [0; 32];
        seed[..4].copy_from_slice(&n.to_le_bytes());
        let mut machine = Machine::new(start, ConnectConfig { link: true, ..ConnectConfig::default() }, seed);
        machine.handle_timeout(start);
        let connection = dial(&mut machine).unwrap();
        machine.handle_opened(start, connection, Mode::Plain);
        let lost = start + 60 * SECOND;
        machine.handle_lost(lost, connection, Lost::Broken("cut".into()));
        assert_eq!(dial(&mut machine), None, "the first wait comes before the first dial");
        due.insert((machine.poll_timeout().unwrap(), n), machine);
    }
    let healed = start + (60 + u32::try_from(away).unwrap()) * SECOND;
    while let Some(((at, n), mut machine)) = due.pop_first() {
        machine.handle_timeout(at);
        if let Some(connection) = dial(&mut machine) {
            let second = (at - start).as_secs() - 60;
            dials[usize::try_from(second).unwrap().min(89)] += 1;
            if at >= healed {
                continue;
            }
            machine.handle_lost(at, connection, Lost::NotOpened("refused".into()));
            assert_eq!(dial(&mut machine), None, "each wait comes before its dial");
        }
        due.insert((machine.poll_timeout().unwrap(), n), machine);
    }
    dials
}

/// Returns the connection that the machine wants to open, and ignores its other events.
fn dial(machine: &mut Machine) -> Option<mainstay_proto::session::ConnectionId> {
    while let Some(event) = machine.poll_event() {
        assert!(!matches!(event, Event::Ended { .. }), "{event:?}");
    }
    let mut dialled = None;
    while let Some(command) = machine.poll_command() {
        if let Command::Dial(connection) = command {
            assert_eq!(dialled.replace(connection), None, "one at a time");
        }
    }
    dialled
}

#[test]
fn r6_ten_thousand_clients_that_are_cut_at_once_come_back_at_a_bounded_rate() {
    let dials = storm(0);
    // Uniform within a second: no moment of it is worse than another.
    assert_eq!((dials[0], dials.iter().sum::<u32>()), (10_000, 10_000), "{dials:?}");
    let dials = storm(40);
    // The longer it lasts the fewer ask in a second, down to 667 at the cap.
    let most = |seconds: std::ops::Range<usize>| *dials[seconds].iter().max().unwrap();
    assert!(most(1..10) <= 14_000 && most(10..20) <= 2_500 && most(30..40) <= 1_000, "{dials:?}");
    // They find it again without a stampede: no second has more than a tenth of them.
    assert!(most(40..90) <= 1_000, "{dials:?}");
}

#[tokio::test(start_paused = true)]
async fn r6_clients_that_are_cut_at_once_come_back_apart_to_sessions_that_were_kept() {
    small_leaps(SECOND / 200);
    let (address, mainstay) = echo_server(Config::default()).await;
    let proxy = Proxy::to(address).await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        let client = client_at(proxy.address);
        attached(&client, 1).await;
        clients.push(client);
    }
    proxy.close();
    until_quiet("all sessions are parked", || mainstay.stats().connections == 0).await;
    assert_eq!(mainstay.stats().sessions, 40);
    proxy.open();
    let mut waits = Vec::new();
    for client in &clients {
        let wait = |event: &Event| match event {
            Event::Detached { next_attempt_in, .. } => Some(*next_attempt_in),
            _ => None,
        };
        waits.push(event(client, wait).await);
        assert!(attached(client, 2).await, "resumed");
    }
    waits.sort();
    assert!(waits[39] <= SECOND && waits[39] - waits[0] > SECOND / 3, "{waits:?}");
    waits.dedup();
    assert!(waits.len() > 30, "{waits:?}");
    assert_eq!((mainstay.stats().attached_new, mainstay.stats().attached_resumed), (40, 40));
}

/// What may follow what, of a client's states.
fn is_legal(from: State, to: State) -> bool {
    match (from, to) {
        (State::Attached { epoch: before, .. }, State::Attached { epoch, .. }) => epoch == before + 1,
        (State::Ended, _) => false,
        (State::Closing, to) => to == State::Ended,
        (State::Waiting { .. }, State::Attached { .. }) => false,
        _ => true,
    }
}

/// Random events, whether they fit or not, against the machine that drives every client and link.
#[test]
fn r7_no_sequence_of_events_leads_a_client_to_a_state_that_may_not_follow() {
    for seed in 0..2_000_u64 {
        let mut dice = Dice(seed);
        let mut now = std::time::Instant::now();
        let config = ConnectConfig { link: dice.roll(2) == 0, ..ConnectConfig::default() };
        let mode = if config.link { Mode::Plain } else { Mode::Session };
        let mut machine = Machine::new(now, config, [dice.roll(256) as u8; 32]);
        let (mut dialled, mut state, mut trail) = (Vec::new(), machine.state(), Vec::new());
        for _ in 0..60 {
            let connection = dialled.last().copied();
            let what = dice.roll(9);
            match (what, connection) {
                (0, Some(connection)) => machine.handle_opened(now, connection, mode),
                (1, Some(connection)) => machine.handle_lost(now, connection, Lost::Broken("x".into())),
                (2, Some(connection)) => {
                    let code = [1000, 1001, 1012, 1013, 4409, 4500][dice.roll(6) as usize];
                    let code = CloseCode::new(code);
                    machine.handle_lost(now, connection, Lost::Closed { code, reason: String::new() });
                }
                (3, _) => machine.probe_now(now),
                (4, _) if dice.roll(8) == 0 => machine.close(now, CloseCode::NORMAL, ""),
                (5, _) => drop(machine.send(Message::text("x"))),
                (6, Some(connection)) => {
                    machine.handle_lost(now, connection, Lost::NotOpened("x".into()));
                }
                (7, _) => now += Duration::from_millis(dice.roll(60_000)),
                _ => now += Duration::from_millis(dice.roll(500)),
            }
            while machine.is_due(now) && machine.handle_timeout(now) {}
            while let Some(command) = machine.poll_command() {
                if let Command::Dial(connection) = command {
                    dialled.push(connection);
                }
            }
            while machine.poll_event().is_some() {}
            let next = machine.state();
            trail.push((what, next));
            assert!(next == state || is_legal(state, next), "seed {seed}: {state:?} to {next:?}, {trail:?}");
            state = next;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r7_a_session_is_attached_or_parked_until_it_is_over_and_reports_which() {
    let (came, mut handles) = mpsc::unbounded_channel();
    let (said, mut states) = mpsc::unbounded_channel();
    let (address, mainstay) = handled(Server::default(), move |mut session: Session| {
        came.send(session.sender()).unwrap();
        let said = said.clone();
        async move {
            said.send(session.state()).unwrap();
            while session.state() != SessionState::Closed {
                said.send(session.changed().await).unwrap();
            }
        }
    })
    .await;
    let client = client_at(address);
    let handle: Sender = handles.recv().await.unwrap();
    for epoch in 1..4 {
        assert_eq!(states.recv().await, Some(SessionState::Attached { epoch }));
        attached(&client, epoch).await;
        handle.cut();
        assert_eq!(states.recv().await, Some(SessionState::Parked));
    }
    assert_eq!(states.recv().await, Some(SessionState::Attached { epoch: 4 }));
    client.close(CloseCode::NORMAL, "").await;
    assert_eq!(states.recv().await, Some(SessionState::Closed));
    until_quiet("the handler is done", || mainstay.stats().sessions == 0).await;
    assert!(states.try_recv().is_err(), "nothing follows");
}

/// Passes connections on and counts how many it has at a time.
async fn counting(to: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>, tokio::sync::broadcast::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let most = Arc::new(AtomicUsize::new(0));
    let (cut, _) = tokio::sync::broadcast::channel(1);
    let (counted, cuts, open) = (Arc::clone(&most), cut.clone(), Arc::new(AtomicUsize::new(0)));
    tokio::spawn(async move {
        loop {
            let (mut down, _) = listener.accept().await.unwrap();
            let (mut cut, open, most) = (cuts.subscribe(), Arc::clone(&open), Arc::clone(&counted));
            most.fetch_max(open.fetch_add(1, Relaxed) + 1, Relaxed);
            tokio::spawn(async move {
                let mut up = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut down, &mut up) => {}
                    _ = cut.recv() => {}
                }
                open.fetch_sub(1, Relaxed);
            });
        }
    });
    (address, most, cut)
}

#[tokio::test(start_paused = true)]
async fn r9_each_attempt_has_its_own_url_and_deadline_and_no_two_connections_live_side_by_side() {
    small_leaps(SECOND / 200);
    let (server, mainstay) = echo_server(Config::default()).await;
    let (good, most, cut) = counting(server).await;
    // Accepts, and stays silent.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoints = [silent.local_addr().unwrap(), good];
    let made = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&made);
    let mut client = Client::builder("ws://127.0.0.1:1/")
        .unwrap()
        .request(move || {
            let n = count.fetch_add(1, Relaxed);
            let url = format!("ws://{}/echo?token={n}", endpoints[n as usize % 2]).parse().unwrap();
            let mut request = Request::default();
            request.url = Some(url);
            async move { Ok(request) }
        })
        .connect();
    let begin = Instant::now();
    let failed = |event: &Event| matches!(event, Event::AttemptFailed { .. }).then_some(());
    event(&client, failed).await;
    let gave_up = begin.elapsed();
    assert!(gave_up >= 10 * SECOND && gave_up <= 11 * SECOND, "{gave_up:?}");
    for epoch in 1..8 {
        attached(&client, epoch).await;
        comes_back(&mut client, &epoch.to_string()).await;
        // An application that presses again and again makes no second attempt beside the first.
        cut.send(()).unwrap();
        for _ in 0..5 {
            client.probe_now();
        }
    }
    attached(&client, 8).await;
    assert_eq!(most.load(Relaxed), 1);
    assert!(made.load(Relaxed) >= 15, "each attempt is made anew");
    assert_eq!((mainstay.stats().attached_new, mainstay.stats().attached_resumed), (1, 7));
}

#[tokio::test(start_paused = true)]
async fn r10_a_thousand_reconnects_leave_one_handler_and_bring_each_message_once() {
    let (calls, came) = (Arc::new(AtomicUsize::new(0)), mpsc::unbounded_channel());
    let (count, (send_handle, mut handles)) = (Arc::clone(&calls), came);
    let (address, mainstay) = handled(Server::default(), move |session: Session| {
        count.fetch_add(1, Relaxed);
        send_handle.send(session.sender()).unwrap();
        echo(session)
    })
    .await;
    let mut client = client_at(address);
    let handle: Sender = handles.recv().await.unwrap();
    for n in 0..1_000 {
        client.send(Message::text(n.to_string())).await.unwrap();
        handle.cut();
        until_quiet("it is back", || mainstay.stats().attached_resumed == n + 1).await;
        assert_eq!(client.recv().await, Some(Message::text(n.to_string())));
    }
    assert_eq!(calls.load(Relaxed), 1);
    let stats = mainstay.stats();
    assert_eq!((stats.sessions, stats.messages_in), (1, 1_000), "{stats:?}");
    client.close(CloseCode::NORMAL, "").await;
    assert_eq!(client.recv().await, None, "and nothing twice");
}

#[tokio::test(start_paused = true)]
async fn r11_however_connections_end_no_task_session_or_byte_is_left() {
    // Its own budget: the other tests of this process share the default one.
    let config =
        Config::new().resume_window(Duration::from_millis(200)).unwrap().budget(Budget::new(1 << 30));
    let (address, mainstay) = echo_server(config).await;
    let url = format!("ws://{address}/echo");
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    // What lives as long as the runtime is there from the first connection on.
    comes_back(&mut client_at(address), "first").await;
    until_quiet("the first is gone", || mainstay.stats().sessions == 0 && mainstay.stats().connections == 0)
        .await;
    let before = tasks();
    for n in 0..400 {
        match n % 4 {
            0 => {
                let mut plain = Link::builder(&url).unwrap().connect_once().await.unwrap();
                plain.send(Message::text("x")).await.unwrap();
                plain.recv().await.unwrap();
                plain.close(CloseCode::NORMAL, "").await;
            }
            1 => {
                let mut client = client_at(address);
                comes_back(&mut client, "x").await;
                client.close(CloseCode::NORMAL, "").await;
            }
            2 => {
                // Leaves in the middle of a message, without a word.
                let mut raw = Raw::open(address, "").await;
                raw.write(&frame(0x81, b"whole")).await;
                raw.write(&[0x81, 0xfe, 0xff]).await;
            }
            _ => {
                let client = client_at(address);
                client.send(Message::binary(vec![0; 10_000])).await.unwrap();
                attached(&client, 1).await;
                drop(client);
            }
        }
    }
    until_quiet("nothing is left", || {
        let stats = mainstay.stats();
        (stats.sessions, stats.connections) == (0, 0) && tasks() <= before
    })
    .await;
    assert_eq!((mainstay.kept_bytes(), mainstay.budget().used()), (0, 0));
}

/// An application that knows nothing of connections: it sends, and receives what comes.
async fn application(mut client: Client, is_closed: Arc<AtomicBool>) -> u64 {
    for n in 0.. {
        if is_closed.load(Relaxed) {
            client.close(CloseCode::NORMAL, "done").await;
            return n;
        }
        comes_back(&mut client, &n.to_string()).await;
        tokio::time::sleep(SECOND / 2).await;
    }
    unreachable!()
}

#[tokio::test(start_paused = true)]
async fn r14_an_application_without_a_line_of_reconnecting_passes_all_faults() {
    small_leaps(SECOND / 50);
    let config = Config::new().accept(Window { messages: 16, bytes: 1 << 16 });
    let (came, mut handles) = mpsc::unbounded_channel();
    let (address, mainstay) = handled(Server::new(config), move |session: Session| {
        came.send(session.sender()).unwrap();
        echo(session)
    })
    .await;
    let proxy = Proxy::to(address).await;
    let is_closed = Arc::new(AtomicBool::new(false));
    let running = tokio::spawn(application(client_at(proxy.address), Arc::clone(&is_closed)));
    let handle: Sender = handles.recv().await.unwrap();
    for fault in 0..16 {
        let before = mainstay.stats().messages_in;
        until_quiet("it goes on", || mainstay.stats().messages_in > before + 20).await;
        match fault % 4 {
            0 => proxy.cut(),
            1 => {
                proxy.close();
                tokio::time::sleep(20 * SECOND).await;
                proxy.open();
            }
            // A cut cable: no byte passes, and neither end notices.
            2 => handle.hold(HOUR),
            _ => handle.go_away("move", Duration::ZERO..=SECOND, 5 * SECOND),
        }
    }
    is_closed.store(true, Relaxed);
    let count = running.await.unwrap();
    let stats = mainstay.stats();
    assert_eq!((stats.attached_new, stats.attached_lost, stats.messages_in), (1, 0, count), "{stats:?}");
    assert!(stats.attached_resumed >= 16, "{stats:?}");
}
