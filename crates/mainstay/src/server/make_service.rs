//! What `serve` accepts as an application: a router, or what makes a service for each connection.

use std::convert::Infallible;

use axum::Router;
use axum::extract::Request;
use axum::extract::connect_info::{Connected, IntoMakeServiceWithConnectInfo};
use axum::response::IntoResponse;
use axum::routing::IntoMakeService;
use tower_service::Service;

/// Makes the service of each connection. For any other service, axum's [`ServiceExt`](axum::ServiceExt) makes an
/// `IntoMakeService`.
pub trait MakeService<A>: Clone + Send + Sync + 'static {
    /// The service that answers the requests of one connection.
    type Service: Service<Request, Response: IntoResponse, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static;

    /// Returns the service for a connection from this address.
    fn make(self, address: A) -> impl Future<Output = Self::Service> + Send;
}

impl<A: Send> MakeService<A> for Router {
    type Service = Self;

    async fn make(self, _: A) -> Self {
        self
    }
}

impl<A: Send, S> MakeService<A> for IntoMakeService<S>
where
    S: Service<Request, Response: IntoResponse, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    type Service = S;

    async fn make(mut self, address: A) -> S {
        match self.call(address).await {
            Ok(service) => service,
            Err(never) => match never {},
        }
    }
}

impl<A: Send, S, C> MakeService<A> for IntoMakeServiceWithConnectInfo<S, C>
where
    S: Service<Request, Response: IntoResponse, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    C: Connected<A>,
    Self: Service<
            A,
            Response: Service<Request, Response: IntoResponse, Error = Infallible, Future: Send>
                          + Clone
                          + Send
                          + Sync
                          + 'static,
            Error = Infallible,
            Future: Send,
        >,
{
    type Service = <Self as Service<A>>::Response;

    async fn make(mut self, address: A) -> Self::Service {
        match self.call(address).await {
            Ok(service) => service,
            Err(never) => match never {},
        }
    }
}
