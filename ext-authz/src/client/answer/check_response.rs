//! The meaning of a `CheckResponse`.

use attache_proto::{
    auth::{CheckResponse, DeniedHttpResponse, OkHttpResponse, check_response::HttpResponse},
    core::{HeaderValueOption, header_value_option::HeaderAppendAction},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::{
    Answer, Effects, FieldName, Invalid, Reading, Reply, ResponseVerb, Verdict, final_status,
    is_for_client, is_framing,
};

/// Reads a decoded answer.
pub fn read(response: CheckResponse, reading: Reading) -> Answer {
    let code = response.status.map_or(0, |status| status.code);
    let mut metadata = response.dynamic_metadata;
    let verdict = match (code, response.http_response) {
        (0, Some(HttpResponse::OkResponse(ok))) => {
            let mut ok = ok;
            if let Some(own) = ok.dynamic_metadata.take() {
                metadata = Some(own);
            }
            match effects(ok, reading.validate) {
                Ok(effects) => Verdict::Allow(effects),
                Err(invalid) => Verdict::Invalid(invalid),
            }
        }
        // A denial or an error that comes with status OK is ignored.
        (0, _) => Verdict::Allow(Effects::default()),
        (_, Some(HttpResponse::DeniedResponse(denied))) => {
            match reply(denied, StatusCode::FORBIDDEN, reading.max_denied_body) {
                Some(reply) => Verdict::Deny(reply),
                None => Verdict::Invalid(Invalid::Answer),
            }
        }
        (_, Some(HttpResponse::ErrorResponse(error))) => Verdict::Error(reply(
            error,
            reading.status_on_error,
            reading.max_denied_body,
        )),
        (_, None | Some(HttpResponse::OkResponse(_))) => Verdict::Deny(Reply::forbidden()),
    };
    Answer { verdict, metadata }
}

fn effects(ok: OkHttpResponse, validate: bool) -> Result<Effects, Invalid> {
    // What Envoy finds out only when it writes the request upstream.
    let malformed = if validate {
        Invalid::Answer
    } else {
        Invalid::Request
    };
    let mut effects = Effects::default();
    for option in ok.headers {
        // As in Envoy 1.40 only `append` counts here, whatever `append_action` says.
        let append = option.append == Some(true);
        let (name, value) = field(option).ok_or(malformed)?;
        if matches!(&name, FieldName::Header(name) if is_framing(name)) {
            effects.omitted += 1;
        } else if append {
            effects.append.push((name, value));
        } else {
            effects.set.push((name, value));
        }
    }
    effects.remove = ok.headers_to_remove;

    for option in ok.response_headers_to_add {
        let verb = match (
            option.append,
            HeaderAppendAction::try_from(option.append_action),
        ) {
            (Some(true), Ok(_)) => ResponseVerb::Add,
            (Some(false), Ok(_)) => ResponseVerb::Set,
            (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => ResponseVerb::Add,
            (None, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd)) => ResponseVerb::Set,
            (None, Ok(HeaderAppendAction::AddIfAbsent)) => ResponseVerb::AddIfAbsent,
            (None, Ok(HeaderAppendAction::OverwriteIfExists)) => ResponseVerb::ReplaceIfPresent,
            (_, Err(_)) if validate => return Err(Invalid::Answer),
            (_, Err(_)) => {
                effects.omitted += 1;
                continue;
            }
        };
        match field(option).ok_or(Invalid::Answer)? {
            (FieldName::Header(name), value) if !is_framing(&name) => {
                effects.response.push((verb, name, value));
            }
            _ => effects.omitted += 1,
        }
    }
    effects.response.sort_by_key(|(verb, _, _)| *verb);

    for parameter in ok.query_parameters_to_set {
        if validate && !(is_plain_query(&parameter.key) && is_plain_query(&parameter.value)) {
            return Err(Invalid::Answer);
        }
        effects.query_set.push((parameter.key, parameter.value));
    }
    effects.query_remove = ok.query_parameters_to_remove;
    Ok(effects)
}

/// Name and value; only `value` counts, never `raw_value`.
fn field(option: HeaderValueOption) -> Option<(FieldName, HeaderValue)> {
    let header = option.header.unwrap_or_default();
    let name = FieldName::parse(&header.key)?;
    let value = HeaderValue::from_maybe_shared(Bytes::from(header.value)).ok()?;
    Some((name, value))
}

/// Whether a query key or value needs no encoding. That is what Envoy checks: under validation
/// it refuses even what is properly encoded, since a `%` would have to be encoded again.
fn is_plain_query(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"*-._".contains(&byte))
}

/// The client's answer; `None` when it could not be written.
fn reply(denied: DeniedHttpResponse, default: StatusCode, max_body: usize) -> Option<Reply> {
    let status = match denied.status.map_or(0, |status| status.code) {
        0 => default,
        code => final_status(code)?,
    };
    let mut headers = HeaderMap::new();
    for option in denied.headers {
        let lost = option.append == Some(true);
        match field(option)? {
            (FieldName::Header(name), value) if !lost && is_for_client(&name) => {
                headers.try_append(name, value).ok()?;
            }
            _ => {}
        }
    }
    let reply = Reply {
        status,
        headers,
        body: Bytes::from(denied.body),
    };
    Some(reply.within(max_body))
}
