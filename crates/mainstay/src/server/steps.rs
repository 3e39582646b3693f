//! The steps of a connection that was admitted: the handshake of TLS, if there is one, and then HTTP.

use std::time::Duration;

use hyper::server::conn::http1;
use tokio_util::sync::CancellationToken;

use super::connection::HttpConnection;
use super::handle::Server;
#[cfg(feature = "http2")]
use super::http2;
use super::make_service::MakeService;
#[cfg(feature = "tls")]
use super::tls::Tls;
use crate::transport::Stream;

/// What is done with a connection that was admitted.
#[derive(Clone)]
pub(super) struct Steps<M> {
    pub(super) app: M,
    pub(super) server: Server,
    pub(super) http: http1::Builder,
    /// The largest head of a request, for HTTP/2.
    #[cfg_attr(not(feature = "http2"), allow(dead_code, reason = "HTTP/1.1 has it in its builder"))]
    pub(super) head: usize,
    /// The most fields of a request, for HTTP/2.
    #[cfg_attr(not(feature = "http2"), allow(dead_code, reason = "HTTP/1.1 has it in its builder"))]
    pub(super) fields: usize,
    /// How long a connection of HTTP/2 may be without a new request.
    #[cfg_attr(not(feature = "http2"), allow(dead_code, reason = "HTTP/1.1 has it in its builder"))]
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
            let accepted = tokio::select! {
                accepted = tls.accept(stream, &self.server.shared.stats) => accepted,
                () = connection.must_leave(&self.leave) => None,
            };
            let Some(stream) = accepted else { return };
            let connection = connection.over_tls(&stream);
            #[cfg(feature = "http2")]
            let speaks_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let app = self.app.make(address).await;
            #[cfg(feature = "http2")]
            if speaks_http2 {
                let limits = http2::Limits { head: self.head, fields: self.fields, idle: self.keep_alive };
                return http2::serve(connection, stream, app, limits, self.leave).await;
            }
            return connection.serve(stream, app, self.http, self.leave).await;
        }
        let app = self.app.make(address).await;
        connection.serve(stream, app, self.http, self.leave).await;
    }
}
