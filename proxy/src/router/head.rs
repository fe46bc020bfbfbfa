//! The head of a request as its upstream shall see it.

use attache_filter::{
    RequestContext,
    head::{self, Scheme},
};
use http::{
    HeaderName, HeaderValue, Method, Uri, Version, header, request,
    uri::{Authority, PathAndQuery},
};

use crate::{
    plan::Protocol,
    route::{Forward, HostRewrite, RouteEntry, append_forwarded_host},
    upstream::{Cluster, Endpoint},
};

pub(crate) const EXPECTED_TIMEOUT: HeaderName =
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");

/// Turns a request into what the upstream shall see.
pub(super) fn prepare(
    parts: &mut request::Parts,
    entry: &RouteEntry,
    forward: &Forward,
    (cluster, endpoint): (&Cluster, &Endpoint),
    context: &RequestContext,
) {
    if let Some(expected) = forward.expected_ms() {
        parts.headers.insert(EXPECTED_TIMEOUT, expected.clone());
    }
    if let Some(changes) = &entry.changes {
        changes.request(parts, context);
    }
    let host = forward
        .host_rewrite
        .as_ref()
        .and_then(|rewrite| rewrite.apply(parts, context, endpoint.endpoint.host_name()));
    let silent = matches!(forward.host_rewrite, Some(HostRewrite::OfCluster(_)));
    if host.is_some() && !silent {
        if forward.append_forwarded_host {
            append_forwarded_host(parts);
        }
        if let Some(old) = head::authority(parts)
            && let Ok(old) = HeaderValue::from_str(old)
        {
            parts.headers.insert(ORIGINAL_HOST, old);
        }
    }
    let path = forward
        .path_rewrite
        .as_ref()
        .and_then(|rewrite| rewrite.apply(&entry.matches, parts, context));
    if path.is_some()
        && let Some(old) = parts.uri.path_and_query()
        && let Ok(old) = HeaderValue::from_str(old.as_str())
    {
        parts.headers.insert(ORIGINAL_PATH, old);
    }
    fit(parts, cluster, context, host, path);
}

/// Puts a request into the form of the cluster's protocol, with another host and path where they
/// are given.
pub(crate) fn fit(
    parts: &mut request::Parts,
    cluster: &Cluster,
    context: &RequestContext,
    host: Option<HeaderValue>,
    path: Option<PathAndQuery>,
) {
    match cluster.plan.protocol {
        Protocol::Http1 => {
            let host = host.or_else(|| {
                let authority = parts.uri.authority()?;
                HeaderValue::from_str(authority.as_str()).ok()
            });
            if let Some(host) = host {
                parts.headers.insert(header::HOST, host);
            }
            if path.is_some() || parts.uri.authority().is_some() {
                let target = path.or_else(|| parts.uri.path_and_query().cloned());
                parts.uri = target.map_or_else(|| Uri::from_static("/"), Uri::from);
            }
            parts.version = Version::HTTP_11;
        }
        Protocol::Http2 => {
            let old = parts.headers.remove(header::HOST);
            let host = host.or(old);
            let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
            let mut uri = std::mem::take(&mut parts.uri).into_parts();
            uri.authority = authority
                .or(uri.authority)
                .or_else(|| Authority::try_from(&*cluster.plan.name).ok());
            uri.scheme = Some(match scheme(parts, context) {
                "https" => http::uri::Scheme::HTTPS,
                _ => http::uri::Scheme::HTTP,
            });
            uri.path_and_query = path
                .or(uri.path_and_query)
                .or_else(|| Some(PathAndQuery::from_static("/")));
            parts.uri = Uri::from_parts(uri).unwrap_or_default();
            parts.version = Version::HTTP_2;
            parts.headers.remove(header::CONNECTION);
            parts.headers.remove(header::UPGRADE);
        }
    }
}

/// RFC 9110 §8.6: methods that usually carry content say so when there is none.
pub(crate) fn say_empty(parts: &mut request::Parts) {
    let usually = matches!(parts.method, Method::POST | Method::PUT | Method::PATCH);
    if usually && parts.version == Version::HTTP_11 {
        parts
            .headers
            .entry(header::CONTENT_LENGTH)
            .or_insert(HeaderValue::from_static("0"));
    }
}

pub(super) fn scheme(parts: &request::Parts, context: &RequestContext) -> &'static str {
    match parts.extensions.get::<Scheme>() {
        Some(Scheme::Https) => "https",
        Some(Scheme::Http) => "http",
        None if context.connection.tls.is_some() => "https",
        None => "http",
    }
}

pub(crate) fn millis(millis: u128) -> HeaderValue {
    const SMALL: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    let small = usize::try_from(millis).ok().and_then(|i| SMALL.get(i));
    match small {
        Some(text) => HeaderValue::from_static(text),
        None => HeaderValue::from(u64::try_from(millis).unwrap_or(u64::MAX)),
    }
}
