//! One connection of a client while it speaks HTTP/1.1: requests until it is upgraded or ends.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Method, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::handle::Server;
use super::limits::Permit;
use super::open::HeadDuration;
use super::stats::Counters;
use super::target;
#[cfg(feature = "tls")]
use super::tls::ClientCertificates;
use super::write_timeout::WriteTimeout;
use crate::subprotocol;
use crate::transport::Stream;

/// How long a connection that was accepted without a request yet has for it, when the server goes away.
pub(super) const LAST_REQUEST: Duration = Duration::from_millis(500);

/// An extension of each request whose client's connection is encrypted: by [`Serve::tls`](super::Serve::tls), or by the proxy
/// in front, if its PROXY header says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encrypted;

/// One connection, for as long as it speaks HTTP.
pub(super) struct HttpConnection {
    /// The client's; `None` if it does not come over IP.
    pub(super) address: Option<SocketAddr>,
    permit: Option<Arc<Permit>>,
    pub(super) server: Server,
    /// When its request could begin.
    pub(super) accepted: Instant,
    pub(super) is_encrypted: bool,
    #[cfg(feature = "tls")]
    certificates: Option<ClientCertificates>,
    /// Whether a request has come.
    pub(super) has_requested: AtomicBool,
}

impl HttpConnection {
    /// Counts a connection of this client. `None`: it is over a limit and must be dropped.
    pub(super) fn admit(address: Option<SocketAddr>, accepted: Instant, server: &Server) -> Option<Self> {
        let permit = server.shared.gate.arrive(ip(address), &server.shared.stats).ok()?;
        Some(Self {
            address,
            permit: permit.map(Arc::new),
            server: server.clone(),
            accepted,
            is_encrypted: false,
            #[cfg(feature = "tls")]
            certificates: None,
            has_requested: AtomicBool::new(false),
        })
    }

    /// Notes what the handshake of TLS brought. The handshake had a deadline of its own.
    #[cfg(feature = "tls")]
    pub(super) fn over_tls<S>(self, stream: &tokio_rustls::server::TlsStream<S>) -> Self {
        let certificates = ClientCertificates::of(stream);
        Self { accepted: Instant::now(), is_encrypted: true, certificates, ..self }
    }

    pub(super) async fn serve<I, S>(self, stream: I, app: S, http: http1::Builder, leave: CancellationToken)
    where
        I: Stream + 'static,
        S: Service<Request, Response: IntoResponse, Error = Infallible> + Clone,
    {
        let service = service_fn(|request| self.answer(app.clone(), request));
        let io = TokioIo::new(WriteTimeout::new(stream));
        let mut served = http.serve_connection(io, service).with_upgrades();
        let (mut silent, mut leave) = (pin!(self.stayed_silent()), pin!(self.must_leave(&leave)));
        let mut leaving = false;
        loop {
            tokio::select! {
                result = &mut served => {
                    if let Err(error) = result {
                        tracing::debug!(%error, address = ?self.address, "HTTP connection ended");
                        if error.is_user() && let Some(parts) = served.into_parts() {
                            parts.io.into_inner().reset();
                        }
                    }
                    break;
                }
                () = silent.as_mut() => break,
                () = leave.as_mut(), if !leaving => {
                    leaving = true;
                    Pin::new(&mut served).graceful_shutdown();
                }
            }
        }
        self.note_silence();
    }

    /// Waits until the opening deadline has passed without a request.
    pub(super) async fn stayed_silent(&self) {
        tokio::time::sleep_until(self.accepted + self.server.shared.config.opening_deadline).await;
        if self.has_requested.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the connection has to end because the server goes away.
    pub(super) async fn must_leave(&self, leave: &CancellationToken) {
        leave.cancelled().await;
        if !self.has_requested.load(Ordering::Relaxed) {
            // A request may be in flight, or here and not read: if the connection ended now, the client would see a reset.
            tokio::time::sleep(LAST_REQUEST).await;
        }
    }

    /// Counts a connection that ended without a request.
    pub(super) fn note_silence(&self) {
        if !self.has_requested.load(Ordering::Relaxed) {
            Counters::add(&self.server.shared.stats.openings_failed, 1);
            tracing::debug!(address = ?self.address, "no request within the opening deadline");
        }
    }

    /// Returns what counts a request. A WebSocket in HTTP/2 counts like a connection; other requests belong to theirs. The
    /// error is a connection too many.
    fn permit_of(&self, request: &hyper::Request<Incoming>) -> Result<Option<Arc<Permit>>, ()> {
        if request.version() != Version::HTTP_2 || request.method() != Method::CONNECT {
            return Ok(self.permit.clone());
        }
        let shared = &self.server.shared;
        Ok(shared.gate.arrive(ip(self.address), &shared.stats)?.map(Arc::new))
    }

    pub(super) async fn answer<S>(
        &self,
        mut app: S,
        request: hyper::Request<Incoming>,
    ) -> Result<Response, Infallible>
    where
        S: Service<Request, Response: IntoResponse, Error = Infallible>,
    {
        let is_first = !self.has_requested.swap(true, Ordering::Relaxed);
        let Ok(permit) = self.permit_of(&request) else {
            return Ok(StatusCode::SERVICE_UNAVAILABLE.into_response());
        };
        let (resumes, stats) = (|| subprotocol::is_offered(request.headers()), &self.server.shared.stats);
        if let Some(refused) = permit.as_ref().and_then(|permit| permit.refused(resumes, stats)) {
            return Ok(refused.into_response());
        }
        let (mut head, body) = request.into_parts();
        if let Err(line) = target::settle(&mut head) {
            Counters::add(&self.server.shared.stats.openings_failed, 1);
            let headers = [(header::CONNECTION, HeaderValue::from_static("close"))];
            return Ok((StatusCode::BAD_REQUEST, headers, format!("{line}\n")).into_response());
        }
        let mut request = Request::from_parts(head, Body::new(body));
        let is_upgrade = request.headers().contains_key(header::UPGRADE);
        let extensions = request.extensions_mut();
        if let Some(address) = self.address {
            extensions.insert(ConnectInfo(address));
        }
        if self.is_encrypted {
            extensions.insert(Encrypted);
        }
        #[cfg(feature = "tls")]
        if let Some(certificates) = &self.certificates {
            extensions.insert(certificates.clone());
        }
        extensions.insert(self.server.clone());
        // On a kept-alive connection each request has the full deadline again.
        extensions.insert(HeadDuration(if is_first { self.accepted.elapsed() } else { Duration::ZERO }));
        if let Some(permit) = permit {
            // The permit follows the connection, if that is upgraded.
            extensions.insert(permit);
        }
        poll_fn(|cx| app.poll_ready(cx)).await?;
        let mut response = app.call(request).await?.into_response();
        let is_refused_upgrade = is_upgrade && response.status() != StatusCode::SWITCHING_PROTOCOLS;
        if is_refused_upgrade || (!is_upgrade && self.server.shared.is_draining()) {
            // A proxy may pass frames after a refused upgrade; they must not be parsed as requests.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// Connections that do not come over IP count as one address.
fn ip(address: Option<SocketAddr>) -> IpAddr {
    address.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip())
}
