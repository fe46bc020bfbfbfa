//! What Envoy makes of an answer, and where that is not what the service says.

use std::{collections::BTreeSet, fmt};

use attache_proto::{
    auth::DeniedHttpResponse,
    auth::{CheckRequest, CheckResponse, OkHttpResponse, check_response::HttpResponse},
    core::{HeaderValueOption, header_value_option::HeaderAppendAction},
};
use http::{HeaderName, HeaderValue};
use tonic::Code as GrpcCode;

use super::code::{Code, Finding};
use crate::{
    client::answer::is_framing,
    server::{CheckRequestView, HeaderLimits},
};

/// What the client gets of an answer, when the filter has Envoy's defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// The upstream's response.
    Allowed,
    /// A denial with this status.
    Denied(i32),
    /// The service reports an error; the client gets this status, or that of the filter with 0.
    Error(i32),
    /// The call failed.
    Failed(GrpcCode),
    /// There was no answer, or none was waited for.
    Nothing,
}

impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed => f.write_str("allowed"),
            Self::Denied(status) => write!(f, "denied {status}"),
            Self::Error(0) => f.write_str("error"),
            Self::Error(status) => write!(f, "error {status}"),
            Self::Failed(code) => write!(f, "failed {}", i32::from(*code)),
            Self::Nothing => f.write_str("-"),
        }
    }
}

/// Longest message that gRPC clients take for sure.
const MAX_GRPC_MESSAGE: usize = 4 << 10;

/// What Envoy makes of an answer to a check, and what is wrong with it.
pub fn judge(request: &CheckRequest, response: &CheckResponse) -> (Answered, Vec<Finding>) {
    let mut judge = Judge {
        request: CheckRequestView::from(request.clone()),
        findings: Vec::new(),
    };
    let answered = judge.answer(response);
    (answered, judge.findings)
}

struct Judge {
    request: CheckRequestView,
    findings: Vec<Finding>,
}

impl Judge {
    fn find(&mut self, code: Code, did: impl Into<String>) {
        self.findings.push(code.because(did));
    }

    fn answer(&mut self, response: &CheckResponse) -> Answered {
        let code = response.status.as_ref().map_or(0, |status| status.code);
        if !self.request.is_http() && response.http_response.is_some() {
            let http = match (&response.http_response, code) {
                (Some(HttpResponse::OkResponse(ok)), _) => *ok != OkHttpResponse::default(),
                _ => true,
            };
            if http {
                self.find(Code::HttpForTcp, "It answered with HTTP.");
            }
        }
        match (code, &response.http_response) {
            (0, None) if response.status.is_none() => {
                self.find(
                    Code::EmptyAllows,
                    "It answered with an empty CheckResponse.",
                );
                Answered::Allowed
            }
            (0, http) => {
                match http {
                    Some(HttpResponse::DeniedResponse(_)) => {
                        self.find(Code::DenialAllows, "It sent denied_response with status 0.");
                    }
                    Some(HttpResponse::ErrorResponse(_)) => {
                        self.find(Code::ErrorAllows, "It sent error_response with status 0.");
                    }
                    Some(HttpResponse::OkResponse(ok)) => {
                        if response.status.is_none() {
                            self.find(Code::StatusMissing, "It allowed without a status.");
                        }
                        self.allowed(ok);
                    }
                    None => {}
                }
                Answered::Allowed
            }
            (_, None) => {
                self.find(
                    Code::BareDenial,
                    format!("It denied with status {code} alone."),
                );
                Answered::Denied(403)
            }
            (_, Some(HttpResponse::OkResponse(_))) => {
                self.find(
                    Code::OkIgnored,
                    format!("It sent ok_response with status {code}."),
                );
                Answered::Denied(403)
            }
            (_, Some(HttpResponse::DeniedResponse(denied))) => {
                let status = self.reply(denied);
                if (200..300).contains(&status) {
                    self.find(
                        Code::DeniedOk,
                        format!("It denied with HTTP status {status}."),
                    );
                }
                Answered::Denied(if status == 0 { 403 } else { status })
            }
            (_, Some(HttpResponse::ErrorResponse(error))) => {
                let status = self.reply(error);
                if (200..400).contains(&status) {
                    let did = format!("It reported an error with HTTP status {status}.");
                    self.find(Code::ErrorStatus, did);
                }
                Answered::Error(status)
            }
        }
    }

