//! A client's opening handshake as it is sent to the backend, and the link that is opened for it.

use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::ConnectInfo;
use http::header::{self, HeaderMap, HeaderValue};
use http::{StatusCode, Uri};
use mainstay::Link;
use mainstay::client::{self as link, BoxError, Builder, EndsOn, Event, ReasonCode};
use mainstay::link::Plain;
use mainstay_proto::ws::handshake::Offer;
use tokio::time::{Instant, sleep_until};

use crate::clients::limits;
use crate::credentials::Admitted;
use crate::observe::spans::LinkSpans;
use crate::protocols::profiles::BackendLoss;
use crate::request::forward::{self, Scheme};
use crate::request::request_body::Upload;
use crate::request::retry_after;
use crate::routes::route::Route;
use crate::upstream::Address;
use crate::upstream::links::{Dialled, LinkMonitor};
use crate::upstream::when_down::Patience;

/// Maximum number of messages of a client that wait for the backend's confirmation.
const QUEUE_MESSAGES: usize = 1024;

/// A client's opening handshake, prepared for the backend.
pub(crate) struct ClientRequest {
    /// The client's path, for the log.
    pub(crate) path: Box<str>,
    url: Uri,
    fields: HeaderMap,
    /// The key of a client that sticks to an address.
    pub(crate) key: Option<u64>,
    /// The spans of the link that is opened for it.
    pub(crate) spans: LinkSpans,
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
        let key = route.proxy.stickiness.key(head);
        let spans = LinkSpans::of(head, &mut fields);
        Ok(Self { path: head.uri.path().into(), url, fields: forward::copied(&fields), key, spans })
    }

    /// Sets what the backend learns of a client that is admitted.
    pub(crate) fn admit(&mut self, admitted: &Admitted) {
        admitted.set_fields(&mut self.fields);
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
        self.spans.begin_attempt(&self.url, fields);
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
        dialled: Option<&Arc<Dialled>>,
    ) -> Result<Link, String> {
        Ok(self.builder(subprotocols, route, false, dialled)?.continues(continues).connect())
    }

    /// Configures a link with the client's path, query, fields and these subprotocols. `dialled`: the link chooses an address
    /// before each attempt.
    pub(crate) fn builder(
        self,
        subprotocols: &[String],
        route: &Route,
        is_plain: bool,
        dialled: Option<&Arc<Dialled>>,
    ) -> Result<Builder<Plain>, String> {
        let settings = &route.settings;
        let ends_on = match settings.on_backend_loss {
            BackendLoss::Renew => EndsOn::Connection,
            BackendLoss::Keep if is_plain && !settings.closes.keep_plain => EndsOn::Close,
            BackendLoss::Keep => EndsOn::FinalClose,
        };
        let mut builder = Link::builder(&self.url.to_string())
            .map_err(|error| error.to_string())?
            .connector(
                route.proxy.upstream.address(0).map(|first| first.connector.clone()).unwrap_or_default(),
            )
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
            .queue(QUEUE_MESSAGES, route.when_down.queue_bytes)
            .map_err(|error| error.to_string())?
            .holds_replaced(settings.prologue.is_some());
        if let Some(announces) = settings.prologue.as_ref().and_then(|rules| rules.announces_restart) {
            builder = builder.announces_restart(announces);
        }
        builder = builder.subprotocols(subprotocols).map_err(|error| error.to_string())?;
        for (name, value) in &self.fields {
            builder = builder.header(name.clone(), value.clone());
        }
        if dialled.is_some() || self.spans.are_recorded() {
            builder = builder.request(self.each_attempt(route, dialled.cloned()));
        }
        if let Some(answers) = route.links.answers_pings() {
            builder = builder.expects_pongs(answers);
        }
        Ok(builder)
    }
}

type Attempt = Ready<Result<link::Request, BoxError>>;

impl ClientRequest {
    /// Returns what makes the request of each attempt: chooses the address, where there are several, and adds its trace.
    fn each_attempt(
        &self,
        route: &Route,
        dialled: Option<Arc<Dialled>>,
    ) -> impl Fn() -> Attempt + Send + Sync + use<> {
        let (upstream, links, key) = (Arc::clone(&route.proxy.upstream), route.links.clone(), self.key);
        let (target, only, spans) =
            (self.url.path_and_query().cloned(), self.url.clone(), self.spans.clone());
        let choose = move || -> Result<link::Request, BoxError> {
            let Some(dialled) = &dialled else { return Ok(link::Request::default().url(only.clone())) };
            let number = dialled.begin(|tried| links.choose(key, tried));
            let Address { url, connector, .. } = upstream.address(number).ok_or("the address is gone")?;
            let mut parts = url.clone().into_parts();
            parts.path_and_query.clone_from(&target);
            Ok(link::Request::default().url(Uri::from_parts(parts)?).connector(connector.clone()))
        };
        move || {
            let mut chosen = choose();
            if let Ok(link::Request { url: Some(url), headers, .. }) = &mut chosen {
                spans.begin_attempt(url, headers);
            }
            ready(chosen)
        }
    }
}

/// How the backend refused a link.
pub(crate) struct BackendRefusal {
    pub(crate) status: Option<StatusCode>,
    pub(crate) reason: String,
    /// No address was reached, and the client does not wait for one.
    pub(crate) is_away: bool,
}

/// Waits until the backend accepts a link or refuses it for good, over as many attempts as that takes and the route allows.
pub(crate) async fn accepted(
    link: &Link,
    monitor: &mut LinkMonitor,
    route: &Route,
) -> Result<(), BackendRefusal> {
    let mut patience = Patience::new(&route.when_down);
    patience.handle_opening(Instant::now().into_std());
    loop {
        let too_long = async {
            match patience.poll_timeout(Instant::now().into_std()) {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            biased;
            event = link.event() => event,
            () = too_long => return Err(BackendRefusal::away()),
        };
        let Some(event) = event else {
            return Err(BackendRefusal { status: None, reason: "the link ended".into(), is_away: false });
        };
        monitor.observe(&event);
        limits::handle_event(&event, &route.server);
        match event {
            Event::Attached { .. } => return Ok(()),
            Event::Ended(end) => {
                let status = end.code.and_then(ReasonCode::status);
                return Err(BackendRefusal { status, reason: end.reason, is_away: false });
            }
            Event::AttemptFailed { .. } if !monitor.tries_another() => patience.handle_down(),
            _ => {}
        }
    }
}

impl BackendRefusal {
    fn away() -> Self {
        Self { status: None, reason: retry_after::close_reason(), is_away: true }
    }
}
