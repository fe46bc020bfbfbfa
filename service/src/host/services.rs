//! Which service a call is for.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use http::{Request, Response};
use hyper::body::Incoming;
use tonic::{body::Body, server::NamedService, service::Routes};
use tower::{Service, ServiceExt as _};

/// How a call is answered.
pub(super) type Answering =
    Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// The services of a host. Cheap to clone.
///
/// Those that are known by name are few and asked often: a look along the list, and one box for
/// the answer, is all that lies between the connection and them. Everything else takes tonic's
/// router.
#[derive(Clone)]
pub(super) struct Services {
    routes: Routes,
    named: Arc<Vec<Named>>,
}

#[derive(Clone)]
struct Named {
    name: &'static str,
    service: Arc<dyn Serve>,
}

/// A service of any type.
trait Serve: Send + Sync {
    fn answer(&self, request: Request<Body>) -> Answering;
}

impl<S> Serve for S
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    fn answer(&self, request: Request<Body>) -> Answering {
        let mut service = self.clone();
        match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Box::pin(service.call(request)),
            Poll::Ready(Err(never)) => match never {},
            Poll::Pending => Box::pin(service.oneshot(request)),
        }
    }
}

impl Services {
    pub(super) fn new(routes: Routes) -> Self {
        Self {
            routes,
            named: Arc::default(),
        }
    }

    /// Those that take tonic's router.
    pub(super) fn routes(&self) -> Routes {
        self.routes.clone()
    }

    /// The same with other routes, ready to serve.
    pub(super) fn with_routes(&self, routes: Routes) -> Self {
        Self {
            routes: routes.prepare(),
            named: self.named.clone(),
        }
    }

    pub(super) fn add<S>(&mut self, service: S)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        let service = Arc::new(service);
        Arc::make_mut(&mut self.named).push(Named {
            name: S::NAME,
            service,
        });
    }
}

impl hyper::service::Service<Request<Incoming>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        let name = service_of(request.uri().path());
        match self.named.iter().find(|named| named.name == name) {
            Some(named) => named.service.answer(request.map(Body::new)),
            None => Box::pin(self.routes.clone().oneshot(request)),
        }
    }
}

/// `package.Service` of `/package.Service/Method`.
fn service_of(path: &str) -> &str {
    let name = path.strip_prefix('/').unwrap_or_default();
    name.split_once('/').map_or("", |(name, _)| name)
}
