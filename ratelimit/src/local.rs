//! A tower layer that limits requests by itself, with the [`Limiter`] of this process: no service,
//! no socket.
//!
//! What a request counts as is said by a closure, or by the same actions that the proxy's filter
//! takes ([`Descriptors`]).
//!
//! ```
//! use std::sync::Arc;
//! use attache_ratelimit::{Limiter, Rules, limiter::descriptor, local::LocalRateLimitLayer};
//! use axum::{Router, routing::get};
//! use http::request::Parts;
//! # use tower::ServiceExt as _;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let rules = Rules::parse("limits.yaml", "
//! domain: shop
//! descriptors:
//! - key: user                   # each user has a counter of its own
//!   rate_limit: { unit: hour, requests_per_unit: 1 }
//! ")?;
//! let limits = LocalRateLimitLayer::new(
//!     Arc::new(Limiter::in_memory(rules)),
//!     "shop",
//!     |head: &Parts| match head.headers.get("x-user").and_then(|user| user.to_str().ok()) {
//!         Some(user) => vec![descriptor([("user", user)])],
//!         None => Vec::new(), // not limited
//!     },
//! );
//! let app = Router::new().route("/", get(|| async { "hello" })).layer(limits);
//!
//! let ask = || http::Request::get("/").header("x-user", "ann").body(axum::body::Body::empty());
//! assert_eq!(app.clone().oneshot(ask()?).await?.status(), 200);
//! let refused = app.oneshot(ask()?).await?;
//! assert_eq!(refused.status(), 429);
//! assert!(refused.headers().contains_key("retry-after"));
//! # Ok(())
//! # }
//! ```

mod descriptors;
mod respond;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use attache_filter::{Body, BoxError, LocalReply, RequestContext, reply::ReplyForm};
use attache_proto::{common_ratelimit::RateLimitDescriptor, ratelimit::RateLimitRequest};
use attache_service::{Metrics, metrics::Counter};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, request::Parts};
use tower_layer::Layer;
use tower_service::Service;

pub use self::descriptors::Descriptors;
use self::respond::Answer;
use crate::{
    limiter::{Clock, Limiter, SystemClock},
    store::{MemoryStore, Store},
};

/// Says what a request counts as: a closure over its head, or [`Descriptors`].
pub trait Describe: Send + Sync + 'static {
    /// The request's descriptors; without any, it is not limited.
    fn descriptors(&self, head: &Parts, context: &RequestContext) -> Vec<RateLimitDescriptor>;
}

impl<F> Describe for F
where
    F: Fn(&Parts) -> Vec<RateLimitDescriptor> + Send + Sync + 'static,
{
    fn descriptors(&self, head: &Parts, _: &RequestContext) -> Vec<RateLimitDescriptor> {
        self(head)
    }
}

/// What becomes of requests when the limiter's store fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnError {
    /// They pass.
    #[default]
    Allow,
    /// They are refused with 500.
    Deny,
}

/// Limits the requests of a service with a [`Limiter`] of this process.
///
/// A request over a limit is answered 429 with `retry-after`, in the form of gRPC for gRPC
/// callers. Requests with limits that apply get `x-ratelimit-limit`, `-remaining` and `-reset` in
/// their responses, limited or not, as with the proxy's filter.
pub struct LocalRateLimitLayer<S = MemoryStore, C = SystemClock>(Arc<Shared<S, C>>);

/// A service behind a [`LocalRateLimitLayer`].
pub struct LocalRateLimitService<I, S = MemoryStore, C = SystemClock> {
    inner: I,
    shared: Arc<Shared<S, C>>,
}

struct Shared<S, C> {
    limiter: Arc<Limiter<S, C>>,
    domain: String,
    describe: Arc<dyn Describe>,
    headers: bool,
    on_error: OnError,
    ok: Counter,
    over_limit: Counter,
    error: Counter,
}

impl<S, C> LocalRateLimitLayer<S, C> {
    /// Holds requests against the rules of `domain`. Several layers may share a limiter.
    pub fn new(
        limiter: Arc<Limiter<S, C>>,
        domain: impl Into<String>,
        describe: impl Describe,
    ) -> Self {
        let domain = domain.into();
        let [ok, over_limit, error] = counters(&Metrics::default(), &domain);
        Self(Arc::new(Shared {
            limiter,
            domain,
            describe: Arc::new(describe),
            headers: true,
            on_error: OnError::default(),
            ok,
            over_limit,
            error,
        }))
    }

    /// Whether responses get `x-ratelimit-*` headers. Default true.
    #[must_use]
    pub fn ratelimit_headers(self, headers: bool) -> Self {
        self.with(|shared| shared.headers = headers)
    }

