//! The answers that the router gives itself.

use attache_filter::{
    LocalReply, RequestContext, attributes::Facts, context::ResponseFlag, reply::ReplyForm,
};
use attache_service::cluster::breakers::Overflow;
use http::{HeaderName, HeaderValue, Response, StatusCode, header, request};

use super::head::scheme;
use crate::{
    body::ReplyBody,
    hygiene,
    route::{DirectResponse, Redirect, RouteEntry},
    upstream::{LifetimeOf, UpstreamError},
};

const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

pub(super) fn direct_response(
    direct: &DirectResponse,
    entry: &RouteEntry,
    parts: &request::Parts,
    context: &RequestContext,
    form: ReplyForm,
) -> Response<ReplyBody> {
    let mut reply = LocalReply::new(direct.status, "direct_response");
    reply.body = direct.body.clone();
    // As Envoy: such statuses say where.
    if direct.status == StatusCode::CREATED || direct.status.is_redirection() {
        let here = Redirect::default();
        let location = here.location(&entry.matches, parts, scheme(parts, context), context);
        reply
            .headers
            .extend(location.map(|at| (header::LOCATION, at)));
    }
    if let Some(format) = &direct.format {
        // There is no response yet.
        let facts = Facts {
            context,
            request: Some(parts),
            response: None,
        };
        reply.body = format.around(&direct.body, &facts.into());
        let content_type = format.content_type.clone();
        reply.headers.insert(header::CONTENT_TYPE, content_type);
    }
    local(context, form, reply)
}

pub(super) fn redirect(
    to: &Redirect,
    entry: &RouteEntry,
    parts: &request::Parts,
    context: &RequestContext,
    form: ReplyForm,
) -> Response<ReplyBody> {
    let mut reply = LocalReply::new(to.status, "direct_response");
    match to.location(&entry.matches, parts, scheme(parts, context), context) {
        Some(location) => {
            reply.headers.insert(header::LOCATION, location);
        }
        None => reply.status = StatusCode::BAD_REQUEST,
    }
    local(context, form, reply)
}

pub(super) fn failed(
    error: &UpstreamError,
    context: &RequestContext,
    form: ReplyForm,
) -> Response<ReplyBody> {
    tracing::debug!(%error, "no answer from the upstream");
    use ResponseFlag::{
        DownstreamProtocolError, UpstreamConnectionFailure, UpstreamConnectionTermination,
    };
    const BROKEN: (StatusCode, ResponseFlag, &str, &str) = (
        StatusCode::BAD_GATEWAY,
        UpstreamConnectionTermination,
        "upstream_reset_before_response_started{protocol_error}",
        "the upstream broke the protocol",
    );
    let (status, flag, details, body) = match error {
        UpstreamError::Overflow(overflow) => return overflowed(*overflow, context, form),
        UpstreamError::Connect(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            UpstreamConnectionFailure,
            "upstream_reset_before_response_started{remote_connection_failure}",
            "the upstream cannot be reached",
        ),
        UpstreamError::ConnectTimeout(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            UpstreamConnectionFailure,
            "upstream_reset_before_response_started{connection_timeout}",
            "the upstream cannot be reached",
        ),
        UpstreamError::Ambiguous(_) => BROKEN,
        UpstreamError::Reset(error) if error.is_parse() => BROKEN,
        // The request ended the exchange: its body broke off or is not what it says.
        UpstreamError::Reset(error) if error.is_user() => (
            StatusCode::BAD_REQUEST,
            DownstreamProtocolError,
            "http1.codec_error",
            "the request body is malformed",
        ),
        UpstreamError::Reset(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            UpstreamConnectionTermination,
            "upstream_reset_before_response_started{connection_termination}",
            "the upstream ended the connection before it answered",
        ),
    };
    context.add_flag(flag);
    local(
        context,
        form,
        LocalReply::new(status, details).with_body(body),
    )
}

/// The answer to a request for which too much of its cluster is in use.
pub(super) fn overflowed(
    overflow: Overflow,
    context: &RequestContext,
    form: ReplyForm,
) -> Response<ReplyBody> {
    tracing::debug!(%overflow, "the request does not reach its upstream");
    context.add_flag(ResponseFlag::UpstreamOverflow);
    let details = "upstream_reset_before_response_started{overflow}";
    let mut response = unavailable(context, form, details, "the upstream is overloaded");
    let yes = HeaderValue::from_static("true");
    response.headers_mut().insert(OVERLOADED, yes);
    response
}

/// The answer to a request whose stream has lasted as long as it may; `complete` when the
/// request is.
pub(super) fn lasted(
    of: LifetimeOf,
    complete: bool,
    context: &RequestContext,
    form: ReplyForm,
) -> Response<ReplyBody> {
    if let Some(flag) = of.flag() {
        context.add_flag(flag);
    }
    let status = match complete {
        true => StatusCode::GATEWAY_TIMEOUT,
        false => StatusCode::REQUEST_TIMEOUT,
    };
    let mut reply = LocalReply::new(status, of.details());
    reply.grpc_status = Some(tonic::Code::DeadlineExceeded as u32);
    let body = "the stream has lasted as long as it may";
    local(context, form, reply.with_body(body))
}

pub(super) fn unavailable(
    context: &RequestContext,
    form: ReplyForm,
    details: &'static str,
    body: &'static str,
) -> Response<ReplyBody> {
    let reply = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, details);
    local(context, form, reply.with_body(body))
}

/// The answer to an upgrade that the route does not let through.
pub(super) fn refuse_upgrade(
    context: &RequestContext,
    parts: &request::Parts,
) -> Response<ReplyBody> {
    let form = ReplyForm {
        grpc: false,
        ..ReplyForm::of(&parts.method, &parts.headers)
    };
    context.add_flag(ResponseFlag::DownstreamProtocolError);
    let refused = hygiene::UPGRADE_REFUSED;
    let reply = LocalReply::new(refused.status, refused.details);
    let mut response = local(context, form, reply);
    // What the client sent behind its request may not be HTTP.
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

/// A reply of our own, its details noted.
pub(super) fn local(
    context: &RequestContext,
    form: ReplyForm,
    reply: LocalReply,
) -> Response<ReplyBody> {
    context.set_details(reply.details.clone());
    reply.into_response(form).map(ReplyBody::Local)
}

/// The answer to a request for which the upstream took too long, and what took it.
pub(super) fn timed_out(
    details: &'static str,
    context: &RequestContext,
    form: ReplyForm,
) -> Response<ReplyBody> {
    context.add_flag(ResponseFlag::UpstreamRequestTimeout);
    let reply = LocalReply::new(StatusCode::GATEWAY_TIMEOUT, details);
    let body = "the upstream did not answer in time";
    local(context, form, reply.with_body(body))
}

/// The answer to a request on whose stream nothing came for too long; `complete` when the request
/// is.
pub(super) fn silent(
    complete: bool,
    context: &RequestContext,
    form: ReplyForm,
) -> Response<ReplyBody> {
    context.add_flag(ResponseFlag::StreamIdleTimeout);
    let status = match complete {
        true => StatusCode::GATEWAY_TIMEOUT,
        false => StatusCode::REQUEST_TIMEOUT,
    };
    let reply = LocalReply::new(status, "stream_idle_timeout");
    let body = "the stream was silent for too long";
    local(context, form, reply.with_body(body))
}
