//! Requests that may pass, and what is changed on the way.

use attache_filter::json;
use attache_proto::{
    auth::{CheckResponse, OkHttpResponse, check_response::HttpResponse},
    core::{HeaderValueOption, QueryParameter, header_value_option::HeaderAppendAction},
    rpc,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use prost_types::Struct;
use serde::Serialize;

use super::{
    CheckRequestView, DecisionError, HeaderLimits,
    field::{Extent, is_routing, option, ordinary},
    metadata,
};

/// Everything but what RFC 3986 leaves unreserved.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A request that may pass, and what to change on the way.
///
/// Request headers: Envoy carries out every `set` before every `join`, and removes last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Allow {
    set: Vec<(String, String)>,
    join: Vec<(String, String)>,
    remove: Vec<String>,
    response: Vec<(HeaderAppendAction, String, String)>,
    query_set: Vec<(String, String)>,
    query_remove: Vec<String>,
    pub(super) metadata: Option<Struct>,
}

impl Allow {
    /// Whether a request header of this name is set.
    pub(crate) fn sets(&self, name: &str) -> bool {
        self.set
            .iter()
            .any(|(set, _)| set.eq_ignore_ascii_case(name))
    }

    /// Whether a request header of this name is removed.
    pub(crate) fn removes(&self, name: &str) -> bool {
        self.remove
            .iter()
            .any(|removed| removed.eq_ignore_ascii_case(name))
    }

    /// Whether a query parameter of this name, as it is encoded, is set.
    pub(crate) fn sets_parameter(&self, name: &str) -> bool {
        self.query_set.iter().any(|(set, _)| set == name)
    }

    /// Takes back what has been said of a request header so far.
    #[must_use]
    pub(crate) fn take_back(mut self, name: &str) -> Self {
        let other = |said: &String| !said.eq_ignore_ascii_case(name);
        self.set.retain(|(set, _)| other(set));
        self.join.retain(|(joined, _)| other(joined));
        self.remove.retain(other);
        self
    }

    /// Takes back what has been said of a response header so far.
    #[must_use]
    pub(crate) fn response_take_back(mut self, name: &str) -> Self {
        self.response
            .retain(|(_, said, _)| !said.eq_ignore_ascii_case(name));
        self
    }

