//! What is noted of an attempt to have an answer of an upstream.

use std::sync::Arc;

use attache_filter::{RequestContext, context::UpstreamAttempt};
use attache_service::trace::SpanId;
use http::{StatusCode, request};
use tokio::time::Instant;

use crate::upstream::{Ended, Endpoint, UpstreamError, Waited};

/// The context, where it keeps points in time.
pub(crate) fn timed(context: &Arc<RequestContext>) -> Option<Arc<RequestContext>> {
    context.keeps_times.then(|| context.clone())
}

/// Tells the upstream which trace its request belongs to; the span that stands for it.
pub(crate) fn propagate(context: &RequestContext, parts: &mut request::Parts) -> Option<SpanId> {
    let trace = context.trace.as_ref()?;
    trace.propagate(&mut parts.headers, true)
}

/// Notes an attempt that is over, if anybody wants to know.
pub(crate) fn note_attempt(
    context: &RequestContext,
    endpoint: &Endpoint,
    begun: Instant,
    span: Option<SpanId>,
    ended: &Ended,
) {
    if !context.records_calls() {
        return;
    }
    let status = match ended {
        Waited::Done(Ok((response, _))) => Some(response.status()),
        _ => None,
    };
    let made = match ended {
        Waited::Done(Ok((_, lease))) => endpoint.own.made(lease),
        _ => None,
    };
    let now = context.started.elapsed();
    let waited = match ended {
        Waited::Done(Err(UpstreamError::Connect(_) | UpstreamError::ConnectTimeout(_))) => {
            Some(begun.elapsed())
        }
        _ => made.map(|made| made.ready.saturating_duration_since(begun)),
    };
    context.record_attempt(UpstreamAttempt {
        endpoint: endpoint.endpoint.to_string(),
        begun: begun.into_std().saturating_duration_since(context.started),
        answered: status.map(|_| now),
        ended: now,
        status,
        span,
        waited,
        failure: match ended {
            Waited::Done(Err(error)) => error.connect_failure(),
            _ => None,
        },
    });
}

/// Notes that a connection was made, or tried in vain, for what goes through a tunnel.
pub(super) fn note_connect<IO>(
    context: &RequestContext,
    endpoint: &Endpoint,
    begun: Instant,
    connected: &Result<IO, UpstreamError>,
) {
    if !context.records_calls() {
        return;
    }
    let status = connected.is_ok().then_some(StatusCode::OK);
    let now = context.started.elapsed();
    context.record_attempt(UpstreamAttempt {
        endpoint: endpoint.endpoint.to_string(),
        begun: begun.into_std().saturating_duration_since(context.started),
        answered: status.map(|_| now),
        ended: now,
        status,
        span: None,
        waited: Some(begun.elapsed()),
        failure: match connected {
            Ok(_) => None,
            Err(error) => error.connect_failure(),
        },
    });
}

/// Tells the context where the request went.
pub(super) fn note_upstream(endpoint: &Endpoint, context: &RequestContext) {
    if let Some(address) = endpoint.endpoint.address() {
        context.set_upstream(address);
    }
}