    /// An answer to the client; its status.
    fn reply(&mut self, reply: &DeniedHttpResponse) -> i32 {
        let status = reply.status.map_or(0, |status| status.code);
        match status {
            100..=199 => self.find(Code::WaitsForever, format!("It denied with {status}.")),
            0 | 200..=599 => {}
            _ => self.find(Code::BadStatus, format!("It denied with {status}.")),
        }
        if matches!(status, 204 | 304) && !reply.body.is_empty() {
            let did = format!("It sent a body with status {status}.");
            self.find(Code::BodyForbidden, did);
        }
        if self.request.is_grpc() && reply.body.len() > MAX_GRPC_MESSAGE {
            let did = format!("It sent a gRPC client {} bytes of body.", reply.body.len());
            self.find(Code::LongMessage, did);
        }
        for option in &reply.headers {
            let Some((name, _)) = self.entry(option, "denied_response") else {
                continue;
            };
            let own = name.starts_with(':') || name == "server";
            if own || header_name(&name).is_some_and(|name| is_framing(&name)) {
                self.find(Code::NoEffect, format!("It sent `{name}` with a denial."));
            } else if option.append == Some(true) {
                let did = format!("It sent `{name}` of a denial with `append: true`.");
                self.find(Code::DeniedAppend, did);
            }
        }
        status
    }

    fn allowed(&mut self, ok: &OkHttpResponse) {
        self.request_headers(ok);
        self.response_headers(&ok.response_headers_to_add);
        self.query(ok);
        if ok.dynamic_metadata.is_some() {
            let did = "It set dynamic_metadata of ok_response.";
            self.find(Code::OldMetadata, did);
        }
    }

    fn request_headers(&mut self, ok: &OkHttpResponse) {
        // What is set, since all that is set comes before all that is appended.
        let mut set: BTreeSet<String> = BTreeSet::new();
        for option in ok.headers.iter().filter(|o| o.append != Some(true)) {
            let Some((name, value)) = self.entry(option, "headers") else {
                continue;
            };
            let there = self.request.has_header(&name);
            if set.contains(&name) {
                let did = format!("It sent `{name}` twice without `append: true`.");
                self.find(Code::LastWins, did);
            } else {
                self.action(option, &name, &value, there);
            }
            if name == ":path" {
                self.find(Code::PathOnly, "It set `:path`.");
            }
            self.framing(&name, "request header");
            set.insert(name);
        }
        for option in ok.headers.iter().filter(|o| o.append == Some(true)) {
            let Some((name, _)) = self.entry(option, "headers") else {
                continue;
            };
            if name.starts_with(':') {
                self.find(Code::AppendToPseudo, format!("It appended to `{name}`."));
            } else if !set.contains(&name) && !self.request.has_header(&name) {
                let did = format!("It appended to `{name}`, which the request does not have.");
                self.find(Code::AppendToAbsent, did);
            }
            self.framing(&name, "request header");
        }
        for name in &ok.headers_to_remove {
            let name = name.to_ascii_lowercase();
            if name.starts_with(':') || name == "host" {
                self.find(Code::RemoveIgnored, format!("It removed `{name}`."));
            } else if set.contains(&name) {
                self.find(
                    Code::SetAndRemoved,
                    format!("It set `{name}` and removed it."),
                );
            }
        }
        self.size(ok, &set);
    }

    /// `append_action` without `append`, which counts for nothing in request headers.
    fn action(&mut self, option: &HeaderValueOption, name: &str, value: &str, there: bool) {
        if option.append.is_some() {
            return;
        }
        use HeaderAppendAction::{
            AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExists, OverwriteIfExistsOrAdd,
        };
        let same = self.request.header(name).as_deref() == Some(value);
        match HeaderAppendAction::try_from(option.append_action) {
            // Indistinguishable from not having said anything.
            Ok(AppendIfExistsOrAdd | OverwriteIfExistsOrAdd) => {}
            Ok(AddIfAbsent) if there && !same => self.find(
                Code::ActionWrong,
                format!("It set `{name}` with ADD_IF_ABSENT, and the request has it."),
            ),
            Ok(OverwriteIfExists) if !there => self.find(
                Code::ActionWrong,
                format!("It set `{name}` with OVERWRITE_IF_EXISTS, and the request lacks it."),
            ),
            Ok(action @ (AddIfAbsent | OverwriteIfExists)) => self.find(
                Code::ActionIgnored,
                format!("It set `{name}` with {}.", action.as_str_name()),
            ),
            Err(_) => self.find(
                Code::UnknownAction,
                format!(
                    "It set `{name}` with append_action {}.",
                    option.append_action
                ),
            ),
        }
    }

