//! The headers that an auth service is shown, over gRPC and over plain HTTP alike.

use attache_filter::{MessageHead, matcher::ForwardedHeaders};
use http::{Version, header, request};

/// Tells the auth service whether the attached body was cut.
pub(super) const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// Visits one entry a name, pseudo-headers first; repeated headers are joined.
pub(super) fn joined(
    parts: &request::Parts,
    protocol: Version,
    partial: Option<&str>,
    show: &ForwardedHeaders,
    visit: &mut dyn FnMut(&str, &[u8]),
) {
    // HTTP/2 splits cookies into crumbs, which are one header again; repeated `cookie` lines of
    // HTTP/1 are joined like any other header.
    let cookie: &[u8] = if protocol == Version::HTTP_2 {
        b"; "
    } else {
        b","
    };
    pseudo_headers(parts, show, visit);
    let mut headers = parts.headers.iter().peekable();
    while let Some((name, value)) = headers.next() {
        // A name's values come one after the other.
        let mut more = || headers.next_if(|(next, _)| *next == name);
        if name == header::HOST || name == PARTIAL_BODY || !show.shows(name.as_str()) {
            while more().is_some() {}
            continue;
        }
        let Some((_, second)) = more() else {
            visit(name.as_str(), value.as_bytes());
            continue;
        };
        let comma: &[u8] = if name == header::COOKIE { cookie } else { b"," };
        let mut joined = value.as_bytes().to_vec();
        for (_, value) in std::iter::once((name, second)).chain(std::iter::from_fn(more)) {
            joined.extend_from_slice(comma);
            joined.extend_from_slice(value.as_bytes());
        }
        visit(name.as_str(), &joined);
    }
    if let Some(partial) = partial {
        visit(PARTIAL_BODY, partial.as_bytes());
    }
}

/// Visits every line as it is, pseudo-headers first.
pub(super) fn lines(
    parts: &request::Parts,
    partial: Option<&str>,
    show: &ForwardedHeaders,
    visit: &mut dyn FnMut(&str, &[u8]),
) {
    pseudo_headers(parts, show, visit);
    for (name, value) in &parts.headers {
        if name != header::HOST && name != PARTIAL_BODY && show.shows(name.as_str()) {
            visit(name.as_str(), value.as_bytes());
        }
    }
    if let Some(partial) = partial {
        visit(PARTIAL_BODY, partial.as_bytes());
    }
}

fn pseudo_headers(
    parts: &request::Parts,
    show: &ForwardedHeaders,
    visit: &mut dyn FnMut(&str, &[u8]),
) {
    for name in [":authority", ":path", ":method", ":scheme"] {
        if let Some(value) = parts.pseudo(name)
            && show.shows(name)
        {
            visit(name, value.as_bytes());
        }
    }
}
