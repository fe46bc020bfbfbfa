//! The innermost service: does what the route says. Behind all policies.

mod attempt;
mod connect;
mod forward;
mod head;
mod innermost;
mod late;
mod replies;

use std::sync::Arc;

use attache_filter::{Body, LocalReply, RequestContext, context::ResponseFlag, reply::ReplyForm};
use http::{Response, StatusCode, request};

pub(crate) use attempt::{note_attempt, propagate, timed};
pub(crate) use forward::Answered;
pub(crate) use head::{EXPECTED_TIMEOUT, fit, millis, say_empty};
pub(crate) use innermost::{Innermost, Rerouted};
pub(crate) use late::Late;

use crate::{
    body::ReplyBody,
    mirror::Mirrors,
    plan::ListenerPlan,
    route::{Action, Changes, RouteEntry, RouteTable},
    upstream::Cluster,
};
use forward::Forwarding;
use late::Changed;
use replies::{direct_response, local, redirect};

/// Routes and upstreams of one worker.
pub(crate) struct Router {
    pub(crate) routes: Arc<RouteTable>,
    pub(crate) clusters: Vec<Arc<Cluster>>,
    pub(crate) mirrors: Mirrors,
    /// Some listener logs accesses: say which endpoint answered.
    pub(crate) notes_upstream: bool,
}

/// A request on its way to the upstream. Boxed by those who pass it on: the steps of its way are
/// futures within futures, each with room for what it is given.
pub(crate) struct Received {
    pub(crate) parts: request::Parts,
    pub(crate) body: Body,
}

/// The route that was picked for the request on its way through the policies; an extension of
/// the request.
#[derive(Clone)]
pub(crate) struct Picked(pub(crate) Option<Arc<RouteEntry>>);

impl Router {
    /// Picks the route and tells the context.
    pub(crate) fn pick(
        &self,
        parts: &request::Parts,
        context: &RequestContext,
    ) -> Option<Arc<RouteEntry>> {
        let entry = self.routes.pick(parts, context.id).cloned();
        context.set_route(entry.as_ref().map(|entry| entry.route.clone()));
        entry
    }

    /// Counts what a layer has decided as a response of the cluster, where the layer says so.
    fn charge(&self, context: &RequestContext) {
        let Some(status) = context.cluster_charge() else {
            return;
        };
        let route = context.route();
        let name = route.as_ref().and_then(|route| route.cluster.as_ref());
        let mut clusters = self.clusters.iter();
        if let Some(cluster) = name.and_then(|name| clusters.find(|c| c.plan.name == *name)) {
            cluster.stats.count(status);
        }
    }

    /// Answers a request as `entry` says, for `listener`.
    pub(crate) async fn answer(
        &self,
        listener: &ListenerPlan,
        entry: Option<Arc<RouteEntry>>,
        context: Arc<RequestContext>,
        received: Box<Received>,
    ) -> Response<ReplyBody> {
        let Some(entry) = entry else {
            let form = ReplyForm::of(&received.parts.method, &received.parts.headers);
            context.add_flag(ResponseFlag::NoRouteFound);
            return local(
                &context,
                form,
                LocalReply::new(StatusCode::NOT_FOUND, "route_not_found"),
            );
        };
        match entry.changes.as_deref() {
            Some(changes) if !changes.response.is_empty() => {
                let act = self.act_and_change(listener, &entry, changes, &context, received);
                // Boxed: others need not carry its state.
                Box::pin(act).await
            }
            _ => self.act(listener, &entry, &context, received, None).await,
        }
    }

    /// Answers a request, and makes the changes of its route to the response.
    async fn act_and_change(
        &self,
        listener: &ListenerPlan,
        entry: &RouteEntry,
        changes: &Changes,
        context: &Arc<RequestContext>,
        received: Box<Received>,
    ) -> Response<ReplyBody> {
        let mut sent = None;
        let remembered = changes.remembers_request().then_some(&mut sent);
        let response = self
            .act(listener, entry, context, received, remembered)
            .await;
        let (mut parts, body) = response.into_parts();
        changes.response(&mut parts, sent.as_deref(), context);
        parts.extensions.insert(Changed);
        Response::from_parts(parts, body)
    }

    /// Does what the route says. `remembered` gets the head of the request as the upstream sees
    /// it.
    async fn act(
        &self,
        listener: &ListenerPlan,
        entry: &RouteEntry,
        context: &Arc<RequestContext>,
        mut received: Box<Received>,
        remembered: Option<&mut Option<Box<request::Parts>>>,
    ) -> Response<ReplyBody> {
        let form = ReplyForm::of(&received.parts.method, &received.parts.headers);
        match &entry.action {
            Action::Forward(forward) => {
                let by = Forwarding {
                    listener,
                    entry,
                    forward,
                    context,
                    form,
                };
                self.forward(&by, received, remembered).await
            }
            Action::Direct(direct) => {
                context.keep_head(&received.parts);
                let response = direct_response(direct, entry, &received.parts, context, form);
                remember(remembered, &mut received.parts);
                response
            }
            Action::Redirect(to) => {
                context.keep_head(&received.parts);
                let response = redirect(to, entry, &received.parts, context, form);
                remember(remembered, &mut received.parts);
                response
            }
            Action::NoCluster(status) => {
                context.add_flag(ResponseFlag::NoClusterFound);
                local(context, form, LocalReply::new(*status, "cluster_not_found"))
            }
        }
    }
}

/// Keeps the head of a request for who asks for it.
fn remember(remembered: Option<&mut Option<Box<request::Parts>>>, parts: &mut request::Parts) {
    if let Some(remembered) = remembered {
        *remembered = Some(Box::new(parts.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of what a function gives.
    fn given<'r, R>(
        _: impl FnOnce(
            &'r Router,
            &'r ListenerPlan,
            Option<Arc<RouteEntry>>,
            Arc<RequestContext>,
            Box<Received>,
        ) -> R,
    ) -> usize {
        size_of::<R>()
    }

    #[test]
    fn a_request_on_its_way_holds_no_more_than_it_needs() {
        let answering = given(Router::answer);
        assert!(answering <= 1800, "{answering}");
    }
}
