//! Acting on what a check came to.

use std::{borrow::Cow, time::Duration};

use attache_filter::{
    Body, LocalReply, RequestContext, calls::FilterKind, changes::Snapshot, context::ResponseFlag,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, request};

use super::{
    answer::{Answer, Effects, Invalid, Reply, Verdict},
    apply::{self, ResponseOutcome},
    ask::Asked,
    layer::{Decision, ResponseChanges, Shared, answer_with},
    log::{self, ShadowDecision},
    plan::ClearRoute,
    stats::Decision as Counted,
};

/// The namespace of dynamic metadata that answers go to.
pub const METADATA_NAMESPACE: &str = "envoy.filters.http.ext_authz";

const FAILURE_MODE_ALLOWED: HeaderName =
    HeaderName::from_static("x-envoy-auth-failure-mode-allowed");

impl Shared {
    /// The filter is off for this request.
    pub(super) fn unchecked(&self, request: Request<Body>, context: &RequestContext) -> Decision {
        let filter = &*self.filter;
        self.stats.disabled.inc();
        if !filter.deny_at_disable {
            return Decision::Pass(request, Vec::new());
        }
        let status = filter.reading.status_on_error;
        if filter.shadow.is_some() {
            context.add_flag(ResponseFlag::UnauthorizedExternalService);
            self.stats.shadow_denied.inc();
            self.note_shadow(ShadowDecision::Denied(status, &HeaderMap::new()), context);
            return Decision::Pass(request, Vec::new());
        }
        let reply = LocalReply::new(status, "ext_authz_error");
        deny(reply, request.into_parts().0, context)
    }

