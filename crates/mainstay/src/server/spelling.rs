//! Spells the field names of the 101 response as RFC 6455 does.
//!
//! Names are case-insensitive, and some clients look for `Sec-WebSocket-Accept` all the same. hyper writes lower case, or
//! `Sec-Websocket-Accept`; it keeps a spelling that it has read, in an extension that only it can make. So this module has
//! hyper read one message with these names, once.

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::OnceLock;
use std::task::{Context, Waker};

use axum::body::Body;
use http::{Extensions, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWrite;

const SPELLED: &[u8] = b"GET / HTTP/1.1\r\n\
    Connection: x\r\n\
    Upgrade: x\r\n\
    Sec-WebSocket-Accept: x\r\n\
    Sec-WebSocket-Protocol: x\r\n\
    Sec-WebSocket-Extensions: x\r\n\
    Date: x\r\n\r\n";

/// Returns extensions that make hyper spell the fields of a response as the RFC does.
pub(super) fn of_rfc_6455() -> Extensions {
    static READ: OnceLock<Extensions> = OnceLock::new();
    READ.get_or_init(read).clone()
}

fn read() -> Extensions {
    let found = RefCell::new(Extensions::new());
    let (mut peer, ours) = tokio::io::duplex(SPELLED.len());
    let mut cx = Context::from_waker(Waker::noop());
    let written = Pin::new(&mut peer).poll_write(&mut cx, SPELLED);
    debug_assert!(written.is_ready(), "the pipe has room for all of it");
    let service = service_fn(|request: Request<Incoming>| {
        found.replace(request.into_parts().0.extensions);
        std::future::ready(Ok::<_, Infallible>(Response::new(Body::empty())))
    });
    let mut http = http1::Builder::new();
    let reading = http.preserve_header_case(true).serve_connection(TokioIo::new(ours), service);
    // The whole message is there: one poll calls the service.
    let _ = pin!(reading).poll(&mut cx);
    let mut found = found.take();
    found.remove::<hyper::upgrade::OnUpgrade>();
    found
}
