//! Auth services that are asked over plain HTTP (`http_service`): the client's head goes there,
//! and the status of the answer decides.
//!
//! [`config`] is what is written; [`request`] and [`answer`] are pure: request head to request,
//! response to verdict.

pub mod answer;
pub mod config;
pub mod request;

use std::time::Duration;

use attache_filter::{CallMetadata, grpc_service::MetadataEntry, retry::Retry};
use attache_service::config::{Errors, Located};
use http::{HeaderMap, HeaderName, header};

use self::{answer::Answers, config::HttpService, request::Target};
use super::answer::is_framing;

/// An auth service that is asked over plain HTTP, ready to be called.
#[derive(Debug, Clone)]
pub struct HttpCall {
    /// The cluster.
    pub cluster: Located<String>,
    /// Bound on a check, retries included; `None` waits forever.
    pub timeout: Option<Duration>,
    /// When a check is made again, if ever.
    pub retry: Option<Retry>,
    /// Which path is asked for.
    pub target: Target,
    /// Headers of each request; they take the place of the client's.
    pub headers: CallMetadata,
    /// What of an answer counts.
    pub answers: Answers,
}

impl HttpCall {
    /// Checks the settings; faults are reported at their place.
    pub(super) fn plan(raw: &HttpService, errors: &mut Errors) -> Self {
        let server = &raw.server_uri;
        let target = Target::plan(raw, errors);
        let request = raw.authorization_request.as_ref();
        let added: &[Located<MetadataEntry>] =
            request.map_or(&[], |request| &request.headers_to_add);
        for entry in added {
            let name = HeaderName::from_bytes(entry.key.as_bytes());
            if name.is_ok_and(|name| is_framing(&name) || name == header::HOST) {
                let message = format!("`{}` is for the proxy to set", entry.key);
                errors.push(entry, message);
            }
        }
        let headers = CallMetadata::plan(added, errors);
        Self {
            cluster: server.cluster.clone(),
            timeout: Some(server.timeout).filter(|timeout| !timeout.is_zero()),
            retry: Retry::plan(raw.retry_policy.as_ref(), &mut HeaderMap::new(), errors),
            target,
            headers,
            answers: Answers::plan(raw.authorization_response.as_ref(), errors),
        }
    }
}
