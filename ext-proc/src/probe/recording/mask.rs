//! What of an exchange is not written down.

use attache_proto::{
    core::{HeaderMap, HeaderValue, Metadata},
    ext_proc::{
        HeaderMutation, ProcessingRequest, ProcessingResponse, processing_request::Request,
        processing_response::Response, streamed_immediate_response::Response as Streamed,
    },
};
use prost_types::{Struct, Value, value::Kind};

/// What stands in the place of a masked value.
const MASKED: &str = "masked";

/// Names of headers, metadata and attributes whose values are replaced.
#[derive(Debug, Clone, Default)]
pub struct Mask {
    names: Vec<String>,
}

impl Mask {
    /// Masks these names, whatever the case of their letters.
    pub fn new(names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let names = names
            .into_iter()
            .map(|name| name.as_ref().trim().to_ascii_lowercase());
        Self {
            names: names.filter(|name| !name.is_empty()).collect(),
        }
    }

    /// Whether the value of this name is masked.
    pub fn covers(&self, name: &str) -> bool {
        self.names
            .iter()
            .any(|masked| masked.eq_ignore_ascii_case(name))
    }

    /// The value to write for this name.
    pub(super) fn text<'v>(&self, name: &str, value: &'v str) -> &'v str {
        if self.covers(name) { MASKED } else { value }
    }

    pub(super) fn request(&self, message: &mut ProcessingRequest) {
        match &mut message.request {
            Some(Request::RequestHeaders(headers) | Request::ResponseHeaders(headers)) => {
                self.map(headers.headers.as_mut());
            }
            Some(Request::RequestTrailers(trailers) | Request::ResponseTrailers(trailers)) => {
                self.map(trailers.trailers.as_mut());
            }
            Some(Request::RequestBody(_) | Request::ResponseBody(_)) | None => {}
        }
        for attributes in message.attributes.values_mut() {
            self.fields(attributes);
        }
        if let Some(Metadata {
            filter_metadata, ..
        }) = &mut message.metadata_context
        {
            filter_metadata
                .values_mut()
                .for_each(|fields| self.fields(fields));
        }
    }

    pub(super) fn response(&self, message: &mut ProcessingResponse) {
        match &mut message.response {
            Some(Response::RequestHeaders(reply) | Response::ResponseHeaders(reply)) => {
                let common = reply.response.as_mut();
                self.mutation(common.and_then(|common| common.header_mutation.as_mut()));
            }
            Some(Response::RequestBody(reply) | Response::ResponseBody(reply)) => {
                let common = reply.response.as_mut();
                self.mutation(common.and_then(|common| common.header_mutation.as_mut()));
            }
            Some(Response::RequestTrailers(reply) | Response::ResponseTrailers(reply)) => {
                self.mutation(reply.header_mutation.as_mut());
            }
            Some(Response::ImmediateResponse(answer)) => self.mutation(answer.headers.as_mut()),
            Some(Response::StreamedImmediateResponse(part)) => match &mut part.response {
                Some(Streamed::HeadersResponse(headers)) => self.map(headers.headers.as_mut()),
                Some(Streamed::TrailersResponse(trailers)) => self.map(Some(trailers)),
                Some(Streamed::BodyResponse(_)) | None => {}
            },
            None => {}
        }
        if let Some(metadata) = &mut message.dynamic_metadata {
            self.fields(metadata);
        }
    }

    fn mutation(&self, mutation: Option<&mut HeaderMutation>) {
        let options = mutation
            .into_iter()
            .flat_map(|mutation| &mut mutation.set_headers);
        options
            .filter_map(|option| option.header.as_mut())
            .for_each(|line| self.line(line));
    }

    fn map(&self, map: Option<&mut HeaderMap>) {
        let lines = map.into_iter().flat_map(|map| &mut map.headers);
        lines.for_each(|line| self.line(line));
    }

    fn line(&self, line: &mut HeaderValue) {
        if !self.covers(&line.key) {
            return;
        }
        // Which of the two is used stays visible.
        if !line.raw_value.is_empty() {
            line.raw_value = MASKED.into();
        }
        if !line.value.is_empty() {
            line.value = MASKED.to_owned();
        }
    }

    /// Masks fields by their names, at any depth; also attributes such as
    /// `request.headers['authorization']`.
    fn fields(&self, fields: &mut Struct) {
        for (name, value) in &mut fields.fields {
            let lower = name.to_ascii_lowercase();
            let quoted = |masked: &String| {
                lower.contains(&format!("'{masked}'")) || lower.contains(&format!("\"{masked}\""))
            };
            if self.covers(name) || self.names.iter().any(quoted) {
                value.kind = Some(Kind::StringValue(MASKED.to_owned()));
            } else {
                self.value(value);
            }
        }
    }

    fn value(&self, value: &mut Value) {
        match &mut value.kind {
            Some(Kind::StructValue(fields)) => self.fields(fields),
            Some(Kind::ListValue(list)) => list.values.iter_mut().for_each(|v| self.value(v)),
            _ => {}
        }
    }
}
