//! The router in a policy stack: behind the last policy, and between two of them.

use std::{convert::Infallible, future::poll_fn, pin::pin, sync::Arc, task::Poll};

use attache_filter::{Body, RequestContext};
use http::{Request, Response};
use tower::Service;

use super::{Picked, Received, Router, replies::refuse_upgrade};
use crate::{
    filters::{Handle, PolicyFuture, Stack},
    plan::ListenerPlan,
};

/// Between two policies: picks the route again when the one outside changed what it depends on,
/// so that those inside go by the settings of the new one.
pub(crate) struct Rerouted {
    pub(crate) router: Arc<Router>,
    pub(crate) inner: Stack,
}

impl Handle for Rerouted {
    fn call(&self, mut request: Request<Body>) -> PolicyFuture {
        let context = request.extensions().get::<Arc<RequestContext>>();
        if let Some(context) = context.filter(|context| context.is_route_cleared()) {
            let context = context.clone();
            let (mut parts, body) = request.into_parts();
            let entry = self.router.pick(&parts, &context);
            parts.extensions.insert(Picked(entry));
            request = Request::from_parts(parts, body);
        }
        self.inner.handle(request)
    }
}

/// The router as the innermost service of a policy stack.
#[derive(Clone)]
pub(crate) struct Innermost {
    pub(crate) router: Arc<Router>,
    pub(crate) listener: Arc<ListenerPlan>,
}

impl Innermost {
    pub(crate) fn stack(self) -> Stack {
        Stack::new(self)
    }
}

impl Service<Request<Body>> for Innermost {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = PolicyFuture;

    fn poll_ready(&mut self, _cx: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> PolicyFuture {
        let Self { router, listener } = self.clone();
        let context = RequestContext::of(&mut request);
        let (mut parts, body) = request.into_parts();
        if context.is_answered() {
            context.keep_head(&parts);
        }
        router.charge(&context);
        Box::pin(async move {
            let entry = match parts.extensions.remove::<Picked>() {
                Some(Picked(entry)) if !context.is_route_cleared() => entry,
                _ => router.pick(&parts, &context),
            };
            let received = Box::new(Received { parts, body });
            let mut answer = pin!(async {
                // A policy may have led the request to a route with other rules.
                match &entry {
                    Some(entry)
                        if !entry.lets_upgrade(&received.parts.headers, &listener.upgrades) =>
                    {
                        refuse_upgrade(&context, &received.parts)
                    }
                    _ => {
                        let context = context.clone();
                        router.answer(&listener, entry, context, received).await
                    }
                }
            });
            let response = poll_fn(|cx| {
                // A layer answers: at once, or while the upstream is waited for.
                if let Some(reply) = context.take_reply() {
                    return Poll::Ready(reply);
                }
                answer.as_mut().poll(cx).map(|r| r.map(Body::new))
            })
            .await;
            context.begin_response();
            Ok(response)
        })
    }
}
