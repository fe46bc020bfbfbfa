//! What the proxy's own answers look like (Envoy's `local_reply_config`).
//!
//! An answer is the proxy's own unless it came from an upstream: `%RESPONSE_CODE_DETAILS%` tells
//! them apart. Answers of policies with a body that is still on its way stay as they are.

use attache_filter::{
    Body, RequestContext, attributes::Facts, context::ResponseFlag, matcher::FieldMatcher,
    reply::grpc_status_of,
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header, request, response};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode, percent_encode};

use crate::{
    access_log::Comparison,
    body::ReplyBody,
    route::{BodyFormat, HeaderChanges},
};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const MESSAGE_ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// What answers look like.
#[derive(Debug, Default)]
pub struct LocalReplies {
    /// Changes to some answers; the first that matches counts.
    pub mappers: Vec<Mapper>,
    /// What bodies are put into.
    pub format: Option<BodyFormat>,
}

/// Changes to some answers.
#[derive(Debug)]
pub struct Mapper {
    /// Which answers.
    pub condition: Condition,
    /// The new status.
    pub status: Option<StatusCode>,
    /// The new body.
    pub body: Option<Bytes>,
    /// What the body is put into.
    pub format: Option<BodyFormat>,
    /// Headers that are added.
    pub headers: HeaderChanges,
}

/// A condition on an answer.
#[derive(Debug)]
pub enum Condition {
    /// On the status.
    Status(Comparison),
    /// One of these went wrong; anything where there are none.
    Flags(Vec<ResponseFlag>),
    /// The request has such a header.
    Header(Box<FieldMatcher>),
    /// All of these.
    All(Vec<Condition>),
    /// One of these.
    Any(Vec<Condition>),
}

impl Condition {
    fn holds(&self, status: StatusCode, request: &request::Parts, flags: &[ResponseFlag]) -> bool {
        match self {
            Self::Status(comparison) => comparison.holds(status.as_u16().into()),
            Self::Flags(wanted) if wanted.is_empty() => !flags.is_empty(),
            Self::Flags(wanted) => wanted.iter().any(|flag| flags.contains(flag)),
            Self::Header(matcher) => matcher.matches(request),
            Self::All(all) => all.iter().all(|one| one.holds(status, request, flags)),
            Self::Any(any) => any.iter().any(|one| one.holds(status, request, flags)),
        }
    }
}

impl LocalReplies {
    /// The answer as it is to look like; one of an upstream as it is.
    pub(crate) fn shape(
        &self,
        response: Response<ReplyBody>,
        request: &request::Parts,
        context: &RequestContext,
    ) -> Response<ReplyBody> {
        let details = context.details();
        if details.is_none_or(|details| details == "via_upstream") {
            return response;
        }
        let (mut parts, body) = response.into_parts();
        let text = match &body {
            ReplyBody::Local(body) => body.as_full(),
            ReplyBody::Upstream(_) => None,
        };
        let Some(mut text) = text else {
            return Response::from_parts(parts, body);
        };
        let grpc = parts.headers.contains_key(GRPC_STATUS);
        if grpc && let Some(message) = parts.headers.get(GRPC_MESSAGE) {
            text = percent_decode(message.as_bytes())
                .collect::<Vec<_>>()
                .into();
        }
        let mut status = match grpc {
            true => status_of(&parts),
            false => parts.status,
        };
        let flags = context.flags();
        let mut mappers = self.mappers.iter();
        let mapper = mappers.find(|mapper| mapper.condition.holds(status, request, &flags));
        let mut format = self.format.as_ref();
        if let Some(mapper) = mapper {
            text = mapper.body.clone().unwrap_or(text);
            status = mapper.status.unwrap_or(status);
            format = mapper.format.as_ref().or(format);
        }
        if !grpc {
            parts.status = status;
        }
        if let Some(mapper) = mapper {
            mapper.headers.response(&mut parts, Some(request), context);
        }
        if let Some(format) = format {
            let mut shown = parts.clone();
            shown.status = status;
            let facts = Facts {
                context,
                request: Some(request),
                response: Some(&shown),
            };
            text = format.around(&text, &facts.into());
        }
        let changed = mapper.is_some_and(|mapper| mapper.body.is_some()) || format.is_some();
        if grpc {
            if mapper.is_some_and(|mapper| mapper.status.is_some()) {
                let code = HeaderValue::from(grpc_status_of(status));
                parts.headers.insert(GRPC_STATUS, code);
            }
            let message = percent_encode(&text, MESSAGE_ESCAPED).to_string();
            if let Ok(message) = HeaderValue::try_from(message)
                && changed
            {
                parts.headers.insert(GRPC_MESSAGE, message);
            }
            return Response::from_parts(parts, body);
        }
        if !changed {
            return Response::from_parts(parts, body);
        }
        let content_type = match format {
            Some(format) => format.content_type.clone(),
            None => HeaderValue::from_static("text/plain"),
        };
        parts.headers.insert(header::CONTENT_TYPE, content_type);
        let length = HeaderValue::from(text.len());
        parts.headers.insert(header::CONTENT_LENGTH, length);
        let body = match request.method == Method::HEAD {
            true => Body::empty(),
            false => Body::from(text),
        };
        Response::from_parts(parts, ReplyBody::Local(body))
    }
}

/// The status that an answer to a gRPC call stands for.
fn status_of(parts: &response::Parts) -> StatusCode {
    let code = parts.headers.get(GRPC_STATUS);
    match code.map(HeaderValue::as_bytes) {
        Some(b"0") => StatusCode::OK,
        Some(b"7") => StatusCode::FORBIDDEN,
        Some(b"12") => StatusCode::NOT_FOUND,
        Some(b"13") => StatusCode::BAD_REQUEST,
        Some(b"14") => StatusCode::SERVICE_UNAVAILABLE,
        Some(b"16") => StatusCode::UNAUTHORIZED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