    /// The check is over.
    pub(super) fn act(
        &self,
        request: Request<Body>,
        asked: Asked,
        context: &RequestContext,
    ) -> Decision {
        let Answer { verdict, metadata } = match asked.answer {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(filter = &*self.filter.name, %error, "the check failed");
                return self.failed(request, None, context);
            }
        };
        if let Some(metadata) = metadata {
            let allowed = matches!(verdict, Verdict::Allow(_));
            self.keep_metadata(metadata, allowed.then_some(asked.latency), context);
        }
        match verdict {
            Verdict::Allow(effects) => self.allowed(request, effects, context),
            Verdict::Deny(reply) => self.denied(request, reply, context),
            Verdict::Error(reply) => self.failed(request, reply, context),
            Verdict::Invalid(invalid) => self.invalid(invalid, request.into_parts().0, context),
        }
    }

    fn allowed(
        &self,
        request: Request<Body>,
        mut effects: Effects,
        context: &RequestContext,
    ) -> Decision {
        let filter = &*self.filter;
        if effects.omitted > 0 {
            self.stats.omitted_headers.inc_by(effects.omitted as u64);
        }
        let reroute = reroutes(&filter.clear_route, &effects);
        let (mut parts, body) = request.into_parts();
        let applied = apply::request(
            &mut parts,
            &mut effects,
            filter.rules.as_ref(),
            filter.limits,
        );
        if let Err(invalid) = applied {
            return self.invalid(invalid, parts, context);
        }
        self.count(Counted::Ok, context);
        self.note_shadow(ShadowDecision::Ok, context);
        if reroute {
            context.clear_route();
        }
        Decision::Pass(Request::from_parts(parts, body), effects.response)
    }

    fn denied(&self, request: Request<Body>, reply: Reply, context: &RequestContext) -> Decision {
        self.count(Counted::Denied, context);
        if self.filter.charge_cluster {
            context.charge_cluster(reply.status);
        }
        if self.filter.shadow.is_some() {
            self.stats.shadow_denied.inc();
            self.note_shadow(
                ShadowDecision::Denied(reply.status, &reply.headers),
                context,
            );
            return Decision::Pass(request, Vec::new());
        }
        let reply = local_reply(reply, "ext_authz_denied");
        deny(reply, request.into_parts().0, context)
    }

    /// The check failed, or the service says that it did.
    fn failed(
        &self,
        mut request: Request<Body>,
        reply: Option<Reply>,
        context: &RequestContext,
    ) -> Decision {
        let filter = &*self.filter;
        self.count(Counted::Error, context);
        if filter.shadow.is_some() {
            self.stats.shadow_error.inc();
            let status = reply.map_or(filter.reading.status_on_error, |reply| reply.status);
            self.note_shadow(ShadowDecision::Error(status), context);
            return Decision::Pass(request, Vec::new());
        }
        if filter.failure_mode_allow {
            self.count(Counted::FailureModeAllowed, context);
            if filter.failure_mode_header {
                // A full header map only loses what upstreams should not trust anyway.
                let _ = request
                    .headers_mut()
                    .try_append(FAILURE_MODE_ALLOWED, HeaderValue::from_static("true"));
            }
            return Decision::Pass(request, Vec::new());
        }
        let reply = match reply {
            Some(reply) => local_reply(reply, "ext_authz_error"),
            None => LocalReply::new(filter.reading.status_on_error, "ext_authz_error"),
        };
        deny(reply, request.into_parts().0, context)
    }

    /// The answer cannot be carried out; neither the failure mode nor shadow mode covers this.
    fn invalid(
        &self,
        invalid: Invalid,
        parts: request::Parts,
        context: &RequestContext,
    ) -> Decision {
        self.count(Counted::Invalid, context);
        let status = match invalid {
            Invalid::Answer => StatusCode::INTERNAL_SERVER_ERROR,
            Invalid::Request => {
                context.add_flag(ResponseFlag::DownstreamProtocolError);
                let status = StatusCode::SERVICE_UNAVAILABLE;
                let reply = LocalReply::new(status, "ext_authz_invalid");
                return answer_with(reply, parts, context);
            }
            Invalid::RequestLimits => {
                self.stats.request_header_limits_reached.inc();
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        deny(LocalReply::new(status, "ext_authz_invalid"), parts, context)
    }

    fn count(&self, decision: Counted, context: &RequestContext) {
        let route = context.route();
        let cluster = route.as_ref().and_then(|route| route.cluster.as_deref());
        self.stats.count(decision, cluster);
    }

    fn note_shadow(&self, decision: ShadowDecision<'_>, context: &RequestContext) {
        log::shadow(&self.filter, decision, context, &self.stats);
    }

    fn keep_metadata(
        &self,
        mut metadata: prost_types::Struct,
        took: Option<Duration>,
        context: &RequestContext,
    ) {
        if metadata.fields.is_empty() {
            return;
        }
        if !self.filter.ingest_metadata {
            self.stats.ignored_dynamic_metadata.inc();
            return;
        }
        if let Some(took) = took {
            let millis = prost_types::Value {
                kind: Some(prost_types::value::Kind::NumberValue(
                    took.as_millis() as f64
                )),
            };
            metadata
                .fields
                .insert("ext_authz_duration".to_owned(), millis);
        }
        context.merge_metadata(METADATA_NAMESPACE, metadata);
    }

    pub(super) fn change_response(
        &self,
        response: Response<Body>,
        changes: ResponseChanges,
        context: &RequestContext,
    ) -> Response<Body> {
        let (mut parts, body) = response.into_parts();
        let before = context.records_changes().then(|| Snapshot::of(&parts));
        match apply::response(&mut parts, changes, self.filter.response_limit) {
            ResponseOutcome::Done => {}
            ResponseOutcome::Omitted => {
                self.stats.omitted_response_headers.inc();
            }
            ResponseOutcome::OverLimit => {
                self.stats.response_header_limits_reached.inc();
                context.set_details("ext_authz_invalid");
                context.answer_direct();
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                return response;
            }
        }
        if let Some(before) = before {
            let changes = before.changes_to(&Snapshot::of(&parts));
            context.record_response_changes(&self.filter.name, FilterKind::ExtAuthz, changes);
        }
        Response::from_parts(parts, body)
    }
}

/// Whether the answer has the route picked again.
fn reroutes(clear: &ClearRoute, effects: &Effects) -> bool {
    let names = match clear {
        ClearRoute::Never => return false,
        ClearRoute::OnChange => return effects.touches_request(),
        ClearRoute::OnHeaders(names) => names,
    };
    let listed = |name: &str| names.iter().any(|listed| listed.eq_ignore_ascii_case(name));
    effects.touches_query()
        || effects.set.iter().any(|(name, _)| listed(name.as_str()))
        || effects.add.iter().any(|(name, _)| listed(name.as_str()))
        || effects.append.iter().any(|(name, _)| listed(name.as_str()))
        || effects.remove.iter().any(|name| listed(name))
}

fn local_reply(reply: Reply, details: impl Into<Cow<'static, str>>) -> LocalReply {
    LocalReply {
        headers: reply.headers,
        ..LocalReply::new(reply.status, details).with_body(reply.body)
    }
}

fn deny(reply: LocalReply, parts: request::Parts, context: &RequestContext) -> Decision {
    context.add_flag(ResponseFlag::UnauthorizedExternalService);
    answer_with(reply, parts, context)
}