    /// Sets a request header: all lines the client sent are replaced by this one. Also
    /// `:path`, `:method`, `:authority` and `:scheme`.
    #[must_use]
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.set.push((name.into(), value.into()));
        self
    }

    /// Adds a value to a request header: joined with a comma (`cookie`: `"; "`) to its first
    /// line, or set when the request has none.
    ///
    /// A header that the proxy does not show (`allowed_headers`) counts as absent.
    #[must_use]
    pub fn join(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.join.push((name.into(), value.into()));
        self
    }

    /// Removes a request header.
    #[must_use]
    pub fn remove(mut self, name: impl Into<String>) -> Self {
        self.remove.push(name.into());
        self
    }

    /// Adds a line to the response, whatever it has already (`set-cookie`).
    #[must_use]
    pub fn response_add(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.response(HeaderAppendAction::AppendIfExistsOrAdd, name, value)
    }

    /// Sets a response header: all lines are replaced by this one.
    #[must_use]
    pub fn response_replace(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.response(HeaderAppendAction::OverwriteIfExistsOrAdd, name, value)
    }

    /// Adds a response header that is not there yet.
    #[must_use]
    pub fn response_add_if_absent(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.response(HeaderAppendAction::AddIfAbsent, name, value)
    }

    /// Sets a response header that is there already.
    #[must_use]
    pub fn response_replace_if_present(
        self,
        name: impl Into<String>,
        value: impl Into<String>,
    ) -> Self {
        self.response(HeaderAppendAction::OverwriteIfExists, name, value)
    }

    fn response(
        mut self,
        action: HeaderAppendAction,
        name: impl Into<String>,
        value: impl Into<String>,
    ) -> Self {
        self.response.push((action, name.into(), value.into()));
        self
    }

    /// Sets a query parameter, given decoded. The whole query is then written anew, sorted.
    ///
    /// A proxy with `validate_mutations` accepts only values that need no encoding: letters,
    /// digits and `*-._`.
    #[must_use]
    pub fn query_set(mut self, name: &str, value: &str) -> Self {
        let encoded = |text| utf8_percent_encode(text, QUERY).to_string();
        self.query_set.push((encoded(name), encoded(value)));
        self
    }

    /// Removes a query parameter; compared with the request's as it is encoded there.
    #[must_use]
    pub fn query_remove(mut self, name: impl Into<String>) -> Self {
        self.query_remove.push(name.into());
        self
    }

    /// Dynamic metadata for later filters and logs, in the namespace
    /// `envoy.filters.http.ext_authz`.
    #[must_use]
    pub fn metadata(mut self, fields: Struct) -> Self {
        self.metadata = Some(fields);
        self
    }

    /// The same from a type of yours.
    ///
    /// # Errors
    /// When it has no form as a JSON object.
    pub fn metadata_from<T: Serialize + ?Sized>(self, fields: &T) -> Result<Self, DecisionError> {
        Ok(self.metadata(metadata(fields)?))
    }

    /// Adds one field to [`Allow::metadata`], in place of one of that name.
    #[must_use]
    pub fn metadata_field(mut self, name: impl Into<String>, value: &serde_json::Value) -> Self {
        let fields = self.metadata.get_or_insert_default();
        fields
            .fields
            .insert(name.into(), json::to_value(value.clone()));
        self
    }

    pub(super) fn into_response(
        self,
        request: &CheckRequestView,
        limits: HeaderLimits,
    ) -> Result<CheckResponse, DecisionError> {
        let mut headers = Vec::with_capacity(self.set.len() + self.join.len());
        for (name, value) in self.set {
            if !is_routing(&name) {
                ordinary(&name)?;
            }
            headers.push(request_header(name, value, false)?);
        }
        for (name, value) in self.join {
            ordinary(&name)?;
            // Envoy drops what is to be appended to an absent header.
            let append = request.has_header(&name) || names(&headers, &name);
            headers.push(request_header(name, value, append)?);
        }
        for name in &self.remove {
            ordinary(name)?;
            if names(&headers, name) {
                return Err(DecisionError::SetAndRemoved(name.clone()));
            }
        }
        for name in &self.query_remove {
            if self.query_set.iter().any(|(set, _)| set == name) {
                return Err(DecisionError::SetAndRemoved(name.clone()));
            }
        }
        if !headers.is_empty() {
            fits(request, &headers, &self.remove, limits)?;
        }
        let mut response = Vec::with_capacity(self.response.len());
        for (action, name, value) in self.response {
            ordinary(&name)?;
            let mut option = option(name, value)?;
            option.append_action = action.into();
            response.push(option);
        }
        Extent::of(&response).within(limits)?;
        let ok = OkHttpResponse {
            headers,
            headers_to_remove: self.remove,
            response_headers_to_add: response,
            query_parameters_to_set: self
                .query_set
                .into_iter()
                .map(|(key, value)| QueryParameter { key, value })
                .collect(),
            query_parameters_to_remove: self.query_remove,
            dynamic_metadata: None,
        };
        Ok(CheckResponse {
            status: Some(rpc::Status::default()),
            http_response: Some(HttpResponse::OkResponse(ok)),
            dynamic_metadata: self.metadata,
        })
    }
}

/// In Envoy 1.40 only `append` counts here, whatever `append_action` says.
fn request_header(
    name: String,
    value: String,
    append: bool,
) -> Result<HeaderValueOption, DecisionError> {
    let mut option = option(name, value)?;
    option.append = Some(append);
    Ok(option)
}

fn names(options: &[HeaderValueOption], name: &str) -> bool {
    options
        .iter()
        .filter_map(|option| option.header.as_ref())
        .any(|header| header.key.eq_ignore_ascii_case(name))
}

/// Whether the changed request stays within the limits, as far as the proxy shows it. One that
/// came with more already is within limits that are not known here.
fn fits(
    request: &CheckRequestView,
    headers: &[HeaderValueOption],
    removed: &[String],
    limits: HeaderLimits,
) -> Result<(), DecisionError> {
    let added = Extent::of(headers);
    let mut came = Extent::default();
    for (name, value) in request.headers() {
        came.add(name, value);
    }
    let most = Extent {
        count: came.count + added.count,
        bytes: came.bytes + added.bytes,
    };
    if most.within(limits).is_ok() || came.within(limits).is_err() {
        return added.within(limits);
    }
    let mut left = Extent::default();
    for (name, value) in request.headers() {
        let gone = removed
            .iter()
            .any(|removed| removed.eq_ignore_ascii_case(name));
        if !gone && !replaces(headers, name) {
            left.add(name, value);
        }
    }
    for (at, option) in headers.iter().enumerate() {
        let Some(header) = &option.header else {
            continue;
        };
        let later = headers.get(at + 1..).unwrap_or_default();
        if option.append == Some(true) {
            left.bytes += header.value.len() + 1;
        } else if !replaces(later, &header.key) {
            left.add(&header.key, header.value.as_bytes());
        }
    }
    left.within(limits)
}

/// Whether one of these sets the header anew.
fn replaces(options: &[HeaderValueOption], name: &str) -> bool {
    options
        .iter()
        .filter(|option| option.append != Some(true))
        .filter_map(|option| option.header.as_ref())
        .any(|header| header.key.eq_ignore_ascii_case(name))
}
