//! One connection of a client while it speaks HTTP: the handshake of TLS, and then requests until it is upgraded or ends.

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
#[cfg(feature = "http2")]
use super::http2;
use super::limits::Permit;
use super::open::HeadDuration;
use super::serve::MakeService;
use super::stats::Counters;
use super::target;
#[cfg(feature = "tls")]
use super::tls::{ClientCertificates, Tls};
use super::write_timeout::WriteTimeout;
use crate::subprotocol;
use crate::transport::Stream;

/// How long a connection that was accepted without a request yet has for it, when the server goes away.
pub(super) const LAST_REQUEST: Duration = Duration::from_millis(500);

/// What is done with a connection that was admitted.
#[derive(Clone)]
pub(super) struct Steps<M> {
    pub(super) app: M,
    pub(super) server: Server,
    pub(super) http: http1::Builder,
    /// The largest head of a request, for HTTP/2.
    #[cfg_attr(not(feature = "http2"), expect(dead_code, reason = "HTTP/1.1 has it in its builder"))]
    pub(super) head: usize,
    /// How long a connection of HTTP/2 may be without a new request.
    #[cfg_attr(not(feature = "http2"), expect(dead_code, reason = "HTTP/1.1 has it in its builder"))]
    pub(super) keep_alive: Duration,
    pub(super) leave: CancellationToken,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<Tls>,
}

impl<M> Steps<M> {
    pub(super) async fn serve<I, A>(self, connection: HttpConnection, stream: I, address: A)
    where
        I: Stream + 'static,
        M: MakeService<A>,
    {
        connection.server.shared.gate.openings.handle_served(connection.accepted.elapsed());
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            let leave = async {
                self.leave.cancelled().await;
                tokio::time::sleep(LAST_REQUEST).await;
            };
            let accepted = tokio::select! {
                accepted = tls.accept(stream, &self.server.shared.stats) => accepted,
                () = leave => None,
            };
            let Some(stream) = accepted else { return };
            let connection = connection.over_tls(&stream);
            #[cfg(feature = "http2")]
            let speaks_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let app = self.app.make(address).await;
            #[cfg(feature = "http2")]
            if speaks_http2 {
                let limits = http2::Limits { head: self.head, idle: self.keep_alive };
                return http2::serve(connection, stream, app, limits, self.leave).await;
            }
            return connection.serve(stream, app, self.http, self.leave).await;
        }
        let app = self.app.make(address).await;
        connection.serve(stream, app, self.http, self.leave).await;
    }
}

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
    fn over_tls<S>(self, stream: &tokio_rustls::server::TlsStream<S>) -> Self {
        let certificates = ClientCertificates::of(stream);
        Self { accepted: Instant::now(), is_encrypted: true, certificates, ..self }
    }

    async fn serve<I, S>(self, stream: I, app: S, http: http1::Builder, leave: CancellationToken)
    where
        I: Stream + 'static,
        S: Service<Request, Response: IntoResponse, Error = Infallible> + Clone,
    {
        let shared = &self.server.shared;
        let deadline = shared.config.opening_deadline;
        let service = service_fn(|request| self.answer(app.clone(), request));
        let io = TokioIo::new(WriteTimeout::new(stream));
        let mut served = http.serve_connection(io, service).with_upgrades();
        let silent = async {
            tokio::time::sleep_until(self.accepted + deadline).await;
            if self.has_requested.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let leave = async {
            leave.cancelled().await;
            if !self.has_requested.load(Ordering::Relaxed) {
                // A request may be in flight, or here and not read: if the connection ended now, the client would see a reset.
                tokio::time::sleep(LAST_REQUEST).await;
            }
        };
        let (mut silent, mut leave, mut leaving) = (pin!(silent), pin!(leave), false);
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
        if !self.has_requested.load(Ordering::Relaxed) {
            Counters::add(&shared.stats.openings_failed, 1);
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
