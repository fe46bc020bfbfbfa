//! Redirects of an upstream that are followed here, through all policies again: Envoy's
//! `config.route.v3.InternalRedirectPolicy`.

use std::sync::{Arc, Mutex, PoisonError};

use attache_filter::{
    Body,
    head::{self, Scheme},
};
use attache_service::config::Errors;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request};
use tokio::{sync::oneshot, time::Instant};

use crate::{config, router::Received, upstream::Replay};

const ORIGINAL_URL: HeaderName = HeaderName::from_static("x-envoy-original-url");

const REDIRECTS: [StatusCode; 5] = [
    StatusCode::MOVED_PERMANENTLY,
    StatusCode::FOUND,
    StatusCode::SEE_OTHER,
    StatusCode::TEMPORARY_REDIRECT,
    StatusCode::PERMANENT_REDIRECT,
];

/// Which redirects are followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalRedirect {
    /// How many for one request. Default 1.
    pub most: u32,
    /// Their statuses. Default 302.
    pub statuses: Vec<StatusCode>,
    /// Also from `http` to `https` and back.
    pub cross_scheme: bool,
}

impl Default for InternalRedirect {
    fn default() -> Self {
        Self {
            most: 1,
            statuses: vec![StatusCode::FOUND],
            cross_scheme: false,
        }
    }
}

impl InternalRedirect {
    /// Compiles a policy; faults are reported at their place.
    pub(crate) fn plan(raw: &config::InternalRedirectPolicy, errors: &mut Errors) -> Self {
        let mut planned = Self {
            most: raw.max_internal_redirects.unwrap_or(1),
            cross_scheme: raw.allow_cross_scheme_redirect.unwrap_or(false),
            ..Self::default()
        };
        if !raw.redirect_response_codes.is_empty() {
            planned.statuses.clear();
        }
        for code in &raw.redirect_response_codes {
            let mut known = REDIRECTS.iter();
            match known.find(|status| status.as_u16() == code.value) {
                Some(status) => planned.statuses.push(*status),
                None => errors.push(
                    code,
                    format!("`{}` is none of 301, 302, 303, 307 and 308", code.value),
                ),
            }
        }
        planned
    }

    /// The request that follows a redirect to what `location` says, where it may be followed.
    /// `parts` are those of the request that was redirected, before its route changed them.
    pub(crate) fn follow(
        &self,
        mut parts: request::Parts,
        replay: &Replay,
        status: StatusCode,
        location: &HeaderMap,
    ) -> Option<Box<Received>> {
        let restart = parts.extensions.get::<Restart>()?;
        if restart.followed >= self.most {
            return None;
        }
        let mut body = replay.complete()?;
        let location = location.get(header::LOCATION)?.to_str().ok()?;
        let location: Uri = location.parse().ok()?;
        let scheme = match location.scheme_str()? {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        let before = *parts.extensions.get::<Scheme>()?;
        if scheme != before && !self.cross_scheme {
            return None;
        }
        let host = location.authority()?.as_str();
        // With a user's name and password it is none.
        let host = HeaderValue::from_str(host)
            .ok()
            .filter(|_| !host.contains('@'))?;
        let original = original_url(&parts, before)?;
        if status == StatusCode::SEE_OTHER && !matches!(parts.method, Method::GET | Method::HEAD) {
            parts.method = Method::GET;
            parts.headers.remove(header::CONTENT_LENGTH);
            body = Body::empty();
        }
        parts.headers.insert(ORIGINAL_URL, original);
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        let target = location.into_parts();
        if uri.authority.is_some() {
            uri.authority = target.authority;
        } else {
            parts.headers.insert(header::HOST, host);
        }
        if uri.scheme.is_some() {
            uri.scheme = target.scheme;
        }
        uri.path_and_query = target.path_and_query;
        parts.uri = Uri::from_parts(uri).ok()?;
        parts.extensions.insert(scheme);
        Some(Box::new(Received { parts, body }))
    }
}

fn original_url(parts: &request::Parts, scheme: Scheme) -> Option<HeaderValue> {
    let scheme = match scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    };
    let host = head::authority(parts).unwrap_or_default();
    let target = parts.uri.path_and_query()?;
    HeaderValue::try_from(format!("{scheme}://{host}{target}")).ok()
}

/// The way back to where a request passes the policies; an extension of the request.
#[derive(Clone)]
pub(crate) struct Restart {
    /// Redirects followed so far.
    pub(crate) followed: u32,
    /// When the request began, or was redirected last.
    pub(crate) since: Instant,
    tell: Arc<Mutex<Option<oneshot::Sender<Box<Received>>>>>,
}

impl Restart {
    /// With what is told through it.
    pub(crate) fn new(followed: u32, since: Instant) -> (Self, oneshot::Receiver<Box<Received>>) {
        let (tell, told) = oneshot::channel();
        let tell = Arc::new(Mutex::new(Some(tell)));
        let restart = Self {
            followed,
            since,
            tell,
        };
        (restart, told)
    }

    /// Lets `request` pass the policies in the place of the one that this belongs to, which gets
    /// no answer of its own.
    pub(crate) fn with(&self, request: Box<Received>) {
        let mut tell = self.tell.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody listens any more when the client is gone.
        let _ = tell.take().map(|tell| tell.send(request));
    }
}
