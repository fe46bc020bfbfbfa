//! Messages as Envoy writes them.

use attache_proto::{
    core::{HeaderMap, HeaderValue, Metadata},
    ext_proc::{
        HttpBody, HttpHeaders, HttpTrailers, ProcessingRequest, ProtocolConfiguration,
        processing_request::Request,
    },
};
use bytes::Bytes;

use super::{case::Case, event::Side};

/// Values are in `raw_value` only; repeated names are entries of their own.
fn header_map(lines: &[(String, Bytes)]) -> HeaderMap {
    HeaderMap {
        headers: lines
            .iter()
            .map(|(key, value)| HeaderValue {
                key: key.clone(),
                raw_value: value.clone(),
                ..HeaderValue::default()
            })
            .collect(),
    }
}

pub(super) fn headers(side: Side, lines: &[(String, Bytes)], end_of_stream: bool) -> Request {
    let message = HttpHeaders {
        headers: Some(header_map(lines)),
        end_of_stream,
        ..HttpHeaders::default()
    };
    match side {
        Side::Request => Request::RequestHeaders(message),
        Side::Response => Request::ResponseHeaders(message),
    }
}

pub(super) fn body(side: Side, body: Bytes, end_of_stream: bool) -> Request {
    let message = HttpBody {
        body,
        end_of_stream,
        ..HttpBody::default()
    };
    match side {
        Side::Request => Request::RequestBody(message),
        Side::Response => Request::ResponseBody(message),
    }
}

pub(super) fn trailers(side: Side, lines: &[(String, Bytes)]) -> Request {
    let message = HttpTrailers {
        trailers: Some(header_map(lines)),
    };
    match side {
        Side::Request => Request::RequestTrailers(message),
        Side::Response => Request::ResponseTrailers(message),
    }
}

/// A message with what stands around every part.
pub(super) fn envelope(case: &Case, part: Request, first: bool) -> ProcessingRequest {
    let config = || ProtocolConfiguration {
        request_body_mode: case.mode.request_body_mode,
        response_body_mode: case.mode.response_body_mode,
        send_body_without_waiting_for_header_response: case.without_waiting,
    };
    ProcessingRequest {
        request: Some(part),
        // On every message, even when empty.
        metadata_context: Some(Metadata::default()),
        observability_mode: case.observability,
        protocol_config: (first && !case.observability).then(config),
        ..ProcessingRequest::default()
    }
}