    /// What becomes of requests when the store fails, which one in memory never does. Default
    /// [`OnError::Allow`].
    #[must_use]
    pub fn on_error(self, on_error: OnError) -> Self {
        self.with(|shared| shared.on_error = on_error)
    }

    /// Counts into `metrics`, by domain: `attache_ratelimit_local_ok`, `_over_limit` and `_error`.
    #[must_use]
    pub fn metrics(self, metrics: &Metrics) -> Self {
        let [ok, over_limit, error] = counters(metrics, &self.0.domain);
        self.with(|shared| {
            shared.ok = ok;
            shared.over_limit = over_limit;
            shared.error = error;
        })
    }

    fn with(self, change: impl FnOnce(&mut Shared<S, C>)) -> Self {
        let old = &self.0;
        let mut shared = Shared {
            limiter: old.limiter.clone(),
            domain: old.domain.clone(),
            describe: old.describe.clone(),
            headers: old.headers,
            on_error: old.on_error,
            ok: old.ok.clone(),
            over_limit: old.over_limit.clone(),
            error: old.error.clone(),
        };
        change(&mut shared);
        Self(Arc::new(shared))
    }
}

fn counters(metrics: &Metrics, domain: &str) -> [Counter; 3] {
    let counter = |name: &str, help: &str| {
        let name = format!("attache_ratelimit_local_{name}");
        metrics.counter(&name, help, &[("domain", domain)])
    };
    [
        counter("ok", "Requests within their limits."),
        counter("over_limit", "Requests over a limit."),
        counter("error", "Requests that the store gave no decision about."),
    ]
}

impl<S: Store, C: Clock> Shared<S, C> {
    /// What becomes of a request: headers for its response, or its refusal.
    async fn decide(&self, descriptors: Vec<RateLimitDescriptor>) -> Result<HeaderMap, LocalReply> {
        let request = RateLimitRequest {
            domain: self.domain.clone(),
            descriptors,
            hits_addend: 0,
        };
        let rules = self.limiter.rules();
        match self.limiter.decide_by(&rules, &request).await {
            Ok(decision) => {
                let answer = Answer::of(&rules, decision);
                if answer.over {
                    self.over_limit.inc();
                    return Err(answer.refusal(self.headers));
                }
                self.ok.inc();
                Ok(answer.headers(self.headers))
            }
            Err(error) => {
                self.error.inc();
                tracing::debug!(domain = self.domain, %error, "no decision about a request");
                match self.on_error {
                    OnError::Allow => Ok(HeaderMap::new()),
                    OnError::Deny => Err(LocalReply::new(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        crate::client::answer::SERVICE_ERROR,
                    )),
                }
            }
        }
    }
}

impl<I, S, C> Layer<I> for LocalRateLimitLayer<S, C> {
    type Service = LocalRateLimitService<I, S, C>;

    fn layer(&self, inner: I) -> Self::Service {
        LocalRateLimitService {
            inner,
            shared: self.0.clone(),
        }
    }
}

impl<I, S, C, B, R> Service<Request<B>> for LocalRateLimitService<I, S, C>
where
    I: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    I::Future: Send,
    I::Error: Send,
    B: Send + 'static,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
    S: Store,
    C: Clock,
{
    type Response = Response<Body>;
    type Error = I::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, I::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let context = RequestContext::of(&mut request);
        let (parts, body) = request.into_parts();
        let descriptors = self.shared.describe.descriptors(&parts, &context);
        // The instance that was polled ready is the one to use.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let shared = self.shared.clone();
        Box::pin(async move {
            let mut headers = HeaderMap::new();
            if !descriptors.is_empty() {
                let form = ReplyForm::of(&parts.method, &parts.headers);
                headers = match shared.decide(descriptors).await {
                    Ok(headers) => headers,
                    Err(refusal) => return Ok(refusal.into_response(form)),
                };
            }
            let response = inner.call(Request::from_parts(parts, body)).await?;
            let mut response = response.map(Body::new);
            for (name, value) in &headers {
                response.headers_mut().append(name, value.clone());
            }
            Ok(response)
        })
    }
}

impl<S, C> Clone for LocalRateLimitLayer<S, C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<I: Clone, S, C> Clone for LocalRateLimitService<I, S, C> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            shared: self.shared.clone(),
        }
    }
}

impl<S, C> fmt::Debug for LocalRateLimitLayer<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LocalRateLimitLayer")
            .field(&self.0.domain)
            .finish()
    }
}

impl<I: fmt::Debug, S, C> fmt::Debug for LocalRateLimitService<I, S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalRateLimitService")
            .field("domain", &self.shared.domain)
            .field("inner", &self.inner)
            .finish()
    }
}

#[cfg(test)]
mod tests;
