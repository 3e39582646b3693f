//! The driver as a node uses it: requests in, reports out.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use mainstay::cluster::{Driver, Engine, Report, start};
use mainstay_proto::cluster::request::{EngineEvent, Request, RequestId, Response};
use mainstay_proto::session::message::SessionId;
use mainstay_proto::session::{NodeId, Record};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use crate::server::{LIMIT, NAME};

pub(crate) const A: NodeId = NodeId([0xA; 8]);
pub(crate) const B: NodeId = NodeId([0xB; 8]);
pub(crate) const KEEP: Duration = Duration::from_secs(60);

pub(crate) struct Node {
    driver: Driver,
    reports: UnboundedReceiver<Report>,
    last: u64,
    events: Vec<EngineEvent>,
}

impl Node {
    pub(crate) fn start(engine: Engine) -> Self {
        let (sender, reports) = unbounded_channel();
        let driver = start(engine, NAME, move |report| _ = sender.send(report));
        Self { driver, reports, last: 0, events: Vec::new() }
    }

    /// Starts a driver and waits for its connection. Returns the incarnation too.
    pub(crate) async fn connected(engine: Engine) -> (Self, Option<String>) {
        let mut node = Self::start(engine);
        let incarnation = node.reachable().await;
        (node, incarnation)
    }

    /// The events that came while a response was awaited.
    pub(crate) fn events(&self) -> &[EngineEvent] {
        &self.events
    }

    async fn report(&mut self) -> Report {
        timeout(LIMIT, self.reports.recv()).await.expect("a report in time").expect("a running task")
    }

    /// The next event, among those that came while a response was awaited.
    pub(crate) async fn event(&mut self) -> EngineEvent {
        if !self.events.is_empty() {
            return self.events.remove(0);
        }
        match self.report().await {
            Report::Event(event) => event,
            Report::Response(id, response) => panic!("{id:?} was answered unasked: {response:?}"),
        }
    }

    /// Waits until the engine is reached, whatever comes before. Returns the incarnation.
    pub(crate) async fn reachable(&mut self) -> Option<String> {
        loop {
            if let EngineEvent::Reachable { incarnation } = self.event().await {
                return incarnation;
            }
        }
    }

    /// The next event must be a loss. Returns the reason.
    pub(crate) async fn unreachable(&mut self) -> String {
        match self.event().await {
            EngineEvent::Unreachable { reason } => reason,
            event => panic!("{event:?}"),
        }
    }

    pub(crate) async fn ask(&mut self, request: Request) -> Response {
        self.ask_all([request]).await.remove(0)
    }

    /// Issues requests at once and returns the responses in the order of the requests.
    pub(crate) async fn ask_all(&mut self, requests: impl IntoIterator<Item = Request>) -> Vec<Response> {
        let mut ids = Vec::new();
        for request in requests {
            self.last += 1;
            self.driver.send(RequestId(self.last), request);
            ids.push(RequestId(self.last));
        }
        let mut responses = HashMap::new();
        while responses.len() < ids.len() {
            match self.report().await {
                Report::Event(event) => self.events.push(event),
                Report::Response(id, response) => {
                    assert_eq!(responses.insert(id, response), None, "answered twice")
                }
            }
        }
        ids.iter().map(|id| responses.remove(id).expect("each request is answered")).collect()
    }

    /// Asks until the answer is another than `Unknown`, as the machines do.
    pub(crate) async fn insist(&mut self, request: &Request) -> Response {
        loop {
            match self.ask(request.clone()).await {
                Response::Unknown => tokio::time::sleep(Duration::from_millis(20)).await,
                response => return response,
            }
        }
    }
}

/// A session's id.
pub(crate) fn session(number: u64) -> SessionId {
    SessionId(number.to_be_bytes())
}

/// The name of the current token of every session here; the other one is zeros.
pub(crate) const NAME_OF_TOKEN: [u8; 16] = [7; 16];

/// A record with a head of this many bytes, at least the names.
pub(crate) fn record(head: usize, saved: Option<&[u8]>, messages: Vec<Bytes>) -> Record {
    let mut bytes = [NAME_OF_TOKEN, [0; 16]].concat();
    bytes.extend((0..head.saturating_sub(32)).map(|at| (at % 251) as u8));
    Record { head: bytes.into(), saved: saved.map(Bytes::copy_from_slice), messages }
}

pub(crate) fn heartbeat(node: NodeId, value: &'static str) -> Request {
    Request::Heartbeat { node, value: value.into() }
}

pub(crate) fn release(number: u64, record: Record) -> Request {
    Request::Release { session: session(number), owner: A, claim: 1, number: 1, record, keep: KEEP }
}

pub(crate) fn claim(number: u64, claimant: NodeId) -> Request {
    Request::Claim {
        session: session(number),
        owner: A,
        disowned: false,
        claimant,
        name: NAME_OF_TOKEN,
        keep: KEEP,
    }
}