    /// The request as it goes on, by the headers that are shown.
    fn size(&mut self, ok: &OkHttpResponse, set: &BTreeSet<String>) {
        let limits = HeaderLimits::default();
        let (mut count, mut bytes) = (0, 0);
        for (name, value) in self.request.headers() {
            let name = name.to_ascii_lowercase();
            let removed = ok.headers_to_remove.iter();
            if !set.contains(&name) && !removed.clone().any(|r| r.eq_ignore_ascii_case(&name)) {
                count += 1;
                bytes += name.len() + value.len();
            }
        }
        count += set.len();
        for header in ok
            .headers
            .iter()
            .filter_map(|option| option.header.as_ref())
        {
            bytes += header.key.len() + header.value.len();
        }
        if !ok.headers.is_empty() && (count > limits.count || bytes > limits.bytes) {
            let did = format!("It makes a request with {count} headers, {bytes} bytes.");
            self.find(Code::TooMany, did);
        }
    }

    fn response_headers(&mut self, headers: &[HeaderValueOption]) {
        for option in headers {
            let Some((name, _)) = self.entry(option, "response_headers_to_add") else {
                continue;
            };
            if name == ":status" {
                self.find(Code::StatusSet, "It set `:status` of the response.");
            }
            self.framing(&name, "response header");
            if HeaderAppendAction::try_from(option.append_action).is_err() {
                let did = format!(
                    "It added `{name}` with append_action {}.",
                    option.append_action
                );
                self.find(Code::UnknownAction, did);
            }
        }
        if headers.len() > HeaderLimits::default().count {
            let did = format!("It added {} response headers.", headers.len());
            self.find(Code::ManyResponse, did);
        }
    }

    fn query(&mut self, ok: &OkHttpResponse) {
        for parameter in &ok.query_parameters_to_set {
            let text = format!("{}={}", parameter.key, parameter.value);
            let both = [&parameter.key, &parameter.value];
            if !both.iter().all(|text| is_encoded(text)) {
                self.find(
                    Code::QueryEncoding,
                    format!("It set the query `{}`.", shown(&text)),
                );
            } else if both.iter().any(|text| text.contains(['%', '+'])) {
                self.find(
                    Code::QueryValidated,
                    format!("It set the query `{}`.", shown(&text)),
                );
            }
            if ok.query_parameters_to_remove.contains(&parameter.key) {
                let did = format!(
                    "It set and removed the query parameter `{}`.",
                    parameter.key
                );
                self.find(Code::SetAndRemoved, did);
            }
        }
    }

    fn framing(&mut self, name: &str, what: &str) {
        if header_name(name).is_some_and(|name| is_framing(&name)) {
            self.find(Code::Framing, format!("It set the {what} `{name}`."));
        }
    }

    /// Lower-case name and value of an entry, if Envoy can do anything with it.
    fn entry(&mut self, option: &HeaderValueOption, list: &str) -> Option<(String, String)> {
        let Some(header) = &option.header else {
            self.find(
                Code::NoHeader,
                format!("It sent an entry of {list} without a header."),
            );
            return None;
        };
        let name = header.key.to_ascii_lowercase();
        if !header.raw_value.is_empty() && header.value.is_empty() {
            let did = format!("It sent `{}` of {list} as raw_value.", shown(&name));
            self.find(Code::RawValue, did);
        }
        if name.is_empty() {
            self.find(
                Code::EmptyName,
                format!("It sent a header of {list} without a name."),
            );
            return None;
        }
        let plain = name.strip_prefix(':').unwrap_or(&name);
        if header_name(plain).is_none() {
            self.find(
                Code::BadName,
                format!("It sent the name `{}` in {list}.", shown(&name)),
            );
            return None;
        }
        if HeaderValue::from_bytes(header.value.as_bytes()).is_err() {
            let value = shown(&header.value);
            self.find(
                Code::BadValue,
                format!("It sent `{name}: {value}` in {list}."),
            );
        }
        Some((name, header.value.clone()))
    }
}

fn header_name(name: &str) -> Option<HeaderName> {
    HeaderName::from_bytes(name.as_bytes()).ok()
}

/// Whether a URL can have this in a query parameter: unreserved characters, `+`, `*` and
/// percent-encoding.
fn is_encoded(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let mut digit = || bytes.next().is_some_and(|b| b.is_ascii_hexdigit());
                if !digit() || !digit() {
                    return false;
                }
            }
            byte if byte.is_ascii_alphanumeric() || b"-._~*+".contains(&byte) => {}
            _ => return false,
        }
    }
    true
}

/// The beginning of a text, with control characters made visible.
fn shown(text: &str) -> String {
    const MOST: usize = 40;
    let mut shown: String = text
        .chars()
        .take(MOST)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(MOST).is_some() {
        shown.push('…');
    }
    shown
}
