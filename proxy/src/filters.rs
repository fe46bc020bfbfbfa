//! The stack of policies of a listener, read top to bottom: the first named is the outermost.
//!
//! This is the one place that knows which policies there are.

use std::{collections::HashMap, convert::Infallible, fmt, pin::Pin, sync::Arc};

use attache_filter::{Body, Channels, RequestContext, on_failure::OnFailure};
use attache_service::Metrics;
use http::{Request, Response};
use tower::Service;

use crate::plan::Limits;

/// What a policy's service returns.
pub type PolicyFuture =
    Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send + 'static>>;

/// A policy that can stand in a listener's stack.
pub trait Policy: fmt::Debug + Send + Sync {
    /// Wraps `inner`. Called once per worker and listener.
    fn layer(&self, inner: Stack, site: &Site<'_>) -> Stack;
    /// The clusters it calls.
    fn clusters(&self) -> Vec<String>;
    /// What becomes of requests when its service fails; `None` for one without a service.
    fn on_failure(&self) -> Option<OnFailure>;
    /// Whether it is off, except on routes that have settings for it.
    fn is_off(&self) -> bool {
        false
    }
}

/// Where a policy's layer stands: in one worker's stack of one listener.
#[derive(Clone, Copy)]
pub struct Site<'s> {
    /// The worker's channels to policy services.
    pub channels: &'s Channels,
    /// The process's metrics.
    pub metrics: &'s Metrics,
    /// Bytes of one body that a layer may hold back (`per_connection_buffer_limit_bytes`).
    pub buffer_limit: usize,
    /// Bounds on what the clients of the listener may do; policies that change requests keep to
    /// those on headers.
    pub limits: Limits,
}

/// All configured policies, by name.
#[derive(Debug, Default, Clone)]
pub struct FilterPlans(HashMap<Arc<str>, Arc<dyn Policy>>);

impl FilterPlans {
    /// Adds the policy `name`.
    pub fn insert(&mut self, name: impl Into<Arc<str>>, policy: Arc<dyn Policy>) {
        self.0.insert(name.into(), policy);
    }

    /// The policy `name`.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Policy>> {
        self.0.get(name)
    }

    /// Every cluster that some policy calls.
    pub fn clusters(&self) -> impl Iterator<Item = String> {
        self.0.values().flat_map(|policy| policy.clusters())
    }

    /// The stack of the policies `names` around `innermost`, with what `between` puts between
    /// two policies; nothing when there are none.
    pub(crate) fn stack(
        &self,
        names: &[Arc<str>],
        innermost: Stack,
        between: impl Fn(Stack) -> Stack,
        site: &Site<'_>,
    ) -> Option<Stack> {
        let policies = names.iter().rev().filter_map(|name| self.get(name));
        policies.fold(None, |inner, policy| {
            let inner = match inner {
                Some(inner) => between(inner),
                None => innermost.clone(),
            };
            Some(policy.layer(inner, site))
        })
    }
}

/// A policy that is off, except on routes that have settings for it (Envoy's `HttpFilter.disabled`).
#[derive(Debug)]
pub(crate) struct OnRoutes {
    name: Arc<str>,
    policy: Arc<dyn Policy>,
}

impl OnRoutes {
    pub(crate) fn new(name: &str, policy: Arc<dyn Policy>) -> Self {
        Self {
            name: name.into(),
            policy,
        }
    }
}

impl Policy for OnRoutes {
    fn layer(&self, inner: Stack, site: &Site<'_>) -> Stack {
        Stack::of(Switch {
            name: self.name.clone(),
            on: self.policy.layer(inner.clone(), site),
            off: inner,
        })
    }

    fn clusters(&self) -> Vec<String> {
        self.policy.clusters()
    }

    fn on_failure(&self) -> Option<OnFailure> {
        self.policy.on_failure()
    }

    fn is_off(&self) -> bool {
        true
    }
}

/// Asks the route whether a policy is on.
struct Switch {
    name: Arc<str>,
    on: Stack,
    off: Stack,
}

impl Handle for Switch {
    fn call(&self, request: Request<Body>) -> PolicyFuture {
        let context = request.extensions().get::<Arc<RequestContext>>();
        let route = context.and_then(|context| context.route());
        match route.is_some_and(|route| route.filters.has(&self.name)) {
            true => self.on.handle(request),
            false => self.off.handle(request),
        }
    }
}

/// A stack of policies, or the innermost service. Cheap to clone.
#[derive(Clone)]
pub struct Stack(Arc<dyn Handle>);

/// What a stack is made of.
pub(crate) trait Handle: Send + Sync {
    fn call(&self, request: Request<Body>) -> PolicyFuture;
}

struct Cloned<S>(S);

impl<S> Handle for Cloned<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = PolicyFuture>
        + Clone
        + Send
        + Sync,
{
    fn call(&self, request: Request<Body>) -> PolicyFuture {
        self.0.clone().call(request)
    }
}

impl Stack {
    /// From a service that is always ready and already boxes its future.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<
                Request<Body>,
                Response = Response<Body>,
                Error = Infallible,
                Future = PolicyFuture,
            > + Clone
            + Send
            + Sync
            + 'static,
    {
        Self(Arc::new(Cloned(service)))
    }

    pub(crate) fn of(handle: impl Handle + 'static) -> Self {
        Self(Arc::new(handle))
    }

    pub(crate) fn handle(&self, request: Request<Body>) -> PolicyFuture {
        self.0.call(request)
    }
}

impl Service<Request<Body>> for Stack {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = PolicyFuture;

    fn poll_ready(
        &mut self,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> PolicyFuture {
        self.handle(request)
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stack")
    }
}
