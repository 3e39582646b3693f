//! A client's opening handshake as it is sent to the backend, and the link that is opened for it.

use std::net::SocketAddr;

use axum::extract::ConnectInfo;
use http::header::{self, HeaderMap, HeaderValue};
use http::{StatusCode, Uri};
use mainstay::Link;
use mainstay::client::{Builder, EndsOn, Event, ReasonCode};
use mainstay::link::Plain;
use mainstay_proto::ws::handshake::Offer;

use crate::forward::{self, Scheme};
use crate::limits;
use crate::links::LinkMonitor;
use crate::profiles::BackendLoss;
use crate::request_body::Upload;
use crate::route::Route;

/// A client's opening handshake, prepared for the backend.
pub(crate) struct ClientRequest {
    /// The client's path, for the log.
    pub(crate) path: Box<str>,
    url: Uri,
    fields: HeaderMap,
}

impl ClientRequest {
    /// Prepares a request.
    ///
    /// # Errors
    /// The path cannot be forwarded.
    pub(crate) fn of(head: &http::request::Parts, route: &Route) -> Result<Self, String> {
        let forwarding = &route.proxy.forwarding;
        let url = forwarding.url(&head.uri)?;
        let peer = head.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0);
        let scheme = Scheme::WebSocket.seen_by_client(&head.extensions);
        let mut fields = forwarding.fields(&head.headers, peer, scheme);
        forward::describe_certificate(&head.extensions, &mut fields);
        fields.remove(header::CONTENT_LENGTH);
        // Copied, because a link keeps them for its whole life.
        Ok(Self { path: head.uri.path().into(), url, fields: forward::copied(&fields) })
    }

    /// Builds the request for the backend.
    pub(crate) fn handshake(
        &self,
        asked: &HeaderMap,
        spelling: http::Extensions,
        offer: &Offer,
    ) -> http::Request<Upload> {
        let mut request = http::Request::new(Upload::empty());
        *request.uri_mut() = self.url.path_and_query().cloned().map_or_else(Uri::default, Uri::from);
        *request.extensions_mut() = spelling;
        let fields = request.headers_mut();
        *fields = self.fields.clone();
        fields.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        for (name, value) in asked.iter().filter(|(name, _)| name.as_str().starts_with("sec-websocket-")) {
            if *name != header::SEC_WEBSOCKET_EXTENSIONS {
                fields.append(name, value.clone());
            }
        }
        if let Some(ours) = offer.extensions() {
            fields.insert(header::SEC_WEBSOCKET_EXTENSIONS, ours);
        }
        request
    }

    /// Opens a link that dials and offers these subprotocols. `continues`: the session had a link elsewhere.
    ///
    /// # Errors
    /// The URL or a subprotocol is invalid.
    pub(crate) fn link(
        self,
        subprotocols: &[String],
        route: &Route,
        continues: bool,
    ) -> Result<Link, String> {
        Ok(self.builder(subprotocols, route, false)?.continues(continues).connect())
    }

    /// Configures a link with the client's path, query, fields and these subprotocols.
    pub(crate) fn builder(
        self,
        subprotocols: &[String],
        route: &Route,
        is_plain: bool,
    ) -> Result<Builder<Plain>, String> {
        let settings = &route.settings;
        let ends_on = match settings.on_backend_loss {
            BackendLoss::Renew => EndsOn::Connection,
            BackendLoss::Keep if is_plain && !settings.closes.keep_plain => EndsOn::Close,
            BackendLoss::Keep => EndsOn::FinalClose,
        };
        let mut builder = Link::builder(&self.url.to_string())
            .map_err(|error| error.to_string())?
            .connector(route.connector.clone())
            .answer_timeout(route.proxy.upstream.answer_timeout)
            .map_err(|error| error.to_string())?
            .deflate(route.deflate_upstream.is_some())
            .ends_on(ends_on)
            .keep_response(false)
            // A near backend may stall for seconds; when it ends, its connection ends visibly.
            .probes_unconfirmed(false)
            .reads_while_closing(true)
            .heartbeat(route.heartbeats.for_path(&self.path))
            .limits(route.limits)
            .budget(route.server.budget().clone())
            .confirm(settings.confirm)
            .guarantee(settings.guarantee)
            .read_ahead(limits::READ_AHEAD)
            .holds_replaced(settings.prologue.is_some());
        if let Some(announces) = settings.prologue.as_ref().and_then(|rules| rules.announces_restart) {
            builder = builder.announces_restart(announces);
        }
        builder = builder.subprotocols(subprotocols).map_err(|error| error.to_string())?;
        for (name, value) in &self.fields {
            builder = builder.header(name.clone(), value.clone());
        }
        if let Some(answers) = route.links.answers_pings() {
            builder = builder.expects_pongs(answers);
        }
        Ok(builder)
    }
}

/// How the backend refused a link.
pub(crate) struct BackendRefusal {
    pub(crate) status: Option<StatusCode>,
    pub(crate) reason: String,
}

/// Waits until the backend accepts a link or refuses it for good, over as many attempts as that takes.
pub(crate) async fn accepted(
    link: &Link,
    monitor: &mut LinkMonitor,
    route: &Route,
) -> Result<(), BackendRefusal> {
    while let Some(event) = link.event().await {
        monitor.observe(&event);
        limits::handle_event(&event, &route.server);
        match event {
            Event::Attached { .. } => return Ok(()),
            Event::Ended(end) => {
                let status = end.code.and_then(ReasonCode::status);
                return Err(BackendRefusal { status, reason: end.reason });
            }
            _ => {}
        }
    }
    Err(BackendRefusal { status: None, reason: "the link ended".into() })
}
